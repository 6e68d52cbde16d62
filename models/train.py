"""Trains fsrm-tiny, a small model of Qwen3's kind, on four tasks at once.

The tasks are: score a response by the first output token, judge one response in a thought, judge a pair in a thought,
and solve a problem.

    python -m fsrm_lite.models.train --out checkpoints/fsrm-tiny

The losses follow the description of F/S-RM (arXiv 2603.20212). For the first token they are a Bradley-Terry loss (the
chosen response must score above the rejected one) and the cross-entropy of the label; for thoughts, verdicts and
answers the cross-entropy of the next token. To these come process labels: at every token of a response that is scored,
a probe reads from the hidden state whether the response so far is the beginning of a right one. So the model learns
where a response goes wrong, and not only that it does. Training runs on a GPU if there is one, otherwise on the CPU;
compiled, and in bf16 where the processor has instructions for it. It can be interrupted at any time; the same command
continues where it stopped.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import copyfile
from typing import Any

import click
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import Qwen3Config, Qwen3ForCausalLM

from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.files import whole_file
from fsrm_lite.models.checks import held_out_checks
from fsrm_lite.models.data import SPEC, Batch, BatchMaker, template_texts, training_manifest
from fsrm_lite.models.muon import Muon
from fsrm_lite.models.tokenizer import train_tokenizer

ROWS = 24
"""Packed rows per step, of 320 tokens each. A small model learns more per minute from small batches."""

STEPS = 13_000
"""Training steps: 100 million tokens."""

CHECK_EVERY = 250

PROBE = "process_probe.pt"
"""File of the probe of the process labels, beside the model's weights; only a training that goes on reads it."""

READY = "fsrm.json"
"""The last file of a finished training."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run. They are stored in its checkpoint, so that a continued run uses the same ones.

    Attributes:
        seed: Seed of the weights and of the data.
        steps: Number of training steps; a continued run may change it.
        learning_rate: Highest learning rate, after the warm-up.
        weight_decay: Of the matrices.
        warmup: Steps in which the learning rate rises to its highest.
        restart: Step at which the learning rate has fallen to zero a first time and begins anew; 0 for no such step.
    """

    seed: int = 0
    steps: int = STEPS
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 200
    restart: int = 0


class Batches(Dataset[Batch]):
    """The batches of a run by number, made in worker processes."""

    def __init__(self, maker: BatchMaker, start: int, count: int) -> None:
        self._maker, self._start, self._count = maker, start, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Batch:
        return self._maker.batch(self._start + index)


def model_config(tokenizer: Tokenizer) -> Qwen3Config:
    """Return the model's configuration: a Qwen3 of about 2.5 million parameters.

    The number of embedding rows is rounded up to a multiple of 64.
    """
    return Qwen3Config(
        vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64,
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=64,
        intermediate_size=512,
        max_position_embeddings=512,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        pad_token_id=tokenizer.token_to_id("<|endoftext|>"),
    )


def losses_of(
    model: Qwen3ForCausalLM,
    trunk: Any,  # noqa: ANN401 - compiled or not
    probe: torch.nn.Linear,
    batch: Batch,
    yes_no: tuple[int, int],
) -> dict[str, torch.Tensor]:
    """Return the losses of a batch.

    Args:
        model: The model.
        trunk: ``model.model``, compiled or not.
        probe: Reads from the hidden state of a response's token whether the response is still on a right path.
        batch: Packed examples. A token attends only to its own example.
        yes_no: Ids of the two labels.

    Returns:
        ``lm``, the weighted cross-entropy of the next token; ``rank``, the Bradley-Terry loss of the score logits of
        chosen and rejected responses; ``label``, the cross-entropy of the label as the first token; ``process``, the
        cross-entropy of the process labels.
    """
    device = next(model.parameters()).device
    ids, weights, label_at, labels, on_path = (
        torch.as_tensor(getattr(batch, name), device=device)
        for name in ("ids", "weights", "label_at", "labels", "on_path")
    )
    hidden = hidden_states(trunk, batch, device)
    row, column = torch.nonzero(weights, as_tuple=True)
    weight = weights[row, column]
    ce = F.cross_entropy(model.lm_head(hidden[row, column]).float(), ids[row, column + 1], reduction="none")
    logits = model.lm_head(hidden[label_at[:, 0], label_at[:, 1]]).float()
    score = logits[:, yes_no[0]] - logits[:, yes_no[1]]
    signs = on_path[on_path != 0]
    return {
        "lm": (ce * weight).sum() / weight.sum(),
        "rank": -F.logsigmoid(score[0::2] - score[1::2]).mean(),
        "label": F.cross_entropy(logits, labels),
        "process": -F.logsigmoid(probe(hidden[on_path != 0]).float().squeeze(-1) * signs).mean(),
    }


