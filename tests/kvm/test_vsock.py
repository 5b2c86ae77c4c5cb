"""Connections of a socket device in C: beginnings, streams, credit, ends; packets that no guest should send."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.driver_ring import Buffer
from tests.support.vsock_rig import GUEST_CID, Delivery, VsockRig, listen_at, packet
from tvmm.errors import UserError
from tvmm.kvm.calls import ffi
from tvmm.kvm.serve import SERVE_BROKEN
from tvmm.kvm.vring_records import F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED
from tvmm.kvm.vsock import BUDGET, BUFFER, BUFFER_SMALL, CONNECTIONS, EVENT, REPLIES, RX, TX, VsockEngine
from tvmm.virtio.vsock import HEADER_LENGTH, HOST_CID, NO_RECEIVE, NO_SEND, Op

BOTH = NO_RECEIVE | NO_SEND
VERSION_1 = 1 << 32


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[VsockRig]:
    made = VsockRig(tmp_path)
    yield made
    made.close()


def ops(deliveries: list[Delivery]) -> list[int]:
    """What each is about."""
    return [delivery.head.op for delivery in deliveries]


def everything(program: socket.socket) -> bytes:
    """What a program can read now."""
    found = b""
    try:
        while data := program.recv(1 << 20):
            found += data
    except BlockingIOError:
        pass
    return found


def is_at_end(program: socket.socket) -> bool:
    """Whether a program's next read says that it is over."""
    try:
        return not program.recv(1)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


# -- beginnings -------------------------------------------------------------------------------------------------


def test_a_guest_reaches_a_program(rig: VsockRig) -> None:
    """A request is answered, with addresses turned round and credit, when the listener has the connection."""
    with listen_at(f"{rig.path}_7") as listener:
        (answer,) = rig.exchange(packet(Op.REQUEST))
        head = answer.head
        assert (head.src_cid, head.src_port, head.dst_cid, head.dst_port) == (HOST_CID, 7, GUEST_CID, 5000)
        assert (head.op, head.length, head.buf_alloc, head.fwd_cnt) == (Op.RESPONSE, 0, BUFFER, 0)
        program, _ = listener.accept()
        program.close()


@pytest.mark.parametrize("there", ["nobody", "a file", "a stale socket"])
def test_a_request_without_a_listener_is_refused(rig: VsockRig, there: str) -> None:
    """By a reset, at once."""
    path = f"{rig.path}_7"
    if there == "a file":
        Path(path).touch()
    elif there == "a stale socket":
        listen_at(path).close()
    assert ops(rig.exchange(packet(Op.REQUEST))) == [Op.RST]
    assert rig.engine.counters.refused == 1
    assert rig.engine.connections == 0


def test_a_full_listener_is_waited_for(rig: VsockRig) -> None:
    """A request waits while the program accepts nobody, and goes through when it does."""
    with listen_at(f"{rig.path}_7", backlog=0) as listener:
        assert ops(rig.exchange(packet(Op.REQUEST, 5000))) == [Op.RESPONSE]
        assert rig.exchange(packet(Op.REQUEST, 5001)) == []
        listener.accept()[0].close()
        answers: list[Delivery] = []
        while Op.RESPONSE not in ops([answer for answer in answers if answer.head.dst_port == 5001]):
            rig.step()
            answers += rig.received()


def test_a_program_reaches_the_guest(rig: VsockRig) -> None:
    """The guest gets a request; its answer is the line with the host's port, and then data."""
    program, heard = rig.call(80)
    with program:
        assert ops(heard) == [Op.REQUEST]
        host_port = heard[0].head.src_port
        assert (heard[0].head.dst_port, heard[0].head.src_cid) == (80, HOST_CID)
        assert not everything(program)
        program.send(b"early")
        answers = rig.exchange(packet(Op.RESPONSE, 80, host_port))
        assert everything(program) == b"OK %d\n" % host_port
        assert [answer.data for answer in answers] == [b"early"]
        rig.exchange(packet(Op.RW, 80, host_port, b"hello"), b"hello")
        assert everything(program) == b"hello"


