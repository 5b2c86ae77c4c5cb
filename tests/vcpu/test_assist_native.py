"""Instruction assist against the processor that runs the tests: each row of the table, random operands.

Rows that user mode may not execute, or that depend on the machine, are tested elsewhere.
"""

from __future__ import annotations

import random

import pytest

from tests.support.assembler import Form, encode
from tests.support.assist_cpu import FakeCpu, initial_image
from tests.support.native import GENERAL, NativeCpu, State, host_features
from tvmm.vcpu.assist.cpu import CF, OF, SF, ZF
from tvmm.vcpu.assist.emulate import TABLE, Row, emulate

ALL_FLAGS = 0x8D5


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


NOT_HERE = _names("clac stac rdtscp rdpid invpcid verr verw xgetbv xsetbv xsave xsaveopt xsavec xsaves xrstor xrstors")
X87 = _names("fwait fnclex fninit fnstsw fnstcw fldcw fild emms ldmxcsr stmxcsr vldmxcsr vstmxcsr")
SIZED = _names("popcnt tzcnt lzcnt movbe crc32")
WIDE = SIZED | _names(
    "adcx adox movnti andn bextr blsr blsmsk blsi bzhi pdep pext mulx rorx shlx shrx sarx movd pinsrd pextrd "
    "vmovd vpinsrd vpextrd"
)
GENERAL_ONLY = _names("andn bextr blsr blsmsk blsi bzhi pdep pext mulx rorx shlx shrx sarx")

DEFINED_FLAGS = {
    **dict.fromkeys(_names("tzcnt lzcnt"), CF | ZF),
    **dict.fromkeys(_names("andn blsi blsr blsmsk bzhi"), CF | ZF | SF | OF),
    "bextr": CF | ZF | OF,
}

NEEDS = {
    "popcnt": "popcnt",
    "tzcnt": "bmi1",
    "lzcnt": "abm",
    "crc32": "sse4_2",
    "adcx": "adx",
    "adox": "adx",
    "movbe": "movbe",
    "cmpxchg16b": "cx16",
    "pclmulqdq": "pclmulqdq",
    "vpclmulqdq": "pclmulqdq",
    **dict.fromkeys(_names("andn bextr blsr blsmsk blsi"), "bmi1"),
    **dict.fromkeys(_names("bzhi pdep pext mulx rorx shlx shrx sarx"), "bmi2"),
}

ONLY_128 = _names(
    "vmovss vmovsd vmovlps vmovlpd vmovhps vmovhpd vmovd vmovq vpinsrw vpinsrb vpinsrd vpextrw "
    "vpextrb vpextrd "
    "vpclmulqdq vldmxcsr vstmxcsr"
)
ONLY_256 = _names(
    "vbroadcastsd vbroadcastf128 vbroadcasti128 vinsertf128 vinserti128 vextractf128 vextracti128 vperm2f128 "
    "vperm2i128 vpermq"
)
NO_FIRST_OPERAND = _names(
    "vmovups vmovupd vmovaps vmovapd vmovdqa vmovdqu vlddqu vmovntdqa vmovntps vmovntpd vmovntdq vmovd vmovq "
    "vpmovmskb vmovmskps vmovmskpd vpextrw vpextrb vpextrd vpshufd vpshuflw vpshufhw vpabsb vpabsw vpabsd "
    "vptest "
    "vzeroupper vpbroadcastb vpbroadcastw vpbroadcastd vpbroadcastq vbroadcastss vbroadcastsd vbroadcastf128 "
    "vbroadcasti128 vextractf128 vextracti128 vpermq rorx vldmxcsr vstmxcsr "
    "vpmovsxbw vpmovsxbd vpmovsxbq vpmovsxwd vpmovsxwq vpmovsxdq vpmovzxbw vpmovzxbd vpmovzxbq vpmovzxwd "
    "vpmovzxwq vpmovzxdq"
)
"""VEX forms with one source, whose VEX.vvvv must be all ones."""

FEATURES = host_features()


def _runs_here(name: str, vex: bool) -> bool:
    if name in NEEDS:
        return NEEDS[name] in FEATURES
    return "avx2" in FEATURES if vex else "sse4_2" in FEATURES


ROWS = [
    (key, row)
    for key, rows in TABLE.items()
    for row in rows
    if row.name not in NOT_HERE | X87 and _runs_here(row.name, key[0])
]


def _label(key: tuple[bool, int, int, int], row: Row) -> str:
    return f"{row.name}-{'vex.' if key[0] else ''}{key[3]}.{key[1]}.{key[2]:02x}"


@pytest.fixture(scope="module", name="native")
def _native() -> NativeCpu:
    return NativeCpu()


