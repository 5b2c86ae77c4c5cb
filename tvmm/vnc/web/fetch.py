"""Re-creates the folder `novnc` beside this file from noVNC's npm package; run by a developer who takes a new version.

    python tvmm/vnc/web/fetch.py [TARBALL] [--accept]

Without TARBALL `npm pack` gets the pinned version. The tarball must have the SHA-256 that `novnc.json` names;
`--accept` writes the one that it has instead (change the version in `novnc.json` first, then read what changed). Only
what `core/rfb.js` imports is kept, with the licences.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import posixpath
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "novnc.json"
TARGET = HERE / "novnc"
ENTRY = "core/rfb.js"
LICENCES = ("LICENSE.txt", "AUTHORS", "docs/LICENSE.MPL-2.0", "docs/LICENSE.BSD-3-Clause", "vendor/pako/LICENSE")

_IMPORT = re.compile(r"""^\s*(?:import|export)\b[^;'"]*?['"](\.[^'"]+)['"]""", re.MULTILINE)


def imported(name: str, source: str) -> list[str]:
    """The modules that module `name` imports, as paths in the package."""
    return [posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) for path in _IMPORT.findall(source)]


def closure(files: dict[str, bytes]) -> list[str]:
    """What `ENTRY` needs, itself included. KeyError if the package lacks a module that it imports."""
    needed: list[str] = []
    waiting = [ENTRY]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.append(name)
            waiting += imported(name, files[name].decode())
    return sorted(needed)


def unpacked(tarball: bytes) -> dict[str, bytes]:
    """The regular files of an npm package, by their path in it."""
    with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
        return {
            member.name.removeprefix("package/"): archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive
            if member.isfile()
        }


def packed(package: str, version: str) -> bytes:
    """The tarball as the npm registry has it that npm is set up for."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True)
        return next(Path(folder).glob("*.tgz")).read_bytes()


def rebuild(tarball: bytes, pin: dict[str, Any], *, accept: bool) -> dict[str, Any]:
    """Writes the folder and returns the manifest that describes it; SystemExit if the tarball is not the pinned one."""
    digest = hashlib.sha256(tarball).hexdigest()
    if digest != pin["sha256"] and not accept:
        raise SystemExit(f"the tarball's SHA-256 is {digest}, and {MANIFEST.name} says {pin['sha256']}")
    files = unpacked(tarball)
    if (version := json.loads(files["package.json"])["version"]) != pin["version"]:
        raise SystemExit(f"the tarball is version {version}, and {MANIFEST.name} says {pin['version']}")
    shutil.rmtree(TARGET, ignore_errors=True)
    kept: dict[str, str] = {}
    for name in [*closure(files), *LICENCES]:
        path = TARGET / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])
        kept[name] = hashlib.sha256(files[name]).hexdigest()
    return {**pin, "sha256": digest, "files": kept}


def main() -> None:
    """What the command does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tarball", nargs="?", type=Path, help="noVNC's npm package; npm gets it if left out")
    parser.add_argument("--accept", action="store_true", help="pin the tarball that is there")
    options = parser.parse_args()
    pin = json.loads(MANIFEST.read_text())
    tarball = options.tarball.read_bytes() if options.tarball else packed(pin["package"], pin["version"])
    MANIFEST.write_text(json.dumps(rebuild(tarball, pin, accept=options.accept), indent=1) + "\n")


if __name__ == "__main__":
    main()
