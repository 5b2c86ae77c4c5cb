"""passt: a program that gives a guest the host's network without any right, as a child of the machine.

passt (https://passt.top) opens ordinary sockets for what the guest sends, and answers its DHCP, ARP and the like
itself. It is given one end of a socket pair when it starts, so there is no path that anybody else could connect to, or
that could be left; and it ends as soon as the other end is closed, however this process ends. (A signal on the death of
its parent would come when the *thread* that started it ends, and is lost anyhow when passt changes its user.)
It takes itself into namespaces of its own, of all kinds but the network's; started by root it becomes `nobody`.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import socket
import struct
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from tvmm.config.net_user import read_forwards, user_addresses
from tvmm.errors import HostError
from tvmm.net.stream import prepare

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tvmm.config.net import NetConfig
    from tvmm.config.net_user import Forward

__all__ = ["Passt", "complaint", "find_passt", "may_ping", "passt_arguments", "ping_advice"]

PROGRAM = "passt"
READY_SECONDS = 5.0
LOOK_SECONDS = 0.02
END_SECONDS = 2.0
STDERR_LIMIT = 1 << 16
"""Bytes that are read at once of what it says."""

NOBODY = 65534
"""The group of a passt that root has started."""
PING_RANGE = "/proc/sys/net/ipv4/ping_group_range"
PING_REMEDY = "'sudo sysctl net.ipv4.ping_group_range=\"0 2147483647\"' lets everybody ping"

_NOISE = (
    "Failed to send ",  # to a system log that the host does not have
    "Don't run as root.",
    "No external routable interface for ",
    "Couldn't get any nameserver",
)
"""What it says while all is well."""

_BROADCAST = b"\xff" * 6


def find_passt() -> str:
    """Where it is. Raises `HostError`."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise HostError(
            "net user needs passt, which is not installed",
            "'apt install passt', or --net tap,ifname=NAME with a tap that 'sudo tvmm net create' has prepared",
        )
    return found


def passt_arguments(config: NetConfig) -> list[str]:
    """Its options for these of ours, but for the descriptor."""
    addresses = user_addresses(config)
    words = ["--foreground", "--quiet"]
    if config.ipv4:
        words += ["--address", str(addresses.guest), "--netmask", str(addresses.net.netmask)]
        words += ["--gateway", str(addresses.host)]
    else:
        words.append("--ipv6-only")
    if config.ipv6:
        words += ["--address", str(addresses.guest6), "--gateway", str(addresses.host6)]
    else:
        words.append("--ipv4-only")
    if config.dns:
        # Answers of the host's name server come from this address then, whoever was asked: so no other is told of.
        words += ["--dns-forward", config.dns, "--no-dhcp-dns"]
    for resolver in config.resolver:
        words += ["--dns", resolver]
    if config.dnssearch:
        words += ["--search", config.dnssearch.replace("+", " ")]
    if config.mtu:
        words += ["--mtu", str(config.mtu)]
    for option, protocol in (("--tcp-ports", "tcp"), ("--udp-ports", "udp")):
        rules = [_rule(forward) for forward in config.hostfwd if forward.protocol == protocol]
        for rule in rules or ["none"]:
            words += [option, rule]
    return words


def _rule(forward: Forward) -> str:
    ports = f"{forward.host_port}:{forward.guest_port}"
    return f"{forward.address}/{ports}" if forward.address else ports


def ping_advice() -> str:
    """Why the guest's pings will not be answered, and what to do; '' if they will."""
    try:
        with open(PING_RANGE, encoding="ascii") as file:
            text = file.read()
    except OSError:
        return ""
    groups = {NOBODY} if os.geteuid() == 0 else {os.getegid(), *os.getgroups()}
    if may_ping(text, groups):
        return ""
    return f"pings of the guest go nowhere: no group of ours is in net.ipv4.ping_group_range; {PING_REMEDY}"


def may_ping(text: str, groups: Collection[int]) -> bool:
    """Whether one of these groups is in the range that `PING_RANGE` has; what cannot be read is let pass."""
    words = text.split()
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        return True
    return any(int(words[0]) <= group <= int(words[1]) for group in groups)


def complaint(lines: Sequence[str], config: NetConfig) -> HostError:
    """Why passt ended, by what it said."""
    said = [line for line in map(str.strip, lines) if line and not line.startswith(_NOISE[:2])]
    text = "; ".join(said)
    for forward in read_forwards("+".join(map(str, config.hostfwd))):
        if f"{_rule(forward)}'" in text and "bind" in text:
            why, what_to_do = _why_not(forward)
            return HostError(f"net user: cannot forward port {forward}: {why}", what_to_do)
    if "External interface not usable" in text or "No external routable interface" in text:
        return HostError(
            "net user: passt finds no interface with a default route on this host",
            "connect the host to a network first ('ip route' shows routes), or use --net tap",
        )
    return HostError(f"net user: passt ended: {text or 'without a word'}", "try its options by hand: 'man passt'")