def _vector_lane(rng: random.Random) -> bytes:
    """Sixteen bytes, often with the values at which saturation and signs turn over."""
    if rng.random() < 0.5:
        return rng.randbytes(16)
    return bytes(rng.choice((0, 1, 0x7F, 0x80, 0x81, 0xFF)) for _ in range(16))


def _state(rng: random.Random) -> State:
    image = initial_image()
    for number in range(16):
        image[160 + 16 * number : 176 + 16 * number] = _vector_lane(rng)
        image[576 + 16 * number : 592 + 16 * number] = _vector_lane(rng)
    registers = tuple(rng.choice((rng.getrandbits(64), rng.getrandbits(16), 0, (1 << 64) - 1)) for _ in range(16))
    data = b"".join(_vector_lane(rng) for _ in range(256))
    return State(registers, 0x202 | rng.getrandbits(12) & ALL_FLAGS, bytes(image), data)


def _one_source(name: str, opcode: int, in_memory: bool) -> bool:
    scalar_or_store = name in ("vmovss", "vmovsd") or opcode in (0x13, 0x17)
    return name in NO_FIRST_OPERAND or (in_memory and scalar_or_store)


def _form(key: tuple[bool, int, int, int], row: Row, rng: random.Random, in_memory: bool) -> Form:
    vex, number, opcode, prefix = key
    usable = [n for n in range(16) if n != 4]
    long_vector = vex and row.name not in ONLY_128 | GENERAL_ONLY and rng.random() < 0.5
    reg = row.field if row.field is not None else rng.choice(usable)
    if row.field is not None and rng.random() < 0.5 and not vex:
        reg |= 8
    wide = row.name in WIDE and rng.random() < 0.5
    base = rng.choice((3, 5, 13)) if in_memory else None
    return Form(
        vex,
        number,
        opcode,
        prefix,
        reg,
        rm=row.register if row.register is not None else rng.choice(usable),
        base=base,
        index_register=rng.choice((None, 6, 14)) if in_memory else None,
        scale=rng.choice((1, 2, 4, 8)),
        displacement=rng.choice((-64, 0, 64, 1024)),
        wide=wide or row.name in ("vpermq", "cmpxchg16b"),
        operand_66=row.name in SIZED and prefix != 1 and not wide and rng.random() < 0.3,
        vector_256=long_vector or row.name in ONLY_256,
        vvvv=0 if _one_source(row.name, opcode, in_memory) else rng.choice(usable),
        immediate=rng.getrandbits(8) if number == 3 or opcode in (0x70, 0x71, 0x72, 0x73, 0xC4, 0xC5, 0xC6) else None,
    )


def _with_operand(state: State, form: Form, address: int, rng: random.Random) -> State:
    """The registers such that a memory operand lies at `address`."""
    if form.base is None:
        return state
    registers = list(state.registers)
    offset = form.displacement
    if form.index_register is not None:
        registers[form.index_register] = rng.randrange(4) * 32
        offset += registers[form.index_register] * form.scale
    registers[form.base] = address - offset
    return state._replace(registers=tuple(registers))


def _emulated(native: NativeCpu, code: bytes, state: State) -> tuple[str | None, State]:
    data = bytearray(state.data)
    cpu = FakeCpu((native.data_address, data))
    for register, value in zip(GENERAL, state.registers, strict=True):
        setattr(cpu.regs, register, value)
    cpu.regs.rip, cpu.regs.rflags = native.instruction_address, state.flags
    cpu.image = state.image
    name = emulate(cpu, code)
    assert cpu.regs.rip == native.instruction_address + len(code)
    registers = tuple(getattr(cpu.regs, register) for register in GENERAL)
    return name, State(registers, cpu.regs.rflags, cpu.image, bytes(data))


def _vectors(image: bytes) -> tuple[bytes, bytes]:
    """XMM registers and the upper halves; components in their initial state are zero."""
    low = image[160:416] if image[512] & 2 else bytes(256)
    high = image[576:832] if image[512] & 4 else bytes(256)
    return low, high


def _compare(native: NativeCpu, code: bytes, state: State, name: str, flags: int) -> State:
    expected = native.run(code, state)
    done, got = _emulated(native, code, state)
    shown = f"{name}: {code.hex(' ')}"
    assert done == name, shown
    for number, register in enumerate(GENERAL):
        if number != 4:
            assert got.registers[number] == expected.registers[number], f"{shown}: {register}"
    assert got.flags & flags == expected.flags & flags, shown
    assert _vectors(got.image) == _vectors(expected.image), shown
    assert got.image[24:28] == expected.image[24:28], shown
    assert got.data == expected.data, shown
    return expected


