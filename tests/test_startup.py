"""What `tvmm run` imports before the guest's first byte is on its way, and `tvmm migrate` before it looks for its
machine: lists, so that nothing creeps in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, json
import trio
by_trio = set(sys.modules)
from tvmm.chardev.feed import Feed
real = Feed.put
seen = []
async def put(self, data):
    if not seen:
        seen.append(sorted(set(sys.modules) - by_trio))
    await real(self, data)
Feed.put = put
from tvmm.cli import main
status = main(['run'])
print("MODULES", json.dumps(seen[0]))
"""

TVMM = """
tvmm tvmm.board tvmm.boot tvmm.boot.acpi tvmm.boot.aml tvmm.boot.dsdt tvmm.boot.e820 tvmm.boot.elf tvmm.boot.entry
tvmm.boot.gdt tvmm.boot.loader tvmm.boot.mptable tvmm.boot.pvh tvmm.bus tvmm.chardev tvmm.chardev.descriptor
tvmm.chardev.expect tvmm.chardev.factory tvmm.chardev.feed tvmm.chardev.guest_end tvmm.chardev.history
tvmm.chardev.port tvmm.chardev.stdio tvmm.chardev.terminal tvmm.clock tvmm.cli tvmm.cli.output tvmm.cli.run
tvmm.cli.session tvmm.cli.verbs tvmm.config tvmm.config.cpu tvmm.config.kernel tvmm.config.keys tvmm.config.machine
tvmm.config.memory tvmm.config.options tvmm.config.serial tvmm.config.units tvmm.control tvmm.control.directory
tvmm.control.prompt tvmm.control.registered tvmm.control.registry tvmm.devices tvmm.devices.acpi_gpe
tvmm.devices.acpi_pm tvmm.devices.common tvmm.devices.generation_id tvmm.devices.i8042
tvmm.devices.misc tvmm.devices.ps2_keyboard tvmm.devices.ps2_mouse tvmm.devices.rtc tvmm.devices.rtc_calendar
tvmm.config.names tvmm.devices.rtc_cmos
tvmm.devices.uart16550 tvmm.devices.uart16550_registers tvmm.errors tvmm.halt tvmm.kernel_files tvmm.kvm tvmm.kvm._kvm
tvmm.kvm._kvm.lib tvmm.kvm.bus_lock tvmm.kvm.calls tvmm.kvm.device_log tvmm.kvm.irq tvmm.kvm.prompt tvmm.kvm.routes
tvmm.kvm.system tvmm.kvm.uart tvmm.kvm.vcpu tvmm.kvm.vm tvmm.machine tvmm.machine_tasks tvmm.memory
tvmm.memory.host tvmm.memory.layout tvmm.memory.ram tvmm.memory.regions tvmm.moves tvmm.outcome
tvmm.records tvmm.run_control tvmm.saves tvmm.serial_port tvmm.supervisor
tvmm.tasks
tvmm.vcpu tvmm.vcpu.cpu_features tvmm.vcpu.cpuid tvmm.vcpu.dispatch tvmm.vcpu.exits tvmm.vcpu.registers
tvmm.vcpu.runstate tvmm.vcpu.thread
""".split()

OTHERS = "_cffi_backend mmap termios".split()
"""What is needed beside trio's own imports, which bring most of the standard library that tvmm uses."""


@pytest.mark.guest
def test_only_what_the_path_needs_is_imported() -> None:
    """The modules that are there when the first byte of a plain `tvmm run` comes are these, and no others."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input="poweroff\n", capture_output=True, text=True, check=True, timeout=60
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("MODULES")]
    found = set(json.loads(line.removeprefix("MODULES")))
    assert {name for name in found if name.startswith("tvmm")} == set(TVMM)
    assert {name for name in found if not name.startswith("tvmm")} == set(OTHERS)


CLIENT_SCRIPT = """
import sys, json
before = set(sys.modules)
from tvmm.cli import main
main(['migrate', 'nobody', '--to', 'unix:there'])
print("MODULES", json.dumps(sorted(set(sys.modules) - before)))
"""

CLIENT = """
tvmm tvmm.cli tvmm.cli.completers tvmm.cli.machines tvmm.cli.migrate tvmm.cli.migration_follow tvmm.cli.output
tvmm.cli.parser tvmm.cli.verbs tvmm.config tvmm.config.incoming tvmm.config.names tvmm.config.options
tvmm.config.units tvmm.control tvmm.control.client tvmm.control.directory tvmm.control.migration_info
tvmm.control.registry tvmm.errors tvmm.migration tvmm.migration.status tvmm.outcome
""".split()


def test_a_client_imports_what_a_client_needs(tmp_path: Path) -> None:
    """`tvmm migrate` has these modules when it finds that there is no such machine, and none that help texts need."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT_SCRIPT],
        capture_output=True, text=True, check=True, timeout=60, env={**os.environ, "TVMM_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    found = set(json.loads(done.stdout.removeprefix("MODULES")))
    assert {name for name in found if name.startswith("tvmm")} == set(CLIENT)
    assert found.isdisjoint({"shutil", "threading", "trio", "rich"})
