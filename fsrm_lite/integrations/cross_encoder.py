"""A reward model with the methods of sentence-transformers' ``CrossEncoder``, for code that reranks with one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.batches import each_or_none
from fsrm_lite.checks import check_items, check_texts, expect, is_whole, plain
from fsrm_lite.errors import InputError
from fsrm_lite.integrations.loading import LazyModel
from fsrm_lite.types import Prompt


class CrossEncoderRM(LazyModel):
    """``predict`` and ``rank`` as ``CrossEncoder`` has them.

    The judge is never asked. A fast score depends on one response alone, as a cross-encoder's score does. A response
    that cannot be scored (an empty one, one that is too long, or no text) costs the others nothing: its score is NaN,
    the log says why, and it ranks last. Pass ``truncate=True`` to have long responses cut and scored.
    """

    def predict(self, sentences: Iterable[Any], **_: object) -> NDArray[np.float32]:
        """Return the scores of (prompt, response) pairs.

        Args:
            sentences: One (prompt, response), or many of them: a list or generator of pairs, an array with two columns,
                objects with the keys ``prompt`` and ``response``, or a table with these columns.
            **_: ``CrossEncoder``'s other options, such as ``batch_size``; they have no effect.

        Returns:
            float32 in [0, 1], NaN for what cannot be scored: shape [N] in input order, or shape [] if a single one was
            passed without a list.

        Raises:
            InputError: If ``sentences`` has another form.
        """
        single = (
            isinstance(sentences, tuple | list) and len(sentences) == 2 and all(isinstance(s, str) for s in sentences)
        )
        pairs = check_items([tuple(sentences)] if single else sentences, "prompt", "response")
        model = self.model  # loaded here, where an error is not taken for a bad item's
        scores = each_or_none(lambda part: model.score_many(part, judge="never"), pairs, InputError)
        values = np.array([math.nan if s is None else s.score for s in scores], dtype=np.float32)
        return values.reshape(()) if single else values

    def rank(
        self,
        query: Prompt,
        documents: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = False,
        **_: object,
    ) -> list[dict[str, Any]]:
        """Rank responses to one prompt.

        Args:
            query: The prompt.
            documents: The responses: a list, a generator, or a column of a table in the order of its rows.
            top_k: How many to return, at least 1; None for all.
            return_documents: Whether to return the texts too.
            **_: ``CrossEncoder``'s other options; they have no effect.

        Returns:
            ``{"corpus_id": position, "score": score}`` per response, with ``"text"`` if asked for; best first. Of equal
            scores, the earlier response comes first.

        Raises:
            InputError: If ``documents`` is no collection of texts, or ``top_k`` is out of range.
        """
        top_k = plain(top_k)
        expect(
            top_k is None or (is_whole(top_k) and top_k >= 1),
            "top_k",
            top_k,
            "a whole number of at least 1, or None for all",
        )
        texts = check_texts(documents, "documents")
        scores = self.predict([(query, text) for text in texts]).tolist()
        order = sorted(range(len(texts)), key=lambda i: math.inf if math.isnan(scores[i]) else -scores[i])[:top_k]
        return [{"corpus_id": i, "score": scores[i]} | ({"text": texts[i]} if return_documents else {}) for i in order]
