"""Builds the compiled operators as what they are: a shared library for ONNX Runtime, and no module of a Python version.

Everything else about the package is in ``pyproject.toml``.
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SUFFIX = ".dll" if os.name == "nt" else ".so"


class BuildLibrary(build_ext):
    """Compiles with the flags that Python was compiled with, but makes no Python module of the result."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the file's path, without the name of a Python version."""
        return str(Path(*fullname.split("."))) + SUFFIX

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return no name: the C source says what it exports, and there is no ``PyInit_``."""
        return []

    def get_libraries(self, ext: Extension) -> list[str]:
        """Return no library: nothing in it is Python's."""
        return []


class Wheel(bdist_wheel):
    """Names the wheel for every Python 3 on this platform, and for every platform where there was no compiler."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, its binary interface, and the platform."""
        self.root_is_pure = not any(Path(self.bdist_dir).rglob(f"*{SUFFIX}"))
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel})
