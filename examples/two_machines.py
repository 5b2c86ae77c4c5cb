"""Two machines in one process, each in its own task; the nursery ends both if one of them fails."""

import trio

from tvmm import Machine, MachineConfig


async def boot(name: str, cpus: int) -> None:
    async with Machine(MachineConfig.parse(name=name, cpus=cpus, append="run=cpus then=poweroff")) as vm:
        await vm.resume()
        outcome = await vm.wait()
        print(f"{name} with {cpus} CPUs: {outcome.kind}, {sum(vcpu.kvm.exits for vcpu in vm.vcpus)} exits")


async def main() -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(boot, "left", 1)
            nursery.start_soon(boot, "right", 2)


trio.run(main)
