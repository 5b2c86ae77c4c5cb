"""The two errors of the RFB machine: the viewer's and tvmm's own."""

from __future__ import annotations

from tvmm.errors import ProtocolError

__all__ = ["RfbError", "RfbMisuse"]


class RfbError(ProtocolError):
    """The viewer broke the protocol or a limit. Its connection has to be closed; nothing else is affected."""


class RfbMisuse(RuntimeError):
    """The machine was called in a state in which that call has no place: a bug of the caller."""