def test_a_guest_refuses_a_program(rig: VsockRig) -> None:
    """It is closed without a word."""
    program, heard = rig.call(80)
    with program:
        assert rig.exchange(packet(Op.RST, 80, heard[0].head.src_port)) == []
        assert is_at_end(program)
    assert rig.engine.counters.declined == 1
    assert rig.engine.connections == 0


def test_a_program_hangs_up_before_the_answer(rig: VsockRig) -> None:
    """The guest gets a reset, and an answer that was on its way changes nothing."""
    program, heard = rig.call(80)
    program.close()
    rig.step()
    assert ops(rig.received()) == [Op.RST]
    assert ops(rig.exchange(packet(Op.RESPONSE, 80, heard[0].head.src_port))) == [Op.RST]
    assert rig.engine.connections == 0


def test_programs_get_ports_of_their_own(rig: VsockRig) -> None:
    """Two connections to one port of the guest are two."""
    (one, first), (two, second) = rig.call(80), rig.call(80)
    with one, two:
        assert first[0].head.src_port != second[0].head.src_port


# -- streams ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [0, F_INDIRECT_DESC | F_EVENT_IDX, F_RING_PACKED, F_RING_PACKED | F_IN_ORDER])
def test_bytes_arrive_in_order(tmp_path: Path, features: int) -> None:
    """In both directions, in pieces of any size, on each kind of ring."""
    rig = VsockRig(tmp_path, VERSION_1 | features)
    try:
        with rig.open() as program:
            sent = b""
            for number in range(40):
                data = bytes([number]) * (number * 37 + 1)
                rig.send(packet(Op.RW, data=data), data, (3, 44, 50))
                sent += data
                if number % 4 == 3:
                    rig.step()
            rig.step()
            assert everything(program) == sent
            program.send(bytes(range(256)) * 64)
            rig.step()
            deliveries = [delivery for delivery in rig.received() if delivery.head.op == Op.RW]
            assert b"".join(delivery.data for delivery in deliveries) == bytes(range(256)) * 64
            assert {delivery.head.length for delivery in deliveries} == {4096 - HEADER_LENGTH, 16384 % (4096 - 44)}
    finally:
        rig.close()


def test_a_header_in_pieces_is_written(tmp_path: Path) -> None:
    """Receive buffers whose first piece ends within the header, at its end, or behind it."""
    for cut in (1, 20, 44, 60):
        folder = tmp_path / str(cut)
        folder.mkdir()
        rig = VsockRig(folder, rx_count=0)
        rig.offer(4, cut=cut)
        try:
            with rig.open() as program:
                program.send(b"some words of the host")
                rig.step()
                assert [delivery.data for delivery in rig.received(offer=False)] == [b"some words of the host"]
        finally:
            rig.close()


def test_packets_of_several_connections_do_not_mix(rig: VsockRig) -> None:
    """Data that comes in turns goes where it belongs."""
    with rig.open(7, 5000) as one, rig.open(7, 5001) as two:
        for number in range(10):
            for guest_port in (5000, 5001, 5001):
                data = b"%d-%d " % (guest_port, number)
                rig.send(packet(Op.RW, guest_port, data=data), data)
        rig.step()
        assert everything(one) == b"".join(b"5000-%d " % number for number in range(10))
        assert everything(two) == b"".join(b"5001-%d 5001-%d " % (number, number) for number in range(10))


# -- credit -----------------------------------------------------------------------------------------------------


def fill(rig: VsockRig, count: int, guest_port: int = 5000) -> None:
    """So many bytes by the guest, in packets of up to 64 KiB."""
    while count:
        data = bytes(min(count, 65536))
        rig.send(packet(Op.RW, guest_port, data=data), data)
        rig.step()
        count -= len(data)


def test_all_of_the_credit_may_be_used(rig: VsockRig) -> None:
    """A program that reads nothing: as much as was promised is kept, and nothing of it is lost."""
    with rig.open() as program:
        fill(rig, BUFFER)
        forwarded = max((delivery.head.fwd_cnt for delivery in rig.received()), default=0)
        fill(rig, forwarded)
        assert rig.engine.counters.no_credit == 0
        assert rig.engine.counters.buffered > 0
        got = 0
        while data := everything(program):
            got += len(data)
            rig.step()
        assert got == BUFFER + forwarded


