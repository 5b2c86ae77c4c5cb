"""Runs of random kernels that are bounded in time: what comes of each, and what it left behind."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import trio

from tests.support.random_kernels import sample
from tvmm import Machine, MachineConfig
from tvmm.errors import ImageError, UserError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Result", "run_sample"]

GUEST_REQUESTS = ("poweroff", "reset", "halted", "crashed", "debug-exit")
"""Ends that a guest can bring about."""


class Result(NamedTuple):
    """One run. `end`: how the guest ended, ``cancelled`` or ``refused``; `leaving`: what the end took, in seconds."""

    seed: int
    kind: str
    end: str
    report: str
    leaving: float


async def run_sample(seed: int, path: Path, seconds: float, *, meddle: bool = True) -> Result:
    """Run the kernel of `seed`, written to `path`, for at most `seconds`.

    With `meddle` the host pauses, looks at registers, resumes, and for some seeds resets, in between. Raises
    whatever is neither the guest's end nor the refusal of its file.
    """
    kind, image, options = sample(seed)
    path.write_bytes(image)
    config = MachineConfig.parse(kernel=path, device=["isa-debug-exit,iobase=0x501,iosize=2"], **options)
    end, report, deadline = "cancelled", "", trio.current_time()
    try:
        with trio.CancelScope() as scope:
            async with Machine(config) as vm:
                deadline = scope.deadline = trio.current_time() + seconds
                await vm.resume()
                if meddle:
                    await _meddle(vm, Random(seed), seconds / 4)
                outcome = await vm.wait()
                assert outcome.kind in GUEST_REQUESTS, outcome
                end, report = outcome.kind, outcome.report
                deadline = trio.current_time()
    except ImageError as error:
        return Result(seed, kind, "refused", str(error), 0.0)
    return Result(seed, kind, end, report, trio.current_time() - deadline)


async def _meddle(vm: Machine, random: Random, pause: float) -> None:
    """What a host does to a guest that it looks after, at a time that has nothing to do with the guest's."""
    with trio.move_on_after(random.random() * pause):
        await vm.wait()
    async with vm.paused():
        for vcpu in vm.vcpus:
            assert vcpu.registers.rip >= 0
    if random.random() < 0.2 and vm.outcome is None:
        await vm.reset()
    if random.random() < 0.2:
        with suppress(UserError):  # The guest may have ended just now: an ended machine refuses.
            vm.powerdown()

