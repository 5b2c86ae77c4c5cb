"""Writes ``tvmm/devices/key_tables.py``: ``python tools/build_keys.py`` (needs what `SOURCES` names; any user).

Where each table comes from:

=============  =====================================================================================
keysyms        xkeyboard-config, compiled by xkbcomp: PC keyboard, evdev key codes, each of `LAYOUTS`
their values   the X protocol headers, with the Unicode character that a comment gives
scancodes,     QEMU's key maps, which its own ``qemu-keymap`` wrote: each key has its evdev code, its
names          name in QAPI's QKeyCode and its number in the Extended Key Event
=============  =====================================================================================

QEMU has no name for some keys that keyboards and Linux's driver have; they are in `NAMELESS`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

SOURCES = (
    "/usr/share/X11/xkb/symbols/us",  # Debian: xkb-data
    "/usr/include/X11/keysymdef.h",  # x11proto-dev
    "/usr/include/X11/XF86keysym.h",
    "/usr/share/qemu/keymaps/en-us",  # qemu-system-data
)
COMPILER = "xkbcomp"  # x11-xkb-utils
TARGET = Path(__file__).resolve().parent.parent / "tvmm" / "devices" / "key_tables.py"

LAYOUTS = {
    "en-us": "us", "en-gb": "gb", "de": "de", "de-ch": "ch", "fr": "fr", "fr-be": "be", "fr-ca": "ca", "es": "es",
    "it": "it", "pt": "pt", "pt-br": "br", "nl": "nl", "da": "dk", "no": "no", "sv": "se", "fi": "fi", "pl": "pl",
    "cz": "cz", "hu": "hu", "hr": "hr", "sl": "si", "et": "ee", "tr": "tr", "ja": "jp", "ru": "ru", "latin": "latin",
}  # fmt: skip
"""QEMU's name of a layout, and that of its symbols in xkeyboard-config."""

NAMELESS = {
    85: 0x76, 90: 0x78, 95: 0x5C, 118: 0xCE, 148: 0x9F, 149: 0x97, 150: 0x82, 152: 0x92, 154: 0xA6, 161: 0x6C,
    167: 0xB1, 168: 0x98, 183: 0x5D, 184: 0x5E, 185: 0x5F, 186: 0x55, 187: 0x83, 188: 0xF7, 189: 0x84, 190: 0x5A,
    191: 0x74, 192: 0xF9, 193: 0x6D, 194: 0x6F, 212: 0xBB, 217: 0xE5, 224: 0xCC, 225: 0xD4,
}  # fmt: skip
"""evdev code to number: the Japanese keys, F13 to F24, brightness, and more that Linux's console knows."""

NOT_ON_ALL = (86, 89, 118, 121, 124)
"""Keys that type characters and that an American keyboard has not."""

HEADER = '''"""Numbers and names of keys, and what layouts have where. Written by ``tools/build_keys.py``; do not edit.

`XT`: hexadecimal, a byte for each evdev code from 0 on: its number in the Extended Key Event, 00 for none.
`QCODES`: QAPI's QKeyCode and the evdev code in hexadecimal, in turns.
`LAYOUTS`: for each layout keysyms in hexadecimal, each followed by the key's evdev code and a letter for the
modifiers: ``n`` none, ``s`` Shift, ``g`` AltGr, ``b`` both, ``k`` Num Lock on, ``o`` Num Lock off. ``COMMON`` is what
all of them have.
"""

from __future__ import annotations

__all__ = ["COMMON", "LAYOUTS", "QCODES", "XT"]

'''


def available() -> bool:
    """Whether all that it takes is installed."""
    return bool(shutil.which(COMPILER)) and all(map(Path.exists, map(Path, SOURCES)))


