/*
 * Several queues of a disk at once: each processor drives one by itself, and its interrupts come to that processor.
 * Needs `mq` on the kernel command line; only as many processors take part as there are queues.
 */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "smp.h"
#include "virtio_blk.h"

#define MAX_BYTES    (1u << 20)
#define MAX_DEPTH    (BLK_SLOTS / BLK_MAX_QUEUES)
#define PATIENCE_MS  10000 /* for what is in flight at the end */

/* One processor with its queue. Nothing in it is another processor's. */
struct lane {
    struct virtq *queue;
    struct blk_request *requests; /* MAX_DEPTH of them */
    u64 memory, started[MAX_DEPTH];
    u64 done, errors, ticks, longest, seed, position, events;
    bool stuck;
} __attribute__((aligned(64)));

static struct {
    struct lane lanes[BLK_MAX_QUEUES];
    u32 type, bytes, depth;
    u64 end, blocks;
    bool random, by_interrupt;
} *bench;

static bool lane_add(struct lane *lane, u32 slot)
{
    struct blk_request *request = &lane->requests[slot];
    u64 block = lane->position++;
    if (bench->random) { /* xorshift64 */
        lane->seed ^= lane->seed << 13;
        lane->seed ^= lane->seed >> 7;
        lane->seed ^= lane->seed << 17;
        block = lane->seed;
    }
    *request = (struct blk_request){
        .type = bench->type, .sector = block % bench->blocks * (bench->bytes / SECTOR), .status = 0xff};
    struct buffer buffers[3] = {
        {(u64)request, 16, false},
        {lane->memory + (u64)slot * bench->bytes, bench->bytes, bench->type == BLK_READ},
        {(u64)&request->status, 1, true},
    };
    lane->started[slot] = rdtsc();
    return virtq_add(lane->queue, buffers, 3, slot);
}

/* What has come back, and as much added anew until the end. */
static u32 lane_round(struct lane *lane)
{
    u64 token;
    u32 length, done = 0;
    while (done < bench->depth && virtq_pop(lane->queue, &token, &length)) {
        u64 now = rdtsc(), ticks = now - lane->started[token];
        lane->ticks += ticks;
        lane->longest = max_u64(lane->longest, ticks);
        lane->errors += *(volatile u8 *)&lane->requests[token].status != BLK_OK;
        done++;
        if (now < bench->end)
            lane_add(lane, (u32)token);
    }
    lane->done += done;
    return done;
}

static void lane_run(struct cpu *cpu)
{
    struct lane *lane = &bench->lanes[cpu->index];
    struct virtq *queue = lane->queue;
    u64 last = bench->end + ms_to_tsc(PATIENCE_MS);
    if (!queue)
        return;
    u32 before = cpu->percpu->events;
    for (u32 slot = 0; slot < bench->depth; slot++)
        lane_add(lane, slot);
    virtq_kick(queue);
    while (virtq_in_flight(queue) && !queue->broken) {
        u32 seen = cpu->percpu->events;
        compiler_barrier();
        if (lane_round(lane)) {
            virtq_kick(queue);
            continue;
        }
        /* It is woken by its own requests alone: there is always one in flight. */
        if (bench->by_interrupt && virtq_interrupts(queue, true))
            syscall(SYS_WAIT, seen, 0);
        else
            cpu_relax();
        if (bench->by_interrupt)
            virtq_interrupts(queue, false);
        if (rdtsc() > last) {
            lane->stuck = true;
            return;
        }
    }
    lane->events = cpu->percpu->events - before;
}

/* Where the interrupts of the queues go: to the processor of the same number, or all to the first one. */
static void steer(struct blk *blk, bool apart)
{
    struct virtio *device = blk->device;
    for (u16 i = 0; device->use_msix && i < blk->queue_count; i++) {
        u16 entry = (u16)(1 + i % (device->msix.entries - 1));
        msix_route_to(&device->msix, entry, device->vectors[entry], apart ? cpus[i].apic_id : irq_boot_cpu());
    }
}

