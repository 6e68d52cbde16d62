"""Fetches single files of a bundle from the Hugging Face hub, or from the cache of its client.

``huggingface_hub`` is imported only when a model is named as ``"org/name"``. The network is used only for a file that
is not in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fsrm_lite.bundle.manifest import MANIFEST_NAME
from fsrm_lite.errors import BundleError, one_line

_REACH_SECONDS = 10.0
"""Longest wait for the hub's first answer."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """Where the files of a bundle on the hub come from.

    Attributes:
        name: ``"org/name"``.
        revision: Branch, tag or commit; None is the main branch.
        cache_dir: Cache folder of huggingface_hub; None is its default.
        local_files_only: Never use the network.
        token: Access token; None is that of the user who is logged in.
    """

    name: str
    revision: str | None = None
    cache_dir: Path | None = None
    local_files_only: bool = False
    token: str | bool | None = None


def fetch(hub: HubSource, filename: str) -> Path:
    """Return the path of a file from a hub repository. What is not in the cache is downloaded.

    Args:
        hub: Where the file comes from.
        filename: Its path in the repository.

    Raises:
        BundleError: If there is no such repository, revision or file, access to it is restricted, or it cannot be
            downloaded.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    cache = None if hub.cache_dir is None else str(hub.cache_dir)
    try:
        # hf_hub_download(local_files_only=True) may use the network all the same, for lists of the client's own.
        found = try_to_load_from_cache(hub.name, filename, cache_dir=cache, revision=hub.revision)
        if isinstance(found, str):
            return Path(found)
        if hub.local_files_only:
            raise LocalEntryNotFoundError(filename)
        if filename == MANIFEST_NAME:
            _reach(hub, filename)
        return Path(
            hf_hub_download(
                hub.name, filename, revision=hub.revision, cache_dir=cache, token=hub.token, library_name="fsrm-lite"
            )
        )
    except Exception as error:  # the client raises its own errors, httpx's and the system's; each becomes a BundleError
        raise _hub_error(hub, filename, error) from error


def _reach(hub: HubSource, filename: str) -> None:
    """Ask the hub about a bundle's first file once, so that a hub that cannot be reached is told at once.

    ``hf_hub_download`` asks again for half a minute. That is right for the files that follow, and in the middle of one,
    which it goes on with where it was cut off.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return
    url = hf_hub_url(hub.name, filename, revision=hub.revision)
    try:
        get_hf_file_metadata(url, token=hub.token, timeout=_REACH_SECONDS, library_name="fsrm-lite")
    except HfHubHTTPError:  # it answered
        raise
    except Exception as error:
        raise LocalEntryNotFoundError(filename) from error


def _hub_error(hub: HubSource, filename: str, error: Exception) -> BundleError:
    """Return the ``BundleError`` that says, in one line, why a file could not be fetched."""
    from huggingface_hub import constants, errors

    where = f"{hub.name}" + (f" (revision {hub.revision})" if hub.revision else "")
    if isinstance(error, errors.GatedRepoError):
        return BundleError(f"access to {where} on the hub is restricted; ask for access there, then pass token=...")
    if isinstance(error, errors.RepositoryNotFoundError):
        return BundleError(
            f"there is no model {where} on the hub (or it is private: pass token=...), and no folder {hub.name} here"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return BundleError(
            f"{hub.name} on the hub has no revision {hub.revision!r}; expected a branch, a tag or a full commit hash"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        offline = hub.local_files_only or constants.HF_HUB_OFFLINE
        why = (
            "the network may not be used (local_files_only or HF_HUB_OFFLINE)"
            if offline
            else f"the hub cannot be reached ({one_line(error.__cause__ or error)})"
        )
        return BundleError(f"{filename} of {where} is not in the cache, and {why}")
    if isinstance(error, errors.EntryNotFoundError):
        hint = "; it is not an fsrm-lite bundle" if filename == MANIFEST_NAME else ""
        return BundleError(f"{where} on the hub has no file {filename}{hint}")
    return BundleError(f"cannot download {filename} of {where}: {type(error).__name__}: {one_line(error)}")
