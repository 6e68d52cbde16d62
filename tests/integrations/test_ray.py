"""Ray: a real cluster on this machine, whose results are those of one process, row for row, whatever dies."""

import builtins
import os
import signal
import socket
import sys

import numpy as np
import pytest

from benchmarks.scale_out import worker_processes
from fsrm_lite import FastSlowRM
from fsrm_lite.errors import InputError, MissingExtraError
from fsrm_lite.integrations import ray as ours
from fsrm_lite.integrations.ray import ClusterError, RayPool, ScoreBatches, Worker
from fsrm_lite.models.data import held_out

SIZE = 8


@pytest.fixture(scope="module")
def rows():
    return [(p.problem.question, [p.chosen.text, p.rejected.text]) for p in held_out("test", 48)]


def batches(rows, size=SIZE):
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def alone(rm, kind, rows, judge):
    """What one process gives, batch by batch."""
    found = []
    for batch in batches(rows):
        rm.fast.forget()
        if kind == "compare":
            found += rm.compare_many([(p, *both) for p, both in batch], judge=judge)
        elif kind == "score":
            found += rm.score_many([(p, r[0]) for p, r in batch], judge=judge)
        else:
            scores = iter(rm.score_many([(p, r) for p, both in batch for r in both], judge=judge))
            found += [[next(scores) for _ in both] for _, both in batch]
    return found


def given(kind, rows):
    return [(p, r[:1]) for p, r in rows] if kind == "score" else rows


@pytest.mark.parametrize("kind", ["score", "compare", "rank"])
@pytest.mark.parametrize("judge", ["never", "auto"])
def test_a_worker_in_two_steps_gives_what_one_call_gives(rm, rows, kind, judge):
    worker, few = Worker(None, {"threads": 1, "judge": judge}), rows[:SIZE]
    found = []
    for batch in batches(given(kind, few)):
        reading = worker.read(kind, batch)
        assert (reading.results is None) == (judge == "auto" and reading.asked > 0)
        found += reading.results or worker.finish(kind, batch, reading.scores)
    assert found == alone(rm, kind, few, judge)


def test_a_row_that_the_judge_has_no_room_for_costs_the_others_nothing(rows):
    prompt = rows[0][0]
    texts = {"prompt": [prompt] * 3, "response": [rows[0][1][0], "15 pens. " * 130, rows[0][1][0]]}
    found = ScoreBatches(threads=1, judge="always")({k: np.array(v, dtype=object) for k, v in texts.items()})
    assert [str(route) for route in found["route"]] == ["slow", "None", "slow"]
    assert [error is None for error in found["error"]] == [True, False, True]
    assert np.isnan(found["score"][1])


def test_batches_of_columns(rm, rows):
    prompts = [p for p, _ in rows[:6]]
    responses = [r[0] for _, r in rows[:6]]
    responses[2] = " "
    texts = {"prompt": np.array(prompts, dtype=object), "response": np.array(responses, dtype=object)}
    batch = texts | {"id": np.arange(6)}
    found = ScoreBatches(threads=1)(batch)
    assert [error is None for error in found["error"]] == [True, True, False, True, True, True]
    assert np.isnan(found["score"][2])
    wanted = rm.score_many([(p, r) for p, r in zip(prompts, responses, strict=True) if r.strip()], judge="never")
    assert [s for s in found["score"] if not np.isnan(s)] == [pytest.approx(w.score, abs=1e-6) for w in wanted]
    assert list(found["id"]) == list(range(6))
    with pytest.raises(InputError, match="no column 'response'"):
        ScoreBatches(threads=1)({"prompt": batch["prompt"]})
    with pytest.raises(InputError, match="the column 'score' already"):
        ScoreBatches(threads=1)(batch | {"score": np.zeros(6)})
    assert "my_score" in ScoreBatches(threads=1, prefix="my_")(batch | {"score": np.zeros(6)})


def test_ray_that_is_missing_or_too_old_or_out_of_reach_is_one_line(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **more):
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return real(name, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        with pytest.raises(MissingExtraError, match=r"pip install 'fsrm-lite\[ray\]'"):
            ours.load_ray()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", type("old", (), {"__version__": "1.13.0"}))
        with pytest.raises(ClusterError, match=r"ray 1.13.0 is installed, expected at least 2.9"):
            ours.load_ray()
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # in random order, the cluster of other tests may run
    with socket.socket() as taken:
        # Bound and not listening: whoever connects is refused, and nobody else gets the port.
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for address, match in (
            (f"127.0.0.1:{port}", "nobody answers"),
            (f"ray://127.0.0.1:{port}", "nobody answers"),
            ("nowhere", "expected local, auto"),
            ("host:99999", "expected local, auto"),
        ):
            with pytest.raises(ClusterError, match=match):
                RayPool(address=address)
        with pytest.raises(InputError, match="workers is 0"):
            RayPool(workers=0)


# On a cluster.


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "judge"), [("score", "never"), ("rank", "never"), ("compare", "auto")])
def test_a_cluster_gives_what_one_process_gives(cluster, rm, rows, kind, judge):
    with RayPool(workers=2, judge=judge) as pool:
        assert pool.workers == 2
        found = [result for batch in pool.map(kind, batches(given(kind, rows))) for result in batch]
    assert found == alone(rm, kind, rows, judge)


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_and_repeats_nothing(cluster, rm, rows):
    many = rows * 6
    found = []
    with RayPool(workers=2, judge="never") as pool:
        for number, batch in enumerate(pool.map("rank", batches(many))):
            if number in (1, 9):
                os.kill(worker_processes()[0], signal.SIGKILL)
            found += batch
    assert len(found) == len(many)
    assert found == alone(rm, "rank", many, "never")


@pytest.mark.slow
def test_a_batch_that_kills_its_workers_ends_the_run(cluster):
    class Deadly(Worker):
        def read(self, kind, rows):
            os._exit(1)

    pool = RayPool(workers=1, judge="never")
    pool._actor = cluster.remote(Deadly).options(num_cpus=1, max_restarts=0)
    pool.close()
    pool._idle = [pool._start()]
    with pytest.raises(ClusterError, match="3 workers died over the same batch"):
        list(pool.map("score", [[("q", ["a"])]]))


@pytest.mark.slow
def test_a_bad_text_is_the_librarys_error(cluster):
    with RayPool(workers=1, judge="never") as pool:
        bad, good = pool.map("score", [[("What is 2 + 3?", [" "])], [("What is 2 + 3?", ["5"])]])
    assert isinstance(bad, InputError)
    assert good[0].score > 0


@pytest.mark.slow
def test_more_threads_than_any_machine_has(cluster):
    with pytest.raises(ClusterError, match="no machine of the cluster has 64 processors"):
        RayPool(threads=64)


@pytest.mark.slow
def test_ray_data_with_actors_that_load_once(cluster, rows):
    data = cluster.data
    data.DataContext.get_current().enable_progress_bars = False
    table = data.from_items([{"id": i, "prompt": p, "response": r[0]} for i, (p, r) in enumerate(rows)])
    options = {"judge": "never", "deterministic": True}  # else a score depends a little on its company in a batch
    scored = table.map_batches(ScoreBatches, fn_constructor_kwargs=options, batch_size=SIZE, concurrency=1, num_cpus=1)
    found = sorted(scored.take_all(), key=lambda row: row["id"])
    with FastSlowRM.from_pretrained(threads=1, **options) as rm:
        wanted = rm.score_many([(p, r[0]) for p, r in rows])
    assert [row["score"] for row in found] == [w.score for w in wanted]
    assert {row["error"] for row in found} == {None}
