"""The contract of every command of the control socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.control.fakes import ARGUMENTS, FakeMachine
from tvmm.config.limits import DISK_WORDS, NET_WORDS, NO_LIMITS
from tvmm.control.qmp import NEGOTIATE, Answer, CommandFailed, QmpSession, Request
from tvmm.control.target import NoVirtio
from tvmm.control.verbs import EVENTS, SIGNATURES, VERBS
from tvmm.errors import TvmmError, UserError


def stats(**counts: int) -> dict[str, Any]:
    """QAPI's BlockDeviceStats, as far as it is counted, with zeroes for the rest."""
    kinds = ("rd", "wr", "flush", "unmap")
    names = [f"{kind}_bytes" for kind in kinds if kind != "flush"]
    names += [f"{failed}{kind}_operations" for failed in ("", "failed_") for kind in kinds]
    names += [f"{kind}_total_time_ns" for kind in kinds]
    fixed = {"account_invalid": True, "account_failed": True, "timed_stats": [], "x-invalid-operations": 0}
    return {**dict.fromkeys(names, 0), **fixed, **counts}


def block(name: str, file: str, size: int, *, ro: bool, direct: bool, no_flush: bool) -> dict[str, Any]:
    """QAPI's BlockInfo."""
    limits = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr", "write_threshold", "backing_file_depth")
    return {
        "device": name,
        "qdev": name,
        "type": "unknown",
        "removable": False,
        "locked": False,
        "io-status": "ok",
        "x-aio": "threads",
        "inserted": {
            "file": file,
            "node-name": name,
            "drv": "raw",
            "ro": ro,
            "encrypted": False,
            "detect_zeroes": "off",
            "cache": {"writeback": True, "direct": direct, "no-flush": no_flush},
            "image": {"filename": file, "format": "raw", "virtual-size": size},
            **dict.fromkeys(limits, 0),
        },
    }


def virtio(name: str, kind: str, transport: str, place: str, **more: Any) -> dict[str, Any]:
    """One device of x-tvmm-virtio."""
    rest = {"status": [], "features": [], "mistakes": 0, "last-error": "", "counters": {}, "queues": []}
    return {"name": name, "kind": kind, "transport": transport, "place": place, **rest, **more}


IDLE = {
    "index": 1,
    "size": 256,
    "ready": False,
    **dict.fromkeys(("pops", "chains", "kicks", "interrupts", "suppressed", "exits", "errors"), 0),
}
BUSY = {**IDLE, "index": 0, "ready": True, "pops": 12, "chains": 100, "kicks": 10, "interrupts": 4, "suppressed": 96}

VIEWER = {
    "host": "192.0.2.1",
    "service": "40000",
    "family": "ipv4",
    "websocket": False,
    "sasl_username": "anna",
    "x-auth": "VeNCrypt x509-plain",
    "x-view-only": True,
    "x-seconds": 1.5,
    "x-bytes-sent": 4096,
    "x-frames": 3,
    "x-relay": False,
}
PLAIN = {"auth": "vencrypt", "vencrypt": "x509-plain"}

NO_DISK_LIMITS, NO_NET_LIMITS = (NO_LIMITS.spelled(words) for words in (DISK_WORDS, NET_WORDS))

