"""``tvmm screenshot [NAME] FILE``: what a guest shows now, as a picture."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tvmm.cli.machines import control, named
from tvmm.cli.output import printable, say
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.parser import Parser

__all__ = ["add_arguments", "picture_format", "run"]

_EXAMPLES = """\
  tvmm screenshot web screen.png
  tvmm screenshot screen.png         only one machine runs: no need to name it
"""

_MORE = """\
The machine needs a display (--display, or --vnc, which brings one), and nobody has to watch it. A guest
that shows nothing gives a black picture. The name's ending says what it becomes: .png or .ppm.
"""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.completers import attach, machine_names

    parser.describe("Save what a guest shows as a picture.", _EXAMPLES, _MORE)
    name = parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="the machine, as 'tvmm ps' lists it; may be left out while only one runs",
    )
    parser.add_argument("file", metavar="FILE", help="where to: NAME.png or NAME.ppm; replaced if it is there")
    attach(name, machine_names)


def picture_format(path: str) -> str:
    """QEMU's word for what the name's ending says. Raises `ConfigError`."""
    ending = os.path.splitext(path)[1].lower()
    if ending not in (".png", ".ppm"):
        raise ConfigError(f"{path!r} does not end in .png or .ppm", "name a file that does")
    return ending[1:]


def run(options: Mapping[str, Any]) -> int:
    """Have it written, by the machine's process."""
    image_format = picture_format(options["file"])
    path = os.path.abspath(options["file"])
    entry = named(options)
    with control(entry, timeout=60.0) as client:
        client.execute("screendump", filename=path, format=image_format)
    say(printable(f"the screen of {entry.name} is in {options['file']}"))
    return 0
