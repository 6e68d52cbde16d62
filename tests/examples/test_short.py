"""The short scripts of examples/short: at most 15 lines each, run as they are, each named in examples/README.md."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import urllib.request
from runpy import run_path

import pytest
from helpers import ROOT

from fsrm_lite import FastSlowRM

SHORT = ROOT / "examples" / "short"
SCRIPTS = sorted(path.stem for path in SHORT.glob("*.py"))


@pytest.fixture
def run(rm, monkeypatch, capsys):
    """Runs a script with the session's model and returns the lines that it prints."""

    def run(name, *arguments):
        with monkeypatch.context() as patch:
            if not arguments:
                patch.setattr(FastSlowRM, "from_pretrained", lambda source=None: rm)
            patch.setattr(sys, "argv", [name, *map(str, arguments)])
            run_path(str(SHORT / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short_and_says_in_one_line_what_it_does(name):
    text = (SHORT / f"{name}.py").read_text("utf-8")
    assert len(text.splitlines()) <= 15
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring
    assert "\n" not in docstring
    assert f"`short/{name}.py`" in (ROOT / "examples" / "README.md").read_text("utf-8")


def test_every_use_has_a_script():
    uses = "best_of_n calibrate compare critic_loop export rank reward_function score serve"
    assert uses.split() == SCRIPTS


def test_score(run):
    lines = run("score")
    assert [line.split()[1] for line in lines] == ["slow", "slow", "fast"]
    scores = [float(line.split()[0]) for line in lines]
    assert scores[0] > 0.8
    assert max(scores[1:]) < 0.1


def test_compare(run):
    lines = run("compare")
    assert lines[0] == "better: 15 pens  decided by the path: slow"
    assert "intuition confidence" in lines[1]
    assert lines[2] == "7 + 8 = 15"


def test_rank(run):
    first, *rest = [line[6:] for line in run("rank")]
    assert first == "15 pens"
    assert sorted(rest) == ["15 cups", "16 pens"]


def test_best_of_n(run):
    best, counts = run("best_of_n")
    assert "17 pens" in best
    assert re.fullmatch(r"8 candidates, [0-7] matches", counts)


def test_reward_function(run):
    rewards = [float(line.split()[0]) for line in run("reward_function")]
    assert rewards[0] > 0.8 > 0.1 > rewards[1]
    assert rewards[2] == 0


def test_critic_loop(run):
    *turns, end = run("critic_loop")
    assert 1 <= len(turns) <= 4
    assert all(turn.startswith("rejected") for turn in turns[:-1])
    outcome = end.split()[0]
    assert outcome in ("accepted", "best")
    assert turns[-1].startswith("accepted") == (outcome == "accepted")


@pytest.mark.slow
def test_calibrate(run):
    statement, gate = run("calibrate")
    assert "the error rate is at most 0.05, with probability at least 0.9" in statement
    assert gate.startswith("GateSpec(")


@pytest.mark.slow
def test_export(run, tmp_path, monkeypatch):
    from helpers.export import SPEC, make_checkpoint

    # Random weights are about to say anything, and a label no more often than that.
    monkeypatch.setattr("fsrm_lite.export.pipeline.label_mass_too_low", lambda *_: None)
    make_checkpoint(tmp_path / "checkpoint", scale=0.02, spec=SPEC)
    within, score = run("export", tmp_path / "checkpoint", tmp_path / "bundle")
    assert within == "within tolerance: True"
    assert 0 <= float(score) <= 1
    assert (tmp_path / "bundle" / "fsrm.json").exists()


def test_serve():
    program = [sys.executable, str(SHORT / "serve.py"), "0"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().strip()
            body = json.dumps(
                {"query": "What is 2 + 3?", "documents": ["The answer is 41.", "The answer is 5."]}
            ).encode()
            request = urllib.request.Request(address, body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as reply:
                assert [result["index"] for result in json.load(reply)["results"]] == [1, 0]
        finally:
            server.terminate()
