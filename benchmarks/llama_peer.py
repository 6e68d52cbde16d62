"""llama.cpp through its low-level API at its best: the prompt decoded once and shared by ``llama_memory_seq_cp``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.files import LABELS
from benchmarks.workloads import Workload
from fsrm_lite.runtimes.llama.gguf_header import read_header
from fsrm_lite.runtimes.llama.native import repacking

_keep_alive: list[Any] = []

_BATCH_TOKENS = 512
"""New tokens per decode call; also llama.cpp's own default of n_ubatch, the width of its products."""


def amx_crashes(lib: Any) -> bool:  # noqa: ANN401
    """Return whether this build has AMX kernels: those of builds made with GCC die, so the peers must do without."""
    return b"AMX_INT8 = 1" in lib.llama_print_system_info()


def model_params(lib: Any, path: Path) -> Any:  # noqa: ANN401 - llama_cpp has no types
    """llama.cpp's default model parameters.

    Where its AMX kernels would crash (see fsrm_lite/runtimes/llama/engine.py), the AVX ones.

    Weights are interleaved for those kernels as they would be by default on a machine without AMX.
    """
    params = lib.llama_model_default_params()
    if amx_crashes(lib):
        params.use_extra_bufts = False
        overrides = repacking(lib.llama_cpp._lib, read_header(path).tensors)
        _keep_alive.append(overrides)
        params.tensor_buft_overrides = ctypes.addressof(overrides) if overrides else None
    return params


def guard_high_level(lib: Any, path: Path) -> None:  # noqa: ANN401
    """Have ``Llama``, which has no argument for it, start from :func:`model_params` for the only file it will load."""
    params = model_params(lib, path)
    lib.llama_cpp.llama_model_default_params = lambda: params


class LlamaLowLevel:
    """One context per workload, as large as it needs."""

    def __init__(self, path: Path, threads: int) -> None:
        from fsrm_lite.runtimes.llama.engine import load_llama

        self._lib = load_llama()
        self._threads = threads
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), model_params(self._lib, path))
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._vocab_size = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))

    def run(self, workload: Workload) -> list[float]:
        """Read the workload: the prompt in pieces, then the responses, as many per call as fill ``_BATCH_TOKENS``."""
        lib = self._lib
        together = (
            max(1, min(workload.count, _BATCH_TOKENS // workload.response)) if workload.response <= _BATCH_TOKENS else 1
        )
        context = self._context(workload, together)
        memory = lib.llama_get_memory(context)
        sequences = workload.sequences(self._vocab_size)
        out: list[float] = []
        try:
            for start in range(0, workload.prompt, _BATCH_TOKENS):
                piece = sequences[0][start : min(start + _BATCH_TOKENS, workload.prompt)]
                self._decode(context, [(0, start, piece)], logits=False)
            for first in range(0, workload.count, together):
                group = sequences[first : first + together]
                for i in range(1, len(group) + 1):
                    # Sequence 0 keeps the prompt, 1.. are the responses.
                    if workload.prompt:
                        lib.llama_memory_seq_cp(memory, 0, i, 0, workload.prompt)
                out += self._decode(
                    context,
                    [(i, workload.prompt, ids[workload.prompt :]) for i, ids in enumerate(group, 1)],
                    logits=True,
                )
                for i in range(1, len(group) + 1):
                    lib.llama_memory_seq_rm(memory, i, -1, -1)
        finally:
            lib.llama_free(context)
        return out

    def _context(self, workload: Workload, together: int) -> Any:  # noqa: ANN401 - llama_cpp has no types
        params = self._lib.llama_context_default_params()
        shared = workload.prompt > 0
        # Each sequence has a KV of its own where nothing is shared: a common one would be attended to in full.
        per_sequence = -(-workload.response // 256) * 256
        params.n_ctx = workload.prompt + together * workload.response + 256 if shared else (together + 1) * per_sequence
        params.n_batch = max(_BATCH_TOKENS, together * workload.response)
        params.n_ubatch = _BATCH_TOKENS
        params.n_seq_max = together + 1
        params.n_outputs_max = together + 1
        params.kv_unified = shared
        params.n_threads = params.n_threads_batch = self._threads
        params.no_perf = True
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError("llama.cpp cannot make a context")
        return context

    def _decode(self, context: Any, pieces: Sequence[tuple[int, int, list[int]]], *, logits: bool) -> list[float]:  # noqa: ANN401
        """Decode (sequence, first position, ids) pieces in one call; returns the label logit behind each."""
        lib = self._lib
        total = sum(len(ids) for _, _, ids in pieces)
        batch = lib.llama_batch_init(total, 0, 1)
        try:
            row, ends = 0, []
            for sequence, start, ids in pieces:
                for offset, token in enumerate(ids):
                    batch.token[row], batch.pos[row] = token, start + offset
                    batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
                    batch.logits[row] = logits and offset == len(ids) - 1
                    row += 1
                ends.append(row - 1)
            batch.n_tokens = total
            status = lib.llama_decode(context, batch)
            if status:
                raise RuntimeError(f"llama_decode returned {status}")
            return [float(lib.llama_get_logits_ith(context, end)[LABELS[0]]) for end in ends] if logits else []
        finally:
            lib.llama_batch_free(batch)
