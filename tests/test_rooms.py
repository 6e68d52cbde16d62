"""The layout: which package may use which, what the runtime may import, and where tests and packages lie.

A package of ``fsrm_lite`` (or a module that stands alone there) is called a room. A module may import from its own room
and from rooms that stand before it in ``ROOMS``. Imports inside functions count too; only those for type checkers do
not.
"""

import ast
import tomllib

import pytest
from helpers import ROOT

ROOMS = (
    "errors",
    "checks",
    "files",
    "jsonl",
    "tables",
    "results",
    "batches",
    "gate",
    "types",
    "runtimes",
    "bundle",
    "fast",
    "slow",
    "ranking",
    "scorer",
    "measure",
    "loops",
    "serve",
    "integrations",
    "export",
    "models",
    "cli",
)
"""From the ground up. ``cli`` comes last because it offers everything else as commands, the exporter included."""

TRAINING = {"torch", "transformers", "onnx", "gguf", "optimum", "safetensors"}
HOMES = {"fsrm_lite": ROOT / "fsrm_lite", "fsrm_lite.export": ROOT / "export", "fsrm_lite.models": ROOT / "models"}
ALLOWED = {
    # The CLI's progress display is used by the recipe's own commands.
    ("models", "cli"),
}


def modules():
    """Every module of the package by its dotted name."""
    found = {}
    for prefix, folder in HOMES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([prefix, *(part for part in parts if part != "__init__")])] = path
    return found


def imports(path):
    """What a module imports, anywhere in it but under ``if TYPE_CHECKING``: (line, dotted name) each."""
    found = []

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} is a relative import, which would escape these tests"
            found.extend((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return found


def room_of(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else None


MODULES = modules()


def test_every_module_has_a_room():
    assert {room_of(name) for name in MODULES} - {None} == set(ROOMS)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_one_way(name):
    room = room_of(name)
    if room is None:
        return  # the package itself hands out names lazily, from anywhere
    for line, target in imports(MODULES[name]):
        if target == "fsrm_lite.__version__" or not target.startswith("fsrm_lite."):
            continue
        other = room_of(target)
        back = ROOMS.index(other) > ROOMS.index(room) and (room, other) not in ALLOWED
        assert not back, f"{MODULES[name].relative_to(ROOT)}:{line} imports {target}, and {other} stands above {room}"


def test_a_backward_arrow_would_be_found(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from fsrm_lite.cli import main\n    return main\n")
    ((line, target),) = imports(path)
    assert (line, room_of(target)) == (2, "cli")
    assert ROOMS.index("cli") > ROOMS.index("scorer")


@pytest.mark.parametrize("name", sorted(n for n in MODULES if room_of(n) not in ("export", "models")))
def test_the_runtime_imports_no_training_library(name):
    roots = {target.split(".")[0] for _, target in imports(MODULES[name])}
    assert not roots & TRAINING
    assert "llama_cpp" not in roots or name == "fsrm_lite.runtimes.llama.engine"


def test_no_two_modules_import_each_other():
    """No circle within a room either: imports at the top of modules form a graph without one."""
    graph = {}
    for name, path in MODULES.items():
        top = [n for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.ImportFrom) and n.module]
        targets = {f"{n.module}.{alias.name}" for n in top for alias in n.names} | {n.module for n in top}
        graph[name] = {t for t in targets if t in MODULES and t != name and t != "fsrm_lite"}
    done, path = set(), []

    def walk(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for target in graph[name]:
            walk(target)
        path.pop()
        done.add(name)

    for name in graph:
        walk(name)


def test_every_folder_of_modules_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(settings["packages"]) == folders


def test_every_room_says_what_is_in_it():
    """The docstring of a package names each of its modules, so that a reader need not open them all."""
    for name, path in MODULES.items():
        if path.name != "__init__.py" or name == "fsrm_lite":
            continue
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        inside = {p.stem for p in path.parent.glob("*.py")} - {"__init__"}
        inside |= {p.parent.name for p in path.parent.glob("*/__init__.py")}
        missing = {module for module in inside if f"``{module}``" not in text}
        assert not missing, f"{path.relative_to(ROOT)} does not say what {sorted(missing)} are for"


def test_tests_mirror_the_packages():
    """A test of fsrm_lite/fast/path.py lies in tests/fast/, and so on."""
    folders = {p.relative_to(ROOT / "fsrm_lite") for p in (ROOT / "fsrm_lite").rglob("*") if p.is_dir()}
    folders |= {p.relative_to(ROOT) for top in ("export", "models") for p in (ROOT / top).rglob("*") if p.is_dir()}
    own = {"export", "models", "examples", "benchmarks", "docs"}
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests")
        assert str(folder) in (".", *own) or folder in folders, f"{path.relative_to(ROOT)} mirrors nothing"
