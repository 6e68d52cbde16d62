"""Spreading is orthogonal, spreads what stands out, and leaves a graph on every architecture what it was."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.fast import LABELS, SHAPES, make_checkpoint, random_sequences, reference

from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.graph.fast_graph import write_fast_graph
from fsrm_lite.export.graph.rotation import hartley, spread
from fsrm_lite.runtimes.onnx.session import FastModel

WIDTHS = (1, 2, 3, 8, 40, 72, 134, 576, 1536, 3072, 4864, 8960)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9, 12, 16, 35, 64])
def test_matrix_is_orthogonal_symmetric_and_even(size):
    matrix = hartley(size).astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-6)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.abs(matrix).max() < 1.42 / np.sqrt(size)  # the root of 2: no entry stands out


@pytest.mark.parametrize("width", WIDTHS)
def test_spreading_twice_gives_the_row_back_and_keeps_its_length(width):
    x = np.random.default_rng(0).standard_normal((5, width)).astype(np.float32)
    np.testing.assert_allclose(spread(spread(x)), x, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(spread(x), axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)


@pytest.mark.parametrize("width", [576, 1536, 3072])
def test_outlier_is_spread_over_the_whole_row(width):
    x = np.zeros((1, width), np.float32)
    x[0, 7] = 1000.0
    assert np.abs(spread(x)).max() < 1.5 * 1000.0 / np.sqrt(width)


@pytest.mark.parametrize("kind", SHAPES)
def test_two_terms_leave_the_error_of_the_weights_alone(tmp_path, kind):
    """Inputs in two terms of 8 bits are as good as float32: what is left is what int8 weights do."""
    folder = make_checkpoint(tmp_path / "checkpoint", kind)
    checkpoint, sequences = Checkpoint.open(folder), random_sequences(1, 7)
    expected = np.array([r["label_logits"] for r in reference(folder, sequences)])
    gaps = {}
    for precision in ("int8", "int8x2"):
        write_fast_graph(checkpoint, tmp_path / f"{precision}.onnx", LABELS, precision=precision)
        got = np.array([r.label_logits for r in FastModel(tmp_path / f"{precision}.onnx", threads=1).read(sequences)])
        gaps[precision] = np.abs(got - expected).mean()
    assert gaps["int8x2"] < gaps["int8"]
