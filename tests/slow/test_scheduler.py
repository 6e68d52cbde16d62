"""The scheduler on a fake engine, which keeps the tokens of every stream in a list.

A mistake in sharing, moving or closing streams shows in these lists.
"""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsrm_lite.runtimes.engine import Interrupted
from fsrm_lite.slow.scheduler import Scheduler
from fsrm_lite.slow.voting import Referee
from fsrm_lite.types import ANSWER_TOKENS, Decoding, Job, Request, VerdictForm

VOCABULARY = 12
STOP, THINK_END, BREAK, PREFIX, ONE, TWO = 1, 2, 3, 4, 5, 6
WORDS = {BREAK: "\n\n", PREFIX: "verdict: ", ONE: "1", TWO: "2"}
PAIR = VerdictForm((THINK_END,), (THINK_END, BREAK, PREFIX), "\n\n", "verdict: ", (ONE, TWO))
POINT = VerdictForm((THINK_END,), (THINK_END, BREAK), "\n\n", "", (ONE, TWO))


def decode(ids):
    return "".join(WORDS.get(i, "x") for i in ids)


class FakeEngine:
    vocab_size, batch_tokens = VOCABULARY, 512

    def __init__(self, next_token):
        self.next_token, self.decoded, self.widest, self.calls, self.interrupt_at = next_token, 0, 0, 0, None

    def prepare(self, streams, cells):
        self.tokens, self.cells = [[] for _ in range(streams)], cells

    def decode(self, tokens, positions, streams, *, outputs):
        self.calls += 1
        if self.interrupt_at == self.calls:
            raise Interrupted
        if outputs:
            assert streams.tolist() == list(range(len(streams)))  # neighbouring streams, or llama.cpp splits the batch
        for token, position, stream in zip(tokens.tolist(), positions.tolist(), streams.tolist(), strict=True):
            assert position == len(self.tokens[stream]) < self.cells
            self.tokens[stream].append(token)
        self.decoded += len(tokens)
        self.widest = max(self.widest, len(tokens) if outputs else 0)
        logits = np.full((len(tokens) if outputs else 0, self.vocab_size), -50.0, np.float32)
        for row, stream in enumerate(streams.tolist() if outputs else ()):
            logits[row, self.next_token(tuple(self.tokens[stream]))] = 0.0
        return logits

    def copy(self, source, target, length):
        self.tokens[target] = self.tokens[source][:length]
        assert len(self.tokens[target]) == length

    def cut(self, stream, length):
        del self.tokens[stream][length:]


def hashed(tokens):
    """A model whose next token depends on every token before it."""
    return hashlib.sha256(bytes(tokens)).digest()[0] % VOCABULARY


def run(jobs, next_token=hashed, streams=4, stop=(STOP,), error_rate=0.0, **engine):
    fake = FakeEngine(next_token)
    for name, value in engine.items():
        setattr(fake, name, value)
    decoding = Decoding(0.0)
    referee = Referee(Request(tuple(jobs), decoding, stop, error_rate=error_rate))
    cells = max(job.room for job in jobs)
    complete = Scheduler(fake, decode, decoding, stop, streams, cells).run(referee)
    return referee.completions, complete, fake


def alone(job):
    """Return what the model would write for a job that it runs alone."""
    tokens, out = list(job.prompt), []
    while len(out) < job.budget and (token := hashed(tuple(tokens))) != STOP:
        tokens.append(token)
        out.append(token)
    return tuple(out)


prompts = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=60).map(tuple)


@settings(max_examples=150, deadline=None)
@given(st.lists(prompts, min_size=1, max_size=4), st.data())
def test_any_mix_of_jobs_writes_what_each_would_write_alone(bases, data):
    jobs = []
    for _ in range(data.draw(st.integers(1, 12))):
        base = data.draw(st.sampled_from(bases))
        cut = data.draw(st.integers(1, len(base)))
        jobs.append(
            Job(
                base[:cut] + data.draw(st.lists(st.integers(0, 3), max_size=3).map(tuple)),
                0,
                data.draw(st.integers(1, 30)),
            )
        )
    results, complete, _ = run(jobs, streams=data.draw(st.integers(1, 6)))
    assert complete
    assert [r.ids for r in results] == [alone(job) for job in jobs]


@settings(max_examples=80, deadline=None)
@given(st.lists(prompts, min_size=1, max_size=3), st.integers(1, 5), st.integers(1, 20), st.sampled_from([PAIR, POINT]))
def test_every_vote_ends_in_a_verdict_whatever_the_model_writes(bases, streams, budget, form):
    jobs = [Job(p, 0, budget, form) for p in bases for _ in range(3)]
    results, complete, _ = run(jobs, streams=streams)
    assert complete
    for result in results:
        assert result.finished
        assert len(result.logits) == 2
        assert result.thought <= budget
    assert [results[i].ids for i in range(0, len(jobs), 3)] == [results[i + 2].ids for i in range(0, len(jobs), 3)]


