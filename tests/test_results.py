"""Results files: what a run that goes on keeps, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsrm_lite.errors import DataFormatError
from fsrm_lite.results import InputLines, ResultsFile, begin_run, check_run, journal_of

RUN = {"the command": "score", "--seed": 0}
LINES = [b'{"n": 1}\n', b'{"n": 2}\n', b'{"n": 3}\n']


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(LINES))
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.jsonl"


def answer(out, source, lines, *, resume=False, run=RUN, stop=None):
    """Answer the lines one per batch, as a command does; break off before the batch with the number ``stop``."""
    taken = InputLines(lines)
    with ResultsFile(out, source, run, resume=resume, overwrite=False) as file:
        file.go_on(taken)
        for line in taken:
            if taken.count == stop:
                return
            file.write({"answer": json.loads(line)["n"] * 10})
            file.end_batch(taken, full=True, skipped=[], cut=0)


def test_a_run_goes_on_where_it_broke_off(source, out):
    answer(out, source, LINES, stop=3)
    assert len(out.read_text().splitlines()) == 2
    answer(out, source, LINES, resume=True)
    assert [json.loads(line)["answer"] for line in out.read_text().splitlines()] == [10, 20, 30]
    whole = out.read_bytes(), journal_of(out).read_bytes()
    answer(out, source, LINES, resume=True)
    assert (out.read_bytes(), journal_of(out).read_bytes()) == whole


@pytest.mark.parametrize("kept", [1, 2, 30, None], ids=["a byte", "two", "thirty", "all but the line break"])
def test_a_journal_line_without_its_line_break_does_not_count(source, out, kept):
    """The line may be whole JSON: without its break, the next line would be written behind it."""
    answer(out, source, LINES)
    whole = out.read_bytes(), journal_of(out).read_bytes()
    *lines, last = whole[1].splitlines(keepends=True)
    journal_of(out).write_bytes(b"".join(lines) + last[: kept if kept is not None else len(last) - 1])
    answer(out, source, LINES, resume=True)
    assert (out.read_bytes(), journal_of(out).read_bytes()) == whole


@pytest.mark.parametrize("tail", [b"\0" * 40, b'{"line": 4, "input"', b"[" * 100_000 + b"\n", b"null\n"])
def test_what_a_power_cut_left_behind_the_journal_is_cut_off(source, out, tail):
    answer(out, source, LINES)
    whole = journal_of(out).read_bytes()
    journal_of(out).write_bytes(whole + tail)
    answer(out, source, LINES, resume=True)
    assert journal_of(out).read_bytes() == whole


def test_a_journal_whose_first_line_was_cut_off_says_nothing(source, out):
    answer(out, source, LINES)
    first = journal_of(out).read_bytes().splitlines(keepends=True)[0]
    for damaged in (first[:-1], first[:-3] + b"\n", b"[]\n", b'{"run": 3, "fsrm_lite_run": 1}\n', b""):
        journal_of(out).write_bytes(damaged)
        with pytest.raises(DataFormatError, match="is damaged"):
            answer(out, source, LINES, resume=True)
    assert len(out.read_text().splitlines()) == 3


def test_another_run_is_refused_and_told_apart(source, out):
    answer(out, source, LINES)
    with pytest.raises(DataFormatError, match="--seed was 0 and is 1"):
        answer(out, source, LINES, resume=True, run=RUN | {"--seed": 1})
    with pytest.raises(DataFormatError, match="exists; pass --resume"):
        answer(out, source, LINES)
    begin_run(out, {"a": 1})
    check_run(out, {"a": 1})
    with pytest.raises(DataFormatError, match="a was 1 and is None; b was None and is 2"):
        check_run(out, {"b": 2})


def test_another_input_is_refused(source, out):
    answer(out, source, LINES, stop=3)
    before = out.read_bytes()
    with pytest.raises(DataFormatError, match="the first 2 lines of the input are not those"):
        answer(out, source, [b'{"n": 9}\n', *LINES[1:]], resume=True)
    assert out.read_bytes() == before


def test_rows_that_were_changed_are_refused(source, out):
    answer(out, source, LINES)
    out.write_bytes(out.read_bytes().replace(b"20", b"21"))
    with pytest.raises(DataFormatError, match="was changed since its run wrote it"):
        answer(out, source, LINES, resume=True)


def test_an_output_that_cannot_be_written_is_refused_before_any_work(source, tmp_path):
    for path, why in (
        (source, "is the input itself"),
        (tmp_path, "it is a folder"),
        (tmp_path / "none" / "out.jsonl", "there is no folder"),
    ):
        with pytest.raises(DataFormatError, match=why):
            ResultsFile(path, source, RUN, resume=False, overwrite=True)
    assert source.read_bytes() == b"".join(LINES)


@pytest.mark.skipif(os.name != "posix", reason="links are files that anybody may make on POSIX systems only")
def test_a_link_in_place_of_the_journal_is_not_written_through(source, out, tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    journal_of(out).symlink_to(victim)
    answer(out, source, LINES)
    assert victim.read_text() == "precious"
    assert not journal_of(out).is_symlink()


@pytest.mark.skipif(sys.platform != "linux", reason="the sizes of files are limited in this way on Linux")
def test_a_disk_that_is_full_is_said_with_what_to_do_and_costs_no_batch(source, out):
    """Wherever it is full: in a row, in the journal, or when the file is closed."""
    code = (
        "import json, resource, sys\n"
        "from pathlib import Path\n"
        "from test_results import LINES, answer\n"
        "limit = int(sys.argv[3])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "answer(Path(sys.argv[1]), Path(sys.argv[2]), LINES)\n"
    )
    answer(out, source, LINES)
    whole, sizes = out.read_bytes(), (out.stat().st_size, journal_of(out).stat().st_size)
    for limit in (1, sizes[0] // 2, sizes[0] - 1, sizes[0] + 1, sizes[1] // 2, sizes[1] - 1):
        out.unlink()
        command = [sys.executable, "-c", code, str(out), str(source), str(limit)]
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60)
        assert result.returncode == 1
        last = result.stderr.strip().splitlines()[-1]
        assert "fsrm_lite.errors.DataFormatError: " in last
        assert "out.jsonl cannot be written: File too large" in last
        if out.exists() and out.stat().st_size and journal_of(out).read_bytes().count(b"\n"):
            assert "the batches before are kept: make room, and pass --resume" in last
            answer(out, source, LINES, resume=True)
            assert out.read_bytes() == whole
        else:
            out.unlink(missing_ok=True)
            out.touch()


@pytest.mark.skipif(os.name != "posix", reason="open files can be removed on POSIX systems only")
@pytest.mark.parametrize("happens", ["removed", "replaced", "moved away"])
def test_an_output_that_is_gone_ends_the_run(source, out, happens):
    """Else the run would end well, and what it wrote would be nowhere."""

    def lines():
        yield LINES[0]
        if happens == "replaced":
            out.with_name("other").write_text("mine")
            out.with_name("other").rename(out)
        elif happens == "removed":
            out.unlink()
        else:
            out.rename(out.with_name("elsewhere"))
        yield from LINES[1:]

    with pytest.raises(DataFormatError, match="was removed, moved or replaced while it was written"):
        answer(out, source, lines())
    assert not out.exists() or out.read_text() == "mine"
