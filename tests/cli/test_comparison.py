import json

import pytest
from helpers import DATA
from helpers.cli import call

from fsrm_lite.cli import comparison
from fsrm_lite.gate import GateSpec


@pytest.fixture
def both(tmp_path):
    """A file with the scores of two systems, of which the second is better."""
    lines = ["id,a1,b1,a2,b2,label,judge"]
    for k in range(60):
        side = k % 2
        first = (1, 0) if (k % 5 > 1) == (side == 0) else (0, 1)
        second = (1, 0) if (k % 5 > 0) == (side == 0) else (0, 1)
        lines.append(f"i{k},{first[0]},{first[1]},{second[0]},{second[1]},{side},{side}")
    (tmp_path / "scores.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "scores.csv"


def test_columns_of_one_file_are_compared(tmp_path, both, no_model):
    picture, report = tmp_path / "p.png", tmp_path / "r.json"
    arguments = ("eval", f"old={both}:a1,b1", f"{both}:a2,b2", "--compare", "--resamples", "200")
    result = call(*arguments, "--picture", picture, "--report", report)
    assert result.exit_code == 0, result.output
    assert "pairs: 60 items that all have, with 95 % intervals" in result.stdout
    assert "| old | always fast | 60.0 % [" in result.stdout
    assert "| a2,b2 - old | always fast | **+20.0 [+" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(report.read_text())
    assert [s["name"] for s in found["systems"]] == ["old", "a2,b2"]
    assert json.loads(call(*arguments, "--json").stdout) == found


def test_a_judge_and_a_gate_are_compared_too(tmp_path, both, no_model):
    gate = tmp_path / "gate.json"
    gate.write_text(json.dumps(GateSpec(0.9).to_dict()))
    options = ("--slow-columns", "judge", "--gate", gate, "--resamples", "5", "--compare")
    result = call("eval", f"old={both}:a1,b1", f"new={both}:a2,b2", *options)
    assert "| new | gated | 100.0 %" in result.stdout
    assert "| new - old | always slow | +0.0" in result.stdout


def test_files_are_matched_by_id_where_one_is_named(tmp_path, both, no_model):
    head, *rows = both.read_text().splitlines()
    other = tmp_path / "other.csv"
    other.write_text("\n".join([head, *reversed(rows[10:])]) + "\n")
    columns = ("--fast-columns", "a1,b1", "--compare", "--resamples", "5")
    result = call("eval", both, other, *columns, "--id-column", "id")
    assert "pairs: 50 items that all have" in result.stdout
    assert "- scores: 10 items of its own were left out" in result.stdout
    assert "| other - scores | always fast | +0.0 [+0.0, +0.0] |" in result.stdout
    assert "name an --id-column" in call("eval", both, other, *columns).stderr
    other.write_text("\n".join([head, *rows[1:], rows[0]]) + "\n")
    assert "item 1 has other right responses in other than in scores" in call("eval", both, other, *columns).stderr


def test_models_results_and_scores_are_compared_on_a_benchmark(tmp_path, model, monkeypatch):
    monkeypatch.setattr(comparison.Bundle, "open", lambda source: pytest.fail("only pairs decide how pairs are asked"))
    data, results = DATA / "judgebench.jsonl", tmp_path / "results.jsonl"
    assert call("eval", data, "-o", results, "--judge", "never", "--resamples", "5").exit_code == 0
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    scores = tmp_path / "scores.jsonl"
    scores.write_text(
        "".join(
            json.dumps({"pair_id": r["pair_id"], "score_a": 1, "score_b": 0, "label": r["label"]}) + "\n" for r in rows
        )
    )
    options = ("--compare", "--judge", "never", "--resamples", "5")
    result = call("eval", "embedded", results, scores, "--on", data, "--id-column", "pair_id", *options)
    assert result.exit_code == 0, result.output
    assert f"judgebench: {len(rows)} items that all have" in result.stdout
    assert "| results - embedded | always fast | +0.0 [+0.0, +0.0] |" in result.stdout
    by_place = call("eval", "embedded", results, scores, "--on", data, *options)
    assert by_place.stdout == result.stdout
    named = call("eval", results, f"again={results}", "--format", "judgebench", "--compare", "--resamples", "5")
    assert "| again - results | always fast | +0.0" in named.stdout


def test_all_models_are_asked_in_pairs_if_one_only_compares(tmp_path, model):
    folder = tmp_path / "compares"
    folder.mkdir()
    manifest = model.bundle.manifest.to_dict()
    manifest["templates"] = {"pairwise_fast": {"text": "{prompt} {response_a} {response_b}"}}
    seen = []
    comparison_open = comparison.Bundle.open

    class Compares:
        manifest = type("M", (), {"templates": {"pairwise_fast": None}})

    def opened(source, **where):
        seen.append(source)
        return Compares() if source == str(folder) else comparison_open(source, **where)

    (folder / "fsrm.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison.Bundle, "open", opened)
        result = call(
            "eval", "embedded", folder, "--compare", "--on", DATA / "rm_bench.json", "--judge", "never",
            "--resamples", "5", "--limit", "2",
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "rm-bench-pairs: 18 items that all have" in result.stdout
    assert str(folder) in seen


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("{both}", "--compare"), "--compare needs two models, results or score files"),
        (("{both}", "{both}"), "got 2 data, expected one; --compare compares several"),
        (("{both}", "x={both}", "--compare", "--on", "x"), "--on is about a model, and none was named"),
        (("{both}", "embedded", "--compare"), "the models need a benchmark; name it with --on DATA"),
        (("{both}", "x={both}", "--compare", "-o", "x.jsonl"), "--output is for one model"),
        (("{both}", "x={both}", "--compare", "--model", "m"), "--model is for one model"),
        (("{both}", "x={both}", "--compare", "--picture", "x.gif"), "expected a name in .png"),
        (("{both}", "x={both}", "--compare", "--scores", "{both}"), "name the files of scores as DATA"),
        (("{both}", "{both}", "--compare", "--fast-columns", "a1,b1"), "each with its own name"),
        (("{both}", "--on", "{both}"), "--on goes with --compare"),
    ],
)
def test_what_cannot_be_compared_is_refused(both, no_model, arguments, match):
    result = call("eval", *(a.format(both=both) for a in arguments))
    assert result.exit_code == 2
    assert match in result.stderr
