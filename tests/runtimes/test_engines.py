"""What every engine does, asked of each. Reference is the engine itself, one stream at a time."""

import threading

import numpy as np
import pytest
from helpers.judge import ENGINES, write_tiny_gguf, write_tiny_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsrm_lite.errors import BundleError, InputError, JudgeError, MisuseError
from fsrm_lite.runtimes import engine as engine_module
from fsrm_lite.runtimes.engine import Interrupted
from fsrm_lite.runtimes.onnx.engine import OnnxEngine
from fsrm_lite.runtimes.onnx.graph import Graph
from fsrm_lite.runtimes.onnx.kernels import library
from fsrm_lite.runtimes.onnx.pools import CellPool
from fsrm_lite.runtimes.opening import open_engine

IDS = np.arange(3, 15, dtype=np.int32)
KINDS = (*ENGINES, "onnx int8", "onnx joined", "onnx int8 joined")


@pytest.fixture(scope="module", params=KINDS)
def engine(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    if request.param == "llama.cpp":
        path = write_tiny_gguf(folder / "tiny.gguf")
    else:
        precision = "int8" if "int8" in request.param else "fp32"
        path = write_tiny_graph(folder / "tiny.onnx", precision=precision)
    source = path
    if "joined" in request.param:  # as on a machine without a compiler
        source = Graph(path, 1)
        source.writes_in_place = False
    engine = open_engine(source, 1)
    yield engine
    engine.close()


def feed(engine, ids, stream=0, start=0, *, outputs=False):
    positions = np.arange(start, start + len(ids), dtype=np.int32)
    return engine.decode(np.asarray(ids, np.int32), positions, np.full(len(ids), stream, np.int32), outputs=outputs)


def last_logits(engine, ids, stream=0):
    if len(ids) > 1:
        feed(engine, ids[:-1], stream)
    return feed(engine, ids[-1:], stream, len(ids) - 1, outputs=True)[0].copy()


def near(a, b):
    """Rounding differs with the batch; what another stream's token would do is far above this."""
    return np.abs(a - b).max() < 0.05 * np.abs(b).max()


def test_logits_do_not_depend_on_chunks_or_streams(engine):
    engine.prepare(3, 64)
    whole = last_logits(engine, IDS, 0)
    feed(engine, IDS[:5], 2)
    feed(engine, IDS[5:-1], 2, 5)
    assert near(feed(engine, IDS[-1:], 2, len(IDS) - 1, outputs=True)[0], whole)


def test_rows_of_one_batch_come_back_in_order(engine):
    alone = []
    for ids in (IDS, IDS[::-1], IDS * 2):
        engine.prepare(3, 64)
        alone.append(last_logits(engine, ids))
    engine.prepare(3, 64)
    for stream, ids in enumerate((IDS, IDS[::-1], IDS * 2)):
        feed(engine, ids[:-1], stream)
    lasts = np.array([IDS[-1], IDS[0], 2 * IDS[-1]], np.int32)
    together = engine.decode(lasts, np.full(3, len(IDS) - 1, np.int32), np.arange(3, dtype=np.int32), outputs=True)
    for row, expected in zip(together, alone, strict=True):
        assert near(row, expected)


steps = st.lists(
    st.tuples(
        st.sampled_from(["feed", "step", "copy", "cut"]), st.integers(0, 3), st.integers(0, 3), st.integers(1, 9)
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.integers(0, 2**32 - 1))
def test_streams_hold_what_was_done_to_them(engine, plan, seed):
    """Any mix of feeding, copying and cutting ends in streams that continue as fresh ones would."""
    rng = np.random.default_rng(seed)
    engine.prepare(4, 300)
    held: list[list[int]] = [[], [], [], []]
    for what, a, b, n in plan:
        if what == "feed":
            ids = rng.integers(0, 96, n).tolist()
            feed(engine, ids, a, len(held[a]))
            held[a] += ids
        elif what == "step":
            streams = np.arange(max(a, b) + 1, dtype=np.int32)
            ids = rng.integers(0, 96, len(streams)).astype(np.int32)
            ends = np.array([len(held[s]) for s in streams], np.int32)
            assert engine.decode(ids, ends, streams, outputs=True).shape == (len(streams), 96)
            for stream, token in zip(streams.tolist(), ids.tolist(), strict=True):
                held[stream].append(token)
        elif what == "copy" and a != b:
            length = min(n, len(held[a]))
            engine.copy(a, b, length)
            held[b] = held[a][:length]
        elif what == "cut":
            engine.cut(a, min(n, len(held[a])))
            held[a] = held[a][:n]
    got = [feed(engine, IDS[:1], s, len(held[s]), outputs=True)[0].copy() for s in range(4)]
    for stream in range(4):
        engine.prepare(4, 300)
        assert near(got[stream], last_logits(engine, [*held[stream], IDS[0]]))


@pytest.mark.parametrize(("token", "position"), [(96, 0), (-1, 0), (3, 7)])
def test_a_bad_token_or_a_gap_is_an_error_and_the_engine_lives_on(engine, token, position):
    engine.prepare(1, 64)
    feed(engine, IDS)
    with pytest.raises(JudgeError, match="refused"):
        feed(engine, [token], 0, len(IDS) + position)
    engine.prepare(1, 64)
    assert feed(engine, IDS[:1], outputs=True).shape == (1, 96)


def test_what_is_too_much_is_an_error(engine):
    engine.prepare(2, 1024)
    with pytest.raises(JudgeError, match=f"batch of {engine.batch_tokens + 1} rows"):
        feed(engine, np.zeros(engine.batch_tokens + 1, np.int32))
    with pytest.raises(JudgeError, match="batch of 0 rows"):
        feed(engine, IDS[:0])
    with pytest.raises(InputError, match="expected 1 to 256"):
        engine.prepare(257, 16)
    with pytest.raises(JudgeError, match="asked for stream 99"):
        engine.cut(99, 0)


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (MisuseError("this model was closed"), MisuseError, "^this model was closed$"),
        (RuntimeError("no kernel"), JudgeError, "^ONNX Runtime could not compute 2 tokens: no kernel$"),
    ],
)
def test_what_goes_wrong_in_a_run_keeps_its_kind(raised, expected, message, tmp_path, monkeypatch):
    def run(*_, **__):
        raise raised

    engine = OnnxEngine(write_tiny_graph(tmp_path / "tiny.onnx"), threads=1)
    engine.prepare(1, 8)
    for name in ("run", "write"):
        monkeypatch.setattr(engine._graph, name, run)
    with pytest.raises(expected, match=message):
        feed(engine, [5, 6])


