"""Doing the steps of a network, and undoing them. All of it blocks.

Undoing is for what is there: something that was never done, or that somebody has undone or changed since, is no error.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from select import poll
from typing import TYPE_CHECKING

from tvmm.control.directory import make_own
from tvmm.errors import HostError
from tvmm.net.host import NFT_SECONDS, nft
from tvmm.net.links import Links
from tvmm.net.steps import (
    LoadTable,
    MakeBridge,
    MakeFiles,
    RemoveBridge,
    RemoveFiles,
    RemoveTable,
    RestoreSettings,
    WriteSettings,
)

if TYPE_CHECKING:
    from tvmm.net.steps import Action, Undo

__all__ = ["bridge_is_there", "dnsmasq_pids", "do", "table_is_there", "undo"]

DNSMASQ_SECONDS = 30.0
STOP_SECONDS, KILL_SECONDS = 5.0, 5.0
CMDLINE_LIMIT = 4096
"""Bytes of another process's command line that are looked at."""


def do(action: Action, held: int) -> None:
    """One step. Raises `HostError`. Programs that it starts have descriptor `held`, so that its lock outlives us."""
    if isinstance(action, LoadTable):
        _nft("load the rules", held, "-f", "-", given=action.ruleset)
    elif isinstance(action, MakeFiles):
        _make_files(action)
    elif isinstance(action, MakeBridge):
        _make_bridge(action)
    elif isinstance(action, WriteSettings):
        for path, value in action.values:
            _write(path, value)
    else:
        _start_dnsmasq(action.program, action.conf, held)


def undo(step: Undo, held: int) -> None:
    """Undo one step, or what there is of it. Raises `HostError` if it is there and cannot be undone."""
    if isinstance(step, RemoveTable):
        if table_is_there(step):
            _nft(f"remove table {step.name}", held, "delete", "table", "inet", step.name)
    elif isinstance(step, RemoveFiles):
        _remove_files(step)
    elif isinstance(step, RemoveBridge):
        with Links() as links:
            link = links.find(step.name)
            if link is not None and link.kind == "bridge" and link.mac == step.mac:
                links.delete(link)
    elif isinstance(step, RestoreSettings):
        _restore(step)
    else:
        _stop_dnsmasq(step.conf)


# --- the firewall ---


def _nft(what: str, held: int | None, *words: str, given: str = "") -> str:
    try:
        done = subprocess.run(
            [nft(), *words], input=given, capture_output=True, text=True, timeout=NFT_SECONDS, check=False,
            pass_fds=() if held is None else (held,),
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"cannot {what}: nft: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        why = lines[0].removeprefix("/dev/stdin:") if lines else f"status {done.returncode}"
        hint = "the kernel has no nftables: 'sudo modprobe nf_tables'" if "not supported" in why else ""
        if "File exists" in why:
            hint = f"'sudo nft list ruleset' shows it; 'sudo nft delete {given.splitlines()[0].partition(' ')[2]}'"
        raise HostError(f"cannot {what}: nft says: {why}", hint)
    return done.stdout


def table_is_there(step: RemoveTable) -> bool:
    """Whether there is a table of this name that is ours."""
    if f"table inet {step.name}\n" not in _nft("list the tables", None, "list", "tables", "inet"):
        return False
    return f'"{step.mark}"' in _nft(f"list table {step.name}", None, "list", "table", "inet", step.name)


# --- the bridge, and settings ---


def _make_bridge(action: MakeBridge) -> None:
    with Links() as links:
        link = links.make_bridge(action.name, action.mac)
        if action.mtu:
            links.change(link, f"set the MTU of {link.name} to {action.mtu}", mtu=action.mtu)
        links.change(link, f"name the owner of {link.name}", ifalias=action.alias)
        conf = f"/proc/sys/net/ipv6/conf/{link.name}"
        if os.path.isdir(conf):
            _write(f"{conf}/disable_ipv6", str(int(not action.ipv6)))
            # Guests are not to tell the host its way out.
            _write(f"{conf}/accept_ra", "0")
            # No address of the kernel's own making beside those that are given.
            _write(f"{conf}/addr_gen_mode", "1")
        for address in action.addresses:
            # Nobody is there to be asked, and without anybody there the kernel would wait for ever.
            links.address(link, "add", address, at_once=":" in address)
        links.change(link, f"bring {link.name} up", state="up")


def bridge_is_there(step: RemoveBridge) -> bool:
    """Whether there is a bridge of this name that is ours."""
    with Links() as links:
        link = links.find(step.name)
    return link is not None and link.kind == "bridge" and link.mac == step.mac


def _write(path: str, value: str) -> None:
    try:
        # No file is to be made where a link is gone.
        with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "w") as file:
            file.write(value)
    except OSError as error:
        raise HostError(f"cannot write {value} to {path}: {error.strerror}") from error


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _restore(step: RestoreSettings) -> None:
    """The first setting, and then what has changed with it."""
    path, ours = step.ours[0]
    if _read(path) != ours:
        # It was never written, or somebody has changed it since, who knows what it is to be.
        return
    for name, value in step.before:
        if _read(name) not in (None, value):
            with suppress(HostError):
                _write(name, value)
    if _read(path) != dict(step.before)[path]:
        raise HostError(f"cannot restore {path}", "it takes root")


