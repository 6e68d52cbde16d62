"""The benchmark harness: fair rounds, parts of slow peers scaled back, a table that can be read."""

from __future__ import annotations

import pytest

from benchmarks import judge
from benchmarks.judge_sides import PROMPT, SHARED, Task, random_prompts
from benchmarks.load import Watch
from benchmarks.measure import Field, Series, race, summarise
from benchmarks.report import plot_growth, table
from benchmarks.worker import Worker, WorkerError
from benchmarks.workloads import BY_COUNT, MAIN, PART_TOKENS


class _FakeField:
    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.asked: list[tuple[str, int]] = []
        self.loading_s = 0.0

    def run(self, peer: str, workload, timeout: float) -> dict[str, object]:
        self.asked.append((peer, workload.count))
        if peer not in self.seconds:
            raise WorkerError(f"{peer} died")
        return {"seconds": self.seconds[peer] * workload.count, "values": [0.0], "rss_bytes": 1, "others": 0.0}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr("benchmarks.measure.SETTLE_SECONDS", 0.0)


def test_workloads_share_what_they_say():
    for workload in MAIN:
        sequences = workload.sequences(1000)
        assert len(sequences) == workload.count
        assert {len(ids) for ids in sequences} == {workload.prompt + workload.response}
        assert len({tuple(ids[: workload.prompt]) for ids in sequences}) == 1
        assert sequences == workload.sequences(1000)


def test_parts_fill_a_batch_and_add_up():
    for workload in MAIN[1:]:
        part = workload.part()
        assert part.count * part.scale == workload.count
        assert PART_TOKENS <= part.count * (part.prompt + part.response) < 2 * PART_TOKENS
    assert MAIN[0].part() == MAIN[0]


def test_peers_take_turns_and_the_slow_one_runs_a_part():
    field = _FakeField({"ours": 0.01, "near": 0.02, "far": 1.0})
    series = race(field, ["ours", "near", "far", "broken"], MAIN[2], 1e9, lambda text: None, rounds=3)
    assert [len(s.seconds) for s in series.values()] == [3, 3, 3, 0]
    assert (series["near"].scale, series["far"].scale) == (1, 8)
    assert series["far"].seconds[-1] == pytest.approx(256.0)
    assert series["broken"].failed == "broken died"
    assert [peer for peer, _ in field.asked][-3:] == ["ours", "near", "far"]


def test_only_peers_that_share_nothing_run_a_part_of_a_shared_prompt():
    field = _FakeField({"ours": 0.01, "llama.cpp seq_cp Q4_0": 1.0, "transformers bf16": 1.0})
    series = race(field, list(field.seconds), MAIN[3], 0.0, lambda text: None)
    assert [s.scale for s in series.values()] == [1, 1, 4]
    assert field.asked == [("ours", 64), ("llama.cpp seq_cp Q4_0", 64), ("transformers bf16", 16)]


def test_without_budget_each_peer_runs_once():
    series = race(_FakeField({"ours": 1.0, "near": 2.0}), ["ours", "near"], MAIN[0], 0.0, lambda text: None)
    assert [len(s.seconds) for s in series.values()] == [1, 1]


def test_prompts_of_both_orders_share_their_front():
    first, second = sorted(set(random_prompts(Task("", 1, 4), 1000)))
    assert len(first) == len(second) == PROMPT
    assert first[:SHARED] == second[:SHARED]
    assert sorted(first) == sorted(second)
    assert len(set(random_prompts(Task("", 1, 3, one_prompt=True), 1000))) == 1


def test_the_peers_faster_way_to_wait_counts_and_a_part_is_scaled():
    (task, *_), peer = judge.RANDOM, {spin: [{"seconds": s, "tokens": 100, "others": 0.0}] for spin, s in (("300000", 2.0), ("100", 1.0))}
    row = judge._row("random weights", task, 2.2, {task.name: [{"seconds": 4.4, "inside_s": 4.0, "tokens": 1024, "others": 0.0}]}, peer)
    assert row.peer_seconds["median_s"] == pytest.approx(8 * 128 / 100)
    assert row.ratio == pytest.approx(10.24 / 4.4)
    assert row.overhead == pytest.approx(0.1)
    assert row.note == "peer: 100"


