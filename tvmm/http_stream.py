"""Requests without bodies off a stream, and answers onto it: what the servers of HTTP/1.1 here have in common.

h11 parses; who is let in, what is answered and how long anybody may take are the servers' own affairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import h11
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["GONE", "READ_SIZE", "Answer", "complaint", "next_request", "send_answer"]

READ_SIZE = 4096

GONE = (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)
"""What comes of a peer that has left, or does not keep up."""


class Answer(Protocol):
    """A status from 200 on, headers without those of the length and the connection, and the whole body."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]: ...

    @property
    def body(self) -> bytes: ...


async def next_request(
    stream: trio.abc.Stream, http: h11.Connection, begun: Callable[[], None] = lambda: None
) -> h11.Request | None:
    """The next request, or None at the end of the connection. RemoteProtocolError if it is none, or has a body.

    `begun` is called when there are bytes from the peer.
    """
    request: h11.Request | None = None
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = bytes(await stream.receive_some(READ_SIZE))
            http.receive_data(data)
            if data:
                begun()
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage):
            return request
        elif isinstance(event, h11.Data):
            raise h11.RemoteProtocolError("the request has a body")
        else:
            return None


def complaint(http: h11.Connection, error: h11.RemoteProtocolError) -> tuple[int, str] | None:
    """Status and words for a peer that does not speak HTTP; None if it cannot be told any more."""
    if http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return None
    return error.error_status_hint, (
        "The request is too long." if error.error_status_hint == 431 else "This is not HTTP/1.1."
    )


async def send_answer(
    stream: trio.abc.Stream, http: h11.Connection, answer: Answer, seconds: float, *, head: bool = False
) -> None:
    """Send it, to a request for the `head` without the body. A refusal is the connection's last answer.

    `trio.TooSlowError` if the peer does not take it within `seconds`.
    """
    length = [] if answer.status == 304 else [(b"content-length", str(len(answer.body)).encode())]
    last = [(b"connection", b"close")] if answer.status >= 400 else []
    parts = [http.send(h11.Response(status_code=answer.status, headers=[*answer.headers, *length, *last]))]
    if not head and answer.body:
        parts.append(http.send(h11.Data(data=answer.body)))
    parts.append(http.send(h11.EndOfMessage()))
    with trio.fail_after(seconds):
        await stream.send_all(b"".join(part or b"" for part in parts))
