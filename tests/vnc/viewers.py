"""Other people's viewers, each run against a server to see what it shows.

Each is a `Viewer`: the encodings and security types that it can be told to use, `missing` if this host lacks it, and
`capture`, which runs it and gives the picture that it has. They are optional: Debian's tigervnc-viewer with xvfb,
xdotool and x11-apps, gvncviewer, vncsnapshot, libvncserver-dev with gcc; PyPI's vncdotool, asyncvnc and Pillow.

All of this blocks; trio tests call it in a thread.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tests.vnc.fake_rfb import response
from tests.vnc.programs import QUIET_SECONDS, Screen, ViewerFailed, answer_prompts, process, run, settled, x_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from PIL.Image import Image

    Until = Callable[[Image], bool]

__all__ = ["VIEWERS", "Target", "Viewer", "ViewerFailed", "difference", "opened"]


class Target(NamedTuple):
    """A server and what it asks for."""

    host: str
    port: int
    user: str = ""
    password: str = ""
    authority: Path | None = None
    """The certificate that the server's is checked with, as a PEM file."""


class Viewer(Protocol):
    """One program. Encodings and security types are spelled as in `VENCRYPT` and below; the first is its own choice."""

    name: str
    missing: str
    encodings: Sequence[str]
    securities: Sequence[str]
    types: bool
    """Whether `capture` can press keys, and click."""
    lossy: bool
    """Whether the picture that it gives is a JPEG file, whatever was sent."""

    def capture(
        self,
        target: Target,
        encoding: str = "",
        security: str = "none",
        keys: Sequence[str] = (),
        until: Until | None = None,
        click: tuple[int, int] | None = None,
    ) -> Image:
        """The picture, RGB; then `keys` (characters) are pressed and released one after the other, and the left button
        at `click`.

        A viewer that cannot tell when all of the screen has come takes `until` for the sign of it, or a time without
        changes.
        """


VENCRYPT = {
    "plain": 256,
    "tls-none": 257,
    "tls-vnc": 258,
    "tls-plain": 259,
    "x509-none": 260,
    "x509-vnc": 261,
    "x509-plain": 262,
}
"""Security types inside VeNCrypt, and their numbers. Outside of it: `none` and `vnc`."""


def lacking(programs: Sequence[str] = (), modules: Sequence[str] = ()) -> str:
    """What of these this host does not have, as a reason to skip; '' if all are there."""
    absent = [name for name in programs if shutil.which(name) is None and not Path(name).exists()]
    absent += [name for name in ("PIL", *modules) if importlib.util.find_spec(name) is None]
    return f"not here: {', '.join(absent)}" if absent else ""


def opened(data: bytes) -> Image:
    """An image file's picture as RGB."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except OSError as error:
        raise ViewerFailed(f"no picture: {error}") from None


def difference(left: Image, right: Image) -> int:
    """The largest difference of a colour's value in any pixel, 0 to 255; pictures of two sizes differ by 255."""
    from PIL import ImageChops

    if left.size != right.size:
        return 255
    return max(int(high) for _, high in ImageChops.difference(left, right).getextrema())  # type: ignore[misc]


class TigerVnc:
    """TigerVNC's vncviewer in an X server of its own; the picture is what is on that X server's screen."""

    name = "TigerVNC vncviewer"
    missing = lacking(["xtigervncviewer", "Xvfb", "xwd", "xdotool"])
    encodings: Sequence[str] = ("tight", "zrle", "hextile", "raw")
    securities: Sequence[str] = ("none", "vnc", *VENCRYPT)
    types = True
    lossy = False

    def __init__(self, *, jpeg: int | None = None) -> None:
        self._jpeg = jpeg
        if jpeg is not None:
            self.name += f", JPEG quality {jpeg}"
            self.encodings = ("tight",)

    def capture(
        self,
        target: Target,
        encoding: str = "",
        security: str = "none",
        keys: Sequence[str] = (),
        until: Until | None = None,
        click: tuple[int, int] | None = None,
    ) -> Image:
        with self.watching(target, encoding, security) as screen:
            picture = settled(screen.picture, until)
            for key in keys:
                screen.press(key)
            if click:
                screen.click(*click)
            if keys or click:
                time.sleep(QUIET_SECONDS)  # nothing tells when the viewer has taken them from the X server
            return picture

    @contextmanager
    def watching(self, target: Target, encoding: str = "", security: str = "none") -> Iterator[Screen]:
        """The viewer stays connected in the block."""
        spelled = "".join(part.upper() if part in ("tls",) else part.capitalize() for part in security.split("-"))
        command = [
            "xtigervncviewer",
            f"-SecurityTypes={'VncAuth' if security == 'vnc' else spelled}",
            f"-PreferredEncoding={encoding or 'tight'}",
            "-AutoSelect=0",
            "-FullColor=1",
            "-NoJPEG" if self._jpeg is None else f"-QualityLevel={self._jpeg}",
            "-RemoteResize=0",
            "-Shared",
            "-ReconnectOnError=0",
            "-AlertOnFatalError=0",
            f"{target.host}::{target.port}",
        ]
        if target.authority:
            command.insert(1, f"-X509CA={target.authority}")
        with tempfile.TemporaryDirectory() as home, x_server() as display:
            environment = {"HOME": home, "DISPLAY": display}
            secrets = {"VNC_USERNAME": target.user, "VNC_PASSWORD": target.password} if target.password else {}
            with process(command, **environment, **secrets) as viewer:
                yield Screen(display, " - TigerVNC", viewer)


