/* Finding virtio devices, on PCI and by the kernel command line, and their interrupts. */
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "mptable.h"
#include "virtio.h"

#define PCI_VENDOR_VIRTIO 0x1af4

/* Kinds of vendor capability (4.1.4), and the fields of such a capability. */
enum { CAP_COMMON = 1, CAP_NOTIFY, CAP_ISR, CAP_DEVICE };
enum { CAP_TYPE = 3, CAP_BAR = 4, CAP_OFFSET = 8, CAP_LENGTH = 12, CAP_MULTIPLIER = 16 };

/* What is asked for once: of the common configuration, and of virtio-mmio (4.2.2). */
#define PCI_NUM_QUEUES    0x12
#define MMIO_MAGIC        0x00
#define MMIO_VERSION      0x04
#define MMIO_DEVICE_ID    0x08
#define MMIO_INTERRUPTS   0x60
#define MMIO_ACK          0x64
#define MMIO_CONFIG       0x100
#define MAGIC             0x74726976 /* virt */

#define ISR_CONFIG 2

struct virtio *virtio_devices[VIRTIO_MAX_DEVICES];
size_t virtio_count;
static u8 next_vector = VEC_MSI;

/* Reads the interrupt status, which lets go of the line. False if the device had nothing to say. */
static bool take_isr(struct virtio *device)
{
    u32 isr = device->mmio ? mmio_read32(device->mmio + MMIO_INTERRUPTS) : mmio_read8(device->isr);
    if (device->mmio && isr)
        mmio_write32(device->mmio + MMIO_ACK, isr);
    device->config_pending |= (isr & ISR_CONFIG) != 0;
    return isr != 0;
}

/* A line that is shared makes an edge only when all have let go of it: goes on until it must be quiet. */
static void quiet_line(u8 vector)
{
    size_t sharing;
    bool any;
    do {
        sharing = any = 0;
        for (size_t i = 0; i < virtio_count; i++) {
            struct virtio *device = virtio_devices[i];
            if (device->use_msix || device->vectors[0] != vector)
                continue;
            sharing++;
            device->seen = irq_count[vector];
            any |= take_isr(device);
        }
    } while (any && sharing > 1);
}

/* Runs after any interrupt of ours. Which queue has news, the drivers find out by looking. */
static void virtio_service(void)
{
    for (size_t i = 0; i < virtio_count; i++) {
        struct virtio *device = virtio_devices[i];
        u32 count = irq_count[device->vectors[0]];
        if (device->seen != count && device->vectors[0]) {
            device->seen = count;
            if (device->use_msix)
                device->config_pending = true;
            else
                quiet_line(device->vectors[0]);
        }
        if (device->service && device->running)
            device->service(device);
    }
}

static struct virtio *add_device(u32 type)
{
    struct virtio *device = (struct virtio *)page_alloc(1);
    if (!device || virtio_count == VIRTIO_MAX_DEVICES)
        return NULL;
    device->type = type;
    for (size_t i = 0; i < virtio_count; i++)
        device->number += virtio_devices[i]->type == type;
    virtio_devices[virtio_count++] = device;
    return device;
}

static void use_pin(struct virtio *device, u8 pin)
{
    if (pin == NO_PIN)
        return;
    device->vectors[0] = (u8)(VEC_PIN0 + pin);
    device->seen = irq_count[device->vectors[0]];
    irq_register_pin(pin, virtio_service);
}

static void route_msix(struct virtio *device)
{
    u16 wanted = (u16)min_u64(device->msix.entries, VIRTIO_MAX_VECTORS);
    for (u16 entry = 0; entry < wanted; entry++) {
        if (next_vector < VEC_MSI_END)
            next_vector++;
        device->vectors[entry] = (u8)(next_vector - 1);
        irq_register_vector(device->vectors[entry], virtio_service);
        msix_route(&device->msix, entry, device->vectors[entry]);
    }
    device->msix.entries = wanted;
}

