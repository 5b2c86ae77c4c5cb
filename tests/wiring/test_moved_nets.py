"""Networks of guests that move: who answers, from where, and what the switch in between learns."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.bridged import BRIDGE, GUEST, HOST, Listener, Pinger, bridged, echo_request
from tests.support.echo_peer import checksum
from tests.support.patience import PATIENT
from tests.wiring.guests import PROMPT, GuestShell
from tvmm import Machine, MachineConfig
from tvmm.board import Board
from tvmm.config.incoming import IncomingConfig
from tvmm.errors import UserError
from tvmm.wiring.net import rarp_request

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

IPV4, ARP, RARP = 0x0800, 0x0806, 0x8035
MARGIN_S = 0.02
"""For what a pause has around it: what was on its way."""


@pytest.fixture(autouse=True)
def _network() -> Iterator[None]:
    """A bridge that nobody else sees."""
    with bridged():
        yield


@asynccontextmanager
async def machine(name: str, net: str = "", uri: str = "", append: str = "") -> AsyncIterator[GuestShell]:
    """One with a tap ``tap-NAME`` in the bridge, at its prompt or waiting at `uri`. Its board is made on this thread,
    for the namespace.
    """
    options = ",".join(filter(None, [f"tap,ifname=tap-{name},br={BRIDGE}", net]))
    config = MachineConfig.parse(name=name, memory="64M", append=append, net=[options])
    if uri:
        config = config._replace(incoming=IncomingConfig(uri))
    async with Machine(config, board=Board(config, load=not uri)) as vm:
        shell = GuestShell(vm)
        if not uri:
            await vm.resume()
            await vm.wait_serial(PROMPT)
            await shell.ask(f"ip 0 {GUEST}/24")
        yield shell


async def move(here: GuestShell, there: GuestShell) -> float:
    """The pause in seconds."""
    assert there.vm.config.incoming is not None
    status = await here.vm.migrate(there.vm.config.incoming.uri, PATIENT)
    await there.vm.wait_arrival()
    assert status.downtime_ms is not None
    return status.downtime_ms / 1e3


def port_of(mac: bytes) -> str:
    """The tap behind which the bridge knows an address."""
    told = subprocess.run(["bridge", "fdb", "show", "br", BRIDGE], capture_output=True, text=True, check=True).stdout
    words = [line.split() for line in told.splitlines() if line.startswith(mac.hex(":"))]
    [port] = [line[line.index("dev") + 1] for line in words]
    return port


def mac_of(shell: GuestShell) -> bytes:
    """The address that frames to the guest have."""
    assert shell.vm.virtio is not None
    return shell.vm.virtio.nets()[0].mac


def echo_frame(mac: bytes, number: int, identity: int) -> bytes:
    """An echo request to the guest, from a host that nobody knows."""
    icmp = echo_request(number, identity)
    sender, target = bytes.fromhex("0a000299"), bytes(map(int, GUEST.split(".")))
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(icmp), 0, 0, 64, 1, 0, sender, target)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return mac + bytes.fromhex("0200000000990800") + head + icmp


@pytest.mark.parametrize(
    "net", ["", "packed=on,queues=2", "transport=mmio", "in_order=on,csum=off"], ids=["pci", "packed", "mmio", "plain"]
)
async def test_the_pause_is_all_that_is_lost(net: str, tmp_path: Path) -> None:
    """A guest that works answers pings before and after, and asks itself; one side at a time speaks, and the switch
    learns at once.

    No frame is taken for a loss outside of the pause: from its beginning to the announcement.
    """
    append = "packed" if "packed" in net else ""
    with trio.fail_after(100):
        async with (
            machine("a", net, append=append) as here,
            machine("b", net, f"unix:{tmp_path}/b", append=append) as there,
        ):
            mac = mac_of(here)
            with Listener("tap-a") as at_source, Listener("tap-b") as at_destination:
                with Pinger(0.002) as pinger:
                    await here.order(f"churn 60 pages=16M rate=5000 disk=none peer={HOST} pps=500")
                    await here.vm.wait_serial("churning")
                    await trio.to_thread.run_sync(pinger.wait, 100)
                    pause = await move(here, there)
                    # What comes to the tap of a guest that has gone is answered by nobody.
                    for number in range(10):
                        at_source.put(echo_frame(mac, number, 0x1111))
                    await trio.to_thread.run_sync(pinger.wait, 200)
                    await there.vm.send_serial("q")
                    told = (await there.vm.wait_serial(PROMPT)).decode()
                before = [frame for frame in at_source.listen() if frame.data[6:12] == mac]
                after = [frame for frame in at_destination.listen() if frame.data[6:12] == mac]
            assert port_of(mac) == "tap-b"
            assert max(frame.time_ns for frame in before) < min(frame.time_ns for frame in after)
            announced = next(frame for frame in after if frame.kind == RARP)
            lost = [pinger.sent[number] for number in pinger.lost]
            last = max(number for number, time_ns in pinger.answers.items() if time_ns < after[0].time_ns)
            gap = (announced.time_ns - pinger.sent[last]) / 1e9
            print(f"{len(lost)} of {len(pinger.sent)} lost in {gap * 1e3:.2f} ms, pause {pause * 1e3:.2f} ms")
            for sent in lost:
                assert pinger.sent[last] < sent < announced.time_ns
            counts = dict(zip(("echoes", "lost", "wrong"), _numbers(told), strict=True))
            assert counts["echoes"] > 50
            assert counts["wrong"] == 0
            assert counts["lost"] <= (gap + MARGIN_S) * 500


def _numbers(told: str) -> list[int]:
    """Echoes, lost ones and wrong ones of `churn`'s last line."""
    parts = told.split("churn: ")[-1].split(", ")
    return [int(part.split()[0]) for part in parts if part.split()[1] in ("echoes", "lost", "wrong")]