def test_a_guest_that_ignores_credit_loses_the_connection(rig: VsockRig) -> None:
    """One byte more than was promised; it is counted, and other connections do not notice."""
    with rig.open(7, 5000) as program, rig.open(7, 5001) as other:
        sent = 0
        while not rig.engine.counters.no_credit:
            fill(rig, 65536)
            sent += 65536
            assert sent < 8 * BUFFER
        assert Op.RST in ops(rig.received())
        everything(program)
        assert is_at_end(program)
        rig.exchange(packet(Op.RW, 5001, data=b"fine"), b"fine")
        assert everything(other) == b"fine"
    assert rig.engine.counters.no_credit == 1


def test_a_packet_larger_than_the_credit_is_too_much(rig: VsockRig) -> None:
    """Even when the program would take it."""
    with rig.open():
        pieces = 5
        for _ in range(pieces):
            data = bytes(65536)
            rig.send(packet(Op.RW, data=data), data)
        rig.step()
        # 320 KiB in one batch: what a program takes at once makes room for what follows.
        assert rig.engine.connections <= 1


def test_credit_is_told_when_it_matters(rig: VsockRig) -> None:
    """When a good part of it is free again, and whenever the guest asks."""
    with rig.open() as program:
        fill(rig, 1000)
        assert rig.received() == []
        (answer,) = rig.exchange(packet(Op.CREDIT_REQUEST))
        assert (answer.head.op, answer.head.fwd_cnt) == (Op.CREDIT_UPDATE, 1000)
        fill(rig, BUFFER // 4)
        (update,) = rig.received()
        assert (update.head.op, update.head.fwd_cnt) == (Op.CREDIT_UPDATE, 1000 + BUFFER // 4)
        everything(program)


def test_without_credit_nothing_is_read(rig: VsockRig) -> None:
    """The host's data waits in its socket, the guest is asked once, and all goes on when it has room."""
    with listen_at(f"{rig.path}_7") as listener:
        rig.exchange(packet(Op.REQUEST, room=10))
        program, _ = listener.accept()
    with program:
        program.send(b"0123456789abcdef")
        rig.step()
        deliveries = rig.received()
        assert [(each.head.op, each.data) for each in deliveries] == [(Op.RW, b"0123456789"), (Op.CREDIT_REQUEST, b"")]
        assert rig.exchange(packet(Op.CREDIT_UPDATE, room=10)) == []
        (rest,) = rig.exchange(packet(Op.CREDIT_UPDATE, room=10, forwarded=10))
        assert rest.data == b"abcdef"
        program.shutdown(socket.SHUT_WR)
        rig.step()
        assert ops(rig.received()) == [Op.SHUTDOWN], "the end needs no credit"
        # A guest that claims to have passed on what it was never sent hurts nobody.
        rig.exchange(packet(Op.CREDIT_UPDATE, room=10, forwarded=1 << 31))
        assert rig.engine.connections == 1


def test_counts_go_round(rig: VsockRig) -> None:
    """More than 2^32 bytes are only a matter of time: the counts are taken modulo that."""
    with rig.open() as program:
        conn = rig.engine
        fill(rig, 100)
        everything(program)
        assert conn.counters.tx_bytes == 100


# -- ends -------------------------------------------------------------------------------------------------------


def test_the_guest_closes_one_half(rig: VsockRig) -> None:
    """The program reads to the end, and still has an answer for the guest."""
    with rig.open() as program:
        rig.exchange(packet(Op.RW, data=b"question"), b"question")
        assert rig.exchange(packet(Op.SHUTDOWN, flags=NO_SEND)) == []
        assert program.recv(100) == b"question"
        assert is_at_end(program)
        program.send(b"answer")
        rig.step()
        assert [delivery.data for delivery in rig.received()] == [b"answer"]
        program.close()
        rig.step()
        (end,) = rig.received()
        assert (end.head.op, end.head.flags) == (Op.SHUTDOWN, BOTH)
        assert rig.exchange(packet(Op.RST)) == []
    assert rig.engine.connections == 0


def test_the_program_closes_one_half(rig: VsockRig) -> None:
    """The guest hears of it behind the data, and its answer arrives."""
    with rig.open() as program:
        program.send(b"question")
        program.shutdown(socket.SHUT_WR)
        rig.step()
        deliveries = rig.received()
        assert [(each.head.op, each.data, each.head.flags) for each in deliveries] == [
            (Op.RW, b"question", 0),
            (Op.SHUTDOWN, b"", NO_SEND),
        ]
        rig.exchange(packet(Op.RW, data=b"answer"), b"answer")
        assert everything(program) == b"answer"
        assert ops(rig.exchange(packet(Op.SHUTDOWN, flags=BOTH))) == [Op.RST]
        assert is_at_end(program)
    assert rig.engine.connections == 0


def test_what_the_guest_sent_before_it_closed_arrives(rig: VsockRig) -> None:
    """SHUTDOWN of both halves, and even a reset behind it, come after the data."""
    for reset in (False, True):
        with rig.open() as program:
            fill(rig, BUFFER)
            rig.exchange(packet(Op.SHUTDOWN, flags=BOTH))
            if reset:
                rig.exchange(packet(Op.RST))
            got = 0
            while data := everything(program):
                got += len(data)
                rig.step()
            assert got == BUFFER
            assert is_at_end(program)
            assert ops(rig.received()) == ([] if reset else [Op.RST])
    assert rig.engine.connections == 0


def test_a_reset_by_the_guest_ends_it(rig: VsockRig) -> None:
    """Without an answer."""
    with rig.open() as program:
        assert rig.exchange(packet(Op.RST)) == []
        assert is_at_end(program)
    assert rig.engine.connections == 0


def test_a_program_that_closes_is_told_of(rig: VsockRig) -> None:
    """As the end of both halves; a guest that goes on sending gets a reset."""
    program = rig.open()
    program.close()
    rig.step()
    (end,) = rig.received()
    assert (end.head.op, end.head.flags) == (Op.SHUTDOWN, BOTH)
    assert rig.exchange(packet(Op.CREDIT_UPDATE)) == []
    assert ops(rig.exchange(packet(Op.RW, data=b"?"), b"?")) == [Op.RST]
    assert rig.engine.connections == 0


def test_a_program_that_dies_with_data_unread(rig: VsockRig) -> None:
    """What waits for it is thrown away, and the guest is told."""
    program = rig.open()
    fill(rig, BUFFER)
    rig.received()
    program.close()
    rig.step()
    assert [(each.head.op, each.head.flags) for each in rig.received()][-1] == (Op.SHUTDOWN, BOTH)
    assert rig.engine.counters.discarded > 0
    assert rig.exchange(packet(Op.RST)) == []
    assert rig.engine.connections == 0


def test_a_program_that_reads_no_more(rig: VsockRig) -> None:
    """Its SHUT_RD is told to the guest at the next data; what is under way is thrown away, credit included."""
    with rig.open() as program:
        program.shutdown(socket.SHUT_RD)
        (end,) = rig.exchange(packet(Op.RW, data=b"?"), b"?")
        assert (end.head.op, end.head.flags, end.head.fwd_cnt) == (Op.SHUTDOWN, NO_RECEIVE, 1)
        program.send(b"but I talk")
        rig.step()
        assert [delivery.data for delivery in rig.received()] == [b"but I talk"]


def test_a_guest_that_reads_no_more(rig: VsockRig) -> None:
    """The program cannot write, and its end is noticed although nobody reads."""
    program = rig.open()
    rig.exchange(packet(Op.SHUTDOWN, flags=NO_RECEIVE))
    with pytest.raises(BrokenPipeError):
        program.send(b"?")
    rig.exchange(packet(Op.RW, data=b"still here"), b"still here")
    assert everything(program) == b"still here"
    program.close()
    rig.step()
    assert [(each.head.op, each.head.flags) for each in rig.received()] == [(Op.SHUTDOWN, BOTH)]


def test_data_after_the_end_is_against_the_rules(rig: VsockRig) -> None:
    """The connection is reset."""
    with rig.open():
        rig.exchange(packet(Op.SHUTDOWN, flags=NO_SEND))
        assert ops(rig.exchange(packet(Op.RW, data=b"?"), b"?")) == [Op.RST]
    assert rig.engine.connections == 0


def test_close_all_tells_the_programs(rig: VsockRig) -> None:
    """As when the guest has moved."""
    with rig.open() as program, rig.call(80)[0] as caller:
        rig.engine.close_all()
        assert is_at_end(program)
        assert is_at_end(caller)
    rig.step()
    assert rig.received() == []
    assert rig.engine.connections == 0


# -- what no guest should send --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        packet(Op.RW, data=b"?"),
        packet(Op.RESPONSE),
        packet(Op.SHUTDOWN, flags=BOTH),
        packet(Op.CREDIT_UPDATE),
        packet(Op.CREDIT_REQUEST),
        packet(0),
        packet(99),
        packet(Op.REQUEST, kind=2),
        packet(Op.REQUEST, dst_cid=4),
        packet(Op.REQUEST, dst_cid=1),
    ],
    ids=str,
)
def test_packets_of_no_connection_are_answered_by_a_reset(rig: VsockRig, head: object) -> None:
    """With the addresses and the type that they came with; but never a reset."""
    assert isinstance(head, type(packet(0)))
    (answer,) = rig.exchange(head, bytes(head.length))
    assert answer.head.op == Op.RST
    assert answer.head[:4] == (head.dst_cid, GUEST_CID, head.dst_port, head.src_port)
    assert answer.head.type == head.type
    assert rig.exchange(head._replace(op=Op.RST, length=0)) == []


