"""The embedded model's gate: it keeps its word on each kind of pairs, and not only on all of them together."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.calibration import make_items

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from fsrm_lite.gate import GateSpec
from fsrm_lite.measure.calibration import split
from fsrm_lite.measure.labelled import Sample
from fsrm_lite.measure.together import weigh
from fsrm_lite.measure.tradeoff import OperatingPoint, cheapest_within, operate, pareto
from fsrm_lite.models import release
from fsrm_lite.models.release import CONFIDENCE, LOSS, TUNING, by_kind, gate_for_each, weights_for_each

N = 2000
"""Pairs of each kind."""


@pytest.mark.slow
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
    assert max(lost(gate_for_each(together, first), kind) for kind in kinds) <= LOSS


def test_the_gate_is_cheap_where_the_fast_path_knows_what_it_knows():
    first = np.arange(2 * N) < N
    logit = np.random.default_rng(2).normal(0, 4, 2 * N)
    unsure = np.abs(logit) < 1
    items = Sample.of(make_items(2 * N, seed=11))
    # Unsure answers are wrong; the judge is right about all of them and about all but a few of the others.
    known = replace(
        items,
        logit=logit,
        toward=np.abs(logit),
        fast_correct=~unsure,
        slow_correct=unsure | (np.arange(2 * N) % 50 > 0),
    )
    gate = gate_for_each(known, first)
    found = operate(gate, known)
    assert not gate.always
    assert unsure.mean() - 0.03 < found.escalated < unsure.mean() + 0.05
    assert found.accuracy > 0.98


def test_weights_are_not_kept_that_help_one_kind_of_pairs_at_the_cost_of_the_other():
    first = np.arange(2 * N) < N
    rng = np.random.default_rng(3)
    fast, votes = (rng.normal(1, 2, 2 * N) for _ in range(2))
    items = Sample.of(make_items(2 * N, seed=11))

    def judged(fast):
        return replace(items, toward=fast, fast_correct=fast > 0, slow_toward=votes, slow_correct=votes > 0)

    assert weights_for_each(judged(fast), first) is not None
    misleading = judged(np.where(first, 3 * fast, rng.normal(-0.5, 2, 2 * N)))  # of the second kind
    assert weigh(*split(misleading, TUNING)).weights is not None
    assert weights_for_each(misleading, first) is None


def test_what_a_gate_is_tested_on_has_no_structure_of_what_lined_it_up():
    first = np.arange(2 * N) < N
    items = Sample.of(make_items(2 * N, seed=11))
    shared = replace(items, groups=np.array([f"structure {i % (N // 4)}" for i in range(2 * N)]))
    tuned, tested = (by_kind(shared, first, part) for part in split(shared, TUNING))
    assert [len(a) + len(b) for a, b in zip(tuned, tested, strict=True)] == [N, N]
    assert not {g for kind in tuned for g in kind.groups} & {g for kind in tested for g in kind.groups}


def test_the_walk_ends_at_the_first_gate_that_fails(monkeypatch):
    first = np.arange(2 * N) < N
    items = Sample.of(make_items(2 * N, seed=11))
    gates = [GateSpec(i / 10) for i in range(11)]
    bounds = {gate.intuition_threshold: 0.02 - 0.001 * i for i, gate in enumerate(gates)}  # dearer gates lose less
    failing, seen = 0.8, []

    def bound(gate, sample, confidence):
        tested = sample.groups[0] in set(split(items, TUNING)[1].groups)
        if tested:
            seen.append(gate.intuition_threshold)
            return LOSS + (0.001 if gate.intuition_threshold == failing else -0.001)
        return bounds[gate.intuition_threshold]

    monkeypatch.setattr(release, "loss_bound", bound)
    points = [OperatingPoint(gate, 0.9, 10.0 * i, 0.1 * i) for i, gate in enumerate(gates)]
    monkeypatch.setattr(release, "operating_points", lambda sample: points)
    assert gate_for_each(items, first) == gates[9]
    assert sorted(set(seen), reverse=True) == [1.0, 0.9, 0.8]
