"""``--memory SIZE[,hugepages=on|2M|1G][,prealloc=on][,shared=on][,dirty-ring=N]``: the guest's RAM."""

from __future__ import annotations

from typing import NamedTuple

from tvmm.config.options import parse_bool, parse_options
from tvmm.config.units import format_size, parse_size
from tvmm.errors import ConfigError, HostError

__all__ = ["HUGE_PAGE_SIZES", "MINIMUM_BYTES", "PAGE_BYTES", "MemoryConfig"]

PAGE_BYTES = 4096
MINIMUM_BYTES = 2 << 20
"""Below that there is no room for a kernel above the first MiB."""
HUGE_PAGE_SIZES = (2 << 20, 1 << 30)

MIN_DIRTY_RING = 1024
MAX_DIRTY_RING = 65536
"""Entries of a dirty ring. KVM keeps some free for what one exit may write, and never offers more than that many."""

_KEYS = ("size", "hugepages", "prealloc", "shared", "dirty-ring")


class MemoryConfig(NamedTuple):
    """Guest RAM.

    `size` is in bytes, a multiple of the page size in use. `hugepages` is the size of the huge pages behind
    it in bytes, 0 for ordinary pages. `prealloc`: every page is allocated before the guest starts.
    `shared`: other processes (vhost-user back ends, a local successor) can map it. Off by default: most hosts have
    transparent huge pages for private memory alone, and with those O_DIRECT reads of 1 MiB are twice as fast.
    `dirty_ring`: entries of a ring for each vCPU in which KVM notes the pages that it wrote, a power of two; 0: KVM
    notes them in a bitmap.
    """

    size: int = 256 << 20
    hugepages: int = 0
    prealloc: bool = False
    shared: bool = False
    dirty_ring: int = 0

    @classmethod
    def parse(cls, text: str | int) -> MemoryConfig:
        """From the command line's spelling, or from a number of bytes. Raises `ConfigError`."""
        if isinstance(text, int):
            return cls(parse_size(text, "memory size")).check()
        values = parse_options(text, "memory", _KEYS, first="size")
        config = cls()
        if "size" in values:
            config = config._replace(size=parse_size(values["size"], "memory size"))
        if "hugepages" in values:
            config = config._replace(hugepages=_huge_page_size(values["hugepages"]))
        for key in ("prealloc", "shared"):
            if key in values:
                config = config._replace(**{key: parse_bool(values[key], f"memory option {key}")})
        if "dirty-ring" in values:
            config = config._replace(dirty_ring=_entries(values["dirty-ring"]))
        return config.check()

    def check(self) -> MemoryConfig:
        """The same record, if its fields agree with one another; raises `ConfigError` otherwise."""
        size, page = self.size, self.hugepages or PAGE_BYTES
        if self.hugepages and self.hugepages not in HUGE_PAGE_SIZES:
            raise ConfigError(f"there are no huge pages of {format_size(self.hugepages)}", "use 2M or 1G")
        if size < MINIMUM_BYTES:
            raise ConfigError(
                f"memory size {format_size(size)} is too small",
                f"a machine needs at least {format_size(MINIMUM_BYTES)}, Linux 64M or more",
            )
        if size % page:
            raise ConfigError(
                f"memory size {format_size(size)} is not a multiple of the page size {format_size(page)}",
                f"the next one is {format_size(size + page - size % page)}",
            )
        entries = self.dirty_ring
        if entries and (entries & entries - 1 or not MIN_DIRTY_RING <= entries <= MAX_DIRTY_RING):
            raise ConfigError(
                f"a dirty ring of {entries} entries cannot be made",
                f"use a power of two from {MIN_DIRTY_RING} to {MAX_DIRTY_RING}, or 0 for none",
            )
        return self

    def check_host(self, total_bytes: int, available_bytes: int, free_huge_pages: int = 0) -> None:
        """Raise `HostError` if a host with these numbers cannot carry the machine.

        `total_bytes` and `available_bytes` are the host's memory as in /proc/meminfo, `free_huge_pages`
        counts the free ones of the size asked for. Without `prealloc` pages are allocated when touched, so
        more than is available now is fine as long as the host could ever have it.
        """
        wanted = format_size(self.size)
        if self.hugepages:
            needed = self.size // self.hugepages
            if needed > free_huge_pages:
                kib = self.hugepages >> 10
                raise HostError(
                    f"memory size {wanted} needs {needed} huge pages of {format_size(self.hugepages)}, "
                    f"the host has {free_huge_pages} free",
                    f"as root: echo {needed} > /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages",
                )
        elif self.size > total_bytes:
            raise HostError(
                f"memory size {wanted} is more than the host's {_mib(total_bytes)}",
                f"give the machine less, e.g. --memory {_half(available_bytes)}",
            )
        elif self.prealloc and self.size > available_bytes:
            raise HostError(
                f"memory size {wanted} cannot be allocated in advance: {_mib(available_bytes)} are available",
                f"leave out prealloc=on, or give the machine less, e.g. --memory {_half(available_bytes)}",
            )


def _huge_page_size(text: str) -> int:
    """Bytes of one huge page for on, off, 2M and 1G."""
    if text[:1].isdigit():
        size = parse_size(text, "memory option hugepages")
        if size not in (0, *HUGE_PAGE_SIZES):
            raise ConfigError(f"there are no huge pages of {text}", "use hugepages=2M or hugepages=1G")
        return size
    try:
        return HUGE_PAGE_SIZES[0] if parse_bool(text, "hugepages") else 0
    except ConfigError:
        raise ConfigError(
            f"memory option hugepages {text!r} is not understood", "write hugepages=on, off, 2M or 1G"
        ) from None


def _entries(text: str) -> int:
    """A whole number of entries."""
    if not text.isdecimal() or len(text) > 9:
        raise ConfigError(f"memory option dirty-ring {text!r} is no number of entries")
    return int(text)


def _mib(size: int) -> str:
    return f"{size >> 20}M"


def _half(size: int) -> str:
    """Half of `size` in whole MiB, never below the minimum: a suggestion that leaves the host room."""
    return _mib(max(size // 2, MINIMUM_BYTES))
