"""``--display bochs-display[,key=val]``, or the same as ``--device``: a screen for the guest."""

from __future__ import annotations

from typing import NamedTuple

from tvmm.config.device import DeviceType
from tvmm.config.properties import Property, check_values, parse_device, spell_device, spelled, with_defaults
from tvmm.errors import ConfigError

__all__ = ["DISPLAY_NAME", "DISPLAY_PROPERTIES", "DISPLAY_TYPE", "DisplayConfig"]

DISPLAY_NAME = "bochs-display"


class DisplayConfig(NamedTuple):
    """A display with `vgamem` bytes of memory. The guest is told that `xres` x `yres` pixels are the best mode."""

    xres: int = 1280
    yres: int = 800
    vgamem: int = 16 << 20

    @classmethod
    def parse(cls, text: str) -> DisplayConfig:
        """From ``bochs-display[,key=val]``. Raises `ConfigError`."""
        name = text.partition(",")[0]
        if name != DISPLAY_NAME:
            raise ConfigError(f"there is no display {name!r}", f"write --display {DISPLAY_NAME}[,xres=...,yres=...]")
        return cls(**parse_device(text, DISPLAY_PROPERTIES)).check()

    def check(self) -> DisplayConfig:
        """The same record, if its fields are in range and go together; raises `ConfigError` otherwise."""
        check_values(self, DISPLAY_NAME, DISPLAY_PROPERTIES)
        if 4 * self.xres * self.yres > self.vgamem:
            raise ConfigError(
                f"a picture of {self.xres}x{self.yres} pixels does not fit into {self.vgamem >> 20} MiB of vgamem",
                "give it more vgamem, or fewer pixels",
            )
        return self

    def spelling(self) -> str:
        """The value of ``--display`` that gives this record, without options that have their default."""
        return spell_device(DISPLAY_NAME, spelled(self, DISPLAY_PROPERTIES))


DISPLAY_PROPERTIES = with_defaults(
    DisplayConfig,
    Property("xres", "integer", None, "width of the preferred mode in pixels", 64, 2560),
    Property("yres", "integer", None, "height of the preferred mode in pixels", 64, 1600),
    Property("vgamem", "size", None, "video memory", 4 << 20, 256 << 20, power_of_two=True),
)
"""What a display takes."""

DISPLAY_TYPE = DeviceType(
    DISPLAY_NAME, "screen with a linear framebuffer; the same as --display", DISPLAY_PROPERTIES
)
