"""Virtio devices by ``--device``, consoles and their ports, random sources, and what goes together."""

from __future__ import annotations

from typing import Any

import pytest

from tvmm.config.console import CONSOLE_PROPERTIES, PORT_PROPERTIES, ConsoleConfig, PortConfig
from tvmm.config.device import DeviceConfig, device_type, device_types, help_request, help_text
from tvmm.config.disk import DISK_PROPERTIES, DiskConfig
from tvmm.config.file import options_from_toml
from tvmm.config.input import INPUT_PROPERTIES, InputConfig
from tvmm.config.machine import MachineConfig
from tvmm.config.net import NetConfig
from tvmm.config.rng import RNG_PROPERTIES, RngConfig
from tvmm.config.serial import SerialConfig
from tvmm.config.virtio import MAX_MMIO, MAX_PCI
from tvmm.config.virtio_types import VIRTIO_TYPES
from tvmm.errors import ConfigError

FILE = SerialConfig("file", path="x")


def parsed(*devices: str) -> MachineConfig:
    """The machine with these devices."""
    return MachineConfig.parse(device=devices)


def test_devices_end_in_the_field_of_their_kind() -> None:
    """Options come before --device, each kind in its order; the ids are by position within the kind."""
    config = MachineConfig.parse(
        disk=["a.img", "b.img,id=data"],
        net=["tap", "tap,ifname=x"],
        device=[
            "isa-debug-exit",
            "virtio-rng",
            "virtio-blk,file=c.img,cache=none",
            "virtio-net,queues=2",
            "virtio-console",
            "virtio-blk-device,file=d.img",
        ],
    )
    assert [(disk.file, disk.id, disk.transport) for disk in config.disks] == [
        ("a.img", "disk0", "pci"),
        ("b.img", "data", "pci"),
        ("c.img", "disk2", "pci"),
        ("d.img", "disk3", "mmio"),
    ]
    assert [(net.id, net.ifname, net.queues) for net in config.nets] == [
        ("net0", "", 1), ("net1", "x", 1), ("net2", "", 2)
    ]  # fmt: skip
    assert [(console.id, console.max_ports) for console in config.consoles] == [("console0", 1)]
    assert config.rngs == (RngConfig("rng0"),)
    assert [device.name for device in config.devices] == ["isa-debug-exit"]
    assert config.check() == config


@pytest.mark.parametrize(
    ("name", "field", "transport"),
    [
        ("virtio-blk-pci,file=x", "disks", "pci"),
        ("virtio-blk-device,file=x", "disks", "mmio"),
        ("virtio-blk,file=x,transport=mmio", "disks", "mmio"),
        ("virtio-net-pci", "nets", "pci"),
        ("virtio-net-device", "nets", "mmio"),
        ("virtio-net,transport=mmio", "nets", "mmio"),
        ("virtio-rng-pci", "rngs", "pci"),
        ("virtio-rng-device", "rngs", "mmio"),
        ("virtio-rng,transport=mmio", "rngs", "mmio"),
        ("virtio-serial-pci", "consoles", "pci"),
        ("virtio-serial-device", "consoles", "mmio"),
        ("virtio-console,transport=mmio", "consoles", "mmio"),
        ("virtio-keyboard-pci", "inputs", "pci"),
        ("virtio-keyboard-device", "inputs", "mmio"),
        ("virtio-tablet-pci", "inputs", "pci"),
        ("virtio-tablet,transport=mmio", "inputs", "mmio"),
    ],
)
def test_names_fix_the_transport(name: str, field: str, transport: str) -> None:
    """QEMU's names say how a device is connected; the plain ones take it as a property."""
    (device,) = getattr(parsed(name), field)
    assert device.transport == transport


def test_ports_belong_to_the_console_before_them() -> None:
    """Each virtserialport and virtconsole is one more port of the last virtio-console."""
    first, second = parsed(
        "virtio-console,chardev=pty,cols=80,rows=25",
        "virtserialport,name=org.qemu.guest_agent.0,chardev=unix=/tmp/ga",
        "virtconsole",
        "virtio-console,max_ports=31",
        "virtserialport,chardev=file=a,,append=on",
    ).consoles
    assert first.ports == (
        PortConfig(SerialConfig("pty"), console=True),
        PortConfig(SerialConfig("unix", path="/tmp/ga"), "org.qemu.guest_agent.0"),
        PortConfig(console=True),
    )
    assert (first.max_ports, first.cols, first.rows) == (3, 80, 25)
    assert second.ports == (PortConfig(console=True), PortConfig(SerialConfig("file", path="a", append=True)))
    assert second.max_ports == 31


