"""A reward model with the methods of sentence-transformers' ``CrossEncoder``, for code that reranks with one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.integrations.loading import LazyModel
from fsrm_lite.types import Prompt


class CrossEncoderRM(LazyModel):
    """``predict`` and ``rank`` as ``CrossEncoder`` has them.

    The judge is never asked. A fast score depends on one response alone, as a cross-encoder's score does.
    """

    def predict(self, sentences: Sequence[Any], **_: object) -> NDArray[np.float32]:
        """Return the scores of (prompt, response) pairs.

        Args:
            sentences: One (prompt, response), or a list of them.
            **_: ``CrossEncoder``'s other options, such as ``batch_size``; they have no effect.

        Returns:
            float32 in [0, 1]: shape [N] in input order, or shape [] if a single one was passed without a list.
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
        """Rank responses to one prompt.

        Args:
            query: The prompt.
            documents: The responses.
            top_k: How many to return; None for all.
            return_documents: Whether to return the texts too.
            **_: ``CrossEncoder``'s other options; they have no effect.

        Returns:
            ``{"corpus_id": position, "score": score}`` per response, with ``"text"`` if asked for; best first. Of equal
            scores, the earlier response comes first.
        """
        scores = self.predict([(query, document) for document in documents]).tolist()
        order = sorted(range(len(documents)), key=lambda i: -scores[i])[:top_k]
        return [
            {"corpus_id": i, "score": scores[i]} | ({"text": documents[i]} if return_documents else {}) for i in order
        ]
