"""Disk images: what is refused and how it is said, locks, sizes, what the host tells of its blocks."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from tests.virtio.runner.disks import loop_device, memory_folder, new_image, remount_read_only, small_tmpfs
from tvmm.config.disk import DiskConfig
from tvmm.errors import HostError, ImageError, UserError
from tvmm.virtio.runner.backing import blk_settings
from tvmm.virtio.runner.image import DiskImage

AS_ROOT = os.geteuid() == 0


def refusal(path: Path | str, **options: bool) -> UserError:
    """What opening it says; the message is one line and there is a hint."""
    with pytest.raises(UserError) as caught:
        DiskImage(str(path), **options)
    error = caught.value
    assert "\n" not in error.message
    assert error.hint
    return error


def open_fds() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def test_files_that_are_no_disks(tmp_path: Path) -> None:
    """Directory, FIFO, socket, character device, nothing, no name: each by its name, and nothing stays open."""
    before = open_fds()
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path, words in (
            (tmp_path, "a directory"),
            (tmp_path / "fifo", "a FIFO"),
            (tmp_path / "socket", "a socket"),
            (Path("/dev/null"), "a character device"),
        ):
            assert refusal(path).message == f"disk image {path} is {words}"
    missing = refusal(tmp_path / "missing.img")
    assert missing.message == f"disk image {tmp_path}/missing.img does not exist"
    assert missing.hint == f"'truncate -s 1G {tmp_path}/missing.img' makes an empty one"
    assert refusal("").message == "a disk without a file"
    assert "name" in refusal("a\0b").message
    assert "Not a directory" in refusal(new_image(tmp_path) / "below").message
    assert open_fds() == before


def test_size_that_is_no_whole_sectors(tmp_path: Path) -> None:
    """Refused with the command that mends it, which does."""
    path = new_image(tmp_path, 1000)
    error = refusal(path)
    assert error.message == f"disk image {path} has 1000 bytes, which is no whole number of sectors of 512"
    assert error.hint == f"'truncate -s %512 {path}' makes it one"
    assert os.system(error.hint.split("'")[1]) == 0
    with DiskImage(str(path)) as image:
        assert image.size == 1024


@pytest.mark.skipif(AS_ROOT, reason="root may do anything")
def test_rights(tmp_path: Path) -> None:
    """A file that may only be read, and one that may not."""
    path = new_image(tmp_path)
    path.chmod(0o400)
    assert "readonly=on" in refusal(path).hint
    DiskImage(str(path), read_only=True).close()
    path.chmod(0)
    assert "right to read" in refusal(path, read_only=True).hint


def test_read_only_file_system() -> None:
    """A file that nobody can write says what to do; for reading it opens."""
    for folder in small_tmpfs(1 << 20):
        path = new_image(folder, 4096)
        remount_read_only(folder)
        error = refusal(path)
        assert error.message == f"disk image {path} cannot be opened for writing: Read-only file system"
        assert "readonly=on" in error.hint
        DiskImage(str(path), read_only=True).close()


def test_block_device(tmp_path: Path) -> None:
    """Size and blocks are the device's; its size is not ours to choose."""
    for device in loop_device(new_image(tmp_path, 1 << 20)):
        with DiskImage(str(device)) as image:
            assert image.is_device
            assert not image.in_memory
            assert (image.size, image.logical_block) == (1 << 20, 512)
            assert blk_settings(image, DiskConfig(str(device))).capacity == 2048
            image.resize(1 << 20)
            with pytest.raises(ImageError, match="has 1048576 bytes, not 2097152"):
                image.resize(2 << 20)
            assert "in use" in refusal(device).message


