"""Let the built-in guest access random ports and memory holes for a while, and look after it meanwhile.

    python -m fuzz.guest_ports [--seconds 60] [--seed 1] [--cpus 1]

While the guest's `fuzz SECONDS SEED` runs, the machine is paused and resumed every second and its registers are
read. It must not grow, and must answer its shell afterwards.
"""

from __future__ import annotations

import re

import trio

from fuzz.common import Watch, options
from tvmm import Machine, MachineConfig

FIGURES = re.compile(rb"fuzz: [^\n]* us\r\n")
"""The guest's report, at the end of its run."""
DEVICES = ("virtio-rng", "virtio-rng-device", "virtio-console")
"""Configuration space, BARs and registers in memory to hit."""
PAUSE_EVERY_S = 1.0
LOOK_EVERY = 10
PATIENCE_S = 30.0
"""What the guest may take on top of the time that it was given."""


async def main() -> None:
    """One guest, one run."""
    chosen = options(
        __doc__ or "",
        (("seconds", 60, "how long the guest tries"), ("seed", 1, "the guest's seed"), ("cpus", 1, "vCPUs")),
    )
    with trio.fail_after(chosen.seconds + 2 * PATIENCE_S):
        async with Machine(MachineConfig.parse(memory="64M", cpus=chosen.cpus, device=DEVICES)) as vm:
            await vm.resume()
            await vm.wait_serial("tvmm> ")
            if chosen.cpus > 1:
                await vm.send_serial("cpus\n")
                await vm.wait_serial("tvmm> ")
            await vm.send_serial("fuzz 1 99\n")
            await vm.wait_serial(FIGURES)
            await vm.wait_serial("tvmm> ")
            watch = Watch()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(disturb, vm, watch)
                await vm.send_serial(f"fuzz {chosen.seconds} {chosen.seed}\n")
                text = await vm.wait_serial(FIGURES)
                nursery.cancel_scope.cancel()
            print(text.decode("ascii", "replace").splitlines()[-1])
            await vm.wait_serial("tvmm> ")
            await vm.send_serial("echo still here\n")
            await vm.wait_serial("still here\r\n")
            async with vm.paused():
                assert vm.run_state() == "paused"
            await vm.send_serial("info\n")
            await vm.wait_serial("tvmm> ")
            watch.judge(running=True)
            exits = sum(vcpu.kvm.exits for vcpu in vm.vcpus)
            print(f"{chosen.cpus} CPUs, seed {chosen.seed}: {exits} exits  {watch.line()}")
            await vm.send_serial("poweroff\n")
            outcome = await vm.wait()
    assert outcome.kind == "poweroff", outcome


async def disturb(vm: Machine, watch: Watch) -> None:
    """Pause, look and resume, again and again."""
    rounds = 0
    while True:
        await trio.sleep(PAUSE_EVERY_S)
        async with vm.paused():
            assert all(vcpu.registers.rip >= 0 for vcpu in vm.vcpus)
        rounds += 1
        if rounds % LOOK_EVERY == 0:
            print(watch.line(), flush=True)


if __name__ == "__main__":
    trio.run(main)
