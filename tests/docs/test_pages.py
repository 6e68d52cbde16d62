"""Every page of docs/ does what it says: its code runs, and what it shows is what comes out."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import tomllib
from contextlib import contextmanager

import pytest
from helpers import ROOT
from helpers.pages import NOT_RUN, OUTPUT, blocks_of, run_page

from fsrm_lite import Bundle, FastSlowRM, GateSpec
from fsrm_lite.bundle.manifest import SLOTS, FileEntry, JudgeDefaults, Label, Limits, VerdictTemplate
from fsrm_lite.cli import COMMANDS
from fsrm_lite.measure.benchmark_formats import FORMATS
from fsrm_lite.ranking.tournament import STRATEGIES

DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
SLOW = {"tutorials/calibrate.md", "tutorials/critic.md", "tutorials/export.md", "how-to/evaluate.md"}
WITH_CODE = [page for page in PAGES if blocks_of((DOCS / page).read_text("utf-8"))]


def page_text(name):
    return (DOCS / name).read_text("utf-8")


@pytest.fixture
def one_model(rm, monkeypatch):
    """What a Python block is run within: ``from_pretrained()`` gives the session's model; with arguments, another."""
    original = FastSlowRM.from_pretrained

    def open_or_share(source=None, **options):
        return original(source, **options) if source is not None or options else rm

    @contextmanager
    def patched():
        with monkeypatch.context() as patch:
            patch.setattr(FastSlowRM, "from_pretrained", open_or_share)
            yield

    return patched


@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in WITH_CODE])
def test_page(page, one_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beside = (DOCS / page).parent
    for data in (*beside.glob("*.jsonl"), *beside.glob("*.csv")):  # files that a reader downloads from the page
        shutil.copy(data, tmp_path)
    blocks = [block for block in blocks_of(page_text(page)) if not (block.title or "").startswith(NOT_RUN)]
    to_run = [b for b in blocks if b.language in ("python", "console") or b.title not in (None, OUTPUT)]
    assert run_page(page_text(page), tmp_path, one_model) == len(to_run)


def test_what_is_not_run_is_this_and_nothing_else():
    found = [
        (page, block.language)
        for page in PAGES
        for block in blocks_of(page_text(page))
        if block.language == "sh" or (block.title or "").startswith(NOT_RUN)
    ]
    assert found == [
        ("gate.md", "sh"),
        ("gate.md", "sh"),
        ("how-to/scale-out.md", "sh"),
        ("how-to/scale-out.md", "sh"),
        ("how-to/scale-out.md", "python"),
        ("how-to/scale-out.md", "python"),
        ("index.md", "sh"),
        ("tutorials/reward-function.md", "python"),
        ("tutorials/serve.md", "sh"),
    ]
    # The README's own test runs those of the gate for pairs, at smaller size.
    measured, _ = (block.code for block in blocks_of(page_text("gate.md")) if block.language == "sh")
    assert all(line in (ROOT / "README.md").read_text("utf-8") for line in measured.splitlines())


def test_most_pages_have_code():
    assert set(WITH_CODE) >= SLOW
    assert {p for p in PAGES if p.startswith(("tutorials/", "how-to/"))} <= set(WITH_CODE)


# What the pages say about the code, beside what they run.


def test_the_drawing_and_its_source_show_the_same_rooms_and_arrows():
    text = page_text("design.md")
    svg = text[text.index("<svg") : text.index("</svg>")]
    (mermaid,) = (b.code for b in blocks_of(text) if b.language == "mermaid")
    nodes = dict(re.findall(r"^    (\w+)\(?\[\"(.*?)\"\]\)?$", mermaid, re.MULTILINE))
    drawn = {
        name: f"{first}: {second}" if first == name or "." in first else f"{first} {second}"
        for name, first, second in re.findall(
            r"<text data-room=\"(\w+)\"[^>]*>([^<]*)</text>\n<text[^>]*>([^<]*)</text>", svg
        )
    }
    assert drawn == nodes
    arrows = re.findall(r"^    (\w+) -->(?:\|\w+\|)? (\w+)$", mermaid, re.MULTILINE)
    assert sorted(re.findall(r"data-from=\"(\w+)\" data-to=\"(\w+)\"", svg)) == sorted(arrows)
    assert len(arrows) == 9


def test_the_rooms_of_the_design_are_the_packages():
    table = re.findall(r"^\| (`.*?) \|", page_text("design.md"), re.MULTILINE)
    named = {name.removesuffix("/") for row in table for name in re.findall(r"`([\w./]+)`", row)}
    packages = {p.parent.name for p in (ROOT / "fsrm_lite").glob("*/__init__.py")}
    there = {name.split("/")[0] for name in named if (ROOT / "fsrm_lite" / name).exists()}
    assert packages | {"gate.py"} == there
    assert named - there - {"runtimes/onnx", "runtimes/llama"} == {"export", "models"}


def test_the_glossary_has_every_public_type_that_travels():
    tree = ast.parse((ROOT / "fsrm_lite" / "types.py").read_text("utf-8"))
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}
    missing = classes - set(re.findall(r"`(\w+)`", page_text("glossary.md")))
    assert not missing
    assert len(classes) > 15


