"""Commands of the control socket about the guest's screen; `tvmm.control.verbs` has the table.

Shapes are QAPI's (qapi/ui.json).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmm.control.qmp import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.control.target import ControlTarget, Json

__all__ = ["screendump"]

FORMATS = ("ppm", "png")


async def screendump(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when the file is written, and whole. There is one display: `device` and `head` name it or fail."""
    image_format = arguments.get("format", "ppm")
    if image_format not in FORMATS:
        raise CommandFailed("GenericError", f"format {image_format!r} is not one of {', '.join(FORMATS)}")
    if arguments.get("head", 0) != 0:
        raise CommandFailed("GenericError", f"there is no head {arguments['head']}")
    if not arguments["filename"]:
        raise CommandFailed("GenericError", "argument 'filename' is empty")
    await target.save_screen(Path(arguments["filename"]), image_format)
    return {}
