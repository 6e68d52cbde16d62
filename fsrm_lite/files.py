"""Writes files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes ``path`` when the block ends without an error.

    Whoever reads ``path`` meanwhile sees the old file or the new one, never a part of the new one. After an error the
    old file is still there, unchanged. Where ``path`` is a link, the file that it leads to is replaced and the link
    stays. Where it is not a regular file (a pipe, a device), it is written to directly.

    Args:
        path: The file to write. Its folder must exist.

    Yields:
        A temporary path in the same folder, or the pipe or device itself.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        yield target
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
