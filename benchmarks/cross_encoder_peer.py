"""A peer: ``CrossEncoder`` of sentence-transformers with a causal language model, which gives one logit for a text.

The logit comes from its ``LogitScore`` module.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.files import LABELS
from benchmarks.workloads import Workload

_DIGITS = "0123456789"
"""What the texts are made of. Each digit is one token, whatever stands beside it.

That holds for the random model's tokenizer, whose only merge is "th", and for SmolLM2's, which takes digits one by one.
There letters would merge into fewer tokens than the other peers read.
"""


class CrossEncoderPeer:
    """Reads texts of as many tokens as the workload has. What they have in common is computed again for each."""

    def __init__(self, checkpoint: Path, threads: int, dtype: str) -> None:
        import torch
        from sentence_transformers import CrossEncoder
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.cross_encoder.modules import LogitScore

        torch.set_num_threads(threads)
        reader = Transformer(
            str(checkpoint), transformer_task="text-generation", model_kwargs={"dtype": getattr(torch, dtype)}
        )
        self._model = CrossEncoder(modules=[reader, LogitScore(LABELS[0])], device="cpu")
        tokens = len(reader.tokenizer(_DIGITS, add_special_tokens=False)["input_ids"])
        if tokens != len(_DIGITS):
            raise ValueError(
                f"{len(_DIGITS)} digits are {tokens} tokens here, so that this peer would read less or more"
            )

    def run(self, workload: Workload) -> list[float]:
        """Read the workload in batches of about 2,048 tokens."""
        texts = ["".join(_DIGITS[i] for i in ids) for ids in workload.sequences(len(_DIGITS))]
        cut = max(workload.prompt, 1)
        batch = max(1, 2048 // (workload.prompt + workload.response))
        scores = self._model.predict(
            [(text[:cut], text[cut:]) for text in texts], batch_size=batch, show_progress_bar=False
        )
        return [float(score) for score in scores]
