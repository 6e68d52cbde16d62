"""Makes a quantized fast graph that decides like the checkpoint, as cheaply as that can be had.

First the checkpoint is run layer by layer in fp32 on calibration rows: what flows there decides which channels are
scaled (``smoothing``) and how the weights are rounded (``rounding``); neither changes the fp32 function by more than
rounding or costs anything at run time. If the graph that comes out is out of tolerance, every MatMul is computed alone
on each rung of its ladder, from 8 bits over 8 bits with its input in two terms to fp32, and the error of its layer's
output measured. Then the set of rungs is sought that leaves the share of the error that the tolerance allows at the
least cost, written and measured, with less and less error allowed until the tolerance holds. In a small graph every
MatMul at fp32 is then tried a rung lower.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from fsrm_lite.errors import ExportError
from fsrm_lite.export.checkpoints.checkpoint import EMBEDDING, Architecture, Checkpoint
from fsrm_lite.export.graph.attention import Sight
from fsrm_lite.export.graph.fast_graph import FastPrecision, matmul_names, open_store, write_fast_graph
from fsrm_lite.export.graph.layers import Positions, Stream, decoder_layer, key_mean_name, settle
from fsrm_lite.export.graph.linear import Linears, int8_names
from fsrm_lite.export.graph.quantize import int8_rows, shifted
from fsrm_lite.export.graph.rotation import spread
from fsrm_lite.export.graph.rounding import round_weight
from fsrm_lite.export.graph.smoothing import Activations, Factor, SmoothedCheckpoint, layer_factors
from fsrm_lite.export.graph.weights import Floats, Weights
from fsrm_lite.export.graph.writer import GraphWriter, WeightStore, drop_unused
from fsrm_lite.runtimes.onnx.packing import PackedRow, Widths, plan_rows

CALIBRATION_TOKENS = 3072
"""Tokens on which activations are measured and weights rounded; the tolerance is checked on all calibration prompts."""

DAMAGE_TOKENS = 512
"""Tokens of them on which the rungs of each MatMul are compared."""

LADDERS: dict[str, tuple[str, ...]] = {"int8": ("int8", "int8x2", "fp32"), "int4": ("int4", "int8", "int8x2", "fp32")}
"""What a MatMul can be moved to, by what the graph was asked for, each more exact and more costly than the last."""

COST = {"int4": 1.0, "int8": 1.0, "int8x2": 2.0, "fp32": 4.0}
"""Time of a product of each precision, in that of one of 8 bits, on processors with AVX-512 VNNI.

There the two rates stand about as 4 to 1. Fixed, so that the speed of a machine does not decide what is exported on it;
``python -m benchmarks.real`` measures speeds where it runs.
"""

_ATTENTION_TOKENS = 256  # A row's attention products cost what a weight of so many inputs would.
_HEAD_ROWS, _HEAD_TOKENS = 64, 256
_ATTEMPTS = 6
_TIGHTER = 0.8  # What an attempt that failed by little still takes off the error allowed.
_REFINEMENTS = 3  # Cheaper sets tried once one is within tolerance,
_CLOSE = 0.8  # unless it is so close to it, or to one that is not.
_SMALL = 10_000_000  # Multiplications per token up to which each MatMul at fp32 is tried a rung lower.

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One set of rungs that was written and measured.

    Its cost in that of all MatMuls on the first rung, and its excess.
    """

    cost: float
    excess: float


@dataclass(frozen=True, slots=True)
class TunedGraph:
    """A fast graph that was measured.

    Attributes:
        files: Files written, the model first.
        keep: MatMuls at another precision than the rest.
        excess: Worst figure divided by its tolerance, or an estimate above 1; at most 1 when the tolerance holds.
        worst: The MatMul that does the most damage, with the relative error of its layer's output; None if not
            measured.
        cost: Of all products, in that of the same products without ``keep``, by ``COST``.
        history: What was tried, in order.
        chosen: Position in ``history`` of the graph that was kept.
    """

    files: list[Path]
    keep: dict[str, str]
    excess: float
    worst: tuple[str, float] | None = None
    cost: float = 1.0
    history: list[Attempt] = field(default_factory=list)
    chosen: int = 0


