"""From the first byte until a viewer asks for the screen: version, security, ClientInit (RFC 6143, 7.1 to 7.3).

The state of a whole connection lives here, also while it runs; the steps are those of `tvmm.vnc.states`.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

from tvmm.errors import ProtocolError
from tvmm.vnc.errors import RfbError, RfbMisuse
from tvmm.vnc.events import Authenticated, Event, Rejected, WantsIn
from tvmm.vnc.security_types import Failed, Passed, Send, StartTls, Wrap
from tvmm.vnc.server_messages import pack_reason
from tvmm.vnc.states import State, Step, after

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.vnc.link import Link
    from tvmm.vnc.security_types import Exchange, SecurityType
    from tvmm.vnc.security_types import Step as SecurityStep

__all__ = ["HANDSHAKE_BYTES", "NOBODY", "Handshake"]

HANDSHAKE_BYTES = 64 << 10
"""That have arrived and wait, before a viewer is in. The longest thing to wait for is a key of RSA-AES."""
VERSION = re.compile(rb"RFB (\d{3})\.(\d{3})\n")
VERSION_BYTES = 12
OURS = b"RFB 003.008\n"
NOBODY = "nobody is let in here"
FIRST_SECURITY_TYPES = (1, 2)
"""Those that 3.3 has: the server names one, and both go on without a word."""


class Handshake:
    """One viewer's way in. `refusal`: what a viewer is told for whom there are no security types."""

    def __init__(
        self, link: Link, security_types: Sequence[SecurityType], peer: str, refusal: str = NOBODY
    ) -> None:
        self.state = State.VERSION
        self.minor_version = 8
        """3, 7 or 8."""
        self.security = ""
        self.user = ""
        self.view_only = False
        self.events: deque[Event] = deque()
        self._link = link
        self._peer = peer
        self._refusal = refusal
        self._types = tuple(security_types)
        self._chosen_number = 0
        self._exchange: Exchange | None = None
        self._steps: deque[SecurityStep] = deque()
        link.send(OURS)

    def enter(self, step: Step) -> None:
        """The next state. Raises `RfbMisuse` if the step has no place here."""
        self.state = after(self.state, step)
        if self.state is State.CLOSED:
            self._link.close()

    def read(self) -> bool:
        """Look at what is next; whether there was enough of it. Raises `RfbError`."""
        if self.state is State.VERSION:
            return self._read_version()
        if self.state is State.CHOICE:
            return self._read_choice()
        if self.state is State.EXCHANGE:
            return self._read_exchange()
        return self.state is State.INIT and self._read_init()

    def check(self) -> None:
        """Raise `RfbError` if too much waits."""
        if len(self._link.inbox) > HANDSHAKE_BYTES:
            raise RfbError(f"more than {HANDSHAKE_BYTES} bytes before it was let in")

    def tls_ready(self) -> None:
        """What is received and sent from here on goes through TLS."""
        self.enter(Step.TLS_READY)
        self._run_steps()

    def refuse(self) -> None:
        """Let it not in."""
        if self.state is not State.ADMISSION:
            raise RfbMisuse(f"nobody asks to be let in, in the state {self.state.value!r}")
        self.enter(Step.END)

    def _read_version(self) -> bool:
        data = self._link.take(VERSION_BYTES)
        if data is None:
            return False
        match = VERSION.fullmatch(data)
        if match is None or int(match[1]) != 3 or int(match[2]) < 3:
            self._link.send(bytes(4) + pack_reason("no such version of RFB here"))
            raise RfbError(f"it answers with {data!r} and not with a version of RFB 3")
        self.minor_version = 8 if int(match[2]) >= 8 else 7 if int(match[2]) == 7 else 3
        if self.minor_version == 3:
            self._decide()
            return True
        self._link.send(bytes((len(self._types), *(kind.number for kind in self._types))))
        if self._types:
            self.enter(Step.OFFERED)
        else:
            self._link.send(pack_reason(self._refusal))
            self._reject(self._refusal)
        return True

    def _decide(self) -> None:
        """3.3: the first type that it has."""
        chosen = next((kind for kind in self._types if kind.number in FIRST_SECURITY_TYPES), None)
        if chosen is None:
            reason = "a viewer with RFB 3.7 or 3.8 is needed here" if self._types else self._refusal
            self._link.send(bytes(4) + pack_reason(reason))
            self._reject(reason)
            return
        self._link.send(chosen.number.to_bytes(4, "big"))
        self.enter(Step.DECIDED)
        self._begin(chosen)

    def _read_choice(self) -> bool:
        data = self._link.take(1)
        if data is None:
            return False
        chosen = next((kind for kind in self._types if kind.number == data[0]), None)
        if chosen is None:
            self._send_failure("no such security type was offered")
            raise RfbError(f"it chose security type {data[0]}, which was not offered")
        self.enter(Step.CHOSEN)
        self._begin(chosen)
        return True

    def _begin(self, chosen: SecurityType) -> None:
        self.security = chosen.name
        self._chosen_number = chosen.number
        self._exchange = chosen.begin(self._peer)
        self._steps.extend(self._exchange.start())
        self._run_steps()

    def _read_exchange(self) -> bool:
        assert self._exchange is not None
        before = len(self._link.inbox)
        try:
            steps = self._exchange.receive(self._link.inbox)
        except ProtocolError as error:
            raise RfbError(str(error)) from error
        self._steps.extend(steps)
        self._run_steps()
        return bool(steps) or len(self._link.inbox) < before

    def _run_steps(self) -> None:
        while self._steps and self.state is State.EXCHANGE:
            step = self._steps.popleft()
            if isinstance(step, Send):
                self._link.send(step.data)
            elif isinstance(step, Wrap):
                self._link.wrap(step.codec)
            elif isinstance(step, StartTls):
                if self._link.inbox:
                    raise RfbError("bytes before the TLS handshake that would count as if they had been inside")
                self.enter(Step.TLS)
                self.events.append(step)
            elif isinstance(step, Failed):
                self._send_failure(step.reason)
                self._reject(step.reason)
            else:
                self._passed(step)

    def _passed(self, step: Passed) -> None:
        self.enter(Step.PASSED)
        self._exchange = None
        self.user, self.view_only = step.user, step.view_only
        # Without security there was nothing that could have failed, and 3.8 is the first to say so nevertheless.
        if self._chosen_number != 1 or self.minor_version == 8:
            self._link.send(bytes(4))
        self.events.append(Authenticated(self.security, self.user, self.view_only))

    def _send_failure(self, reason: str) -> None:
        self._link.send((1).to_bytes(4, "big"))
        if self.minor_version == 8:
            self._link.send(pack_reason(reason))

    def _reject(self, reason: str) -> None:
        self.enter(Step.END)
        self.events.append(Rejected(reason))

    def _read_init(self) -> bool:
        data = self._link.take(1)
        if data is None:
            return False
        self.enter(Step.CLIENT_INIT)
        self.events.append(WantsIn(bool(data[0])))
        return True
