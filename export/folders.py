"""Lets a bundle, the folder that this package loads, appear whole or not at all.

It is built in a hidden folder beside its target and renamed when it is complete, so an export that fails or is killed
leaves no half bundle under the target's name.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsrm_lite.bundle.manifest import MANIFEST_NAME
from fsrm_lite.errors import ExportError
from fsrm_lite.files import sole_writer


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse an output path that must not be written to.

    Raises:
        ExportError: If it is a file, a bundle without ``overwrite``, or a folder that is no bundle.
    """
    if target.is_dir():
        if not any(target.iterdir()):
            return
        if not _is_bundle(target):
            raise ExportError(f"the output folder {target} is not empty and not a bundle; name another folder")
        if not overwrite:
            raise ExportError(
                f"the output folder {target} holds a bundle already; name another folder or pass --overwrite"
            )
    elif target.exists() or target.is_symlink():
        raise ExportError(f"the output path {target} is a file; expected a folder to create")


def _is_bundle(folder: Path) -> bool:
    """Return whether a folder holds a bundle: its manifest lists files.

    A checkpoint must never pass for a bundle. It may hold a file of the same name, the trainer's fragment of a
    manifest, but a fragment lists no files.
    """
    try:
        return bool(json.loads((folder / MANIFEST_NAME).read_text("utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def atomic_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to build in, which becomes ``target`` when the block ends without an error.

    Args:
        target: The folder to appear.
        overwrite: Replace a bundle that is there; it stays in place until the new one is complete.

    Raises:
        ExportError: If ``target`` must not be written to, or the disk is full or read-only.
        DataFormatError: If another process is writing ``target``.
    """
    target = target.absolute()
    building = target.with_name(f".{target.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with sole_writer(target):
            _remove_abandoned(target)
            check_target(target, overwrite=overwrite)
            building.mkdir()
            yield building
            check_target(target, overwrite=overwrite)
            _swap(building, target)
    except OSError as error:
        # When a write falls short, as on a full disk, numpy raises an OSError without a number or a text.
        reason = error.strerror or f"the disk is full ({error})"
        raise ExportError(f"cannot write {target}: {reason} ({error.filename or building})") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _swap(building: Path, target: Path) -> None:
    """Rename the finished folder to ``target``, and then delete the bundle that was there."""
    if not target.is_dir():
        building.rename(target)
        return
    # A rename can replace an empty folder, but not a full one. So the old bundle is renamed first, and renamed back
    # if the new one cannot take its place.
    old = building.with_name(building.name.replace(".partial-", ".old-"))
    target.rename(old)
    try:
        building.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(target: Path) -> None:
    """Delete what killed exports of the same target left behind.

    If such an export had renamed the old bundle and nothing took its place, the old bundle gets its name back.
    """
    for kind in ("old", "partial"):
        for folder in target.parent.glob(f".{target.name}.{kind}-*"):
            pid = folder.name.rsplit("-", 2)[-2]
            if not pid.isdigit() or _is_running(int(pid)):
                continue
            if kind == "old" and not target.exists():
                folder.rename(target)
            else:
                shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