def test_table_names_the_machine_and_judges_the_targets(tmp_path):
    rows = {
        "fsrm-lite int8": Series([1.0, 1.2, 1.1], rss_bytes=3 << 20).to_dict(),
        "transformers bf16": Series([2.5]).to_dict(),
        "Llama Q8_0": Series(failed="Llama Q8_0 died").to_dict(),
    }
    machine = {"cpu": "Some CPU", "flags": ["avx2"], "python": "3.11.7"}
    setting = {"machine": machine, "threads": 2, "shape": "small", "versions": {"numpy": "2.0"}}
    about = {"setting": setting, "date": "2026-11-21", "llama_without_amx": True}
    about |= {"linear_weights": 1000, "weights_file_bytes": 1 << 20, "prefix_bytes": 1 << 20}
    growth = {"fsrm-lite int8": {w.name: 0.1 * w.count for w in BY_COUNT}}
    judged = {
        "what": "8 votes",
        "seconds": summarise([2.0, 1.0, 3.0], []),
        "tokens_per_second": 50.0,
        "peer_seconds": summarise([8.0], []),
        "ratio": 4.0,
        "target": 5.0,
        "overhead": 0.05,
        "note": "",
    }
    times = {"bare interpreter": 0.02, "import numpy": 0.1, "import fsrm_lite": 0.03, "first score": 1.5}
    startup = {name: {"median_s": s} for name, s in times.items()}
    main = {"W1": rows, "W2": rows, "roofline": {"int8": 1e6, "fp32": 1e5}}
    text = table({"about": about, "main": main, "growth": growth, "judge": {"judge-embedded": [judged]}, "startup": startup})
    plot_growth(growth, tmp_path / "growth.png")
    assert "Some CPU (avx2), 2 threads" in text
    assert "2.27x the best peer (transformers bf16; target 1.8: met)" in text
    assert "0.93 of the int8 GEMM peak (target 0.6: met)" in text
    assert "peak memory 1.50x the 2 MiB of weights file and KV (target 1.3: missed)" in text
    assert "| Llama Q8_0 | Llama Q8_0 died |" in text
    assert "| 100.00 |" in text
    assert "pull request 26954" in text
    assert "adds 10 ms (target 30: met); the first score takes 1.50 s (target 1: missed)" in text
    assert "| 8 votes | 2.00 | 1.00 - 3.00, n=3 | 50 | 8.00 | 8.00 - 8.00, n=1 | 4.00x | 5.0x: missed | 5.0% |" in text
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_worker_that_cannot_start_is_an_error_with_its_reason(tmp_path):
    with pytest.raises(WorkerError, match="KeyError: 'nobody'"):
        Worker("nobody", tmp_path, 1, timeout=60)


def test_short_of_memory_the_peer_used_last_makes_room(monkeypatch):
    events: list[str] = []

    class FakeWorker:
        def __init__(self, peer: str, root, threads: int) -> None:
            self.peer = peer
            events.append(f"open {peer}")

        def run(self, task, timeout: float) -> dict[str, object]:
            return {}

        def close(self) -> None:
            events.append(f"close {self.peer}")

    free = iter([9 << 30, 1 << 30, 9 << 30])
    monkeypatch.setattr("benchmarks.measure.Worker", FakeWorker)
    monkeypatch.setattr("benchmarks.measure._available_bytes", lambda: next(free))
    field = Field(None, 1, lambda text: None)
    for peer in ("a", "b", "a", "c"):
        field.run(peer, MAIN[0], 1.0)
    assert events == ["open a", "open b", "close a", "open c"]


def test_runs_beside_neighbours_do_not_count_while_there_are_others():
    mixed = summarise([9.0, 1.0, 1.2], [0.4, 0.01, 0.0])
    assert (mixed["median_s"], mixed["max_s"], mixed["runs"], mixed["quiet"]) == (1.1, 1.2, 2, True)
    busy = summarise([9.0, 8.0], [0.4, 0.2])
    assert (busy["median_s"], busy["runs"], busy["quiet"]) == (8.0, 1, False)


def test_the_watch_counts_what_others_took(tmp_path):
    def tell(busy: int, own: int) -> None:
        (tmp_path / "stat").write_text(f"cpu  {busy} 0 0 999 0 0 0 0 0 0\ncpu0 1\n")
        (tmp_path / "7" / "stat").write_text(f"7 (a (b) c) S {' '.join(['0'] * 10)} {own} 0 0 0\n")

    (tmp_path / "7").mkdir()
    tell(1000, 100)
    watch = Watch(7, tmp_path)
    tell(1500, 600)
    assert watch.others() == 0.0
    tell(10**9, 600)
    assert watch.others() == 1.0
    assert Watch(8, tmp_path).others() == 0.0


def test_agreement_is_checked_where_both_peers_ran():
    from benchmarks.__main__ import _check_agreement

    _check_agreement({"fsrm-lite int8": Series(values=[1.0])})
    _check_agreement({"fsrm-lite fp32": Series(values=[1.0]), "transformers fp32": Series(values=[1.001])})
    with pytest.raises(SystemExit, match="void"):
        _check_agreement({"fsrm-lite fp32": Series(values=[1.0]), "transformers fp32": Series(values=[1.1])})
