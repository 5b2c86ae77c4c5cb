"""The commands of the control socket, as one table.

To add one: write an async function of the machine and the arguments that returns a JSON value, and give it a
line in `VERBS` with its signature. The names and shapes are QAPI's where QEMU has the command; tvmm's own
begin with `x-`, which QMP keeps for what may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.control import (
    balloon_verbs,
    device_verbs,
    input_verbs,
    limit_verbs,
    metrics_verbs,
    migration_verbs,
    save_verbs,
    screen_verbs,
    vnc_verbs,
)
from tvmm.control.migration_info import EVENT, PASS_EVENT
from tvmm.control.qmp import NEGOTIATE, Argument, CommandFailed, version_info
from tvmm.control.save_info import EVENT as SAVE_EVENT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tvmm.control.target import ControlTarget, Json

__all__ = ["EVENTS", "SIGNATURES", "VERBS", "Verb"]

EVENTS = (
    "STOP",
    "RESUME",
    "RESET",
    "POWERDOWN",
    "SHUTDOWN",
    "GUEST_PANICKED",
    "BLOCK_IO_ERROR",
    balloon_verbs.CHANGE_EVENT,
    EVENT,
    PASS_EVENT,
    SAVE_EVENT,
    "X_RESTORE",
    *vnc_verbs.VNC_EVENTS,
)
"""What clients may be told of."""


class Verb(NamedTuple):
    """One command."""

    run: Callable[[ControlTarget, Mapping[str, Any]], Awaitable[Json]]
    """Carries it out, with arguments that fit `arguments`. Raises `CommandFailed` or any `TvmmError` to
    refuse."""
    arguments: tuple[Argument, ...] = ()
    after: Callable[[ControlTarget], None] | None = None
    """What is left to do once the client has the answer."""


async def query_version(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: VersionInfo."""
    return version_info()


