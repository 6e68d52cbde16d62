"""The peers: programs, or forms of one program, that read the logit of a label behind every sequence of a workload.

Each does so in the best way that can reasonably be asked of it, and in a process of its own (``worker.py``), so that
none leaves threads, memory or settings to the next. A peer loads its model when it is created. ``run`` does a whole
workload from scratch, with nothing kept from the run before, and returns the logits, so that answers can be compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

from benchmarks.files import LABELS, Files
from benchmarks.workloads import Workload


class Peer(Protocol):
    """What a worker process runs."""

    def run(self, workload: Workload) -> list[float]:
        """Read the workload; return the first label's logit behind each sequence."""
        ...


class Ours:
    """fsrm-lite's fast path, with its compiled operators or without. Its prefix cache is emptied between runs."""

    def __init__(self, path: Path, threads: int, compiled: bool = True) -> None:
        from fsrm_lite.runtimes.onnx import kernels
        from fsrm_lite.runtimes.onnx.session import FastModel

        os.environ[kernels.SWITCH] = str(int(compiled))  # of this worker, a process of its own
        self._model = FastModel(path, threads=threads)

    def run(self, workload: Workload) -> list[float]:
        """Read the workload."""
        self._model._cache.clear()
        return [r.label_logits[0] for r in self._model.read(workload.sequences(self._model.vocab_size))]


