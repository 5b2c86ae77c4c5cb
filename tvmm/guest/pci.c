/*
 * PCI Local Bus Specification 3.0, chapter 6. Firmware or the machine has assigned the BARs; one that nobody
 * assigned gets the next place in a window that no machine of this kind uses for anything else.
 */
#include "pci.h"
#include "irq.h"
#include "lib.h"
#include "mptable.h"

#define CONFIG_ADDRESS 0xcf8
#define CONFIG_DATA    0xcfc
#define CONFIG_ENABLE  0x80000000u
#define MAX_CAPABILITIES 48 /* as many as fit: a list that is longer is a loop */

#define BAR_IO     1
#define BAR_64     4
#define STATUS_CAPABILITIES 0x10
#define HEADER_MULTIFUNCTION 0x80
#define HEADER_BRIDGE 1

#define MSIX_ENABLE   0x8000
#define MSIX_MASK_ALL 0x4000
#define MSIX_ADDRESS  0xfee00000u

static u64 next_bar = 0xf0000000;

static u16 select(pci_address function, u8 offset)
{
    outl(CONFIG_ADDRESS, CONFIG_ENABLE | function | (offset & 0xfcu));
    return (u16)(CONFIG_DATA + (offset & 3));
}

u8 pci_read8(pci_address function, u8 offset) { return inb(select(function, offset)); }
u16 pci_read16(pci_address function, u8 offset) { return inw(select(function, offset)); }
u32 pci_read32(pci_address function, u8 offset) { return inl(select(function, offset)); }
void pci_write16(pci_address function, u8 offset, u16 value) { outw(select(function, offset), value); }
void pci_write32(pci_address function, u8 offset, u32 value) { outl(select(function, offset), value); }

static size_t scan_bus(u32 bus, pci_address *functions, size_t count, size_t limit)
{
    for (u32 slot = 0; slot < 32; slot++) {
        u32 last = 0;
        for (u32 index = 0; index <= last && count < limit; index++) {
            pci_address function = bus << 16 | slot << 11 | index << 8;
            u16 vendor = pci_read16(function, PCI_VENDOR);
            if (vendor == 0xffff || vendor == 0)
                continue;
            u8 header = pci_read8(function, PCI_HEADER_TYPE);
            if (index == 0 && header & HEADER_MULTIFUNCTION)
                last = 7;
            functions[count++] = function;
            u8 secondary = pci_read8(function, PCI_SECONDARY_BUS);
            if ((header & 0x7f) == HEADER_BRIDGE && secondary > bus)
                count = scan_bus(secondary, functions, count, limit);
        }
    }
    return count;
}

size_t pci_scan(pci_address *functions, size_t limit)
{
    outl(CONFIG_ADDRESS, CONFIG_ENABLE);
    if (inl(CONFIG_ADDRESS) != CONFIG_ENABLE)
        return 0;
    return scan_bus(0, functions, 0, limit);
}

u8 pci_capability(pci_address function, u8 kind, u8 after)
{
    if (!(pci_read16(function, PCI_STATUS) & STATUS_CAPABILITIES))
        return 0;
    u8 at = pci_read8(function, after ? (u8)(after + 1) : PCI_CAPABILITIES) & 0xfc;
    for (int i = 0; at && i < MAX_CAPABILITIES; i++) {
        u16 header = pci_read16(function, at);
        if ((header & 0xff) == kind)
            return at;
        at = (u8)(header >> 8) & 0xfc;
    }
    return 0;
}

/* Sizes the BAR with decoding off, and puts it at the next multiple of its size. */
static u64 assign_bar(pci_address function, u8 offset, bool is_64)
{
    u16 command = pci_read16(function, PCI_COMMAND);
    pci_write16(function, PCI_COMMAND, command & ~PCI_COMMAND_MEMORY);
    pci_write32(function, offset, 0xffffffff);
    u64 size = -(u64)(pci_read32(function, offset) & ~15u) & 0xffffffff;
    u64 address = size ? (next_bar + size - 1) & -size : 0;
    if (!size || address + size > IOAPIC_BASE)
        return 0;
    pci_write32(function, offset, (u32)address);
    if (is_64)
        pci_write32(function, (u8)(offset + 4), 0);
    next_bar = address + size;
    pci_write16(function, PCI_COMMAND, command);
    return address;
}

u64 pci_bar(pci_address function, u8 index)
{
    u8 offset = (u8)(PCI_BAR0 + 4 * index);
    if (index > 5)
        return 0;
    u32 low = pci_read32(function, offset);
    bool is_64 = (low & 6) == BAR_64 && index < 5;
    if (low & BAR_IO || (is_64 && pci_read32(function, (u8)(offset + 4))))
        return 0; /* what lies above 4 GiB and is no RAM is not mapped here */
    return low & ~15u ? low & ~15u : assign_bar(function, offset, is_64);
}

u8 pci_intx_pin(pci_address function)
{
    u8 pin = pci_read8(function, PCI_INTERRUPT_PIN), line = pci_read8(function, PCI_INTERRUPT_LINE);
    if (pin < 1 || pin > 4)
        return NO_PIN;
    u8 known = PCI_BUS(function) ? NO_PIN : mptable.pci_pin[PCI_SLOT(function)][pin - 1];
    if (known != NO_PIN)
        return known;
    return line && line < 24 ? line : NO_PIN;
}

bool msix_enable(pci_address function, struct msix *msix)
{
    msix->capability = pci_capability(function, PCI_CAP_MSIX, 0);
    if (!msix->capability)
        return false;
    u16 control = pci_read16(function, (u8)(msix->capability + 2));
    u32 table = pci_read32(function, (u8)(msix->capability + 4));
    u64 bar = pci_bar(function, table & 7);
    if (!bar)
        return false;
    msix->table = bar + (table & ~7u);
    msix->entries = (u16)((control & 0x7ff) + 1);
    pci_write16(function, (u8)(msix->capability + 2), (u16)((control | MSIX_ENABLE) & ~MSIX_MASK_ALL));
    return true;
}

void msix_disable(pci_address function, const struct msix *msix)
{
    u16 control = pci_read16(function, (u8)(msix->capability + 2));
    pci_write16(function, (u8)(msix->capability + 2), (u16)(control & ~MSIX_ENABLE));
}

void msix_route(const struct msix *msix, u16 entry, u8 vector)
{
    msix_route_to(msix, entry, vector, irq_boot_cpu());
}

void msix_route_to(const struct msix *msix, u16 entry, u8 vector, u32 apic_id)
{
    u64 at = msix->table + 16u * entry;
    mmio_write32(at + 12, 1); /* masked: the host must not see half of it */
    mmio_write32(at, MSIX_ADDRESS | apic_id << 12);
    mmio_write32(at + 4, 0);
    mmio_write32(at + 8, vector);
    mmio_write32(at + 12, 0);
}

void msix_mask(const struct msix *msix, u16 entry, bool masked)
{
    mmio_write32(msix->table + 16u * entry + 12, masked);
}
