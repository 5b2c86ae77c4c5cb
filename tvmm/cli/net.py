"""``tvmm net COMMAND``: networks for machines on this host, and taps for users without rights."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tvmm.cli.machines import base_directory
from tvmm.cli.output import message, printable, say
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Callable, Iterator, Mapping

    from tvmm.cli.parser import Parser
    from tvmm.net.spec import NetworkSpec
    from tvmm.net.store import Store

__all__ = ["add_arguments", "machine_names_by_pid", "run", "store"]

STATUS_SIGNAL = 128

_EXAMPLES = """\
  tvmm net up lan                              a bridge, NAT, DHCP, DNS and IPv6
  tvmm run --name web --net tap,network=lan    a machine in it
  tvmm net list                                which there are, and who is in them
  tvmm net down lan                            undo all of it
  tvmm net create --user alice --network lan   a tap for somebody without rights
"""

_MORE = """\
'tvmm net COMMAND --help' tells more. Changes need root; 'tvmm net up NAME --dry-run' shows them to anybody.
"""


def add_arguments(parser: Parser) -> None:
    """The verb's commands and their options."""
    from tvmm.cli.parser import add_commands

    parser.describe("Make networks for machines on this host, and undo them.", _EXAMPLES, _MORE)
    add_commands(parser, _COMMANDS)


def run(options: Mapping[str, Any]) -> int:
    """Do what the command says."""
    _COMMANDS[options["command"]][1](options)
    return 0


def store() -> Store:
    """The journals of this user's networks."""
    from tvmm.net.store import Store

    return Store(base_directory() / "net")


def machine_names_by_pid() -> dict[int, str]:
    """The machines that run, by their processes."""
    from tvmm.control.registry import machines
    from tvmm.errors import UserError

    try:
        return {entry.pid: entry.name for entry in machines(base_directory()) if entry.alive}
    except UserError:
        return {}


def _add_network(parser: Parser) -> None:
    from tvmm.cli.completers import attach, network_names

    attach(parser.add_argument("name", metavar="NAME", help="the network, as 'tvmm net list' has it"), network_names)


# --- up ---


def _add_up(below: _SubParsersAction[Parser], name: str) -> None:
    parser = below.add_parser(name, help="make a network")
    parser.describe(
        "Make a network for machines: a bridge, NAT and rules for it, DHCP and DNS, IPv6.\n"
        "All of it is written down before it is done, and 'tvmm net down' undoes exactly that.",
        "  tvmm net up lan\n"
        "  tvmm net up lan --dry-run                     the commands that do the same\n"
        "  tvmm net up web --forward tcp:8080:www:80     port 8080 of the host is port 80 of machine www\n"
        "  tvmm net up guests --isolated                 machines reach the internet, and nobody near\n"
        "  tvmm net up lab --subnet 10.9.8.0/24 --subnet6 none --no-nat --no-dhcp\n",
        "Machines join with 'tvmm run --net tap,network=NAME'. DHCP and DNS are done by dnsmasq, if it is\n"
        "installed; a machine's name is known to the DNS if its guest sends it, or if --host has it.\n",
    )
    parser.add_argument("name", metavar="NAME", help="small letters, digits, '-'; at most 10; its bridge is tvmm-NAME")
    add = parser.add_argument
    add("--subnet", metavar="ADDR/LEN", help="its IPv4 addresses (default: a private /24 that no route overlaps)")
    add("--subnet6", metavar="ADDR/64", help="its IPv6 prefix, or 'none' (default: a private one of this host)")
    add("--no-nat", action="store_true", help="guests keep their addresses outside, and are reached by them")
    add("--no-dhcp", action="store_true", help="no DHCP, DNS and router advertisements")
    add("--dhcp", action="store_true", help="fail if dnsmasq is not installed (default: go on without it)")
    add("--isolated", action="store_true", help="guests reach neither one another nor private networks")
    add("--uplink", metavar="IF", help="the only link by which guests get out (default: as the host's routes go)")
    add("--mtu", metavar="N", type=_number, help="largest packet (default: 1500, or what the uplink has if it is less)")
    add("--domain", metavar="D", help="what the names of guests end in (default: NAME.internal)")
    add("--dns", metavar="ADDR", action="append", help="server for other names; repeatable (default: as the host does)")
    add("--host", metavar="NAME[=ADDR]", action="append", help="machine with a name and a fixed address; repeatable")
    add("--forward", metavar="PROTO:PORT:GUEST:PORT", action="append",
        help="a port of the host is one of a guest's, which is an address or a machine's name; repeatable")  # fmt: skip
    add("--allow", metavar="PROTO:PORT", action="append", help="guests may use this service of the host; repeatable")
    add("--dry-run", action="store_true", help="print the commands that would do it, and do nothing")


