"""The compiled operators compute what the graph's functions say, refuse what does not fit, and can be done without."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.fast import LABELS, SHAPES, make_checkpoint, random_sequences
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fsrm_lite.errors import BundleError
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.graph import fused as graph_fused
from fsrm_lite.export.graph.fast_graph import write_fast_graph
from fsrm_lite.export.graph.linear import Value
from fsrm_lite.export.graph.writer import FSRM, GraphWriter, WeightStore
from fsrm_lite.runtimes.onnx import kernels
from fsrm_lite.runtimes.onnx.session import FastModel

ORT = Path(kernels.__file__).parent / "third_party" / "onnxruntime"
BUILT = kernels.library() is not None
needs_library = pytest.mark.skipif(not BUILT, reason="the operators are not built, or switched off")

TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int64): TensorProto.INT64,
}


def _session(path, compiled: bool):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if compiled:
        assert kernels.register(options)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _both(tmp_path, build, **arrays):
    """Run a graph of one function, by its body and by the compiled operator, and return both lists of outputs."""
    path = tmp_path / "one.onnx"
    graph = GraphWriter(path, WeightStore())
    for name, array in arrays.items():
        graph.input(name, TYPES[array.dtype], [f"{name}{i}" for i in range(array.ndim)])
    for i, (value, dtype, rank) in enumerate(build(graph)):
        graph.output(f"out{i}", value, dtype, [f"out{i}_{axis}" for axis in range(rank)])
    graph.save({})
    feeds = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return [_session(path, compiled).run(None, feeds) for compiled in (False, True)]


def _terms_joined(outputs):
    """The two terms of a value as the one float that they mean, in steps of the first; and the other outputs."""
    terms = [i for i, out in enumerate(outputs) if out.dtype == np.uint8]
    if len(terms) < 2:
        return None, outputs
    first, rest = (outputs[i].astype(np.float64) for i in terms)
    return first + rest / 254, [out for i, out in enumerate(outputs) if i not in terms]


def _check(stock, compiled):
    """Assert that both are alike; returns how many outputs that were."""
    outputs = len(stock)
    (stock_joined, stock), (compiled_joined, compiled) = _terms_joined(stock), _terms_joined(compiled)
    # A value half way between two steps of the first term may be rounded either way. The second term makes up for it,
    # and may itself be a step apart.
    if stock_joined is not None:
        np.testing.assert_allclose(compiled_joined, stock_joined, rtol=0, atol=2 / 254)
    for expected, got in zip(stock, compiled, strict=True):
        assert expected.shape == got.shape
        assert expected.dtype == got.dtype
        if expected.dtype == np.float32:
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
        else:  # float32 rounding may put a value that lies between two steps on either side
            steps = np.abs(got.astype(int) - expected.astype(int))
            assert steps.max(initial=0) <= 1
            assert steps.mean() < 0.01
    return outputs


def _quantized(value: Value, rank: int, scale_rank: int | None = None):
    parts = [(value.name, TensorProto.UINT8, rank), (value.scale, TensorProto.FLOAT, scale_rank or rank)]
    return parts if value.rest is None else [*parts, (value.rest, TensorProto.UINT8, rank)]


_sizes = st.tuples(
    st.integers(1, 70),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([2, 8, 10, 48]),
    st.integers(0, 300),
    st.integers(0, 2**32 - 1),
)


def test_operators_are_built_where_there_is_a_compiler():
    if os.environ.get(kernels.SWITCH) == "0" or not (shutil.which("cc") and os.name == "posix"):
        pytest.skip("switched off, or no C compiler")
    assert BUILT, "the compilation failed; make lint shows why"


@needs_library
def test_library_is_no_python_module():
    library = ctypes.CDLL(str(kernels.library()))
    assert hasattr(library, "RegisterCustomOps")
    assert not hasattr(library, "PyInit__operators")


@needs_library
def test_runtime_that_is_too_old_is_left_alone(tmp_path):
    asked = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    def no_api(version):
        asked.append(version)

    copy = shutil.copy(kernels.library(), tmp_path)  # which has met no other runtime
    register = ctypes.CDLL(str(copy)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, (ctypes.c_void_p * 2)(ctypes.cast(no_api, ctypes.c_void_p))) is None  # success
    assert asked == [int(re.search(r"#define ORT_API_VERSION (\d+)", (ORT / "onnxruntime_c_api.h").read_text())[1])]


def test_header_is_what_its_note_says():
    note = (ORT / "README.md").read_text()
    for name in ("onnxruntime_c_api.h", "LICENSE"):
        assert hashlib.sha256((ORT / name).read_bytes()).hexdigest() in note


@needs_library
@settings(max_examples=12, deadline=None, derandomize=True)
@given(sizes=_sizes)
def test_compiled_operators_equal_the_functions(tmp_path_factory, sizes):
    tokens, kv_heads, group, dim, past, seed = sizes
    compared = 0
    folder = tmp_path_factory.mktemp("kernels")
    rng = np.random.default_rng(seed)
    heads, width, total = kv_heads * group, kv_heads * dim, past + tokens
    arch = SimpleNamespace(heads=heads, kv_heads=kv_heads, head_dim=dim, rms_eps=1e-6)

    def normal(*shape, by=1.0):
        return (rng.standard_normal(shape) * by).astype(np.float32)

    scale = np.abs(normal(tokens, 1)) + np.float32(0.01)

    for terms in (1, 2):

        def add_norm(graph, terms=terms):
            total, q = graph_fused.add_norm_quantize(
                graph, "residual", Value("update", "scale"), "weight", 1e-5, width, terms
            )
            return [(total, TensorProto.FLOAT, 2), *_quantized(q, 2)]

        rows = {
            "residual": normal(tokens, width),
            "update": normal(tokens, width),
            "scale": scale,
            "weight": normal(width),
        }
        compared += _check(*_both(folder, add_norm, **rows))

        # Below -8 the stock operator's sigmoid is exact only to an absolute 1e-8, and a row may be all that small.
        gates = np.maximum(normal(tokens, width, by=5.0), -8 / scale)

        def gate(graph, terms=terms):
            return _quantized(
                graph_fused.gate_quantize(graph, Value("gate", "scale"), Value("up", "scale"), width, terms), 2
            )

        compared += _check(*_both(folder, gate, gate=gates, up=normal(tokens, width), scale=scale))

    angles = normal(1, tokens, dim // 2, by=9.0)
    tables = {"cos": np.cos(angles), "sin": np.sin(angles), "weight": normal(dim)}
    for weight in ("weight", None):
        given = tables if weight else {name: tables[name] for name in ("cos", "sin")}
        mean = normal(kv_heads, dim)

        def queries(graph, weight=weight, terms=1):
            return _quantized(graph_fused.rotate_queries(graph, arch, "q", "cos", "sin", weight, terms), 3)

        def keys(graph, weight=weight):
            return _quantized(graph_fused.rotate_keys(graph, arch, "k", "cos", "sin", "mean", weight), 3)

        for terms in (1, 2):
            compared += _check(*_both(folder, partial(queries, terms=terms), q=normal(tokens, heads * dim), **given))
        compared += _check(*_both(folder, keys, k=normal(tokens, width), mean=mean, **given))

    for scales in ({"scale": scale}, {}):

        def values(graph, scales=scales):
            v = Value("v", "scale") if scales else Value("v")
            return _quantized(graph_fused.quantize_values(graph, arch, v), 3, 2)

        compared += _check(*_both(folder, values, v=normal(tokens, width), **scales))

    def softmax(graph, terms):
        value = graph_fused.softmax_quantize(graph, arch, Value("scores", "scale"), "bias", "value_scale", terms)
        return _quantized(value, 3)

    seen = rng.random((tokens, total)) < 0.5
    seen[np.arange(tokens), past + np.arange(tokens)] = True  # a token sees itself
    bias = np.where(seen, np.float32(0.0), np.float32(-1e9))
    rows = {
        "scores": normal(kv_heads, group * tokens, total, by=40.0),
        "scale": np.abs(normal(kv_heads, group * tokens, 1)),
    }
    rows |= {"bias": bias, "value_scale": np.abs(normal(total, 1)) + np.float32(1e-3)}
    for terms in (1, 2):
        compared += _check(*_both(folder, partial(softmax, terms=terms), **rows))

    for terms in (1, 2):

        def mixed(graph, terms=terms):
            return _quantized(graph_fused.quantize_mixed(graph, arch, Value("mixed", "scale"), terms), 2)

        compared += _check(*_both(folder, mixed, mixed=normal(kv_heads, group * tokens, dim), scale=rows["scale"]))
    assert compared == 40  # every output of every operator, those with two forms twice, two terms as one


@needs_library
@pytest.mark.parametrize("kind", SHAPES)
def test_model_reads_the_same_with_and_without(tmp_path, monkeypatch, kind):
    write_fast_graph(Checkpoint.open(make_checkpoint(tmp_path / "checkpoint", kind)), tmp_path / "fast.onnx", LABELS)
    sequences = random_sequences(1, 7, longest=60)
    readings = {}
    for switch in ("0", "1"):
        monkeypatch.setenv(kernels.SWITCH, switch)
        readings[switch] = np.array(
            [r.label_logits for r in FastModel(tmp_path / "fast.onnx", threads=1).read(sequences)]
        )
    # A value that falls on the other side of an int8 step moves a score of so small a model by a hundredth or so; int8
    # itself moves it by 0.25.
    assert np.abs(readings["0"] - readings["1"]).max() < 0.1
    assert np.abs(readings["0"]).max() > 0.1


@needs_library
def test_zero_rows_divide_nothing_by_zero(tmp_path):
    def gate(graph):
        return _quantized(graph_fused.gate_quantize(graph, Value("gate", "scale"), Value("up", "scale"), 8), 2)

    zeros = np.zeros((3, 8), np.float32)
    stock, compiled = _both(tmp_path, gate, gate=zeros, up=zeros, scale=np.ones((3, 1), np.float32))
    _check(stock, compiled)
    assert (compiled[0] == 128).all()


@needs_library
def test_rows_too_long_for_the_stack_are_computed_too(tmp_path):
    def gate(graph):
        return _quantized(graph_fused.gate_quantize(graph, Value("gate", "scale"), Value("up", "scale"), 20480), 2)

    rng = np.random.default_rng(0)
    gates, ups = rng.standard_normal((2, 3, 20480), np.float32)
    assert _check(*_both(tmp_path, gate, gate=gates, up=ups, scale=np.ones((3, 1), np.float32))) == 2


@needs_library
def test_one_thread_and_two_give_the_same_bits(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint", hidden_size=256, intermediate_size=640, layers=2)
    write_fast_graph(Checkpoint.open(folder), tmp_path / "fast.onnx", LABELS)
    sequences = random_sequences(3, 5, longest=300)
    one, two = ([r.label_logits for r in FastModel(tmp_path / "fast.onnx", threads=n).read(sequences)] for n in (1, 2))
    assert one == two


HOSTILE = {
    "GateQuantize": [
        ((2, 8), (4, 8), (4, 1), (1, 1)),
        ((4, 8), (2, 8), (4, 1), (1, 1)),
        ((4, 8), (4, 8), (2, 1), (1, 1)),
        ((3, 0), (3, 0), (3, 1), (1, 1)),
        ((4,), (4,), (1,), (1, 1)),
        ((4, 24), (4, 24), (4, 1), (2, 2)),
        ((4, 24), (4, 24), (4, 1), (3, 1)),
        ((4, 24), (4, 24), (4, 1), (3,)),
    ],
    "AddNormQuantize": [
        ((2, 4), (2, 4), (2, 1), (3,), (1, 1)),
        ((2, 0), (2, 0), (2, 1), (0,), (1, 1)),
        ((2, 4), (2, 4), (2, 1), (), (1, 1)),
        ((2, 4), (2, 4), (2, 1), (4,), (3, 3)),
    ],
    "RotateQueries": [
        ((3, 9), (1, 3, 2), (1, 3, 2), (1, 1)),
        ((3, 8), (1, 4, 2), (1, 3, 2), (1, 1)),
        ((3, 8), (1, 3, 0), (1, 3, 0), (1, 1)),
        ((3, 8), (1, 3, 2**20), (1, 3, 2), (1, 1)),
        ((3, 8), (1, 3, 2), (1, 3, 2), (3, 3)),
    ],
    "RotateKeys": [
        ((3, 4), (1, 3, 2), (1, 3, 2), (1, 1), (2, 4)),
        ((0, 8), (1, 0, 2), (1, 0, 2), (1, 1), (2, 4)),
        ((3, 8), (1, 3, 2), (1, 3, 2), (1, 1), (1, 4)),
    ],
    "QuantizeValues": [((3, 5), (3, 1)), ((3, 8), (2, 1)), ((1, 0), (1, 1))],
    "SoftmaxQuantize": [
        ((2, 6, 5), (2, 6, 1), (4, 5), (5, 1)),
        ((2, 6, 0), (2, 6, 1), (3, 0), (0, 1)),
        ((2, 6, 5), (2, 6, 1), (), (5, 1)),
    ],
    "QuantizeMixed": [
        ((2, 5, 4), (2, 5, 1), (4, 4)),
        ((0, 6, 4), (0, 6, 1), (1, 1)),
        ((1, 6, 0), (1, 6, 1), (2, 2)),
        ((1, 6, 4, 1), (1, 6, 1, 1), (2, 2)),
        ((1, 6, 4), (1, 6, 1), (3, 3)),
    ],
}
OUTPUTS = {"AddNormQuantize": [TensorProto.FLOAT, TensorProto.UINT8, TensorProto.FLOAT]}
HEADS = {name: {"kv_heads": 2} for name in ("RotateQueries", "RotateKeys", "QuantizeValues")}
ATTRIBUTES = {"AddNormQuantize": {"epsilon": 1e-6}, "QuantizeMixed": {"group": 2}} | HEADS


def _lone(path, operator, shapes, attributes, domain=FSRM):
    """Write a model of one operator, with no function behind it; returns its inputs."""
    types = OUTPUTS.get(operator, [TensorProto.UINT8, TensorProto.FLOAT])
    names = [f"in{i}" for i in range(len(shapes))]
    node = helper.make_node(operator, names, [f"out{i}" for i in range(len(types))], domain=domain, **attributes)
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [f"{n}{axis}" for axis in range(len(s))])
        for n, s in zip(names, shapes, strict=True)
    ]
    outputs = [helper.make_tensor_value_info(f"out{i}", kind, None) for i, kind in enumerate(types)]
    graph = helper.make_graph([node], "lone", inputs, outputs)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(domain, 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString())
    return {name: np.ones(shape, np.float32) for name, shape in zip(names, shapes, strict=True)}


@needs_library
@pytest.mark.parametrize(
    ("operator", "shapes"), [(name, shapes) for name, cases in HOSTILE.items() for shapes in cases]
)
def test_shapes_that_do_not_fit_are_refused(tmp_path, operator, shapes):
    feeds = _lone(tmp_path / "lone.onnx", operator, shapes, ATTRIBUTES.get(operator, {}))
    with pytest.raises(Exception, match=rf"{operator}: the shapes of its inputs do not fit together"):
        _session(tmp_path / "lone.onnx", True).run(None, feeds)


@needs_library
@pytest.mark.parametrize(
    "attributes", [{}, {"kv_heads": 0}, {"kv_heads": -3}, {"kv_heads": 2**62}, {"kv_heads": "two"}, {"kv_heads": 2.0}]
)
def test_numbers_of_heads_out_of_range_are_refused(tmp_path, attributes):
    _lone(tmp_path / "lone.onnx", "QuantizeValues", ((3, 8), (3, 1)), attributes)
    with pytest.raises(Exception, match=r"range|[Aa]ttribute"):
        _session(tmp_path / "lone.onnx", True)


@needs_library
@pytest.mark.parametrize(
    ("rows", "width", "where"), [(20000, 4096, "allocate memory"), (1, 1 << 22, "GateQuantize: out of memory")]
)
def test_memory_that_runs_out_is_an_error_and_not_the_end(tmp_path, rows, width, where):
    shapes = ((rows, width), (rows, width), (rows, 1), (1, 1))
    _lone(tmp_path / "lone.onnx", "GateQuantize", shapes, {})
    program = f"""