def test_malformed_packets_are_dropped(rig: VsockRig) -> None:
    """Too short for a header, longer than they are, or by somebody else."""
    rig.drivers[TX].add([Buffer(0x10_0000, 43)])
    rig.drivers[TX].publish()
    rig.engine.step()
    assert [length for _, length in rig.drivers[TX].collect()] == [0]
    for head in (packet(Op.RW)._replace(length=1), packet(Op.REQUEST, src_cid=4), packet(Op.REQUEST, src_cid=2)):
        assert rig.exchange(head) == []
    assert rig.engine.counters.malformed == 4


@pytest.mark.parametrize("op", [Op.REQUEST, Op.RESPONSE, 0, 8, 0xFFFF])
def test_nonsense_in_a_connection_resets_it(rig: VsockRig, op: int) -> None:
    """Both sides hear of it."""
    with rig.open() as program:
        assert ops(rig.exchange(packet(op))) == [Op.RST]
        assert is_at_end(program)
    assert rig.engine.connections == 0


def test_resets_that_are_not_taken_stop_the_guest(tmp_path: Path) -> None:
    """Without receive buffers so many are kept, and packets wait in the ring until there are some."""
    rig = VsockRig(tmp_path, rx_count=0)
    try:
        for _ in range(REPLIES + 32):
            rig.send(packet(Op.RW))
            rig.step()
            if rig.engine.counters.replies_full:
                break
        assert rig.engine.counters.strays == REPLIES
        assert rig.engine.counters.replies_full
        rig.offer(64)
        rig.step()
        assert set(ops(rig.received())) == {Op.RST}
    finally:
        rig.close()


