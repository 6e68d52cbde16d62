"""The shape of sentence-transformers' CrossEncoder."""

import numpy as np
import pytest
from helpers.loops import FakeRM

from fsrm_lite.errors import InputError
from fsrm_lite.integrations.cross_encoder import CrossEncoderRM
from fsrm_lite.scorer import FastSlowRM


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


PENS = "Mia has 7 pens. Mia finds 8 more. How many pens does Mia have now?"


def test_what_cannot_be_scored_is_nan_and_ranks_last(caplog):
    encoder = CrossEncoderRM(FakeRM())
    scores = encoder.predict([("q", "+"), ("q", ""), ("q", "+" * 300), ("q", "++")])
    assert scores[[0, 3]].tolist() == pytest.approx([0.5, 0.7310586])
    assert np.isnan(scores[[1, 2]]).all()
    assert "too long" in caplog.text
    assert [r["corpus_id"] for r in encoder.rank("q", ["", "+", "+" * 300, "++"])] == [3, 1, 0, 2]


@pytest.mark.parametrize("top_k", [-1, 0, 2.0, "3", True])
def test_a_bad_top_k_is_refused(top_k):
    with pytest.raises(InputError, match=r"top_k is .*, expected a whole number of at least 1"):
        CrossEncoderRM(FakeRM()).rank("q", ["+"], top_k=top_k)


def test_tables_and_columns_are_read_by_rows():
    """Right value: case 13 of the public complaints (sentence-transformers issue 3371)."""
    pandas = pytest.importorskip("pandas")
    with FastSlowRM.from_pretrained() as rm:
        texts = {text: rm.score(PENS, text, judge="never").score for text in ("16 pens", "15 pens", "41 pens")}
        encoder = CrossEncoderRM(rm)
        for index in ([2, 0, 1], [5, 9, 7]):
            for ranked in encoder.rank(PENS, pandas.Series(list(texts), index=index), return_documents=True):
                assert ranked["score"] == pytest.approx(texts[ranked["text"]], abs=1e-3)
        table = pandas.DataFrame({"prompt": PENS, "response": list(texts)})
        for given in (
            table,
            table.to_dict("records"),
            zip(table.prompt, table.response, strict=True),
            table.to_numpy(),
        ):
            assert encoder.predict(given).tolist() == pytest.approx(list(texts.values()), abs=1e-3)
        for given in ([PENS, "15 pens", "16 pens"], [(PENS, "15 pens", "16 pens")], table["response"], PENS):
            with pytest.raises(InputError):
                encoder.predict(given)


def test_a_column_of_a_dataset_is_a_list_of_texts():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"prompt": ["q", "q"], "response": ["+", "++"]})
    encoder = CrossEncoderRM(FakeRM())
    assert encoder.predict(data).tolist() == pytest.approx([0.5, 0.7310586])
    assert [r["corpus_id"] for r in encoder.rank("q", data["response"])] == [1, 0]
