"""The console's runner: output and its back-pressure, input, control messages, emergency output, resets."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from struct import pack

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chardev.fakes import HoldingBackend, odd_bytes
from tests.chardev.rigs import RECONNECTING, MakeRig
from tests.support.driver_ring import Buffer
from tests.support.task_slot import TaskSlot, serving
from tests.virtio.devices import ALL_RING
from tests.virtio.ring_parts import FEATURES, feature_names
from tvmm.chardev.none import NoneBackend
from tvmm.chardev.port import SerialHub
from tvmm.virtio.console import Console, ConsoleSettings
from tvmm.virtio.console_control import PortSettings
from tvmm.virtio.features import Console as Feature
from tvmm.virtio.features import Ring
from tvmm.virtio.runner.console import CHUNK, EMERGENCY_BYTES, ConsoleRunner, PortEnd

PATIENCE_S = 20
RECEIVE, TRANSMIT, TO_DRIVER, FROM_DRIVER, AGENT_RECEIVE, AGENT_TRANSMIT = range(6)
READY, ADD, REMOVE, PORT_READY, CONSOLE, RESIZE, OPEN, NAME = range(8)
pytestmark = pytest.mark.timeout(60)
each_features = pytest.mark.parametrize("features", FEATURES, ids=feature_names)


class Rig:
    """A slot and its runner. One port alone, or a console and an agent."""

    def __init__(self, *, multiport: bool) -> None:
        ports = (PortSettings("main", console=True), PortSettings("agent"))
        self.model = Console(ConsoleSettings(ports if multiport else ports[:1], 2 if multiport else 1), ring=ALL_RING)
        self.slot = TaskSlot(self.model)
        self.runner = ConsoleRunner(self.model, self.slot.ends)
        self.port = self.runner.ports[0]
        self.nursery: trio.Nursery

    async def tell(self, port: int, event: int, value: int = 0) -> None:
        """A control message of the driver's, until the device has taken it."""
        self.slot.offer(FROM_DRIVER, pack("<IHH", port, event, value))
        await self.slot.wait_used(FROM_DRIVER)

    async def messages(self, count: int) -> list[bytes]:
        """The next control messages to the driver, each in a page of its own."""
        return [await self.slot.get(TO_DRIVER, 4096) for _ in range(count)]

    async def open_agent(self) -> None:
        """What Linux says until somebody has opened the agent's port."""
        await self.tell(0xFFFF_FFFF, READY, 1)
        await self.tell(1, PORT_READY, 1)
        await self.tell(1, OPEN, 1)


@asynccontextmanager
async def rig(
    *, multiport: bool = False, features: int = Ring.VERSION_1, without: int = 0
) -> AsyncIterator[Rig]:
    """A runner that serves. `without`: features that the driver does not take."""
    with trio.fail_after(PATIENCE_S):
        made = Rig(multiport=multiport)
        async with serving(made.slot, made.runner) as made.nursery:
            made.slot.activate(made.runner, (features | (Feature.MULTIPORT if multiport else 0)) & ~without)
            yield made


async def receive(port: PortEnd, count: int) -> bytes:
    """`count` bytes of the guest's output."""
    got = b""
    while len(got) < count:
        data = await port.receive_some()
        port.consumed(len(data))
        got += data
    return got


# -- output --------------------------------------------------------------------------------------------


@each_features
async def test_output(features: int) -> None:
    """In every ring format, in chains of odd sizes, many times around the ring, what is written comes out."""
    data = odd_bytes(60_000)
    async with rig(features=features | Ring.VERSION_1) as made:
        slot, got, at = made.slot, b"", 0
        for size in (1, 16, 17, 4096, 555) * 12:
            part = data[at : at + size]
            slot.offer(TRANSMIT, part)
            got += await receive(made.port, len(part))
            assert [length for _, length in await slot.wait_used(TRANSMIT)] == [0]
            at += len(part)
        assert got == data[:at]
        assert made.runner.rings[TRANSMIT].counters.errors == 0


