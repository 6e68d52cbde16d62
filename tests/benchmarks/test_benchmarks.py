"""The benchmarks themselves: rounds are fair, times of parts are scaled to the whole, the table says what it should."""

from __future__ import annotations

import types

import pytest

from benchmarks import judge, measure
from benchmarks.files import Files
from benchmarks.growth import POINT_SECONDS, grow
from benchmarks.judge_sides import PROMPT, RUNTIMES, SHARED, SIDES, JudgeWorkload, counted, random_prompts
from benchmarks.load import Watch
from benchmarks.measure import EQUAL, NEAR, Field, Series, best_forms, fastest_of, race, summarise
from benchmarks.peers import CACHED, FAMILIES, PEERS
from benchmarks.report import plot_growth, table
from benchmarks.worker import Worker, WorkerError
from benchmarks.workloads import BY_COUNT, BY_PROMPT, MAIN, PART_TOKENS


class _FakeField:
    def __init__(self, seconds: dict[str, float], others: float = 0.0) -> None:
        self.seconds, self.others = seconds, others
        self.asked: list[tuple[str, int]] = []
        self.loading_s = 0.0

    def run(self, peer: str, workload, timeout: float) -> dict[str, object]:
        self.asked.append((peer, workload.count))
        if peer not in self.seconds:
            raise WorkerError(f"{peer} died")
        return {"seconds": self.seconds[peer] * workload.count, "values": [0.0], "rss_bytes": 1, "others": self.others}


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


def test_peers_take_turns_and_the_slow_one_runs_a_part_once():
    field = _FakeField({"ours": 0.01, "near": 0.02, "far": 1.0})
    series = race(field, ["ours", "near", "far", "broken"], MAIN[2], 1e9, lambda text: None, rounds=(3, 3))
    assert [len(s.seconds) for s in series.values()] == [3, 3, 1, 0]
    assert [s.scale for s in series.values()] == [1, 1, 8, 1]
    assert series["far"].seconds == [pytest.approx(256.0)]
    assert series["broken"].failed == "broken died"
    assert [peer for peer, _ in field.asked][-4:] == ["ours", "near", "ours", "near"]


def test_what_a_ratio_is_taken_of_is_measured_whole_however_far():
    field = _FakeField(
        {
            "ours": 0.01,
            "llama.cpp seq_cp Q4_0": 0.5,
            "transformers bf16": 0.3,
            "CrossEncoder bf16": 0.33,
            "Llama Q4_0": 1.0,
        }
    )
    series = race(field, list(field.seconds), MAIN[3], 1e9, lambda text: None, rounds=(3, 3))
    assert {name: (s.scale, len(s.seconds)) for name, s in series.items()} == {
        "ours": (1, 3),
        "llama.cpp seq_cp Q4_0": (1, 1),
        "transformers bf16": (1, 3),
        "CrossEncoder bf16": (1, 1),
        "Llama Q4_0": (16, 1),
    }


def test_the_first_run_of_a_part_near_the_best_does_not_count():
    class Warming(_FakeField):
        def run(self, peer: str, workload, timeout: float) -> dict[str, object]:
            first = peer not in {name for name, _ in self.asked}
            answer = super().run(peer, workload, timeout)
            return answer | ({"seconds": 2 * answer["seconds"]} if first and workload.scale > 1 else {})

    field = Warming({"ours": 0.01, "optimum int8": 0.01, "CrossEncoder bf16": 0.015})
    series = race(field, list(field.seconds), MAIN[2], 1e9, lambda text: None, rounds=(3, 3))
    assert (series["optimum int8"].scale, series["CrossEncoder bf16"].scale) == (1, 8)
    assert series["CrossEncoder bf16"].seconds == [pytest.approx(256 * 0.015)] * 3


def test_a_slow_first_run_makes_nobody_far():
    class Warming(_FakeField):
        def run(self, peer: str, workload, timeout: float) -> dict[str, object]:
            first = peer not in {name for name, _ in self.asked}
            answer = super().run(peer, workload, timeout)
            return answer | ({"seconds": 2 * answer["seconds"]} if first and peer == "warming" else {})

    field = Warming({"ours": 0.01, "lead": 0.011, "warming": 0.02, "far": 0.1})
    series = race(field, list(field.seconds), MAIN[1], 1e9, lambda text: None, rounds=(3, 3))
    assert [len(s.seconds) for s in series.values()] == [3, 3, 4, 1]


