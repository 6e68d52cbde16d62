"""Compiled operators for the steps between the products of the fast graph.

They are written in C (``rows.c`` computes, ``operators.c`` speaks to ONNX Runtime) and compiled to a shared library
when the package is built, where there is a C compiler. Nothing needs them: the graph defines every such step in stock
operators too, see ``export/graph/fused.py``, and ONNX Runtime takes those where this library is missing, more slowly.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

SWITCH = "FSRM_LITE_KERNELS"
"""Environment variable; "0" leaves the compiled operators unused, for the bits of a machine that lacks them."""

_registering = threading.Lock()


def library() -> Path | None:
    """Return the compiled library, or None where it was not built or ``FSRM_LITE_KERNELS`` is "0"."""
    if os.environ.get(SWITCH) == "0":
        return None
    path = Path(__file__).with_name("_operators.dll" if os.name == "nt" else "_operators.so")
    return path if path.is_file() else None


def register(options: Any) -> bool:  # noqa: ANN401 - a SessionOptions
    """Let the session that is opened with ``options`` use the library, if there is one; returns whether there is.

    Raises:
        Exception: Whatever ONNX Runtime raises for a library that cannot be loaded.
    """
    path = library()
    if path is not None:
        with _registering:
            options.register_custom_ops_library(str(path))
    return path is not None