import resource, numpy as np, onnxruntime
from fsrm_lite.runtimes.onnx import kernels
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
kernels.register(options)
session = onnxruntime.InferenceSession({str(tmp_path / "lone.onnx")!r}, options, providers=["CPUExecutionProvider"])
feeds = {{f"in{{i}}": np.ones(shape, np.float32) for i, shape in enumerate({shapes})}}
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20), used + (8 << 20)))
try:
    session.run(None, feeds)
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert where in done.stdout


def _sight(rng, tokens, new, cells, segments):
    """Cells for new tokens, and segments that lie within a pool and do not overlap; each token sees a cell.

    Half of the time all tokens have all segments but their last in common.
    """
    places = rng.permutation(cells)[:new].astype(np.int64)
    bounds = np.sort(rng.integers(0, cells + 1, (tokens, 2 * segments)), axis=1).reshape(tokens, segments, 2)
    bounds[:, -1, 1] = np.maximum(bounds[:, -1, 1], bounds[:, -1, 0] + 1)
    bounds[:, -1] -= np.maximum(bounds[:, -1, 1:] - cells, 0)
    bounds[:, :-1] = np.minimum(bounds[:, :-1], bounds[:, -1:, :1])
    if rng.random() < 0.5:
        bounds[:, :-1] = bounds[bounds[:, -1, 0].argmin(), :-1]
    return places, bounds


