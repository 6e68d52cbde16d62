"""Tournaments against closed forms, brute force over all outcomes, and simulated judges."""

import itertools
import json
import logging
import math

import numpy as np
import pytest
from helpers.ranking import TableJudge, failing, gate_of, honest, noisy, refusing, scores_of, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from fsrm_lite.errors import InputError, JudgeError
from fsrm_lite.gate import Gate, GateSpec, ListSpec, sigmoid
from fsrm_lite.ranking.ratings import strengths
from fsrm_lite.ranking.tournament import BLANK_SCORE, STRATEGIES, select
from fsrm_lite.types import Comparison, Route, Vote

JUDGED = ("gated", "knockout", "elo")


def outcome_tables(n):
    """Every possible result of a round robin: pair -> whether its lower position wins."""
    pairs = list(itertools.combinations(range(n), 2))
    for bits in itertools.product((True, False), repeat=len(pairs)):
        yield dict(zip(pairs, bits, strict=True))


def table_judge(table):
    return TableJudge(lambda a, b: table[a, b] if a < b else not table[b, a])


def chance(table, strength):
    return math.prod(
        sigmoid(strength[a] - strength[b]) if win else sigmoid(strength[b] - strength[a])
        for (a, b), win in table.items()
    )


def exact_odds(strategy, strength, logits, **options):
    """Probability that the strategy finds position 0, by running it on every table of outcomes."""
    n = len(strength)
    return sum(
        chance(table, strength)
        for table in outcome_tables(n)
        if select(strategy, scores_of(logits), texts(n), gate_of(), table_judge(table), **options).index == 0
    )


# --- every strategy ---


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_select_no_response_is_an_error(strategy):
    with pytest.raises(InputError, match="0 responses"):
        select(strategy, [], [], gate_of(), refusing)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_select_one_response_plays_nothing(strategy):
    chosen = select(strategy, scores_of([0.3]), ["7"], gate_of(), refusing)
    assert (chosen.index, chosen.ranking, chosen.comparisons, chosen.strategy) == (0, (0,), (), strategy)