# --- dnsmasq and its files ---


def _make_files(action: MakeFiles) -> None:
    make_own(Path(action.directory))
    for name, text in action.files:
        path = f"{action.directory}/{name}"
        try:
            # Anything of that name is a leftover, in a directory that is this user's alone.
            with suppress(FileNotFoundError):
                os.unlink(path)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                file.write(text)
        except OSError as error:
            raise HostError(f"cannot write {path}: {error.strerror}") from error


def _remove_files(step: RemoveFiles) -> None:
    for name in step.names:
        with suppress(FileNotFoundError):
            os.unlink(f"{step.directory}/{name}")
    try:
        os.rmdir(step.directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"cannot remove {step.directory}: {error.strerror}", "see what is in it") from error


def _start_dnsmasq(program: str, conf: str, held: int) -> None:
    """It says what keeps it from starting before it goes into the background."""
    try:
        done = subprocess.run(
            [program, f"--conf-file={conf}"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=DNSMASQ_SECONDS, check=False, pass_fds=(held,), cwd="/",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"cannot start dnsmasq: {error}") from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        hint = "'--no-dhcp' does without it"
        if "in use" in said:
            hint = f"another server has that port on all addresses ('sudo ss -lunp' shows it): stop it, or {hint}"
        raise HostError(f"dnsmasq did not start: {said.removeprefix('dnsmasq: ')}", hint)


def dnsmasq_pids(conf: str) -> list[int]:
    """The processes that were started with this file, and still run."""
    wanted = f"--conf-file={conf}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read(CMDLINE_LIMIT).split(b"\0")
                if wanted in words[1:] and words[0].endswith(b"dnsmasq"):
                    found.append(int(name))
    return sorted(found)


def _stop_dnsmasq(conf: str) -> None:
    # One that was just about to start finds no file, and ends by itself.
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(conf)
    # One that goes into the background is two for a moment.
    while pids := dnsmasq_pids(conf):
        for pid in pids:
            _end(pid, conf)


def _end(pid: int, conf: str) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # The number may be another process's by now.
        if pid not in dnsmasq_pids(conf):
            return
        end = poll()
        end.register(process)
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
            try:
                signal.pidfd_send_signal(process, number)
            except ProcessLookupError:
                return
            if end.poll(seconds * 1000):
                return
        raise HostError(f"dnsmasq (process {pid}) does not end", f"'sudo kill -9 {pid}'")
    except PermissionError as error:
        raise HostError(f"cannot stop dnsmasq (process {pid}): {error.strerror}") from error
    finally:
        os.close(process)
