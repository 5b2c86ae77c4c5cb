"""A QMP client for the command line: one socket, one request at a time, nothing but the standard library.

Synchronous on purpose: ``tvmm ps`` and its like ask a question and print the answer, and must not pay for an
event loop to start. Programs that want events while they do other things use any QMP client, or
`tvmm.control.qmp`'s wire.
"""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from tvmm.errors import HostError, ProtocolError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from types import TracebackType
    from typing import Self

__all__ = ["CommandError", "LateError", "QmpClient"]

LINE_LIMIT = 16 << 20
"""Bytes in one message of the server. A peer that never ends its line would otherwise fill this process."""
EVENTS_KEPT = 1000
"""Events that arrived while an answer was awaited; the oldest are dropped."""
TIMEOUT_SECONDS = 10.0


class CommandError(UserError):
    """The machine refused a command; `error_class` is the QMP class of the error, the message is the
    machine's."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class LateError(HostError):
    """The machine has not answered, or not said anything, in the time that it was given; the session goes on."""


class QmpClient:
    """A session with the control socket at `path`, ready for commands.

    Raises `HostError` if nobody answers there within `timeout` seconds, `ProtocolError` if what answers does
    not speak QMP. A context manager; `close` ends the session.
    """

    def __init__(self, path: str | PathLike[str], timeout: float = TIMEOUT_SECONDS) -> None:
        self.path = str(path)
        self.timeout = timeout
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        """Events that came in so far, oldest first; whoever reads one takes it out."""
        self._received = bytearray()
        self._scanned = 0
        self._last_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._connect()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session. The machine goes on."""
        self._socket.close()

    def execute(self, name: str, timeout: float | None = None, /, **arguments: object) -> Any:
        """Run one command and return its value.

        Argument names are written with `_` where the command has `-`. `timeout`, in seconds, is for this
        command alone. Raises `CommandError` if the machine refuses, `HostError` if it is gone, and of those
        `LateError` if it does not answer in time.
        """
        return self.command(name, {key.replace("_", "-"): value for key, value in arguments.items()}, timeout)

    def command(self, name: str, arguments: Mapping[str, object], timeout: float | None = None) -> Any:
        """As `execute`, for arguments whose names are taken as they are: some have `_`."""
        self._last_id += 1
        request: dict[str, Any] = {"execute": name, "id": self._last_id}
        if arguments:
            request["arguments"] = dict(arguments)
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        self._send(json.dumps(request).encode() + b"\r\n", deadline)
        while (message := self._receive(deadline)) is not None:
            if "event" in message:
                self.events.append(message)
            elif "error" in message and message.get("id", self._last_id) == self._last_id:
                raise self._refusal(message["error"])
            elif "return" in message and message.get("id") == self._last_id:
                return message["return"]
        raise self._gone()

    def wait_event(self, *names: str, timeout: float | None = None) -> dict[str, Any] | None:
        """The next event of one of `names` (of any, if none are given), or None when the machine hung up.

        Waits as long as it takes if `timeout` is None; else raises `LateError` after `timeout` seconds.
        Events of other names are taken out on the way.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            while self.events:
                event = self.events.popleft()
                if not names or event["event"] in names:
                    return event
            message = self._receive(deadline)
            if message is None:
                return None
            if "event" in message:
                self.events.append(message)

    def _connect(self) -> None:
        """Connect, read the greeting and leave negotiation."""
        deadline = time.monotonic() + self.timeout
        self._arm(deadline)
        try:
            self._socket.connect(self.path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise HostError(f"no machine answers at {self.path}", "'tvmm ps' lists those that run") from error
        except PermissionError as error:
            raise HostError(
                f"no permission to control the machine at {self.path}", "ask as the user who started it"
            ) from error
        except TimeoutError as error:
            raise self._late() from error
        except OSError as error:
            raise HostError(f"cannot connect to {self.path}: {error.strerror or error}") from error
        greeting = self._receive(deadline)
        if greeting is None:
            raise self._gone()
        if "error" in greeting:
            raise self._refusal(greeting["error"])
        if not isinstance(greeting.get("QMP"), dict):
            raise ProtocolError(f"what listens at {self.path} does not speak QMP")
        self.execute("qmp_capabilities")

    def _send(self, data: bytes, deadline: float) -> None:
        self._arm(deadline)
        try:
            self._socket.sendall(data)
        except TimeoutError as error:
            raise self._late() from error
        except OSError as error:
            raise self._gone() from error

    def _receive(self, deadline: float | None) -> dict[str, Any] | None:
        """The next message, or None when the machine hung up."""
        while (end := self._received.find(b"\n", self._scanned)) < 0:
            self._scanned = len(self._received)
            if self._scanned > LINE_LIMIT:
                raise ProtocolError(
                    f"the machine at {self.path} sent a message of more than {LINE_LIMIT} bytes"
                )
            self._arm(deadline)
            try:
                data = self._socket.recv(65536)
            except TimeoutError as error:
                raise self._late() from error
            except ConnectionResetError:
                data = b""
            except OSError as error:
                raise self._gone() from error
            if not data:
                return None
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        self._scanned = 0
        try:
            message = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"the machine at {self.path} sent what is not JSON") from error
        if not isinstance(message, dict):
            raise ProtocolError(f"the machine at {self.path} sent a message that is not an object")
        return message

    def _arm(self, deadline: float | None) -> None:
        """Let the next socket call last until `deadline`."""
        if deadline is None:
            self._socket.settimeout(None)
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._late()
        self._socket.settimeout(left)

    def _refusal(self, error: object) -> CommandError:
        """The exception for an error answer."""
        if not isinstance(error, dict):
            raise ProtocolError(f"the machine at {self.path} sent an error without a description")
        return CommandError(
            str(error.get("class", "GenericError")), str(error.get("desc", "no reason given"))
        )

    def _gone(self) -> HostError:
        return HostError(f"the machine at {self.path} is gone", "'tvmm ps' lists those that run")

    def _late(self) -> LateError:
        return LateError(
            f"the machine at {self.path} does not answer", "its process may be stopped or very busy"
        )
