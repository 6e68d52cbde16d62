"""Files that appear whole or not at all, and results files that a broken-off run left."""

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from fsrm_lite.errors import DataFormatError, InputError
from fsrm_lite.files import check_output, sole_writer, whole_file, write_text
from fsrm_lite.jsonl import complete_lines


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


@pytest.mark.parametrize("tail", [b'{"a"', b"\0" * 300, b'{"a": 3\0\0'])
def test_what_a_broken_off_run_left_behind_the_last_line_is_cut_off(tmp_path, tail):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + tail)
    with pytest.warns(UserWarning, match="half-written line"):
        assert list(complete_lines(path)) == [(1, b'{"a": 1}\n'), (2, b'{"a": 2}\n')]
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize("content", [b'{"a": 1}\nnotes', b"notes"])
def test_nothing_is_cut_where_a_line_is_not_ours(tmp_path, content):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=r"line [12]: .*; this is not a results file to go on with"):
        list(complete_lines(path))
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


HOLD = """
import sys, time
from pathlib import Path
from fsrm_lite.files import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path):
    child = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    return child


def test_a_second_writer_is_told_who_the_first_one_is(tmp_path):
    path = tmp_path / "out.jsonl"
    (tmp_path / "link.jsonl").symlink_to(path)
    with holder(path) as child:
        for name in (path, tmp_path / "link.jsonl"):
            with (
                pytest.raises(DataFormatError, match=rf"is being written by process {child.pid} on "),
                sole_writer(name),
            ):
                pass
        child.stdin.close()
    with sole_writer(path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["link.jsonl"]


def test_a_killed_writer_holds_nothing(tmp_path):
    path = tmp_path / "out.jsonl"
    with holder(path) as child:
        child.kill()
    (lock,) = tmp_path.iterdir()  # the file outlives its holder, the claim does not
    with sole_writer(path):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []


def test_many_writers_take_turns(tmp_path):
    """Threads have file descriptions of their own, so the lock is theirs alone as well."""
    path, inside, most = tmp_path / "out.jsonl", [], []

    def write():
        for _ in range(50):
            with suppress(DataFormatError), sole_writer(path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}


@pytest.mark.skipif(os.name != "posix", reason="links and pipes are files on POSIX systems only")
@pytest.mark.parametrize("planted", ["link", "dangling link", "hard link", "pipe"])
def test_what_somebody_put_beside_an_output_is_not_written_through(tmp_path, planted):
    """A link in place of a file of ours, as anybody can put it into a shared folder, empties no other file."""
    victim, path = tmp_path / "victim.txt", tmp_path / "out.txt"
    victim.write_text("precious")
    for name in (".out.txt.lock", ".out.txt.partial"):
        if planted == "pipe":
            os.mkfifo(tmp_path / name)
        elif planted == "hard link":
            (tmp_path / name).hardlink_to(victim)
        else:
            (tmp_path / name).symlink_to(victim if planted == "link" else tmp_path / "none")
    with pytest.raises(DataFormatError, match=r"\.out\.txt\.lock is a link or no file, and so not ours; remove it"):
        write_text(path, "new")
    (tmp_path / ".out.txt.lock").unlink()
    write_text(path, "new")
    assert (path.read_text(), victim.read_text()) == ("new", "precious")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.txt", "victim.txt"]


@pytest.mark.skipif(os.name != "posix", reason="links lead in circles on POSIX systems only")
def test_a_circle_of_links_is_no_output(tmp_path):
    for one, other in ("ab", "ba"):
        (tmp_path / one).symlink_to(tmp_path / other)

    def write_it():
        check_output(tmp_path / "a")
        write_text(tmp_path / "a", "x")

    with pytest.raises((DataFormatError, InputError), match="cannot be written: "):
        write_it()


def test_a_name_that_promises_compression_is_refused(tmp_path):
    with pytest.raises(DataFormatError, match=r"x\.jsonl\.gz would not be compressed; name it x\.jsonl"):
        check_output(tmp_path / "x.jsonl.gz")


def test_an_output_is_checked_before_any_work(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("{}")
    (tmp_path / "link.jsonl").symlink_to(source)
    check_output(None, [source])
    check_output(tmp_path / "out.jsonl", [source, None, tmp_path / "absent"])
    check_output(source)
    for path, why in (
        (source, "is the input itself"),
        (tmp_path / "link.jsonl", "is the input itself"),
        (tmp_path, "it is a folder"),
        (tmp_path / "none" / "out.jsonl", "there is no folder"),
    ):
        with pytest.raises(DataFormatError, match=why):
            check_output(path, [None, source])


def test_a_text_is_written_whole_or_an_error_says_why_not(tmp_path):
    write_text(tmp_path / "out.txt", "größer")
    assert (tmp_path / "out.txt").read_bytes() == "größer".encode()
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "none" / "out.txt", "x")
