"""Options are typed: an editor completes them, mypy refuses a misspelt one, and the types name what is accepted."""

import dataclasses
import inspect
import subprocess
import sys

import pytest

from fsrm_lite import FastSlowRM
from fsrm_lite.ranking.tournament import TournamentOptions
from fsrm_lite.types import (
    JudgeOptions,
    JudgeSettings,
    LoadSettings,
    ModelSettings,
    RankSettings,
    ScoringSettings,
    SelectionSettings,
    TournamentSettings,
)


def keys(settings):
    return set(settings.__annotations__)  # of a TypedDict these are its own and its bases'


def fields(options):
    return {field.name for field in dataclasses.fields(options)}


def parameters(function):
    named = (inspect.Parameter.KEYWORD_ONLY,)
    return {p.name for p in inspect.signature(function).parameters.values() if p.kind in named}


def test_typed_settings_name_exactly_what_is_taken():
    assert keys(JudgeSettings) == fields(JudgeOptions)
    assert keys(TournamentSettings) == fields(TournamentOptions)
    assert keys(ScoringSettings) == fields(JudgeOptions) | {"judge"}
    assert keys(RankSettings) == fields(JudgeOptions) - {"top_k"} | {"judge"}
    assert keys(SelectionSettings) == keys(ScoringSettings) | keys(TournamentSettings)
    assert keys(ModelSettings) == parameters(FastSlowRM.__init__)
    assert keys(LoadSettings) == keys(ModelSettings) - {"judge"} | parameters(FastSlowRM.from_pretrained)


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        'rm.score("q", "a", votez=3)',
        'rm.score_many([("q", "a")], temprature=0.5)',
        'rm.compare("q", "a", "b", both_order=False)',
        'rm.rank("q", ["a", "b"], top=1)',
        'rm.best_of_n("q", ["a", "b"], strategy="swiss")',
        'rm.best_of_n("q", ["a", "b"], on_judge_eror="fast")',
        "FastSlowRM.from_pretrained(thread=2)",
        'FastSlowRM.from_pretrained(judge="sometimes")',
    ],
)
def test_a_type_checker_refuses_a_misspelt_option(tmp_path, call):
    good = 'rm.score("q", "a", votes=3, judge="always")\nrm.rank("q", ["a"], top_k=1, seed=2)\n'
    path = tmp_path / "caller.py"
    path.write_text(f"from fsrm_lite import FastSlowRM\n\nrm = FastSlowRM.from_pretrained(threads=1)\n{good}{call}\n")
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert done.stdout.count("error:") == 1
    assert f"caller.py:{6}: error" in done.stdout
