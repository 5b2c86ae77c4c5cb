/* PCI by configuration mechanism 1: finding functions, their capabilities and BARs, and MSI-X. */
#ifndef GUEST_PCI_H
#define GUEST_PCI_H

#include "arch.h"

#define PCI_VENDOR         0x00
#define PCI_DEVICE         0x02
#define PCI_COMMAND        0x04
#define PCI_STATUS         0x06
#define PCI_REVISION       0x08
#define PCI_HEADER_TYPE    0x0e
#define PCI_BAR0           0x10
#define PCI_SECONDARY_BUS  0x19
#define PCI_SUBSYSTEM      0x2e
#define PCI_CAPABILITIES   0x34
#define PCI_INTERRUPT_LINE 0x3c
#define PCI_INTERRUPT_PIN  0x3d

#define PCI_COMMAND_MEMORY   0x0002
#define PCI_COMMAND_MASTER   0x0004
#define PCI_COMMAND_NO_INTX  0x0400
#define PCI_CAP_VENDOR       0x09
#define PCI_CAP_MSIX         0x11

#define PCI_MAX_FUNCTIONS 64

/* Bus, device and function as the address port wants them: bits 16-23, 11-15, 8-10. */
typedef u32 pci_address;

#define PCI_BUS(address)      ((address) >> 16 & 0xff)
#define PCI_SLOT(address)     ((address) >> 11 & 0x1f)
#define PCI_FUNCTION(address) ((address) >> 8 & 7)

u8 pci_read8(pci_address function, u8 offset);
u16 pci_read16(pci_address function, u8 offset);
u32 pci_read32(pci_address function, u8 offset);
void pci_write16(pci_address function, u8 offset, u16 value);
void pci_write32(pci_address function, u8 offset, u32 value);

/* All functions of bus 0 and of the buses behind its bridges, in order. Returns their number. */
size_t pci_scan(pci_address *functions, size_t limit);

/* Offset of the next capability of that kind behind `after` (0: the first); 0 if there is none. */
u8 pci_capability(pci_address function, u8 kind, u8 after);

/* Where memory BAR `index` lies; an unassigned one gets an address first. 0 if it is none that we can reach. */
u64 pci_bar(pci_address function, u8 index);

/* The I/O APIC pin of the function's INTx: from the MP table, else from the interrupt line; NO_PIN if unknown. */
u8 pci_intx_pin(pci_address function);

struct msix {
    u64 table;    /* address of entry 0 */
    u16 entries;
    u8 capability;
};

/* Enables MSI-X with all entries masked; false if the function has none. */
bool msix_enable(pci_address function, struct msix *msix);
void msix_disable(pci_address function, const struct msix *msix);
void msix_route(const struct msix *msix, u16 entry, u8 vector); /* to the boot processor, unmasked */
void msix_route_to(const struct msix *msix, u16 entry, u8 vector, u32 apic_id); /* at most 255 */
void msix_mask(const struct msix *msix, u16 entry, bool masked);

#endif
