"""The viewers that can type do so, and show what a server of few words sends.

    pytest -m slow tests/vnc/test_viewers_type.py
"""

from __future__ import annotations

import contextlib
import functools

import pytest
import trio

from tests.vnc.fake_rfb import FakeScreen, pattern
from tests.vnc.viewers import VIEWERS, Target, Viewer, difference, opened

pytestmark = pytest.mark.slow

SIZE = 320, 200


@pytest.mark.parametrize(
    "viewer",
    [
        pytest.param(each, id=each.name, marks=pytest.mark.skipif(bool(each.missing), reason=each.missing))
        for each in VIEWERS
        if each.types
    ],
)
async def test_keys_arrive(viewer: Viewer) -> None:
    """Down and up, in order, after a picture that is right in every pixel."""
    screen = FakeScreen(*SIZE, pattern(*SIZE))
    header = f"P6 {SIZE[0]} {SIZE[1]} 255\n".encode()
    wanted = opened(header + b"".join(bytes(pixel) for pixel in screen.picture))

    async def serve(stream: trio.SocketStream) -> None:
        # A viewer may leave without waiting for what it has asked for.
        with contextlib.suppress(trio.BrokenResourceError):
            await screen.serve(stream, "viewer")

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, serve, listeners)
        target = Target("localhost", listeners[0].socket.getsockname()[1])
        capture = functools.partial(
            viewer.capture, target, "raw", keys="az", until=lambda picture: difference(picture, wanted) == 0
        )
        shown = await trio.to_thread.run_sync(capture)
        assert difference(shown, wanted) == 0
        with trio.fail_after(10):
            typed = [await screen.next("key") for _ in range(4)]
        assert typed == [(0x61, True), (0x61, False), (0x7A, True), (0x7A, False)]
        nursery.cancel_scope.cancel()