def test_the_best_of_llama_cpp_runs_all_rounds_in_the_workload_that_asks_for_it():
    field = _FakeField({"ours": 0.01, "llama.cpp seq_cp Q4_0": 0.5, "Llama Q4_0": 0.6, "CrossEncoder bf16": 0.3})
    series = race(field, list(field.seconds), MAIN[0], 1e9, lambda text: None, rounds=(3, 3))
    assert [len(s.seconds) for s in series.values()] == [3, 3, 1, 3]


def test_a_part_that_looks_good_is_replaced_by_the_whole_even_when_another_whole_disappoints():
    class Disappointing(_FakeField):
        def run(self, peer: str, workload, timeout: float) -> dict[str, object]:
            answer = super().run(peer, workload, timeout)
            return answer | ({"seconds": 99.0} if peer == "transformers bf16" and workload.scale == 1 else {})

    field = Disappointing({"ours": 0.01, "transformers bf16": 0.03, "optimum int8": 0.1})
    series = race(field, list(field.seconds), MAIN[3], 1e9, lambda text: None, rounds=(3, 3))
    assert [s.scale for s in series.values()] == [1, 1, 1]
    assert [len(s.seconds) for s in series.values()] == [3, 1, 3]


def test_only_peers_that_share_nothing_run_a_part_of_a_shared_prompt():
    field = _FakeField({"ours": 0.01, "llama.cpp seq_cp Q4_0": 1.0, "transformers fp32": 2.0, "transformers bf16": 1.0})
    race(field, list(field.seconds), MAIN[3], 1e9, lambda text: None, rounds=(3, 3))
    assert field.asked[:4] == [
        ("ours", 64),
        ("llama.cpp seq_cp Q4_0", 64),
        ("transformers fp32", 16),
        ("transformers bf16", 16),
    ]


def test_a_far_look_beside_neighbours_is_taken_again():
    field = _FakeField({"ours": 1.0, "near": 1.0, "far": 2 * NEAR}, others=0.5)
    series = race(field, list(field.seconds), MAIN[0], 0.0, lambda text: None, rounds=(1, 1))
    assert [len(s.seconds) for s in series.values()] == [1, 1, 2]


def test_the_first_workload_chooses_among_the_forms_of_a_peer():
    times = {"fsrm-lite int8": 2.0, "fsrm-lite fp32": 1.0, "Llama Q4_0": 1.0, "Llama Q8_0": EQUAL, "optimum int8": 1.0}
    rows: dict[str, dict[str, object]] = {name: {"median_s": s} for name, s in times.items()}
    rows |= {"transformers bf16": {"failed": "died"}, "optimum fp32": {"failed": "died"}}
    peers = [*rows, "CrossEncoder bf16"]
    assert best_forms(peers, rows) == [
        "fsrm-lite int8",
        "fsrm-lite fp32",
        "Llama Q4_0",
        "Llama Q8_0",
        "optimum int8",
        "transformers bf16",
        "CrossEncoder bf16",
    ]
    assert best_forms(peers, rows | {"Llama Q8_0": {"median_s": 1.1 * EQUAL}}) == [
        name for name in best_forms(peers, rows) if name != "Llama Q8_0"
    ]
    assert best_forms(peers, {}) == peers
    assert {name for family in FAMILIES for name in family} <= PEERS.keys()


def test_a_cached_form_stays_where_its_plain_form_does():
    assert {*CACHED, *CACHED.values()} <= PEERS.keys()
    rows = {"transformers bf16": {"median_s": 22.0}, "transformers fp32": {"median_s": 3.5}}
    peers = ["fsrm-lite int8", *CACHED, *CACHED.values()]
    assert best_forms(peers, rows) == ["fsrm-lite int8", "transformers fp32", "transformers fp32 cached"]


