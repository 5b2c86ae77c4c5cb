"""Frames of blocks: their bytes, and that nothing outside of an image is written whatever a source sends."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.errors import HostError, ProtocolError
from tvmm.migration.disk_files import DiskTarget, ImageFile
from tvmm.migration.disk_frames import (
    DATA_MAX,
    HEADER_BYTES,
    LAST_ROUND,
    ROUND_LIMIT,
    ZEROES_MAX,
    DiskFrame,
    FrameKind,
    check_frame,
)
from tvmm.migration.disk_receiver import DiskReceiver
from tvmm.migration.link import LinkLost
from tvmm.migration.plain_thread import PlainThreadStream

SIZES = (1 << 20, 0, 512)
DATA, ZEROES, END = FrameKind


def test_the_bytes_of_a_frame() -> None:
    """They are out there."""
    frame = DiskFrame(DATA, 0x0102, 0x8000, 0x1122334455667788)
    data = bytes.fromhex("01 00 0201 00800000 8877665544332211")
    assert frame.to_bytes() == data
    assert DiskFrame.from_bytes(data) == frame
    assert len(data) == HEADER_BYTES


@pytest.mark.parametrize("data", [bytes(16), b"\4" + bytes(15), b"\1\1" + bytes(14)])
def test_what_is_no_frame(data: bytes) -> None:
    """A kind that there is not, or a byte that has to be zero."""
    with pytest.raises(ProtocolError, match="no frame"):
        DiskFrame.from_bytes(data)


@pytest.mark.parametrize(
    "frame",
    [
        DiskFrame(DATA, 0, 512, 0),
        DiskFrame(DATA, 0, DATA_MAX, (1 << 20) - DATA_MAX),
        DiskFrame(ZEROES, 0, 1 << 20, 0),
        DiskFrame(DATA, 2, 512, 0),
        DiskFrame(END, 0, 0, 7),
        DiskFrame(END, 0, 0, 7 | LAST_ROUND),
    ],
)
def test_good_frames(frame: DiskFrame) -> None:
    """At their limits."""
    assert check_frame(frame, SIZES, 7) is frame


@pytest.mark.parametrize(
    "frame",
    [
        DiskFrame(DATA, 0, 0, 0),
        DiskFrame(DATA, 0, DATA_MAX + 512, 0),
        DiskFrame(ZEROES, 0, ZEROES_MAX + 512, 0),
        DiskFrame(DATA, 0, 511, 0),
        DiskFrame(DATA, 0, 512, 1),
        DiskFrame(DATA, 0, 512, 1 << 20),
        DiskFrame(DATA, 0, 1024, (1 << 20) - 512),
        DiskFrame(DATA, 0, 512, (1 << 64) - 512),
        DiskFrame(ZEROES, 1, 512, 0),
        DiskFrame(DATA, 2, 1024, 0),
        DiskFrame(DATA, 3, 512, 0),
        DiskFrame(DATA, 0xFFFF, 512, 0),
        DiskFrame(END, 0, 0, 6),
        DiskFrame(END, 0, 0, 8 | LAST_ROUND),
        DiskFrame(END, 1, 0, 7),
        DiskFrame(END, 0, 1, 7),
    ],
)
def test_bad_frames(frame: DiskFrame) -> None:
    """Lengths, places, disks and rounds that there are not."""
    with pytest.raises(ProtocolError):
        check_frame(frame, SIZES, 7)


def test_rounds_have_an_end() -> None:
    """However patient the source is."""
    with pytest.raises(ProtocolError):
        check_frame(DiskFrame(END, 0, 0, ROUND_LIMIT), SIZES, ROUND_LIMIT)


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_any_header_stays_within_its_image(data: bytes) -> None:
    """It is refused, or every byte that it names is one of the image's."""
    try:
        frame = check_frame(DiskFrame.from_bytes(data), SIZES, 0)
    except ProtocolError:
        return
    if frame.kind is not END:
        assert frame.offset + frame.length <= SIZES[frame.disk]


