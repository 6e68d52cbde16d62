"""Files that appear whole or not at all, files that one process at a time may write, and whether one can be written."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fsrm_lite.errors import DataFormatError, InputError, one_line


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes ``path`` when the block ends without an error.

    A reader sees the old file or the new one, never a part of it; after an error the old one stays as it was. The new
    file has the permissions of the old one. A link is followed, so that it stays a link. What is no file (a pipe, a
    device) is written to directly. A process that is killed leaves ``.NAME.partial``; the next run replaces it.

    Args:
        path: The file to appear. Its folder must exist.

    Raises:
        DataFormatError: If another process is writing it.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    partial = target.with_name(f".{target.name}.partial")
    with sole_writer(target):
        partial.unlink(missing_ok=True)  # what lies there is not ours; through a link, another file would be written
        try:
            yield partial
            if target.exists():
                shutil.copymode(target, partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def read_regular(path: Path, most: int) -> bytes:
    """Return what a file holds that a stranger may have put there.

    Args:
        path: The file.
        most: No more bytes than that are taken into memory.

    Raises:
        DataFormatError: If it is no file (a pipe, for which one would wait; a device, which may never end), or holds
            more.
        OSError: If it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataFormatError(f"{path} is no regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DataFormatError(f"{path} has {max(status.st_size, len(data))} bytes, expected at most {most}")
    return data


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, whole or not at all; see ``whole_file``.

    Raises:
        InputError: If it cannot be written.
    """
    try:
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def check_output(path: Path | None, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse a file that is to be written, before any work is done for it.

    Args:
        path: The file; None for none.
        inputs: Files that are read; None for none.

    Raises:
        DataFormatError: If it is a folder or one of the inputs, if the folder for it does not exist, if its links lead
            nowhere, or if its name promises a compressed file.
    """
    if path is None:
        return
    try:
        path.resolve()
    except (OSError, RuntimeError) as error:  # before Python 3.13 a circle of links is a RuntimeError
        raise DataFormatError(f"{path} cannot be written: {one_line(error)}") from error
    if path.suffix.lower() == ".gz":
        raise DataFormatError(f"{path} would not be compressed; name it {path.stem}, and compress it when it is done")
    if path.is_dir():
        raise DataFormatError(f"{path} cannot be written: it is a folder")
    if not path.parent.is_dir():
        raise DataFormatError(f"{path} cannot be written: there is no folder {path.parent}")
    if path.exists() and any(source is not None and source.exists() and path.samefile(source) for source in inputs):
        raise DataFormatError(f"{path} is the input itself; name another output")


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Keep every other process that uses this function from writing ``path`` while the block runs.

    The claim is a lock of the operating system on ``.NAME.lock`` beside the file. It ends with the process, however
    that ends, so a file that a killed process left is no obstacle. A link is followed: two names of one file are one
    claim. What is no file (a pipe, a device) is not claimed.

    Args:
        path: The file that will be written, or the folder. Its own folder must exist.

    Raises:
        DataFormatError: If another process has the claim; the message names that process.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield
        return
    target = path.resolve()
    lock = target.with_name(f".{target.name}.lock")
    file = _claimed(lock, path)
    try:
        yield
    finally:
        with suppress(OSError):  # whoever opened it meanwhile notices that it is gone, and opens a new one
            lock.unlink()
        file.close()


def _claimed(lock: Path, path: Path) -> IO[str]:
    """Return the open lock file of ``path``, locked, with this process's number in it."""
    while True:
        file = open(lock, "a+", encoding="utf-8", opener=_open_own)  # noqa: SIM115 - pathlib knows no opener
        if not _lock(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise DataFormatError(f"{path} is being written by {holder}; wait for it, or name another output")
        try:
            same = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except FileNotFoundError:
            same = False
        if same:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        file.close()  # its holder finished and removed it between the two calls


def _open_own(name: str, flags: int) -> int:
    """Open a file that only this module gives such a name; for ``open``.

    Raises:
        DataFormatError: If it is none: a link, by which another file would be emptied and removed, or no file at all.
    """
    refusal = DataFormatError(f"{name} is a link or no file, and so not ours; remove it, or name another output")
    if Path(name).is_symlink():
        raise refusal
    # Without O_NONBLOCK, to open a pipe would wait for its other end.
    found = os.open(name, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    status = os.fstat(found)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return found
    os.close(found)
    raise refusal


def _lock(file: IO[str]) -> bool:
    """Lock an open file for this process and return whether that worked; it does not wait.

    On a file system that knows no locks, every process gets one.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1 << 20)  # the byte that is locked cannot be read by others, so it lies behind the text
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)
    return True


def check_in_place(file: IO[Any], path: Path) -> None:
    """Make sure that what is written to an open file can be found at its path.

    Raises:
        DataFormatError: If somebody removed, moved or replaced the file meanwhile.
    """
    try:
        same = os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        same = False
    if not same:
        raise DataFormatError(
            f"{path} was removed, moved or replaced while it was written; what is written now would be lost"
        )


def to_disk(file: IO[Any]) -> None:
    """Pass what was written on to the disk itself, so that it is there after a power cut."""
    file.flush()
    with suppress(OSError):  # a pipe or a terminal has no disk
        os.fsync(file.fileno())