@pytest.mark.parametrize("strategy", JUDGED)
def test_select_two_responses_is_one_match(strategy):
    judge = honest([0.0, 1.0])
    chosen = select(strategy, scores_of([0.1, 0.0]), texts(2), gate_of(), judge)
    assert (chosen.ranking, judge.games) == ((1, 0), [(0, 1)])
    assert chosen.comparisons[0].pair == (0, 1)
    assert (chosen.tokens_read, chosen.tokens_generated) == (30, 5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_select_all_blank_plays_nothing(strategy):
    chosen = select(strategy, [BLANK_SCORE] * 3, ["", "  ", "\n"], gate_of(), refusing)
    assert chosen.ranking == (0, 1, 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_select_identical_responses_never_meet(strategy):
    chosen = select(strategy, scores_of([0.0, 0.0, 0.0]), ["same", "same ", "same"], gate_of(always=True), refusing)
    assert chosen.ranking == (0, 1, 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_select_blank_loses_to_any_text_even_with_a_high_score(strategy):
    assert select(strategy, scores_of([9.0, -9.0]), [" ", "5"], gate_of(always=True), refusing).ranking == (1, 0)


def test_select_duplicates_rank_beside_their_captain():
    judge = honest([0.0, 3.0, 0.0, 1.0, 3.0])
    chosen = select("knockout", scores_of([0.4, 0.1, 0.4, 0.2, 0.1]), ["a", "b", "a", "c", "b"], gate_of(), judge)
    assert chosen.ranking[:2] == (1, 4)
    assert len(judge.games) == 2


def test_select_key_makes_teams_of_equal_answers():
    judge = honest([0.0, 1.0, 0.0])
    chosen = select(
        "knockout", scores_of([0.1, 0.0, 0.2]), ["it is 4", "it is 5", "so 4"], gate_of(), judge, key=lambda r: r[-1]
    )
    assert judge.games == [(2, 1)]
    assert chosen.ranking == (1, 2, 0)


@pytest.mark.parametrize(
    ("strategy", "options", "match"),
    [
        ("swiss", {}, "strategy is 'swiss'"),
        ("elo", {"budgets": 3}, "unknown options"),
        ("elo", {"budget": -1}, "budget is -1"),
        ("elo", {"precision": 0.0}, "precision is 0.0"),
        ("majority", {"extractor": "roman"}, "extractor 'roman' is unknown"),
        ("gated", {"on_judge_error": "hide"}, "on_judge_error is 'hide'"),
    ],
)
def test_select_bad_options_are_named(strategy, options, match):
    with pytest.raises(InputError, match=match):
        select(strategy, scores_of([0.0, 1.0]), texts(2), gate_of(), honest([0, 1]), **options)


def test_select_lengths_must_agree():
    with pytest.raises(InputError, match="2 responses and 1 scores"):
        select("fast", scores_of([0.0]), texts(2), gate_of(), refusing)


def test_select_play_must_answer_every_pair():
    with pytest.raises(InputError, match="0 comparisons for 1 pairs"):
        select("knockout", scores_of([0.0, 1.0]), texts(2), gate_of(), lambda pairs: [])


@pytest.mark.parametrize("strategy", JUDGED)
def test_select_failing_judge_falls_back_to_the_fast_order_and_says_so(strategy, caplog):
    with caplog.at_level(logging.WARNING, logger="fsrm_lite.ranking.tournament"):
        chosen = select(strategy, scores_of([0.1, 0.4, 0.2, 0.3]), texts(4), gate_of(), failing, on_judge_error="fast")
    assert chosen.index == 1
    assert {c.reasons for c in chosen.comparisons} == {("the judge failed: out of memory",)}
    assert all(c.escalated and c.route == "fast" for c in chosen.comparisons)
    assert "out of memory" in caplog.text


@pytest.mark.parametrize("strategy", JUDGED)
def test_select_failing_judge_raises_by_default(strategy):
    with pytest.raises(JudgeError, match="out of memory"):
        select(strategy, scores_of([0.1, 0.4]), texts(2), gate_of(), failing)


def test_select_failing_judge_budgeted_ends():
    assert (
        len(
            select(
                "elo", scores_of([0.3, 0.2, 0.1, 0.0]), texts(4), gate_of(), failing, budget=4, on_judge_error="fast"
            ).comparisons
        )
        == 4
    )


def test_select_result_is_json():
    chosen = select("elo", scores_of([0.1, 0.2, 0.3]), texts(3), gate_of(), honest([1, 2, 3]))
    assert json.loads(json.dumps(chosen.to_dict()))["ratings"][2]["games"] == 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-5, 5), st.sampled_from(["3", "4", "5 ", "", "x", "long answer: 4"])),
        min_size=1,
        max_size=9,
    ),
    st.data(),
)
def test_select_always_ranks_everyone_once_and_never_plays_equals(candidates, data):
    strategy = data.draw(st.sampled_from(STRATEGIES))
    responses = [text for _, text in candidates]
    judge = TableJudge(lambda a, b: data.draw(st.booleans()))
    chosen = select(strategy, scores_of([x for x, _ in candidates]), responses, gate_of(), judge)
    assert sorted(chosen.ranking) == list(range(len(responses)))
    assert all(
        responses[a].strip() and responses[b].strip() and responses[a].strip() != responses[b].strip()
        for a, b in judge.games
    )
    assert len(set(map(frozenset, judge.games))) == len(judge.games)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(7)), st.sampled_from(JUDGED))
def test_select_honest_judge_finds_the_best_whatever_the_fast_scores(order, strategy):
    chosen = select(strategy, scores_of([0.01 * x for x in range(7)]), texts(7), gate_of(), honest(order))
    assert order[chosen.index] == 6
    if strategy == "elo":
        assert [order[i] for i in chosen.ranking] == [6, 5, 4, 3, 2, 1, 0]


# --- fast and gated ---


def test_fast_ranks_by_logit_earliest_first_on_ties():
    assert select("fast", scores_of([0.0, 2.0, 0.0, -1.0]), texts(4), gate_of(), refusing).ranking == (1, 0, 2, 3)


def test_gated_clear_winner_plays_nothing():
    assert select("gated", scores_of([0.0, 4.0, 1.0]), texts(3), gate_of(), refusing).ranking == (1, 2, 0)


def test_gated_only_contenders_meet():
    judge = honest([9.0, 1.0, 2.0, 9.0])
    chosen = select("gated", scores_of([-4.0, 2.0, 1.9, -3.0]), texts(4), gate_of(), judge)
    assert judge.games == [(1, 2)]
    assert chosen.ranking == (2, 1, 3, 0)


