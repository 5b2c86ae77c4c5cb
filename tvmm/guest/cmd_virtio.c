/* Commands about virtio devices of any type: what there is, resets, randomness. */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "virtio.h"

bool cmd_virtio(int count, char **arguments)
{
    (void)arguments;
    if (count != 1)
        return false;
    virtio_probe();
    for (size_t i = 0; i < virtio_count; i++) {
        struct virtio *device = virtio_devices[i];
        char where[32];
        virtio_where(device, where, sizeof where);
        print("virtio %lu: %s, %s %u, %u queue%s, offers 0x%lx, uses 0x%lx, %s, status 0x%x\n", i, where,
              virtio_name(device->type), device->number, device->queue_count, device->queue_count == 1 ? "" : "s",
              device->offered, device->running ? device->features : 0, device->use_msix ? "msix" : "intx",
              virtio_status(device));
    }
    if (!virtio_count)
        print("no virtio devices\n");
    return true;
}

bool cmd_vreset(int count, char **arguments)
{
    u64 index, times, done = 0;
    if (count != 3 || !parse_number(arguments[1], &index) || !parse_number(arguments[2], &times))
        return false;
    virtio_probe();
    if (index >= virtio_count) {
        print("vreset: there is no device %lu; `virtio` lists what there is\n", index);
        return true;
    }
    struct virtio *device = virtio_devices[index];
    u64 start = rdtsc();
    for (; done < times && !irq_poll(); done++) {
        if (!virtio_begin(device, 0) || !virtio_queue(device, 0, VIRTQ_MAX_SIZE, 1))
            break;
        virtio_ready(device);
        if (!(virtio_status(device) & STATUS_DRIVER_OK))
            break;
    }
    u64 us = tsc_to_us(rdtsc() - start);
    virtio_reset(device); /* its driver starts anew when it is next asked for something */
    print("vreset: %lu resets in %lu us\n", done, us);
    return true;
}
