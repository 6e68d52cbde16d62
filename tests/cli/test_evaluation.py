import gzip
import json

import pytest
from helpers import DATA
from helpers.cli import call

from fsrm_lite.cli import identity
from fsrm_lite.gate import GateSpec


def test_eval_prints_the_policies_side_by_side(model):
    result = call("eval", DATA / "llmbar.json", "--resamples", "5")
    assert result.exit_code == 0
    for phrase in (
        "llmbar: 3 items",
        "always fast",
        "gated",
        "always slow",
        "longer wins",
        "coin",
        "both orders",
        "positional_agreement",
    ):
        assert phrase in result.stdout


def test_eval_writes_rows_and_resumes(tmp_path, model):
    output, report = tmp_path / "out.jsonl", tmp_path / "report.json"
    arguments = (
        "eval",
        DATA / "rm_bench.json",
        "-o",
        output,
        "--report",
        report,
        "--judge",
        "never",
        "--resamples",
        "5",
    )
    assert call(*arguments).exit_code == 0
    assert len(output.read_text().splitlines()) == 10
    assert json.loads(report.read_text())["policies"]["always_fast"]["metrics"]["score"]["value"] == 1.0
    again = call(*arguments)
    assert again.exit_code == 2
    assert "pass --resume" in again.stderr
    output.write_text(output.read_text()[:-40])
    model.calls.clear()
    assert call(*arguments, "--resume").exit_code == 0
    assert [c for c in model.calls if c[0] == "score"] == [("score", "never", 6)]


def test_eval_names_what_it_cannot_read(tmp_path, model):
    unknown = tmp_path / "x.jsonl"
    unknown.write_text('{"text": "hello"}\n')
    result = call("eval", unknown)
    assert result.exit_code == 2
    assert "no known format has the columns text" in result.stderr
    assert "format 'alpaca' is unknown" in call("eval", DATA / "llmbar.json", "--format", "alpaca").stderr


def test_eval_limit_and_json(model):
    report = json.loads(
        call("eval", DATA / "pandalm.json", "--limit", "2", "--judge", "never", "--json", "--resamples", "5").stdout
    )
    assert report["items"] == 2


def test_eval_takes_two_columns_of_scores(tmp_path, scores, no_model):
    names = ("--fast-columns", "left,right", "--label-column", "better", "--slow-columns", "judge")
    result = call("eval", "--scores", scores, *names, "--resamples", "5")
    assert result.exit_code == 0
    assert "always slow      100.0 %" in result.stdout
    assert "gated" not in result.stdout
    gate = tmp_path / "gate.json"
    gate.write_text(json.dumps(GateSpec(0.5).to_dict()))
    assert "gated" in call("eval", "--scores", scores, *names, "--resamples", "5", "--gate", gate).stdout


def test_verdicts_are_read_from_texts(tmp_path, scores, no_model):
    texts = tmp_path / "texts.jsonl"
    better = [line.split(",")[2][0] for line in scores.read_text().splitlines()[1:]]
    texts.write_text("".join(json.dumps({"judgement": f"<think>?</think> [[{b}]]"}) + "\n" for b in better))
    names = ("--fast-columns", "left,right", "--label-column", "better", "--resamples", "5")
    result = call("eval", "--scores", scores, *names, "--verdicts", texts, "--form", "chat")
    assert "always slow      100.0 %" in result.stdout
    alone = tmp_path / "alone.jsonl"
    alone.write_text("".join(json.dumps({"better": b, "judgement": f"[[{b}]]"}) + "\n" for b in better))
    result = call("eval", "--verdicts", alone, "--form", "chat", "--label-column", "better", "--resamples", "5")
    assert "always slow      100.0 %" in result.stdout
    assert "always fast" not in result.stdout
    assert "needs --form" in call("eval", "--scores", scores, *names, "--verdicts", texts).stderr


def test_data_and_scores_exclude_each_other(scores, recorded, no_model):
    assert "not both" in call("eval", DATA / "pairs.jsonl", "--scores", scores).stderr
    assert "not both" in call("eval").stderr
    assert "not both" in call("calibrate", recorded, "--scores", scores, "--risk", "0.1").stderr


@pytest.mark.parametrize(
    "changed",
    [("--deterministic",), ("--judge-engine", "onnx"), ("--threads", "3"), ("--batch-size", "2"), ("--seed", "1")],
)
def test_eval_goes_on_only_with_a_run_that_computes_the_same(tmp_path, model, changed):
    arguments = ("eval", DATA / "rm_bench.json", "-o", tmp_path / "out.jsonl", "--judge", "never", "--resamples", "5")
    assert call(*arguments).exit_code == 0
    result = call(*arguments, "--resume", *changed)
    assert result.exit_code == 2
    assert "another model or other options" in result.stderr
    assert call(*arguments, "--resume").exit_code == 0


def test_eval_does_not_go_on_with_other_software(tmp_path, model, monkeypatch):
    arguments = ("eval", DATA / "rm_bench.json", "-o", tmp_path / "out.jsonl", "--judge", "never", "--resamples", "5")
    assert call(*arguments).exit_code == 0
    monkeypatch.setattr(identity, "version_of", lambda package: "0.0.1")
    assert "another model or other options" in call(*arguments, "--resume").stderr


