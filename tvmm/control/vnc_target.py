"""What the control socket asks of a machine's server for viewers, and the records in which it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from tvmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

__all__ = ["NoVnc", "VncClientInfo", "VncEnd", "VncServerInfo", "VncTarget"]


class VncEnd(NamedTuple):
    """One end of a connection, or where viewers are waited for."""

    host: str
    """An address; of a unix socket its path."""
    service: str
    """The port; '' of a unix socket."""
    family: str
    """`ipv4`, `ipv6` or `unix`."""
    websocket: bool = False


class VncClientInfo(NamedTuple):
    """One viewer."""

    end: VncEnd
    user: str = ""
    """Its name, if it was asked for one."""
    auth: str = ""
    """The security type it has used, by its name."""
    view_only: bool = False
    seconds: float = 0.0
    """How long it has been connected."""
    bytes_sent: int = 0
    frames: int = 0
    """Updates of the screen that it got."""
    relay: bool = False
    """It is the machine that the guest has come from, for those who look at it there."""


class VncServerInfo(NamedTuple):
    """One server. `auth` and `vencrypt` are QAPI's VncPrimaryAuth and VncVencryptSubAuth ('': none)."""

    id: str
    ends: tuple[VncEnd, ...]
    auth: str
    vencrypt: str = ""
    clients: tuple[VncClientInfo, ...] = ()


class VncTarget(Protocol):
    """The server for viewers, as control clients see it.

    The machine announces VNC_CONNECTED, VNC_INITIALIZED (a viewer is in) and VNC_DISCONNECTED with
    `vnc_verbs.event_data`.
    """

    def vnc_servers(self) -> Sequence[VncServerInfo]:
        """All that there are, one at most."""

    def set_vnc_password(self, password: str, connected: str) -> None:
        """Let `password` be the one from now on; '' lets nobody in.

        `connected` says what about viewers that have come in with the old one: ``keep`` them, ``disconnect`` them, or
        ``fail`` if there is one. Raises `UserError`, and then nothing has changed: there is no server, it asks for no
        password, or `password` can be none.
        """

    def expire_vnc_password(self, time: str) -> None:
        """Let the password end at `time`: ``now``, ``never``, ``+SECONDS``, or seconds since 1970; viewers stay.

        Raises `UserError`: there is no server, it asks for no password, or `time` is none
        (`tvmm.vnc.passwords.expiry_time`).
        """


class NoVnc:
    """`VncTarget` of a machine without a server for viewers."""

    def vnc_servers(self) -> Sequence[VncServerInfo]:
        """None."""
        return ()

    def set_vnc_password(self, password: str, connected: str) -> NoReturn:
        """Raise `UserError`."""
        raise self._refusal()

    def expire_vnc_password(self, time: str) -> NoReturn:
        """Raise `UserError`."""
        raise self._refusal()

    @staticmethod
    def _refusal() -> UserError:
        return UserError("this machine has no VNC server", "start it with --vnc")
