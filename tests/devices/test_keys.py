"""Names and numbers of keys, and where layouts have what."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.devices import keys
from tvmm.devices.keys import Keystroke, evdev_of_qcode, evdev_of_xt, keystroke, set2_codes, xt_of_evdev
from tvmm.devices.ps2_keyboard import Translator

TOOLS = Path(__file__).resolve().parent.parent.parent / "tools"

LINUX_SET2 = {
    "esc": "76", "a": "1c", "z": "1a", "ret": "5a", "spc": "29", "shift": "12", "shift_r": "59", "ctrl": "14",
    "ctrl_r": "e014", "alt": "11", "alt_r": "e011", "f1": "05", "f5": "03", "f7": "83", "f11": "78", "f12": "07",
    "up": "e075", "left": "e06b", "down": "e072", "right": "e074", "insert": "e070", "delete": "e071",
    "home": "e06c", "end": "e069", "pgup": "e07d", "pgdn": "e07a", "kp_divide": "e04a", "kp_enter": "e05a",
    "kp_multiply": "7c", "kp_5": "73", "num_lock": "77", "scroll_lock": "7e", "caps_lock": "58", "meta_l": "e01f",
    "meta_r": "e027", "compose": "e02f", "less": "61", "ro": "51", "yen": "6a", "henkan": "64", "muhenkan": "67",
    "audiomute": "e023", "volumedown": "e021", "volumeup": "e032", "audioplay": "e034", "audiostop": "e03b",
    "audionext": "e04d", "audioprev": "e015", "mail": "e048", "ac_home": "e03a", "calculator": "e02b",
    "power": "e037", "sleep": "e03f", "wake": "e05e", "sysrq": "e012e07c", "pause": "e11477e1f014f077",
}  # fmt: skip
"""What Linux' keyboard driver has for these keys."""


def code_of(name: str) -> int:
    """The key that QEMU calls so."""
    code = evdev_of_qcode(name)
    assert code is not None
    return code


def test_tables_are_what_their_sources_give() -> None:
    """Where the packages are installed, the generated module is written again and is the same."""
    sys.path.insert(0, str(TOOLS))
    try:
        import build_keys  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(TOOLS))
    if not build_keys.available():
        pytest.skip(f"needs {build_keys.COMPILER} and {', '.join(build_keys.SOURCES)}")
    assert build_keys.TARGET.read_text() == build_keys.module()


def test_set_2_is_what_linux_knows() -> None:
    """Make codes of keys from all over the keyboard, and their break codes."""
    for name, codes in LINUX_SET2.items():
        assert set2_codes(code_of(name), True).hex() == codes, name
        if len(codes) <= 4:
            released = codes[:-2] + "f0" + codes[-2:]
            assert set2_codes(code_of(name), False).hex() == released, name


def test_the_controller_translates_to_the_xt_number() -> None:
    """Set 2 through the controller's translation is set 1, which is the XT number, but for the two odd keys."""
    for code in range(keys.KEY_LIMIT):
        number = xt_of_evdev(code)
        if number is None or code in (keys.SYSRQ, keys.PAUSE):
            continue
        for down, top in ((True, 0), (False, 0x80)):
            translator = Translator()
            translated = [byte for byte in map(translator.feed, set2_codes(code, down)) if byte is not None]
            assert translated == [0xE0] * (number >> 7) + [number & 0x7F | top], code


def test_print_screen_and_pause() -> None:
    """The two keys whose codes depend on what is held with them, and Pause, which has no break code."""
    print_screen, pause = keys.SYSRQ, keys.PAUSE
    assert set2_codes(print_screen, False).hex() == "e0f07ce0f012"
    assert [set2_codes(print_screen, down, alt=True).hex() for down in (True, False)] == ["84", "f084"]
    assert set2_codes(pause, True, control=True).hex() == "e07ee0f07e"
    assert set2_codes(pause, False) == b""
    assert set2_codes(0x110, True) == b""


def test_xt_numbers() -> None:
    """There and back; Print Screen has two numbers, and a prefix that is spelled out is understood."""
    for code in range(keys.KEY_LIMIT):
        number = xt_of_evdev(code)
        assert number is None or evdev_of_xt(number) == code
    assert evdev_of_xt(0xB7) == evdev_of_xt(0x54) == keys.SYSRQ
    assert evdev_of_xt(0xE048) == evdev_of_xt(0xC8) == code_of("up")
    assert xt_of_evdev(-1) is xt_of_evdev(1 << 20) is evdev_of_xt(0) is None


def test_qcodes() -> None:
    """QEMU's names, one key each but for Print Screen."""
    assert (code_of("ctrl"), code_of("alt"), code_of("delete")) == (29, 56, 111)
    assert code_of("print") == code_of("sysrq")
    for name, code in keys.qcodes().items():
        assert keys.qcode_of_evdev(code) == name or name in ("print", "sysrq", "asterisk", "kp_multiply")
    assert keys.qcode_of_evdev(240) is None
    assert evdev_of_qcode("no such") is None


@pytest.mark.parametrize("layout", keys.layout_names())
def test_every_printable_character_can_be_typed(layout: str) -> None:
    """ASCII is on each layout, and all keys are ones that a keyboard can send."""
    for character in range(0x20, 0x7F):
        found = keystroke(character, layout)
        assert found is not None, chr(character)
        assert set2_codes(found.code, True)


@pytest.mark.parametrize(
    ("layout", "keysym", "wanted"),
    [
        ("en-us", ord("a"), Keystroke(30)),
        ("en-us", ord("A"), Keystroke(30, shift=True)),
        ("en-us", ord("<"), Keystroke(51, shift=True)),
        ("en-us", 0xFFB7, Keystroke(71, num_lock=True)),
        ("en-us", 0xFF95, Keystroke(71, num_lock=False)),
        ("en-us", 0xFFAF, Keystroke(98)),
        ("en-us", 0xFF0D, Keystroke(28)),
        ("en-us", 0xFFE7, Keystroke(125)),
        ("en-us", 0xFFEA, Keystroke(100)),
        ("en-us", 0xFE03, Keystroke(100)),
        ("en-us", 0xFF61, Keystroke(99)),
        ("en-us", 0xFFCA, Keystroke(183)),
        ("en-us", 0x1008FF13, Keystroke(115)),
        ("en-us", 0x0100_0041, Keystroke(30, shift=True)),
        ("de", ord("z"), Keystroke(21)),
        ("de", ord("@"), Keystroke(16, altgr=True)),
        ("de", ord("<"), Keystroke(86)),
        ("de", ord("^"), Keystroke(41)),
        ("de", 0x20AC, Keystroke(18, altgr=True)),
        ("de", 0x0100_20AC, Keystroke(18, altgr=True)),
        ("fr", 0xE9, Keystroke(3)),
        ("fr", 0x0100_00E9, Keystroke(3)),
        ("ru", 0x0100_043F, Keystroke(34)),
        ("ru", ord("w"), Keystroke(17)),
    ],
)
def test_keysyms(layout: str, keysym: int, wanted: Keystroke) -> None:
    """Letters, keypad, modifiers, multimedia, Unicode: where the layout has them, and with what held."""
    assert keystroke(keysym, layout) == wanted


@given(st.integers(0, (1 << 32) - 1))
def test_any_number_of_a_viewer(number: int) -> None:
    """A viewer's number names a key or nothing."""
    found = keystroke(number)
    assert found is None or 0 < found.code < keys.KEY_LIMIT
    code = evdev_of_xt(number)
    assert code is None or 0 < code < keys.KEY_LIMIT
