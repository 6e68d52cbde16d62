"""The integer products that graphs are made of are exact on the machine that runs this, whatever it can do."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.fast import LABELS, SHAPES, make_checkpoint
from onnx import TensorProto

from fsrm_lite.errors import BundleError
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.graph.fast_graph import write_fast_graph
from fsrm_lite.export.graph.linear import product
from fsrm_lite.export.graph.quantize import ZERO, quantize_int8
from fsrm_lite.export.graph.writer import GraphWriter, WeightStore
from fsrm_lite.runtimes.onnx.session import FastModel

SIZES = [(1, 1, 1), (3, 7, 5), (5, 64, 16), (17, 576, 40), (256, 1024, 33), (33, 3072, 8)]


def _extreme(rng, *shape):
    """Values of which most lie at the ends of the range, where 16 bits do not hold the sum of two products."""
    return rng.choice(np.array([-127, -127, 127, 127, 127, 1, 0], dtype=np.int64), shape)


@pytest.mark.parametrize(("rows", "width", "outputs"), SIZES)
def test_product_with_a_weight_is_exact(tmp_path, rows, width, outputs):
    rng = np.random.default_rng(rows)
    a, w = _extreme(rng, rows, width), _extreme(rng, outputs, width)
    w[:, 0] = 127  # so that the scales are 1
    graph = GraphWriter(tmp_path / "one.onnx", WeightStore())
    x = graph.input("x", TensorProto.UINT8, ["S", width])
    names = graph.weights(["w", "w.scales"], lambda: quantize_int8(lambda part: w[part].astype(np.float32), w.shape))
    graph.output("y", product(graph, x, names), TensorProto.FLOAT, ["S", outputs])
    graph.save({})
    session = onnxruntime.InferenceSession(str(tmp_path / "one.onnx"), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": (a + ZERO).astype(np.uint8)})
    expected = a @ w.T
    np.testing.assert_allclose(127 * got, expected, rtol=1e-6, atol=1e-2)
    assert np.abs(expected).max() > 127 * 127 * width / 20


@pytest.mark.parametrize("kind", SHAPES)
def test_every_integer_product_is_of_uint8_by_uint8(tmp_path, kind):
    write_fast_graph(Checkpoint.open(make_checkpoint(tmp_path / "checkpoint", kind)), tmp_path / "fast.onnx", LABELS)
    model = onnx.load(tmp_path / "fast.onnx")
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    branches = [a.g for node in model.graph.node for a in node.attribute if a.name in ("then_branch", "else_branch")]
    nodes = [*model.graph.node, *(node for branch in branches for node in branch.node)]
    types |= {node.output[0]: types.get(node.input[0]) for node in nodes if node.op_type == "Concat"}
    products = [node for node in nodes if node.op_type == "MatMulIntegerToFloat"]
    assert len(products) == 3 * (7 + 2) + 1
    assert {types[node.input[1]] for node in products} == {TensorProto.UINT8}
    assert all(len(node.input) == 6 for node in products)  # both zero points are given


def test_older_graph_is_refused_by_its_format(tmp_path):
    write_fast_graph(Checkpoint.open(make_checkpoint(tmp_path / "checkpoint")), tmp_path / "fast.onnx", LABELS)
    model = onnx.load(tmp_path / "fast.onnx")
    next(entry for entry in model.metadata_props if entry.key == "fsrm.format").value = "1"
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(BundleError, match=r"fast graph format '1', this package reads 2 and 3 and 4; export it again"):
        FastModel(tmp_path / "old.onnx", threads=1)
