"""ACPI Machine Language (ACPI 6.5, chapter 20), as much of it as tvmm's own tables are written in.

Each function returns the encoding of one term, and terms nest, so that code reads like the ASL it stands for::

    device("RTC", name("_HID", eisa_id("PNP0B00")), name("_CRS", resource_template(io(0x70, 2), irq(8))))

Where a value is asked for (`Data`), an `int` becomes an integer, a `str` a string, and `bytes` are a term that is
encoded already: a reference is `name_string("_SB.PCI0")`. All encodings are the shortest, as a compiler makes
them: what `iasl` compiles from its own disassembly is the same bytes again.

Rejected: a tree of objects that is encoded at the end, which would be twice the code for tables that are written
once; and a compiled table in the package, which could not follow the machine's configuration.
"""

from __future__ import annotations

from struct import pack

__all__ = [
    "Data",
    "and_",
    "arg",
    "buffer",
    "bus_numbers",
    "create_dword_field",
    "device",
    "eisa_id",
    "else_",
    "equal",
    "if_",
    "integer",
    "interrupt",
    "io",
    "io_window",
    "irq",
    "memory32",
    "memory_window",
    "method",
    "name",
    "name_string",
    "not_equal",
    "notify",
    "or_",
    "package",
    "package_length",
    "resource_template",
    "return_",
    "scope",
    "string",
    "uuid",
]

Data = int | str | bytes

_SEGMENT_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789"
_HEX_DIGITS = "0123456789ABCDEF"

# --- names and data (20.2.2, 20.2.3) ---


def name_string(path: str) -> bytes:
    r"""A path in the namespace: segments of 1 to 4 characters between dots, behind ``\`` or any number of ``^``.

    Raises `ValueError` for a path that cannot be.
    """
    rest = path.lstrip("^") if path[:1] != "\\" else path[1:]
    prefix = path[: len(path) - len(rest)].encode("ascii")
    if not rest:
        if not prefix:
            raise ValueError("a name is empty")
        return prefix + b"\0"
    segments = [_segment(part) for part in rest.split(".")]
    count = len(segments)
    if count > 255:
        raise ValueError(f"a path of {count} segments; 255 can be encoded")
    head = b"" if count == 1 else b"\x2e" if count == 2 else bytes((0x2F, count))
    return prefix + head + b"".join(segments)


def _segment(part: str) -> bytes:
    """One name of 1 to 4 characters, filled up with underscores."""
    if not 1 <= len(part) <= 4 or part.strip(_SEGMENT_CHARACTERS) or part[0].isdigit():
        raise ValueError(f"{part!r} is no name in ACPI")
    return part.ljust(4, "_").encode("ascii")


def integer(value: int) -> bytes:
    """A number of up to 64 bits; raises `ValueError` for others."""
    if value < 0 or value >> 64:
        raise ValueError(f"{value} is not in 0 to 2^64 - 1")
    if value <= 1:
        return bytes((value,))
    if value <= 0xFF:
        return bytes((0x0A, value))
    if value <= 0xFFFF:
        return pack("<BH", 0x0B, value)
    if value <= 0xFFFF_FFFF:
        return pack("<BI", 0x0C, value)
    if value == 0xFFFF_FFFF_FFFF_FFFF:
        return b"\xff"
    return pack("<BQ", 0x0E, value)


def string(text: str) -> bytes:
    """Text in ASCII without NUL; raises `ValueError` for other text."""
    if "\0" in text or not text.isascii():
        raise ValueError(f"{text!r} is not ASCII without NUL")
    return b"\x0d" + text.encode("ascii") + b"\0"


def _data(value: Data) -> bytes:
    if isinstance(value, bytes):
        return value
    return string(value) if isinstance(value, str) else integer(value)


def buffer(content: bytes) -> bytes:
    """Bytes as they are."""
    return b"\x11" + _with_length(integer(len(content)) + content)


def package(*elements: Data) -> bytes:
    """A list of up to 255 values; raises `ValueError` for more."""
    if len(elements) > 255:
        raise ValueError(f"a package of {len(elements)} elements; 255 can be encoded")
    return b"\x12" + _with_length(bytes((len(elements),)) + b"".join([_data(element) for element in elements]))


def eisa_id(text: str) -> bytes:
    """A Plug and Play id like ``PNP0501``, compressed to 32 bits; raises `ValueError` if it is not of that form."""
    vendor, product = text[:3], text[3:]
    letters = [ord(letter) - 0x40 for letter in vendor]
    if len(text) != 7 or not all(1 <= letter <= 26 for letter in letters) or product.strip(_HEX_DIGITS):
        raise ValueError(f"{text!r} is not three letters and four hexadecimal digits")
    first, second, third = letters
    return b"\x0c" + pack(">HH", first << 10 | second << 5 | third, int(product, 16))


def uuid(text: str) -> bytes:
    """A buffer with a UUID as ACPI's ToUUID lays it out: the first three groups have their low byte first."""
    groups = [bytes.fromhex(group) for group in text.split("-")]
    if [len(group) for group in groups] != [4, 2, 2, 2, 6]:
        raise ValueError(f"{text!r} is not a UUID")
    return buffer(groups[0][::-1] + groups[1][::-1] + groups[2][::-1] + groups[3] + groups[4])


# --- what names things (20.2.5.1, 20.2.5.2) ---


def package_length(content: int) -> bytes:
    """The length of `content` bytes and of this field itself, in 1 to 4 bytes (20.2.4).

    Raises `ValueError` above 2^28 - 1.
    """
    if content + 1 < 1 << 6:
        return bytes((content + 1,))
    for more in (1, 2, 3):
        length = content + 1 + more
        if length < 1 << (4 + 8 * more):
            return bytes((more << 6 | length & 0xF,)) + (length >> 4).to_bytes(more, "little")
    raise ValueError(f"{content} bytes are too much for one term")