async def test_output_that_nobody_takes_stays_with_the_guest() -> None:
    """No more than a chunk is copied out; the guest has the other buffers back when somebody reads."""
    data = odd_bytes(5 * 20_000)
    backend = HoldingBackend()
    async with rig() as made:
        slot = made.slot
        made.nursery.start_soon(SerialHub(made.port, backend).run)
        await trio.testing.wait_all_tasks_blocked()
        for at in range(0, len(data), 20_000):
            slot.drivers[TRANSMIT].add([Buffer(slot.place(20_000), 20_000)])
            slot.ram.write(slot.place(0) - 20_000, data[at : at + 20_000])
        slot.publish(TRANSMIT)
        await trio.testing.wait_all_tasks_blocked()
        assert len(slot.drivers[TRANSMIT].collect()) == CHUNK // 20_000
        backend.open.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(slot.drivers[TRANSMIT].collect()) == 5 - CHUNK // 20_000
        assert backend.taken == data


async def test_a_chain_longer_than_a_chunk() -> None:
    """It is taken in parts, in order, and given back with the last of them."""
    data = odd_bytes(1 << 20)
    async with rig() as made:
        slot = made.slot
        gpa = slot.place(len(data))
        slot.ram.write(gpa, data)
        slot.add(TRANSMIT, Buffer(gpa, 100_000), Buffer(gpa + 100_000, 1), Buffer(gpa + 100_001, len(data) - 100_001))
        assert await receive(made.port, len(data)) == data
        assert [length for _, length in await slot.wait_used(TRANSMIT)] == [0]


async def test_a_reader_that_takes_twice_is_told() -> None:
    """Before it has consumed what it has."""
    async with rig() as made:
        made.slot.offer(TRANSMIT, b"once")
        assert await made.port.receive_some() == b"once"
        with pytest.raises(RuntimeError, match="consume"):
            await made.port.receive_some()


async def test_the_end() -> None:
    """After `finish` comes what is left in the ring, then nothing; a hub ends."""
    backend = HoldingBackend()
    async with rig() as made:
        hub = SerialHub(made.port, backend)
        made.nursery.start_soon(hub.run)
        await trio.testing.wait_all_tasks_blocked()
        backend.open.set()
        made.slot.offer(TRANSMIT, b"last words")
        made.port.finish()
        await hub.drain()
        assert backend.taken == b"last words"


async def test_none_never_holds_the_guest() -> None:
    """With nobody at the other end each buffer comes back."""
    async with rig() as made:
        made.nursery.start_soon(SerialHub(made.port, NoneBackend()).run)
        for _ in range(50):
            made.slot.offer(TRANSMIT, bytes(10_000))
            await made.slot.wait_used(TRANSMIT)


async def test_reset_in_the_middle_of_a_chain() -> None:
    """The rest of it is not sent, and the next one is sent from its beginning."""
    async with rig() as made:
        slot = made.slot
        slot.offer(TRANSMIT, b"x" * (CHUNK + 10))
        assert len(await made.port.receive_some()) == CHUNK
        slot.restart(made.runner)
        made.port.consumed(CHUNK)
        slot.offer(TRANSMIT, b"another driver")
        assert await receive(made.port, 14) == b"another driver"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(1, 3000), min_size=1, max_size=4), st.booleans()), max_size=20),
    st.sampled_from(FEATURES),
)
def test_output_in_any_pieces(chains: list[tuple[list[int], bool]], features: int) -> None:
    """Chains of any shape, read at any time and around holds: all bytes, in order, and all chains back."""
    data = odd_bytes(240_000)

    async def main() -> None:
        async with rig(features=features | Ring.VERSION_1) as made:
            slot, sent, got, back = made.slot, 0, b"", 0
            for sizes, held in chains:
                if len(sizes) > slot.drivers[TRANSMIT].free_slots:
                    got += await receive(made.port, sent - len(got))
                    back += len(await slot.wait_used(TRANSMIT))
                buffers = []
                for size in sizes:
                    buffers.append(Buffer(slot.place(size), size))
                    slot.ram.write(buffers[-1].gpa, data[sent : sent + size])
                    sent += size
                if held:
                    await made.runner.hold()
                slot.add(TRANSMIT, *buffers)
                if held:
                    made.runner.release()
                    got += await receive(made.port, 1)
            got += await receive(made.port, sent - len(got))
            while back < len(chains):
                back += len(await slot.wait_used(TRANSMIT))
            assert got == data[:sent]
            assert slot.reasons == []

    trio.run(main)


# -- input ---------------------------------------------------------------------------------------------