def receive(tmp_path: Path, data: bytes) -> tuple[DiskReceiver, bytes]:
    """What comes of a stream, up to the end of a round; the receiver, and its image of 1 MiB."""
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 1 << 20)
    near, far = socket.socketpair()
    with near, far, image.open("r+b") as file, DiskTarget(file.fileno(), "image", 1 << 20) as target:
        near.sendall(data)
        near.shutdown(socket.SHUT_WR)
        receiver = DiskReceiver(PlainThreadStream(far), [target, None])
        receiver.receive_round()
    return receiver, image.read_bytes()


def test_a_round(tmp_path: Path) -> None:
    """Later frames go over earlier ones."""
    frames = (
        DiskFrame(DATA, 0, 1024, 512).to_bytes() + b"a" * 1024,
        DiskFrame(ZEROES, 0, 512, 512).to_bytes(),
        DiskFrame(DATA, 0, 512, 1 << 19).to_bytes() + b"b" * 512,
        DiskFrame(END, 0, 0, 0 | LAST_ROUND).to_bytes(),
    )
    receiver, data = receive(tmp_path, b"".join(frames))
    assert receiver.was_last
    assert receiver.rounds == 1
    assert data == bytes(1024) + b"a" * 512 + bytes((1 << 19) - 1536) + b"b" * 512 + bytes((1 << 19) - 512)


@pytest.mark.parametrize("cut", [0, 8, 16, 100])
def test_a_stream_that_ends_early(tmp_path: Path, cut: int) -> None:
    """Within a frame or between two."""
    with pytest.raises(LinkLost):
        receive(tmp_path, (DiskFrame(DATA, 0, 1024, 512).to_bytes() + b"a" * 1024)[:cut])


def test_a_disk_that_is_not_copied(tmp_path: Path) -> None:
    """Nothing is written to it."""
    with pytest.raises(ProtocolError):
        receive(tmp_path, DiskFrame(ZEROES, 1, 512, 0).to_bytes())


@pytest.mark.parametrize("size", [0, 512, 1 << 16, (1 << 20) + 512])
def test_extents_are_all_of_an_image(tmp_path: Path, size: int) -> None:
    """Without a gap, and everything that is not zeroes is in one that says so."""
    image = tmp_path / "image"
    with image.open("wb") as written:
        for at in range(0, size, 300_000):
            written.seek(at)
            written.write(b"x")
        written.truncate(size)
    with image.open("rb") as file, ImageFile(file.fileno(), "image", size, writable=False) as opened:
        at, data = 0, image.read_bytes()
        for offset, length, is_data in opened.extents(0, size):
            assert offset == at
            assert length > 0
            at += length
            assert is_data or not data[offset:at].strip(b"\0")
        assert at == size


def test_hashes_do_not_depend_on_holes(tmp_path: Path) -> None:
    """But on every byte, and on the size."""
    sparse, full, other, longer = (tmp_path / name for name in ("sparse", "full", "other", "longer"))
    with sparse.open("wb") as file:
        file.seek(3 << 17)
        file.write(b"x" * 1000)
        file.truncate(1 << 20)
    full.write_bytes(sparse.read_bytes())
    other.write_bytes(sparse.read_bytes()[:-1] + b"\1")
    longer.write_bytes(sparse.read_bytes() + bytes(512))
    hashes = []
    for path in (sparse, full, other, longer):
        with path.open("rb") as file:
            size = path.stat().st_size
            with ImageFile(file.fileno(), path.name, size, writable=False) as image:
                hashes.append(image.hash())
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_an_image_that_has_become_shorter(tmp_path: Path) -> None:
    """Is told, in place of zeroes."""
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    with (
        path.open("rb") as file,
        ImageFile(file.fileno(), "image", 8192, writable=False) as image,
        pytest.raises(HostError, match="shorter"),
    ):
        image.read_into(memoryview(bytearray(1 << 16)), 0, 8192)


def test_the_end_of_a_shorter_image_is_no_hole(tmp_path: Path) -> None:
    """It would be copied, and hashed, as zeroes."""
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    with path.open("rb") as file, ImageFile(file.fileno(), "image", 4 << 20, writable=False) as image:
        with pytest.raises(HostError, match="shorter"):
            list(image.extents(0, 4 << 20))
        with pytest.raises(HostError, match="shorter"):
            image.hash()
