"""/dev/kvm itself: what it can do, and the way to a VM."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, ioctl, ioctl_number, lib
from tvmm.kvm.vm import Vm

if TYPE_CHECKING:
    from types import TracebackType

    from tvmm.vcpu.cpuid import CpuidEntry

__all__ = ["KVM_PATH", "Kvm", "host_cpuid", "kernel_mode_is_emulated"]

KVM_PATH = "/dev/kvm"
KVM_API_VERSION = 12
"""The only version there ever was since Linux 2.6.22; KVM's documentation says to refuse any other."""

REQUIRED = ("IRQCHIP", "USER_MEMORY", "EXT_CPUID", "PIT2", "MP_STATE", "IRQFD", "IMMEDIATE_EXIT", "VCPU_EVENTS")
"""Capabilities without which no machine is made."""

MAX_CPUID_ENTRIES = 256
CREATE_TRIES = 100
"""Signals that may come one after the other while a VM is being made."""
MAX_MSRS = 1024


def kernel_mode_is_emulated() -> bool:
    """Whether this host's KVM has no hardware virtualization and emulates guest kernel mode.

    Such a KVM (kvm-pvm) runs guest user mode at full speed and needs tvmm's instruction assist.
    """
    loaded = os.path.exists
    return loaded("/sys/module/kvm_pvm") and not (loaded("/sys/module/kvm_intel") or loaded("/sys/module/kvm_amd"))


def host_cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX of this processor's CPUID instruction; zeros for a leaf that it does not have."""
    registers = ffi.new("uint32_t[4]")
    lib.tvmm_cpuid(leaf, subleaf, registers)
    eax, ebx, ecx, edx = registers
    return int(eax), int(ebx), int(ecx), int(edx)


class Kvm:
    """An open /dev/kvm. A context manager; `close` is idempotent."""

    def __init__(self, path: str = KVM_PATH) -> None:
        """Open it. Raises `HostError` when it is absent, closed to us, too old or lacks a required capability."""
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _open_error(path, error) from error
        try:
            version = ioctl_number(self.fd, "KVM_GET_API_VERSION")
            if version != KVM_API_VERSION:
                raise HostError(f"{path} speaks KVM API version {version}, tvmm needs {KVM_API_VERSION}")
            lacking = [name for name in REQUIRED if not self.check_extension(name)]
            if lacking:
                raise HostError(f"KVM on this host lacks {', '.join(lacking)}", "tvmm doctor says more")
            self.run_size = ioctl_number(self.fd, "KVM_GET_VCPU_MMAP_SIZE")
        except OSError as error:
            os.close(self.fd)
            raise HostError(f"{path} does not answer as KVM does: {error}") from error
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Close the descriptor; VMs made from it live on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Kvm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check_extension(self, name: str) -> int:
        """KVM_CHECK_EXTENSION for capability `name` (without ``KVM_CAP_``): 0 when it is lacking."""
        return ioctl_number(self.fd, "KVM_CHECK_EXTENSION", getattr(lib, f"KVM_CAP_{name}"))

    @property
    def has_tsc_control(self) -> bool:
        """Whether a guest's time stamp counter can have another frequency than the host's.

        A KVM without hardware virtualization gives guests the host's counter whatever it says.
        """
        return self.check_extension("TSC_CONTROL") > 0 and not kernel_mode_is_emulated()

    def create_vm(self) -> Vm:
        """KVM_CREATE_VM. Raises `HostError` when the kernel refuses."""
        try:
            return Vm(_create_vm(self.fd), self.run_size)
        except OSError as error:
            raise HostError(f"KVM makes no virtual machine: {error.strerror}", "see 'tvmm doctor'") from error

    def supported_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_SUPPORTED_CPUID."""
        return self._cpuid("KVM_GET_SUPPORTED_CPUID")

    def emulated_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_EMULATED_CPUID: features that work although the CPU lacks them."""
        return self._cpuid("KVM_GET_EMULATED_CPUID")

    def _cpuid(self, call: str) -> list[CpuidEntry]:
        table = ffi.new("struct kvm_cpuid2 *", {"entries": MAX_CPUID_ENTRIES})
        table.nent = MAX_CPUID_ENTRIES
        ioctl(self.fd, call, table)
        return cpuid_entries(table)

    def msr_indices(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST."""
        table = ffi.new("struct kvm_msr_list *", {"indices": MAX_MSRS})
        table.nmsrs = MAX_MSRS
        ioctl(self.fd, "KVM_GET_MSR_INDEX_LIST", table)
        return [int(table.indices[index]) for index in range(table.nmsrs)]


def _create_vm(fd: int) -> int:
    """The new VM's descriptor. KVM gives up when a signal comes, such as a timer's, and wants to be asked again."""
    for _ in range(CREATE_TRIES - 1):
        try:
            return ioctl_number(fd, "KVM_CREATE_VM")
        except InterruptedError:
            continue
    return ioctl_number(fd, "KVM_CREATE_VM")


def cpuid_entries(table: object) -> list[CpuidEntry]:
    """A kvm_cpuid2 as records."""
    from tvmm.vcpu.cpuid import CpuidEntry

    entries = []
    for index in range(table.nent):  # type: ignore[attr-defined]
        raw = table.entries[index]  # type: ignore[attr-defined]
        entries.append(
            CpuidEntry(raw.function, raw.index, raw.flags, raw.eax, raw.ebx, raw.ecx, raw.edx)
        )
    return entries


def _open_error(path: str, error: OSError) -> HostError:
    if error.errno == errno.ENOENT:
        return HostError(
            f"no {path}: this host offers no KVM",
            "load it with 'modprobe kvm_intel' or 'modprobe kvm_amd', and turn virtualization on in the firmware",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return HostError(
            f"no permission to open {path}",
            "join its group with 'sudo usermod -aG kvm $USER' and log in again",
        )
    return HostError(f"{path} cannot be opened: {error.strerror}", "see 'tvmm doctor'")
