"""Sections as they were written by released versions, one file each: how they were first written counts."""

from __future__ import annotations

from pathlib import Path

from tvmm.state import Section, unpack_sections

__all__ = ["FOLDERS", "file_name", "golden"]

_HERE = Path(__file__).parent
FOLDERS = {
    "devices": _HERE / "sections-1" / "devices",
    "nets": _HERE / "sections-1" / "nets",
    "display": _HERE / "sections-1" / "display",
    "input": _HERE / "sections-2" / "input",
    "vsock": _HERE / "sections-2" / "vsock",
    "balloon": _HERE / "sections-2" / "balloon",
    "generation": _HERE / "sections-3" / "generation",
}
"""By machine. The second generation has the mouse, virtio-input and virtio-vsock, the third the generation ID."""


def file_name(section: Section) -> str:
    """Of a section, by its name."""
    return section.name.replace("/", "+").replace(":", "-") + ".bin"


def golden(machine: str) -> list[Section]:
    """All sections of one of `FOLDERS`, in the order of their names."""
    files = sorted(FOLDERS[machine].glob("*.bin"))
    return [section for path in files for section in unpack_sections(path.read_bytes())]
