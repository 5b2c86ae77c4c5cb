"""``tvmm migrate [NAME] --to ADDRESS``: a guest goes on in another tvmm, on this host or another."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tvmm.cli import STATUS_SIGNAL, STATUS_USAGE
from tvmm.cli.machines import control, named
from tvmm.cli.migration_follow import Follower, Interrupts
from tvmm.cli.output import RED, message, say
from tvmm.config.incoming import MigrationAddress
from tvmm.config.options import choice_of
from tvmm.config.units import parse_duration, parse_integer, parse_size
from tvmm.errors import ConfigError, TvmmError
from tvmm.migration.status import COMPRESSIONS, MAX_CONNECTIONS, POSTCOPIES, POSTCOPY, MigrationParameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.migration_display import Display
    from tvmm.cli.parser import Parser

__all__ = ["add_arguments", "order", "run"]

STATUS_POSTCOPY = 5
"""Exit status: the guest runs at the other end, which waits for memory that is here."""

_EXAMPLES = """\
  tvmm run --memory 1G --incoming tcp:127.0.0.1:4444 &      the other end, with the options of the guest
  tvmm migrate web --to 127.0.0.1:4444
  tvmm migrate web --to b.example:4444 --pair CODE --bandwidth 100M
  tvmm migrate web --to b.example:4444 --tls --copy-storage
  tvmm migrate web --to unix:/tmp/there --max-downtime 50ms --json
  tvmm migrate web --to 127.0.0.1:4444 --postcopy=allow
  tvmm migrate web --recover
"""

_MORE = """\
The guest runs here until the other end has all of it. Ctrl-C, like every failure before that, leaves it here
as it was. Nothing needs to be set: memory is copied while the guest runs, in rounds, for as long as that
makes the pause shorter. With --postcopy a guest that never comes to rest goes before its memory: from then on
it needs both ends and cannot be taken back, and a network that breaks stops it until --recover.
Disks are shared with the other end; those that it was started with copy=on for
(--disk FILE,copy=on) are copied first, with --copy-storage.
To unix:PATH, with --memory ...,shared=on on both sides, it is handed over as it is
and nothing is copied: for a new tvmm under a running guest.

exit status:
  0    the guest has moved
  2    it has not: wrong usage, refused or failed, and it goes on at the source
  5    post-copy lost its connection: it waits at the other end for --recover
  130  cancelled, and it goes on at the source
"""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.completers import address_values, attach, word_values
    from tvmm.cli.parser import add_name

    parser.describe("Move the guest of a running machine to another tvmm while it runs.", _EXAMPLES, _MORE)
    add_name(parser)
    to = parser.add_argument(
        "--to",
        metavar="ADDRESS",
        help="HOST:PORT or unix:PATH, where 'tvmm run --incoming' waits for it",
    )
    parser.add_argument(
        "--recover", action="store_true", help="go on with a post-copy that lost its connection; --to if it moved"
    )
    parser.add_argument(
        "--copy-storage", action="store_true", help="copy the disks that the other end was given copy=on for"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-downtime", metavar="TIME", help="longest pause of the guest allowed (default 300ms)")
    limits.add_argument(
        "--bandwidth", metavar="SIZE", help="bytes per second at most, 1G for instance (default 0: all)"
    )
    limits.add_argument(
        "--connections",
        metavar="N",
        help=f"TCP connections that share the work, 1 to {MAX_CONNECTIONS} (default 0: chosen)",
    )
    limits.add_argument(
        "--timeout", metavar="TIME", help="what the rounds after the first pass may take, 0 for ever (default 10m)"
    )
    compress = limits.add_argument("--compress", metavar="HOW", help="off or zstd, for slow networks (default off)")
    postcopy = limits.add_argument(
        "--postcopy",
        metavar="WHEN",
        nargs="?",
        const="allow",
        help="let the guest go before its memory where rounds do not get it there, or =now: after the first pass",
    )
    limits.add_argument(
        "--verify", action="store_true", help="compare memory and copied disks on both sides in the pause"
    )
    trust = parser.add_argument_group("security")
    trust.add_argument("--pair", metavar="CODE", help="the code that 'tvmm run --incoming ... --pair' has printed")
    trust.add_argument("--tls", action="store_true", help="TLS with certificates on both sides (see 'tvmm keys')")
    trust.add_argument("--keys", metavar="DIR", help="the certificates (default: those of the machine's user)")
    trust.add_argument("--tls-hostname", metavar="NAME", help="name in the other end's certificate (default: the host)")
    trust.add_argument("--insecure", action="store_true", help="without TLS over a network, where others can listen in")
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--json", action="store_true", help="print an object per line while it goes on; the last has the outcome"
    )
    output.add_argument("--quiet", action="store_true", help="print nothing but errors")
    attach(to, address_values)
    attach(compress, word_values(*COMPRESSIONS))
    attach(postcopy, word_values(*POSTCOPIES))


def run(options: Mapping[str, Any]) -> int:
    """Move it, and say how it went."""
    from tvmm.control.client import CommandError

    recovers = bool(options.get("recover"))
    uri, parameters = _recovery(options) if recovers else order(options)
    entry = named(options)
    with control(entry) as client, Interrupts() as interrupts:
        follower = Follower(client)
        try:
            if recovers:
                follower.recover(uri)
            else:
                follower.start(uri, parameters)
        except TvmmError as error:
            outcome = "refused" if isinstance(error, CommandError) else "unknown"
            _display(options).end({"error-desc": str(error)}, outcome, STATUS_USAGE)
            raise
        # Found now, when the machine is at work.
        with _display(options) as display:
            for info in follower.updates(interrupts):
                if follower.status.incoming:
                    break
                if not follower.ended:
                    display.update(info)
                if follower.waits:
                    break
    return _report(entry.name, follower, interrupts, display, silent="json" in options or "quiet" in options)


def _display(options: Mapping[str, Any]) -> Display:
    from tvmm.cli.migration_display import choose

    return choose(as_json=bool(options.get("json")), quiet=bool(options.get("quiet")))


def _recovery(options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The address for `--recover`, '' for that of before. Raises `ConfigError` for what a recovery does not have."""
    others = sorted(set(options) - {"recover", "to", "name", "json", "quiet"})
    if others:
        raise ConfigError(
            f"--{others[0].replace('_', '-')} has no meaning with --recover", "what it began with holds to the end"
        )
    return (order({"to": options["to"]})[0] if options.get("to") else ""), {}