SHAPES: dict[str, Any] = {
    "x-query-save": {"status": "none"},
    "x-save": {},
    "x-save-cancel": {},
    "x-net-set-throttle": {},
    "x-query-throttle": [
        {"id": "disk0", "kind": "disk", "limits": NO_DISK_LIMITS, "waits": 0},
        {"id": "disk1", "kind": "disk", "limits": NO_DISK_LIMITS, "waits": 0},
        {"id": "net0", "kind": "net", "limits": NO_NET_LIMITS, "waits": 0},
    ],
    NEGOTIATE: {},
    "announce-self": {},
    "balloon": {},
    "block_resize": {},
    "block_set_io_throttle": {},
    "change-vnc-password": {},
    "cont": {},
    "expire_password": {},
    "migrate": {},
    "migrate-incoming": {},
    "migrate-pause": {},
    "migrate-recover": {},
    "migrate-set-capabilities": {},
    "migrate-set-parameters": {},
    "migrate-start-postcopy": {},
    "migrate_cancel": {},
    "qom-get": {
        "stats": {"stat-swap-in": (1 << 64) - 1, "stat-free-memory": 5000, "stat-total-memory": 9000},
        "last-update": 1700000000,
    },
    "qom-list": [{"name": "balloon0", "type": "child<virtio-balloon>"}],
    "qom-set": {},
    "query-balloon": {
        "actual": 192 << 20,
        "x-target": 192 << 20,
        "x-memory": 256 << 20,
        "x-id": "balloon0",
        "x-driver": True,
        "x-deflate-on-oom": False,
        "x-pages": {"inflated": 16384, "deflated": 0, "reported": 0, "hinted": 0, "spared": 0, "strange": 1},
    },
    "query-block": [
        block("disk0", "a.img", 1 << 30, ro=False, direct=True, no_flush=False),
        block("disk1", "b.img", 1 << 20, ro=True, direct=False, no_flush=True),
    ],
    "query-blockstats": [
        {"device": name, "qdev": name, "node-name": name, "stats": counts}
        for name, counts in (
            ("disk0", stats(rd_bytes=4096, rd_operations=1)),
            ("disk1", {**stats(), "x-invalid-operations": 2}),
        )
    ],
    "query-chardev": [
        {"label": "serial0", "filename": "pty:/dev/pts/3", "frontend-open": True},
        {"label": "console0.0", "filename": "unix:/tmp/hvc", "frontend-open": False},
    ],
    "query-commands": [{"name": name} for name in VERBS],
    "query-cpus-fast": [
        {
            "cpu-index": index,
            "qom-path": f"/machine/cpu[{index}]",
            "thread-id": 1000 + index,
            "target": "x86_64",
            "x-state": "paused",
            "x-exits": 7 * index,
        }
        for index in range(2)
    ],
    "query-events": [{"name": name} for name in EVENTS],
    "query-kvm": {"enabled": True, "present": True},
    "query-memory-size-summary": {"base-memory": 256 << 20, "plugged-memory": 0},
    "query-migrate": {},
    "query-migrate-capabilities": [
        {"capability": name, "state": True}
        for name in ("auto-converge", "events", "late-block-activate", "return-path", "multifd")
    ]
    + [{"capability": "postcopy-ram", "state": False}],
    "query-migrate-parameters": {
        "downtime-limit": 300,
        "max-bandwidth": 0,
        "max-cpu-throttle": 99,
        "multifd-channels": 0,
        "multifd-compression": "none",
        "tls-creds": "",
        "tls-hostname": "",
        "x-insecure": False,
        "x-postcopy": "off",
        "x-timeout": 600_000,
        "x-tls": False,
        "x-copy-storage": False,
        "x-verify": False,
    },
    "query-name": {"name": "fake"},
    "query-rx-filter": [
        {
            "name": "net0",
            "main-mac": "52:54:00:12:34:56",
            "promiscuous": False,
            "unicast": "none",
            "multicast": "normal",
            "broadcast-allowed": True,
            "unicast-overflow": False,
            "multicast-overflow": False,
            "unicast-table": [],
            "multicast-table": ["33:33:00:00:00:01"],
            "vlan": "normal",
            "vlan-table": [1, 7],
            "x-ifname": "tap0",
            "x-link": True,
            "x-throttle": NO_NET_LIMITS,
        }
    ],
    "query-status": {"running": False, "status": "paused"},
    "query-version": {"qemu": {"major": 0, "minor": 1, "micro": 0}, "package": "tvmm"},
    "query-vm-generation-id": {"guid": "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"},
    "query-vnc": {
        "enabled": True,
        "host": "0.0.0.0",
        "service": "5900",
        "family": "ipv4",
        "auth": "vencrypt+x509+plain",
        "clients": [VIEWER],
    },
    "query-vnc-servers": [
        {
            "id": "default",
            "server": [
                {"host": "0.0.0.0", "service": "5900", "family": "ipv4", "websocket": False, **PLAIN},
                {"host": "::", "service": "8080", "family": "ipv6", "websocket": True, **PLAIN},
            ],
            "clients": [VIEWER],
            **PLAIN,
        }
    ],
    "quit": {},
    "send-key": {},
    "input-send-event": {},
    "query-mice": [
        {"name": "tablet0", "index": 0, "current": True, "absolute": True},
        {"name": "PS/2 mouse", "index": 1, "current": False, "absolute": False},
    ],
    "set_link": {},
    "screendump": {},
    "set_password": {},
    "stop": {},
    "system_powerdown": {},
    "system_reset": {},
    "x-query-balloon-stats": {
        "fresh": False,
        "last-update": 1700000000,
        "stats": {"stat-free-memory": 5000, "stat-total-memory": 9000},
        "resident": 100 << 20,
    },
    "x-query-cpu-registers": {"rip": 0xFFFF_FFFF_8100_0000, "rflags": 2},
    "x-query-info": {"kernel": "built-in", "cpus": 2},
    "x-query-memory-map": [
        {"start": 0, "size": 256 << 20, "block": "ram", "owner": "machine", "kind": "ram"},
        {"start": 0xFEE0_0000, "size": 4096, "block": "lapic", "owner": "kvm", "kind": "mmio"},
    ],
    "x-query-metrics": {
        "machine": "fake",
        "at": 7.5,
        "metrics": [
            {
                "name": "tvmm_vcpu_exits_total",
                "type": "counter",
                "unit": "",
                "help": "Returns of a vCPU from the guest to tvmm, by KVM's reason.",
                "samples": [{"labels": {"cpu": "0", "reason": "io"}, "value": 5}],
            },
            {
                "name": "tvmm_tasks",
                "type": "gauge",
                "unit": "",
                "help": "Tasks of the machine.",
                "samples": [{"labels": {}, "value": 3}],
            },
            {
                "name": "fake_seconds",
                "type": "histogram",
                "unit": "seconds",
                "help": "Of a fake.",
                "samples": [
                    {
                        "labels": {"device": "vda", "queue": "0"},
                        "value": {"buckets": [[2, 1]], "count": 1, "sum": 1e-06, "p50": 1.024e-06, "p99": 1.024e-06},
                    }
                ],
            },
        ],
    },
    "x-query-tasks": [
        {"name": "vcpu/0", "waits-for": "a thread in run", "wakeups": 3, "seconds": 0.001, "age-seconds": 1.5}
    ],
    "x-query-virtio": [
        {"path": "/machine/peripheral/disk0", "name": "virtio-blk", "virtio-id": 2},
        {"path": "/machine/peripheral/net0", "name": "virtio-net", "virtio-id": 1},
        {"path": "/machine/peripheral/rng0", "name": "virtio-rng", "virtio-id": 4},
    ],
    "x-tvmm-virtio": [
        virtio(
            "disk0",
            "blk",
            "pci",
            "00:02.0",
            queues=[{**BUSY, "exits": 1}],
            status=["ACKNOWLEDGE", "DRIVER_OK"],
            features=["VERSION_1"],
        ),
        virtio("net0", "net", "mmio", "0xfeb00000", queues=[IDLE, IDLE], mistakes=1, **{"last-error": "a\nloop"}),
        virtio("rng0", "rng", "pci", "00:03.0", counters={"throttled": 3}),
    ],
}


