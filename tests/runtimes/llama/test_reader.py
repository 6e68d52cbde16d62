"""First-token readings through llama.cpp: the bits of a direct call, and one beginning read once."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from helpers.judge import write_tiny_gguf

from fsrm_lite.errors import BundleError, InputError, MisuseError
from fsrm_lite.runtimes.llama.engine import LlamaEngine
from fsrm_lite.runtimes.llama.reader import LlamaReader

pytest.importorskip("llama_cpp")

LABELS = [7, 3]
VOCAB = 96


def sequences(seed=1):
    """Two candidates behind each of two long prompts, a long and a short text of their own, and one of them twice."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, VOCAB, 40).tolist(), rng.integers(0, VOCAB, 33).tolist()
    ends = [rng.integers(0, VOCAB, n).tolist() for n in (5, 9, 2, 6)]
    alone = rng.integers(0, VOCAB, 700).tolist()
    return [first + ends[0], second + ends[1], first + ends[2], [4], alone, second + ends[3], first + ends[0]]


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("reader") / "model.gguf", context=1024)


@pytest.fixture
def reader(gguf_path):
    reader = LlamaReader(gguf_path, LABELS, threads=1)
    yield reader
    reader.close()


def direct(gguf_path, ids, monkeypatch):
    """The logits that llama-cpp-python itself gives, without AMX, which this package leaves off too."""
    import llama_cpp

    from fsrm_lite.runtimes.llama.engine import load_llama

    if b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info():
        defaults = llama_cpp.llama_cpp.llama_model_default_params

        def without_amx():
            params = defaults()
            params.use_extra_bufts = False
            return params

        monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", without_amx)
    model = llama_cpp.Llama(str(gguf_path), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
    monkeypatch.undo()
    load_llama()  # quiet again
    model.eval(ids)
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), (model.n_vocab(),)).copy()
    model.close()
    return logits


def test_a_sequence_alone_has_the_bits_of_llama_cpp_python(reader, gguf_path, monkeypatch):
    for ids in sequences():
        logits = direct(gguf_path, ids, monkeypatch)
        (reading,) = reader.read([ids])
        assert reading.label_logits == tuple(logits[LABELS].tolist())
        p = np.exp(logits.astype(np.float64) - reading.log_mass)
        assert p.sum() == pytest.approx(1)
        assert reading.entropy == pytest.approx(-(p * np.log(p)).sum())


def test_company_changes_roundings_only_and_order_nothing(reader):
    asked = sequences()
    together = reader.read(asked)
    for ids, reading in zip(asked, together, strict=True):
        (alone,) = reader.read([ids])
        np.testing.assert_allclose(reading.label_logits, alone.label_logits, atol=2e-3)
    assert [r.label_logits for r in reader.read(asked[::-1])] == [r.label_logits for r in together[::-1]]


def test_the_same_call_gives_the_same_bits_whatever_came_before(reader, gguf_path):
    asked = sequences()
    first = reader.read(asked)
    reader.read([np.random.default_rng(3).integers(0, VOCAB, 900).tolist() for _ in range(3)])
    reader.forget()
    assert reader.read(asked) == first
    fresh = LlamaReader(gguf_path, LABELS, threads=1)
    assert fresh.read(asked) == first
    fresh.close()


def test_a_shared_beginning_and_a_repeated_sequence_are_counted_once(reader):
    asked = sequences()
    readings = reader.read(asked)
    assert all(r.tokens_read + r.tokens_shared == len(ids) for r, ids in zip(readings, asked, strict=True))
    assert readings[-1].tokens_read == 0  # the first one again
    assert sum(r.tokens_read for r in readings[:-1]) == sum(map(len, asked[:-1])) - 40 - 33


def test_many_sequences_are_read_in_several_batches(reader, monkeypatch):
    asked = sequences()
    expected = reader.read(asked)
    monkeypatch.setattr("fsrm_lite.runtimes.llama.reader.affordable_streams", lambda *_: 2)
    for got, want in zip(reader.read(asked), expected, strict=True):
        np.testing.assert_allclose(got.label_logits, want.label_logits, atol=2e-3)
    assert reader.read([]) == []


def test_bad_ids_and_hidden_states_are_refused(reader):
    with pytest.raises(InputError, match="sequence 1 is empty"):
        reader.read([[1], []])
    with pytest.raises(InputError, match="sequence 0 holds the id 96"):
        reader.read([[96]])
    with pytest.raises(BundleError, match="hidden states are read from ONNX fast files only"):
        reader.read([[1]], hidden=True)


def test_a_manifest_of_another_model_is_refused(reader):
    reader.check(VOCAB, LABELS)
    with pytest.raises(BundleError, match="names 97 tokens"):
        reader.check(97, LABELS)
    with pytest.raises(BundleError, match="the head is a scalar one"):
        reader.check(VOCAB, LABELS, "scalar")


def test_an_engine_on_the_same_weights_outlives_the_reader(reader):
    engine = LlamaEngine(reader.opened)
    assert engine.model is reader.opened
    before = reader.read([[1, 2, 3]])[0]
    reader.close()
    reader.close()
    with pytest.raises(MisuseError):
        reader.read([[1]])
    engine.prepare(1, 8)
    logits = engine.decode(*(np.array(x, np.int32) for x in ([1, 2, 3], [0, 1, 2], [0] * 3)), outputs=np.arange(3) == 2)
    assert tuple(logits[0, LABELS].tolist()) == before.label_logits
    engine.close()
    assert reader.opened.pointer is None  # freed with its last user
    with pytest.raises(MisuseError):
        LlamaEngine(reader.opened)


REAL = Path(os.environ.get("FSRM_REAL", ROOT / ".bench" / "real"))


@pytest.mark.slow
@pytest.mark.skipif(not list(REAL.glob("*.gguf")), reason="no real model here; see make real")
def test_a_real_quantized_model_has_the_bits_of_llama_cpp_python(monkeypatch):
    path = next(REAL.glob("*.gguf"))
    reader = LlamaReader(path, [10539, 5230], threads=1)
    for length in (5, 61):
        ids = np.random.default_rng(length).integers(3, 49_000, length).tolist()
        (reading,) = reader.read([ids])
        assert reading.label_logits == tuple(direct(path, ids, monkeypatch)[[10539, 5230]].tolist())
    reader.close()
