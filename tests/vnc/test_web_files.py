"""The page's files: noVNC as its package has it, and nothing in the page that the policy forbids."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tvmm.vnc import web
from tvmm.vnc.web import fetch

FOLDER = Path(web.__file__).parent
FILES = web.page_files()
PIN = web.manifest()


def test_every_file_of_novnc_is_as_the_package_has_it() -> None:
    """By the sums that were taken when the tarball was unpacked; and there is none besides."""
    there = {path.relative_to(FOLDER / "novnc").as_posix() for path in (FOLDER / "novnc").rglob("*") if path.is_file()}
    assert there == set(PIN["files"])
    for name, digest in PIN["files"].items():
        assert hashlib.sha256(FILES[f"/novnc/{name}"].body).hexdigest() == digest, name


def test_every_import_is_there() -> None:
    """No module is left out that another one needs."""
    modules = {path[1:]: file.body for path, file in FILES.items() if path.endswith(".js")}
    for name, body in modules.items():
        for other in fetch.imported(name, body.decode()):
            assert other in modules, (name, other)


def test_the_licences_are_there() -> None:
    """Who has the program has them, too."""
    for name in fetch.LICENCES:
        assert name in PIN["files"]


def test_the_page_needs_no_inline_script_or_style() -> None:
    """The content security policy would leave them out."""
    page = FILES["/"].body.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|javascript:", page)


def test_every_element_that_the_scripts_name_exists() -> None:
    """And is there once."""
    page = FILES["/"].body.decode()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for script in ("/console.js", "/panel.js"):
        used = set(re.findall(r'byId\("([^"]+)"\)', FILES[script].body.decode()))
        assert used <= set(ids)


def test_tags_change_with_the_content() -> None:
    """Browsers keep what has the same tag."""
    assert FILES["/console.js"].etag != FILES["/panel.js"].etag
    assert FILES["/"] == FILES["/index.html"]


def test_fetch_refuses_another_tarball() -> None:
    """The sum is checked before anything is unpacked."""
    with pytest.raises(SystemExit, match="SHA-256"):
        fetch.rebuild(b"not the tarball", PIN, accept=False)


def test_imports_are_found_in_every_spelling() -> None:
    """As noVNC writes them."""
    source = """import A from './a.js';\nimport { b,\n c } from "../b.js";\nexport * from './c.js';\nimport './d.js';"""
    assert fetch.imported("core/x.js", source) == ["core/a.js", "b.js", "core/c.js", "core/d.js"]
