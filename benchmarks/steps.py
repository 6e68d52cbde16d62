"""Times a step of the judge: one more token for each of several thoughts, by how long the thoughts are already.

    python -m benchmarks.steps bundle/fast/model.onnx bundle/slow/model.gguf --rows 8 --prompt 256 --own 0 256 1024

All thoughts are about one prompt, whose keys and values they share. Of an ONNX file both ways to keep keys and values
are timed: each thought's own cells in place, and all cells joined anew in every step, as it is done without the
compiled operators.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from time import perf_counter

import numpy as np

from fsrm_lite.runtimes.engine import Engine
from fsrm_lite.runtimes.onnx.graph import Graph
from fsrm_lite.runtimes.opening import open_engine

STEPS = 7
"""Steps that are timed at each length; the first of them does not count."""
CHUNK = 64
"""Tokens of one thought that are added at a time on the way to the next length."""


def step_seconds(engine: Engine, rows: int, prompt: int, lengths: list[int]) -> list[float]:
    """Return the median seconds of a step of ``rows`` thoughts, for each of the rising ``lengths`` of the thoughts."""
    rng = np.random.default_rng(0)
    engine.prepare(rows + 1, prompt + max(lengths) + STEPS * len(lengths))

    def add(stream: int, start: int, count: int) -> None:
        for at in range(start, start + count, CHUNK):
            positions = np.arange(at, min(at + CHUNK, start + count), dtype=np.int32)
            tokens = rng.integers(0, engine.vocab_size, len(positions)).astype(np.int32)
            engine.decode(tokens, positions, np.full(len(positions), stream, np.int32), outputs=False)

    add(0, 0, prompt)
    streams = np.arange(1, rows + 1, dtype=np.int32)
    for stream in streams.tolist():
        engine.copy(0, stream, prompt)
    own, medians = 0, []
    for length in lengths:
        for stream in streams.tolist():
            add(stream, prompt + own, length - own)
        own = max(own, length)
        seconds = []
        for _ in range(STEPS):
            tokens = rng.integers(0, engine.vocab_size, rows).astype(np.int32)
            began = perf_counter()
            engine.decode(tokens, np.full(rows, prompt + own, np.int32), streams, outputs=True)
            seconds.append(perf_counter() - began)
            own += 1
        medians.append(float(np.median(seconds[1:])))
    return medians


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--own", type=int, nargs="+", default=[0, 128, 256, 512, 1024])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    lengths = ", ".join(map(str, options.own))
    print(f"ms per step of {options.rows} thoughts of {lengths} tokens behind a prompt of {options.prompt}")
    for path in options.files:
        ways = ("in place", "joined") if path.suffix == ".onnx" else ("",)
        for way in ways:
            source: Graph | Path = path
            if path.suffix == ".onnx":
                source = Graph(path, options.threads)
                source.writes_in_place = source.writes_in_place and way == "in place"
            with closing(open_engine(source, options.threads)) as engine:
                found = step_seconds(engine, options.rows, options.prompt, options.own)
            print(f"{path.parent.name}/{path.name} {way}: {', '.join(f'{1000 * s:.0f}' for s in found)}", flush=True)


if __name__ == "__main__":
    main()
