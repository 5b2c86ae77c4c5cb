"""Processes that one process forks and minds: started a few at a time, told of signals, waited for.

Each is one member of a family, or several of them.

The parent forks before it has a thread, an event loop or a KVM descriptor, and stays without: it waits in poll(2) for
lines from its children and for signals. What it has read and imported by then its children share with it, as long as
nobody writes to it; so the garbage collector is told to leave all of it alone (`gc.freeze`).
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from tvmm.clones.member import MAX_LINE, Member, Report, parse_report
from tvmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Ended", "Family", "Listener"]

STARTING_PER_CPU = 4
"""Children that are being started at a time: more would only take turns, and each would be late."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IMPATIENT = 3
"""The signal at which nothing is waited for any more."""
STATUS_BUG = 1
_READ = 64 * MAX_LINE


class Ended(NamedTuple):
    """One that is gone: `status` is its exit status, -N if signal N killed it. `started`: it had been ready."""

    number: int
    name: str
    status: int
    started: bool


class Listener:
    """Who hears of a family. Methods do nothing unless they are overridden."""

    def report(self, name: str, report: Report) -> None:
        """A member says something."""

    def ended(self, ended: Ended) -> None:
        """A member is gone."""

    def all_started(self) -> None:
        """Each is ready, or gone: once."""

    def signalled(self, number: int, count: int) -> None:
        """A signal came, the how manyth, and was passed on."""


class Family:
    """`start` is called in each process with its members, and returns the exit status of those that told none."""

    def __init__(
        self,
        names: Sequence[str],
        start: Callable[[Sequence[Member]], int],
        listener: Listener,
        *,
        processes: int = 0,
        at_once: int = 0,
    ) -> None:
        """One process for each name, or `processes` if that is less; at most `at_once` of them are being started at a
        time. 0 is for as many as there are names, and for what suits the host's processors.
        """
        self._start = start
        self._listener = listener
        self._at_once = at_once or STARTING_PER_CPU * (os.cpu_count() or 1)
        self._names = dict(enumerate(names, 1))
        self._waiting = shares(list(self._names), min(processes, len(names)) or len(names))
        self._waiting.reverse()
        self._alive: dict[int, list[int]] = {}
        """The members of each process that lives."""
        self._ready: set[int] = set()
        self._ended: set[int] = set()
        self._partial = b""
        self._told_started = False
        self.signal = 0
        """The first one that came, 0 if none did."""
        self._signals = 0

    @property
    def pids(self) -> dict[str, int]:
        """Of those that live, by name."""
        return {self._names[number]: pid for pid, members in self._alive.items() for number in members}

    def run(self) -> None:
        """Start all, and return when all have ended. In the main thread of a process with no other thread.

        Raises `HostError` if the host starts no more processes; those that live are killed.
        """
        with ExitStack() as stack:
            wakeups = stack.enter_context(_signals())
            self._reports = stack.enter_context(_pipe())
            os.set_blocking(self._reports[0], False)
            self._lifeline = stack.enter_context(_pipe())
            gc.collect()
            gc.freeze()
            stack.callback(gc.unfreeze)
            poll = select.poll()
            poll.register(wakeups, select.POLLIN)
            poll.register(self._reports[0], select.POLLIN)
            try:
                self._mind(poll, wakeups)
            except BaseException:
                self._kill()
                raise

    def _mind(self, poll: select.poll, wakeups: socket.socket) -> None:
        while True:
            self._fork_more()
            self._tell_started()
            if not self._alive and not self._waiting:
                return
            for descriptor, _ in poll.poll():
                if descriptor == self._reports[0]:
                    self._read_reports()
                else:
                    self._handle(wakeups.recv(4096))

    # --- starting ---

    def _fork_more(self) -> None:
        while self._waiting and len(self._starting()) < self._at_once:
            members = self._waiting.pop()
            before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
            try:
                # What is in a buffer would be written by both.
                sys.stdout.flush()
                sys.stderr.flush()
                try:
                    pid = os.fork()
                except OSError as error:
                    raise HostError(
                        f"the host starts no more processes: {error.strerror}",
                        "start fewer clones, or raise its limits ('ulimit -u', pids.max)",
                    ) from None
                if not pid:
                    self._become(members, before)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._alive[pid] = members

    def _starting(self) -> list[int]:
        """Processes with a member that is not ready, and has not ended."""
        told = self._ready | self._ended
        return [pid for pid, members in self._alive.items() if not told.issuperset(members)]

    def _become(self, numbers: Sequence[int], mask: set[int | signal.Signals]) -> NoReturn:
        """In the child: never returns."""
        status = STATUS_BUG
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (*PASSED_ON, signal.SIGCHLD):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            # Of the pipe that ends with the parent no child may keep the parent's end.
            os.close(self._lifeline[1])
            os.close(self._reports[0])
            nothing = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1):
                os.dup2(nothing, standard)
            os.close(nothing)
            ends = self._reports[1], self._lifeline[0]
            status = self._start([Member(number, self._names[number], *ends) for number in numbers])
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(status)

    def _tell_started(self) -> None:
        if not self._told_started and not self._waiting and not self._starting():
            self._told_started = True
            self._listener.all_started()

    # --- what comes ---

    def _read_reports(self) -> None:
        try:
            data = self._partial + os.read(self._reports[0], _READ)
        except BlockingIOError:
            return  # a child that ended had it read
        *lines, rest = data.split(b"\n")
        self._partial = rest[-MAX_LINE:]
        for line in lines:
            try:
                report = parse_report(line)
                name = self._names[report.number]
            except (ValueError, KeyError):
                continue  # of a process in which something has gone very wrong; how it ends will be told
            if report.kind == "ended":
                self._end(report.number, report.status)
                continue
            if report.kind == "ready":
                self._ready.add(report.number)
            self._listener.report(name, report)

    def _end(self, number: int, status: int) -> None:
        if number not in self._ended:
            self._ended.add(number)
            self._listener.ended(Ended(number, self._names[number], status, number in self._ready))

    def _handle(self, numbers: bytes) -> None:
        for number in numbers:
            if number in PASSED_ON:
                self._pass_on(number)
        self._reap()

    def _pass_on(self, number: int) -> None:
        """To all; those that wait for their turn to start do not."""
        self._signals += 1
        self.signal = self.signal or number
        self._waiting.clear()
        if self._signals >= IMPATIENT:
            self._kill()
        else:
            for pid in self._alive:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        self._listener.signalled(number, self._signals)

    def _reap(self) -> None:
        # By pid: others that this process started are not ours to wait for.
        for pid in list(self._alive):
            found, state = os.waitpid(pid, os.WNOHANG)
            if found:
                self._drain()
                for number in self._alive.pop(pid):
                    self._end(number, os.waitstatus_to_exitcode(state))

    def _drain(self) -> None:
        """What a child said before it ended comes before its end."""
        poll = select.poll()
        poll.register(self._reports[0], select.POLLIN)
        while poll.poll(0):
            self._read_reports()

    def _kill(self) -> None:
        for pid in self._alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def shares(numbers: Sequence[int], count: int) -> list[list[int]]:
    """`numbers` in order in `count` lists, whose lengths differ by at most 1."""
    return [list(numbers[len(numbers) * n // count : len(numbers) * (n + 1) // count]) for n in range(count)]


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_CLOEXEC)
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Numbers of signals as bytes; those that whoever started us has ignored stay ignored."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        wanted = [number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, _nothing) for number in (*wanted, signal.SIGCHLD)}
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)


def _nothing(number: int, frame: object) -> None:
    """Its number is in the socket."""
