"""``tvmm resize [NAME] DISK SIZE``: the file behind a disk and the disk that the guest sees get another size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.cli.machines import control, named
from tvmm.cli.output import printable, say
from tvmm.config.units import format_size, parse_size
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.parser import Parser

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
  tvmm resize web disk0 20G
  tvmm resize web disk0 +5G     that much larger than it is
  tvmm resize disk0 20G         only one machine runs: no need to name it
"""

_MORE = """\
The guest is told, and keeps running. A filesystem grows by the guest's own means (resize2fs, xfs_growfs).
A smaller size cuts off what is behind it, and has to be allowed by --shrink.
"""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.completers import attach, disk_names, machine_or_disk_names

    parser.describe("Give a disk of a running machine another size.", _EXAMPLES, _MORE)
    name = parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="the machine, as 'tvmm ps' lists it; may be left out while only one runs",
    )
    disk = parser.add_argument("disk", metavar="DISK", help="the disk's id: disk0, disk1 ... unless it was given one")
    size = parser.add_argument("size", metavar="SIZE", help="new size: 20G, 512M, bytes; +SIZE for that much more")
    parser.add_argument("--shrink", action="store_true", help="allow a size smaller than now")
    attach(name, machine_or_disk_names)
    attach(disk, machine_or_disk_names)
    attach(size, disk_names)


def run(options: Mapping[str, Any]) -> int:
    """Resize it, and say from what to what."""
    text = options["size"]
    given = parse_size(text.removeprefix("+"), "size")
    entry = named(options)
    with control(entry, timeout=60.0) as client:
        sizes = {disk["device"]: disk["inserted"]["image"]["virtual-size"] for disk in client.execute("query-block")}
        disk = options["disk"]
        if disk not in sizes:
            raise ConfigError(f"{entry.name} has no disk {disk!r}", f"there are: {', '.join(sizes) or 'none'}")
        size = sizes[disk] + given if text.startswith("+") else given
        if size < sizes[disk] and not options.get("shrink"):
            raise ConfigError(
                f"{disk} has {format_size(sizes[disk])} and would lose what is behind {format_size(size)}",
                "allow it with --shrink",
            )
        client.execute("block_resize", device=disk, size=size)
    say(printable(f"{disk} of {entry.name}: {format_size(sizes[disk])} -> {format_size(size)}"))
    return 0
