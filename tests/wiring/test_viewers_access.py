"""Who may watch a running guest and what control clients hear of it; how viewers end."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.rfb_client import rfb_client
from tests.support.rfb_viewer import Refused
from tests.wiring.watching import listen, shows, viewers_of, watched_guest
from tvmm.control.machine_target import MachineTarget
from tvmm.control.vnc_verbs import query_vnc, query_vnc_servers, set_password
from tvmm.errors import UserError
from tvmm.vnc.encodings import RAW, ZRLE
from tvmm.vnc.lockout import Limits, Lockout

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest

A, B = 0x61, 0x62
KEY_B = 48
PASSWORD, LOOK = "all rights", "look only"
DELAY_SECONDS = 0.05
BOUND_SECONDS = 5.0
"""For a machine to end, whatever its viewers do."""
LARGE = 2560, 1600


def password_file(folder: Path, name: str, password: str) -> Path:
    """As ``--vnc`` wants it."""
    path = folder / name
    path.touch(0o600)
    path.write_text(password)
    return path


def asking(folder: Path) -> str:
    """Options for two passwords."""
    full, look = password_file(folder, "full", PASSWORD), password_file(folder, "look", LOOK)
    return f"password-file={full},view-only-password-file={look}"


async def test_who_may_only_look(tmp_path: Path) -> None:
    """Sees the picture, and what is typed does not arrive."""
    async with (
        watched_guest(path := tmp_path / "vnc", asking(tmp_path)) as shell,
        rfb_client(path, ZRLE, password=LOOK) as looks,
        rfb_client(path, password=PASSWORD) as types,
    ):
        await listen(shell, "keys")
        await looks.key(A, down=True)
        await looks.until(shows())  # its key was read before
        await types.key(B, down=True)
        line = await shell.vm.wait_serial(b"\r\n")
        assert line.startswith(b"key %d down" % KEY_B)
        answer: Any = await query_vnc(MachineTarget(shell.vm), {})
        assert answer["auth"] == "vnc"
        assert [client["x-view-only"] for client in answer["clients"]] == [True, False]


async def test_wrong_passwords(tmp_path: Path) -> None:
    """The answer is late, and after some of them there is none."""
    async with watched_guest(path := tmp_path / "vnc", asking(tmp_path)) as shell:
        viewers_of(shell.vm).server.lockout = Lockout(Limits(guesses=2, delay=DELAY_SECONDS))
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(Refused, match="authentication failed"):
                async with rfb_client(path, password="guess"):
                    pass
            assert time.monotonic() - began >= DELAY_SECONDS
        with pytest.raises(Refused, match="too many wrong passwords, try again in 5 seconds"):
            async with rfb_client(path, password=PASSWORD):
                pass


async def test_a_viewer_for_itself(tmp_path: Path) -> None:
    """Sends the others away."""
    async with watched_guest(path := tmp_path / "vnc") as shell, rfb_client(path, RAW) as first:
        await first.until(shows())
        async with rfb_client(path, RAW, shared=False) as alone:
            await first.until_gone()
            await alone.until(shows())
            assert len(viewers_of(shell.vm).vnc_servers()[0].clients) == 1


async def test_as_many_viewers_as_were_said(tmp_path: Path) -> None:
    """The next one is told why not; there is room again when one leaves."""
    async with watched_guest(path := tmp_path / "vnc", "max-viewers=2") as shell, rfb_client(path, RAW) as stays:
        async with rfb_client(path):
            with pytest.raises(Refused, match="too many viewers"):
                async with rfb_client(path):
                    pass
        await shell.event("VNC_DISCONNECTED")
        async with rfb_client(path, RAW) as again:
            await again.until(shows())
        await stays.until(shows())


async def test_control_clients_hear_of_viewers(tmp_path: Path) -> None:
    """Three events for each, and who there is."""
    async with watched_guest(path := tmp_path / "vnc") as shell:
        target = MachineTarget(shell.vm)
        assert await query_vnc(target, {}) == {
            "enabled": True, "host": str(path), "service": "", "family": "unix", "auth": "none", "clients": [],
        }  # fmt: skip
        async with rfb_client(path, RAW) as client:
            data = await shell.event("VNC_CONNECTED")
            assert data["server"] == {
                "host": str(path), "service": "", "family": "unix", "websocket": False, "auth": "none",
            }  # fmt: skip
            await shell.event("VNC_INITIALIZED")
            await client.until(shows())
            servers: Any = await query_vnc_servers(target, {})
            [told] = servers[0]["clients"]
            assert told["family"] == "unix"
            assert told["x-auth"] == "none"
            assert told["x-frames"] >= 1
            assert told["x-bytes-sent"] >= len(client.viewer.pixels)
        await shell.event("VNC_DISCONNECTED")
        assert viewers_of(shell.vm).vnc_servers()[0].clients == ()


async def test_another_password(tmp_path: Path) -> None:
    """With disconnect those who are there go, with keep they stay, with fail nothing happens while they are there."""
    async with watched_guest(path := tmp_path / "vnc", asking(tmp_path)) as shell:
        target = MachineTarget(shell.vm)
        order = {"protocol": "vnc", "password": "another", "connected": "disconnect"}
        async with rfb_client(path, RAW, password=PASSWORD) as old:
            await old.until(shows())
            with pytest.raises(UserError, match="there are viewers"):
                await set_password(target, {**order, "connected": "fail"})
            await set_password(target, {**order, "password": PASSWORD, "connected": "keep"})
            await shell.ask("screen picture 2")
            await old.until(shows(seed=2))
            await set_password(target, order)
            await old.until_gone()
        viewers_of(shell.vm).server.lockout = Lockout(Limits(delay=DELAY_SECONDS))
        with pytest.raises(Refused):
            async with rfb_client(path, password=PASSWORD):
                pass
        async with rfb_client(path, RAW, password="another") as new:
            await new.until(shows(seed=2))


@pytest.mark.parametrize("end", ["cancelled", "poweroff"])
async def test_a_machine_with_viewers_ends_soon(end: str, tmp_path: Path) -> None:
    """Though one reads nothing of all that waits for it, one has not said who it is, and one does as it should."""
    async with AsyncExitStack() as stack:
        scope = stack.enter_context(trio.CancelScope())
        shell = await stack.enter_async_context(watched_guest(path := tmp_path / "vnc", size=LARGE))
        well = await stack.enter_async_context(rfb_client(path, ZRLE))
        stuck = await stack.enter_async_context(rfb_client(path, RAW))
        await stack.enter_async_context(await trio.open_unix_socket(str(path)))
        stuck.viewer.request(incremental=False)
        await stuck.flush()
        await well.until(lambda viewer: viewer.updates)
        began = time.monotonic()
        if end == "cancelled":
            scope.cancel()
        else:
            await shell.order("poweroff")
            await shell.vm.wait()
    assert time.monotonic() - began < BOUND_SECONDS
