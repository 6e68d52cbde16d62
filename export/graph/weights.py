"""What the graph writer needs of a checkpoint, whatever transformed it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.export.checkpoints.checkpoint import Architecture

Floats = NDArray[np.float32]


class Weights(Protocol):
    """Tensors by their Hugging Face names, as float32, and the architecture they belong to."""

    arch: Architecture

    @property
    def head_name(self) -> str: ...  # noqa: D102
    def shape(self, name: str) -> tuple[int, ...]: ...  # noqa: D102
    def tensor(self, name: str, rows: slice | None = None) -> Floats: ...  # noqa: D102
