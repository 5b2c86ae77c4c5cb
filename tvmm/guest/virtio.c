/* Finding virtio devices, and their two transports: virtio-pci (4.1) and virtio-mmio (4.2). */
#include "virtio.h"
#include "clock.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "mptable.h"

#define PCI_VENDOR_VIRTIO 0x1af4

/* Kinds of vendor capability (4.1.4), and the fields of such a capability. */
enum { CAP_COMMON = 1, CAP_NOTIFY, CAP_ISR, CAP_DEVICE };
enum { CAP_TYPE = 3, CAP_BAR = 4, CAP_OFFSET = 8, CAP_LENGTH = 12, CAP_MULTIPLIER = 16 };

/* Registers of the common configuration (4.1.4.3) and of virtio-mmio (4.2.2). */
#define REGISTERS(X) \
    X(DEVICE_FEATURE_SELECT, 0x00, 32, 0x14) \
    X(DEVICE_FEATURE, 0x04, 32, 0x10) \
    X(DRIVER_FEATURE_SELECT, 0x08, 32, 0x24) \
    X(DRIVER_FEATURE, 0x0c, 32, 0x20) \
    X(DEVICE_STATUS, 0x14, 8, 0x70) \
    X(CONFIG_GENERATION, 0x15, 8, 0xfc) \
    X(QUEUE_SELECT, 0x16, 16, 0x30) \
    X(QUEUE_ENABLE, 0x1c, 16, 0x44) \
    X(QUEUE_DESC, 0x20, 32, 0x80) \
    X(QUEUE_DRIVER, 0x28, 32, 0x90) \
    X(QUEUE_DEVICE, 0x30, 32, 0xa0) \
    X(QUEUE_RESET, 0x3a, 16, 0xc0)

#define AS_ENUM(name, offset, bits, mmio) name,
enum { REGISTERS(AS_ENUM) };

static const struct {
    u8 pci, bits, mmio;
} registers[] = {
#define AS_ROW(name, offset, bits, mmio) {offset, bits, mmio},
    REGISTERS(AS_ROW)
};

/* Those that only one of the transports has, or that differ between reading and writing. */
#define PCI_MSIX_CONFIG   0x10
#define PCI_NUM_QUEUES    0x12
#define PCI_QUEUE_SIZE    0x18
#define PCI_QUEUE_VECTOR  0x1a
#define PCI_NOTIFY_OFF    0x1e
#define NO_VECTOR         0xffff
#define MMIO_MAGIC        0x00
#define MMIO_VERSION      0x04
#define MMIO_DEVICE_ID    0x08
#define MMIO_QUEUE_MAX    0x34
#define MMIO_QUEUE_NUM    0x38
#define MMIO_QUEUE_NOTIFY 0x50
#define MMIO_INTERRUPTS   0x60
#define MMIO_ACK          0x64
#define MMIO_CONFIG       0x100
#define MAGIC             0x74726976 /* virt */

#define ISR_CONFIG 2
#define RESET_TIMEOUT_MS 5000

struct virtio *virtio_devices[VIRTIO_MAX_DEVICES];
size_t virtio_count;
static u8 next_vector = VEC_MSI;

static u32 get(struct virtio *device, u32 which)
{
    if (device->mmio)
        return mmio_read32(device->mmio + registers[which].mmio);
    u64 at = device->common + registers[which].pci;
    return registers[which].bits == 8 ? mmio_read8(at) : registers[which].bits == 16 ? mmio_read16(at) : mmio_read32(at);
}

static void set(struct virtio *device, u32 which, u32 value)
{
    u64 at = device->common + registers[which].pci;
    if (device->mmio)
        mmio_write32(device->mmio + registers[which].mmio, value);
    else if (registers[which].bits == 8)
        mmio_write8(at, (u8)value);
    else if (registers[which].bits == 16)
        mmio_write16(at, (u16)value);
    else
        mmio_write32(at, value);
}

static void set64(struct virtio *device, u32 which, u64 value)
{
    u64 at = device->mmio ? device->mmio + registers[which].mmio : device->common + registers[which].pci;
    mmio_write32(at, (u32)value);
    mmio_write32(at + 4, (u32)(value >> 32));
}

static u64 read_features(struct virtio *device)
{
    set(device, DEVICE_FEATURE_SELECT, 1);
    u64 high = get(device, DEVICE_FEATURE);
    set(device, DEVICE_FEATURE_SELECT, 0);
    return high << 32 | get(device, DEVICE_FEATURE);
}

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
    device->offered = read_features(device);
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
    device->offered = read_features(device);
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

u8 virtio_status(struct virtio *device) { return (u8)get(device, DEVICE_STATUS); }

static void add_status(struct virtio *device, u8 bits)
{
    set(device, DEVICE_STATUS, virtio_status(device) | bits);
}

bool virtio_reset(struct virtio *device)
{
    u64 start = rdtsc();
    device->running = false;
    set(device, DEVICE_STATUS, 0);
    while (virtio_status(device)) {
        if (rdtsc() - start > ms_to_tsc(RESET_TIMEOUT_MS)) {
            print("virtio: the device is not reset after %u ms\n", RESET_TIMEOUT_MS);
            return false;
        }
        cpu_relax();
    }
    return true;
}

static u64 ring_features(void)
{
    u64 features = F_VERSION_1 | F_RING_RESET;
    if (!command_line_has("noevent"))
        features |= F_EVENT_IDX;
    if (!command_line_has("noindirect"))
        features |= F_INDIRECT_DESC;
    if (!command_line_has("noinorder"))
        features |= F_IN_ORDER;
    if (command_line_has("packed"))
        features |= F_RING_PACKED;
    return features;
}

