import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.bundle import plain_manifest

from fsrm_lite.errors import ExportError
from fsrm_lite.export.parity.chains import closed_share, compare_chains, parted_at_tie
from fsrm_lite.export.parity.measures import (
    FirstTokenParity,
    Tolerance,
    VerdictParity,
    Violations,
    at_best,
    compare_readings,
    excess,
    spearman,
    violations,
)
from fsrm_lite.export.parity.readings import (
    TIE_LOGIT,
    Chain,
    ChainTask,
    ChainWriter,
    Ending,
    Thought,
    TokenReading,
    read_logits,
)

PARITY = {
    "items": 204,
    "pairs": 510,
    "max_delta_logit": 1e-4,
    "mean_delta_logit": 1e-5,
    "max_delta_score": 1e-4,
    "mean_delta_score": 1e-5,
    "decisions_alike": 1.0,
    "routes_alike": 1.0,
    "rank_correlation": 1.0,
    "noise": 1e-5,
    "all_decisions_alike": 1.0,
    "clear_pairs": 500,
    "clear_routes": 700,
}
GOOD = FirstTokenParity(**PARITY)
GOOD_VERDICTS = VerdictParity(60, 0, 1.0, 1.0, 1.0, 0.0, 16, 0, 1.0, 0.0, None)


def readings(logits):
    return [read_logits(np.array([a, b, 0.0], dtype=np.float32), [0, 1]) for a, b in logits]


def test_read_logits_of_a_uniform_distribution():
    reading = read_logits(np.zeros(8, dtype=np.float32), [1, 2])
    assert reading == TokenReading((0.0, 0.0), pytest.approx(math.log(8)), pytest.approx(math.log(8)), 0)


def test_read_logits_survives_large_logits():
    reading = read_logits(np.array([5e4, 0.0, -5e4], dtype=np.float32), [0, 2])
    assert reading.log_mass == pytest.approx(5e4)
    assert reading.entropy == pytest.approx(0.0, abs=1e-6)


def test_compare_readings_of_equal_files_is_perfect():
    same = readings([(1, 0), (0, 1), (0.5, 0.2)])
    parity = compare_readings(same, same, [(0, 1), (1, 2)], plain_manifest())
    assert (parity.max_delta_logit, parity.decisions_alike, parity.routes_alike, parity.rank_correlation) == (
        0.0,
        1.0,
        1.0,
        1.0,
    )


def test_compare_readings_counts_flips():
    want, have = readings([(2, 0), (1, 0), (0, 1)]), readings([(1, 0), (2, 0), (0, 1)])
    parity = compare_readings(want, have, [(0, 1), (0, 2), (1, 2)], plain_manifest())
    assert parity.decisions_alike == pytest.approx(2 / 3)
    assert parity.max_delta_logit == 1.0
    assert parity.mean_delta_logit == pytest.approx(2 / 6)
    assert parity.rank_correlation == pytest.approx(0.5)
    assert 0 < parity.max_delta_score < 0.2


def test_compare_readings_forgives_float32_ties_only():
    want = readings([(1.0, 0), (1.0005, 0), (1.1, 0)])
    have = readings([(1.0001, 0), (1.0, 0), (0.9, 0)])
    parity = compare_readings(want, have, [(0, 1), (0, 2)], plain_manifest())
    assert (parity.clear_pairs, parity.decisions_alike, parity.all_decisions_alike) == (1, 0.0, 0.0)


def test_near_ties_count_for_nothing_but_are_reported():
    want = readings([(1.0, 0), (1.05, 0), (2.0, 0), (0.0, 0)])
    have = readings([(1.06, 0), (1.0, 0), (0.9, 0), (0.0, 0)])
    pairs = [(0, 1), (0, 2), (2, 3)]
    parity = compare_readings(want, have, pairs, plain_manifest(), Tolerance().near_tie("int8"))
    assert Tolerance().near_tie("int8") == pytest.approx(0.08)
    assert (parity.clear_pairs, parity.decisions_alike) == (2, 0.5)
    assert parity.all_decisions_alike == pytest.approx(1 / 3)
    assert parity.noise == pytest.approx((0.11 + 1.16 + 1.1) / 3, abs=1e-6)


def test_routes_near_the_gates_threshold_count_for_nothing():
    # The plain manifest's gate escalates where |2 score - 1| is below one half: at a logit of log 3.
    edge = math.log(3)
    want, have = readings([(edge + 0.05, 0), (edge + 0.3, 0)]), readings([(edge - 0.05, 0), (edge - 0.3, 0)])
    parity = compare_readings(want, have, [], plain_manifest(), 0.08)
    assert (parity.clear_routes, parity.routes_alike) == (1, 0.0)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [([1, 2, 3], [10, 20, 30], 1.0), ([1, 2, 3], [3, 2, 1], -1.0), ([1, 1, 2], [1, 1, 2], 1.0), ([5, 5], [7, 7], 1.0)],
)
def test_spearman(x, y, expected):
    assert spearman(x, y) == pytest.approx(expected)