def order(options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What to ask of the machine: the address, and members of `x-parameters` for what was given.

    Relative paths are made absolute, since the machine may have another directory. Raises `ConfigError`.
    """
    if not options.get("to"):
        raise ConfigError("where is the guest to go?", "give the address with --to")
    address = MigrationAddress.parse(options["to"], "--to")
    if address.kind == "unix":
        address = address._replace(path=os.path.abspath(address.path))
    given = MigrationParameters(
        max_downtime_ms=parse_duration(options.get("max_downtime", 0.3), "max downtime") * 1000,
        bandwidth=parse_size(options.get("bandwidth", 0), "bandwidth"),
        connections=parse_integer(options.get("connections", 0), "connections", 0, MAX_CONNECTIONS),
        timeout_s=parse_duration(options.get("timeout", 600), "timeout"),
        compress=choice_of(options.get("compress", "off"), "compression", COMPRESSIONS),
        verify=options.get("verify", False),
        copy_storage=options.get("copy_storage", False),
        tls=options.get("tls", False),
        keys=os.path.abspath(options["keys"]) if options.get("keys") else "",
        tls_hostname=options.get("tls_hostname", ""),
        pair=options.get("pair", ""),
        insecure=options.get("insecure", False),
        postcopy=choice_of(options.get("postcopy", "off"), "post-copy", POSTCOPIES),
    ).check()
    values = {
        "max_downtime": ("downtime-limit", given.max_downtime_ms),
        "bandwidth": ("max-bandwidth", given.bandwidth),
        "connections": ("multifd-channels", given.connections),
        "timeout": ("x-timeout", given.timeout_s * 1000),
        "compress": ("multifd-compression", "none" if given.compress == "off" else given.compress),
        "verify": ("x-verify", given.verify),
        "postcopy": ("x-postcopy", given.postcopy),
        "copy_storage": ("x-copy-storage", given.copy_storage),
        "tls": ("x-tls", given.tls),
        "keys": ("tls-creds", given.keys),
        "tls_hostname": ("tls-hostname", given.tls_hostname),
        "pair": ("x-pair", given.pair),
        "insecure": ("x-insecure", given.insecure),
    }
    # What was not given is what `migrate-set-parameters` has set, or the default.
    return address.uri, dict(values[name] for name in values if name in options)


def _report(name: str, follower: Follower, interrupts: Interrupts, display: Display, *, silent: bool) -> int:
    """Say how it ended; the exit status."""
    from tvmm.cli import migration_view as view

    status = follower.status
    interrupted = STATUS_SIGNAL + (interrupts.first or Interrupts.NUMBERS[0])
    if status.state == "completed" and follower.ended:
        display.end(follower.info, "moved", 0)
        if not silent:
            say("\n".join(view.summary_lines(name, status)))
        return 0
    if status.incoming:
        # At the destination there is nothing to follow: it waits, and the source knows more.
        display.end(follower.info, "listening", 0)
        if not silent:
            say(view.listening_text(name, status))
        return 0
    if follower.ended and status.state == "cancelled" and status.guest == "source":
        outcome, exit_status, text = "cancelled", interrupted, view.still_here_text(name, status)
    elif follower.ended:
        outcome, exit_status, text = "failed", STATUS_USAGE, view.still_here_text(name, status)
    elif follower.waits:
        outcome, exit_status, text = "paused", STATUS_POSTCOPY, view.paused_text(name, status)
    elif status.state in POSTCOPY and interrupts.count:
        outcome, exit_status = "unknown", interrupted
        text = f"{name} runs at the other end and gets its memory from here, which goes on: see 'tvmm info {name}'"
    elif interrupts.count >= 2:
        outcome, exit_status = "unknown", interrupted
        text = f"asked {name} to give up and did not wait for its answer; 'tvmm info {name}' says how it ended"
    else:
        outcome, exit_status, text = "lost", STATUS_USAGE, view.lost_text(name, status)
    display.end(follower.info, outcome, exit_status)
    message(text, "1" if outcome == "cancelled" else RED)
    return exit_status
