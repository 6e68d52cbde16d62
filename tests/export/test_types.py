"""The types of export/, which mypy finds only where the folders lie as the package is installed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_export_is_type_checked_as_strictly_as_the_runtime(tmp_path):
    pytest.importorskip("mypy")
    package = tmp_path / "fsrm_lite"
    package.mkdir()
    for path in (ROOT / "fsrm_lite").iterdir():
        (package / path.name).symlink_to(path)
    (package / "export").symlink_to(ROOT / "export")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(ROOT / "pyproject.toml"),
        "--follow-imports=silent",
        "-p",
        "fsrm_lite.export",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no issues found" in done.stdout
