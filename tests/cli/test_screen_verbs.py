"""`tvmm screenshot` and `tvmm record` of a machine in another process, whose guest shows a known picture."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.guest_picture import picture
from tests.support.process import PROMPT, call, command, read_until, started, until

pytestmark = pytest.mark.guest

WIDTH, HEIGHT = 320, 200


@pytest.fixture
def shown(registry: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The machine, once its guest has drawn and is at its prompt."""
    with started("run", "--name", "web", "--display", "bochs-display") as process:
        assert process.stdin is not None
        read_until(process.stdout, PROMPT)
        process.stdin.write(f"screen mode {WIDTH}x{HEIGHT}\nscreen picture 7\n".encode())
        read_until(process.stdout, b"fnv1a")
        until(lambda: call("ps")[1].count("web") == 1)
        yield process


def pixels(path: Path) -> list[list[int]]:
    """Rows of 0xRRGGBB."""
    with Image.open(path) as image:
        assert image.size == (WIDTH, HEIGHT)
        data = image.convert("RGB").tobytes()
    values = [int.from_bytes(data[at : at + 3], "big") for at in range(0, len(data), 3)]
    return [values[at : at + WIDTH] for at in range(0, len(values), WIDTH)]


@pytest.mark.parametrize("name", ["screen.png", "screen.PPM"])
def test_a_picture(shown: subprocess.Popen[bytes], tmp_path: Path, name: str) -> None:
    """Pixel by pixel, in place of what was there; nothing is left beside it."""
    path = tmp_path / name
    path.write_text("old")
    assert call("screenshot", str(path)) == (0, f"the screen of web is in {path}\n", "")
    assert pixels(path) == picture(WIDTH, HEIGHT, 7)
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_for_a_while(shown: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """A screen on which nothing happens is one picture."""
    status, told, said = call("record", "web", f"{tmp_path}/frames/", "--for", "0.5s", "--fps", "20")
    assert (status, said) == (0, "")
    assert "of web are in" in told
    [path] = (tmp_path / "frames").iterdir()
    assert pixels(path) == picture(WIDTH, HEIGHT, 7)


def test_a_film_until_ctrl_c(shown: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """It is whole, and as exact as a picture."""
    path = tmp_path / "film.webp"
    with subprocess.Popen(command("record", "web", str(path)), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as verb:
        # Its first picture needs Pillow.
        until(lambda: "_imaging" in Path(f"/proc/{verb.pid}/maps").read_text())
        verb.send_signal(signal.SIGINT)
        told, said = verb.communicate()
    assert (verb.returncode, said) == (0, b"")
    assert b"1 pictures" in told
    assert pixels(path) == picture(WIDTH, HEIGHT, 7)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("screenshot", "web", "screen.jpg"), "'screen.jpg' does not end in .png or .ppm"),
        (("screenshot", "web", "/nowhere/screen.png"), "cannot write /nowhere/screen.png: No such file or directory"),
        (("record", "web", "screen.avi"), "'screen.avi' is neither .webp, .mp4 nor a directory"),
        (("record", "web", "a.webp", "--fps", "1000"), "--fps '1000' is none; write a number from 1 to 60"),
        (("record", "web", "a.webp", "--for", "soon"), "for"),
    ],
)
def test_what_cannot_be(shown: subprocess.Popen[bytes], arguments: tuple[str, ...], sentence: str) -> None:
    """One line each, and nothing happens to the machine."""
    status, told, said = call(*arguments)
    assert (status, told) == (2, "")
    assert sentence in said
    assert said.count("\n") == 1
    assert shown.poll() is None


def test_a_machine_without_a_display(registry: Path, tmp_path: Path) -> None:
    """Says what to start it with."""
    with started("run", "--name", "web") as process:
        read_until(process.stdout, PROMPT)
        until(lambda: call("ps")[1].count("web") == 1)
        status, _, said = call("screenshot", "web", str(tmp_path / "a.png"))
        assert status == 2
        assert said == "tvmm: this machine has no display; start it with --display bochs-display, or --vnc\n"

