"""The fast graph computes what transformers computes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.fast import LABELS, SHAPES, make_checkpoint, random_sequences, reference
from transformers import AutoModelForCausalLM

from fsrm_lite.errors import BundleError, ExportError
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.graph.fast_graph import matmul_names, open_store, write_fast_graph
from fsrm_lite.export.graph.writer import FSRM, _with_branches, drop_unused
from fsrm_lite.runtimes.onnx.session import FastModel

AWKWARD = [(kind, {}) for kind in SHAPES] + [
    ("qwen3", {"tie_word_embeddings": False, "attention_bias": True, "num_key_value_heads": 1}),
    ("qwen2", {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    (
        "llama",
        {
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 31.0},
        },
    ),
    ("mistral", {"num_key_value_heads": 8, "vocab": 257, "layers": 1}),
]


def _largest_gaps(path: Path, folder: Path, sequences: list[list[int]]) -> dict[str, float]:
    gaps = dict.fromkeys(("label_logits", "log_mass", "entropy", "hidden"), 0.0)
    for got, expected in zip(
        FastModel(path, threads=1).read(sequences, hidden=True), reference(folder, sequences), strict=True
    ):
        for name in gaps:
            gaps[name] = max(gaps[name], float(np.abs(np.asarray(getattr(got, name)) - expected[name]).max()))
    return gaps


@pytest.mark.parametrize(("kind", "overrides"), AWKWARD)
def test_fp32_graph_equals_transformers(tmp_path, kind, overrides):
    folder = make_checkpoint(tmp_path / "checkpoint", kind, **overrides)
    files = write_fast_graph(Checkpoint.open(folder), tmp_path / "fast.onnx", LABELS, precision="fp32")
    gaps = _largest_gaps(tmp_path / "fast.onnx", folder, random_sequences(1, 7))
    assert files == [tmp_path / "fast.onnx"]
    assert max(gaps.values()) < 1e-4


@pytest.mark.parametrize(
    ("kind", "layers", "at", "precision", "limit"),
    [(kind, 10, 7, "fp32", 1e-4) for kind in SHAPES]
    + [("qwen3", 2, 0, "fp32", 1e-4), ("llama", 3, 1, "int8", 0.3), ("qwen3", 3, 1, "int8x2", 0.1)],
)
def test_intermediate_states_are_the_residual_behind_the_attention_of_their_layer(
    tmp_path, kind, layers, at, precision, limit
):
    folder = make_checkpoint(tmp_path / "checkpoint", kind, layers=layers)
    write_fast_graph(Checkpoint.open(folder), tmp_path / "fast.onnx", LABELS, precision=precision)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen = []
    model.model.layers[at].post_attention_layernorm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (ids,) = random_sequences(4, 1)
    with torch.no_grad():
        model(torch.tensor([ids]))
    found = FastModel(tmp_path / "fast.onnx", threads=1).follow(ids, 1, len(ids), intermediate=True)
    assert np.abs(found.intermediate - seen[0][0].numpy()).max() < limit


def test_a_graph_of_one_layer_gives_no_intermediate_states(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint", layers=1)
    write_fast_graph(Checkpoint.open(folder), tmp_path / "fast.onnx", LABELS, precision="fp32")
    with pytest.raises(BundleError, match="gives no intermediate states"):
        FastModel(tmp_path / "fast.onnx", threads=1).follow([1, 2, 3], 1, 2, intermediate=True)


@pytest.mark.parametrize(("precision", "limit"), [("int8", 0.25), ("int4", 2.0)])
@pytest.mark.parametrize("kind", SHAPES)
def test_quantized_graph_is_close_to_transformers(tmp_path, kind, precision, limit):
    folder = make_checkpoint(tmp_path / "checkpoint", kind)
    write_fast_graph(Checkpoint.open(folder), tmp_path / "fast.onnx", LABELS, precision=precision)
    gaps = _largest_gaps(tmp_path / "fast.onnx", folder, random_sequences(1, 7))
    assert 0 < gaps["label_logits"] < limit
    assert gaps["log_mass"] < limit


def test_keeping_every_matmul_at_fp32_undoes_int8(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint")
    checkpoint = Checkpoint.open(folder)
    write_fast_graph(
        checkpoint,
        tmp_path / "fast.onnx",
        LABELS,
        precision="int8",
        keep=dict.fromkeys(matmul_names(checkpoint.arch), "fp32"),
    )
    assert max(_largest_gaps(tmp_path / "fast.onnx", folder, random_sequences(2, 5)).values()) < 1e-4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_large_vocabulary_and_external_data(tmp_path, monkeypatch, tied, precision):
    monkeypatch.setattr("fsrm_lite.export.graph.fast_graph.INLINE_LIMIT_BYTES", 1000)
    monkeypatch.setattr("fsrm_lite.export.graph.layers.LARGE_EMBEDDING_VALUES", 1000)
    folder = make_checkpoint(tmp_path / "checkpoint", vocab=1009, tie_word_embeddings=tied)
    out = tmp_path / "out"
    out.mkdir()
    files = write_fast_graph(Checkpoint.open(folder), out / "fast.onnx", LABELS, precision=precision)
    gaps = _largest_gaps(out / "fast.onnx", folder, random_sequences(3, 5, vocab=1009))
    assert files == sorted(out.iterdir())
    assert os.path.getsize(files[1]) > os.path.getsize(files[0])
    assert max(gaps["label_logits"], gaps["log_mass"]) < (1e-4 if precision == "fp32" else 0.25)


def test_graphs_share_a_store_and_the_last_keeps_what_it_uses(tmp_path, monkeypatch):
    monkeypatch.setattr("fsrm_lite.export.graph.fast_graph.INLINE_LIMIT_BYTES", 1000)
    folder = make_checkpoint(tmp_path / "checkpoint", vocab=1009)
    checkpoint, made = Checkpoint.open(folder), []
    read = checkpoint.tensor
    monkeypatch.setattr(checkpoint, "tensor", lambda name, rows=None: made.append(name) or read(name, rows))
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for out in (alone, shared):
        out.mkdir()
    keep = {"model.layers.1.mlp.up_proj": "fp32", "model.layers.0.self_attn": "fp32"}
    store = open_store(checkpoint.arch, shared / "fast.onnx")
    write_fast_graph(checkpoint, shared / "fast.onnx", LABELS, weights=store)
    made.clear()
    write_fast_graph(checkpoint, shared / "fast.onnx", LABELS, keep=keep, weights=store)
    assert made == ["model.layers.1.mlp.up_proj.weight"]
    files = write_fast_graph(checkpoint, alone / "fast.onnx", LABELS, keep=keep)
    with_both = os.path.getsize(shared / "fast.onnx.data")
    drop_unused(shared / "fast.onnx")
    assert os.path.getsize(shared / "fast.onnx.data") < with_both
    assert abs(os.path.getsize(shared / "fast.onnx.data") - os.path.getsize(files[1])) < 8192  # but for the padding
    sequences = random_sequences(4, 5, vocab=1009)
    readings = [FastModel(out / "fast.onnx", threads=1).read(sequences) for out in (alone, shared)]
    assert readings[0] == readings[1]


def test_tiny_bundle_sized_model_is_small(tmp_path):
    folder = make_checkpoint(
        tmp_path / "checkpoint",
        hidden_size=256,
        num_attention_heads=4,
        head_dim=64,
        intermediate_size=640,
        layers=2,
        vocab=1024,
    )
    write_fast_graph(Checkpoint.open(folder), tmp_path / "fast.onnx", LABELS)
    parameters = sum(int(np.prod(shape)) for shape in Checkpoint.open(folder).arch.tensor_shapes().values())
    assert (tmp_path / "fast.onnx").stat().st_size < 1.35 * parameters + 100_000


def test_graph_rests_on_stock_operators_and_names_nodes_by_layer(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint")
    write_fast_graph(Checkpoint.open(folder), tmp_path / "fast.onnx", LABELS)
    model = onnx.load(tmp_path / "fast.onnx")
    functions = {function.name for function in model.functions}
    assert {node.domain for function in model.functions for node in function.node} <= {"", "com.microsoft"}
    nodes = list(_with_branches(model.graph.node))
    assert {node.op_type for node in nodes if node.domain == FSRM} == functions
    assert {i.domain: i.version for i in model.opset_import} == {"": 23, "com.microsoft": 1, FSRM: 1}
    assert any(node.name.startswith("layers.2/SoftmaxQuantize") for node in nodes)


def test_progress_counts_layers(tmp_path):
    seen = []
    write_fast_graph(
        Checkpoint.open(make_checkpoint(tmp_path / "checkpoint")),
        tmp_path / "fast.onnx",
        LABELS,
        progress=lambda done, of: seen.append((done, of)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_ids": (5, 101)}, "below the vocabulary size 101"),
        ({"label_ids": (5,)}, "at least two"),
        ({"precision": "int3"}, "unknown precision 'int3'"),
        ({"keep": {"model.layers.9.mlp.up_proj": "fp32"}}, "no MatMul is named"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, arguments, message):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "checkpoint"))
    with pytest.raises(ExportError, match=message):
        write_fast_graph(checkpoint, tmp_path / "fast.onnx", **({"label_ids": LABELS} | arguments))
    assert not (tmp_path / "fast.onnx").exists()
