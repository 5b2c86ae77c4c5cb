"""What the server of a socket device does, in plain words: the oracle for the one in C. Packets in, packets out.

It has no rings, and room for every packet. Sockets are the kernel's, asked one after the other; nothing waits.
"""

from __future__ import annotations

import select
import socket
from dataclasses import dataclass, field

from tvmm.virtio.vsock import HOST_CID, NO_RECEIVE, NO_SEND, STREAM, Op, Packet

__all__ = ["PlainVsock"]

BOTH = NO_RECEIVE | NO_SEND
ROOM = 256 << 10
MASK = 0xFFFF_FFFF


@dataclass
class Connection:
    """One, by its ports. `waiting` are the guest's bytes that its socket has not taken."""

    guest_port: int
    host_port: int
    sock: socket.socket
    state: str = "open"
    peer_room: int = 0
    peer_forwarded: int = 0
    sent: int = 0
    forwarded: int = 0
    told: int = 0
    guest_shut: int = 0
    host_shut: int = 0
    starved: bool = False
    waiting: bytearray = field(default_factory=bytearray)


class PlainVsock:
    """`take` a packet of the guest's, `look` what the sockets have; both append to `out`: packets with their data."""

    def __init__(self, guest_cid: int, path: str) -> None:
        self.guest_cid = guest_cid
        self.path = path
        self.out: list[tuple[Packet, bytes]] = []
        self.connections: dict[tuple[int, int], Connection] = {}
        self.draining: list[Connection] = []
        self.overdrawn = self.dropped = 0
        self.next_port = 1 << 30

    # -- packets to the guest --------------------------------------------------------------------------------------

    def _tell(self, conn: Connection, op: int, flags: int = 0, data: bytes = b"") -> None:
        conn.told = conn.forwarded
        head = Packet(HOST_CID, self.guest_cid, conn.host_port, conn.guest_port, len(data), STREAM, op, flags, ROOM,
                      conn.forwarded & MASK)  # fmt: skip
        self.out.append((head, data))

    def _credit(self, conn: Connection) -> int:
        return max(conn.peer_room - (conn.sent - conn.peer_forwarded & MASK), 0)

    # -- from the guest --------------------------------------------------------------------------------------------

    def take(self, head: Packet, data: bytes = b"") -> None:
        """One packet, with as much data as there is room for in what the guest gave."""
        if head.src_cid != self.guest_cid or head.length > len(data):
            self.dropped += 1
            return
        ours = head.dst_cid == HOST_CID and head.type == STREAM
        conn = self.connections.get((head.src_port, head.dst_port)) if ours else None
        if conn is not None:
            self._take(conn, head, data[: head.length])
        elif head.op == Op.RST:
            pass
        elif ours and head.op == Op.REQUEST:
            self._request(head)
        else:
            self._refuse(head)

    def _refuse(self, head: Packet) -> None:
        answer = Packet(head.dst_cid, self.guest_cid, head.dst_port, head.src_port, 0, head.type, Op.RST)
        self.out.append((answer, b""))

    def _request(self, head: Packet) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        conn = Connection(head.src_port, head.dst_port, sock, peer_room=head.buf_alloc, peer_forwarded=head.fwd_cnt)
        try:
            sock.connect(f"{self.path}_{head.dst_port}")
        except OSError:
            sock.close()
            self._tell(conn, Op.RST)
            return
        self.connections[head.src_port, head.dst_port] = conn
        self._tell(conn, Op.RESPONSE)

    def _take(self, conn: Connection, head: Packet, data: bytes) -> None:
        if conn.state == "called":
            if head.op == Op.RESPONSE:
                conn.state = "open"
                conn.peer_room, conn.peer_forwarded = head.buf_alloc, head.fwd_cnt
                try:
                    conn.sock.send(b"OK %d\n" % conn.host_port)
                except OSError:
                    self._reset(conn)
            elif head.op == Op.RST:
                self._forget(conn)
            else:
                self._reset(conn)
            return
        if conn.state == "lingering":
            if head.op == Op.RST:
                self._forget(conn)
            elif head.op not in (Op.CREDIT_UPDATE, Op.CREDIT_REQUEST):
                self._reset(conn)
            return
        conn.peer_room, conn.peer_forwarded = head.buf_alloc, head.fwd_cnt
        if self._credit(conn):
            conn.starved = False
        if head.op == Op.RW:
            self._data(conn, data)
        elif head.op == Op.CREDIT_REQUEST:
            self._tell(conn, Op.CREDIT_UPDATE)
        elif head.op == Op.SHUTDOWN:
            self._shut(conn, head.flags & BOTH)
        elif head.op == Op.RST:
            if conn.guest_shut == BOTH and conn.waiting:
                del self.connections[conn.guest_port, conn.host_port]
                conn.state = "draining"
                self.draining.append(conn)
            else:
                self._forget(conn)
        elif head.op != Op.CREDIT_UPDATE:
            self._reset(conn)

    def _data(self, conn: Connection, data: bytes) -> None:
        if conn.guest_shut & NO_SEND:
            self._reset(conn)
        elif len(conn.waiting) + len(data) > ROOM:
            self.overdrawn += 1
            self._reset(conn)
        elif conn.host_shut & NO_RECEIVE:
            conn.forwarded += len(data)
            self._tell_credit(conn)
        else:
            conn.waiting += data
            self._pass_on(conn)

    def _tell_credit(self, conn: Connection) -> None:
        if conn.state == "open" and conn.forwarded - conn.told >= ROOM // 4:
            self._tell(conn, Op.CREDIT_UPDATE)

    def _pass_on(self, conn: Connection) -> None:
        """What waits goes to the socket, as far as that takes it."""
        try:
            while conn.waiting:
                count = conn.sock.send(conn.waiting)
                del conn.waiting[:count]
                conn.forwarded += count
        except BlockingIOError:
            pass
        except OSError:
            self._host_shut(conn, NO_RECEIVE)
            return
        self._tell_credit(conn)

    # -- ends ------------------------------------------------------------------------------------------------------

    def _shut(self, conn: Connection, flags: int) -> None:
        new = flags & ~conn.guest_shut
        conn.guest_shut |= flags
        if new & NO_RECEIVE:
            conn.sock.shutdown(socket.SHUT_RD)
        if new:
            self._finish(conn)

    def _finish(self, conn: Connection) -> None:
        if conn.waiting:
            return
        if conn.state == "draining":
            conn.sock.close()
            self.draining.remove(conn)
        elif conn.guest_shut == BOTH:
            self._reset(conn)
        elif conn.guest_shut & NO_SEND:
            conn.sock.shutdown(socket.SHUT_WR)

    def _host_shut(self, conn: Connection, flags: int) -> None:
        if flags & NO_RECEIVE:
            conn.forwarded += len(conn.waiting)
            conn.waiting.clear()
        if conn.state == "draining":
            self._finish(conn)
            return
        if not flags & ~conn.host_shut:
            return
        conn.host_shut |= flags
        if conn.guest_shut == BOTH:
            self._reset(conn)
            return
        self._tell(conn, Op.SHUTDOWN, conn.host_shut)
        if conn.host_shut == BOTH:
            conn.sock.close()
            conn.state = "lingering"

    def _reset(self, conn: Connection) -> None:
        conn.forwarded += len(conn.waiting)
        self._tell(conn, Op.RST)
        self._forget(conn)

    def _forget(self, conn: Connection) -> None:
        conn.sock.close()
        self.connections.pop((conn.guest_port, conn.host_port))

    # -- the host ----------------------------------------------------------------------------------------------------

    def call(self, sock: socket.socket, port: int) -> None:
        """A program wants the guest's port."""
        conn = Connection(port, self.next_port, sock, "called")
        self.next_port += 1
        self.connections[port, conn.host_port] = conn
        self._tell(conn, Op.REQUEST)

    def look(self) -> None:
        """Whatever sockets have to say, until there is nothing more."""
        for conn in [*self.connections.values(), *self.draining]:
            if conn.state == "lingering":
                continue
            hung_up = self._has_hung_up(conn)
            if conn.state == "called":
                if hung_up:
                    self._reset(conn)
                continue
            if conn.waiting:
                self._pass_on(conn)
                if not conn.waiting and conn.state in ("open", "draining"):
                    self._finish(conn)
            elif hung_up and (conn.host_shut & NO_SEND or conn.guest_shut & NO_RECEIVE) and conn.state == "open":
                self._host_shut(conn, BOTH)
            self._read(conn)

    @staticmethod
    def _has_hung_up(conn: Connection) -> bool:
        poll = select.poll()
        poll.register(conn.sock, 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def _read(self, conn: Connection) -> None:
        while (conn.guest_port, conn.host_port) in self.connections and conn.state == "open":
            if conn.host_shut & NO_SEND or conn.guest_shut & NO_RECEIVE:
                return
            credit = self._credit(conn)
            try:
                data = conn.sock.recv(min(credit, 65536)) if credit else conn.sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return
            except OSError:
                self._host_shut(conn, BOTH)
                return
            if not data:
                self._host_shut(conn, BOTH if self._has_hung_up(conn) else NO_SEND)
                return
            if not credit:
                if not conn.starved:
                    self._tell(conn, Op.CREDIT_REQUEST)
                conn.starved = True
                return
            conn.sent += len(data)
            self._tell(conn, Op.RW, 0, data)

    def close(self) -> None:
        """Every socket."""
        for conn in [*self.connections.values(), *self.draining]:
            conn.sock.close()
