"""Whole files: written and read, of older versions, damaged, and put into their place."""

from __future__ import annotations

import errno
import gzip
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.golden.write_snapshot import FILES, FOLDER
from tests.support.snapshot_files import (
    DESCRIPTION,
    SECRET,
    all_options,
    hostile_run,
    pages_of_ram,
    read_all,
    write_small,
)
from tvmm.config.machine import MachineConfig
from tvmm.errors import HostError, ImageError, UserError
from tvmm.kvm.serve import Waker
from tvmm.memory.ram import RamBlock
from tvmm.snapshot.files import NewFile, absolute
from tvmm.snapshot.options import options_of
from tvmm.snapshot.reader import SnapshotFile
from tvmm.snapshot.writer import SnapshotWriter

if TYPE_CHECKING:
    from pathlib import Path

    from tvmm.memory.ram import GuestRam


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_version_1_is_read(tmp_path: Path, name: str) -> None:
    """For ever: users keep them."""
    path = tmp_path / "a.snap"
    path.write_bytes(gzip.decompress((FOLDER / f"{name}.snap.gz").read_bytes()))
    found = read_all(str(path))
    assert found._replace(blocks=(), images=()) == DESCRIPTION
    with SnapshotFile(str(path), lambda source: SECRET) as file:
        assert file.image("image.kernel") == b"kernel" * 1000
        if name == "plain":
            place = file.place("pc.ram")
            assert os.pread(file.fd, place.pages * 4096, place.offset) == pages_of_ram()


def test_what_is_written_is_what_version_1_has(tmp_path: Path) -> None:
    """The bytes of today are those of the golden file, until the version changes."""
    path = tmp_path / "a.snap"
    write_small(str(path), None, lambda count: bytes(range(count)))
    assert path.read_bytes() == gzip.decompress((FOLDER / "plain.snap.gz").read_bytes())


def test_damaged_files_are_refused() -> None:
    """The short form of `fuzz.snapshots`."""
    endings = {hostile_run(seed) for seed in range(60)}
    assert len(endings) > 5


@pytest.mark.parametrize("options", list(all_options()), ids=str)
def test_the_options_of_a_machine_make_the_same_machine(options: dict[str, Any]) -> None:
    """As text and back, with everything that a machine can have."""
    config = MachineConfig.parse(**options)
    assert MachineConfig.from_options(dict(options_of(config, "/home/anna"))) == config


def test_relative_paths_become_absolute() -> None:
    """The machine may be restored from anywhere."""
    config = MachineConfig.parse(disk="a.img", serial="file=log", control="c", vsock="v")
    options = options_of(config, "/home/anna")
    assert options["disk"] == ["/home/anna/a.img,id=disk0,queues=1"]
    assert options["serial"] == "file=/home/anna/log"
    assert options["control"] == "/home/anna/c"
    assert str(options["vsock"]).startswith("/home/anna/v")


def test_how_an_image_was_filled_is_of_one_start() -> None:
    """A machine that a guest has come to is a machine like others."""
    config = MachineConfig.parse(disk=["a.img,copy=on,overwrite=on"], incoming="unix:/tmp/there")
    assert options_of(config, "/home/anna")["disk"] == ["/home/anna/a.img,id=disk0,queues=1"]
    assert "incoming" not in options_of(config, "/home/anna")


