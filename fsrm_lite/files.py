"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes ``path`` when the block ends without an error.

    A reader sees the old file or the new one, never a part of it; after an error the old one stays as it was. A link is
    followed, so that it stays a link. What is no file (a pipe, a device) is written to directly.

    Args:
        path: The file to appear. Its folder must exist.
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
