"""Kernels out of a seed: valid wrappers around random code, damaged wrappers, and files that are no kernel at all.

Random code ends in a triple fault after a few instructions unless somebody catches its exceptions. So most kernels
bring an interrupt table whose handler sends the code on, to another random place, and some drop to user mode, which
hosts without hardware virtualization run natively.
"""

from __future__ import annotations

from random import Random
from struct import pack
from typing import NamedTuple

from tests.support.images import Load, bzimage, elf64, xen_note
from tests.support.random_code import SPIN, instructions, noise

__all__ = ["KINDS", "Sample", "sample"]

KINDS = ("pvh", "linux64", "user", "bzimage", "mutated", "noise")
"""The first four run; a mutated one may; noise is refused, unless chance makes it a kernel."""

BASE = 0x10_0000
BODY_SIZE = 0x1000
TABLES = BASE + 0x2000
IDT = TABLES
GDT = TABLES + 0x1000
HANDLERS = TABLES + 0x1200
POINTERS = TABLES + 0x1300
STATE = TABLES + 0x1400
STACK = TABLES + 0x2000
TSS = TABLES + 0x2000
PAGE_TABLES = TABLES + 0x5000

ERROR_CODES = frozenset((8, 10, 11, 12, 13, 14, 17, 21, 29, 30))
"""Exceptions that push an error code (Intel SDM vol. 3, table 6-1)."""

MULTIPLIER, INCREMENT = 1664525, 1013904223


class Sample(NamedTuple):
    """A kernel file, and the options of `MachineConfig.parse` that go with it."""

    kind: str
    image: bytes
    options: dict[str, str]


def sample(seed: int) -> Sample:
    """The kernel of `seed`: always the same bytes."""
    random = Random(seed)
    kind = KINDS[seed % len(KINDS)]
    options = {"memory": random.choice(("8M", "16M", "64M")), "cpus": random.choice(("1", "1", "2", "3"))}
    options["reboot"] = random.choice(("on", "off"))
    if kind == "pvh":
        image = _pvh(random)
    elif kind == "linux64":
        image = _linux64(random, user=False)
        options["entry"] = "linux64"
    elif kind == "user":
        image = _linux64(random, user=True)
        options["entry"] = "linux64"
    elif kind == "bzimage":
        image = _bzimage(random)
        options["decompress"] = "off"
    elif kind == "mutated":
        image = _mutated(random)
    else:
        image = _noise_file(random)
    return Sample(kind, image, options)


def _body(random: Random, wide: bool) -> bytes:
    """The random code; what runs off its end spins."""
    style = random.choice(("noise", "wild", "tame", "tame", "tame"))
    if style == "noise":
        code = noise(random, BODY_SIZE)
    else:
        code = instructions(random, BODY_SIZE, wide=wide, wild=style == "wild")
    return code[: BODY_SIZE - len(SPIN)] + SPIN


def _pvh(random: Random) -> bytes:
    """32-bit code without paging, caught or not."""
    body = _body(random, False)
    loads = [Load(BASE + 0x1000, body)]
    start = BASE + 0x1000
    if random.random() < 0.8:
        prologue = b"\xbc" + pack("<I", STACK)  # mov esp
        prologue += b"\x0f\x01\x1d" + pack("<I", POINTERS)  # lidt
        prologue += b"\xe9" + pack("<i", start - (BASE + len(prologue) + 5))
        loads = [Load(BASE, prologue), *loads, *_tables32(random)]
        start = BASE
    return elf64(loads, entry=start, notes=xen_note(start))


def _tables32(random: Random) -> list[Load]:
    """IDT of 32-bit interrupt gates through the boot loader's code segment, and the handlers."""
    handlers = _handlers(random, wide=False)
    gates = b"".join(
        pack("<HHBBH", target & 0xFFFF, 0x10, 0, 0x8E, target >> 16)
        for target in (HANDLERS + (64 if vector in ERROR_CODES else 0) for vector in range(256))
    )
    return [
        Load(IDT, gates),
        Load(HANDLERS, handlers),
        Load(POINTERS, pack("<HI", len(gates) - 1, IDT)),
        Load(STATE, pack("<Q", random.getrandbits(31)), STACK - STATE),
    ]