_pools = st.tuples(
    st.integers(1, 19),  # query tokens
    st.integers(0, 4),  # more tokens that are new
    st.integers(1, 3),  # heads of keys and values
    st.integers(1, 3),  # query heads for each
    st.sampled_from([2, 8, 10, 48]),
    st.integers(24, 300),  # cells
    st.integers(1, 4),  # segments
    st.integers(0, 2**32 - 1),
)


def assert_close(stock, compiled):
    for expected, got in zip(stock, compiled, strict=True):
        assert expected.shape == got.shape
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-4)


@needs_library
@settings(max_examples=25, deadline=None)
@given(shape=_pools, terms=st.sampled_from([1, 2]))
def test_attention_to_cells_of_bytes(tmp_path_factory, shape, terms):
    tokens, more, kv_heads, group, dim, cells, segments, seed = shape
    rng = np.random.default_rng(seed)
    new, rows = tokens + more, group * tokens
    arch = SimpleNamespace(kv_heads=kv_heads, heads=kv_heads * group, head_dim=dim)
    places, bounds = _sight(rng, tokens, new, cells, segments)

    def steps(*size):
        return rng.integers(1, 256, size).astype(np.uint8)

    def scales(*size):
        return rng.uniform(0.1, 2.0, size).astype(np.float32)

    arrays = {
        "q": steps(kv_heads, rows, dim),
        "q_scale": scales(kv_heads, rows, 1),
        "rest": steps(kv_heads, rows, dim),
        "k": steps(kv_heads, dim, new),
        "k_scale": scales(kv_heads, 1, new),
        "v": steps(kv_heads, new, dim),
        "v_scale": scales(new, 1),
        "keys": steps(kv_heads, dim, cells),
        "key_scale": scales(kv_heads, 1, cells),
        "values": steps(kv_heads, cells, dim),
        "value_scale": scales(cells, 1),
        "places": places,
        "bounds": bounds,
    }
    if terms == 1:
        del arrays["rest"]
    names = ["k", "k_scale", "v", "v_scale", "keys", "key_scale", "values", "value_scale"]

    def build(graph):
        q = Value("q", "q_scale", "rest" if terms == 2 else None)
        *pools, mixed, _ = graph_fused.attend_bytes(graph, arch, q, names, "places", "bounds")
        kinds = [(TensorProto.UINT8, 3), (TensorProto.FLOAT, 3), (TensorProto.UINT8, 3), (TensorProto.FLOAT, 2)]
        return [(name, *kind) for name, kind in zip(pools, kinds, strict=True)] + [(mixed, TensorProto.FLOAT, 3)]

    stock, compiled = _both(tmp_path_factory.mktemp("attend"), build, **arrays)
    assert_close(stock, compiled)
    kept = compiled[0].reshape(kv_heads, cells, dim)  # the pool of keys holds each cell's values side by side
    assert (kept[:, places] == arrays["k"].swapaxes(1, 2)).all()
    assert (compiled[2][:, places] == arrays["v"]).all()
    # What comes out for a token does not depend on those beside it: the last one alone.
    alone = {"bounds": bounds[-1:]}
    for name in {"q", "q_scale", "rest"} & set(arrays):
        alone[name] = arrays[name].reshape(kv_heads, group, tokens, -1)[:, :, -1]
    mixed = _both(tmp_path_factory.mktemp("alone"), build, **(arrays | alone))[1][4]
    assert (mixed == compiled[4].reshape(kv_heads, group, tokens, dim)[:, :, -1]).all()


