"""`tvmm doctor`: facts in, findings out; and the real host."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from tvmm.cli import main
from tvmm.cli.doctor import REQUIRED, WANTED, Finding, checks
from tvmm.cli.host_facts import KVM_EXTENSIONS, HostFacts, Node, gather, parse_meminfo

GOOD = HostFacts(
    architecture="x86_64",
    kernel="6.12.0",
    uid=1000,
    user="ada",
    cpu_flags=frozenset({"vmx"}),
    cpu_model="Xeon",
    cpu_count=8,
    modules=frozenset({"kvm", "kvm_intel"}),
    kvm=Node(True, 0, "kvm", 0o660),
    capabilities=dict.fromkeys(KVM_EXTENSIONS, 1) | {"MAX_VCPUS": 1024},
    tun=Node(True, 0, "root", 0o666),
    net_admin=True,
    network_programs=frozenset({"nft", "dnsmasq"}),
    userfaultfd_kernel_faults=True,
    huge_pages_2m=128,
    huge_pages_2m_free=128,
    hugetlbfs="/dev/hugepages",
    memory_total=16 << 30,
    memory_available=8 << 30,
    memlock_limit=8 << 20,
    nofile_limit=20000,
    compiler="/usr/bin/cc",
    runtime_dir="/run/user/1000/tvmm",
    qemu_nbd="/usr/bin/qemu-nbd",
)


def finding(facts: HostFacts, name: str) -> Finding:
    """The finding called `name`."""
    (found,) = [each for each in checks(facts) if each.name == name]
    return found


def test_a_good_host_has_nothing_to_mend() -> None:
    """Everything is ok and no remedy is offered."""
    for each in checks(GOOD):
        assert each.level == "ok", each
        assert each.remedy == ""


ABSENT = Node(False, errno.ENOENT)
CLOSED = Node(True, errno.EACCES, "kvm", 0o660)

LACKS: list[tuple[dict[str, Any], str, str, str]] = [
    # facts, finding, level, remedy
    ({"architecture": "aarch64"}, "host", "fail", "another host"),
    ({"kvm": CLOSED}, "/dev/kvm", "fail", "sudo usermod -aG kvm ada"),
    ({"kvm": Node(True, errno.EACCES, "root", 0o600)}, "/dev/kvm", "fail", "sudo chmod 660 /dev/kvm"),
    ({"kvm": CLOSED, "uid": 0}, "/dev/kvm", "fail", "--device /dev/kvm"),
    ({"kvm": ABSENT, "modules": frozenset()}, "/dev/kvm", "fail", "sudo modprobe kvm_intel"),
    (
        {"kvm": ABSENT, "modules": frozenset(), "cpu_flags": frozenset({"svm"})},
        "/dev/kvm",
        "fail",
        "sudo modprobe kvm_amd",
    ),
    (
        {"kvm": ABSENT, "modules": frozenset(), "cpu_flags": frozenset()},
        "/dev/kvm",
        "fail",
        "in the firmware",
    ),
    ({"kvm": Node(True, errno.ENODEV, "kvm", 0o660)}, "/dev/kvm", "fail", "modprobe"),
    ({"kvm": ABSENT, "modules": frozenset()}, "virtualization", "fail", "sudo modprobe kvm_intel"),
    ({"modules": frozenset({"kvm", "kvm_pvm"})}, "virtualization", "warn", "VT-x or AMD-V"),
    ({"qemu_nbd": ""}, "qemu-nbd", "warn", "sudo apt install qemu-utils"),
    ({"kvm_error": "speaks version 11"}, "KVM", "fail", "newer kernel"),
    ({"capabilities": {**GOOD.capabilities, "IRQFD": 0}}, "KVM", "fail", "newer kernel"),
    ({"capabilities": {**GOOD.capabilities, "IOEVENTFD": 0}}, "KVM extras", "warn", "newer kernel"),
    (
        {"capabilities": {**GOOD.capabilities, "DIRTY_LOG_RING": 0, "MANUAL_DIRTY_LOG_PROTECT2": 0}},
        "dirty tracking",
        "warn",
        "Linux 5.1",
    ),
    ({"extension_built": False}, "tvmm's C part", "fail", "pip install --force-reinstall tvmm"),
    (
        {"extension_built": False, "compiler": "", "python_headers": False, "kvm_header": False},
        "tvmm's C part",
        "fail",
        "sudo apt install gcc python3-dev linux-libc-dev && pip install",
    ),
    ({"memory_available": 100 << 20}, "memory", "warn", "--memory 64M"),
    ({"huge_pages_2m": 0, "huge_pages_2m_free": 0}, "huge pages", "warn", "sudo sysctl vm.nr_hugepages=128"),
    ({"huge_pages_2m_free": 0}, "huge pages", "warn", "sudo sysctl vm.nr_hugepages=256"),
    ({"huge_pages_2m": -1}, "huge pages", "warn", "hugetlbfs"),
    ({"nofile_limit": 256}, "open files", "warn", "ulimit -n"),
    ({"memlock_limit": 16384}, "locked memory", "warn", "/etc/security/limits.conf"),
    ({"tun": ABSENT}, "TUN/TAP", "warn", "sudo modprobe tun"),
    ({"tun": Node(True, errno.ENODEV)}, "TUN/TAP", "warn", "sudo modprobe tun"),
    ({"tun": Node(True, errno.EACCES)}, "TUN/TAP", "warn", "sudo chmod 666 /dev/net/tun"),
    ({"net_admin": False}, "TUN/TAP", "warn", "sudo tvmm net create --user ada"),
    ({"network_programs": frozenset({"nft"})}, "networks", "warn", "sudo apt install dnsmasq-base"),
    ({"network_programs": frozenset()}, "networks", "warn", "sudo apt install nftables dnsmasq-base"),
    ({"userfaultfd_kernel_faults": False}, "userfaultfd", "warn", "vm.unprivileged_userfaultfd=1"),
    ({"userfaultfd_error": errno.EPERM}, "userfaultfd", "warn", "vm.unprivileged_userfaultfd=1"),
    ({"userfaultfd_error": errno.ENOSYS}, "userfaultfd", "warn", "CONFIG_USERFAULTFD"),
    (
        {"io_uring_error": errno.EPERM, "io_uring_disabled": 2},
        "io_uring",
        "warn",
        "kernel.io_uring_disabled=0",
    ),
    ({"io_uring_error": errno.EPERM, "io_uring_disabled": 0}, "io_uring", "warn", "seccomp"),
    ({"io_uring_error": errno.ENOSYS}, "io_uring", "warn", "CONFIG_IO_URING"),
    ({"compiler": ""}, "build tools", "warn", "sudo apt install gcc"),
    ({"runtime_dir_error": "/run is not writable"}, "runtime directory", "fail", "TVMM_RUNTIME_DIR"),
]


@pytest.mark.parametrize(("facts", "name", "level", "remedy"), LACKS)
def test_lacks(facts: dict[str, Any], name: str, level: str, remedy: str) -> None:
    """Each lack is found at its level, with what mends it."""
    found = finding(GOOD._replace(**facts), name)
    assert found.level == level
    assert remedy in found.remedy
    assert found.detail


@pytest.mark.parametrize(("facts", "name", "level", "remedy"), LACKS)
def test_only_lacks_that_matter_fail(facts: dict[str, Any], name: str, level: str, remedy: str) -> None:
    """A host fails if and only if the finding that the facts are about does, or what follows from it."""
    failed = [each.name for each in checks(GOOD._replace(**facts)) if each.level == "fail"]
    assert bool(failed) == (level == "fail")


def test_limits_without_limit() -> None:
    """Unlimited resources are told as such."""
    facts = GOOD._replace(memlock_limit=-1, nofile_limit=-1)
    assert finding(facts, "locked memory").detail == "no limit"
    assert finding(facts, "open files").detail == "no limit"


def test_every_capability_that_is_judged_is_asked_for() -> None:
    """The lists of capabilities agree, also with what opening KVM insists on."""
    from tvmm.kvm.system import REQUIRED as INSISTED_ON

    assert set(REQUIRED) | set(WANTED) <= set(KVM_EXTENSIONS)
    assert set(REQUIRED) == set(INSISTED_ON)


def test_meminfo() -> None:
    """Sizes are given in bytes; counters without a unit are left out."""
    assert parse_meminfo("MemTotal:  16 kB\nHugePages_Total: 5\nodd\n") == {"MemTotal": 16384}


def test_the_real_host(tmp_path: Path) -> None:
    """Facts can be gathered wherever the tests run, and judged."""
    facts = gather(str(tmp_path / "run"))
    assert facts.kernel
    assert facts.memory_total > facts.memory_available > 0
    assert facts.cpu_count >= 1
    assert facts.runtime_dir_error == ""
    names = [each.name for each in checks(facts)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("mode", [0o777, 0o755])
def test_runtime_directories(tmp_path: Path, mode: int) -> None:
    """One that others may write to is refused, as the registry refuses it."""
    tmp_path.chmod(mode)
    assert bool(gather(str(tmp_path)).runtime_dir_error) == (mode == 0o777)


def test_runtime_directory_in_the_way(tmp_path: Path) -> None:
    """A file where a directory should be is told."""
    path = tmp_path / "file"
    path.touch()
    assert gather(str(path / "run")).runtime_dir_error == f"{path} is not a directory"


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """Status, text and JSON agree on whether machines can run."""
    status = main(["doctor"])
    text = capsys.readouterr().out
    assert status in (0, 2)
    assert ("machines can run here" in text) == (status == 0)
    assert main(["doctor", "--json"]) == status
    answer = json.loads(capsys.readouterr().out)
    assert answer["usable"] == (status == 0)
    assert {each["name"] for each in answer["findings"]} >= {"host", "/dev/kvm", "memory", "io_uring"}
    for each in answer["findings"]:
        assert bool(each["remedy"]) == (each["level"] != "ok")


@pytest.mark.kvm
def test_a_host_with_kvm_can_run_machines() -> None:
    """Where the tests of this tier run, doctor finds nothing that fails."""
    assert main(["doctor"]) == 0
