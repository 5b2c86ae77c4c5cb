"""Disks: what ``--disk`` takes, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.config.disk import DISK_PROPERTIES, DiskConfig
from tvmm.config.limits import NO_LIMITS
from tvmm.errors import ConfigError

DISKS = {
    "a.img": DiskConfig("a.img"),
    "file=a.img": DiskConfig("a.img"),
    "a,,bc.img,readonly=on": DiskConfig("a,bc.img", readonly=True),
    "file=a=b.img": DiskConfig("a=b.img"),
    "/dev/sdb,cache=none,aio=io_uring": DiskConfig("/dev/sdb", cache="none", aio="io_uring"),
    "a,direct=on,discard=ignore,locking=off": DiskConfig("a", direct=True, discard="ignore", locking=False),
    "a,queues=4,queue-size=1024,poll-us=0": DiskConfig("a", queues=4, queue_size=1024, poll_us=0),
    "a,serial=SN-1,id=root": DiskConfig("a", serial="SN-1", id="root"),
    "a,logical_block_size=4k,physical_block_size=4096,min_io_size=4k,opt_io_size=1M": DiskConfig(
        "a", logical_block_size=4096, physical_block_size=4096, min_io_size=4096, opt_io_size=1 << 20
    ),
    "a,werror=stop,rerror=ignore": DiskConfig("a", werror="stop", rerror="ignore"),
    "a,transport=mmio,packed=on,in_order=on,event_idx=off,indirect_desc=off": DiskConfig(
        "a", transport="mmio", packed=True, in_order=True, event_idx=False, indirect_desc=False
    ),
    "nbd://h:1/disk,connections=2,reconnect_delay=0": DiskConfig("nbd://h:1/disk", connections=2, reconnect_delay=0),
    "file=nbd+unix:///a?socket=/s,tls=on,tls_hostname=h,tls_ca=c,tls_cert=d,tls_key=e": DiskConfig(
        "nbd+unix:///a?socket=/s", tls=True, tls_hostname="h", tls_ca="c", tls_cert="d", tls_key="e"
    ),
    "nbd+unix:///a?socket=/s,readonly=on": DiskConfig("nbd+unix:///a?socket=/s", readonly=True),
    "nbds://h/,tls=on": DiskConfig("nbds://h/", tls=True),
    "a.qcow2,format=raw": DiskConfig("a.qcow2", format="raw"),
    "a.img,format=qcow2,connections=3": DiskConfig("a.img", format="qcow2", connections=3),
}

BAD_DISKS = {
    "": "disk is empty",
    "readonly=on": "disk needs file; write file=...: image, block device or NBD address",
    "file=": "disk needs file",
    "a,readonly": "disk option 'readonly' has no value",
    "a,readonly=perhaps": "disk property readonly 'perhaps' is neither on nor off",
    "a,cahce=none": "did you mean 'cache'",
    "a,cache=writethrough": "there are: none, writeback, unsafe",
    "a,aio=uring": "did you mean 'io_uring'",
    "a,queues=65": "from 0 to 64",
    "a,queue-size=100": "disk property queue-size 100 is not possible; it is a power of two, 16 to 32768",
    "a,queue-size=8": "from 16 to 32768",
    "a,queue-size=65536": "from 16 to 32768",
    "a,serial=123456789012345678901": "at most 20 printable ASCII",
    "a,serial=\xe9": "at most 20 printable ASCII",
    "a,serial=a\tb": "at most 20 printable ASCII",
    "a,logical_block_size=1000": "it is a power of two, 512 to 1M or 0",
    "a,logical_block_size=256": "it is a power of two, 512 to 1M or 0",
    "a,logical_block_size=2M": "out of range",
    "a,logical_block_size=4k,physical_block_size=512": "is less than logical_block_size 4096",
    "a,logical_block_size=4k,min_io_size=512": "min_io_size 512 is no multiple of the logical block size",
    "a,opt_io_size=1000": "opt_io_size 1000 is no multiple of the logical block size; that is 512 bytes",
    "a,discard=on": "there are: unmap, ignore",
    "a,werror=enospace": "did you mean 'enospc'",
    "a,rerror=enospc": "unknown disk property rerror 'enospc'",
    "a,transport=isa": "there are: pci, mmio",
    "a,poll-us=1001": "from 0 to 1000",
    "a,id=1st": "use a letter, then letters",
    "a,id=": "'' is no id",
    "nbd://": "names no host",
    "nbd+unix:///a": "names no socket",
    "nbd://h/,format=qcow2": "format qcow2 has no meaning for an NBD address",
    "a,format=qcow3": "there are: auto, raw, qcow2",
    "nbds://h/,tls=off": "is an address with TLS, and tls=off",
    "nbd://h/,tls_ca=a": "tls_ca is given, and no TLS",
    "nbds://h/,tls_key=a": "tls_key is given without tls_cert",
    "nbds+unix:///?socket=a": "say tls_hostname=NAME",
    "a,tls=on": "tls has no meaning for a file",
    "a,connections=2": "connections has no meaning for a file",
    "a,reconnect_delay=2": "reconnect_delay has no meaning for a file",
    "nbd://h/,connections=2,queues=4": "connections 2 is less than queues 4",
    "nbd://h/,connections=65": "from 0 to 64",
    "a\0b": "NUL",
    "a,,b,c": "unknown disk option 'c'",
}


@pytest.mark.parametrize(("text", "disk"), DISKS.items())
def test_disks(text: str, disk: DiskConfig) -> None:
    """Each spelling gives its record, and the record's spelling gives it again."""
    assert DiskConfig.parse(text) == disk
    assert DiskConfig.parse(disk.spelling()) == disk


