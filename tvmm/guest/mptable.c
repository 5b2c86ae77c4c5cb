/*
 * MultiProcessor Specification 1.4, chapter 4. Without a table there is one CPU, and the I/O APIC is taken to
 * be where it is on every PC; irq.c finds out whether it answers.
 */
#include "mptable.h"
#include "lib.h"

enum { ENTRY_CPU, ENTRY_BUS, ENTRY_IOAPIC, ENTRY_IO_INTERRUPT, ENTRY_LOCAL_INTERRUPT };

#define CPU_ENABLED 1
#define CPU_BOOT    2

struct floating_pointer {
    char signature[4]; /* _MP_ */
    u32 table;
    u8 length, revision, checksum, features[5];
};

struct table_header {
    char signature[4]; /* PCMP */
    u16 length;
    u8 revision, checksum;
    char oem[8], product[12];
    u32 oem_table;
    u16 oem_size, entry_count;
    u32 lapic;
    u16 extended_length;
    u8 extended_checksum, reserved;
};

struct cpu_entry {
    u8 type, apic_id, version, flags;
    u32 signature, features, reserved[2];
};

struct bus_entry {
    u8 type, id;
    char name[6];
};

struct ioapic_entry {
    u8 type, id, version, flags;
    u32 address;
};

struct interrupt_entry {
    u8 type, kind;
    u16 flags;
    u8 bus, bus_irq, ioapic, pin;
};

struct mptable mptable;

static bool sums_to_zero(const void *data, size_t length)
{
    u8 sum = 0;
    for (size_t i = 0; i < length; i++)
        sum = (u8)(sum + ((const u8 *)data)[i]);
    return sum == 0;
}

static const struct table_header *search(u64 start, u64 length)
{
    for (u64 at = start; at + 16 <= start + length; at += 16) {
        const struct floating_pointer *pointer = (const void *)at;
        if (memcmp(pointer->signature, "_MP_", 4) || !sums_to_zero(pointer, 16) || !pointer->table)
            continue;
        const struct table_header *header = (const void *)(u64)pointer->table;
        if (!memcmp(header->signature, "PCMP", 4) && sums_to_zero(header, header->length))
            return header;
    }
    return NULL;
}

static void add_cpu(const struct cpu_entry *cpu)
{
    if (!(cpu->flags & CPU_ENABLED) || mptable.cpu_count == MAX_CPUS)
        return;
    u32 slot = mptable.cpu_count++;
    mptable.apic_id[slot] = cpu->apic_id;
    if (cpu->flags & CPU_BOOT) {
        mptable.apic_id[slot] = mptable.apic_id[0];
        mptable.apic_id[0] = cpu->apic_id;
    }
}

static u8 pci_bus_id = NO_PIN;

/* Kind 0: vectored. On a bus that is not PCI 0, the interrupt is one of ISA's. */
static void add_interrupt(const struct interrupt_entry *entry)
{
    if (entry->kind != 0 || entry->pin >= 24)
        return;
    if (entry->bus == pci_bus_id)
        mptable.pci_pin[entry->bus_irq >> 2 & 31][entry->bus_irq & 3] = entry->pin;
    else if (entry->bus_irq < 16)
        mptable.isa_pin[entry->bus_irq] = entry->pin;
}

/* By the table's length: there is firmware (qboot) that leaves the count of entries at 0. */
static void read_entries(const struct table_header *header)
{
    const u8 *at = (const u8 *)(header + 1), *end = (const u8 *)header + header->length;
    while (at + 8 <= end && *at <= ENTRY_LOCAL_INTERRUPT) {
        const struct ioapic_entry *ioapic = (const void *)at;
        const struct bus_entry *bus = (const void *)at;
        switch (*at) {
        case ENTRY_CPU:
            add_cpu((const void *)at);
            at += sizeof(struct cpu_entry);
            continue;
        case ENTRY_IOAPIC:
            if ((ioapic->flags & 1) && !mptable.ioapic)
                mptable.ioapic = ioapic->address;
            break;
        case ENTRY_BUS: /* buses come before interrupts; PCI bus 0 before those behind bridges */
            if (pci_bus_id == NO_PIN && !memcmp(bus->name, "PCI", 3))
                pci_bus_id = bus->id;
            break;
        case ENTRY_IO_INTERRUPT:
            add_interrupt((const void *)at);
            break;
        }
        at += 8;
    }
}

void mptable_init(void)
{
    for (u8 irq = 0; irq < 16; irq++)
        mptable.isa_pin[irq] = irq == 0 ? 2 : irq;
    memset(mptable.pci_pin, NO_PIN, sizeof mptable.pci_pin);
    volatile const u16 *ebda_segment = (volatile const u16 *)0x40e; /* volatile: a plain address, no object */
    u64 ebda = (u64)*ebda_segment << 4;
    const struct table_header *header = NULL;
    if (ebda >= 0x80000 && ebda < 0xa0000)
        header = search(ebda, 1024);
    if (!header)
        header = search(0x9fc00, 1024);
    if (!header)
        header = search(0xf0000, 0x10000);
    if (header) {
        mptable.found = true;
        read_entries(header);
    } else {
        mptable.ioapic = IOAPIC_BASE;
    }
    if (!mptable.cpu_count)
        mptable.cpu_count = 1;
}
