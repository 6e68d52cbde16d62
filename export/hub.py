"""Fetches a checkpoint from the Hugging Face hub or its cache, and uploads a finished bundle."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsrm_lite.bundle.files import Bundle
from fsrm_lite.errors import ExportError, one_line
from fsrm_lite.export.recipes import Trace

_CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.jinja")
_TRAINERS_WORDS = re.compile(
    r"actor|best|checkpoint|ckpt|epoch|export|final|global|hf|huggingface|iter|last|latest|merged|model|outputs?|step"
    r"|weights|\d+"
)
"""Words of the names that trainers give to folders of checkpoints."""
_REPO_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def check_repo_name(name: str) -> None:
    """Refuse a name that cannot be a repository's, before an export that may take an hour.

    Raises:
        ExportError: If ``name`` is not of the form "org/name".
    """
    if not _REPO_NAME.fullmatch(name):
        raise ExportError(f"--push-to-hub is {name!r}, expected 'org/name'")


def checkpoint_name(checkpoint: str | Path) -> str:
    """Return what a checkpoint is called: the last part of its folder's path, or "org/name" on the hub.

    A folder of the hub's cache, ``models--org--name/snapshots/COMMIT``, is called as on the hub.
    """
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        return folder.as_posix()
    folder = Path(os.path.abspath(folder))
    cached = folder.parent.parent.name.split("--")
    if folder.parent.name == "snapshots" and len(cached) == 3 and cached[0] == "models":
        return f"{cached[1]}/{cached[2]}"
    return folder.name


def traces(root: Path, known_as: str, config: Mapping[str, Any]) -> list[Trace]:
    """Return the names that tell what a checkpoint was made from, the surest first.

    They are those of the folders above it, as long as its own name is one that trainers give (``checkpoint-500``), and
    what ``config.json`` and the model card say.

    Args:
        root: The checkpoint folder.
        known_as: What it is called.
        config: Its config.json.
    """
    found = []
    folder = Path(os.path.abspath(root))
    while _is_trainers_name(folder.name) and folder.name == known_as and folder.parent != folder:
        folder = folder.parent
        known_as = folder.name
        found.append(Trace(folder.name, "the folder above it"))
    began_with = str(config.get("_name_or_path") or "").rstrip("/")
    if began_with and not _is_trainers_name(Path(began_with).name):
        found.append(Trace(began_with, "'_name_or_path' in its config.json"))
    return found + [Trace(name, f"{entry!r} in its README.md") for entry, name in _card_names(root)]


def _is_trainers_name(name: str) -> bool:
    return all(_TRAINERS_WORDS.fullmatch(word) for word in re.split(r"[-_.]", name.lower()))


def _card_names(root: Path) -> list[tuple[str, str]]:
    """Return the names of the base models, and of the model itself, in the head of a model card."""
    try:
        head = (root / "README.md").read_text("utf-8", "replace")[:20_000]
    except OSError:
        return []
    front = re.match(r"---\n(.*?)\n---", head, re.DOTALL)
    found = []
    for entry in ("model_name", "base_model"):
        match = re.search(rf"^{entry}:[ \t]*(.*(?:\n[ \t]*-[ \t].*)*)", front[1] if front else "", re.MULTILINE)
        words = re.findall(r"[^\s'\"\[\],]+", match[1]) if match else []
        found += [(entry, word) for word in words if word != "-"]
    return found


def find_checkpoint(checkpoint: str | Path) -> Path:
    """Return the folder of a checkpoint; one that is named as on the hub is fetched, or found in the hub's cache.

    Args:
        checkpoint: A folder, or "org/name".

    Raises:
        ExportError: If there is neither, or the hub cannot be reached; one line that says what to do.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(checkpoint, Path) and len(checkpoint.parts) == 2:
        checkpoint = checkpoint.as_posix()
    if folder.exists() or not isinstance(checkpoint, str) or not _REPO_NAME.fullmatch(checkpoint):
        what = "a file" if folder.exists() else "no folder, and no name on the hub either"
        raise ExportError(f"{checkpoint} is {what}; expected the folder of a Hugging Face checkpoint, or 'org/name'")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(checkpoint, allow_patterns=list(_CHECKPOINT_FILES)))
    except Exception as error:  # the client raises its own, httpx's and OS errors; each becomes one line
        raise ExportError(
            f"cannot fetch the checkpoint {checkpoint} from the hub, and it is not in its cache: "
            f"{type(error).__name__}: {one_line(error)[:200]}; check the name and the network, or download it "
            "elsewhere and name its folder"
        ) from error


def push_bundle(folder: Path, name: str, *, private: bool = False, token: str | None = None) -> str:
    """Check a bundle and upload it in one commit, so that the repository never holds half of it.

    Args:
        folder: The bundle.
        name: Repository, "org/name"; created if it does not exist.
        private: Whether a new repository is private.
        token: Token with write access; None takes the one that the user is logged in with.

    Returns:
        Address of the commit.

    Raises:
        BundleError: If the bundle is not whole.
        ExportError: If the hub refuses.
    """
    from huggingface_hub import HfApi

    check_repo_name(name)
    bundle = Bundle.open(folder)
    bundle.check()
    api = HfApi(token=token, library_name="fsrm-lite")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=f"Upload {bundle.manifest.name}, exported by fsrm-lite"
        )
    except Exception as error:  # the client raises its own, httpx's and OS errors; each becomes one line
        raise ExportError(f"cannot push {folder} to {name}: {type(error).__name__}: {one_line(error)}") from error
    return str(commit.commit_url)
