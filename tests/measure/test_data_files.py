"""Files of rows: the first of them without the rest, and damage that becomes one error."""

import gzip
import json

import pytest
from helpers import DATA
from helpers.calibration import StandIn, make_items

from fsrm_lite.errors import DataFormatError
from fsrm_lite.measure import data_files
from fsrm_lite.measure.benchmark_formats import load_benchmark
from fsrm_lite.measure.data_files import first_row, read_rows
from fsrm_lite.measure.evaluation import EvalOptions, evaluate
from fsrm_lite.measure.labelled_rows import read_labelled

ROWS = [{"prompt": f"p{i}", "responses": ["a", "b"], "labels": [1, 0]} for i in range(3)]


def write(path, rows):
    """Write rows in the form that the name says."""
    pyarrow = pytest.importorskip("pyarrow")
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".csv":
        path.write_text(
            "prompt,responses,labels\n" + "".join(f"{r['prompt']},\"['a', 'b']\",\"[1, 0]\"\n" for r in rows)
        )
    elif path.suffix == ".json":
        path.write_text("  [ " + ", ".join(map(json.dumps, rows)) + "]")
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.parquet", "x.arrow"])
def test_the_first_row_is_that_of_all_rows(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    assert first_row(path) == read_rows(path)[0]
    folder = tmp_path / "folder"
    folder.mkdir()
    path.rename(folder / name)
    assert first_row(folder) == read_rows(folder)[0]


@pytest.mark.parametrize(("name", "behind"), [("x.jsonl", '{"a"\n'), ("x.json", ', {"a": ]'), ("x.csv", "a,b,c,d,e\n")])
def test_nothing_behind_the_first_row_is_read(tmp_path, name, behind):
    path = write(tmp_path / name, ROWS[:1])
    path.write_text(path.read_text().removesuffix("]") + behind)
    assert first_row(path).data["prompt"] == "p0"
    with pytest.raises(DataFormatError, match=name):
        read_rows(path)


@pytest.mark.parametrize(
    ("name", "text"), [("x.jsonl", "\n"), ("x.json", "[]"), ("x.csv", "a,b\n"), ("x.json", " [ x")]
)
def test_a_file_without_a_first_row_is_refused_as_by_the_reader_of_all(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataFormatError) as first:
        first_row(path)
    with pytest.raises(DataFormatError) as whole:
        read_rows(path)
    assert str(first.value) == str(whole.value)


def test_a_file_is_parsed_once_to_be_labelled(tmp_path, monkeypatch):
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(x.to_dict()) + "\n" for x in make_items(5)))
    parsed = []
    monkeypatch.setattr(data_files, "parse_json", lambda text: parsed.append(text) or json.loads(text))
    assert len(read_labelled(path).items) == 5
    assert len(parsed) == 6  # the first line to tell what it is, and all of them


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,label,label\n1,0,1\n")
    with pytest.raises(DataFormatError, match="two columns are called 'label'"):
        read_rows(tmp_path / "x.csv")


def test_gzip_is_told_by_its_first_bytes(tmp_path):
    plain = write(tmp_path / "x.jsonl", ROWS)
    packed = tmp_path / "packed.jsonl"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [r.data for r in read_rows(packed)] == ROWS
    plain.rename(tmp_path / "plain.jsonl.gz")
    assert [r.data for r in read_rows(tmp_path / "plain.jsonl.gz")] == ROWS


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:12] + b"\xff" * 20 + b[32:]], ids=["cut", "changed"])
def test_damaged_gzip_is_an_error_of_ours(tmp_path, damage):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(damage(gzip.compress(write(tmp_path / "y.jsonl", ROWS).read_bytes())))
    with pytest.raises(DataFormatError, match=r"cannot read .*x\.jsonl\.gz"):
        read_rows(path)


def test_results_of_eval_are_read_gzipped_and_say_what_is_left_out(tmp_path):
    output = tmp_path / "out.jsonl"
    evaluate(StandIn(lambda p, r: 1.0), load_benchmark(DATA / "llmbar.json"), EvalOptions(), output=output)
    items = read_labelled(output).items
    packed = tmp_path / "packed.jsonl"
    packed.write_bytes(gzip.compress(output.read_bytes()))
    assert read_labelled(packed).items == items
    output.write_bytes(output.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="half-written line, which is left out"):
        assert read_labelled(output).items == items[:-1]
    output.write_bytes(b'{"run": ' + b"[" * 100_000 + b"\n")
    with pytest.raises(DataFormatError):
        read_labelled(output)
