"""``tvmm keys COMMAND``: the certificates by which hosts know each other when machines migrate."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from tvmm.cli.output import RED, YELLOW, flush, message, paint, print_json, print_table, printable, say
from tvmm.errors import ConfigError, HostError

if TYPE_CHECKING:
    import datetime
    from argparse import _SubParsersAction
    from collections.abc import Callable, Mapping

    from tvmm.cli.parser import Parser
    from tvmm.migration.authority import CertificateFacts
    from tvmm.migration.keys import Inventory, KeyDirectory

__all__ = ["add_arguments", "add_keys_option", "key_directory", "run"]

SOON_DAYS = 30
"""From when on the end of a certificate is pointed out."""

_EXAMPLES = """\
  tvmm keys init                              on the first host: a CA, and its own certificate
  tvmm keys issue beta --san 10.0.0.2         there too: key and certificate for the second host
  tvmm keys import beta.tvmm-keys.pem         on the second host
  tvmm keys show                              on both: who is who, and until when
"""

_MORE = """\
'tvmm keys COMMAND --help' tells more. Two hosts that share nothing need no keys for a single move:
one-time codes do (--pair). Private keys are readable by you alone, and have no password.
"""


def add_arguments(parser: Parser) -> None:
    """The verb's commands and their options."""
    from tvmm.cli.parser import add_commands

    parser.describe("Make and look after the certificates by which hosts know each other.", _EXAMPLES, _MORE)
    add_commands(parser, _COMMANDS)


def add_keys_option(parser: Parser) -> None:
    """Where the keys are, for each verb that uses them."""
    parser.add_argument(
        "--keys", metavar="DIR", help="where the keys are (default: $XDG_CONFIG_HOME/tvmm/keys, ~/.config/tvmm/keys)"
    )


def key_directory(options: Mapping[str, Any]) -> KeyDirectory:
    """The key directory that was asked for, or the user's own. It need not exist."""
    from pathlib import Path

    from tvmm.config.keys import default_keys_directory
    from tvmm.migration.keys import KeyDirectory

    if given := options.get("keys"):
        return KeyDirectory(Path(given).absolute())
    return KeyDirectory(Path(default_keys_directory(os.environ, os.path.expanduser("~"))))


def run(options: Mapping[str, Any]) -> int:
    """Do what the command says."""
    _COMMANDS[options["command"]][1](options)
    return 0


def _now() -> datetime.datetime:
    import datetime

    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


# --- init ---


def _add_init(below: _SubParsersAction[Parser], name: str) -> None:
    parser = below.add_parser(name, help="make a CA and this host's certificate")
    parser.describe(
        "Make a CA, valid for 10 years, and a certificate for this host, valid for one.\n"
        "To be done on one host; the others get theirs from there.",
        "  tvmm keys init\n  tvmm keys init --san alpha.example.org --san 10.0.0.1\n",
        "Host name, full name and the addresses of this host are in the certificate without being named.\n"
        "Whoever has ca.key of the key directory can make certificates for any host: keep it on one.\n",
    )
    _add_san(parser)
    parser.add_argument("--force", action="store_true", help="take the place of the CA that is there")
    add_keys_option(parser)


def _add_san(parser: Parser) -> None:
    parser.add_argument(
        "--san", metavar="NAME", action="append", help="a name or address by which others reach the host; repeatable"
    )


def _init(options: Mapping[str, Any]) -> None:
    keys = key_directory(options)
    host, *names = _own_names()
    keys.init(host, [*names, *options.get("san", ())], _now(), force=bool(options.get("force")))
    found = keys.inventory()
    assert found.authority is not None
    assert found.host is not None
    say(printable(f"CA      {found.authority.subject}, until {found.authority.not_after:%Y-%m-%d}"))
    names_shown = ", ".join(found.host.names)
    say(printable(f"host    {found.host.subject} ({names_shown}), until {found.host.not_after:%Y-%m-%d}"))
    say(printable(f"keys    {keys.path}"))
    message("next: 'tvmm keys issue HOST' for each other host, and 'tvmm keys import FILE' there")


def _own_names() -> list[str]:
    """Host name, full name and addresses of this host, without those that no other host can use."""
    import ipaddress
    import socket

    host = socket.gethostname()
    names = [host, socket.getfqdn()]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        names += [str(entry[4][0]) for entry in found]
    except OSError:
        pass  # A host need not be able to look itself up; the addresses of its interfaces follow.
    names += _interface_addresses()
    kept = [host]
    for name in names:
        try:
            address = ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            if name not in kept and name.partition(".")[0] != "localhost" and not name.endswith(".arpa"):
                kept.append(name)
            continue
        if not (address.is_loopback or address.is_link_local) and str(address) not in kept:
            kept.append(str(address))
    return kept