static void probe_pci(pci_address function)
{
    u16 id = pci_read16(function, PCI_DEVICE);
    if (pci_read16(function, PCI_VENDOR) != PCI_VENDOR_VIRTIO || id < 0x1000 || id > 0x107f)
        return;
    u64 base[CAP_DEVICE + 1] = {0};
    u32 multiplier = 0, config_bytes = 0;
    for (u8 at = 0; (at = pci_capability(function, PCI_CAP_VENDOR, at));) {
        u8 type = pci_read8(function, (u8)(at + CAP_TYPE));
        u64 bar = type <= CAP_DEVICE ? pci_bar(function, pci_read8(function, (u8)(at + CAP_BAR))) : 0;
        if (!bar || base[type])
            continue; /* the first of its kind that we can reach */
        base[type] = bar + pci_read32(function, (u8)(at + CAP_OFFSET));
        if (type == CAP_NOTIFY)
            multiplier = pci_read32(function, (u8)(at + CAP_MULTIPLIER));
        if (type == CAP_DEVICE)
            config_bytes = pci_read32(function, (u8)(at + CAP_LENGTH));
    }
    if (!base[CAP_COMMON] || !base[CAP_NOTIFY] || !base[CAP_ISR])
        return;
    struct virtio *device = add_device(id >= 0x1040 ? id - 0x1040u : pci_read16(function, PCI_SUBSYSTEM));
    if (!device)
        return;
    device->function = function;
    device->common = base[CAP_COMMON];
    device->isr = base[CAP_ISR];
    device->config = base[CAP_DEVICE];
    device->notify_base = base[CAP_NOTIFY];
    device->notify_multiplier = multiplier;
    device->config_bytes = config_bytes;
    u16 command = pci_read16(function, PCI_COMMAND) | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
    pci_write16(function, PCI_COMMAND, (u16)(command & ~PCI_COMMAND_NO_INTX));
    device->use_msix = !command_line_has("intx") && irq_has_lapic() && msix_enable(function, &device->msix);
    if (device->use_msix)
        route_msix(device);
    else
        use_pin(device, pci_intx_pin(function));
    device->queue_count = (u16)min_u64(mmio_read16(device->common + PCI_NUM_QUEUES), VIRTIO_MAX_QUEUES);
    device->offered = virtio_offered(device);
}

static void probe_mmio(u64 address, u64 irq)
{
    if (mmio_read32(address + MMIO_MAGIC) != MAGIC || mmio_read32(address + MMIO_VERSION) != 2)
        return;
    u32 type = mmio_read32(address + MMIO_DEVICE_ID);
    struct virtio *device = type ? add_device(type) : NULL;
    if (!device)
        return;
    device->mmio = address;
    device->config = address + MMIO_CONFIG;
    device->config_bytes = 0x100;
    use_pin(device, irq < 16 ? mptable.isa_pin[irq] : (u8)irq);
    while (device->queue_count < VIRTIO_MAX_QUEUES && virtio_queue_limit(device, device->queue_count))
        device->queue_count++;
    device->offered = virtio_offered(device);
}

/* virtio_mmio.device=SIZE@ADDRESS:IRQ[:ID], as for Linux. */
static void probe_word(const char *word)
{
    char number[2][24] = {{0}};
    u64 address, irq;
    while (*word && *word != '@' && *word != ' ')
        word++;
    for (int i = 0; i < 2 && (*word == '@' || *word == ':'); i++) {
        size_t length = 0;
        for (word++; *word && *word != ' ' && *word != ':' && length < sizeof number[0] - 1; word++)
            number[i][length++] = *word;
    }
    if (parse_number(number[0], &address) && parse_number(number[1], &irq) && irq < 24)
        probe_mmio(address, irq);
}

void virtio_probe(void)
{
    static bool done;
    pci_address functions[PCI_MAX_FUNCTIONS];
    static const char word[] = "virtio_mmio.device=";
    if (done)
        return;
    done = true;
    size_t count = pci_scan(functions, PCI_MAX_FUNCTIONS);
    for (size_t i = 0; i < count; i++)
        probe_pci(functions[i]);
    for (const char *at = machine.command_line; *at; at++)
        if ((at == machine.command_line || at[-1] == ' ') && starts_with(at, word))
            probe_word(at + sizeof word - 1);
}

struct virtio *virtio_find(u32 type, u64 number)
{
    virtio_probe();
    for (size_t i = 0; i < virtio_count; i++)
        if (virtio_devices[i]->type == type && virtio_devices[i]->number == number)
            return virtio_devices[i];
    print("there is no %s %lu; `virtio` lists what there is\n", virtio_name(type), number);
    return NULL;
}

const char *virtio_name(u32 type)
{
    static const char *const names[] = {"device", "net", "blk", "console", "rng", "balloon"};
    if (type == VIRTIO_INPUT)
        return "input";
    if (type == VIRTIO_VSOCK)
        return "vsock";
    return type < ARRAY_SIZE(names) ? names[type] : "device";
}

void virtio_where(const struct virtio *device, char *to, size_t size)
{
    if (device->mmio)
        format(to, size, "mmio 0x%lx", device->mmio);
    else
        format(to, size, "pci %02x:%02x.%u", PCI_BUS(device->function), PCI_SLOT(device->function),
               PCI_FUNCTION(device->function));
}
