"""The fast model: the same readings however sequences are grouped, packed, cut or kept."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.fast import LABELS, make_checkpoint, random_sequences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsrm_lite.errors import BundleError, InputError
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.graph.fast_graph import matmul_names, write_fast_graph
from fsrm_lite.runtimes.onnx.kernels import SWITCH, library
from fsrm_lite.runtimes.onnx.packing import Prefix, Widths, passes, plan_rows
from fsrm_lite.runtimes.onnx.session import FastModel
from fsrm_lite.runtimes.reading import FastReading
from fsrm_lite.runtimes.threads import usable_cores

SMALL = Widths(chunk=8, row=24, keep=6, split=10)
TOLERANCE = {"fp32": 1e-4, "int8": 5e-3}
KEEPS = {
    "attention in two terms": {"self_attn": "int8x2"},
    "everything in two terms": dict.fromkeys(("q_proj", "self_attn", "o_proj", "gate_proj", "down_proj"), "int8x2"),
    "linear maps in float32": {"v_proj": "fp32", "up_proj": "fp32", "down_proj": "fp32", "lm_head": "fp32"},
}
"""Parts of an int8 graph that are computed otherwise, by the end of their MatMuls' names."""


@pytest.fixture(scope="module")
def graphs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fast")
    checkpoint = Checkpoint.open(make_checkpoint(folder / "checkpoint", hidden_size=64, layers=2))
    paths = {precision: folder / f"{precision}.onnx" for precision in TOLERANCE}
    for precision, path in paths.items():
        write_fast_graph(checkpoint, path, LABELS, precision=precision)
    for name, parts in KEEPS.items():
        paths[name] = folder / f"{name}.onnx"
        ends = {n: kind for n in matmul_names(checkpoint.arch) for end, kind in parts.items() if n.endswith(end)}
        write_fast_graph(checkpoint, paths[name], LABELS, keep=ends)
    return paths


def _model(graphs, precision="fp32", widths=SMALL, **options) -> FastModel:
    model = FastModel(graphs[precision], threads=1, **options)
    model.graph.widths = widths
    return model


def _numbers(reading: FastReading) -> np.ndarray:
    return np.array([*reading.label_logits, reading.log_mass, reading.entropy])


def _gap(a: list[FastReading], b: list[FastReading]) -> float:
    return max(float(np.abs(_numbers(x) - _numbers(y)).max()) for x, y in zip(a, b, strict=True))


_ids = st.lists(st.integers(0, 100), min_size=1, max_size=30)


@st.composite
def batches(draw):
    """Sequences that share prefixes in all ways: whole, partly, nested, repeated."""
    stems = draw(st.lists(_ids, min_size=1, max_size=3))
    tails = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), _ids), min_size=1, max_size=8))
    return [stems[which % len(stems)][:cut] + tail for which, cut, tail in tails]


@pytest.mark.parametrize(("precision", "compiled"), [("fp32", "1"), ("int8", "1"), ("int8", "0")])
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=batches())
def test_reading_does_not_depend_on_company_packing_or_warmth(graphs, monkeypatch, precision, compiled, batch):
    monkeypatch.setenv(SWITCH, compiled)
    model = _model(graphs, precision)
    together = model.read(batch)
    warm = model.read(batch)
    alone = [_model(graphs, precision, Widths()).read([ids])[0] for ids in batch]
    backwards = _model(graphs, precision, Widths(chunk=5, row=7, keep=3, split=1)).read(batch[::-1])[::-1]
    assert [r.label_logits for r in together] == [r.label_logits for r in warm]
    assert max(_gap(together, alone), _gap(together, backwards)) < TOLERANCE[precision]


@pytest.mark.skipif(library() is None, reason="the operators are not built, or switched off")
@pytest.mark.parametrize("kind", ["int8", *KEEPS])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(batch=batches())
def test_with_attention_in_int8_company_changes_no_bit_of_a_score(graphs, kind, batch):
    together = _model(graphs, kind).read(batch)
    alone = [_model(graphs, kind, Widths()).read([ids])[0] for ids in batch]
    backwards = _model(graphs, kind, Widths(chunk=5, row=7, keep=3, split=1)).read(batch[::-1])[::-1]
    for other in (alone, backwards):
        assert [r.label_logits for r in together] == [r.label_logits for r in other]