@pytest.mark.parametrize(("key", "row"), ROWS, ids=[_label(*row) for row in ROWS])
def test_as_on_the_processor(native: NativeCpu, key: tuple[bool, int, int, int], row: Row) -> None:
    """Registers, defined flags, vectors and memory are as the processor leaves them."""
    rng = random.Random(_label(key, row))
    for turn in range(10):
        in_memory = turn % 2 == 0 if row.in_memory is None and row.register is None else bool(row.in_memory)
        if key[2] == 0x77:
            code, state = bytes.fromhex("c5f877" if turn % 2 else "c5fc77"), _state(rng)
        else:
            form = _form(key, row, rng, in_memory)
            state = _with_operand(_state(rng), form, native.data_address + 32 * rng.randrange(100), rng)
            code = encode(form)
        if row.name == "cmpxchg16b" and turn % 3:
            state = _with_match(native, form, state)
        _compare(native, code, state, row.name, DEFINED_FLAGS.get(row.name, ALL_FLAGS))


def _with_match(native: NativeCpu, form: Form, state: State) -> State:
    """RDX:RAX hold what memory does, so that the exchange takes place."""
    index = state.registers[form.index_register] * form.scale if form.index_register is not None else 0
    assert form.base is not None
    at = state.registers[form.base] + index + form.displacement - native.data_address
    registers = list(state.registers)
    registers[0] = int.from_bytes(state.data[at : at + 8], "little")
    registers[2] = int.from_bytes(state.data[at + 8 : at + 16], "little")
    return state._replace(registers=tuple(registers))


ENCODINGS = {
    "f3 48 0f b8 05 {distance}": "popcnt",
    "66 f3 0f b8 c1": "popcnt",
    "2e f3 0f b8 03": "popcnt",
    "f2 0f 38 f0 c4": "crc32",
    "f2 0f 38 f0 f7": "crc32",
    "66 f2 0f 38 f1 c1": "crc32",
    "f0 48 0f c7 0b": "cmpxchg16b",
    "66 0f ef 05 {distance}": "pxor",
    "66 0f 38 f0 4b 07": "movbe",
    "c5 f9 ef 05 {distance}": "vpxor",
    "c4 e3 7b f0 05 {distance} 11": "rorx",
}
"""Encodings that the generator does not make; {distance} leads from their end to the data."""


@pytest.mark.parametrize("text", ENCODINGS)
def test_encodings(native: NativeCpu, text: str) -> None:
    """RIP-relative operands, byte registers without REX, prefixes that do nothing, LOCK."""
    address = native.data_address + 64
    length = len(bytes.fromhex(text.format(distance="00000000")))
    distance = address - native.instruction_address - length
    code = bytes.fromhex(text.format(distance=distance.to_bytes(4, "little").hex()))
    state = _state(random.Random(text))
    registers = list(state.registers)
    registers[3] = address
    _compare(native, code, state._replace(registers=tuple(registers)), ENCODINGS[text], ALL_FLAGS)


X87_CODES = {
    "9b": "fwait",
    "db e2": "fnclex",
    "db e3": "fninit",
    "df e0": "fnstsw",
    "dd 7b 08": "fnstsw",
    "d9 7b 08": "fnstcw",
    "d9 6b 40": "fldcw",
    "db 43 08": "fild",
    "0f 77": "emms",
    "0f ae 53 44": "ldmxcsr",
    "0f ae 5b 08": "stmxcsr",
    "c5 f8 ae 53 44": "vldmxcsr",
    "c5 f8 ae 5b 08": "vstmxcsr",
}


@pytest.mark.parametrize("text", X87_CODES)
def test_x87_control(native: NativeCpu, text: str) -> None:
    """Control, status, tags, register stack, MXCSR and memory are as the processor leaves them."""
    rng = random.Random(text)
    for _ in range(10):
        state = _state(rng)
        image = bytearray(state.image)
        # All exceptions masked, or a pending one would be raised by the code around the instruction.
        image[0:2] = (0x37F | rng.getrandbits(2) << 8 | rng.getrandbits(2) << 10).to_bytes(2, "little")
        image[2:4] = (rng.getrandbits(6) | rng.getrandbits(3) << 11 | rng.getrandbits(1) << 14).to_bytes(2, "little")
        image[4] = rng.getrandbits(8)
        for number in range(8):
            image[32 + 16 * number : 42 + 16 * number] = rng.randbytes(10)
        data = bytearray(state.data)
        data[64:66] = (0x37F | rng.getrandbits(2) << 10).to_bytes(2, "little")
        data[68:72] = (rng.getrandbits(16) & 0xFFFF | 0x1F80).to_bytes(4, "little")
        registers = list(state.registers)
        registers[3] = native.data_address
        state = State(tuple(registers), state.flags, bytes(image), bytes(data))
        expected = native.run(bytes.fromhex(text), state)
        name, got = _emulated(native, bytes.fromhex(text), state)
        assert name == X87_CODES[text]
        assert got.registers[0] == expected.registers[0]
        assert got.data == expected.data
        assert got.image[24:28] == expected.image[24:28]
        if expected.image[512] & 1:
            assert got.image[0:5] == expected.image[0:5]
            assert _in_use(got.image) == _in_use(expected.image)