@each_features
async def test_input(features: int) -> None:
    """In every ring format the guest reads what was sent, cut as its buffers are."""
    data = odd_bytes(6000)
    async with rig(features=features | Ring.VERSION_1) as made:
        made.nursery.start_soon(made.port.send, data)
        got = b""
        while len(got) < len(data):
            got += await made.slot.get(RECEIVE, 177)
        assert got == data


async def test_input_waits_for_buffers() -> None:
    """A guest that never reads makes the sender wait; the buffers it posts in the end get all of it."""
    async with rig() as made:
        sent = trio.Event()

        async def send() -> None:
            await made.port.send(b"first ")
            await made.port.send(b"second")
            sent.set()

        made.nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert not sent.is_set()
        assert await made.slot.get(RECEIVE, 100) == b"first "
        assert await made.slot.get(RECEIVE, 100) == b"second"
        await sent.wait()


async def test_senders_take_turns() -> None:
    """Two at a time, each with all of its bytes; one that is cancelled leaves the line to the other."""
    async with rig() as made:
        made.nursery.start_soon(made.port.send, b"a" * 500)
        await trio.testing.wait_all_tasks_blocked()
        made.nursery.start_soon(made.port.send, b"b" * 500)
        got = b"".join([await made.slot.get(RECEIVE, 300) for _ in range(4)])
        assert got == b"a" * 500 + b"b" * 500
        with trio.CancelScope() as scope:
            scope.cancel()
            await made.port.send(b"never")
        assert scope.cancelled_caught
        with trio.move_on_after(0.01) as scope:
            await made.port.send(b"not read")
        assert scope.cancelled_caught
        made.nursery.start_soon(made.port.send, b"after")
        assert await made.slot.get(RECEIVE, 300) == b"after"


async def test_posted_buffers_wait_without_kicks() -> None:
    """Buffers that come before input are used when there is some; the guest need not kick for them."""
    async with rig() as made:
        await trio.testing.wait_all_tasks_blocked()
        buffers = [made.slot.post(RECEIVE, 4) for _ in range(5)]
        assert made.runner.rings[RECEIVE].counters.kicks == 0
        await made.port.send(b"0123456789")
        assert [length for _, length in await made.slot.wait_used(RECEIVE)] == [4, 4, 2]
        assert b"".join(made.slot.ram.read(buffer.gpa, 4) for buffer in buffers[:3]) == b"0123456789\0\0"


async def test_input_survives_a_reset() -> None:
    """What the guest had not read before its reset comes after it."""
    async with rig() as made:
        made.nursery.start_soon(made.port.send, b"typed early")
        assert await made.slot.get(RECEIVE, 6) == b"typed "
        made.slot.restart(made.runner)
        assert await made.slot.get(RECEIVE, 6) == b"early"


async def test_break_is_nothing() -> None:
    """A port has no break, and who sends one goes on."""
    async with rig() as made:
        await made.port.send_break()
        made.nursery.start_soon(made.port.send, b"x")
        assert await made.slot.get(RECEIVE, 6) == b"x"


# -- control -------------------------------------------------------------------------------------------


async def test_conversation_with_linux() -> None:
    """Ports are added, greeted when ready, told that the host is there, and resized."""
    async with rig(multiport=True) as made:
        await made.tell(0xFFFF_FFFF, READY, 1)
        assert await made.messages(2) == [pack("<IHH", 0, ADD, 0), pack("<IHH", 1, ADD, 0)]
        await made.tell(0, PORT_READY, 1)
        assert await made.messages(4) == [
            pack("<IHH", 0, CONSOLE, 1),
            pack("<IHH", 0, NAME, 1) + b"main",
            pack("<IHH", 0, OPEN, 1),
            pack("<IHHHH", 0, RESIZE, 0, 80, 25),
        ]
        made.runner.resize(132, 43)
        assert await made.messages(1) == [pack("<IHHHH", 0, RESIZE, 0, 132, 43)]
        assert made.model.size == (132, 43)
        await made.tell(1, PORT_READY, 1)
        assert await made.messages(2) == [pack("<IHH", 1, NAME, 1) + b"agent", pack("<IHH", 1, OPEN, 1)]
        made.runner.ports[1].set_open(False)
        assert await made.messages(1) == [pack("<IHH", 1, OPEN, 0)]


