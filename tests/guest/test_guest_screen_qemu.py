"""The guest's drivers for screens, keyboards and pointers against QEMU's devices, which are not of the same author."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.guest_picture import fnv1a, picture, shown
from tests.support.qemu_screen import QemuScreen, have_qemu, qemu_screen_command

pytestmark = [pytest.mark.guest, pytest.mark.skipif(not have_qemu(), reason="no QEMU, or no KVM for it")]

VIRTIO = ("-device", "virtio-keyboard-pci", "-device", "virtio-tablet-pci")
WHITE, NAVY = 0xFFFFFF, 0x000080
Event = tuple[str, dict[str, object]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., QemuScreen]]:
    """Starts a guest, which ends with the test."""
    started: list[QemuScreen] = []

    def begin(*options: str, **words: str) -> QemuScreen:
        started.append(QemuScreen(tmp_path, *options, **words).__enter__())
        return started[-1]

    yield begin
    for qemu in started:
        qemu.__exit__()


def key(code: str, down: bool) -> Event:
    """A key by QEMU's name."""
    return "key", {"key": {"type": "qcode", "data": code}, "down": down}


def button(name: str, down: bool) -> Event:
    """A mouse button."""
    return "btn", {"button": name, "down": down}


def press(qemu: QemuScreen, *codes: str) -> None:
    """Press and let go, one key after the other."""
    for code in codes:
        qemu.send(key(code, True), key(code, False))


def move(kind: str, x: int, y: int) -> tuple[Event, Event]:
    """`rel` or `abs`."""
    return (kind, {"axis": "x", "value": x}), (kind, {"axis": "y", "value": y})


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_screen_tells_what_is_there(start: Callable[..., QemuScreen], machine: str) -> None:
    """Found wherever it is, with its EDID; off until a mode is set."""
    qemu = start(machine=machine)
    assert re.search(
        r"screen: pci 00:\d\d\.0, 16384 KiB at 0xf\w{7}, off, EDID \"QEMU Monitor\" 1280x800\r\n", qemu.ask("screen")
    )
    assert "screen mode: 640x480 32 bits, stride 2560\r\n" in qemu.ask("screen mode 640x480")
    assert ", 640x480 32 bits, stride 2560, EDID" in qemu.ask("screen")


