"""Exits in words: each way for a guest to crash has its line, and the report holds what one needs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tvmm.vcpu.exits import EXIT_NAMES, crash_title, format_registers, instruction_bytes


@pytest.mark.parametrize(
    ("reason", "words", "suberror", "expected"),
    [
        (8, [0], 0, "triple fault"),
        (9, [0x80000021, 0], 0, "refused to enter the guest (hardware reason 0x80000021)"),
        (9, [], 0, "hardware reason 0x0"),
        (17, [0], 1, "cannot emulate"),
        (17, [0], 2, "simultaneous exceptions"),
        (17, [0], 77, "not known to tvmm"),
        (3, [0], 0, "unexpected exit 3 (KVM_EXIT_HYPERCALL)"),
        (999, [0], 0, "unexpected exit 999 (KVM_EXIT_?)"),
    ],
)
def test_titles(reason: int, words: list[int], suberror: int, expected: str) -> None:
    """One line says what happened."""
    title = crash_title(reason, words, suberror)
    assert expected in title
    assert "\n" not in title


def test_every_exit_reason_has_a_title() -> None:
    """No reason that KVM may give makes the report fail."""
    for reason in [*EXIT_NAMES, 12345]:
        assert crash_title(reason, [], 0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([1, 0x0000_0000_CA01_0F03, 0], b"\x0f\x01\xca"),
        ([1, 0x0706_0504_0302_010F, 0x0F0E_0D0C_0B0A_0908], bytes(range(1, 16))),
        ([1, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF], b"\xff" * 15),
        ([0, 0x03, 0], b""),
        ([1], b""),
        ([], b""),
    ],
)
def test_instruction_bytes(data: list[int], expected: bytes) -> None:
    """The instruction is taken out of KVM's data words, never more than 15 bytes."""
    assert instruction_bytes(data) == expected


def test_registers_are_all_there() -> None:
    """General, segment and control registers, each with its value."""
    names = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags".split()
    regs = SimpleNamespace(**{name: 0x1000 + index for index, name in enumerate(names)})
    segment = SimpleNamespace(selector=0x10, base=0, limit=0xFFFFFFFF, type=11, dpl=0, l=1, db=0)
    table = SimpleNamespace(base=0x500, limit=0x1F)
    sregs = SimpleNamespace(
        **dict.fromkeys(("cs", "ss", "ds", "es", "fs", "gs", "tr"), segment),
        gdt=table,
        idt=table,
        **{"cr0": 1, "cr2": 2, "cr3": 3, "cr4": 4, "efer": 5},
    )
    text = format_registers(regs, sregs)
    for index, name in enumerate(names):
        assert name in text
        assert f"{0x1000 + index:016x}" in text
    assert "efer 5" in text
    assert "64-bit" in text
