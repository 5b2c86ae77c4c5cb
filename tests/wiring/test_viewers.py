"""Viewers of a running guest: what they see, and what of theirs the guest gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from PIL import Image

from tests.support.rfb_client import rfb_client
from tests.wiring.guests import guest
from tests.wiring.watching import SIZE, VIRTIO, canvas_bytes, lines_of, listen, shows, viewers_of, watched_guest
from tvmm.control.machine_target import MachineTarget
from tvmm.control.screen_verbs import screendump
from tvmm.vnc.encodings import COPY_RECT, HEXTILE, RAW, TIGHT, TIGHT_PNG, ZRLE
from tvmm.vnc.pixel_format import PixelFormat

if TYPE_CHECKING:
    from pathlib import Path

    from tvmm.machine import Machine

pytestmark = pytest.mark.guest

KEY_A, KEY_B, KEY_C, KEY_LEFTSHIFT = 30, 48, 46, 42
A, B, C, CAPITAL_A, SHIFT = 0x61, 0x62, 0x63, 0x41, 0xFFE1
OTHER = 640, 480
RGB565 = PixelFormat(16, 16, True, True, 31, 63, 31, 11, 5, 0)


def is_logging(vm: Machine) -> bool:
    """Whether KVM notes what the guest writes to its screen."""
    assert vm.board.devices is not None
    assert vm.board.devices.display is not None
    return vm.board.devices.display.vram.watch.is_on


def ups(lines: list[str]) -> set[int]:
    """The keys that come up in what the guest prints, which has nothing else."""
    assert all(" up " in line for line in lines), lines
    return {int(line.split()[1]) for line in lines}


@pytest.mark.parametrize("number", [RAW, HEXTILE, TIGHT, TIGHT_PNG, ZRLE])
async def test_the_picture_is_the_guests(number: int, tmp_path: Path) -> None:
    """Each pixel of it, in each encoding without loss, and after each change."""
    async with watched_guest(path := tmp_path / "vnc") as shell, rfb_client(path, number, COPY_RECT) as client:
        await client.until(shows())
        await shell.ask("screen picture 2")
        await client.until(shows(seed=2))


async def test_colours_of_another_format(tmp_path: Path) -> None:
    """A viewer may ask for fewer bits, and another order of bytes."""
    async with watched_guest(path := tmp_path / "vnc"), rfb_client(path, ZRLE) as client:
        client.viewer.set_pixel_format(RGB565)
        pixels = canvas_bytes()
        wanted = b"".join(
            (round(red * 31 / 255) << 11 | round(green * 63 / 255) << 5 | round(blue * 31 / 255)).to_bytes(2, "big")
            for blue, green, red in (pixels[at : at + 3] for at in range(0, len(pixels), 4))
        )
        await client.until(lambda viewer: viewer.pixels == wanted)


async def test_another_mode_is_another_size(tmp_path: Path) -> None:
    """Larger, smaller, of fewer bits; the picture is right in each."""
    async with watched_guest(path := tmp_path / "vnc") as shell, rfb_client(path, TIGHT) as client:
        await client.until(shows())
        for width, height, bits in ((*OTHER, 32), (*SIZE, 8), (200, 120, 16)):
            await shell.ask(f"screen mode {width}x{height}x{bits}")
            await shell.ask("screen picture 3")
            wanted = canvas_bytes(width, height, 3, bits)
            await client.until(lambda viewer, wanted=wanted: viewer.pixels == wanted)  # type: ignore[misc]
            assert (client.viewer.width, client.viewer.height) == (width, height)


async def test_a_viewer_is_told_the_right_size_at_once(tmp_path: Path) -> None:
    """Though nobody has watched since the guest set its mode: there are viewers that do not hear of another one."""
    async with watched_guest(path := tmp_path / "vnc"), rfb_client(path, RAW, extensions=()) as client:
        assert (client.viewer.width, client.viewer.height) == SIZE
        await client.until(shows())


async def test_a_viewer_that_cannot_resize_keeps_to_its_size(tmp_path: Path) -> None:
    """What lies beyond is not sent, though it is only moved; the test viewer checks each rectangle."""
    async with (
        watched_guest(path := tmp_path / "vnc") as shell,
        rfb_client(path, HEXTILE, COPY_RECT, extensions=()) as client,
    ):
        await client.until(shows())
        await shell.ask("screen mode 640x480")
        await shell.order("screen animate 1 text fps=50")
        await shell.vm.wait_serial("animating")
        before = len(client.viewer.updates)
        await client.until(lambda viewer: len(viewer.updates) > before + 3)
        await shell.prompt()
        await shell.ask("screen picture 2")
        lines = canvas_bytes(*OTHER, seed=2)
        wanted = b"".join(lines[4 * OTHER[0] * y :][: 4 * SIZE[0]] for y in range(SIZE[1]))
        await client.until(lambda viewer: viewer.pixels == wanted)


async def test_what_moves_is_right(tmp_path: Path) -> None:
    """Text that scrolls while a picture moves, for a viewer that copies what it has."""
    async with watched_guest(path := tmp_path / "vnc", size=OTHER) as shell, rfb_client(path, RAW, COPY_RECT) as client:
        await client.until(shows(*OTHER))
        await shell.order("screen animate 60 both fps=10")
        await shell.vm.wait_serial("animating")
        # A viewer on a busy host is not always quick enough for it.
        await client.until(lambda viewer: any(number == COPY_RECT for _, number in viewer.updates[-1].rects))
        await shell.vm.send_serial("\x03")
        await shell.prompt()
        async with rfb_client(path, RAW) as fresh:
            await fresh.until(lambda viewer: viewer.updates)
            await client.until(lambda viewer: viewer.pixels == fresh.viewer.pixels)


async def test_a_screen_that_is_off_is_dark(tmp_path: Path) -> None:
    """And has the size that it was given; the viewer follows when the guest switches it on."""
    async with (
        guest(vnc=f"unix:{(path := tmp_path / 'vnc')},size=400x300") as shell,
        rfb_client(path, ZRLE) as client,
    ):
        assert (client.viewer.width, client.viewer.height) == (400, 300)
        await client.until(lambda viewer: viewer.updates)
        assert not any(client.viewer.pixels)
        await shell.ask("screen mode 320x200")
        await shell.ask("screen picture")
        await client.until(shows())


async def test_a_screen_that_nobody_watches_costs_nothing(tmp_path: Path) -> None:
    """KVM logs nothing before the first viewer, and nothing after the last."""
    async with watched_guest(path := tmp_path / "vnc") as shell:
        assert not is_logging(shell.vm)
        async with rfb_client(path, RAW) as first, rfb_client(path, RAW) as second:
            await first.until(shows())
            await second.until(shows())
            assert is_logging(shell.vm)
        while viewers_of(shell.vm).server.viewers:
            await shell.event("VNC_DISCONNECTED")
        assert not is_logging(shell.vm)
        await shell.ask("screen picture 2")
        async with rfb_client(path, RAW) as third:
            await third.until(shows(seed=2))


async def test_viewers_of_different_speeds(tmp_path: Path) -> None:
    """One reads all the time, one not at all while much happens: both end with the right picture, soon."""
    async with (
        watched_guest(path := tmp_path / "vnc", size=OTHER) as shell,
        rfb_client(path, RAW) as fast,
        rfb_client(path, ZRLE) as slow,
    ):
        slow.viewer.request(incremental=False)
        await slow.flush()
        for seed in range(2, 6):
            await shell.ask(f"screen picture {seed}")
            await fast.until(shows(*OTHER, seed=seed))
        assert not slow.viewer.updates
        await slow.until(shows(*OTHER, seed=5))
        # The first was begun when it was asked for; what came later came at once.
        assert len(slow.viewer.updates) < len(fast.viewer.updates)


@pytest.mark.parametrize(("devices", "keyboard"), [((), 0), (VIRTIO, 2)], ids=["ps2", "virtio"])
async def test_keys(devices: tuple[str, ...], keyboard: int, tmp_path: Path) -> None:
    """Down and up, with Shift around what needs it."""
    async with watched_guest(path := tmp_path / "vnc", device=list(devices)) as shell, rfb_client(path) as client:
        await listen(shell, "keys")
        await client.key(A, down=True)
        await client.key(A, down=False)
        assert await lines_of(shell, 2) == [f"key {KEY_A} {way} from {keyboard}" for way in ("down", "up")]
        await client.key(SHIFT, down=True)
        await client.key(CAPITAL_A, down=True)
        await client.key(CAPITAL_A, down=False)
        await client.key(SHIFT, down=False)
        assert [line.split()[1:3] for line in await lines_of(shell, 4)] == [
            [str(KEY_LEFTSHIFT), "down"], [str(KEY_A), "down"], [str(KEY_A), "up"], [str(KEY_LEFTSHIFT), "up"],
        ]  # fmt: skip


@pytest.mark.parametrize("devices", [(), VIRTIO], ids=["ps2", "virtio"])
async def test_no_key_stays_down(devices: tuple[str, ...], tmp_path: Path) -> None:
    """When a viewer is gone, its key comes up, but for one that another viewer holds."""
    async with watched_guest(path := tmp_path / "vnc", device=list(devices)) as shell:
        await listen(shell, "keys")
        async with rfb_client(path) as stays, rfb_client(path) as leaves:
            await leaves.key(A, down=True)
            await leaves.key(B, down=True)
            await lines_of(shell, 2)
            await stays.key(B, down=True)
            await stays.key(C, down=True)
            await lines_of(shell, 1)
            await trio.aclose_forcefully(leaves.stream)
            assert ups(await lines_of(shell, 1)) == {KEY_A}
        assert ups(await lines_of(shell, 2)) == {KEY_B, KEY_C}


async def test_tablet(tmp_path: Path) -> None:
    """The corners are reached, and a click comes where it was made; wheels turn."""
    async with watched_guest(path := tmp_path / "vnc", device=list(VIRTIO)) as shell, rfb_client(path) as client:
        await listen(shell, "mouse")
        await client.point(SIZE[0] - 1, SIZE[1] - 1)
        await client.point(0, 0)
        await client.point(0, 0, buttons=1)
        await client.point(0, 0)
        await client.point(0, 0, buttons=8)
        found = [line.rsplit(" from", 1)[0] for line in await lines_of(shell, 5)]
        assert found == ["at 32767 32767", "at 0 0", "button left down", "button left up", "wheel 1"]


async def test_mouse(tmp_path: Path) -> None:
    """Without a tablet positions become ways in the guest's pixels; the viewer is told, and may send ways itself."""
    async with watched_guest(path := tmp_path / "vnc") as shell:
        async with rfb_client(path, extensions=()) as plain:
            await listen(shell, "mouse")
            await plain.point(0, 0)
            await lines_of(shell, 1)
            await plain.point(30, 20)
            assert await lines_of(shell, 1) == ["move 30 20 from 1"]
            await plain.point(30, 20, buttons=4)
            assert await lines_of(shell, 1) == ["button right down from 1"]
        assert await lines_of(shell, 1) == ["button right up from 1"]
        async with rfb_client(path, RAW) as knowing:
            await knowing.until(lambda viewer: viewer.absolute is False)
            await knowing.point(0x7FFF + 5, 0x7FFF - 7)
            assert await lines_of(shell, 1) == ["move 5 -7 from 1"]