class Transformers:
    """transformers, several sequences per call, with the logits of the last position only.

    With ``cached``, the keys and values of the common prompt are computed once.
    """

    def __init__(self, checkpoint: Path, threads: int, dtype: str, cached: bool) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._torch = torch
        self._cached = cached
        self._model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype), local_files_only=True
        ).eval()

    def run(self, workload: Workload) -> list[float]:
        """Read the workload in batches of about 2,048 tokens."""
        torch, model = self._torch, self._model
        ids = torch.tensor(workload.sequences(model.config.vocab_size))
        shared = workload.prompt if self._cached else 0
        out: list[float] = []
        with torch.inference_mode():
            first = model(ids[:1, :shared], use_cache=True, logits_to_keep=1).past_key_values if shared else None
            for rows in ids.split(max(1, 2048 // (ids.shape[1] - shared))):
                cache = deepcopy(first)
                if cache is not None:
                    cache.batch_repeat_interleave(len(rows))
                logits = model(
                    rows[:, shared:], past_key_values=cache, use_cache=cache is not None, logits_to_keep=1
                ).logits
                out += logits[:, -1, LABELS[0]].float().tolist()
        return out


class LlamaHighLevel:
    """llama-cpp-python as most people use it: ``Llama`` reads one sequence after the other."""

    def __init__(self, path: Path, threads: int) -> None:
        from benchmarks.llama_peer import guard_high_level
        from fsrm_lite.runtimes.llama.engine import load_llama

        self._lib = load_llama()
        guard_high_level(self._lib, path)
        options: dict[str, Any] = {
            "n_ctx": 1024,
            "n_batch": 512,
            "n_threads": threads,
            "n_threads_batch": threads,
            "verbose": False,
        }
        self._llama = self._lib.Llama(model_path=str(path), **options)

    def run(self, workload: Workload) -> list[float]:
        """Read the workload."""
        llama = self._llama
        out = []
        for ids in workload.sequences(llama.n_vocab()):
            llama.reset()
            llama.eval(ids)
            out.append(float(self._lib.llama_get_logits_ith(llama.ctx, -1)[LABELS[0]]))
        return out


class Gemm:
    """The *roofline*: how fast ONNX Runtime multiplies matrices of the shapes of the model's linear maps.

    No graph that ONNX Runtime runs can be faster.
    """

    SHAPES = ((1024, 3072), (3072, 1024), (1024, 2048), (2048, 1024))
    ROWS = (128, 512)

    def __init__(self, threads: int) -> None:
        from benchmarks.roofline import gemm_sessions

        self._sessions = gemm_sessions(self.ROWS, self.SHAPES, threads)

    def run(self, workload: Workload) -> list[float]:
        """Return the best int8 and fp32 rates seen in this run, in operations per second."""
        from benchmarks.roofline import best_rate

        return [best_rate(self._sessions, kind) for kind in ("int8", "fp32")]


def _llama(path: Path, threads: int) -> Peer:
    from benchmarks.llama_peer import LlamaLowLevel

    return LlamaLowLevel(path, threads)


def _cross_encoder(path: Path, threads: int, dtype: str) -> Peer:
    from benchmarks.cross_encoder_peer import CrossEncoderPeer

    return CrossEncoderPeer(path, threads, dtype)


def _optimum(root: Path, precision: str, threads: int) -> Peer:
    from benchmarks.optimum_peer import Optimum, folder

    return Optimum(folder(root, precision), threads)


STOCK = "fsrm-lite int8, stock operators"
RUNGS = "fsrm-lite int8 with SmolLM2's rungs"
"""Each kind of MatMul as often at two terms or fp32 as a real model needed; see ``prepare.REAL_RUNGS``."""

PEERS: dict[str, Callable[[Files, int], Peer]] = {
    "fsrm-lite int8": lambda files, threads: Ours(files.fast("int8"), threads),
    RUNGS: lambda files, threads: Ours(files.fast("rungs"), threads),
    "llama.cpp seq_cp Q4_0": lambda files, threads: _llama(files.gguf("q4_0"), threads),
    "llama.cpp seq_cp Q4_K_M": lambda files, threads: _llama(files.gguf("q4_k_m"), threads),
    "llama.cpp seq_cp Q8_0": lambda files, threads: _llama(files.gguf("q8_0"), threads),
    "Llama Q4_0": lambda files, threads: LlamaHighLevel(files.gguf("q4_0"), threads),
    "Llama Q8_0": lambda files, threads: LlamaHighLevel(files.gguf("q8_0"), threads),
    "transformers bf16": lambda files, threads: Transformers(files.checkpoint, threads, "bfloat16", False),
    "transformers bf16 cached": lambda files, threads: Transformers(files.checkpoint, threads, "bfloat16", True),
    "CrossEncoder bf16": lambda files, threads: _cross_encoder(files.checkpoint, threads, "bfloat16"),
    "optimum int8": lambda files, threads: _optimum(files.root, "int8", threads),
    STOCK: lambda files, threads: Ours(files.fast("int8"), threads, compiled=False),
    "fsrm-lite fp32": lambda files, threads: Ours(files.fast("fp32"), threads),
    "transformers fp32": lambda files, threads: Transformers(files.checkpoint, threads, "float32", False),
    "transformers fp32 cached": lambda files, threads: Transformers(files.checkpoint, threads, "float32", True),
    "CrossEncoder fp32": lambda files, threads: _cross_encoder(files.checkpoint, threads, "float32"),
    "optimum fp32": lambda files, threads: _optimum(files.root, "fp32", threads),
    "GEMM roofline": lambda files, threads: Gemm(threads),
}
"""The peers by name. All are compared with the first.

The largest stand last: when they load, memory is full, and peers that have had their turn are ended to make room.
"""

UNSHARED = (
    "Llama Q4_0",
    "Llama Q8_0",
    "transformers bf16",
    "transformers fp32",
    "CrossEncoder bf16",
    "CrossEncoder fp32",
    "optimum fp32",
    "optimum int8",
)
"""Peers that share nothing between sequences, which is the usual way."""

ONE_BY_ONE = ("Llama Q4_0", "Llama Q8_0")
"""Peers that read one sequence at a time, so that a few sequences show how long all of them take."""

FAMILIES = (
    ("fsrm-lite int8", STOCK, "fsrm-lite fp32"),
    ("llama.cpp seq_cp Q4_0", "llama.cpp seq_cp Q4_K_M", "llama.cpp seq_cp Q8_0"),
    ("Llama Q4_0", "Llama Q8_0"),
    ("transformers bf16", "transformers fp32"),
    ("CrossEncoder bf16", "CrossEncoder fp32"),
    ("optimum int8", "optimum fp32"),
)
"""Peers that are forms of the same program. The first workload shows which form is the best.

On a processor without instructions for bf16 that is fp32: there torch computes bf16 several times as slowly.
"""

CACHED = {"transformers bf16": "transformers bf16 cached", "transformers fp32": "transformers fp32 cached"}
"""From a form to the one that computes a common prompt once. It has no place in the first workload, which has none."""

LLAMA_CPP = tuple(name for name in PEERS if name.lower().startswith("llama"))

ROOFLINE = "GEMM roofline"
