"""Commands about viewers: QEMU's shapes, and no password in any answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.control.fake_vnc import BROWSERS, VIEWER
from tests.control.fakes import FakeMachine
from tvmm.control.qmp import CommandFailed
from tvmm.control.target import NoVnc
from tvmm.control.verbs import EVENTS, VERBS
from tvmm.control.vnc_target import VncEnd, VncServerInfo
from tvmm.control.vnc_verbs import VNC_EVENTS, event_data
from tvmm.errors import TvmmError, UserError


async def ask(machine: FakeMachine, command: str, **arguments: Any) -> Any:
    """One command's result."""
    return await VERBS[command].run(machine, arguments)


async def test_passwords_are_set() -> None:
    """Viewers are kept unless the client says otherwise."""
    machine = FakeMachine()
    assert await ask(machine, "set_password", protocol="vnc", password="new") == {}
    assert (machine.vnc.password, machine.vnc.connected) == ("new", "keep")
    await ask(machine, "set_password", protocol="vnc", password="newer", connected="disconnect", display="default")
    assert (machine.vnc.password, machine.vnc.connected) == ("newer", "disconnect")
    await ask(machine, "change-vnc-password", password="newest")
    assert (machine.vnc.password, machine.vnc.connected) == ("newest", "keep")


@pytest.mark.parametrize(
    ("command", "arguments", "complaint"),
    [
        ("set_password", {"protocol": "spice", "password": "secret"}, "'protocol' must be 'vnc'"),
        ("set_password", {"protocol": "vnc", "password": "secret", "connected": "ask"}, "'keep', 'fail' or"),
        ("set_password", {"protocol": "vnc", "password": "secret", "connected": "fail"}, "there are viewers"),
        ("set_password", {"protocol": "vnc", "password": "secret", "display": "x"}, "there are: default"),
        ("expire_password", {"protocol": "spice", "time": "now"}, "'protocol' must be 'vnc'"),
        ("expire_password", {"protocol": "vnc", "time": "soon"}, "no time for a password"),
        ("expire_password", {"protocol": "vnc", "time": "now", "display": "x"}, "there are: default"),
    ],
)
async def test_refusals(command: str, arguments: dict[str, str], complaint: str) -> None:
    """One line each, and nothing has changed."""
    machine = FakeMachine()
    with pytest.raises(TvmmError) as caught:
        await ask(machine, command, **arguments)
    assert complaint in str(caught.value)
    assert "secret" not in str(caught.value)
    assert (machine.vnc.password, machine.vnc.expires) == ("old", "never")


async def test_expiry_is_passed_on() -> None:
    """In QEMU's spelling."""
    machine = FakeMachine()
    for time in ("now", "+60", "1700000000", "never"):
        assert await ask(machine, "expire_password", protocol="vnc", time=time) == {}
        assert machine.vnc.expires == time


async def test_a_machine_without_a_server() -> None:
    """There is nothing to see, and nothing to set."""
    machine = FakeMachine()
    machine.vnc.servers = ()
    assert await ask(machine, "query-vnc") == {"enabled": False, "clients": []}
    assert await ask(machine, "query-vnc-servers") == []
    with pytest.raises(CommandFailed, match="there are: none"):
        await ask(machine, "set_password", protocol="vnc", password="x", display="default")
    with pytest.raises(UserError, match="has no VNC server; start it with --vnc"):
        NoVnc().set_vnc_password("x", "keep")
    with pytest.raises(UserError, match="has no VNC server; start it with --vnc"):
        NoVnc().expire_vnc_password("now")
    assert NoVnc().vnc_servers() == ()


def test_events() -> None:
    """Each has both ends of the connection."""
    assert set(VNC_EVENTS) <= set(EVENTS)
    server = VncServerInfo("default", (VncEnd("/run/vnc", "", "unix"), BROWSERS), "none")
    data = json.loads(json.dumps(event_data(server, VIEWER, BROWSERS)))
    assert data["server"] == {"host": "::", "service": "8080", "family": "ipv6", "websocket": True, "auth": "none"}
    assert data["client"]["host"] == "192.0.2.1"
    assert data["client"]["sasl_username"] == "anna"
    assert event_data(server, VIEWER)["server"] == {
        "host": "/run/vnc",
        "service": "",
        "family": "unix",
        "websocket": False,
        "auth": "none",
    }
