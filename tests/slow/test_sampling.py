import numpy as np
import pytest

from fsrm_lite.errors import InputError
from fsrm_lite.slow.sampling import draw, uniforms, vote_key
from fsrm_lite.types import Decoding


def softmax(logits, temperature=1.0):
    weights = np.exp((logits - logits.max()) / temperature)
    return weights / weights.sum()


def frequencies(decoding, row, n=4_000):
    drawn = draw(decoding, np.tile(row, (n, 1)).astype(np.float32), (np.arange(n) + 0.5) / n)
    return np.bincount(drawn, minlength=len(row)) / n


@pytest.mark.parametrize("vocabulary", [2, 255, 1000, 2048, 2049, 2304, 5000])
def test_draw_follows_the_softmax_at_any_vocabulary_size(vocabulary):
    row = np.random.default_rng(vocabulary).normal(size=vocabulary) * 2
    assert np.abs(frequencies(Decoding(0.7), row, 20_000) - softmax(row, 0.7)).max() < 1e-3


@pytest.mark.parametrize("lead", [0.0, 4.0, 8.0, 16.0])
def test_a_draw_is_the_place_where_the_running_sum_exceeds_the_number(lead):
    """The result is the same whether the likeliest token leads by much or not; if it does, the sum is not computed."""
    rng = np.random.default_rng(int(lead))
    logits = rng.normal(size=(400, 500)).astype(np.float32)
    logits[np.arange(400), rng.integers(0, 500, 400)] += np.float32(lead)
    numbers = np.concatenate([rng.random(200), rng.random(100) * 0.01, 1 - rng.random(100) * 0.01])
    weights = np.exp((logits - logits.max(axis=1, keepdims=True)) * np.float32(1 / 0.7))
    running = weights.cumsum(axis=1, dtype=np.float64)
    expected = [
        int(np.searchsorted(row, number * row[-1], side="right")) for row, number in zip(running, numbers, strict=True)
    ]
    assert draw(Decoding(0.7), logits, numbers).tolist() == expected


def test_draw_at_the_ends_of_the_unit_interval_stays_inside():
    for vocabulary in (300, 3000):
        logits = np.full((2, vocabulary), -1e4, np.float32)
        logits[:, 100] = 0.0
        assert draw(Decoding(1.0), logits, np.array([0.0, np.nextafter(1.0, 0.0)])).tolist() == [100, 100]


def test_draw_never_takes_a_token_of_zero_probability():
    for vocabulary in (600, 2600):
        logits = np.full((1000, vocabulary), -np.inf, np.float32)
        logits[:, [3, 299, vocabulary - 1]] = 0.0
        drawn = draw(Decoding(1.0), logits, np.linspace(0, 1, 1000, endpoint=False))
        assert set(drawn.tolist()) == {3, 299, vocabulary - 1}


def test_temperature_zero_is_greedy():
    logits = np.random.default_rng(0).normal(size=(5, 50)).astype(np.float32)
    assert draw(Decoding(0.0), logits, np.zeros(5)).tolist() == logits.argmax(axis=1).tolist()


def test_draw_leaves_the_logits_alone():
    logits = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    before = logits.copy()
    draw(Decoding(0.6, top_p=0.5, top_k=7), logits, np.full(3, 0.5))
    assert np.array_equal(logits, before)


def test_top_k_keeps_the_likeliest_and_renormalises():
    row = np.array([0.0, 3.0, 1.0, 2.0])
    expected = np.where(row >= 2.0, np.exp(row), 0.0)
    assert np.abs(frequencies(Decoding(1.0, top_k=2), row) - expected / expected.sum()).max() < 1e-3


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.8, 0.95])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p):
    row = np.random.default_rng(1).normal(size=500) * 2
    p = softmax(row)
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1]
    expected = np.zeros_like(p)
    expected[kept] = p[kept] / p[kept].sum()
    assert np.abs(frequencies(Decoding(1.0, top_p=top_p), row) - expected).max() < 1e-3


def test_temperature_comes_before_the_nucleus():
    row = np.array([4.0, 2.0, 0.0])  # at temperature 1 the first holds 0.87; at 4 it holds 0.51
    assert (frequencies(Decoding(4.0, top_p=0.6), row) > 0).tolist() == [True, True, False]


def test_a_draw_does_not_depend_on_the_other_rows():
    rng = np.random.default_rng(2)
    logits, u = rng.normal(size=(9, 700)).astype(np.float32) * 3, rng.random(9)
    together = draw(Decoding(0.6, top_p=0.9), logits, u)
    alone = [int(draw(Decoding(0.6, top_p=0.9), logits[i : i + 1], u[i : i + 1])[0]) for i in range(9)]
    assert together.tolist() == alone


def test_uniforms_are_uniform_and_differ_by_key_and_counter():
    keys = np.array([vote_key(0, (1, 2, 3), k) for k in range(200)], np.uint64)
    numbers = np.concatenate([uniforms(keys, np.full(200, c)) for c in range(100)])
    assert len(set(numbers.tolist())) == 20_000
    assert 0.0 <= numbers.min() < numbers.max() < 1.0
    assert np.abs(np.histogram(numbers, 10, (0, 1))[0] - 2000).max() < 200


def test_vote_key_depends_on_seed_prompt_and_index_alone():
    base = vote_key(1, (5, 6), 0)
    assert base == vote_key(1, (5, 6), 0)
    assert (
        len({base, vote_key(2, (5, 6), 0), vote_key(1, (6, 5), 0), vote_key(1, (5, 6), 1), vote_key(-1, (5, 6), 0)})
        == 5
    )


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}]
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        Decoding(**bad)
