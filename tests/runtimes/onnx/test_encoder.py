"""Rewards of an encoder: padded, masked and divided as it must be, and the same alone and in company."""

import numpy as np
import pytest
from helpers.encoders import write_encoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsrm_lite.errors import BundleError, InputError, MisuseError
from fsrm_lite.runtimes.onnx import encoder as encoder_module
from fsrm_lite.runtimes.onnx.encoder import EncoderReader, token_types
from fsrm_lite.types import EncoderInput

VOCAB = 40
FORM = EncoderInput(pad_id=0, separator_id=3)
TEXTS = [[2, 9, 3, 11, 12, 3], [2, 9, 3, 3], [2, *range(5, 38), 3, 7, 3], [2, 9, 3, 11, 12, 3]]


@pytest.fixture(scope="module")
def expected_and_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "model.onnx"
    return write_encoder(path, vocab=VOCAB), path


@pytest.fixture(scope="module")
def reader(expected_and_path):
    reader = EncoderReader(expected_and_path[1], VOCAB, FORM, threads=1)
    yield reader
    reader.close()


def kinds(ids):
    return token_types(np.array(ids), 3)


def test_types_change_behind_the_first_separator():
    assert kinds([2, 9, 3, 11, 3]).tolist() == [0, 0, 0, 1, 1]
    assert kinds([2, 9, 3, 3]).tolist() == [0, 0, 0, 1]
    assert token_types(np.array([2, 3, 9]), None).tolist() == [0, 0, 0]


def test_rewards_are_those_of_each_text_without_padding(reader, expected_and_path):
    readings = reader.read(TEXTS)
    for ids, reading in zip(TEXTS, readings, strict=True):
        assert reading.label_logits[0] == pytest.approx(float(expected_and_path[0](ids, kinds(ids))[0]), abs=1e-5)
        assert (reading.log_mass, reading.entropy, reading.hidden) == (None, None, None)
    assert [r.tokens_read for r in readings] == [6, 4, 37, 0]
    assert reader.read(TEXTS) == readings


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(4, VOCAB - 1), min_size=1, max_size=30), min_size=1, max_size=8), st.integers(8, 64)
)
def test_batches_of_any_size_give_the_same(reader, texts, most):
    asked = [[2, *text, 3] for text in texts]
    alone = [reader.read([ids])[0].label_logits[0] for ids in asked]
    before, encoder_module.BATCH_TOKENS = encoder_module.BATCH_TOKENS, most
    try:
        together = [reading.label_logits[0] for reading in reader.read(asked)]
    finally:
        encoder_module.BATCH_TOKENS = before
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_graph_that_knows_no_types_gets_none(tmp_path):
    expected = write_encoder(tmp_path / "model.onnx", vocab=VOCAB, types=False)
    reader = EncoderReader(tmp_path / "model.onnx", VOCAB, FORM, threads=1)
    assert not reader.takes_types
    assert reader.read([TEXTS[0]])[0].label_logits[0] == pytest.approx(float(expected(TEXTS[0], None)[0]), abs=1e-5)
    reader.close()


def test_other_graphs_are_refused(tmp_path):
    write_encoder(tmp_path / "two.onnx", vocab=VOCAB, outputs=2)
    with pytest.raises(BundleError, match="has 2 outputs per text, expected 1, the reward"):
        EncoderReader(tmp_path / "two.onnx", VOCAB, FORM)
    (tmp_path / "none.onnx").write_bytes(b"nothing")
    with pytest.raises(BundleError, match="cannot be loaded as an ONNX model"):
        EncoderReader(tmp_path / "none.onnx", VOCAB, FORM)
    from helpers.judge import write_tiny_graph

    with pytest.raises(BundleError, match=r"takes .*carry.*; expected input_ids and attention_mask"):
        EncoderReader(write_tiny_graph(tmp_path / "fast.onnx"), VOCAB, FORM)


def test_what_it_cannot_do_is_said(expected_and_path):
    reader = EncoderReader(expected_and_path[1], VOCAB, FORM, threads=1)
    assert reader.opened is None
    reader.forget()
    reader.check(VOCAB, [], "scalar")
    with pytest.raises(BundleError, match="an encoder has a scalar one"):
        reader.check(VOCAB, [1, 2])
    with pytest.raises(BundleError, match="gives no hidden states"):
        reader.read([[2]], hidden=True)
    with pytest.raises(InputError, match="holds the id 40"):
        reader.read([[40]])
    assert reader.read([]) == []
    reader.close()
    reader.close()
    with pytest.raises(MisuseError):
        reader.read([[2]])