def test_spearman_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 20, 100), rng.integers(0, 20, 100)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_violations_name_the_figure_and_the_flag():
    well = violations("int8", GOOD, GOOD_VERDICTS, Tolerance())
    assert (well, bool(well), well.lines()) == (Violations(), False, [])
    bad = replace(GOOD, max_delta_logit=0.5, max_delta_score=0.3, decisions_alike=0.9, routes_alike=0.8)
    found = violations("int8", bad, VerdictParity(60, 0, 0.9, 0.5, 0.97, 0.2, 16, 0, 0.97, 0.1, 3.0), Tolerance())
    assert found
    assert found.fast == (
        "a score is off by 0.3, allowed 0.02; try --fast fp32",
        "90.00% of clear pairwise decisions alike, expected 99.00%; try --fast fp32",
        "80.00% of clear gate routes alike, expected 99.00%; try --fast fp32",
    )
    assert found.slow[0] == "90.00% of clear verdicts alike, expected 98.00%; try a wider --slow, up to f16"
    assert [line.split(": ")[0] for line in found.lines()] == ["fast", "fast", "fast", "slow", "slow"]
    assert violations("int8", GOOD, None, Tolerance(decisions=1.0)) == Violations()


def test_a_scalar_head_is_held_to_its_margins_and_no_score():
    reward = replace(GOOD, label_mass=None, max_delta_score=0.9, max_delta_margin=0.3)
    assert reward.scalar
    assert not GOOD.scalar
    assert violations("int8", reward, None, Tolerance()).lines() == [
        "fast: a difference of rewards is off by 0.3 of their spread, allowed 0.1; try --fast fp32"
    ]
    assert not violations("fp32", reward, None, Tolerance())
    assert excess("int8", reward, Tolerance()) == pytest.approx(3.0)


def test_excess_is_the_worst_figure_over_its_allowance():
    bad = replace(GOOD, max_delta_logit=0.5, max_delta_score=0.03, decisions_alike=0.97, routes_alike=0.995)
    assert excess("int8", bad, Tolerance()) == pytest.approx(3.0)
    assert excess("fp32", bad, Tolerance()) == pytest.approx(500.0)
    assert excess("int8", bad, Tolerance(delta_score=0.0)) == math.inf
    assert excess("int8", GOOD, Tolerance(decisions=1.0, routes=1.0)) <= 1


def test_violations_treat_nan_as_out_of_tolerance():
    nan = float("nan")
    broken = replace(GOOD, max_delta_logit=nan, max_delta_score=nan, decisions_alike=nan, routes_alike=nan)
    assert len(violations("fp32", broken, None, Tolerance()).fast) == 3


@pytest.mark.parametrize("values", [{"speed": 1}, {"decisions": 1.5}, {"delta_score": -1}, {"delta_logit": "x"}])
def test_tolerance_refuses_nonsense(values):
    with pytest.raises(ExportError, match="tolerance"):
        Tolerance.from_mapping(values)


def chain(ids, logits, ties=()):
    return Chain(Thought(tuple(ids), tuple(frozenset(t) for t in ties)), tuple(logits))


def write(rows, ending):
    """The ids a chain writer asked for, and its chain, when a model answers with ``rows`` of logits."""
    writer, asked = ChainWriter(ending), []
    for row in rows:
        step = writer.step(np.array(row, dtype=np.float32))
        if isinstance(step, Chain):
            return asked, step
        asked.append(step)
    raise AssertionError("the chain never ended")


def test_chain_writer_stops_at_a_stop_id_and_reads_the_verdict_behind_the_tail():
    rows = [[0, 9, 0, 0], [0, 9, 8.99, 0], [0, 0, 0, 9], [9, 9, 9, 9], [7, 5, 6, 0], [1, 2, 3, 4]]
    asked, chain = write(rows, Ending(frozenset({3}), (3, 0), (2, 1), 10))
    assert asked == [1, 1, 3, 0]
    assert chain == Chain(Thought((1, 1), (frozenset({1}), frozenset({1, 2}), frozenset({3}))), (6.0, 5.0))


def test_a_chain_says_whether_the_close_was_the_models_own_and_a_choice_follows():
    ending = Ending(frozenset({3, 0}), (3,), (2, 1), 2)  # 0 ends an answer, 3 begins the close
    closed, stopped, cut = ([0, 0, 0, 9], [9, 0, 0, 0], [0, 0, 9, 0])
    choice, other = [0, 9, 0, 0], [0, 0, 0, 9]
    for rows, expected in (
        ([closed, choice], (True, True)),
        ([closed, other], (True, False)),
        ([stopped, choice], (False, True)),
        ([cut, cut, [0, 0, 0, 0], choice], (False, True)),
    ):
        _, written = write(rows, ending)
        assert (written.closed, written.chooses) == expected


