"""Chooses the precision of each MatMul by measurement, so that a quantized fast graph decides like the checkpoint.

Two steps. First the checkpoint is run layer by layer in fp32 on calibration rows and outlier channels are scaled away
(``smoothing.py``), which changes nothing in fp32 and costs nothing at run time. If the graph that comes out is still
out of tolerance, each MatMul is quantized alone and the damage to its layer's output measured; the worst are kept at
fp32, twice as many each time, until the tolerance holds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from fsrm_lite.export.checkpoints.checkpoint import EMBEDDING, Checkpoint
from fsrm_lite.export.graph.fast_graph import FastPrecision, matmul_names, open_store, write_fast_graph
from fsrm_lite.export.graph.layers import Positions, Stream, decoder_layer, settle
from fsrm_lite.export.graph.linear import Linears
from fsrm_lite.export.graph.smoothing import Activations, Factor, SmoothedCheckpoint, int8_error, layer_factors
from fsrm_lite.export.graph.weights import Floats, Weights
from fsrm_lite.export.graph.writer import GraphWriter, WeightStore, drop_unused
from fsrm_lite.runtimes.onnx.packing import PackedRow, Widths, plan_rows

CALIBRATION_TOKENS = 768
"""Rows on which activations are measured; the score tolerance is checked on all calibration prompts."""

_HEAD_ROWS, _HEAD_TOKENS = 64, 256
_HOPELESS = 3.0  # An estimate, so far above 1.

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TunedGraph:
    """A fast graph that was measured.

    Attributes:
        files: Files written, the model first.
        keep: MatMuls kept at another precision than the rest.
        excess: Worst figure divided by its tolerance, or an estimate above 1; at most 1 when the tolerance holds.
        worst: The MatMul that does the most damage, with the relative error of its layer's output; None if not measured.
        history: ``excess`` by number of MatMuls kept, in the order tried.
    """

    files: list[Path]
    keep: dict[str, str]
    excess: float
    worst: tuple[str, float] | None = None
    history: dict[int, float] = field(default_factory=dict)


def write_tuned_graph(
    checkpoint: Checkpoint,
    out_path: Path,
    label_ids: Sequence[int],
    sequences: Sequence[Sequence[int]],
    judge: Callable[[Path], float],
    *,
    precision: FastPrecision = "int8",
    progress: Progress | None = None,
) -> TunedGraph:
    """Write a fast graph, smoothed, and with as many MatMuls kept at fp32 as ``judge`` asks for.

    Args:
        checkpoint: The checkpoint.
        out_path: The ``.onnx`` file; overwritten.
        label_ids: Token ids of the labels.
        sequences: Calibration prompts as ids; the first ``CALIBRATION_TOKENS`` tokens of them are looked into.
        judge: Given the graph's path, returns its worst figure divided by its tolerance; may give up and return
            an estimate once it is sure to be above 1.
        precision: Of every MatMul that is not kept. "fp32" is written as it is.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        What was written; ``excess`` above 1 means that not even all MatMuls at fp32 meet the tolerance.
    """
    report = progress or (lambda stage, done, total: None)
    weights = open_store(checkpoint.arch, out_path)

    def write(source: Weights, keep: dict[str, str]) -> tuple[list[Path], float]:
        shown = partial(report, f"fast file, {len(keep)} at fp32" if keep else "fast file")
        shown(0, checkpoint.arch.layers)
        files = write_fast_graph(source, out_path, label_ids, precision=precision, keep=keep, weights=weights, progress=shown)
        return files, judge(out_path)

    if precision == "fp32":
        files, excess = write(checkpoint, {})
        return TunedGraph(files, {}, excess)
    rows = _calibration_rows(sequences)
    smoothed = _smooth(checkpoint, rows, report)
    files, excess = write(smoothed, {})
    history = {0: excess}
    if excess <= 1:
        return TunedGraph(files, {}, excess, history=history)
    damage = matmul_damage(smoothed, rows, precision, report)
    ranked = sorted(damage, key=lambda name: -damage[name])
    for count in _counts([damage[name] for name in ranked], excess):
        keep = dict.fromkeys(ranked[:count], "fp32")
        files, excess = write(smoothed, keep)
        history[count] = excess
        if excess <= 1:
            break
    if weights.path is not None:
        drop_unused(out_path)
    return TunedGraph(files, keep, excess, (ranked[0], damage[ranked[0]]), history)


def _counts(damage: Sequence[float], excess: float) -> list[int]:
    """How many of the worst MatMuls to keep, in the order to try: twice as many each time, at last all.

    Independent errors add up in squares, so what is left of ``excess`` can be told in advance; numbers that would leave
    more than ``_HOPELESS`` are not tried.
    """
    squares = np.square(np.asarray(damage, dtype=np.float64))
    counts = [2**n for n in range(len(damage).bit_length()) if 2**n < len(damage)]
    return [n for n in counts if excess * np.sqrt(squares[n:].sum() / max(squares.sum(), 1e-300)) <= _HOPELESS] + [len(damage)]


def smooth(checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], progress: Progress) -> SmoothedCheckpoint:
    """The checkpoint with its outlier channels scaled away, by what ``sequences`` activate; the same function in fp32."""
    return _smooth(checkpoint, _calibration_rows(sequences), progress)


def _smooth(checkpoint: Checkpoint, rows: list[PackedRow], report: Progress) -> SmoothedCheckpoint:
    return SmoothedCheckpoint(checkpoint, smoothing_factors(checkpoint, rows, report))


def smoothing_factors(checkpoint: Weights, rows: list[PackedRow], report: Progress) -> dict[str, Factor]:
    """Measure every layer in fp32 on ``rows`` and choose its factors."""
    factors: dict[str, Factor] = {}
    report("measure activations", 0, checkpoint.arch.layers)
    residuals = _embedded(checkpoint, rows)
    for layer in range(checkpoint.arch.layers):
        with tempfile.TemporaryDirectory(prefix="fsrm-layer-") as folder:
            path = Path(folder) / "layer.onnx"
            measured = _Layer(path, checkpoint, layer, _data_store(path), taps=True)
            outputs = [measured.run(row, x) for row, x in zip(rows, residuals, strict=True)]
        residuals = [out["residual"] for out in outputs]
        seen = {name: np.concatenate([out[name] for out in outputs]) for name in Activations.__dataclass_fields__}
        factors |= layer_factors(checkpoint, layer, Activations(**seen))
        report("measure activations", layer + 1, checkpoint.arch.layers)
    return factors


def matmul_damage(checkpoint: Weights, rows: list[PackedRow], precision: str, report: Progress) -> dict[str, float]:
    """Quantize each MatMul alone; return by name the error of its layer's output, relative to that output's size."""
    damage: dict[str, float] = {}
    arch = checkpoint.arch
    report("measure MatMuls", 0, arch.layers)
    residuals = _embedded(checkpoint, rows)
    for layer in range(arch.layers):
        with tempfile.TemporaryDirectory(prefix="fsrm-layer-") as folder:
            path = Path(folder) / "layer.onnx"
            weights = _data_store(path)
            exact = _Layer(path, checkpoint, layer, weights)
            expected = [exact.run(row, x)["residual"] for row, x in zip(rows, residuals, strict=True)]
            size = np.sqrt(sum(float(np.square(y).sum()) for y in expected))
            for name in [n for n in matmul_names(arch) if n.startswith(f"model.layers.{layer}.")]:
                quantized = _Layer(path, checkpoint, layer, weights, {name: precision})
                gaps = [quantized.run(row, x)["residual"] - y for row, x, y in zip(rows, residuals, expected, strict=True)]
                damage[name] = float(np.sqrt(sum(float(np.square(gap).sum()) for gap in gaps)) / size)
        residuals = expected
        report("measure MatMuls", layer + 1, arch.layers)
    # The head rounds once, behind everything else: it counts like a layer of its own.
    damage["lm_head"] = _head_damage(checkpoint, residuals)
    return damage


def worst_matmul(checkpoint: Weights, sequences: Sequence[Sequence[int]], progress: Progress) -> tuple[str, float]:
    """The MatMul that suffers most from 8 bits, with the relative error of its layer's output."""
    damage = matmul_damage(checkpoint, _calibration_rows(sequences), "int8", progress)
    name = max(damage, key=lambda name: damage[name])
    return name, damage[name]


