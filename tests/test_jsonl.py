"""The one reader of JSON Lines: files as people have them, and what is wrong with the others, in one line."""

import gzip
import json
import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrm_lite import jsonl
from fsrm_lite.errors import DataFormatError
from fsrm_lite.jsonl import open_lines, parse_json, read_json, read_rows, rows_of

ROWS = [{"prompt": "q", "response": "café \u2028 \x85 😀"}, {"n": [1, {"a": None}]}]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, lambda data: gzip.compress(data[:30]) + gzip.compress(data[30:])]
)
@pytest.mark.parametrize(
    "ends", [lambda t: t, lambda t: t.replace("\n", "\r\n"), lambda t: t.rstrip("\n"), lambda t: t + "\n \n"]
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows"])
def test_rows_are_read_however_the_file_was_saved(tmp_path, pack, ends, mark, name):
    path = tmp_path / name
    path.write_bytes(pack(mark + ends(TEXT).encode()))
    assert list(rows_of(path)) == ROWS


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("caf\u00e9".encode("latin-1"), "byte 3 is 0xe9, which is not UTF-8; save the file as UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "the file is UTF-16; save it as UTF-8"),
        (b"[" * 100_000 + b"]" * 100_000, "recursion"),
        (b'{"n": ' + b"9" * 5_000 + b"}", "digits"),
        (b"[1]", "a JSON list, expected an object"),
        (b"null", "null, expected an object"),
        (b'{"n": NaN}', "not JSON compliant"),
        (b'{"text": "\\ud800"}', "surrogates not allowed"),
        (b'{"half": ', "Expecting value"),
        (b"\0" * 50, "Expecting value"),
    ],
)
def test_a_line_that_is_no_row_is_a_row_with_an_error(tmp_path, line, why):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line + b'\n{"good": 1}\n')
    with open_lines(path) as lines:
        bad, *rest = read_rows(lines)
    assert why in bad.error
    assert len(bad.error.splitlines()) == 1
    assert len(bad.error) < 300
    if b"\0" not in line[:4] and not line.startswith(b"\xff\xfe"):
        assert [row.data for row in rest] == [{"good": 1}]
    with pytest.raises(DataFormatError, match=r"rows\.jsonl, line 1: invalid JSON"):
        list(rows_of(path))


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '[{"b": {"a": 1, "c": 2, "a": 1}}]'])
def test_an_object_that_names_a_key_twice_is_refused(text):
    """Python would take the last value, other readers the first one, and the row that is written back lost one."""
    with pytest.raises(DataFormatError, match="an object names 'a' twice"):
        parse_json(text)
    (row,) = read_rows([text.encode()])
    assert "an object names 'a' twice" in row.error or "expected an object" in row.error


def test_a_line_too_long_for_the_memory_is_a_bad_row_and_the_next_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * (5 << 20) + b'"}\n{"good": 1}\n')
    with open_lines(path) as lines:
        bad, good = read_rows(lines)
    assert bad.error == "invalid JSON (it is longer than 1 MiB)"
    assert (good.line, good.data) == (2, {"good": 1})


@pytest.mark.parametrize("change", [lambda data: data[:-12], lambda data: data[:20] + b"xx" + data[22:]])
def test_damaged_compressed_files_are_one_line(tmp_path, change):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(change(gzip.compress(TEXT.encode() * 200)))
    with pytest.raises(DataFormatError, match=r"rows\.jsonl\.gz(, line \d+: | is damaged or cut off: )"):
        list(rows_of(path))


def test_what_cannot_be_opened_is_named(tmp_path, monkeypatch):
    for path in (tmp_path, tmp_path / "missing.jsonl"):
        with pytest.raises(DataFormatError, match=f"cannot read {path}"):
            list(rows_of(path))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataFormatError, match="standard input is closed"):
        list(rows_of(type(tmp_path)("-")))


def test_an_error_of_the_caller_is_not_one_of_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(TEXT)
    with pytest.raises(OSError, match="mine"), open_lines(path):
        raise OSError("mine")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(_JSON, st.binary(max_size=60))
def test_any_bytes_are_a_value_or_our_error(value, other):
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
    with suppress(DataFormatError):  # anything else that is raised fails the test
        found = parse_json(other)
        assert parse_json(json.dumps(found)) == found or found != found  # Python reads NaN, which equals nothing


def test_the_bytes_of_a_file_are_counted_for_the_progress_bar(tmp_path):
    path, seen = tmp_path / "rows.jsonl.gz", []
    path.write_bytes(gzip.compress(TEXT.encode() * 1000))
    with open_lines(path, seen.append) as lines:
        assert sum(1 for _ in lines) == 2000
    assert sum(seen) == path.stat().st_size


def test_a_json_file_is_read_plain_or_gzipped_whatever_it_is_called(tmp_path):
    path = tmp_path / "x.json"
    for written in (b'{"a": 1}', b'\xef\xbb\xbf{"a": 1}', gzip.compress(b'{"a": 1}')):
        path.write_bytes(written)
        assert read_json(path) == {"a": 1}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_json_file_without_end_is_not_taken_into_memory(tmp_path, monkeypatch, pack):
    monkeypatch.setattr("fsrm_lite.jsonl.MAX_LINE_BYTES", 1000)
    path = tmp_path / "gate.json"
    path.write_bytes(pack(b'{"a": 1}' + b" " * 992))
    assert read_json(path) == {"a": 1}
    path.write_bytes(pack(b'{"a": 1}' + b" " * 993))
    with pytest.raises(DataFormatError, match=r"gate\.json holds more than 1000 bytes"):
        read_json(path)


@pytest.mark.parametrize(
    "damaged",
    [b"{", b"[" * 100_000, b"\xff", gzip.compress(b"{}" * 99)[:-9], b"\x1f\x8b\x08" + b"\0" * 7 + b"\xff" * 30],
    ids=["cut off", "deep", "no UTF-8", "gzip cut off", "gzip damaged"],
)
def test_a_damaged_json_file_is_one_error_that_names_it(tmp_path, damaged):
    path = tmp_path / "x.json"
    path.write_bytes(damaged)
    with pytest.raises(DataFormatError, match=r"x\.json"):
        read_json(path)
    with pytest.raises(DataFormatError, match=r"absent\.json"):
        read_json(tmp_path / "absent.json")
