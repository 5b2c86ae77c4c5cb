"""The tiny Linux and its own balloon driver: memory that goes and comes, its statistics, hints when it moves."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.linux.shell import Shell, linux_options
from tests.support.process import call, read_until, started, until
from tvmm.control.client import QmpClient

pytestmark = [pytest.mark.linux, pytest.mark.timeout(900)]

MIB = 1 << 20
PATIENCE_S = 300
"""A page costs some hundred instructions of the kernel, and each of these a microsecond where it is emulated."""
DEVICE = "virtio-balloon,deflate-on-oom=on,free-page-hint=on,free-page-reporting=on"
STATS = "/machine/peripheral/balloon0"


def resident(client: QmpClient) -> int:
    """What the host has given for the guest's RAM."""
    found: dict[str, Any] = client.execute("x-query-balloon-stats")
    return int(found["resident"])


def resize(client: QmpClient, memory: int) -> None:
    """Ask for a size, and wait until the guest has it."""
    client.execute("balloon", value=memory)
    until(lambda: client.execute("query-balloon")["actual"] == memory, PATIENCE_S)


def check_statistics(client: QmpClient) -> None:
    """The guest's own figures come at the interval that was set, as QEMU's clients read them."""
    client.execute("qom-set", path=STATS, property="guest-stats-polling-interval", value=1)
    until(lambda: client.execute("qom-get", path=STATS, property="guest-stats")["last-update"], PATIENCE_S)
    found = client.execute("qom-get", path=STATS, property="guest-stats")["stats"]
    assert 200 * MIB < found["stat-total-memory"] < 256 * MIB
    assert 0 < found["stat-free-memory"] < found["stat-total-memory"]
    assert found["stat-minor-faults"] > 0
    client.execute("qom-set", path=STATS, property="guest-stats-polling-interval", value=0)


def check_size(client: QmpClient, shell: Shell) -> None:
    """8 MiB go and come back; a file in memory keeps its content."""
    sums = shell.run("dd if=/dev/urandom of=/kept bs=16k count=1 2>/dev/null; md5sum /kept")
    resize(client, 248 * MIB)
    assert resident(client) <= 248 * MIB
    assert client.execute("query-balloon")["x-pages"]["inflated"] >= 2048
    assert shell.run("md5sum /kept") == sums
    resize(client, 256 * MIB)
    assert client.execute("query-balloon")["x-pages"]["strange"] == 0
    assert shell.run("md5sum /kept") == sums


def check_reports(client: QmpClient) -> None:
    """What Linux does not use goes back to the host by itself, once more than 128 MiB are free."""
    until(lambda: client.execute("query-balloon")["x-pages"]["reported"] >= 1024, PATIENCE_S)


def test_all(tiny: Path) -> None:
    """One boot for everything, and a move to another process at the end."""
    with tempfile.TemporaryDirectory(prefix="tvmm-") as directory, ExitStack() as stack:
        environment = {"TVMM_RUNTIME_DIR": directory}
        everything = {**os.environ, **environment}
        options = (*linux_options(tiny, memory="256M"), "--device", DEVICE)
        source = stack.enter_context(started("run", "--name", "tiny", *options, environment=environment))
        shell = Shell(source, boot_seconds=PATIENCE_S, seconds=PATIENCE_S)
        with QmpClient(Path(directory) / "tiny" / "control.sock", PATIENCE_S) as client:
            check_statistics(client)
            check_size(client, shell)
            check_reports(client)
            uri = f"unix:{directory}/migration"
            there = stack.enter_context(
                started("run", "--name", "there", "--incoming", uri, *options, environment=environment)
            )
            read_until(there.stderr, b"waiting for a guest at ")
            # So slow that the guest has time to tell.
            client.execute("migrate-set-parameters", **{"max-bandwidth": 6 * MIB, "downtime-limit": 20_000})
            client.execute("migrate", uri=uri)
            until(lambda: client.execute("query-migrate")["status"] in ("completed", "failed"), PATIENCE_S)
            moved = client.execute("query-migrate")
            assert moved["status"] == "completed", moved
            assert moved["ram"]["x-spared"] > 1024
        shell.go_on_at(there)
        assert "kept" in shell.run("md5sum /kept")
        status, _, errors = call("balloon", "there", "252M", "--wait", "--timeout", f"{PATIENCE_S}s", env=everything)
        assert status == 0, errors
        shell.power_off()
