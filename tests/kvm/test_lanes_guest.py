"""Rounds of lanes beside a guest that writes flat out: after the last one, with the guest paused, RAM is equal."""

from __future__ import annotations

import re
from contextlib import ExitStack

import pytest
import trio

from tests.kvm.lane_rig import Lanes, Ram
from tests.wiring.guests import PROMPT, GuestShell
from tvmm import Machine, MachineConfig
from tvmm.board import Board
from tvmm.kvm.dirty_log import make_tracker
from tvmm.kvm.pages import PAGE, RamPages, ram_hash

pytestmark = pytest.mark.guest

MIB = 1 << 20
ROUNDS = 12


class RingBoard(Board):
    """With dirty rings on every host: the built-in guest stays in user mode, where they do not overflow."""

    def _check_rings(self) -> None:
        pass


@pytest.mark.parametrize("memory", ["64M", "64M,dirty-ring=1024"])
@pytest.mark.parametrize("count", [1, 2])
async def test_nothing_that_a_guest_writes_is_lost(memory: str, count: int) -> None:
    """Pages are taken while the guest writes them; only what is written after the last look is missing, and that is
    nothing once the guest is paused. Afterwards the guest goes on and finds its pages right.
    """
    config = MachineConfig.parse(memory=memory)
    with trio.fail_after(60), ExitStack() as stack:
        board = await trio.to_thread.run_sync(RingBoard, config)
        async with Machine(config, board=board) as vm:
            shell = GuestShell(vm)
            await vm.resume()
            await vm.wait_serial(PROMPT)
            await shell.order("dirty 0 24M")
            tracker = make_tracker(board)
            with ExitStack() as exports:
                target = Ram(stack, (("pc.ram", 64 * MIB // PAGE),), fresh=True)
                source = RamPages((name, block.view) for name, block in board.ram.blocks.items())
                exports.callback(source.close)
                lanes = exports.enter_context(Lanes(count, sides=(source, target.pages), chunk_pages=256))
                await trio.to_thread.run_sync(tracker.start)
                lanes.bitmap.fill()
                for number in range(1, ROUNDS):
                    lanes.group.log = tracker.log
                    await trio.to_thread.run_sync(lanes.round, number)
                    # Each round has something to send: the guest writes all the time.
                    while not tracker.sync(lanes.bitmap):
                        await trio.lowlevel.checkpoint()
                await vm.pause()
                tracker.sync(lanes.bitmap)
                lanes.group.log = None
                await trio.to_thread.run_sync(lanes.round, ROUNDS)
                assert ram_hash(target.blocks[0].view) == ram_hash(board.ram.blocks["pc.ram"].view)
                tracker.stop()
            await vm.resume()
            await vm.send_serial("\x03")
            assert re.search(r"dirtied \d+ pages in .* 0 errors", await shell.prompt())
            assert re.search(r"checked \d+ pages: 0 errors", await shell.ask("check"))


async def test_boards_refuse_rings_that_overflow() -> None:
    """Where guest kernel mode is emulated a machine with dirty rings is refused; elsewhere it has them."""
    from tvmm.errors import HostError
    from tvmm.kvm.system import kernel_mode_is_emulated

    config = MachineConfig.parse(memory="64M,dirty-ring=1024")
    if kernel_mode_is_emulated():
        with pytest.raises(HostError, match="dirty rings overflow"):
            await trio.to_thread.run_sync(Board, config)
    else:
        board = await trio.to_thread.run_sync(Board, config)
        assert board.rings is not None
        await trio.to_thread.run_sync(board.close)
