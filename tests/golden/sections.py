"""Sections as they were written by version 1, one file each."""

from __future__ import annotations

from pathlib import Path

from tvmm.state import Section, unpack_sections

__all__ = ["FOLDER", "file_name", "golden"]

FOLDER = Path(__file__).parent / "sections-1"


def file_name(section: Section) -> str:
    """Of a section, by its name."""
    return section.name.replace("/", "+").replace(":", "-") + ".bin"


def golden(machine: str) -> list[Section]:
    """All sections of ``devices``, ``nets`` or ``display``, in the order of their names."""
    files = sorted((FOLDER / machine).glob("*.bin"))
    return [section for path in files for section in unpack_sections(path.read_bytes())]
