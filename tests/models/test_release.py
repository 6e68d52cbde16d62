"""The embedded model's gate: it keeps its word on each kind of pairs, and not only on all of them together."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.calibration import make_items

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from fsrm_lite.gate import GateSpec
from fsrm_lite.measure.labelled import Sample
from fsrm_lite.measure.tradeoff import cheapest_within, operate, pareto
from fsrm_lite.models.release import CONFIDENCE, LOSS, gate_for_each

N = 2000
"""Pairs of each kind."""


def test_the_gate_does_not_pay_on_one_kind_of_pairs_what_it_gains_on_the_other():
    items = Sample.of(make_items(2 * N, seed=11))
    first = np.arange(2 * N) < N
    coin = np.random.default_rng(1).random(2 * N) < 0.5
    # Of the first kind the fast path knows all and the judge not quite all, of the second the other way round.
    together = replace(items, fast_correct=first | coin, slow_correct=~first | items.slow_correct)
    kinds = [together.take(first), together.take(~first)]

    def lost(gate, part):
        return operate(GateSpec(always=True), part).accuracy - operate(gate, part).accuracy

    careless = cheapest_within(pareto(together), together, LOSS, CONFIDENCE).gate
    assert lost(careless, together) <= LOSS
    assert lost(careless, kinds[1]) > LOSS
    assert max(lost(gate_for_each(kinds, together), kind) for kind in kinds) <= LOSS