@pytest.mark.parametrize(("text", "complaint"), BAD_DISKS.items())
def test_bad_disks(text: str, complaint: str) -> None:
    """Each mistake is told in one line that says what is possible."""
    with pytest.raises(ConfigError) as caught:
        DiskConfig.parse(text)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("disk", "complaint"),
    [
        (DiskConfig(""), "needs file"),
        (DiskConfig("a\0"), "NUL"),
        (DiskConfig("a", queues=True), "queues True is no integer"),
        (DiskConfig("a", readonly=1), "readonly 1 is no boolean"),  # type: ignore[arg-type]
        (DiskConfig("a", cache="none "), "did you mean 'none'"),
        (DiskConfig("a", queue_size=100), "power of two"),
        (DiskConfig("a", id="a b"), "no id"),
        (DiskConfig("a", direct="on"), "direct 'on' is no boolean"),  # type: ignore[arg-type]
    ],
)
def test_disks_made_by_hand_are_checked(disk: DiskConfig, complaint: str) -> None:
    """check() holds a record from a program to the same ranges."""
    with pytest.raises(ConfigError, match=complaint):
        disk.check()


@pytest.mark.parametrize(
    ("text", "direct"),
    [("a", False), ("a,cache=none", True), ("a,cache=none,direct=off", False), ("a,cache=unsafe,direct=on", True)],
)
def test_direct_follows_the_cache(text: str, direct: bool) -> None:
    """cache=none goes past the page cache unless direct= says otherwise."""
    assert DiskConfig.parse(text).o_direct is direct


def test_each_field_is_a_property() -> None:
    """The table has the fields of the record, in their order, with their defaults."""
    plain = [prop for prop in DISK_PROPERTIES if not prop.attribute.startswith("limits.")]
    assert (*(prop.attribute for prop in plain), "limits") == DiskConfig._fields
    defaults = {prop.attribute: prop.default for prop in plain if not prop.required}
    assert {**defaults, "limits": NO_LIMITS} == DiskConfig._field_defaults


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from([prop.name for prop in DISK_PROPERTIES]), unique=True, max_size=4), st.data())
def test_any_value_is_a_disk_or_a_config_error(names: list[str], data: st.DataObject) -> None:
    """No values get another exception out of the parser; those that it takes can be spelled."""
    words = st.sampled_from(["on", "off", "0", "1", "512", "4k", "none", "stop", "a,,b", "", "\0", "é", "pci", "-1"])
    text = ",".join(["x.img", *(f"{name}={data.draw(words)}" for name in names if name != "file")])
    complaint = ""
    try:
        disk = DiskConfig.parse(text)
    except ConfigError as error:
        complaint = str(error)
    else:
        assert DiskConfig.parse(disk.spelling()) == disk
    assert "\n" not in complaint


FORMATS = {
    "a.img": "raw",
    "a": "raw",
    "a.raw": "raw",
    "a.QCOW2": "qcow2",
    "b.vmdk": "vmdk",
    "b.vhdx": "vhdx",
    "b.vhd": "vpc",
    "a.qcow2.img": "raw",
    "nbd://h/a.qcow2": "raw",
    "b.vdi,format=raw": "raw",
    "b.img,format=qed": "qed",
}


@pytest.mark.parametrize("text", FORMATS)
def test_formats(text: str) -> None:
    """By the option, or the end of the name."""
    assert DiskConfig.parse(text).image_format == FORMATS[text]
