"""How much memory this host has."""

from __future__ import annotations

__all__ = ["host_memory"]


def host_memory(huge_page: int) -> tuple[int, int, int]:
    """Bytes in all, bytes available, and free huge pages of the given size, from the kernel's own counters."""
    fields = {}
    with open("/proc/meminfo", encoding="utf-8") as file:
        for text in file:
            key, _, value = text.partition(":")
            fields[key] = int(value.split()[0]) * 1024
    free = 0
    if huge_page:
        try:
            path = f"/sys/kernel/mm/hugepages/hugepages-{huge_page >> 10}kB/free_hugepages"
            with open(path, encoding="utf-8") as file:
                free = int(file.read())
        except OSError:
            free = 0
    return fields["MemTotal"], fields.get("MemAvailable", fields["MemTotal"]), free
