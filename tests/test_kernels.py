"""The compiled operators compute what the graph's own functions say, refuse what does not fit, and can be done without."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from helpers_fast import LABELS, SHAPES, make_checkpoint, random_sequences
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from fsrm_lite import kernels
from fsrm_lite.errors import BundleError
from fsrm_lite.export import graph_fused
from fsrm_lite.export.checkpoint import Checkpoint
from fsrm_lite.export.graph import write_fast_graph
from fsrm_lite.export.graph_linear import Value
from fsrm_lite.export.graph_writer import GraphWriter, WeightStore
from fsrm_lite.fast import FastModel

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("cc") is None, reason="no C compiler, so the operators are not built")

TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8}


def _session(path, compiled: bool):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if compiled:
        assert kernels.register(options)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _both(tmp_path, build, **arrays):
    """Run a graph of one function on ``arrays``, by its body and by the compiled operator; returns both lists of outputs."""
    path = tmp_path / "one.onnx"
    graph = GraphWriter(path, WeightStore())
    for name, array in arrays.items():
        graph.input(name, TYPES[array.dtype], [f"{name}{i}" for i in range(array.ndim)])
    for i, (value, dtype, rank) in enumerate(build(graph)):
        graph.output(f"out{i}", value, dtype, [f"out{i}_{axis}" for axis in range(rank)])
    graph.save({})
    feeds = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return [_session(path, compiled).run(None, feeds) for compiled in (False, True)]


def _check(stock, compiled):
    for expected, got in zip(stock, compiled, strict=True):
        assert expected.shape == got.shape
        assert expected.dtype == got.dtype
        if expected.dtype == np.float32:
            np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)
        else:  # float32 rounding may put a value that lies between two steps on either side
            steps = np.abs(got.astype(int) - expected.astype(int))
            assert steps.max(initial=0) <= 1
            assert steps.mean() < 0.01


def _quantized(value: Value, rank: int, dtype=TensorProto.UINT8, scale_rank: int | None = None):
    return [(value.name, dtype, rank), (value.scale, TensorProto.FLOAT, scale_rank or rank)]


_sizes = st.tuples(
    st.integers(1, 21), st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 8, 10, 48]), st.integers(0, 30), st.integers(0, 2**32 - 1)
)


@pytest.fixture
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@settings(max_examples=12, deadline=None, derandomize=True)
@given(sizes=_sizes)
def test_compiled_operators_equal_the_functions(tmp_path_factory, sizes):
    tokens, kv_heads, group, dim, past, seed = sizes
    folder = tmp_path_factory.mktemp("kernels")
    rng = np.random.default_rng(seed)
    heads, width, total = kv_heads * group, kv_heads * dim, past + tokens
    arch = SimpleNamespace(heads=heads, kv_heads=kv_heads, head_dim=dim, rms_eps=1e-6)

    def normal(*shape, by=1.0):
        return (rng.standard_normal(shape) * by).astype(np.float32)

    scale = np.abs(normal(tokens, 1)) + np.float32(0.01)

    def add_norm(graph):
        total, q = graph_fused.add_norm_quantize(graph, "residual", Value("update", "scale"), "weight", 1e-5)
        return [(total, TensorProto.FLOAT, 2), *_quantized(q, 2)]

    _check(*_both(folder, add_norm, residual=normal(tokens, width), update=normal(tokens, width), scale=scale, weight=normal(width)))

    def gate(graph):
        return _quantized(graph_fused.gate_quantize(graph, Value("gate", "scale"), Value("up", "scale")), 2)

    _check(*_both(folder, gate, gate=normal(tokens, width, by=5.0), up=normal(tokens, width), scale=scale))

    angles = normal(1, tokens, dim // 2, by=9.0)
    tables = {"cos": np.cos(angles), "sin": np.sin(angles), "weight": normal(dim)}
    for weight in ("weight", None):
        given = tables if weight else {name: tables[name] for name in ("cos", "sin")}

        def queries(graph, weight=weight):
            return _quantized(graph_fused.rotate_queries(graph, arch, "q", "cos", "sin", weight), 3)

        def keys(graph, weight=weight):
            return _quantized(graph_fused.rotate_keys(graph, arch, "k", "cos", "sin", weight), 3, TensorProto.INT8)

        _check(*_both(folder, queries, q=normal(tokens, heads * dim), **given))
        _check(*_both(folder, keys, k=normal(tokens, width), **given))

    def values(graph):
        return _quantized(graph_fused.quantize_values(graph, arch, Value("v", "scale")), 3, TensorProto.INT8, 2)

    _check(*_both(folder, values, v=normal(tokens, width), scale=scale))

    def softmax(graph):
        return _quantized(graph_fused.softmax_quantize(graph, arch, Value("scores", "scale"), "bias", "value_scale"), 3)

    seen = rng.random((tokens, total)) < 0.5
    seen[np.arange(tokens), past + np.arange(tokens)] = True  # a token sees itself
    bias = np.where(seen, np.float32(0.0), np.float32(-1e9))
    rows = {"scores": normal(kv_heads, group * tokens, total, by=40.0), "scale": np.abs(normal(kv_heads, group * tokens, 1))}
    _check(*_both(folder, softmax, **rows, bias=bias, value_scale=np.abs(normal(total, 1)) + np.float32(1e-3)))

    def mixed(graph):
        return _quantized(graph_fused.quantize_mixed(graph, arch, Value("mixed", "scale")), 2)

    _check(*_both(folder, mixed, mixed=normal(kv_heads, group * tokens, dim), scale=rows["scale"]))


@pytest.mark.parametrize("kind", SHAPES)
def test_model_reads_the_same_with_and_without(tmp_path, monkeypatch, kind):
    write_fast_graph(Checkpoint.open(make_checkpoint(tmp_path / "checkpoint", kind)), tmp_path / "fast.onnx", LABELS)
    sequences = random_sequences(1, 7, longest=60)
    readings = {}
    for switch in ("0", "1"):
        monkeypatch.setenv(kernels.SWITCH, switch)
        readings[switch] = np.array([r.label_logits for r in FastModel(tmp_path / "fast.onnx", threads=1).read(sequences)])
    # A value that falls on the other side of an int8 step moves a score of so small a model by a hundredth or so; int8 itself moves it by 0.25.
    assert np.abs(readings["0"] - readings["1"]).max() < 0.1
    assert np.abs(readings["0"]).max() > 0.1


def test_zero_rows_divide_nothing_by_zero(tmp_path):
    def gate(graph):
        return _quantized(graph_fused.gate_quantize(graph, Value("gate", "scale"), Value("up", "scale")), 2)

    zeros = np.zeros((3, 8), np.float32)
    stock, compiled = _both(tmp_path, gate, gate=zeros, up=zeros, scale=np.ones((3, 1), np.float32))
    _check(stock, compiled)
    assert (compiled[0] == 128).all()


@pytest.mark.parametrize("wrong", ["gate", "up", "scale"])
def test_shapes_that_do_not_fit_are_refused(tmp_path, wrong):
    def gate(graph):
        return _quantized(graph_fused.gate_quantize(graph, Value("gate", "scale"), Value("up", "scale")), 2)

    arrays = {"gate": np.ones((4, 8), np.float32), "up": np.ones((4, 8), np.float32), "scale": np.ones((4, 1), np.float32)}
    _both(tmp_path, gate, **arrays)
    arrays[wrong] = arrays[wrong][:2]
    with pytest.raises(Exception, match="fsrm:GateQuantize: the shapes of its inputs do not fit together"):
        _session(tmp_path / "one.onnx", True).run(None, arrays)


def test_many_sessions_open_at_once(tmp_path):
    write_fast_graph(Checkpoint.open(make_checkpoint(tmp_path / "checkpoint")), tmp_path / "fast.onnx", LABELS)
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(lambda _: FastModel(tmp_path / "fast.onnx", threads=1), range(16)))
    assert len({model.read([[1, 2, 3]])[0].label_logits for model in models}) == 1


def test_switch_leaves_them_unused(monkeypatch):
    assert kernels.library() is not None
    monkeypatch.setenv(kernels.SWITCH, "0")
    assert kernels.library() is None
    assert not kernels.register(onnxruntime.SessionOptions())


def test_library_that_cannot_be_loaded_names_the_switch(tmp_path, monkeypatch):
    write_fast_graph(Checkpoint.open(make_checkpoint(tmp_path / "checkpoint")), tmp_path / "fast.onnx", LABELS)
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(kernels, "library", lambda: broken)
    with pytest.raises(BundleError, match=kernels.SWITCH):
        FastModel(tmp_path / "fast.onnx", threads=1)


def test_loading_the_library_leaves_the_arithmetic_of_the_process_alone():
    program = (
        "import ctypes, numpy as np; from fsrm_lite import kernels; ctypes.CDLL(str(kernels.library()));"
        "print((np.float32(1e-38) * np.float32(0.1) > 0).item())"
    )
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip() == "True"
