"""Commands of the control socket about viewers; `tvmm.control.verbs` has the table.

Shapes are QAPI's (qapi/ui.json). Passwords stand in no answer, no error and no event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.control.qmp import Argument, CommandFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.control.target import ControlTarget, Json
    from tvmm.control.vnc_target import VncClientInfo, VncEnd, VncServerInfo

__all__ = [
    "CHANGE_PASSWORD",
    "EXPIRE_PASSWORD",
    "SET_PASSWORD",
    "VNC_EVENTS",
    "change_vnc_password",
    "event_data",
    "expire_password",
    "query_vnc",
    "query_vnc_servers",
    "set_password",
]

VNC_EVENTS = ("VNC_CONNECTED", "VNC_INITIALIZED", "VNC_DISCONNECTED")

SET_PASSWORD = (
    Argument("protocol", "string"),
    Argument("password", "string"),
    Argument("connected", "string", required=False),
    Argument("display", "string", required=False),
)
EXPIRE_PASSWORD = (
    Argument("protocol", "string"),
    Argument("time", "string"),
    Argument("display", "string", required=False),
)
CHANGE_PASSWORD = (Argument("password", "string"),)

_CONNECTED = ("keep", "fail", "disconnect")


async def query_vnc(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: VncInfo, of the first server."""
    for server in target.vnc_servers():
        ends: dict[str, Json] = dict(_end(server.ends[0])) if server.ends else {}
        ends.pop("websocket", None)
        return {"enabled": True, **ends, "auth": _auth(server), "clients": [_client(one) for one in server.clients]}
    return {"enabled": False, "clients": []}


async def query_vnc_servers(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: a list of VncInfo2."""
    return [
        {
            "id": server.id,
            "server": [{**_end(end), **_auth_members(server)} for end in server.ends],
            "clients": [_client(one) for one in server.clients],
            **_auth_members(server),
        }
        for server in target.vnc_servers()
    ]


async def set_password(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when viewers that come need the new password, and old ones are kept or sent away."""
    _check_server(target, arguments)
    connected = arguments.get("connected", "keep")
    if connected not in _CONNECTED:
        raise CommandFailed("GenericError", "argument 'connected' must be 'keep', 'fail' or 'disconnect'")
    target.set_vnc_password(arguments["password"], connected)
    return {}


async def change_vnc_password(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """As `set_password` with viewers kept."""
    target.set_vnc_password(arguments["password"], "keep")
    return {}


async def expire_password(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when it is known until when the password is good."""
    _check_server(target, arguments)
    target.expire_vnc_password(arguments["time"])
    return {}


def _check_server(target: ControlTarget, arguments: Mapping[str, Any]) -> None:
    """Refuse what is not about a server that there is."""
    if arguments["protocol"] != "vnc":
        raise CommandFailed("GenericError", "argument 'protocol' must be 'vnc'")
    known = [server.id for server in target.vnc_servers()]
    if "display" in arguments and arguments["display"] not in known:
        raise CommandFailed("DeviceNotFound", f"there is no such display; there are: {', '.join(known) or 'none'}")


def event_data(server: VncServerInfo, client: VncClientInfo, end: VncEnd | None = None) -> Mapping[str, Json]:
    """The data of an event about `client`, who came to `end` of `server` (None: its first)."""
    here = end or server.ends[0]
    return {"server": {**_end(here), "auth": _auth(server)}, "client": _client(client)}


def _end(end: VncEnd) -> dict[str, Json]:
    """QAPI: VncBasicInfo."""
    return {"host": end.host, "service": end.service, "family": end.family, "websocket": end.websocket}


def _auth(server: VncServerInfo) -> str:
    """As QEMU has it in VncInfo: ``vencrypt+x509+vnc``."""
    return "+".join([server.auth, *server.vencrypt.split("-")]) if server.vencrypt else server.auth


def _auth_members(server: VncServerInfo) -> dict[str, Json]:
    return {"auth": server.auth, **({"vencrypt": server.vencrypt} if server.vencrypt else {})}


def _client(client: VncClientInfo) -> dict[str, Json]:
    """QAPI: VncClientInfo. QEMU knows users from SASL only; the member is where clients look for a name."""
    return {
        **_end(client.end),
        **({"sasl_username": client.user} if client.user else {}),
        "x-auth": client.auth,
        "x-view-only": client.view_only,
        "x-seconds": client.seconds,
        "x-bytes-sent": client.bytes_sent,
        "x-frames": client.frames,
        "x-relay": client.relay,
    }
