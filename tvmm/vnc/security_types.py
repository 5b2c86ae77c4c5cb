"""How a security type plugs into the RFB machine (RFC 6143, sections 7.1.2 and 7.2), and the one without security.

A security type makes one exchange for each connection. An exchange gets the viewer's bytes and answers with steps; it
does no IO and knows no version of the protocol: SecurityResult and the reason for a failure are the machine's. It says
`Passed` or `Failed` once, as its last step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Codec", "Exchange", "Failed", "NoSecurity", "Passed", "SecurityType", "Send", "StartTls", "Step", "Wrap"]


class Codec(Protocol):
    """A security type's own record layer. Holds no more than one record."""

    def encrypt(self, data: bytes) -> bytes:
        """`data` as records."""
        ...

    def decrypt(self, data: bytearray) -> bytes:
        """Take whole records from the front of `data`; what they hold. Raises `ProtocolError` for a forged one."""
        ...


class Send(NamedTuple):
    """Bytes for the viewer."""

    data: bytes


class StartTls(NamedTuple):
    """What was sent up to here goes out plain; from here on the connection is TLS. `context` is the shell's affair.

    Bytes of the viewer that came before the handshake are an error: they would count as if they had been inside.
    """

    context: object


class Wrap(NamedTuple):
    """From here on both directions go through `codec`. Bytes that have arrived already are records."""

    codec: Codec


class Passed(NamedTuple):
    """The viewer is who it says it is; `user` may be empty. `view_only`: it may look and touch nothing."""

    user: str = ""
    view_only: bool = False


class Failed(NamedTuple):
    """It is not, or is not let in. `reason` is told to it."""

    reason: str


Step = Send | StartTls | Wrap | Passed | Failed


class Exchange(Protocol):
    """One connection's exchange."""

    def start(self) -> Sequence[Step]:
        """What to do first."""
        ...

    def receive(self, data: bytearray) -> Sequence[Step]:
        """Take from the front of `data` what is needed; nothing while it is not all there.

        Is called again after each step and with each arrival. Raises `RfbError` for what makes no sense.
        """
        ...


class SecurityType(Protocol):
    """One way to let viewers in. `number` is the protocol's, `name` for people."""

    @property
    def number(self) -> int:
        """1 to 255."""
        ...

    @property
    def name(self) -> str:
        """A word for people."""
        ...

    def begin(self, peer: str) -> Exchange:
        """For one connection, from `peer` (an address, for messages and for counting failures)."""
        ...


class _Nothing:
    def start(self) -> Sequence[Step]:
        return [Passed()]

    def receive(self, data: bytearray) -> Sequence[Step]:
        return []


class NoSecurity:
    """Security type 1: everybody is let in."""

    number = 1
    name = "none"

    def begin(self, peer: str) -> Exchange:
        """Passes at once."""
        return _Nothing()