def test_the_glossary_names_only_classes_that_there_are():
    sources = [p for room in ("fsrm_lite", "export", "models") for p in (ROOT / room).rglob("*.py")]
    classes = {name for p in sources for name in re.findall(r"^class (\w+)", p.read_text("utf-8"), re.MULTILINE)}
    capitalized = set(re.findall(r"`([A-Z][A-Za-z]+)`", page_text("glossary.md"))) - {"Yes", "Strategy", "JudgePolicy"}
    assert capitalized <= classes


def test_the_bundle_page_explains_each_entry_of_the_manifest():
    headings = re.findall(r"^### `(\w+)`$", page_text("bundle.md"), re.MULTILINE)
    headings.remove("conversation")  # which only bundles have whose exporter knew a chat template
    headings.remove("encoder")  # which only bundles of encoders have
    assert headings == list(Bundle.open().manifest.to_dict())
    named = set(re.findall(r"`(\w+)`", page_text("bundle.md")))
    for kind in (GateSpec, JudgeDefaults, Limits, VerdictTemplate, Label, FileEntry):
        assert set(kind.__dataclass_fields__) <= named, kind
    assert set(SLOTS) <= named


def test_the_evaluation_page_lists_the_formats_and_the_best_of_n_page_the_strategies():
    assert set(re.findall(r"`([a-z][\w-]+)`(?=[^|]*\|[^|]+\|$)", page_text("how-to/evaluate.md"), re.MULTILINE)) == set(
        FORMATS
    )
    strategies = re.findall(r"^\| `\"(\w+)\"`", page_text("tutorials/best-of-n.md"), re.MULTILINE)
    assert set(strategies) == set(STRATEGIES)


