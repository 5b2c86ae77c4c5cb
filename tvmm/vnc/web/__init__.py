"""The page of the web console: our own three files, and noVNC as `fetch.py` takes it out of its npm package.

noVNC is not changed; its licence, MPL 2.0, is beside it in `novnc/`. `novnc.json` pins the package and lists its
files.
"""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from typing import Any, NamedTuple

__all__ = ["PageFile", "manifest", "page_files"]

OWN = ("index.html", "console.css", "console.js", "panel.js")

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
_TEXT = "text/plain; charset=utf-8"


class PageFile(NamedTuple):
    """A file as a browser gets it: its bytes, its media type, and a tag that changes with the bytes."""

    body: bytes
    media_type: str
    etag: str


def manifest() -> dict[str, Any]:
    """What `novnc.json` says: package, version, SHA-256 of the tarball and of each file taken from it."""
    loaded: dict[str, Any] = json.loads(files(__name__).joinpath("novnc.json").read_text())
    return loaded


def page_files() -> dict[str, PageFile]:
    """Every file that browsers may have, by URL path. The table is all there is: no path leads to the file system."""
    names = {f"/{name}": name for name in OWN} | {f"/novnc/{name}": f"novnc/{name}" for name in manifest()["files"]}
    table = {path: _read(name) for path, name in names.items()}
    return {"/": table["/index.html"], **table}


def _read(name: str) -> PageFile:
    body = files(__name__).joinpath(name).read_bytes()
    return PageFile(body, _TYPES.get(name.rpartition(".")[2], _TEXT), f'"{hashlib.sha256(body).hexdigest()[:32]}"')
