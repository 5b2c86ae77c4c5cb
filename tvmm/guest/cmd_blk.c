/* Disk commands: what a disk is, single requests, and benchmarks. */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "virtio_blk.h"

#define MAX_BYTES (1u << 20)

static struct blk *open_argument(int count, char **arguments, int wanted)
{
    u64 number;
    return count == wanted && parse_number(arguments[1], &number) ? blk_open(number) : NULL;
}

static const char *status_name(u32 status)
{
    static const char *const names[] = {"ok", "I/O error", "unsupported"};
    return status < ARRAY_SIZE(names) ? names[status] : "no answer";
}

static void describe(struct blk *blk)
{
    struct virtio *device = blk->device;
    char id[BLK_ID_BYTES + 1] = {0};
    u64 page = blk_memory(PAGE_SIZE);
    if (!page)
        return;
    memset((void *)page, 0, PAGE_SIZE);
    u32 status = blk_do(blk, BLK_GET_ID, 0, page, BLK_ID_BYTES);
    if (status == BLK_OK)
        memcpy(id, (const void *)page, BLK_ID_BYTES);
    print("blk %u: %lu sectors, block size %u, %s, serial \"%s\", queue of %u, features 0x%lx\n", device->number,
          blk->capacity, blk->block_size, device->features & BLK_F_RO ? "read-only" : "writable", id,
          blk->queues[0]->size,
          device->features);
    if (device->features & BLK_F_TOPOLOGY)
        print("  physical block %u, alignment offset %u, minimum I/O %u, optimal I/O %u blocks\n",
              blk->block_size << virtio_config8(device, 24), virtio_config8(device, 25), virtio_config16(device, 26),
              virtio_config32(device, 28));
    print("  seg_max %u, queues %u of %u, write cache %u, ", blk->pieces_max, blk->queue_count,
          device->features & BLK_F_MQ ? virtio_config16(device, 34) : 1,
          device->features & BLK_F_WCE ? virtio_config8(device, 32) : (device->features & BLK_F_FLUSH) != 0);
    print("discard up to %u sectors, write zeroes up to %u\n",
          device->features & BLK_F_DISCARD ? virtio_config32(device, 36) : 0,
          device->features & BLK_F_ZEROES ? virtio_config32(device, 48) : 0);
}

bool cmd_blk(int count, char **arguments)
{
    u64 number = 0;
    if (count > 2 || (count == 2 && !parse_number(arguments[1], &number)))
        return false;
    struct blk *blk = blk_open(number);
    if (blk)
        describe(blk);
    return true;
}

bool cmd_flush(int count, char **arguments)
{
    struct blk *blk = open_argument(count, arguments, 2);
    u64 start = rdtsc();
    if (blk) {
        u32 status = blk_do(blk, BLK_FLUSH, 0, 0, 0);
        print("flush: %s in %lu us\n", status_name(status), tsc_to_us(rdtsc() - start));
    }
    return count == 2;
}

static bool range(int count, char **arguments, u32 type)
{
    u64 sector, sectors;
    if (count != 4 || !parse_number(arguments[2], &sector) || !parse_number(arguments[3], &sectors) ||
        sectors > 0x7fffff)
        return false;
    struct blk *blk = open_argument(count, arguments, 4);
    if (blk)
        print("%s: %s\n", arguments[0], status_name(blk_do(blk, type, sector, 0, (u32)(sectors * SECTOR))));
    return true;
}

bool cmd_discard(int count, char **arguments) { return range(count, arguments, BLK_DISCARD); }
bool cmd_zeroes(int count, char **arguments) { return range(count, arguments, BLK_ZEROES); }

bool cmd_rdsec(int count, char **arguments)
{
    u64 sector, page = blk_memory(PAGE_SIZE);
    if (count != 3 || !parse_number(arguments[2], &sector))
        return false;
    struct blk *blk = open_argument(count, arguments, 3);
    if (!blk || !page)
        return true;
    memset((void *)page, 0, SECTOR);
    u32 status = blk_do(blk, BLK_READ, sector, page, SECTOR);
    print("rdsec %lu: %s", sector, status_name(status));
    for (int i = 0; status == BLK_OK && i < 64; i++)
        print(i ? "%02x" : " %02x", ((const u8 *)page)[i]);
    print("\n");
    return true;
}

