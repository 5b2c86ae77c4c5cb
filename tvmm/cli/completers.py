"""What the tab key offers beyond option names. Called by argcomplete with what was typed so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import Action
    from collections.abc import Callable

__all__ = [
    "attach",
    "cpu_values",
    "device_values",
    "machine_names",
    "memory_values",
    "serial_values",
    "word_values",
]


def attach(action: Action, completer: Callable[..., list[str]]) -> None:
    """Let `completer` complete the value of an option."""
    # The attribute is argcomplete's interface; argparse does not know it.
    action.completer = completer  # type: ignore[attr-defined]


def machine_names(prefix: str, **context: Any) -> list[str]:
    """The running machines."""
    from tvmm.cli.machines import base_directory
    from tvmm.control.registry import machines
    from tvmm.errors import UserError

    try:
        return [entry.name for entry in machines(base_directory()) if entry.alive and entry.name.startswith(prefix)]
    except UserError:
        return []


def device_values(prefix: str, **context: Any) -> list[str]:
    """Device names; behind a name and a comma its properties."""
    from tvmm.config.device import DEVICE_TYPES

    name, comma, _ = prefix.partition(",")
    if not comma:
        return _starting(prefix, ["help", *(known.name for known in DEVICE_TYPES)])
    keys = [f"{prop.name}=" for known in DEVICE_TYPES if known.name == name for prop in known.properties]
    return _behind_comma(prefix, [*keys, "help"])


def cpu_values(prefix: str, **context: Any) -> list[str]:
    """CPU models; behind a comma the features that can be switched."""
    from tvmm.config.cpu import CPU_MODELS

    if "," not in prefix:
        return _starting(prefix, ["help", *CPU_MODELS])
    from tvmm.vcpu.cpu_features import FEATURES

    return _behind_comma(prefix, [f"{sign}{name}" for name in FEATURES for sign in "+-"])


def memory_values(prefix: str, **context: Any) -> list[str]:
    """A few sizes; behind a comma the options that the group takes."""
    if "," not in prefix:
        return _starting(prefix, ["64M", "256M", "512M", "1G", "2G", "4G"])
    return _behind_comma(prefix, ["hugepages=2M", "hugepages=1G", "prealloc=on", "shared=off"])


def serial_values(prefix: str, **context: Any) -> list[str]:
    """The ways to connect the serial port."""
    return _starting(prefix, ["stdio", "pty", "none", "file=", "unix=", "tcp="])


def word_values(*words: str) -> Callable[..., list[str]]:
    """A completer for a value that is one of `words`."""

    def complete(prefix: str, **context: Any) -> list[str]:
        return _starting(prefix, list(words))

    return complete


def _behind_comma(prefix: str, items: list[str]) -> list[str]:
    """Those of `items` that can follow what is typed up to the last comma, and are not there yet."""
    done = prefix.rpartition(",")[0]
    names = {_name_of(item) for item in done.split(",")}
    return _starting(prefix, [f"{done},{item}" for item in items if _name_of(item) not in names])


def _name_of(item: str) -> str:
    return item.lstrip("+-").partition("=")[0]


def _starting(prefix: str, words: list[str]) -> list[str]:
    return [word for word in words if word.startswith(prefix)]
