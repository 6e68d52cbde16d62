"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes ``path`` when the block ends without an error.

    A reader sees the old file or the new one, never a part of it; after an error the old one stays as it was. The new
    file has the permissions of the old one. A link is followed, so that it stays a link. What is no file (a pipe, a
    device) is written to directly. A process that is killed leaves ``.NAME.partial``; the next run replaces it.

    Args:
        path: The file to appear. Its folder must exist, and nobody else may write it at the same time.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    partial = target.with_name(f".{target.name}.partial")
    try:
        yield partial
        if target.exists():
            shutil.copymode(target, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
