"""Families of processes: each is started, heard, told of signals and waited for, whatever it does."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tvmm.clones.family import Family, Listener, shares
from tvmm.errors import HostError

PATIENCE_S = 60


@contextmanager
def family(scenario: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The process of `tests.clones.scenarios`."""
    command = [sys.executable, "-m", "tests.clones.scenarios", scenario, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def until(process: subprocess.Popen[str], wanted: str) -> list[str]:
    """Lines up to the one that is `wanted`."""
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        if lines[-1] == wanted:
            return lines
    raise AssertionError(lines)


def run(scenario: str, *arguments: str) -> list[str]:
    """All lines of one that ends by itself."""
    with family(scenario, *arguments) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
    return output.splitlines()


def test_many() -> None:
    """Each has a session of its own, is ready once and ends once, with its own status."""
    lines = run("at_once", "20")
    ready = [line for line in lines if line.startswith("ready")]
    assert len(ready) == len(set(ready)) == 20
    assert all(line.endswith("session=True") for line in ready)
    ends = sorted(line for line in lines if line.startswith("ended"))
    assert ends == sorted(f"ended m-{number} {number % 2 * 5} True" for number in range(1, 21))
    assert lines.count("all started") == 1
    assert lines[-1] == "over 0"


def test_what_was_said_comes_before_the_end() -> None:
    """Lines of several processes do not mix, and a member's last one is heard before it is gone."""
    lines = run("talkative", "4")
    said = [line for line in lines if line.startswith("say")]
    assert len(said) == 200
    assert {len(line) for line in said} == {len("say m-1 ") + 600}
    for number in range(1, 5):
        own = [line.split()[0] for line in lines if f"m-{number}" in line]
        assert own == ["ready", *["say"] * 50, "ended"]


def test_some_fail() -> None:
    """The others do not mind; what failed has ended without having started."""
    with family("failing") as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    lines = output.splitlines()
    assert {"ended m-1 0 True", "error m-2 it cannot be", "ended m-2 2 False", "ended m-3 1 False"} <= set(lines)
    assert "RuntimeError: a bug" in errors


def test_a_host_that_starts_no_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the host's error, in one line."""

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    family = Family(["m-1"], lambda members: 0, Listener())
    with pytest.raises(HostError, match="starts no more processes: Resource temporarily unavailable"):
        family.run()


def test_one_crashes() -> None:
    """It is told with the signal, and the rest live on until they are told."""
    with family("crash") as process:
        until(process, "ended m-2 -9 True")
        process.send_signal(signal.SIGTERM)
        lines = until(process, "over 15")
    assert sorted(line for line in lines if line.startswith("ended")) == ["ended m-1 10 True", "ended m-3 10 True"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on(number: signal.Signals) -> None:
    """To each, once."""
    with family("until_told") as process:
        until(process, "all started")
        process.send_signal(number)
        lines = until(process, f"over {number}")
    assert lines.count(f"signal {number} 1") == 1
    assert sorted(line for line in lines if line.startswith("say")) == [
        f"say m-{member} told {number}" for member in (1, 2, 3)
    ]


def test_signals_stop_the_start() -> None:
    """Who waits for a turn does not come to it."""
    with family("deaf", "9") as process:
        until(process, "all started")
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            # Two of one number at a time are one to the kernel.
            until(process, f"signal 15 {_ + 1}")
        lines = until(process, "over 15")
    assert sorted(line for line in lines if line.startswith("ended")) == [
        f"ended m-{member} -9 True" for member in range(1, 10)
    ]


@pytest.mark.parametrize(("count", "processes", "lengths"), [(5, 2, [2, 3]), (4, 4, [1] * 4), (3, 9, [1] * 3)])
def test_several_in_a_process(count: int, processes: int, lengths: list[int]) -> None:
    """Each has a status of its own, or that of the process."""
    with family("together", str(count), str(processes)) as process:
        lines = until(process, "all started")
        process.send_signal(signal.SIGTERM)
        lines += until(process, "over 15")
    pids = [line.partition("pid=")[2] for line in sorted(lines) if line.startswith("ready")]
    assert sorted(pids.count(pid) for pid in set(pids)) == lengths
    statuses = {number: str(number) for number in range(1, count + 1)}
    statuses |= {sum(lengths[: place + 1]): "20" for place in range(len(lengths))}
    ended = sorted(line for line in lines if line.startswith("ended"))
    assert ended == [f"ended m-{number} {status} True" for number, status in sorted(statuses.items())]


def test_several_are_killed_together() -> None:
    """Those that had not ended before."""
    with family("together", "4", "2") as process:
        lines = until(process, "all started")
        pids = {line.partition("pid=")[2] for line in lines if line.startswith("ready")}
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        lines += until(process, "over 0")
    ended = sorted(line for line in lines if line.startswith("ended"))
    assert ended == ["ended m-1 1 True", "ended m-2 -9 True", "ended m-3 3 True", "ended m-4 -9 True"]


@pytest.mark.parametrize("count", [1, 2, 7, 50])
@pytest.mark.parametrize("total", [50, 51, 99])
def test_shares(total: int, count: int) -> None:
    """All, in order, and as many in each as in the others, or one more."""
    found = shares(range(total), count)
    assert [number for share in found for number in share] == list(range(total))
    assert {len(share) - total // count for share in found} <= {0, 1}
    assert len(found) == count


def test_a_parent_that_is_killed_takes_all_along() -> None:
    """Each sees its pipe end, and leaves in order."""
    with family("until_told") as process:
        assert process.stderr is not None
        pids = [int(process.stderr.readline()) for _ in range(3)]
        until(process, "all started")
        watched = [os.pidfd_open(pid) for pid in pids]
        process.kill()
        # Standard error ends when the last of them has.
        assert "Error" not in process.stderr.read()
        for descriptor in watched:
            os.close(descriptor)