def test_locks(tmp_path: Path) -> None:
    """One writer, or many readers; also within this process, and freed with the image."""
    path = new_image(tmp_path)
    with DiskImage(str(path)):
        for read_only in (False, True):
            error = refusal(path, read_only=read_only)
            assert error.message == f"disk image {path} is in use by another machine (writing)"
            assert "locking=off" in error.hint
        DiskImage(str(path), locking=False).close()
    with DiskImage(str(path), read_only=True), DiskImage(str(path), read_only=True):
        error = refusal(path)
        assert error.message == f"disk image {path} is in use by another machine (reading)"
        assert "readonly=on" in error.hint
    DiskImage(str(path)).close()


def test_lock_of_another_name(tmp_path: Path) -> None:
    """It is the file that is locked, not its name, and reading it by others frees nothing."""
    path = new_image(tmp_path)
    link = tmp_path / "link"
    link.hardlink_to(path)
    with DiskImage(str(path)):
        path.read_bytes()
        assert "in use" in refusal(link).message


def test_resize(tmp_path: Path) -> None:
    """A file gets the size; half sectors, and files open for reading, do not."""
    path = new_image(tmp_path, 4096)
    with DiskImage(str(path)) as image:
        for size in (1 << 20, 512, 0):
            image.resize(size)
            assert image.size == path.stat().st_size == size
        for size in (100, -512):
            with pytest.raises(ImageError, match="multiples of 512"):
                image.resize(size)
        with pytest.raises(HostError, match="cannot have"):
            image.resize(1 << 62)
        assert image.size == 0
    with DiskImage(str(path), read_only=True) as image, pytest.raises(ImageError, match="reading only"):
        image.resize(512)


def test_direct(tmp_path: Path) -> None:
    """Past the page cache there is an alignment, a second descriptor without it, and both see one file."""
    path = new_image(tmp_path, 1 << 16)
    try:
        image = DiskImage(str(path), direct=True)
    except HostError as error:
        assert error.hint.startswith("use cache=writeback")  # noqa: PT017
        pytest.skip(str(error))
    with image:
        assert image.plain_fd != image.fd
        for align in (image.memory_align, image.offset_align):
            assert 1 < align <= 4096
            assert not align & (align - 1)
        assert image.logical_block == image.offset_align
        os.pwrite(image.plain_fd, b"seen", 0)
        assert os.pread(image.plain_fd, 4, 0) == b"seen"
        with pytest.raises(OSError, match="Invalid") as caught:
            os.pwrite(image.fd, b"x", 1)
        assert caught.value.errno == errno.EINVAL
    with DiskImage(str(path)) as image:
        assert (image.memory_align, image.offset_align) == (1, 1)
        assert image.plain_fd == image.fd


def test_what_a_disk_says_of_itself(tmp_path: Path) -> None:
    """Sizes from the image, unless the user says others; a size that is no whole blocks is refused."""
    path = new_image(tmp_path, 5 * 512)
    with DiskImage(str(path)) as image:
        settings = blk_settings(image, DiskConfig(str(path), serial="s-1"))
        assert (settings.capacity, settings.block, settings.serial) == (5, 512, b"s-1")
        assert settings.physical_block >= 512
        assert settings.max_zeroes
        assert bool(settings.max_discard) == image.can_unmap
        assert not blk_settings(image, DiskConfig(str(path), discard="ignore")).max_discard
        chosen = blk_settings(image, DiskConfig(str(path), logical_block_size=512, physical_block_size=8192))
        assert (chosen.block, chosen.physical_block) == (512, 8192)
        with pytest.raises(ImageError, match="blocks of 4096") as caught:
            blk_settings(image, DiskConfig(str(path), logical_block_size=4096))
        assert caught.value.hint.startswith(f"'truncate -s %4096 {path}'")
    with DiskImage(str(path), read_only=True) as image:
        settings = blk_settings(image, DiskConfig(str(path), readonly=True))
        assert (settings.read_only, settings.max_discard, settings.max_zeroes) == (True, 0, 0)


def test_memory_is_told() -> None:
    """An image on tmpfs is known as one."""
    for folder in memory_folder():
        with DiskImage(str(new_image(folder))) as image:
            assert image.in_memory
