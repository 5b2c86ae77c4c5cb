"""Guests that go from machine to machine on one host with the very tap that they have, while the host pings them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.support.bridged import BRIDGE, GUEST, Pinger, bridged
from tests.support.cut_wire import Wire
from tests.support.netns import ip
from tests.wiring.guests import PROMPT, GuestShell
from tvmm import Machine, MachineConfig
from tvmm.board import Board
from tvmm.config.incoming import IncomingConfig
from tvmm.errors import UserError
from tvmm.migration.status import MigrationParameters
from tvmm.net.tap import TapSettings, open_tap

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]

SECONDS = 120
PATIENT = MigrationParameters(max_downtime_ms=20_000)
"""A busy host is not what ends a move here."""
PING_S = 0.02
"""Twenty seconds fill the tap's queue, and five the guest's ring: on no host a guest is not served for so long."""


@pytest.fixture(autouse=True)
def _bridge() -> Iterator[None]:
    with bridged():
        yield


def config(name: str, *, memory: str = "64M,shared=on", net: str = f"tap,ifname=tap0,br={BRIDGE}") -> MachineConfig:
    """A machine with the tap; its guest has the address of no machine's name."""
    return MachineConfig.parse(name=name, memory=memory, cpus=2, net=[f"{net},mac=52:54:00:12:34:56"])


@asynccontextmanager
async def running(options: MachineConfig) -> AsyncIterator[Machine]:
    """At its prompt, with its address. The board is made on this thread, for the namespace that it is in."""
    async with Machine(options, board=Board(options)) as vm:
        await vm.resume()
        await vm.wait_serial(PROMPT)
        await GuestShell(vm).ask(f"ip 0 {GUEST}/24")
        yield vm


def waiting(options: MachineConfig, uri: str) -> Machine:
    """One that waits for a guest."""
    options = options._replace(incoming=IncomingConfig(uri).check())
    return Machine(options, board=Board(options, load=False))


async def answered(pinger: Pinger, count: int = 5) -> None:
    """So many more are."""
    await trio.to_thread.run_sync(pinger.wait, count)


@pytest.mark.parametrize(
    ("memory", "queues", "times"),
    [("64M,shared=on", 2, 2), ("64M", 1, 1), pytest.param("64M,shared=on", 1, 50, marks=pytest.mark.slow)],
)
async def test_with_the_guest_from_hand_to_hand(tmp_path: Path, memory: str, queues: int, times: int) -> None:
    """The same command line on both sides, whether memory is handed over or copied: the guest's tap is the one that it
    had, no ping is lost or answered twice, and the tap goes with the last machine.
    """
    here_config = config("web", memory=memory, net=f"tap,ifname=tap0,br={BRIDGE},queues={queues}")

    async def stand(uri: str, task_status: trio.TaskStatus[Machine]) -> None:
        async with waiting(here_config, uri) as vm:
            task_status.started(vm)
            await vm.wait()

    with trio.fail_after(SECONDS + 5 * times):
        async with running(here_config) as vm, trio.open_nursery() as nursery:
            here, number = vm, ip("-o", "link", "show", "tap0").split(":")[0]
            with Pinger(PING_S) as pinger:
                await answered(pinger)
                for time in range(times):
                    uri = f"unix:{tmp_path}/{time}"
                    there = await nursery.start(partial(stand, uri))
                    await here.migrate(uri, PATIENT)
                    await there.wait_arrival()
                    assert (await here.wait()).kind == "migrated"
                    here = there
                    await answered(pinger)
            assert pinger.lost == []
            assert ip("-o", "link", "show", "tap0").split(":")[0] == number
            await here.send_serial("poweroff\n")
    assert "tap0" not in ip("-br", "link")


async def test_a_guest_that_stays_after_all(tmp_path: Path) -> None:
    """Cut off at each step on the way: it has its network as before, and no ping is lost. Then it goes."""
    at = ""

    def on_message(passing: str) -> bool:
        if passing == at:
            wire.cut()
            return False
        return True

    wire = Wire(f"{tmp_path}/wire", f"{tmp_path}/there", on_message)
    with trio.fail_after(SECONDS), Pinger(PING_S) as pinger:
        async with running(config("web")) as vm, trio.open_nursery() as nursery:
            await nursery.start(wire.run)
            # What was sent before there was a guest may be answered or not.
            await answered(pinger)
            first = len(pinger.sent)
            for step in ("Descriptors", "State", "Ready", "Commit"):
                at = step
                try:
                    async with waiting(config("web-2"), f"unix:{tmp_path}/there"):
                        with pytest.raises(UserError):
                            await vm.migrate(f"unix:{tmp_path}/wire", PATIENT)
                except* UserError:
                    # The destination's end of it.
                    pass
                assert vm.motion.running
                await answered(pinger)
            at = ""
            async with waiting(config("web-2"), f"unix:{tmp_path}/there") as there:
                await vm.migrate(f"unix:{tmp_path}/wire", PATIENT)
                await there.wait_arrival()
                await answered(pinger)
                last = len(pinger.sent) - 1
                nursery.cancel_scope.cancel()
    assert [number for number in pinger.lost if first <= number < last - 5] == []


async def test_a_machine_with_a_tap_of_another_name(tmp_path: Path) -> None:
    """One of its own in the same bridge is used; one that somebody else has is refused by name, and the guest stays;
    once it is free it is opened.
    """
    theirs = config("web-2", net=f"tap,ifname=tap1,br={BRIDGE}")
    with trio.fail_after(SECONDS):
        async with running(config("web")) as vm:
            with Pinger(PING_S) as pinger:
                await answered(pinger)
                with open_tap(TapSettings(ifname="tap1"), "stranger") as tap:
                    there = waiting(theirs, f"unix:{tmp_path}/there")
                    said: list[str] = []
                    there.on_warning = said.append
                    async with there:
                        assert f"net0: tap tap1 is in use by the machine in process {os.getpid()}; a guest" in said[0]
                        with pytest.raises(UserError, match=r"tap tap1 is in use .* did not come along with the guest"):
                            await vm.migrate(f"unix:{tmp_path}/there", PATIENT)
                        await answered(pinger)
                        tap.close()
                        await vm.migrate(f"unix:{tmp_path}/there", PATIENT)
                        await there.wait_arrival()
                        await vm.wait()
                        await answered(pinger)


def test_over_tcp_it_has_to_be_another_one() -> None:
    """Said at once, with the way out."""
    way_out = r"tap tap0 is in use .*; choose another .* over --incoming unix:PATH"
    with open_tap(TapSettings(ifname="tap0"), "web"), pytest.raises(UserError, match=way_out):
        waiting(config("web-2"), "tcp:127.0.0.1:0")
