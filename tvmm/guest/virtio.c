/* The two transports, virtio-pci (4.1) and virtio-mmio (4.2), and what a driver does to a device through them. */
#include "virtio.h"
#include "clock.h"
#include "console.h"
#include "irq.h"
#include "machine.h"

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
#define PCI_QUEUE_SIZE    0x18
#define PCI_QUEUE_VECTOR  0x1a
#define PCI_NOTIFY_OFF    0x1e
#define NO_VECTOR         0xffff
#define MMIO_QUEUE_MAX    0x34
#define MMIO_QUEUE_NUM    0x38
#define MMIO_QUEUE_NOTIFY 0x50

#define RESET_TIMEOUT_MS 5000

static u32 get(struct virtio *device, u32 which)
{
    if (device->mmio)
        return mmio_read32(device->mmio + registers[which].mmio);
    u64 at = device->common + registers[which].pci;
    if (registers[which].bits == 8)
        return mmio_read8(at);
    return registers[which].bits == 16 ? mmio_read16(at) : mmio_read32(at);
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

u64 virtio_offered(struct virtio *device)
{
    set(device, DEVICE_FEATURE_SELECT, 1);
    u64 high = get(device, DEVICE_FEATURE);
    set(device, DEVICE_FEATURE_SELECT, 0);
    return high << 32 | get(device, DEVICE_FEATURE);
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
    device->offered = virtio_offered(device);
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
    u32 limit = device->mmio ? mmio_read32(device->mmio + MMIO_QUEUE_MAX)
                             : mmio_read16(device->common + PCI_QUEUE_SIZE);
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
    while (get(device, QUEUE_RESET) || get(device, QUEUE_ENABLE)) {
        if (rdtsc() - start > ms_to_tsc(RESET_TIMEOUT_MS)) {
            print("virtio: queue %u is not reset after %u ms: reset of the device\n", q->index, RESET_TIMEOUT_MS);
            virtio_reset(device);
            return false;
        }
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

void virtio_set_config8(struct virtio *device, u32 offset, u8 value)
{
    if (offset < device->config_bytes)
        mmio_write8(device->config + offset, value);
}

void virtio_set_config32(struct virtio *device, u32 offset, u32 value)
{
    if (offset + 4 <= device->config_bytes)
        mmio_write32(device->config + offset, value);
}

bool virtio_config_changed(struct virtio *device)
{
    bool changed = device->config_pending;
    device->config_pending = false;
    return changed;
}