def test_commands_and_extras_that_pages_name_are_there():
    text = "\n".join(page_text(page) for page in PAGES)
    named = set(re.findall(r"(?:`|\$ |^)fsrm-lite ([a-z][a-z-]+)\b", text, re.MULTILINE))
    assert named <= set(COMMANDS), named - set(COMMANDS)
    assert set(COMMANDS) <= named
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"fsrm-lite\[(\w+)\]", text)) | set(re.findall(r"extra `(\w+)`", text)) <= set(extras)
    pages = {str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md")}
    assert all(f": {page.removeprefix('docs/')}\n" in (ROOT / "mkdocs.yml").read_text("utf-8") for page in pages)


def test_measured_figures_are_those_of_the_readme():
    readme = " ".join((ROOT / "README.md").read_text("utf-8").replace("**", "").split())
    table = [line for line in page_text("index.md").splitlines() if line.startswith("|") and "%" in line]
    figures = [cell for line in table for cell in re.findall(r"[\d.]+ % \([\d.]+ to [\d.]+\)", line)]
    assert len(figures) == 10
    measured = re.search(r"Over 1,000 .*? in (\d+ \(100 are allowed\))", " ".join(page_text("gate.md").split()))
    missing = [figure for figure in [*figures, measured[1]] if figure not in readme]
    assert not missing


@pytest.mark.parametrize("name", ["index.md", "glossary.md"])
def test_a_definition_stands_on_a_line_below_its_term(name):
    """Behind the term, on the same line, it would be shown as a paragraph with a colon in it."""
    lines = page_text(name).splitlines()
    definitions = [n for n, line in enumerate(lines) if re.search(r"(^|\s):   ", line)]
    assert len(definitions) >= 3
    assert [lines[n] for n in definitions if not lines[n].startswith(":   ") or not lines[n - 1].strip()] == []


# The machinery: what it must notice.


@contextmanager
def nothing():
    yield


def page(*blocks):
    return "\n\n".join(f"```{first}\n{code}\n```" for first, code in blocks) + "\n"


PRINTS = ("python", "print('score', 0.886, 3)")


@pytest.mark.parametrize(
    "output", ["score 0.89 3", "score 0.88 3", "score 0.886   3", "score ... 3", "...", "...\nscore 0.9 3"]
)
def test_a_page_that_is_right(output, tmp_path):
    assert run_page(page(PRINTS, ('text title="Output"', output)), tmp_path, nothing) == 1


@pytest.mark.parametrize(
    "output", ["score 0.87 3", "score 0.89 4", "score 0.89", "score 0.89 3\nmore", "points 0.89 3", "score ... 4", ""]
)
def test_a_page_that_shows_something_else(output, tmp_path):
    with pytest.raises(AssertionError, match="this comes out"):
        run_page(page(PRINTS, ('text title="Output"', output)), tmp_path, nothing)


@pytest.mark.parametrize(
    ("blocks", "match"),
    [
        ([PRINTS], "this comes out"),
        ([('text title="Output"', "x")], "without code"),
        ([("python", "1 / 0")], "division"),
        ([("console", "$ fsrm-lite inspect nowhere")], "this comes out"),
        ([("console", "$ fsrm-lite inspect nowhere\n...")], "ended with status 2"),
        ([("console", "$ rm x")], "nobody runs rm"),
        ([("sh", "python inspect.py")], "write console"),
        ([("json", "{")], "Expecting"),
        ([("bash", "ls")], "nobody runs a block"),
    ],
)
def test_a_page_that_is_broken(blocks, match, tmp_path):
    with pytest.raises((AssertionError, ZeroDivisionError, ValueError), match=match):
        run_page(page(*blocks), tmp_path, nothing)


def test_files_and_commands_of_a_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = [
        ('text title="a.txt"', "first\nsecond 0.123"),
        ("console", "$ cat a.txt\nfirst\nsecond 0.12\n$ cat a.txt\n..."),
    ]
    failing = ("console", "$ fsrm-lite inspect nowhere\nError: there is no folder nowhere...\n$ echo $?\n2")
    assert run_page(page(*blocks, failing), tmp_path, nothing) == 3


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<script src="assets/bundle.js"></script><a href="https://arxiv.org">x</a>', 0),
        ('<script async src="https://unpkg.com/mermaid"></script>', 1),
        ("<link rel=stylesheet href=https://fonts.googleapis.com/css>", 1),
        ('<link href="//cdn.example/x.css" rel="stylesheet">', 1),
        ('<link rel="canonical" href="https://example.org/">', 0),
        ('<img alt="" src="http://example.org/x.png">', 1),
        ('<pre class="mermaid"><code>x</code></pre>', 1),
    ],
)
def test_what_a_page_would_load_from_the_network(html, found):
    spec = importlib.util.spec_from_file_location("docs_offline", DOCS / "offline.py")
    offline = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(offline)
    assert len(offline.external_files(html)) == found
