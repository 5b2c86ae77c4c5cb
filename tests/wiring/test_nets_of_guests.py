"""Network devices of whole machines: the built-in guest talks to the host through a TAP in a namespace of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.support.netns import ip, network_namespace
from tests.wiring.guests import PROMPT, GuestShell
from tvmm import Machine, MachineConfig
from tvmm.board import Board
from tvmm.errors import UserError

pytestmark = pytest.mark.guest

HOST, GUEST = "10.0.2.2", "10.0.2.15"
RINGS = ("", "packed=on", "in_order=on", "event_idx=off,indirect_desc=off")


@pytest.fixture(autouse=True)
def _namespace() -> Iterator[None]:
    """Nothing of this reaches the host's network."""
    with network_namespace():
        ip("link", "set", "lo", "up")
        yield


@asynccontextmanager
async def networked(options: str = "", append: str = "", seconds: float = 60) -> AsyncIterator[GuestShell]:
    """A machine named web with a TAP, at its prompt, with its address set.

    The board is made on this thread: the namespace is the thread's.
    """
    net = ",".join(filter(None, [f"tap,ip={HOST}/24", options]))
    config = MachineConfig.parse(name="web", memory="64M", append=append, net=[net])
    with trio.fail_after(seconds):
        async with Machine(config, board=Board(config)) as vm:
            shell = GuestShell(vm)
            await vm.resume()
            await vm.wait_serial(PROMPT)
            await shell.ask(f"ip 0 {GUEST}/24")
            yield shell


async def echoes(shell: GuestShell, payloads: list[bytes]) -> list[bytes]:
    """What the guest's UDP echo gives back for each of them."""
    await shell.order("netecho 0")
    await shell.vm.wait_serial("netecho")
    found = []
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as socket:
        await socket.bind((HOST, 0))
        for payload in payloads:
            await socket.sendto(payload, (GUEST, 7))
            found.append(await socket.recv(65536))
    await shell.order("\x03")
    await shell.prompt()
    return found


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize("ring", RINGS)
async def test_both_directions_over_every_ring(transport: str, ring: str) -> None:
    """The guest pings the host, and gives back what the host sends, small and large, by every ring format."""
    payloads = [bytes([n % 256]) * n for n in (1, 100, 1000, 1472)]
    words = "packed" if "packed=on" in ring else ""
    async with networked(",".join(filter(None, [ring, f"transport={transport}"])), words) as shell:
        assert "50 sent, 50 received" in await shell.ask(f"ping 0 {HOST} 50")
        assert await echoes(shell, payloads) == payloads


@pytest.mark.parametrize("ring", RINGS)
async def test_frames_in_several_buffers(ring: str) -> None:
    """A frame larger than a receive buffer comes in merged buffers, whatever the ring says of each one's length."""
    payloads = [bytes([n % 251]) * n for n in (4000, 4100, 8900)]
    words = "packed" if "packed=on" in ring else ""
    async with networked(",".join(filter(None, [ring, "mtu=9000"])), words) as shell:
        assert await echoes(shell, payloads) == payloads
        await shell.prompt()  # of the line feed behind Ctrl-C
        assert " 0 errors, 0 bad checksums" in await shell.ask("link 0")


async def test_large_frames_and_most_without_kick_or_interrupt() -> None:
    """64 KiB frames to be segmented reach the host; under load there are many frames to a kick."""
    async with networked() as shell:
        assert "nettx: 0 frames" not in await shell.ask("nettx 0 65535 1 gso")
        assert "nettx: 0 frames" not in await shell.ask("nettx 0 64 1")
        assert shell.vm.virtio is not None
        (device,) = shell.vm.virtio.virtio()
        transmit = device.queues[1]
        assert transmit.chains > 1000
        assert transmit.kicks < transmit.chains / 4
        assert transmit.interrupts < transmit.chains / 4
        assert (transmit.exits, transmit.errors, device.last_error) == (0, 0, "")


async def test_address_is_stable_by_name() -> None:
    """The same machine has the same address each time, and the guest sees it."""
    seen = set()
    for _ in range(2):
        async with networked() as shell:
            seen.add(await shell.ask("mac 0"))
            assert shell.vm.virtio is not None
            (net,) = shell.vm.virtio.nets()
            assert net.mac.hex(":") in (await shell.ask("mac 0")).lower()
    assert len(seen) == 1


async def test_link_down_and_up() -> None:
    """The guest sees the cable go, nothing passes, and it works again afterwards."""
    async with networked() as shell:
        assert shell.vm.virtio is not None
        assert "up" in await shell.ask("link 0")
        shell.vm.virtio.set_link("net0", False)
        assert "down" in await shell.ask("link 0")
        assert "0 received" in await shell.ask(f"ping 0 {HOST} 1")
        shell.vm.virtio.set_link("net0", True)
        assert "3 sent, 3 received" in await shell.ask(f"ping 0 {HOST} 3")


async def test_tap_removed_while_running() -> None:
    """The link goes down with a line for the user; guest and machine live on."""
    async with networked() as shell:
        warnings: list[str] = []
        warned = trio.Event()

        def warn(message: str) -> None:
            warnings.append(message)
            warned.set()

        shell.vm.on_warning = warn
        assert shell.vm.virtio is not None
        ip("link", "delete", shell.vm.virtio.nets()[0].ifname)
        await shell.ask("nettx 0 64 1")
        await warned.wait()
        assert "link is down" in warnings[0]
        assert not shell.vm.virtio.nets()[0].link_up
        assert "down" in await shell.ask("link 0")
        assert shell.vm.run_state() == "running"


async def test_resets_in_the_middle_of_traffic() -> None:
    """A driver that resets while frames come and go gets a working device back."""
    async with networked() as shell:
        await shell.ask("vreset 0 200")
        await shell.ask(f"ip 0 {GUEST}/24")
        assert "5 sent, 5 received" in await shell.ask(f"ping 0 {HOST} 5")


async def test_announce() -> None:
    """The guest is asked to announce itself, and does."""
    async with networked() as shell:
        assert shell.vm.virtio is not None
        shell.vm.virtio.announce(["net0"])
        assert "announce" in await shell.ask("link 0")
        with pytest.raises(UserError, match="net0"):
            shell.vm.virtio.announce(["net7"])


async def test_nothing_is_left() -> None:
    """The TAP is gone with its machine."""
    async with networked():
        assert "vt-web" in ip("-br", "link")
    assert "vt-web" not in ip("-br", "link")
