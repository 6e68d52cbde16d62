import csv
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from helpers.calibration import make_items
from helpers.cli import call

from fsrm_lite.bundle.files import Bundle
from fsrm_lite.bundle.manifest import Label, Limits, Manifest, Template
from fsrm_lite.cli.calibration_text import gate_text
from fsrm_lite.gate import AnswerWeights, GateSpec


@pytest.mark.parametrize("option", ["-o", "--report", "--plots", "--record"])
def test_calibrate_never_writes_over_its_input_or_into_no_folder(tmp_path, recorded, no_model, option):
    before = recorded.read_text()
    result = call("calibrate", recorded, "--risk", "0.15", option, recorded)
    assert (result.exit_code, recorded.read_text()) == (2, before)
    assert "is the input itself" in result.stderr
    assert (
        "there is no folder"
        in call("calibrate", recorded, "--risk", "0.15", option, tmp_path / "none" / "x.png").stderr
    )


def test_calibrate_writes_through_links_and_into_pipes(tmp_path, recorded, no_model):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        options = ("--risk", "0.15", "--resamples", "5")
        assert (
            call("calibrate", recorded, *options, "-o", tmp_path / "link.json", "--report", tmp_path / "pipe").exit_code
            == 0
        )
        assert json.loads(read.result())["goal"]["risk"] == 0.15
    assert (tmp_path / "link.json").is_symlink()
    assert GateSpec.from_dict(json.loads((tmp_path / "real.json").read_text()))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--risk", "1e-320"], "risk is"),
        (["--risk", "0.1", "--seed", "-1"], "seed is -1"),
        (["--risk", "0.1", "--tuning-share", "nan"], "tuning share is nan"),
    ],
)
def test_calibrate_refuses_settings_out_of_range(recorded, no_model, options, why):
    result = call("calibrate", recorded, *options)
    assert result.exit_code == 2
    assert why in result.stderr


@pytest.mark.parametrize("change", [{"slow_tokens": -5}, {"slow_tokens": "x"}, {"slow_correct": "false"}])
def test_calibrate_names_a_recorded_item_that_is_damaged(recorded, no_model, change):
    first, *rest = recorded.read_text().splitlines(keepends=True)
    recorded.write_text(json.dumps(json.loads(first) | change) + "\n" + "".join(rest))
    result = call("calibrate", recorded, "--risk", "0.1")
    assert result.exit_code == 2
    assert "not a recorded item" in result.stderr


def test_calibrate_by_risk_writes_gate_report_and_plots(tmp_path, recorded, no_model):
    gate, report, plots = (tmp_path / n for n in ("gate.json", "report.json", "plots.html"))
    result = call(
        "calibrate", recorded, "--risk", "0.15", "-o", gate, "--report", report, "--plots", plots, "--resamples", "10"
    )
    assert result.exit_code == 0
    assert "the error rate is at most 0.15, with probability at least 0.9" in result.stdout
    assert "feasibility" in result.stdout
    spec = GateSpec.from_dict(json.loads(gate.read_text()))
    assert json.loads(report.read_text())["gate"] == spec.to_dict()
    assert "<img" in plots.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gate.json", "items.jsonl", "plots.html", "report.json"]


def test_calibrate_that_proves_nothing_says_so(recorded, no_model):
    result = call("calibrate", recorded, "--risk", "0.001", "--resamples", "5")
    assert result.exit_code == 0
    assert "always escalate" in result.stdout


def test_calibrate_by_budget_by_loss_and_for_the_front(tmp_path, recorded, no_model):
    budget = json.loads(call("calibrate", recorded, "--budget", "20", "--json", "--resamples", "5").stdout)
    assert budget["at_gate"]["tokens"]["value"] < 26
    within = json.loads(call("calibrate", recorded, "--within", "0.02", "--json", "--resamples", "5").stdout)
    assert within["at_gate"]["loss_against_slow"]["value"] < 0.06
    front = tmp_path / "front.json"
    assert "tokens" in call("calibrate", recorded, "--pareto", "-o", front, "--resamples", "5").stdout
    assert len(json.loads(front.read_text())["front"]) > 5


def test_calibrate_runs_the_model_where_items_are_not_recorded(tmp_path, model):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"}) + "\n" for i in range(60)
        )
    )
    kept = tmp_path / "recorded.jsonl"
    result = call("calibrate", rows, "--risk", "0.2", "--record", kept, "--resamples", "5")
    assert result.exit_code == 0
    assert {c[1] for c in model.calls if c[0] == "compare"} == {"never"}  # a risk target needs no judge
    assert len(kept.read_text().splitlines()) == 60
    model.calls.clear()
    assert call("calibrate", rows, "--budget", "5", "--resamples", "5").exit_code == 0
    assert {c[1] for c in model.calls if c[0] == "compare"} == {"always"}


