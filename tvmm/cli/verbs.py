"""The verbs of the command line, as data: who looks one up imports none of them.

Each verb is a module of this package with two functions: ``add_arguments(parser)``, which also sets the
texts of its help, and ``run(options) -> int``, which gets the options that were given, by name, and returns
the exit status.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["VERBS", "Verb", "find_verb"]


class Verb(NamedTuple):
    """One verb: what the user types, the module behind it, and a line about it."""

    name: str
    module: str
    summary: str
    needs_arguments: bool = False


VERBS = (
    Verb("run", "tvmm.cli.run", "start a machine and stay with it until it ends"),
    Verb("ps", "tvmm.cli.ps", "list running machines"),
    Verb("info", "tvmm.cli.info", "show what a running machine is made of and how it is"),
    Verb("top", "tvmm.cli.top", "show what running machines do, again and again"),
    Verb("tasks", "tvmm.cli.tasks", "show what each task of a running machine does and waits for"),
    Verb("pause", "tvmm.cli.pause", "stop a machine's processors"),
    Verb("resume", "tvmm.cli.resume", "let a paused machine go on"),
    Verb("stop", "tvmm.cli.stop", "ask a machine to power off, or end it"),
    Verb("resize", "tvmm.cli.resize", "give a disk of a running machine another size", True),
    Verb("limit", "tvmm.cli.limit", "show or change how much disks and network devices may do"),
    Verb("balloon", "tvmm.cli.balloon", "show or change how much memory a guest has"),
    Verb("sendkey", "tvmm.cli.sendkey", "press keys on a machine's keyboard", True),
    Verb("migrate", "tvmm.cli.migrate", "move a running machine's guest to another tvmm", True),
    Verb("save", "tvmm.cli.save", "write a running machine into a file", True),
    Verb("restore", "tvmm.cli.restore", "go on with a machine that was saved into a file", True),
    Verb("console", "tvmm.cli.console", "connect this terminal to a machine's serial line"),
    Verb("vsock", "tvmm.cli.vsock", "connect this terminal to a port of a machine's guest", True),
    Verb("screenshot", "tvmm.cli.screenshot", "save what a guest shows as a picture", True),
    Verb("record", "tvmm.cli.record", "record what a guest shows as a film or pictures", True),
    Verb("net", "tvmm.cli.net", "make networks for machines on this host, and undo them", True),
    Verb("keys", "tvmm.cli.keys", "make and look after the certificates for migration", True),
    Verb("doctor", "tvmm.cli.doctor", "say what this host can do, and how to mend what it cannot"),
    Verb("completion", "tvmm.cli.completion", "print the code that teaches a shell to complete tvmm", True),
)


def find_verb(name: str) -> Verb | None:
    """The verb that is spelled `name`, if there is one."""
    return next((verb for verb in VERBS if verb.name == name), None)
