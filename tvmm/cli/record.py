"""``tvmm record [NAME] FILE``: what a guest shows, as a film or as a series of pictures."""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmm.cli.machines import control, named
from tvmm.cli.output import printable, say
from tvmm.config.units import parse_duration
from tvmm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from PIL import Image

    from tvmm.cli.parser import Parser
    from tvmm.control.client import QmpClient

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
  tvmm record web boot.webp --for 20s      a film that browsers show
  tvmm record web frames/ --fps 2          frames/00000.png, frames/00001.png ... until Ctrl-C
  tvmm record web boot.mp4                 with PyAV: pip install 'tvmm[record]'
"""

_MORE = """\
It ends after --for, with Ctrl-C, or with the machine, and what was recorded until then is kept. Pictures
that are the same as the one before count as its length and take no room.
"""
DEFAULT_FPS, MAX_FPS = 10, 60
MAX_SECONDS = 86400.0
WEBP_BYTES = 1 << 30
"""Of pixels that a .webp is made of: they are all in memory until it is written."""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.completers import attach, machine_names

    parser.describe("Record what a guest shows.", _EXAMPLES, _MORE)
    name = parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="the machine, as 'tvmm ps' lists it; may be left out while only one runs",
    )
    parser.add_argument("file", metavar="FILE", help="FILE.webp, FILE.mp4, or a directory, with a / behind")
    parser.add_argument("--fps", metavar="N", help=f"pictures a second, 1 to {MAX_FPS} (default {DEFAULT_FPS})")
    parser.add_argument("--for", metavar="TIME", dest="length", help="how long: 30s, 5m (default: until Ctrl-C)")
    attach(name, machine_names)


class Frame:
    """A picture and how long it was to be seen, in seconds."""

    def __init__(self, image: Image.Image, seconds: float) -> None:
        self.image = image
        self.seconds = seconds


def run(options: Mapping[str, Any]) -> int:
    """Record until the end, and say what there is."""
    fps = _fps(options.get("fps"))
    length = parse_duration(options["length"], "for") if options.get("length") else MAX_SECONDS
    write = _writer(options["file"])
    entry = named(options)
    stopped: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    try:
        with tempfile.TemporaryDirectory(prefix="tvmm-") as scratch, control(entry, timeout=60.0) as client:
            frames = _frames(client, Path(scratch) / "frame.ppm", 1 / fps, length, stopped)
            count, seconds = write(Path(options["file"]), frames)
    finally:
        signal.signal(signal.SIGINT, before)
    say(printable(f"{seconds:.1f} s of {entry.name} are in {options['file']}, {count} pictures"))
    return 0


def _fps(text: str | None) -> int:
    if text is None:
        return DEFAULT_FPS
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_FPS):
        raise ConfigError(f"--fps {text!r} is none", f"write a number from 1 to {MAX_FPS}")
    return int(text)


def _frames(
    client: QmpClient, path: Path, period: float, length: float, stopped: list[int]
) -> Iterator[Frame]:
    """Pictures that differ from the one before, each once its time is over."""
    from PIL import Image

    start = time.monotonic()
    shown: Frame | None = None
    since = start
    for number in range(math.ceil(length / period)):
        wait = start + number * period - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        if stopped and shown is not None:
            break
        try:
            client.execute("screendump", filename=str(path))
        except HostError:
            break  # The machine has ended.
        now = time.monotonic()
        with Image.open(path) as image:
            image.load()
            picture = image.copy()
        if shown is not None and (picture.size, picture.tobytes()) == (shown.image.size, shown.image.tobytes()):
            continue
        if shown is not None:
            shown.seconds = now - since
            yield shown
        shown, since = Frame(picture, 0.0), now
    if shown is not None:
        shown.seconds = max(time.monotonic() - since, period)
        yield shown


def _writer(name: str) -> Any:
    """What writes a file of that name. Raises `ConfigError`."""
    ending = os.path.splitext(name)[1].lower()
    if name.endswith("/") or os.path.isdir(name):
        return _pictures
    if ending == ".webp":
        return _webp
    if ending == ".mp4":
        if importlib.util.find_spec("av") is None:
            raise ConfigError("recording .mp4 needs PyAV", "pip install 'tvmm[record]', or name a .webp")
        return _mp4
    raise ConfigError(f"{name!r} is neither .webp, .mp4 nor a directory", "name one, a directory with a / behind")


def _pictures(path: Path, frames: Iterator[Frame]) -> tuple[int, float]:
    count, seconds = 0, 0.0
    try:
        path.mkdir(parents=True, exist_ok=True)
        for count, frame in enumerate(frames, 1):
            frame.image.save(path / f"{count - 1:05}.png")
            seconds += frame.seconds
    except OSError as error:
        raise HostError(f"cannot write into {path}: {error.strerror or error}") from error
    return count, seconds


def _webp(path: Path, frames: Iterator[Frame]) -> tuple[int, float]:
    """All pictures have the size of the first one: that of a film cannot change."""
    kept, held = [], 0
    for frame in frames:
        kept.append(frame)
        held += len(frame.image.tobytes())
        if held > WEBP_BYTES:
            say(f"{path} is full; a .mp4 or a directory takes more")
            break
    if not kept:
        return 0, 0.0
    size = kept[0].image.size
    images = [frame.image if frame.image.size == size else frame.image.resize(size) for frame in kept]
    durations = [max(1, round(frame.seconds * 1000)) for frame in kept]
    try:
        images[0].save(path, save_all=True, append_images=images[1:], duration=durations, lossless=True, method=0)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror or error}") from error
    return len(kept), sum(frame.seconds for frame in kept)


def _mp4(path: Path, frames: Iterator[Frame]) -> tuple[int, float]:
    av: Any = importlib.import_module("av")
    count, seconds, size = 0, 0.0, (0, 0)
    try:
        with av.open(str(path), "w") as film:
            stream = None
            for frame in frames:
                count += 1
                if stream is None:
                    # H.264 has pixels in pairs.
                    size = frame.image.width & ~1, frame.image.height & ~1
                    stream = film.add_stream("libx264", rate=1000)
                    stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
                picture = av.VideoFrame.from_image(frame.image.resize(size))
                picture.pts = round(seconds * 1000)
                film.mux(stream.encode(picture))
                seconds += frame.seconds
            if stream is not None:
                film.mux(stream.encode(None))
    except (OSError, av.error.FFmpegError) as error:
        raise HostError(f"cannot write {path}: {error}") from error
    return count, seconds
