"""The shape of sentence-transformers' ``CrossEncoder``: rerank with a reward model where a cross-encoder stood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.integrations.loading import LazyModel
from fsrm_lite.types import Prompt


class CrossEncoderRM(LazyModel):
    """``predict`` and ``rank`` as ``CrossEncoder`` has them. Fast scores only: they are independent of each other, as there."""

    def predict(self, sentences: Sequence[Any], **_: object) -> NDArray[np.float32]:
        """Return the scores of (prompt, response) pairs.

        Args:
            sentences: One pair, or a list of pairs.
            **_: ``batch_size``, ``show_progress_bar`` and alike, without effect.

        Returns:
            float32 in [0, 1]: shape [N] in input order, or a scalar array for one pair.
        """
        single = len(sentences) == 2 and isinstance(sentences[0], str) and isinstance(sentences[1], str)
        pairs = [tuple(sentences)] if single else [(pair[0], pair[1]) for pair in sentences]
        scores = np.array(
            [s.score for s in self.model.score_many(pairs, judge="never")] if pairs else [], dtype=np.float32
        )
        return scores.reshape(()) if single else scores

    def rank(
        self,
        query: Prompt,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        **_: object,
    ) -> list[dict[str, Any]]:
        """Return ``[{"corpus_id", "score", "text"}, ...]``, best first, earliest first on ties.

        Args:
            query: What the responses answer.
            documents: The responses.
            top_k: How many to return; None for all.
            return_documents: Whether to add ``"text"``.
            **_: CrossEncoder's other options, without effect.
        """
        scores = self.predict([(query, document) for document in documents]).tolist()
        order = sorted(range(len(documents)), key=lambda i: -scores[i])[:top_k]
        return [
            {"corpus_id": i, "score": scores[i]} | ({"text": documents[i]} if return_documents else {}) for i in order
        ]
