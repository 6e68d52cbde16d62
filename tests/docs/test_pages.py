"""Every page of docs/ does what it says: its code runs, and what it shows is what comes out."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest
from helpers import ROOT
from helpers.pages import blocks_of, run_page

from fsrm_lite import FastSlowRM

DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
SLOW = {"tutorials/calibrate.md", "tutorials/critic.md", "tutorials/export.md", "how-to/evaluate.md"}
WITH_CODE = [page for page in PAGES if blocks_of((DOCS / page).read_text("utf-8"))]


@pytest.fixture
def one_model(rm, monkeypatch):
    """What a Python block is run within: ``from_pretrained()`` gives the session's model, and with an argument opens another."""
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
    for data in (DOCS / page).parent.glob("*.jsonl"):  # files that a reader downloads from the page
        shutil.copy(data, tmp_path)
    run_page((DOCS / page).read_text("utf-8"), tmp_path, one_model)


def test_most_pages_have_code():
    assert SLOW <= set(WITH_CODE)
    assert {p for p in PAGES if p.startswith(("tutorials/", "how-to/"))} <= set(WITH_CODE)
