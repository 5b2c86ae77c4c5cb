/* Commands that check a disk's data (blkdata.c), and that reset it with requests in flight. */
#include "blkdata.h"
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "machine.h"

/* NULL, with or without a line printed, if the arguments don't lead to an area. */
static struct blkdata *open_check(char **arguments)
{
    u64 number, mib, seed;
    if (!parse_number(arguments[1], &number) || !parse_number(arguments[2], &mib) ||
        !parse_number(arguments[3], &seed) || !mib)
        return NULL;
    return blkdata_open(arguments[0], number, mib, seed);
}

bool cmd_blkfill(int count, char **arguments)
{
    u64 seconds = 0;
    if (count < 4 || count > 5 || (count == 5 && !parse_number(arguments[4], &seconds)))
        return false;
    struct blkdata *c = open_check(arguments);
    if (!c)
        return true;
    u64 start = rdtsc(), passes = 0, end = seconds ? start + ms_to_tsc(seconds * 1000) : 0;
    while (blkdata_pass(c, BLK_WRITE, false, c->blocks, passes ? end : 0)) {
        passes++;
        if (rdtsc() >= end)
            break;
    }
    print("blkfill: %lu blocks, %lu passes in %lu us, %lu failed requests\n", c->blocks, passes,
          tsc_to_us(rdtsc() - start), c->failed);
    return true;
}

bool cmd_blkcheck(int count, char **arguments)
{
    if (count != 4)
        return false;
    struct blkdata *c = open_check(arguments);
    if (c) {
        blkdata_pass(c, BLK_READ, false, c->blocks, 0);
        print("blkcheck: %lu blocks, %lu errors, %lu unreadable\n", c->position, c->wrong, c->unreadable);
    }
    return true;
}

bool cmd_blkstress(int count, char **arguments)
{
    u64 requests;
    if (count != 5 || !parse_number(arguments[4], &requests))
        return false;
    struct blkdata *c = open_check(arguments);
    if (!c)
        return true;
    u64 start = rdtsc();
    c->random = c->seed * 2 + 1;
    bool whole = blkdata_pass(c, BLK_WRITE, false, c->blocks, 0) && blkdata_pass(c, 0, true, requests, 0) &&
                 blkdata_pass(c, BLK_READ, false, c->blocks, 0);
    print("blkstress: %lu writes, %lu reads, %lu flushes in %lu us, %lu wrong, %lu failed requests, %lu unreadable%s\n",
          c->writes, c->reads, c->flushes, tsc_to_us(rdtsc() - start), c->wrong, c->failed, c->unreadable,
          whole ? "" : ", broken off");
    return true;
}

#define MAX_RESET_DELAY_US 2000
#define CANARY 0x5a5a5a5a5a5a5a5aull

/*
 * Requests in flight, reset of the device or of its queues alone, canaries into their buffers, set up again, one read.
 * Returns the errors found.
 */
static u64 reset_once(struct blk *blk, bool queue, u64 memory, u64 *random, u64 *completed)
{
    u64 errors = 0, blocks = blk->capacity / (BLOCK / SECTOR);
    u32 slot = 0, status, depth = 1 + (u32)(random_next(random) % BLK_SLOTS);
    for (; slot < depth; slot++) {
        u64 sector = random_next(random) % blocks * (BLOCK / SECTOR);
        if (!blk_add(blk, slot, BLK_READ, sector, memory + slot * BLOCK, BLOCK))
            break;
    }
    blk_kick(blk);
    u64 until = rdtsc() + us_to_tsc(random_next(random) % MAX_RESET_DELAY_US);
    while (rdtsc() < until)
        *completed += blk_pop(blk, &slot, &status);
    if (queue ? !blk_reset_queues(blk) : !virtio_reset(blk->device))
        return 1;
    for (u64 at = memory; at < memory + BLK_SLOTS * BLOCK; at += BLOCK)
        *(u64 *)at = CANARY;
    if (!queue && !blk_start(blk))
        return 1;
    if (blk_do(blk, BLK_READ, 0, memory + BLK_SLOTS * BLOCK, BLOCK) != BLK_OK)
        errors++;
    for (u64 at = memory; at < memory + BLK_SLOTS * BLOCK; at += BLOCK)
        errors += *(volatile u64 *)at != CANARY; /* written after the reset */
    return errors;
}

bool cmd_blkreset(int count, char **arguments)
{
    u64 number, times, done = 0, errors = 0, completed = 0, random = 0x2545f4914f6cdd1d;
    bool queue = count == 4 && !strcmp(arguments[3], "queue");
    if (count < 3 || count > 4 || (count == 4 && !queue) || !parse_number(arguments[1], &number) ||
        !parse_number(arguments[2], &times))
        return false;
    struct blk *blk = blk_open(number);
    u64 memory = blk_memory((BLK_SLOTS + 1) * BLOCK), start = rdtsc();
    if (!blk || !memory || blk->capacity < BLOCK / SECTOR)
        return true;
    if (queue && !(blk->device->features & F_RING_RESET)) {
        print("blkreset: the device does not reset single queues\n");
        return true;
    }
    for (; done < times && blk->device->running && !irq_poll(); done++)
        errors += reset_once(blk, queue, memory, &random, &completed);
    print("blkreset: %lu resets in %lu us, %lu requests were done before, %lu errors\n", done,
          tsc_to_us(rdtsc() - start), completed, errors);
    return true;
}