def _with_length(content: bytes) -> bytes:
    return package_length(len(content)) + content


def name(path: str, value: Data) -> bytes:
    """Name (path, value)."""
    return b"\x08" + name_string(path) + _data(value)


def scope(path: str, *terms: bytes) -> bytes:
    """Scope (path) { terms }."""
    return b"\x10" + _with_length(name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """Device (path) { terms }."""
    return b"\x5b\x82" + _with_length(name_string(path) + b"".join(terms))


def method(path: str, argument_count: int, *terms: bytes) -> bytes:
    """Method (path, argument_count, Serialized) { terms }: one caller at a time, so that it may create fields."""
    if not 0 <= argument_count <= 7:
        raise ValueError(f"a method with {argument_count} arguments; there can be 7")
    return b"\x14" + _with_length(name_string(path) + bytes((argument_count | 0x08,)) + b"".join(terms))


# --- what methods do (20.2.5.3, 20.2.5.4) ---


def arg(number: int) -> bytes:
    """Arg0 to Arg6; raises `ValueError` for others."""
    if not 0 <= number <= 6:
        raise ValueError(f"argument {number} does not exist")
    return bytes((0x68 + number,))


def if_(condition: bytes, *terms: bytes) -> bytes:
    """If (condition) { terms }."""
    return b"\xa0" + _with_length(condition + b"".join(terms))


def else_(*terms: bytes) -> bytes:
    """Else { terms }; comes right behind an `if_`."""
    return b"\xa1" + _with_length(b"".join(terms))


def equal(left: Data, right: Data) -> bytes:
    """left == right."""
    return b"\x93" + _data(left) + _data(right)


def not_equal(left: Data, right: Data) -> bytes:
    """left != right."""
    return b"\x92" + equal(left, right)


def and_(left: Data, right: Data, target: bytes) -> bytes:
    """target = left & right."""
    return b"\x7b" + _data(left) + _data(right) + target


def or_(left: Data, right: Data, target: bytes) -> bytes:
    """target = left | right."""
    return b"\x7d" + _data(left) + _data(right) + target


def create_dword_field(source: bytes, offset: int, path: str) -> bytes:
    """CreateDWordField (source, offset, path): 4 bytes of a buffer as an integer; `offset` is in bytes."""
    return b"\x8a" + source + integer(offset) + name_string(path)


def notify(path: str, value: int) -> bytes:
    """Notify (path, value): tell the driver of the device at `path` what has happened to it."""
    return b"\x86" + name_string(path) + integer(value)


def return_(value: Data) -> bytes:
    """Return (value)."""
    return b"\xa4" + _data(value)


# --- resources (6.4) ---

_FIXED_RANGE = 0x0C
"""The range is a window of a bridge, and neither end of it can be moved."""
_MEMORY, _IO, _BUS = 0, 1, 2
_READ_WRITE = 1
_WHOLE_RANGE = 3


def resource_template(*descriptors: bytes) -> bytes:
    """A buffer of resource descriptors, with the end tag; a checksum of 0 in that counts as right (6.4.2.9)."""
    return buffer(b"".join(descriptors) + b"\x79\0")


def io(port: int, count: int) -> bytes:
    """`count` I/O ports (up to 255) from `port`, which a device itself answers at (16-bit decode)."""
    _check_window(port, count, 16)
    if count > 0xFF:
        raise ValueError(f"{count} ports; a device's descriptor can name 255")
    return pack("<BBHHBB", 0x47, 1, port, port, 1, count)


def irq(line: int) -> bytes:
    """ISA interrupt `line`: edge-triggered, active high, not shared."""
    if not 0 <= line <= 15:
        raise ValueError(f"there is no ISA interrupt {line}")
    return pack("<BH", 0x22, 1 << line)


def interrupt(gsi: int) -> bytes:
    """A global system interrupt of a device: edge-triggered, active high, not shared."""
    if gsi < 0 or gsi >> 32:
        raise ValueError(f"there is no interrupt {gsi}")
    return pack("<BHBBI", 0x89, 6, 0x03, 1, gsi)


def memory32(start: int, size: int) -> bytes:
    """`size` bytes below 4 GiB that a device itself answers at, to read and write."""
    _check_window(start, size, 32)
    return pack("<BHBII", 0x86, 9, _READ_WRITE, start, size)


def bus_numbers(first: int, count: int) -> bytes:
    """The PCI buses below a bridge."""
    return _window(_BUS, 0, first, count, 16)


def io_window(start: int, size: int) -> bytes:
    """I/O ports that a bridge passes on."""
    return _window(_IO, _WHOLE_RANGE, start, size, 16)


def memory_window(start: int, size: int) -> bytes:
    """Memory that a bridge passes on, uncached and without prefetching: any BAR may be put there."""
    return _window(_MEMORY, _READ_WRITE, start, size, 32 if start + size <= 1 << 32 else 64)


def _window(kind: int, flags: int, start: int, size: int, bits: int) -> bytes:
    """An address space descriptor with 16, 32 or 64 bits per number (6.4.3.5)."""
    _check_window(start, size, bits)
    tag, field = {16: (0x88, "H"), 32: (0x87, "I"), 64: (0x8A, "Q")}[bits]
    body = pack(f"<BBB5{field}", kind, _FIXED_RANGE, flags, 0, start, start + size - 1, 0, size)
    return pack("<BH", tag, len(body)) + body


def _check_window(start: int, size: int, bits: int) -> None:
    if start < 0 or size < 1 or start + size > 1 << bits or size >> bits:
        raise ValueError(f"{size:#x} from {start:#x} is no range of {bits}-bit numbers")
