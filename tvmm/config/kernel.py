"""``--kernel``, ``--initrd``, ``--append``, ``--entry`` and ``--decompress``: what the machine boots."""

from __future__ import annotations

from typing import NamedTuple

from tvmm.config.options import choice_of
from tvmm.errors import ConfigError
from tvmm.memory.layout import COMMAND_LINE_LIMIT

__all__ = ["DECOMPRESS_CHOICES", "ENTRY_CHOICES", "KernelConfig"]

ENTRY_CHOICES = ("auto", "pvh", "linux64")
DECOMPRESS_CHOICES = ("auto", "on", "off")


class KernelConfig(NamedTuple):
    """What to boot; an empty `kernel` is the built-in guest.

    `append` is the command line of the kernel. `entry` is the boot protocol, `decompress` whether tvmm
    unpacks a compressed kernel itself and enters what comes out; for both "auto" lets the loader choose by
    image and host.
    """

    kernel: str = ""
    initrd: str = ""
    append: str = ""
    entry: str = "auto"
    decompress: str = "auto"

    def check(self) -> KernelConfig:
        """The same record, if its fields agree with one another; raises `ConfigError` otherwise."""
        choice_of(self.entry, "entry", ENTRY_CHOICES)
        choice_of(self.decompress, "decompress", DECOMPRESS_CHOICES)
        for name, text in (("kernel", self.kernel), ("initrd", self.initrd), ("append", self.append)):
            if "\0" in text:
                raise ConfigError(f"{name} {text!r} holds a NUL character")
        length = len(self.append.encode("utf-8", "surrogateescape"))
        if length >= COMMAND_LINE_LIMIT:
            raise ConfigError(
                f"append is {length} bytes long",
                f"a kernel command line has {COMMAND_LINE_LIMIT - 1} bytes at most",
            )
        return self

    def check_together(self) -> KernelConfig:
        """As `check`, for fields that need one another; a file may leave one of them to the command line."""
        if self.initrd and not self.kernel:
            raise ConfigError(
                f"initrd {self.initrd!r} is given without a kernel",
                "the built-in guest has no use for it: add --kernel FILE",
            )
        return self
