import itertools

import pytest

from fsrm_lite.slow.voting import Referee, choice_of, decided, majority, probabilities
from fsrm_lite.types import Completion, Decoding, Job, Request, Vote


def vote(winner, p_first):
    return Vote(swapped=False, winner=winner, p_first=p_first, rationale="", tokens_generated=1)


def completion(choice, finished=True):
    return Completion((1, 2), 1, choice, (0.0, 0.0), 3, finished)


def referee_for(votes, adaptive=True, error_rate=0.0, pairs=1):
    """Return a referee over some pairs, each with the same number of votes, which alternate between the two orders."""
    jobs = tuple(Job((1,), 0, 4, pair=pair, swapped=bool(n % 2)) for pair in range(pairs) for n in range(votes))
    return Referee(Request(jobs, Decoding(), (), adaptive=adaptive, error_rate=error_rate))


def test_majority_counts_votes_before_probabilities():
    assert majority([vote(1, 0.45), vote(1, 0.45), vote(0, 0.99)]) == 1


def test_majority_of_tied_votes_goes_to_the_larger_mean_probability_then_to_the_first():
    assert majority([vote(0, 0.6), vote(1, 0.1)]) == 1
    assert majority([vote(0, 0.9), vote(1, 0.4)]) == 0
    assert majority([vote(0, 0.5), vote(1, 0.5)]) == 0


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 8])
def test_exact_stop_never_changes_the_majority(total):
    for votes in itertools.product((0, 1), repeat=total):
        for seen in range(total + 1):
            first, second = votes[:seen].count(0), votes[:seen].count(1)
            if decided(first, second, total) and seen < total:
                leader = int(second > first)
                assert votes.count(leader) * 2 > total


def test_sequential_test_keeps_its_error_rate_under_its_prior():
    total, rate = 8, 0.05
    wrong = weight = 0.0
    for theta in [(i + 0.5) / 25 for i in range(25)]:  # the uniform prior, enumerated
        for votes in itertools.product((0, 1), repeat=total):
            p = theta ** votes.count(0) * (1 - theta) ** votes.count(1)
            seen = next(n for n in range(1, total + 1) if decided(votes[:n].count(0), votes[:n].count(1), total, rate))
            early = int(votes[:seen].count(1) > votes[:seen].count(0))
            weight += p
            wrong += p * (early != int(votes.count(1) > votes.count(0)))
    assert 0 < wrong / weight <= rate


def test_sequential_test_stops_earlier_than_the_exact_one():
    assert not decided(4, 0, 9)
    assert decided(4, 0, 9, 0.05)
    assert not decided(2, 2, 9, 0.4)


def test_referee_asks_no_more_votes_than_could_decide():
    referee = referee_for(8)
    started = [referee.next()[0] for _ in range(5)]
    assert started == [0, 1, 2, 3, 4]
    assert referee.next() is None
    for number in started[:-1]:
        assert list(referee.take(number, completion(number % 2))) == []  # every vote is for the caller's first
    assert list(referee.take(4, completion(0))) == []
    assert referee.next() is None
    assert sum(r is not None for r in referee.completions) == 5


def test_referee_asks_on_when_votes_disagree():
    referee = referee_for(3)
    assert [referee.next()[0], referee.next()[0]] == [0, 1]
    referee.take(0, completion(0))
    referee.take(1, completion(0))  # swapped: a vote for the second
    assert referee.next()[0] == 2


def test_referee_drops_what_still_runs_when_the_vote_is_decided():
    referee = referee_for(3, adaptive=True)
    referee.next(), referee.next()
    referee.take(0, completion(0))
    third = referee.next()
    assert third is None
    wide = referee_for(2, adaptive=False)
    assert [wide.next()[0], wide.next()[0]] == [0, 1]
    assert list(wide.take(0, completion(0))) == []


def test_referee_without_adaptivity_asks_everything():
    referee = referee_for(8, adaptive=False, pairs=2)
    assert [referee.next()[0] for _ in range(16)] == list(range(16))
    assert referee.next() is None


def test_referee_moves_on_to_the_next_pair_while_one_waits():
    referee = referee_for(3, pairs=2)
    assert [referee.next()[0] for _ in range(4)] == [0, 1, 3, 4]


def test_unfinished_results_do_not_count_as_votes():
    referee = referee_for(1)
    referee.next()
    assert list(referee.take(0, completion(None, finished=False))) == []
    assert referee.completions[0].finished is False


def test_choice_is_the_written_word_else_the_likeliest():
    assert choice_of(Completion((), 0, 1, (5.0, 0.0), 0, True)) == 1
    assert choice_of(Completion((), 0, None, (5.0, 0.0), 0, True)) == 0
    assert choice_of(Completion((), 0, None, (1.0, 1.0), 0, True)) == 0


def test_probabilities_are_a_softmax_without_overflow():
    assert probabilities([1000.0, 1000.0]) == [0.5, 0.5]
    assert sum(probabilities([3.0, -2.0, 0.5])) == pytest.approx(1.0)