async def test_the_switch_learns_of_a_guest_that_is_silent(tmp_path: Path) -> None:
    """One that arrives paused sends nothing; the host's announcement for it is enough."""
    async with machine("a") as here, machine("b", uri=f"unix:{tmp_path}/b") as there:
        mac = mac_of(here)
        assert "3 sent, 3 received" in await here.ask(f"ping 0 {HOST} 3")
        assert port_of(mac) == "tap-a"
        await here.vm.pause()
        with Listener("tap-b") as listener:
            await move(here, there)
            first = await trio.to_thread.run_sync(listener.wait, RARP)
            assert first.data == rarp_request(mac)
            assert port_of(mac) == "tap-b"
            assert {frame.kind for frame in listener.listen() if frame.data[6:12] == mac} == {RARP}


async def test_the_guest_announces_itself(tmp_path: Path) -> None:
    """Its driver is asked to, and tells its IP address, which the host's announcement does not know; so it does when
    somebody asks later.
    """
    async with machine("a") as here, machine("b", uri=f"unix:{tmp_path}/b") as there:
        mac = mac_of(here)
        with Listener("tap-b") as listener:
            await move(here, there)
            arp = await trio.to_thread.run_sync(listener.wait, ARP, b"\xff" * 6 + mac)
            own = bytes(map(int, GUEST.split(".")))
            assert (arp.data[28:32], arp.data[38:42]) == (own, own)
            assert "3 sent, 3 received" in await there.ask(f"ping 0 {HOST} 3")
            listener.listen()
            listener.frames.clear()
            assert there.vm.virtio is not None
            there.vm.virtio.announce(["net0"])
            again = await trio.to_thread.run_sync(listener.wait, ARP, b"\xff" * 6 + mac)
            assert again.data == arp.data
            assert re.search(r"[1-9]\d* announcements", await there.ask("link 0"))


async def test_stale_frames_are_thrown_away(tmp_path: Path) -> None:
    """What came to the destination's tap while nobody was there is never answered; what comes later is."""
    async with machine("a") as here, machine("b", uri=f"unix:{tmp_path}/b") as there:
        mac = mac_of(here)
        with Listener("tap-b") as listener:
            for number in range(20):
                listener.put(echo_frame(mac, number, 0x2222))
            await move(here, there)
            assert "3 sent, 3 received" in await there.ask(f"ping 0 {HOST} 3")
            assert there.vm.board.devices is not None
            [slot] = there.vm.board.devices.slots
            [counters] = slot.runner.info().counters  # type: ignore[attr-defined]
            assert counters.rx_stale >= 20
            answered = [frame for frame in listener.listen() if frame.kind == IPV4 and frame.data[38:40] == b"\x22\x22"]
            assert not answered


async def test_the_address_moves_with_the_guest(tmp_path: Path) -> None:
    """Machines of other names have made up other addresses; the guest's own goes along, twice, and survives a reset."""
    async with (
        machine("a") as here,
        machine("b", uri=f"unix:{tmp_path}/b") as there,
        machine("c", uri=f"unix:{tmp_path}/c") as last,
    ):
        mac = mac_of(here)
        assert mac != mac_of(there)
        await move(here, there)
        await move(there, last)
        assert mac_of(last) == mac
        assert mac.hex(":") in await last.ask("mac 0")
        assert "3 sent, 3 received" in await last.ask(f"ping 0 {HOST} 3")
        assert port_of(mac) == "tap-c"
        await last.vm.reset()
        await last.vm.wait_serial(PROMPT)
        assert mac.hex(":") in await last.ask("mac 0")
        await last.ask(f"ip 0 {GUEST}/24")
        assert "3 sent, 3 received" in await last.ask(f"ping 0 {HOST} 3")


async def test_an_address_that_was_chosen_is_compared(tmp_path: Path) -> None:
    """Another one at the destination keeps the guest where it is, with a sentence; the same one does not."""
    chosen = "52:54:00:00:00:aa"
    async with (
        machine("a") as here,
        machine("b", f"mac={chosen}", uri=f"unix:{tmp_path}/b") as there,
    ):
        mac = mac_of(here).hex(":")
        sentence = f"net0 address is {chosen} at the destination and {mac} at the source"
        with pytest.raises(UserError, match=sentence):
            await here.vm.migrate(f"unix:{tmp_path}/b")
        assert "3 sent, 3 received" in await here.ask(f"ping 0 {HOST} 3")
        async with machine("c", f"mac={mac}", uri=f"unix:{tmp_path}/c") as other:
            await move(here, other)
            assert mac in await other.ask("mac 0")
        assert there.vm.run_state() == "inmigrate"
