"""``tvmm restore FILE``: go on with a machine that `tvmm save` wrote, or say what is in its file."""

from __future__ import annotations

import os
import re
import shlex
import time
from typing import TYPE_CHECKING, Any

from tvmm.cli.output import RED, message, print_json, printable, say
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.parser import Parser
    from tvmm.snapshot.reader import SnapshotFile

__all__ = ["add_arguments", "info_lines", "run"]

_EXAMPLES = """\
  tvmm restore web.snap                          on this terminal, as 'tvmm run' does
  tvmm restore web.snap --name web-2 --disk copy.img --serial pty
  tvmm restore web.snap --eager                  all of its memory is read and checked first
  tvmm restore web.snap --clones 50 --name web   web-1 to web-50, which share memory
  tvmm restore web.snap --clones 4 --disk 'web-{n}.qcow2' --vnc :{n}   each with what is its own
  tvmm restore web.snap --info                   what is in it; with --json for programs
  tvmm restore web.snap --verify                 read all of it, and compare the checksums
"""

_MORE = """\
The machine is the one in the file. Options that are given here replace the saved ones, each as a whole:
--disk names all disks. What the guest can see of them has to be what it was; otherwise all differences are
told.

The guest runs at once, and its memory is read from the file when it needs it, and to the end in the
background. FILE may be replaced meanwhile by another save; who writes into it, or cuts it short, ends the
machine.
"""


_CLONES_HELP = "start N machines, NAME-1 to NAME-N, that share its memory until they write; {n} in options is 1 to N"
_MADE_UP = re.compile(r"vm-\d+")


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.completers import (
        attach,
        disk_values,
        metrics_values,
        net_values,
        serial_values,
        vnc_values,
        vsock_values,
        word_values,
    )
    from tvmm.cli.parser import EXIT_STATUSES
    from tvmm.cli.snapshot_secret import add_secret_options

    parser.describe("Go on with a machine that was saved into a file.", _EXAMPLES, f"{_MORE}\n{EXIT_STATUSES}")
    parser.add_argument("file", metavar="FILE", help="what 'tvmm save' wrote")
    how = parser.add_argument_group("restoring")
    how.add_argument("--paused", action="store_true", help="wait for 'tvmm resume' before its next instruction")
    how.add_argument("--eager", action="store_true", help="read and check all of its memory before it runs")
    how.add_argument("--force", action="store_true", help="also if a disk image was written since (its data suffer)")
    how.add_argument("--clones", metavar="N", help=_CLONES_HELP)
    how.add_argument(
        "--processes", metavar="P", help="with --clones: how many processes have them (at most 16 if it is not given)"
    )
    how.add_argument("--info", action="store_true", help="say what is in the file, and start nothing")
    how.add_argument("--verify", action="store_true", help="compare all checksums of the file, and start nothing")
    how.add_argument("--json", action="store_true", help="with --info, --verify or --clones: print an object")
    add_secret_options(parser, new=False)
    host = parser.add_argument_group("of this host (default: as it was saved)")
    host.add_argument("--name", metavar="NAME", help="name for 'tvmm ps', 'tvmm stop' ...")
    attach(
        host.add_argument("--disk", metavar="FILE[,key=val]", action="append", help="the disks, as for 'tvmm run'"),
        disk_values,
    )
    attach(
        host.add_argument(
            "--net", metavar="tap|user|stream[,key=val]", action="append", help="the network devices, in the same way"
        ),
        net_values,
    )
    for name, metavar, text, values in (
        ("serial", "KIND", "serial port: stdio, pty, none, file=PATH, unix=PATH or tcp=HOST:PORT", serial_values),
        ("vnc", "WHERE[,key=val]", "show its screen to VNC viewers; 'none' for nobody", vnc_values),
        ("metrics", "WHERE[,key=val]", "show Prometheus what it counts; 'none' for nobody", metrics_values),
        ("vsock", "PATH[,key=val]", "sockets between guest and host", vsock_values),
    ):
        attach(host.add_argument(f"--{name}", metavar=metavar, help=text), values)
    host.add_argument("--control", metavar="PATH", help="one more QMP control socket")
    host.add_argument("--no-reboot", dest="reboot", action="store_false", help="end when the guest resets")
    host.add_argument("--powerdown-timeout", metavar="TIME", help="what a guest that is asked to power off gets")
    attach(host.add_argument("--assist", metavar="WHEN", help="auto, on or off"), word_values("auto", "on", "off"))


def run(options: Mapping[str, Any]) -> int:
    """Restore it and stay with it until it ends; or tell of it."""
    from tvmm.cli.snapshot_secret import answer

    if options.get("json") and not any(options.get(name) for name in ("info", "verify", "clones")):
        raise ConfigError("--json has no meaning without --info, --verify or --clones")
    if options.get("processes") and not options.get("clones"):
        raise ConfigError("--processes has no meaning without --clones")
    ask = answer(options)
    if options.get("info") or options.get("verify"):
        from tvmm.snapshot.reader import SnapshotFile

        with SnapshotFile(options["file"], ask) as file:
            checked = _verify(file) if options.get("verify") else None
            info = describe(file, checked)
        if options.get("json"):
            print_json(info)
        else:
            say("\n".join(info_lines(info)))
        return 0
    return _restore(options, ask)