def test_gated_with_everything_escalated_is_a_knockout():
    scores = scores_of([0.3, -1.0, 2.0, 0.0, 1.0])
    runs = [select(s, scores, texts(5), gate_of(always=True), honest([4, 2, 1, 3, 0])) for s in ("gated", "knockout")]
    assert runs[0].ranking == runs[1].ranking
    assert runs[0].comparisons == runs[1].comparisons


# --- knockout ---


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33])
def test_knockout_plays_n_minus_1_matches_in_log2_rounds(n):
    judge = honest(list(range(n)))
    select("knockout", scores_of([0.0] * n), texts(n), gate_of(), judge)
    assert len(judge.games) == n - 1
    assert len(judge.rounds) == math.ceil(math.log2(n))
    assert all(len({i for pair in batch for i in pair}) == 2 * len(batch) for batch in judge.rounds)


def test_knockout_first_round_is_seeded_and_the_top_seed_rests():
    judge = honest([5, 4, 3, 2, 1])
    chosen = select("knockout", scores_of([5, 4, 3, 2, 1]), texts(5), gate_of(), judge)
    assert judge.rounds == [[(1, 4), (2, 3)], [(1, 2)], [(0, 1)]]
    assert chosen.ranking == (0, 1, 2, 3, 4)


def test_knockout_odds_equal_the_closed_form():
    strength, logits = [1.2, 0.9, 0.2, -0.5], [0.4, 0.3, 0.2, 0.1]
    win = [[sigmoid(a - b) for b in strength] for a in strength]
    closed = win[0][3] * (win[1][2] * win[0][1] + win[2][1] * win[0][2])
    assert exact_odds("knockout", strength, logits) == pytest.approx(closed, abs=1e-12)


def test_knockout_with_a_bye_odds_equal_the_closed_form():
    strength, logits = [1.0, 0.5, 0.0], [0.1, 0.3, 0.2]
    win = [[sigmoid(a - b) for b in strength] for a in strength]
    # Position 1 is the top seed and rests; 2 meets 0; the winner meets 1.
    assert exact_odds("knockout", strength, logits) == pytest.approx(win[0][2] * win[0][1], abs=1e-12)


def test_knockout_odds_match_ten_thousand_simulations():
    strength, logits = np.array([1.5, 0.7, 0.4, 0.0, -0.8]), [0.0, 0.4, 0.1, 0.3, 0.2]
    tables = list(outcome_tables(5))
    found = np.array(
        [select("knockout", scores_of(logits), texts(5), gate_of(), table_judge(t)).index == 0 for t in tables]
    )
    p = np.array([sigmoid(strength[a] - strength[b]) for a, b in itertools.combinations(range(5), 2)])
    wins = np.random.default_rng(7).random((10_000, 10)) < p
    simulated = found[(~wins) @ (1 << np.arange(9, -1, -1))].mean()  # product() counts True as 0, first pair highest
    exact = sum(chance(t, strength) for t, hit in zip(tables, found, strict=True) if hit)
    assert simulated == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 10_000))


# --- elo ---


def test_elo_round_robin_is_one_batch_and_has_intervals():
    judge = honest([3, 1, 2])
    chosen = select("elo", scores_of([0.0, 0.1, 0.2]), texts(3), gate_of(), judge)
    assert len(judge.rounds) == 1
    assert len(judge.games) == 3
    assert chosen.ranking == (0, 2, 1)
    assert all(r.low < r.rating < r.high for r in chosen.ratings)
    assert sum(r.rating for r in chosen.ratings) / 3 == pytest.approx(1500)


def test_elo_round_robin_winner_has_most_wins_on_every_table():
    # When everyone has met everyone, the order by strength is the order by wins: shown on all 1,024 tables.
    logits = [0.5, 0.4, 0.3, 0.2, 0.1]
    for table in outcome_tables(5):
        wins = [sum(table[a, b] if i == a else not table[a, b] for a, b in table if i in (a, b)) for i in range(5)]
        chosen = select("elo", scores_of(logits), texts(5), gate_of(), table_judge(table))
        assert list(chosen.ranking) == sorted(range(5), key=lambda i: (-wins[i], i))


