"""Parquet files as lines of JSON and back."""

from __future__ import annotations

import datetime
import decimal
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrm_lite import tables
from fsrm_lite.errors import DataFormatError, MissingExtraError
from fsrm_lite.jsonl import dump_row

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def quiet(total):
    return lambda count: None


def read(path):
    with tables.open_parquet(path, quiet) as lines:
        return [json.loads(line) for line in lines]


FIELDS = {
    "prompt": st.text(),
    "responses": st.lists(st.text(), max_size=3),
    "score": st.floats(allow_nan=False, allow_infinity=False),
    "votes": st.lists(st.integers(0, 9), min_size=2, max_size=2),
    "turns": st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), max_size=2),
    "right": st.booleans() | st.none(),
    "count": st.integers(-(2**63), 2**63 - 1),
}


@given(st.lists(st.fixed_dictionaries({}, optional=FIELDS), max_size=8), st.integers(1, 3))
def test_rows_come_back_as_they_were_written_but_for_nulls(tmp_path_factory, rows, at_once):
    folder = tmp_path_factory.mktemp("table")
    (folder / "rows.jsonl").write_text("".join(map(dump_row, rows)), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "ROWS_AT_ONCE", at_once)  # columns that begin with nulls, or appear later
        tables.write_parquet(folder / "rows.parquet", folder / "rows.jsonl")
        found = read(folder / "rows.parquet")
    if not any(rows):
        return  # a table without columns has no rows
    names = {name for row in rows for name in row}
    assert found == [{name: row.get(name) for name in names} for row in rows]


def test_what_json_does_not_have_becomes_text(tmp_path):
    row = {
        "day": datetime.date(2026, 1, 2),
        "at": datetime.datetime(2026, 1, 2, 3, 4),
        "price": decimal.Decimal("1.50"),
        "took": datetime.timedelta(seconds=90),
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in.parquet")
    expected = {"day": "2026-01-02", "at": "2026-01-02T03:04:00", "price": "1.50", "took": "0:01:30"}
    assert read(tmp_path / "in.parquet") == [expected]


@pytest.mark.parametrize("column", [b"png", [b"png"], {"bytes": b"png", "path": "a.png"}])
def test_a_column_of_bytes_is_named(tmp_path, column):
    pq.write_table(pa.Table.from_pylist([{"prompt": "q", "image": column}]), tmp_path / "in.parquet")
    with (
        pytest.raises(DataFormatError, match="column 'image' holds bytes"),
        tables.open_parquet(tmp_path / "in.parquet", quiet),
    ):
        pass


@pytest.mark.parametrize("content", [b"", b"PAR1", b"{}", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "in.parquet").write_bytes(content)
    with (
        pytest.raises(DataFormatError, match=r"cannot read .*in\.parquet"),
        tables.open_parquet(tmp_path / "in.parquet", quiet),
    ):
        pass


def test_a_file_that_is_cut_off_in_the_middle_is_one_line(tmp_path):
    pq.write_table(pa.Table.from_pydict({"prompt": [str(i) * 50 for i in range(2000)]}), tmp_path / "in.parquet")
    data = bytearray((tmp_path / "in.parquet").read_bytes())
    data[100:2000] = bytes(1900)
    (tmp_path / "in.parquet").write_bytes(data)
    with pytest.raises(DataFormatError, match=r"in\.parquet"):
        read(tmp_path / "in.parquet")


SEVERAL, NO_PLACE = "column 'label' holds values of several kinds", "Parquet has no place"


@pytest.mark.parametrize(
    ("values", "at_once", "why"),
    [
        *[(v, n, SEVERAL) for v in ([1, "a"], [[1], 2], [2**70, 1], [{"a": 1}, "b"]) for n in (1, 10)],
        ([{}, {}], 10, NO_PLACE),
        ([2**60 + 1, 0.5], 1, NO_PLACE),
    ],
)
def test_a_column_that_parquet_cannot_hold_is_told_and_its_rows_stay(tmp_path, monkeypatch, values, at_once, why):
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", at_once)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(dump_row({"prompt": "q", "label": value}) for value in values))
    with pytest.raises(DataFormatError, match=rf"{why} .*rows\.jsonl"):
        tables.write_parquet(tmp_path / "out.parquet", rows)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"fsrm-lite\[data\]"):
        read(tmp_path / "in.parquet")
