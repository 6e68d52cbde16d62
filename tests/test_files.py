"""Files that appear whole or not at all, and results files that a broken-off run left."""

import os
from pathlib import Path

import pytest

from fsrm_lite.errors import DataFormatError
from fsrm_lite.files import whole_file
from fsrm_lite.jsonl import complete_lines, complete_rows


def test_a_file_appears_when_its_block_ends(tmp_path):
    path = tmp_path / "out.txt"
    with whole_file(path) as part:
        part.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")

    def write_half():
        with whole_file(path) as part:
            part.write_text("half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    with whole_file(tmp_path / "link.txt") as part:
        part.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="devices are files on POSIX systems only")
def test_what_is_no_file_is_written_to_directly(tmp_path):
    with whole_file(Path("/dev/null")) as part:
        part.write_text("gone")
    assert Path("/dev/null").is_char_device()


@pytest.mark.skipif(os.name != "posix", reason="pipes have names on POSIX systems only")
def test_a_pipe_under_another_name_is_written_to_directly(tmp_path):
    reading, writing = os.pipe()
    with whole_file(Path(f"/dev/fd/{writing}")) as part:
        part.write_text("through")
    os.close(writing)
    assert os.read(reading, 100) == b"through"
    os.close(reading)


@pytest.mark.skipif(os.name != "posix", reason="files have such permissions on POSIX systems only")
def test_a_new_file_keeps_the_permissions_of_the_old_one(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    path.chmod(0o600)
    with whole_file(path) as part:
        part.write_text("new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)


def test_what_a_killed_run_left_is_replaced_by_the_next(tmp_path):
    (tmp_path / ".out.txt.partial").write_text("half of an earlier run")
    with whole_file(tmp_path / "out.txt") as part:
        part.write_text("new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("out.txt", "new")]


def test_a_half_written_line_is_cut_off_behind_the_others(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"')
    assert list(complete_rows(path)) == [{"a": 1}, {"a": 2}]
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize("content", [b'{"a": 1}\nnotes\n{"a"', b'{"a": 1}\n[1]\n{"a"', b'{"a": 1}\nnotes', b"\n{"])
def test_nothing_is_cut_where_a_line_is_not_ours(tmp_path, content):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=r"line [12]: .*; this is not a results file to go on with"):
        list(complete_rows(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize(("rest", "ours"), [(b'{"ru', True), (b'{"run": "x', True), (b'{"other', False)])
def test_a_half_written_line_must_begin_as_ours_do(tmp_path, rest, ours):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"run": "a"}\n' + rest)
    if ours:
        assert list(complete_lines(path, b'{"run": "')) == [(1, b'{"run": "a"}\n')]
        assert path.read_bytes() == b'{"run": "a"}\n'
    else:
        with pytest.raises(DataFormatError, match="line 2: not a row"):
            list(complete_lines(path, b'{"run": "'))
