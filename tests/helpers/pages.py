"""Runs a page of the documentation from top to bottom, as a reader would who types what stands there.

What a block is, its language and title say:

* ``python`` is run, in one namespace per page; the block ``text title="Output"`` behind it is what it prints.
* ``console`` holds commands behind ``$ `` and, below each, what it prints. Run are ``fsrm-lite``, ``python -m``,
  ``cat``, ``curl`` and ``echo $?``. ``fsrm-lite serve ... &`` starts a server in a process of its own, on a free port;
  where the page says port 8080, ``curl`` asks that one. It ends with the page.
* A block with any other title is a file of that name, which is written before the next block is run.
* A title that begins with ``Not run`` says why the block is not.
* ``sh`` is for commands that a test cannot run (an installation, a server that does not end); ``mermaid``, ``json``
  without a title and ``text`` are to be read.

Shown and real output must be the same, but that a number with a decimal point is compared with the digits shown, runs
of spaces are one, and ``...`` stands for anything in a line, alone in a line for any lines.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from runpy import run_module
from unittest import mock

from click.testing import CliRunner

from fsrm_lite.cli import main

OUTPUT = "Output"
NOT_RUN = "Not run"
TO_READ = ("mermaid", "json", "text")
PROGRAMS = ("curl", "fsrm-lite", "make", "pip")
"""What a block ``sh``, which is not run, may start."""

_BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?[ \t]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A code block: its language, its title or None, its text, and the number of its first line."""

    language: str
    title: str | None
    code: str
    line: int


def blocks_of(text: str) -> list[Block]:
    """Return the code blocks of a page, in order."""
    return [Block(m[1], m[2], m[3], text.count("\n", 0, m.start()) + 1) for m in _BLOCK.finditer(text)]


def run_page(text: str, folder: Path, around: Callable[[], AbstractContextManager[object]]) -> int:
    """Run all blocks of a page; the current folder must be ``folder``.

    Args:
        text: The page.
        folder: Empty; files that the page names are written here.
        around: What each Python block is run within, so that ``from_pretrained()`` may give a model that is loaded.

    Returns:
        How many blocks were run.

    Raises:
        AssertionError: Where the page shows something else than what comes out, naming the line.
    """
    with contextlib.ExitStack() as servers:
        return _run_blocks(text, folder, around, servers)


def _run_blocks(
    text: str, folder: Path, around: Callable[[], AbstractContextManager[object]], servers: contextlib.ExitStack
) -> int:
    """Run all blocks of a page; see ``run_page``. The servers that the page starts end with ``servers``."""
    names: dict[str, object] = {"__name__": "__page__"}
    ports: list[int] = []
    blocks = blocks_of(text)
    assert text.count("```") == 2 * len(blocks), "a code block is not closed, or its first line is not understood"
    run = 0
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        where = f"line {block.line}"
        if (block.title or "").startswith(NOT_RUN):
            if block.language == "python":
                compile(block.code, "page", "exec")
            continue
        if block.language == "python":
            printed = io.StringIO()
            with around(), contextlib.redirect_stdout(printed):
                exec(compile("\n" * block.line + block.code, "page", "exec"), names)
            shown = following.code if following is not None and following.title == OUTPUT else ""
            check(shown, printed.getvalue(), where)
            run += 1
        elif block.language == "console":
            run_console(block.code, where, servers, ports)
            run += 1
        elif block.title not in (None, OUTPUT):
            (folder / block.title).write_text(block.code, "utf-8")
            run += 1
        elif block.language == "sh":
            for command in _commands(block.code):
                assert command.split()[0] in PROGRAMS, f"{where}: a block sh is not run; write console"
        elif block.title == OUTPUT:
            before = blocks[blocks.index(block) - 1]
            assert before.language == "python", f"{where}: an output without code before it"
        else:
            assert block.language in TO_READ, f"{where}: nobody runs a block {block.language!r}"
            if block.language == "json":
                json.loads(block.code)
    return run


def run_console(code: str, where: str, servers: contextlib.ExitStack, ports: list[int]) -> None:
    """Run the commands of a block and compare what each prints; one that fails must be followed by ``echo $?``."""
    status = 0
    for command, words, shown in _commands_shown(code):
        if words == ["echo", "$?"]:
            printed, status = f"{status}\n", 0
        else:
            assert status == 0, f"{where}: a command ended with status {status} before: $ {command}"
            status, printed = call(words, servers, ports)
        check(shown, printed, f"{where}: $ {command}")
    assert status == 0, f"{where}: the last command ended with status {status}:\n{printed}"


