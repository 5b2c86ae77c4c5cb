"""Rate limits as options: names, units, what goes together, and what an error says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.config.disk import DiskConfig
from tvmm.config.limits import DISK_WORDS, NET_WORDS, NO_LIMITS, Limits, Rate, change_limits, limit_properties
from tvmm.config.net import NetConfig
from tvmm.config.virtio_types import parse_devices
from tvmm.errors import ConfigError

MIB = 1 << 20

GOOD = {
    "bps=10M": Limits(bytes=Rate(10 * MIB)),
    "bps_rd=1M,bps_wr=512k": Limits(bytes_in=Rate(MIB), bytes_out=Rate(MIB // 2)),
    "iops=100,bps_rd=1M": Limits(operations=Rate(100), bytes_in=Rate(MIB)),
    "iops_rd=10,iops_wr=20": Limits(operations_in=Rate(10), operations_out=Rate(20)),
    "bps=1M,bps_max=2M": Limits(bytes=Rate(MIB, 2 * MIB)),
    "iops=100,iops_max=2000,iops_max_length=60": Limits(operations=Rate(100, 2000, 60)),
    "iops_wr=5,iops_size=4k": Limits(operations_out=Rate(5), size=4096),
    "bps=0,iops=0": NO_LIMITS,
    "throttling.bps-total=1M,throttling.iops-read=7": Limits(bytes=Rate(MIB), operations_in=Rate(7)),
    "throttling.bps-write=1M,throttling.bps-write-max=3M,throttling.bps-write-max-length=4": Limits(
        bytes_out=Rate(MIB, 3 * MIB, 4)
    ),
    "throttling.iops-total=1,throttling.iops-size=512": Limits(operations=Rate(1), size=512),
}

BAD = {
    "bps=-1": "negative",
    "bps=fast": "not a size",
    "iops=1k": "not a whole number",
    "iops=-5": "out of range",
    "bps=1025T": "from 0 to",
    "iops=1000000001": "from 0 to 1000000000",
    "bps=1M,bps_rd=1M": "bps and bps_rd do not go together; limit both together by bps",
    "iops=1,iops_wr=1": "iops and iops_wr do not go together",
    "bps_max=1M": "bps_max has no bps to go with; add bps=RATE",
    "iops_rd=5,iops_max=5": "iops_max has no iops to go with",
    "bps=2M,bps_max=1M": "bps_max 1048576 is less than bps 2097152",
    "iops=5,iops_max_length=2": "iops_max_length has no iops_max to go with",
    "iops=5,iops_max=10,iops_max_length=0": "from 1 to",
    "bps=1,bps_max=512T,bps_max_length=2": "a burst has 1000000000000000 at most",
    "iops_size=4k": "iops_size has no iops to go with",
    "bps=1M,iops_size=4k": "iops_size has no iops to go with",
    "bps=1M,throttling.bps-total=1M": "given twice",
    "bps_rx=1M": "unknown disk option 'bps_rx'; did you mean",
    "pps=1": "unknown disk option 'pps'",
}


@pytest.mark.parametrize(("text", "limits"), GOOD.items())
def test_disk(text: str, limits: Limits) -> None:
    """What is written is what is meant, under QEMU's names of both kinds, and it can be spelled."""
    disk = DiskConfig.parse(f"a.img,{text}")
    assert disk.limits == limits
    assert DiskConfig.parse(disk.spelling()) == disk
    assert parse_devices([f"virtio-blk-pci,file=a.img,{text}"]).disks[0].limits == limits


@pytest.mark.parametrize(("text", "complaint"), BAD.items())
def test_bad_disk(text: str, complaint: str) -> None:
    """One line that names the option."""
    with pytest.raises(ConfigError) as caught:
        DiskConfig.parse(f"a.img,{text}")
    assert complaint in str(caught.value)


def test_net() -> None:
    """Frames in place of requests; sizes of them are not counted."""
    net = NetConfig.parse("tap,bps_rx=10M,bps_tx=1M,pps=1000,pps_max=5000")
    assert net.limits == Limits(
        bytes_in=Rate(10 * MIB), bytes_out=Rate(MIB), operations=Rate(1000, 5000)
    )
    assert NetConfig.parse(net.spelling()) == net
    for bad in ("pps_size=4k", "iops=5", "bps_rd=5", "throttling.bps-total=5"):
        with pytest.raises(ConfigError, match="unknown net option"):
            NetConfig.parse(f"tap,{bad}")
    with pytest.raises(ConfigError, match="net pps and pps_tx do not go together"):
        NetConfig.parse("tap,pps=1,pps_tx=1")


def test_by_hand() -> None:
    """A record that somebody has made is looked at, too."""
    for limits in (
        Limits(bytes=Rate(-1)),
        Limits(bytes=Rate(1 << 60)),
        Limits(operations=Rate(5, 4)),
        Limits(bytes=Rate(True)),
        Limits(bytes=Rate(5, 5, 0)),
        Limits(bytes=Rate("5")),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError):
            DiskConfig("a.img", limits=limits).check()


def test_changing_some() -> None:
    """What is not named stays; what comes out has to go together; an error changes nothing."""
    limits = change_limits(NO_LIMITS, {"bps": "10M", "iops": 100}, "disk0", DISK_WORDS)
    assert limits == Limits(bytes=Rate(10 * MIB), operations=Rate(100))
    limits = change_limits(limits, {"iops": 0, "throttling.iops-read": "5"}, "disk0", DISK_WORDS)
    assert limits == Limits(bytes=Rate(10 * MIB), operations_in=Rate(5))
    assert limits.spelled(DISK_WORDS)["iops_rd"] == 5
    assert change_limits(NO_LIMITS, limits.spelled(DISK_WORDS), "disk0", DISK_WORDS) == limits
    with pytest.raises(ConfigError, match="disk0 bps and bps_wr do not go together"):
        change_limits(limits, {"bps_wr": 1}, "disk0", DISK_WORDS)
    with pytest.raises(ConfigError, match="unknown limit of net0 'bps_rd'; did you mean"):
        change_limits(limits, {"bps_rd": 1}, "net0", NET_WORDS)
    with pytest.raises(ConfigError, match="bps"):
        change_limits(limits, {"bps": -1}, "disk0", DISK_WORDS)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from((DISK_WORDS, NET_WORDS)).flatmap(
        lambda words: st.tuples(
            st.just(words),
            st.dictionaries(
                st.sampled_from([prop.name for prop in limit_properties(words)]),
                st.sampled_from((0, 1, 2, 100, 1 << 31, 10**9, 1 << 49, 1 << 50)),
                max_size=5,
            ),
        )
    )
)
def test_any_numbers(case: tuple[object, dict[str, int]]) -> None:
    """They are refused by `ConfigError`, or say the same when they are spelled."""
    words, values = case
    assert words in (DISK_WORDS, NET_WORDS)
    words = DISK_WORDS if words == DISK_WORDS else NET_WORDS
    try:
        limits = change_limits(NO_LIMITS, values, "one", words)
    except ConfigError:
        return
    spelled = limits.spelled(words)
    assert {name: spelled[name] for name in values} == values
