"""Memory, processors, kernel, serial port and devices: each group by itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.config.cpu import MAX_CPUS, CpuConfig
from tvmm.config.device import (
    DEVICE_TYPES,
    DeviceConfig,
    device_type,
    help_request,
    help_text,
)
from tvmm.config.kernel import KernelConfig
from tvmm.config.memory import MINIMUM_BYTES, MemoryConfig
from tvmm.config.properties import Property
from tvmm.config.serial import SerialConfig
from tvmm.errors import ConfigError, HostError

MIB, GIB = 1 << 20, 1 << 30

MEMORY = {
    "256M": MemoryConfig(256 * MIB),
    "size=256M": MemoryConfig(256 * MIB),
    "1.5G": MemoryConfig(1536 * MIB),
    "1G,hugepages=on": MemoryConfig(GIB, hugepages=2 * MIB),
    "1G,hugepages=2M": MemoryConfig(GIB, hugepages=2 * MIB),
    "2G,hugepages=1G": MemoryConfig(2 * GIB, hugepages=GIB),
    "1G,hugepages=off": MemoryConfig(GIB),
    "1G,prealloc=on,shared=on": MemoryConfig(GIB, prealloc=True, shared=True),
    "prealloc=yes": MemoryConfig(prealloc=True),
    "1G,dirty-ring=4096": MemoryConfig(GIB, dirty_ring=4096),
    "dirty-ring=0": MemoryConfig(),
    "2M": MemoryConfig(MINIMUM_BYTES),
}

BAD_MEMORY = {
    "0": "too small",
    "1M": "at least 2M",
    "2097153": "not a multiple of the page size 4k; the next one is 2052k",
    "-1G": "negative",
    "lots": "not a size",
    "": "memory is empty",
    "3M,hugepages=on": "not a multiple of the page size 2M; the next one is 4M",
    "1536M,hugepages=1G": "the next one is 2G",
    "1G,hugepages=4k": "no huge pages of 4k",
    "1G,hugepages=perhaps": "hugepages=on, off, 2M or 1G",
    "1G,prealoc=on": "did you mean 'prealloc'",
    "1G,prealloc=2": "neither on nor off",
    "dirty-ring=512": "a power of two from 1024 to 65536",
    "dirty-ring=131072": "a power of two from 1024 to 65536",
    "dirty-ring=5000": "a power of two from 1024 to 65536",
    "dirty-ring=4k": "no number of entries",
}


@pytest.mark.parametrize(("text", "config"), MEMORY.items())
def test_memory(text: str, config: MemoryConfig) -> None:
    """The spellings of --memory give the record they say."""
    assert MemoryConfig.parse(text) == config


@pytest.mark.parametrize(("text", "complaint"), BAD_MEMORY.items())
def test_bad_memory(text: str, complaint: str) -> None:
    """Each bad size or option is refused with the fact and what to write."""
    with pytest.raises(ConfigError) as caught:
        MemoryConfig.parse(text)
    assert complaint in str(caught.value)


def test_memory_from_a_number_of_bytes() -> None:
    """An int is bytes and is checked like text."""
    assert MemoryConfig.parse(64 * MIB).size == 64 * MIB
    with pytest.raises(ConfigError, match="too small"):
        MemoryConfig.parse(4096)


def test_a_record_made_by_hand_is_checked_too() -> None:
    """check() refuses huge pages that do not exist."""
    with pytest.raises(ConfigError, match="no huge pages of 64k"):
        MemoryConfig(GIB, hugepages=64 << 10).check()


@pytest.mark.parametrize(
    ("text", "total", "available", "huge", "complaint"),
    [
        ("1G", 4 * GIB, 0, 0, ""),
        ("1G", GIB, 0, 0, ""),
        ("2G", GIB, 512 * MIB, 0, "more than the host's 1024M; give the machine less, e.g. --memory 256M"),
        ("1G,prealloc=on", 4 * GIB, 2 * GIB, 0, ""),
        ("1G,prealloc=on", 4 * GIB, 512 * MIB, 0, "cannot be allocated in advance: 512M are available"),
        ("1G,hugepages=on", 4 * GIB, 0, 512, ""),
        ("1G,hugepages=on", 4 * GIB, 4 * GIB, 511, "needs 512 huge pages of 2M, the host has 511 free"),
        ("1G,hugepages=1G", 4 * GIB, 4 * GIB, 0, "hugepages-1048576kB"),
    ],
)
def test_memory_against_the_host(text: str, total: int, available: int, huge: int, complaint: str) -> None:
    """A host that cannot carry the machine is named with its numbers; one that can is silent."""
    config = MemoryConfig.parse(text)
    if not complaint:
        config.check_host(total, available, huge)
        return
    with pytest.raises(HostError) as caught:
        config.check_host(total, available, huge)
    assert complaint in str(caught.value)


CPUS: dict[tuple[str | int, str], CpuConfig] = {
    (1, "host"): CpuConfig(),
    ("4", "max"): CpuConfig(4, "max"),
    ("254", "minimal"): CpuConfig(254, "minimal"),
    ("2", "host,-avx2,+x2apic"): CpuConfig(2, "host", (("avx2", False), ("x2apic", True))),
    ("2", "host,AVX2=off,sse4.1=on"): CpuConfig(2, "host", (("avx2", False), ("sse4.1", True))),
    ("2", "host,-avx2,avx2=off"): CpuConfig(2, "host", (("avx2", False),)),
}

BAD_CPUS: dict[tuple[str | int, str], str] = {
    ("0", "host"): "number of cpus 0 is out of range; it goes from 1 to 254",
    (10000, "host"): f"from 1 to {MAX_CPUS}",
    ("-1", "host"): "out of range",
    ("two", "host"): "not a whole number",
    ("1.5", "host"): "not a whole number",
    ("1", "hots"): "did you mean 'host'",
    ("1", ""): "there are: host, max, minimal",
    ("1", "host,avx2"): "write +avx2 or -avx2",
    ("1", "host,"): "empty feature",
    ("1", "host,+"): "not a name",
    ("1", "host,+a b"): "not a name",
    ("1", "host,avx2=maybe"): "neither on nor off",
    ("1", "host,+avx2,-avx2"): "both on and off",
}


@pytest.mark.parametrize(("given_values", "config"), CPUS.items())
def test_cpus(given_values: tuple[str | int, str], config: CpuConfig) -> None:
    """Counts and models with features switched on and off give the record they say."""
    assert CpuConfig.parse(*given_values).check() == config


@pytest.mark.parametrize(("given_values", "complaint"), BAD_CPUS.items())
def test_bad_cpus(given_values: tuple[str | int, str], complaint: str) -> None:
    """Counts outside the range and features without a state are refused with what to write."""
    with pytest.raises(ConfigError) as caught:
        CpuConfig.parse(*given_values)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (KernelConfig(initrd="i"), "initrd 'i' is given without a kernel"),
        (KernelConfig("k", entry="phv"), "did you mean 'pvh'"),
        (KernelConfig("k", decompress="maybe"), "there are: auto, on, off"),
        (KernelConfig("k", append="x" * 65536), "65535 bytes at most"),
        (KernelConfig("k", append="a\0b"), "NUL"),
        (KernelConfig("k\0"), "NUL"),
    ],
)
def test_bad_kernels(config: KernelConfig, complaint: str) -> None:
    """What a loader could not use is refused before any file is opened."""
    with pytest.raises(ConfigError) as caught:
        config.check().check_together()
    assert complaint in str(caught.value)


def test_the_longest_command_line_passes() -> None:
    """65,535 bytes and their final NUL fill the room that there is."""
    KernelConfig("k", append="x" * 65535).check()


SERIAL = {
    "stdio": SerialConfig("stdio"),
    "none": SerialConfig("none"),
    "pty": SerialConfig("pty"),
    "pty,link=/tmp/console": SerialConfig("pty", link="/tmp/console"),
    "file=a,,b.log,append=on": SerialConfig("file", path="a,b.log", append=True),
    "unix=/run/s": SerialConfig("unix", path="/run/s"),
    "tcp=127.0.0.1:4555": SerialConfig("tcp", host="127.0.0.1", port=4555),
    "tcp=[::1]:0": SerialConfig("tcp", host="::1"),
    "stdio,escape=ctrl-]": SerialConfig("stdio", escape="\x1d"),
    "stdio,escape=^B": SerialConfig("stdio", escape="\x02"),
    "stdio,escape=none": SerialConfig("stdio", escape=""),
}

BAD_SERIAL = {
    "": "serial is empty; write stdio",
    "stdoi": "did you mean 'stdio'",
    "vc": "write stdio, pty, none, file=PATH, unix=PATH or tcp=HOST:PORT",
    "file": "file has no target",
    "file=": "write file=PATH",
    "unix=": "write unix=PATH",
    "unix=" + "x" * 108: "too long for a socket",
    "none=x": "takes no target",
    "tcp=localhost": "has no port",
    "tcp=:4555": "has no host",
    "tcp=::1:4555": "put an IPv6 address into brackets",
    "tcp=localhost:99999": "from 0 to 65535",
    "tcp=localhost:http": "not a whole number",
    "stdio,append=on": "unknown serial stdio option 'append'",
    "file=x,append=perhaps": "neither on nor off",
    "stdio,escape=x": "not a control character",
    "stdio,escape=ctrl-ab": "not a control character",
    "pty,": "empty option",
    "file=a\0b": "NUL",
}


@pytest.mark.parametrize(("text", "config"), SERIAL.items())
def test_serial(text: str, config: SerialConfig) -> None:
    """Every form gives its record, and the record's spelling gives it again."""
    assert SerialConfig.parse(text) == config
    assert SerialConfig.parse(config.spelling()) == config


