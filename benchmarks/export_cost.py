"""What an export costs: a random checkpoint in Qwen3-0.6B's shape to int8 + q8_0, seconds per stage and peak memory.

    python -m benchmarks.export_cost /tmp/export-cost            # --shape small tries it in a minute

Random weights are the worst case for the precision search: their scores lie close together, so that most MatMuls end
up at fp32 before the tolerance holds.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.prepare import SHAPES
from fsrm_lite.export import export_checkpoint
from fsrm_lite.export.card import parity_summary, parity_table
from fsrm_lite.export.checkpoints.vocabulary import PRE_BY_PATTERN
from fsrm_lite.export.parity.calibration_pairs import load_calibration

SPECIAL = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
ASK = "<|im_start|>user\nQuestion: {prompt}\n"
END = "<|im_end|>\n<|im_start|>assistant\n"
SPEC: dict[str, Any] = {
    "name": "random",
    "labels": [{"text": "Yes", "value": 1}, {"text": "No", "value": 0}],
    "templates": {
        "pointwise_fast": {"text": ASK + "Answer: {response}\nIs the answer correct?" + END},
        "pointwise_slow": {
            "text": ASK + "Answer: {response}\nThink, then say if the answer is correct." + END + "<think>\n",
            "verdict": {"close": "</think>\n\n", "choices": ["Yes", "No"], "values": [1, 0]},
        },
        "pairwise_slow": {
            "text": ASK
            + "Assistant 1: {response_a}\nAssistant 2: {response_b}\nThink, then choose the better one."
            + END
            + "<think>\n",
            "verdict": {"close": "</think>\n\n", "prefix": "\\boxed{Assistant ", "choices": ["1", "2"], "suffix": "}"},
        },
    },
    "stop": ["<|im_end|>"],
    "limits": {"context": 4096, "thinking_tokens": 1024},
    "gate": {"intuition_threshold": 0.05},
}


def write_checkpoint(folder: Path, shape: str) -> None:
    """Random bfloat16 weights as transformers initialises them, a tokenizer made from the calibration texts, a spec."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings = dict(SHAPES[shape])
    rope = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**settings, rope_parameters=rope, bos_token_id=None, eos_token_id=None)).to(
        torch.bfloat16
    )
    model.save_pretrained(folder, max_shard_size="500MB")
    tokenizer = Tokenizer(models.BPE())
    split = next(pattern for pattern, name in PRE_BY_PATTERN.items() if name == "qwen2")
    steps = [
        pre_tokenizers.Split(Regex(split), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [str(template["text"]) for template in SPEC["templates"].values()] + ["Yes", "No"] * 50
    texts += [f"{prompt} {response}" for prompt, response in load_calibration(None).items]
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "fsrm.json").write_text(json.dumps(SPEC), "utf-8")


class Stages:
    """Seconds per stage, counted from the last report of the one before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def report(self, stage: str, done: int, total: int) -> None:
        """Add the time since the last report to ``stage``, which is what it was spent on."""
        now = time.perf_counter()
        if stage not in self.seconds:
            click.echo(f"{stage} ...", err=True)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


@click.command()
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--shape", type=click.Choice(list(SHAPES)), default="0.6b", show_default=True)
def main(work: Path, shape: str) -> None:
    """Export in the folder WORK; the checkpoint stays there for the next time."""
    checkpoint = work / f"checkpoint-{shape}"
    if not (checkpoint / "fsrm.json").is_file():
        shutil.rmtree(checkpoint, ignore_errors=True)
        write_checkpoint(checkpoint, shape)
    stages, start = Stages(), time.perf_counter()
    manifest = export_checkpoint(
        checkpoint, work / f"bundle-{shape}", overwrite=True, force=True, progress=stages.report
    )
    total = time.perf_counter() - start
    for stage, seconds in stages.seconds.items():
        click.echo(f"{seconds:7.1f} s  {stage}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    click.echo(f"{total:7.1f} s  in all; peak memory {peak:.2f} GiB")
    click.echo(parity_table(manifest.card["parity"]))
    click.echo(parity_summary(manifest.card["parity"]))


if __name__ == "__main__":
    main()
