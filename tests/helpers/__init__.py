"""What several tests build upon: where things lie, small models, stand-ins, servers."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""

DATA = ROOT / "tests" / "data"
"""Small files in the forms in which benchmarks are published."""

SHARED = Path(os.environ.get("FSRM_DATA", ROOT.parent / "shared" / "data"))
"""Real public data beside the checkout; tests that want it are skipped where it is missing."""