@pytest.mark.parametrize("devices", [(), VIRTIO], ids=["ps2", "virtio"])
async def test_lights_come_back(devices: tuple[str, ...], tmp_path: Path) -> None:
    """What the guest lights, the viewer shows."""
    async with watched_guest(path := tmp_path / "vnc", device=list(devices)) as shell, rfb_client(path) as client:
        for lights in (5, 0, 2):
            await shell.ask(f"leds {lights}")
            await client.until(lambda viewer, lights=lights: viewer.leds == lights)  # type: ignore[misc]
        async with rfb_client(path) as late:
            await late.until(lambda viewer: viewer.leds == 2)


@pytest.mark.parametrize("watched", [True, False])
async def test_a_screenshot_is_what_viewers_see(watched: bool, tmp_path: Path) -> None:
    """Each pixel, whether there are any or not."""
    async with watched_guest(path := tmp_path / "vnc") as shell:
        target = MachineTarget(shell.vm)
        for image_format in ("png", "ppm"):
            picture = tmp_path / f"picture.{image_format}"
            order = {"filename": str(picture), "format": image_format}
            if watched:
                async with rfb_client(path) as client:
                    await client.until(shows())
                    await screendump(target, order)
            else:
                await screendump(target, order)
            with Image.open(picture) as image:
                assert image.convert("RGB").tobytes("raw", "BGRX") == canvas_bytes()