def _restore(options: Mapping[str, Any], ask: Any) -> int:
    from tvmm.config.keys import default_keys_directory
    from tvmm.control.registry import runtime_directory
    from tvmm.snapshot.options import HOST_OPTIONS

    given = {name: value for name, value in options.items() if name in HOST_OPTIONS}
    places = {
        "runtime_dir": str(runtime_directory(os.environ, os.geteuid())),
        "keys_dir": default_keys_directory(os.environ, os.environ.get("HOME", "")),
    }
    if options.get("clones"):
        from tvmm.cli.clones import run_clones

        return run_clones(options, ask, given, places)

    import trio

    from tvmm.cli.run import exit_status, farewell
    from tvmm.cli.session import supervise
    from tvmm.errors import collapse
    from tvmm.wiring.restoring import Restoring

    with Restoring(
        options["file"], options=given, load="eager" if options.get("eager") else "lazy",
        force=bool(options.get("force")), ask=ask, say=message, places=places,
    ) as restoring:  # fmt: skip
        if "name" not in given and _MADE_UP.fullmatch(restoring.config.name):
            # It was called by its process, and that is another one.
            restoring.config = restoring.config._replace(name=f"vm-{os.getpid()}")
        config = restoring.config
        if config.paused and not options.get("paused"):
            message(f"the guest was paused when it was saved: 'tvmm resume {config.name}' lets it go on")
        with collapse():
            ending = trio.run(supervise, restoring.machine(), config, message)
    for line in farewell(ending):
        message(line, RED if ending.outcome and ending.outcome.kind == "crashed" else "1")
    return exit_status(ending)


def _verify(file: SnapshotFile) -> float:
    """Read all of it; the seconds that it took. Raises `ImageError`."""
    import threading

    from tvmm.errors import UserError
    from tvmm.kvm.serve import Waker
    from tvmm.snapshot.reader import Reading

    failures: list[UserError] = []
    begun = time.perf_counter()
    waker = Waker()

    def read(reading: Reading) -> None:
        try:
            reading.run(waker)
        except UserError as error:
            failures.append(error)

    try:
        with Reading(file, cached=False) as reading:
            threads = [threading.Thread(target=read, args=(reading,)) for _ in range(4)]
            try:
                for thread in threads:
                    thread.start()
            finally:
                for thread in threads:
                    try:
                        thread.join()
                    except KeyboardInterrupt:
                        waker.wake()
                        thread.join()
                        raise
    finally:
        waker.close()
    if failures:
        raise failures[0]
    return time.perf_counter() - begun


def describe(file: SnapshotFile, checked: float | None) -> dict[str, Any]:
    """What ``--info --json`` prints."""
    from tvmm.memory.ram import MAIN_BLOCK
    from tvmm.snapshot.options import LISTS

    found = file.description
    facts = dict(found.facts)
    info: dict[str, Any] = {
        "file": file.path,
        "name": found.name,
        "saved-at": found.saved_at_ns / 1e9,
        "program": found.program,
        "running": found.running,
        "memory": sum(place.pages for place in found.ram_blocks() if place.name == MAIN_BLOCK) * 4096,
        "cpus": int(facts.get("vCPU count", "0")) if facts.get("vCPU count", "").isdecimal() else 0,
        "encrypted": file.encrypted,
        "size": file.size,
        "stored": os.fstat(file.fd).st_blocks * 512,
        "options": dict(file.options(LISTS)),
        "images": [{"block": image.block, "path": image.path, "size": image.bytes} for image in found.images],
        "disks": [{"id": disk.id, "path": disk.path, "size": disk.bytes} for disk in found.disks],
        "devices": {name.removesuffix(" type"): value for name, value in found.facts if name.endswith(" type")},
    }
    if checked is not None:
        info |= {"verified": True, "seconds": checked}
    return info


def host_options(options: Mapping[str, Any]) -> str:
    """Those that say what of the host the machine uses, as they could be given anew: who made the file chose them."""
    from tvmm.snapshot.options import LISTS

    names = ("disk", "net", "serial", "control", "vnc", "metrics", "vsock")
    given = [(name, value) for name in names if name in options
             for value in (options[name] if name in LISTS else [options[name]])]  # fmt: skip
    given += [("device", value) for value in options.get("device", ()) if "chardev=" in value]
    return " ".join(f"--{name} {shlex.quote(value)}" for name, value in given)


def info_lines(info: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    from tvmm.cli.migration_view import amount

    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info["saved-at"]))
    devices = ", ".join(f"{name} ({kind})" for name, kind in info["devices"].items())
    rows = [
        ("name", info["name"]),
        ("saved", f"{when} by {info['program']}, {'running' if info['running'] else 'paused'}"),
        ("memory", amount(info["memory"])),
        ("vCPUs", str(info["cpus"])),
        ("devices", devices or "none beyond those of every machine"),
        ("options", host_options(info["options"]) or "none of this host"),
        *(("disk", f"{disk['path']} ({disk['id']}, {amount(disk['size'])})") for disk in info["disks"]),
        ("file", f"{amount(info['stored'])} on the disk, {amount(info['size'])} with holes"
                 f"{', encrypted' if info['encrypted'] else ''}"),
    ]  # fmt: skip
    if "verified" in info:
        speed = info["stored"] / info["seconds"] if info["seconds"] else 0.0
        rows.append(("checksums", f"all are right ({amount(speed)}/s)"))
    return [f"{title:10} {printable(text)}" for title, text in rows]
