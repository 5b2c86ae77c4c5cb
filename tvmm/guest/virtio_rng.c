/* The virtio entropy device (5.4) and its command. */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "virtio.h"

#define RNG_BUFFERS 4
#define RNG_BYTES   1024 /* of one buffer */
#define RNG_SHOWN   16

static struct virtq *rng_open(u64 number)
{
    struct virtio *device = virtio_find(VIRTIO_RNG, number);
    if (!device)
        return NULL;
    /* From the beginning each time: nothing of an earlier command is then in flight. */
    if (!virtio_begin(device, 0) || !virtio_queue(device, 0, 16, 1))
        return NULL;
    virtio_ready(device);
    return device->queues[0];
}

bool cmd_rng(int count, char **arguments)
{
    static u64 memory;
    u64 number, wanted, token, asked = 0, done = 0;
    u8 shown[RNG_SHOWN];
    u32 length;
    if (count != 3 || !parse_number(arguments[1], &number) || !parse_number(arguments[2], &wanted) || !wanted)
        return false;
    struct virtq *q = rng_open(number);
    if (!memory)
        memory = page_alloc(RNG_BUFFERS * RNG_BYTES / PAGE_SIZE);
    if (!q || !memory)
        return true;
    memset((void *)memory, 0, RNG_BUFFERS * RNG_BYTES);
    u64 start = rdtsc(), last = start;
    for (u64 next = 0; done < wanted;) {
        for (; asked < wanted && virtq_in_flight(q) < RNG_BUFFERS; next++) {
            u32 bytes = (u32)min_u64(wanted - asked, RNG_BYTES);
            struct buffer buffer = {memory + next % RNG_BUFFERS * RNG_BYTES, bytes, true};
            if (!virtq_add(q, &buffer, 1, buffer.address | (u64)bytes << 40))
                break;
            asked += bytes;
        }
        virtq_kick(q);
        if (virtq_pop(q, &token, &length)) {
            u32 size = (u32)(token >> 40);
            length = (u32)min_u64(length, size); /* may be less than asked for */
            if (done < RNG_SHOWN)
                memcpy(shown + done, (const void *)(token & ((1ull << 40) - 1)), min_u64(length, RNG_SHOWN - done));
            done += length;
            asked -= size - length;
            last = rdtsc();
        } else if (irq_poll() || q->broken) {
            break;
        }
    }
    u64 us = max_u64(tsc_to_us(last - start), 1);
    print("rng: %lu bytes in %lu us, %lu KiB/s, first ", done, us, done * 1000000 / us >> 10);
    for (u64 i = 0; i < min_u64(done, RNG_SHOWN); i++)
        print("%02x", shown[i]);
    print("\n");
    if (virtq_in_flight(q))
        virtio_reset(q->device);
    return true;
}