def test_same_bits_whatever_was_read_before(graphs):
    batch = random_sequences(5, 9, longest=60)
    fresh = _model(graphs, "int8").read(batch)
    used = _model(graphs, "int8")
    used.read(random_sequences(5, 4, longest=60))
    used.read([ids[: len(ids) // 2 + 1] for ids in batch])
    assert [_numbers(r).tolist() for r in used.read(batch)] == [_numbers(r).tolist() for r in fresh]


def test_shared_prefix_is_computed_once_and_kept(graphs):
    prompt = list(range(40))
    model = _model(graphs)
    batch = [[*prompt, 50 + i, i] for i in range(4)]
    first, second = model.read(batch), model.read([[*prompt, 70 + i, i] for i in range(4)])
    assert sum(r.tokens_read for r in first) == 40 + 8
    assert sum(r.tokens_read for r in second) == 8
    assert all(r.tokens_read + r.tokens_shared == 42 for r in first + second)


def test_long_sequence_alone_reuses_whole_chunks_of_a_kept_one(graphs):
    model = _model(graphs)
    model.read([list(range(30))])
    (reading,) = model.read([[*range(20), 99, 98]])
    assert reading.tokens_shared == 16


def test_equal_sequences_are_read_once(graphs):
    ids = [1, 2, 3, 4]
    first, second = _model(graphs).read([ids, ids])
    assert (first.tokens_read, second.tokens_read, second.tokens_shared) == (4, 0, 4)
    assert first.label_logits == second.label_logits


def test_cache_is_bounded_in_bytes_and_gives_up_the_oldest(graphs):
    model = _model(graphs, cache_bytes=0)
    prompt = list(range(40))
    batch = [[*prompt, 1], [*prompt, 2]]
    model.read(batch)
    assert model._cache.bytes == 0
    assert sum(r.tokens_read for r in model.read(batch)) == 42
    # Keys and values of 40 tokens: 2 layers x 2 x 2 heads x 16 x 4 bytes each.
    roomy = _model(graphs, cache_bytes=2 * 40 * 512)
    for start in (0, 1, 2):
        stem = [(start + i) % 101 for i in range(40)]
        roomy.read([[*stem, 1], [*stem, 2]])
    assert roomy._cache.bytes == 2 * 40 * 512
    assert sum(r.tokens_read for r in roomy.read(batch)) == 42
    assert sum(r.tokens_read for r in roomy.read([[*stem, 1], [*stem, 2]])) == 2


def test_many_readings_are_asked_of_the_head_in_pieces(graphs):
    model = _model(graphs)
    batch = random_sequences(8, 40)
    expected = model.read(batch, hidden=True)
    model._readings_per_head = 3
    got = model.read(batch, hidden=True)
    assert _gap(got, expected) < 1e-5
    assert max(np.abs(a.hidden - b.hidden).max() for a, b in zip(got, expected, strict=True)) < 1e-5


def test_hidden_states_come_only_when_asked_for(graphs):
    (plain,), (rich,) = (_model(graphs).read([[1, 2, 3]], hidden=asked) for asked in (False, True))
    assert plain.hidden is None
    assert rich.hidden.shape == (64,)
    assert rich.hidden.dtype == np.float32


def test_readings_are_plain_floats_and_consistent(graphs):
    (reading,) = _model(graphs).read([[1, 2, 3]])
    assert all(type(x) is float for x in (*reading.label_logits, reading.log_mass, reading.entropy))
    assert reading.log_mass > max(reading.label_logits)
    assert 0 < reading.entropy < math.log(101)


def test_nothing_to_read(graphs):
    assert _model(graphs).read([]) == []


@pytest.mark.parametrize(
    ("ids", "message"), [([], "sequence 1 is empty"), ([3, 101], "holds the id 101"), ([-1], "holds the id -1")]
)
def test_bad_ids_are_refused(graphs, ids, message):
    with pytest.raises(InputError, match=message):
        _model(graphs).read([[1], ids])


def test_not_a_fast_graph(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(BundleError, match="cannot be loaded"):
        FastModel(tmp_path / "broken.onnx")


@pytest.mark.parametrize(("vocabulary", "labels"), [(0, LABELS), (1, LABELS), (0, LABELS[::-1])])
def test_a_manifest_of_another_model_is_refused(graphs, vocabulary, labels):
    model = _model(graphs)
    if (vocabulary, labels) == (0, LABELS):
        assert model.check(model.vocab_size, labels) is None
    else:
        with pytest.raises(BundleError, match="export the bundle again"):
            model.check(model.vocab_size + vocabulary, labels)


def test_threads_must_be_positive(graphs):
    with pytest.raises(InputError, match="threads is 0"):
        FastModel(graphs["fp32"], threads=0)


def test_closed_model_says_so(graphs):
    model = _model(graphs)
    model.close()
    with pytest.raises(InputError, match="closed"):
        model.read([[1]])


def test_threads_share_one_model(graphs):
    model = _model(graphs, "int8")
    batches = [random_sequences(seed, 5) for seed in range(6)]
    expected = [_model(graphs, "int8").read(batch) for batch in batches]
    results: dict[int, list[FastReading]] = {}
    workers = [threading.Thread(target=lambda i=i: results.__setitem__(i, model.read(batches[i]))) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [[r.label_logits for r in results[i]] for i in range(6)] == [[r.label_logits for r in e] for e in expected]


def test_idle_model_burns_no_cpu(graphs):
    model = FastModel(graphs["int8"], threads=2)
    model.read(random_sequences(1, 8))
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.15


def test_callers_arithmetic_keeps_its_denormals(graphs):
    FastModel(graphs["int8"], threads=2).read([[1, 2]])
    assert np.float32(1e-40) * np.float32(0.5) > 0


def test_importing_loads_neither_runtime(graphs):
    heavy = ("onnxruntime", "torch", "transformers", "llama_cpp", "onnx")
    code = f"import sys, fsrm_lite.runtimes.onnx.session; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_loading_and_reading_is_quiet(graphs):
    code = (
        "from pathlib import Path; from fsrm_lite.runtimes.onnx.session import FastModel; "
        f"FastModel(Path({str(graphs['int8'])!r})).read([[1, 2], [1, 3]])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (out.stdout, out.stderr) == ("", "")


@given(batch=batches())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_plan_reads_each_sequence_once_and_within_the_widths(batch):
    distinct = sorted({tuple(ids) for ids in batch})
    rows = list(plan_rows(distinct, SMALL))
    ends = [branch.sequence for row in rows for branch in row.branches]
    assert sorted(ends) == list(range(len(distinct)))
    for row in rows:
        assert len(row.ids) <= SMALL.row
        assert all(
            len(part.ids) - len(before.ids) <= SMALL.chunk
            for before, part in zip([Prefix(), *passes(row.prefix)], passes(row.prefix), strict=False)
        )
        for branch in row.branches:
            assert row.prefix.ids + tuple(row.ids[i] for i in branch.path) == distinct[branch.sequence]
            assert [row.positions[i] for i in branch.path] == list(
                range(len(row.prefix.ids), len(distinct[branch.sequence]))
            )


def test_bias_lets_each_token_see_its_ancestors_alone():
    (row,) = plan_rows([(1, 2, 3), (1, 2, 4, 5)], Widths())
    seen = (row.bias() == 0).astype(int).tolist()
    assert row.ids == [1, 2, 3, 4, 5]
    assert seen == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]


def test_two_prompts_in_one_call_get_a_prefix_each():
    widths = Widths(chunk=50, row=64, keep=10, split=20)
    prompts = [tuple(range(p, p + 40)) for p in (0, 50)]
    rows = list(plan_rows(sorted((*p, 100, i) for p in prompts for i in range(4)), widths))
    assert [row.prefix.ids for row in rows] == [(*p, 100) for p in prompts]


def test_thousand_growing_prefixes_do_not_recurse_away():
    rows = list(plan_rows([tuple(range(n)) for n in range(1, 1200)], Widths(chunk=128, row=256)))
    assert sum(len(row.branches) for row in rows) == 1199


def _fake_system(root: Path, *, quota: str | None = None, siblings: dict[int, str] | None = None) -> Path:
    for cpu, text in (siblings or {}).items():
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/user/job\n")
    (root / "sys/fs/cgroup/user/job").mkdir(parents=True)
    if quota is not None:
        (root / "sys/fs/cgroup/user/cpu.max").write_text(quota)
    return root


@pytest.mark.parametrize(
    ("quota", "expected"),
    [(None, 2), ("max 100000", 2), ("150000 100000", 1), ("400000 100000", 2), ("20000 100000", 1)],
    ids=str,
)
def test_usable_cores_counts_cores_within_the_quota(tmp_path, monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    root = _fake_system(tmp_path, quota=quota, siblings={0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    assert usable_cores(root) == expected


def test_usable_cores_follows_the_affinity(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2}, raising=False)
    assert usable_cores(_fake_system(tmp_path, siblings={0: "0,2", 2: "0,2"})) == 1


def test_usable_cores_reads_version_1_quotas(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    folder = tmp_path / "sys/fs/cgroup/cpu"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("300000")
    (folder / "cpu.cfs_period_us").write_text("100000")
    assert usable_cores(tmp_path) == 3


def test_a_followed_text_has_the_log_probabilities_of_its_tokens(rm):
    """The log-probability of a label behind a text is what its reading says, label by label."""
    ids = rm.encoder.pointwise_fast("What is 2 + 3?", "2 + 3 = 5. The answer is 5.")
    labels = [label.id for label in rm.bundle.manifest.labels]
    (reading,) = rm.fast.readings([ids], hidden=True)
    for label, logit in zip(labels, reading.label_logits, strict=True):
        found = rm.fast.follow([*ids, label], len(ids), len(ids) + 1)
        assert found.log_p == pytest.approx([logit - reading.log_mass], abs=0.05)  # int8: other rows round otherwise
        assert found.entropy == pytest.approx([reading.entropy], abs=0.05)
        assert found.best[0] >= found.log_p[0]
    whole = rm.fast.follow(ids, 1, len(ids))
    assert len(whole.log_p) == len(ids) - 1
    assert (whole.log_p <= whole.best).all()
    assert whole.reading.tokens_read == len(ids)
    assert whole.reading.label_logits == pytest.approx(reading.label_logits, abs=0.05)
    part = rm.fast.follow(ids, 5, 9, intermediate=True)
    assert part.log_p == pytest.approx(whole.log_p[4:8], abs=1e-5)
    assert whole.intermediate is None
    assert part.intermediate.shape == (len(ids), rm.fast.opened.hidden_size)
    again = rm.fast.follow(ids[:-3], 5, 9, intermediate=True)
    assert part.intermediate[:-3] == pytest.approx(again.intermediate, abs=1e-4)  # later tokens change nothing


def test_a_text_is_followed_in_as_many_runs_as_the_vocabulary_needs(rm, monkeypatch):
    ids = rm.encoder.pointwise_fast("What is 2 + 3?", "2 + 3 = 5.")
    whole = rm.fast.follow(ids, 1, len(ids))
    monkeypatch.setattr(rm.fast._model, "_readings_per_head", 3)
    pieces = rm.fast.follow(ids, 1, len(ids))
    assert pieces.log_p == pytest.approx(whole.log_p, abs=1e-5)
    assert pieces.reading.label_logits == pytest.approx(whole.reading.label_logits, abs=1e-5)


@pytest.mark.parametrize(("start", "end"), [(0, 2), (2, 2), (1, 99), (3, 2)])
def test_tokens_out_of_range_cannot_be_followed(rm, start, end):
    with pytest.raises(InputError, match="expected 1 <= start < end <= length"):
        rm.fast.follow([1, 2, 3], start, end)
