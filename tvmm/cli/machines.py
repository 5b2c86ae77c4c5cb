"""How verbs reach running machines: the registry of this user, and a control session with one of them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tvmm.control.registry import find, runtime_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tvmm.control.client import QmpClient
    from tvmm.control.registry import MachineEntry

__all__ = ["base_directory", "control", "named"]


def base_directory() -> Path:
    """Where this user's machines are registered."""
    return runtime_directory(os.environ, os.geteuid())


def named(options: Mapping[str, Any]) -> MachineEntry:
    """The running machine that the user named, or the only one. Raises `UserError` with the nearest name."""
    return find(base_directory(), options.get("name"))


@contextmanager
def control(entry: MachineEntry, timeout: float = 10.0) -> Iterator[QmpClient]:
    """A session with the control socket of a machine; an answer may take `timeout` seconds."""
    from tvmm.control.client import QmpClient

    with QmpClient(entry.paths.control, timeout) as client:
        yield client
