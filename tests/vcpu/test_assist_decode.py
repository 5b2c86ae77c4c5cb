"""The decoder: lengths, fields, and any bytes at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.assist_cpu import FakeCpu
from tvmm.vcpu.assist import Assist
from tvmm.vcpu.assist.cpu import PageFault
from tvmm.vcpu.assist.decode import MAX_LENGTH, DecodeError, Instruction, Memory, Truncated, decode
from tvmm.vcpu.assist.emulate import TABLE, emulate, look_up


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("9b", {"map": 0, "opcode": 0x9B}),
        ("0f 01 ca", {"map": 1, "opcode": 1, "mod": 3, "reg": 1, "rm": 2}),
        ("66 f3 0f b8 c1", {"prefix": 2, "operand_66": True, "reg": 0, "rm": 1}),
        ("f2 66 0f 38 f1 c1", {"map": 2, "prefix": 3, "operand_66": True}),
        ("f3 4d 0f b8 c1", {"wide": True, "reg": 8, "rm": 9, "rex": True}),
        ("66 0f 3a 0f c1 08", {"map": 3, "prefix": 1, "immediate": 8}),
        ("66 0f 73 d9 04", {"opcode": 0x73, "reg": 3, "immediate": 4}),
        (
            "c5 f9 ef c1",
            {"vex": True, "map": 1, "prefix": 1, "vvvv": 0, "reg": 0, "rm": 1, "vector_256": False},
        ),
        ("c4 41 35 ef c2", {"vex": True, "vvvv": 9, "reg": 8, "rm": 10, "vector_256": True}),
        ("c4 e2 f8 f2 c1", {"vex": True, "map": 2, "wide": True, "prefix": 0}),
        ("f0 48 0f c7 0f", {"lock": True, "reg": 1, "rm": 7}),
    ],
)
def test_fields(text: str, fields: dict[str, object]) -> None:
    """Prefixes, maps and operands of hand-picked encodings."""
    code = bytes.fromhex(text)
    insn = decode(code + b"\x90\x90", True)
    assert insn.length == len(code)
    assert {name: getattr(insn, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        ("f3 0f b8 03", Memory(3, None, 1, 0, False, None, 8)),
        ("f3 0f b8 05 78 56 34 12", Memory(None, None, 1, 0x12345678, True, None, 8)),
        ("f3 0f b8 04 25 00 00 00 80", Memory(None, None, 1, -0x80000000, False, None, 8)),
        ("f3 0f b8 44 24 f8", Memory(4, None, 1, -8, False, None, 8)),
        ("f3 43 0f b8 84 b5 00 01 00 00", Memory(13, 14, 4, 256, False, None, 8)),
        ("f3 42 0f b8 04 63", Memory(3, 12, 2, 0, False, None, 8)),
        ("65 f3 0f b8 03", Memory(3, None, 1, 0, False, "gs", 8)),
        ("3e f3 0f b8 03", Memory(3, None, 1, 0, False, None, 8)),
        ("67 f3 0f b8 03", Memory(3, None, 1, 0, False, None, 4)),
    ],
)
def test_memory_operands(text: str, memory: Memory) -> None:
    """All addressing forms of 64-bit code."""
    code = bytes.fromhex(text)
    insn = decode(code, True)
    assert insn.length == len(code)
    assert insn.memory == memory


def test_32_bit_code() -> None:
    """No REX, no RIP-relative operands; LES is told from VEX by the bits above the register."""
    assert decode(bytes.fromhex("f3 0f b8 05 78 56 34 12"), False).memory == Memory(
        None, None, 1, 0x12345678, False, None, 4
    )
    assert decode(bytes.fromhex("36 f3 0f b8 03"), False).memory == Memory(3, None, 1, 0, False, "ss", 4)
    assert decode(bytes.fromhex("c5 f9 ef c1"), False).vex
    for text in ("c5 39 ef c1", "67 f3 0f b8 03", "48 0f 01 ca"):
        with pytest.raises(DecodeError):
            decode(bytes.fromhex(text), False)


@pytest.mark.parametrize(
    "text",
    [
        "90",
        "48 66 0f ef c1",
        "48 48 0f 01 ca",
        "66 c5 f9 ef c1",
        "f0 c5 f9 ef c1",
        "48 c5 f9 ef c1",
        "c4 e4 79 00 c0",
    ],
)
def test_not_covered(text: str) -> None:
    """One-byte opcodes that KVM emulates, misplaced REX, VEX after its own prefixes, unknown maps."""
    with pytest.raises(DecodeError):
        decode(bytes.fromhex(text).ljust(MAX_LENGTH, b"\0"), True)


def test_length_is_limited() -> None:
    """Fifteen prefixes and no opcode are no instruction, and do not ask for more bytes either."""
    with pytest.raises(DecodeError) as caught:
        decode(b"\x66" * 40, True)
    assert not isinstance(caught.value, Truncated)


def test_every_row_can_be_reached() -> None:
    """No row of the table hides behind an earlier one with the same opcode."""
    for (vex, number, opcode, prefix), rows in TABLE.items():
        for row in rows:
            reg = row.field if row.field is not None else 0
            memory = (
                None if row.in_memory is False or row.register is not None else Memory(0, None, 1, 0, False, None, 8)
            )
            insn = Instruction(
                length=4, vex=vex, map=number, opcode=opcode, prefix=prefix, operand_66=False, lock=False,
                rex=False, wide=False, vector_256=False, vvvv=0, mod=0, reg=reg, rm=row.register or 0,
                memory=memory, immediate=0,
            )  # fmt: skip
            assert look_up(insn) is row


PLAUSIBLE = st.one_of(
    st.binary(max_size=20),
    st.tuples(
        st.sampled_from([b"", b"\x66", b"\xf2", b"\xf3", b"\xf0", b"\x65", b"\x67", b"\x66\x67"]),
        st.sampled_from([b"", b"\x40", b"\x48", b"\x4f"]),
        st.sampled_from([b"\x0f", b"\x0f\x38", b"\x0f\x3a", b"\xc5", b"\xc4", b"\xdb", b"\xd9"]),
        st.binary(max_size=12),
    ).map(b"".join),
)


@settings(deadline=None, max_examples=400)
@given(code=PLAUSIBLE, wide=st.booleans())
def test_any_bytes_decode_or_do_not(code: bytes, wide: bool) -> None:
    """Any bytes give an instruction within them or one of the two errors; more bytes do not change it."""
    try:
        insn = decode(code, wide)
    except Truncated:
        assert len(code) < MAX_LENGTH
        return
    except DecodeError:
        return
    assert 1 <= insn.length <= min(len(code), MAX_LENGTH)
    assert decode(code + b"\xff\xff", wide) == insn
    assert decode(code[: insn.length], wide) == insn
    if insn.length > 1:
        with pytest.raises(Truncated):
            decode(code[: insn.length - 1], wide)


@settings(deadline=None, max_examples=400)
@given(
    code=PLAUSIBLE,
    address=st.sampled_from((0x5000, 0x5001, 0x5040, 0xFFFF_FFFF_FFFF_FFFF, 1 << 63)),
    memory=st.binary(max_size=64),
    control=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.sampled_from((0, 3))),
)
def test_any_bytes_can_be_handled(
    code: bytes, address: int, memory: bytes, control: tuple[bool, bool, bool, int]
) -> None:
    """Whatever stands at RIP: handled, refused or an exception, and registers stay within their width."""
    cpu = FakeCpu((0x5000, bytearray(memory.ljust(4096, b"\x01"))), (0x1000, bytearray(code.ljust(64, b"\0"))))
    wide, task_switched, no_xsave, privilege = control
    cpu.regs.rip = 0x1000
    for register in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r15"):
        setattr(cpu.regs, register, address)
    cpu.sregs.cs.dpl = privilege
    cpu.sregs.cr0 |= 8 if task_switched else 0
    cpu.sregs.cr4 &= ~(1 << 18) if no_xsave else ~0
    if not wide:
        cpu.sregs.cs.l, cpu.sregs.cs.db = 0, 1
    before = dict(vars(cpu.regs))
    name = Assist().handle(cpu, code)
    if name is None:
        assert vars(cpu.regs) == before
        assert not cpu.injected
    for register, value in vars(cpu.regs).items():
        assert 0 <= value < 1 << 64, register
    assert len(cpu.image) == 4096


def test_operand_fault_leaves_all_as_it_was() -> None:
    """Every row whose memory operand faults raises #PF before it changes a register or the vectors."""
    tried = 0
    for (vex, number, opcode, prefix), rows in TABLE.items():
        for row in rows:
            if row.in_memory is False or row.register is not None or number == 0:
                continue
            cpu = FakeCpu()
            cpu.regs.rbx, cpu.regs.rip = 0x7F00_0000_0000, 0x1000
            before, image = dict(vars(cpu.regs)), cpu.image
            field = (row.field or 0) << 3 | 3
            wide = row.name in ("cmpxchg16b", "vpermq")
            maps = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")
            if vex:
                long_vector = row.name.startswith("vperm")
                code = bytes((0xC4, 0xE0 | number, wide << 7 | 0x78 | long_vector << 2 | prefix))
            else:
                code = (b"", b"\x66", b"\xf3", b"\xf2")[prefix] + (b"\x48" if wide else b"") + maps[number]
            code += bytes((opcode, field, 0x11))
            if row.name in ("vzeroupper", "emms"):
                continue
            with pytest.raises(PageFault):
                emulate(cpu, code)
            tried += 1
            assert vars(cpu.regs) == before, row.name
            assert cpu.image == image, row.name
    assert tried > 250
