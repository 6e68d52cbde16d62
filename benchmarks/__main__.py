"""Run the benchmarks, all stages or some of them. Finished stages are kept.

python -m benchmarks                               all stages: under 25 minutes on 2 cores, and a one-time preparation
python -m benchmarks --stage W2 --again            one workload once more
python -m benchmarks --shape smollm2 --minutes 8   the real model of python -m benchmarks.real
python -m benchmarks --shape small --minutes 1     a trial of the benchmarks themselves, with a toy model

The table, the JSON and the plot of the growth lie under .bench/SHAPE. After an interruption, give the same command
again: it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import judge
from benchmarks.files import Files
from benchmarks.growth import grow
from benchmarks.llama_peer import amx_crashes
from benchmarks.measure import Field, best_forms, race
from benchmarks.peers import CACHED, FAMILIES, PEERS, ROOFLINE
from benchmarks.prepare import SHAPES, prepare
from benchmarks.report import machine, plot_growth, table
from benchmarks.startup import startup_times
from benchmarks.workloads import MAIN
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.runtimes.llama.engine import load_llama
from fsrm_lite.runtimes.onnx.kernels import library
from fsrm_lite.runtimes.threads import usable_cores

JUDGE_STAGES = {"judge-random": "random weights", "judge-embedded": "embedded"}
STAGES = ("prepare", "startup", "roofline", *(w.name for w in MAIN), "growth", *JUDGE_STAGES)
BUDGET_SHARES = {
    "W1": 0.08,
    "W2": 0.15,
    "W3": 0.24,
    "W4": 0.16,
    "growth": 0.14,
    "judge-random": 0.18,
    "judge-embedded": 0.05,
}
"""The share of ``--minutes`` that each stage may take.

Loading, start-up and the roofline come on top, and also what a stage needs beyond its share for the least number of
rounds.
"""

METHOD = 4
"""Number of the way to measure; raised when older results can no longer stand beside new ones."""

PACKAGES = ("fsrm-lite", "onnxruntime", "llama-cpp-python", "transformers", "torch", "numpy")


class Results:
    """The file of results: read at the start, written after every stage."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.data: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}

    def save(self) -> None:
        """Write the file, whole or not at all."""
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=1) + "\n", "utf-8")
        part.replace(self._path)


def say(text: str) -> None:
    """Print progress to standard error, since the table goes to standard output."""
    print(f"[{datetime.now(UTC):%H:%M:%S}] {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the stages that were asked for and print the table."""
    arguments = _arguments()
    work: Path = arguments.work / arguments.shape
    files, threads = Files(work), arguments.threads or usable_cores()
    prepare(files, arguments.shape, say)
    results = Results(work / "results.json")
    about = _about(files, arguments.shape, threads)
    if results.data and results.data["about"]["setting"] != about["setting"]:
        say(
            "another machine, thread count, version or way to measure than the kept results come from: "
            "measuring all of it again"
        )
        results.data.clear()
    results.data["about"] = about
    field = Field(work, threads, say, None if arguments.again else results.data.get("spin", {}).get("count"))
    try:
        for stage in arguments.stage:
            if arguments.again or not _done(results.data, stage):
                start = perf_counter()
                _run_stage(stage, results.data, field, arguments)
                results.data.setdefault("stage_seconds", {})[stage] = perf_counter() - start
                if field.spin_tried:
                    results.data["spin"] = {"count": field.spin, "tried": field.spin_tried}
                results.save()
    except KeyboardInterrupt:
        say("interrupted; finished stages are kept, the same command goes on from here")
        raise SystemExit(130) from None
    finally:
        field.close()
    text = table(results.data)
    (work / "table.md").write_text(text, "utf-8")
    if "growth" in results.data:
        plot_growth(results.data["growth"], work / "growth.png")
    print(text)


def _arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="folder for model files and results")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.6b")
    parser.add_argument(
        "--stage",
        choices=STAGES,
        nargs="+",
        default=STAGES,
        metavar="STAGE",
        help=f"any of {', '.join(STAGES)}; default: all",
    )
    parser.add_argument("--again", action="store_true", help="measure again what is measured already")
    parser.add_argument("--minutes", type=float, default=17.0, help="for all measurements together, without loading")
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=[*PEERS],
        metavar="PEER",
        help="in W1 to W4, only these beside fsrm-lite int8",
    )
    parser.add_argument("--threads", type=int, help="default: the cores this process may use")
    return parser.parse_args()