def script(*written, verdict=ONE):
    """A model that writes these tokens behind the prompt (0, 0), and ``verdict`` wherever it is forced to."""

    def next_token(tokens):
        behind = tokens[2:]
        if behind[: len(written)] == written[: len(behind)] and len(behind) < len(written):
            return written[len(behind)]
        return verdict

    return next_token


def only(written, budget=10, form=PAIR, verdict=ONE):
    results, _, fake = run([Job((0, 0), 0, budget, form)], script(*written, verdict=verdict))
    return results[0], fake


def test_a_written_verdict_is_taken_and_not_forced():
    result, fake = only((7, 8, THINK_END, BREAK, PREFIX, TWO, STOP))
    assert (result.choice, result.thought, result.ids) == (1, 2, (7, 8, THINK_END, BREAK, PREFIX, TWO))
    assert fake.decoded == 2 + 6


def test_a_verdict_form_inside_the_thought_is_only_text():
    result, _ = only((PREFIX, TWO, THINK_END, BREAK, PREFIX, ONE, STOP))
    assert (result.choice, result.thought) == (0, 2)


def test_the_last_of_several_verdicts_counts():
    result, _ = only((THINK_END, BREAK, PREFIX, ONE, 7, PREFIX, TWO, STOP))
    assert result.choice == 1


def test_a_thought_over_its_budget_is_closed_and_read():
    result, fake = only((7,) * 20, budget=5, verdict=TWO)
    assert (result.choice, result.thought, len(result.ids)) == (None, 5, 5)
    assert result.logits == (-50.0, 0.0)
    assert fake.tokens[0] == [0]  # the prompt's body stays for others


def test_a_stop_without_a_verdict_is_closed_and_read():
    result, _ = only((7, 8, STOP), verdict=TWO)
    assert (result.choice, result.thought, result.ids, result.logits) == (None, 2, (7, 8), (-50.0, 0.0))


def test_an_answer_without_a_verdict_is_dropped_and_the_verdict_read_behind_the_thought():
    seen = []

    def next_token(tokens):
        seen.append(tokens)
        written = (7, THINK_END, 8, 8, STOP)
        behind = tokens[2:]
        return written[len(behind)] if behind == written[: len(behind)] else TWO

    results, _, _ = run([Job((0, 0), 0, 10, PAIR)], next_token)
    assert results[0].choice is None
    assert seen[-1] == (0, 0, 7, THINK_END, BREAK, PREFIX)
    assert results[0].logits == (-50.0, 0.0)


def test_an_endless_answer_is_cut():
    result, _ = only((7, THINK_END) + (8,) * 200, verdict=ONE)
    assert len(result.ids) == 1 + ANSWER_TOKENS
    assert result.logits == (0.0, -50.0)


def test_without_a_prefix_only_the_place_behind_the_close_is_a_verdict():
    result, _ = only((7, THINK_END, BREAK, TWO, ONE, STOP), form=POINT)
    assert result.choice == 1
    late, _ = only((7, THINK_END, BREAK, 8, TWO, STOP), form=POINT, verdict=ONE)
    assert late.choice is None


def test_votes_read_their_prompt_once():
    prompt = tuple(range(4)) * 30
    results, _, fake = run([Job(prompt, 0, 4, PAIR)] * 4, lambda tokens: 7, streams=4)
    assert sum(r.tokens_read for r in results) == len(prompt) + 3 + 4 * len(PAIR.forced)
    assert fake.decoded == len(prompt) - 1 + 4 * (1 + 3 + len(PAIR.forced) + 1)


def test_a_common_front_of_different_prompts_is_read_once():
    front = tuple(range(4)) * 30
    results, _, _ = run([Job((*front, 9, 9), 0, 3), Job((*front, 8, 8), 0, 3)], lambda tokens: 7)
    assert [r.tokens_read for r in results] == [122, 2]


def test_a_later_vote_finds_the_prompt_that_an_earlier_one_left():
    prompt = tuple(range(4)) * 30
    results, _, _ = run([Job(prompt, 0, 3)] * 3, lambda tokens: 7, streams=1)
    assert [r.tokens_read for r in results] == [120, 1, 1]


def test_streams_stay_full_while_there_is_work():
    jobs = [Job((n % 5,), 0, 3 + 4 * (n % 3)) for n in range(40)]
    _, _, fake = run(jobs, lambda tokens: 7, streams=4)
    rows = sum(job.budget for job in jobs)
    assert fake.widest == 4
    assert fake.calls <= math.ceil(rows / 4) + 11


def test_decided_votes_are_dropped_at_once():
    lengths = {7: 3, 8: 4, 9: 20}

    def next_token(tokens):
        behind = tokens[1:]
        return ONE if THINK_END in behind else (THINK_END if len(behind) >= lengths[tokens[0]] else 0)

    form = VerdictForm((THINK_END,), (THINK_END,), "", "", (ONE, TWO))
    jobs = [Job((first,), 0, 30, form, pair=0) for first in (7, 8, 9, 7, 7)]
    results, complete, _ = run(jobs, next_token, stop=(ONE, TWO), error_rate=0.1)
    assert complete
    assert [r.finished if r else None for r in results] == [True, True, False, None, None]
    assert 0 < len(results[2].ids) < 10