def _why_not(forward: Forward) -> tuple[str, str]:
    """What the kernel says about this port, which passt does not tell, and what to do."""
    kind = socket.SOCK_STREAM if forward.protocol == "tcp" else socket.SOCK_DGRAM
    hints = {
        errno.EADDRINUSE: f"choose another, or end what has it: 'ss -{forward.protocol[0]}lnp' tells who",
        errno.EACCES: "ports below 1024 are not for ordinary users: choose one above, or lower the limit by "
        "'sudo sysctl net.ipv4.ip_unprivileged_port_start=N'",
        errno.EADDRNOTAVAIL: "this host does not have the address: 'ip address' shows those that it has",
    }
    family = socket.AF_INET if forward.address and ":" not in forward.address else socket.AF_INET6
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((forward.address or "::", forward.host_port))
        except OSError as error:
            return os.strerror(error.errno or 0), hints.get(error.errno or 0, "choose another")
    return "passt cannot bind it", "choose another"


def _questions(mac: bytes) -> bytes:
    """Frames that passt answers as soon as it serves: who has any IPv4 address, and any of IPv6?"""
    arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, bytes(4), bytes(6), bytes([192, 0, 2, 1]))
    # Neighbour solicitation (RFC 4861, 4.3) from the link-local address that this guest would have.
    own = bytes.fromhex("fe80000000000000") + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    wanted = bytes.fromhex("20010db8") + bytes(11) + b"\1"
    group = bytes.fromhex("ff0200000000000000000001ff") + wanted[13:]
    body = struct.pack("!BBHI16sBB6s", 135, 0, 0, 0, wanted, 1, 1, mac)
    pseudo = own + group + struct.pack("!II", len(body), 58)
    total = sum(struct.unpack(f"!{len(pseudo + body) // 2}H", pseudo + body))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    body = body[:2] + struct.pack("!H", checksum) + body[4:]
    ns = struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + own + group + body
    frames = (_BROADCAST + mac + b"\x08\x06" + arp, b"\x33\x33\xff" + wanted[13:] + mac + b"\x86\xdd" + ns)
    return b"".join(struct.pack("!I", len(frame)) + frame for frame in frames)


class Passt:
    """One process. `connection` is our end; closing it ends the process, and `end` waits for that.

    `stderr` is a descriptor with what it says, not blocking.
    """

    def __init__(self, program: str, config: NetConfig, mac: bytes) -> None:
        """Start it; it serves once `is_ready`. Raises `HostError`."""
        self._config = config
        self._said = b""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        near.send(_questions(mac))  # before it can have ended
        try:
            self._process = subprocess.Popen(
                [program, *passt_arguments(config), "--fd", str(far.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[far.fileno()],
                cwd="/",
                start_new_session=True,  # a Ctrl-C on the terminal is not meant for it
            )
        except OSError as error:
            near.close()
            raise HostError(f"net user: cannot start {program}: {error.strerror}") from error
        finally:
            far.close()
        self.connection = prepare(near)
        self.pid = self._process.pid
        assert self._process.stderr is not None
        self.stderr = self._process.stderr.fileno()
        os.set_blocking(self.stderr, False)

    def is_ready(self) -> bool:
        """Whether it has answered. Raises `HostError` if it has ended."""
        try:
            answer = self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            if self._process.poll() is None:
                return False
            answer = b""
        except ConnectionResetError:
            answer = b""
        if not answer:
            raise self.why_it_ended()
        return True

    def wait_ready(self) -> None:
        """Block until it is, or for `READY_SECONDS`: one that serves without answers has to be given a chance. Raises
        `HostError` if it ended.
        """
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        deadline = time.monotonic() + READY_SECONDS
        while not self.is_ready() and time.monotonic() < deadline:
            poll.poll(LOOK_SECONDS * 1000)

    def why_it_ended(self) -> HostError:
        """After the end: in words."""
        self.end()
        self.hear()
        return complaint(self._said.decode(errors="replace").splitlines(), self._config)

    def hear(self) -> list[str]:
        """Lines that it has said since, and that are news."""
        try:
            more = os.read(self.stderr, STDERR_LIMIT)
        except (BlockingIOError, OSError):
            more = b""
        self._said = (self._said + more)[-STDERR_LIMIT:]
        lines = [line.strip() for line in more.decode(errors="replace").splitlines()]
        return [line for line in lines if line and not line.startswith(_NOISE)]

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def hang_up(self) -> None:
        """Have it end by itself. The connection is still to be closed."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Wait for its end, not for long: it should be about to, or is made to."""
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Both. Once more does nothing."""
        self.hang_up()
        self.connection.close()
        self.end()
        if self._process.stderr is not None:
            self._process.stderr.close()
