"""What a member of a family is beside its machine: heard by its parent, and gone without it.

Its process has a session of its own, so that Ctrl-C reaches the parent alone, which passes it on. It talks to the
parent in lines of JSON on a pipe that all of them share: a line is written at once and whole, as pipes have it for up
to PIPE_BUF bytes. Another pipe, to which nobody writes, ends when the parent does.
"""

from __future__ import annotations

import json
import os
import select
from typing import TYPE_CHECKING, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Member", "Report", "parse_report"]

MAX_LINE = select.PIPE_BUF
MAX_TEXT = 600
"""Characters of a text in a line: each takes six bytes in JSON at most."""


class Report(NamedTuple):
    """What a member says. `kind` is ``ready`` with `facts` about its machine, ``say`` or ``error`` with a `text`, or
    ``ended`` with its exit `status`.
    """

    number: int
    kind: str
    text: str = ""
    facts: Mapping[str, str] = {}
    status: int = 0

    def line(self) -> bytes:
        """As it is on the pipe."""
        record = {**self._asdict(), "text": self.text[:MAX_TEXT], "facts": dict(self.facts)}
        data = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        assert len(data) <= MAX_LINE
        return data


def parse_report(line: bytes) -> Report:
    """What `Report.line` made. Raises `ValueError` for anything else."""
    try:
        record = json.loads(line)
        text, facts = str(record["text"]), dict(record["facts"])
        return Report(int(record["number"]), str(record["kind"]), text, facts, int(record["status"]))
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a line of a member") from error


class Member:
    """The one with `number` and `name`, in a process that its parent has forked."""

    def __init__(self, number: int, name: str, reports: int, lifeline: int) -> None:
        self.number = number
        self.name = name
        self._reports = reports
        self._lifeline = lifeline

    def ready(self, **facts: str) -> None:
        """The machine runs; `facts` are for whoever asked for it."""
        self._tell(Report(self.number, "ready", facts=facts))

    def say(self, text: str) -> None:
        """For the user, who sees which machine it is about."""
        self._tell(Report(self.number, "say", text))

    def error(self, text: str) -> None:
        """Why it ends without having been ready, or in another way than well."""
        self._tell(Report(self.number, "error", text))

    def ended(self, status: int) -> None:
        """Its machine is gone, and its process may not be: `status` is what that would have ended with."""
        self._tell(Report(self.number, "ended", status=status))

    def _tell(self, report: Report) -> None:
        try:
            os.write(self._reports, report.line())
        except OSError:
            return  # the parent is gone: there is nobody to tell

    async def watch_parent(self, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` when the parent has ended, however it has."""
        await trio.lowlevel.wait_readable(self._lifeline)
        on_gone()