@needs_library
@settings(max_examples=25, deadline=None)
@given(shape=_pools)
def test_attention_to_cells_of_floats(tmp_path_factory, shape):
    tokens, more, kv_heads, group, dim, cells, segments, seed = shape
    rng = np.random.default_rng(seed)
    arch = SimpleNamespace(kv_heads=kv_heads, heads=kv_heads * group, head_dim=dim)
    places, bounds = _sight(rng, tokens, tokens + more, cells, segments)

    def floats(*size):
        return rng.standard_normal(size).astype(np.float32)

    arrays = {
        "q": floats(1, tokens, kv_heads * group * dim),
        "k": floats(1, tokens + more, kv_heads * dim),
        "v": floats(tokens + more, kv_heads * dim),
        "keys": floats(1, kv_heads, cells, dim),
        "values": floats(1, kv_heads, cells, dim),
        "places": places,
        "bounds": bounds,
    }

    def build(graph):
        results = graph_fused.attend_floats(graph, arch, ["q", "k", "v", "keys", "values"], "places", "bounds")
        return [(name, TensorProto.FLOAT, rank) for name, rank in zip(results, (4, 4, 2), strict=True)]

    assert_close(*_both(tmp_path_factory.mktemp("attend"), build, **arrays))


@needs_library
@pytest.mark.parametrize(
    ("places", "bounds", "why"),
    [
        ([9, 0], [[[0, 1]], [[0, 2]]], "a cell lies outside the pool"),
        ([-1, 0], [[[0, 1]], [[0, 2]]], "a cell lies outside the pool"),
        ([1, 0], [[[0, 1]], [[0, 10]]], "a segment lies outside the pool"),
        ([1, 0], [[[-1, 1]], [[0, 2]]], "a segment lies outside the pool"),
        ([1, 0], [[[3, 1]], [[0, 2]]], "a segment lies outside the pool"),
        ([1, 0], [[[0, 9], [0, 9]], [[0, 2], [0, 1]]], "segments overlap"),
        ([1, 0, 2], [[[0, 1]], [[0, 2]]], "do not fit together"),
    ],
)
def test_cells_outside_the_pool_are_refused(tmp_path, places, bounds, why):
    arch = SimpleNamespace(kv_heads=1, heads=1, head_dim=2)
    graph = GraphWriter(tmp_path / "one.onnx", WeightStore())
    arrays = {
        "q": np.ones((1, 2, 2), np.float32),
        "k": np.ones((1, 2, 2), np.float32),
        "v": np.ones((2, 2), np.float32),
        "keys": np.ones((1, 1, 9, 2), np.float32),
        "values": np.ones((1, 1, 9, 2), np.float32),
        "places": np.array(places),
        "bounds": np.array(bounds),
    }
    for name, array in arrays.items():
        graph.input(name, TYPES[array.dtype], [f"{name}{i}" for i in range(array.ndim)])
    results = graph_fused.attend_floats(graph, arch, ["q", "k", "v", "keys", "values"], "places", "bounds")
    graph.output("out", results[2], TensorProto.FLOAT, ["a", "b"])
    graph.save({})
    with pytest.raises(Exception, match=why):
        _session(tmp_path / "one.onnx", True).run(["out"], arrays)