@pytest.mark.parametrize("nameless", [True, False])
def test_a_file_takes_its_place_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, nameless: bool
) -> None:
    """With O_TMPFILE and without; over nothing, and over an old one."""
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE")
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY | os.O_RDWR, raising=False)
    path = tmp_path / "a.snap"
    (tmp_path / ".a.snap.tvmm-new").write_text("left by somebody who was killed")
    for text in (b"TVMMSNAP one", b"TVMMSNAP two"):
        before = path.read_bytes() if path.exists() else None
        with NewFile(str(path)) as file:
            os.write(file.fd, text)
            assert (path.read_bytes() if path.exists() else None) == before
            file.keep()
        assert path.read_bytes() == text
        assert path.stat().st_mode & 0o777 == 0o600
    with NewFile(str(path)) as file:
        os.write(file.fd, b"TVMMSNAP three")
    assert path.read_bytes() == text
    assert [each.name for each in tmp_path.iterdir()] == ["a.snap"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """The file that it leads to is replaced."""
    (tmp_path / "there").mkdir()
    link = tmp_path / "a.snap"
    link.symlink_to("there/b.snap")
    with NewFile(str(link)) as file:
        os.write(file.fd, b"TVMMSNAP")
        file.keep()
    assert link.is_symlink()
    assert (tmp_path / "there" / "b.snap").read_bytes() == b"TVMMSNAP"


def test_places_where_there_can_be_no_file(tmp_path: Path) -> None:
    """Each in one line."""
    (tmp_path / "text").write_text("hello")
    (tmp_path / "loop").symlink_to("loop")
    for path, why in (
        (tmp_path / "no" / "a", "No such file"),
        (tmp_path, "no regular file"),
        (tmp_path / "text", "--force replaces it"),
        (tmp_path / "text" / "a", "Not a directory"),
        (tmp_path / "loop", "Too many levels"),
        (tmp_path / ("a" * 256), "File name too long"),
    ):
        with pytest.raises(UserError, match=why):
            NewFile(str(path))
    for name in ("", "/", "a.snap/"):
        with pytest.raises(UserError, match="is no name of a file"):
            absolute(name)


def test_the_longest_name(tmp_path: Path) -> None:
    """There is room for it beside itself, too."""
    path = tmp_path / ("\u00e9" * 127 + "a")
    for _ in range(2):
        with NewFile(str(path)) as file:
            os.write(file.fd, b"TVMMSNAP")
            file.keep()
    assert list(tmp_path.iterdir()) == [path]


def test_two_that_write_one_file_without_nameless_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused: what the first puts in place is never what the second has half written."""
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY | os.O_RDWR)
    path = tmp_path / "a.snap"
    with NewFile(str(path)) as first:
        with pytest.raises(UserError, match="is being written by another save"):
            NewFile(str(path))
        os.write(first.fd, b"TVMMSNAP one")
        first.keep()
        with NewFile(str(path)) as second:
            os.write(second.fd, b"TVMMSNAP tw")
    assert path.read_bytes() == b"TVMMSNAP one"
    assert list(tmp_path.iterdir()) == [path]


def test_many_that_replace_one_file(tmp_path: Path) -> None:
    """Each is put in its place whole, by itself, and nothing is left."""
    path = tmp_path / "a.snap"

    def replace(number: int) -> None:
        for _ in range(20):
            with NewFile(str(path)) as file:
                os.write(file.fd, b"TVMMSNAP" + bytes([number]) * 1000)
                file.keep()
            data = path.read_bytes()
            assert len(data) == 1008
            assert len(set(data[8:])) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(replace, range(4)))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_take_its_place_leaves_the_old_one(tmp_path: Path) -> None:
    """A directory that was put there meanwhile."""
    path = tmp_path / "a.snap"
    with NewFile(str(path)) as file:
        path.mkdir()
        with pytest.raises(UserError, match="is no regular file"):
            file.keep()
    assert path.is_dir()
    assert [each.name for each in tmp_path.iterdir()] == ["a.snap"]


def test_memory_can_be_closed_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though somebody keeps the error: a machine whose save had failed could not end well."""

    def full(fd: int, data: object, offset: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr("tvmm.snapshot.writer._write", full)
    block = RamBlock("pc.ram", 1 << 20, shared=False)
    block.view[:] = pages_of_ram(256)
    ram = cast("GuestRam", SimpleNamespace(blocks={"pc.ram": block}))
    waker = Waker()
    with (
        SnapshotWriter(str(tmp_path / "a.snap"), ram, secret=SECRET) as writer,
        pytest.raises(HostError, match="No space left") as caught,
    ):
        writer.write_pages(waker)
    waker.close()
    block.close()
    assert list(tmp_path.iterdir()) == []
    assert "more room" in str(caught.value)


def test_options_that_are_none_are_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As everything that is wrong with one."""
    monkeypatch.setattr(
        "tests.support.snapshot_files.DESCRIPTION", DESCRIPTION._replace(options=(("memory", ("2M", "3M")),))
    )
    path = tmp_path / "a.snap"
    write_small(str(path))
    with SnapshotFile(str(path)) as file, pytest.raises(ImageError, match=r"a\.snap: its option memory has 2 values"):
        file.options(("disk",))


CUT_SHORT = """
import os, resource, sys
from tests.support.snapshot_files import PAGES
from tvmm.memory.ram import RamBlock
from tvmm.snapshot.reader import SnapshotFile

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
block = RamBlock("pc.ram", PAGES * 4096, shared=False)
with SnapshotFile(sys.argv[1]) as file:
    file.map_block(block)
os.truncate(sys.argv[1], 4096)
bytes(block.view[:8])
"""


def test_a_file_that_is_cut_short_under_a_machine_is_told(tmp_path: Path) -> None:
    """The process still ends, as the kernel has it, but says why."""
    path = tmp_path / "a.snap"
    write_small(str(path))
    ended = subprocess.run([sys.executable, "-c", CUT_SHORT, str(path)], stderr=subprocess.PIPE, check=False)
    assert ended.returncode == -signal.SIGBUS
    assert b"tvmm: memory of a guest is gone: the snapshot file that it came from was cut short" in ended.stderr


def test_what_is_no_snapshot_is_told(tmp_path: Path) -> None:
    """With the name of the file."""
    path = tmp_path / "a.snap"
    with pytest.raises(ImageError, match=r"a\.snap: there is no such file"):
        SnapshotFile(str(path))
    path.write_bytes(b"dear all")
    with pytest.raises(ImageError, match=r"a\.snap: it is not a snapshot of tvmm"):
        SnapshotFile(str(path))
    path.unlink()
    write_small(str(path))
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ImageError, match="it is cut short"):
        SnapshotFile(str(path))