@pytest.mark.parametrize("layers", [2, 28, 30])
def test_rungs_are_spread_in_the_real_models_shares(layers):
    prepare = pytest.importorskip("benchmarks.prepare")
    from fsrm_lite.export.graph.fast_graph import matmul_names

    arch = types.SimpleNamespace(layers=layers, scalar=False)
    keep = prepare.real_rungs(arch)
    assert set(keep) <= set(matmul_names(arch))
    assert keep["lm_head"] == "fp32"
    for kind, counts in prepare.REAL_RUNGS.items():
        named = {name: rung for name, rung in keep.items() if name.endswith(f".{kind}")}
        for rung, count in counts.items() if kind != "lm_head" else ():
            found = [int(name.split(".")[2]) for name, at in named.items() if at == rung]
            assert len(found) == pytest.approx(count * layers / 30, abs=1)
            if layers == 30:
                assert len(found) == count


def test_the_budget_buys_further_rounds():
    def rounds(budget_s: float) -> list[int]:
        series = race(_FakeField({"ours": 1.0, "near": 2.0}), ["ours", "near"], MAIN[0], budget_s, lambda text: None)
        return [len(s.seconds) for s in series.values()]

    assert rounds(0.0) == [1, 1]
    assert rounds(2.9) == [5, 3]  # the three least rounds of both fit into 1.3 times the budget
    assert rounds(1e9) == [5, 5]


def test_growth_shares_parts_and_leaves_out_what_takes_too_long():
    field = _FakeField({"ours": 10.0, "transformers bf16": 0.1, "llama.cpp seq_cp Q4_0": POINT_SECONDS / 5})
    growth = grow(field, list(field.seconds), 0.0, lambda text: None)
    assert set(growth["ours"]) == {w.name for w in (*BY_COUNT, *BY_PROMPT)}
    assert set(growth["llama.cpp seq_cp Q4_0"]) == {"N1", "N4", "P128", "P512"}
    assert growth["transformers bf16"]["N64"] == pytest.approx(16 * growth["transformers bf16"]["N4"])
    assert [peer for peer, count in field.asked if count == 4 and peer == "transformers bf16"] == 2 * [
        "transformers bf16"
    ]
    assert max(field.asked.count(asked) for asked in [("ours", 1), ("ours", 16), ("ours", 64)]) == 1


def test_growth_runs_again_while_the_budget_lasts_and_the_faster_time_counts():
    class Quickening(_FakeField):
        def run(self, peer: str, workload, timeout: float) -> dict[str, object]:
            self.seconds[peer] *= 0.9
            return super().run(peer, workload, timeout)

    field = Quickening({"ours": 1.0})
    growth = grow(field, ["ours"], 1e9, lambda text: None)
    assert [count for _, count in field.asked] == [1, 4, 16, 64, 4, 4, 4, 1, 4, 4, 4, 4, 16, 64]
    assert growth["ours"]["N1"] == pytest.approx(0.9**8)


def test_a_peer_that_fails_has_no_points():
    assert grow(_FakeField({"ours": 0.001}), ["ours", "broken"], 0.0, lambda text: None)["broken"] == {}


def test_prompts_of_both_orders_share_their_front():
    first, second = sorted(set(random_prompts(JudgeWorkload("", 1, 4), 1000)))
    assert len(first) == len(second) == PROMPT
    assert first[:SHARED] == second[:SHARED]
    assert sorted(first) == sorted(second)
    assert len(set(random_prompts(JudgeWorkload("", 1, 3, one_prompt=True), 1000))) == 1


class _Waiting:
    """A worker whose speed depends on how it waits at barriers, and on the number of its threads."""

    alive: list[str] = []  # noqa: RUF012

    def __init__(self, peer: str, root, threads: int, *, environ=None) -> None:
        self.name = f"{peer} {threads} {(environ or {}).get('GOMP_SPINCOUNT')}"
        self.seconds = {"300000": 2.0, "2000": 1.0}.get((environ or {}).get("GOMP_SPINCOUNT"), 1.0) / threads
        self.alive.append(self.name)

    def run(self, workload, timeout: float) -> dict[str, object]:
        values = {
            "seconds": self.seconds,
            "inside_s": 0.8 * self.seconds,
            "tokens": 10,
            "winners": [0, 1],
            "step_ms": 2.0,
            "step_rows": 8,
        }
        return {"seconds": self.seconds, "values": values, "others": 0.0, "rss_bytes": 1}

    def close(self) -> None:
        self.alive.remove(self.name)


@pytest.fixture
def waiting(monkeypatch):
    monkeypatch.setattr(_Waiting, "alive", [])
    monkeypatch.setattr(measure, "Worker", _Waiting)
    monkeypatch.setattr(judge, "Worker", _Waiting)
    return _Waiting


