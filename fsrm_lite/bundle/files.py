"""Finds a bundle (a folder, the embedded model, the hub) and hands out its files, checked against the manifest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path, PurePosixPath
from reprlib import repr as short
from threading import Lock

from fsrm_lite.bundle.hub import HubSource, fetch
from fsrm_lite.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from fsrm_lite.errors import BundleError
from fsrm_lite.files import whole_file

EMBEDDED_NAME = "fsrm-tiny"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_COMPANIONS = {"fast": "fast_data"}
"""A file that is opened through another one: ONNX Runtime opens the external weights of a graph by itself."""


class Bundle:
    """A model bundle: its manifest, and its files by role."""

    def __init__(self, root: Path, manifest: Manifest, *, hub: HubSource | None = None, verify: bool = True) -> None:
        """Use ``open``."""
        self.root = root
        self.manifest = manifest
        self._hub = hub
        self._verify = verify
        self._checked: dict[str, Path] = {}
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
        """Open a bundle; only its manifest is read.

        Args:
            source: None for the embedded model; a folder; else ``"org/name"`` on the Hugging Face hub.
            revision: Hub branch, tag or commit.
            cache_dir: Cache folder of huggingface_hub.
            local_files_only: Never use the network.
            token: Hub access token.
            verify: Compare the SHA-256 of each file with the manifest when it is first asked for. Sizes always are.

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
        except (OSError, RuntimeError) as error:  # a name too long for the system; "~" of nobody
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
        # From here on every file comes from the commit that the manifest came from, even if the branch moves.
        if _COMMIT.fullmatch(folder.name):
            hub = replace(hub, revision=folder.name)
        return cls(folder, read_manifest(folder), hub=hub, verify=verify)

    def has(self, role: str) -> bool:
        """Whether the manifest lists a file for ``role``; nothing is looked for on disk."""
        return role in self.manifest.files

    def path(self, role: str) -> Path:
        """Return the file of a role: fetched if need be, its size and SHA-256 compared with the manifest once.

        Args:
            role: "tokenizer", "fast", "slow", ...

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

    def check(self) -> None:
        """Fetch and check every file that the manifest lists.

        Raises:
            BundleError: Naming the first file that is missing or altered.
        """
        for role in self.manifest.files:
            self.path(role)

    def _obtain(self, role: str) -> Path:
        entry = self.manifest.files.get(role)
        if entry is None:
            raise BundleError(
                f"the bundle {self.manifest.name!r} has no {role!r} file; it has {', '.join(self.manifest.files) or 'none'}"
            )
        path = _inside(self.root, entry.path) if self._hub is None else fetch(self._hub, entry.path)
        check_file(path, entry, digest=self._verify)
        return path


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``fsrm.json`` of a bundle folder.

    Raises:
        BundleError: If it is missing, not JSON, malformed, or names a file outside the folder.
    """
    path = folder / MANIFEST_NAME
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{folder} has no {MANIFEST_NAME}; expected the folder of a bundle") from error
    except (ValueError, OSError) as error:
        raise BundleError(f"cannot read {path}: {error}") from error
    try:
        manifest = Manifest.from_dict(data)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    for entry in manifest.files.values():
        _inside(folder, entry.path)
    return manifest


def write_manifest(folder: Path, manifest: Manifest, files: Mapping[str, str]) -> Manifest:
    """Hash the files of a bundle and write its ``fsrm.json``.

    Args:
        folder: Root of the bundle; the files must be in place.
        manifest: Everything but ``files``, which is replaced.
        files: Role to path relative to ``folder``, with forward slashes.

    Returns:
        The manifest as written.

    Raises:
        BundleError: If a file is missing or the manifest would not load again.
    """
    entries = {role: _describe(folder, path) for role, path in files.items()}
    complete = replace(manifest, files=entries)
    Manifest.from_dict(complete.to_dict())
    with whole_file(folder / MANIFEST_NAME) as path:
        path.write_text(json.dumps(complete.to_dict(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    return complete


def check_file(path: Path, entry: FileEntry, *, digest: bool = True) -> None:
    """Compare a file with what the manifest says of it.

    Raises:
        BundleError: Naming the file, what was expected and what was found.
    """
    if not path.is_file():
        raise BundleError(f"the bundle's file {path} is missing; copy or download the bundle again")
    size = path.stat().st_size
    if size != entry.bytes:
        raise BundleError(
            f"the bundle's file {path} has {size} bytes, {MANIFEST_NAME} says {entry.bytes}; delete it, then copy or download it again"
        )
    actual = file_sha256(path) if digest else entry.sha256
    if actual != entry.sha256:
        raise BundleError(
            f"the bundle's file {path} was altered: sha256 {actual}, {MANIFEST_NAME} says {entry.sha256}; delete it, then copy or download it again"
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(folder: Path, relative: str) -> FileEntry:
    path = _inside(folder, relative)
    if not path.is_file():
        raise BundleError(f"cannot list {path} in {MANIFEST_NAME}: there is no such file")
    return FileEntry(relative, path.stat().st_size, file_sha256(path))


def _inside(root: Path, relative: str) -> Path:
    """``root / relative``; a manifest, which may come from anywhere, must not reach outside its folder."""
    pure = PurePosixPath(relative)
    if not relative or pure.is_absolute() or ".." in pure.parts or "\\" in relative or ":" in relative:
        raise BundleError(
            f"{root / MANIFEST_NAME} names the file {relative!r}, which is not a plain path inside the bundle"
        )
    return root.joinpath(*pure.parts)
