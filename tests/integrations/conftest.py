"""A stand-in for loading a model."""

import sys
import types

import pytest
from helpers.loops import load_fake


@pytest.fixture
def fake_loading(monkeypatch):
    """``FastSlowRM.from_pretrained`` gives a stand-in, and records what it was asked for."""
    asked = []
    module = types.ModuleType("fsrm_lite.scorer")
    module.FastSlowRM = types.SimpleNamespace(
        from_pretrained=lambda source=None, **options: asked.append((source, options)) or load_fake(source)
    )
    monkeypatch.setitem(sys.modules, "fsrm_lite.scorer", module)
    return asked
