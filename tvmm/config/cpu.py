"""``--cpus N`` and ``--cpu MODEL[,-feature][,+feature][,feature=on|off]``: the guest's processors.

Only the syntax is looked at here. Which features exist is known to the CPUID tables of the vCPU part, and
which of them this host has is known to KVM: both speak up when the machine is created.
"""

from __future__ import annotations

from typing import NamedTuple

from tvmm.boot.mptable import MAX_CPUS
from tvmm.config.options import choice_of, parse_bool, split_commas
from tvmm.config.units import parse_integer
from tvmm.errors import ConfigError

__all__ = ["CPU_MODELS", "MAX_CPUS", "CpuConfig"]


CPU_MODELS = ("host", "max", "minimal")

_FEATURE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")


class CpuConfig(NamedTuple):
    """`count` processors of `model`; each adjustment is a feature's name and whether it is to be there."""

    count: int = 1  # type: ignore[assignment]  # hides the method of tuple, which has no use here
    model: str = "host"
    adjustments: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def parse(cls, cpus: str | int = 1, cpu: str = "host") -> CpuConfig:
        """From the values of ``--cpus`` and ``--cpu``. Raises `ConfigError`."""
        count = parse_integer(cpus, "number of cpus", 1, MAX_CPUS)
        model, *changes = split_commas(cpu)
        choice_of(model, "cpu model", CPU_MODELS)
        wanted: dict[str, bool] = {}
        for change in changes:
            name, state = _adjustment(change)
            if wanted.setdefault(name, state) != state:
                raise ConfigError(f"cpu feature {name!r} is both on and off")
        return cls(count, model, tuple(wanted.items()))

    def check(self) -> CpuConfig:
        """The same record, if its fields are in range; raises `ConfigError` otherwise."""
        parse_integer(self.count, "number of cpus", 1, MAX_CPUS)
        choice_of(self.model, "cpu model", CPU_MODELS)
        return self


def _adjustment(text: str) -> tuple[str, bool]:
    """The feature and its state of ``+name``, ``-name``, ``name=on`` or ``name=off``."""
    if text[:1] in ("+", "-"):
        name, state = text[1:], text[0] == "+"
    else:
        name, equals, word = text.partition("=")
        if not equals:
            raise ConfigError(
                f"cpu feature {text!r} is neither switched on nor off" if text else "cpu has an empty feature",
                f"write +{text or 'NAME'} or -{text or 'NAME'}",
            )
        state = parse_bool(word, f"cpu feature {name}")
    name = name.lower()
    if not name or not _FEATURE_CHARACTERS.issuperset(name):
        raise ConfigError(f"cpu feature {name!r} is not a name", "write +NAME, -NAME or NAME=on|off")
    return name, state