def write_tuned_graph(
    checkpoint: Checkpoint,
    out_path: Path,
    label_ids: Sequence[int],
    sequences: Sequence[Sequence[int]],
    excess_of: Callable[[Path], float],
    *,
    precision: FastPrecision = "int8",
    progress: Progress | None = None,
) -> TunedGraph:
    """Write a fast graph, smoothed and rounded, with MatMuls as high on their ladders as ``excess_of`` asks for.

    Args:
        checkpoint: The checkpoint.
        out_path: The ``.onnx`` file; overwritten.
        label_ids: Token ids of the labels.
        sequences: Calibration prompts as ids; ``CALIBRATION_TOKENS`` tokens of them are looked into.
        excess_of: Given the graph's path, returns its worst figure divided by its tolerance; may give up and return
            an estimate once it is sure to be above 1.
        precision: Of every MatMul that is not kept: "int8" or "int4"; "fp32" is written as it is.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        What was written; ``excess`` above 1 means that not even all MatMuls at fp32 meet the tolerance.
    """
    report = progress or (lambda stage, done, total: None)
    weights = open_store(checkpoint.arch, out_path)

    def write(source: Weights, keep: dict[str, str]) -> tuple[list[Path], float]:
        shown = partial(report, f"fast file, {len(keep)} MatMuls raised" if keep else "fast file")
        shown(0, checkpoint.arch.layers)
        options: dict[str, Any] = {"precision": precision, "keep": keep, "weights": weights, "progress": shown}
        files = write_fast_graph(source, out_path, label_ids, **options)
        return files, excess_of(out_path)

    if precision == "fp32":
        files, excess = write(checkpoint, {})
        return TunedGraph(files, {}, excess)
    fitted = _fit(checkpoint, calibration_rows(sequences), weights, report)
    files, excess = write(fitted, {})
    history = [Attempt(1.0, excess)]
    keep: dict[str, str] = {}
    chosen, kept = 0, b""
    worst = None
    if excess > 1:
        rungs = _Rungs(
            checkpoint.arch, precision, matmul_damage(fitted, sequences, precision, report, out_path, weights)
        )
        worst, search = rungs.worst, _Search(excess)
        raised: list[dict[str, str]] = [{}]

        def measured(keep: dict[str, str]) -> float:
            """Write and measure a graph. Of those within tolerance the last one is chosen, which is the cheapest."""
            nonlocal files, chosen, kept
            files, excess = write(fitted, keep)
            history.append(Attempt(rungs.cost(keep), excess))
            raised.append(keep)
            if excess <= 1 or all(attempt.excess > 1 for attempt in history):
                chosen, kept = len(history) - 1, out_path.read_bytes()  # large weights lie beside it
            return excess

        while search.goes_on:
            search.note(measured(rungs.cheapest(search.allowed)))
        if search.found:
            _lower_each(rungs, raised[chosen], measured)
        out_path.write_bytes(kept)
        keep, excess = raised[chosen], history[chosen].excess
    if weights.path is not None:
        drop_unused(out_path)
    cost = 1.0 if worst is None else rungs.cost(keep)
    return TunedGraph(files, keep, excess, worst, cost, history, chosen)


class _Search:
    """Seeks the largest error, as a share of that of a graph with nothing raised, that still meets the tolerance."""

    def __init__(self, excess: float) -> None:
        self.found = False
        """Whether a graph within tolerance was measured."""
        self.goes_on = True
        self.allowed = 1 / excess
        self._too_much, self._enough = 1.0, 0.0
        self._left, self._refinements = _ATTEMPTS, _REFINEMENTS

    def note(self, excess: float) -> None:
        """Take note of a graph that was measured, and choose the next error allowed."""
        self._left -= 1
        if excess <= 1:
            self.found, self._enough = True, self.allowed
        else:
            self._too_much = self.allowed
        if self.found:
            self._refinements -= 1
            close = self._enough > _CLOSE * self._too_much or _CLOSE < excess <= 1
            # Where everything had to be raised, nothing lies between that and what did not suffice.
            self.goes_on = self._refinements >= 0 and not close and self._enough > 0
            self.allowed = float(np.sqrt(self._enough * self._too_much))
        else:
            self.goes_on = self.allowed > 0
            # At last everything is raised as far as it goes: a tolerance that fp32 meets is met.
            self.allowed = self.allowed * min(_TIGHTER, 1 / excess) if self._left > 1 else 0.0