def _number(text: str) -> int:
    from argparse import ArgumentTypeError

    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ArgumentTypeError(f"{text[:40]!r} is no number")
    return int(text)


def _spec(options: Mapping[str, Any]) -> NetworkSpec:
    from tvmm.net.spec import NetworkSpec, read_forward, read_host, read_port

    if options.get("no_dhcp") and options.get("dhcp"):
        raise ConfigError("--dhcp and --no-dhcp do not go together", "leave one of them out")
    return NetworkSpec(
        options["name"],
        subnet=options.get("subnet", ""),
        subnet6=options.get("subnet6", ""),
        nat=not options.get("no_nat"),
        dhcp="off" if options.get("no_dhcp") else "on" if options.get("dhcp") else "auto",
        isolated=bool(options.get("isolated")),
        uplink=options.get("uplink", ""),
        mtu=options.get("mtu", 0),
        domain=options.get("domain", ""),
        dns=tuple(options.get("dns", ())),
        hosts=tuple(map(read_host, options.get("host", ()))),
        forwards=tuple(map(read_forward, options.get("forward", ()))),
        allows=tuple(map(read_port, options.get("allow", ()))),
    ).check()


def _up(options: Mapping[str, Any]) -> None:
    from tvmm.net.network import plan, take_up

    spec = _spec(options)
    if options.get("dry_run"):
        from tvmm.net.plan import as_shell

        planned = plan(spec, store())
        for step in planned.steps:
            say(printable_lines(as_shell(step)))
        for note in planned.notes:
            message(note)
        return
    with _ended_by_signals():
        done = take_up(spec, store())
    for note in done.notes:
        message(note)
    if not done.made:
        message(f"network {spec.name} is up already")
    from tvmm.cli.net_view import say_network

    say_network(done.journal)
    if done.made:
        message(f"next: 'tvmm run --net tap,network={spec.name}'")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Within it, a process that is asked to end does so as Ctrl-C does it: what was done is undone."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(STATUS_SIGNAL + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def printable_lines(lines: list[str]) -> str:
    """Each of them printable."""
    return "\n".join(printable(part) for line in lines for part in line.split("\n"))


# --- down ---


def _add_down(below: _SubParsersAction[Parser], name: str) -> None:
    parser = below.add_parser(name, help="undo a network")
    parser.describe(
        "Undo exactly what 'tvmm net up' has done, also if it was killed half way through.",
        "  tvmm net down lan\n  tvmm net down lan --force     though machines are in it\n",
    )
    _add_network(parser)
    parser.add_argument("--force", action="store_true", help="also while machines are in it, which lose their network")


def _down(options: Mapping[str, Any]) -> None:
    from tvmm.net.network import take_down

    for note in take_down(
        options["name"], store(), force=bool(options.get("force")), names=machine_names_by_pid()
    ):
        message(note)
    message(f"network {options['name']} is down")


# --- list and show ---


