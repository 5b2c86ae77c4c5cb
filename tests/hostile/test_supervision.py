"""Limits of what a guest can do to its supervision: times, leftovers, and requests that meet one another."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.support.vitals import own_vitals, vcpu_threads
from tvmm import Machine, MachineConfig
from tvmm.board import Board
from tvmm.control.registry import machines

pytestmark = pytest.mark.guest

SECONDS = 30
LEAVING_LIMIT_S = 5.0
"""Cancelling takes milliseconds; a busy host may need some more of them."""


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A registry with a short name: the paths of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="tvmm-") as directory:
        yield Path(directory)


def config(append: str = "", **options: object) -> MachineConfig:
    """The built-in guest with 64 MiB."""
    return MachineConfig.parse(memory="64M", append=append, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("order", "cpus"), [("run=spinoff", 1), ("run=spinoff", 4), ("run=smp,600", 4), ("run=fuzz,600,3", 1)]
)
async def test_cancelling_takes_a_bounded_time(order: str, cpus: int, runtime: Path) -> None:
    """With interrupts off, with all CPUs busy, in a storm of exits: the machine is gone soon, with all that it had."""
    before = own_vitals().of_machines()
    with trio.fail_after(SECONDS), trio.CancelScope() as scope:
        async with Machine(config(order, cpus=cpus, name="vm", runtime_dir=runtime)) as vm:
            await vm.resume()
            await vm.wait_serial("PVH")
            await vm.control_ready.wait()
            cancelled = trio.current_time()
            scope.cancel()
            await trio.sleep_forever()
    assert trio.current_time() - cancelled < LEAVING_LIMIT_S
    assert own_vitals().of_machines() == before
    assert not vcpu_threads()
    assert machines(runtime) == []


@pytest.mark.parametrize("order", ["run=crash", "run=cpus;crash", "run=halt"])
async def test_a_crash_leaves_nothing(order: str, runtime: Path) -> None:
    """No socket, no directory, no descriptor and no thread of a machine whose guest came to a bad end."""
    before = own_vitals()
    with trio.fail_after(SECONDS):
        async with Machine(config(order, cpus=2, name="vm", runtime_dir=runtime)) as vm:
            await vm.resume()
            await vm.control_ready.wait()
            assert (runtime / "vm/control.sock").is_socket()
            outcome = await vm.wait()
    assert outcome.kind in ("crashed", "halted")
    assert list(runtime.glob("vm*")) == []
    assert own_vitals().of_machines() == before.of_machines()
    assert len(own_vitals().descriptors) == len(before.descriptors)
    assert not vcpu_threads()


async def test_cancelled_during_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is cancelled while it resets, which no cancellation cuts short, ends without an error."""
    reset, cancelled = Board.reset, threading.Event()
    scope = trio.CancelScope()

    def cancelled_meanwhile(board: Board) -> None:
        reset(board)
        trio.from_thread.run_sync(scope.cancel)
        assert cancelled.wait(SECONDS)

    monkeypatch.setattr(Board, "reset", cancelled_meanwhile)
    with trio.fail_after(SECONDS), scope:
        async with Machine(config("then=reboot", cpus=2)) as vm:
            await vm.resume()
            try:
                await vm.wait()
            finally:
                cancelled.set()
    assert scope.cancelled_caught
    assert not vcpu_threads()


@pytest.mark.parametrize("attempt", range(12))
async def test_a_pause_during_which_the_machine_ends(attempt: int) -> None:
    """Leaving `paused` is no error, at whatever point of the end it happens. (Trio runs tasks in random order.)"""
    with trio.fail_after(SECONDS):
        async with Machine(config()) as vm:
            await vm.resume()
            async with vm.paused():
                vm.quit()
                for _ in range(1 + attempt % 2):
                    await trio.lowlevel.checkpoint()
            assert (await vm.wait()).kind == "quit"


async def test_input_that_waits_survives_a_reset() -> None:
    """What was typed ahead, and did not fit the FIFO, reaches the guest after a reset; what comes later does too."""
    with trio.fail_after(SECONDS):
        async with Machine(config()) as vm:
            await vm.resume()
            await vm.wait_serial("tvmm> ")
            await vm.pause()
            await vm.send_serial(b"#" * 500 + b"\necho typed ahead\n")
            await vm.reset()
            # By now the bytes wait for a guest that listens, and not for room in the FIFO.
            await wait_all_tasks_blocked(0.01)
            await vm.reset()
            await vm.resume()
            await vm.wait_serial("\ntyped ahead\r\n")
            await vm.send_serial("echo typed later\n")
            await vm.wait_serial("\ntyped later\r\n")