async def test_messages_go_out_together() -> None:
    """With buffers posted beforehand all that waits goes out, and the buffers left over stay for later."""
    async with rig(multiport=True) as made:
        buffers = [made.slot.post(TO_DRIVER, 72) for _ in range(4)]
        await made.tell(0xFFFF_FFFF, READY, 1)
        assert [length for _, length in await made.slot.wait_used(TO_DRIVER)] == [8, 8]
        assert made.slot.ram.read(buffers[1].gpa, 8) == pack("<IHH", 1, ADD, 0)
        await made.tell(1, PORT_READY, 1)
        assert [length for _, length in await made.slot.wait_used(TO_DRIVER)] == [13, 8]
        assert made.slot.ram.read(buffers[2].gpa, 13) == pack("<IHH", 1, NAME, 1) + b"agent"


async def test_input_waits_for_the_port_to_be_open() -> None:
    """Linux drops what comes to a closed port: input waits until somebody in the guest has opened it."""
    async with rig(multiport=True) as made:
        agent = made.runner.ports[1]
        made.nursery.start_soon(agent.send, b"hello")
        buffer = made.slot.post(AGENT_RECEIVE, 16)
        await trio.testing.wait_all_tasks_blocked()
        assert not agent.guest_open
        assert made.slot.drivers[AGENT_RECEIVE].collect() == []
        await made.open_agent()
        assert agent.guest_open
        assert [length for _, length in await made.slot.wait_used(AGENT_RECEIVE)] == [5]
        assert made.slot.ram.read(buffer.gpa, 5) == b"hello"
        await made.tell(1, OPEN, 0)
        assert not agent.guest_open


async def test_ports_do_not_mix() -> None:
    """A port that nobody reads holds up neither output nor input of the other."""
    async with rig(multiport=True) as made:
        await made.open_agent()
        for _ in range(8):
            made.slot.offer(TRANSMIT, bytes(CHUNK))
        made.slot.offer(AGENT_TRANSMIT, b"from the agent")
        assert await receive(made.runner.ports[1], 14) == b"from the agent"
        made.nursery.start_soon(made.runner.ports[1].send, b"to the agent")
        assert await made.slot.get(AGENT_RECEIVE, 100) == b"to the agent"


async def test_without_multiport_there_is_no_control_queue() -> None:
    """A driver that does not take MULTIPORT: port 0 works at once, and nothing is read from the other queues."""
    async with rig(multiport=True, without=Feature.MULTIPORT) as made:
        assert made.port.guest_open
        made.slot.offer(FROM_DRIVER, pack("<IHH", 0, PORT_READY, 1))
        made.slot.offer(TRANSMIT, b"plain")
        assert await receive(made.port, 5) == b"plain"
        made.nursery.start_soon(made.port.send, b"too")
        assert await made.slot.get(RECEIVE, 9) == b"too"
        assert made.slot.drivers[FROM_DRIVER].collect() == []


async def test_driver_that_talks_and_never_listens() -> None:
    """Thousands of messages without a buffer for answers: what waits for it stays small, and all are taken."""
    async with rig(multiport=True) as made:
        await made.tell(0xFFFF_FFFF, READY, 1)
        for turn in range(3000):
            made.slot.offer(FROM_DRIVER, pack("<IHH", turn % 4, (PORT_READY, OPEN, ADD)[turn % 3], turn % 2))
            await made.slot.wait_used(FROM_DRIVER)
        assert len(made.model.ports.pending) <= 12
        assert made.model.ports.mistakes > 1000
        assert made.slot.reasons == []


@pytest.mark.parametrize("length", [1, 7, 8, 5000])
async def test_messages_of_odd_lengths(length: int) -> None:
    """Short ones are a counted mistake, what is behind a whole one does not count; the device goes on."""
    async with rig(multiport=True) as made:
        made.slot.offer(FROM_DRIVER, pack("<IHH", 0, READY, 1).ljust(length, b"?")[:length])
        await made.slot.wait_used(FROM_DRIVER)
        assert made.model.ports.mistakes == (length < 8)
        assert made.slot.reasons == []


# -- wrong buffers -------------------------------------------------------------------------------------

