"""Connections made secure for threads: what a peer that stalls can keep."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest
import trio

from tests.migration.streams import stream_pair
from tvmm.errors import TvmmError
from tvmm.kvm.serve import Waker
from tvmm.migration import pairing, tls
from tvmm.migration.secure import Tls
from tvmm.migration.wire import Security

LIMIT_SECONDS = 8
"""Less than a handshake may take."""


async def test_a_handshake_is_given_up_at_once() -> None:
    """The destination says nothing, and the user does not want to wait for it."""
    assert tls.HANDSHAKE_SECONDS > LIMIT_SECONDS
    source = Tls(tls.paired_source(pairing.new_secret()), Security.PAIR, "localhost")
    with ExitStack() as stack, trio.fail_after(LIMIT_SECONDS):
        here, there = stack.enter_context(stream_pair())
        waker = Waker()
        stack.callback(waker.close)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.wrap_lane, here, waker)
            assert await there.receive_some()
            nursery.cancel_scope.cancel()
        while await there.receive_some():
            pass


@pytest.mark.parametrize("answer", [b"", b"x" * 100, b"\x15\x03\x03\x00\x02\x02\x28"])
async def test_no_handshake(answer: bytes) -> None:
    """An end, junk, and an alert: an error that says so, and the connection is closed."""
    source = Tls(tls.paired_source(pairing.new_secret()), Security.PAIR, "localhost")
    with ExitStack() as stack, trio.fail_after(LIMIT_SECONDS):
        here, there = stack.enter_context(stream_pair())
        waker = Waker()
        stack.callback(waker.close)
        async with trio.open_nursery() as nursery:

            async def answering() -> None:
                await there.receive_some()
                await there.send_all(answer)
                await there.send_eof()
                with suppress(trio.BrokenResourceError):
                    while await there.receive_some():
                        pass

            nursery.start_soon(answering)
            with pytest.raises(TvmmError):
                await source.wrap_lane(here, waker)
