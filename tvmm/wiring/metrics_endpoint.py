"""The endpoint for Prometheus of one machine: where it listens, and who may read."""

from __future__ import annotations

import errno
import socket
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tvmm.control.listener import unix_listener
from tvmm.errors import HostError
from tvmm.metrics.http_rules import PATH, Rules
from tvmm.metrics.server import MetricsServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from contextlib import AsyncExitStack

    from tvmm.config.metrics import MetricsConfig
    from tvmm.config.vnc import VncAddress
    from tvmm.machine import Machine
    from tvmm.metrics.model import Sample

__all__ = ["start_metrics"]

BACKLOG = 16
LEAST_TOKEN = 16
"""Characters of a token: a short one is guessed."""


async def start_metrics(
    machine: Machine, config: MetricsConfig, nursery: trio.Nursery, stack: AsyncExitStack
) -> None:
    """Serve what `machine` counts in a task of `nursery`, and say where. Raises `UserError`."""
    token = await trio.to_thread.run_sync(_read_token, config.token_file) if config.token_file else ""
    # A tenth of a second of imports, which nobody else has to wait for.
    expose = await trio.to_thread.run_sync(_load)
    metrics = machine.metrics()

    async def page(accept: str) -> tuple[bytes, str]:
        reading = await metrics.read()
        return await trio.to_thread.run_sync(expose, machine.name, reading.samples, accept)

    listeners, where = await stack.enter_async_context(_listen(config.address))
    any_host = config.address.kind == "unix" or not config.address.is_local
    server = MetricsServer(Rules(token, any_host=any_host), page)
    nursery.start_soon(partial(server.run, listeners), name="metrics")
    for line in config.warnings:
        machine.on_warning(line)
    machine.on_warning(f"metrics at {where}")


def _load() -> Callable[[str, Iterable[Sample], str], tuple[bytes, str]]:
    try:
        from tvmm.metrics.exposition import expose
    except ImportError as error:
        raise HostError(
            f"--metrics needs the Python package prometheus-client: {error}", "'pip install prometheus-client'"
        ) from error
    return expose


def _read_token(path: str) -> str:
    from tvmm.vnc.private_files import read_private

    try:
        token = read_private(path).decode("ascii").strip()
    except UnicodeDecodeError:
        raise HostError(f"{path} holds no token: it is not ASCII text") from None
    if len(token) < LEAST_TOKEN or not all("!" <= character <= "~" for character in token):
        raise HostError(
            f"{path} holds no token: it is one word of at least {LEAST_TOKEN} characters",
            f"'openssl rand -hex 32 > {path}' makes one",
        )
    return token


@asynccontextmanager
async def _listen(address: VncAddress) -> AsyncIterator[tuple[list[trio.SocketListener], str]]:
    if address.kind == "unix":
        async with unix_listener(Path(address.path)) as listener:
            yield [listener], f"unix:{address.path} (GET {PATH})"
        return
    try:
        listeners = await trio.open_tcp_listeners(address.port, host=address.host, backlog=BACKLOG)
    except socket.gaierror as error:
        raise HostError(f"{address.host} is no address of this host: {error.strerror}") from error
    except OSError as error:
        hint = "choose another port, or 0 for any" if error.errno == errno.EADDRINUSE else ""
        raise HostError(f"cannot listen at {address.text} for metrics: {error.strerror or error}", hint) from error
    try:
        port = listeners[0].socket.getsockname()[1]
        yield listeners, f"http://{address._replace(port=port).text}{PATH}"
    finally:
        for listener in listeners:
            listener.socket.close()
