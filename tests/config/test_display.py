"""The display by its option, as a device and in a file."""

from __future__ import annotations

import pytest

from tvmm.config.device import DeviceConfig, device_types, help_request
from tvmm.config.display import DisplayConfig
from tvmm.config.file import options_from_toml
from tvmm.config.machine import MachineConfig
from tvmm.config.virtio import MAX_PCI
from tvmm.errors import ConfigError

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("bochs-display", DisplayConfig()),
        ("bochs-display,xres=1920,yres=1080", DisplayConfig(1920, 1080)),
        ("bochs-display,vgamem=64M", DisplayConfig(vgamem=64 * MIB)),
        ("bochs-display,xres=2560,yres=1600,vgamem=16777216", DisplayConfig(2560, 1600)),
    ],
)
def test_spellings(text: str, config: DisplayConfig) -> None:
    """As an option and as a device it is the same record, which spells itself."""
    assert MachineConfig.parse(display=text).display == config
    assert MachineConfig.parse(device=text).display == config
    assert MachineConfig.parse(device=["isa-debug-exit", text, "virtio-rng"]).display == config
    assert DisplayConfig.parse(config.spelling()) == config
    assert MachineConfig(display=config).check().display == config


def test_none_without_being_asked() -> None:
    """A machine has no screen."""
    assert MachineConfig.parse().display is None
    assert MachineConfig.parse(device="virtio-rng").display is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bochs-display,xres=63", "xres 63 is out of range"),
        ("bochs-display,xres=2561", "out of range"),
        ("bochs-display,yres=1601", "out of range"),
        ("bochs-display,vgamem=2M", r"out of range|not possible"),
        ("bochs-display,vgamem=24M", "not possible"),
        ("bochs-display,vgamem=512M", "out of range"),
        ("bochs-display,xres=2560,yres=1600,vgamem=8M", "does not fit into 8 MiB"),
        ("bochs-display,edid=off", "option 'edid'"),
        ("bochs-display,", "empty option"),
        ("bochs", "no display"),
        ("VGA", "no display"),
    ],
)
def test_wrong_values(text: str, words: str) -> None:
    """Each is refused in words."""
    with pytest.raises(ConfigError, match=words):
        MachineConfig.parse(display=text)


def test_one_at_most() -> None:
    """Also when one is an option and one a device."""
    one = "bochs-display"
    for options in ({"device": [one, one]}, {"device": one, "display": one}):
        with pytest.raises(ConfigError, match="one display"):
            MachineConfig.parse(**options)


def test_records_made_by_hand_are_checked() -> None:
    """A display that cannot be, and one in the wrong place."""
    with pytest.raises(ConfigError, match="xres"):
        MachineConfig(display=DisplayConfig(xres=1)).check()
    with pytest.raises(ConfigError, match="other devices"):
        MachineConfig(devices=(DeviceConfig("bochs-display"),)).check()


def test_it_takes_a_place_on_pci() -> None:
    """There are 31 in all."""
    MachineConfig.parse(device=["virtio-rng"] * (MAX_PCI - 1) + ["bochs-display"])
    with pytest.raises(ConfigError, match="32 devices on PCI"):
        MachineConfig.parse(device=["virtio-rng"] * MAX_PCI + ["bochs-display"])


def test_help() -> None:
    """It is in the list, with its properties."""
    assert "bochs-display" in {known.name for known in device_types()}
    text = help_request("bochs-display,help")
    assert text is not None
    for word in ("xres", "yres", "vgamem", "default 1280", "4M to 256M"):
        assert word in text


@pytest.mark.parametrize(
    "text",
    [
        'display = "bochs-display,xres=1920,yres=1080"',
        "[display]\nxres = 1920\nyres = 1080",
        '[[device]]\nname = "bochs-display"\nxres = 1920\nyres = 1080',
    ],
)
def test_in_a_file(text: str) -> None:
    """As text, as a table, as a device."""
    assert MachineConfig.from_options(options_from_toml(text, "f")).display == DisplayConfig(1920, 1080)


def test_wrong_in_a_file() -> None:
    """The file is named."""
    with pytest.raises(ConfigError, match=r"^f: .*xres"):
        options_from_toml("[display]\nxres = 1", "f")
