"""The PyPI package `qemu.qmp` moves a guest from one process to another, as a script written for QEMU would."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.process import PROMPT, read_until, started, until

pytestmark = pytest.mark.guest

SECONDS = 60.0
EVENTS = ("MIGRATION", "STOP", "RESUME")
ENDS = ("completed", "failed", "cancelled")


class Processes(NamedTuple):
    """Both sides, and where their sockets are."""

    source: subprocess.Popen[bytes]
    destination: subprocess.Popen[bytes]
    folder: Path

    @property
    def uri(self) -> str:
        """Where the guest goes."""
        return f"unix:{self.folder}/migration"

    def control(self, name: str) -> str:
        """Of ``here`` or ``there``."""
        return str(self.folder / name / "control.sock")


@contextmanager
def processes(incoming: str) -> Iterator[Processes]:
    """A guest at its prompt and a machine that waits, at `incoming`, or in the directory if that is empty."""
    with tempfile.TemporaryDirectory(prefix="tvmm-") as folder:
        environment = {"TVMM_RUNTIME_DIR": folder}
        where = incoming or f"unix:{folder}/migration"
        options = ("--memory", "64M", "--cpus", "2")
        with (
            started("run", "--name", "here", *options, environment=environment) as source,
            started("run", "--name", "there", *options, "--incoming", where, environment=environment) as destination,
        ):
            made = Processes(source, destination, Path(folder))
            read_until(source.stdout, PROMPT)
            until(Path(made.control("there")).exists)
            if incoming != "defer":
                read_until(destination.stderr, b"waiting for a guest at")
            yield made


def ask(process: subprocess.Popen[bytes], line: str) -> bytes:
    """What the guest prints for a command."""
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")
    return read_until(process.stdout, b"\n" + PROMPT)


def run(conversation: Any) -> Any:
    """To its end, in asyncio, which the client is written for."""

    async def limited() -> Any:
        return await asyncio.wait_for(conversation, SECONDS)

    return asyncio.run(limited())


async def client(path: str) -> Any:
    """Connected."""
    from qemu.qmp import QMPClient

    made = QMPClient("test")
    await made.connect(path)
    return made


async def events_until(listener: Any, *last: str) -> list[str]:
    """Names of events, or the states of a migration, up to one of `last`."""
    seen: list[str] = []
    while not seen or seen[-1] not in last:
        event = await listener.get()
        seen.append(str(event["data"]["status"]) if event["event"] == "MIGRATION" else event["event"])
    return seen


async def move(made: Processes) -> dict[str, Any]:
    """Set up, move, look."""
    seen: dict[str, Any] = {}
    here, there = await client(made.control("here")), await client(made.control("there"))
    seen["waiting"] = await there.execute("query-status")
    await there.execute("migrate-incoming", {"uri": made.uri})
    seen["listening"] = (await there.execute("query-migrate"))["socket-address"]
    chosen = {"downtime-limit": 20_000, "multifd-channels": 2, "multifd-compression": "zstd"}
    await here.execute("migrate-set-parameters", chosen)
    told = await here.execute("query-migrate-parameters")
    seen["parameters"] = {name: told[name] for name in chosen}
    with here.listener(EVENTS) as leaving, there.listener(EVENTS) as arriving:
        await here.execute("migrate", {"uri": made.uri})
        seen["events here"] = await events_until(leaving, *ENDS)
        seen["here"] = await here.execute("query-migrate")
        seen["status here"] = await here.execute("query-status")
        await here.disconnect()
        seen["events there"] = await events_until(arriving, "RESUME", "failed")
    seen["there"] = await there.execute("query-migrate")
    seen["status there"] = await there.execute("query-status")
    await there.disconnect()
    return seen


def test_a_guest_moves() -> None:
    """Both sides' events tell what becomes of it, and the source answers once more before it ends."""
    with processes("defer") as made:
        assert b" 0 errors" in ask(made.source, "dirty 0 16M 1")
        seen = run(move(made))
        assert seen["waiting"] == {"running": False, "status": "inmigrate"}
        assert seen["listening"] == [{"type": "unix", "path": f"{made.folder}/migration"}]
        assert seen["parameters"] == {
            "downtime-limit": 20_000, "multifd-channels": 2, "multifd-compression": "zstd"
        }
        here = seen["events here"]
        assert [state for state in here if state != "STOP"] == ["setup", "active", "device", "completed"]
        assert here.index("active") < here.index("STOP") < here.index("completed")
        assert seen["here"]["status"] == "completed"
        assert seen["here"]["ram"]["total"] == 64 << 20
        assert seen["here"]["ram"]["remaining"] == 0
        assert 0 <= seen["here"]["downtime"] <= seen["here"]["total-time"]
        assert seen["status here"] == {"running": False, "status": "postmigrate"}
        assert seen["events there"][-1] == "RESUME"
        assert "STOP" not in seen["events there"]
        assert seen["status there"] == {"running": True, "status": "running"}
        assert seen["there"]["status"] == "completed"
        assert made.source.wait(SECONDS) == 4
        assert b" 0 errors" in ask(made.destination, "check")


async def give_up(made: Processes) -> dict[str, Any]:
    """Cancel it in the middle of the pages."""
    seen: dict[str, Any] = {}
    here = await client(made.control("here"))
    await here.execute("migrate-set-parameters", {"max-bandwidth": 1 << 20})
    with here.listener(EVENTS) as leaving:
        await here.execute("migrate", {"uri": made.uri})
        seen["begun"] = await events_until(leaving, "active", *ENDS)
        seen["half way"] = await here.execute("query-migrate")
        await here.execute("migrate_cancel")
        seen["ended"] = await events_until(leaving, *ENDS)
    seen["after"] = await here.execute("query-migrate")
    seen["status"] = await here.execute("query-status")
    await here.disconnect()
    return seen


def test_a_move_is_cancelled() -> None:
    """The guest never stops, and the source says how it ended."""
    with processes("") as made:
        assert b" 0 errors" in ask(made.source, "dirty 0 16M 1")
        seen = run(give_up(made))
        assert seen["begun"] == ["setup", "active"]
        assert seen["half way"]["status"] == "active"
        assert seen["half way"]["ram"]["remaining"] > 0
        assert seen["ended"] == ["cancelling", "cancelled"]
        assert seen["after"]["status"] == "cancelled"
        assert seen["status"] == {"running": True, "status": "running"}
        assert b" 0 errors" in ask(made.source, "check")
