"""llama.cpp, made safe to call: loading, quantizing and decoding.

This is the only module that imports llama_cpp, and it does so when it is first needed. Some mistakes make llama.cpp
abort the whole process: a batch that is too large, logits asked for too many rows, a partial copy in a split cache, two
threads in one context. They are refused here in Python, as exceptions. What to decode, and when, is decided in
``fsrm_lite.slow.scheduler`` and in ``fsrm_lite.runtimes.llama.reader``.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections import deque
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.checks import expect, is_whole, plain
from fsrm_lite.errors import BundleError, InputError, JudgeError, JudgeUnavailableError, MisuseError
from fsrm_lite.files import whole_file
from fsrm_lite.runtimes.engine import MAX_STREAMS, Interrupted, Outputs, wanted_rows
from fsrm_lite.runtimes.llama.gguf_header import read_header
from fsrm_lite.runtimes.llama.native import Batch, LlamaTokenizer, explain_failure, repacking, short_spins
from fsrm_lite.runtimes.threads import usable_cores

INSTALL_LINE = "pip install 'fsrm-lite[judge]'"
QUANTIZATIONS = {
    "f32": "LLAMA_FTYPE_ALL_F32",
    "f16": "LLAMA_FTYPE_MOSTLY_F16",
    "bf16": "LLAMA_FTYPE_MOSTLY_BF16",
    "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0",
    "q6_k": "LLAMA_FTYPE_MOSTLY_Q6_K",
    "q5_k_m": "LLAMA_FTYPE_MOSTLY_Q5_K_M",
    "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M",
    "q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0",
}
"""The file types that ``quantize`` can write, with their names in llama_cpp."""

BATCH_TOKENS = 512
"""Most tokens per decode call: enough to make good use of matrix products, and not less than ``MAX_STREAMS``.

More than ``MAX_STREAMS`` sequences cannot be held by one context; that limit is compiled into llama.cpp.
"""

SMALL_BYTES = 32 << 20
"""A model whose file is at most this large gets one thread.

