"""``tvmm doctor``: what this host can do for tvmm, and the command that mends each lack.

`checks` is pure: facts in, findings out. A finding is ``ok``, ``warn`` (machines run, something is missing)
or ``fail`` (no machine runs).
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.cli.output import DIM, GREEN, RED, YELLOW, paint, print_json, say
from tvmm.config.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tvmm.cli.host_facts import HostFacts
    from tvmm.cli.parser import Parser

__all__ = ["Finding", "add_arguments", "checks", "run"]

STATUS_CANNOT_RUN = 2

LITTLE_MEMORY = 512 << 20
FEW_FILES = 1024
HUGE_PAGE = 2 << 20

REQUIRED = (
    "IRQCHIP",
    "USER_MEMORY",
    "EXT_CPUID",
    "PIT2",
    "MP_STATE",
    "IRQFD",
    "IMMEDIATE_EXIT",
    "VCPU_EVENTS",
)
"""Capabilities without which no machine is made."""
WANTED = ("IOEVENTFD", "IRQ_ROUTING", "SIGNAL_MSI", "SYNC_REGS", "READONLY_MEM", "XSAVE", "XCRS")
"""Capabilities that devices, interrupts or state transfer use."""

_EXAMPLES = """\
  tvmm doctor
  tvmm doctor --json | jq '.findings[] | select(.level != "ok")'
