/*
 * Random accesses to every port and to every hole in the memory map, to see what the host makes of them.
 *
 * Left out is what would end the machine and with it the report: reset and power-off ports, QEMU's fw_cfg DMA
 * (it writes wherever it is told) and its port 0x7e (it patches the code that writes there), the local APIC, and
 * writes to the I/O APIC (it can send INIT or SMI). Devices that the shell needs afterwards are set up anew.
 */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "power.h"
#include "rtc.h"
#include "uart.h"

#define APIC_PAGE_SIZE 0x1000
#define BATCH 64

struct tally {
    u64 port_reads, port_writes, memory_reads, memory_writes, skipped;
};

static bool touches(u64 start, u64 size, u64 first, u64 last)
{
    return start <= last && start + size > first;
}

static bool port_write_is_fatal(u16 port, u32 size, u32 value)
{
    /*
     * 0xf0-0xff pulse output lines, 0xd1 sets them from the next byte: bit 0 is the reset line. Any byte of a
     * wide write may end up at 0x64: hosts differ in how they take it apart.
     */
    for (u32 i = 0; i < size && touches(port, size, 0x64, 0x64); i++) {
        u8 byte = (u8)(value >> 8 * i);
        if (byte >= 0xf0 || byte == 0xd1)
            return true;
    }
    return touches(port, size, 0x7e, 0x7f) || touches(port, size, 0x92, 0x92) || touches(port, size, 0xcf9, 0xcf9) ||
           touches(port, size, 0x501, 0x502) || touches(port, size, 0x514, 0x51b) ||
           touches(port, size, 0x604, 0x605);
}

static void fuzz_port(u64 *random, struct tally *tally)
{
    u64 dice = random_next(random);
    u16 port = (u16)dice;
    u32 size = 1u << (dice >> 16) % 3, value = (u32)(dice >> 32);
    if (dice & 1 << 20) /* half of them where devices are */
        port &= 0xfff;
    port = (u16)min_u64(port, 0x10000 - size); /* beyond the last port the I/O bitmap ends: a fault */
    if (dice & 1 << 21) {
        if (port_write_is_fatal(port, size, value)) {
            tally->skipped++;
            return;
        }
        size == 1 ? outb(port, (u8)value) : size == 2 ? outw(port, (u16)value) : outl(port, value);
        tally->port_writes++;
    } else {
        size == 1 ? (void)inb(port) : size == 2 ? (void)inw(port) : (void)inl(port);
        tally->port_reads++;
    }
}

/* What the memory map leaves out below 4 GiB. */
static size_t find_holes(struct region *holes, size_t limit)
{
    size_t count = 0;
    for (u64 at = 0; at < 1ull << 32 && count < limit;) {
        u64 next = 1ull << 32, covered = 0;
        for (size_t i = 0; i < machine.region_count; i++) {
            const struct region *r = &machine.regions[i];
            if (r->start <= at && at < r->start + r->size)
                covered = max_u64(covered, r->start + r->size);
            else if (r->start > at)
                next = min_u64(next, r->start);
        }
        if (!covered)
            holes[count++] = (struct region){at, next - at, 0};
        at = covered ? covered : next;
    }
    return count;
}

static void fuzz_memory(u64 *random, const struct region *hole, struct tally *tally)
{
    u64 dice = random_next(random), value = random_next(random);
    u32 size = 1u << (dice & 3);
    bool write = dice & 4;
    if (hole->size < size)
        return;
    u64 address = hole->start + (dice >> 8) % (hole->size - size + 1);
    if (dice & 8) /* half of them within the first or the last page: edges are where mistakes are */
        address = dice & 16 ? hole->start + address % min_u64(PAGE_SIZE, hole->size - size + 1)
                            : hole->start + hole->size - size - address % min_u64(PAGE_SIZE, hole->size - size + 1);
    if (touches(address, size, LAPIC_BASE, LAPIC_BASE + APIC_PAGE_SIZE - 1) ||
        (write && touches(address, size, IOAPIC_BASE, IOAPIC_BASE + APIC_PAGE_SIZE - 1))) {
        tally->skipped++;
        return;
    }
    if (write)
        asm volatile("cmp $1, %2; je 1f; cmp $2, %2; je 2f; cmp $4, %2; je 4f; movq %1, (%0); jmp 9f\n"
                     "1: movb %b1, (%0); jmp 9f\n 2: movw %w1, (%0); jmp 9f\n 4: movl %k1, (%0)\n 9:"
                     ::"r"(address), "q"(value), "r"(size) : "memory", "cc");
    else
        asm volatile("cmp $1, %2; je 1f; cmp $2, %2; je 2f; cmp $4, %2; je 4f; movq (%1), %0; jmp 9f\n"
                     "1: movb (%1), %b0; jmp 9f\n 2: movw (%1), %w0; jmp 9f\n 4: movl (%1), %k0\n 9:"
                     : "+q"(value) : "r"(address), "r"(size) : "memory", "cc");
    write ? tally->memory_writes++ : tally->memory_reads++;
}

bool cmd_fuzz(int count, char **arguments)
{
    struct region holes[MAX_REGIONS];
    struct tally tally = {0};
    u64 seconds, random;
    if (count != 3 || !parse_number(arguments[1], &seconds) || !parse_number(arguments[2], &random))
        return false;
    random = random * 2 + 1; /* never 0 */
    size_t hole_count = find_holes(holes, ARRAY_SIZE(holes));
    u8 rtc_b = rtc_read(RTC_REGISTER_B), rtc_a = rtc_read(RTC_REGISTER_A);
    u64 start = rdtsc(), end = start + ms_to_tsc(seconds * 1000);
    while (rdtsc() < end) { /* not to be ended by Ctrl-C: the serial port is among the victims */
        for (u32 i = 0; i < BATCH; i++) {
            fuzz_port(&random, &tally);
            if (hole_count)
                fuzz_memory(&random, &holes[random_next(&random) % hole_count], &tally);
        }
    }
    u64 us = tsc_to_us(rdtsc() - start);
    uart_reset();
    rtc_write(RTC_REGISTER_A, rtc_a);
    rtc_write(RTC_REGISTER_B, rtc_b);
    irq_init();
    power_init();
    console_set_raw(false); /* what loopback or a stray reset brought in */
    clear_interrupted();
    print("\nfuzz: %lu port reads, %lu port writes, %lu memory reads, %lu memory writes in %lu holes, "
          "%lu left out, in %lu us\n", tally.port_reads, tally.port_writes, tally.memory_reads,
          tally.memory_writes, (u64)hole_count, tally.skipped, us);
    return true;
}
