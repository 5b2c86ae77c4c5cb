"""Making a VM while signals come."""

from __future__ import annotations

import errno

import pytest

from tvmm.errors import HostError
from tvmm.kvm import calls, system
from tvmm.kvm.system import Kvm

pytestmark = pytest.mark.kvm


def interrupted(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """KVM_CREATE_VM is interrupted that often before it is made."""
    real, left = calls.ioctl_number, times

    def ioctl_number(fd: int, name: str, argument: int = 0) -> int:
        nonlocal left
        if name == "KVM_CREATE_VM" and left:
            left -= 1
            raise InterruptedError(errno.EINTR, "KVM_CREATE_VM: Interrupted system call")
        return real(fd, name, argument)

    monkeypatch.setattr(system, "ioctl_number", ioctl_number)


def test_signals_do_not_keep_a_vm_from_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM is asked again."""
    interrupted(monkeypatch, 3)
    with Kvm() as kvm:
        kvm.create_vm().close()


def test_signals_without_end_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a loop."""
    interrupted(monkeypatch, system.CREATE_TRIES)
    with Kvm() as kvm, pytest.raises(HostError, match="makes no virtual machine"):
        kvm.create_vm()