One step of it takes a few milliseconds, in which threads meet at hundreds of barriers: more threads would mostly wait
for each other.
"""

_PROBE_SECONDS = 60
_loading = threading.Lock()
_keep_alive: list[Any] = []
_log: deque[str] = deque(maxlen=3)
_ERROR = 4  # llama.cpp's log level of errors


def available() -> bool:
    """Return whether llama-cpp-python can be used here. The first call starts a short-lived child process."""
    return why_not() is None


@cache
def why_not() -> str | None:
    """Return why llama-cpp-python cannot be used here, with the command that helps; None when it can.

    A build for another CPU ends the process with an illegal instruction, which Python cannot catch. So the import is
    tried in a child process first. The answer is remembered.
    """
    if "llama_cpp" in sys.modules:
        return None
    if find_spec("llama_cpp") is None:
        return f"llama-cpp-python is not installed; run: {INSTALL_LINE}"
    program = f"import sys; sys.path[:] = {sys.path!r}; import llama_cpp; llama_cpp.llama_backend_init()"
    try:
        child = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"llama-cpp-python could not be tried in a child process: {error}"
    return explain_failure(child.returncode, child.stderr) if child.returncode != 0 else None


def load_llama(*, probe: bool = True) -> Any:  # noqa: ANN401 - the module, which ships no types
    """Import llama_cpp, keep it from printing, and return the module.

    Args:
        probe: Try the import in a child process first. Without that, a bad build may end this process.

    Returns:
        The module ``llama_cpp``.

    Raises:
        JudgeUnavailableError: If it is missing or unusable; the message names the cause and the command that helps.
    """
    reason = why_not() if probe else None
    if reason is not None:
        raise JudgeUnavailableError(reason)
    with _loading:
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # otherwise a failed assertion starts a debugger
        try:
            with short_spins():
                import llama_cpp
        except (ImportError, OSError, RuntimeError) as error:
            raise JudgeUnavailableError(
                f"llama-cpp-python cannot be imported ({error}); run: {INSTALL_LINE}"
            ) from error
        if not _keep_alive:
            # llama.cpp goes on calling the callback, so Python must never free it.
            _keep_alive.append(llama_cpp.llama_log_callback(_listen))
            llama_cpp.llama_backend_init()
        # Set anew by every call, because llama_cpp's high-level API replaces it when it is imported or used.
        llama_cpp.llama_log_set(_keep_alive[0], None)
    return llama_cpp


def _listen(level: int, text: bytes, user_data: object) -> None:
    """Remember llama.cpp's last error messages, and print nothing.

    A call of llama.cpp that fails returns NULL; the messages say why.
    """
    if level == _ERROR and text:
        _log.append(text.decode("utf-8", "replace").strip())


def quantize(src: str | Path, dst: str | Path, kind: str, *, threads: int | None = None) -> Path:
    """Write a quantized copy of a GGUF file.

    Args:
        src: GGUF file with F32, F16 or BF16 weights.
        dst: File to write. It appears only when it is complete.
        kind: One of ``QUANTIZATIONS``, in upper or lower case. With a K-quant, tensors whose rows are not divisible by
            256 get a neighbouring type instead, as llama.cpp does it.
        threads: Worker threads; None for one per core that this process may use.

    Returns:
        The path of ``dst``.

    Raises:
        InputError: If ``kind`` is unknown.
        BundleError: If ``src`` cannot be read or converted.
        JudgeUnavailableError: If llama-cpp-python cannot be used here.
    """
    name = QUANTIZATIONS.get(kind.lower())
    if name is None:
        raise InputError(f"unknown quantization {kind!r}; expected one of {', '.join(QUANTIZATIONS)}")
    source, target = Path(src), Path(dst)
    read_header(source)
    llama = load_llama()
    params = llama.llama_model_quantize_default_params()
    params.nthread = threads or usable_cores()
    params.ftype = getattr(llama, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as partial:
        status = llama.llama_model_quantize(os.fsencode(source), os.fsencode(partial), params)
        if status != 0:
            raise BundleError(
                f"llama.cpp could not write {source} as {kind} (status {status}); "
                "the source must hold F32, F16 or BF16 weights"
            )
    return target


class LlamaModel:
    """A GGUF file, loaded. Engines may share it, each with a context of its own, so that its weights are there once.

    Attributes:
        path: The file.
        threads: Compute threads of each engine.
        tokenizer: llama.cpp's own tokenizer of the model.
        vocab_size: Tokens of the vocabulary.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        """Load the file.

        Args:
            path: The GGUF file.
            threads: Compute threads. None takes one per core that this process may use, or one for a file of at most
                ``SMALL_BYTES``.

        Raises:
            BundleError: If the file is damaged, of an unknown or unusable architecture, or does not name its
                pre-tokenizer.
            InputError: If ``threads`` is below 1.
            JudgeUnavailableError: If llama-cpp-python cannot be used here.
        """
        threads = plain(threads)
        expect(threads is None or (is_whole(threads) and threads >= 1), "threads", threads, "at least 1")
        self.path = Path(path)
        self.header = read_header(self.path)
        self.architecture = str(self.header.entries.get("general.architecture", ""))
        self._llama = load_llama()
        self.threads = threads or (usable_cores() if self.path.stat().st_size > SMALL_BYTES else 1)
        self._users, self._closed, self._lock = 0, False, threading.Lock()
        self.pointer = self._load()
        try:
            self._check()
        except BaseException:
            self.close()
            raise
        self.tokenizer = LlamaTokenizer(self._llama, self.pointer)
        self.vocab_size = self.tokenizer.size

    def enter(self) -> None:
        """Note one more engine, for which the model stays loaded."""
        with self._lock:
            if self._closed:
                raise MisuseError("this model was closed; open it again")
            self._users += 1

    def leave(self) -> None:
        """Note that an engine is closed."""
        with self._lock:
            self._users -= 1
            self._free_if_unused()

    def close(self) -> None:
        """Free the model, or let the last engine free it. Safe to repeat."""
        with self._lock:
            self._closed = True
            self._free_if_unused()

    def _free_if_unused(self) -> None:
        if self._closed and not self._users and self.pointer:
            self._llama.llama_model_free(self.pointer)
            self.pointer = None

    def _load(self) -> Any:  # noqa: ANN401 - an opaque pointer
        """Load the model, and return llama.cpp's pointer to it."""
        params = self._llama.llama_model_default_params()
        params.n_gpu_layers = 0
        if b"AMX_INT8 = 1" in self._llama.llama_print_system_info():
            # In builds made with GCC the AMX kernels crash, because the compiler has optimized away the tile
            # configuration that they load (llama.cpp pull request 26954). So the AVX kernels do the work instead.
            params.use_extra_bufts = False
            overrides = repacking(self._llama.llama_cpp._lib, self.header.tensors)
            params.tensor_buft_overrides = ctypes.addressof(overrides) if overrides else None
        _log.clear()
        model = self._llama.llama_model_load_from_file(os.fsencode(self.path), params)
        if not model:
            why = "; ".join(_log) or "no reason given"
            raise BundleError(
                f"llama.cpp cannot load {self.path}: {why}; "
                "the file is damaged or of an unknown kind, export the bundle again"
            )
        return model

    def _check(self) -> None:
        """Raise a ``BundleError`` if the loaded model cannot be read and written with."""
        llama = self._llama
        architecture, entries = self.architecture, self.header.entries
        if not llama.llama_model_has_decoder(self.pointer) or entries.get(f"{architecture}.attention.causal") is False:
            raise BundleError(
                f"{self.path} holds a {architecture} model, an encoder, which predicts no next token; "
                "expected a causal language model"
            )
        if (
            llama.llama_model_is_recurrent(self.pointer)
            or llama.llama_model_is_hybrid(self.pointer)
            or llama.llama_model_is_diffusion(self.pointer)
        ):
            raise BundleError(
                f"{self.path} holds a {architecture} model; "
                "expected one with plain attention, whose cache can be shared and cut back"
            )
        if entries.get("tokenizer.ggml.model") == "gpt2" and not entries.get("tokenizer.ggml.pre"):
            raise BundleError(
                f"{self.path} does not name its pre-tokenizer (tokenizer.ggml.pre); export the bundle again"
            )


