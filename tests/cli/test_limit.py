"""`tvmm limit`: limits shown and changed, and what is said when that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.fakes import running
from tests.cli.test_completion import completions
from tests.control.fakes import FakeMachine
from tvmm.cli import main
from tvmm.config.limits import NO_LIMITS, Limits, Rate

Capture = pytest.CaptureFixture[str]
MIB = 1 << 20


def test_show(registry: Path, capsys: Capture) -> None:
    """A row for each device, or for one; with its limits as they are given."""
    with running(registry, FakeMachine("web")) as machine:
        machine.limited()["disk0"].set_limits(Limits(bytes=Rate(10 * MIB), operations_in=Rate(5, 10, 3)))
        machine.limited()["net0"].limit_waits = 7
        assert main(["limit", "web"]) == 0
        assert main(["limit"]) == 0
        assert main(["limit", "net0"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        header = ["DEVICE", "KIND", "LIMITS", "WAITS"]
        table = [
            header,
            ["disk0", "disk", "bps=10M", "iops_rd=5", "iops_rd_max=10", "iops_rd_max_length=3", "0"],
            ["disk1", "disk", "none", "0"],
            ["net0", "net", "none", "7"],
        ]
        assert lines == [*table, *table, header, table[3]]
        assert main(["limit", "web", "disk0", "--json"]) == 0
        (one,) = json.loads(capsys.readouterr().out)
        assert (one["id"], one["limits"]["bps"], one["limits"]["iops"]) == ("disk0", 10 * MIB, 0)


def test_change(registry: Path, capsys: Capture) -> None:
    """What is named is changed, what is not stays; 'none' lifts it."""
    with running(registry, FakeMachine("web")) as machine:
        disk, net = machine.limited()["disk0"], machine.limited()["net0"]
        assert main(["limit", "web", "disk0", "bps=10M", "iops=500"]) == 0
        assert disk.limits == Limits(bytes=Rate(10 * MIB), operations=Rate(500))
        assert main(["limit", "disk0", "iops=100", "throttling.iops-total-max=200"]) == 0
        assert disk.limits == Limits(bytes=Rate(10 * MIB), operations=Rate(100, 200))
        assert main(["limit", "web", "disk0", "none", "iops_wr=9"]) == 0
        assert disk.limits == Limits(operations_out=Rate(9))
        assert main(["limit", "web", "net0", "bps_rx=1M", "pps=1000"]) == 0
        assert net.limits == Limits(bytes_in=Rate(MIB), operations=Rate(1000))
        assert main(["limit", "web", "disk0", "none"]) == 0
        assert disk.limits == NO_LIMITS
        assert machine.limited()["disk1"].limits == NO_LIMITS
        assert capsys.readouterr().out.splitlines() == [
            "disk0 of web: bps=10M iops=500",
            "disk0 of web: bps=10M iops=100 iops_max=200",
            "disk0 of web: iops_wr=9",
            "net0 of web: bps_rx=1M pps=1000",
            "disk0 of web: none",
        ]
        assert main(["limit", "web", "net0", "pps=0", "--json"]) == 0
        (one,) = json.loads(capsys.readouterr().out)
        assert one["limits"]["pps"] == 0


def test_the_only_device_need_not_be_named(registry: Path, capsys: Capture) -> None:
    """Of a machine that has one."""
    with running(registry, FakeMachine("web")) as machine:
        del machine.limited()["disk1"], machine.limited()["net0"]
        assert main(["limit", "web", "bps=1M"]) == 0
        assert machine.limited()["disk0"].limits == Limits(bytes=Rate(MIB))
        assert main(["limit", "none"]) == 0
        assert machine.limited()["disk0"].limits == NO_LIMITS


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("web disk9 bps=1", "web has no disk or network device 'disk9'; there are: disk0, disk1, net0"),
        ("web disk9", "web has no disk or network device 'disk9'"),
        ("wbe", "web has no disk or network device 'wbe'"),
        ("web bps=1", "web has not just one disk or network device; name one; there are: disk0, disk1, net0"),
        ("web disk0 bsp=1M", "unknown limit of disk0 'bsp'; did you mean 'bps'?"),
        ("web disk0 pps=1", "unknown limit of disk0 'pps'"),
        ("web net0 bps_rd=1", "unknown limit of net0 'bps_rd'; did you mean"),
        ("web disk0 bps=fast", "disk0 property bps 'fast' is not a size"),
        ("web disk0 bps=-5", "disk0 property bps '-5' is negative"),
        ("web disk0 bps=", "disk0 property bps '' is not a size"),
        ("web disk0 iops=10000000000", "it goes from 0 to 1000000000"),
        ("web disk0 bps_max=5M", "disk0 bps_max has no bps to go with; add bps=RATE"),
        ("web disk0 iops_rd=5", "disk0 iops and iops_rd do not go together"),
    ],
)
def test_refused(registry: Path, capsys: Capture, words: str, complaint: str) -> None:
    """One line, status 2, and the old limits hold on."""
    old = Limits(operations=Rate(5))
    with running(registry, FakeMachine("web")) as machine:
        machine.limited()["disk0"].set_limits(old)
        assert main(["limit", *words.split()]) == 2
        assert machine.limited()["disk0"].limits == old
    err = capsys.readouterr().err
    assert complaint in err
    assert err.count("\n") == 1


def test_completion(registry: Path, tmp_path: Path) -> None:
    """Machines and devices; behind a device its limits that are not there yet."""
    assert completions("tvmm limit d", tmp_path) == []
    with running(registry, FakeMachine("web")):
        assert set(completions("tvmm limit ", tmp_path)) >= {"web", "disk0", "disk1", "net0"}
        assert completions("tvmm limit web d", tmp_path) == ["disk0", "disk1"]
        assert completions("tvmm limit web net0 pps_t", tmp_path) == ["pps_tx=", "pps_tx_max=", "pps_tx_max_length="]
        assert completions("tvmm limit disk0 iops=5 iops_s", tmp_path) == ["iops_size="]
        assert "iops=" not in completions("tvmm limit disk0 iops=5 io", tmp_path)
        assert completions("tvmm limit web disk0 no", tmp_path) == ["none"]
