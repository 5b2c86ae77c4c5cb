"""``tvmm restore FILE --clones N``: machines that go on from one snapshot, and the process that stays with them."""

from __future__ import annotations

import signal
import time
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tvmm.cli import STATUS_SIGNAL
from tvmm.cli.clone_group import be_clones
from tvmm.cli.output import RED, flush, message, print_json
from tvmm.clones.family import STATUS_BUG, Family, Listener
from tvmm.clones.plan import MAX_CLONES, check_together, clone_names, filled_options
from tvmm.config.units import format_duration, parse_integer
from tvmm.control.registry import machines
from tvmm.errors import ConfigError, UserError
from tvmm.outcome import STATUS_CRASHED
from tvmm.wiring.restoring import Restoring, check_disks, config_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvmm.clones.family import Ended
    from tvmm.clones.member import Report
    from tvmm.config.machine import MachineConfig

__all__ = ["PROCESSES", "run_clones"]

PROCESSES = 16
"""At most, unless the user wants another number. Each has some 28 MiB of the interpreter, of which 9 are its own."""

OWN = {"serial": "none", "control": "", "vnc": "none", "metrics": "none"}
"""What a saved machine had for itself alone, and clones have when they are given a place for each."""

MODULES = (
    *("encodings.ascii", "tvmm.control.machine_target", "tvmm.control.prompt", "tvmm.control.registered"),
    *("tvmm.kvm.remap", "tvmm.migration.status"),
)
VIRTIO_MODULES = ("tvmm.wiring.devices", "tvmm.wiring.view", "tvmm.wiring.pci_slot", "tvmm.wiring.pci_bus")
DISPLAY_MODULES = ("tvmm.wiring.display", "tvmm.wiring.screen_tasks", "tvmm.wiring.screen")
TAP_MODULES = ("tvmm.net.tap", "tvmm.net.links")
"""What a machine imports when it is there: clones share what their parent has imported."""


def run_clones(options: Mapping[str, Any], ask: Any, given: Mapping[str, Any], places: Mapping[str, str]) -> int:
    """Start them, stay until all have ended, and return the exit status. `given` are the options of machines."""
    count = parse_integer(options["clones"], "number of clones", 1, MAX_CLONES)
    processes = parse_integer(options.get("processes") or f"{PROCESSES}", "processes", 1, 1 << 20)
    if options.get("eager"):
        raise ConfigError("--eager and --clones do not go together", "--verify checks the whole file once")
    named = {name: value for name, value in given.items() if name != "name"}
    first = {**OWN, **filled_options(named, 1)}
    force = bool(options.get("force"))
    with Restoring(options["file"], options=first, load="demand", force=force, ask=ask, places=places) as restoring:
        names = clone_names(str(given.get("name", "")) or restoring.config.name, count)
        configs = []
        for number, name in enumerate(names, 1):
            own = {**OWN, **filled_options(named, number), "name": name}
            config = config_of(restoring.file, own, **places)
            if not force:
                check_disks(restoring.file, config)
            configs.append(config._replace(paused=restoring.config.paused))
        for warning in check_together(configs):
            message(warning)
        if restoring.file.encrypted:
            message("the file is encrypted: its memory is decrypted for each clone, and they share none of it")
        _refuse_taken(names, places["runtime_dir"])
        _import_for(configs[0])
        listener = _Telling(options["file"], names, as_json=bool(options.get("json")))
        family = Family(names, partial(be_clones, restoring, configs), listener, processes=processes)
        family.run()
    return listener.status(family.signal)


def _refuse_taken(names: Sequence[str], runtime_dir: str) -> None:
    """Before anything is started; each name is checked again when it is taken."""
    from pathlib import Path

    wanted = set(names)
    taken = [entry.name for entry in machines(Path(runtime_dir)) if entry.alive and entry.name in wanted]
    if taken:
        more = f" and {len(taken) - 3} more" if len(taken) > 3 else ""
        many = f"machines named {', '.join(taken[:3])}{more} are running"
        raise UserError(many if len(taken) > 1 else f"a machine named {taken[0]} is running", "choose another --name")


