"""Mixed precision by measurement: checkpoints made hostile to int8 still meet the tolerance."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fast import LABELS, make_checkpoint, random_sequences, reference
from transformers import AutoModelForCausalLM

from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.graph.fast_graph import write_fast_graph
from fsrm_lite.export.graph.precision import _calibration_rows as calibration_rows
from fsrm_lite.export.graph.precision import _counts as counts_to_try
from fsrm_lite.export.graph.precision import matmul_damage, smoothing_factors, write_tuned_graph
from fsrm_lite.export.graph.smoothing import SmoothedCheckpoint
from fsrm_lite.runtimes.onnx.session import FastModel

DELTA_SCORE = 0.02
KINDS = ("qwen3", "qwen2", "llama", "mistral")
SEQUENCES = random_sequences(11, 24)


def _hostile(folder: Path, kind: str, factor: float = 300.0, **overrides: object) -> Path:
    """A checkpoint whose fp32 function is the random one's, with outlier channels in both norms and the MLP of each layer."""
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


def _judge(folder: Path):
    expected = [_score(r["label_logits"]) for r in reference(folder, SEQUENCES)]

    def judge(path: Path) -> float:
        readings = FastModel(path, threads=1).read(SEQUENCES)
        return max(abs(_score(r.label_logits) - e) for r, e in zip(readings, expected, strict=True)) / DELTA_SCORE

    return judge


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_checkpoint_meets_the_tolerance(tmp_path, kind):
    folder = _hostile(tmp_path / "checkpoint", kind)
    checkpoint, judge = Checkpoint.open(folder), _judge(folder)
    write_fast_graph(checkpoint, tmp_path / "naive.onnx", LABELS)
    tuned = write_tuned_graph(checkpoint, tmp_path / "fast.onnx", LABELS, SEQUENCES, judge)
    assert judge(tmp_path / "naive.onnx") > 5
    assert tuned.excess <= 1
    assert judge(tmp_path / "fast.onnx") == tuned.excess
    assert tuned.history[len(tuned.keep)] == tuned.excess


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_smoothing_alone_undoes_the_hostility(tmp_path, kind):
    benign, hostile = make_checkpoint(tmp_path / "benign", kind), _hostile(tmp_path / "hostile", kind)
    rows = calibration_rows(SEQUENCES)
    gaps = {}
    for name, folder in (("benign", benign), ("hostile", hostile)):
        checkpoint = Checkpoint.open(folder)
        smoothed = SmoothedCheckpoint(checkpoint, smoothing_factors(checkpoint, rows, lambda *_: None))
        write_fast_graph(smoothed, tmp_path / f"{name}.onnx", LABELS)
        gaps[name] = _judge(folder)(tmp_path / f"{name}.onnx")
    write_fast_graph(Checkpoint.open(hostile), tmp_path / "naive.onnx", LABELS)
    assert gaps["hostile"] < 2 * gaps["benign"]
    assert gaps["hostile"] < _judge(hostile)(tmp_path / "naive.onnx") / 4


@pytest.mark.parametrize("kind", KINDS)
def test_smoothing_leaves_the_fp32_function_as_it_is(tmp_path, kind):
    folder = _hostile(tmp_path / "checkpoint", kind)
    checkpoint = Checkpoint.open(folder)
    smoothed = SmoothedCheckpoint(checkpoint, smoothing_factors(checkpoint, calibration_rows(SEQUENCES), lambda *_: None))
    write_fast_graph(smoothed, tmp_path / "fast.onnx", LABELS, precision="fp32")
    readings = FastModel(tmp_path / "fast.onnx", threads=1).read(SEQUENCES, hidden=True)
    for got, expected in zip(readings, reference(folder, SEQUENCES), strict=True):
        assert np.abs(np.array(got.label_logits) - expected["label_logits"]).max() < 1e-3
        assert np.abs(got.hidden - expected["hidden"]).max() < 1e-3


def test_keeping_stops_as_soon_as_the_tolerance_holds(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint")
    checkpoint, judge = Checkpoint.open(folder), _judge(folder)
    first = write_tuned_graph(checkpoint, tmp_path / "fast.onnx", LABELS, SEQUENCES, judge)
    strict = write_tuned_graph(checkpoint, tmp_path / "fast.onnx", LABELS, SEQUENCES, lambda path: 2 * judge(path) / first.history[0])
    assert strict.excess <= 1
    assert 0 < len(strict.keep) < 3 * 8 + 1
    assert strict.worst is not None
    assert strict.worst[0] in strict.keep
    assert list(strict.history) == sorted(strict.history)


def test_counts_that_cannot_be_enough_are_not_tried():
    assert counts_to_try([1.0] * 20, 2.0) == [1, 2, 4, 8, 16, 20]
    assert counts_to_try([1.0] * 20, 8.0) == [20]
    assert counts_to_try([1.0] * 20, 5.0) == [16, 20]
    assert counts_to_try([100.0, 1.0, 1.0], 90.0) == [1, 2, 3]
    assert counts_to_try([0.0, 0.0], 9.0) == [1, 2]
    assert counts_to_try([1.0], 9.0) == [1]


def test_impossible_tolerance_ends_with_everything_at_fp32(tmp_path):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "checkpoint", layers=1))
    tuned = write_tuned_graph(checkpoint, tmp_path / "fast.onnx", LABELS, SEQUENCES[:3], lambda path: 2.0)
    assert tuned.excess == 2.0
    assert len(tuned.keep) == 9
    assert set(tuned.keep.values()) == {"fp32"}


def test_damage_names_the_matmul_that_was_made_hostile(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint", "qwen2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] *= 300
        model.model.layers[1].mlp.down_proj.weight[:, 3] /= 300
    model.save_pretrained(folder)
    damage = matmul_damage(Checkpoint.open(folder), calibration_rows(SEQUENCES), "int8", lambda *_: None)
    assert max(damage, key=lambda name: damage[name]) == "model.layers.1.mlp.down_proj"
    assert len(damage) == 3 * 8 + 1


def test_fp32_is_written_as_it_is(tmp_path):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "checkpoint"))
    tuned = write_tuned_graph(checkpoint, tmp_path / "fast.onnx", LABELS, SEQUENCES, lambda path: 0.5, precision="fp32")
    assert (tuned.keep, tuned.excess, tuned.files) == ({}, 0.5, [tmp_path / "fast.onnx"])
