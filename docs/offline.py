"""Checks each page as it is built: whatever a browser loads with it must be a file of the site itself."""

from __future__ import annotations

import logging
import re

_LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*?\ssrc=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|icon|preload|preconnect|manifest))[^>]*?\shref=[\"']?((?:https?:)?//[^\"'\s>]+)",
    re.IGNORECASE,
)
_MERMAID = re.compile(r"class=[\"']?mermaid\b")

log = logging.getLogger("mkdocs.hooks.offline")


def on_post_page(output: str, page: object, **_: object) -> str:
    """Warn, which `--strict` makes an error, of a page that would load something from the network."""
    for address in external_files(output):
        log.warning("%s would load %s from the network", page, address)
    return output


def external_files(html: str) -> list[str]:
    """Return the addresses outside the site that a browser would load with this page; links to click are none."""
    found = [first or second for first, second in _LOADED.findall(html)]
    # Material's own script fetches mermaid from a server for every element of this class.
    return found + ["mermaid.min.js"] * bool(_MERMAID.search(html))
