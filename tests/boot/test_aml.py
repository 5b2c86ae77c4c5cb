"""AML terms: read back by a decoder of their own, and held against what the reference compiler makes of ASL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.acpica import compile_asl
from tvmm.boot import aml

HEADER_SIZE = 36

# --- numbers ---


def decode_length(data: bytes) -> tuple[int, int]:
    """A package length and the bytes it takes (ACPI 6.5, 20.2.4)."""
    more = data[0] >> 6
    if not more:
        return data[0] & 0x3F, 1
    assert not data[0] & 0x30
    return data[0] & 0xF | int.from_bytes(data[1 : 1 + more], "little") << 4, 1 + more


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.integers(0, (1 << 28) - 5),
        st.sampled_from([limit + step for limit in (1 << 6, 1 << 12, 1 << 20) for step in range(-5, 3)]),
    )
)
def test_package_length(content: int) -> None:
    """It counts itself, and no shorter form would do."""
    encoded = aml.package_length(content)
    assert decode_length(encoded) == (content + len(encoded), len(encoded))
    if len(encoded) > 1:
        shorter = len(encoded) - 1
        assert content + shorter >= 1 << (6 if shorter == 1 else 4 + 8 * (shorter - 1))


def test_package_length_has_an_end() -> None:
    """28 bits, the field's own 4 bytes included."""
    assert decode_length(aml.package_length((1 << 28) - 5)) == ((1 << 28) - 1, 4)
    with pytest.raises(ValueError, match="too much"):
        aml.package_length((1 << 28) - 4)


def decode_integer(data: bytes) -> int:
    """A constant (20.2.3), which has to be all of `data`."""
    constants = {b"\0": 0, b"\1": 1, b"\xff": (1 << 64) - 1}
    if data in constants:
        return constants[data]
    assert len(data) - 1 == {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}[data[0]]
    return int.from_bytes(data[1:], "little")


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 64).flatmap(lambda bits: st.integers(0, (1 << bits) - 1)))
def test_integer(value: int) -> None:
    """Every number comes back, from no more bytes than its size asks for."""
    encoded = aml.integer(value)
    assert decode_integer(encoded) == value
    assert len(encoded) <= 2 * max(1, (value.bit_length() + 7) // 8) + 1


# --- names and data ---


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("A", b"A___"),
        ("_SB", b"_SB_"),
        ("\\", b"\\\0"),
        ("^", b"^\0"),
        ("\\_S5", b"\\_S5_"),
        ("^^PCI0", b"^^PCI0"),
        ("_SB.PCI0", b"\x2e_SB_PCI0"),
        ("\\_SB.PCI0.ISA", b"\\\x2f\3_SB_PCI0ISA_"),
        (".".join(["ABCD"] * 255), b"\x2f\xff" + b"ABCD" * 255),
    ],
)
def test_name_string(path: str, encoded: bytes) -> None:
    """Segments are four bytes, prefixes stand before the count of them."""
    assert aml.name_string(path) == encoded


def test_text_and_buffers() -> None:
    """A string ends with NUL, a buffer says its size."""
    assert aml.string("ACPI0007") == b"\x0dACPI0007\0"
    assert aml.buffer(b"ab") == b"\x11\5\x0a\2ab"
    assert aml.buffer(b"") == b"\x11\2\0"


def test_eisa_ids() -> None:
    """The value that the specification gives for PNP0A03, and the letters at both ends."""
    assert aml.eisa_id("PNP0A03") == b"\x0c" + 0x030AD041.to_bytes(4, "little")
    assert aml.eisa_id("AAA0000") == b"\x0c\x04\x21\0\0"
    assert aml.eisa_id("ZZZFFFF") == b"\x0c\x6b\x5a\xff\xff"


WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty name": (lambda: aml.name_string(""), "empty"),
    "long segment": (lambda: aml.name_string("ABCDE"), "no name"),
    "empty segment": (lambda: aml.name_string("_SB..COM1"), "no name"),
    "digit first": (lambda: aml.name_string("0COM"), "no name"),
    "small letters": (lambda: aml.name_string("com1"), "no name"),
    "prefix inside": (lambda: aml.name_string("_SB.^COM"), "no name"),
    "long path": (lambda: aml.name_string(".".join(["A"] * 256)), "256 segments"),
    "negative": (lambda: aml.integer(-1), "2\\^64"),
    "65 bits": (lambda: aml.integer(1 << 64), "2\\^64"),
    "NUL in text": (lambda: aml.string("a\0"), "ASCII"),
    "no ASCII": (lambda: aml.string("ü"), "ASCII"),
    "long package": (lambda: aml.package(*range(256)), "256 elements"),
    "short id": (lambda: aml.eisa_id("PNP050"), "PNP050"),
    "id with small letters": (lambda: aml.eisa_id("pnp0501"), "pnp0501"),
    "id with no number": (lambda: aml.eisa_id("PNP0X01"), "PNP0X01"),
    "half a UUID": (lambda: aml.uuid("33db4d5b-1ff7-401c-9657"), "not a UUID"),
    "eight arguments": (lambda: aml.method("M", 8), "8 arguments"),
    "eighth argument": (lambda: aml.arg(7), "argument 7"),
    "IRQ 16": (lambda: aml.irq(16), "ISA interrupt 16"),
    "GSI of 33 bits": (lambda: aml.interrupt(1 << 32), "no interrupt"),
    "256 ports": (lambda: aml.io(0, 256), "256 ports"),
    "ports above 64 Ki": (lambda: aml.io(0xFFFF, 2), "16-bit"),
    "no bytes": (lambda: aml.memory32(0, 0), "32-bit"),
    "memory above 4 GiB": (lambda: aml.memory32(0xFFFF_F000, 0x1001), "32-bit"),
    "257 buses": (lambda: aml.bus_numbers(0, 0x1_0001), "16-bit"),
    "ports below 0": (lambda: aml.io_window(-1, 2), "16-bit"),
    "memory above 2^64": (lambda: aml.memory_window((1 << 64) - 1, 2), "64-bit"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_encoded_is_refused(what: str) -> None:
    """A `ValueError` that says what is wrong, in place of a table that kernels misread."""
    make, words = WRONG[what]
    with pytest.raises(ValueError, match=words):
        make()


# --- against the compiler ---

CRS = aml.resource_template
TERMS: list[tuple[str, bytes]] = [
    ("Name (AA00, Zero)", aml.name("AA00", 0)),
    ("Name (AA01, 1)", aml.name("AA01", 1)),
    ("Name (AA02, 2)", aml.name("AA02", 2)),
    ("Name (AA03, 0x100)", aml.name("AA03", 0x100)),
    ("Name (AA04, 0x12345)", aml.name("AA04", 0x12345)),
    ("Name (AA05, 0x123456789)", aml.name("AA05", 0x1_2345_6789)),
    ("Name (AA06, 0xFFFFFFFFFFFFFFFF)", aml.name("AA06", (1 << 64) - 1)),
    ('Name (AA07, "text")', aml.name("AA07", "text")),
    ('Name (AA08, EisaId ("PNP0C02"))', aml.name("AA08", aml.eisa_id("PNP0C02"))),
    (
        'Name (AA09, ToUUID ("33db4d5b-1ff7-401c-9657-7441c03dd766"))',
        aml.name("AA09", aml.uuid("33db4d5b-1ff7-401c-9657-7441c03dd766")),
    ),
    (
        'Name (AA10, Package () { 7, "x", Package () { 0xFFFF }, AA00 })',
        aml.name("AA10", aml.package(7, "x", aml.package(0xFFFF), aml.name_string("AA00"))),
    ),
    (f"Name (AA11, Buffer () {{ {', '.join(map(str, range(70)))} }})", aml.name("AA11", aml.buffer(bytes(range(70))))),
    (
        "Device (DEV0) { Name (_CRS, ResourceTemplate () { IO (Decode16, 0x60, 0x60, 1, 1) IRQNoFlags () { 12 } }) }",
        aml.device("DEV0", aml.name("_CRS", CRS(aml.io(0x60, 1), aml.irq(12)))),
    ),
    (
        "Name (RES0, ResourceTemplate () { Memory32Fixed (ReadWrite, 0xF0000000, 0x1000)"
        " Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 17 } })",
        aml.name("RES0", CRS(aml.memory32(0xF000_0000, 0x1000), aml.interrupt(17))),
    ),
    (
        "Name (RES1, ResourceTemplate () { WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode,"
        " 0, 0, 0xFF, 0, 0x100) })",
        aml.name("RES1", CRS(aml.bus_numbers(0, 256))),
    ),
    (
        "Name (RES2, ResourceTemplate () { WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,"
        " 0, 0x1000, 0xFFFF, 0, 0xF000) })",
        aml.name("RES2", CRS(aml.io_window(0x1000, 0xF000))),
    ),
    (
        "Name (RES3, ResourceTemplate () { DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed,"
        " NonCacheable, ReadWrite, 0, 0xC0000000, 0xFFFFFFFF, 0, 0x40000000) })",
        aml.name("RES3", CRS(aml.memory_window(0xC000_0000, 1 << 30))),
    ),
    (
        "Name (RES4, ResourceTemplate () { QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed,"
        " NonCacheable, ReadWrite, 0, 0xC0000000, 0x100000FFF, 0, 0x40001000) })",
        aml.name("RES4", CRS(aml.memory_window(0xC000_0000, (1 << 30) + 0x1000))),
    ),
    (
        "Method (MET0, 2, Serialized) { CreateDWordField (Arg0, 4, FLD0) If (Arg1 == 3) { FLD0 = FLD0 & 0x1F }"
        " Else { FLD0 = FLD0 | AA00 } If (FLD0 != 0x1234) { Return (Arg0) } Return (FLD0 & 2) }",
        aml.method(
            "MET0",
            2,
            aml.create_dword_field(aml.arg(0), 4, "FLD0"),
            aml.if_(
                aml.equal(aml.arg(1), 3),
                aml.and_(aml.name_string("FLD0"), 0x1F, aml.name_string("FLD0")),
            ),
            aml.else_(aml.or_(aml.name_string("FLD0"), aml.name_string("AA00"), aml.name_string("FLD0"))),
            aml.if_(aml.not_equal(aml.name_string("FLD0"), 0x1234), aml.return_(aml.arg(0))),
            aml.return_(aml.and_(aml.name_string("FLD0"), 2, b"\0")),
        ),
    ),
    (
        "Scope (DEV0) { Name (BB00, 5) Device (SUB0) { Name (BB01, Package () { BB00 }) } }",
        aml.scope(
            "DEV0",
            aml.name("BB00", 5),
            aml.device("SUB0", aml.name("BB01", aml.package(aml.name_string("BB00")))),
        ),
    ),
    (
        "Name (AA12, Package () { DEV0.SUB0, DEV0.SUB0.BB01 })",
        aml.name("AA12", aml.package(aml.name_string("DEV0.SUB0"), aml.name_string("DEV0.SUB0.BB01"))),
    ),
]


def test_the_compiler_makes_the_same(tmp_path: Path) -> None:
    """iasl's bytes for the ASL of each term are those of the builder."""
    source = "\n".join(asl for asl, _ in TERMS)
    compiled = compile_asl(f'DefinitionBlock ("", "DSDT", 2, "TVMM", "TEST", 1) {{ {source} }}', tmp_path, strict=False)
    at = HEADER_SIZE
    for asl, encoded in TERMS:
        assert compiled[at : at + len(encoded)] == encoded, asl
        at += len(encoded)
    assert at == len(compiled)