def test_input_devices_are_named_by_their_kind() -> None:
    """Keyboards and tablets are counted apart, and stay in their order."""
    devices = parsed("virtio-tablet", "virtio-keyboard", "virtio-tablet", "virtio-keyboard,id=mine").inputs
    assert [device.id for device in devices] == ["tablet0", "keyboard0", "tablet1", "mine"]
    assert [device.kind for device in devices] == ["tablet", "keyboard", "tablet", "keyboard"]


def test_a_console_port_fills_an_empty_first_port() -> None:
    """QEMU's virtio-serial-pci with one virtconsole has one port here too."""
    (console,) = parsed("virtio-serial-pci", "virtconsole,chardev=stdio,name=c").consoles
    assert console.ports == (PortConfig(SerialConfig("stdio"), "c", console=True),)


BAD_DEVICES: list[tuple[list[str], str]] = [
    (["virtserialport"], "device virtserialport has no virtio-console; put --device virtio-console before it"),
    (["virtconsole", "virtio-console"], "has no virtio-console"),
    (["virtio-blk"], "device virtio-blk needs file"),
    (["virtio-blk-pci,transport=mmio,file=x"], "unknown device virtio-blk-pci option 'transport'"),
    (["virtio-blk,file=x,cahce=none"], "did you mean 'cache'"),
    (["virtio-blk-pci,file=x,queues=65"], "virtio-blk-pci property queues 65 is out of range"),
    (["virtio-bkl,file=x"], "did you mean 'virtio-blk'"),
    (["virtio-net,type=vde"], "there are: tap, user, stream"),
    (["virtio-net,fd=3,br=x"], "do not go together"),
    (["virtio-rng,"], "has an empty option"),
    (["virtio-rng,max-bytes=x"], "virtio-rng property max-bytes 'x' is not a size"),
    (["virtio-rng,period=0"], "from 1 to 86400000"),
    (["virtio-rng,filename="], "virtio-rng property filename is empty"),
    (["virtio-console,chardev=stdoi"], "virtio-console property chardev: unknown serial kind 'stdoi'; did you mean"),
    (["virtio-console,max_ports=32"], "from 0 to 31"),
    (["virtio-console,max_ports=1", "virtserialport"], "has 2 ports, 1 are possible"),
    (["virtio-console", *["virtserialport"] * 31], "has 32 ports, 31 are possible"),
    (["virtio-console,cols=80"], "has cols or rows alone"),
    (["virtio-console", "virtserialport,name=a", "virtserialport,name=a"], "two ports of a virtio-console are called"),
    (["virtio-console", "virtserialport,name=a/b"], "cannot name a port"),
    (["virtio-console,name=" + "x" * 65], "cannot name a port"),
    (["virtio-console", "virtserialport,console=on"], "unknown device virtserialport option 'console'"),
    (["virtio-keyboard,serial=" + "x" * 128], "virtio-keyboard property serial 'xxx"),
    (["virtio-tablet,serial=\x7f"], "cannot be told to the guest"),
    (["virtio-tablet,kind=keyboard"], "unknown device virtio-tablet option 'kind'"),
    (["virtio-tablet,id=keyboard0", "virtio-keyboard"], "two devices have the id 'keyboard0'"),
    (["virtio-rng,id=a", "virtio-console,id=a"], "two devices have the id 'a'"),
    (["virtio-console,chardev=stdio", "virtconsole,chardev=stdio"], "want stdio"),
    (["virtio-console,chardev=file=x", "virtconsole,chardev=file=x"], "want the path 'x'"),
    (["virtio-console,chardev=tcp=h:1", "virtconsole,chardev=tcp=h:1"], "listen at 'h:1'"),
    (["virtio-console,chardev=pty,,link=l", "virtconsole,chardev=pty,,link=l"], "want the path 'l'"),
]


@pytest.mark.parametrize(("devices", "complaint"), BAD_DEVICES)
def test_bad_devices(devices: list[str], complaint: str) -> None:
    """Each mistake in a device, or between devices, is told in one line."""
    with pytest.raises(ConfigError) as caught:
        parsed(*devices)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"disk": ["a", "a"]}, "two disks, one of them writable, want the file 'a'"),
    ({"disk": ["a", "a,readonly=on"]}, "want the file 'a'"),
    ({"disk": ["a,id=x"], "net": ["tap,id=x"]}, "two devices have the id 'x'; give each an id=NAME of its own"),
    ({"disk": ["a,id=disk1", "b"]}, "two devices have the id 'disk1'"),
    ({"net": ["tap,ifname=t", "tap,ifname=t"]}, "two nets want the tap 't'"),
    ({"net": ["tap,fd=3", "tap,fd=3"]}, "two nets want the descriptor '3'"),
    ({"net": ["tap,mac=52:54:00:00:00:01"] * 2}, "two nets have the MAC address '52:54:00:00:00:01'"),
    ({"serial": "stdio", "device": ["virtio-console,chardev=stdio"]}, "want stdio"),
    ({"serial": "unix=s", "device": ["virtio-console,chardev=unix=s"]}, "want the path 's'"),
    ({"control": "s", "device": ["virtio-console,chardev=unix=s"]}, "want the path 's'"),
    ({"net": ["tap,transport=mmio"] * (MAX_MMIO + 1)}, "13 devices with transport=mmio are too many; 12 are possible"),
    ({"net": ["tap"] * (MAX_PCI + 1)}, "32 devices on PCI are too many; 31 are possible"),
]