def _add_list(below: _SubParsersAction[Parser], name: str) -> None:
    parser = below.add_parser(name, help="list networks, and taps made by 'tvmm net create'")
    parser.describe(
        "List the networks that are up, who is in them, and the taps that were made for users.",
        "  tvmm net list\n  tvmm net list --json | jq -r '.networks[].name'\n",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def _list(options: Mapping[str, Any]) -> None:
    from tvmm.cli.net_view import print_list

    print_list(store(), machine_names_by_pid(), as_json=bool(options.get("json")))


def _add_show(below: _SubParsersAction[Parser], name: str) -> None:
    parser = below.add_parser(name, help="show one network: addresses, machines, leases")
    parser.describe(
        "Show a network: its addresses and options, the machines in it, and the leases of its DHCP.",
        "  tvmm net show lan\n  tvmm net show lan --json | jq '.leases'\n",
    )
    _add_network(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def _show(options: Mapping[str, Any]) -> None:
    from tvmm.cli.net_view import print_one

    print_one(options["name"], store(), machine_names_by_pid(), as_json=bool(options.get("json")))


# --- create and delete ---


def _add_create(below: _SubParsersAction[Parser], name: str) -> None:
    parser = below.add_parser(name, help="make a tap that a user opens without any right")
    parser.describe(
        "Make a tap that stays, belongs to a user, and is up: that user's machines open it without any right.",
        "  tvmm net create --user alice --network lan\n"
        "  tvmm net create tap7 --group kvm --br br0 --mtu 9000\n"
        "  tvmm run --net tap,ifname=tap7     then, as that user\n",
    )
    from tvmm.cli.completers import attach, group_names, network_names, user_names

    parser.add_argument("ifname", metavar="IFNAME", nargs="?", help="its name (default: made of the user's)")
    attach(parser.add_argument("--user", metavar="U", help="whose it is: a name or a number"), user_names)
    attach(parser.add_argument("--group", metavar="G", help="whose members may open it"), group_names)
    network = parser.add_argument("--network", metavar="NAME", help="put it into this network, and make it fit")
    attach(network, network_names)
    parser.add_argument("--br", metavar="BRIDGE", help="put it into this bridge")
    parser.add_argument("--isolated", action="store_true", help="no traffic with other isolated ports of the bridge")
    parser.add_argument(
        "--queues", metavar="N", type=_number,
        help="1: for programs that know of one queue only (default: as many as are opened)",
    )  # fmt: skip
    parser.add_argument("--mtu", metavar="N", type=_number, help="largest packet (default: the network's, or 1500)")


def _create(options: Mapping[str, Any]) -> None:
    from tvmm.net.host import check_rights
    from tvmm.net.prepared import create_tap

    request = tap_request(options)
    check_rights()
    name = create_tap(request)
    say(printable(name))
    message(f"for {request.prepared.owner}: 'tvmm run --net tap,ifname={name}'; 'tvmm net delete {name}' removes it")


def tap_request(options: Mapping[str, Any]) -> Any:
    """The tap that was asked for, with users and networks looked up. Raises `UserError`."""
    from tvmm.config.net import MAX_PAIRS, NetConfig
    from tvmm.net.membership import find_network
    from tvmm.net.prepared import Prepared, TapRequest
    from tvmm.net.spec import check_network_name
    from tvmm.net.users import find_group, find_user

    user, group, network = options.get("user"), options.get("group"), options.get("network", "")
    if not user and not group:
        raise ConfigError("a tap needs an owner", "add --user or --group")
    if network and options.get("br"):
        raise ConfigError("--network and --br do not go together", "leave one of them out")
    queues = options.get("queues", 0)
    if "queues" in options and not 1 <= queues <= MAX_PAIRS:
        raise ConfigError(f"{queues} queues are out of range", f"they go from 1 to {MAX_PAIRS}")
    # The same rules as for a machine's tap.
    checked = NetConfig(
        ifname=options.get("ifname", ""), br=options.get("br", ""), mtu=options.get("mtu", 0)
    ).check()
    bridge, isolated, mtu = checked.br, bool(options.get("isolated")), checked.mtu
    if network:
        found = find_network(check_network_name(network))
        bridge, isolated, mtu = found.bridge, isolated or found.isolated, mtu or found.mtu
    if isolated and not bridge:
        raise ConfigError("--isolated is of a bridge", "add --network or --br")
    owner, uid, gid = "", -1, -1
    if group:
        owner, gid = find_group(group)
        owner = f"@{owner}"
    if user:
        owner, uid = find_user(user)
    return TapRequest(checked.ifname, Prepared(owner, network), uid, gid, bridge, isolated, queues, mtu)


def _add_delete(below: _SubParsersAction[Parser], name: str) -> None:
    parser = below.add_parser(name, help="remove a tap that 'tvmm net create' has made")
    parser.describe(
        "Remove a tap that 'tvmm net create' has made.",
        "  tvmm net delete vt-alice\n  tvmm net delete vt-alice --force     though a machine has it open\n",
    )
    from tvmm.cli.completers import attach, prepared_tap_names

    ifname = parser.add_argument("ifname", metavar="IFNAME", help="the tap, as 'tvmm net list' has it")
    attach(ifname, prepared_tap_names)
    parser.add_argument("--force", action="store_true", help="also while a machine has it open")


def _delete(options: Mapping[str, Any]) -> None:
    from tvmm.net.host import check_rights
    from tvmm.net.prepared import delete_tap

    check_rights()
    delete_tap(options["ifname"], force=bool(options.get("force")))
    message(f"tap {options['ifname']} is removed")


_COMMANDS: dict[str, tuple[Callable[[Any, str], None], Callable[[Mapping[str, Any]], None]]] = {
    "up": (_add_up, _up),
    "down": (_add_down, _down),
    "list": (_add_list, _list),
    "show": (_add_show, _show),
    "create": (_add_create, _create),
    "delete": (_add_delete, _delete),
}
