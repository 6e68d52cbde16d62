"""What the package answers, as one file of exact numbers, so that two versions of it can be compared to the last bit.

Run it in one version with a path that does not exist yet, and in another version with the same path:

    python -m benchmarks.identity RECORD.json      # writes 500 scores, 200 comparisons and the hashes of an export
    python -m benchmarks.identity RECORD.json      # later: compares, and ends with status 1 where anything differs

The export is that of the embedded model's own weights, taken back from its GGUF file. Both runs need the same machine,
since other processors round differently, and the same number of threads (one).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

SCORES, COMPARISONS = 500, 200


def export_hashes() -> dict[str, str]:
    """Export the embedded model's checkpoint and return the SHA-256 of every file of the bundle."""
    from fsrm_lite import Bundle
    from fsrm_lite.export import export_checkpoint
    from fsrm_lite.export.gguf.checkpoint import write_checkpoint
    from fsrm_lite.models.data import SPEC

    with tempfile.TemporaryDirectory() as name:
        checkpoint, output = Path(name) / "checkpoint", Path(name) / "bundle"
        root = Bundle.open().root
        write_checkpoint(root / "slow" / "model.gguf", checkpoint, tokenizer=root / "tokenizer.json")
        export_checkpoint(checkpoint, output, spec=SPEC)
        files = sorted(path for path in output.rglob("*") if path.is_file())
        return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def record() -> dict[str, Any]:
    """Return what this version answers. Floats are written so that reading them gives the same bits."""
    from fsrm_lite import FastSlowRM
    from fsrm_lite.models.data import held_out, pair_row

    rows = [pair_row(pair) for pair in held_out("test", max(SCORES, COMPARISONS))]
    with FastSlowRM.from_pretrained(threads=1) as rm:
        scores = rm.score_many(
            [(row["prompt"], row["chosen" if i % 2 else "rejected"]) for i, row in enumerate(rows[:SCORES])]
        )
        comparisons = rm.compare_many(
            [(row["prompt"], row["rejected"], row["chosen"]) for row in rows[:COMPARISONS]], votes=2
        )
        lists = [
            rm.best_of_n(row["prompt"], [other["chosen"] for other in rows[i : i + 6]])
            for i, row in enumerate(rows[:20])
        ]
    return {
        "scores": [score.to_dict() for score in scores],
        "comparisons": [comparison.to_dict() for comparison in comparisons],
        "selections": [selection.to_dict() for selection in lists],
        "export": export_hashes(),
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return one line per entry of the two records that is not the same."""
    found = []
    for part in sorted(before.keys() | after.keys()):
        old, new = before.get(part), after.get(part)
        old, new = (dict(enumerate(x)) if isinstance(x, list) else x or {} for x in (old, new))
        found += [
            f"{part} {key}: {old.get(key)} became {new.get(key)}"
            for key in [*old, *(new.keys() - old.keys())]
            if old.get(key) != new.get(key)
        ]
    return found


def main() -> None:
    """Write the record, or compare with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    path = parser.parse_args().record
    now = json.loads(json.dumps(record()))
    counts = ", ".join(f"{len(now[part])} {part}" for part in ("scores", "comparisons", "selections"))
    if not path.exists():
        path.write_text(json.dumps(now, indent=1))
        print(f"{path}: {counts} and {len(now['export'])} exported files recorded")
        return
    found = differences(json.loads(path.read_text()), now)
    print("\n".join(found[:20]) if found else f"{path}: {counts} and {len(now['export'])} exported files are identical")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