def test_llama_cpp_is_tried_once_and_every_such_peer_waits_as_the_faster_trial(waiting):
    field = Field(None, 2, lambda text: None)
    for peer in ("Llama Q4_0", "CrossEncoder bf16", "llama.cpp seq_cp Q4_0"):
        field.run(peer, MAIN[0], 1.0)
    assert waiting.alive == ["Llama Q4_0 2 2000", "CrossEncoder bf16 2 None", "llama.cpp seq_cp Q4_0 2 2000"]
    field.close(["Llama Q4_0", "optimum int8"])
    assert waiting.alive == ["CrossEncoder bf16 2 None", "llama.cpp seq_cp Q4_0 2 2000"]
    field.close([])
    assert len(waiting.alive) == 2
    field.close()
    assert waiting.alive == []
    assert (field.spin, field.spin_tried) == ("2000", "Llama Q4_0")
    known = Field(None, 2, lambda text: None, "300000")
    known.run("Llama Q8_0", MAIN[0], 1.0)
    assert (waiting.alive[-1], known.spin_tried) == ("Llama Q8_0 2 300000", None)


def test_of_a_trial_the_least_time_counts():
    class Uneven:
        times = iter([3.0, 9.0, 8.0, 2.0])

        def run(self, workload, timeout: float) -> dict[str, object]:
            return {"seconds": next(self.times)}

    assert fastest_of({"a": Uneven(), "b": Uneven()}, MAIN[0]) == {"a": 3.0, "b": 2.0}


def test_the_judges_peer_runs_in_the_form_that_its_trial_shows_to_be_fastest(waiting):
    rows = judge.measure(None, 2, lambda text: None, "embedded", budget_s=0.45)
    assert waiting.alive == []
    assert [row["runtime"] for row in rows] == [*RUNTIMES] * len(judge.EMBEDDED)
    assert [row["over_llama"] for row in rows[:2]] == [1.0, None]
    assert (
        rows[0]["note"]
        == "peer: 2 threads, GOMP_SPINCOUNT=2000; 1 of 2 right; 2 decided as by all votes, one pair per call"
    )
    assert (rows[0]["seconds"]["runs"], rows[0]["step_ms"], rows[0]["step_rows"]) == (3, 2.0, 8)


def test_a_long_workload_of_the_judge_runs_again_only_where_the_budget_allows(waiting, monkeypatch):
    def runs(budget_s: float) -> set[int]:
        return {
            row["seconds"]["runs"]
            for row in judge.measure(None, 1, lambda text: None, "random weights", budget_s=budget_s)
        }

    assert runs(0.0) == {1}
    assert runs(0.9) == {3}
    monkeypatch.setattr(judge, "LONG_SECONDS", 0.1)
    assert runs(0.9) == {1}
    assert runs(1e9) == {5}


def test_the_peers_few_votes_stand_for_all_of_them():
    workload, *_ = judge.RANDOM
    run = {"inside_s": 4.0, "tokens": 1024, "others": 0.0, "winners": [], "step_ms": 30.0, "step_rows": 8}
    timings = {
        (runtime, workload.name): [{"seconds": seconds, "rss_bytes": 5, **run}]
        for runtime, seconds in (("ONNX Runtime", 4.4), ("llama.cpp", 8.8))
    }
    peer = [{"seconds": 1.0, "tokens": 100, "others": 0.0}]
    aims = judge.Targets(4.0, 2.3, 2.2)
    ours, llama = (judge._row("random weights", workload, aims, r, timings, peer, "100", []) for r in RUNTIMES)
    assert ours.peer_seconds["median_s"] == pytest.approx(8 * 128 / 100)
    assert (ours.ratio, ours.over_llama) == pytest.approx((10.24 / 4.4, 2.0))
    assert (ours.target, ours.over_llama_target) == (4.0, 2.3)
    assert (llama.target, llama.over_llama, llama.over_llama_target) == (2.2, None, None)
    assert ours.overhead == pytest.approx(0.1)
    assert (ours.note, ours.rss_bytes) == ("peer: 100", 5)


