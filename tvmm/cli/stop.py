"""``tvmm stop [NAME]``: ask the guest to power off, or end the machine."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tvmm.cli.machines import base_directory, control, named
from tvmm.cli.output import say
from tvmm.config.units import format_duration, parse_duration
from tvmm.control.registry import is_process, machines
from tvmm.errors import HostError, UserError
from tvmm.migration.status import POSTCOPY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.parser import Parser
    from tvmm.control.client import QmpClient
    from tvmm.control.registry import MachineEntry

__all__ = ["add_arguments", "run"]

POLL_SECONDS = 0.01
"""How often to look whether a machine that has hung up is out of the registry; takes a millisecond or two."""

_EXAMPLES = """\
  tvmm stop web                     as if its power button were pressed
  tvmm stop web --timeout 2m        give it longer than 10 seconds
  tvmm stop web --force             end it now; its disks may need a check
"""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.parser import add_name

    parser.describe("Ask a machine to power off and wait until it has, or end it.", _EXAMPLES)
    add_name(parser)
    parser.add_argument("--timeout", metavar="TIME", help="how long to wait for its end (default 10s)")
    parser.add_argument(
        "--force",
        action="store_true",
        help="end it at once; a machine that does not answer is killed",
    )


def run(options: Mapping[str, Any]) -> int:
    """Stop it, and say how."""
    seconds = parse_duration(options.get("timeout", "10s"), "timeout")
    entry = named(options)
    deadline = time.monotonic() + seconds
    if options.get("force"):
        done = _force(entry, deadline)
    else:
        with control(entry) as client:
            done = _stop(client, entry, deadline, seconds)
    _wait_gone(entry, deadline, seconds)
    say(f"{entry.name} {done}")
    return 0


def _stop(client: QmpClient, entry: MachineEntry, deadline: float, seconds: float) -> str:
    """Have the guest power off, or end a machine that waits for one; what was done."""
    if client.execute("query-status")["status"] == "inmigrate":
        client.execute("quit")
        return "ended: it waited for a guest"
    _power_off(client, entry, deadline, seconds)
    return "powered off"


def _power_off(client: QmpClient, entry: MachineEntry, deadline: float, seconds: float) -> None:
    """Press the power button and wait until the machine hangs up."""
    status = client.execute("query-status")["status"]
    if status == "postmigrate" and client.execute("query-migrate").get("status") in POSTCOPY:
        raise UserError(
            f"the guest of {entry.name} runs elsewhere, and part of its memory is here alone: it would die with this",
            f"'tvmm info {entry.name}' shows how far it is; 'tvmm stop {entry.name} --force' ends it all the same",
        )
    if status in ("finish-migrate", "postmigrate"):
        raise UserError(
            f"the guest of {entry.name} is on its way to another tvmm or has arrived there",
            f"stop it there; 'tvmm stop {entry.name} --force' ends what is left here",
        )
    if status in ("paused", "prelaunch"):
        raise UserError(
            f"{entry.name} is paused and cannot power off",
            f"'tvmm resume {entry.name}' it first, or use --force",
        )
    client.execute("system_powerdown")
    try:
        while client.wait_event(timeout=max(deadline - time.monotonic(), 0.0)) is not None:
            pass
    except HostError as error:
        # The machine was reachable a moment ago, so this is the end of our patience, or that of its process.
        if time.monotonic() >= deadline:
            raise _late(entry, seconds) from error


def _force(entry: MachineEntry, deadline: float) -> str:
    """End the machine by its control socket, or its process if that does not answer."""
    try:
        with control(entry, min(max(deadline - time.monotonic(), 0.1), 2.0)) as client:
            client.execute("quit")
        return "ended"
    except HostError:
        _kill(entry)
        return "did not answer and was killed"


def _kill(entry: MachineEntry) -> None:
    """Kill the machine's process, if it still is that."""
    try:
        process = os.pidfd_open(entry.pid)
    except (ProcessLookupError, ValueError):
        return
    try:
        # Checked after the pidfd is held: from here on it means this process and no later one of that number.
        if is_process(entry):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
    finally:
        os.close(process)


def _wait_gone(entry: MachineEntry, deadline: float, seconds: float) -> None:
    """Wait until the registry no longer has this machine as a live one, so that its name is free again."""
    base = base_directory()
    while any(found.alive and found.pid == entry.pid for found in machines(base) if found.name == entry.name):
        if time.monotonic() >= deadline:
            raise _late(entry, seconds)
        time.sleep(POLL_SECONDS)


def _late(entry: MachineEntry, seconds: float) -> UserError:
    return UserError(
        f"{entry.name} did not power off within {format_duration(seconds)}",
        f"wait longer with --timeout, or end it with 'tvmm stop {entry.name} --force'",
    )