class _Rungs:
    """The ladder of every MatMul: what each rung costs, and the error it leaves."""

    def __init__(self, arch: Architecture, precision: str, damage: Mapping[str, Mapping[str, float]]) -> None:
        self.base = precision
        self._damage = damage
        self._work = _work(arch)
        self.worst = max(((name, rungs[precision]) for name, rungs in damage.items()), key=lambda item: item[1])

    def cost(self, keep: Mapping[str, str]) -> float:
        """Cost of a graph in that of one that keeps nothing."""
        total = sum(self._work.values()) * COST[self.base]
        return sum(work * COST[keep.get(name, self.base)] for name, work in self._work.items()) / total

    def cheapest(self, allowed: float) -> dict[str, str]:
        """Raise MatMuls until the error is ``allowed`` times that of none raised, by what each step saves for its cost.

        Independent errors add up in squares.
        """
        rung = dict.fromkeys(self._damage, self.base)
        left = whole = sum(rungs[self.base] ** 2 for rungs in self._damage.values())
        while left > allowed**2 * whole:
            steps = [step for name, at in rung.items() for step in self._steps(name, at)]
            if not steps:
                break
            _, saved, name, to = max(steps)
            rung[name], left = to, left - saved
        return {name: at for name, at in rung.items() if at != self.base}

    def below(self, name: str, at: str) -> str:
        """The next lower rung of a MatMul that is raised."""
        rungs = [*self._damage[name]]
        return rungs[rungs.index(at) - 1]

    def to_lower(self, keep: Mapping[str, str]) -> list[str]:
        """MatMuls at fp32 that are worth a try a rung lower, those first that save most for their error.

        There are none in a large graph, which takes long to write and measure. What stands in two terms stays there: in
        one term, a sum that differs in its last digit can move a product by 254 times as much, and with it the score of
        a text by its company in a call.
        """

        def saves(name: str) -> float:
            to = self.below(name, "fp32")
            return self._work[name] * (COST["fp32"] - COST[to]) / max(self._damage[name][to] ** 2, 1e-30)

        small = sum(self._work.values()) <= _SMALL
        return sorted([name for name, at in keep.items() if at == "fp32" and small], key=saves, reverse=True)

    def _steps(self, name: str, at: str) -> list[tuple[float, float, str, str]]:
        """Every higher rung of a MatMul: what it saves for its cost, what it saves, the MatMul, the rung."""
        found = []
        for to, error in self._damage[name].items():
            price = self._work[name] * (COST[to] - COST[at])
            if price > 0:
                saved = self._damage[name][at] ** 2 - error**2
                found.append((saved / price, saved, name, to))
        return found


def _lower_each(rungs: _Rungs, keep: dict[str, str], excess_of: Callable[[dict[str, str]], float]) -> None:
    """Put one MatMul after the other from fp32 a rung lower, where the tolerance holds without.

    The search before this only asks how much error is left in all, and raises whatever saves most for its cost. What
    errors do together is not their sum: of some MatMuls the error is not missed.
    """
    for name in rungs.to_lower(keep):
        tried = keep | {name: rungs.below(name, keep[name])}
        if excess_of(tried) <= 1:
            keep = tried


def _work(arch: Architecture) -> dict[str, float]:
    """Multiplications per token of each MatMul."""
    shapes = arch.tensor_shapes()
    work = {name: float(np.prod(shapes[f"{name}.weight"])) for name in matmul_names(arch) if f"{name}.weight" in shapes}
    attention = 2.0 * arch.heads * arch.head_dim * _ATTENTION_TOKENS
    # The head reads one position of many; it counts for little in time, and a wide one still for something in memory.
    head = {} if arch.scalar else {"lm_head": float(arch.hidden_size**2)}
    return {name: work.get(name, attention) for name in matmul_names(arch)} | head


def smooth(checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], progress: Progress) -> SmoothedCheckpoint:
    """The checkpoint with its outlier channels scaled away for llama.cpp, by what ``sequences`` activate.

    The same in fp32.
    """
    factors: dict[str, Factor] = {}
    for layer, seen in _activations(checkpoint, calibration_rows(sequences), progress):
        factors |= layer_factors(checkpoint, layer, seen, spread=False)
    return SmoothedCheckpoint(checkpoint, factors)


def _fit(checkpoint: Weights, rows: list[PackedRow], weights: WeightStore, report: Progress) -> SmoothedCheckpoint:
    """The checkpoint smoothed for the fast graph; its linear maps, rounded to 8 bits, are put into ``weights``."""
    factors: dict[str, Factor] = {}
    for layer, seen in _activations(checkpoint, rows, report):
        factors |= layer_factors(checkpoint, layer, seen, spread=True)
        fitted = SmoothedCheckpoint(checkpoint, factors)
        weights.get([key_mean_name(layer)], partial(list, (_key_mean(checkpoint.arch, layer, seen.keys, factors),)))
        for source, names in _INPUTS.items():
            maps = [f"model.layers.{layer}.{name}" for name in names]
            columns = factors[f"{maps[0]}.weight"].columns
            x = spread(getattr(seen, source) if columns is None else getattr(seen, source) / columns)
            _round_together(fitted, maps, (x.T @ x).astype(np.float64), weights)
    return SmoothedCheckpoint(checkpoint, factors)


