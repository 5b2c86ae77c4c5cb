"""A process that goes on with the guest in a file, or starts one, and saves it into that file again and again until
it is killed: ``python -m tests.support.saving_child FILE``. Says ``ready`` before the first save, and ``wrong`` for
a bad page.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractAsyncContextManager

import trio

from tvmm import Machine, MachineConfig
from tvmm.wiring.restoring import restored


def machine(path: str) -> AbstractAsyncContextManager[Machine]:
    """From the file, if there is one."""
    if os.path.exists(path):
        return restored(path)
    return Machine(MachineConfig.parse(memory="64M", cpus=2))


async def main(path: str) -> None:
    """Until it is killed."""
    again = os.path.exists(path)
    async with machine(path) as vm:
        await vm.resume()
        if again:
            # In every file the guest is in the middle of its pages.
            await vm.send_serial("\x03")
            text = await vm.wait_serial("errors")
            if b", 0 errors" not in text:
                print("wrong", text.decode(errors="replace"), flush=True)
                return
        await vm.wait_serial("tvmm> ")
        await vm.send_serial("dirty 20000 8M 600\n")
        await vm.wait_serial("600\r\n")
        print("ready", flush=True)
        while True:
            await vm.save(path)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