@pytest.mark.parametrize(("text", "complaint"), BAD_SERIAL.items())
def test_bad_serial(text: str, complaint: str) -> None:
    """Every bad form is refused with the fact and the forms that exist."""
    with pytest.raises(ConfigError) as caught:
        SerialConfig.parse(text)
    assert complaint in str(caught.value)


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20), st.booleans())
def test_any_path_can_be_spelled(path: str, append: bool) -> None:
    """Paths with commas and equals signs survive their spelling."""
    config = SerialConfig("file", path=path, append=append)
    assert SerialConfig.parse(config.spelling()) == config


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="stdiofletcpunx=:,[]1\0", max_size=30))
def test_any_text_is_a_serial_port_or_a_config_error(text: str) -> None:
    """No text gets another exception out of the parser."""
    complaint = ""
    try:
        SerialConfig.parse(text)
    except ConfigError as error:
        complaint = str(error)
    assert "\n" not in complaint


def test_device_defaults_are_filled_in() -> None:
    """A device carries all its properties, given or not."""
    device = DeviceConfig.parse("isa-debug-exit,iobase=0xf4")
    assert device == DeviceConfig("isa-debug-exit", (("iobase", 0xF4), ("iosize", 2)))
    assert device.number("iobase") == 0xF4
    assert device.value("iosize") == 2
    assert DeviceConfig("isa-debug-exit").check().number("iobase") == 0x501


