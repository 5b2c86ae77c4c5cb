"""What tests of networks share: a host in a namespace of its own, and journals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.net_state import need_programs, uplink
from tests.support.netns import network_namespace
from tvmm.net.network import take_down
from tvmm.net.store import Store


@pytest.fixture
def network_host() -> Iterator[None]:
    """A host with an uplink and the programs that networks need; nothing that is done reaches this one."""
    need_programs("nft", "dnsmasq")
    with network_namespace():
        uplink()
        yield


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Journals; networks that a failed test leaves are taken down."""
    found = Store(tmp_path / "net")
    yield found
    for name in found.names():
        take_down(name, found, force=True)
