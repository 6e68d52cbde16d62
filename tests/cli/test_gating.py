import json

import numpy as np
from helpers.cli import call

from fsrm_lite.bundle.manifest import Label, Limits, Manifest, Template
from fsrm_lite.gate import GateSpec
from fsrm_lite.measure.conformance import shipped_vectors


def test_gate_check_agrees_with_the_vectors_it_prints(tmp_path):
    path = tmp_path / "vectors.jsonl"
    path.write_text(call("gate", "vectors").stdout)
    result = call("gate", "check", path)
    assert result.exit_code == 0
    assert result.stdout == f"{len(shipped_vectors())} decisions checked, 0 differences\n"


def test_gate_check_reports_a_build_that_differs(tmp_path):
    path = tmp_path / "decisions.jsonl"
    rows = [{"id": v["id"], "decision": v["expected"]} for v in shipped_vectors()[:20]]
    rows[4]["decision"] = {**rows[4]["decision"], "escalate": not rows[4]["decision"]["escalate"]}
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = call("gate", "check", path)
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{rows[4]['id']}: escalate is ")
    assert json.loads(call("gate", "check", path, "--json").stdout)["checked"] == 20


def test_gate_check_takes_the_gate_from_a_file(tmp_path):
    path, gate = tmp_path / "decisions.jsonl", tmp_path / "gate.json"
    path.write_text(
        json.dumps({"label_values": [1, 0], "responses": [{"label_logits": [0.1, 0]}], "decision": {"escalate": True}})
        + "\n"
    )
    gate.write_text(json.dumps({"intuition_threshold": 0.5}))
    assert call("gate", "check", path, "--gate", gate).exit_code == 0
    assert "pass one with --gate" in call("gate", "check", path).stderr
    gate.write_text("{")
    assert call("gate", "check", path, "--gate", gate).exit_code == 2


def test_gate_check_takes_what_rows_lack_from_a_bundle(tmp_path):
    labels = (Label("Yes", 1, 1.0), Label("No", 2, 0.0))
    manifest = Manifest(
        "m",
        labels,
        {"pointwise_fast": Template("{prompt} {response}")},
        {},
        (0,),
        Limits(64, 8),
        16,
        GateSpec(0.5, 0.5),
    )
    (tmp_path / "fsrm.json").write_text(json.dumps(manifest.to_dict()))
    path = tmp_path / "decisions.jsonl"
    row = {"responses": [{"label_logits": [9, 0], "log_mass": 9.1, "entropy": 2.7}], "decision": {"escalate": True}}
    path.write_text(json.dumps(row) + "\n")
    assert call("gate", "check", path, "--model", tmp_path).exit_code == 0
    assert call("gate", "check", path, "--model", tmp_path, "--gate", path).exit_code == 2


def test_gate_drift_compares_old_with_new_items(tmp_path, recorded, scores):
    gate = tmp_path / "gate.json"
    gate.write_text(json.dumps(GateSpec(0.5).to_dict()))
    same = call("gate", "drift", recorded, recorded, "--gate", gate)
    assert same.exit_code == 0
    assert "no difference was found" in same.stdout
    rng = np.random.default_rng(0)
    other = tmp_path / "other.csv"  # without labels
    other.write_text("left,right\n" + "".join(f"{x},0\n" for x in rng.normal(0, 0.1, 300)))
    result = call("gate", "drift", scores, other, "--fast-columns", "left,right", "--gate", gate)
    assert result.exit_code == 1
    assert "of another kind" in result.stdout
    assert json.loads(call("gate", "drift", scores, other, "--fast-columns", "left,right", "--json").stdout)["drifted"]