def test_calibrate_writes_the_gate_into_the_bundle(tmp_path, recorded, no_model):
    labels = (Label("Yes", 1, 1.0), Label("No", 2, 0.0))
    manifest = Manifest("m", labels, {"pointwise_fast": Template("{prompt} {response}")}, {}, (0,), Limits(64, 8), 16)
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "fsrm.json").write_text(json.dumps(manifest.to_dict()))
    result = call(
        "calibrate",
        recorded,
        "--risk",
        "0.15",
        "--model",
        folder,
        "--write",
        "-o",
        tmp_path / "gate.json",
        "--resamples",
        "5",
    )
    assert result.exit_code == 0
    written = Manifest.from_dict(json.loads((folder / "fsrm.json").read_text()))
    assert written.gate.to_dict() == json.loads((tmp_path / "gate.json").read_text())
    assert written.labels == manifest.labels


@pytest.mark.parametrize("known", [False, True])
def test_a_new_gate_leaves_the_bundles_weights_unless_it_weighed_both_paths(tmp_path, no_model, known):
    labels = (Label("Yes", 1, 1.0), Label("No", 2, 0.0))
    form, gate = {"pointwise_fast": Template("{prompt} {response}")}, GateSpec(weights=AnswerWeights(0.5, 2.0))
    manifest = Manifest("m", labels, form, {}, (0,), Limits(64, 8), 16, gate)
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "fsrm.json").write_text(json.dumps(manifest.to_dict()))
    items = [replace(x, slow_logit=math.log(3) * (1 - 2 * x.label) if known else None) for x in make_items(200)]
    recorded = tmp_path / "items.jsonl"
    recorded.write_text("".join(json.dumps(x.to_dict()) + "\n" for x in items))
    result = call("calibrate", recorded, "--risk", "0.15", "--model", folder, "--write", "--resamples", "5")
    assert result.exit_code == 0
    assert ("both wrong" in result.stdout) == known
    weights = Manifest.from_dict(json.loads((folder / "fsrm.json").read_text())).gate.weights
    assert (weights == gate.weights) is not known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected exactly one goal"),
        (("--risk", "0.1", "--budget", "5"), "expected exactly one goal"),
        (("--risk", "2"), "above 0 and below 1"),
        (("--pareto", "--write"), "--write needs one gate"),
        (("--risk", "0.1", "--write"), "--write needs --model"),
        (("--risk", "0.1", "--plots", "x.pdf", "--resamples", "2"), ".png or .html"),
    ],
)
def test_calibrate_refuses_bad_usage(recorded, no_model, arguments, message):
    result = call("calibrate", recorded, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_calibrate_refuses_bad_data(tmp_path, recorded, no_model):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(recorded.read_text().splitlines(keepends=True)[:20]))
    result = call("calibrate", few, "--risk", "0.1")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: 20 different labelled items, expected at least 50; label more\n",
    )
    result = call("calibrate", recorded, "--risk", "0.1", "--test", few)
    assert result.exit_code == 2
    assert "20 items are in both the calibration and the test set" in result.stderr
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p", "response": "r", "label": 1}\n')
    assert "mixes single responses and pairs" in call("calibrate", mixed, "--risk", "0.1").stderr


def test_commands_leave_no_partial_files(tmp_path, recorded, no_model):
    target = tmp_path / "nowhere" / "gate.json"
    result = call("calibrate", recorded, "--risk", "0.2", "-o", target, "--resamples", "2")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


@pytest.mark.parametrize(
    ("gate", "text"),
    [
        (GateSpec(0.5, 0.0), "escalate when intuition confidence < 0.5000, at temperature 1.000"),
        (
            GateSpec(0.5, 0.25, "all"),
            "escalate when intuition confidence < 0.5000 and distribution confidence < 0.2500, at temperature 1.000",
        ),
        (GateSpec(0.5, 0.0, "all"), "never escalate"),
        (GateSpec(0.0, 0.0), "never escalate"),
        (GateSpec(always=True), "always escalate"),
    ],
)
def test_a_gate_is_told_in_words(gate, text):
    assert gate_text(gate.to_dict()) == text