def _calibration_rows(sequences: Sequence[Sequence[int]]) -> list[PackedRow]:
    chosen: list[tuple[int, ...]] = []
    budget = CALIBRATION_TOKENS
    for ids in sequences:
        if budget > 0 and len(ids):
            chosen.append(tuple(ids[:budget]))
            budget -= len(ids)
    whole = Widths(chunk=CALIBRATION_TOKENS, row=CALIBRATION_TOKENS, keep=CALIBRATION_TOKENS + 1)
    return list(plan_rows(sorted(set(chosen)), whole))


def _embedded(checkpoint: Weights, rows: list[PackedRow]) -> list[Floats]:
    table = {i: checkpoint.tensor(EMBEDDING, slice(i, i + 1))[0] for row in rows for i in row.ids}
    return [np.stack([table[i] for i in row.ids]) for row in rows]


def _head_damage(checkpoint: Weights, residuals: list[Floats]) -> float:
    """Relative error of the logits of some tokens, spread over the vocabulary, when the head is quantized."""
    x = np.concatenate(residuals)[-_HEAD_ROWS:]
    x = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + checkpoint.arch.rms_eps) * checkpoint.tensor("model.norm.weight")
    name = checkpoint.head_name
    tokens = np.unique(np.linspace(0, checkpoint.shape(name)[0] - 1, _HEAD_TOKENS).astype(int))
    weight = np.concatenate([checkpoint.tensor(name, slice(i, i + 1)) for i in tokens])
    return float(np.sqrt(int8_error(x, weight) / np.square(x @ weight.T).mean()))


