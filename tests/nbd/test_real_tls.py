"""TLS with the real servers: certificates on both sides, and what is said where one is not there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.support.nbd_programs import need
from tests.vnc.certificates import Certificate, make_certificate
from tvmm.errors import UserError
from tvmm.nbd.connect import RemoteServer
from tvmm.nbd.tls import Credentials
from tvmm.nbd.uri import NbdAddress


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    """Of localhost."""
    return make_certificate(tmp_path)


def command(program: str, folder: Path, *, verify: bool) -> list[str]:
    """A server with the certificates of a folder, at a socket in it."""
    (folder / "disk.img").write_bytes(bytes(1 << 20))
    if program == "nbdkit":
        words = ["--tls=require", f"--tls-certificates={folder}", *(["--tls-verify-peer"] if verify else [])]
        return ["nbdkit", "--foreground", "--unix", f"{folder}/s", *words, "file", f"{folder}/disk.img"]
    creds = f"tls-creds-x509,id=tls,endpoint=server,dir={folder},verify-peer={'on' if verify else 'off'}"
    words = ["qemu-nbd", "--object", creds, "--tls-creds", "tls", "-t", "-f", "raw"]
    return [*words, "-k", f"{folder}/s", f"{folder}/disk.img"]


@contextmanager
def running(words: list[str]) -> Iterator[None]:
    """Within the block."""
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def listening(path: Path) -> NbdAddress:
    """Its address, when it is there."""
    with trio.fail_after(20):
        while True:
            try:
                stream = await trio.open_unix_socket(path)
            except OSError:
                await trio.sleep(0.01)
            else:
                await stream.aclose()
                break
    return NbdAddress(path=str(path), tls=True)


@pytest.mark.parametrize("program", ["qemu-nbd", "nbdkit"])
async def test_without_a_certificate_of_ours(program: str, tmp_path: Path, certificate: Certificate) -> None:
    """The server's is checked; plain connections are refused with a hint."""
    need(program)
    with running(command(program, tmp_path, verify=False)):
        address = await listening(tmp_path / "s")
        connection = await RemoteServer(address, Credentials("localhost", str(certificate.authority))).connect()
        assert connection.export.size == 1 << 20
        connection.close()
        with pytest.raises(UserError, match="wants TLS; say tls=on"):
            await RemoteServer(address).connect()
        with pytest.raises(UserError, match="is not for 'elsewhere'"):
            await RemoteServer(address, Credentials("elsewhere", str(certificate.authority))).connect()


@pytest.mark.parametrize("program", ["qemu-nbd", "nbdkit"])
async def test_with_a_certificate_of_ours(program: str, tmp_path: Path, certificate: Certificate) -> None:
    """It is shown where it is wanted, and a server that wants one says so."""
    need(program)
    with running(command(program, tmp_path, verify=True)):
        address = await listening(tmp_path / "s")
        authority = str(certificate.authority)
        with pytest.raises(UserError, match=r"tls_cert=FILE and tls_key=FILE"):
            await RemoteServer(address, Credentials("localhost", authority)).connect()