def _linux64(random: Random, *, user: bool) -> bytes:
    """64-bit code with an identity mapping; with `user`, at CPL 3 and with every port allowed."""
    start = BASE + 0x1000
    body = _body(random, True)
    if not user and random.random() < 0.2:
        return elf64([Load(start, body)], entry=start)
    loads = _tables64(random)
    if user:
        loads += _user_tables()
    prologue = _prologue_user() if user else _prologue64(BASE)
    return elf64([Load(BASE, prologue), Load(start, body), *loads], entry=BASE)


def _bzimage(random: Random) -> bytes:
    """The same in Linux's wrapper, not to be unpacked: NOPs from the 64-bit entry to a payload that is code."""
    payload = bytearray()
    first = BASE + 0x400
    for load in (Load(first, _prologue64(first)), Load(BASE + 0x1000, _body(random, True)), *_tables64(random)):
        payload += bytes(load.address - first - len(payload)) + load.data
    return bzimage(bytes(payload), pref_address=BASE, init_size=0x1_0000)


def _prologue64(address: int) -> bytes:
    """At `address`: stack and interrupt table, then to the body."""
    code = b"\x48\xc7\xc4" + pack("<I", STACK)  # mov rsp
    code += b"\x0f\x01\x1c\x25" + pack("<I", POINTERS)  # lidt
    return code + b"\xe9" + pack("<i", BASE + 0x1000 - (address + len(code) + 5))


def _prologue_user() -> bytes:
    """Stack, tables and page tables of our own, then to the body at CPL 3."""
    code = b"\x48\xc7\xc4" + pack("<I", STACK)  # mov rsp
    code += b"\x0f\x01\x1c\x25" + pack("<I", POINTERS)  # lidt
    code += b"\x0f\x01\x14\x25" + pack("<I", POINTERS + 16)  # lgdt
    code += b"\xb8" + pack("<I", PAGE_TABLES) + b"\x0f\x22\xd8"  # mov eax; mov cr3
    code += b"\x66\xb8\x28\x00\x0f\x00\xd8"  # mov ax, 0x28; ltr
    code += b"\x6a\x1b\x68" + pack("<I", STACK - 0x400)  # push ss; push rsp
    code += b"\x68\x02\x02\x00\x00\x6a\x23\x68" + pack("<I", BASE + 0x1000)  # push rflags, IF set; push cs; push rip
    return code + b"\x48\xcf"  # iretq


def _tables64(random: Random) -> list[Load]:
    """IDT, handlers and pointers. Code segment 0x10 is the boot loader's, and also that of `_user_tables`."""
    gates = b"".join(
        pack("<HHBBHII", target & 0xFFFF, 0x10, 0, 0xEE if vector in (3, 4) else 0x8E, target >> 16, 0, 0)
        for vector, target in (
            (vector, HANDLERS + (64 if vector in ERROR_CODES else 0)) for vector in range(256)
        )
    )
    pointers = pack("<HQ6xHQ", len(gates) - 1, IDT, 0x37, GDT)
    return [
        Load(IDT, gates),
        Load(HANDLERS, _handlers(random, wide=True)),
        Load(POINTERS, pointers),
        Load(STATE, pack("<Q", random.getrandbits(31)), STACK - STATE),
    ]


