"""Uploads a finished bundle to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from fsrm_lite.bundle.files import Bundle
from fsrm_lite.errors import ExportError, one_line

_REPO_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def check_repo_name(name: str) -> None:
    """Refuse what cannot be a repository, before an hour of exporting.

    Raises:
        ExportError: If ``name`` is not of the form "org/name".
    """
    if not _REPO_NAME.fullmatch(name):
        raise ExportError(f"--push-to-hub is {name!r}, expected 'org/name'")


def push_bundle(folder: Path, name: str, *, private: bool = False, token: str | None = None) -> str:
    """Check a bundle and upload it in one commit, so that the repository never holds half of it.

    Args:
        folder: The bundle.
        name: Repository, "org/name"; created if need be.
        private: Whether a new repository is private.
        token: Write token; None is the one the user is logged in with.

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
