"""Lanes with threads at both ends: RAM ends up equal, and every way of stopping in between."""

from __future__ import annotations

import random
import socket
import threading

import pytest

from tests.kvm.lane_rig import SIZES, Lanes
from tvmm.errors import ProtocolError
from tvmm.kvm.lanes import LaneGroup, LanePacker, LaneStop, LaneUnpacker, set_lane_buffers
from tvmm.kvm.pages import PAGE, PageBitmap

TOTAL = sum(pages for _, pages in SIZES)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("skip_unchanged", [False, True])
def test_ram_ends_up_equal(count: int, skip_unchanged: bool) -> None:
    """After rounds of random writes both sides have the same, with any number of lanes; a page goes once a round."""
    source = random.Random(count)
    with Lanes(count, skip_unchanged=skip_unchanged) as lanes:
        lanes.source.scribble(source, lanes.bitmap, 500)
        lanes.bitmap.fill()
        expected = 0
        for number in range(1, 8):
            expected += lanes.bitmap.count()
            lanes.round(number)
            assert lanes.bitmap.count() == 0
            assert lanes.target.contents() == lanes.source.contents()
            lanes.source.scribble(source, lanes.bitmap, 100)
        sent = [sender.counters for sender in lanes.senders]
        assert sum(one.normal + one.zero + one.unchanged for one in sent) == expected
        received = [receiver.counters for receiver in lanes.receivers]
        for field in ("normal", "zero", "bytes", "frames"):
            assert sum(getattr(one, field) for one in sent) == sum(getattr(one, field) for one in received)


def test_writes_while_a_round_is_sent_are_not_lost() -> None:
    """A page that changes between its frame and the next round arrives with that one."""
    with Lanes(2) as lanes:
        lanes.bitmap.fill()
        done = threading.Event()

        def write() -> None:
            source = random.Random(5)
            while not done.is_set():
                block = source.randrange(2)
                page = source.randrange(SIZES[block][1])
                # As KVM does it: the write, and the mark that is found by whoever looks after it.
                lanes.source.write(block, page, source.randbytes(64))
                lanes.bitmap.mark(SIZES[block][0], page)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(1, 20):
                lanes.round(number)
        finally:
            done.set()
            writer.join()
        lanes.round(20)
        assert lanes.target.contents() == lanes.source.contents()


def test_unchanged_pages_are_left_out() -> None:
    """From the third look on, a page that is dirty and the same is not sent; a changed one is, also back."""
    with Lanes(skip_unchanged=True) as lanes:
        sent = []
        for number, text in enumerate((b"a", b"a", b"a", b"b", b"a", b"a"), start=1):
            lanes.source.write(0, 7, text)
            lanes.bitmap.mark("pc.ram", 7)
            lanes.round(number)
            sent.append(lanes.senders[0].counters.normal)
            assert lanes.target.contents() == lanes.source.contents()
        assert sent == [1, 2, 2, 3, 4, 4]
        assert lanes.senders[0].counters.unchanged == 2


def test_zero_pages() -> None:
    """They go as numbers, clear what was there, and take the same round as others."""
    with Lanes() as lanes:
        lanes.source.write(0, 3, b"x")
        lanes.bitmap.fill()
        lanes.round(1)
        assert lanes.senders[0].counters[:2] == (1, TOTAL - 1)
        lanes.source.write(0, 3, b"\0")
        lanes.bitmap.mark("pc.ram", 3)
        lanes.round(2)
        assert lanes.senders[0].counters[:2] == (1, TOTAL)
        assert lanes.target.contents() == lanes.source.contents()


def test_a_blocked_sender_can_be_woken_and_goes_on() -> None:
    """Nobody reads: a wake-up gets the sender out in the middle of a frame, and it goes on where it was."""
    with Lanes() as lanes:
        lanes.source.scribble(random.Random(1), lanes.bitmap, 2000)
        assert lanes.send(1, stall_ms=1)[0].result() is LaneStop.STALLED
        blocked = lanes.resume(0, 1)
        lanes.waker.wake()
        assert blocked.result() is LaneStop.WOKEN
        assert lanes.senders[0].send_round(1) is LaneStop.WOKEN
        lanes.waker.clear()
        rest = lanes.resume(0, 1)
        assert lanes.receive()[0].result() is LaneStop.ROUND_END
        assert rest.result() is LaneStop.ROUND_END
        assert lanes.target.contents() == lanes.source.contents()


def test_a_waiting_receiver_can_be_woken() -> None:
    """Also within a frame; and it tells a stall from an end."""
    with Lanes() as lanes:
        waiting = lanes.receive()[0]
        lanes.their_waker.wake()
        assert waiting.result() is LaneStop.WOKEN
        lanes.their_waker.clear()
        lanes.ours[0].sendall(b"TVPL\1")
        assert lanes.receive(stall_ms=1)[0].result() is LaneStop.STALLED
        lanes.ours[0].close()
        with pytest.raises(ProtocolError, match="ended within a frame"):
            lanes.receive()[0].result()
        with pytest.raises(ProtocolError, match="ended within a frame"):
            lanes.receivers[0].receive()


def test_ends_of_the_connection() -> None:
    """The receiver's is an end between frames, the sender's an error."""
    with Lanes() as lanes:
        lanes.bitmap.fill()
        lanes.round(1)
        lanes.ours[0].shutdown(socket.SHUT_WR)
        assert lanes.receivers[0].receive() is LaneStop.CLOSED
        lanes.theirs[0].close()
        lanes.bitmap.fill()
        lanes.group.begin_round()
        with pytest.raises(BrokenPipeError):
            lanes.senders[0].send_round(2)


