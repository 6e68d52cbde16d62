"""What importing the package costs, and what it must never pull in."""

import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import ROOT

import fsrm_lite


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


def test_import_pulls_in_nothing_heavy():
    heavy = ["numpy", "onnxruntime", "llama_cpp", "tokenizers", "huggingface_hub", "torch", "click"]
    assert run(f"import sys, fsrm_lite; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_every_public_name_resolves():
    for name in fsrm_lite.__all__:
        assert getattr(fsrm_lite, name) is not None
    assert set(dir(fsrm_lite)) == set(fsrm_lite.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fsrm_lite.nonsense


def test_gate_needs_numpy_alone():
    modules = run(
        "import sys; before = set(sys.modules); import fsrm_lite.gate;"
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    assert modules in ("['fsrm_lite', 'numpy']", "['cython_runtime', 'fsrm_lite', 'numpy']")


def test_judge_is_loaded_at_the_first_escalation_and_not_before():
    program = """
import sys
from fsrm_lite import FastSlowRM, GateSpec
rm = FastSlowRM.from_pretrained(threads=1, judge_engine="llama.cpp", gate=GateSpec(intuition_threshold=0.0))
fast = rm.score("What is 2 + 3?", "The answer is 5.")
before = "llama_cpp" in sys.modules
slow = rm.score("What is 2 + 3?", "The answer is 5.", judge="always")
print(fast.route, before, slow.route, "llama_cpp" in sys.modules)
"""
    assert run(program) == "fast False slow True"


def test_scoring_prints_nothing():
    program = """
from fsrm_lite import FastSlowRM
FastSlowRM.from_pretrained(threads=1).compare("What is 2 + 3?", "5", "6", judge="always")
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_every_file_that_the_code_may_open_is_packaged():
    """A wheel without one of them would fail on a user's machine only."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    missing = []
    for name in settings["packages"]:
        folder = Path(*find_spec(name).submodule_search_locations)
        data = {path for pattern in settings["package-data"].get(name, []) for path in folder.glob(pattern)}
        packages = {path.parent for path in folder.rglob("__init__.py")} - {folder}
        for path in folder.rglob("*"):
            code = path.suffix in (".py", ".pyc", ".so", ".dll", ".c", ".h") or "third_party" in path.parts
            if path.is_file() and not code and not packages & set(path.parents) and path not in data:
                missing.append(f"{name}: {path.relative_to(folder)}")
    assert missing == []
    assert {"spec.json", "CARD.md"} <= set(settings["package-data"]["fsrm_lite.models"])


def test_lowest_versions_are_those_that_work():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert "onnxruntime>=1.24.2" in project["dependencies"]  # before it, weights that are links were refused
    judge = project["optional-dependencies"]["judge"]
    assert "jinja2>=3.1.6" in judge  # before it, a template could leave the sandbox
    assert any(d.startswith("llama-cpp-python>=") and ",<" in d for d in judge)  # its C structures are used
