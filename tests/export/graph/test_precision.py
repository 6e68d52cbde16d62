"""Mixed precision by measurement: checkpoints made hostile to int8 still meet the tolerance."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fast import LABELS, make_checkpoint, random_sequences, reference
from transformers import AutoModelForCausalLM

from fsrm_lite.errors import ExportError
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.graph.fast_graph import write_fast_graph
from fsrm_lite.export.graph.precision import _fit as fit
from fsrm_lite.export.graph.precision import _lower_each as lower_each
from fsrm_lite.export.graph.precision import _Rungs as Rungs
from fsrm_lite.export.graph.precision import _Search as Search
from fsrm_lite.export.graph.precision import calibration_rows, matmul_damage, write_tuned_graph
from fsrm_lite.export.graph.quantize import int8_rows
from fsrm_lite.export.graph.rounding import round_weight
from fsrm_lite.export.graph.smoothing import SmoothedCheckpoint
from fsrm_lite.export.graph.writer import WeightStore
from fsrm_lite.runtimes.onnx.session import FastModel

DELTA_SCORE = 0.02
KINDS = ("qwen3", "qwen2", "llama", "mistral")
SEQUENCES = random_sequences(11, 24)


def _hostile(folder: Path, kind: str, factor: float = 300.0, **overrides: object) -> Path:
    """A checkpoint whose fp32 function is the random one's, with outlier channels in norms and MLP of each layer."""
    make_checkpoint(folder, kind, **overrides)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            channels = [number, 7, 20]
            attention, mlp = layer.self_attn, layer.mlp
            for norm, maps in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                norm.weight[channels] *= factor
                for linear in maps:
                    linear.weight[:, channels] /= factor
            mlp.up_proj.weight[channels] *= factor
            if mlp.up_proj.bias is not None:
                mlp.up_proj.bias[channels] *= factor
            mlp.down_proj.weight[:, channels] /= factor
    model.save_pretrained(folder)
    return folder


def _score(label_logits) -> float:
    return 1 / (1 + math.exp(label_logits[1] - label_logits[0]))


def _excess_of(folder: Path):
    expected = [_score(r["label_logits"]) for r in reference(folder, SEQUENCES)]

    def excess_of(path: Path) -> float:
        readings = FastModel(path, threads=1).read(SEQUENCES)
        return max(abs(_score(r.label_logits) - e) for r, e in zip(readings, expected, strict=True)) / DELTA_SCORE

    return excess_of


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_checkpoint_meets_the_tolerance(tmp_path, kind):
    folder = _hostile(tmp_path / "checkpoint", kind)
    checkpoint, excess_of = Checkpoint.open(folder), _excess_of(folder)
    write_fast_graph(checkpoint, tmp_path / "naive.onnx", LABELS)
    tuned = write_tuned_graph(checkpoint, tmp_path / "fast.onnx", LABELS, SEQUENCES, excess_of)
    assert excess_of(tmp_path / "naive.onnx") > 5
    assert tuned.excess <= 1
    assert excess_of(tmp_path / "fast.onnx") == tuned.excess
    assert tuned.history[tuned.chosen].excess == tuned.excess


def _fitted(folder: Path) -> SmoothedCheckpoint:
    return fit(Checkpoint.open(folder), calibration_rows(SEQUENCES), WeightStore(), lambda *_: None)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_smoothing_alone_undoes_the_hostility(tmp_path, kind):
    benign, hostile = make_checkpoint(tmp_path / "benign", kind), _hostile(tmp_path / "hostile", kind)
    gaps = {}
    for name, folder in (("benign", benign), ("hostile", hostile)):
        write_fast_graph(_fitted(folder), tmp_path / f"{name}.onnx", LABELS)
        gaps[name] = _excess_of(folder)(tmp_path / f"{name}.onnx")
    write_fast_graph(Checkpoint.open(hostile), tmp_path / "naive.onnx", LABELS)
    assert gaps["hostile"] < 2 * gaps["benign"]
    assert gaps["hostile"] < _excess_of(hostile)(tmp_path / "naive.onnx") / 4