def _about(files: Files, shape: str, threads: int) -> dict[str, Any]:
    """Return what the results depend on: the setting, and the sizes of the model.

    Kept results with another setting cannot stand beside new ones.
    """
    arch = Checkpoint.open(files.checkpoint).arch
    q, kv = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    weights = arch.layers * (arch.hidden_size * (2 * q + 2 * kv) + 3 * arch.hidden_size * arch.intermediate_size)
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {
        "setting": {
            "machine": machine(),
            "threads": threads,
            "shape": shape,
            "versions": versions,
            "compiled": library() is not None,
            "method": METHOD,
        },
        "llama_without_amx": amx_crashes(load_llama()),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "linear_weights": weights,
        "weights_file_bytes": sum(path.stat().st_size for path in files.fast("int8").parent.iterdir()),
        "prefix_bytes": MAIN[1].prompt * arch.layers * 2 * kv,  # int8 keys and values
    }


def _done(data: dict[str, Any], stage: str) -> bool:
    return stage == "prepare" or any(stage in place for place in (data, data.get("main", {}), data.get("judge", {})))


def _run_stage(stage: str, data: dict[str, Any], field: Field, arguments: argparse.Namespace) -> None:
    """Run one stage and put its results into ``data``."""
    say(f"stage {stage}")
    budget_s = arguments.minutes * 60 * BUDGET_SHARES.get(stage, 0.0)
    if stage == "startup":
        data["startup"] = startup_times()
    elif stage == "roofline":
        _measure_roofline(data, field)
    elif stage == "growth":
        plain = _fastest_form(data, "transformers")
        peers = ["fsrm-lite int8", plain, CACHED[plain], _fastest_form(data, "llama.cpp")]
        field.close(name for name in PEERS if name not in peers)
        data["growth"] = grow(field, peers, budget_s, say)
    elif stage in JUDGE_STAGES:
        field.close()
        data.setdefault("judge", {})[stage] = judge.measure(
            field.root, field.threads, say, JUDGE_STAGES[stage], budget_s=budget_s
        )
    elif stage != "prepare":
        workload = next(w for w in MAIN if w.name == stage)
        asked = {next(iter(PEERS)), *arguments.peers} - {
            ROOFLINE,
            *(() if workload.prompt else CACHED.values()),
        }
        peers = [name for name in PEERS if name in asked]
        if workload is not MAIN[0]:
            peers = best_forms(peers, data.get("main", {}).get(MAIN[0].name, {}))
            field.close(name for family in FAMILIES for name in family if name not in peers)
        series = race(field, peers, workload, budget_s, say)
        _check_agreement(series)
        data.setdefault("main", {})[stage] = {name: s.to_dict() for name, s in series.items()}
        # The roofline is measured again next to each workload, because the machine's peak drifts.
        _measure_roofline(data, field)


def _measure_roofline(data: dict[str, Any], field: Field) -> None:
    int8, fp32 = field.run(ROOFLINE, MAIN[0], 120.0)["values"]
    known = data.setdefault("main", {}).setdefault("roofline", {"int8": 0.0, "fp32": 0.0})
    data["main"]["roofline"] = {"int8": max(int8, known["int8"]), "fp32": max(fp32, known["fp32"])}


def _check_agreement(series: dict[str, Any]) -> None:
    """Stop unless the two peers in fp32 give the same logits.

    The time of a peer that computes something else would say nothing.
    """
    exact = [
        series[name].values
        for name in ("fsrm-lite fp32", "transformers fp32")
        if name in series and series[name].values
    ]
    if len(exact) == 2:
        gap = max(abs(a - b) for a, b in zip(*exact, strict=False))
        say(f"largest gap between fsrm-lite fp32 and transformers fp32: {gap:.1e}")
        if gap > 1e-2:
            raise SystemExit(f"fsrm-lite fp32 and transformers fp32 disagree by {gap:.2g}: the comparison is void")


def _fastest_form(data: dict[str, Any], program: str) -> str:
    """Return the name of that form of a peer that was the fastest in the first workload.

    If none was run there, return the first form.
    """
    rows = data.get("main", {}).get(MAIN[0].name, {})
    forms = next(family for family in FAMILIES if family[0].startswith(program))
    return min(forms, key=lambda name: rows.get(name, {}).get("median_s") or float("inf"))


if __name__ == "__main__":
    main()
