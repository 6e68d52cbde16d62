"""The working stages of an export.

Ask the checkpoint, build and measure the fast file, build and measure the slow one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from statistics import median
from typing import Any, Literal

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.export.checkpoints.chat_template import ChatTemplate
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.checkpoints.vocabulary import Vocabulary
from fsrm_lite.export.gguf.writer import native_dtype, write_gguf
from fsrm_lite.export.graph.fast_graph import matmul_names
from fsrm_lite.export.graph.precision import TunedGraph, smooth, write_tuned_graph
from fsrm_lite.export.graph.weights import Weights
from fsrm_lite.export.graph.writer import add_metadata
from fsrm_lite.export.parity.calibration_pairs import CalibrationSet
from fsrm_lite.export.parity.chains import chain_tasks, closed_share, compare_chains, thought_budget
from fsrm_lite.export.parity.engine_reader import EngineReader
from fsrm_lite.export.parity.measures import (
    FirstTokenParity,
    Tolerance,
    VerdictParity,
    at_best,
    compare_readings,
    excess,
    gate_signals,
    root_mean_square,
    verdict_violations,
)
from fsrm_lite.export.parity.readings import Chain, ChainTask, TokenReading
from fsrm_lite.export.parity.reference import Reference
from fsrm_lite.runtimes.llama.engine import quantize
from fsrm_lite.runtimes.llama.gguf_header import read_header
from fsrm_lite.runtimes.onnx.session import FastModel
from fsrm_lite.runtimes.reading import FastReading

FastKind = Literal["int8", "int4", "fp32"]
SlowKind = Literal["q8_0", "q4_k_m", "q5_k_m", "q6_k", "f16", "none"]
StageProgress = Callable[[str, int, int], None]
"""Called with the name of the stage, how much of it is done, and how much there is."""

FAST_PATH, SLOW_PATH = "fast/model.onnx", "slow/model.gguf"

FIRST_LOOK = 24
"""Responses read before a fast graph can be given up."""


@dataclass(frozen=True, slots=True)
class Source:
    """Everything read and checked before anything is written."""

    checkpoint: Checkpoint
    vocabulary: Vocabulary
    chat: ChatTemplate | None
    """Its chat template, if it has one."""
    manifest: Manifest
    encoder: PromptEncoder
    data: CalibrationSet
    fast_ids: list[list[int]]
    pairs: tuple[tuple[int, int], ...]
    """Positions in ``fast_ids`` that are compared: two responses to one prompt, or the two orders of a pair."""

    @property
    def measured(self) -> Manifest:
        """The manifest by which fast readings are compared; see ``measured``."""
        return measured(self.manifest)

    @property
    def label_ids(self) -> list[int]:
        """Token ids of the labels by which readings are compared."""
        return [label.id for label in self.measured.labels]

    @property
    def parameters(self) -> int:
        """Weights of the checkpoint, a tied head counted once."""
        return sum(prod(self.checkpoint.shape(name)) for name in self.checkpoint.names())


@dataclass(frozen=True, slots=True)
class Expected:
    """What the checkpoint itself says, in float32: everything the files are measured against."""

    readings: list[TokenReading]
    tasks: list[ChainTask]
    chains: list[Chain]
    budget: int


@dataclass(frozen=True, slots=True)
class FastResult:
    """The fast file: its paths by role, its parity, how its precisions were chosen, and how it thinks.

    ``verdicts`` is None where the manifest has nothing to think about.
    """

    files: dict[str, str]
    parity: FirstTokenParity
    tuned: TunedGraph
    verdicts: VerdictParity | None = None

    def to_dict(self, precision: str, matmuls: int, tolerance: Tolerance) -> dict[str, Any]:
        """Return the JSON form for the manifest, with the tolerances that apply."""
        worst = (
            {}
            if self.tuned.worst is None
            else {"worst_matmul": self.tuned.worst[0], "worst_matmul_error": round(self.tuned.worst[1], 6)}
        )
        rungs = Counter(self.tuned.keep.values())
        rungs[precision] = matmuls - rungs.total()
        kept_fp32 = sorted(name for name, rung in self.tuned.keep.items() if rung == "fp32")
        kept = {
            "matmuls": matmuls,
            "rungs": dict(rungs),
            "cost": round(self.tuned.cost, 4),
            "kept_fp32": kept_fp32,
            **worst,
        }
        thinking = {}
        if self.verdicts is not None:
            thinking = {**self.verdicts.to_dict(), "thinks": not verdict_violations(self.verdicts, tolerance)}
        figures = {**self.parity.to_dict(), **thinking, **kept}
        allowed = tolerance.of_fast(precision, scalar=self.parity.scalar)
        return {"precision": precision, "tolerance": allowed, **figures}


@dataclass(frozen=True, slots=True)
class SlowResult:
    """The slow file: its paths by role, its parity, its matrices by type; empty when none was asked for.

    ``smoothed`` says whether outlier channels were scaled away. Types vary, since llama.cpp cannot quantize a matrix
    whose rows do not divide into its blocks.
    """

    files: dict[str, str]
    parity: FirstTokenParity | None = None
    verdicts: VerdictParity | None = None
    matrices: dict[str, int] = field(default_factory=dict)
    smoothed: bool = False

    def to_dict(self, precision: str, tolerance: Tolerance) -> dict[str, Any] | None:
        """Return the JSON form for the manifest, with the tolerances that apply."""
        if self.parity is None:
            return None
        verdicts = {} if self.verdicts is None else self.verdicts.to_dict()
        allowed = tolerance.of_slow() if verdicts else {}
        making = {"matrices": self.matrices, "smoothed": self.smoothed}
        return {"precision": precision, "tolerance": allowed, **self.parity.to_dict(), **verdicts, **making}


def measured(manifest: Manifest) -> Manifest:
    """Return the manifest by which fast readings are measured.

    Where the model reads pairs only, their two labels are those of a score: that the first place is the better one.
    """
    if "pointwise_fast" in manifest.templates:
        return manifest
    first, second = manifest.pair_labels
    return replace(manifest, labels=(replace(first, value=1.0), replace(second, value=0.0)), pair_labels=())


def ask_reference(source: Source, *, tolerance: Tolerance, report: StageProgress) -> Expected:
    """Run the checkpoint through transformers; the model is freed before anything else is loaded."""
    report("reference scores", 0, len(source.fast_ids))
    reference = Reference(source.checkpoint.root, scalar=source.checkpoint.arch.scalar)
    readings = reference.first_token(source.fast_ids, source.label_ids, partial(report, "reference scores"))
    budget = thought_budget(source.manifest, source.parameters)
    tasks = chain_tasks(source.data, source.encoder, budget, tolerance.near_tie_verdict())
    report("reference thoughts", 0, len(tasks))
    done = reference.think(tasks, partial(report, "reference thoughts"))
    return Expected(readings, tasks, done, budget)


def label_mass(readings: Sequence[TokenReading], manifest: Manifest) -> float | None:
    """Return the median of the label mass of readings, or None where there are no labels.

    Args:
        readings: What a model says first.
        manifest: The labels; see ``measured``.
    """
    masses = [s.label_mass for s in gate_signals(readings, manifest) if s.label_mass is not None]
    return median(masses) if masses else None


def label_mass_too_low(
    readings: Sequence[TokenReading], manifest: Manifest, vocabulary: Vocabulary, tolerance: Tolerance
) -> str | None:
    """Say why a model's fast scores would mean little: it is not about to answer with a label.

    Returns:
        What is wrong, with the likely cause; None if the median of the label mass is within tolerance.
    """
    mass = label_mass(readings, manifest)
    if mass is None or mass >= tolerance.label_mass:
        return None
    said = Counter(reading.likeliest for reading in readings).most_common(3)
    words = {vocabulary.text(token): count / len(readings) for token, count in said}
    labels = [label.text for label in manifest.labels]
    shown = ", ".join(f"{word!r} for {share:.0%}" for word, share in words.items())
    alike = [w for w in words if w not in labels and w.strip().lower() in {label.strip().lower() for label in labels}]
    cause = (
        f"the labels are written otherwise than the model says them: {alike[0]!r}"
        if alike
        else "a template that is not the one of the training (control tokens, a closed <think>, the first token)"
    )
    return (
        f"the labels {', '.join(map(repr, labels))} have a median probability of {mass:.3g} together, "
        f"expected at least {tolerance.label_mass:g}; the likeliest token is {shown} of the prompts; likely cause: "
        f"{cause}; see --tolerance label_mass"
    )


def build_fast(
    source: Source, expected: Expected, folder: Path, kind: FastKind, tolerance: Tolerance, report: StageProgress
) -> FastResult:
    """Write the fast graph, with as many MatMuls at full precision as the tolerance asks for.

    The graph can think, too. Where its verdicts are out of tolerance it is marked, so that no judge uses it: the bundle
    then thinks with its GGUF file alone, or not at all.
    """
    path = folder / FAST_PATH
    path.parent.mkdir()
    measured: list[FirstTokenParity] = []  # of each graph that was written
    near_tie = _near_tie(source, expected, tolerance, kind)

    def excess_of(graph: Path) -> float:
        with closing(_looks(source, expected, graph, near_tie, report)) as looks:
            for found in looks:
                if excess(kind, at_best(found, len(source.fast_ids), len(source.pairs)), tolerance) > 1:
                    break
        measured.append(found)
        return excess(kind, found, tolerance)

    tuned = write_tuned_graph(
        source.checkpoint,
        path,
        source.manifest.fast_label_ids,
        source.fast_ids,
        excess_of,
        precision=kind,
        progress=report,
    )
    parity = measured[tuned.chosen]
    if parity.items < len(source.fast_ids):  # given up, but the report is about all of it
        *_, parity = _looks(source, expected, path, near_tie, report)
    roles = dict(zip(("fast", "fast_data"), (f"fast/{file.name}" for file in tuned.files), strict=False))
    verdicts = None
    if expected.tasks:
        with EngineReader(path) as model:
            verdicts = _measure_verdicts(expected, model, source.encoder, tolerance, "fast thoughts", report)
        if verdict_violations(verdicts, tolerance):
            add_metadata(path, "fsrm.thinks", "no")
    return FastResult(roles, parity, tuned, verdicts)


def _looks(
    source: Source, expected: Expected, path: Path, near_tie: float, report: StageProgress
) -> Generator[FirstTokenParity, None, None]:
    """Read the calibration set through a fast graph part by part; yield the parity on what is read."""
    readings: list[FastReading] = []
    labels = len(source.label_ids) or 1
    report("fast parity", 0, len(source.fast_ids))
    model = FastModel(path)
    try:
        for part in _growing_parts(len(source.fast_ids)):
            # The graph's first labels are those that are compared; labels of pairs may stand behind them.
            new = model.read(source.fast_ids[part])
            readings += [replace(reading, label_logits=reading.label_logits[:labels]) for reading in new]
            report("fast parity", len(readings), len(source.fast_ids))
            pairs = [pair for pair in source.pairs if max(pair) < len(readings)]
            yield compare_readings(expected.readings[: len(readings)], readings, pairs, source.measured, near_tie)
    finally:
        model.close()


def _near_tie(source: Source, expected: Expected, tolerance: Tolerance, kind: FastKind) -> float:
    """Return the distance of two score logits up to which a decision between them says nothing about a fast file."""
    if source.manifest.head != "scalar":
        return tolerance.near_tie(kind)
    rewards = [reading.label_logits[0] for reading in expected.readings]
    return tolerance.near_tie(kind, root_mean_square([rewards[i] - rewards[j] for i, j in source.pairs]))


def _growing_parts(count: int) -> list[slice]:
    """Consecutive parts, each as large as all before it.

    Little is read before the first look, and few looks are taken.
    """
    ends = [0, FIRST_LOOK]
    while ends[-1] < count:
        ends.append(2 * ends[-1])
    return [slice(start, min(end, count)) for start, end in pairwise(ends) if start < count]


def build_slow(
    source: Source, expected: Expected, folder: Path, kind: SlowKind, tolerance: Tolerance, report: StageProgress
) -> SlowResult:
    """Write the GGUF, quantize it, and measure its first tokens and its verdicts.

    llama.cpp quantizes activations too, 32 channels at a time: where that breaks the verdicts, a second file is made
    from weights whose outlier channels are scaled away, and the better one stays.
    """
    if kind == "none":
        return SlowResult({})
    path = folder / SLOW_PATH
    path.parent.mkdir()
    dtype = "f16" if kind == "f16" else native_dtype(source.checkpoint)
    _write_slow(source, source.checkpoint, path, kind, dtype, report)
    result = _measure_slow(source, expected, path, tolerance, smoothed=False, report=report)
    if kind == "f16" or result.verdicts is None or not verdict_violations(result.verdicts, tolerance):
        return result
    second = path.with_suffix(".smoothed.gguf")
    # The rescaled weights are no longer bfloat16 numbers.
    _write_slow(source, smooth(source.checkpoint, source.fast_ids, report), second, kind, "f32", report)
    again = _measure_slow(source, expected, second, tolerance, smoothed=True, report=report)
    if again.verdicts is None or again.verdicts.rank() <= result.verdicts.rank():
        second.unlink()
        return result
    second.replace(path)
    return again


def _write_slow(
    source: Source, weights: Weights, path: Path, kind: SlowKind, dtype: str, report: StageProgress
) -> None:
    plain = path if kind == dtype else path.with_suffix(".plain.gguf")
    write_gguf(
        weights, source.vocabulary, plain, dtype=dtype, name=source.manifest.name, progress=partial(report, "slow file")
    )
    if plain != path:
        report("quantize slow file", 0, 1)
        quantize(plain, path, kind)
        plain.unlink()
        report("quantize slow file", 1, 1)


def _measure_slow(
    source: Source, expected: Expected, path: Path, tolerance: Tolerance, *, smoothed: bool, report: StageProgress
) -> SlowResult:
    report("slow scores", 0, len(source.fast_ids))
    with EngineReader(path) as model:
        readings = model.first_token(source.fast_ids, source.label_ids, partial(report, "slow scores"))
        near_tie = tolerance.near_tie("int8")  # what a fast file of 8 bits is held to
        parity = compare_readings(expected.readings, readings, source.pairs, source.measured, near_tie)
        if not expected.tasks:
            return SlowResult({"slow": SLOW_PATH}, parity, None, _matrices(path), smoothed)
        verdicts = _measure_verdicts(expected, model, source.encoder, tolerance, "slow thoughts", report)
    return SlowResult({"slow": SLOW_PATH}, parity, verdicts, _matrices(path), smoothed)


def _measure_verdicts(
    expected: Expected,
    model: EngineReader,
    encoder: PromptEncoder,
    tolerance: Tolerance,
    stage: str,
    report: StageProgress,
) -> VerdictParity:
    """Let a file think about what the checkpoint thought about, and compare."""
    report(stage, 0, len(expected.tasks))
    both = model.think(expected.tasks, [chain.thought for chain in expected.chains], partial(report, stage))
    own, given = zip(*both, strict=True)
    closed = closed_share(expected.tasks, expected.chains, encoder)
    return compare_chains(expected.chains, own, given, expected.budget, tolerance.near_tie_verdict(), closed=closed)


def _matrices(path: Path) -> dict[str, int]:
    """Number of matrices of a GGUF by type, the commonest first."""
    from gguf import GGMLQuantizationType

    types = Counter(
        GGMLQuantizationType(t.type).name.lower() for t in read_header(path).tensors.values() if len(t.shape) == 2
    )
    return dict(types.most_common())


def count_matmuls(source: Source) -> int:
    """MatMuls of the fast graph whose precision can be chosen."""
    return len(matmul_names(source.checkpoint.arch))
