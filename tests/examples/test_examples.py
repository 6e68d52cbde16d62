"""The demo that ``make demo`` runs, as a newcomer sees it."""

import subprocess
import sys

from helpers import ROOT

DEMO = ROOT / "examples" / "demo.py"


def test_demo_shows_candidates_scores_verdicts_winner_and_tokens():
    done = subprocess.run(
        [sys.executable, str(DEMO), "--candidates", "4", "--threads", "1"], check=True, capture_output=True, text=True
    )
    assert done.stderr == ""
    for text in ("Question:", "fast score", "[0]", "Best: [", "Tokens:", "generated in"):
        assert done.stdout.count(text) >= 3
    assert "confidence" in done.stdout


def test_demo_explains_an_escalation():
    done = subprocess.run(
        [sys.executable, str(DEMO), "--candidates", "8", "--threads", "1"], check=True, capture_output=True, text=True
    )
    assert "against" in done.stdout
    assert "votes for" in done.stdout
    assert "verdict: [" in done.stdout
    assert "The fast score alone would have taken" in done.stdout
    assert "The gate did not fire" in done.stdout
