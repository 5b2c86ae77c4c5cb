"""A migration as seen from a control client: begun, followed, given up, and never in doubt about its end.

The source tells the end twice: in the answers to `query-migrate`, for as long as its process lives, and in the last
event `MIGRATION`, which it has sent before it ends for it. So whatever comes first, an answer, the event or the end of
the connection with the event in front of it, the outcome is known. A connection that ends without it says that the
process died.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from tvmm.control.client import CommandError, LateError
from tvmm.control.migration_info import EVENT, status_of
from tvmm.errors import HostError, ProtocolError
from tvmm.migration.status import NO_MIGRATION, POSTCOPY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType, TracebackType

    from tvmm.control.client import QmpClient

__all__ = ["Follower", "Interrupts"]

INTERVAL_SECONDS = 0.2
START_SECONDS = 60.0
"""What `migrate` may take to answer."""
LAST_WORDS_SECONDS = 5.0
"""How long a machine whose connection is broken may take to hang up."""


class Interrupts:
    """SIGINT and SIGTERM within the block: counted, and looked at between two messages. The third one is not held."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.count = 0
        self.first = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python lets the main thread alone set handlers, by this error; those that were ignored stay so.
        with suppress(ValueError):
            for number in self.NUMBERS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.first = self.first or number
        if self.count >= 2:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Follower:
    """One migration through `client`. What else goes on in a machine and is followed has other names for the same."""

    EVENT, CANCEL, QUERY = EVENT, "migrate_cancel", "query-migrate"
    read: Callable[[Mapping[str, Any]], Any] = staticmethod(status_of)
    """`info` as a record with `ended`."""

    def __init__(self, client: QmpClient, interval: float = INTERVAL_SECONDS) -> None:
        self.info: Mapping[str, Any] = {}
        """What is known; the last word if `ended`."""
        self.status: Any = NO_MIGRATION
        """The same as a record."""
        self.ended = False
        self._client = client
        self._interval = interval

    def start(self, uri: str, parameters: Mapping[str, Any]) -> None:
        """Begin. Raises `CommandError` if the machine refuses."""
        self.begin("migrate", uri=uri, x_parameters=dict(parameters))

    def begin(self, command: str, **arguments: Any) -> None:
        """The same with any command."""
        self._client.execute(command, START_SECONDS, **arguments)
        events = list(self._client.events)
        self._client.events.clear()
        # What was said before `setup` is about an earlier migration.
        begun = max((at for at, event in enumerate(events) if self._state(event) == "setup"), default=-1)
        self._client.events.extend(events[begun + 1 :])

    def recover(self, uri: str) -> None:
        """Go on with a post-copy. Raises `CommandError` if the machine refuses."""
        self._client.execute("migrate-recover", START_SECONDS, **({"uri": uri} if uri else {}))
        self._client.events.clear()

    @property
    def waits(self) -> bool:
        """A post-copy without a connection, and nobody tries to make one."""
        postcopy = self.status.postcopy
        return self.status.state == "postcopy-paused" and postcopy is not None and postcopy.waiting

    def updates(self, interrupts: Interrupts) -> Iterator[Mapping[str, Any]]:
        """How it goes, each `interval` seconds and when the state changes, until it has `ended`.

        Ends before that when the machine is gone, and after a second interrupt; the first one cancels.
        """
        cancelled = False
        while not self.ended and interrupts.count < 2:
            try:
                if interrupts.count and not cancelled:
                    cancelled = True
                    with suppress(CommandError):
                        # A guest that runs over there cannot be taken back: this ends the watching, and nothing else.
                        self._client.execute(self.CANCEL)
                    if self.status.state in POSTCOPY:
                        return
                if not self._listen(self._interval):
                    return
                if not self.ended:
                    self._learn(self._client.execute(self.QUERY))
            except LateError:
                # A busy machine is not a broken one, and whoever is tired of it can leave.
                continue
            except HostError:
                self._hear_last_words()
                if not self.ended:
                    return
            yield self.info

    def _hear_last_words(self) -> None:
        """Take in what the machine said before it hung up."""
        with suppress(LateError):
            while not self.ended:
                event = self._client.wait_event(self.EVENT, timeout=LAST_WORDS_SECONDS)
                if event is None:
                    return
                self._take(event)

    def _listen(self, seconds: float) -> bool:
        """Take in an event, if one comes within `seconds`; False when the machine has hung up."""
        try:
            event = self._client.wait_event(self.EVENT, timeout=seconds)
        except LateError:
            return True
        if event is not None:
            self._take(event)
        return event is not None

    def _take(self, event: Mapping[str, Any]) -> None:
        info = event.get("data", {}).get("x-info")
        if info is not None:
            self._learn(info)

    def _learn(self, info: Mapping[str, Any]) -> None:
        try:
            self.status = self.read(info)
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        self.info = info
        self.ended = self.status.ended

    def _state(self, event: Mapping[str, Any]) -> object:
        """What an event says about it, None if it is about something else."""
        return event.get("data", {}).get("status") if event["event"] == self.EVENT else None