def keysym_values() -> tuple[dict[str, int], dict[int, int]]:
    """Values of the keysyms by name, and the Unicode characters that some of them stand for."""
    values: dict[str, int] = {}
    characters: dict[int, int] = {}
    pattern = re.compile(
        r"#define (?:XK_|(XF86)XK_)(\w+)\s+(?:0x([0-9a-fA-F]+)|_EVDEVK\(0x([0-9a-fA-F]+)\))"
        r"(?:\s*/\* U\+([0-9A-F]{4,6}))?"
    )
    for path in SOURCES[1:3]:
        for vendor, name, value, evdev, character in pattern.findall(Path(path).read_text(encoding="utf-8")):
            number = int(value, 16) if value else 0x10081000 + int(evdev, 16)
            values.setdefault(vendor + name, number)
            if character:
                characters[number] = int(character, 16)
    return values, characters


def compile_layout(symbols: str) -> str:
    """The whole keymap of a layout, with nothing left to include."""
    source = (
        'xkb_keymap { xkb_keycodes { include "evdev+aliases(qwerty)" }; xkb_types { include "complete" };'
        f' xkb_compatibility {{ include "complete" }}; xkb_symbols {{ include "pc+{symbols}+inet(evdev)" }}; }};'
    )
    command = [COMPILER, "-w0", "-xkb", "-I/usr/share/X11/xkb", "-", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def modifiers(kind: str, symbols: list[str]) -> str:
    """A letter for each level of a key of type `kind`."""
    if kind.startswith("PC_") or kind == "CTRL+ALT":  # further levels are by Control or Alt
        return "n"
    if len(symbols) == 2 and all(name.startswith("KP_") for name in symbols):
        return "ok" if symbols[0] != symbols[1] else "n"
    if kind.startswith("FOUR_LEVEL") and ("KEYPAD" in kind or kind.startswith("FOUR_LEVEL_X")):
        return "ok"
    if "LEVEL3" in kind:  # no level for Shift
        return "n"
    return "nsgb"[: len(symbols)]


def strokes(
    keymap: str, values: dict[str, int], characters: dict[int, int], known: set[int]
) -> dict[int, tuple[int, str]]:
    """Key and modifiers for each keysym of the first group. The plainest way to type it wins."""
    codes = {name: int(number) - 8 for name, number in re.findall(r"<(\w+|[\w+-]+)> = (\d+);", keymap)}
    found: dict[int, tuple[int, str]] = {}
    body = keymap[keymap.index("xkb_symbols") :]
    for name, inside in re.findall(r"key\s+<([^>]+)>\s*\{(.*?)\};", body, re.DOTALL):
        code = codes.get(name, 0)
        if code not in known:
            continue
        kind = re.search(r'type(?:\[\w+\])?=\s*"([^"]+)"', inside)
        first = re.search(r"\[\s*([^\]]*?)\s*\](?!\s*=)", inside.split("symbols[Group1]=")[-1])
        if first is None:
            continue
        symbols = [symbol.strip() for symbol in first[1].split(",")]
        for symbol, letter in zip(symbols, modifiers(kind[1] if kind else "", symbols), strict=False):
            for keysym in keysyms_of(symbol, values, characters):
                was = found.get(keysym)
                if was is None or rank(letter, code) < rank(was[1], was[0]):
                    found[keysym] = code, letter
    return found


def rank(letter: str, code: int) -> tuple[bool, int, int]:
    """Keys that each keyboard has, then few modifiers, then the order of codes, which has the main keys first."""
    return code in NOT_ON_ALL, {"s": 1, "g": 2, "b": 3}.get(letter, 0), code


def keysyms_of(symbol: str, values: dict[str, int], characters: dict[int, int]) -> list[int]:
    """The numbers that viewers send for a keysym's name: its own, and that of the character if that is another."""
    if re.fullmatch(r"U[0-9A-F]{4,6}", symbol):
        number = int(symbol[1:], 16)
        keysym = number if number < 0x100 else 0x01000000 + number
        return [keysym, *(value for value, character in characters.items() if character == number)]
    keysym = int(symbol, 16) if symbol.startswith("0x") else values.get(symbol, 0)
    if not keysym:
        return []
    character = characters.get(keysym, 0)
    return [keysym, 0x01000000 + character] if character >= 0x100 else [keysym]


def extra_strokes() -> dict[int, tuple[int, str]]:
    """Keysyms that viewers send and that the PC layouts have on no key."""
    values, _ = keysym_values()
    extra = {
        "Meta_L": 125, "Meta_R": 126, "Hyper_L": 125, "Hyper_R": 126, "ISO_Level3_Shift": 100, "Mode_switch": 100,
        "Break": 119, "Sys_Req": 99, "KP_Space": 57, "KP_Tab": 15, "Linefeed": 101, "ISO_Left_Tab": 15,
        "Clear": 76, "Help": 138, "Multi_key": 127, "Kanji": 85, "Eisu_toggle": 58,
        "Zenkaku_Hankaku": 85, "Hiragana_Katakana": 93, "Muhenkan": 94, "Henkan_Mode": 92, "Hangul": 122,
        "Hangul_Hanja": 123, "KP_Separator": 121, "Alt_R": 100,
        **{f"F{number}": 183 + number - 13 for number in range(13, 25)},
    }  # fmt: skip
    return {values[name]: (code, "s" if name == "ISO_Left_Tab" else "n") for name, code in extra.items()}


def numbers_and_names() -> tuple[dict[int, int], dict[str, int]]:
    """Number in the Extended Key Event by evdev code, and evdev code by QKeyCode."""
    numbers, names = dict(NAMELESS), {}
    text = Path(SOURCES[3]).read_text(encoding="utf-8")
    for code, name, number in re.findall(r'# evdev (\d+) \(0x\w+\), QKeyCode "(\w+)", number (0x\w+)', text):
        numbers[int(code)] = int(number, 16)
        names[name] = int(code)
    # Names that QEMU has got since, and one that is another for the same key.
    names |= {f"f{number}": 183 + number - 13 for number in range(13, 25)}
    names |= {"lang1": 122, "lang2": 123, "asterisk": names["kp_multiply"]}
    # Print Screen: QEMU numbers it as what Alt makes of it, viewers as what it is by itself. One key, two names.
    numbers[names["sysrq"]] = 0xB7
    names["print"] = names["sysrq"]
    return numbers, names


def folded(words: list[str], indent: int = 4) -> str:
    """A Python string of the words, over as many lines as it takes."""
    lines = textwrap.wrap(" ".join(words), 116 - indent, break_on_hyphens=False)
    ends = [" "] * (len(lines) - 1) + [""]
    return "".join(f'{" " * indent}"{line}{end}"\n' for line, end in zip(lines, ends, strict=True))


def spelled(table: dict[int, tuple[int, str]]) -> list[str]:
    """As described on top of the module."""
    return [f"{keysym:x}:{code:x}{letter}" for keysym, (code, letter) in sorted(table.items())]


def module() -> str:
    """The text of the module."""
    values, characters = keysym_values()
    numbers, names = numbers_and_names()
    known = set(numbers) | {122, 123, 100}
    tables = {name: strokes(compile_layout(symbols), values, characters, known) for name, symbols in LAYOUTS.items()}
    extras = extra_strokes()
    common = dict(set.intersection(*(set(table.items()) for table in tables.values())))
    # An Alt that Shift makes to Meta is not what a viewer's Meta key is.
    common = {**extras, **{keysym: stroke for keysym, stroke in common.items() if stroke != (56, "s")}}
    raw = bytes(numbers.get(code, 0) for code in range(256)).hex()
    text = [HEADER, "XT = (\n", *(f'    "{line}"\n' for line in textwrap.wrap(raw, 112)), ")\n\n"]
    text += ["QCODES = (\n", folded([f"{name} {code:x}" for name, code in sorted(names.items())]), ")\n\n"]
    text += ["COMMON = (\n", folded(spelled(common)), ")\n\n", "LAYOUTS = {\n"]
    for name, table in tables.items():
        own = {sym: stroke for sym, stroke in table.items() if common.get(sym) != stroke and stroke != (56, "s")}
        text += [f'    "{name}": (\n', folded(spelled(own), 8), "    ),\n"]
    return "".join([*text, "}\n"])


if __name__ == "__main__":
    if not available():
        sys.exit(f"needed: {COMPILER}, {', '.join(SOURCES)}")
    TARGET.write_text(module(), encoding="utf-8")
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")
