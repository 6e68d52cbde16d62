"""Shared fixtures: the embedded model, loaded once, and a few of its own test problems."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from fsrm_lite import FastSlowRM
from fsrm_lite.models.data import Pair, held_out

# The models of the tests are tiny: torch's threads only wait for each other, on a busy machine a thousand times as long
# as they compute. It reads this when it is imported; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says nothing on a busy machine.
settings.register_profile("without a deadline", deadline=None)
settings.load_profile("without a deadline")


@pytest.fixture(scope="session")
def rm() -> Iterator[FastSlowRM]:
    """The embedded model on one thread."""
    with FastSlowRM.from_pretrained(threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def pairs() -> list[Pair]:
    """Forty pairs of the test split."""
    return held_out("test", 40)