def test_calibrate_on_recorded_lists_opens_no_model_and_writes_the_rule(tmp_path, lists, no_model):
    out = tmp_path / "gate.json"
    result = call("calibrate", lists, "--risk", "0.08", "-o", out)
    assert result.exit_code == 0, result.output
    assert "of the lists with a right candidate from which the fast path picks alone" in result.stdout
    assert "left out" in result.stdout
    written = json.loads(out.read_text())
    assert set(written) == {"lists"}
    assert GateSpec.from_dict(written).lists.group == "final"


def test_calibrate_on_lists_with_texts_keeps_the_models_gate_for_pairs(tmp_path, model):
    rows = [
        {"prompt": f"q{k}", "responses": ["good 5", "The answer is 6.", f"bad {k}"], "labels": [1, 0, 0]}
        for k in range(60)
    ]
    path, record, out = (tmp_path / name for name in ("lists.jsonl", "record.jsonl", "gate.json"))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = call("calibrate", path, "--risk", "0.2", "--record", record, "-o", out)
    assert result.exit_code == 0, result.output
    spec = GateSpec.from_dict(json.loads(out.read_text()))
    assert spec.lists is not None
    assert spec.intuition_threshold == Bundle.open(None).manifest.gate.intuition_threshold
    assert call("calibrate", record, "--risk", "0.2").stdout == result.stdout


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--budget", "3"), "take --risk as their goal"),
        (("--risk", "0.1", "--pareto"), "take --risk as their goal"),
        (("--risk", "0.1", "--group-by", "text"), "have their teams already"),
        (("--risk", "0.1", "--write"), "--write needs --model"),
    ],
)
def test_calibrate_refuses_for_lists_what_does_not_fit(lists, no_model, options, match):
    result = call("calibrate", lists, *options)
    assert result.exit_code == 2
    assert match in result.stderr


def test_calibrate_takes_a_grouping_for_lists_only(recorded, no_model):
    result = call("calibrate", recorded, "--risk", "0.1", "--group-by", "text")
    assert (result.exit_code, "--group-by is for lists" in result.stderr) == (2, True)


def test_calibrate_says_in_one_line_why_lists_are_too_few(tmp_path, lists, no_model):
    lists.write_text("".join(lists.read_text().splitlines(keepends=True)[:40]))
    result = call("calibrate", lists, "--risk", "0.1")
    assert result.exit_code == 2
    assert "usable lists of 40, expected at least 50" in result.stderr


def test_calibrate_takes_two_columns_of_scores(tmp_path, scores, no_model):
    gate = tmp_path / "gate.json"
    names = ("--fast-columns", "left,right", "--label-column", "better")
    result = call("calibrate", "--scores", scores, *names, "--risk", "0.15", "--resamples", "5", "-o", gate)
    assert result.exit_code == 0
    assert "the fast path decides where they differ by" in result.stdout
    assert json.loads(gate.read_text())["distribution_threshold"] == 0.0
    slow = ("--slow-columns", "judge", "--resamples", "5", "--plots", tmp_path / "plots.png", "--json")
    report = json.loads(call("calibrate", "--scores", scores, *names, "--budget", "0.5", *slow).stdout)
    assert report["cost"] == "judge calls"
    assert report["always_slow"]["accuracy"]["value"] == 1.0
    assert (tmp_path / "plots.png").read_bytes().startswith(b"\x89PNG")


def test_calibrate_takes_lists_of_scores(tmp_path, no_model):
    rng = np.random.default_rng(4)
    rows = []
    for _ in range(400):
        quality = rng.normal(0, 1, 5)
        right = int(np.argmax(quality))
        rows.append({"scores": (3 * quality + rng.normal(0, 0.5, 5)).tolist(), "label": right})
    path, out = tmp_path / "lists.jsonl", tmp_path / "gate.json"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = call("calibrate", "--scores", path, "--risk", "0.1", "-o", out)
    assert result.exit_code == 0, result.output
    assert "from which the fast path picks alone" in result.stdout
    assert json.loads(out.read_text())["lists"]["group"] == "text"
    assert "take --risk as their goal" in call("calibrate", "--scores", path, "--budget", "3").stderr


