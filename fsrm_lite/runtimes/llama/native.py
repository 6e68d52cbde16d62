"""Helpers for calling llama.cpp.

They are its C structures over numpy memory, its tokenizer, the way its threads wait, and the reasons why its import can
fail. The module never imports llama_cpp: the engine passes in what is needed of it.
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
    """A ``llama_batch`` over numpy arrays. Filling it takes four array copies, whatever its size."""

    def __init__(self, kind: type[ctypes.Structure], size: int) -> None:
        """Allocate a batch.

        Args:
            kind: The structure ``llama_batch`` of llama_cpp.
            size: Most tokens that the batch can hold.
        """
        self._tokens, self._positions, self._streams = (np.zeros(size, np.int32) for _ in range(3))
        self._outputs = np.zeros(size, np.int8)
        self._counts = np.ones(size, np.int32)
        # Each token has a list of streams in C. Here it has one entry, at this address.
        self._pointers = self._streams.ctypes.data + 4 * np.arange(size, dtype=np.uintp)
        self.struct: Any = kind()
        ints = ctypes.POINTER(ctypes.c_int32)
        self.struct.token = self._tokens.ctypes.data_as(ints)
        self.struct.pos = self._positions.ctypes.data_as(ints)
        self.struct.n_seq_id = self._counts.ctypes.data_as(ints)
        self.struct.seq_id = self._pointers.ctypes.data_as(ctypes.POINTER(ints))
        self.struct.logits = self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def fill(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        streams: NDArray[np.int32],
        outputs: bool | NDArray[np.bool_],
    ) -> None:
        """Put tokens into the batch.

        Args:
            tokens: int32 [n], token ids.
            positions: int32 [n], position of each token in its stream.
            streams: int32 [n], stream of each token.
            outputs: Whether llama.cpp is to return logits for each token; or bool [n], for which.
        """
        n = self.struct.n_tokens = len(tokens)
        self._tokens[:n] = tokens
        self._positions[:n] = positions
        self._streams[:n] = streams
        self._outputs[:n] = outputs


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A control token or an added token of a vocabulary.

    Attributes:
        id: Its id.
        strips_left: Whether it removes the white space in front of it.
        strips_right: Whether it removes the white space after it.
    """

    id: int
    strips_left: bool
    strips_right: bool


_CONTROL, _ADDED, _LEFT, _RIGHT = 1 << 3, 1 << 4, 1 << 7, 1 << 8  # bits of llama.cpp's token attributes


class LlamaTokenizer:
    """llama.cpp's own tokenizer of a loaded model, for models without a ``tokenizer.json``.

    It must not be used after the engine that loaded the model is closed.
    """

    def __init__(self, llama: Any, model: Any) -> None:  # noqa: ANN401 - the llama_cpp module and an opaque pointer
        """Find the vocabulary of a model.

        Args:
            llama: The module ``llama_cpp``.
            model: llama.cpp's pointer to the model.
        """
        self._llama = llama
        self._pointer = llama.llama_model_get_vocab(model)
        self.size: int = llama.llama_vocab_n_tokens(self._pointer)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``. llama.cpp is told to recognize no special tokens in it.

        It recognizes added tokens nevertheless, and in a SentencePiece vocabulary control tokens as well.

        Raises:
            ValueError: If llama.cpp cannot tokenize the text.
        """
        data = text.encode()
        room = len(data) + 8  # no tokenizer makes more tokens than bytes, apart from a space that it may put in front
        ids = (ctypes.c_int32 * room)()
        count = self._llama.llama_tokenize(self._pointer, data, len(data), ids, room, False, False)
        if count < 0:
            raise ValueError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return list(ids[:count])

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, without control tokens."""
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
        """The control tokens and added tokens, by their text. Added white space is left out: it is ordinary text."""
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
        """The ids at which a text ends."""
        return tuple(token for token in range(self.size) if self._llama.llama_vocab_is_eog(self._pointer, token))

    @property
    def start(self) -> int | None:
        """The id with which every prompt starts; None if the model has none."""
        return (
            self._llama.llama_vocab_bos(self._pointer) if self._llama.llama_vocab_get_add_bos(self._pointer) else None
        )

    def name(self, role: str) -> str:
        """Return the text of the token that begins ("bos") or ends ("eos") a text; empty if there is no such token."""
        token = getattr(self._llama, f"llama_vocab_{role}")(self._pointer)
        return self._llama.llama_vocab_get_text(self._pointer, token).decode("utf-8", "replace") if token >= 0 else ""


class _BufferOverride(ctypes.Structure):
    """``llama_model_tensor_buft_override``: puts tensors whose name matches a pattern into a certain type of buffer."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


# ggml's numbers of Q4_0, Q4_K and IQ4_NL: the types of which x86 kernels interleave the rows, eight at a time.
_REPACKED = {
    2,
    12,
    20,
}


def repacking(library: ctypes.CDLL, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - a ctypes array
    """Return overrides that put the 4-bit matrices, and nothing else, into llama.cpp's buffer of interleaved rows.

    llama.cpp uses that faster layout by itself, but one switch turns on both it and AMX, and AMX may have to stay off.

    Args:
        library: The loaded ``libllama``. The function is looked up in what it has loaded, never in another copy of
            ggml.
        tensors: The model's table of tensors.

    Returns:
        An array for ``tensor_buft_overrides``, which must be kept until the model is loaded. None when there is nothing
        to interleave, or when this build of llama.cpp has no such buffer.
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
    return (_BufferOverride * (len(rows) + 1))(*rows)  # an empty one at the end marks the end of the list


_SPINS = "2000"  # rounds of the waiting loop, about 0.1 ms


@contextmanager
def short_spins() -> Iterator[None]:
    """Make llama.cpp's threads wait for each other in a loop for a short time only, and then sleep.

    The setting is that of the OpenMP library libgomp, which reads it when it is loaded: import llama_cpp within this
    block. By default libgomp loops for milliseconds, which on a busy machine takes the core away from the thread that
    is waited for. Without any loop, threads would be woken hundreds of times per token, which is just as slow on an
    idle machine. If the user has set either of libgomp's variables, nothing is changed.
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
    """Return the cause and the cure of a failed import of llama_cpp in a child process.

    Args:
        status: Exit status of the child; below 0 the number of the signal that ended it.
        stderr: What the child wrote to standard error.
    """
    rebuild = (
        "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install --force-reinstall --no-cache-dir "
        "--no-binary llama-cpp-python llama-cpp-python"
    )
    if status == -4:
        return f"llama-cpp-python was built for another CPU (illegal instruction); rebuild it here: {rebuild}"
    if status < 0:
        return f"importing llama-cpp-python dies of signal {-status}; rebuild it here: {rebuild}"
    last = stderr.strip().splitlines()[-1] if stderr.strip() else f"exit status {status}"
    if "libgomp" in stderr:
        return (
            f"llama-cpp-python needs the OpenMP library libgomp ({last}); "
            "run: apt-get install libgomp1 (or your system's equivalent)"
        )
    return (
        f"llama-cpp-python is installed but cannot be imported ({last}); "
        "run: pip install --force-reinstall --no-cache-dir 'fsrm-lite[judge]'"
    )
