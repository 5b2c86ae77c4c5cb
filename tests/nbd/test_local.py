"""`qemu-nbd` of our own: what it is started with, what it says when it cannot, and that it never stays behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.support.nbd_programs import need
from tvmm.errors import HostError, ImageError, UserError
from tvmm.nbd.connect import run_now
from tvmm.nbd.constants import Flag
from tvmm.nbd.local import LocalImage, LocalServer, server_command

MIB = 1 << 20


def new_image(path: Path, kind: str = "qcow2", size: int = 64 * MIB) -> Path:
    """An empty one."""
    need("qemu-img", "qemu-nbd")
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, str(path), str(size)], check=True)
    return path


def test_the_command_has_the_options_of_the_disk() -> None:
    """Cache, discard, locking, how to wait; a comma in the name is one of the name."""
    command = server_command(LocalImage("a,b.qcow2", "qcow2", connections=3), is_device=False)
    assert command[:4] == ["qemu-nbd", "--image-opts", "--shared", "3"]
    assert command[-1] == (
        "driver=qcow2,discard=unmap,cache.direct=off,cache.no-flush=off,"
        "file.driver=file,file.filename=a,,b.qcow2,file.locking=auto"
    )
    image = LocalImage("/dev/x", "vmdk", True, True, True, "io_uring", True, False, share=True)
    command = server_command(image, is_device=True)
    assert "--read-only" in command
    for word in (
        "driver=vmdk", "discard=ignore", "cache.direct=on", "cache.no-flush=on", "file.driver=host_device",
        "file.locking=off", "file.aio=io_uring", "force-share=on",
    ):  # fmt: skip
        assert word in command[-1].split(",")


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vhdx", "vdi", "qed", "vpc"])
async def test_formats(tmp_path: Path, kind: str) -> None:
    """Each is opened for what it is, gives several connections, and is closed."""
    server = LocalServer(LocalImage(str(new_image(tmp_path / f"a.{kind}", kind)), kind, connections=2))
    first, second = await server.connect(), await server.connect()
    assert first.export.size >= 64 * MIB
    assert first.export.has(Flag.CAN_MULTI_CONN)
    assert first.export.has(Flag.SEND_TRIM)
    pid = server.pid
    assert pid
    first.close()
    second.close()
    await trio.to_thread.run_sync(server.close)
    assert not os.path.exists(f"/proc/{pid}")
    # Nothing but the image.
    assert os.listdir(tmp_path) == [f"a.{kind}"]


async def test_it_is_started_again(tmp_path: Path) -> None:
    """One that was killed is replaced at the next connection; so is one that ended with its last connection."""
    server = LocalServer(LocalImage(str(new_image(tmp_path / "a.qcow2")), "qcow2"))
    pids = set()
    for end in ("kill", "close", "end"):
        connection = await server.connect()
        pids.add(server.pid)
        if end == "kill":
            os.kill(server.pid, 9)
        connection.close()
        while server.pid:
            await trio.sleep(0.01)
    assert len(pids) == 3
    server.close()


REFUSED = {
    "a.qcow2": "Image is not in qcow2 format; 'qemu-img info",
    "missing.qcow2": "No such file or directory; 'qemu-img create -f qcow2",
    "folder.qcow2": "cannot open",
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_opened(tmp_path: Path, name: str) -> None:
    """One line, with the reason that qemu-nbd gives, and no process."""
    need("qemu-nbd")
    (tmp_path / "a.qcow2").write_bytes(bytes(MIB))
    (tmp_path / "folder.qcow2").mkdir()
    with pytest.raises(UserError) as caught:
        await LocalServer(LocalImage(str(tmp_path / name), "qcow2")).connect()
    assert REFUSED[name] in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "file.filename" not in str(caught.value)


async def test_an_image_in_use(tmp_path: Path) -> None:
    """The second is refused; locking=off and looking are not."""
    image = LocalImage(str(new_image(tmp_path / "a.qcow2")), "qcow2")
    first = LocalServer(image)
    connection = await first.connect()
    with pytest.raises(ImageError, match="is in use by another machine"):
        await LocalServer(image).connect()
    second = LocalServer(image._replace(locking=False))
    (await second.connect()).close()
    second.close()
    assert first.look().size == 64 * MIB
    connection.close()
    first.close()


def test_without_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is said."""
    (tmp_path / "a.qcow2").touch()
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(HostError, match=r"needs qemu-nbd, and that is not installed; 'apt install qemu-utils'"):
        LocalServer(LocalImage(str(tmp_path / "a.qcow2"), "qcow2"))


KILLED = """
import sys, trio
from tvmm.nbd.local import LocalImage, LocalServer
server = LocalServer(LocalImage(sys.argv[1], "qcow2"))
if sys.argv[2] == "early":
    server._process = server._start()
    print(server.pid, flush=True)
else:
    connection = trio.run(server.connect)
    print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("when", ["early", "connected"])
async def test_nothing_is_left_of_a_process_that_was_killed(tmp_path: Path, when: str) -> None:
    """Whether it had a connection yet or not."""
    image = new_image(tmp_path / "a.qcow2")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(image), when],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert os.path.exists(f"/proc/{pid}")
    process.kill()
    process.wait()
    with trio.fail_after(10):
        while os.path.exists(f"/proc/{pid}") and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            await trio.sleep(0.01)
    assert os.listdir(tmp_path) == ["a.qcow2"]
    # Its lock is gone too.
    server = LocalServer(LocalImage(str(image), "qcow2"))
    run_now(server.connect).close()
    server.close()