def test_behind_a_bios() -> None:
    """SeaBIOS leaves its clock ticking and has placed the BARs; without KVM, where it is quick everywhere."""
    command = qemu_screen_command("run=screen;screen,sum then=poweroff", display="VGA")
    command[command.index("pc,accel=kvm")] = "pc,accel=tcg"
    at = command.index("-bios")
    done = subprocess.run(
        command[:at] + command[at + 2 :], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    assert b"screen: pci 00:02.0, 16384 KiB at 0xfd000000, off, EDID" in done.stdout


def test_no_display(start: Callable[..., QemuScreen]) -> None:
    """Every verb says so, and none of them fails."""
    qemu = start(display="virtio-rng-pci")
    for words in ("", " mode 640x480", " picture", " fill 000000", " animate 1", " console on", " flash 1"):
        assert "screen: none\r\n" in qemu.ask(f"screen{words}")


@pytest.mark.parametrize(
    ("display", "mode"),
    [
        ("bochs-display", "1280x800"),
        ("bochs-display", "2560x1600"),
        ("bochs-display", "1000x333x16"),
        ("VGA", "800x600x8"),
        ("VGA", "800x600x15"),
        ("VGA", "800x600x16"),
        ("VGA", "800x600x24"),
    ],
)
def test_picture_in_every_depth(start: Callable[..., QemuScreen], display: str, mode: str) -> None:
    """What is on the screen is the documented picture, pixel by pixel; of large ones every 7th row."""
    qemu = start(display=display)
    width, height, bits = map(int, f"{mode}x32".split("x")[:3])
    assert f"screen mode: {width}x{height} {bits} bits, stride " in qemu.ask(f"screen mode {mode}")
    assert f"screen picture: seed 7, {width}x{height} {bits} bits, fnv1a " in qemu.ask("screen picture 7")
    every = 1 if width < 1000 else 7
    expected = picture(width, height, 7)[::every]
    if bits < 24:
        mask = 0xF8F8F8 if bits == 15 else 0xFFFFFF  # QEMU leaves the lower bits zero there
        expected = [[shown(colour, bits) & mask for colour in row] for row in expected]
    assert qemu.pixels(every) == expected


@pytest.mark.parametrize(
    ("mode", "seed"), [("640x480", 1), ("64x64", 0xFFFF_FFFF), ("99x71x16", 0), ("1x1", 1), ("3x5", 1)]
)
def test_picture_sum(start: Callable[..., QemuScreen], mode: str, seed: int) -> None:
    """The sum is that of the picture before colours are cut off, in modes of any size."""
    qemu = start()
    qemu.ask(f"screen mode {mode}")
    width, height = map(int, mode.split("x")[:2])
    assert f", fnv1a {fnv1a(picture(width, height, seed)):08x}, in" in qemu.ask(f"screen picture {seed}")


def test_fill_and_sum(start: Callable[..., QemuScreen]) -> None:
    """Rectangles end at the screen's edge; the sum is that of the video memory."""
    qemu = start()
    qemu.ask("screen mode 64x64")
    assert "screen fill: ff8000\r\n" in qemu.ask("screen fill ff8000")
    qemu.ask("screen fill 0000ff 60 2 2000 3")
    expected = [[0x0000FF if x >= 60 and 2 <= y < 5 else 0xFF8000 for x in range(64)] for y in range(64)]
    assert qemu.pixels() == expected
    assert f"screen sum: fnv1a {fnv1a(expected):08x}\r\n" in qemu.ask("screen sum")


def test_wrong_arguments_print_the_usage(start: Callable[..., QemuScreen]) -> None:
    """What makes no sense is not guessed at."""
    qemu = start()
    for words in (
        "mode",
        "mode 640",
        "mode 640x480x12",
        "mode 2561x480",
        "mode 0x0",
        "mode 640x480x32x1",
        "fill 12345",
    ):
        assert "usage: screen " in qemu.ask(f"screen {words}")
    for words in (
        "fill 123456 1 2 3",
        "picture x",
        "animate",
        "animate 1 fast",
        "console",
        "flash x",
        "sum 1",
        "dance",
    ):
        assert "usage: screen " in qemu.ask(f"screen {words}")
    assert "usage: leds N" in qemu.ask("leds 8")


def number_shown(pixels: list[list[int]]) -> int:
    """The frame's number at the top right."""
    cells = pixels[8][-256::8]
    assert set(cells) <= {0, WHITE}
    return int("".join("1" if cell else "0" for cell in cells), 2)


@pytest.mark.parametrize("what", ["text", "video", "both"])
def test_animation(start: Callable[..., QemuScreen], what: str) -> None:
    """Goes on at the rate wanted; the last frame's number is on the screen; only what was asked for moves."""
    qemu = start()
    qemu.ask("screen mode 1280x800")
    line = re.search(
        r"animated (\d+) frames in \d+ us, \d+\.\d\d frames/s, \d+ late", qemu.ask(f"screen animate 1 {what} fps=20")
    )
    assert line is not None
    frames = int(line[1])
    assert 0 < frames <= 20
    pixels = qemu.pixels()
    assert number_shown(pixels) == frames - 1
    assert any(any(row[:944]) for row in pixels) == (what != "video")
    assert any(any(row[944:]) for row in pixels[16:]) == (what != "text")


def test_console_on_the_screen(start: Callable[..., QemuScreen]) -> None:
    """What is printed appears and scrolls, what is typed there is run; with `off` the screen stays as it is."""
    qemu = start()
    qemu.ask("screen mode 640x480")
    qemu.ask("screen console on")
    before = qemu.pixels()
    assert any(map(any, before))
    press(qemu, "e", "c", "h", "o", "spc", "x", "backspace", "1", "caps_lock", "a")
    qemu.send(key("shift", True), key("b", True), key("b", False), key("shift_r", True), key("1", True))
    qemu.send(key("1", False), key("shift", False), key("shift_r", False))
    press(qemu, "kp_7", "kp_divide", "caps_lock", "b", "kp_enter")
    assert "\r\n1Ab!7/b\r\n" in qemu.wait(b"tvmm> ")
    assert qemu.pixels() != before
    qemu.ask("help")
    assert any(map(any, qemu.pixels()[-32:-16]))
    qemu.ask("screen console off")
    quiet = qemu.pixels()
    qemu.ask("help")
    assert qemu.pixels() == quiet
    press(qemu, "x")
    assert "1\r\n" in qemu.ask("echo 1")


def test_control_c_on_the_screen_ends_a_command(start: Callable[..., QemuScreen]) -> None:
    """As on the serial line, also one that listens to the keyboard; the others are then not typed into the shell."""
    qemu = start()
    qemu.ask("screen console on")
    for command, end in (("spin", b"spin\r\n"), ("keys", b"to end\r\n")):
        qemu.order(f"{command}\n")
        qemu.wait(end)
        press(qemu, "x", "caps_lock")
        qemu.send(key("ctrl", True), key("c", True), key("c", False), key("ctrl", False))
        assert "^C\r\n" in qemu.wait(b"tvmm> ")
        press(qemu, "backspace", "e", "ret")
        assert "e: no such command" in qemu.wait(b"tvmm> ").lower()


def test_scan_codes_as_they_are(start: Callable[..., QemuScreen]) -> None:
    """`kbd` borrows the keyboard from its driver, and gives it back."""
    qemu = start()
    qemu.ask("screen console on")
    qemu.order("kbd\n")
    qemu.wait(b"to end\r\n")
    press(qemu, "a")
    assert "scan code 0x1e\r\nscan code 0x9e\r\n" in qemu.wait(b"0x9e\r\n")
    qemu.order("\x03")
    qemu.wait(b"tvmm> ")
    press(qemu, "h", "e", "l", "p", "ret")
    assert "this list" in qemu.wait(b"tvmm> ")


KEYS = {
    "a": 30,
    "right": 106,
    "kp_enter": 96,
    "pause": 119,
    "print": 99,
    "meta_l": 125,
    "f12": 88,
    "less": 86,
    "ctrl_r": 97,
}


@pytest.mark.parametrize(("options", "source"), [((), 0), (VIRTIO, 2)])
def test_keys(start: Callable[..., QemuScreen], options: tuple[str, ...], source: int) -> None:
    """Each key has Linux's code, from either kind of keyboard, and comes down and up once."""
    qemu = start(*options)
    qemu.order("keys\n")
    qemu.wait(f"keys: {source + 2} input devices, Ctrl-C here to end\r\n".encode())
    for name, code in KEYS.items():
        press(qemu, name)
        lines = qemu.wait(f"key {code} up from {source}\r\n".encode())
        assert lines == f"key {code} down from {source}\r\nkey {code} up from {source}\r\n"
    qemu.order("\x03")
    assert f"keys: {2 * len(KEYS)} events\r\n" in qemu.wait(b"tvmm> ")


@pytest.mark.parametrize(("options", "source"), [((), 1), (("-device", "virtio-mouse-pci"), 2)])
def test_mouse(start: Callable[..., QemuScreen], options: tuple[str, ...], source: int) -> None:
    """Motion down and to the right is positive, the wheel away from the user too."""
    qemu = start(*options)
    qemu.order("mouse\n")
    qemu.wait(b"to end\r\n")
    qemu.send(*move("rel", 5, -7))
    assert qemu.wait(b"\r\n") == f"move 5 -7 from {source}\r\n"
    for name in ("left", "right", "middle"):
        for down in (True, False):
            qemu.send(button(name, down))
            assert qemu.wait(b"\r\n") == f"button {name} {'down' if down else 'up'} from {source}\r\n"
    for name, value in (("wheel-up", 1), ("wheel-down", -1)):
        qemu.send(button(name, True), button(name, False))
        assert qemu.wait(b"\r\n") == f"wheel {value} from {source}\r\n"
    qemu.order("\x03")
    assert "mouse: 9 events\r\n" in qemu.wait(b"tvmm> ")


def test_tablet(start: Callable[..., QemuScreen]) -> None:
    """Positions are absolute, and come before the press that was made there."""
    qemu = start(*VIRTIO)
    assert 'input 3: virtio pci 00:04.0 "QEMU Virtio Tablet", absolute 0..32767 0..32767\r\n' in qemu.ask("input")
    qemu.order("mouse\n")
    qemu.wait(b"to end\r\n")
    qemu.send(*move("abs", 1000, 32767), button("left", True))
    assert qemu.wait(b"down from 3\r\n") == "at 1000 32767 from 3\r\nbutton left down from 3\r\n"


@pytest.mark.parametrize("append", ["", "packed", "intx noevent"])
def test_virtio_input_on_every_ring(tmp_path: Path, append: str) -> None:
    """More events than there are buffers go through, in order, by any format of ring; LEDs too."""
    rings = "virtio-keyboard-pci,packed=on" if append == "packed" else "virtio-keyboard-pci"
    with QemuScreen(tmp_path, "-device", rings, append=append) as qemu:
        assert "leds: 5 on 2 devices\r\n" in qemu.ask("leds 5")
        qemu.order("keys\n")
        qemu.wait(b"to end\r\n")
        for _ in range(100):
            press(qemu, "a", "b")
            assert [line.split()[1:3] for line in qemu.wait(b"key 48 up from 2\r\n").splitlines()] == [
                [code, value] for code in ("30", "48") for value in ("down", "up")
            ]


@pytest.mark.parametrize("options", [(), VIRTIO])
def test_flash(start: Callable[..., QemuScreen], options: tuple[str, ...]) -> None:
    """The square changes with each press, and with nothing else."""
    qemu = start(*options)
    qemu.ask("screen mode 640x480")
    qemu.order("screen flash\n")
    qemu.wait(b"to end\r\n")
    for colour in (WHITE, NAVY, WHITE):
        qemu.send(key("a", True))
        until(lambda colour=colour: qemu.pixels()[64][64] == colour)  # type: ignore[misc]
        qemu.send(key("a", False))
    assert qemu.pixels() == [[WHITE if 64 <= x < 128 and 64 <= y < 128 else 0 for x in range(640)] for y in range(480)]
    qemu.order("\x03")
    assert "screen flash: 3 presses\r\n" in qemu.wait(b"tvmm> ")


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Look until it is so: QMP has no event for a change of the picture."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