@pytest.mark.parametrize("count", [1, 3])
def test_a_stopped_round_leaves_the_rest_in_the_bitmap(count: int) -> None:
    """What was sent and what is still marked are all pages together; the lanes still end the round."""
    with Lanes(count) as lanes:
        lanes.source.scribble(random.Random(2), lanes.bitmap, 3000)
        lanes.bitmap.fill()
        stops = [future.result() for future in lanes.send(1, stall_ms=1)]
        assert LaneStop.STALLED in stops
        lanes.group.stop_round()
        receiving = lanes.receive()
        again = [
            lanes.resume(lane, 1) for lane, stop in enumerate(stops) if stop is LaneStop.STALLED
        ]
        assert {future.result() for future in again + receiving} == {LaneStop.ROUND_END}
        sent = sum(sender.counters.normal + sender.counters.zero for sender in lanes.senders)
        left = lanes.bitmap.count()
        assert left
        assert sent + left == TOTAL
        lanes.round(2)
        assert lanes.target.contents() == lanes.source.contents()


def test_bandwidth_limit_holds_a_lane_and_can_be_lifted() -> None:
    """A lane that waits for its turn hears wake-ups, and goes on at once when the limit is lifted."""
    with Lanes() as lanes:
        lanes.source.scribble(random.Random(3), lanes.bitmap, 50)
        lanes.group.bandwidth = 1
        lanes.waker.wake()
        assert lanes.send(1)[0].result() is LaneStop.WOKEN
        lanes.waker.clear()
        # One page has the start for free; the next would wait for an hour.
        waiting = lanes.resume(0, 1)
        receiving = lanes.receive()
        lanes.waker.wake()
        assert waiting.result() is LaneStop.WOKEN
        lanes.waker.clear()
        waiting = lanes.resume(0, 1)
        lanes.group.bandwidth = 0
        assert waiting.result() is receiving[0].result() is LaneStop.ROUND_END
        assert lanes.target.contents() == lanes.source.contents()


def test_a_stopped_round_waits_for_no_turn() -> None:
    """With next to no bandwidth, a round ends as soon as it is stopped."""
    with Lanes() as lanes:
        lanes.source.scribble(random.Random(3), lanes.bitmap, 50)
        before = lanes.bitmap.count()
        lanes.group.bandwidth = 1
        sending, receiving = lanes.send(1), lanes.receive()
        lanes.group.stop_round()
        assert sending[0].result() is receiving[0].result() is LaneStop.ROUND_END
        counters = lanes.senders[0].counters
        assert counters.normal + counters.zero + lanes.bitmap.count() == before


def test_delay_of_buffers() -> None:
    """What goes another way is charged to the same account."""
    with Lanes() as lanes:
        assert lanes.group.delay(1 << 30) == 0.0
        lanes.group.bandwidth = 1 << 20
        assert lanes.group.delay(1 << 30) == 0.0
        assert 1000 < lanes.group.delay(1) <= 1024
        with pytest.raises(ValueError, match="no bandwidth"):
            lanes.group.bandwidth = -1


def test_buffers_carry_the_same() -> None:
    """Packed and unpacked, in pieces cut anywhere, with lanes on sockets beside them: RAM is equal after each round."""
    source = random.Random(6)
    with Lanes(1, chunk_pages=64) as lanes:
        packer, unpacker = LanePacker(lanes.group), LaneUnpacker(lanes.target.pages)
        lanes.source.scribble(source, lanes.bitmap, 700)
        lanes.bitmap.fill()
        buffer = bytearray(1 << 20)
        for number in range(1, 5):
            lanes.group.begin_round()
            ended = False
            while not ended:
                length, ended = packer.pack(buffer, number), packer.round_ended
                at = 0
                while at < length:
                    part = min(source.randrange(1, 100_000), length - at)
                    taken = unpacker.unpack(buffer, part, at)
                    assert taken == part
                    at += taken
                assert unpacker.round_ended is ended
            assert unpacker.between_frames
            assert unpacker.round == number
            assert lanes.bitmap.count() == 0
            assert lanes.target.contents() == lanes.source.contents()
            lanes.source.scribble(source, lanes.bitmap, 200)
        assert packer.counters == unpacker.counters._replace(unchanged=0)
        with pytest.raises(ValueError, match="too small"):
            packer.pack(bytearray(100), 5)
        with pytest.raises(ValueError, match="are not in a buffer"):
            unpacker.unpack(buffer, 1, len(buffer))


def test_group_checks_its_parts() -> None:
    """A bitmap of other blocks, and chunks that KVM could not protect, are refused."""
    with Lanes() as lanes:
        with pytest.raises(ValueError, match="other blocks"):
            LaneGroup(lanes.source.pages, PageBitmap(["pc.ram"], [700]))
        for chunk in (0, 100, 1 << 20):
            with pytest.raises(ValueError, match="no chunks"):
                LaneGroup(lanes.source.pages, lanes.bitmap, chunk_pages=chunk)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_socket_set_up(family: socket.AddressFamily) -> None:
    """TCP does not wait before it sends the end of a round; a unix socket takes many pages at once."""
    with socket.socket(family) as connection:
        set_lane_buffers(connection)
        if family == socket.AF_INET:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        else:
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 4 * PAGE