@pytest.mark.parametrize("known", DEVICE_TYPES, ids=lambda known: known.name)
def test_every_device_can_be_spelled(known: object) -> None:
    """The spelling of a device with its defaults gives the same device."""
    assert known in DEVICE_TYPES
    device = DeviceConfig(getattr(known, "name", "")).check()
    assert DeviceConfig.parse(device.spelling()) == device


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "device '' has no name"),
        ("isa-debug-exti", "did you mean 'isa-debug-exit'"),
        ("e1000", "unknown device 'e1000'"),
        ("isa-debug-exit,iobas=1", "did you mean 'iobase'"),
        ("isa-debug-exit,iobase=65536", "isa-debug-exit property iobase 65536 is out of range"),
        ("isa-debug-exit,iobase=x", "not a whole number"),
        ("isa-debug-exit,iobase", "has no value"),
        ("iobase=1", "has no name"),
    ],
)
def test_bad_devices(text: str, complaint: str) -> None:
    """Unknown devices and properties get the nearest name, values their range."""
    with pytest.raises(ConfigError) as caught:
        DeviceConfig.parse(text)
    assert complaint in str(caught.value)


def test_a_device_made_by_hand_is_checked() -> None:
    """check() refuses properties that the type does not have."""
    with pytest.raises(ConfigError, match="did you mean 'iobase'"):
        DeviceConfig("isa-debug-exit", (("iobas", 1),)).check()


@pytest.mark.parametrize(
    ("prop", "text", "value"),
    [
        (Property("p", "integer", 0, "m", 0, 9), "7", 7),
        (Property("p", "size", 0, "m", 0, 1 << 20), "64k", 65536),
        (Property("p", "boolean", False, "m"), "on", True),
        (Property("p", "text", "", "m"), "a b", "a b"),
        (Property("p", "choice", "a", "m", choices=("a", "b")), "b", "b"),
    ],
)
def test_property_types(prop: Property, text: str, value: object) -> None:
    """Each type of property reads its values and spells them so that they are read again."""
    assert prop.parse(text, "d") == value
    assert prop.parse(prop.spelling(prop.parse(text, "d")), "d") == value


def test_help_names_every_device_and_property() -> None:
    """'help' lists the types with summaries, 'NAME,help' every property with its default."""
    listing = help_request("help")
    assert listing == help_text()
    for known in DEVICE_TYPES:
        assert listing is not None
        assert f"{known.name}" in listing
        assert known.summary in listing
        one = help_request(f"{known.name},help")
        assert one is not None
        for prop in known.properties:
            assert f"{prop.name}=<{prop.type}>" in one
            assert prop.meaning in one
    assert "default 0x501" in help_text("isa-debug-exit")


def test_help_is_only_given_when_asked_for() -> None:
    """A device is no request for help; help on an unknown one is an error."""
    assert help_request("isa-debug-exit,iobase=1") is None
    with pytest.raises(ConfigError, match="unknown device"):
        help_request("nothing,help")
    assert device_type("isa-debug-exit").property("nothing") is None
