"""Kernels of random code and files of noise: a machine that ends, a refusal, or a guest that can be cancelled."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.support.hostile_runs import run_sample
from tests.support.random_kernels import KINDS, sample
from tests.support.vitals import own_vitals, vcpu_threads

SECONDS = 30
RUN_SECONDS = 0.1
RUNS_PER_KIND = 6
LEAVING_LIMIT_S = 5.0


def test_a_seed_is_a_kernel() -> None:
    """The same seed always gives the same file and options, another one others."""
    for seed in range(2 * len(KINDS)):
        assert sample(seed) == sample(seed)
        assert sample(seed) != sample(seed + len(KINDS))
    assert {sample(seed).kind for seed in range(len(KINDS))} == set(KINDS)


@pytest.mark.kvm
@pytest.mark.parametrize("kind", KINDS)
async def test_random_kernels_end(kind: str, tmp_path: Path) -> None:
    """Each run ends in time as one of the ends that there are, and leaves no descriptor and no vCPU thread."""
    with trio.fail_after(SECONDS):
        before = own_vitals().of_machines()
        for number in range(RUNS_PER_KIND):
            result = await run_sample(KINDS.index(kind) + number * len(KINDS), tmp_path / "kernel", RUN_SECONDS)
            assert result.kind == kind
            assert result.leaving < LEAVING_LIMIT_S, result
            assert bool(result.report) == (result.end in ("crashed", "refused")), result
        assert own_vitals().of_machines() == before
        assert not vcpu_threads()
