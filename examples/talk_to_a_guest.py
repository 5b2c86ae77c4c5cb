"""Boot the built-in guest, type a command at its shell, read the answer, power it off."""

import trio

from tvmm import Machine, MachineConfig


async def main() -> None:
    async with Machine(MachineConfig.parse(memory="64M")) as vm:
        await vm.resume()
        with trio.fail_after(30):
            await vm.wait_serial("tvmm> ")
            await vm.send_serial("echo hello from the outside\n")
            answer = await vm.wait_serial("tvmm> ")
            print(answer.decode())
            await vm.send_serial("poweroff\n")
            outcome = await vm.wait()
        print("the guest ended with", outcome.kind)


trio.run(main)
