"""Writes the golden bytes of the control connection: ``python -m tests.golden.write_control``, once for each version.

Files of a released version are never written again: they stand for what other hosts send.
"""

from __future__ import annotations

import hashlib
import tempfile

import trio

from tests.golden.control import FOLDER, MESSAGES, OPENINGS, REPLIES, SESSION, TOKEN, path_of
from tests.support.moving_guests import PAGE, RAM_BYTES, World
from tvmm.config.incoming import MigrationAddress
from tvmm.migration.incoming import Incoming
from tvmm.migration.link import listen
from tvmm.migration.outgoing import Outgoing
from tvmm.migration.secure import Insecure
from tvmm.migration.source import SourceState
from tvmm.migration.status import MigrationParameters
from tvmm.migration.wire import pack

LANES = 2
FULL_PAGES = 16


async def record() -> dict[str, bytes]:
    """What a source says on each connection, from its opening on, and the hash of its RAM."""
    world = World()
    world.source.busy_pages = 8
    for page in range(FULL_PAGES, RAM_BYTES // PAGE):
        world.source.ram.write(page * PAGE, bytes(PAGE))
    said: list[bytearray] = []

    async def relay(client: trio.SocketStream) -> None:
        own = bytearray()
        said.append(own)
        async with await trio.open_unix_socket(there.path) as server, trio.open_nursery() as nursery:

            async def back() -> None:
                async for data in server:
                    await client.send_all(data)
                await client.send_eof()

            nursery.start_soon(back)
            async for data in client:
                own += data
                await server.send_all(data)
            await server.send_eof()

    with tempfile.TemporaryDirectory(prefix="tvmm-") as directory:
        here = MigrationAddress("unix", path=f"{directory}/here")
        there = MigrationAddress("unix", path=f"{directory}/there")
        parameters = MigrationParameters(5000, connections=LANES)
        incoming = Incoming(
            world.destination, Insecure(), lambda status: None, print, random=lambda count: TOKEN[:count]
        )
        outgoing = Outgoing(
            world.source, here, parameters, Insecure(), lambda status: None, random=lambda count: SESSION[:count]
        )
        async with listen(here) as doors, listen(there) as listeners, trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, relay, doors)
            nursery.start_soon(incoming.run, listeners)
            assert await outgoing.run(trio.Event()) is SourceState.DONE
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
    ram = bytes(world.source.ram.blocks["pc.ram"].view)
    world.close()
    control, *lanes = map(bytes, said)
    found = {"control": control, "ram-sha256": hashlib.sha256(ram).digest()}
    return found | {f"lane{number}": lane for number, lane in enumerate(lanes)}


def main() -> None:
    """All of it."""
    FOLDER.mkdir(exist_ok=True)
    files = {path_of("message", name): pack(message) for name, message in MESSAGES.items()}
    files |= {path_of("opening", name): opening.to_bytes() for name, opening in OPENINGS.items()}
    files |= {path_of("reply", name): reply.to_bytes() for name, reply in REPLIES.items()}
    files |= {path_of("recorded", name): data for name, data in trio.run(record).items()}
    for path, data in files.items():
        path.write_bytes(data)
        print(f"{path.name}: {len(data)} bytes")


if __name__ == "__main__":
    main()