def test_calibrate_plans(recorded, scores, no_model):
    result = call("calibrate", recorded, "--risk", "0.1", "--plan")
    assert result.stdout.startswith("to prove an error rate of at most 0.1 with confidence 0.9")
    assert len(result.stdout.splitlines()) == 5
    assert "labelled items" in result.stdout
    one = json.loads(call("calibrate", recorded, "--risk", "0.1", "--plan", "--coverage", "0.4", "--json").stdout)
    assert [p["coverage"] for p in one["plan"]] == [0.4]
    assert "--plan needs --risk" in call("calibrate", recorded, "--budget", "3", "--plan").stderr


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--risk", "0.1", "--coverage", "0.5"), "--coverage goes with --plan"),
        (("--risk", "0.1", "--plan", "-o", "gate.json"), "--output has no effect beside --plan"),
        (("--risk", "0.1", "--plan", "--report", "r.json"), "--report has no effect beside --plan"),
        (("--risk", "0.1", "--tokens-column", "t"), "--tokens-column is about a file of scores"),
        (("--risk", "0.1", "--verdict-columns", "t"), "--verdict-columns is about the texts of --verdicts"),
    ],
)
def test_calibrate_refuses_options_without_effect(recorded, no_model, options, match):
    result = call("calibrate", recorded, *options)
    assert result.exit_code == 2
    assert match in result.stderr


@pytest.mark.parametrize("options", [("--judge", "always"), ("--model", "x"), ("--format", "pairs"), ("--truncate",)])
def test_calibrate_refuses_options_of_a_model_beside_scores(scores, no_model, options):
    result = call("calibrate", "--scores", scores, "--risk", "0.1", *options)
    assert result.exit_code == 2
    assert f"{options[0]} is about a model and its data, which --scores does without" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        *(("--model", "x"), ("--judge", "always"), ("--judge-engine", "llama.cpp"), ("--votes", "2"), ("--truncate",)),
        *(("--temperature", "0.5"), ("--thinking-tokens", "9"), ("--deterministic",), ("--format", "pairs")),
        *(("--revision", "main"), ("--local-files-only",), ("--threads", "1"), ("--judge-process", "subprocess")),
    ],
)
def test_calibrate_refuses_options_of_a_model_for_recorded_answers(recorded, lists, no_model, options):
    """Of recorded pairs, and of recorded lists but for --model and where it lies, whose gate takes in the rule."""
    result = call("calibrate", recorded, "--risk", "0.15", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{options[0]} says how a model is to answer, and all of these items have recorded answers" in result.stderr
    if options[0] not in ("--model", "--revision", "--local-files-only", "--format"):
        result = call("calibrate", lists, "--risk", "0.1", *options)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"{options[0]} " in result.stderr


def test_calibrate_asks_no_judge_about_lists(lists, no_model):
    result = call("calibrate", lists, "--risk", "0.1", "--judge", "always")
    assert result.exit_code == 2
    assert "--judge is about a judge, which has no part in the rule for lists" in result.stderr


def test_ties_of_the_annotators_are_left_out_of_the_test_set_too(tmp_path, scores, no_model):
    test = tmp_path / "test.csv"
    test.write_text("left,right,better\n" + "".join(f"{i},0,{'A>B' if i else 'tie'}\n" for i in range(40)))
    names = ("--fast-columns", "left,right", "--label-column", "better", "--resamples", "5", "--json")
    result = call("calibrate", "--scores", scores, *names, "--risk", "0.15", "--test", test)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert "1 items of --test were left out: their label is a tie" in report["warnings"]
    assert report["at_gate_on_test"]["escalated"]["value"] < 0.5  # of 39 clear pairs


def test_scores_are_lists_if_any_of_them_is(tmp_path, no_model):
    rng = np.random.default_rng(5)
    rows = []
    for k in range(400):
        quality = rng.normal(0, 1, 2 if k % 4 == 0 else 5)  # the first list has two
        rows.append(
            {"scores": (3 * quality + rng.normal(0, 0.5, len(quality))).tolist(), "label": int(quality.argmax())}
        )
    path, record = tmp_path / "lists.jsonl", tmp_path / "record.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = call("calibrate", "--scores", path, "--risk", "0.1", "--record", record)
    assert result.exit_code == 0, result.output
    assert "from which the fast path picks alone" in result.stdout
    assert call("calibrate", record, "--risk", "0.1").stdout == result.stdout


@pytest.mark.parametrize("form", ["folder", "parquet", "csv"])
def test_lists_are_recognised_wherever_they_stand(tmp_path, lists, model, form):
    rows = [
        {"prompt": f"q{k}", "responses": ["good 5", "The answer is 6.", f"bad {k}"], "labels": [1, 0, 0]}
        for k in range(60)
    ]
    path = tmp_path / f"rows.{form}"
    if form == "folder":
        path.mkdir()
        (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "parquet":
        pytest.importorskip("pyarrow.parquet").write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({k: v if k == "prompt" else json.dumps(v) for k, v in row.items()} for row in rows)
    result = call("calibrate", path, "--risk", "0.2")
    assert result.exit_code == 0, result.output
    assert "lists         60 of 60 used" in result.stdout
