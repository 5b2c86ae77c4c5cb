"""The guest's screen, keyboard and pointer on tvmm's own devices. Skipped where a board has no such devices."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import pytest
import trio

from tests.support.guest_picture import fnv1a, picture, shown
from tests.wiring.guests import GuestShell, guest

DISPLAY = "bochs-display"
WHITE, NAVY = 0xFFFFFF, 0x000080
KEY_A, KEY_C, KEY_E, KEY_O, KEY_H = 30, 46, 18, 24, 35
KEY_ENTER, KEY_LEFT_CTRL, KEY_LEFT_SHIFT, KEY_SPACE, KEY_RIGHT, KEY_PAUSE = 28, 29, 42, 57, 106, 119
BUTTON_LEFT = 0x110
PS2: tuple[str, ...] = ()
VIRTIO = ("virtio-keyboard", "virtio-tablet")
POLL_S = 0.002

needs_input = pytest.mark.skipif(find_spec("tvmm.devices.input_hub") is None, reason="no input devices yet")
needs_virtio_input = pytest.mark.skipif(find_spec("tvmm.config.input") is None, reason="no virtio-input yet")
on_each_keyboard = pytest.mark.parametrize(
    ("devices", "keyboard"), [(PS2, 0), pytest.param(VIRTIO, 2, marks=needs_virtio_input)], ids=["ps2", "virtio"]
)
pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(find_spec("tvmm.config.display") is None, reason="no display yet"),
]


def board_of(shell: GuestShell) -> Any:
    """The board, whatever it has."""
    return shell.vm.board


def colour_of(pixel: int, bits: int, palette: bytes) -> int:
    """0xRRGGBB of a pixel in video memory."""
    if bits == 8:
        return int.from_bytes(palette[4 * pixel : 4 * pixel + 3], "little")
    if bits >= 24:
        return pixel & 0xFFFFFF
    green = 6 if bits == 16 else 5
    red_8, green_8 = pixel >> (5 + green) << 3, (pixel >> 5 & (1 << green) - 1) << (8 - green)
    return shown((red_8 & 0xFF) << 16 | green_8 << 8 | (pixel & 31) << 3, bits)


def pixels(shell: GuestShell, every: int = 1) -> list[list[int]]:
    """What the guest shows, read from its video memory; `every` so manyth row."""
    display = board_of(shell).devices.display
    surface, vram = display.surface, display.vram.block.view
    size = (surface.bits_per_pixel + 7) // 8
    rows = []
    for y in range(0, surface.height, every):
        start = surface.offset + y * surface.stride
        line = bytes(vram[start : start + surface.width * size])
        rows.append(
            [
                colour_of(int.from_bytes(line[at : at + size], "little"), surface.bits_per_pixel, surface.palette)
                for at in range(0, len(line), size)
            ]
        )
    return rows


async def until_pixel(shell: GuestShell, x: int, y: int, colour: int) -> None:
    """Wait for a pixel in a mode of 32 bits: a store into video memory tells nobody, so this looks."""
    display = board_of(shell).devices.display
    at = y * display.surface.stride + 4 * x
    while int.from_bytes(display.vram.block.view[at : at + 3], "little") != colour:
        await trio.sleep(POLL_S)


def press(shell: GuestShell, *codes: int, down: tuple[bool, ...] = (True, False)) -> None:
    """Press and let go, one key after the other."""
    hub = board_of(shell).input
    for code in codes:
        for state in down:
            hub.key(code, state, "test")
            hub.sync()


async def listen(shell: GuestShell, command: str) -> None:
    """Begin a command that waits for input."""
    await shell.order(command)
    await shell.vm.wait_serial("to end\r\n")


async def finish(shell: GuestShell) -> str:
    """Ctrl-C on the serial line."""
    await shell.vm.send_serial("\x03")
    return await shell.prompt()


async def test_screen_tells_what_is_there() -> None:
    """Found, off, with the EDID that it was given."""
    async with guest(display=f"{DISPLAY},xres=1024,yres=768") as shell:
        found = await shell.ask("screen")
    assert re.search(r'screen: pci 00:\d\d\.0, 16384 KiB at 0x\w{8}, off, EDID "[^"]+" 1024x768\r\n', found)


async def test_no_display_and_no_pci() -> None:
    """Each verb says so."""
    async with guest() as shell:
        for words in ("", " mode 640x480", " picture", " fill 000000", " animate 1", " console on", " flash 1"):
            assert "screen: none\r\n" in await shell.ask(f"screen{words}")


@pytest.mark.parametrize("mode", ["320x200x8", "320x200x15", "320x200x16", "320x200x24", "1280x800x32", "2560x1600x8"])
async def test_picture_in_every_depth(mode: str) -> None:
    """The picture is in the video memory, pixel by pixel, as the surface describes it; of large ones every 7th row."""
    width, height, bits = map(int, mode.split("x"))
    async with guest(display=DISPLAY) as shell:
        assert f"screen mode: {width}x{height} {bits} bits, stride " in await shell.ask(f"screen mode {mode}")
        drawn = await shell.ask("screen picture 7")
        found = pixels(shell, every := 1 if width < 1000 else 7)
    expected = picture(width, height, 7)
    assert f"screen picture: seed 7, {width}x{height} {bits} bits, fnv1a " in drawn
    if width < 1000:
        assert f"fnv1a {fnv1a(expected):08x}, in" in drawn
    assert found == [[shown(colour, bits) for colour in row] for row in expected[::every]]


async def test_orders_on_the_command_line() -> None:
    """The screen is set up before the first prompt."""
    async with guest("run=screen,mode,80x64;screen,fill,ff8000", display=DISPLAY) as shell:
        assert pixels(shell) == [[0xFF8000] * 80] * 64
        assert f"screen sum: fnv1a {fnv1a([[0xFF8000] * 80] * 64):08x}\r\n" in await shell.ask("screen sum")


async def test_animation_numbers_its_frames() -> None:
    """The number of the last frame is at the top right."""
    async with guest(display=DISPLAY) as shell:
        line = re.search(
            r"animated (\d+) frames in \d+ us, [\d.]+ frames/s", await shell.ask("screen animate 1 fps=10")
        )
        cells = pixels(shell)[8][-256::8]
    assert line is not None
    assert int("".join("1" if cell else "0" for cell in cells), 2) == int(line[1]) - 1


@needs_input
@on_each_keyboard
async def test_console_on_the_screen(devices: tuple[str, ...], keyboard: int) -> None:
    """What is typed on the keyboard is run, and what is printed appears; Ctrl-C works there too."""
    async with guest(display=DISPLAY, device=list(devices)) as shell:
        await shell.ask("screen mode 640x480")
        await shell.ask("screen console on")
        before = pixels(shell)
        press(shell, KEY_E, KEY_C, KEY_H, KEY_O, KEY_SPACE)
        await shell.vm.wait_serial("echo ")  # a keyboard holds back but 16 bytes
        press(shell, KEY_LEFT_SHIFT, down=(True,))
        press(shell, KEY_A)
        press(shell, KEY_LEFT_SHIFT, down=(False,))
        press(shell, KEY_A, KEY_ENTER)
        assert "Aa\r\nAa\r\n" in await shell.prompt()
        assert pixels(shell) != before
        await shell.order("spin")
        await shell.vm.wait_serial("spin\r\n")
        press(shell, KEY_LEFT_CTRL, KEY_C, down=(True,))
        press(shell, KEY_LEFT_CTRL, KEY_C, down=(False,))
        assert "^C\r\n" in await shell.prompt()
        assert f"input {keyboard}: " in await shell.ask("input")


@needs_input
@on_each_keyboard
async def test_keys(devices: tuple[str, ...], keyboard: int) -> None:
    """Keys have the codes that they were pressed by, and come down and up once."""
    async with guest(display=DISPLAY, device=list(devices)) as shell:
        await listen(shell, "keys")
        for code in (KEY_A, KEY_RIGHT, KEY_PAUSE):
            press(shell, code)
            lines = await shell.vm.wait_serial(f"key {code} up from {keyboard}\r\n")
            assert lines.decode() == f"key {code} down from {keyboard}\r\nkey {code} up from {keyboard}\r\n"
        assert "keys: 6 events\r\n" in await finish(shell)


@needs_input
async def test_mouse() -> None:
    """Motion, button and wheel of the PS/2 mouse, with the signs that they went in with."""
    async with guest(display=DISPLAY) as shell:
        hub = board_of(shell).input
        await listen(shell, "mouse")
        hub.move_by(5, -7)
        hub.sync()
        assert (await shell.vm.wait_serial(b"\r\n")).decode() == "move 5 -7 from 1\r\n"
        hub.button(BUTTON_LEFT, True, "test")
        hub.sync()
        assert (await shell.vm.wait_serial(b"\r\n")).decode() == "button left down from 1\r\n"
        hub.wheel(1)
        hub.sync()
        assert (await shell.vm.wait_serial(b"\r\n")).decode() == "wheel 1 from 1\r\n"
        assert "mouse: 3 events\r\n" in await finish(shell)


@needs_virtio_input
async def test_tablet() -> None:
    """Positions arrive as they were sent, before the press that was made there."""
    async with guest(display=DISPLAY, device=list(VIRTIO)) as shell:
        hub = board_of(shell).input
        assert ", absolute 0..32767 0..32767" in await shell.ask("input")
        await listen(shell, "mouse")
        hub.move_to(1000, 32767)
        hub.button(BUTTON_LEFT, True, "test")
        hub.sync()
        lines = await shell.vm.wait_serial("button left down from 3\r\n")
        assert lines.decode() == "at 1000 32767 from 3\r\nbutton left down from 3\r\n"


@needs_virtio_input
@pytest.mark.parametrize("words", ["", "packed", "noevent noindirect noinorder intx"])
@pytest.mark.parametrize("transport", ["pci", "mmio"])
async def test_more_events_than_buffers(transport: str, words: str) -> None:
    """All arrive, in order, through any format of ring."""
    keyboard = f"virtio-keyboard,transport={transport},packed=on,in_order=on"
    async with guest(words, display=DISPLAY, device=[keyboard]) as shell:
        assert f"virtio {transport} " in await shell.ask("input")
        await listen(shell, "keys")
        for _ in range(100):
            press(shell, KEY_A, KEY_C)
            lines = (await shell.vm.wait_serial(f"key {KEY_C} up from 2\r\n")).decode().splitlines()
            assert [line.split()[1:3] for line in lines] == [
                [str(code), value] for code in (KEY_A, KEY_C) for value in ("down", "up")
            ]
        assert "keys: 400 events\r\n" in await finish(shell)


@needs_input
@on_each_keyboard
async def test_lights(devices: tuple[str, ...], keyboard: int) -> None:
    """What the guest lights is known outside."""
    async with guest(display=DISPLAY, device=list(devices)) as shell:
        hub = board_of(shell).input
        await shell.ask("input")
        for leds in (5, 2, 0):
            assert f"leds: {leds} on {1 + bool(keyboard)} devices\r\n" in await shell.ask(f"leds {leds}")
            assert hub.leds == leds


@needs_input
@on_each_keyboard
async def test_flash(devices: tuple[str, ...], keyboard: int) -> None:
    """The square changes with each press."""
    async with guest(display=DISPLAY, device=list(devices)) as shell:
        await shell.ask("screen mode 640x480")
        await listen(shell, "screen flash")
        for colour in (WHITE, NAVY, WHITE):
            press(shell, KEY_A)
            await until_pixel(shell, 127, 127, colour)
        inside = range(64, 128)
        assert pixels(shell) == [[WHITE if x in inside and y in inside else 0 for x in range(640)] for y in range(480)]
        assert "screen flash: 3 presses\r\n" in await finish(shell)