class LlamaEngine:
    """An ``Engine`` (see ``fsrm_lite.runtimes.engine``) on llama.cpp: a loaded model with one decoding context.

    Each stream has the keys and values of its own tokens (llama.cpp's split cache), so that a step of one stream costs
    the same however many streams there are.
    """

    batch_tokens = BATCH_TOKENS

    def __init__(self, source: LlamaModel | str | Path, *, threads: int | None = None) -> None:
        """Use a loaded model, or load a GGUF file.

        Args:
            source: A model, which stays loaded when the engine is closed; or the GGUF file.
            threads: Compute threads of a file that is loaded here; see ``LlamaModel``, also for the errors.
        """
        self.model = source if isinstance(source, LlamaModel) else LlamaModel(source, threads=threads)
        self._owned = not isinstance(source, LlamaModel)
        self.model.enter()
        self._llama = load_llama()
        self._model: Any = self.model.pointer
        self._context: Any = None
        self.streams = 0
        self.cells = 0
        self._stop = ctypes.create_string_buffer(2)
        self.tokenizer, self.vocab_size = self.model.tokenizer, self.model.vocab_size

    @property
    def cell_bytes(self) -> int:
        """Bytes of cache per token of a stream: the float16 keys and values of every layer."""
        heads = self._llama.llama_model_n_head_kv(self._model)
        width = self._llama.llama_model_n_embd(self._model) // max(self._llama.llama_model_n_head(self._model), 1)
        sizes = [
            int(self.model.header.entries.get(f"{self.model.architecture}.attention.{part}_length", width))
            for part in ("key", "value")
        ]
        return int(2 * self._llama.llama_model_n_layer(self._model) * heads * sum(sizes))

    def prepare(self, streams: int, cells: int) -> None:
        """Empty every stream, and enlarge the context if it has fewer than ``streams`` streams of ``cells`` tokens.

        Args:
            streams: How many streams are needed.
            cells: How many tokens each of them must be able to hold.

        Raises:
            InputError: If that is more than llama.cpp can hold.
            JudgeError: If there is not enough memory for it.
        """
        if not 1 <= streams <= MAX_STREAMS:
            raise InputError(f"{streams} streams asked for, expected 1 to {MAX_STREAMS}")
        self._check_open()
        if self._context is None or streams > self.streams or cells > self.cells:
            self._open(max(streams, self.streams), max(-(-cells // 256) * 256, self.cells))
        self._llama.llama_memory_clear(self._memory, False)

    def _open(self, streams: int, cells: int) -> None:
        """Replace the context with one of ``streams`` streams of ``cells`` tokens each."""
        llama = self._llama
        self._release_context()
        params = llama.llama_context_default_params()
        params.n_seq_max = params.n_outputs_max = streams
        params.n_ctx = streams * cells
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = self.model.threads
        params.kv_unified = False
        # Flash attention was measured to be slower than plain attention on CPUs, at every batch size.
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.offload_kqv = params.op_offload = False
        params.no_perf = True
        # llama.cpp calls this function before every node of its graph, and stops if it returns anything but 0. A Python
        # function would be too slow for that. The C library's strlen on our two-byte buffer does it: an empty string
        # has the length 0, which means "go on".
        params.abort_callback = (
            ctypes.cast(ctypes.CDLL(None).strlen, type(params.abort_callback))
            if os.name == "posix"
            else params.abort_callback
        )
        params.abort_callback_data = ctypes.addressof(self._stop)
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise JudgeError(
                f"llama.cpp cannot open a context of {streams} streams of {cells} tokens "
                f"({streams * cells * self.cell_bytes >> 20} MiB)"
            )
        self.streams, self.cells = streams, cells
        self._memory = llama.llama_get_memory(self._context)
        self._batch = Batch(llama.llama_batch, BATCH_TOKENS)
        self._logits = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("llama_get_logits", llama.llama_cpp._lib))
        self._rows: tuple[int, NDArray[np.float32]] = (0, np.zeros((0, self.vocab_size), np.float32))

    def decode(
        self, tokens: NDArray[np.int32], positions: NDArray[np.int32], streams: NDArray[np.int32], *, outputs: Outputs
    ) -> NDArray[np.float32]:
        """Run tokens through the model, each at the end of its stream.

        Args:
            tokens: int32 [n], token ids; n is at most ``BATCH_TOKENS``.
            positions: int32 [n], for each token the next free position of its stream.
            streams: int32 [n], the stream of each token, below ``self.streams``; in rising order where logits of every
                token are asked for.
            outputs: Whether to return the next-token logits of every token; or bool [n], of which tokens. They may be
                at most ``self.streams``.

        Returns:
            float32 [tokens with logits, vocabulary], in the order of the tokens. With ``outputs=True`` it is a view,
            valid until the next call.

        Raises:
            Interrupted: If ``interrupt`` was called.
            JudgeError: If llama.cpp refuses the batch.
        """
        if not self._model:
            raise JudgeError("this engine is closed")
        n = len(tokens)
        wanted = wanted_rows(outputs, n)
        if not 0 < n <= BATCH_TOKENS:
            raise JudgeError(f"a batch of {n} rows was asked for; the context takes 1 to {BATCH_TOKENS}")
        if len(wanted) > self.streams:
            raise JudgeError(
                f"logits of a batch of {len(wanted)} rows were asked for; the context takes 1 to {self.streams}"
            )
        self._batch.fill(tokens, positions, streams, outputs)
        status = self._llama.llama_decode(self._context, self._batch.struct)
        if status == 2:
            raise Interrupted("decoding was interrupted")
        if status != 0:
            raise JudgeError(f"llama.cpp refused a batch of {n} tokens (status {status}); {'; '.join(_log)}")
        if not wanted:
            return self._rows[1][:0]
        if outputs is True:
            return self._view()[:n]
        # llama.cpp may have computed the streams in another order than that of the batch; it knows where each row is.
        rows = [self._llama.llama_get_logits_ith(self._context, row) for row in wanted]
        return np.stack([np.ctypeslib.as_array(row, (self.vocab_size,)) for row in rows])

    def _view(self) -> NDArray[np.float32]:
        """Return llama.cpp's buffer of logits as an array [streams, vocabulary]."""
        # The rows that were asked for lie one after another, in the order of the batch. The buffer changes its address
        # only when the context is replaced, so the array is made once per context.
        address = self._logits(self._context)
        if address != self._rows[0]:
            array = (ctypes.c_float * (self.streams * self.vocab_size)).from_address(address)
            self._rows = (address, np.ctypeslib.as_array(array).reshape(self.streams, self.vocab_size))
        return self._rows[1]

    def copy(self, source: int, target: int, length: int) -> None:
        """Make ``target`` hold the first ``length`` tokens of ``source``.

        A split cache can copy whole streams only, so the rest is cut off afterwards.
        """
        self._check_open(source, target)
        self._llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.cut(target, length)

    def cut(self, stream: int, length: int) -> None:
        """Remove the tokens of ``stream`` from position ``length`` on."""
        self._check_open(stream)
        self._llama.llama_memory_seq_rm(self._memory, stream, length, -1)

    def interrupt(self) -> None:
        """Stop ``decode``, now and in later calls, until ``resume`` is called. Any thread may call this."""
        self._stop[0] = b"\1"

    def resume(self) -> None:
        """Undo ``interrupt``."""
        self._stop[0] = b"\0"

    def close(self) -> None:
        """Free the model and its context. Safe to repeat."""
        self._release_context()
        if self._model:
            self._model = None
            self.model.leave()
            if self._owned:
                self.model.close()

    def _check_open(self, *streams: int) -> None:
        """Raise a ``JudgeError`` if the engine is closed or there is no such stream."""
        # llama.cpp does not check this: a freed model or an unknown stream would end the process.
        if not self._model:
            raise JudgeError("this engine is closed")
        if any(not 0 <= stream < self.streams for stream in streams):
            asked = ", ".join(map(str, streams))
            raise JudgeError(f"asked for stream {asked}; the context has {self.streams}, counted from 0")

    def _release_context(self) -> None:
        if self._context:
            self._llama.llama_free(self._context)
        self._context = None