def test_elo_finds_the_best_more_often_than_knockout_and_knockout_than_fast():
    """10,000 tournaments of 8 with a judge of Bradley-Terry strengths, all at once."""
    rng, n, runs = np.random.default_rng(3), 8, 10_000
    strength = rng.normal(0, 1.5, (runs, n))
    fast = strength + rng.normal(0, 1.5, (runs, n))
    upper = np.triu(rng.random((runs, n, n)) < 1 / (1 + np.exp(strength[:, None, :] - strength[:, :, None])), 1)
    wins = upper + np.tril(~np.swapaxes(upper, 1, 2), -1)
    best = strength.argmax(1)
    rated = strengths(wins.astype(float)) + 1e-6 * fast  # where results are equal, the fast score decides
    alive = np.argsort(-fast, axis=1)
    rows = np.arange(runs)[:, None]
    while alive.shape[1] > 1:
        half = alive.shape[1] // 2
        a, b = alive[:, :half], alive[:, ::-1][:, :half]
        winners = np.where(wins[rows, a, b], a, b)
        alive = np.take_along_axis(winners, np.argsort(-fast[rows, winners], axis=1), 1)
    odds = {
        "fast": (fast.argmax(1) == best).mean(),
        "knockout": (alive[:, 0] == best).mean(),
        "elo": (rated.argmax(1) == best).mean(),
    }
    assert odds["fast"] + 0.05 < odds["knockout"] < odds["elo"]
    # On the first 200 of these tables the package's own tournaments agree with the vectorised computation above.
    for run in range(200):
        for strategy, expected in (("knockout", alive[run, 0]), ("elo", rated[run].argmax())):
            judge = TableJudge(lambda a, b, run=run: wins[run, a, b])
            assert select(strategy, scores_of(fast[run].tolist()), texts(n), gate_of(), judge).index == expected


def test_elo_budget_is_kept_never_repeats_and_beats_chance():
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(60):
        strength = rng.normal(0, 2, 8).tolist()
        judge = noisy(strength, rng)
        chosen = select("elo", scores_of([0.0] * 8), texts(8), gate_of(), judge, budget=12)
        assert len(judge.games) == len(set(map(frozenset, judge.games))) == 12
        hits += strength[chosen.index] == max(strength)
    assert hits >= 30  # chance is 7.5


def test_elo_budget_zero_ranks_by_the_fast_scores():
    assert select("elo", scores_of([0.0, 2.0, 1.0]), texts(3), gate_of(), refusing, budget=0).ranking == (1, 2, 0)


# --- majority ---


def test_majority_counts_answers_and_needs_no_judge():
    responses = ["it is 4", "so 5", "hence 5.0", "who knows", "4 or 5"]
    chosen = select("majority", scores_of([3.0, 0.0, 1.0, 9.0, -1.0]), responses, gate_of(), refusing)
    assert chosen.ranking == (2, 1, 4, 0, 3)


def test_majority_tie_goes_to_the_answer_seen_first():
    assert select("majority", scores_of([0.0, 1.0]), ["4", "5"], gate_of(), refusing).index == 0


def test_majority_weighted_by_the_fast_scores():
    responses = ["4", "it is 4", "5"]
    scores = scores_of([-2.0, -2.0, 3.0])
    assert select("majority", scores, responses, gate_of(), refusing).index == 0
    assert select("majority", scores, responses, gate_of(), refusing, weighted=True).index == 2


def test_majority_counts_answers_that_are_false_in_python():
    assert select(
        "majority", scores_of([2.0, 1.0, 0.0]), ["1", "0", "0 "], gate_of(), refusing, extractor=int
    ).ranking == (1, 2, 0)


def test_majority_extractor_plugs_in():
    chosen = select(
        "majority",
        scores_of([0.0] * 3),
        ["Ann", "Bob", "so Bob."],
        gate_of(),
        refusing,
        extractor=lambda r: r.split()[-1].strip("."),
    )
    assert chosen.ranking == (1, 2, 0)


# --- gated, with a rule for lists ---


def lists_gate(coverage, temperature=1.0, sharpness=1.0, group="final"):
    return Gate(GateSpec(lists=ListSpec(coverage, temperature, sharpness, group)))


ANSWERS = ["The answer is 5.", "2 + 3 = 5. The answer is 5.", "The answer is 6.", "6", "The answer is 7."]


