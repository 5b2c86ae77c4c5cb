"""Taps that another one has, and that come along with a guest: when they are taken, and what is none."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.net.test_tap import comparable, names, show
from tests.support.netns import ip, network_namespace
from tvmm.errors import HostError, ProtocolError
from tvmm.net import tun
from tvmm.net.late_tap import LateTap, open_or_wait
from tvmm.net.opened_tap import Tap
from tvmm.net.tap import FLAGS, TapBusy, TapSettings, open_tap
from tvmm.virtio.features import Net as Feature

TAP = TapSettings(ifname="tap0")
ETH_P_ALL, HEADER = 3, bytes(12)
FRAME = b"\xff" * 6 + b"\x52\x54\0\0\0\1" + b"\x88\xb5" + b"some frame".ljust(46, b"\0")


@pytest.fixture(autouse=True)
def _namespace() -> Iterator[None]:
    with network_namespace():
        yield


def waiting(options: TapSettings = TAP) -> LateTap:
    """What a second machine has while the first one has the tap."""
    tap = open_or_wait(options, "web-2")
    assert isinstance(tap, LateTap)
    assert not tap.is_here
    return tap


def copies(tap: Tap) -> list[int]:
    """Its descriptors as another process gets them."""
    return [os.dup(fd) for fd in tap.fds]


def send_to(name: str, frame: bytes = FRAME) -> None:
    """Have the host send a frame to who has the tap."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((name, ETH_P_ALL))
        raw.send(frame)


def received(tap: Tap) -> list[bytes]:
    """All frames of kind 0x88b5 that wait for who has it."""
    found = []
    for fd in tap.fds:
        try:
            while True:
                found.append(os.read(fd, 1 << 16)[len(HEADER) :])
        except OSError:
            # No more of them.
            continue
    return [frame for frame in found if frame[12:14] == b"\x88\xb5"]


@pytest.mark.parametrize("queues", [1, 3])
def test_a_tap_goes_from_one_to_the_other(queues: int) -> None:
    """Nothing is read or changed before the last step, and what came in between is there; its first owner has none of
    it any more, and takes nothing along when it ends.
    """
    options = TAP._replace(queues=queues)
    with open_tap(options, "web") as first, waiting(options) as second:
        first.set_offload(Feature.GUEST_CSUM)
        for pair in range(1, queues):
            first.attach(pair, True)
        before = show("tap0")
        second.set_offload(Feature.GUEST_CSUM)
        second.set_carrier(True)
        for pair in range(1, queues):
            second.attach(pair, True)
        assert second.take(copies(first))
        send_to("tap0")
        assert received(second) == []
        assert show("tap0") == before
        send_to("tap0")
        second.begin()
        assert second.is_here
        assert received(second) == [FRAME] * 2
        assert show("tap0") == before
        first.let_go()
        first.set_carrier(False)
        first.set_offload(0)
        first.close()
        second.own()
        send_to("tap0")
        assert received(second) == [FRAME]
        for pair in range(1, queues):
            second.attach(pair, False)
        assert second.backend == first.backend
    assert names() == {"lo"}


def test_a_tap_that_stays_after_all() -> None:
    """The second one ends before its last step: the first one goes on with what has waited."""
    with open_tap(TAP, "web") as first:
        before = show("tap0")
        with waiting() as second:
            second.set_carrier(False)
            assert second.take(copies(first))
            send_to("tap0")
        assert show("tap0") == before
        assert received(first) == [FRAME]
        os.write(first.fds[0], HEADER + FRAME)


