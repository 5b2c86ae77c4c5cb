"""What is each clone's own: its number in names and options, and what two machines of one host cannot share.

In texts ``{n}`` stands for a clone's number, from 1 on, and ``{n:03}`` for the same with zeros in front.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from tvmm.config.names import NAME_LIMIT, check_name
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tvmm.config.disk import DiskConfig
    from tvmm.config.machine import MachineConfig
    from tvmm.config.net import NetConfig
    from tvmm.config.serial import SerialConfig

__all__ = ["MAX_CLONES", "check_together", "clone_names", "filled", "filled_options", "is_template"]

MAX_CLONES = 4096
"""Of one command: a slip of the finger is told before it forks."""

_NUMBER = re.compile(r"\{n(?::0?([1-9]))?\}")


def is_template(text: str) -> bool:
    """Whether `text` is another one for each clone."""
    return _NUMBER.search(text) is not None


def filled(text: str, number: int) -> str:
    """`text` with the clone's number where it belongs. All other braces stay as they are."""
    return _NUMBER.sub(lambda found: str(number).zfill(int(found[1] or 0)), text)


def filled_options(options: Mapping[str, object], number: int) -> dict[str, object]:
    """The same of every text among the values of `options`, lists included."""

    def fill(value: object) -> object:
        if isinstance(value, str):
            return filled(value, number)
        return [fill(part) for part in value] if isinstance(value, list | tuple) else value

    return {name: fill(value) for name, value in options.items()}


def clone_names(name: str, count: int) -> list[str]:
    """``web-1`` to ``web-N`` of ``web``, or what a template says. Raises `ConfigError`."""
    if not 1 <= count <= MAX_CLONES:
        raise ConfigError(f"{count} clones: there can be 1 to {MAX_CLONES} by one command", "choose another --clones")
    template = name if is_template(name) else f"{name}-{{n}}"
    names = [filled(template, number) for number in range(1, count + 1)]
    if len(names[-1]) > NAME_LIMIT:
        raise ConfigError(f"the name {names[-1]} is too long", f"{NAME_LIMIT} characters are the limit")
    for one in names:
        check_name(one)
    return names


class _Claim(NamedTuple):
    """Something of the host that one machine alone can have: `what` it is for, and what helps."""

    key: str
    what: str
    hint: str


def check_together(configs: Sequence[MachineConfig]) -> list[str]:
    """Whether machines of one snapshot can run beside one another: raises `ConfigError` for what they cannot share.

    Returns sentences about what they can share but better would not.
    """
    owners: dict[str, int] = {}
    for number, config in enumerate(configs, 1):
        for claim in _claims(config):
            if owners.setdefault(claim.key, number) != number:
                raise ConfigError(f"{claim.what} would be that of several clones", claim.hint)
    if len(configs) < 2:
        return []
    return [*_shared_segments(configs), *_copied_memory(configs[0])]


def _claims(config: MachineConfig) -> Iterator[_Claim]:
    if config.control:
        yield _Claim(f"path {config.control}", f"control socket {config.control}", "write --control PATH-{n}")
    yield from _line_claims(config.serial, "serial port", "write --serial none, or file=PATH-{n}")
    for console in config.consoles:
        for port in console.ports:
            yield from _line_claims(port.chardev, console.id or "console", "restore this machine by itself")
    if config.vnc is not None:
        address = config.vnc.address
        hint = "write --vnc :{n}, unix:PATH-{n} or none"
        yield from _address_claims("VNC server", address.host, address.port, address.path, hint)
    if config.metrics is not None:
        place = config.metrics.address
        hint = "write --metrics 127.0.0.1:91{n:02}, unix:PATH-{n} or none"
        yield from _address_claims("metrics endpoint", place.host, place.port, place.path, hint)
    for vsock in config.vsocks:
        yield _Claim(f"path {vsock.path}", f"vsock {vsock.path}", "write --vsock PATH-{n}, with its other options")
    for disk in config.disks:
        yield from _disk_claims(disk)
    for net in config.nets:
        yield from _net_claims(net)


def _line_claims(line: SerialConfig, what: str, hint: str) -> Iterator[_Claim]:
    if line.kind == "stdio":
        yield _Claim("terminal", f"{what} on the terminal", hint)
    if line.kind in ("file", "unix"):
        yield _Claim(f"path {line.path}", f"{what} {line.kind}={line.path}", hint)
    if line.kind == "tcp" and line.port:
        yield _Claim(f"port {line.port}", f"{what} tcp={line.host}:{line.port}", hint)
    if line.link:
        yield _Claim(f"path {line.link}", f"{what} pty,link={line.link}", hint)


def _address_claims(what: str, host: str, port: int, path: str, hint: str) -> Iterator[_Claim]:
    if path:
        yield _Claim(f"path {path}", f"{what} at unix:{path}", hint)
    elif port:
        yield _Claim(f"port {port}", f"{what} at {host}:{port}", hint)


def _disk_claims(disk: DiskConfig) -> Iterator[_Claim]:
    """Who only reads an image can share it with all others."""
    if not disk.readonly:
        yield _Claim(
            f"disk {disk.file}",
            f"{disk.id or 'disk'} {disk.file}, which the guest writes to,",
            "give each an image that is laid over it: --disk PATH-{n}.qcow2 (docs/clones.md), or readonly=on",
        )


def _net_claims(net: NetConfig) -> Iterator[_Claim]:
    hint = "--net with {n} in it gives each its own"
    if net.ifname:
        yield _Claim(f"interface {net.ifname}", f"{net.id or 'net'} with interface {net.ifname}", hint)
    if net.fd is not None:
        yield _Claim(f"descriptor {net.fd}", f"{net.id or 'net'} with fd={net.fd}", hint)
    if net.path:
        yield _Claim(f"path {net.path}", f"{net.id or 'net'} with path={net.path}", hint)
    for address in net.ip:
        yield _Claim(f"address {address}", f"{net.id or 'net'} with ip={address}", hint)
    for forward in net.hostfwd:
        key = f"port {forward.host_port}/{forward.protocol}"
        yield _Claim(key, f"{net.id or 'net'} with hostfwd={forward}", hint)


def _shared_segments(configs: Sequence[MachineConfig]) -> Iterator[str]:
    """The address of a network device is in the guest's state, and so the same in all clones."""
    for position, net in enumerate(configs[0].nets):
        others = [config.nets[position] for config in configs[1:]]
        segment = (net.br, net.network)
        if any(segment) and any((other.br, other.network) == segment for other in others):
            where = f"bridge {net.br}" if net.br else f"network {net.network}"
            yield (
                f"the guests on {where} have one MAC address, that of the snapshot, until they change it; "
                "a network of its own for each clone needs no change"
            )


def _copied_memory(config: MachineConfig) -> Iterator[str]:
    if config.memory.shared or config.memory.hugepages:
        option = "shared=on" if config.memory.shared else "hugepages"
        yield f"memory with {option} is copied for each clone: they share none of it"
