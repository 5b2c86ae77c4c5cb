"""Small snapshot files: of a machine that there never was, and damaged in every way that keeps the digests right."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from tvmm.errors import ImageError
from tvmm.kvm.serve import Waker
from tvmm.memory.ram import GuestRam, RamBlock
from tvmm.snapshot.description import Description, DiskFile
from tvmm.snapshot.format import HEADER_BYTES
from tvmm.snapshot.reader import Reading, SnapshotFile
from tvmm.snapshot.sealing import Secret
from tvmm.snapshot.writer import Image, SnapshotWriter
from tvmm.state import Section, pack_sections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

__all__ = ["DESCRIPTION", "SECRET", "damaged", "hostile_run", "pages_of_ram", "read_all", "write_small"]

PAGES = 300
FEW_PAGES = 9
"""Of encrypted files, whose bytes cannot be compressed."""
SECRET = Secret(b"open sesame")
DESCRIPTION = Description(
    name="golden",
    saved_at_ns=1_700_000_000_000_000_000,
    program="tvmm 0.1.0",
    running=True,
    options=(("memory", ("2M",)), ("disk", ("/a.img", "/b.img,readonly=on"))),
    facts=(("memory size", "2M"), ("vCPU count", "1")),
    cpu=b"cpu",
    sections=pack_sections([Section("board", 1, 1, b"\x02")]),
    blocks=(),
    disks=(DiskFile("disk0", "/a.img", 1 << 20, 1_700_000_000_000_000_000),),
)


def pages_of_ram(count: int = PAGES) -> bytes:
    """Some pages of data, a stretch of zeros, and the last page of a short chunk."""
    dice = random.Random(4)
    return b"".join(dice.randbytes(4096) if page in (0, 3, 200, count - 1) else bytes(4096) for page in range(count))


def write_small(path: str, secret: Secret | None = None, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
    """A snapshot of `DESCRIPTION` with the pages above, and a kernel."""
    data = pages_of_ram(PAGES if secret is None else FEW_PAGES)
    block = RamBlock("pc.ram", len(data), shared=False)
    block.view[:] = data
    ram = cast("GuestRam", SimpleNamespace(blocks={"pc.ram": block}))
    waker = Waker()
    images = [Image("image.kernel", "/boot/kernel", b"kernel" * 1000)]
    with SnapshotWriter(path, ram, images, secret=secret, random=random_bytes) as writer:
        writer.write_pages(waker)
        writer.finish(DESCRIPTION)
    waker.close()
    block.close()


def read_all(path: str) -> Description:
    """Header, description, all pages and the kernel. Raises `ImageError`."""
    waker = Waker()
    try:
        with SnapshotFile(path, lambda source: SECRET) as file:
            with Reading(file) as reading:
                reading.run(waker)
            file.image("image.kernel")
            file.image("image.initrd")
            file.description.state()
            return file.description
    finally:
        waker.close()


def damaged(data: bytes, dice: random.Random) -> bytes:
    """`data` with some bytes changed, cut or added, and digests that are right again if luck has it."""
    changed = bytearray(data)
    table, length = (int.from_bytes(data[at : at + 8], "little") for at in (24, 32))
    description = int.from_bytes(data[40:48], "little")
    where = dice.choice(("header", "table", "description", "pages", "end"))
    places = {"header": (8, 208), "table": (table, table + length), "description": (description, len(data))}
    if where == "end":
        changed = changed[: dice.randrange(len(data))] if dice.random() < 0.7 else changed + dice.randbytes(100)
    elif where == "pages":
        changed[2 << 20 : (2 << 20) + 8] = dice.randbytes(8)
    else:
        start, end = places[where]
        for _ in range(dice.choice((1, 1, 2, 8))):
            at = dice.randrange(start, end)
            size = dice.choice((1, 1, 2, 4, 8))
            value = dice.choice((bytes(size), b"\xff" * size, dice.randbytes(size), b"\x7f" + bytes(size - 1)))
            changed[at : min(at + size, end)] = value[: min(at + size, end) - at]
    if dice.random() < 0.9 and len(changed) >= HEADER_BYTES:
        _sign(changed)
    return bytes(changed)


def _sign(data: bytearray) -> None:
    """Digests of whatever is there now."""

    def number(at: int) -> int:
        return min(int.from_bytes(data[at : at + 8], "little"), len(data))

    if number(24) != 0:
        data[96:128] = hashlib.sha256(data[number(24) : number(24) + number(32)]).digest()
        data[128:160] = hashlib.sha256(data[number(40) : number(40) + number(48)]).digest()
    data[208:240] = hashlib.sha256(data[:208]).digest()


_files: dict[bool, bytes] = {}


def hostile_run(seed: int) -> str:
    """One damaged file, plain or encrypted, read to its end. What was said of it, without numbers."""
    dice = random.Random(seed)
    sealed = dice.random() < 0.2
    with _folder() as folder:
        path = f"{folder}/a.snap"
        if sealed not in _files:
            write_small(path, SECRET if sealed else None, lambda count: bytes(range(count)))
            with open(path, "rb") as file:
                _files[sealed] = file.read()
        with open(path, "wb") as file:
            file.write(damaged(_files[sealed], dice))
        try:
            read_all(path)
        except ImageError as error:
            text = str(error).replace(path, "it")
            return "".join("#" if letter.isdigit() else letter for letter in text)[:60]
        return "it was read"


def _folder() -> AbstractContextManager[str]:
    return tempfile.TemporaryDirectory(prefix="tvmm-")


def all_options() -> Iterator[dict[str, Any]]:
    """Machines with something of everything, for what is kept of their options."""
    ports = ["virtio-console,chardev=unix=/tmp/h", "virtserialport,name=a,chardev=pty"]
    yield {}
    yield {"name": "web", "memory": "1G,hugepages=2M,prealloc=on", "cpus": 3, "cpu": "max,-avx512f,+xsave"}
    yield {"memory": "64M,shared=on,dirty-ring=4096", "kernel": "/k", "initrd": "/i", "append": "a=b,c  d"}
    yield {"disk": ["/a.img,cache=none,id=d,queues=2", "/b,,c.img,readonly=on"], "cpus": 2}
    yield {"disk": "nbd://host/export", "net": ["tap,br=br0,mac=52:54:00:00:00:01", "user,hostfwd=tcp::2222-:22"]}
    yield {"device": ["virtio-rng", "virtio-balloon", "isa-debug-exit", "virtio-tablet"], "display": "bochs-display"}
    yield {"device": ports, "serial": "pty,link=/l"}
    yield {"vnc": "127.0.0.1:0", "metrics": "unix:/tmp/m", "vsock": "/tmp/v,guest-cid=7", "control": "/tmp/c"}
    yield {"reboot": False, "powerdown_timeout": "90s", "assist": "off", "serial": "tcp=127.0.0.1:0"}
