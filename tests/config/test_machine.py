"""The whole record, and configuration files that spell it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.config.cpu import CpuConfig
from tvmm.config.device import DeviceConfig
from tvmm.config.file import config_from_file, options_from_toml, read_config
from tvmm.config.kernel import KernelConfig
from tvmm.config.machine import OPTION_NAMES, MachineConfig
from tvmm.config.memory import MemoryConfig
from tvmm.config.serial import SerialConfig
from tvmm.errors import ConfigError


def test_the_plain_record_is_a_machine() -> None:
    """Without any option: the built-in guest, 256 MiB, one processor, no serial port, no name."""
    config = MachineConfig()
    assert config.check() == config == MachineConfig.parse()
    assert config.memory.size == 256 << 20
    assert config.cpu.count == 1
    assert config.kernel.kernel == ""
    assert config.serial.kind == "none"
    assert config.reboot
    assert not config.paused
    assert config.powerdown_timeout_s == 10.0


def test_command_line_spellings_as_keywords() -> None:
    """parse() takes what the command line takes."""
    config = MachineConfig.parse(
        name="web",
        memory="1G",
        cpus="4",
        cpu="max,-avx2",
        kernel=Path("/boot/vmlinuz"),
        initrd="/boot/initrd",
        append="console=ttyS0",
        entry="linux64",
        decompress="off",
        serial="file=out.log",
        control="/run/web.sock",
        device=["isa-debug-exit,iobase=0xf4", "isa-debug-exit"],
        reboot="no",
        paused=True,
        powerdown_timeout="300ms",
        assist="off",
        runtime_dir=Path("/run/tvmm"),
    )
    assert config == MachineConfig(
        name="web",
        memory=MemoryConfig(1 << 30),
        cpu=CpuConfig(4, "max", (("avx2", False),)),
        kernel=KernelConfig("/boot/vmlinuz", "/boot/initrd", "console=ttyS0", "linux64", "off"),
        serial=SerialConfig("file", path="out.log"),
        control="/run/web.sock",
        devices=(
            DeviceConfig("isa-debug-exit", (("iobase", 0xF4), ("iosize", 2))),
            DeviceConfig("isa-debug-exit", (("iobase", 0x501), ("iosize", 2))),
        ),
        reboot=False,
        paused=True,
        powerdown_timeout_s=0.3,
        assist="off",
        runtime_dir="/run/tvmm",
    )


BAD: list[tuple[dict[str, object], str]] = [
    ({"initrd": "i"}, "initrd 'i' is given without a kernel"),
    ({"memory": "1M"}, "too small"),
    ({"cpus": 0}, "from 1 to 254"),
    ({"assist": "of"}, "did you mean 'off'"),
    ({"powerdown_timeout": "0s"}, "powerdown timeout 0s is out of range"),
    ({"powerdown_timeout": "48h"}, "out of range"),
    ({"control": "x" * 200}, "too long for a socket"),
    ({"control": "x\0"}, "NUL"),
    ({"control": "/run/s", "serial": "unix=/run/s"}, "control and serial both want the socket"),
    ({"name": "../etc"}, "'../etc' cannot name a machine"),
    ({"memroy": "1G"}, "unknown option 'memroy'; did you mean 'memory'"),
    ({"paused": "perhaps"}, "neither on nor off"),
    ({"device": ["nothing"]}, "unknown device"),
]


@pytest.mark.parametrize(("options", "complaint"), BAD)
def test_bad_machines(options: dict[str, object], complaint: str) -> None:
    """Options that are wrong alone or together are refused."""
    with pytest.raises(ConfigError) as caught:
        MachineConfig.from_options(options)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


OPTIONS_FILE = """
name = "web"
memory = "1G,hugepages=2M"
cpus = 4
cpu = "host,-avx2"
kernel = "vmlinuz"
append = "console=ttyS0"
serial = "file=a,,b.log,append=on"
device = ["isa-debug-exit,iobase=0xf4"]
reboot = false
powerdown-timeout = "3s"
"""

TABLES_FILE = """
[machine]
name = "web"
reboot = false
powerdown_timeout = 3

[memory]
size = "1G"
hugepages = "2M"

[cpu]
count = 4
model = "host"
features = ["-avx2"]

[kernel]
file = "vmlinuz"
append = "console=ttyS0"

[serial]
file = "a,b.log"
append = true

[[device]]
name = "isa-debug-exit"
iobase = 0xf4
"""


def test_options_and_tables_mean_the_same() -> None:
    """Both ways to write a file give the machine that the command line would."""
    expected = MachineConfig.parse(
        name="web",
        memory="1G,hugepages=2M",
        cpus=4,
        cpu="host,-avx2",
        kernel="vmlinuz",
        append="console=ttyS0",
        serial="file=a,,b.log,append=on",
        device=["isa-debug-exit,iobase=0xf4"],
        reboot=False,
        powerdown_timeout="3s",
    )
    assert MachineConfig.from_options(options_from_toml(OPTIONS_FILE, "f")) == expected
    assert MachineConfig.from_options(options_from_toml(TABLES_FILE, "f")) == expected


def test_the_command_line_wins(tmp_path: Path) -> None:
    """An option given beside a file replaces the file's; the others stay."""
    path = tmp_path / "vm.toml"
    path.write_text('memory = "1G"\ncpus = 2\ndevice = ["isa-debug-exit"]\n')
    config = config_from_file(str(path), memory="512M", device=[])
    assert config.memory.size == 512 << 20
    assert config.cpu.count == 2
    assert config.devices == ()