@pytest.mark.parametrize("kind", KINDS)
def test_smoothing_leaves_the_fp32_function_as_it_is(tmp_path, kind):
    folder = _hostile(tmp_path / "checkpoint", kind)
    write_fast_graph(_fitted(folder), tmp_path / "fast.onnx", LABELS, precision="fp32")
    readings = FastModel(tmp_path / "fast.onnx", threads=1).read(SEQUENCES, hidden=True)
    for got, expected in zip(readings, reference(folder, SEQUENCES), strict=True):
        assert np.abs(np.array(got.label_logits) - expected["label_logits"]).max() < 1e-3
        assert np.abs(got.hidden - expected["hidden"]).max() < 1e-3


def test_raising_stops_as_soon_as_the_tolerance_holds(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint")
    checkpoint, excess_of = Checkpoint.open(folder), _excess_of(folder)
    first = write_tuned_graph(checkpoint, tmp_path / "fast.onnx", LABELS, SEQUENCES, excess_of)
    plain = first.history[0].excess
    measured: list[float] = []

    def twice(path: Path) -> float:
        measured.append(2 * excess_of(path) / plain)
        return measured[-1]

    strict = write_tuned_graph(checkpoint, tmp_path / "fast.onnx", LABELS, SEQUENCES, twice)
    assert strict.excess == measured[strict.chosen] <= 1
    assert [attempt.excess for attempt in strict.history] == measured  # nothing is measured twice
    assert 0 < len(strict.keep) < 3 * 8 + 1
    assert strict.worst is not None
    assert strict.worst[0] in strict.keep
    within = [attempt.cost for attempt in strict.history if attempt.excess <= 1]
    assert strict.cost == min(within) < 4
    assert excess_of(tmp_path / "fast.onnx") * 2 / plain == strict.excess  # what was found is what lies there


DAMAGE = {
    "a": {"int8": 4.0, "int8x2": 1.0, "fp32": 0.0},
    "b": {"int8": 2.0, "int8x2": 2.0, "fp32": 0.0},
    "c": {"int8": 0.1, "int8x2": 0.1, "fp32": 0.0},
}


def test_cheapest_set_takes_the_steps_that_save_most_for_their_cost(monkeypatch):
    monkeypatch.setattr("fsrm_lite.export.graph.precision._work", lambda arch: {"a": 10.0, "b": 10.0, "c": 10.0})
    rungs = Rungs(None, "int8", DAMAGE)
    assert rungs.worst == ("a", 4.0)
    assert rungs.cheapest(1.0) == {}
    assert rungs.cheapest(0.6) == {"a": "int8x2"}
    assert rungs.cheapest(0.3) == {"a": "int8x2", "b": "fp32"}
    assert rungs.cheapest(0.1) == {"a": "fp32", "b": "fp32"}
    assert rungs.cheapest(0.0) == {"a": "fp32", "b": "fp32", "c": "fp32"}
    assert rungs.cost({}) == 1.0
    assert rungs.cost({"a": "int8x2"}) == pytest.approx(4 / 3)


def test_each_matmul_at_fp32_is_put_a_rung_lower_where_the_tolerance_holds_without_it(monkeypatch):
    monkeypatch.setattr("fsrm_lite.export.graph.precision._work", lambda arch: {"a": 10.0, "b": 10.0, "c": 10.0})
    rungs, measured = Rungs(None, "int8", DAMAGE), []

    def excess_of(keep):
        measured.append(keep)
        return 0.9 if keep["b"] == "fp32" else 1.1  # a is not needed, b is

    kept = {"a": "fp32", "b": "fp32", "c": "int8x2"}
    assert rungs.to_lower(kept) == ["a", "b"]  # a saves most for its error; c is in two terms and stays there
    lower_each(rungs, kept, excess_of)
    assert measured == [kept | {"a": "int8x2"}, {"a": "int8x2", "b": "int8x2", "c": "int8x2"}]


def test_a_large_graph_stays_as_the_search_left_it(monkeypatch):
    monkeypatch.setattr("fsrm_lite.export.graph.precision._work", lambda arch: dict.fromkeys("abc", 1e8))
    assert Rungs(None, "int8", DAMAGE).to_lower(dict.fromkeys("abc", "fp32")) == []


def _tried(excess_of, first: float) -> list[float]:
    """The errors that are allowed one after the other where the excess follows from the error allowed."""
    search, tried = Search(first), []
    while search.goes_on:
        tried.append(search.allowed)
        search.note(excess_of(search.allowed))
    return tried


def test_search_allows_less_and_less_and_then_seeks_cheaper():
    assert _tried(lambda allowed: 5 * allowed, 5.0) == [0.2]  # as the estimate said
    assert _tried(lambda allowed: 6 * allowed, 5.0) == pytest.approx([0.2, 0.16])  # nearly
    overshot = _tried(lambda allowed: allowed, 5.0)  # far below what was needed
    assert overshot[:2] == pytest.approx([0.2, math.sqrt(0.2)])
    assert len(overshot) <= 5
    hopeless = _tried(lambda allowed: 9.0, 5.0)
    assert hopeless[-1] == 0.0  # everything raised, at last and not at once
    assert len(hopeless) == 6


def test_impossible_tolerance_ends_with_everything_at_fp32(tmp_path):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "checkpoint", layers=1))
    tuned = write_tuned_graph(checkpoint, tmp_path / "fast.onnx", LABELS, SEQUENCES[:3], lambda path: 2.0)
    assert tuned.excess == 2.0
    assert len(tuned.keep) == 9
    assert set(tuned.keep.values()) == {"fp32"}
    assert len(tuned.history) > 4  # not in one step