"""


class Finding(NamedTuple):
    """One thing looked at: `level` is ok, warn or fail, `remedy` a command or advice for the latter two."""

    name: str
    level: str
    detail: str
    remedy: str = ""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    parser.describe(
        "Say what this host offers to virtual machines, and for each lack the command that mends it.",
        _EXAMPLES,
        "exit status:\n  0  machines can run (there may be warnings)\n  2  they cannot\n",
    )
    parser.add_argument("--json", action="store_true", help='print {"usable": ..., "findings": [...]}')


def run(options: Mapping[str, Any]) -> int:
    """Look, print, and return 0 if machines can run here."""
    from tvmm.cli.host_facts import gather
    from tvmm.cli.machines import base_directory

    findings = checks(gather(os.fspath(base_directory())))
    usable = all(finding.level != "fail" for finding in findings)
    if options.get("json"):
        print_json({"usable": usable, "findings": [finding._asdict() for finding in findings]})
    else:
        _print(findings, usable)
    return 0 if usable else STATUS_CANNOT_RUN


def _print(findings: list[Finding], usable: bool) -> None:
    signs = {"ok": ("✓", GREEN), "warn": ("!", YELLOW), "fail": ("✗", RED)}
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        sign, colour = signs[finding.level]
        mark = paint(_encodable(sign, finding.level), colour, sys.stdout)
        say(f"{mark} {finding.name:{width}}  {finding.detail}")
        if finding.remedy:
            say(paint(f"  {'':{width}}  to mend: {finding.remedy}", DIM, sys.stdout))
    warnings = sum(finding.level == "warn" for finding in findings)
    counted = f" ({warnings} warning{'s' * (warnings != 1)})" if warnings else ""
    say(f"\nmachines {'can' if usable else 'cannot'} run here{counted}")


def _encodable(sign: str, word: str) -> str:
    """`sign`, or `word` on a terminal that cannot show it."""
    try:
        sign.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return word
    return sign


def checks(facts: HostFacts) -> list[Finding]:
    """Everything that the facts say, in the order in which it should be mended."""
    return [finding for check in _CHECKS for finding in check(facts)]


def _platform(facts: HostFacts) -> Iterator[Finding]:
    name = "host"
    detail = f"Linux {facts.kernel}, {facts.architecture}, {facts.cpu_count} CPUs"
    if facts.architecture != "x86_64":
        yield Finding(name, "fail", f"{detail}: tvmm needs x86-64", "use another host")
    else:
        yield Finding(name, "ok", f"{detail}, {facts.cpu_model}" if facts.cpu_model else detail)


def _extension(facts: HostFacts) -> Iterator[Finding]:
    name = "tvmm's C part"
    if facts.extension_built:
        yield Finding(name, "ok", "compiled")
        return
    lacking = []
    if not facts.compiler:
        lacking.append("gcc")
    if not facts.python_headers:
        lacking.append("python3-dev")
    if not facts.kvm_header:
        lacking.append("linux-libc-dev")
    install = f"sudo apt install {' '.join(lacking)} && " if lacking else ""
    yield Finding(
        name,
        "fail",
        "not compiled, /dev/kvm cannot be spoken to",
        f"{install}pip install --force-reinstall tvmm",
    )


def _kvm_node(facts: HostFacts) -> Iterator[Finding]:
    name, kvm = "/dev/kvm", facts.kvm
    if not kvm.error:
        yield Finding(name, "ok", "present, and yours to open")
    elif not kvm.exists:
        yield Finding(name, "fail", "absent", _load_kvm(facts))
    elif kvm.error in (errno.EACCES, errno.EPERM):
        if kvm.mode & 0o060 == 0o060 and facts.uid != 0:
            remedy = f"sudo usermod -aG {kvm.group} {facts.user} and log in again"
        else:
            remedy = "sudo chmod 660 /dev/kvm; in a container, start it with --device /dev/kvm"
        yield Finding(name, "fail", f"closed to you (group {kvm.group}, mode {kvm.mode:04o})", remedy)
    else:
        yield Finding(name, "fail", f"cannot be opened: {os.strerror(kvm.error)}", _load_kvm(facts))


def _load_kvm(facts: HostFacts) -> str:
    """How to get a KVM module that this processor can use."""
    for flag, module in (("vmx", "kvm_intel"), ("svm", "kvm_amd")):
        if flag in facts.cpu_flags:
            return f"sudo modprobe {module}; in a container, start it with --device /dev/kvm"
    return (
        "turn on VT-x or AMD-V in the firmware, or nested virtualization if this host is a virtual machine "
        "itself; without either, sudo modprobe kvm_pvm if the kernel has it"
    )


def _virtualization(facts: HostFacts) -> Iterator[Finding]:
    name = "virtualization"
    modules = sorted(facts.modules & {"kvm_intel", "kvm_amd", "kvm_pvm"})
    hardware = facts.modules & {"kvm_intel", "kvm_amd"}
    if hardware:
        yield Finding(name, "ok", f"hardware ({', '.join(modules)})")
    elif "kvm_pvm" in facts.modules:
        yield Finding(
            name,
            "warn",
            "software (kvm_pvm): guest user mode at full speed, guest kernels slowly, with tvmm's help",
            "for stock kernels use a host with VT-x or AMD-V; the built-in guest is at home here",
        )
    elif not facts.kvm.error:
        yield Finding(name, "ok", "by a KVM that is part of the kernel")
    else:
        flags = sorted(facts.cpu_flags & {"vmx", "svm"})
        yield Finding(
            name,
            "fail",
            f"the processor has it ({flags[0]}), no KVM module is loaded" if flags else "none",
            _load_kvm(facts),
        )


def _capabilities(facts: HostFacts) -> Iterator[Finding]:
    name = "KVM"
    if facts.kvm_error:
        yield Finding(name, "fail", facts.kvm_error, "use a host with a newer kernel")
        return
    if not facts.capabilities:
        # Either /dev/kvm or the C part is missing, and that is told elsewhere.
        return
    lacking = [cap for cap in REQUIRED if not facts.capabilities.get(cap)]
    if lacking:
        yield Finding(name, "fail", f"lacks {', '.join(lacking)}", "use a host with a newer kernel")
        return
    yield Finding(name, "ok", f"API 12, up to {facts.capabilities.get('MAX_VCPUS') or 'some'} vCPUs a machine")
    missing = [cap for cap in WANTED if not facts.capabilities.get(cap)]
    if missing:
        yield Finding("KVM extras", "warn", f"lacks {', '.join(missing)}: slower devices", "use a newer kernel")
    ring, protect = (
        facts.capabilities.get("DIRTY_LOG_RING"),
        facts.capabilities.get("MANUAL_DIRTY_LOG_PROTECT2"),
    )
    if ring or protect:
        ways = [text for text, there in (("bitmap in chunks", protect), ("ring", ring)) if there]
        yield Finding("dirty tracking", "ok", " and ".join(ways))
    else:
        yield Finding(
            "dirty tracking", "warn", "plain bitmap only: long pauses with much RAM", "use Linux 5.1 or later"
        )


def _memory(facts: HostFacts) -> Iterator[Finding]:
    available = f"{facts.memory_available >> 20}M available of {facts.memory_total >> 20}M"
    if facts.memory_available < LITTLE_MEMORY:
        yield Finding("memory", "warn", f"little: {available}", "end something, or give guests less: --memory 64M")
    else:
        yield Finding("memory", "ok", available)


def _huge_pages(facts: HostFacts) -> Iterator[Finding]:
    name = "huge pages"
    if facts.huge_pages_2m < 0:
        yield Finding(
            name, "warn", "not in this kernel: --memory ...,hugepages=on fails", "use a kernel with hugetlbfs"
        )
        return
    if not facts.huge_pages_2m_free:
        count = (256 << 20) // HUGE_PAGE
        reserved = f"{facts.huge_pages_2m} of 2M reserved, none free" if facts.huge_pages_2m else "none reserved"
        yield Finding(
            name,
            "warn",
            f"{reserved}: --memory ...,hugepages=on fails",
            f"sudo sysctl vm.nr_hugepages={facts.huge_pages_2m + count} for another 256M",
        )
        return
    where = f", hugetlbfs at {facts.hugetlbfs}" if facts.hugetlbfs else ""
    free = format_size(facts.huge_pages_2m_free * HUGE_PAGE)
    yield Finding(name, "ok", f"{facts.huge_pages_2m_free} of 2M free ({free}){where}")


def _limits(facts: HostFacts) -> Iterator[Finding]:
    files = facts.nofile_limit
    if 0 <= files < FEW_FILES:
        yield Finding("open files", "warn", f"limit {files}: too few for many CPUs and devices", "ulimit -n 4096")
    else:
        yield Finding("open files", "ok", "no limit" if files < 0 else f"limit {files}")
    locked = facts.memlock_limit
    if facts.uid == 0 or locked < 0:
        yield Finding("locked memory", "ok", "no limit" if locked < 0 else f"limit {format_size(locked)}, not for root")
    elif locked < 64 << 10:
        yield Finding(
            "locked memory",
            "warn",
            f"limit {format_size(locked)}: io_uring may refuse its buffers",
            "raise 'memlock' in /etc/security/limits.conf and log in again",
        )
    else:
        yield Finding("locked memory", "ok", f"limit {format_size(locked)}")


def _tun(facts: HostFacts) -> Iterator[Finding]:
    name, tun = "TUN/TAP", facts.tun
    if not tun.exists:
        yield Finding(name, "warn", "no /dev/net/tun: no TAP networks", "sudo modprobe tun")
    elif tun.error == errno.ENODEV:
        yield Finding(name, "warn", "/dev/net/tun has no driver: no TAP networks", "sudo modprobe tun")
    elif tun.error:
        yield Finding(
            name,
            "warn",
            f"/dev/net/tun: {os.strerror(tun.error)}: no TAP networks",
            "sudo chmod 666 /dev/net/tun",
        )
    elif not facts.net_admin:
        yield Finding(
            name,
            "warn",
            "present; without CAP_NET_ADMIN only TAPs made for you can be used",
            f"sudo tvmm net create --user {facts.user}",
        )
    else:
        yield Finding(name, "ok", "present, and you may make TAPs (CAP_NET_ADMIN)")


def _networks(facts: HostFacts) -> Iterator[Finding]:
    name, lacking = "networks", [program for program in ("nft", "dnsmasq") if program not in facts.network_programs]
    if not lacking:
        yield Finding(name, "ok", "nft and dnsmasq are there for 'tvmm net up'")
        return
    lost = "no 'tvmm net up'" if "nft" in lacking else "no DHCP and DNS in networks of 'tvmm net up'"
    packages = {"nft": "nftables", "dnsmasq": "dnsmasq-base"}
    remedy = f"sudo apt install {' '.join(packages[program] for program in lacking)}"
    yield Finding(name, "warn", f"{' and '.join(lacking)} not installed: {lost}", remedy)


def _userfaultfd(facts: HostFacts) -> Iterator[Finding]:
    name = "userfaultfd"
    allow = "sudo sysctl vm.unprivileged_userfaultfd=1"
    if not facts.userfaultfd_error and facts.userfaultfd_kernel_faults:
        yield Finding(name, "ok", "works, also for faults in the kernel")
    elif not facts.userfaultfd_error:
        yield Finding(name, "warn", "only for faults in user mode: no post-copy migration", allow)
    elif facts.userfaultfd_error == errno.ENOSYS:
        yield Finding(
            name, "warn", "not in this kernel: no post-copy migration", "use a kernel with CONFIG_USERFAULTFD"
        )
    else:
        why = os.strerror(facts.userfaultfd_error)
        yield Finding(name, "warn", f"refused ({why}): no post-copy migration", allow)


def _io_uring(facts: HostFacts) -> Iterator[Finding]:
    name = "io_uring"
    if not facts.io_uring_error:
        yield Finding(name, "ok", "works")
    elif facts.io_uring_error == errno.ENOSYS:
        yield Finding(name, "warn", "not in this kernel: slower disks", "use a kernel with CONFIG_IO_URING")
    elif facts.io_uring_disabled > 0:
        yield Finding(name, "warn", "switched off: slower disks", "sudo sysctl kernel.io_uring_disabled=0")
    else:
        why = os.strerror(facts.io_uring_error)
        yield Finding(
            name,
            "warn",
            f"refused ({why}): slower disks",
            "allow io_uring in the container's seccomp profile",
        )


def _build_tools(facts: HostFacts) -> Iterator[Finding]:
    # Only of interest for the next installation; the lack of a compiled part is told by `_extension`.
    packages = [
        package
        for package, there in (
            ("gcc", facts.compiler),
            ("python3-dev", facts.python_headers),
            ("linux-libc-dev", facts.kvm_header),
        )
        if not there
    ]
    if packages:
        yield Finding(
            "build tools",
            "warn",
            f"missing {', '.join(packages)}: tvmm cannot be compiled again",
            f"sudo apt install {' '.join(packages)}",
        )
    else:
        yield Finding("build tools", "ok", f"{facts.compiler}, headers of Python and Linux")


def _runtime_directory(facts: HostFacts) -> Iterator[Finding]:
    name = "runtime directory"
    if facts.runtime_dir_error:
        yield Finding(
            name,
            "fail",
            f"{facts.runtime_dir}: {facts.runtime_dir_error}",
            "export TVMM_RUNTIME_DIR=$HOME/.tvmm (a directory of your own that only you can write to)",
        )
    else:
        yield Finding(name, "ok", facts.runtime_dir)


def _qemu_nbd(facts: HostFacts) -> Iterator[Finding]:
    if facts.qemu_nbd:
        yield Finding("qemu-nbd", "ok", facts.qemu_nbd)
    else:
        yield Finding("qemu-nbd", "warn", "not installed: raw images only, no qcow2", "sudo apt install qemu-utils")


_CHECKS: tuple[Callable[[HostFacts], Iterator[Finding]], ...] = (
    _platform,
    _extension,
    _kvm_node,
    _virtualization,
    _capabilities,
    _runtime_directory,
    _memory,
    _huge_pages,
    _limits,
    _tun,
    _networks,
    _userfaultfd,
    _io_uring,
    _qemu_nbd,
    _build_tools,
)
