"""Damages bundles as a stranger could and opens them: each must give our error or finite scores, in bounded time.

Most attacks are on the readers alone (manifest, tokenizer, graph file, GGUF header), which take a thousandth of a
second. Some open the whole bundle and score with it, each in a process of its own with a bound on memory and time. The
hashes in the manifest are made anew after each change, as a stranger would do it.
"""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.attack.outcome import Outcome
from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import Bundle, file_sha256, read_manifest
from fsrm_lite.errors import FsrmError
from fsrm_lite.runtimes.llama.gguf_header import read_header
from fsrm_lite.runtimes.onnx.graph_file import check_graph_file

MOST_SECONDS, MOST_BYTES = 20.0, 2 << 30
_HEADER_BYTES = 1 << 14  # where the damage of a large file goes: its header
_VALUES = (None, True, -1, 0, 1, 1.5, 10**400, "", "x" * 5000, "\x1b[2J", [], {}, [[]], "\ud800", math.inf, 2**63)
_SCORE = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, ({MOST_BYTES}, {MOST_BYTES}))
from fsrm_lite import FastSlowRM
from fsrm_lite.errors import FsrmError
try:
    with FastSlowRM.from_pretrained(sys.argv[1], threads=1, judge="never") as rm:
        scores = rm.score_many([("What is 2 + 3?", "5"), ("What is 2 + 3?", "The answer is 41.")])
    print("finite" if all(0 <= s.score <= 1 for s in scores) else f"odd: {{scores}}")
except FsrmError as error:
    print("refused", str(error)[:200].replace(chr(10), " "))
"""


def run(folder: Path, *, headers: int, bundles: int, seed: int) -> Outcome:
    """Damage ``headers`` single files and ``bundles`` whole bundles.

    Args:
        folder: An empty folder to work in.
        headers: How many times a reader is given a damaged file.
        bundles: How many damaged bundles are opened and scored with.
        seed: Seed of the damage.
    """
    outcome = Outcome("damaged manifests, tokenizers, graphs and GGUF headers; our error or finite scores, in 20 s")
    chance = random.Random(seed)
    source = Bundle.open()
    target = folder / "bundle"
    shutil.copytree(source.root, target)
    paths = {role: target / entry.path for role, entry in source.manifest.files.items()}
    whole = {path: path.read_bytes() for path in [target / "fsrm.json", *paths.values()]}
    readers: dict[Path, Callable[[], object]] = {
        target / "fsrm.json": lambda: read_manifest(target),
        paths["tokenizer"]: lambda: PromptEncoder(paths["tokenizer"], source.manifest).solve("q"),
        paths["fast"]: lambda: check_graph_file(paths["fast"], None),
        paths["slow"]: lambda: read_header(paths["slow"]),
    }
    slowest = 0.0
    for number in range(headers):
        path, reader = chance.choice(list(readers.items()))
        path.write_bytes(_damaged(whole[path], path, chance))
        began = time.monotonic()
        try:
            reader()
        except FsrmError:
            pass
        except BaseException as error:  # this is what the attack looks for
            outcome.found.append(f"{path.name}, number {number} of seed {seed}: {type(error).__name__}: {error}"[:300])
        slowest = max(slowest, time.monotonic() - began)
        path.write_bytes(whole[path])
        outcome.tried += 1
    scored = 0
    for number in range(bundles):
        path = chance.choice([target / "fsrm.json", paths["tokenizer"], paths["fast"]])
        path.write_bytes(_damaged(whole[path], path, chance))
        if path.name != "fsrm.json":
            manifest = json.loads(whole[target / "fsrm.json"])
            for entry in manifest["files"].values():
                file = target / entry["path"]
                entry.update(bytes=file.stat().st_size, sha256=file_sha256(file))
            (target / "fsrm.json").write_text(json.dumps(manifest))
        said = _open(target)
        scored += said == "finite"
        if said != "finite" and not said.startswith("refused"):
            outcome.found.append(f"bundle with damaged {path.name}, number {number} of seed {seed}: {said}")
        for file, data in whole.items():
            file.write_bytes(data)
        outcome.tried += 1
    outcome.notes.append(
        f"{headers:,} readings, the slowest {slowest:.1f} s; {bundles:,} bundles, {scored} could score"
    )
    return outcome


def _open(bundle: Path) -> str:
    """Open a bundle and score with it in a process of its own; return what it said, or how it ended."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCORE, str(bundle)],
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS + 60,  # the bound, and the start of the interpreter on a busy machine
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "it took too long"
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return done.stdout.strip() or f"status {done.returncode}: {last[:200]}"


def _damaged(data: bytes, path: Path, chance: random.Random) -> bytes:
    """Return a file with some damage: within its JSON values, or in its bytes."""
    if path.suffix == ".json" and chance.random() < 0.8:
        value = copy.deepcopy(json.loads(data))
        for _ in range(chance.randint(1, 3)):
            _change(value, chance)
        text = json.dumps(value)
        return text.encode("utf-8", "replace")
    reach = len(data) if path.suffix == ".json" else min(len(data), _HEADER_BYTES)
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(reach)
        how = chance.randrange(4)
        if how == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            changed[at : at + 8] = chance.choice((b"\xff" * 8, b"\0" * 8, (2**40).to_bytes(8, "little")))
        elif how == 2:
            changed[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 16)))
        else:
            del changed[at : at + chance.randint(1, 64)]
    return bytes(changed[: chance.randrange(len(changed))] if chance.random() < 0.1 else changed)


def _change(value: Any, chance: random.Random) -> None:  # noqa: ANN401 - any JSON
    """Change one value somewhere in a JSON document."""
    while isinstance(value, dict | list) and value:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = chance.choice(keys)
        inner = value[key]
        if isinstance(inner, dict | list) and inner and chance.random() < 0.8:
            value = inner
            continue
        how = chance.randrange(4)
        if how == 0:
            del value[key]
        elif how == 1 and isinstance(value, dict):
            value[chance.choice(("format_version", "files", "x" * 3000, str(key) + "2"))] = inner
        else:
            value[key] = chance.choice(_VALUES)
        return