class GvncCapture:
    """gtk-vnc's gvnccapture, which asks for Tight, hextile and raw as it pleases, and types nothing."""

    name = "gvnccapture (gtk-vnc)"
    missing = lacking(["gvnccapture", "unshare"])
    encodings: Sequence[str] = ("",)
    securities: Sequence[str] = ("none", "vnc", *(each for each in VENCRYPT if each != "plain"))
    types = False
    lossy = False

    _TRUSTING: Sequence[str] = (
        "unshare", "--map-root-user", "--mount", "sh", "-c",
        'mount --bind "$0" /etc/ssl/certs/ca-certificates.crt && exec "$@"',
    )  # fmt: skip
    """gtk-vnc looks for an authority in the account's home, wherever $HOME is, and among the system's. It gets a
    system of its own."""

    def capture(
        self,
        target: Target,
        encoding: str = "",
        security: str = "none",
        keys: Sequence[str] = (),
        until: Until | None = None,
        click: tuple[int, int] | None = None,
    ) -> Image:
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "picture.png"
            command = ["gvnccapture", f"{target.host}:{target.port - 5900}", str(picture)]
            if target.authority:
                command = [*self._TRUSTING, str(target.authority), *command]
            answer_prompts(command, target.user.encode(), target.password.encode())
            return opened(picture.read_bytes())


class GvncViewer:
    """gtk-vnc's gvncviewer in an X server of its own, without anybody who answers its questions for a password."""

    name = "gvncviewer (gtk-vnc)"
    missing = lacking(["gvncviewer", "Xvfb", "xwd", "xdotool"])
    encodings: Sequence[str] = ("",)
    securities: Sequence[str] = ("none",)
    types = True
    lossy = False

    _MENU_HEIGHT = 25
    """Of GTK's own theme. The guest's screen is below."""

    def capture(
        self,
        target: Target,
        encoding: str = "",
        security: str = "none",
        keys: Sequence[str] = (),
        until: Until | None = None,
        click: tuple[int, int] | None = None,
    ) -> Image:
        command = ["gvncviewer", f"{target.host}:{target.port - 5900}"]
        with x_server() as display, process(command, DISPLAY=display) as viewer:
            screen = Screen(display, " - GVncViewer", viewer)

            def shown() -> Image | None:
                whole = screen.picture()
                return whole.crop((0, self._MENU_HEIGHT, *whole.size)) if whole else None

            picture = settled(shown, until)
            for key in keys:
                screen.press(key)
            if click:
                screen.click(click[0], click[1] + self._MENU_HEIGHT)
            if keys or click:
                time.sleep(QUIET_SECONDS)
            return picture


class VncSnapshot:
    """vncsnapshot, a child of TightVNC 1.2: version 3.3, its file is always JPEG."""

    name = "vncsnapshot"
    missing = lacking(["vncsnapshot"])
    encodings: Sequence[str] = ("tight", "hextile", "corre", "rre", "raw")
    securities: Sequence[str] = ("none", "vnc")
    types = False
    lossy = True

    def capture(
        self,
        target: Target,
        encoding: str = "",
        security: str = "none",
        keys: Sequence[str] = (),
        until: Until | None = None,
        click: tuple[int, int] | None = None,
    ) -> Image:
        with tempfile.TemporaryDirectory() as folder:
            picture, secret = Path(folder) / "picture.jpeg", Path(folder) / "password"
            secret.write_bytes(obscured(target.password))
            run(
                [
                    "vncsnapshot", "-quiet", "-nojpeg", "-nocursor", "-quality", "100",
                    "-encodings", f"{encoding or 'tight'} copyrect",
                    *(["-passwd", str(secret)] if target.password else []),
                    f"{target.host}:{target.port - 5900}", str(picture),
                ]
            )  # fmt: skip
            return opened(picture.read_bytes())


def obscured(password: str) -> bytes:
    """A password as VNC's password files have it: DES with a key that everybody knows."""
    return response("\x17\x52\x6b\x06\x23\x4e\x58\x07", password.encode()[:8].ljust(8, b"\0"))