def test_a_report_names_software_and_options(model):
    options = ("--deterministic", "--threads", "2", "--judge", "never", "--resamples", "5", "--json")
    run = json.loads(call("eval", DATA / "llmbar.json", *options).stdout)["run"]
    assert (run["options"]["deterministic"], run["options"]["threads"]) == (True, 2)
    assert run["software"]["onnxruntime"] == identity.version_of("onnxruntime")
    assert run["software"]["llama-cpp-python"] is None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--gate", "x.json"), "a model is measured with its own gate, which `fsrm-lite calibrate --write` puts into"),
        (("--fast-columns", "a,b"), "--fast-columns is about a file of scores; name it with --scores"),
        (("--label-column", "x"), "--label-column is about a file of scores"),
        (("--form", "chat"), "--form is about the texts of --verdicts; name that file too"),
    ],
)
def test_eval_refuses_options_that_data_do_not_take(no_model, options, match):
    result = call("eval", DATA / "llmbar.json", *options)
    assert result.exit_code == 2
    assert match in result.stderr


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--model", "x"), "--model is about a model, which --scores and --verdicts do without"),
        (("--judge", "never"), "--judge is about a model"),
        (("--limit", "3"), "--limit is for runs of a model"),
        (("-o", "x.jsonl"), "--output is for runs of a model"),
        (("--first-is-right", "--label-column", "x"), "both say which response is right"),
        (("--verdict-columns", "x"), "--verdict-columns is about the texts of --verdicts"),
    ],
)
def test_eval_refuses_options_that_scores_do_not_take(scores, no_model, options, match):
    result = call("eval", "--scores", scores, *options)
    assert result.exit_code == 2
    assert match in result.stderr


def test_an_option_of_the_environment_is_no_mistake(scores, no_model, monkeypatch):
    monkeypatch.setenv("FSRM_LITE_EVAL_JUDGE", "never")
    names = ("--fast-columns", "left,right", "--label-column", "better", "--resamples", "5")
    assert call("eval", "--scores", scores, *names).exit_code == 0


def test_eval_reads_a_gate_as_every_other_json(tmp_path, scores, no_model):
    names = ("--fast-columns", "left,right", "--label-column", "better", "--resamples", "5")
    gate = tmp_path / "gate.json"
    gate.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(GateSpec(0.5).to_dict()).encode()))
    assert "the gate         would escalate" in call("eval", "--scores", scores, *names, "--gate", gate).stdout
    for damaged in (b"{", b"[" * 100_000, b"\xff\xfe", gate.read_bytes()[:-4], b"\x1f\x8b\x08" + b"\0" * 30):
        gate.write_bytes(damaged)
        result = call("eval", "--scores", scores, *names, "--gate", gate)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "gate.json" in result.stderr


def test_eval_compares_in_pairs_with_a_model_that_gives_no_score(model, tmp_path):
    model.fast.reads_responses, model.fast.reads_pairs = False, True
    options = ("--judge", "never", "--resamples", "5", "-o", tmp_path / "out.jsonl", "--limit", "3")
    result = call("eval", DATA / "rewardbench2.jsonl", *options)
    assert result.exit_code == 0, result.output
    assert "rewardbench2-pairs: " in result.stdout
    assert "prompts of the subset Ties: their metric needs a score of each response" in result.stdout
    assert call("eval", DATA / "rewardbench2.jsonl", *options, "--resume").stdout == result.stdout


def test_lists_of_scores_are_no_pairs_because_the_first_one_is_short(tmp_path, no_model):
    path = tmp_path / "lists.jsonl"
    rows = [{"scores": [1, 2], "label": 1, "v": 1}, {"scores": [5, 1, 2, 3], "label": 2, "v": 2}]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    report = json.loads(call("eval", "--scores", path, "--slow-columns", "v", "--resamples", "5", "--json").stdout)
    assert report["format"] == "best-of-n"
    assert report["policies"]["always_fast"]["metrics"]["score"]["value"] == 0.5
    assert report["policies"]["always_slow"]["metrics"]["score"]["value"] == 1.0


def test_lists_of_scores_are_gated_by_the_rule_for_lists(tmp_path, no_model):
    path, gate = tmp_path / "lists.jsonl", tmp_path / "gate.json"
    rows = [{"scores": [3.0, 0.5, 0.2], "label": 1, "v": 1}, {"scores": [30, 2, 1], "label": 0, "v": 2}]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    asked = ("eval", "--scores", path, "--slow-columns", "v", "--resamples", "5", "--gate", gate)

    def gated(coverage):
        gate.write_text(
            json.dumps({"lists": {"coverage": coverage, "temperature": 1, "sharpness": 1, "group": "text"}})
        )
        report = json.loads(call(*asked, "--json").stdout)
        return report["escalated"]["value"], report["policies"]["gated"]["metrics"]["score"]["value"]

    assert gated(0.0) == (0.0, 0.5)  # the first pick is wrong
    assert gated(0.95) == (0.5, 1.0)  # and the judge, asked about it, names the right one
    assert gated(1.0) == (1.0, 0.5)  # asked about the second as well, it is wrong there
    gate.write_text(json.dumps(GateSpec(0.5).to_dict()))
    result = call(*asked)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "calibrate a rule for lists" in result.stderr


def test_a_rule_for_lists_alone_is_no_gate_for_pairs(tmp_path, no_model):
    path, gate = tmp_path / "pairs.jsonl", tmp_path / "gate.json"
    path.write_text(json.dumps({"score_a": 1, "score_b": 2, "label": 1}) + "\n")
    gate.write_text(json.dumps({"lists": {"coverage": 0.5, "temperature": 1, "sharpness": 1, "group": "text"}}))
    for command in (("eval", "--scores", path), ("gate", "drift", path, path)):
        result = call(*command, "--gate", gate)
        assert result.exit_code == 2
        assert "a rule for lists alone" in result.stderr