def _key_mean(arch: Architecture, layer: int, keys: Floats, factors: Mapping[str, Factor]) -> Floats:
    """Mean of the rotated keys of the smoothed checkpoint, spread by head, [kv_heads, d]."""
    kind = "k_norm" if arch.qk_norm else "k_proj"
    by = factors[f"model.layers.{layer}.self_attn.{kind}.weight"].rows
    mean = keys.mean(axis=0).reshape(arch.kv_heads, arch.head_dim)
    return spread(mean if by is None else mean * by.reshape(-1, arch.head_dim))


_INPUTS = {
    "attention_input": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attended": ("self_attn.o_proj",),
    "mlp_input": ("mlp.gate_proj", "mlp.up_proj"),
    "gated": ("mlp.down_proj",),
}
"""The maps that read each of the ``Activations``."""


def _round_together(
    checkpoint: Weights, names: Sequence[str], gram: np.ndarray[Any, Any], weights: WeightStore
) -> None:
    """Round the weights of maps with one input and put them into the store."""
    values, scales = round_weight(spread(np.concatenate([checkpoint.tensor(f"{name}.weight") for name in names])), gram)
    ends = np.cumsum([checkpoint.shape(f"{name}.weight")[0] for name in names])
    for name, part, own in zip(names, np.split(values, ends[:-1]), np.split(scales, ends[:-1]), strict=True):
        weights.get(int8_names(name), partial(list, (shifted(np.ascontiguousarray(part.T)), own)))


def matmul_damage(
    checkpoint: Weights,
    sequences: Sequence[Sequence[int]],
    precision: str,
    report: Progress,
    beside: Path,
    weights: WeightStore,
) -> dict[str, dict[str, float]]:
    """Compute each MatMul alone on each rung of its ladder; return by name and rung the error of its layer's output.

    The error is that of a token's residual relative to its size, root mean square over the tokens; 0 for fp32. The
    layers are written into files beside ``beside``, where the data of ``weights`` are.
    """
    damage: dict[str, dict[str, float]] = {}
    arch, rows = checkpoint.arch, calibration_rows(sequences, DAMAGE_TOKENS)
    report("measure MatMuls", 0, arch.layers)
    residuals = _embedded(checkpoint, rows)
    path = beside.with_name(f"{beside.name}.layer")
    try:
        for layer in range(arch.layers):
            exact = _Layer(path, checkpoint, layer, weights)
            expected = [exact.run(row, x)["residual"] for row, x in zip(rows, residuals, strict=True)]
            for name in [n for n in matmul_names(arch) if n.startswith(f"model.layers.{layer}.")]:
                damage[name] = dict.fromkeys(ladder(name, precision), 0.0)
                for rung in ladder(name, precision)[:-1]:
                    quantized = _Layer(path, checkpoint, layer, weights, {name: rung})
                    got = [quantized.run(row, x)["residual"] for row, x in zip(rows, residuals, strict=True)]
                    damage[name][rung] = _relative_error(np.concatenate(got), np.concatenate(expected))
            residuals = expected
            report("measure MatMuls", layer + 1, arch.layers)
    finally:
        path.unlink(missing_ok=True)
    # The head rounds once, behind everything else: it counts like a layer of its own.
    if not arch.scalar:
        damage["lm_head"] = {rung: _head_damage(checkpoint, residuals, rung) for rung in ladder("lm_head", precision)}
    return damage


def ladder(name: str, precision: str) -> tuple[str, ...]:
    """The rungs of a MatMul in a graph of this precision.

    Neither attention nor the head has 4 bits, which mean 8 there.
    """
    rungs = LADDERS[precision]
    kind = name.rpartition(".")[2]
    if kind == "self_attn":
        return (precision, "int8x2", "fp32")
    return (precision, *rungs[rungs.index("int8") + 1 :]) if kind == "lm_head" else rungs


def worst_matmul(checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], progress: Progress) -> tuple[str, float]:
    """The MatMul that suffers most from 8 bits as they come, with the relative error of its layer's output."""
    with tempfile.TemporaryDirectory(prefix="fsrm-layers-") as folder:
        path = Path(folder) / "model.onnx"
        damage = matmul_damage(
            checkpoint, sequences, "int8", progress, path, WeightStore(path.with_name("model.onnx.data"))
        )
    return _Rungs(checkpoint.arch, "int8", damage).worst