def _interface_addresses() -> list[str]:
    """The addresses from which this host would reach others. Nothing is sent."""
    import socket

    found = []
    # Addresses for documentation (RFC 5737, RFC 3849): routed as any other.
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                found.append(str(probe.getsockname()[0]))
        except OSError:
            continue
    return found


# --- issue ---


def _add_issue(below: _SubParsersAction[Parser], name: str) -> None:
    parser = below.add_parser(name, help="make key and certificate for a host")
    parser.describe(
        "Make key and certificate for a host, valid for one year, and put them into a file together with\n"
        "the CA's certificate and its revocation list. The file is for 'tvmm keys import' on that host.",
        "  tvmm keys issue beta --san beta.example.org --san 10.0.0.2\n"
        "  tvmm keys issue beta --out - | ssh beta tvmm keys import -\n",
    )
    parser.add_argument("host", metavar="HOST", help="name or address by which others reach the host")
    _add_san(parser)
    parser.add_argument("--out", metavar="FILE", help="file to make (default: HOST.tvmm-keys.pem), - for the output")
    add_keys_option(parser)


def _issue(options: Mapping[str, Any]) -> None:
    host = options["host"]
    out = options.get("out") or f"{host.replace('/', '_')}.tvmm-keys.pem"
    if out == "-" and sys.stdout.isatty():
        raise ConfigError("a private key is nothing for a terminal", "pipe it to the other host, or use --out FILE")
    keys = key_directory(options)
    if out == "-":
        _write_out(keys.issue(host, options.get("san", ()), _now()))
        return
    from pathlib import Path

    from tvmm.migration.key_files import create

    # The file first: a certificate that nobody gets would stay in the list of those that were issued.
    with create(Path(out)) as file:
        file.write(keys.issue(host, options.get("san", ()), _now()))
    say(printable(out))
    message(f"carry it to {host} on a way that nobody else can read, 'tvmm keys import' it there, and delete it")


def _write_out(data: bytes) -> None:
    say(data.decode("ascii").rstrip("\n"))
    flush()


# --- import ---


def _add_import(below: _SubParsersAction[Parser], name: str) -> None:
    parser = below.add_parser(name, help="take over what the CA's host has made for this one")
    parser.describe(
        "Take over what 'tvmm keys issue' has made for this host, or the revocation list that\n"
        "'tvmm keys export-crl' has printed.",
        "  tvmm keys import beta.tvmm-keys.pem\n  ssh alpha tvmm keys export-crl | tvmm keys import -\n",
    )
    file = parser.add_argument("file", metavar="FILE", help="the file, - for standard input")
    parser.add_argument("--force", action="store_true", help="take the place of keys that are of another CA")
    add_keys_option(parser)
    from tvmm.cli.completers import attach, pem_files

    attach(file, pem_files)


def _import(options: Mapping[str, Any]) -> None:
    from tvmm.migration.bundle import BUNDLE_LIMIT

    file = options["file"]
    try:
        if file == "-":
            data = sys.stdin.buffer.read(BUNDLE_LIMIT + 1)
        else:
            with open(file, "rb") as opened:
                data = opened.read(BUNDLE_LIMIT + 1)
    except OSError as error:
        raise HostError(f"cannot read {file}: {error.strerror}", "check its name and rights") from error
    say(printable(key_directory(options).import_bundle(data, _now(), force=bool(options.get("force")))))
    if file != "-" and b"PRIVATE KEY" in data:
        message(f"delete {file} now: this host's private key is in it")


# --- show ---