def _import_for(config: MachineConfig) -> None:
    """In the parent, so that no clone has to, and all share it."""
    beside = config.disks, config.nets, config.consoles, config.rngs, config.inputs, config.balloons, config.vsocks
    wanted = [*MODULES, *(VIRTIO_MODULES if any(beside) or config.display is not None else ())]
    kinds = {"disk": config.disks, "net": config.nets, "console": config.consoles, "rng": config.rngs}
    kinds |= {"input": config.inputs, "balloon": config.balloons, "vsock": config.vsocks}
    wanted += [f"tvmm.wiring.{kind}" for kind, found in kinds.items() if found]
    wanted += [*DISPLAY_MODULES] if config.display is not None else []
    wanted += [*TAP_MODULES] if any(net.type == "tap" for net in config.nets) else []
    for name in wanted:
        import_module(name)


class _Telling(Listener):
    """What the user hears of all of them."""

    def __init__(self, path: str, names: Sequence[str], *, as_json: bool) -> None:
        self._path = path
        self._names = names
        self._as_json = as_json
        self._begun = time.perf_counter()
        self._ready: dict[str, Mapping[str, str]] = {}
        self._errors: dict[str, str] = {}
        self._statuses: list[int] = []

    def report(self, name: str, report: Report) -> None:
        """See `Listener`, as all of these."""
        if report.kind == "ready":
            self._ready[name] = report.facts
        elif report.kind == "say":
            message(f"{name}: {report.text}")
        else:
            # What is wrong with one is often wrong with all.
            if report.text.replace(name, "") not in {text.replace(one, "") for one, text in self._errors.items()}:
                message(f"{name}: {report.text}", RED)
            self._errors[name] = report.text

    def ended(self, ended: Ended) -> None:
        self._statuses.append(ended.status)
        if ended.status < 0:
            message(f"{ended.name}: its process was killed by {signal.Signals(-ended.status).name}", RED)
        elif ended.status == STATUS_BUG:
            message(f"{ended.name}: its process ended with status {ended.status}", RED)

    def all_started(self) -> None:
        seconds = time.perf_counter() - self._begun
        started = [name for name in self._names if name in self._ready]
        if self._as_json:
            clones = [{"name": name, **self._facts(self._ready[name])} for name in started]
            failed = [{"name": name, "error": self._errors[name]} for name in self._names if name in self._errors]
            print_json({"clones": clones, "failed": failed, "seconds": round(seconds, 3)})
            flush()
        if len(self._names) > len(started):
            message(f"{len(self._names) - len(started)} of {len(self._names)} clones did not start", RED)
        if started:
            which = f"{started[0]} to {started[-1]}" if len(started) > 1 else started[0]
            many = f"{len(started)} clones" if len(started) > 1 else "1 clone"
            took = format_duration(round(seconds, 2))
            message(f"{many} of {self._path}: {which}, in {took}; 'tvmm ps' lists them, Ctrl-C ends all of them")

    @staticmethod
    def _facts(facts: Mapping[str, str]) -> dict[str, object]:
        return {**{key: value for key, value in facts.items() if key != "guid"}, "pid": int(facts["pid"]),
                "generation-id": facts["guid"]}  # fmt: skip

    def signalled(self, number: int, count: int) -> None:
        name = signal.Signals(number).name
        words = {1: "asked all guests to power off; a second signal ends them at once", 2: "ending all of them"}
        message(f"{name}: {words.get(count, 'killing their processes')}")

    def status(self, number: int) -> int:
        """Of the whole: 128+n if signal n ended it, else 0 if all ended well, else that of what went worst."""
        bad = {status if status >= 0 else STATUS_SIGNAL - status for status in self._statuses} - {0}
        if number and bad <= {STATUS_SIGNAL + number}:
            return STATUS_SIGNAL + number if bad else 0
        if STATUS_CRASHED in bad:
            return STATUS_CRASHED
        return min(bad, default=0)