def session() -> QmpSession:
    """A session with the real signatures."""
    new = QmpSession(SIGNATURES)
    new.receive(b'{"execute": "qmp_capabilities"}')
    assert isinstance(new.next_event(), Answer)
    return new


def test_every_verb_has_a_shape_here() -> None:
    """No command comes in without a line in this contract."""
    assert SHAPES.keys() == VERBS.keys()


@pytest.mark.parametrize("name", VERBS)
async def test_result(name: str) -> None:
    """The result of each command is the JSON value that its clients rely on."""
    machine = FakeMachine()
    await machine.pause()
    result = await VERBS[name].run(machine, ARGUMENTS.get(name, {}))
    assert json.loads(json.dumps(result, allow_nan=False)) == SHAPES[name]


@pytest.mark.parametrize("name", [name for name in VERBS if name != NEGOTIATE])
def test_unknown_argument(name: str) -> None:
    """Each command refuses an argument that it does not declare, before anything happens."""
    new = session()
    new.receive(json.dumps({"execute": name, "arguments": {"bogus": 1}}).encode())
    event = new.next_event()
    assert isinstance(event, Answer)
    assert "bogus" in json.loads(event.data)["error"]["desc"]


WRONG = {"string": 1, "integer": "1", "number": "1", "boolean": 1, "strings": "a", "object": [], "objects": [1]}


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, verb in VERBS.items() for argument in verb.arguments if name != NEGOTIATE],
)
def test_wrong_type_and_absence(name: str, argument: Any) -> None:
    """Each declared argument is refused with another type, and missed if it is required."""
    new = session()
    new.receive(json.dumps({"execute": name, "arguments": {argument.name: WRONG[argument.kind]}}).encode())
    event = new.next_event()
    assert isinstance(event, Answer)
    assert argument.name in json.loads(event.data)["error"]["desc"]
    rest = {key: value for key, value in ARGUMENTS.get(name, {}).items() if key != argument.name}
    new.receive(json.dumps({"execute": name, "arguments": rest}).encode())
    assert isinstance(new.next_event(), Answer if argument.required else Request)