def test_what_was_changed_is_undone_by_the_last_one() -> None:
    """On a tap that was there before, through three hands; the alias says whose it is."""
    ip("link", "add", "br0", "type", "bridge")
    ip("tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
    before = comparable("tap0")
    options = TAP._replace(br="br0", mtu=1400)
    here = open_tap(options, "web")
    for _ in range(2):
        there = waiting(options)
        assert there.take(copies(here))
        there.begin()
        here.let_go()
        there.own()
        here.close()
        here = there
        assert (show("tap0")["mtu"], show("tap0")["master"]) == (1400, "br0")
        assert show("tap0")["ifalias"].startswith(f"tvmm:{os.getpid()}:")
    here.close()
    assert comparable("tap0") == before


def test_a_tap_that_is_to_stay_stays() -> None:
    """The second one wants it to, the first one did not."""
    with open_tap(TAP, "web") as first, waiting(TAP._replace(persist=True)) as second:
        assert second.take(copies(first))
        second.begin()
        first.let_go()
        second.own()
    assert "ifalias" not in show("tap0")
    assert show("tap0")["linkinfo"]["info_data"]["persist"] is True


def test_a_tap_with_many_queues_that_is_shown_to_nobody() -> None:
    """One that was there, of which the alias says nothing: there is room in it, and who waits does not take it."""
    ip("tuntap", "add", "tap0", "mode", "tap", "multi_queue", "vnet_hdr")
    ip("link", "set", "tap0", "up")
    with open_tap(TAP, "web"):
        with waiting() as second:
            assert second.why == "tap tap0 is in use by another program"
        assert show("tap0")["linkinfo"]["info_data"]["numqueues"] == 1


def test_one_that_is_free_is_opened() -> None:
    """At once, made or found; and later, if it is free by then."""
    with open_or_wait(TAP, "web") as tap:
        assert not isinstance(tap, LateTap)
        with waiting() as second:
            with pytest.raises(TapBusy, match=r"tap tap0 is in use .*, and did not come along with the guest; end who"):
                second.open_without()
            tap.close()
            second.set_carrier(False)
            second.open_without()
            assert second.is_here
            assert "NO-CARRIER" in show("tap0")["flags"]
            second.begin()
            second.own()
    assert names() == {"lo"}


def test_a_tap_of_the_same_name_elsewhere() -> None:
    """In another network namespace there may be another tap0: it is not ours."""
    with open_tap(TAP, "web") as first, waiting() as second:
        before = names()
        with network_namespace(), open_tap(TAP, "other") as other:
            fds = copies(other)
        assert not second.take(fds)
        for fd in fds:
            os.close(fd)
        assert names() == before
        assert second.take(copies(first))


def _tap(flags: int, name: str = "tap1") -> int:
    fd = tun.open_tun()
    tun.attach_interface(fd, name, flags)
    return fd


def _blocking(fd: int) -> int:
    other = os.open(tun.TUN_PATH, os.O_RDWR)
    tun.attach_interface(other, "tap0", FLAGS | tun.IFF_MULTI_QUEUE)
    tun.set_header_length(other, len(HEADER))
    return other


STRANGE: dict[str, tuple[Callable[[int], int], str]] = {
    "a file": (lambda fd: os.open("/etc/passwd", os.O_RDONLY), "is no tap"),
    "a device": (lambda fd: os.open("/dev/null", os.O_RDWR), "is no tap"),
    "a socket": (lambda fd: socket.socket().detach(), "is no tap"),
    "no interface": (lambda fd: tun.open_tun(), "is no tap, or one that has been removed"),
    "another one": (lambda fd: _tap(FLAGS), "is another interface"),
    "blocks": (_blocking, "blocks"),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_what_is_no_queue_of_the_tap(strange: str) -> None:
    """It is refused in a line that names the tap, and stays the caller's."""
    make, sentence = STRANGE[strange]
    ip("tuntap", "add", "tap0", "mode", "tap", "multi_queue", "vnet_hdr")
    with open_tap(TAP, "web") as first, waiting() as second:
        fds = [make(first.fds[0])]
        with pytest.raises(ProtocolError, match=f"what the source has sent for tap tap0 .*{sentence}"):
            second.take(fds)
        os.close(fds[0])


@pytest.mark.parametrize(
    ("flags", "length", "sentence"),
    [
        (tun.IFF_TAP | tun.IFF_NO_PI, 10, "was opened without IFF_VNET_HDR"),
        (FLAGS, 10, "has headers of 10 bytes in place of 12"),
    ],
)
def test_a_tap_that_was_opened_otherwise(flags: int, length: int, sentence: str) -> None:
    """By a program that makes frames of another form of it."""
    fd = _tap(flags, "tap0")
    tun.set_header_length(fd, length)
    with waiting() as second, pytest.raises(ProtocolError, match=sentence):
        second.take([fd])
    os.close(fd)


def test_one_queue_twice() -> None:
    """A tap with one queue has no second one, whatever the source says."""
    with open_tap(TAP, "web") as first, waiting(TAP._replace(queues=2)) as second:
        fds = copies(first) * 2
        with pytest.raises(ProtocolError, match="was opened without IFF_MULTI_QUEUE"):
            second.take(fds)
        os.close(fds[0])


def test_a_tap_that_is_not_as_the_machine_wants_it() -> None:
    """Another number of queues, another MTU or bridge: said before anything has changed, with what to do."""
    ip("link", "add", "br1", "type", "bridge")
    with open_tap(TAP, "web") as first:
        fds = copies(first)
        with waiting(TAP._replace(queues=2)) as second, pytest.raises(HostError, match=r"1 queues.*=2; .*queues=1"):
            second.take(fds)
        sentence = r"tap0 is not as .*MTU is to be 1400, it is to be in bridge br1\); 'sudo ip link .*'"
        with waiting(TAP._replace(mtu=1400, br="br1")) as second, pytest.raises(HostError, match=sentence):
            second.take(fds)
        os.close(fds[0])


def test_a_tap_that_is_removed_on_the_way() -> None:
    """Noticed at the last step, in words."""
    with open_tap(TAP, "web") as first, waiting() as second:
        assert second.take(copies(first))
        ip("link", "delete", "tap0")
        with pytest.raises(HostError, match="tap tap0: cannot be taken over: it has been removed"):
            second.begin()