bool cmd_wrsec(int count, char **arguments)
{
    u64 sector, page = blk_memory(PAGE_SIZE);
    if (count != 4 || !parse_number(arguments[2], &sector))
        return false;
    struct blk *blk = open_argument(count, arguments, 4);
    if (!blk || !page)
        return true;
    memset((void *)page, 0, SECTOR);
    memcpy((void *)page, arguments[3], min_u64(strlen(arguments[3]), SECTOR));
    print("wrsec %lu: %s\n", sector, status_name(blk_do(blk, BLK_WRITE, sector, page, SECTOR)));
    return true;
}

/* A benchmark: the same kind of request over and over in `depth` slots. */
struct bench {
    struct blk *blk;
    u32 type, bytes, depth;
    bool random, by_interrupt;
    u64 limit; /* requests; 0: until `end` */
    u64 end, memory, blocks, position, seed;
    u64 added, done, errors, total, shortest, longest; /* times in TSC ticks */
    u64 started[BLK_SLOTS];
};

static bool bench_add(struct bench *b, u32 slot)
{
    u64 block = b->random ? random_next(&b->seed) % b->blocks : b->position;
    b->position = b->position + 1 < b->blocks ? b->position + 1 : 0;
    b->started[slot] = rdtsc();
    if (!blk_add(b->blk, slot, b->type, b->type == BLK_GET_ID ? 0 : block * (b->bytes / SECTOR),
                 b->memory + (u64)slot * b->bytes, b->bytes))
        return false;
    b->added++;
    return true;
}

static bool bench_over(struct bench *b, u64 now) { return b->limit ? b->added >= b->limit : now >= b->end; }

/* Takes what is done, puts the next request into the same slot. Returns how many were done. */
static u32 bench_round(struct bench *b)
{
    u32 slot, status, done = 0;
    while (done < b->depth && blk_pop(b->blk, &slot, &status)) {
        u64 now = rdtsc(), ticks = now - b->started[slot];
        b->shortest = min_u64(b->shortest, ticks);
        b->longest = max_u64(b->longest, ticks);
        b->total += ticks;
        b->errors += status != BLK_OK;
        done++;
        if (!bench_over(b, now))
            bench_add(b, slot);
    }
    b->done += done;
    return done;
}

/* True after the benchmark has run; false if the disk stopped answering, or after Ctrl-C. */
static bool bench_run(struct bench *b)
{
    struct blk *blk = b->blk;
    u64 last = rdtsc();
    b->shortest = (u64)-1;
    blk_start_counts(blk);
    for (u32 slot = 0; slot < b->depth && !(b->limit && b->added == b->limit) && bench_add(b, slot); slot++)
        ;
    blk_kick(blk);
    if (b->by_interrupt)
        lapic_timer((u32)min_u64(lapic_timer_khz() * 500, 0xffffffff), true);
    while (blk_in_flight(blk)) {
        if (bench_round(b)) {
            blk_kick(blk);
            last = rdtsc();
            continue;
        }
        if (b->by_interrupt && blk_interrupts(blk, true))
            irq_sleep();
        else
            cpu_relax();
        if (b->by_interrupt)
            blk_interrupts(blk, false);
        if (irq_poll() || blk_broken(blk) || rdtsc() - last > ms_to_tsc(BLK_TIMEOUT_MS))
            break;
    }
    lapic_timer(0, false);
    return blk_drain(blk);
}

static void print_tenths(const char *before, u64 tenths, const char *after)
{
    print("%s%lu.%lu%s", before, tenths / 10, tenths % 10, after);
}

