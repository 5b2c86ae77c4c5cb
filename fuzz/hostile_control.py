"""Hostile clients at a running machine's control socket and console, all at once.

    python -m fuzz.hostile_control [--seconds 60] [--seed 1]

The machine is `tvmm run` in a process of its own. Clients send noise, damaged commands, brackets without end, floods
that they do not read the answers to, and hang up at any moment; others press pause, resume and reset; viewers type
noise and do not read. Once a second an honest client asks for the status. The machine must answer it all the time and
afterwards, must not grow, and must end as usual.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from random import Random
from typing import NamedTuple

import trio

from fuzz.common import Watch, fail, options
from tests.support.hostile_clients import ask, noise_at_console, noise_at_control
from tests.support.process import PROMPT, call, read_until, started, until
from tvmm.control.client import QmpClient

CONTROL_CLIENTS, VIEWERS = 6, 3
ANSWER_LIMIT_S = 5.0
NAME = "target"


class Counts(NamedTuple):
    """What there was of each; `refusals` are those of the honest client, `slowest_s` is its slowest answer."""

    sessions: int
    viewers: int
    slowest_s: float
    refusals: int


async def main() -> None:
    """One machine, one run."""
    chosen = options(__doc__ or "", (("seconds", 60, "how long"), ("seed", 1, "what the clients do")))
    with tempfile.TemporaryDirectory(prefix="tvmm-") as folder:
        environment = {"TVMM_RUNTIME_DIR": folder}
        control, console = Path(folder, NAME, "control.sock"), Path(folder, NAME, "console.sock")
        with started("run", "--name", NAME, "--memory", "64M", "--cpus", "2", environment=environment) as process:
            read_until(process.stdout, PROMPT)
            drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
            until(console.exists)
            # Everything is imported, and every kind of client has been seen, before growth counts.
            await attack(control, console, Random(chosen.seed), min(5.0, chosen.seconds / 4), None)
            watch = Watch(process.pid)
            counts = await attack(control, console, Random(chosen.seed + 1), chosen.seconds, watch)
            print(
                f"{counts.sessions} control sessions, {counts.viewers} viewers; honest client: slowest answer "
                f"{counts.slowest_s * 1e3:.0f} ms, {counts.refusals} times told to wait"
            )
            with trio.fail_after(ANSWER_LIMIT_S):
                took, _ = await ask(control, "query-status")
            print(f"{took * 1e3:.0f} ms until all places were free again")
            with QmpClient(control) as client:
                client.execute("system_reset")
                client.execute("cont")
            await shell_answers(console)
            until(lambda: len(watch.look().descriptors) <= len(watch.first.descriptors))
            watch.judge()
            print(watch.line())
            status, out, err = call("stop", NAME, env={**os.environ, **environment})
            if status:
                fail(f"stop: {out} {err}")
            assert process.stderr is not None
            words = process.stderr.read().decode()
            drain.wait()
    if process.wait() or words:
        fail(f"the machine ended with {process.returncode}: {words}")


async def attack(
    control: Path, console: Path, random: Random, seconds: float, watch: Watch | None
) -> Counts:
    """Hostile clients for `seconds`, and an honest one."""
    sessions = viewers = refusals = 0
    slowest = 0.0

    async def control_client(own: Random) -> None:
        nonlocal sessions
        while True:
            await noise_at_control(control, own)
            sessions += 1

    async def viewer(own: Random) -> None:
        nonlocal viewers
        while True:
            await noise_at_console(console, own)
            viewers += 1

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(CONTROL_CLIENTS):
                nursery.start_soon(control_client, Random(random.getrandbits(64)))
            for _ in range(VIEWERS):
                nursery.start_soon(viewer, Random(random.getrandbits(64)))
            rounds = 0
            while True:
                await trio.sleep(1)
                with trio.fail_after(ANSWER_LIMIT_S):
                    took, refused = await ask(control, "query-status")
                slowest, refusals = max(slowest, took), refusals + refused
                rounds += 1
                if watch is not None and rounds % 10 == 0:
                    print(watch.line(), flush=True)
    return Counts(sessions, viewers, slowest, refusals)


async def shell_answers(console: Path) -> None:
    """The guest, reset, works off what the viewers typed, and then does what it is told."""
    async with await trio.open_unix_socket(str(console)) as stream:
        await stream.send_all(b"\x03\x15\necho still here\n")
        text = b""
        while b"\nstill here\r\n" not in text:
            with trio.fail_after(ANSWER_LIMIT_S):
                text = text[-100:] + await stream.receive_some()


if __name__ == "__main__":
    trio.run(main)
