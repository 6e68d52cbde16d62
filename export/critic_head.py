"""Fits a critic: a small network, the *head*, that says how likely it is that an answer is right.

The head reads numbers that the quantized fast model makes of the answer, such as its last hidden state
(``fsrm_lite.loops.critic_inputs`` has them all); the model's own weights stay as they are. It is the
discriminative model of DRR (*Distillation-Reinforcement-Reasoning*, arXiv 2501.01457) and is fitted on *traces*:
answers of a reasoner that are labelled as right or wrong. It is written as an ONNX file. The scaling of its inputs and
the calibration of its output are folded into its weights, so that running it needs nothing but onnxruntime.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import CalibrationError, InputError, missing_extra
from fsrm_lite.gate import signals
from fsrm_lite.loops.critic import CRITIC_FORMAT, backbone_hash
from fsrm_lite.loops.critic_inputs import LIKELIHOOD_STATISTICS, READ_AT_ONCE, Inputs, reader_of
from fsrm_lite.loops.distill import Trace
from fsrm_lite.measure.intervals import wilson
from fsrm_lite.measure.metrics import auroc, brier, ece

if TYPE_CHECKING:
    from fsrm_lite.runtimes.reading import FastReading
    from fsrm_lite.scorer import FastSlowRM

Floats: TypeAlias = NDArray[np.float64]
Layer: TypeAlias = tuple[Floats, Floats]
"""Weights [inputs, outputs] and biases [outputs]."""

HEADS = ("logistic", "mlp")
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Inverse strengths of the L2 penalty that are tried for the logistic head.

The one that does best on the calibration questions is kept.
"""

LIKELIHOOD_STRENGTHS, EMPHASIS = (1e-4, 3e-4, 1e-3, 3e-3), 10.0
"""The same where the head reads the likelihood too, and the factor by which its statistics are larger than the rest.

So the penalty spares these few numbers. Each strength is tried with the states before them and without.
"""

MLP_UNITS, MLP_PENALTY = 32, 0.1
MIN_QUESTIONS = 20
"""Least number of questions in each of the three parts of the data; figures from fewer would mean nothing."""

_PARTS = ("fit", "fit", "fit", "calibrate", "test")  # the hash of a question picks one: 60 %, 20 %, 20 %
_OPSET, _IR_VERSION = 17, 8  # old enough for every onnxruntime that the package supports


@dataclass(frozen=True, slots=True)
class CriticReport:
    """How good a critic is, measured on held-out questions, which neither fitting nor calibration saw.

    Attributes:
        head: "logistic" or "mlp".
        questions: Number of held-out questions.
        traces: Number of their traces.
        base_rate: Share of these traces that are right, which is the accuracy of accepting everything.
        accuracy: Share of right decisions at a threshold of 0.5.
        accuracy_low: Lower end of the accuracy's 95 % interval (Wilson).
        accuracy_high: Upper end of it.
        auroc: Area under the ROC curve: the probability that a right trace scores above a wrong one.
        fast_auroc: The same for the model's own first-token score, which the head has to beat.
        ece: Expected calibration error, 15 bins.
        brier: Mean squared error of the probability.
        fitted_on: Number of traces that the head was fitted on.
    """

    head: str
    questions: int
    traces: int
    base_rate: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    auroc: float
    fast_auroc: float
    ece: float
    brier: float
    fitted_on: int


@dataclass(frozen=True, slots=True)
class Part:
    """The traces of one part of the data.

    Attributes:
        numbers: What the head reads of N traces, float64 [N, F]; see ``ReadResponse``.
        labels: Whether each trace is right, bool [N].
        fast: Logits of the first-token scores, float64 [N].
        questions: How many questions they answer.
    """

    numbers: Floats
    labels: NDArray[np.bool_]
    fast: Floats
    questions: int


