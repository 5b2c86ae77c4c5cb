"""QEMU's VNC server with a machine that does not run: a screen that is known and stays, to try viewers against."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.vnc.certificates import make_certificate
from tests.vnc.viewers import Target, opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from PIL.Image import Image

__all__ = ["MISSING", "SECURITIES", "qemu_screen"]

MISSING = "" if shutil.which("qemu-system-x86_64") else "not here: qemu-system-x86_64"

SECURITIES = ("none", "vnc", "tls-none", "tls-vnc", "x509-none", "x509-vnc")
"""What QEMU offers without SASL."""

PASSWORD = "sesame"


@contextmanager
def qemu_screen(folder: Path, security: str = "none") -> Iterator[tuple[Target, Image]]:
    """A server that asks for `security`, and the picture that it has, as it says itself."""
    options = ["127.0.0.1:0,to=300"]
    objects: list[str] = []
    authority = None
    if security.endswith("vnc"):
        objects.append(f"secret,id=secret,data={PASSWORD}")
        options.append("password-secret=secret")
    if security.startswith("x509"):
        authority = make_certificate(folder).authority
        objects.append(f"tls-creds-x509,id=tls,dir={folder},endpoint=server,verify-peer=off")
        options.append("tls-creds=tls")
    elif security.startswith("tls"):
        objects.append("tls-creds-anon,id=tls,endpoint=server")
        options.append("tls-creds=tls")
    command = ["qemu-system-x86_64", "-S", "-nodefaults", "-vga", "std", "-accel", "tcg", "-qmp", "stdio"]
    for each in objects:
        command += ["-object", each]
    command += ["-display", "none", "-vnc", ",".join(options)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        try:
            assert qemu.stdout
            qemu.stdout.readline()
            ask(qemu, "qmp_capabilities")
            port = int(ask(qemu, "query-vnc")["service"])
            dump = folder / "screen.ppm"
            ask(qemu, "screendump", filename=str(dump))
            password = PASSWORD if security.endswith("vnc") else ""
            yield Target("localhost", port, password=password, authority=authority), opened(dump.read_bytes())
        finally:
            qemu.kill()


def ask(qemu: subprocess.Popen[str], verb: str, **arguments: object) -> Any:
    """What a QMP command returns."""
    assert qemu.stdin
    assert qemu.stdout
    print(json.dumps({"execute": verb, "arguments": arguments}), file=qemu.stdin, flush=True)
    for line in qemu.stdout:
        answer = json.loads(line)
        if "error" in answer:
            raise AssertionError(answer["error"])
        if "return" in answer:
            return answer["return"]
    raise AssertionError("QEMU has ended")