def hidden_states(trunk: Any, batch: Batch, device: torch.device) -> torch.Tensor:  # noqa: ANN401 - compiled or not
    """Return the last hidden states of packed examples, shape [R, L, hidden]; a token sees its own example alone."""
    ids, segments, positions = (
        torch.as_tensor(getattr(batch, name), device=device) for name in ("ids", "segments", "positions")
    )
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    same = (segments[:, :, None] == segments[:, None, :]) & causal
    hidden: torch.Tensor = trunk(
        input_ids=ids, position_ids=positions, attention_mask=same[:, None], use_cache=False
    ).last_hidden_state
    return hidden


def learning_rate(step: int, settings: Settings) -> float:
    """Return the learning rate of a step: a linear warm-up times a linear decay to zero at the last step.

    With a restart it falls to zero at that step already, and goes on from there as if it had not.
    """
    warm = min(1.0, (step + 1) / settings.warmup)
    end = settings.restart if step < settings.restart < settings.steps else settings.steps
    return settings.learning_rate * warm * max(0.0, 1.0 - step / end)


def wants_bf16(device: str) -> bool:
    """Return whether to compute in bf16: on processors with instructions for it, since others emulate it slowly.

    A GPU computes so small a model fast enough in float32.
    """
    if device != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


class Trainer:
    """One training run: the model, its optimizers, the number of steps done, and its files in the folder ``out``."""

    def __init__(
        self, out: Path, settings: Settings, device: str, *, start: Path | None = None, compiled: bool = True
    ) -> None:
        """Make a new run, or take up the one whose state the folder holds.

        Args:
            out: The run's folder; made if it does not exist.
            settings: Settings of a new run.
            device: "cpu" or "cuda".
            start: Checkpoint folder whose weights and tokenizer a new run begins with; None begins with random weights.
            compiled: Compile the model.
        """
        self.out, self.settings, self.device = out, settings, device
        torch.set_float32_matmul_precision("high")  # a GPU then uses its matrix units; a CPU computes as before
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=wants_bf16(device))
        out.mkdir(parents=True, exist_ok=True)
        self.tokenizer_path = out / "tokenizer.json"
        if not self.tokenizer_path.exists():
            if start is not None:
                copyfile(start / "tokenizer.json", self.tokenizer_path)
            else:
                train_tokenizer(template_texts()).save(str(self.tokenizer_path))
        tokenizer = Tokenizer.from_file(str(self.tokenizer_path))
        self.manifest: Manifest = training_manifest(tokenizer)
        torch.manual_seed(settings.seed)
        if start is not None:
            self.model = Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32).to(device)
        else:
            self.model = Qwen3ForCausalLM(model_config(tokenizer)).to(device)
        self.probe = torch.nn.Linear(self.model.config.hidden_size, 1).to(device)
        if start is not None and (start / PROBE).exists():
            self.probe.load_state_dict(torch.load(start / PROBE, map_location=device, weights_only=True))
        self.trunk = torch.compile(self.model.model, dynamic=False) if compiled else self.model.model
        matrices = [p for n, p in self.model.named_parameters() if p.dim() == 2 and "embed" not in n]
        rest = [p for n, p in self.model.named_parameters() if p.dim() != 2 or "embed" in n]
        rest += self.probe.parameters()
        adamw = torch.optim.AdamW(rest, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
        # Muon needs about half the tokens that AdamW needs here. Its step is scaled to AdamW's size, so that both can
        # use the same learning rate.
        muon = Muon(matrices, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.optimizers = [adamw, muon]
        self.step = 0
        self.losses: dict[str, float] = {}  # of the last step
        self._resume()

    def _resume(self) -> None:
        """Load the state that an earlier run saved in the folder, if there is one."""
        path = self.out / "state.pt"
        if path.exists():
            state = torch.load(path, map_location=self.device, weights_only=True)
            if "probe" not in state:
                raise click.ClickException(f"{path} is of a training without process labels; name another folder")
            self.model.load_state_dict(state["model"])
            self.probe.load_state_dict(state["probe"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.losses = state["step"], state["losses"]
            saved = Settings(**state["settings"])
            self.settings = replace(saved, steps=self.settings.steps)

    def save(self) -> None:
        """Write the checkpoint. If that is interrupted, the earlier one stays as it was."""
        state = {
            "model": self.model.state_dict(),
            "probe": self.probe.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "losses": self.losses,
            "settings": asdict(self.settings),
        }
        with whole_file(self.out / "state.pt") as path:
            torch.save(state, path)

    def export_ready(self) -> None:
        """Write the Hugging Face checkpoint that ``fsrm-lite export`` reads, with the spec beside it.

        The spec is written last: where it is, the rest is whole.
        """
        with whole_file(self.out / PROBE) as path:
            torch.save(self.probe.state_dict(), path)
        self.model.save_pretrained(self.out)
        with whole_file(self.out / READY) as path:
            path.write_text(SPEC.read_text())

    def train(
        self, maker: BatchMaker, workers: int, check: Callable[[Qwen3ForCausalLM], dict[str, float]] | None = None
    ) -> None:
        """Train to the last step; at intervals measure the model on the calibration split and save it.

        Args:
            maker: Makes the batches.
            workers: Processes that make batches; 0 makes them in this one.
            check: Measures the model in further ways.
        """
        progress = tqdm(total=self.settings.steps, initial=self.step, desc="train", unit="step", mininterval=5)
        for batch in self._batches(maker, workers):
            self.update(batch)
            progress.update()
            if self.step % CHECK_EVERY == 0:
                self._check(progress, check)
        if self._last_measured() != self.step:
            self._check(progress, check)
        self.export_ready()

    def _last_measured(self) -> int:
        """Return the last step in ``metrics.jsonl``; 0 if there is none."""
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def _batches(self, maker: BatchMaker, workers: int) -> Iterator[Batch]:
        """Return the batches of the steps that are still to be done."""
        count = max(0, self.settings.steps - self.step)
        loader = DataLoader(
            Batches(maker, self.step, count),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=8 if workers else None,
            collate_fn=_as_is,
        )
        return iter(loader)

    def update(self, batch: Batch) -> None:
        """Take one step; its losses are then in ``losses``."""
        rate = learning_rate(self.step, self.settings)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        yes, no = (label.id for label in self.manifest.labels)
        with self.autocast:
            losses = losses_of(self.model, self.trunk, self.probe, batch, (yes, no))
        (losses["rank"] + 0.5 * losses["label"] + losses["process"] + losses["lm"]).backward()
        self.optimize()
        self.step += 1
        self.losses = {name: float(value.detach()) for name, value in losses.items()}

    def optimize(self) -> None:
        """Change the weights by their gradients."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        with self.autocast:  # Muon's products in bf16 where that is fast: a sixth of a step's time with AMX
            for optimizer in self.optimizers:
                optimizer.step()

    def _check(
        self,
        progress: Any,  # noqa: ANN401 - a tqdm bar
        check: Callable[[Qwen3ForCausalLM], dict[str, float]] | None,
    ) -> None:
        """Measure the model on the calibration split, add a line to ``metrics.jsonl``, and save a checkpoint."""
        self.model.eval()
        with torch.no_grad():
            figures = held_out_checks(self.model, self.tokenizer_path, self.manifest)
            figures |= check(self.model) if check is not None else {}
        self.model.train()
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, **self.losses, **figures}) + "\n")
        progress.set_postfix(fast=f"{figures['fast']:.3f}", slow=f"{figures['slow_exact']:.3f}")
        self.save()


def _as_is(batch: Any) -> Any:  # noqa: ANN401 - the batch made by the worker
    return batch


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for checkpoint, curves and the finished model.",
)
@click.option("--steps", default=STEPS, show_default=True, help="Length of the schedule; a resumed run may change it.")
@click.option("--seed", default=0, show_default=True)
@click.option("--learning-rate", default=2e-3, show_default=True)
@click.option(
    "--workers", default=-1, help="Processes that make batches; default: one fewer than the cores, at most 12."
)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
def main(out: Path, steps: int, seed: int, learning_rate: float, workers: int, device: str) -> None:
    """Train, or go on training, the model in OUT.

    The learning rate falls to zero twice: at half of the steps and at the end.
    """
    if workers < 0:
        workers = min(12, (os.cpu_count() or 1) - 1)
    trainer = Trainer(out, Settings(seed, steps, learning_rate, restart=steps // 2), device)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job saves its state like an interrupted one
    try:
        trainer.train(BatchMaker(trainer.tokenizer_path, trainer.manifest, trainer.settings.seed, ROWS), workers)
    except KeyboardInterrupt:
        trainer.save()
        raise click.ClickException(f"interrupted at step {trainer.step}; run the same command to go on") from None


if __name__ == "__main__":
    main()
