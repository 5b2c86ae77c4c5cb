"""The control connection of version 1: each message, opening and reply in a file, and all that a source once said."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmm.migration.messages import (
    Absent,
    Absentees,
    Answer,
    Block,
    Cancel,
    Commit,
    Complete,
    Copies,
    Descriptors,
    Discarded,
    Failure,
    Goodbye,
    Grants,
    Hello,
    Image,
    ImageHashes,
    Images,
    Partial,
    Query,
    Ready,
    Received,
    Recover,
    Refuse,
    Rejoin,
    Resumed,
    RoundDone,
    Running,
    State,
    Stored,
    Wants,
    Watched,
    Welcome,
)
from tvmm.migration.wire import Kind, Opening, Reply, Security
from tvmm.state import Section

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MESSAGES", "OPENINGS", "RECORDED", "REPLIES", "SESSION", "TOKEN", "golden_bytes", "path_of"]

FOLDER = Path(__file__).parent / "control-1"
SESSION = bytes(range(16))
TOKEN = bytes(range(0x80, 0x90))

MESSAGES: Mapping[str, Any] = {
    "hello": Hello(
        SESSION,
        "web",
        (("ram", "64M"), ("disk0", "1G, virtio, höher")),
        b"cpu\x00\xff",
        (Block("pc.ram", 16384), Block("vga.vram", 4096)),
        64,
        "zstd",
        True,
    ),
    "hello-defaults": Hello(SESSION, "", (), b"", (), 1),
    "state": State(
        (Section("serial0", 1, 1, b"\x00state"), Section("virtio/disk0", 0xFFFF, 2, b"")),
        True,
        300,
        (b"h" * 32, b"i" * 32),
    ),
    "state-defaults": State((), False, 0),
    "commit": Commit(),
    "cancel": Cancel("the user wants it back"),
    "watched": Watched(3),
    "goodbye": Goodbye(),
    "query": Query(SESSION),
    "wants": Wants(("postcopy", "memfd")),
    "grants": Grants(("memfd",)),
    "images": Images((Image("disk0", 1 << 30, 4096, b"f" * 32, b"s" * 32), Image("höher", 512, 0, b"", b""))),
    "image-hashes": ImageHashes((b"h" * 32,)),
    "copies": Copies((0, 300)),
    "stored": Stored((1 << 32) - 1, 123_456_789),
    "descriptors": Descriptors(("pc.ram", "vga.vram")),
    "welcome": Welcome(1, TOKEN),
    "refuse": Refuse(("the destination lacks avx512f", "ram is 2M"), "start it with the options of the source"),
    "round-done": RoundDone((1 << 32) - 1, 123_456_789),
    "ready": Ready(1_000_000, 2_000_000),
    "running": Running(128),
    "failure": Failure("section serial0: it is damaged", "try again"),
    "answer-running": Answer("running"),
    "answer-abandoned": Answer("abandoned"),
    "answer-unknown": Answer("unknown"),
    "absent": Absent(1, 4096, b"\x81\x00\xff"),
    "absentees": Absentees(10),
    "discarded": Discarded(10),
    "partial": Partial(12),
    "complete": Complete(1000, 200_000),
    "recover": Recover(SESSION),
    "received": Received(1, 8, b"\x01"),
    "rejoin": Rejoin(TOKEN),
    "resumed": Resumed(),
}

OPENINGS = {
    "control": Opening(Kind.CONTROL, Security.PLAIN, 1, 1),
    "lane": Opening(Kind.LANE, Security.TLS, 1, 3, TOKEN, 63),
    "query": Opening(Kind.QUERY, Security.PAIR, 1, 0xFFFF),
    "storage": Opening(Kind.STORAGE, Security.PAIR, 1, 1, TOKEN),
    "screen": Opening(Kind.SCREEN, Security.TLS, 1, 1, TOKEN),
    "requests": Opening(Kind.REQUESTS, Security.PLAIN, 1, 1, TOKEN),
    "recover": Opening(Kind.RECOVER, Security.TLS, 1, 1, TOKEN),
    "ram": Opening(Kind.RAM, Security.PLAIN, 1, 1, TOKEN),
}

REPLIES = {reply.name.lower().replace("_", "-"): reply for reply in Reply}

RECORDED = ("control", "lane0", "lane1", "ram-sha256")
"""Of a whole migration: each connection from its opening on, and the hash of what RAM was in the end."""


def path_of(kind: str, name: str) -> Path:
    """`kind` is ``message``, ``opening``, ``reply`` or ``recorded``."""
    return FOLDER / f"{kind}-{name}.bin"


def golden_bytes(kind: str, name: str) -> bytes:
    """As they are out there."""
    return path_of(kind, name).read_bytes()
