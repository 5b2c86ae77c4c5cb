"""``--metrics`` on whole machines: what Prometheus gets, who gets it, and what is said when it cannot listen."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from tests.wiring.guests import guest
from tvmm import Machine, MachineConfig
from tvmm.errors import HostError

pytestmark = pytest.mark.guest

CLOSE = "Host: localhost\r\nConnection: close\r\n"
OPENMETRICS = "Accept: application/openmetrics-text; version=1.0.0\r\n"
TOKEN = "0123456789abcdef0123456789abcdef"


async def get(stream: trio.abc.Stream, *headers: str) -> tuple[int, str]:
    """Status and body."""
    async with stream:
        await stream.send_all(f"GET /metrics HTTP/1.1\r\n{''.join(headers)}\r\n".encode())
        found = b"".join([part async for part in stream])
    head, _, body = found.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


def told(lines: list[str]) -> int:
    """The port that the user was told of."""
    [port] = [match[1] for line in lines if (match := re.fullmatch(r"metrics at http://[^/]*:(\d+)/metrics", line))]
    return int(port)


def disk_of(tmp_path: Path) -> str:
    """An image of 16 MiB."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    return str(path)


async def test_prometheus_reads_what_the_guest_did(tmp_path: Path) -> None:
    """In both forms: the requests of the disk, with the times of all of them."""
    lines: list[str] = []
    config = MachineConfig.parse(name="web", memory="64M", disk=disk_of(tmp_path), metrics="127.0.0.1:0")
    with trio.fail_after(60):
        machine = Machine(config)
        machine.on_warning = lines.append
        async with machine as vm:
            port = told(lines)
            await vm.resume()
            await vm.wait_serial("tvmm> ")
            await vm.send_serial("blkfill 0 4 7 0\n")
            await vm.wait_serial("0 failed requests")
            await vm.wait_serial("tvmm> ")
            status, body = await get(await trio.open_tcp_stream("127.0.0.1", port), CLOSE)
            assert status == 200
            status, newer = await get(await trio.open_tcp_stream("127.0.0.1", port), CLOSE, OPENMETRICS)
            assert status == 200
    labels = {"machine": "web", "device": "disk0", "queue": "0", "operation": "write"}
    for families in (list(parse_classic(body)), list(parse_openmetrics(newer))):  # type: ignore[no-untyped-call]
        values = {
            sample.name: sample.value
            for family in families
            for sample in family.samples
            if sample.labels in (labels, {**labels, "le": "+Inf"})
        }
        assert values["tvmm_blk_bytes_total"] == 4 << 20
        assert values["tvmm_blk_requests_total"] == values["tvmm_blk_request_seconds_count"]
        assert values["tvmm_blk_request_seconds_bucket"] == values["tvmm_blk_requests_total"]
        assert values["tvmm_blk_request_seconds_sum"] > 0


async def test_unix_socket(tmp_path: Path) -> None:
    """The same page, whatever name it is asked by; the socket is gone with the machine."""
    path = tmp_path / "metrics.sock"
    async with guest(metrics=f"unix:{path}") as shell:
        assert shell.vm.config.metrics is not None
        status, body = await get(await trio.open_unix_socket(path), "Host: whatever\r\nConnection: close\r\n")
        assert status == 200
        assert "tvmm_machine_running" in body
        status, _ = await get(await trio.open_unix_socket(path), "Connection: close\r\n")
        assert status == 400
    assert not path.exists()


async def test_token(tmp_path: Path) -> None:
    """Who does not show it gets nothing."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    path = tmp_path / "metrics.sock"
    async with guest(metrics=f"unix:{path},token-file={file}"):
        assert (await get(await trio.open_unix_socket(path), CLOSE))[0] == 401
        shown = f"Authorization: Bearer {TOKEN}\r\n"
        assert (await get(await trio.open_unix_socket(path), CLOSE, shown))[0] == 200


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (f"{TOKEN}\n", 0o644, "others can read"),
        ("short\n", 0o600, "holds no token"),
        ("two words of enough length\n", 0o600, "holds no token"),
        ("ä" * 20, 0o600, "not ASCII"),
        (None, 0, "cannot read"),
    ],
)
async def test_bad_tokens(tmp_path: Path, content: str | None, mode: int, words: str) -> None:
    """One line that says what is wrong with the file."""
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
        os.chmod(file, mode)
    with pytest.raises(HostError, match=words):
        async with Machine(MachineConfig.parse(memory="64M", metrics=f"127.0.0.1:0,token-file={file}")):
            pass


async def test_port_in_use() -> None:
    """One line, before the guest runs."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=f"cannot listen at 127.0.0.1:{port} for metrics"):
            async with Machine(MachineConfig.parse(memory="64M", metrics=f"127.0.0.1:{port}")):
                pass


async def test_no_such_address() -> None:
    """Names and addresses that this host has not got."""
    for where in ("no.such.host.invalid:9100,insecure=on", "192.0.2.1:9100,insecure=on"):
        with pytest.raises(HostError, match=r"no address of this host|cannot listen"):
            async with Machine(MachineConfig.parse(memory="64M", metrics=where)):
                pass