async def test_verbs_do_what_they_say() -> None:
    """stop, cont, system_reset and system_powerdown reach the machine; quit only once the answer is out."""
    machine = FakeMachine()
    await VERBS["stop"].run(machine, {})
    assert machine.run_state() == "paused"
    await VERBS["cont"].run(machine, {})
    assert machine.run_state() == "running"
    await VERBS["system_reset"].run(machine, {})
    assert machine.resets == 1
    await VERBS["system_powerdown"].run(machine, {})
    assert machine.button_presses == 1
    await VERBS["quit"].run(machine, {})
    assert not machine.ended.is_set()
    after = VERBS["quit"].after
    assert after is not None
    after(machine)
    assert machine.ended.is_set()


async def test_registers_of_a_cpu_that_is_not_there() -> None:
    """A vCPU that the machine does not have is an error of its own class."""
    with pytest.raises(CommandFailed, match="no vCPU 9") as caught:
        await VERBS["x-query-cpu-registers"].run(FakeMachine(), {"cpu-index": 9})
    assert caught.value.error_class == "DeviceNotFound"


async def test_disks_can_be_resized() -> None:
    """block_resize takes one name of a disk, and a size above zero; the machine's own refusals pass through."""
    machine, resize = FakeMachine(), VERBS["block_resize"].run
    await resize(machine, {"node-name": "disk0", "size": 5 << 30})
    await resize(machine, {"node-name": "disk0", "device": "disk0", "size": 6 << 30})
    assert machine.sizes["disk0"] == 6 << 30
    for arguments, complaint in (
        ({"size": 1}, "name one disk"),
        ({"device": "disk0", "node-name": "disk1", "size": 1}, "name one disk"),
        ({"device": "disk0", "size": 0}, "above 0"),
        ({"device": "disk0", "size": -1}, "above 0"),
        ({"device": "disk9", "size": 1}, "no disk 'disk9'; there are: disk0, disk1"),
        ({"device": "disk1", "size": 1}, "read-only"),
    ):
        with pytest.raises(TvmmError, match=complaint):
            await resize(machine, arguments)
    assert machine.sizes["disk0"] == 6 << 30


async def test_links_and_announcements() -> None:
    """set_link reaches the device it names, announce-self those it names or all."""
    machine = FakeMachine()
    await VERBS["set_link"].run(machine, {"name": "net0", "up": False})
    assert machine.links == {"net0": False}
    with pytest.raises(CommandFailed, match="no network device 'net9'; there are: net0") as caught:
        await VERBS["set_link"].run(machine, {"name": "net9", "up": False})
    assert caught.value.error_class == "DeviceNotFound"
    await VERBS["announce-self"].run(machine, {"initial": 50, "max": 550, "rounds": 5, "step": 50})
    await VERBS["announce-self"].run(machine, {"interfaces": ["net0"]})
    assert machine.announced == ["net0", "net0"]


@pytest.mark.parametrize("command", ["query-rx-filter", "x-tvmm-virtio"])
async def test_one_device_of_many(command: str) -> None:
    """A name picks one device; one that is not there is refused, with those that are."""
    answer = await VERBS[command].run(FakeMachine(), {"name": "net0"})
    assert isinstance(answer, list)
    assert [device["name"] for device in answer] == ["net0"]
    with pytest.raises(UserError, match=r"there is no .* 'x+\.\.\.'; there are: .*net0") as caught:
        await VERBS[command].run(FakeMachine(), {"name": "x" * 1000})
    assert len(str(caught.value)) < 200


async def test_a_machine_without_devices() -> None:
    """It has none to show, refuses each name, and has nobody to announce."""
    none = NoVirtio()
    assert [*none.virtio(), *none.disks(), *none.nets(), *none.ports()] == []
    with pytest.raises(UserError, match="there is no disk 'disk0'; there are: none"):
        await none.resize_disk("disk0", 1)
    with pytest.raises(UserError, match="no network device 'net0'"):
        none.set_link("net0", True)
    with pytest.raises(UserError, match="no network device 'net0'"):
        none.announce(["net0"])
    none.announce([])


async def test_refusals_of_the_machine_pass_through() -> None:
    """What the machine refuses comes out as the machine's own error."""
    with pytest.raises(UserError, match="paused"):
        await VERBS["x-query-cpu-registers"].run(FakeMachine(), {})
