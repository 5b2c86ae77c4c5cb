"""tvmm: a KVM virtual machine monitor on Trio.

`Machine` and `MachineConfig` are what a program needs; they are imported when first asked for, because the command
line must not pay for what it does not use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvmm.config.machine import MachineConfig
    from tvmm.machine import Machine
    from tvmm.outcome import Outcome

__all__ = ["Machine", "MachineConfig", "Outcome", "__version__"]

__version__ = "0.1.0"

_HOMES = {"Machine": "tvmm.machine", "Outcome": "tvmm.outcome", "MachineConfig": "tvmm.config.machine"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tvmm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
