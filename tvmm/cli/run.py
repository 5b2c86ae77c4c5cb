"""``tvmm run``: options into a `MachineConfig`, a machine out of it, and its end into an exit status."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.cli import STATUS_SIGNAL
from tvmm.cli.output import RED, message, say
from tvmm.config.machine import MachineConfig
from tvmm.config.serial import SerialConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvmm.cli.parser import Parser
    from tvmm.config.properties import Property
    from tvmm.outcome import Outcome

__all__ = ["Ending", "add_arguments", "configure", "exit_status", "farewell", "run"]


_EXAMPLES = """\
  tvmm run                                      the built-in guest, on this terminal
  tvmm run --memory 1G --cpus 2
  tvmm run --name web --kernel vmlinuz --initrd initrd.img --append "console=ttyS0 quiet"
  tvmm run --kernel vmlinuz --append "root=/dev/vda" --disk root.img,cache=none --net tap,br=br0
  tvmm run --disk a.img,readonly=on --disk b.img,transport=mmio,serial=SN1 --device virtio-rng
  tvmm run --kernel vmlinuz --net user,hostfwd=tcp:127.0.0.1:2222-:22   port 2222 leads to the guest's 22
  tvmm run --disk nbd://storage/root --disk data.qcow2   a server's export; an image for qemu-nbd
  tvmm run --net tap,ip=10.0.2.1/24 --device virtio-console,chardev=unix=/tmp/hvc0
  tvmm run --serial file=boot.log,append=on --device isa-debug-exit
  tvmm run --config web.toml --memory 2G        the file's machine, with other memory
  tvmm run --memory 1G --incoming tcp:127.0.0.1:4444   wait for a guest with these options
  tvmm run --disk b.img,copy=on --incoming tcp:0.0.0.0:4444 --pair   and its disk (--copy-storage)
  tvmm run --incoming tcp:0.0.0.0:4444 --pair   from another host; prints a code for 'tvmm migrate --pair'
  tvmm run --device help                        what devices there are; also --disk help, --net help
"""

_MORE = """\
Values are written as QEMU has them: key=value,key=value, with ',,' for a literal comma.

