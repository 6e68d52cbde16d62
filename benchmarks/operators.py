"""Shows where the time of the fast path goes in one workload, by operator, as ONNX Runtime's own profiler says.

python -m benchmarks.operators                  W1, the 0.6 B shape, int8
python -m benchmarks.operators --workload W2

The figures contain what the profiler itself takes, a few per cent. So go by the shares, not by the sums.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.files import Files
from benchmarks.workloads import MAIN, Workload
from fsrm_lite.runtimes.onnx.session import FastModel
from fsrm_lite.runtimes.threads import usable_cores

RUNS = 5


def profile(path: Path, workload: Workload, threads: int) -> tuple[dict[str, float], float, float]:
    """Return seconds per run: by kind of node, in all with the profiler, and in all without it."""
    import onnxruntime

    plain = _seconds(FastModel(path, threads=threads), workload)
    options = onnxruntime.SessionOptions

    def profiled() -> Any:  # noqa: ANN401 - SessionOptions
        made = options()
        made.enable_profiling = True
        return made

    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)  # the profile lands in the working folder
        try:
            onnxruntime.SessionOptions = profiled
            model = FastModel(path if path.is_absolute() else before / path, threads=threads)
            seconds = _seconds(model, workload)
            events = json.loads(Path(model.graph._session.end_profiling()).read_text("utf-8"))
        finally:
            onnxruntime.SessionOptions = options
            os.chdir(before)
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[_kind(event)] += event["dur"] / 1e6 / (RUNS + 1)
    return spent, seconds, plain


def _seconds(model: FastModel, workload: Workload) -> float:
    """Run once to warm up and then ``RUNS`` times; return the seconds of the fastest run."""
    sequences = workload.sequences(model.vocab_size)
    times = []
    for _ in range(RUNS + 1):
        model._cache.clear()
        start = perf_counter()
        model.read(sequences)
        times.append(perf_counter() - start)
    return min(times[1:])


def _kind(event: dict[str, Any]) -> str:
    """Return the kind of a node: its operator, and for a matrix product also what it is part of."""
    operator = str(event["args"].get("op_name", "?"))
    shapes = [shape for by_type in event["args"].get("input_type_shape", []) for shape in by_type.values()]
    if operator.startswith("MatMul") and shapes:
        return f"{operator} ({'linear map' if len(shapes[0]) == 2 else 'attention'})"
    return operator


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operators", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path(".bench/0.6b"))
    parser.add_argument("--workload", choices=[w.name for w in MAIN], default="W1")
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    workload = next(w for w in MAIN if w.name == arguments.workload)
    spent, seconds, plain = profile(
        Files(arguments.work).fast(arguments.precision), workload, arguments.threads or usable_cores()
    )
    print(f"{workload.name}, {arguments.precision}: {1000 * plain:.0f} ms, with the profiler {1000 * seconds:.0f} ms\n")
    print("| operator | ms per run | share |\n|---|---|---|")
    total = sum(spent.values())
    for kind, each in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {1000 * each:.1f} | {each / total:.1%} |")


if __name__ == "__main__":
    main()