def _add_show(below: _SubParsersAction[Parser], name: str) -> None:
    parser = below.add_parser(name, help="list CA, certificates, their ends, and what is revoked")
    parser.describe(
        "List the CA, this host's certificate and those that were issued here: names, serial numbers, days left.",
        "  tvmm keys show\n  tvmm keys show --json | jq .host.days_left\n",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_keys_option(parser)


def _show(options: Mapping[str, Any]) -> None:
    found = key_directory(options).inventory()
    if options.get("json"):
        print_json(_as_json(found, _now()))
        return
    now = _now()
    for title, facts in (("CA", found.authority), ("this host", found.host)):
        if facts is None:
            say(f"{title:10} none")
            continue
        _show_one(title, facts, found, now)
    revoked = f"{len(found.revoked)} revoked" if found.revoked else "none revoked"
    say(f"{'CRL':10} number {found.crl_number}, {revoked}")
    if found.issued:
        say("")
        print_table(
            ("HOST", "NAMES", "SERIAL", "UNTIL", "STATE"),
            [
                (
                    one.facts.subject,
                    ",".join(one.facts.names),
                    one.facts.serial,
                    f"{one.facts.not_after:%Y-%m-%d}",
                    f"revoked {one.revoked:%Y-%m-%d}" if one.revoked else _days_left(one.facts, now),
                )
                for one in found.issued
            ],
        )


def _show_one(title: str, facts: CertificateFacts, found: Inventory, now: datetime.datetime) -> None:
    here = ""
    if facts is found.authority:
        here = ", its key is here" if found.is_authority else ", its key is on another host"
    say(printable(f"{title:10} {facts.subject}{here}"))
    if facts.names:
        say(printable(f"{'':10} names   {', '.join(facts.names)}"))
    state, colour = f"{facts.not_before:%Y-%m-%d} to {facts.not_after:%Y-%m-%d}, {_days_left(facts, now)}", ""
    if facts.not_after <= now:
        colour = RED
    elif (facts.not_after - now).days < SOON_DAYS:
        colour = YELLOW
    if facts.serial in found.revoked:
        state, colour = f"{state}, revoked {found.revoked[facts.serial]:%Y-%m-%d}", RED
    say(f"{'':10} valid   {paint(state, colour, sys.stdout) if colour else state}")
    say(f"{'':10} serial  {facts.serial}")
    say(f"{'':10} sha256  {facts.sha256}")


def _days_left(facts: CertificateFacts, now: datetime.datetime) -> str:
    if facts.not_after <= now:
        return "expired"
    days = (facts.not_after - now).days
    return f"{days} day{'s' * (days != 1)} left"


def _as_json(found: Inventory, now: datetime.datetime) -> dict[str, object]:
    def certificate(facts: CertificateFacts | None) -> dict[str, object] | None:
        if facts is None:
            return None
        revoked = found.revoked.get(facts.serial)
        return {
            "subject": facts.subject,
            "names": list(facts.names),
            "serial": facts.serial,
            "sha256": facts.sha256,
            "not_before": facts.not_before.isoformat(),
            "not_after": facts.not_after.isoformat(),
            "days_left": (facts.not_after - now).days,
            "revoked": revoked.isoformat() if revoked else None,
        }

    return {
        "directory": str(found.path),
        "ca": certificate(found.authority),
        "is_ca": found.is_authority,
        "host": certificate(found.host),
        "issued": [certificate(one.facts) for one in found.issued],
        "crl": {
            "number": found.crl_number,
            "revoked": {serial: when.isoformat() for serial, when in found.revoked.items()},
        },
    }


# --- revoke, export-crl ---


def _add_revoke(below: _SubParsersAction[Parser], name: str) -> None:
    parser = below.add_parser(name, help="have a certificate refused from now on")
    parser.describe(
        "Put a certificate, or all of a host, on the CA's revocation list. Migrations that begin here\n"
        "from now on refuse them; other hosts do when they have imported the list.",
        "  tvmm keys revoke beta\n  tvmm keys export-crl | ssh gamma tvmm keys import -     for each other host\n",
    )
    what = parser.add_argument("what", metavar="SERIAL|HOST", help="as 'tvmm keys show' lists them")
    add_keys_option(parser)
    from tvmm.cli.completers import attach, issued_hosts

    attach(what, issued_hosts)


def _revoke(options: Mapping[str, Any]) -> None:
    for facts in key_directory(options).revoke(options["what"], _now()):
        say(printable(f"revoked {facts.serial} of {facts.subject}"))
    message("other hosts refuse it once they have the list: 'tvmm keys export-crl | ssh HOST tvmm keys import -'")


def _add_export(below: _SubParsersAction[Parser], name: str) -> None:
    parser = below.add_parser(name, help="print the revocation list for other hosts")
    parser.describe(
        "Print the revocation list, which is no secret, for 'tvmm keys import' on the other hosts.",
        "  tvmm keys export-crl | ssh beta tvmm keys import -\n  tvmm keys export-crl > crl.pem\n",
    )
    add_keys_option(parser)


def _export(options: Mapping[str, Any]) -> None:
    _write_out(key_directory(options).crl_pem())


_COMMANDS: dict[str, tuple[Callable[[Any, str], None], Callable[[Mapping[str, Any]], None]]] = {
    "init": (_add_init, _init),
    "issue": (_add_issue, _issue),
    "import": (_add_import, _import),
    "show": (_add_show, _show),
    "revoke": (_add_revoke, _revoke),
    "export-crl": (_add_export, _export),
}
