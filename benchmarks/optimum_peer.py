"""A peer: the ONNX export of the model by optimum.

It lives in an environment of its own, since the versions that it pins conflict with those of this project. ``setup``,
part of the one-time preparation, makes the environment ``WORK/venv-optimum``, exports the model and quantizes it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile, rmtree

from benchmarks.workloads import Workload

PINS = ("torch==2.13.0", "optimum-onnx[onnxruntime]==0.1.0")
_LABEL = 100
_BATCH_TOKENS = 512
"""Tokens per call. The graph writes the logits of the whole vocabulary at every position: 0.3 GB for 512 tokens."""


def environment(root: Path) -> Path:
    """Return the path of the environment's interpreter."""
    return root / "venv-optimum" / "bin" / "python"


def folder(root: Path, precision: str) -> Path:
    """Return the folder of the export."""
    return root / f"optimum-{precision}"


class Optimum:
    """optimum's ``ORTModelForCausalLM``, which reads several sequences per call."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime
        from optimum.onnxruntime import ORTModelForCausalLM

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._model = ORTModelForCausalLM.from_pretrained(
            path, use_cache=False, use_io_binding=False, session_options=options
        )

    def run(self, workload: Workload) -> list[float]:
        """Read the workload."""
        import torch

        ids = torch.tensor(workload.sequences(self._model.config.vocab_size))
        out: list[float] = []
        for rows in ids.split(max(1, _BATCH_TOKENS // ids.shape[1])):
            logits = self._model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits
            out += logits[:, -1, _LABEL].tolist()
        return out


def install(root: Path, say: Callable[[str], None]) -> None:
    """Make the environment, unless it is there already.

    Raises:
        subprocess.CalledProcessError: If a step fails; its output went to standard error.
    """
    python = environment(root)
    done = python.parents[1] / "installed"
    if not done.is_file():
        say(f"installing {' and '.join(PINS)} in an environment of their own")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(python.parents[1])], check=True)
        for pin in PINS:
            subprocess.run(
                [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", pin], check=True
            )
        done.touch()


def setup(root: Path, say: Callable[[str], None]) -> None:
    """Make the environment, export in fp32, and quantize to int8 as optimum's users do. What is there already is kept.

    Raises:
        subprocess.CalledProcessError: If a step fails; its output went to standard error.
    """
    install(root, say)
    python = environment(root)
    for precision in ("fp32", "int8"):
        if not folder(root, precision).is_dir():
            say(f"writing optimum's export, {precision}")
            environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
            part = folder(root, f"{precision}.part")
            rmtree(part, ignore_errors=True)
            part.mkdir()
            with (root / "workers.log").open("a", encoding="utf-8") as log:
                command = [str(python), "-m", "benchmarks.optimum_peer", precision, str(root)]
                subprocess.run(command, check=True, env=environ, stdout=log, stderr=log)
            part.rename(folder(root, precision))


def _export(root: Path) -> None:
    """Export the checkpoint in fp32; runs in the environment of its own."""
    from optimum.onnxruntime import ORTModelForCausalLM

    model = ORTModelForCausalLM.from_pretrained(root / "checkpoint", export=True, use_cache=False, use_io_binding=False)
    model.save_pretrained(folder(root, "fp32.part"))


def _quantize(root: Path) -> None:
    """Quantize that export to int8; runs there, too."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = folder(root, "int8.part")
    for name in ("config.json", "generation_config.json"):
        copyfile(folder(root, "fp32") / name, target / name)
    options = {
        "op_types_to_quantize": ["MatMul"],
        "per_channel": True,
        "weight_type": QuantType.QInt8,
        "use_external_data_format": True,
    }
    quantize_dynamic(folder(root, "fp32") / "model.onnx", target / "model.onnx", **options)


if __name__ == "__main__":
    {"fp32": _export, "int8": _quantize}[sys.argv[1]](Path(sys.argv[2]))
