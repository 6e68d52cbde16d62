"""Data and stand-ins for the commands that calibrate and measure."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.calibration import StandIn, make_items, make_lists

from fsrm_lite.bundle.files import Bundle
from fsrm_lite.cli import calibration, evaluation_runs


def knows(prompt, response):
    return 4.0 if "good" in response or response in ("It is 5.", "Blue", "Hi!", "Paris") else -4.0


@pytest.fixture
def model(monkeypatch):
    """Commands that open a model get this stand-in, with the embedded model's manifest."""
    rm = StandIn(knows)
    rm.bundle = SimpleNamespace(manifest=Bundle.open(None).manifest, root="folder")
    for module in (calibration, evaluation_runs):
        monkeypatch.setattr(module, "open_model", lambda options: rm)
    return rm


@pytest.fixture
def no_model(monkeypatch):
    def refuse(options):
        raise AssertionError("a model was opened")

    for module in (calibration, evaluation_runs):
        monkeypatch.setattr(module, "open_model", refuse)


@pytest.fixture
def recorded(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(x.to_dict()) + "\n" for x in make_items(600)))
    return path


@pytest.fixture
def lists(tmp_path):
    path = tmp_path / "recorded-lists.jsonl"
    path.write_text("".join(json.dumps(x.to_dict()) + "\n" for x in make_lists(500, seed=3)))
    return path


@pytest.fixture
def scores(tmp_path):
    rng = np.random.default_rng(3)
    lines = ["left,right,better,judge"]
    for _ in range(300):
        margin = rng.normal(0, 2)
        right = rng.random() < 1 / (1 + np.exp(-2 * abs(margin)))
        better = "A>B" if (margin > 0) == right else "B>A"
        lines.append(f"{margin},0,{better},{better}")
    (tmp_path / "scores.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "scores.csv"