def test_an_interruption_hands_over_what_there_is():
    results, complete, _ = run([Job((0, n), 0, 50) for n in range(3)], lambda tokens: 7, streams=2, interrupt_at=6)
    assert not complete
    assert [r.finished if r else None for r in results] == [False, False, None]
    assert len(results[0].ids) == 4


def test_a_deadline_in_the_past_starts_nothing():
    fake = FakeEngine(hashed)
    decoding = Decoding(0.0)
    referee = Referee(Request((Job((0,), 0, 5),), decoding, (STOP,)))
    assert not Scheduler(fake, decode, decoding, (STOP,), 1, 6).run(referee, deadline=0.0)
    assert referee.completions == [None]


def test_job_room_covers_prompt_thought_answer_and_close():
    assert Job((1, 2, 3), 0, 10).room == 13
    assert Job((1, 2, 3), 0, 10, PAIR).room == 13 + ANSWER_TOKENS + 3


# A thought that ends by text: no token of these is the close, the prefix or the choice alone.
PARTS = {7: "fine.</ev", 8: "al>\n\n<ans", 9: "wer> [[", 10: "1]]", 11: "</eval> <answer>[[", 12: ".5]]", 13: "]] <ans"}


def parts(ids):
    return "".join(PARTS.get(i, WORDS.get(i, "x")) for i in ids)


def written(script, choices=(ONE, TWO), budget=6, answer_tokens=5, several="last"):
    """Return what comes of a text that a model writes token by token, when a text closes its thought."""
    form = VerdictForm(
        (), (8, 9), "", "<answer>[[", choices, ("1", "2"), "</eval>\n", (8, 11), answer_tokens, several=several
    )
    prompt = (0, 0)

    def next_token(tokens):
        return script[min(len(tokens) - len(prompt), len(script) - 1)]

    fake = FakeEngine(next_token)
    fake.vocab_size = max(PARTS) + 1
    job = Job(prompt, 0, budget, form)
    referee = Referee(Request((job,), Decoding(0.0), (STOP,)))
    Scheduler(fake, parts, Decoding(0.0), (STOP,), 1, job.room).run(referee)
    return referee.completions[0]


def test_a_thought_ends_by_text_wherever_tokens_end():
    done = written([6, 7, 8, 9, TWO, STOP])
    assert (done.choice, done.thought) == (1, 1)
    assert done.logits == (-50.0, 0.0)
    assert written([6, 6, 11, ONE, STOP]).choice == 0


def test_a_verdict_within_a_longer_token_is_read_from_the_text():
    done = written([6, 7, 8, 9, 0, STOP])
    assert done.choice is None  # the model wrote no choice, so that its thought was closed
    done = written([7, 8, 9, 10, STOP])
    assert (done.choice, done.logits) == (0, (0.0, -50.0))


def test_a_verdict_that_goes_on_or_is_contradicted_is_none():
    """The token of a choice alone is not enough: the whole text has the last word."""
    done = written([6, 7, 8, 9, ONE, 12, STOP])
    assert done.choice is None  # 1.5, so that its thought was closed and its verdict read from the logits
    assert len(done.logits) == 2
    assert written([6, 7, 8, 9, ONE, STOP]).choice == 0
    contradicted = [6, 7, 8, 9, ONE, 13, 9, TWO, STOP]
    assert written(contradicted, answer_tokens=9).choice == 1
    assert written(contradicted, answer_tokens=9, several="none").choice is None


def test_a_thought_without_an_end_is_closed_at_its_budget():
    done = written([6] * 20)
    assert (done.choice, done.thought, len(done.logits)) == (None, 6, 2)


@pytest.mark.parametrize("close", ["</eval>", "\u3010\u7d42\u3011", "</caf\u00e9>\n", "fin\u00e9"])
def test_a_close_in_any_script_ends_a_thought(close, tmp_path):
    """The tokens are bytes here, so that a character outside ASCII ends with a token that is only a part of it."""
    pytest.importorskip("gguf")
    from helpers.judge import tiny_encoder

    from fsrm_lite.bundle.manifest import VerdictTemplate
    from fsrm_lite.slow.judge import resolve_form

    encoder = tiny_encoder(tmp_path)
    one, two = (encoder.encode_text(word)[0] for word in "12")
    form = resolve_form(VerdictTemplate(close, "[[", ("1", "2"), (one, two), "]]"), encoder)
    assert form.head == ()
    thought = encoder.encode_text("hm ")
    says = [*thought, *encoder.encode_text(f"{close}[[2"), *encoder.manifest.stop_ids]
    fake = FakeEngine(lambda tokens: says[min(len(tokens) - 2, len(says) - 1)])
    fake.vocab_size = encoder.manifest.vocab_size
    job = Job((0, 0), 0, 100, form)
    referee = Referee(Request((job,), Decoding(0.0), encoder.manifest.stop_ids))
    Scheduler(fake, encoder.decode, Decoding(0.0), encoder.manifest.stop_ids, 1, job.room).run(referee)
    (done,) = referee.completions
    assert (done.choice, done.thought, len(done.ids)) == (1, len(thought), len(says) - 1)