def test_gated_lists_pools_equal_answers_and_asks_the_judge_only_about_contenders():
    logits = [1.1, 0.9, 1.2, 0.5, -3.0]
    # By scores alone a 6 is ahead; together the two 5 are. The 7 is left out.
    alone = select("gated", scores_of(logits), ANSWERS, lists_gate(0.4), refusing)
    assert (alone.index, alone.ranking) == (0, (0, 1, 2, 3, 4))
    judge = honest([0, 0, 1, 1, 2])
    asked = select("gated", scores_of(logits), ANSWERS, lists_gate(0.9), judge)
    assert judge.rounds == [[(0, 2)]]
    assert asked.ranking == (2, 3, 0, 1, 4)


def test_gated_lists_by_text_and_by_a_callers_key():
    logits = [1.1, 0.9, 1.2, 0.5, -3.0]
    by_text = select("gated", scores_of(logits), ANSWERS, lists_gate(0.1, group="text"), refusing)
    assert by_text.index == 2
    one_team = select("gated", scores_of(logits), ANSWERS, lists_gate(1.0), refusing, key=lambda text: 0)
    assert one_team.ranking == (2, 0, 1, 3, 4)


def test_gated_lists_uses_the_rule_for_no_other_strategy():
    logits = [1.1, 0.9, 1.2, 0.5, -3.0]
    for strategy in ("fast", "knockout", "elo"):
        judge = honest(logits)
        with_rule = select(strategy, scores_of(logits), ANSWERS, lists_gate(0.4), judge)
        assert with_rule.ranking == select(strategy, scores_of(logits), ANSWERS, gate_of(), honest(logits)).ranking


def test_gated_lists_without_a_judge_goes_by_the_shares():
    logits = [1.1, 0.9, 1.2, 0.5, -3.0]
    never = select("gated", scores_of(logits), ANSWERS, lists_gate(1.0), refusing, judge="never")
    assert (never.index, never.comparisons) == (0, ())
    failed = select("gated", scores_of(logits), ANSWERS, lists_gate(0.9), failing, on_judge_error="fast")
    (match,) = failed.comparisons
    assert (failed.index, match.winner, match.pair) == (0, 0, (0, 2))
    assert match.p_first > 0.5
    assert "out of memory" in match.reasons[0]
    everyone = select("gated", scores_of(logits), ANSWERS, lists_gate(0.1), honest(range(5)), judge="always")
    assert len(everyone.comparisons) == 4


def test_gated_lists_even_votes_are_decided_by_the_shares():
    def torn(pairs):
        votes = (Vote(False, 0, 1.0, "first", 3), Vote(True, 1, 0.0, "second", 3))
        return [Comparison(1, 0.4, 0.1, 0.9, Route.SLOW, True, votes=votes, rationale="second") for _ in pairs]

    selection = select("gated", scores_of([1.1, 0.9, 1.2, 0.5, -3.0]), ANSWERS, lists_gate(0.9), torn)
    (match,) = selection.comparisons
    assert (selection.index, match.winner, match.rationale) == (0, 0, "first")


def test_gated_lists_empty_responses_come_last_and_all_empty_is_no_error():
    texts_ = ["", "The answer is 6.", " ", "6"]
    selection = select(
        "gated", [BLANK_SCORE, *scores_of([-4.0]), BLANK_SCORE, *scores_of([-5.0])], texts_, lists_gate(1.0), refusing
    )
    assert selection.ranking == (1, 3, 0, 2)
    assert select("gated", [BLANK_SCORE] * 2, ["", " "], lists_gate(1.0), refusing).ranking == (0, 1)


def test_gated_lists_teams_whose_shares_round_to_zero_are_even():
    texts_ = [f"The answer is {i}." for i in range(4)]
    selection = select("gated", scores_of([20, -10, -12, -14]), texts_, lists_gate(1.0, 0.1, 3.0), failing,
                       on_judge_error="fast")  # fmt: skip
    assert selection.index == 0
    assert {match.p_first for match in selection.comparisons if 0 not in match.pair} <= {0.5}


def test_majority_empty_responses_have_no_vote_whatever_the_extractor_says():
    scores = [BLANK_SCORE, BLANK_SCORE, *scores_of([-2.0])]
    assert select("majority", scores, ["", "  ", "42"], gate_of(), refusing, extractor=str.strip).index == 2