class LibVncClient:
    """libvncclient, through a small program that is compiled on first use."""

    name = "libvncclient"
    missing = lacking(["gcc", "/usr/include/rfb/rfbclient.h"])
    encodings: Sequence[str] = ("tight", "zrle", "hextile", "zlib", "ultra", "trle", "zywrle", "corre", "rre", "raw")
    securities: Sequence[str] = ("none", "vnc", *(each for each in VENCRYPT if each != "plain"))
    types = True
    lossy = False

    def __init__(self, *, jpeg: int | None = None) -> None:
        self._jpeg = jpeg
        if jpeg is not None:
            self.name += f", JPEG quality {jpeg}"
            self.encodings = ("tight",)

    def capture(
        self,
        target: Target,
        encoding: str = "",
        security: str = "none",
        keys: Sequence[str] = (),
        until: Until | None = None,
        click: tuple[int, int] | None = None,
    ) -> Image:
        schemes = {"none": "1", "vnc": "2"}.get(security) or f"19,{VENCRYPT[security]}"
        arguments = [
            target.host, str(target.port), encoding or "tight", schemes,
            str(-1 if self._jpeg is None else self._jpeg), str(round(QUIET_SECONDS * 1000)),
            *(hex(ord(key)) for key in keys),
        ]  # fmt: skip
        data = run(
            [str(built("libvnc_viewer.c")), *arguments],
            VIEWER_USER=target.user,
            VIEWER_PASSWORD=target.password,
            VIEWER_CA=str(target.authority or ""),
            VIEWER_CLICK="{},{}".format(*click) if click else "",
        )
        # libvncclient writes its log to standard error; the picture begins with its magic number.
        return opened(data)


@functools.cache
def built(source: str) -> Path:
    """The program made of a source beside this file; kept until this process ends."""
    folder = tempfile.TemporaryDirectory()
    built.folder = folder  # type: ignore[attr-defined]
    program = Path(folder.name) / "program"
    run(["gcc", "-O2", "-Wall", "-o", str(program), str(Path(__file__).with_name(source)), "-lvncclient"])
    return program


class VncDoTool:
    """vncdotool's command; it asks for Raw unless its class is told otherwise."""

    name = "vncdotool"
    missing = lacking(modules=["vncdotool"])
    encodings: Sequence[str] = ("raw", "zrle", "hextile", "corre", "rre")
    securities: Sequence[str] = ("none", "vnc")
    types = True
    lossy = False

    _CODE = """
import sys
from vncdotool import client, command, rfb
client.VNCDoToolClient.encoding = rfb.Encoding[sys.argv.pop(1)]
command.vncdo()
"""
    _NAMES = {"raw": "RAW", "zrle": "ZRLE", "hextile": "HEXTILE", "corre": "CORRE", "rre": "RRE"}  # noqa: RUF012

    def capture(
        self,
        target: Target,
        encoding: str = "",
        security: str = "none",
        keys: Sequence[str] = (),
        until: Until | None = None,
        click: tuple[int, int] | None = None,
    ) -> Image:
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "picture.png"
            password = ["-p", target.password] if target.password else []
            pressed = [word for key in keys for word in ("key", key)]
            if click:
                pressed += ["move", *map(str, click), "click", "1"]
            run(
                [
                    sys.executable, "-c", self._CODE, self._NAMES[encoding or "raw"], *password,
                    "--nocursor", "-s", f"{target.host}::{target.port}", "capture", str(picture), *pressed,
                ]
            )  # fmt: skip
            return opened(picture.read_bytes())


class AsyncVnc:
    """asyncvnc: zlib or raw, as the server likes; no picture without all of the screen."""

    name = "asyncvnc"
    missing = lacking(modules=["asyncvnc"])
    encodings: Sequence[str] = ("zlib", "raw")
    securities: Sequence[str] = ("none", "vnc")
    types = True
    lossy = False

    _CODE = """
import asyncio, sys, asyncvnc
from PIL import Image
host, port, user, password, encoding, path, click, *keys = sys.argv[1:]
async def main():
    async with asyncvnc.connect(host, int(port), user or None, password or None) as client:
        if encoding == "raw":
            client.writer.write(bytes([2, 0, 0, 1, 0, 0, 0, 0]))
        Image.fromarray(await client.screenshot()).convert("RGB").save(path)
        for key in keys:
            client.keyboard.press(key)
        if click:
            client.mouse.move(*map(int, click.split(",")))
            client.mouse.click()
        await client.drain()
asyncio.run(main())
"""

    def capture(
        self,
        target: Target,
        encoding: str = "",
        security: str = "none",
        keys: Sequence[str] = (),
        until: Until | None = None,
        click: tuple[int, int] | None = None,
    ) -> Image:
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "picture.png"
            run(
                [
                    sys.executable, "-c", self._CODE, target.host, str(target.port), target.user, target.password,
                    encoding, str(picture), "{},{}".format(*click) if click else "", *keys,
                ]
            )  # fmt: skip
            return opened(picture.read_bytes())


VIEWERS: tuple[Viewer, ...] = (
    TigerVnc(),
    TigerVnc(jpeg=8),
    GvncCapture(),
    GvncViewer(),
    VncSnapshot(),
    LibVncClient(),
    LibVncClient(jpeg=8),
    VncDoTool(),
    AsyncVnc(),
)
