"""Families without machines: ``python -m tests.clones.scenarios NAME [COUNT [PROCESSES]]``.

What the listener hears is printed, a line for each thing.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import trio

from tvmm.clones.family import Ended, Family, Listener
from tvmm.clones.member import Member, Report


class Printer(Listener):
    """Says everything, and does what the scenario wants when all have started."""

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario
        self.family: Family

    def report(self, name: str, report: Report) -> None:
        """See `Listener`."""
        facts = " ".join(f"{key}={value}" for key, value in report.facts.items())
        print(f"{report.kind} {name} {report.text}{facts}", flush=True)

    def ended(self, ended: Ended) -> None:
        """See `Listener`."""
        print(f"ended {ended.name} {ended.status} {ended.started}", flush=True)

    def all_started(self) -> None:
        """See `Listener`."""
        print("all started", flush=True)
        if self.scenario == "crash":
            os.kill(self.family.pids["m-2"], signal.SIGKILL)

    def signalled(self, number: int, count: int) -> None:
        """See `Listener`."""
        print(f"signal {number} {count}", flush=True)


def at_once(member: Member) -> int:
    """Ready, and gone."""
    member.ready(pid=str(os.getpid()), session=str(os.getsid(0) == os.getpid()))
    return member.number % 2 * 5


def until_told(member: Member) -> int:
    """Ready, until there is a signal or no parent."""
    os.write(2, f"{os.getpid()}\n".encode())

    async def main() -> int:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(member.watch_parent, nursery.cancel_scope.cancel)
                member.ready()
                async for number in received:
                    member.say(f"told {number}")
                    nursery.cancel_scope.cancel()
                    return 10
        return 20

    return trio.run(main)


def deaf(member: Member) -> int:
    """Ready, and nothing but SIGKILL ends it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    member.ready()
    while True:
        time.sleep(60)


def failing(member: Member) -> int:
    """Of three one works, one says why it does not, one has a bug."""
    if member.number == 1:
        member.ready()
    elif member.number == 2:
        member.error("it cannot be")
        return 2
    else:
        raise RuntimeError("a bug")
    return 0


def talkative(member: Member) -> int:
    """Longest lines, at the same time as the others'."""
    member.ready()
    for _ in range(50):
        member.say("\U0001f600" * 1000)
    return 0


def together(members: Sequence[Member]) -> int:
    """Each tells its own status but the last, and the process waits for a signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    for member in members:
        member.ready(pid=str(os.getpid()))
        if member is not members[-1]:
            member.ended(member.number)
            member.ended(9)
    signal.sigwait({signal.SIGTERM})
    return 20


def alone(start: Callable[[Member], int], members: Sequence[Member]) -> int:
    """In a process of its own."""
    (member,) = members
    return start(member)


STARTS = {
    "at_once": at_once,
    "until_told": until_told,
    "deaf": deaf,
    "failing": failing,
    "crash": until_told,
    "talkative": talkative,
}


def main() -> None:
    """The scenario that is named."""
    scenario = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    listener = Printer(scenario)
    processes = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    start = together if scenario == "together" else partial(alone, STARTS[scenario])
    names = [f"m-{number + 1}" for number in range(count)]
    family = Family(names, start, listener, processes=processes, at_once=2)
    listener.family = family
    family.run()
    print(f"over {family.signal}", flush=True)


if __name__ == "__main__":
    main()
