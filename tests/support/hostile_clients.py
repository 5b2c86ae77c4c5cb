"""Clients of the control socket and the console that mean no good. Each call is one session, out of one `Random`."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ask", "noise_at_console", "noise_at_control"]

NEGOTIATE = b'{"execute": "qmp_capabilities"}'
QUESTIONS = (
    "query-commands", "query-cpus-fast", "query-status", "x-query-tasks", "x-query-info", "x-query-memory-map",
    "query-migrate", "query-migrate-parameters", "query-vm-generation-id",
    "query-chardev", "query-name", "query-events", "query-version", "query-memory-size-summary", "query-kvm",
)  # fmt: skip
ORDERS = ("stop", "cont", "cont", "x-query-cpu-registers", "x-query-cpu-registers", "system_reset")
"""What any client may do; `quit` and the power button would end the run."""

REFUSAL = b"control clients already"
FLOOD = 300
LEAVE_SECONDS = 0.05
READ_BYTES = 4096


async def ask(path: Path, question: str) -> tuple[float, int]:
    """An honest client: seconds to an answer, and how often it was told on the way that there are too many clients."""
    started, refusals = time.monotonic(), 0
    while not await _asked(path, question):
        refusals += 1
        await trio.sleep(LEAVE_SECONDS)
    return time.monotonic() - started, refusals


async def _asked(path: Path, question: str) -> bool:
    """Whether there was an answer rather than a refusal."""
    text = b""
    async with await trio.open_unix_socket(str(path)) as stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(NEGOTIATE + _command(question))
        with suppress(trio.BrokenResourceError):
            # There may be events before the answer.
            while b'"id": 1' not in text:
                data = await stream.receive_some()
                if not data:
                    break
                text += data
    if b'"return"' in text and b'"id": 1' in text:
        return True
    assert REFUSAL in text, f"the machine hung up after {text!r}"
    return False


async def noise_at_control(path: Path, random: Random) -> None:
    """One session at the control socket, of a kind that `random` chooses."""
    await _session(path, random, random.choice(_CONTROL))


async def noise_at_console(path: Path, random: Random) -> None:
    """One viewer at the console."""
    await _session(path, random, random.choice(_CONSOLE))


_Session = Callable[[trio.SocketStream, Random], Awaitable[None]]


async def _session(path: Path, random: Random, act: _Session) -> None:
    """Connect, act, and be gone, in any order that the machine leaves us."""
    with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        async with await trio.open_unix_socket(str(path)) as stream:
            with trio.move_on_after(1 + random.random()):
                await act(stream, random)


def _command(name: str, **arguments: object) -> bytes:
    return json.dumps({"execute": name, "id": 1, **({"arguments": arguments} if arguments else {})}).encode()


async def _pieces(stream: trio.SocketStream, random: Random, data: bytes) -> None:
    """Send `data` cut anywhere, reading now and then."""
    while data:
        count = random.choice((1, 7, 4096, 1 << 20))
        await stream.send_all(data[:count])
        data = data[count:]
        if random.random() < 0.2:
            await _read_some(stream)


async def _read_some(stream: trio.SocketStream) -> None:
    with trio.move_on_after(LEAVE_SECONDS):
        await stream.receive_some(READ_BYTES)





async def _noise(stream: trio.SocketStream, random: Random) -> None:
    await _pieces(stream, random, random.randbytes(random.choice((1, 100, 5000, 20_000))))


async def _brackets(stream: trio.SocketStream, random: Random) -> None:
    """Messages that never end, or are built to cost much."""
    unit = random.choice((b"[", b'{"a":', b'"', b'{"execute":"', b"9", b"[1e999,", b"\\", b'"\\u', b" ", b"\n", b"\0"))
    await _pieces(stream, random, NEGOTIATE + unit * random.choice((30, 1000, 100_000)))


async def _damaged(stream: trio.SocketStream, random: Random) -> None:
    """Good commands with bytes changed."""
    await stream.send_all(NEGOTIATE)
    for _ in range(random.randrange(1, 40)):
        message = bytearray(_command(random.choice(QUESTIONS), value=random.choice((None, 1.5, [], {}, "x" * 99, -1))))
        for _ in range(random.randrange(4)):
            message[random.randrange(len(message))] = random.getrandbits(8)
        await stream.send_all(message)
        await _read_some(stream)


async def _flood(stream: trio.SocketStream, random: Random) -> None:
    """Many questions, no interest in the answers."""
    await stream.send_all(NEGOTIATE)
    for _ in range(FLOOD):
        await stream.send_all(_command(random.choice(QUESTIONS)))


async def _orders(stream: trio.SocketStream, random: Random) -> None:
    """Pause, resume and reset in any order, some without waiting for the answer."""
    await stream.send_all(NEGOTIATE)
    for _ in range(random.randrange(1, 12)):
        await stream.send_all(_command(random.choice(ORDERS)))
        if random.random() < 0.7:
            await _read_some(stream)
    await stream.send_all(_command("cont"))
    await _read_some(stream)


async def _silent(stream: trio.SocketStream, random: Random) -> None:
    """Come, say nothing or half of something, and go or just stop talking."""
    if random.random() < 0.5:
        await stream.send_all(NEGOTIATE[: random.randrange(1, len(NEGOTIATE))])
    if random.random() < 0.5:
        await stream.send_eof()
    await trio.sleep(LEAVE_SECONDS)


async def _typing(stream: trio.SocketStream, random: Random) -> None:
    """Keys at random, mostly printable, with ends of lines."""
    keys = b"abcdefghijklmnopqrstuvwxyz 0123456789\x7f\x15\x03\x1b[A\r\n"
    await _pieces(stream, random, bytes(random.choice(keys) for _ in range(random.choice((3, 50, 2000)))))
    await _read_some(stream)


_CONTROL: tuple[_Session, ...] = (_noise, _brackets, _damaged, _flood, _orders, _orders, _silent)
_CONSOLE: tuple[_Session, ...] = (_noise, _typing, _typing, _silent)