def test_an_interrupt_stops_a_decode_until_it_is_resumed(engine):
    engine.prepare(1, 64)
    thread = threading.Thread(target=engine.interrupt)
    thread.start()
    thread.join()
    for _ in range(2):
        with pytest.raises(Interrupted):
            feed(engine, IDS)
    engine.prepare(1, 64)
    engine.resume()
    assert feed(engine, IDS).shape == (0, 96)


def test_a_full_stream_is_an_error(tmp_path):
    engine = OnnxEngine(write_tiny_graph(tmp_path / "tiny.onnx"), threads=1)
    engine.prepare(1, 20)
    feed(engine, np.full(20, 5))
    with pytest.raises(JudgeError, match="its stream is full, it holds 20 tokens"):
        feed(engine, IDS[:1], 0, 20)
    engine.close()
    engine.close()
    with pytest.raises(JudgeError, match="closed"):
        engine.prepare(1, 16)


def test_memory_that_is_not_there_is_refused_before_it_is_asked_for(tmp_path, monkeypatch):
    engine = OnnxEngine(write_tiny_graph(tmp_path / "tiny.onnx"), threads=1)
    monkeypatch.setattr("fsrm_lite.runtimes.onnx.engine.memory_bytes", lambda: 1 << 20)
    with pytest.raises(JudgeError, match="this machine has 1 MiB; ask for fewer votes"):
        engine.prepare(32, 4096)
    engine.close()


def test_an_engine_shares_an_opened_graph_and_leaves_it_open(tmp_path):
    graph = Graph(write_tiny_graph(tmp_path / "tiny.onnx"), 1)
    engine = OnnxEngine(graph)
    engine.prepare(1, 16)
    assert feed(engine, IDS[:1], outputs=True).shape == (1, 96)
    engine.close()
    assert not graph.closed


def test_a_graph_that_cannot_write_is_refused(tmp_path, monkeypatch):
    graph = Graph(write_tiny_graph(tmp_path / "tiny.onnx"), 1)
    monkeypatch.setattr(graph, "can_write", False)
    with pytest.raises(BundleError, match="export the bundle again"):
        OnnxEngine(graph)


@pytest.mark.skipif(library() is None, reason="the operators are not built, or switched off")
def test_a_step_leaves_keys_and_values_where_they_are(tmp_path):
    engine = OnnxEngine(write_tiny_graph(tmp_path / "tiny.onnx"), threads=1)
    engine.prepare(3, 200)
    feed(engine, IDS)
    pool = engine._pool
    assert isinstance(pool, CellPool)
    before = [array.ctypes.data for array in pool._arrays]
    seen = pool._arrays[0][0, 0, : len(IDS)].copy()
    engine.copy(0, 2, 5)
    for n in range(40):
        feed(engine, IDS[:1], 0, len(IDS) + n, outputs=True)
    assert [array.ctypes.data for array in pool._arrays] == before
    assert (pool._arrays[0][0, 0, : len(IDS)] == seen).all()
    assert pool._arrays[0][0, 0, len(IDS) + 39].any()
    engine.close()


def test_memory_is_known():
    assert engine_module.memory_bytes() > 1 << 28


def test_logits_can_be_asked_of_some_tokens_of_a_batch(engine):
    engine.prepare(2, 600)
    long = np.arange(500, dtype=np.int32) % 90
    ids, owners = np.concatenate([long, IDS]), np.repeat(np.array([1, 0], np.int32), [500, len(IDS)])
    positions = np.concatenate([np.arange(500), np.arange(len(IDS))]).astype(np.int32)
    wanted = np.zeros(len(ids), np.bool_)
    wanted[[499, len(ids) - 1]] = True
    together = engine.decode(ids, positions, owners, outputs=wanted).copy()
    for row, expected in zip(together, (long, IDS), strict=True):
        engine.prepare(2, 600)
        feed(engine, expected[:-1])
        assert near(row, feed(engine, expected[-1:], 0, len(expected) - 1, outputs=True)[0])
    engine.prepare(2, 600)
    assert engine.decode(ids, positions, owners, outputs=np.zeros(len(ids), np.bool_)).shape == (0, engine.vocab_size)
    engine.prepare(2, 600)
    most = engine.streams  # as many as any test before has asked for
    with pytest.raises(JudgeError, match=f"batch of {most + 1} rows"):
        feed(engine, long, outputs=np.arange(len(long)) <= most)