static bool parse_bench(struct bench *b, int count, char **arguments)
{
    static const char *const names[] = {"read", "write", "randread", "randwrite"};
    u64 bytes, depth, seconds;
    size_t which = 0;
    while (which < ARRAY_SIZE(names) && strcmp(names[which], arguments[2]))
        which++;
    if (which == ARRAY_SIZE(names) || !parse_number(arguments[3], &bytes) || !parse_number(arguments[4], &depth) ||
        !parse_number(arguments[5], &seconds) || bytes < SECTOR || bytes % SECTOR || bytes > MAX_BYTES || !depth ||
        depth > BLK_SLOTS || !seconds)
        return false;
    b->type = which & 1 ? BLK_WRITE : BLK_READ;
    b->random = which & 2;
    b->bytes = (u32)bytes;
    b->depth = (u32)depth;
    for (int i = 6; i < count; i++) {
        bool irq = !strcmp(arguments[i], "irq"), pieces = !strcmp(arguments[i], "sg");
        if (!irq && !pieces)
            return false;
        b->by_interrupt |= irq;
        b->blk->in_pieces |= pieces;
    }
    b->end = ms_to_tsc(seconds * 1000);
    b->blocks = b->blk->capacity / (bytes / SECTOR);
    b->seed = 0x9e3779b97f4a7c15;
    return true;
}

bool cmd_blkbench(int count, char **arguments)
{
    static struct bench *b;
    u64 number;
    if (count < 6 || !parse_number(arguments[1], &number))
        return false;
    if (!b && !(b = (struct bench *)page_alloc((sizeof *b + PAGE_SIZE - 1) / PAGE_SIZE)))
        return true;
    *b = (struct bench){.blk = blk_open(number)};
    if (!b->blk)
        return true;
    if (!parse_bench(b, count, arguments))
        return false;
    b->memory = blk_memory((u64)b->bytes * b->depth);
    if (!b->memory || !b->blocks) {
        print("blkbench: no memory, or the disk is smaller than a request\n");
        return true;
    }
    u64 start = rdtsc();
    b->end += start;
    bench_run(b);
    u64 us = max_u64(tsc_to_us(rdtsc() - start), 1), done = max_u64(b->done, 1);
    print("blkbench %s %u B QD %u: %lu IOPS, ", arguments[2], b->bytes, b->depth, b->done * 1000000 / us);
    print_tenths("", b->done * b->bytes / 1024 * 10000 / 1024 * 1000 / us, " MiB/s, ");
    print_tenths("latency avg ", tsc_to_ns(b->total / done) / 100, "");
    print_tenths(" min ", b->done ? tsc_to_ns(b->shortest) / 100 : 0, "");
    print_tenths(" max ", tsc_to_ns(b->longest) / 100, " us, ");
    print("%lu kicks, %lu interrupts, %lu errors\n", blk_kicks(b->blk), blk_interrupt_count(b->blk), b->errors);
    return true;
}

#define RINGOPS_DEPTH 32

bool cmd_ringops(int count, char **arguments)
{
    static struct bench *b;
    u64 number, times;
    if (count != 3 || !parse_number(arguments[1], &number) || !parse_number(arguments[2], &times) || !times)
        return false;
    if (!b && !(b = (struct bench *)page_alloc((sizeof *b + PAGE_SIZE - 1) / PAGE_SIZE)))
        return true;
    *b = (struct bench){.blk = blk_open(number), .type = BLK_GET_ID, .bytes = BLK_ID_BYTES, .depth = RINGOPS_DEPTH};
    if (!b->blk || !(b->memory = blk_memory(RINGOPS_DEPTH * BLK_ID_BYTES)))
        return true;
    b->limit = times;
    b->blocks = 1;
    u64 start = rdtsc();
    bench_run(b);
    print("ringops: %lu done in %lu us, %lu kicks, %lu interrupts", b->done, tsc_to_us(rdtsc() - start),
          blk_kicks(b->blk), blk_interrupt_count(b->blk));
    if (b->errors)
        print(", %lu errors", b->errors);
    print("\n");
    return true;
}
