"""``--device virtio-balloon``: spelling, QEMU's names, what it does not go with."""

from __future__ import annotations

import pytest

from tvmm import MachineConfig
from tvmm.config.balloon import BalloonConfig
from tvmm.errors import ConfigError

FULL = (
    "virtio-balloon,id=b,deflate-on-oom=on,free-page-hint=on,free-page-reporting=on,"
    "guest-stats-polling-interval=2,transport=mmio"
)


def test_spelling() -> None:
    """What is written is what is read, and defaults are left out."""
    config = BalloonConfig.parse(FULL)
    assert config == BalloonConfig("b", True, True, True, 2, "mmio")
    assert config.spelling() == FULL
    assert BalloonConfig.parse("virtio-balloon").spelling() == "virtio-balloon"


@pytest.mark.parametrize(("name", "transport"), [("virtio-balloon-pci", "pci"), ("virtio-balloon-device", "mmio")])
def test_names_of_qemu(name: str, transport: str) -> None:
    """They say how the guest finds it, and it gets its id by position."""
    (balloon,) = MachineConfig.parse(device=[f"{name},deflate-on-oom=on"]).balloons
    assert balloon == BalloonConfig("balloon0", True, transport=transport)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": ["virtio-balloon", "virtio-balloon-pci"]}, "one virtio-balloon at most; leave out all but one"),
        ({"device": ["virtio-balloon"], "memory": "64M,hugepages=on"}, "parts of huge pages of 2M"),
        ({"device": ["virtio-balloon,free-page-reporting=on"], "memory": "64M,prealloc=on"}, "prealloc=on"),
        ({"device": ["virtio-balloon"], "memory": str((1 << 44) + (1 << 20))}, "16T of memory at most"),
        ({"device": ["virtio-balloon,deflate-on-oom=maybe"]}, "deflate-on-oom"),
        ({"device": ["virtio-balloon,deflate=on"]}, "deflate-on-oom"),
        ({"device": ["virtio-balloon,guest-stats-polling-interval=-1"]}, "guest-stats-polling-interval"),
        ({"device": ["virtio-balloon,id=7"]}, "no id"),
        ({"device": ["virtio-balloon,id=x", "virtio-rng,id=x"]}, "two devices have the id 'x'"),
    ],
)
def test_what_does_not_go(options: dict[str, object], words: str) -> None:
    """One sentence each, and what to do."""
    with pytest.raises(ConfigError, match=words):
        MachineConfig.parse(**options)  # type: ignore[arg-type]


def test_what_goes() -> None:
    """Memory that is allocated in advance, as long as only the user takes it away; memory that others can map."""
    for memory in ("64M,prealloc=on", "64M,shared=on"):
        assert MachineConfig.parse(memory=memory, device=["virtio-balloon"]).balloons
