import json

import pytest
from helpers.export import build_tokenizer, write_tokenizer

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.manifest import Label, Limits, Manifest, Template
from fsrm_lite.errors import DataFormatError
from fsrm_lite.export.parity.calibration_pairs import MIN_PAIRS, keep_short, load_calibration


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_the_built_in_set_is_large_enough_and_always_the_same():
    data = load_calibration(None)
    assert len(data.pairs) >= MIN_PAIRS
    assert data == load_calibration(None)
    assert all(data.items[i][0] == data.items[j][0] and i != j for i, j in data.pairs)
    assert len(set(data.items)) == len(data.items)


def test_every_form_of_row_gives_pairs(tmp_path):
    messages = [{"role": "user", "content": "q"}]
    path = write(
        tmp_path / "rows.jsonl",
        {"prompt": "p", "response_a": "a", "response_b": "b"},
        {"prompt": "p", "chosen": "a", "rejected": "c"},
        {"prompt": messages, "responses": ["x", "y", "z"]},
        {"prompt": "p", "response_a": "b", "response_b": "a", "label": "extra fields are fine"},
    )
    data = load_calibration(path)
    assert data.source == "rows.jsonl"
    assert data.triples()[:2] == [("p", "a", "b"), ("p", "a", "c")]
    assert [t[1:] for t in data.triples() if t[0] == messages] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert len(data.items) == 6


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p"},
        {"prompt": "p", "responses": "text"},
        {"prompt": "p", "chosen": "", "rejected": "x"},
        {"chosen": "a"},
    ],
)
def test_bad_rows_are_named_by_line(row, tmp_path):
    path = write(tmp_path / "rows.jsonl", {"prompt": "p", "chosen": "a", "rejected": "b"}, row)
    with pytest.raises(DataFormatError, match=r"rows\.jsonl, line 2: expected an object with prompt and"):
        load_calibration(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": 5, "chosen": "a", "rejected": "b"}', "line 2: the prompt is of type int"),
        (b'{"prompt": " ", "chosen": "a", "rejected": "b"}', "line 2: the prompt is empty"),
        (b"7", r"line 2: invalid JSON \(a JSON int, expected an object\)"),
        (b"\xff\xfe{}", "line 2: invalid JSON .*utf-8"),
    ],
)
def test_prompts_that_cannot_be_asked_and_bytes_that_are_no_text_are_named_by_line(line, message, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "p", "chosen": "a", "rejected": "b"}\n' + line)
    with pytest.raises(DataFormatError, match=message):
        load_calibration(tmp_path / "rows.jsonl")


def test_rows_beyond_the_context_are_left_out(tmp_path):
    write_tokenizer(tmp_path, build_tokenizer())
    template = Template("Question: {prompt}\nAnswer: {response}\nIs the answer correct?")
    manifest = Manifest(
        "m", (Label("Yes", 1, 1), Label("No", 2, 0)), {"pointwise_fast": template}, {}, (), Limits(120, 8), 433
    )
    encoder = PromptEncoder(tmp_path / "tokenizer.json", manifest)
    long = "no " * 200
    data = load_calibration(write(tmp_path / "rows.jsonl", {"prompt": "p", "responses": ["a", long, "b"]}))
    kept, ids = keep_short(data, encoder)
    assert [response for _, response in kept.items] == ["a", "b"]
    assert kept.pairs == ((0, 1),)
    assert len(ids) == 2
    only_long = load_calibration(write(tmp_path / "long.jsonl", {"prompt": "p", "responses": [long, "b"]}))
    with pytest.raises(DataFormatError, match=r"no calibration pair of long\.jsonl fits the context of 120 tokens"):
        keep_short(only_long, encoder)