def fit_critic(
    traces: Iterable[Trace],
    model: FastSlowRM,
    out: Path,
    *,
    head: Literal["logistic", "mlp"] = "logistic",
    inputs: Inputs = "hidden",
    threshold: float = 0.5,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> CriticReport:
    """Fit, calibrate, measure and write a critic.

    The data are split by question, not by trace: 60 % of the questions to fit the head, 20 % to calibrate it and to
    choose its penalty, 20 % to measure it.

    Args:
        traces: Labelled traces; those that the model cannot read are left out.
        model: A loaded reward model.
        out: Folder for ``critic.json`` and ``critic.onnx``; made if missing.
        head: "logistic" or "mlp" (one hidden layer of 32).
        inputs: What the head reads: "hidden", the last hidden state; "likelihood", the same and how likely the model
            finds the response; or "pooled", that likelihood and, in place of the last hidden state, states of a layer
            in the middle. ``fsrm_lite.loops.critic_inputs`` says it exactly.
        threshold: Score in [0, 1] from which on the critic accepts an answer.
        seed: Seed of the MLP's initial weights.
        progress: Called with the number of traces read since the last call.

    Returns:
        The figures on the part that measures.

    Raises:
        CalibrationError: If a part has too few questions or only one kind of label.
        BundleError: If the model cannot give these inputs.
        MissingExtraError: If scikit-learn or onnx is not installed.
        InputError: If an argument is out of range.
    """
    if head not in HEADS or not 0.0 <= threshold <= 1.0:
        raise InputError(
            f"head is {head!r} and threshold is {threshold}, expected one of {', '.join(HEADS)} and a number in [0, 1]"
        )
    parts = _read_parts(list(traces), model, inputs, progress)
    layers = fit_layers(parts["fit"], parts["calibrate"], head=head, inputs=inputs, seed=seed)
    report = _measure(parts, layers, head)
    out.mkdir(parents=True, exist_ok=True)
    network = network_bytes(layers)
    (out / "critic.onnx").write_bytes(network)
    info = {
        "format_version": CRITIC_FORMAT,
        "backbone": model.bundle.manifest.name,
        "backbone_sha256": backbone_hash(model),
        "sha256": hashlib.sha256(network).hexdigest(),
        "threshold": threshold,
        **({"inputs": inputs} if inputs != "hidden" else {}),
        "report": asdict(report),
    }
    (out / "critic.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return report


def network_bytes(layers: Sequence[Layer]) -> bytes:
    """Return an ONNX network: dense layers with ReLU between them, and a sigmoid behind the last one.

    Its input is ``hidden`` [N, F] float32, what the head reads of N responses; its output ``probability`` [N, 1].

    Raises:
        MissingExtraError: If onnx is not installed.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise missing_extra("onnx", "critic", error) from error
    nodes, weights, name = [], [], "hidden"
    for i, (w, b) in enumerate(layers):
        weights += [
            numpy_helper.from_array(np.asarray(x, dtype=np.float32), f"{kind}{i}") for kind, x in (("w", w), ("b", b))
        ]
        nodes.append(helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], [f"dense{i}"]))
        name = f"dense{i}"
        if i < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [name], [f"relu{i}"]))
            name = f"relu{i}"
    nodes.append(helper.make_node("Sigmoid", [name], ["probability"]))
    inputs = [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["N", layers[0][0].shape[0]])]
    outputs = [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", 1])]
    graph = helper.make_graph(nodes, "critic", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())


def fast_logit(reading: FastReading, model: FastSlowRM) -> float:
    """Return the logit of the first-token score that a reading of one response stands for."""
    values = [label.value for label in model.bundle.manifest.labels]
    logits = reading.label_logits
    return signals(logits[: len(values)], values).logit if values else logits[0]  # a scalar head's reward


def _read_parts(
    traces: list[Trace], model: FastSlowRM, inputs: str, progress: Callable[[int], None] | None
) -> dict[str, Part]:
    """Read every trace once with the model; return the traces by part, which depends on the question alone."""
    reader = reader_of(model, inputs)
    rows: dict[str, list[tuple[NDArray[np.float32], bool, float]]] = {part: [] for part in _PARTS}
    questions: dict[str, set[str]] = {part: set() for part in _PARTS}
    for start in range(0, len(traces), READ_AT_ONCE):
        batch = traces[start : start + READ_AT_ONCE]
        for trace, one in zip(batch, reader.read([(t.question, t.response) for t in batch]), strict=True):
            if one is not None:
                part = _part_of(trace.question)
                rows[part].append((one.numbers, bool(trace.label), fast_logit(one.reading, model)))
                questions[part].add(trace.question)
        if progress is not None:
            progress(len(batch))
    for part, found in rows.items():
        kinds = {label for _, label, _ in found}
        if len(questions[part]) < MIN_QUESTIONS or len(kinds) < 2:
            raise CalibrationError(
                f"the part '{part}' has {len(questions[part])} questions and {len(kinds)} kinds of label, "
                f"expected at least {MIN_QUESTIONS} and both right and wrong traces; "
                "distil more questions, or more samples of each at a higher temperature"
            )
    return {part: _stack(found, len(questions[part])) for part, found in rows.items()}


def _part_of(question: str) -> str:
    return _PARTS[hashlib.blake2b(question.encode(), digest_size=4).digest()[0] % len(_PARTS)]


def _stack(rows: list[tuple[NDArray[np.float32], bool, float]], questions: int) -> Part:
    numbers, labels, fast = zip(*rows, strict=True)
    return Part(np.stack(numbers).astype(np.float64), np.array(labels), np.array(fast), questions)


def fit_layers(fit: Part, check: Part, *, head: str = "logistic", inputs: str = "hidden", seed: int = 0) -> list[Layer]:
    """Fit a head on one part and calibrate it on another.

    Args:
        fit: Traces that the weights are fitted on.
        check: Traces of other questions, which choose the penalty and calibrate the output.
        head: "logistic" or "mlp".
        inputs: What stands in ``numbers`` of both; see ``fit_critic``.
        seed: Seed of the MLP's initial weights.

    Returns:
        The layers of the network, with the scaling of its inputs and the calibration of its output folded in.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.neural_network import MLPClassifier
    except ImportError as error:
        raise missing_extra("scikit-learn", "critic", error) from error
    mean, scale = fit.numbers.mean(0), fit.numbers.std(0) + 1e-6
    standard = (fit.numbers - mean) / scale
    candidates: list[list[Layer]] = []
    statistics = inputs != "hidden"
    sizes = [np.ones(standard.shape[1])]
    if statistics:
        sizes[0][-len(LIKELIHOOD_STATISTICS) :] = EMPHASIS
        sizes.append(np.where(sizes[0] == EMPHASIS, EMPHASIS, 0.0))
    if head == "mlp":
        found = MLPClassifier(
            (MLP_UNITS,), alpha=MLP_PENALTY, early_stopping=True, random_state=seed, max_iter=300
        ).fit(standard, fit.labels)
        candidates.append(list(zip(found.coefs_, found.intercepts_, strict=True)))
    else:
        for strength in LIKELIHOOD_STRENGTHS if statistics else STRENGTHS:
            for size in sizes:
                line = LogisticRegression(C=strength, max_iter=2000).fit(standard * size, fit.labels)
                candidates.append([(line.coef_.T * size[:, None], line.intercept_)])
    folded = [_fold_input(layers, mean, scale) for layers in candidates]
    best = min(folded, key=lambda layers: _log_loss(logits_of(layers, check.numbers), check.labels))
    # Platt's scaling calibrates the output: a logistic regression on the head's logit, with almost no penalty.
    platt = LogisticRegression(C=1e3).fit(logits_of(best, check.numbers)[:, None], check.labels)
    # A negative slope would turn the ranking around.
    slope, shift = max(float(platt.coef_[0, 0]), 1e-3), float(platt.intercept_[0])
    weights, biases = best[-1]
    return [*best[:-1], (weights * slope, biases * slope + shift)]


def _fold_input(layers: list[Layer], mean: Floats, scale: Floats) -> list[Layer]:
    weights, biases = layers[0]
    scaled = weights / scale[:, None]
    return [(scaled, biases - mean @ scaled), *layers[1:]]


def logits_of(layers: Sequence[Layer], numbers: Floats) -> Floats:
    """Return the log-odds that traces are right, float64 [N], for what the head reads of them, [N, F]."""
    x = numbers
    for i, (weights, biases) in enumerate(layers):
        x = x @ weights + biases
        x = np.maximum(x, 0.0) if i < len(layers) - 1 else x
    return np.asarray(x[:, 0], dtype=np.float64)


def _log_loss(logits: Floats, labels: NDArray[np.bool_]) -> float:
    return float(np.logaddexp(0.0, np.where(labels, -logits, logits)).mean())


def _measure(parts: dict[str, Part], layers: Sequence[Layer], head: str) -> CriticReport:
    """Return the head's figures on the part for testing."""
    test = parts["test"]
    probability = 0.5 * (1.0 + np.tanh(0.5 * logits_of(layers, test.numbers)))
    hits = (probability >= 0.5) == test.labels
    accuracy = wilson(int(hits.sum()), len(hits))
    figures: dict[str, Any] = {
        "base_rate": float(test.labels.mean()),
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "auroc": auroc(probability, test.labels),
        "fast_auroc": auroc(test.fast, test.labels),
        "ece": ece(probability, test.labels),
        "brier": brier(probability, test.labels),
    }
    return CriticReport(
        head=head, questions=test.questions, traces=len(hits), fitted_on=len(parts["fit"].labels), **figures
    )
