"""Stop a guest in the middle of its work, look at registers and memory, change a byte, and let it go on."""

import trio

from tvmm import Machine, MachineConfig

SCRATCH = 0x200_0000
"""32 MiB: RAM that the built-in guest does not use by itself."""


async def main() -> None:
    async with Machine(MachineConfig.parse(memory="64M")) as vm:
        await vm.resume()
        with trio.fail_after(30):
            await vm.wait_serial("tvmm> ")
            async with vm.paused():
                registers = vm.vcpus[0].registers
                print(f"vCPU 0 stands at {registers.rip:#x}, its stack at {registers.rsp:#x}")
                vm.memory.write(SCRATCH, b"written from outside")
            await vm.send_serial(f"mem {SCRATCH:#x} 32\n")
            print((await vm.wait_serial("tvmm> ")).decode())


trio.run(main)
