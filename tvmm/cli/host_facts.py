"""What `tvmm doctor` looks at, as one record, and how it is gathered. Nothing is changed by looking.

Where the kernel's word and its practice can differ (a container's seccomp filter, a closed device node),
the thing is tried and not only read about.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import platform
import resource
import shutil
import stat
import sysconfig
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KVM_EXTENSIONS", "HostFacts", "Node", "gather", "parse_meminfo"]

KVM_EXTENSIONS = (
    "IRQCHIP",
    "USER_MEMORY",
    "EXT_CPUID",
    "PIT2",
    "MP_STATE",
    "IRQFD",
    "IOEVENTFD",
    "IMMEDIATE_EXIT",
    "VCPU_EVENTS",
    "XSAVE",
    "XCRS",
    "IRQ_ROUTING",
    "SIGNAL_MSI",
    "READONLY_MEM",
    "MANUAL_DIRTY_LOG_PROTECT2",
    "DIRTY_LOG_RING",
    "SYNC_REGS",
    "MAX_VCPUS",
)
"""Capabilities that are asked for, without KVM_CAP_."""

CAP_NET_ADMIN = 12
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
"""Where programs of administrators are, also for users that have it not on their path."""
SYS_USERFAULTFD, SYS_IO_URING_SETUP = 323, 425
"""System call numbers (arch/x86/entry/syscalls/syscall_64.tbl); tvmm runs on x86-64 alone."""
IO_URING_PARAMS_BYTES = 120
UFFD_USER_MODE_ONLY = 1


class Node(NamedTuple):
    """A device node. `error` is the errno of opening it for reading and writing, 0 if that worked."""

    exists: bool = False
    error: int = 0
    group: str = ""
    mode: int = 0


class HostFacts(NamedTuple):
    """The host as it is.

    Sizes are in bytes. A limit that there is none of, and a number that could not be read, is -1.
    """

    architecture: str = ""
    kernel: str = ""
    uid: int = 0
    user: str = ""
    cpu_flags: frozenset[str] = frozenset()
    cpu_model: str = ""
    cpu_count: int = 0
    modules: frozenset[str] = frozenset()
    kvm: Node = Node()
    kvm_error: str = ""
    extension_built: bool = True
    capabilities: Mapping[str, int] = MappingProxyType({})
    tun: Node = Node()
    net_admin: bool = False
    network_programs: frozenset[str] = frozenset()
    userfaultfd_error: int = 0
    userfaultfd_kernel_faults: bool = False
    io_uring_error: int = 0
    io_uring_disabled: int = -1
    huge_pages_2m: int = -1
    huge_pages_2m_free: int = -1
    hugetlbfs: str = ""
    memory_total: int = 0
    memory_available: int = 0
    memlock_limit: int = -1
    nofile_limit: int = -1
    compiler: str = ""
    python_headers: bool = True
    kvm_header: bool = True
    runtime_dir: str = ""
    runtime_dir_error: str = ""
    qemu_nbd: str = ""


def gather(runtime_dir: str) -> HostFacts:
    """Look at this host; `runtime_dir` is where machines would be registered."""
    uid = os.geteuid()
    meminfo = parse_meminfo(_read("/proc/meminfo"))
    flags, model = _processor(_read("/proc/cpuinfo"))
    kvm = _node("/dev/kvm")
    built, kvm_error, capabilities = _ask_kvm() if not kvm.error else (_has_extension(), "", {})
    huge = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
    userfaultfd_error, kernel_faults = _try_userfaultfd()
    return HostFacts(
        architecture=platform.machine(),
        kernel=platform.release(),
        uid=uid,
        user=os.environ.get("USER") or "$USER",
        cpu_flags=flags,
        cpu_model=model,
        cpu_count=len(os.sched_getaffinity(0)),
        modules=frozenset(name for name in os.listdir("/sys/module") if name.startswith("kvm")),
        kvm=kvm,
        kvm_error=kvm_error,
        extension_built=built,
        capabilities=capabilities,
        tun=_node("/dev/net/tun"),
        net_admin=_has_capability(_read("/proc/self/status"), CAP_NET_ADMIN),
        network_programs=frozenset(name for name in ("nft", "dnsmasq") if shutil.which(name, path=SYSTEM_PATH)),
        userfaultfd_error=userfaultfd_error,
        userfaultfd_kernel_faults=kernel_faults,
        io_uring_error=_try_io_uring(),
        io_uring_disabled=_number("/proc/sys/kernel/io_uring_disabled"),
        huge_pages_2m=_number(huge + "nr_hugepages"),
        huge_pages_2m_free=_number(huge + "free_hugepages"),
        hugetlbfs=_mount_point(_read("/proc/self/mounts"), "hugetlbfs"),
        memory_total=meminfo.get("MemTotal", 0),
        memory_available=meminfo.get("MemAvailable", 0),
        memlock_limit=_limit(resource.RLIMIT_MEMLOCK),
        nofile_limit=_limit(resource.RLIMIT_NOFILE),
        compiler=next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), ""),
        python_headers=os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")),
        kvm_header=os.path.exists("/usr/include/linux/kvm.h"),
        runtime_dir=runtime_dir,
        runtime_dir_error=_directory_problem(runtime_dir),
        qemu_nbd=shutil.which("qemu-nbd") or "",
    )


def parse_meminfo(text: str) -> dict[str, int]:
    """The fields of /proc/meminfo in bytes."""
    fields = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[0].isdigit():
            fields[key] = int(words[0]) * 1024
    return fields


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _number(path: str) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else -1


def _limit(which: int) -> int:
    """The soft limit, which is the one that counts; -1 for none."""
    soft, _ = resource.getrlimit(which)
    return -1 if soft == resource.RLIM_INFINITY else soft


def _processor(text: str) -> tuple[frozenset[str], str]:
    """Flags and model of the first processor in /proc/cpuinfo."""
    fields = {}
    for line in text.partition("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    return frozenset(fields.get("flags", "").split()), fields.get("model name", "")


def _node(path: str) -> Node:
    """What stands in the way of opening a device node, if anything does."""
    try:
        status = os.stat(path)
    except OSError as error:
        return Node(False, error.errno or errno.ENOENT)
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    failed = 0
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        failed = error.errno or errno.EIO
    return Node(True, failed, group, stat.S_IMODE(status.st_mode))


def _has_extension() -> bool:
    try:
        import tvmm.kvm.calls  # noqa: F401 - to see whether it can be
    except ImportError:
        return False
    return True


def _ask_kvm() -> tuple[bool, str, dict[str, int]]:
    """(is the C extension there, what KVM says against itself, its capabilities)."""
    if not _has_extension():
        return False, "", {}
    from tvmm.kvm.system import Kvm

    try:
        with Kvm() as kvm:
            return True, "", {name: kvm.check_extension(name) for name in KVM_EXTENSIONS}
    except UserError as error:
        return True, error.message, {}


def _has_capability(status: str, number: int) -> bool:
    """Whether the effective capabilities in /proc/self/status hold capability `number`."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _system_call(number: int, *arguments: object) -> int:
    """The descriptor that a system call gives, or minus the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    return result if result >= 0 else -ctypes.get_errno()


def _try_userfaultfd() -> tuple[int, bool]:
    """(errno of userfaultfd(2), whether it may handle faults that the kernel takes, as KVM does)."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = _system_call(SYS_USERFAULTFD, ctypes.c_int(flags))
    if descriptor >= 0:
        os.close(descriptor)
        return 0, True
    limited = _system_call(SYS_USERFAULTFD, ctypes.c_int(flags | UFFD_USER_MODE_ONLY))
    if limited >= 0:
        os.close(limited)
        return 0, False
    return -descriptor, False


def _try_io_uring() -> int:
    """The errno of io_uring_setup(2), 0 if it gave a ring."""
    parameters = ctypes.create_string_buffer(IO_URING_PARAMS_BYTES)
    descriptor = _system_call(SYS_IO_URING_SETUP, ctypes.c_uint(1), parameters)
    if descriptor < 0:
        return -descriptor
    os.close(descriptor)
    return 0


def _mount_point(mounts: str, kind: str) -> str:
    """Where a file system of `kind` is mounted first."""
    for line in mounts.splitlines():
        words = line.split()
        if len(words) > 2 and words[2] == kind:
            return words[1]
    return ""


def _directory_problem(path: str) -> str:
    """Why machines could not be registered at `path`; '' if they could. The directory need not exist yet."""
    found = path
    while not os.path.lexists(found):
        above = os.path.dirname(found)
        if above == found:
            return "no part of its path exists"
        found = above
    if not os.path.isdir(found):
        return f"{found} is not a directory"
    if not os.access(found, os.W_OK | os.X_OK):
        return f"{found} is not writable"
    if found == path:
        status = os.stat(path)
        if status.st_uid != os.geteuid():
            return "it belongs to another user"
        if status.st_mode & 0o022:
            return "others may write to it"
    return ""
