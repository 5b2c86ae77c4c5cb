"""``tvmm save [NAME] FILE``: a running machine into a file, from which `tvmm restore` goes on with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.cli import STATUS_SIGNAL, STATUS_USAGE
from tvmm.cli.machines import control, named
from tvmm.cli.migration_follow import Follower, Interrupts
from tvmm.cli.output import RED, message, say
from tvmm.control.save_info import EVENT, save_status_of
from tvmm.errors import TvmmError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.migration_display import Display
    from tvmm.cli.parser import Parser

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
  tvmm save web web.snap                the guest is paused while it is written, and goes on
  tvmm save web web.snap --live         it goes on while it is written, after a pause of some milliseconds
  tvmm save web web.snap --stop         it ends here; 'tvmm restore web.snap' goes on with it
  tvmm save web web.snap --encrypt --passphrase-file secret.txt
  tvmm save web web.snap --json         an object per line while it goes on
"""

_MORE = """\
The file comes into its place when it is whole and safe on the disk: a snapshot that was there is replaced
then, and is what it was if anything fails before. Disks are not in it: keep their images as they are while
the snapshot is to be used, or save with --stop.

exit status:
  0    the machine is in the file
  2    it is not: wrong usage, refused or failed, and the guest goes on
  130  cancelled, and the guest goes on
"""


class _Saving(Follower):
    EVENT, CANCEL, QUERY = EVENT, "x-save-cancel", "x-query-save"
    read = staticmethod(save_status_of)


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.parser import add_name
    from tvmm.cli.snapshot_secret import add_secret_options

    parser.describe("Write a running machine into a file.", _EXAMPLES, _MORE)
    add_name(parser)
    parser.add_argument("file", metavar="FILE", help="the snapshot; one that is there is replaced")
    parser.add_argument("--stop", action="store_true", help="end the machine when it is safely in the file")
    parser.add_argument("--live", action="store_true", help="write it while the guest runs")
    parser.add_argument("--force", action="store_true", help="replace FILE also if it is something else")
    add_secret_options(parser, new=True)
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--json", action="store_true", help="print an object per line while it goes on; the last has the outcome"
    )
    output.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(options: Mapping[str, Any]) -> int:
    """Save it, and say how it went."""
    from tvmm.cli.migration_display import choose
    from tvmm.cli.save_display import SaveLines, SaveLive
    from tvmm.cli.snapshot_secret import new_secret
    from tvmm.control.client import CommandError
    from tvmm.snapshot.files import absolute
    from tvmm.snapshot.status import SaveParameters

    # Before a passphrase is asked for.
    wanted = {name: True for name in ("force", "stop", "live") if options.get(name)}
    secret = any(options.get(name) for name in ("encrypt", "passphrase_file", "key_file"))
    SaveParameters(
        stop="stop" in wanted, live="live" in wanted, passphrase="?" if secret else ""
    ).check()  # fmt: skip
    entry = named(options)
    # The machine may have another directory.
    arguments: dict[str, Any] = {"path": absolute(options["file"]), **new_secret(options), **wanted}
    as_json, quiet = bool(options.get("json")), bool(options.get("quiet"))
    display = choose(as_json=as_json, quiet=quiet, lines=SaveLines, live=SaveLive)
    with control(entry) as client, Interrupts() as interrupts:
        follower = _Saving(client)
        try:
            follower.begin("x-save", **arguments)
        except TvmmError as error:
            display.end({"error-desc": str(error)}, "refused" if isinstance(error, CommandError) else "unknown", 2)
            raise
        with display:
            for info in follower.updates(interrupts):
                if not follower.ended:
                    display.update(info)
    return _report(entry.name, follower, interrupts, display, silent="json" in options or "quiet" in options)


def _report(name: str, follower: Follower, interrupts: Interrupts, display: Display, *, silent: bool) -> int:
    """Say how it ended; the exit status."""
    from tvmm.cli.save_display import summary_lines

    status = follower.status
    interrupted = STATUS_SIGNAL + (interrupts.first or Interrupts.NUMBERS[0])
    if follower.ended and status.state == "completed":
        display.end(follower.info, "saved", 0)
        if not silent:
            say("\n".join(summary_lines(name, status)))
        return 0
    if follower.ended and status.state == "cancelled":
        outcome, exit_status, text = "cancelled", interrupted, f"cancelled: the guest of {name} goes on, and no file"
        text += " was changed"
    elif follower.ended:
        outcome, exit_status = "failed", STATUS_USAGE
        text = f"{name} was not saved: {status.error or 'no reason given'}; its guest goes on"
    elif interrupts.count >= 2:
        outcome, exit_status = "unknown", interrupted
        text = f"asked {name} to give up and did not wait for its answer"
    else:
        outcome, exit_status = "lost", STATUS_USAGE
        text = f"the process of {name} ended while it was saved; a snapshot that was there is what it was"
    display.end(follower.info, outcome, exit_status)
    message(text, "1" if outcome == "cancelled" else RED)
    return exit_status