def test_a_file_may_leave_the_kernel_to_the_command_line(tmp_path: Path) -> None:
    """What goes together is judged after the command line is known."""
    path = tmp_path / "vm.toml"
    path.write_text('initrd = "initrd.img"\n')
    assert config_from_file(str(path), kernel="vmlinuz").kernel.initrd == "initrd.img"
    with pytest.raises(ConfigError, match="without a kernel"):
        config_from_file(str(path))


BAD_FILES = {
    "memory = ": "not TOML",
    "memroy = '1G'": "unknown option 'memroy'; did you mean 'memory'",
    "[memroy]\nsize='1G'": "unknown table 'memroy'; did you mean 'memory'",
    "[memory]\nsiez='1G'": "did you mean 'size'",
    "[memory]\nsize='1M'": "too small",
    "[memory]\nsize=['1G']": "[memory] size must be text or a number",
    "[cpu]\ncounts=1": "did you mean 'count'",
    "[cpu]\ncount=0": "from 1 to 254",
    "[cpu]\nfeatures='x'": "no list of text",
    "[kernel]\nfiel='x'": "did you mean 'file'",
    "entry='linux'": "unknown entry 'linux'",
    "[serial]\nkind='stdoi'": "did you mean 'stdio'",
    "serial = 'tcp=x'": "has no port",
    "device = 'isa-debug-exit'": "device is no list",
    "device = [1]": "neither text nor a table",
    "[[device]]\niobase=1": "[[device]] has no name",
    "[[device]]\nname='isa-debug-exit'\niobas=1": "did you mean 'iobase'",
    "[machine]\nreboot='perhaps'": "neither on nor off",
    "reboot = 1": "neither true nor false",
    "[machine]\nmemory='1G'": "unknown key in [machine]",
    "[name]\nx=1": "name is no table",
    "name = '../x'": "cannot name a machine",
    "cpus = 2\n[cpu]\ncount = 3": "cpus is given twice",
    "runtime_dir = '/x'": "unknown option 'runtime_dir'",
    "memory = 1979-05-27": "must be text or a number",
}


@pytest.mark.parametrize(("text", "complaint"), BAD_FILES.items())
def test_bad_files(text: str, complaint: str) -> None:
    """Each mistake is told in one line that begins with the file's name."""
    with pytest.raises(ConfigError) as caught:
        options_from_toml(text, "vm.toml")
    assert str(caught.value).startswith("vm.toml: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a directory and bytes that are no text are told by name."""
    with pytest.raises(ConfigError, match="No such file"):
        read_config(str(tmp_path / "missing.toml"))
    with pytest.raises(ConfigError, match="Is a directory"):
        read_config(str(tmp_path))
    with pytest.raises(ConfigError, match="null byte"):
        read_config("a\0b")
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_config(str(path))


def test_every_option_can_stand_in_a_file() -> None:
    """The names of the command line are those of the file, with dashes or underscores."""
    samples: dict[str, str] = {
        "cpus": "2",
        "memory": "'64M'",
        "device": "[]",
        "disk": "[]",
        "net": "[]",
        "display": "'bochs-display'",
        "reboot": "true",
        "paused": "false",
        "powerdown_timeout": "'1s'",
        "serial": "'none'",
        "cpu": "'host'",
        "entry": "'auto'",
        "decompress": "'auto'",
        "assist": "'auto'",
        "incoming": "'defer'",
        "vnc": "':0'",
        "metrics": "':9100'",
        "tls": "true",
        "pair": "false",
        "insecure": "false",
    }
    for name in OPTION_NAMES:
        text = f"{name.replace('_', '-')} = {samples.get(name, chr(39) + 'x' + chr(39))}"
        assert list(options_from_toml(text, "f")) == [name]


@settings(deadline=None, max_examples=100)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(st.text(max_size=8), st.integers(-5, 5), st.booleans(), st.lists(st.text(max_size=3)))
            for name in OPTION_NAMES
        },
    )
)
def test_any_value_of_any_option_is_good_or_a_config_error(options: dict[str, object]) -> None:
    """Strange values in a file end in ConfigError, never in another exception."""
    lines = []
    for name, value in options.items():
        text = str(value).lower() if isinstance(value, bool | int) else ascii_toml(value)
        lines.append(f"{name} = {text}")
    complaint = ""
    try:
        options_from_toml("\n".join(lines), "f")
    except ConfigError as error:
        complaint = str(error)
    assert "\n" not in complaint


def ascii_toml(value: object) -> str:
    """A string or a list of strings in TOML, everything but plain ASCII escaped."""
    if isinstance(value, list):
        return "[" + ", ".join(ascii_toml(item) for item in value) + "]"
    assert isinstance(value, str)
    return '"' + "".join(f"\\U{ord(c):08X}" for c in value if not 0xD800 <= ord(c) <= 0xDFFF) + '"'