async def query_commands(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: a list of CommandInfo."""
    return [{"name": name} for name in VERBS]


async def query_events(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """A list of EventInfo, as QEMU had it before 6.0."""
    return [{"name": name} for name in EVENTS]


async def query_name(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: NameInfo."""
    return {"name": target.name}


async def query_vm_generation_id(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: GuidInfo."""
    return {"guid": target.generation_id()}


async def query_status(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: StatusInfo."""
    status = target.run_state()
    return {"running": status == "running", "status": status}


async def query_kvm(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: KvmInfo. There is nothing but KVM here."""
    return {"enabled": True, "present": True}


async def query_cpus_fast(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: a list of CpuInfoFast, with the vCPU's state and its exits added."""
    return [
        {
            "cpu-index": cpu.cpu_index,
            "qom-path": f"/machine/cpu[{cpu.cpu_index}]",
            "thread-id": cpu.thread_id,
            "target": "x86_64",
            "x-state": cpu.state,
            "x-exits": cpu.exits,
        }
        for cpu in target.cpus()
    ]


async def query_memory_size_summary(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: MemoryInfo, in bytes."""
    summary = target.memory_summary()
    return {"base-memory": summary.base, "plugged-memory": summary.plugged}


async def query_chardev(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: a list of ChardevInfo."""
    return [
        {"label": device.label, "filename": device.filename, "frontend-open": device.frontend_open}
        for device in target.chardevs()
    ]


async def stop(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when no vCPU runs any more."""
    await target.pause()
    return {}


async def cont(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when the vCPUs run."""
    await target.resume()
    return {}


async def system_reset(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when the machine has been reset."""
    await target.reset()
    return {}


async def system_powerdown(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when the power button has been pressed, whatever the guest makes of it."""
    target.powerdown()
    return {}


async def quit_machine(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer, and only then end the machine and the session with it."""
    return {}


async def query_tasks(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """The machine's tasks: what each waits for, how often it ran and how long."""
    return [
        {
            "name": task.name,
            "waits-for": task.waits_for,
            "wakeups": task.wakeups,
            "seconds": task.seconds,
            "age-seconds": task.age_seconds,
        }
        for task in target.tasks()
    ]


async def query_memory_map(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """What answers at each guest-physical address, by address."""
    return [
        {
            "start": flat.start,
            "size": flat.size,
            "block": flat.block,
            "owner": flat.owner,
            "kind": flat.kind,
        }
        for flat in target.memory_map()
    ]


async def query_info(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """What else the machine tells of itself."""
    return dict(target.info())


async def query_cpu_registers(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Register values of one vCPU, the first unless `cpu-index` names another."""
    index = arguments.get("cpu-index", 0)
    if not any(cpu.cpu_index == index for cpu in target.cpus()):
        raise CommandFailed("DeviceNotFound", f"there is no vCPU {index}")
    return dict(await target.registers(index))


async def _negotiated(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """The session answers this one by itself (see `tvmm.control.qmp`); in the table for its signature."""
    return {}


VERBS: dict[str, Verb] = {
    NEGOTIATE: Verb(_negotiated, (Argument("enable", "strings", required=False),)),
    "announce-self": Verb(
        device_verbs.announce_self,
        (
            *(Argument(name, "integer", required=False) for name in ("initial", "max", "rounds", "step")),
            Argument("interfaces", "strings", required=False),
            Argument("id", "string", required=False),
        ),
    ),
    "balloon": Verb(balloon_verbs.balloon, (Argument("value", "integer"),)),
    "block_resize": Verb(
        device_verbs.block_resize,
        (
            Argument("device", "string", required=False),
            Argument("node-name", "string", required=False),
            Argument("size", "integer"),
        ),
    ),
    "block_set_io_throttle": Verb(limit_verbs.block_set_io_throttle, limit_verbs.BLOCK_SET_IO_THROTTLE),
    "change-vnc-password": Verb(vnc_verbs.change_vnc_password, vnc_verbs.CHANGE_PASSWORD),
    "cont": Verb(cont),
    "expire_password": Verb(vnc_verbs.expire_password, vnc_verbs.EXPIRE_PASSWORD),
    "input-send-event": Verb(
        input_verbs.input_send_event,
        (
            Argument("device", "string", required=False),
            Argument("head", "integer", required=False),
            Argument("events", "objects"),
        ),
    ),
    "migrate": Verb(migration_verbs.migrate, migration_verbs.MIGRATE),
    "migrate-incoming": Verb(migration_verbs.migrate_incoming, (Argument("uri", "string"),)),
    "migrate-pause": Verb(migration_verbs.migrate_pause),
    "migrate-recover": Verb(migration_verbs.migrate_recover, (Argument("uri", "string", required=False),)),
    "migrate-set-capabilities": Verb(migration_verbs.migrate_set_capabilities, (Argument("capabilities", "objects"),)),
    "migrate-set-parameters": Verb(migration_verbs.migrate_set_parameters, migration_verbs.PARAMETERS),
    "migrate-start-postcopy": Verb(migration_verbs.migrate_start_postcopy),
    "migrate_cancel": Verb(migration_verbs.migrate_cancel),
    "qom-get": Verb(balloon_verbs.qom_get, (Argument("path", "string"), Argument("property", "string"))),
    "qom-list": Verb(balloon_verbs.qom_list, (Argument("path", "string"),)),
    "qom-set": Verb(
        balloon_verbs.qom_set,
        (Argument("path", "string"), Argument("property", "string"), Argument("value", "integer")),
    ),
    "query-balloon": Verb(balloon_verbs.query_balloon),
    "query-block": Verb(device_verbs.query_block),
    "query-blockstats": Verb(device_verbs.query_blockstats),
    "query-chardev": Verb(query_chardev),
    "query-commands": Verb(query_commands),
    "query-cpus-fast": Verb(query_cpus_fast),
    "query-events": Verb(query_events),
    "query-kvm": Verb(query_kvm),
    "query-memory-size-summary": Verb(query_memory_size_summary),
    "query-mice": Verb(input_verbs.query_mice),
    "query-migrate": Verb(migration_verbs.query_migrate),
    "query-migrate-capabilities": Verb(migration_verbs.query_migrate_capabilities),
    "query-migrate-parameters": Verb(migration_verbs.query_migrate_parameters),
    "query-name": Verb(query_name),
    "query-rx-filter": Verb(device_verbs.query_rx_filter, (Argument("name", "string", required=False),)),
    "query-status": Verb(query_status),
    "query-version": Verb(query_version),
    "query-vm-generation-id": Verb(query_vm_generation_id),
    "query-vnc": Verb(vnc_verbs.query_vnc),
    "query-vnc-servers": Verb(vnc_verbs.query_vnc_servers),
    "quit": Verb(quit_machine, after=lambda target: target.quit()),
    "send-key": Verb(
        input_verbs.send_key, (Argument("keys", "objects"), Argument("hold-time", "integer", required=False))
    ),
    "set_link": Verb(device_verbs.set_link, (Argument("name", "string"), Argument("up", "boolean"))),
    "screendump": Verb(
        screen_verbs.screendump,
        (
            Argument("filename", "string"),
            Argument("device", "string", required=False),
            Argument("head", "integer", required=False),
            Argument("format", "string", required=False),
        ),
    ),
    "set_password": Verb(vnc_verbs.set_password, vnc_verbs.SET_PASSWORD),
    "stop": Verb(stop),
    "system_powerdown": Verb(system_powerdown),
    "system_reset": Verb(system_reset),
    "x-query-balloon-stats": Verb(balloon_verbs.query_balloon_stats, (Argument("patience", "number", required=False),)),
    "x-net-set-throttle": Verb(limit_verbs.net_set_throttle, limit_verbs.NET_SET_THROTTLE),
    "x-query-cpu-registers": Verb(query_cpu_registers, (Argument("cpu-index", "integer", required=False),)),
    "x-query-info": Verb(query_info),
    "x-query-memory-map": Verb(query_memory_map),
    "x-query-metrics": Verb(metrics_verbs.query_metrics),
    "x-query-tasks": Verb(query_tasks),
    "x-query-throttle": Verb(limit_verbs.query_throttle, (Argument("id", "string", required=False),)),
    "x-query-virtio": Verb(device_verbs.query_virtio),
    "x-query-save": Verb(save_verbs.query_save),
    "x-save": Verb(save_verbs.save, save_verbs.SAVE),
    "x-save-cancel": Verb(save_verbs.save_cancel),
    "x-tvmm-virtio": Verb(device_verbs.virtio_counters, (Argument("name", "string", required=False),)),
}

SIGNATURES = {name: verb.arguments for name, verb in VERBS.items()}