def test_a_receive_buffer_that_is_none_breaks_the_queue(tmp_path: Path) -> None:
    """Readable, or without room for data."""
    for number, buffer in enumerate((Buffer(0x80_0000, 4096), Buffer(0x80_0000, 44, True))):
        folder = tmp_path / str(number)
        folder.mkdir()
        rig = VsockRig(folder, rx_count=0)
        try:
            rig.drivers[RX].add([buffer])
            rig.drivers[RX].publish()
            rig.send(packet(Op.RW))
            rig.step()
            assert rig.words == [(SERVE_BROKEN, RX)]
            assert rig.engine.bad_chain
            rig.engine.stop(RX)
        finally:
            rig.close()


def test_the_table_has_an_end(tmp_path: Path) -> None:
    """So many connections, no more; the first ones have much credit, those beyond the budget little."""
    rig = VsockRig(tmp_path)
    try:
        with listen_at(f"{rig.path}_7", 4096):
            rooms = []
            for guest_port in range(CONNECTIONS + 3):
                (answer,) = rig.exchange(packet(Op.REQUEST, guest_port))
                rooms.append(answer.head.buf_alloc if answer.head.op == Op.RESPONSE else 0)
        assert rooms == (
            [BUFFER] * (BUDGET // BUFFER) + [BUFFER_SMALL] * (CONNECTIONS - BUDGET // BUFFER) + [0] * 3
        )
        assert rig.engine.connections == CONNECTIONS
        assert rig.engine.counters.crowded == 3
        caller, heard = rig.call(80)
        with caller:
            assert heard == []
        rig.exchange(packet(Op.RST, 17))
        assert rig.engine.connections == CONNECTIONS - 1
    finally:
        rig.close()


def test_those_that_linger_make_room(tmp_path: Path) -> None:
    """Connections that only the guest has not done with yet are given up for new ones."""
    rig = VsockRig(tmp_path)
    try:
        with listen_at(f"{rig.path}_7", 4096) as listener:
            for guest_port in range(CONNECTIONS):
                rig.exchange(packet(Op.REQUEST, guest_port))
            listener.accept()[0].close()
            rig.step()
            assert ops(rig.received()) == [Op.SHUTDOWN]
            (answer,) = rig.exchange(packet(Op.REQUEST, 9999))
            assert answer.head.op == Op.RESPONSE
            assert ops(rig.exchange(packet(Op.RW, 0))) == [Op.RST]
    finally:
        rig.close()


# -- moves ------------------------------------------------------------------------------------------------------


def test_the_guest_hears_that_connections_are_gone(rig: VsockRig) -> None:
    """An event, as soon as there is a buffer for it; a second buffer is not used."""
    rig.engine.reset_due = True
    rig.step()
    assert rig.engine.reset_due
    rig.ram.write(0x9000, b"\xff" * 16)
    for at in (0x9000, 0x9008):
        rig.drivers[EVENT].add([Buffer(at, 8, True)])
    rig.drivers[EVENT].publish()
    rig.step()
    assert not rig.engine.reset_due
    assert [length for _, length in rig.drivers[EVENT].collect()] == [4]
    assert rig.ram.read(0x9000, 12) == bytes(4) + b"\xff" * 8


def test_an_event_buffer_that_is_too_small_is_given_back(rig: VsockRig) -> None:
    """And the next one has the event."""
    rig.engine.reset_due = True
    for at, length in ((0x9000, 3), (0x9008, 4)):
        rig.drivers[EVENT].add([Buffer(at, length, True)])
    rig.drivers[EVENT].publish()
    rig.step()
    assert [length for _, length in rig.drivers[EVENT].collect()] == [0, 4]


def test_a_drained_ring_goes_on(rig: VsockRig) -> None:
    """Nothing is in flight after `drain`, and connections are still there."""
    with rig.open() as program:
        program.send(b"one")
        rig.step()
        rig.engine.drain()
        assert not rig.rings[RX].state().in_flight
        program.send(b"two")
        rig.step()
        assert [delivery.data for delivery in rig.received()] == [b"one", b"two"]


def test_what_is_written_is_marked(rig: VsockRig) -> None:
    """Pages of headers and data are in the log for migration."""
    rig.log.start()
    with rig.open() as program:
        program.send(bytes(5000))
        rig.step()
        name, block = next(iter(rig.ram.blocks.items()))
        words = ffi.new("uint64_t[]", len(block.view) >> 12 + 6)
        assert rig.log.merge_into(name, words) >= 3
    rig.log.stop()


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    """Is said before anything is made."""
    with pytest.raises(UserError, match="too long"):
        VsockEngine(3, "x" * 100, 0)


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    """Whatever connections there are when it is closed."""
    before = len(os.listdir("/proc/self/fd"))
    rig = VsockRig(tmp_path)
    with rig.open(), rig.call(80)[0]:
        rig.close()
    assert len(os.listdir("/proc/self/fd")) == before
