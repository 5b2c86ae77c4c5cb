"""A source that is killed while the guest runs elsewhere without all of its memory: that guest is lost, and its machine
is not. It says so, answers, and can be ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import PROMPT, call, command, read_until, started, until
from tvmm.control.client import QmpClient
from tvmm.control.registry import find
from tvmm.errors import UserError
from tvmm.kvm.uffd import Uffd

pytestmark = [pytest.mark.guest, pytest.mark.timeout(90)]

MIB = 1 << 20
ANSWER_SECONDS = 5.0
"""Far less than any patience of a peer, and enough for a new interpreter on a busy host."""
HERE, THERE = (f"{side}-{os.getpid()}" for side in ("here", "there"))


@pytest.fixture(autouse=True)
def _userfaultfd() -> None:
    try:
        Uffd().close()
    except UserError as error:
        pytest.skip(str(error))


def client(name: str) -> QmpClient:
    """Of its control socket."""
    control = find(Path(os.environ["TVMM_RUNTIME_DIR"]), name).paths.control
    until(control.exists)
    return QmpClient(control)


def answered(*arguments: str) -> tuple[int, str, str]:
    """`tvmm`, which must not wait for a page."""
    begun = time.monotonic()
    told = call(*arguments)
    assert time.monotonic() - begun < ANSWER_SECONDS, f"{arguments} took {time.monotonic() - begun:.1f} s"
    return told


class Cut:
    """The guest's machine at the destination, and how `tvmm migrate` ended."""

    def __init__(self, there: subprocess.Popen[bytes], qmp: QmpClient, verb: subprocess.Popen[bytes]) -> None:
        self.there, self.qmp, self.verb = there, qmp, verb

    def migration(self) -> dict[str, Any]:
        """What QMP says of it."""
        found: dict[str, Any] = self.qmp.execute("query-migrate", ANSWER_SECONDS)
        return found


@contextmanager
def cut(tmp_path: Path) -> Iterator[Cut]:
    """The source is killed once the guest runs at the destination, which all vCPUs and the disk want pages of."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    options = ("--memory", "64M", "--cpus", "2", "--disk", f"{image},direct=on")
    with started("run", "--name", HERE, *options) as here:
        read_until(here.stdout, PROMPT)
        assert here.stdin is not None
        here.stdin.write(b"cpus\n")
        read_until(here.stdout, PROMPT)
        here.stdin.write(b"churn rate=0 pages=32M mib=8 disk=0\n")
        read_until(here.stdout, b"churning")
        uri = f"unix:{tmp_path}/there"
        with started("run", "--name", THERE, *options, "--incoming", uri) as there:
            read_until(there.stderr, b"waiting for a guest at ")
            order = ("migrate", HERE, "--to", uri, "--postcopy=now", "--bandwidth", "40M", "--max-downtime", "10s")
            with (
                closing(client(HERE)) as events,
                closing(client(THERE)) as qmp,
                subprocess.Popen(command(*order), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as verb,
            ):
                status = ""
                while status != "postcopy-active":
                    event = events.wait_event("MIGRATION", timeout=30)
                    assert event is not None
                    status = event["data"]["status"]
                    assert status not in ("failed", "completed")
                here.send_signal(signal.SIGKILL)
                here.wait()
                yield Cut(there, qmp, verb)
                verb.kill()


def test_the_destination_stays_controllable(tmp_path: Path) -> None:
    """All that does not need the guest works at once."""
    with cut(tmp_path) as it:
        until(lambda: it.migration()["status"] == "postcopy-paused", ANSWER_SECONDS)
        assert it.migration()["ram"]["remaining"] > MIB
        status, told, said = answered("info", THERE)
        assert (status, said) == (0, "")
        assert "postcopy-paused" in told
        status, told, _ = answered("info", THERE, "--json")
        assert status == 0
        assert json.loads(told)
        # Not as long as a disk's request, or the kernel itself, waits for a page.
        status, _, said = answered("pause", THERE)
        assert status == 0 or "cannot be paused" in said, said
        assert answered("resume", THERE)[0] == 0
        status, _, said = answered("save", THERE, f"{tmp_path}/a.snap")
        assert status
        assert "cannot be saved" in said
        assert len(said.strip().splitlines()) <= 2
        status, _, said = answered("migrate", THERE, "--to", f"unix:{tmp_path}/on")
        assert status
        assert "cannot be moved" in said
        # It lets the source in, and does not wait for it.
        status, told, said = answered("migrate", THERE, "--recover")
        assert (status, said) == (0, "")
        assert f"'tvmm migrate {HERE} --recover'" in told
        # The guest does not hear of the power button.
        status, _, said = answered("stop", THERE, "--timeout", "500ms")
        assert status
        assert THERE in said
        assert it.verb.wait(ANSWER_SECONDS)
        assert it.verb.stderr is not None
        assert b"Traceback" not in it.verb.stderr.read()
        status, _, said = answered("stop", THERE, "--force")
        assert status == 0, said
        assert it.there.wait(ANSWER_SECONDS) is not None
        assert it.there.stderr is not None
        assert b"Traceback" not in it.there.stderr.read()


def test_signals_end_it(tmp_path: Path) -> None:
    """The first one presses the power button, which the guest does not hear of; the second one does."""
    with cut(tmp_path) as it:
        until(lambda: it.migration()["status"] == "postcopy-paused", ANSWER_SECONDS)
        it.there.send_signal(signal.SIGTERM)
        assert answered("info", THERE)[0] == 0
        it.there.send_signal(signal.SIGTERM)
        it.there.wait(ANSWER_SECONDS)
