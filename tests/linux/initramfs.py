"""More for an initramfs: an archive behind the one that is there, whose files come in place of those of the same name.

The stock /init is for people: it looks through the command line, and ends as a shell that edits what is typed. It
takes a fifth of a boot's time where kernel mode is emulated, and its shell most of what a short command costs, since
each key is read, echoed and answered by itself. `INIT` mounts the same file systems, and is a shell itself, which
reads the console as it would a script.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["INIT", "READY", "UDHCPC", "extended"]

READY = "SHELL IS READY"
"""What it says when it reads commands."""
INIT = f"""#!/bin/busybox sh
echo HELLO FROM GUEST
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
busybox stty -echo
echo {READY}
. /dev/console
"""
UDHCPC = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add $ip/$mask dev $interface && ip route add default via $router
echo "nameserver $dns" > /etc/resolv.conf
"""
"""What `udhcpc -s` calls with a lease."""


def extended(base: Path, files: Mapping[str, str | bytes], place: Path) -> Path:
    """`place` becomes the archive `base` with executable `files` by their paths; it is returned."""
    data = base.read_bytes()
    parts = [data, bytes(-len(data) % 512)]
    for path, content in files.items():
        parts.append(_entry(path, 0o100755, content.encode() if isinstance(content, str) else content))
    place.write_bytes(b"".join([*parts, _entry("TRAILER!!!", 0, b"")]))
    return place


def _entry(path: str, mode: int, content: bytes) -> bytes:
    """As of the format newc of cpio(5)."""
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path) + 1, 0)
    head = b"070701" + "".join(f"{field:08X}" for field in fields).encode() + path.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