def test_every_call_into_a_runtime_is_counted_with_its_rows():
    class Batch:
        n_tokens = 3

    class Library:
        @staticmethod
        def llama_decode(context, batch) -> int:
            return 7

    with counted(Library, "llama_decode", lambda context, batch: batch.n_tokens) as steps:
        assert Library.llama_decode(None, Batch) == 7
    assert Library.llama_decode(None, Batch) == 7
    timing = steps.timing(2.0, 5, (0, 1))
    assert (len(steps.rows), timing["step_rows"], timing["tokens"], timing["winners"]) == (1, 3, 5, [0, 1])
    assert timing["step_ms"] == pytest.approx(1000 * timing["inside_s"])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_judge_runs_on_either_runtime_and_its_steps_are_counted(runtime, tmp_path):
    pytest.importorskip("llama_cpp")
    side = SIDES[f"judge on {runtime}, embedded"](Files(tmp_path), 1)
    timing = side.run(JudgeWorkload("two pairs", 2, 1))
    assert len(timing["winners"]) == 2
    assert 0 < timing["inside_s"] < timing["seconds"]
    assert timing["step_rows"] > 1


def test_table_names_the_machine_and_judges_the_targets(tmp_path):
    rows = {
        "fsrm-lite int8": Series([1.0, 1.2, 1.1], rss_bytes=3 << 20).to_dict(),
        "transformers bf16": Series([2.5]).to_dict(),
        "Llama Q8_0": Series(failed="Llama Q8_0 died").to_dict(),
    }
    machine = {"cpu": "Some CPU", "flags": ["avx2"], "python": "3.11.7"}
    setting = {"machine": machine, "threads": 2, "shape": "small", "versions": {"numpy": "2.0"}, "compiled": True}
    about = {"setting": setting, "date": "2026-11-21", "llama_without_amx": True}
    about |= {"linear_weights": 1000, "weights_file_bytes": 1 << 20, "prefix_bytes": 1 << 20}
    growth = {"fsrm-lite int8": {w.name: 0.1 * w.count for w in BY_COUNT}}
    judged = {
        "what": "8 votes",
        "runtime": "ONNX Runtime",
        "seconds": summarise([2.0, 1.0, 3.0], []),
        "tokens_per_second": 50.0,
        "peer_seconds": summarise([8.0], []),
        "ratio": 4.0,
        "target": 5.0,
        "over_llama": 1.5,
        "over_llama_target": 1.3,
        "overhead": 0.05,
        "step_ms": 1.25,
        "step_rows": 8,
        "rss_bytes": 7 << 20,
        "note": "",
    }
    times = {"bare interpreter": 0.02, "import numpy": 0.1, "import fsrm_lite": 0.03, "first score": 1.5}
    times["first verdict"] = 0.7
    startup = {name: {"median_s": s} for name, s in times.items()}
    spin = {"count": "2000", "tried": "Llama Q8_0"}
    main = {
        "W1": rows | {"transformers fp32": Series([4.5]).to_dict()},
        "W2": rows,
        "roofline": {"int8": 1e6, "fp32": 1e5},
    }
    text = table(
        {
            "about": about,
            "main": main,
            "growth": growth,
            "judge": {"judge-embedded": [judged]},
            "startup": startup,
            "spin": spin,
        }
    )
    plot_growth(growth, tmp_path / "growth.png")
    assert "Some CPU (avx2), 2 threads" in text
    assert "2.27x the best peer (transformers bf16; target 1.8: met)" in text
    assert "0.93 of the int8 GEMM peak (target 0.6: met)" in text
    assert "peak memory 1.50x the 2 MiB of weights file and KV (target 1.3: missed)" in text
    assert "| Llama Q8_0 | Llama Q8_0 died |" in text
    assert "| 100.00 |" in text
    assert "pull request 26954" in text
    assert "2000, tried in W1 with Llama Q8_0" in text
    assert "another form of the same thing was faster there: transformers fp32." in text
    assert "adds 10 ms (target 30: met); the first score takes 1.50 s (target 1: missed), " in text
    assert "the first verdict 0.70 s (target 0.8: met)" in text
    assert (
        "| 8 votes | ONNX Runtime | 2.00 | 1.00 - 3.00, n=3 | 50 | 8.00 | 8.00 - 8.00, n=1 "
        "| 4.00x (5x: missed) | 1.50x (1.3x: met) | 5.0% | 1.25 ms, 8 rows | 7 MiB |" in text
    )
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

        def run(self, workload, timeout: float) -> dict[str, object]:
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
