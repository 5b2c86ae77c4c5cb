"""A real Linux kernel from a folder of ready guests: boots to its shell on the serial line, and ends.

`TVMM_TEST_GUESTS` names the folder; `tests/guests/linux/` makes what is in it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tvmm import Machine, MachineConfig

pytestmark = [pytest.mark.linux, pytest.mark.timeout(300)]

BOOT_SECONDS = 150
"""A boot takes 11 to 14 s where kernel mode is emulated and one core is free, and a fraction of a second elsewhere."""


def config(stock_tiny: Path, extra: str = "", **options: object) -> MachineConfig:
    """The tiny Linux with its own command line."""
    append = (stock_tiny / "cmdline.txt").read_text().strip()
    return MachineConfig.parse(
        kernel=stock_tiny / "vmlinux",
        initrd=stock_tiny / "initrd.cpio",
        memory="64M",
        append=f"{append} {extra}".strip(),
        **options,  # type: ignore[arg-type]
    )


async def test_boots_to_its_shell_and_powers_off(stock_tiny: Path) -> None:
    """By PVH: user space says hello, the shell answers in both directions, `poweroff` ends the machine."""
    with trio.fail_after(BOOT_SECONDS):
        async with Machine(config(stock_tiny)) as vm:
            assert vm.board.loaded.startswith("PVH")
            await vm.resume()
            await vm.wait_serial("HELLO FROM GUEST")
            await vm.wait_serial("# ")
            await vm.send_serial("uname -s -m; free | head -2\n")
            assert b"Linux x86_64" in await vm.wait_serial("Mem:")
            async with vm.paused():
                rip = vm.vcpus[0].registers.rip
                assert rip
            await vm.send_serial("echo $((6 * 7))\n")
            await vm.wait_serial("\r\n42\r\n")
            await vm.send_serial("poweroff -f\n")
            outcome = await vm.wait()
    # Without ACPI tables this kernel knows no power switch: it halts its CPU for good, which tvmm takes for the end.
    assert outcome.kind in ("poweroff", "halted")
    assert outcome.status == 0


@pytest.mark.slow  # test_devices.py enters like this, and ends by a reset, with devices
async def test_enters_by_the_64_bit_protocol_and_resets(stock_tiny: Path) -> None:
    """By the zero page: it boots, runs a command from its command line, and its reset ends a machine without reboot."""
    with trio.fail_after(BOOT_SECONDS):
        async with Machine(config(stock_tiny, "run=echo,ran,this then=reboot", entry="linux64", reboot=False)) as vm:
            assert "64" in vm.board.loaded
            outcome = await vm.run()
            output = await vm.wait_serial("RUN STATUS 0")
    assert b"ran this" in output
    assert (outcome.kind, outcome.status) == ("reset", 0)
