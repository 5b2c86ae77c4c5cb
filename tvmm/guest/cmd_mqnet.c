/*
 * Several pairs of queues of a network device at once: each processor has one, and sends or receives by itself. Needs
 * `mq` on the kernel command line; only as many processors take part as there are pairs. By polling alone.
 */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "smp.h"
#include "virtio_net.h"

#define LANE_SLOTS (NET_TX_SLOTS / NET_MAX_PAIRS)
#define MIN_FRAME  60
#define MAX_FRAME  1514
#define BUDGET     64

/* One processor with its pair. Nothing in it is another processor's. */
struct lane {
    u64 frames, bytes;
    u16 free[LANE_SLOTS], free_count;
} __attribute__((aligned(64)));

static struct {
    struct lane lanes[NET_MAX_PAIRS];
    struct net *net;
    u64 end;
    u32 bytes, used;
} *bench;

static u32 lane_reclaim(struct lane *lane, struct virtq *queue)
{
    u64 token;
    u32 length, done = 0;
    for (; virtq_pop(queue, &token, &length); done++)
        lane->free[lane->free_count++] = (u16)token;
    return done;
}

static void send_frames(struct cpu *cpu)
{
    struct lane *lane = &bench->lanes[cpu->index];
    struct net *net = bench->net;
    if (cpu->index >= bench->used)
        return;
    struct virtq *queue = net->tx[cpu->index];
    while (rdtsc() < bench->end && !queue->broken) {
        if (!lane_reclaim(lane, queue) && !lane->free_count) {
            cpu_relax();
            continue;
        }
        while (lane->free_count) {
            u16 slot = lane->free[--lane->free_count];
            struct buffer buffer = {(u64)net_slot(net, slot), NET_HEADER + bench->bytes, false};
            if (!virtq_add(queue, &buffer, 1, slot))
                return;
            lane->frames++;
            lane->bytes += bench->bytes;
        }
        virtq_kick(queue);
    }
    u64 last = rdtsc() + ms_to_tsc(2000);
    while (virtq_in_flight(queue) && rdtsc() < last)
        lane_reclaim(lane, queue);
}

static void count_frames(struct cpu *cpu)
{
    struct lane *lane = &bench->lanes[cpu->index];
    if (cpu->index >= bench->used)
        return;
    struct virtq *queue = bench->net->rx[cpu->index];
    while (rdtsc() < bench->end && !queue->broken) {
        u64 token;
        u32 length, done = 0;
        while (done < BUDGET && virtq_pop(queue, &token, &length)) {
            lane->frames++;
            lane->bytes += length - min_u64(length, NET_HEADER);
            net_post(bench->net, (u16)cpu->index, token);
            done++;
        }
        if (done)
            virtq_kick(queue);
        else
            cpu_relax();
    }
}

static struct net *begin(char **arguments)
{
    u64 number;
    struct net *net = parse_number(arguments[1], &number) ? net_open(number) : NULL;
    if (!bench && !(bench = (void *)page_alloc((sizeof *bench + PAGE_SIZE - 1) / PAGE_SIZE)))
        return NULL;
    memset(bench, 0, sizeof *bench);
    bench->net = net;
    if (!net || !net_tx_flush(net))
        return NULL;
    smp_start();
    while (bench->used < net->pairs && bench->used < MAX_CPUS && cpus[bench->used].online)
        bench->used++;
    return net;
}

static void run(const char *name, struct net *net, void (*job)(struct cpu *), u64 seconds)
{
    u64 frames = 0, bytes = 0, start = rdtsc();
    net->device->service = NULL;
    net_rx_interrupts(net, false);
    bench->end = start + ms_to_tsc(seconds * 1000);
    smp_run(job);
    job(&cpus[0]);
    while (!smp_idle() && !irq_poll())
        cpu_relax();
    u64 us = max_u64(tsc_to_us(rdtsc() - start), 1);
    if (net->answering)
        net->device->service = ip_service;
    for (u32 i = 0; i < bench->used; i++) {
        print("pair %u: %lu frames\n", i, bench->lanes[i].frames);
        frames += bench->lanes[i].frames;
        bytes += bench->lanes[i].bytes;
    }
    print("%s: %lu frames/s, %lu Mbit/s on %u of %u pairs\n", name, frames * 1000000 / us, bytes * 8 / us, bench->used,
          net->pairs);
}

bool cmd_mqtx(int count, char **arguments)
{
    u64 bytes, seconds;
    if (count != 4 || !parse_number(arguments[2], &bytes) || !parse_number(arguments[3], &seconds) ||
        bytes < MIN_FRAME || bytes > MAX_FRAME)
        return false;
    struct net *net = begin(arguments);
    if (!net)
        return true;
    bench->bytes = (u32)bytes;
    for (u32 slot = 0; slot < NET_TX_SLOTS; slot++) {
        struct lane *lane = &bench->lanes[slot / LANE_SLOTS];
        struct net_header *header = net_slot(net, (int)slot);
        u8 *frame = (u8 *)(header + 1);
        memset(frame, 0, bytes);
        ip_build(net, frame, (u32)bytes, IP_UDP);
        *header = (struct net_header){0};
        lane->free[lane->free_count++] = (u16)slot;
    }
    run("mqtx", net, send_frames, seconds);
    return true;
}

bool cmd_mqrx(int count, char **arguments)
{
    u64 seconds;
    if (count != 3 || !parse_number(arguments[2], &seconds))
        return false;
    struct net *net = begin(arguments);
    if (net)
        run("mqrx", net, count_frames, seconds);
    return true;
}