@pytest.mark.parametrize(("options", "complaint"), BAD_TOGETHER)
def test_what_does_not_go_together(options: dict[str, Any], complaint: str) -> None:
    """Files, names, terminals and places that two devices cannot share are refused."""
    with pytest.raises(ConfigError) as caught:
        MachineConfig.parse(**options)
    assert complaint in str(caught.value)


def test_what_does_go_together() -> None:
    """Readers share a file; each transport is full at its limit; any number of ports lead nowhere."""
    config = MachineConfig.parse(
        disk=["a,readonly=on", "a,readonly=on"],
        net=[*["tap,transport=mmio"] * MAX_MMIO, *["tap"] * (MAX_PCI - 3)],
        device=["virtio-console", "virtserialport", "virtserialport"],
    )
    assert len(config.disks) == 2
    assert len(config.nets) == 40
    assert len(config.consoles[0].ports) == 3


def test_records_made_by_hand_are_checked() -> None:
    """A program's records get ids and are held to the same rules."""
    config = MachineConfig(disks=(DiskConfig("a"),), consoles=(ConsoleConfig(),)).check()
    assert config.disks[0].id == "disk0"
    assert config.consoles[0].max_ports == 1
    for wrong, complaint in (
        (MachineConfig(disks=(DiskConfig("a"), DiskConfig("a"))), "want the file"),
        (MachineConfig(consoles=(ConsoleConfig(ports=()),)), "has 0 ports"),
        (MachineConfig(consoles=(ConsoleConfig(ports=(PortConfig(FILE),)),)), "is no console"),
        (MachineConfig(consoles=(ConsoleConfig(ports=(PortConfig(SerialConfig("x"), console=True),)),)), "serial kind"),
        (MachineConfig(rngs=(RngConfig(max_bytes=-1),)), "max-bytes -1"),
        (MachineConfig(inputs=(InputConfig(kind="mouse"),)), "kind 'mouse'"),
        (MachineConfig(nets=(NetConfig(queues=1000),)), "from 1 to 256"),
        (MachineConfig(devices=(DeviceConfig("virtio-rng"),)), "is none of a machine's other devices"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            wrong.check()


@pytest.mark.parametrize(
    "devices",
    [
        ["virtio-rng"],
        ["virtio-rng,id=r,filename=/dev/hwrng,max-bytes=1k,period=500,transport=mmio,packed=on"],
        ["virtio-keyboard", "virtio-keyboard,id=k,serial=a b,packed=on", "virtio-tablet,transport=mmio"],
        ["virtio-console"],
        ["virtio-console,id=c,cols=80,rows=25,chardev=tcp=[::1]:5,name=x", "virtconsole,name=a=b"],
        ["virtio-console,max_ports=4,chardev=pty,,link=/tmp/l", "virtserialport,chardev=file=a,,,,b,,append=on"],
    ],
)
def test_spelling(devices: list[str]) -> None:
    """What a record is spelled as gives the record again."""
    config = parsed(*devices)
    spelled = [rng.spelling() for rng in config.rngs] + [device.spelling() for device in config.inputs]
    spelled += [text for console in config.consoles for text in console.spelling()]
    assert parsed(*spelled) == config


@pytest.mark.parametrize("text", ["virtio-rng", "virtio-rng,max-bytes=1k", "virtio-console,cols=80,rows=25"])
def test_one_device_by_itself(text: str) -> None:
    """The records parse their own value of --device."""
    if text.startswith("virtio-rng"):
        assert (RngConfig.parse(text)._replace(id="rng0"),) == parsed(text).rngs
    else:
        assert (ConsoleConfig.parse(text).check()._replace(id="console0"),) == parsed(text).consoles


def test_each_field_is_a_property() -> None:
    """The tables have the fields of their records, in their order, with their defaults."""
    assert tuple(prop.attribute for prop in RNG_PROPERTIES) == RngConfig._fields
    assert {prop.attribute for prop in INPUT_PROPERTIES} == {*InputConfig._fields} - {"kind"}
    assert tuple(prop.attribute for prop in CONSOLE_PROPERTIES) == ConsoleConfig._fields[:-1]
    assert tuple(prop.attribute for prop in PORT_PROPERTIES) == PortConfig._fields[:-1]
    for record, properties in ((RngConfig, RNG_PROPERTIES), (ConsoleConfig, CONSOLE_PROPERTIES)):
        assert all(record._field_defaults[prop.attribute] == prop.default for prop in properties)


def test_help_has_every_device_and_property() -> None:
    """'help' lists all types; 'NAME,help' each property with type, default, range and meaning."""
    listing = help_request("help")
    assert listing is not None
    for known in device_types():
        assert known.summary in listing
        assert device_type(known.name) is known
        one = help_request(f"{known.name},help")
        assert one is not None
        for prop in known.properties:
            (line,) = [line for line in one.splitlines() if line.startswith(f"  {prop.name}=<{prop.type}> ")]
            assert prop.meaning in line
            assert prop.limits() in line
            assert "(default " in line or "(required" in line
    assert set(VIRTIO_TYPES) < {known.name for known in device_types()}
    # The column of meanings begins where the longest name lets it.
    text = " ".join(help_text("virtio-net-pci").split())
    assert "queue-size=<integer> entries of each queue (default 256, a power of two, 16 to 32768)" in text
    assert "mac=<address> the guest's MAC address (default by the machine's name)" in text
    assert "transport" not in text
    assert "file=<text> image, block device or NBD address (required)" in " ".join(help_text("virtio-blk").split())


TABLES = """
[[disk]]
file = "a,b.img"
queue-size = 512
readonly = true

[[disk]]
file = "c.img"
logical_block_size = 4096

[[net]]
type = "tap"
ip = ["10.0.2.1/24", "fd00::1/64"]

[[device]]
name = "virtio-console"
chardev = "file=out,append=on"

[[device]]
driver = "virtserialport"
name = "org.x"

[[device]]
driver = "virtio-rng"
"""

LISTS = """
disk = ["a,,b.img,queue-size=512,readonly=on", { file = "c.img", logical_block_size = "4k" }]
net = ["tap,ip=10.0.2.1/24+fd00::1/64"]
device = ["virtio-console,chardev=file=out,,append=on", "virtserialport,name=org.x", "virtio-rng"]
"""


def test_tables_and_lists_mean_the_same() -> None:
    """Both ways to write a file give the machine that the command line would."""
    expected = MachineConfig.parse(
        disk=["a,,b.img,queue-size=512,readonly=on", "c.img,logical_block_size=4k"],
        net="tap,ip=10.0.2.1/24+fd00::1/64",
        device=["virtio-console,chardev=file=out,,append=on", "virtserialport,name=org.x", "virtio-rng"],
    )
    assert MachineConfig.from_options(options_from_toml(TABLES, "f")) == expected
    assert MachineConfig.from_options(options_from_toml(LISTS, "f")) == expected


BAD_FILES = {
    "disk = 'a.img'": 'disk is no list; write disk = ["FILE,key=value"] or a [[disk]] table',
    "[disk]\nfile='a'": "[disk] is no list; write [[disk]], once for each",
    "[[disk]]\nreadonly=true": "[[disk]] has no file",
    "[[disk]]\nfile='a'\ncahce='none'": "did you mean 'cache'",
    "[[disk]]\nfile=['a']": "[[disk]] file must be text or a number",
    "disk = [1]": 'write "FILE,key=value" or a [[disk]] table',
    "disk = ['a', 'a']": "want the file 'a'",
    "[[net]]\nip='10.0.2.1/24'": "[[net]] has no type",
    "[[net]]\ntype='tap'\nip=[['x']]": "[[net]] ip must be text or a number",
    "net = ['tap,mac=x']": "no MAC address",
    "[[device]]\ndriver='virtio-rgn'": "did you mean 'virtio-rng'",
    "[[device]]\ndriver='virtserialport'": "has no virtio-console",
}


@pytest.mark.parametrize(("text", "complaint"), BAD_FILES.items())
def test_bad_files(text: str, complaint: str) -> None:
    """Each mistake is told in one line that begins with the file's name."""
    with pytest.raises(ConfigError) as caught:
        options_from_toml(text, "vm.toml")
    assert str(caught.value).startswith("vm.toml: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_none_on_the_command_line_takes_the_files_nets_away() -> None:
    """The option replaces the file's whole, so --net none leaves no network."""
    options = options_from_toml("net = ['tap']", "f")
    assert len(MachineConfig.from_options(options).nets) == 1
    assert MachineConfig.from_options({**options, "net": ["none"]}).nets == ()


def test_disk_properties_are_those_of_the_device() -> None:
    """--disk and --device virtio-blk take the same keys."""
    assert device_type("virtio-blk").properties == DISK_PROPERTIES