def test_damage_names_the_matmul_that_was_made_hostile(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint", "qwen2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] *= 300
        model.model.layers[1].mlp.down_proj.weight[:, 3] /= 300
    model.save_pretrained(folder)
    damage = matmul_damage(
        Checkpoint.open(folder), SEQUENCES, "int8", lambda *_: None, tmp_path / "fast.onnx", WeightStore()
    )
    assert max(damage, key=lambda name: damage[name]["int8"]) == "model.layers.1.mlp.down_proj"
    assert len(damage) == 3 * 8 + 1
    assert {tuple(rungs) for rungs in damage.values()} == {("int8", "int8x2", "fp32")}
    assert all(rungs["fp32"] == 0 for rungs in damage.values())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]  # the layers' files are gone


def test_weights_that_compute_nan_are_refused_by_layer(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight *= 1e30
        model.model.layers[1].mlp.gate_proj.weight *= 1e30
    model.save_pretrained(folder)
    with pytest.raises(ExportError, match=r"layer 1 computes NaN or infinite values .* the weights are broken"):
        write_tuned_graph(Checkpoint.open(folder), tmp_path / "fast.onnx", LABELS, SEQUENCES, lambda path: 0.5)


def test_rounding_with_the_inputs_in_view_errs_less_where_they_go_together():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((40, 96)).astype(np.float32)
    x = (rng.standard_normal((500, 8)) @ rng.standard_normal((8, 96)) + 0.05 * rng.standard_normal((500, 96))).astype(
        np.float32
    )
    nearest, scales = int8_rows(weight)
    rounded, own = round_weight(weight, (x.T @ x).astype(np.float64))
    errors = [
        np.square(x @ (values * s[:, None] - weight).T).mean() for values, s in ((nearest, scales), (rounded, own))
    ]
    assert errors[1] < errors[0] / 4
    np.testing.assert_array_equal(own, scales)


def test_inputs_that_never_were_active_are_rounded_to_nearest():
    weight = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    np.testing.assert_array_equal(round_weight(weight, np.zeros((7, 7)))[0], int8_rows(weight)[0])


def test_fp32_is_written_as_it_is(tmp_path):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "checkpoint"))
    tuned = write_tuned_graph(checkpoint, tmp_path / "fast.onnx", LABELS, SEQUENCES, lambda path: 0.5, precision="fp32")
    assert (tuned.keep, tuned.excess, tuned.files) == ({}, 0.5, [tmp_path / "fast.onnx"])