def _data_store(path: Path) -> WeightStore:
    return WeightStore(path.with_name(path.name + ".data"))


class _Layer:
    """One decoder layer as a graph of its own beside its weights, fp32 but for ``keep``, run on the residual stream."""

    def __init__(
        self, path: Path, checkpoint: Weights, layer: int, weights: WeightStore, keep: Mapping[str, str] | None = None, *, taps: bool = False
    ) -> None:
        graph = GraphWriter(path, weights)
        ids = graph.input("position_ids", TensorProto.INT64, [1, "S"])
        bias = graph.input("bias", TensorProto.FLOAT, ["S", "T"])
        residual = graph.input("residual_in", TensorProto.FLOAT, ["S", checkpoint.arch.hidden_size])
        positions = Positions.of(graph, checkpoint.arch, ids, bias)
        linears = Linears(graph, checkpoint, "fp32", keep or {})
        out = decoder_layer(graph, linears, layer, Stream(residual), positions, None)
        graph.output("residual", settle(graph, linears, out), TensorProto.FLOAT, ["S", checkpoint.arch.hidden_size])
        self._outputs = ["residual"]
        if taps:
            for name, value in linears.seen.items():
                graph.output(name, value, TensorProto.FLOAT, ["S", "width"])
            self._outputs += linears.seen
        graph.save({})
        self._session = _open_session(path)
        types = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
        pasts = [i for i in self._session.get_inputs() if i.name.startswith("past_")]
        self._past = {i.name: np.zeros([0 if n == "P" else n for n in i.shape], dtype=types[i.type]) for i in pasts}

    def run(self, row: PackedRow, residual: Floats) -> dict[str, Any]:
        """Return the outputs by name for one row."""
        feeds = {"position_ids": np.array([row.positions], dtype=np.int64), "bias": row.bias(), "residual_in": residual, **self._past}
        values = self._session.run(self._outputs, feeds)
        return {name: np.asarray(v).reshape(len(row.ids), -1) for name, v in zip(self._outputs, values, strict=True)}


def _open_session(path: Path) -> Any:  # noqa: ANN401 - an InferenceSession
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