bool virtio_begin(struct virtio *device, u64 wanted)
{
    if (!virtio_reset(device))
        return false;
    add_status(device, STATUS_ACKNOWLEDGE);
    add_status(device, STATUS_DRIVER);
    device->offered = read_features(device);
    device->features = device->offered & (wanted | ring_features());
    for (u32 half = 0; half < 2; half++) {
        set(device, DRIVER_FEATURE_SELECT, half);
        set(device, DRIVER_FEATURE, (u32)(device->features >> 32 * half));
    }
    add_status(device, STATUS_FEATURES_OK);
    if (!(device->features & F_VERSION_1) || !(virtio_status(device) & STATUS_FEATURES_OK)) {
        add_status(device, STATUS_FAILED);
        print("virtio: the device refuses features 0x%lx\n", device->features);
        return false;
    }
    if (device->use_msix) {
        mmio_write16(device->common + PCI_MSIX_CONFIG, 0);
        if (mmio_read16(device->common + PCI_MSIX_CONFIG) == NO_VECTOR)
            print("virtio: the device has no vector for its configuration\n");
    }
    return true;
}

void virtio_ready(struct virtio *device)
{
    add_status(device, STATUS_DRIVER_OK);
    device->running = true;
}

u16 virtio_queue_limit(struct virtio *device, u16 index)
{
    set(device, QUEUE_SELECT, index);
    u32 limit = device->mmio ? mmio_read32(device->mmio + MMIO_QUEUE_MAX) : mmio_read16(device->common + PCI_QUEUE_SIZE);
    return (u16)min_u64(limit, VIRTQ_MAX_SIZE);
}

/* MSI-X table entries: the first for the configuration, the others to the queues in turn. */
static void choose_vector(struct virtq *q)
{
    struct virtio *device = q->device;
    u16 entry = 0;
    if (device->use_msix) {
        if (device->msix.entries > 1)
            entry = (u16)(1 + q->index % (device->msix.entries - 1));
        mmio_write16(device->common + PCI_QUEUE_VECTOR, entry);
        if (mmio_read16(device->common + PCI_QUEUE_VECTOR) == NO_VECTOR)
            print("virtio: the device has no vector for queue %u\n", q->index);
    }
    q->vector = device->vectors[entry];
}

/* Tells the device where the queue is, and starts it. The queue is the one selected. */
static void enable(struct virtq *q)
{
    struct virtio *device = q->device;
    if (device->mmio) {
        mmio_write32(device->mmio + MMIO_QUEUE_NUM, q->size);
        q->notify = device->mmio + MMIO_QUEUE_NOTIFY;
    } else {
        mmio_write16(device->common + PCI_QUEUE_SIZE, q->size);
        q->notify = device->notify_base +
                    (u64)mmio_read16(device->common + PCI_NOTIFY_OFF) * device->notify_multiplier;
    }
    choose_vector(q);
    virtq_init(q);
    set64(device, QUEUE_DESC, q->memory);
    set64(device, QUEUE_DRIVER, q->driver_area);
    set64(device, QUEUE_DEVICE, q->device_area);
    set(device, QUEUE_ENABLE, 1);
}

struct virtq *virtio_queue(struct virtio *device, u16 index, u16 limit, u16 table_entries)
{
    u16 size = index < VIRTIO_MAX_QUEUES ? (u16)min_u64(virtio_queue_limit(device, index), limit) : 0;
    struct virtq *q = size ? device->queues[index] : NULL;
    if (size && !q)
        q = device->queues[index] = virtq_allocate(size, table_entries);
    if (!q) {
        print("virtio: no queue %u, or no memory for it\n", index);
        return NULL;
    }
    q->device = device;
    q->index = index;
    q->size = (u16)min_u64(size, q->limit);
    enable(q);
    return q;
}

bool virtq_reset(struct virtq *q)
{
    struct virtio *device = q->device;
    u64 start = rdtsc();
    set(device, QUEUE_SELECT, q->index);
    set(device, QUEUE_RESET, 1);
    while (get(device, QUEUE_RESET)) {
        if (rdtsc() - start > ms_to_tsc(RESET_TIMEOUT_MS))
            return false;
        cpu_relax();
    }
    enable(q);
    return true;
}

/* Without a device configuration all fields read as zero. */
u8 virtio_config8(struct virtio *device, u32 offset)
{
    return offset + 1 > device->config_bytes ? 0 : mmio_read8(device->config + offset);
}

u16 virtio_config16(struct virtio *device, u32 offset)
{
    return offset + 2 > device->config_bytes ? 0 : mmio_read16(device->config + offset);
}

u32 virtio_config32(struct virtio *device, u32 offset)
{
    return offset + 4 > device->config_bytes ? 0 : mmio_read32(device->config + offset);
}

u64 virtio_config64(struct virtio *device, u32 offset)
{
    u32 generation;
    u64 value;
    do {
        generation = get(device, CONFIG_GENERATION);
        value = virtio_config32(device, offset) | (u64)virtio_config32(device, offset + 4) << 32;
    } while (generation != get(device, CONFIG_GENERATION));
    return value;
}

void virtio_config_write8(struct virtio *device, u32 offset, u8 value) { mmio_write8(device->config + offset, value); }

void virtio_config_write32(struct virtio *device, u32 offset, u32 value) { mmio_write32(device->config + offset, value); }

bool virtio_config_changed(struct virtio *device)
{
    bool changed = device->config_pending;
    device->config_pending = false;
    return changed;
}
