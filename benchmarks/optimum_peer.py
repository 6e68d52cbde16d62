"""A peer: the ONNX export of the model by optimum.

It lives in an environment of its own, since the versions that it pins conflict with those of this project; it is one
for all shapes and lies beside their folders. ``setup``, part of the one-time preparation, makes it, exports the model
and quantizes it. ``last_logits`` reads texts with it, to see how true it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copyfile, rmtree
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.workloads import Workload

PINS = ("torch==2.13.0", "optimum-onnx[onnxruntime]==0.1.0")
_LABEL = 100
_BATCH_TOKENS = 512
"""Tokens per call. The graph writes the logits of the whole vocabulary at every position: 0.3 GB for 512 tokens."""


def environment(work: Path) -> Path:
    """Return the path of the environment's interpreter, in the folder in which those of the shapes lie."""
    return work / "venv-optimum" / "bin" / "python"


def folder(root: Path, precision: str) -> Path:
    """Return the folder of the export."""
    return root / f"optimum-{precision}"


def _model(path: Path, threads: int) -> Any:  # noqa: ANN401 - an ORTModelForCausalLM, which is not installed here
    import onnxruntime
    from optimum.onnxruntime import ORTModelForCausalLM

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return ORTModelForCausalLM.from_pretrained(path, use_cache=False, use_io_binding=False, session_options=options)


class Optimum:
    """optimum's ``ORTModelForCausalLM``, which reads several sequences per call."""

    def __init__(self, path: Path, threads: int) -> None:
        self._model = _model(path, threads)

    def run(self, workload: Workload) -> list[float]:
        """Read the workload."""
        import torch

        ids = torch.tensor(workload.sequences(self._model.config.vocab_size))
        out: list[float] = []
        for rows in ids.split(max(1, _BATCH_TOKENS // ids.shape[1])):
            logits = self._model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits
            out += logits[:, -1, _LABEL].tolist()
        return out


def install(work: Path, say: Callable[[str], None]) -> None:
    """Make the environment, unless it is there already.

    Raises:
        subprocess.CalledProcessError: If a step fails; its output went to standard error.
    """
    python = environment(work)
    done = python.parents[1] / "installed"
    if not done.is_file():
        say(f"installing {' and '.join(PINS)} in an environment of their own")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(python.parents[1])], check=True)
        for pin in PINS:
            subprocess.run(
                [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", pin], check=True
            )
        done.touch()


def setup(root: Path, say: Callable[[str], None], precisions: Sequence[str] = ("fp32", "int8")) -> None:
    """Make the environment, export in fp32, and quantize as optimum's users do. What is there already is kept.

    Args:
        root: Where ``checkpoint`` lies, and all else is put.
        say: Called with a line of progress.
        precisions: What to write: "fp32", and after it "int8" or "uint8", by the type of the weights. Activations are
            uint8 with either. uint8 weights are what optimum takes for AVX2, where int8 ones saturate.

    Raises:
        subprocess.CalledProcessError: If a step fails; its output went to standard error.
    """
    install(root.parent, say)
    for precision in precisions:
        if not folder(root, precision).is_dir():
            say(f"writing optimum's export, {precision}")
            part = folder(root, f"{precision}.part")
            rmtree(part, ignore_errors=True)
            part.mkdir()
            _run(root, precision)
            part.rename(folder(root, precision))


def last_logits(root: Path, precision: str, sequences: Sequence[Sequence[int]]) -> Any:  # noqa: ANN401 - an array
    """Return the logits behind the last token of each sequence, float32 [n, vocabulary], of an export of ``setup``.

    Raises:
        subprocess.CalledProcessError: If a step fails; its output went to ``workers.log``.
    """
    import numpy as np

    with TemporaryDirectory() as scratch:
        asked, answered = Path(scratch) / "asked.json", Path(scratch) / "answered.npy"
        asked.write_text(json.dumps([list(ids) for ids in sequences]), "utf-8")
        _run(root, "read", str(folder(root, precision)), str(asked), str(answered))
        return np.load(answered)


def _run(root: Path, *arguments: str) -> None:
    """Run this file in the environment of its own."""
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with (root / "workers.log").open("a", encoding="utf-8") as log:
        command = [str(environment(root.parent)), "-m", "benchmarks.optimum_peer", str(root), *arguments]
        subprocess.run(command, check=True, env=environ, stdout=log, stderr=log)


def _read(path: Path, asked: Path, answered: Path) -> None:
    """Read the sequences of one file one by one, and write their last logits to another; runs there."""
    import numpy as np
    import torch

    model, rows = _model(path, os.cpu_count() or 1), []
    for ids in json.loads(asked.read_text("utf-8")):
        tensor = torch.tensor([ids])
        rows.append(model(input_ids=tensor, attention_mask=torch.ones_like(tensor)).logits[0, -1].numpy())
    np.save(answered, np.array(rows, np.float32))


def _export(root: Path) -> None:
    """Export the checkpoint in fp32; runs in the environment of its own."""
    from optimum.onnxruntime import ORTModelForCausalLM

    model = ORTModelForCausalLM.from_pretrained(root / "checkpoint", export=True, use_cache=False, use_io_binding=False)
    model.save_pretrained(folder(root, "fp32.part"))


def _quantize(root: Path, precision: str) -> None:
    """Quantize that export; runs there, too."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = folder(root, f"{precision}.part")
    for name in ("config.json", "generation_config.json"):
        copyfile(folder(root, "fp32") / name, target / name)
    options = {
        "op_types_to_quantize": ["MatMul"],
        "per_channel": True,
        "weight_type": {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}[precision],
        "use_external_data_format": True,
    }
    quantize_dynamic(folder(root, "fp32") / "model.onnx", target / "model.onnx", **options)


if __name__ == "__main__":
    work, task = Path(sys.argv[1]), sys.argv[2]
    if task == "read":
        _read(*map(Path, sys.argv[3:]))
    elif task == "fp32":
        _export(work)
    else:
        _quantize(work, task)
