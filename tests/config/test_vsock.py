"""``--vsock`` and ``--device virtio-vsock``."""

from __future__ import annotations

import pytest

from tvmm.config.file import options_from_toml
from tvmm.config.machine import MachineConfig
from tvmm.config.vsock import PATH_LIMIT, VsockConfig, port_path
from tvmm.errors import ConfigError


@pytest.mark.parametrize(
    "options",
    [
        {"vsock": "/run/v.sock,cid=9,queue-size=64"},
        {"vsock": "path=/run/v.sock,guest-cid=9,queue-size=64"},
        {"device": "virtio-vsock,path=/run/v.sock,guest-cid=9,queue-size=64"},
        {"device": "vhost-vsock-pci,path=/run/v.sock,guest-cid=9,queue-size=64"},
    ],
)
def test_ways_to_say_it(options: dict[str, str]) -> None:
    """All end in the same record."""
    config = MachineConfig.parse(**options)
    assert config.vsocks == (VsockConfig("/run/v.sock", "vsock0", 9, 64),)
    assert MachineConfig.parse(device=config.vsocks[0].spelling()) == config


def test_defaults() -> None:
    """The first address that a guest can have, on PCI."""
    (vsock,) = MachineConfig.parse(vsock="v").vsocks
    assert (vsock.guest_cid, vsock.transport, vsock.queue_size, vsock.poll_us) == (3, "pci", 256, 32)


def test_from_a_file() -> None:
    """As a value or as a table."""
    for text in ('vsock = "/run/v,cid=5"', '[vsock]\npath = "/run/v"\ncid = 5'):
        (vsock,) = MachineConfig.from_options(options_from_toml(text, "a.toml")).vsocks
        assert (vsock.path, vsock.guest_cid) == ("/run/v", 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vsock": "v,cid=2"}, "cid 2 is"),
        ({"vsock": "v,cid=4294967295"}, "cid 4294967295 is"),
        ({"vsock": "v,cid=x"}, "cid"),
        ({"vsock": "v,port=2"}, "port"),
        ({"device": "virtio-vsock"}, "needs path"),
        ({"device": "virtio-vsock,path=v,cid=4"}, "cid"),
        ({"vsock": "v" * (PATH_LIMIT + 1)}, "too long for a socket"),
        ({"vsock": "v", "device": "virtio-vsock,path=w"}, "one virtio-vsock at most"),
        ({"vsock": "v", "serial": "unix=v"}, "want the path 'v'"),
        ({"vsock": "v", "control": "v"}, "want the path 'v'"),
        ({"vsock": "v,id=disk0", "disk": "a.img"}, "two devices have the id 'disk0'"),
    ],
)
def test_bad_values(options: dict[str, str], message: str) -> None:
    """One line that names the option."""
    with pytest.raises(ConfigError, match=message) as caught:
        MachineConfig.parse(**options)
    assert "\n" not in str(caught.value)


def test_paths_of_ports() -> None:
    """As Firecracker has them; the longest fits a socket."""
    assert port_path("/run/v", 80) == "/run/v_80"
    assert len(port_path("v" * PATH_LIMIT, 0xFFFFFFFF)) == 107
