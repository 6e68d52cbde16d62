"""The shape of sentence-transformers' CrossEncoder."""

import numpy as np
import pytest
from helpers.loops import FakeRM

from fsrm_lite.integrations.cross_encoder import CrossEncoderRM


def test_cross_encoder_predict_one_or_many():
    encoder = CrossEncoderRM(FakeRM())
    many = encoder.predict([("q", "+"), ["q", "++"]], batch_size=32, show_progress_bar=False)
    assert many.dtype == np.float32
    assert many.tolist() == pytest.approx([0.5, 0.7310586])
    assert encoder.predict(("q", "+")).shape == ()
    assert float(encoder.predict(["q", "++"])) == pytest.approx(0.7310586)
    assert encoder.predict([]).shape == (0,)


def test_cross_encoder_two_pairs_are_not_one_pair():
    assert CrossEncoderRM(FakeRM()).predict([("a", "+"), ("b", "++")]).shape == (2,)


def test_cross_encoder_rank():
    encoder = CrossEncoderRM(FakeRM())
    ranked = encoder.rank("q", ["+", "+++", "+", "++"], top_k=3, return_documents=True)
    assert [(r["corpus_id"], r["text"]) for r in ranked] == [(1, "+++"), (3, "++"), (0, "+")]
    assert "text" not in encoder.rank("q", ["+"])[0]
    assert encoder.rank("q", []) == []
