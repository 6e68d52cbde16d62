import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.judge import write_tiny_gguf

from fsrm_lite.errors import BundleError, InputError, JudgeError, JudgeUnavailableError
from fsrm_lite.runtimes.llama import engine as engine_module
from fsrm_lite.runtimes.llama.engine import BATCH_TOKENS, QUANTIZATIONS, LlamaEngine, quantize, why_not
from fsrm_lite.runtimes.llama.gguf_header import read_header

IDS = np.arange(3, 15, dtype=np.int32)


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("engine") / "tiny.gguf")


@pytest.fixture
def engine(gguf_path):
    engine = LlamaEngine(gguf_path, threads=1)
    yield engine
    engine.close()


def feed(engine, ids, stream=0, start=0, *, outputs=False):
    positions = np.arange(start, start + len(ids), dtype=np.int32)
    return engine.decode(np.asarray(ids, np.int32), positions, np.full(len(ids), stream, np.int32), outputs=outputs)


def last_logits(engine, ids, stream=0):
    feed(engine, ids[:-1], stream)
    return feed(engine, ids[-1:], stream, len(ids) - 1, outputs=True)[0].copy()


def test_available_here():
    assert why_not() is None
    assert engine_module.available()


def fresh_reason(code, **environment):
    """Return what why_not says in a new interpreter, where ``llama_cpp`` is a fake module with this source."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    ).stdout


@pytest.mark.parametrize(
    ("body", "cause", "command"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
            "another CPU",
            "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install",
        ),
        ("import os; os.abort()", "signal 6", "pip install"),
        ("raise OSError('libgomp.so.1: cannot open shared object file')", "libgomp", "apt-get install libgomp1"),
        ("raise ImportError('broken wheel')", "broken wheel", "pip install --force-reinstall"),
    ],
)
def test_a_runtime_that_cannot_be_imported_is_explained(tmp_path, body, cause, command):
    (tmp_path / "llama_cpp.py").write_text(body)
    said = fresh_reason(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "from fsrm_lite.runtimes.llama.engine import why_not; print(why_not())"
    )
    assert cause in said
    assert command in said


def test_a_missing_runtime_names_the_install_line(monkeypatch):
    monkeypatch.setattr(engine_module, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    why_not.cache_clear()
    try:
        with pytest.raises(JudgeUnavailableError, match=r"pip install 'fsrm-lite\[judge\]'"):
            engine_module.load_llama()
    finally:
        why_not.cache_clear()


def test_importing_the_engine_does_not_import_llama_cpp():
    assert (
        fresh_reason(
            "import sys, fsrm_lite.runtimes.llama.engine, fsrm_lite.slow.judge; print('llama_cpp' in sys.modules)"
        ).strip()
        == "False"
    )


@pytest.mark.parametrize("kind", [k for k in QUANTIZATIONS if k not in ("f16", "f32", "bf16")])
def test_quantize_writes_a_smaller_file_that_still_says_much_the_same(gguf_path, tmp_path, kind, engine):
    out = quantize(gguf_path, tmp_path / "out" / f"{kind}.gguf", kind.upper(), threads=1)
    assert out.stat().st_size < gguf_path.stat().st_size
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    engine.prepare(1, 64)
    truth = last_logits(engine, IDS)
    small = LlamaEngine(out, threads=1)
    small.prepare(1, 64)
    assert np.corrcoef(truth, last_logits(small, IDS))[0, 1] > (0.99 if kind == "q8_0" else 0.8)
    small.close()


def test_quantize_refuses_an_unknown_kind_and_what_is_quantized_already(gguf_path, tmp_path):
    with pytest.raises(InputError, match="unknown quantization 'q3'"):
        quantize(gguf_path, tmp_path / "x.gguf", "q3")
    once = quantize(gguf_path, tmp_path / "once.gguf", "q4_0", threads=1)
    with pytest.raises(BundleError, match="must hold F32, F16 or BF16"):
        quantize(once, tmp_path / "twice.gguf", "q8_0", threads=1)
    assert [p.name for p in tmp_path.iterdir()] == ["once.gguf"]


def test_a_missing_file_is_a_bundle_error(tmp_path):
    with pytest.raises(BundleError, match="No such file"):
        LlamaEngine(tmp_path / "none.gguf")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4 not a model")
    with pytest.raises(BundleError, match="not a GGUF file"):
        LlamaEngine(tmp_path / "x.gguf")


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(gguf_path, tmp_path, share):
    data = gguf_path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: max(8, int(len(data) * share))])
    with pytest.raises(BundleError, match="cannot load"):
        LlamaEngine(tmp_path / "cut.gguf")


@pytest.mark.parametrize("architecture", ["nonsense", "bert", "mamba"])
def test_a_wrong_architecture_is_refused(tmp_path, architecture):
    with pytest.raises(BundleError, match="cannot load"):
        LlamaEngine(write_tiny_gguf(tmp_path / "x.gguf", architecture=architecture))


def test_a_missing_pre_tokenizer_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"tokenizer\.ggml\.pre"):
        LlamaEngine(write_tiny_gguf(tmp_path / "x.gguf", pre=None))


def test_two_tokens_of_one_text_are_refused_before_llama_cpp_aborts(tmp_path):
    with pytest.raises(BundleError, match="96 tokens but only 95 different"):
        LlamaEngine(write_tiny_gguf(tmp_path / "x.gguf", tokens=["same", "same", *(f"t{i}" for i in range(94))]))


def test_a_header_is_read_as_the_gguf_library_reads_it(gguf_path):
    header, reader = read_header(gguf_path), gguf.GGUFReader(gguf_path)
    assert {name: t.shape for name, t in header.tensors.items()} == {
        t.name: tuple(t.shape.tolist()) for t in reader.tensors
    }
    assert {name: t.type for name, t in header.tensors.items()} == {t.name: t.tensor_type.value for t in reader.tensors}
    assert header.entries["qwen3.block_count"] == 2
    assert header.entries["qwen3.rope.freq_base"] == 10000.0
    assert header.entries["tokenizer.ggml.tokens"] == header.tokens == 96


@pytest.mark.parametrize("size", range(4, 120, 7))
def test_a_header_cut_anywhere_is_an_error(gguf_path, tmp_path, size):
    (tmp_path / "cut.gguf").write_bytes(gguf_path.read_bytes()[:size])
    with pytest.raises(BundleError, match="cannot load"):
        read_header(tmp_path / "cut.gguf")


def test_threads_must_be_positive(gguf_path):
    with pytest.raises(InputError, match="threads is 0"):
        LlamaEngine(gguf_path, threads=0)


def test_engine_knows_its_model(engine):
    assert engine.vocab_size == 96
    assert engine.cell_bytes == 2 * 2 * (32 + 32)


def test_logits_do_not_depend_on_chunks_or_streams(engine):
    engine.prepare(3, 64)
    whole = last_logits(engine, IDS, 0)
    feed(engine, IDS[:5], 2)
    feed(engine, IDS[5:-1], 2, 5)
    assert np.allclose(whole, feed(engine, IDS[-1:], 2, len(IDS) - 1, outputs=True)[0], atol=1e-3)


def test_rows_of_one_batch_come_back_in_order(engine):
    engine.prepare(3, 64)
    alone = []
    for ids in (IDS, IDS[::-1], IDS * 2):
        engine.prepare(3, 64)
        alone.append(last_logits(engine, ids))
    engine.prepare(3, 64)
    for stream, ids in enumerate((IDS, IDS[::-1], IDS * 2)):
        feed(engine, ids[:-1], stream)
    lasts = np.array([IDS[-1], IDS[0], 2 * IDS[-1]], np.int32)
    together = engine.decode(lasts, np.full(3, len(IDS) - 1, np.int32), np.arange(3, dtype=np.int32), outputs=True)
    assert np.allclose(together, alone, atol=2e-3)


def test_a_copied_stream_continues_like_the_original(engine):
    engine.prepare(2, 64)
    feed(engine, IDS, 0)
    engine.copy(0, 1, len(IDS) - 1)  # a cut copy
    assert np.allclose(feed(engine, IDS[-1:], 1, len(IDS) - 1, outputs=False).shape, (0, 96))
    engine.cut(0, len(IDS) - 1)
    two = engine.decode(
        IDS[[-1, -1]], np.array([len(IDS) - 1, len(IDS)], np.int32), np.array([0, 1], np.int32), outputs=True
    )
    engine.prepare(2, 64)
    assert np.allclose(two[0], last_logits(engine, IDS), atol=2e-3)


def test_no_room_is_made_for_logits_that_nobody_asks_for(tmp_path):
    """By default llama.cpp reserves a row of logits for every token of a batch."""
    vocab = 60_000
    engine = LlamaEngine(
        write_tiny_gguf(tmp_path / "wide.gguf", vocab=vocab, hidden=32, head_dim=16, inner=32, layers=1), threads=1
    )
    before = reserved_kib()
    engine.prepare(2, 256)
    feed(engine, IDS)
    feed(engine, IDS[:1], start=len(IDS), outputs=True)
    assert reserved_kib() - before < BATCH_TOKENS * vocab * 4 / 1024 / 2
    engine.close()


def reserved_kib():
    """Memory that this process has asked for, touched or not."""
    return next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")
    )


def test_the_context_grows_and_never_shrinks(engine):
    engine.prepare(2, 100)
    assert (engine.streams, engine.cells) == (2, 256)
    engine.prepare(1, 300)
    assert (engine.streams, engine.cells) == (2, 512)


def test_what_would_abort_the_process_is_an_error(engine):
    engine.prepare(2, 1024)
    long = np.zeros(BATCH_TOKENS + 1, np.int32)
    with pytest.raises(JudgeError, match=f"batch of {BATCH_TOKENS + 1} rows"):
        feed(engine, long)
    with pytest.raises(JudgeError, match="batch of 3 rows"):
        feed(engine, IDS[:3], outputs=True)
    with pytest.raises(JudgeError, match="batch of 0 rows"):
        feed(engine, IDS[:0])
    with pytest.raises(InputError, match="expected 1 to 256"):
        engine.prepare(257, 16)


def test_a_full_stream_is_an_error(engine):
    engine.prepare(1, 256)
    feed(engine, np.full(256, 5))
    with pytest.raises(JudgeError, match="status 1"):
        feed(engine, IDS[:1], 0, 256)


def test_closing_twice_is_fine(gguf_path):
    engine = LlamaEngine(gguf_path, threads=1)
    engine.prepare(1, 16)
    engine.close()
    engine.close()
    with pytest.raises(JudgeError, match="closed"):
        engine.prepare(1, 16)
    with pytest.raises(JudgeError, match="closed"):
        feed(engine, IDS)
