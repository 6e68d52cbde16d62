"""Progress where standard error is no terminal."""

import pytest

from fsrm_lite.cli import progress as module


@pytest.mark.parametrize(("total", "line"), [(10, "6 of 10 items, so far good\n"), (None, "6 items, so far good\n")])
def test_without_a_terminal_there_is_a_line_now_and_then(capsys, monkeypatch, total, line):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with module.progress("items", total, lambda: "so far good") as step:
        step(4)
        now[0] = module.LINE_SECONDS + 1
        step(2)
        now[0] += 1
        step(1)
    assert capsys.readouterr().err == line


def test_a_short_command_writes_none(capsys):
    with module.progress("items", 3) as step:
        step(3)
    assert capsys.readouterr().err == ""
