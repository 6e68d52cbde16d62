"""Readings go before the steps of a thought."""

import threading

from helpers.judge import tiny_judge_files

from fsrm_lite.fast.path import FastPath
from fsrm_lite.runtimes.precedence import Precedence
from fsrm_lite.slow.judge import Judge


def waits(turns):
    """Whether a step would have to wait now."""
    return not turns._free.is_set()


def test_a_step_waits_for_every_reading_and_for_none_afterwards():
    turns = Precedence()
    assert not waits(turns)
    with turns.reading():
        with turns.reading():
            assert waits(turns)
        assert waits(turns)
    assert not waits(turns)
    try:
        with turns.reading():
            raise ValueError
    except ValueError:
        assert not waits(turns)


def test_a_step_goes_on_as_soon_as_the_reading_ends_and_at_last_without_that():
    turns, went_on = Precedence(), threading.Event()
    with turns.reading():
        thread = threading.Thread(target=lambda: (turns.give_way(30.0), went_on.set()))
        thread.start()
        assert not went_on.wait(0.05)
    assert went_on.wait(10)
    thread.join()
    with turns.reading():
        turns.give_way(0.01)  # comes back although the reading goes on


def test_the_judge_gives_way_before_every_step_and_the_fast_path_asks_for_it(tmp_path, rm, monkeypatch):
    file, encoder = tiny_judge_files(tmp_path)
    steps = []
    judge = Judge(file, encoder, threads=1, give_way=steps.append)
    (written,) = judge.generate([[1, 2, 3]], max_tokens=5)[0]
    judge.close()
    assert len(steps) >= len(written.ids)
    assert steps[0] == 0.0  # nothing is known of a step yet
    assert min(steps[1:]) > 0.0

    seen = []
    path = FastPath(rm.bundle, rm.encoder, threads=1, truncate=False)
    read = path._model.read
    monkeypatch.setattr(path._model, "read", lambda *a, **k: (seen.append(waits(path.precedence)), read(*a, **k))[1])
    path.read([path.encode("1 + 1?", "2")], 1.0)
    assert seen == [True]
    assert not waits(path.precedence)
    path._model.close()