def calibration_rows(sequences: Sequence[Sequence[int]], tokens: int = CALIBRATION_TOKENS) -> list[PackedRow]:
    """Rows that read some of the sequences, taken evenly from all of them, in about so many tokens."""
    step = max(1, sum(len(ids) for ids in sequences) // tokens)
    chosen: list[tuple[int, ...]] = []
    budget = tokens
    for ids in sequences[::step]:
        if budget > 0 and len(ids):
            chosen.append(tuple(ids[: min(budget, DAMAGE_TOKENS)]))
            budget -= len(chosen[-1])
    whole = Widths(chunk=DAMAGE_TOKENS, row=DAMAGE_TOKENS, keep=DAMAGE_TOKENS + 1)
    return list(plan_rows(sorted(set(chosen)), whole))


def _activations(checkpoint: Weights, rows: list[PackedRow], report: Progress) -> Iterator[tuple[int, Activations]]:
    """Run the checkpoint in fp32, layer by layer, and yield what flows through each."""
    report("measure activations", 0, checkpoint.arch.layers)
    residuals = _embedded(checkpoint, rows)
    for layer in range(checkpoint.arch.layers):
        with tempfile.TemporaryDirectory(prefix="fsrm-layer-") as folder:
            path = Path(folder) / "layer.onnx"
            measured = _Layer(path, checkpoint, layer, WeightStore(path.with_name("layer.onnx.data")), taps=True)
            outputs = [measured.run(row, x) for row, x in zip(rows, residuals, strict=True)]
        residuals = [out["residual"] for out in outputs]
        seen = {name: np.concatenate([out[name] for out in outputs]) for name in Activations.__dataclass_fields__}
        _check_activations(layer, seen)
        yield layer, Activations(**seen)
        report("measure activations", layer + 1, checkpoint.arch.layers)


def _check_activations(layer: int, seen: Mapping[str, Floats]) -> None:
    for name, values in seen.items():
        if not np.isfinite(values).all():
            raise ExportError(
                f"layer {layer} computes NaN or infinite values ({name}) on the calibration prompts in float32; "
                "the weights are broken"
            )


def _relative_error(got: Floats, expected: Floats) -> float:
    """Root mean square over the rows of the error of each, relative to its size."""
    size = np.square(expected).sum(axis=1)
    return float(np.sqrt((np.square(got - expected).sum(axis=1) / np.maximum(size, 1e-30)).mean()))


def _embedded(checkpoint: Weights, rows: list[PackedRow]) -> list[Floats]:
    table = {i: checkpoint.tensor(EMBEDDING, slice(i, i + 1))[0] for row in rows for i in row.ids}
    return [np.stack([table[i] for i in row.ids]) for row in rows]


def _head_damage(checkpoint: Weights, residuals: list[Floats], rung: str) -> float:
    """Relative error of the logits of some tokens, spread over the vocabulary, when the head is on this rung."""
    if rung == "fp32":
        return 0.0
    x = np.concatenate(residuals)[-_HEAD_ROWS:]
    x = (
        x
        / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + checkpoint.arch.rms_eps)
        * checkpoint.tensor("model.norm.weight")
    )
    name = checkpoint.head_name
    tokens = np.unique(np.linspace(0, checkpoint.shape(name)[0] - 1, _HEAD_TOKENS).astype(int))
    weight = np.concatenate([checkpoint.tensor(name, slice(i, i + 1)) for i in tokens])
    turned = _rounded(spread(weight)), spread(x)
    rounded = (turned[1] if rung == "int8x2" else _rounded(turned[1])) @ turned[0].T
    return _relative_error(rounded, x @ weight.T)


def _rounded(rows: Floats) -> Floats:
    values, scales = int8_rows(rows)
    return values * scales[:, None]


class _Layer:
    """One decoder layer as a graph of its own beside its weights, fp32 but for ``keep``, run on the residual stream."""

    def __init__(
        self,
        path: Path,
        checkpoint: Weights,
        layer: int,
        weights: WeightStore,
        keep: Mapping[str, str] | None = None,
        *,
        taps: bool = False,
    ) -> None:
        graph = GraphWriter(path, weights)
        ids = graph.input("position_ids", TensorProto.INT64, [1, "S"])
        bias = graph.input("bias", TensorProto.FLOAT, ["S", "T"])
        residual = graph.input("residual_in", TensorProto.FLOAT, ["S", checkpoint.arch.hidden_size])
        positions = Positions.of(graph, checkpoint.arch, ids, Sight(bias))
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
        feeds = {
            "position_ids": np.array([row.positions], dtype=np.int64),
            "bias": row.bias(),
            "residual_in": residual,
            **self._past,
        }
        values = self._session.run(self._outputs, feeds)
        return {name: np.asarray(v).reshape(len(row.ids), -1) for name, v in zip(self._outputs, values, strict=True)}


def _open_session(path: Path) -> Any:  # noqa: ANN401 - an InferenceSession
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