def _user_tables() -> list[Load]:
    """GDT with user segments and a TSS whose I/O bitmap allows all ports; 4 GiB mapped for user mode."""
    limit = 0x68 + 0x2000
    tss = limit | (TSS & 0xFF_FFFF) << 16 | 0x89 << 40 | (TSS >> 24) << 56
    descriptors = (0, 0, _segment(0x9B, wide=True), _segment(0xF3, wide=False), _segment(0xFB, wide=True), tss, 0)
    state = bytearray(0x68)
    state[4:12] = pack("<Q", STACK)
    state[0x66:0x68] = pack("<H", 0x68)
    level3, level2 = PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000
    tables = pack("<Q4088x", level3 | 7) + pack("<4Q4064x", *(level2 + 0x1000 * i | 7 for i in range(4)))
    tables += pack("<2048Q", *(address | 0x87 for address in range(0, 4 << 30, 2 << 20)))
    return [
        Load(GDT, pack(f"<{len(descriptors)}Q", *descriptors)),
        Load(TSS, bytes(state) + bytes(0x2000) + b"\xff"),
        Load(PAGE_TABLES, tables),
    ]


def _segment(access: int, *, wide: bool) -> int:
    """A flat segment descriptor with the given access byte."""
    return 0xFFFF | access << 40 | (0xAF if wide else 0xCF) << 48


def _handlers(random: Random, *, wide: bool) -> bytes:
    """Two handlers, 64 bytes apart: without an error code and with one.

    Either the next byte is tried, or the next place out of a linear congruential generator.
    """
    chance = random.random()
    if wide:
        go_on = b"\x48\xff\x04\x24" if chance < 0.4 else _elsewhere(wide) + b"\x48\x89\x44\x24\x08\x58"
        plain, drop = go_on + b"\x48\xcf", b"\x48\x83\xc4\x08"  # inc [rsp], or: mov [rsp + 8], rax; pop rax. iretq
    else:
        # Not by IRET: emulators leave it out of protected mode.
        go_on = b"\x58\x40" if chance < 0.4 else _elsewhere(wide) + b"\x59\x59"  # pop eax; inc eax, or: pop ecx twice
        enable = b"\xfb" if random.random() < 0.3 else b""
        plain, drop = go_on + b"\x83\xc4\x08" + enable + b"\xff\xe0", b"\x83\xc4\x04"  # add esp, 8; sti; jmp eax
    assert len(plain) + len(drop) <= 64
    return plain.ljust(64, b"\xcc") + drop + plain


def _elsewhere(wide: bool) -> bytes:
    """Saves EAX on the stack and puts the next random place of the body there."""
    absolute = b"\x04\x25" if wide else b"\x05"
    code = b"\x50\x69" + absolute + pack("<II", STATE, MULTIPLIER)  # push rax; imul eax, [STATE], imm
    code += b"\x05" + pack("<I", INCREMENT) + b"\x89" + absolute + pack("<I", STATE)  # add; mov [STATE], eax
    code += b"\xc1\xe8\x08\x25" + pack("<I", BODY_SIZE - 1)  # shr eax, 8; and
    return code + b"\x05" + pack("<I", BASE + 0x1000)  # add


def _mutated(random: Random) -> bytes:
    """A good kernel with its headers damaged, or cut off."""
    image = bytearray(random.choice((_pvh(random), _linux64(random, user=False), bzimage(_body(random, True)))))
    for _ in range(random.randrange(1, 6)):
        at = random.randrange(min(len(image), random.choice((64, 512, 2048))))
        image[at : at + 1] = random.choice((b"\0", b"\xff", b"\x80", random.randbytes(1)))
    if random.random() < 0.2:
        del image[random.randrange(len(image)) :]
    return bytes(image)


def _noise_file(random: Random) -> bytes:
    """Random bytes, with or without a magic number in front."""
    length = random.choice((0, 1, 63, 64, 511, 4096, random.randrange(1 << 17)))
    head = random.choice((b"", b"\x7fELF", b"\x7fELF\2\1\1", b"\x7fELF\1\1\1", b"MZ", b"\x1f\x8b\x08", b"BZh9"))
    body = bytearray(head + random.randbytes(length))
    if random.random() < 0.3 and len(body) > 0x210:
        body[0x1FE:0x200] = b"\x55\xaa"
        body[0x202:0x208] = b"HdrS\x0f\x02"
    return bytes(body)
