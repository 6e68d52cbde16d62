"""Every line of code in README.md runs as it is written, at a smaller size where it would take minutes."""

import json
import re
import shlex
import sys
from runpy import run_module
from textwrap import dedent

import pytest
from click.testing import CliRunner
from helpers import ROOT

from fsrm_lite import FastSlowRM
from fsrm_lite.cli import main
from fsrm_lite.models.data import held_out, pair_row

TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCKS = [
    (kind, dedent(block)) for kind, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", TEXT, re.DOTALL | re.MULTILINE)
]
SHELL = [[shlex.split(line, comments=True) for line in block.splitlines()] for kind, block in BLOCKS if not kind]
RUNNABLE = [block for block in SHELL if block and block[0][:1] in (["fsrm-lite"], ["python"])]
SMALLER = {"--count 2000": "--count 60", "--items RECORDED": "--items RECORDED --splits 2 --size 50"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the lines name."""
    folder = tmp_path_factory.mktemp("readme")
    pairs = [pair_row(p) for p in held_out("calibration", 60)]
    rows = {
        "pairs": pairs,
        "answers": [{"prompt": p["prompt"], "response": p["chosen"]} for p in pairs[:4]],
        "lists": [{"prompt": p["prompt"], "responses": [p["chosen"], p["rejected"]]} for p in pairs[:4]],
    }
    for name, items in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


def call(words, monkeypatch):
    """Run a line of the shell in this process; return its status."""
    line = shlex.join(words)
    for full, small in SMALLER.items():
        line = line.replace(full, small)
    program, *arguments = shlex.split(line)
    if program == "fsrm-lite":
        return CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code
    module, *arguments = arguments[1:]
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, module, raising=False)  # run_module warns of one that is imported already
    try:
        run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code or 0
    return 0


def test_python(rm, monkeypatch, capsys):
    monkeypatch.setattr(FastSlowRM, "from_pretrained", lambda *source, **options: rm)
    first, calls, *loops = (block for kind, block in BLOCKS if kind == "python")
    names = {}
    exec(first, names)
    shown = [line.removeprefix("# ") for line in first.splitlines() if line.startswith("# ")]
    assert capsys.readouterr().out.splitlines() == shown
    results = [eval(line.split("  # ")[0], names) for line in calls.splitlines()]
    assert len(results) == 4
    predicted, ranked, selection, comparison = results
    assert [type(score) for score in predicted] == [float, float]
    assert ranked[0]["corpus_id"] == selection.index == 1
    assert re.search(r"Selection\(index=1\b", calls)
    assert (comparison.winner, len(comparison.votes) >= 4) == (0, True)
    for loop in loops:
        exec(loop.replace("port=8080", "port=0"), names)
    names["server"].server_close()
    assert names["best"] in names["candidates"]
    assert names["result"].outcome in ("accepted", "abstained")


@pytest.mark.parametrize("block", RUNNABLE, ids=["commands", "recorded"])
def test_shell(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for words in block:
        if words[1] != "export":  # has a test of its own
            assert call(words, monkeypatch) == 0, words
            written = [words[i + 1] for i, word in enumerate(words) if word in ("-o", "--record")]
            assert all((folder / name).stat().st_size for name in written)
            if "gate.json" in written:
                (folder / "gate.json").unlink()


@pytest.mark.slow
def test_export(tmp_path, monkeypatch):
    from helpers.export import make_checkpoint

    make_checkpoint(tmp_path / "CHECKPOINT", "qwen3", scale=0.02)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSRM_LITE_EXPORT_TOLERANCE", "label_mass=0")  # random weights are about to say anything
    (words,) = (words for block in RUNNABLE for words in block if words[1] == "export")
    assert call(words, monkeypatch) == 0
    assert (tmp_path / "BUNDLE" / "fsrm.json").exists()


def test_what_else_it_names_is_there():
    modules = {m.removesuffix(".py") for m in re.findall(r"python -m ([\w.]+)", TEXT)}
    assert all((ROOT / m.removeprefix("fsrm_lite.").replace(".", "/")).with_suffix(".py").exists() for m in modules)
    targets = re.findall(r"^make (\w+)", TEXT, re.MULTILINE)
    assert all(re.search(rf"^{t}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for t in targets)
    extras = re.findall(r"fsrm-lite\[(\w+)\]", TEXT)
    assert all(re.search(rf"^{e} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE) for e in extras)
    assert len(modules) >= 4
    assert len(targets) == 2
    assert len(extras) >= 2
    links = re.findall(r"\]\(([\w/.]+)\)", TEXT)
    assert all((ROOT / link).exists() for link in links)
