"""Tab completion: what the shell gets for a line that is not finished."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.fakes import running
from tests.control.fakes import FakeMachine
from tvmm.cli import main
from tvmm.cli.completers import cpu_values, device_values, disk_values, memory_values, net_values
from tvmm.cli.completion import SHELLS
from tvmm.vcpu.cpu_features import FEATURES


def completions(line: str, tmp_path: Path) -> list[str]:
    """What completing `line` offers, as fish would ask (one per line, no quoting)."""
    answer = tmp_path / "answer"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run([sys.executable, "-m", "tvmm.cli"], env=environment, check=True)
    return [word.strip() for word in answer.read_text().split("\n") if word]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tvmm r", ["run", "resume", "resize", "record", "restore"]),
        ("tvmm run --me", ["--memory", "--metrics"]),
        ("tvmm run --serial s", ["stdio"]),
        ("tvmm run --device isa", ["isa-debug-exit"]),
        ("tvmm run --device isa-debug-exit,io", ["isa-debug-exit,iobase=", "isa-debug-exit,iosize="]),
        ("tvmm run --cpu h", ["help", "host"]),
        ("tvmm run --cpu host,+avx51", [f"host,+{name}" for name in FEATURES if name.startswith("avx51")]),
        ("tvmm run --entry p", ["pvh"]),
        ("tvmm run --device virtio-n", ["virtio-net", "virtio-net-pci", "virtio-net-device"]),
        ("tvmm run --device virtio-rng,p", ["virtio-rng,period=", "virtio-rng,packed="]),
        ("tvmm run --net t", ["tap"]),
        ("tvmm run --net tap,i", ["tap,id=", "tap,ifname=", "tap,isolated=", "tap,ip=", "tap,in_order=",
                                  "tap,indirect_desc="]),
        ("tvmm run --net user,ho", ["user,host=", "user,hostfwd="]),
        ("tvmm run --net stream,pa", ["stream,path=", "stream,packed="]),
        ("tvmm run --disk a.img,ca", ["a.img,cache="]),
        ("tvmm run --disk a.img,readonly=on,cache=", ["a.img,readonly=on,cache=none",
         "a.img,readonly=on,cache=writeback", "a.img,readonly=on,cache=unsafe"]),
        ("tvmm info --v", ["--virtio"]),
        ("tvmm run --assist o", ["off", "on"]),
        ("tvmm stop --f", ["--force"]),
        ("tvmm run --incoming t", ["tcp:127.0.0.1:"]),
        ("tvmm completion z", ["zsh"]),
    ],
)
def test_completions(line: str, offered: list[str], tmp_path: Path) -> None:
    """Verbs, options and the values of options are offered."""
    assert sorted(completions(line, tmp_path)) == sorted(offered)


def test_machine_names(registry: Path, tmp_path: Path) -> None:
    """Verbs for running machines offer their names."""
    assert completions("tvmm stop w", tmp_path) == []
    with running(registry, FakeMachine("web")), running(registry, FakeMachine("db")):
        assert completions("tvmm stop w", tmp_path) == ["web"]


def test_disks_of_a_running_machine(registry: Path, tmp_path: Path) -> None:
    """resize offers machines and the disks of the only one; behind a name those of that machine."""
    assert completions("tvmm resize web disk", tmp_path) == []
    with running(registry, FakeMachine("web")):
        assert completions("tvmm resize disk", tmp_path) == ["disk0", "disk1"]
        with running(registry, FakeMachine("diskless")):
            assert completions("tvmm resize disk", tmp_path) == ["diskless"]
            assert completions("tvmm resize web disk", tmp_path) == ["disk0", "disk1"]


def test_files_are_completed_for_disks(tmp_path: Path) -> None:
    """In front of the first comma comes a file."""
    (tmp_path / "root.img").touch()
    assert completions(f"tvmm run --disk {tmp_path}/roo", tmp_path) == [f"{tmp_path}/root.img"]


def test_values_of_properties() -> None:
    """Behind the sign of equality come the values of a switch or a choice, and nothing of a number."""
    assert disk_values("a,readonly=o") == ["a,readonly=on", "a,readonly=off"]
    assert net_values("tap,transport=") == ["tap,transport=pci", "tap,transport=mmio"]
    assert device_values("virtio-blk,file=x,aio=t") == ["virtio-blk,file=x,aio=threads"]
    assert disk_values("a,queues=") == disk_values("a,file=") == []


def test_what_was_given_is_not_offered_again() -> None:
    """Behind a comma come the keys that are not there yet."""
    assert device_values("isa-debug-exit,iobase=1,") == [
        "isa-debug-exit,iobase=1,iosize=",
        "isa-debug-exit,iobase=1,help",
    ]
    assert not any(value.endswith("+avx") for value in cpu_values("host,-avx,"))
    assert any(value.endswith("+avx2") for value in cpu_values("host,-avx,"))
    assert memory_values("1G,hugepages=2M,p") == ["1G,hugepages=2M,prealloc=on"]


@pytest.mark.parametrize("shell", SHELLS)
def test_setup_code(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets code that asks tvmm."""
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "tvmm" in out
    assert "_ARGCOMPLETE" in out


def test_in_a_real_bash(tmp_path: Path) -> None:
    """bash, having evaluated the code, completes the verb."""
    tool = tmp_path / "tvmm"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m tvmm.cli "$@"\n')
    tool.chmod(0o755)
    script = (
        'eval "$(tvmm completion bash)"; COMP_WORDS=(tvmm comp); COMP_CWORD=1; COMP_LINE="tvmm comp"; '
        'COMP_POINT=9; COMP_TYPE=9; _python_argcomplete tvmm; echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["completion"]