On the terminal every key goes to the guest; Ctrl-A x ends the machine, Ctrl-A h lists what else there is.
SIGINT, SIGTERM and SIGHUP ask the guest to power off; a second one ends the machine, as does the end of
--powerdown-timeout.
"""


HELP = ("help", "?")
"""What asks for the values of an option, in place of one."""


class Ending(NamedTuple):
    """How a run ended.

    `outcome` is the machine's, None if it never started; `signal` the one that it took to end it, or 0.
    """

    outcome: Outcome | None
    signal: int = 0


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.completers import (
        attach,
        cpu_values,
        device_values,
        disk_values,
        memory_values,
        metrics_values,
        net_values,
        serial_values,
        vnc_values,
        vsock_values,
        word_values,
    )
    from tvmm.cli.parser import EXIT_STATUSES
    from tvmm.config.cpu import MAX_CPUS
    from tvmm.config.kernel import DECOMPRESS_CHOICES, ENTRY_CHOICES
    from tvmm.config.machine import ASSIST_CHOICES

    parser.describe(
        "Start a virtual machine and stay with it until it ends.\n"
        "Without options: the built-in guest on this terminal.",
        _EXAMPLES,
        f"{_MORE}\n{EXIT_STATUSES}",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--name", metavar="NAME", help="name for 'tvmm ps', 'tvmm stop' ... (default vm-PID)")
    machine.add_argument("--config", metavar="FILE.toml", help="read options from a file; those given here win")
    memory = machine.add_argument(
        "--memory",
        metavar="SIZE[,key=val]",
        help="guest RAM (default 256M); keys: hugepages=on|2M|1G, prealloc=on, shared=on, dirty-ring=N",
    )
    machine.add_argument("--cpus", metavar="N", help=f"number of processors, 1 to {MAX_CPUS} (default 1)")
    cpu = machine.add_argument(
        "--cpu",
        metavar="MODEL[,+|-feature]",
        help="processor model: host, max or minimal (default host); 'help' lists the features",
    )
    disk = machine.add_argument(
        "--disk",
        metavar="FILE[,key=val]",
        action="append",
        help="add a virtio disk: an image, a block device, an nbd:// address; may be repeated; 'help' lists the keys",
    )
    net = machine.add_argument(
        "--net",
        metavar="tap|user|stream[,key=val]",
        action="append",
        help="add a virtio network device: on a tap, on the host's network without any right (user, through passt), or "
        "on a unix socket (stream); may be repeated; 'none' is the default, 'help' lists the keys",
    )
    device = machine.add_argument(
        "--device",
        metavar="NAME[,key=val]",
        action="append",
        help="add a device, may be repeated; 'help' lists the names, 'NAME,help' the properties",
    )
    display = machine.add_argument(
        "--display",
        metavar="bochs-display[,key=val]",
        help="give the guest a screen (default none); 'help' lists the keys",
    )
    kernel = parser.add_argument_group("kernel")
    kernel.add_argument("--kernel", metavar="FILE", help="bzImage or ELF to boot (default: the built-in guest)")
    kernel.add_argument("--initrd", metavar="FILE", help="initial RAM disk (default none)")
    kernel.add_argument("--append", metavar="TEXT", help="the kernel's command line (default empty)")
    entry = kernel.add_argument("--entry", metavar="HOW", help="boot protocol: auto, pvh or linux64 (default auto)")
    decompress = kernel.add_argument(
        "--decompress", metavar="WHEN", help="unpack the kernel on the host: auto, on or off (default auto)"
    )
    outside = parser.add_argument_group("connections")
    serial = outside.add_argument(
        "--serial",
        metavar="KIND",
        help="serial port: stdio, pty, none, file=PATH, unix=PATH or tcp=HOST:PORT (default stdio)",
    )
    outside.add_argument(
        "--control",
        metavar="PATH",
        help="one more QMP control socket (default: only the one that the name leads to)",
    )
    vnc = outside.add_argument(
        "--vnc",
        metavar="WHERE[,key=val]",
        help="show the screen to VNC viewers at HOST:PORT, unix:PATH or :DISPLAY (default none); 'help' lists the keys",
    )
    metrics = outside.add_argument(
        "--metrics",
        metavar="WHERE[,key=val]",
        help="show Prometheus what the machine counts, at HOST:PORT or unix:PATH (default none); 'help' lists the keys",
    )
    vsock = outside.add_argument(
        "--vsock",
        metavar="PATH[,key=val]",
        help="sockets between guest and host, by the unix socket PATH (default none); 'help' lists the keys",
    )
    _add_incoming(parser)
    life = parser.add_argument_group("life cycle")
    life.add_argument("--paused", action="store_true", help="wait for 'tvmm resume' before the first instruction")
    life.add_argument(
        "--no-reboot",
        dest="reboot",
        action="store_false",
        help="end when the guest resets (default: start it again)",
    )
    life.add_argument(
        "--powerdown-timeout",
        metavar="TIME",
        help="what a guest that was asked to power off gets before it is ended (default 10s)",
    )
    assist = life.add_argument(
        "--assist",
        metavar="WHEN",
        help="stand in for KVM where it cannot emulate an instruction: auto, on or off (default auto)",
    )
    attach(memory, memory_values)
    attach(cpu, cpu_values)
    attach(disk, disk_values)
    attach(net, net_values)
    attach(device, device_values)
    attach(display, word_values("bochs-display"))
    attach(serial, serial_values)
    attach(vnc, vnc_values)
    attach(metrics, metrics_values)
    attach(vsock, vsock_values)
    attach(entry, word_values(*ENTRY_CHOICES))
    attach(decompress, word_values(*DECOMPRESS_CHOICES))
    attach(assist, word_values(*ASSIST_CHOICES))


def _add_incoming(parser: Parser) -> None:
    """The options about a guest that comes from elsewhere."""
    from tvmm.cli.completers import address_values, attach

    group = parser.add_argument_group("live migration")
    incoming = group.add_argument(
        "--incoming",
        metavar="ADDRESS",
        help="do not boot but wait for a guest that 'tvmm migrate' sends, with the same other options as its source: "
        "tcp:HOST:PORT, unix:PATH, or defer to be told by QMP",
    )
    group.add_argument("--pair", action="store_true", help="print a one-time code; who has it may send the guest")
    group.add_argument("--tls", action="store_true", help="TLS with certificates on both sides (see 'tvmm keys')")
    group.add_argument("--keys", metavar="DIR", help="the certificates (default: this user's own)")
    group.add_argument("--insecure", action="store_true", help="without TLS over a network, from whoever comes")
    attach(incoming, address_values)


def run(options: Mapping[str, Any]) -> int:
    """Run the machine until it ends."""
    text = _help(options)
    if text is not None:
        say(text.rstrip())
        return 0
    config = configure(options, os.environ, os.geteuid(), os.getpid())

    # What is wrong with the options is told without waiting for these.
    import trio

    from tvmm.cli.session import supervise
    from tvmm.errors import IncomingFailed, collapse
    from tvmm.machine import Machine

    while True:
        machine = Machine(config)
        machine.on_warning = message
        try:
            with collapse():
                ending = trio.run(supervise, machine, config, message)
            break
        except IncomingFailed as error:
            # What came of the guest is in this machine's RAM and devices: the next one starts with new ones.
            message(f"{error}; waiting again")
    for line in farewell(ending):
        message(line, RED if ending.outcome and ending.outcome.kind == "crashed" else "1")
    return exit_status(ending)


def configure(options: Mapping[str, Any], environment: Mapping[str, str], uid: int, pid: int) -> MachineConfig:
    """The machine that options and configuration file describe, with a name and a place in the registry."""
    from tvmm.config.keys import default_keys_directory
    from tvmm.control.registry import runtime_directory

    given = dict(options)
    path = given.pop("config", None)
    if path is not None:
        from tvmm.config.file import read_config

        given = {**read_config(path), **given}
    config = MachineConfig.from_options(given)
    ports = [port.chardev.kind for console in config.consoles for port in console.ports]
    if "serial" not in given and "stdio" not in ports:
        # Not an option beside the others: a console port may want the terminal, and then it has it.
        config = config._replace(serial=SerialConfig("stdio"))
    return config._replace(
        name=config.name or f"vm-{pid}",
        runtime_dir=str(runtime_directory(environment, uid)),
        keys_dir=default_keys_directory(environment, environment.get("HOME", "")),
    )


def exit_status(ending: Ending) -> int:
    """128+n if it took signal n to end the machine, what the machine says otherwise."""
    outcome = ending.outcome
    if outcome is None or (ending.signal and outcome.kind == "quit"):
        return STATUS_SIGNAL + ending.signal
    return outcome.status


def farewell(ending: Ending) -> list[str]:
    """What to tell the user about the end; nothing if the guest powered off."""
    outcome = ending.outcome
    if outcome is None:
        return [f"ended by {_signal_name(ending.signal)} before the guest ran"]
    if outcome.kind == "poweroff":
        return []
    if outcome.kind == "quit":
        return [f"ended by {_signal_name(ending.signal)}" if ending.signal else "the machine was ended"]
    first, *rest = outcome.report.splitlines() or [""]
    if outcome.kind == "migrated":
        return [f"the guest has moved to {first}" if first else "the guest has moved", *rest]
    if outcome.kind == "saved":
        return [f"the guest was saved: 'tvmm restore {first}' goes on with it"]
    plain = {
        "crashed": "the guest crashed",
        "reset": "the guest reset the machine",
        "halted": "the guest halted for good",
        "debug-exit": f"the guest ended the machine through isa-debug-exit with status {outcome.status}",
    }.get(outcome.kind, f"the machine ended: {outcome.kind}")
    return [f"{plain}: {first}" if first else plain, *rest]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _help(options: Mapping[str, Any]) -> str | None:
    """The list that ``--device help`` and its like ask for."""
    if options.get("cpu") in HELP:
        return _cpu_help()
    if any(value in HELP for value in options.get("disk", ())):
        from tvmm.config.disk import DISK_PROPERTIES

        return _group_help("--disk FILE[,key=value]", DISK_PROPERTIES)
    for net in options.get("net", ()):
        if net.rpartition(",")[2] in HELP:
            from tvmm.config.net import properties_of

            return _group_help("--net none, or --net tap|user|stream[,key=value]", properties_of(net.partition(",")[0]))
    if options.get("vnc") in HELP:
        from tvmm.config.vnc import VNC_PROPERTIES

        return _group_help("--vnc HOST:PORT|unix:PATH|:DISPLAY|none[,key=value]", VNC_PROPERTIES)
    if options.get("metrics") in HELP:
        from tvmm.config.metrics import METRICS_PROPERTIES

        return _group_help("--metrics HOST:PORT|:PORT|unix:PATH|none[,key=value]", METRICS_PROPERTIES)
    if options.get("vsock") in HELP:
        from tvmm.config.vsock import VSOCK_OPTIONS

        return _group_help("--vsock PATH[,key=value]", VSOCK_OPTIONS)
    if options.get("display") in (*HELP, *(f"bochs-display,{word}" for word in HELP)):
        from tvmm.config.display import DISPLAY_PROPERTIES

        return _group_help("--display bochs-display[,key=value]", DISPLAY_PROPERTIES)
    for device in options.get("device", ()):
        from tvmm.config.device import help_request

        text = help_request(device)
        if text is not None:
            return text
    return None


def _group_help(form: str, properties: Sequence[Property]) -> str:
    from tvmm.config.properties import help_lines

    return "\n".join([form, "", *help_lines(properties)])


def _cpu_help() -> str:
    from textwrap import fill

    from tvmm.config.cpu import CPU_MODELS
    from tvmm.vcpu.cpu_features import FEATURES

    names = fill(" ".join(sorted(FEATURES)), 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return f"models:\n  {' '.join(CPU_MODELS)}\n\nfeatures (MODEL,+NAME or MODEL,-NAME):\n{names}\n"