def _commands_shown(code: str) -> Iterator[tuple[str, list[str], str]]:
    """Yield each command of a block, its words, and what stands below it.

    A command goes on in the next line behind a backslash, and while a quotation is open.
    """
    lines = code.splitlines(keepends=True)
    while lines:
        command = lines.pop(0)
        assert command.startswith("$ "), f"a block console begins with {command!r}"
        while True:
            with contextlib.suppress(ValueError):
                words = shlex.split(command[2:].replace("\\\n", " "))
                if not command.endswith("\\\n"):
                    break
            command += lines.pop(0)
        shown = ""
        while lines and not lines[0].startswith("$ "):
            shown += lines.pop(0)
        yield command.removeprefix("$ ").rstrip("\n"), words, shown


def call(words: list[str], servers: contextlib.ExitStack, ports: list[int]) -> tuple[int, str]:
    """Run a command; return its status and what it printed.

    Args:
        words: The command.
        servers: Where to leave a server, which is to be ended later.
        ports: The ports of the servers so far, to which the one that the command starts is added.
    """
    program, *arguments = words
    if words[:2] == ["fsrm-lite", "serve"] and words[-1] == "&":
        port, printed = servers.enter_context(_served(arguments[:-1]))
        ports.append(port)
        return 0, printed
    if program == "curl":
        here = [word.replace("127.0.0.1:8080", f"127.0.0.1:{ports[-1]}") for word in arguments]
        done = subprocess.run(
            ["curl", "--silent", "--noproxy", "*", *here], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + "\n" * (not done.stdout.endswith("\n"))
    if program == "fsrm-lite":
        # Whether a line of progress appears depends on how long the command takes, so there are none here.
        with mock.patch("fsrm_lite.cli.progress.LINE_SECONDS", math.inf):
            result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        return result.exit_code, result.output
    if program == "cat":
        return 0, "".join(Path(name).read_text("utf-8") for name in arguments)
    assert words[:2] == ["python", "-m"], f"nobody runs {program}"
    return _call_module(*words[2:])


@contextlib.contextmanager
def _served(arguments: list[str]) -> Iterator[tuple[int, str]]:
    """Run ``fsrm-lite`` with the arguments, which start a server; yield its port and what it says first."""
    code = "from fsrm_lite.cli import main; main()"
    options = [] if "--port" in arguments else ["--port", "0"]
    command = [sys.executable, "-c", code, *arguments, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stderr.readline()
            yield int(line.split(":")[2].split("/")[0]), re.sub(r"(127.0.0.1):\d+", r"\1:8080", line)
        finally:
            process.terminate()
            process.stderr.read()


def _call_module(module: str, *arguments: str) -> tuple[int, str]:
    printed, before = io.StringIO(), sys.argv
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # run_module warns of one that is imported already
    try:
        with contextlib.redirect_stdout(printed):
            run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return int(end.code or 0), printed.getvalue()
    finally:
        sys.argv = before
    return 0, printed.getvalue()


def check(shown: str, real: str, where: str) -> None:
    """Compare what a page shows with what comes out.

    Raises:
        AssertionError: Unless they are the same; see the module.
    """
    if not _same(shown.splitlines(), real.splitlines()):
        raise AssertionError(f"{where}: the page shows\n{shown}but this comes out:\n{real}")


def _same(shown: list[str], real: list[str]) -> bool:
    if not shown or not real:
        return not real and all(line == "..." for line in shown)
    if shown[0] == "...":
        return _same(shown[1:], real) or _same(shown, real[1:])
    return same_line(shown[0], real[0]) and _same(shown[1:], real[1:])


def same_line(shown: str, real: str) -> bool:
    """Whether two lines are the same, numbers with a decimal point within one unit of the last digit shown."""
    shown, real = " ".join(shown.split()), " ".join(real.split())
    if "..." in shown:
        return re.fullmatch(".*".join(map(re.escape, shown.split("..."))), real) is not None
    if _NUMBER.sub("#", shown) != _NUMBER.sub("#", real):
        return False
    numbers = zip(_NUMBER.findall(shown), _NUMBER.findall(real), strict=True)
    return all(
        abs(float(s) - float(r)) <= 1.001 * 10.0 ** -len(s.partition(".")[2]) if "." in s else s == r
        for s, r in numbers
    )


def _commands(code: str) -> list[str]:
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
