"""The user's terminal in raw mode, given back whatever happens.

A terminal left raw looks broken to its user, so there are three ways back: the end of the `with` block
(return, exception, cancellation), interpreter exit without it (`atexit`), and a signal whose default is to
end the process. A program that handles SIGTERM or SIGHUP by itself ends its blocks, so its handlers are left
alone. Nothing is done for SIGTSTP: in raw mode ^Z is the guest's.

The attributes are always changed at once (TCSANOW). Waiting for output to drain, as is customary, hangs for
good on a terminal that takes none, and discarding input would lose what the user typed ahead.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import termios
from typing import TYPE_CHECKING, Any

from tvmm.errors import HostError

if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Self

__all__ = ["RawTerminal", "raw_attributes"]

DEADLY = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that end the process if nobody handles them. (SIGINT raises KeyboardInterrupt, and so ends
blocks.)"""

IFLAG, OFLAG, CFLAG, LFLAG, CC = 0, 1, 2, 3, 6


def raw_attributes(attributes: list[Any], *, output: bool) -> list[Any]:
    """`attributes` (as of `termios.tcgetattr`) changed so that each byte typed arrives at once and as it is.

    With `output` the way out is made transparent as well; without it newlines of other programs and of our
    own messages keep their carriage return, which does no harm to a guest that sends its own.
    """
    raw = [*attributes[:CC], list(attributes[CC])]
    raw[IFLAG] &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR
        | termios.ICRNL | termios.IXON
    )  # fmt: skip
    raw[LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw[CFLAG] = raw[CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    if output:
        raw[OFLAG] &= ~termios.OPOST
    raw[CC][termios.VMIN] = 1
    raw[CC][termios.VTIME] = 0
    return raw


class RawTerminal:
    """Context manager for one use: the terminal open as `fd` is raw inside the block.

    If `fd` is not a terminal, nothing is done. Raises `HostError` if the terminal refuses.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None
        self._process = 0
        self._previous: dict[signal.Signals, Any] = {}
        self._handler = self._on_signal  # one bound method, to be recognised by identity

    def __enter__(self) -> Self:
        try:
            self._saved = termios.tcgetattr(self._fd)
        except termios.error:
            return self
        self._process = os.getpid()
        atexit.register(self.restore)
        for number in DEADLY:
            self._catch(number)
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, raw_attributes(self._saved, output=False))
        except termios.error as error:
            self.__exit__(None, None, None)
            raise HostError(f"cannot change the mode of the terminal: {error.args[-1]}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
        atexit.unregister(self.restore)
        for number, previous in self._previous.items():
            if signal.getsignal(number) is self._handler:
                signal.signal(number, previous)

    def restore(self) -> None:
        """Give the terminal its attributes back. May be called at any time, any number of times."""
        saved, self._saved = self._saved, None
        # A forked child that ends must not change the terminal under its parent.
        if saved is not None and os.getpid() == self._process:
            with contextlib.suppress(termios.error):  # hung up: nothing left to restore
                termios.tcsetattr(self._fd, termios.TCSANOW, saved)

    def _catch(self, number: signal.Signals) -> None:
        """Restore on a signal that nobody handles, or that only another terminal's restoring handles."""
        current = signal.getsignal(number)
        if current is signal.SIG_DFL or isinstance(getattr(current, "__self__", None), RawTerminal):
            with contextlib.suppress(ValueError):  # not the main thread, where alone handlers can be set
                self._previous[number] = signal.signal(number, self._handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        signal.signal(number, self._previous[signal.Signals(number)])
        os.kill(os.getpid(), number)
