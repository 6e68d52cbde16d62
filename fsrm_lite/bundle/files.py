"""Finds a bundle (a folder, the embedded model, the hub) and gives out its files, checked against its manifest.

Files are named by their *role*: "tokenizer", "fast" (the scorer), "slow" (the judge), "judge" (the manifest of a bundle
within the bundle, whose model is the judge).
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import stat
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path, PurePosixPath
from reprlib import repr as short
from threading import Lock

from fsrm_lite.bundle.hub import HubSource, fetch
from fsrm_lite.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from fsrm_lite.errors import BundleError, one_line
from fsrm_lite.files import read_regular, whole_file
from fsrm_lite.jsonl import parse_json

MAX_MANIFEST_BYTES = 16 << 20
"""A longer ``fsrm.json`` is refused; one with many golden examples has less than a tenth of it."""

EMBEDDED_NAME = "fsrm-tiny"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHECKPOINT = "{folder} is a checkpoint, not a bundle; export it first: fsrm-lite export {folder} -o BUNDLE"
_COMPANIONS = {"fast": "fast_data"}
"""Roles whose file makes its reader open a second file: ONNX Runtime opens a graph's external weights by itself.

The second file is checked whenever the first one is.
"""


class Bundle:
    """A model bundle: its manifest, and its files by role."""

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        *,
        hub: HubSource | None = None,
        verify: bool = True,
        within: PurePosixPath | None = None,
    ) -> None:
        """Keep what ``open`` or ``judge`` has found; use these instead.

        Args:
            root: The folder.
            manifest: Its manifest.
            hub: Where on the hub it comes from.
            verify: Whether hashes are compared; see ``open``.
            within: Its folder within the repository on the hub.
        """
        self.root = root
        self.manifest = manifest
        self.hub = hub
        """Where on the hub the bundle comes from; None for a folder."""
        self._verify, self._within = verify, within or PurePosixPath()
        self._checked: dict[str, Path] = {}
        self._judge: Bundle | None = None
        self._lock = Lock()

    @classmethod
    def open(
        cls,
        source: str | Path | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        verify: bool = True,
    ) -> Bundle:
        """Open a bundle. Only its manifest is read.

        Args:
            source: None for the embedded model; a folder; else ``"org/name"`` on the Hugging Face hub.
            revision: Branch, tag or commit on the hub.
            cache_dir: Cache folder of huggingface_hub.
            local_files_only: Never use the network.
            token: Access token for the hub.
            verify: Compare the SHA-256 of each file with the manifest when the file is first asked for. Sizes are
                compared in any case.

        Returns:
            The bundle.

        Raises:
            BundleError: If there is no such bundle, or its manifest is malformed or of an unknown format version.
        """
        if source is None:
            folder = Path(str(resources.files("fsrm_lite.models").joinpath(EMBEDDED_NAME)))
            return cls(folder, read_manifest(folder), verify=verify)
        if not isinstance(source, str | Path) or not str(source).strip():  # Path("") would be the current folder
            raise BundleError(
                f"the model is {short(source)}; expected a bundle folder, 'org/name', or None for the embedded model"
            )
        try:
            local = Path(source).expanduser()
            if local.is_dir():
                return cls(local, read_manifest(local), verify=verify)
            exists = local.exists()
        except (OSError, RuntimeError) as error:  # a name too long for the system; "~name" of a user who does not exist
            raise BundleError(
                f"cannot look for the model {short(source)}: {error.args[-1]}; expected a bundle folder or 'org/name'"
            ) from error
        if exists:
            raise BundleError(f"{local} is a file; expected the folder of a bundle, with {MANIFEST_NAME} in it")
        if isinstance(source, Path) or not _HUB_NAME.fullmatch(source):
            raise BundleError(
                f"there is no folder {local}, and it is not a hub name either; expected a bundle folder or 'org/name'"
            )
        hub = HubSource(source, revision, None if cache_dir is None else Path(cache_dir), local_files_only, token)
        folder = fetch(hub, MANIFEST_NAME).parent
        # All other files are taken from the commit that the manifest came from, even if the branch moves on.
        if _COMMIT.fullmatch(folder.name):
            hub = replace(hub, revision=folder.name)
        return cls(folder, read_manifest(folder), hub=hub, verify=verify)

    def has(self, role: str) -> bool:
        """Return whether the manifest lists a file for ``role``. The file itself is not looked for."""
        return role in self.manifest.files

    def beside(self, role: str) -> str | None:
        """Return where a role's file lies relative to the folder of the fast file; None if there is none."""
        if not self.has(role):
            return None
        folder = posixpath.dirname(self.manifest.files["fast"].path) or "."
        return posixpath.relpath(self.manifest.files[role].path, folder)

    def path(self, role: str) -> Path:
        """Return the path of a role's file, after fetching it from the hub if need be.

        The first time, its size and SHA-256 are compared with the manifest.

        Args:
            role: "tokenizer", "fast", "slow", ...

        Returns:
            The path of a file on this machine.

        Raises:
            BundleError: If the bundle has no such role, or the file is missing, altered or cannot be fetched.
        """
        with self._lock:
            if role not in self._checked:
                self._checked[role] = self._obtain(role)
                companion = _COMPANIONS.get(role)
                if companion is not None and self.has(companion):
                    self._checked[companion] = self._obtain(companion)
            return self._checked[role]

    def judge(self) -> Bundle:
        """Return the bundle of the slow half: the one that lies in this one, if there is one; else this one.

        Only the manifest is read.

        Raises:
            BundleError: If there is one, and its manifest is missing, altered or malformed, or names a judge again.
        """
        if not self.has("judge"):
            return self
        path, entry = self.path("judge"), self.manifest.files["judge"]
        with self._lock:
            if self._judge is None:
                manifest = read_manifest(path.parent)
                if "judge" in manifest.files:
                    raise BundleError(f"{path} names a judge again; the bundle of a judge is one model")
                within = self._within / PurePosixPath(entry.path).parent
                self._judge = Bundle(path.parent, manifest, hub=self.hub, verify=self._verify, within=within)
            return self._judge

    def check(self) -> None:
        """Fetch and check every file that the manifest lists, and those of a judge within the bundle.

        Raises:
            BundleError: If a file is missing or altered; the message names the first one.
        """
        for role in self.manifest.files:
            self.path(role)
        if self.has("judge"):
            self.judge().check()

    def _obtain(self, role: str) -> Path:
        """Find or fetch the file of a role, check it, and return its path. Two roles may name the same file."""
        entry = self.manifest.files.get(role)
        twin = next((other for other in self._checked if self.manifest.files[other] == entry), None)
        if twin is not None:
            return self._checked[twin]
        if entry is None:
            raise BundleError(
                f"the bundle {self.manifest.name!r} has no {role!r} file; "
                f"it has {', '.join(self.manifest.files) or 'none'}"
            )
        path = _inside(self.root, entry.path) if self.hub is None else fetch(self.hub, str(self._within / entry.path))
        check_file(path, entry, digest=self._verify)
        return path


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``fsrm.json`` in a bundle's folder.

    Raises:
        BundleError: If it is missing, not JSON, malformed, or names a file outside the folder.
    """
    path = folder / MANIFEST_NAME
    try:
        data = parse_json(read_regular(path, MAX_MANIFEST_BYTES))
    except FileNotFoundError as error:
        if (folder / "config.json").is_file():
            raise BundleError(_CHECKPOINT.format(folder=folder)) from error
        raise BundleError(f"{folder} has no {MANIFEST_NAME}; expected the folder of a bundle") from error
    except (ValueError, OSError) as error:
        raise BundleError(f"cannot read {path}: {error}") from error
    if (folder / "config.json").is_file() and not (isinstance(data, dict) and data.get("files")):
        raise BundleError(_CHECKPOINT.format(folder=folder))  # its fsrm.json is the trainer's fragment
    try:
        manifest = Manifest.from_dict(data)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    for entry in manifest.files.values():
        _inside(folder, entry.path)
    return manifest


def write_manifest(folder: Path, manifest: Manifest, files: Mapping[str, str] | None = None) -> Manifest:
    """Write the ``fsrm.json`` of a bundle, with the size and SHA-256 of each of its files.

    Args:
        folder: The bundle's folder; the files must be in it already.
        manifest: Everything; its ``files`` are replaced where ``files`` are given.
        files: From role to path relative to ``folder``, with forward slashes. None keeps the manifest's own entries,
            for files that have not changed since they were hashed.

    Returns:
        The manifest as written.

    Raises:
        BundleError: If a file is missing, or the manifest would be refused when it is read again.
    """
    complete = manifest
    if files is not None:
        complete = replace(manifest, files={role: _describe(folder, path) for role, path in files.items()})
    Manifest.from_dict(complete.to_dict())
    with whole_file(folder / MANIFEST_NAME) as path:
        path.write_text(json.dumps(complete.to_dict(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    return complete


def check_file(path: Path, entry: FileEntry, *, digest: bool = True) -> None:
    """Compare a file with what the manifest says about it.

    Args:
        path: The file.
        entry: Its entry in the manifest.
        digest: Compare the SHA-256 too, not only the size.

    Raises:
        BundleError: If it is missing or differs; the message names the file, what was expected and what was found.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        status = None
    except (OSError, ValueError) as error:  # a name that is too long, a circle of links; a zero byte in a name
        raise BundleError(f"the bundle's file {short(str(path))} cannot be looked for: {one_line(error)}") from error
    if status is None or not stat.S_ISREG(status.st_mode):
        raise BundleError(f"the bundle's file {path} is missing; copy or download the bundle again")
    size = status.st_size
    if size != entry.bytes:
        raise BundleError(
            f"the bundle's file {path} has {size} bytes, {MANIFEST_NAME} says {entry.bytes}; "
            "delete it, then copy or download it again"
        )
    actual = file_sha256(path) if digest else entry.sha256
    if actual != entry.sha256:
        raise BundleError(
            f"the bundle's file {path} was altered: sha256 {actual}, {MANIFEST_NAME} says {entry.sha256}; "
            "delete it, then copy or download it again"
        )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex, without reading the whole file into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(folder: Path, relative: str) -> FileEntry:
    """Return the manifest's entry for a file."""
    path = _inside(folder, relative)
    if not path.is_file():
        raise BundleError(f"cannot list {path} in {MANIFEST_NAME}: there is no such file")
    return FileEntry(relative, path.stat().st_size, file_sha256(path))


def _inside(root: Path, relative: str) -> Path:
    """Return ``root / relative``, or raise a ``BundleError`` if that is not a plain path inside ``root``.

    A manifest may come from anyone, and must not reach files outside its folder.
    """
    pure = PurePosixPath(relative)
    if not relative or pure.is_absolute() or ".." in pure.parts or "\\" in relative or ":" in relative:
        raise BundleError(
            f"{root / MANIFEST_NAME} names the file {relative!r}, which is not a plain path inside the bundle"
        )
    return root.joinpath(*pure.parts)
