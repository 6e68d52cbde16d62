"""Around llama.cpp: its C structures over numpy memory, its tokenizer, how its threads wait, how its import fails.

Never imports llama_cpp: the engine hands in what is needed of it.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.runtimes.llama.gguf_header import Tensor


class Batch:
    """A llama_batch over numpy arrays: filling it is four array copies, whatever its size."""

    def __init__(self, kind: type[ctypes.Structure], size: int) -> None:
        """Allocate room for ``size`` tokens of the structure ``kind``."""
        self._tokens, self._positions, self._streams = (np.zeros(size, np.int32) for _ in range(3))
        self._outputs = np.zeros(size, np.int8)
        self._counts = np.ones(size, np.int32)
        self._pointers = self._streams.ctypes.data + 4 * np.arange(
            size, dtype=np.uintp
        )  # one stream per token, and where it stands
        self.struct: Any = kind()
        ints = ctypes.POINTER(ctypes.c_int32)
        self.struct.token = self._tokens.ctypes.data_as(ints)
        self.struct.pos = self._positions.ctypes.data_as(ints)
        self.struct.n_seq_id = self._counts.ctypes.data_as(ints)
        self.struct.seq_id = self._pointers.ctypes.data_as(ctypes.POINTER(ints))
        self.struct.logits = self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def fill(
        self, tokens: NDArray[np.int32], positions: NDArray[np.int32], streams: NDArray[np.int32], outputs: bool
    ) -> None:
        """Set the batch to these rows."""
        n = self.struct.n_tokens = len(tokens)
        self._tokens[:n] = tokens
        self._positions[:n] = positions
        self._streams[:n] = streams
        self._outputs[:n] = outputs


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A control or added token: its id, and whether it swallows the white space before and behind it."""

    id: int
    strips_left: bool
    strips_right: bool


_CONTROL, _ADDED, _LEFT, _RIGHT = 1 << 3, 1 << 4, 1 << 7, 1 << 8  # llama.cpp's token attributes


class LlamaTokenizer:
    """llama.cpp's own tokenizer of one loaded model, for files without a ``tokenizer.json``. Not to be used after its engine is closed."""

    def __init__(self, llama: Any, model: Any) -> None:  # noqa: ANN401 - the llama_cpp module and an opaque pointer
        """Look at the vocabulary of ``model``."""
        self._llama = llama
        self._pointer = llama.llama_model_get_vocab(model)
        self.size: int = llama.llama_vocab_n_tokens(self._pointer)

    def tokenize(self, text: str) -> list[int]:
        """Ids of ``text``, control tokens not asked for. Added tokens come out all the same, as do control tokens of SentencePiece."""
        data = text.encode()
        room = len(data) + 8  # no tokenizer makes more tokens than bytes, but for a space it puts in front
        ids = (ctypes.c_int32 * room)()
        count = self._llama.llama_tokenize(self._pointer, data, len(data), ids, room, False, False)
        if count < 0:
            raise ValueError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return list(ids[:count])

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; control tokens are left out."""
        array = (ctypes.c_int32 * len(ids))(*ids)
        room = 16 * len(ids) + 16
        while True:
            text = ctypes.create_string_buffer(room)
            count = self._llama.llama_detokenize(self._pointer, array, len(ids), text, room, False, False)
            if count >= 0:
                return text.raw[:count].decode("utf-8", "replace")
            room = -count

    @cached_property
    def special(self) -> dict[str, SpecialToken]:
        """Control and added tokens by their text, but for added white space, which is ordinary text."""
        found = {}
        for token in range(self.size):
            kind = self._llama.llama_vocab_get_attr(self._pointer, token)
            if kind & (_CONTROL | _ADDED):
                text = self._llama.llama_vocab_get_text(self._pointer, token).decode("utf-8", "replace")
                if text and text == text.strip():
                    found[text] = SpecialToken(token, bool(kind & _LEFT), bool(kind & _RIGHT))
        return found

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Ids at which a text ends."""
        return tuple(token for token in range(self.size) if self._llama.llama_vocab_is_eog(self._pointer, token))

    @property
    def start(self) -> int | None:
        """Id that every prompt starts with, where the model has one."""
        return (
            self._llama.llama_vocab_bos(self._pointer) if self._llama.llama_vocab_get_add_bos(self._pointer) else None
        )

    def name(self, role: str) -> str:
        """Text of the token that begins ("bos") or ends ("eos") a text; empty where there is none."""
        token = getattr(self._llama, f"llama_vocab_{role}")(self._pointer)
        return self._llama.llama_vocab_get_text(self._pointer, token).decode("utf-8", "replace") if token >= 0 else ""


class _BufferOverride(ctypes.Structure):
    """llama_model_tensor_buft_override: tensors whose name matches go into this type of buffer."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


_REPACKED = {
    2,
    12,
    20,
}  # ggml's numbers of Q4_0, Q4_K, IQ4_NL: the types whose rows x86 kernels interleave, eight at a time


def repacking(library: ctypes.CDLL, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - a ctypes array
    """Return overrides that put 4-bit matrices, and nothing else, into llama.cpp's interleaved buffer.

    llama.cpp does this by itself, but only together with AMX (one switch turns on both), and AMX may have to stay off.

    Args:
        library: The loaded ``libllama``; the symbol is looked up in what it has loaded, never in another copy.
        tensors: The model's tensor table.

    Returns:
        An array for ``tensor_buft_overrides`` that must live as long as the loading takes; None when there is nothing to
        interleave or this build does not offer the buffer.
    """
    names = [
        n
        for n, t in tensors.items()
        if n.startswith("blk.") and t.type in _REPACKED and len(t.shape) == 2 and t.shape[1] % 8 == 0
    ]
    try:
        get_type = library._Z35ggml_backend_cpu_repack_buffer_typev
    except AttributeError:
        return None
    get_type.restype = ctypes.c_void_p
    if not names:
        return None
    buffer_type = get_type()
    rows = [_BufferOverride(f"^{re.escape(name)}$".encode(), buffer_type) for name in names]
    return (_BufferOverride * (len(rows) + 1))(*rows)  # the last one stays empty: it ends the list


_SPINS = "2000"  # about 0.1 ms


@contextmanager
def short_spins() -> Iterator[None]:
    """Have libgomp, which reads its settings as it is loaded, wait at barriers by sleeping after a short spin.

    Its default is to spin for milliseconds, which on a busy machine takes the core that the awaited thread needs; not to
    spin at all means to wake a thread hundreds of times per token, which is as slow on an idle one. What the user has set stays.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = _SPINS
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


def explain_failure(status: int, stderr: str) -> str:
    """Turn the end of a failed probe into a cause and a command."""
    rebuild = "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
    if status == -4:
        return f"llama-cpp-python was built for another CPU (illegal instruction); rebuild it here: {rebuild}"
    if status < 0:
        return f"importing llama-cpp-python dies of signal {-status}; rebuild it here: {rebuild}"
    last = stderr.strip().splitlines()[-1] if stderr.strip() else f"exit status {status}"
    if "libgomp" in stderr:
        return f"llama-cpp-python needs the OpenMP library libgomp ({last}); run: apt-get install libgomp1 (or your system's equivalent)"
    return f"llama-cpp-python is installed but cannot be imported ({last}); run: pip install --force-reinstall --no-cache-dir 'fsrm-lite[judge]'"
