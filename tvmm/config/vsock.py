"""``--vsock PATH[,cid=N]``, or ``--device virtio-vsock,path=PATH,guest-cid=N``: sockets between guest and host."""

from __future__ import annotations

from typing import NamedTuple

from tvmm.config.properties import (
    ID,
    POLL,
    QUEUE_SIZE,
    RING,
    Property,
    check_values,
    parse_values,
    spell_device,
    spelled,
    with_defaults,
)
from tvmm.errors import ConfigError

__all__ = ["VSOCK_OPTIONS", "VSOCK_PROPERTIES", "VsockConfig", "port_path"]

MIN_CID, MAX_CID = 3, 0xFFFF_FFFE
PATH_LIMIT = 107 - len("_4294967295")
"""Bytes that a unix socket's path may have, with the longest port behind it."""


class VsockConfig(NamedTuple):
    """A socket device: the guest is `guest_cid`, and programs on the host connect to the unix socket `path`.

    The guest's connections to the host's port N go to ``path_N``. `id` is '' until `MachineConfig.check` gives it.
    """

    path: str
    id: str = ""
    guest_cid: int = MIN_CID
    queue_size: int = 256
    transport: str = "pci"
    packed: bool = False
    in_order: bool = False
    event_idx: bool = True
    indirect_desc: bool = True
    poll_us: int = 32

    @classmethod
    def parse(cls, text: str) -> VsockConfig:
        """From the value of ``--vsock``. Raises `ConfigError`."""
        return cls(**parse_values(text, "vsock", VSOCK_OPTIONS, first="path")).check()

    def check(self) -> VsockConfig:
        """The same record, if its fields are in range; raises `ConfigError` otherwise."""
        check_values(self, "virtio-vsock", VSOCK_PROPERTIES)
        if len(self.path.encode("utf-8", "surrogateescape")) > PATH_LIMIT:
            raise ConfigError(
                f"vsock path {self.path!r} is too long for a socket",
                f"{PATH_LIMIT} bytes are the limit, because {self.path.rpartition('/')[2][:16]}_PORT are sockets too",
            )
        return self

    def spelling(self) -> str:
        """The value of ``--device`` that gives this record, without options that have their default."""
        return spell_device("virtio-vsock", spelled(self, VSOCK_PROPERTIES))


def port_path(path: str, port: int) -> str:
    """Where the guest's connections to the host's `port` go."""
    return f"{path}_{port}"


_CID = Property("guest-cid", "integer", None, "the guest's address", MIN_CID, MAX_CID, field="guest_cid")
VSOCK_PROPERTIES = with_defaults(
    VsockConfig,
    Property("path", "text", None, "unix socket for programs on the host; PATH_PORT are those for the guest's"),
    ID,
    _CID,
    QUEUE_SIZE,
    POLL,
    *RING,
)
"""What ``--device virtio-vsock`` takes."""

VSOCK_OPTIONS = (
    *(prop for prop in VSOCK_PROPERTIES if prop.name != "guest-cid"),
    *with_defaults(VsockConfig, _CID._replace(name="cid"), _CID._replace(meaning="the same as cid")),
)
"""What ``--vsock`` takes."""