def _in_use(image: bytes) -> list[bytes]:
    """The x87 registers that are not empty, in stack order. The tags are in physical order."""
    top = image[3] >> 3 & 7
    return [image[32 + 16 * n : 42 + 16 * n] for n in range(8) if image[4] >> (n + top & 7) & 1]


XSAVE_CODES = {
    "48 0f ae 23": ("xsave", "xsave"),
    "48 0f ae 33": ("xsaveopt", "xsaveopt"),
    "48 0f c7 23": ("xsavec", "xsavec"),
}


def _any_component(image: bytes) -> dict[str, bytes]:
    """What an XSAVE image means: a component that is marked as initial is zero."""
    states = image[512]
    return {
        "control": image[0:24] if states & 1 else (0x37F).to_bytes(2, "little") + bytes(22),
        "stack": image[32:160] if states & 1 else bytes(128),
        "mxcsr": image[24:28],
        "xmm": image[160:416] if states & 2 else bytes(256),
        "ymm": image[576:832] if states & 4 else bytes(256),
    }


def _mixed_image(rng: random.Random) -> bytes:
    """A state with some of its three components initial."""
    image = bytearray(_state(rng).image)
    image[32:42] = rng.randbytes(10)
    image[512] = states = rng.choice((0, 1, 2, 3, 5, 6, 7))
    if not states & 1:
        image[32:160] = bytes(128)
    if not states & 2:
        image[160:416] = bytes(256)
    if not states & 4:
        image[576:832] = bytes(256)
    return bytes(image)


@pytest.mark.parametrize("text", [text for text, (_, need) in XSAVE_CODES.items() if need in FEATURES])
def test_xsave_as_on_the_processor(native: NativeCpu, text: str) -> None:
    """What XSAVE, XSAVEOPT and XSAVEC leave in memory means the same as what the processor leaves there."""
    rng = random.Random(text)
    for _ in range(30):
        mask = rng.choice((1, 2, 3, 4, 5, 6, 7))
        image = _mixed_image(rng)
        registers = [mask if n == 0 else native.data_address if n == 3 else 0 for n in range(16)]
        # An area as an earlier XSAVE left it, with a header that this one has to merge with.
        data = bytearray(rng.randbytes(4096))
        data[512:576] = bytes(64)
        data[512] = rng.getrandbits(3)
        state = State(tuple(registers), 0x202, image, bytes(data))
        expected = native.run(bytes.fromhex(text), state)
        name, got = _emulated(native, bytes.fromhex(text), state)
        assert name == XSAVE_CODES[text][0]
        assert got.data[512:576] == expected.data[512:576], (mask, image[512])
        used = expected.data[512] & mask if name != "xsave" else mask
        for bit, start, end in ((1, 0, 6), (1, 32, 160), (2, 160, 416), (4, 576, 832)):
            if used & bit:
                assert got.data[start:end] == expected.data[start:end], (mask, image[512], bit)
        assert got.data[24:28] == expected.data[24:28]


@pytest.mark.parametrize("compacted", [False, True] if "xsavec" in FEATURES else [False])
def test_xrstor_as_on_the_processor(native: NativeCpu, compacted: bool) -> None:
    """XRSTOR of either format leaves the state that the processor leaves."""
    rng = random.Random(compacted)
    for _ in range(30):
        area = bytearray(4096)
        area[:832] = _mixed_image(rng)[:832]
        area[28:32] = bytes(4)
        if compacted:
            area[520:528] = (rng.choice((3, 7)) | 1 << 63).to_bytes(8, "little")
            area[512] &= area[520]
        mask = rng.choice((1, 2, 3, 4, 5, 6, 7))
        registers = [mask if n == 0 else native.data_address if n == 3 else 0 for n in range(16)]
        state = State(tuple(registers), 0x202, _mixed_image(rng), bytes(area))
        code = bytes.fromhex("48 0f ae 2b")
        expected = native.run(code, state)
        name, got = _emulated(native, code, state)
        assert name == "xrstor"
        assert _any_component(got.image) == _any_component(expected.image), (mask, area[512])