static bool parse(int count, char **arguments, u64 *seconds)
{
    static const char *const names[] = {"read", "write", "randread", "randwrite"};
    u64 bytes, depth;
    size_t which = 0;
    while (which < ARRAY_SIZE(names) && strcmp(names[which], arguments[2]))
        which++;
    if (which == ARRAY_SIZE(names) || !parse_number(arguments[3], &bytes) || !parse_number(arguments[4], &depth) ||
        !parse_number(arguments[5], seconds) || bytes < SECTOR || bytes % SECTOR || bytes > MAX_BYTES || !depth ||
        depth > MAX_DEPTH || !*seconds || (count == 7 && strcmp(arguments[6], "irq")))
        return false;
    bench->type = which & 1 ? BLK_WRITE : BLK_READ;
    bench->random = which & 2;
    bench->bytes = (u32)bytes;
    bench->depth = (u32)depth;
    bench->by_interrupt = count == 7;
    return true;
}

static void report(const struct blk *blk, u32 used, char **arguments, u64 us)
{
    u64 done = 0, errors = 0, ticks = 0, longest = 0;
    for (u32 i = 0; i < used; i++) {
        struct lane *lane = &bench->lanes[i];
        print("queue %u: %lu requests, %lu kicks, %u interrupts, %lu on its CPU%s\n", i, lane->done,
              lane->queue->kicks, virtq_interrupt_count(lane->queue), lane->events, lane->stuck ? ", stuck" : "");
        done += lane->done;
        errors += lane->errors + (lane->stuck ? virtq_in_flight(lane->queue) : 0);
        ticks += lane->ticks;
        longest = max_u64(longest, lane->longest);
    }
    u64 tenths = done * bench->bytes / 1024 * 10000 / 1024 * 1000 / us;
    print("mqbench %s %u B QD %u on %u of %u queues: %lu IOPS, %lu.%lu MiB/s, latency avg %lu max %lu us, %lu errors\n",
          arguments[2], bench->bytes, bench->depth, used, blk->queue_count, done * 1000000 / us, tenths / 10, tenths % 10,
          tsc_to_us(ticks / max_u64(done, 1)), tsc_to_us(longest), errors);
}

bool cmd_mqbench(int count, char **arguments)
{
    u64 number, seconds;
    if (count < 6 || count > 7 || !parse_number(arguments[1], &number))
        return false;
    if (!bench && !(bench = (void *)page_alloc((sizeof *bench + PAGE_SIZE - 1) / PAGE_SIZE)))
        return true;
    memset(bench, 0, sizeof *bench);
    struct blk *blk = blk_open(number);
    if (!blk)
        return true;
    if (!parse(count, arguments, &seconds))
        return false;
    smp_start();
    u32 used = 0;
    while (used < blk->queue_count && used < MAX_CPUS && cpus[used].online)
        used++;
    u64 memory = blk_memory((u64)bench->bytes * bench->depth * used);
    bench->blocks = blk->capacity / (bench->bytes / SECTOR);
    if (!memory || !bench->blocks) {
        print("mqbench: no memory, or the disk is smaller than a request\n");
        return true;
    }
    for (u32 i = 0; i < used; i++) {
        struct lane *lane = &bench->lanes[i];
        lane->requests = blk->requests + i * MAX_DEPTH;
        lane->memory = memory + (u64)i * bench->depth * bench->bytes;
        lane->seed = 0x9e3779b97f4a7c15 * (i + 1);
        lane->position = bench->blocks / used * i;
        lane->queue = blk->queues[i];
        virtq_start_counts(lane->queue);
    }
    steer(blk, true);
    u64 start = rdtsc();
    bench->end = start + ms_to_tsc(seconds * 1000);
    smp_run(lane_run);
    lane_run(&cpus[0]);
    while (!smp_idle() && !irq_poll())
        cpu_relax();
    u64 us = max_u64(tsc_to_us(rdtsc() - start), 1);
    report(blk, used, arguments, us);
    steer(blk, false);
    blk_interrupts(blk, false);
    blk_drain(blk);
    return true;
}