@needs_library
def test_functions_of_another_number_run_on_their_own_bodies(tmp_path):
    later = "fsrm.999"
    body = [helper.make_node("Add", ["gate", "up"], ["sum"]), helper.make_node("Identity", ["scale"], ["same"])]
    function = helper.make_function(
        later, "GateQuantize", ["gate", "up", "scale"], ["sum", "same"], body, [helper.make_opsetid("", 23)]
    )
    feeds = _lone(tmp_path / "lone.onnx", "GateQuantize", ((2, 3), (2, 3), (2, 1)), {}, domain=later)
    model = onnx.load(tmp_path / "lone.onnx")
    model.functions.append(function)
    for output in model.graph.output:
        output.type.tensor_type.elem_type = TensorProto.FLOAT
    (tmp_path / "lone.onnx").write_bytes(model.SerializeToString())
    assert (_session(tmp_path / "lone.onnx", True).run(None, feeds)[0] == 2.0).all()


def test_calls_of_one_function_must_agree_on_attributes(tmp_path):
    graph = GraphWriter(tmp_path / "one.onnx", WeightStore())
    inputs = ("residual", Value("update", "scale"), "weight")
    graph_fused.add_norm_quantize(graph, *inputs, 1e-5, 8)
    with pytest.raises(ValueError, match=r"AddNormQuantize was called with .*1e-05.* before"):
        graph_fused.add_norm_quantize(graph, *inputs, 1e-6, 8)


@needs_library
def test_many_sessions_open_at_once(tmp_path):
    write_fast_graph(Checkpoint.open(make_checkpoint(tmp_path / "checkpoint")), tmp_path / "fast.onnx", LABELS)
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(lambda _: FastModel(tmp_path / "fast.onnx", threads=1), range(16)))
    assert len({model.read([[1, 2, 3]])[0].label_logits for model in models}) == 1


@needs_library
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


@needs_library
def test_loading_the_library_leaves_the_arithmetic_of_the_process_alone():
    program = (
        "import ctypes, numpy as np; from fsrm_lite.runtimes.onnx import kernels; ctypes.CDLL(str(kernels.library()));"
        "print((np.float32(1e-38) * np.float32(0.1) > 0).item())"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()
        == "True"
    )
