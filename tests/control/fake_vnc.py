"""A server for viewers without viewers."""

from __future__ import annotations

from collections.abc import Sequence

from tvmm.control.vnc_target import VncClientInfo, VncEnd, VncServerInfo
from tvmm.errors import UserError

LISTENING = VncEnd("0.0.0.0", "5900", "ipv4")
BROWSERS = VncEnd("::", "8080", "ipv6", websocket=True)
VIEWER = VncClientInfo(VncEnd("192.0.2.1", "40000", "ipv4"), "anna", "VeNCrypt x509-plain", True, 1.5, 4096, 3)


class FakeVnc:
    """Behaves towards control clients as a server does."""

    def __init__(self) -> None:
        self.servers: tuple[VncServerInfo, ...] = (
            VncServerInfo("default", (LISTENING, BROWSERS), "vencrypt", "x509-plain", (VIEWER,)),
        )
        self.password = "old"
        self.connected = ""
        self.expires = "never"

    def vnc_servers(self) -> Sequence[VncServerInfo]:
        return self.servers

    def set_vnc_password(self, password: str, connected: str) -> None:
        if connected == "fail" and self.servers[0].clients:
            raise UserError("there are viewers")
        self.password, self.connected = password, connected

    def expire_vnc_password(self, time: str) -> None:
        if time == "soon":
            raise UserError("'soon' is no time for a password to end")
        self.expires = time