WRONG: dict[str, tuple[int, bool, int, str]] = {
    "output": (TRANSMIT, True, 16, "queue 1: output of the guest's in a buffer that the device may write"),
    "input": (RECEIVE, False, 16, "queue 0: a buffer for input that is not only writable"),
    "message": (FROM_DRIVER, True, 16, "queue 3: a message to the console with room for an answer"),
    "answer": (TO_DRIVER, False, 16, "queue 2: a buffer that does not hold a message of 8 bytes"),
    "short": (TO_DRIVER, True, 7, "queue 2: a buffer that does not hold a message of 8 bytes"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_wrong_buffers_ask_for_a_reset(name: str) -> None:
    """One sentence and a counted error for each rule that is broken; after a reset the device works."""
    queue, writable, length, sentence = WRONG[name]
    async with rig(multiport=True) as made:
        made.nursery.start_soon(receive, made.port, 1)
        await made.tell(0xFFFF_FFFF, READY, 1)
        if queue == RECEIVE:
            await made.tell(0, PORT_READY, 1)
            await made.tell(0, OPEN, 1)
            made.nursery.start_soon(made.port.send, b"input")
        made.slot.add(queue, Buffer(made.slot.place(length), length, writable))
        await made.slot.broken.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert made.slot.reasons == [sentence]
        assert made.runner.rings[queue].counters.errors == 1
        made.slot.restart(made.runner)
        await made.tell(0xFFFF_FFFF, READY, 1)
        assert await made.messages(1) == [pack("<IHH", 0, ADD, 0)]


async def test_stop_one_queue() -> None:
    """A queue that the driver took back is left alone; the others work on, and so does it when set up again."""
    async with rig() as made:
        done: list[int] = []
        with made.slot.bus_lock:
            made.runner.stop_queue(TRANSMIT, lambda: done.append(TRANSMIT))
        assert done == [TRANSMIT]
        made.slot.offer(TRANSMIT, b"late")
        made.runner.notify(TRANSMIT)
        made.nursery.start_soon(made.port.send, b"still")
        assert await made.slot.get(RECEIVE, 9) == b"still"
        assert made.slot.drivers[TRANSMIT].collect() == []
        with made.slot.bus_lock:
            made.runner.start_queue(made.slot.setups[TRANSMIT])
        assert await receive(made.port, 4) == b"late"


# -- emergency -----------------------------------------------------------------------------------------


async def test_emergency_output() -> None:
    """Bytes written past the queues, before there is a driver, come out; without a reader they are bounded."""
    async with rig() as made:
        made.slot.reset(made.runner)
        for byte in b"oops":
            with made.slot.bus_lock:
                made.model.write_config(8, 4, byte)
        assert await receive(made.port, 4) == b"oops"
        with made.slot.bus_lock:
            for _ in range(EMERGENCY_BYTES + 5):
                made.model.write_config(8, 4, 0x21)
        assert made.port.dropped_bytes == 5
        assert await receive(made.port, EMERGENCY_BYTES) == b"!" * EMERGENCY_BYTES


# -- backends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", RECONNECTING.values(), ids=RECONNECTING)
async def test_real_backends(make: MakeRig, tmp_path: Path) -> None:
    """Through pty, unix and tcp: the guest hears of who comes and goes, and bytes go both ways."""
    async with make(tmp_path) as chardev, rig(multiport=True) as made, chardev.backend:
        agent = made.runner.ports[1]
        hub = SerialHub(agent, chardev.backend)
        await made.nursery.start(hub.run)
        hub.watch_holders(agent.set_open)
        await made.open_agent()
        assert await made.messages(3) == [
            pack("<IHH", 0, ADD, 0),
            pack("<IHH", 1, ADD, 0),
            pack("<IHH", 1, NAME, 1) + b"agent",
        ]
        async with chardev.connect() as viewer:
            assert await made.messages(1) == [pack("<IHH", 1, OPEN, 1)]
            made.slot.offer(AGENT_TRANSMIT, b"question")
            await made.slot.wait_used(AGENT_TRANSMIT)
            assert await viewer.receive(8) == b"question"
            await viewer.input.send_all(b"answer")
            got = b""
            while len(got) < 6:
                got += await made.slot.get(AGENT_RECEIVE, 64)
            assert got == b"answer"
        assert await made.messages(1) == [pack("<IHH", 1, OPEN, 0)]


async def test_descriptors_are_given_back() -> None:
    """A runner that was cancelled in the middle of its work leaves none."""
    before = len(os.listdir("/proc/self/fd"))
    async with rig(multiport=True) as made:
        made.slot.offer(TRANSMIT, b"never read")
        made.nursery.start_soon(made.port.send, b"never read either")
    assert len(os.listdir("/proc/self/fd")) == before

