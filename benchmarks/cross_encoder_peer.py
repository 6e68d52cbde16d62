"""sentence-transformers' CrossEncoder on a causal language model: text in, one logit out (its LogitScore module)."""

from __future__ import annotations

from pathlib import Path

from benchmarks.files import LABELS
from benchmarks.workloads import Workload

_LETTERS = "abcdefgijklmnopq"
"""Each is one token of the benchmark's tokenizer, alone or beside any other: it merges nothing but "th"."""


class CrossEncoderPeer:
    """Reads text of as many tokens as the workload's; it shares no prefixes."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        import torch
        from sentence_transformers import CrossEncoder
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.cross_encoder.modules import LogitScore

        torch.set_num_threads(threads)
        reader = Transformer(
            str(checkpoint), transformer_task="text-generation", model_kwargs={"dtype": torch.bfloat16}
        )
        self._model = CrossEncoder(modules=[reader, LogitScore(LABELS[0])], device="cpu")

    def run(self, workload: Workload) -> list[float]:
        """Read the workload in batches of about 2,048 tokens."""
        texts = ["".join(_LETTERS[i] for i in ids) for ids in workload.sequences(len(_LETTERS))]
        cut = max(workload.prompt, 1)
        batch = max(1, 2048 // (workload.prompt + workload.response))
        scores = self._model.predict(
            [(text[:cut], text[cut:]) for text in texts], batch_size=batch, show_progress_bar=False
        )
        return [float(score) for score in scores]
