"""A vCPU that keeps what it is given and the order in which it was given it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LENGTHS = {"regs": 144, "sregs": 312, "sregs2": 320, "debugregs": 128, "events": 64, "lapic": 1024}


class FakeVcpu:
    """`StateOfVcpu` in memory. MSRs that it does not hold cannot be read or written."""

    def __init__(self, index: int = 0, *, sregs2: bool = True, xsave_size: int = 4096) -> None:
        self.index = index
        self.has_sregs2 = sregs2
        self.xsave_size = xsave_size
        self.structures = {name: bytes(length) for name, length in LENGTHS.items()}
        self.structures["events"] = bytes(20) + (0x2D).to_bytes(4, "little") + bytes(40)
        self.xsave = bytes(xsave_size)
        self.cpuid = bytes(80)
        self.xcr0, self.mp_state, self.tsc_khz = 1, 0, 2_000_000
        self.msrs: dict[int, int] = {}
        self.read_only: set[int] = set()
        self.refuses = ""
        self.log: list[str] = []
        self.reads: list[str] = []

    def _set(self, name: str) -> None:
        if name == self.refuses:
            raise OSError(22, f"KVM_SET_{name.upper()}: Invalid argument")
        self.log.append(name)

    def get_structure(self, name: str) -> bytes:
        """As `KvmVcpu`."""
        self.reads.append(name)
        return self.structures[name]

    def set_structure(self, name: str, image: bytes) -> None:
        """As `KvmVcpu`."""
        assert len(image) == LENGTHS[name]
        self._set(name)
        self.structures[name] = image

    def get_xsave_image(self) -> bytes:
        """As `KvmVcpu`."""
        return self.xsave

    def set_xsave_image(self, image: bytes) -> None:
        """As `KvmVcpu`."""
        assert len(image) == self.xsave_size
        self._set("xsave")
        self.xsave = image

    def get_cpuid_image(self) -> bytes:
        """As `KvmVcpu`."""
        return self.cpuid

    def set_cpuid_image(self, image: bytes) -> None:
        """As `KvmVcpu`."""
        self._set("cpuid")
        self.cpuid = image

    def get_xcr0(self) -> int:
        """As `KvmVcpu`."""
        return self.xcr0

    def set_xcr0(self, value: int) -> None:
        """As `KvmVcpu`."""
        self._set("xcr0")
        self.xcr0 = value

    def get_mp_state(self) -> int:
        """As `KvmVcpu`."""
        self.reads.append("mp_state")
        return self.mp_state

    def set_mp_state(self, state: int) -> None:
        """As `KvmVcpu`."""
        self._set("mp_state")
        self.mp_state = state

    def get_msrs(self, indices: Sequence[int]) -> dict[int, int]:
        """As `KvmVcpu`."""
        assert len(indices) < 256
        found: dict[int, int] = {}
        for index in indices:
            if index not in self.msrs:
                break
            found[index] = self.msrs[index]
        return found

    def set_msrs(self, values: Iterable[tuple[int, int]]) -> int:
        """As `KvmVcpu`."""
        done = 0
        for index, value in values:
            if index not in self.msrs or index in self.read_only:
                break
            self._set(f"msr {index:#x}")
            self.msrs[index] = value
            done += 1
        return done

    def get_tsc_khz(self) -> int:
        """As `KvmVcpu`."""
        return self.tsc_khz

    def set_tsc_khz(self, khz: int) -> None:
        """As `KvmVcpu`."""
        self._set("tsc_khz")
        self.tsc_khz = khz