def test_a_close_counts_by_its_text_too():
    class Decoder:
        def decode(self, ids):
            return "".join({1: "So ver", 2: "dict", 3: ": A"}.get(i, "?") for i in ids)

    task = ChainTask((0,), Ending(frozenset(), (9,), (2, 1), 4, close="Verdict:"))
    chains = [chain([1, 2, 3], (0, 1)), chain([1, 2], (0, 1)), Chain(Thought(()), (0.0, 1.0), closed=True)]
    assert closed_share([task] * 3, chains, Decoder()) == pytest.approx(2 / 3)


def test_chain_writer_stops_at_its_budget_and_needs_no_tail():
    asked, chain = write([[0, 9], [0, 9], [5, 6]], Ending(frozenset(), (), (0, 1), 2))
    assert asked == [1, 1]
    assert chain.thought.ids == (1, 1)
    assert chain.choice_logits == (5.0, 6.0)


def test_parted_at_tie_only_where_the_checkpoint_ties():
    want = Thought((1, 2, 3), (frozenset({1}), frozenset({2, 9}), frozenset({3, 8})))
    assert parted_at_tie(want, Thought((1, 9, 9)))
    assert not parted_at_tie(want, Thought((7, 2, 3)))
    assert not parted_at_tie(want, want)
    assert parted_at_tie(want, Thought((1, 2)))  # ended where 3 and 8 tied: one of them stands for the end
    assert not parted_at_tie(want, Thought(()))


def test_compare_chains_sets_ties_aside_and_counts_them():
    want = [chain([1], (2, 0), [{1, 5}]), chain([1], (2, 0), [{1}]), chain([1], (2, 0), [{1}])]
    have = [chain([5], (0, 2)), chain([6], (0, 2)), chain([1], (2, 0))]
    given = [chain([1], (2, 0)), chain([1], (1, 0)), chain([1], (0, 1))]
    parity = compare_chains(want, have, given, 16, closed=0.5)
    assert (parity.chains, parity.parted_at_ties) == (3, 1)
    assert parity.verdicts_alike == 0.5
    assert parity.thoughts_alike == pytest.approx(1 / 3)
    assert parity.given_thought_alike == pytest.approx(2 / 3)
    assert parity.max_delta_p == pytest.approx(1 / (1 + math.exp(-2)) - 1 / (1 + math.exp(1)))


def test_verdicts_that_are_near_ties_are_told_and_count_as_alike():
    want = [chain([1], (0.15, 0)), chain([1], (0.25, 0)), chain([1, 2, 3], (3, 0))]
    have = [chain([1], (0, 1)), chain([1], (0, 1)), chain([1, 7, 3], (3, 0))]
    parity = compare_chains(want, have, have, 16, Tolerance().near_tie_verdict(), closed=0.5)
    assert Tolerance().near_tie_verdict() == pytest.approx(0.2)
    assert Tolerance(delta_verdict=0.0).near_tie_verdict() == TIE_LOGIT
    assert parity.near_tie_verdicts == 1
    assert parity.verdicts_alike == parity.given_thought_alike == pytest.approx(2 / 3)
    assert parity.all_given_thought_alike == pytest.approx(1 / 3)
    assert parity.verdict_noise == pytest.approx((1.15 + 1.25) / 3)
    assert parity.parted_at == 1.0


def test_chain_writer_keeps_the_tokens_within_its_endings_near_tie():
    logits = [[9.0, 8.9, 8.7, 0.0], [0.0, 1.0, 0.0, 0.0]]
    for near_tie, ties in ((0.05, {0}), (0.2, {0, 1}), (0.5, {0, 1, 2})):
        _, written = write(logits, Ending(frozenset(), (), (0, 1), 1, near_tie))
        assert written.thought.ties == (frozenset(ties),)


def test_at_best_is_never_worse_than_the_whole():
    """Giving up on it is safe: whatever the rest holds, the whole set's figures are no better."""
    rng = np.random.default_rng(3)
    manifest = plain_manifest()
    for _ in range(20):
        logits = rng.normal(size=(12, 2))
        want, have = readings(logits), readings(logits + rng.normal(scale=0.4, size=(12, 2)))
        pairs = [(i, i + 1) for i in range(11)]
        whole = compare_readings(want, have, pairs, manifest)
        for count in (2, 5, 11):
            part = compare_readings(want[:count], have[:count], [p for p in pairs if max(p) < count], manifest)
            best = at_best(part, 12, 11)
            assert best.max_delta_score <= whole.max_delta_score
            assert best.decisions_alike >= whole.decisions_alike - 1e-12
            assert best.routes_alike >= whole.routes_alike - 1e-12
            assert excess("int8", best, Tolerance()) <= excess("int8", whole, Tolerance()) + 1e-9
        assert at_best(whole, 12, 11) == whole
