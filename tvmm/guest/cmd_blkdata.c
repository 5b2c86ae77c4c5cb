/*
 * Is what was written what is read? Every 4 KiB block of the test area holds its number, a generation that grows with
 * each write, the seed, and words that follow from these three; so a block that was lost, torn, misplaced or is an
 * older version is found. For each block it is known which generations it may have: one, or after a write that failed
 * for good, any from the last certain one on.
 */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "virtio_blk.h"

#define BLOCK          4096
#define WORDS          (BLOCK / 8)
#define DEPTH          16
#define CHUNK          16 /* blocks in one request when it goes from end to end */
#define RANDOM_CHUNK   8
#define MAX_TRIES      8
#define MAX_COMPLAINTS 8

struct job { /* one request in flight; its slot is its index */
    bool busy;
    u8 tries;
    u32 type, blocks, rest; /* rest: blocks to read one by one after this one */
    u64 block;
};

struct check {
    struct blk *blk;
    u64 number, seed, blocks; /* the area that the generations are of */
    u32 *certain, *possible;  /* generations by block: last that is known to be there, last that was tried */
    u64 memory, table_pages;
    u64 position, left, random; /* of the current pass */
    u64 writes, reads, flushes, wrong, failed, unreadable;
    bool stuck;
    struct job jobs[DEPTH];
};

static struct check *check;

static u64 first_word(u64 block, u64 generation, u64 seed)
{
    return block ^ generation << 32 ^ seed * 0x9e3779b97f4a7c15ull;
}

static u64 next_word(u64 word) { return word * 6364136223846793005ull + 1442695040888963407ull; }

static void fill_block(u64 *to, u64 block, u64 generation, u64 seed)
{
    u64 word = first_word(block, generation, seed);
    to[0] = block;
    to[1] = generation;
    to[2] = seed;
    for (int i = 3; i < WORDS; i++)
        to[i] = word = next_word(word);
}

static void complain(struct check *c, u64 block, const u64 *data, int word)
{
    if (c->wrong++ < MAX_COMPLAINTS)
        print("block %lu: word %d is 0x%lx; block %lu, generation %lu, seed %lu; expected generation %u to %u\n", block,
              word, data[word], data[0], data[1], data[2], c->certain[block], c->possible[block]);
}

/* A block whose generation is not known may have any but 0, and none at all if only failed writes are known of. */
static void verify_block(struct check *c, u64 block, const u64 *data)
{
    u64 word = first_word(block, data[1], c->seed);
    bool known = c->certain[block];
    if (!known && c->possible[block])
        return;
    if (data[0] != block)
        complain(c, block, data, 0);
    else if (known ? data[1] < c->certain[block] || data[1] > c->possible[block] : !data[1])
        complain(c, block, data, 1);
    else if (data[2] != c->seed)
        complain(c, block, data, 2);
    else
        for (int i = 3; i < WORDS; i++)
            if (data[i] != (word = next_word(word))) {
                complain(c, block, data, i);
                return;
            }
}

static u64 *job_data(struct check *c, const struct job *job)
{
    return (u64 *)(c->memory + (u64)(job - c->jobs) * CHUNK * BLOCK);
}

static void prepare(struct check *c, struct job *job)
{
    u64 *data = job_data(c, job);
    for (u64 i = 0; i < job->blocks; i++, data += WORDS) {
        u64 block = job->block + i;
        if (job->type == BLK_WRITE)
            fill_block(data, block, ++c->possible[block], c->seed);
        else
            data[0] = data[WORDS - 1] = ~0ull; /* so that data which does not come can't pass */
    }
}

static void submit(struct check *c, struct job *job)
{
    u32 length = job->type == BLK_FLUSH ? 0 : job->blocks * BLOCK;
    job->busy = blk_add(c->blk, (u32)(job - c->jobs), job->type, length ? job->block * (BLOCK / SECTOR) : 0,
                        (u64)job_data(c, job), length);
}

/* A read that failed for good goes on block by block; a block that can't be read then is unreadable. */
static void give_up(struct check *c, struct job *job)
{
    if (job->type == BLK_READ && job->blocks > 1) {
        job->rest = job->blocks - 1;
        job->blocks = 1;
        job->tries = 0;
        submit(c, job);
    } else if (job->type == BLK_READ) {
        c->unreadable++;
    }
}

static void finish(struct check *c, struct job *job, u32 status)
{
    job->busy = false;
    if (status != BLK_OK) {
        c->failed++;
        if (++job->tries < MAX_TRIES)
            submit(c, job);
        else
            give_up(c, job);
        if (job->busy)
            return;
    } else if (job->type == BLK_READ) {
        for (u64 i = 0; i < job->blocks; i++)
            verify_block(c, job->block + i, job_data(c, job) + i * WORDS);
    } else if (job->type == BLK_WRITE) {
        for (u64 i = 0; i < job->blocks; i++)
            c->certain[job->block + i] = c->possible[job->block + i];
    }
    if (job->rest) {
        job->rest--;
        job->block++;
        job->tries = 0;
        prepare(c, job);
        submit(c, job);
    }
}

static bool overlaps(const struct check *c, u64 block, u64 blocks)
{
    for (const struct job *job = c->jobs; job < c->jobs + DEPTH; job++)
        if (job->busy && job->type != BLK_FLUSH && block < job->block + job->blocks + job->rest &&
            job->block < block + blocks)
            return true;
    return false;
}

/* The next request of a pass from end to end. */
static void next_in_order(struct check *c, struct job *job, u32 type)
{
    job->type = type;
    job->block = c->position;
    job->blocks = (u32)min_u64(c->blocks - c->position, CHUNK);
    c->position += job->blocks;
    c->left -= job->blocks;
}

static void next_at_random(struct check *c, struct job *job)
{
    u64 dice = random_next(&c->random);
    job->type = dice % 64 == 0 ? BLK_FLUSH : dice & 64 ? BLK_WRITE : BLK_READ;
    job->blocks = job->type == BLK_FLUSH ? 0 : (u32)(1 + (dice >> 8) % min_u64(RANDOM_CHUNK, c->blocks / (2 * DEPTH)));
    do
        job->block = random_next(&c->random) % (c->blocks - job->blocks + 1);
    while (job->blocks && overlaps(c, job->block, job->blocks));
    c->left--;
}

/* Runs a pass until nothing is left or `end` (TSC; 0: no end). True if it was not broken off. */
static bool pass(struct check *c, u32 type, bool random, u64 left, u64 end)
{
    u64 last = rdtsc();
    c->left = left;
    c->position = 0;
    for (;;) {
        u32 slot, status;
        for (struct job *job = c->jobs; job < c->jobs + DEPTH && c->left && !(end && rdtsc() >= end); job++) {
            if (job->busy)
                continue;
            *job = (struct job){0};
            random ? next_at_random(c, job) : next_in_order(c, job, type);
            prepare(c, job);
            submit(c, job);
            *(job->type == BLK_READ ? &c->reads : job->type == BLK_WRITE ? &c->writes : &c->flushes) += 1;
        }
        blk_kick(c->blk);
        if (!blk_in_flight(c->blk))
            return true;
        while (blk_pop(c->blk, &slot, &status)) {
            finish(c, &c->jobs[slot], status);
            last = rdtsc();
        }
        c->stuck = blk_broken(c->blk) || rdtsc() - last > ms_to_tsc(BLK_TIMEOUT_MS);
        if (irq_poll() || c->stuck) {
            c->stuck |= !blk_drain(c->blk); /* what was in flight stays uncertain */
            return false;
        }
    }
}

/* Finds or makes the table of generations for an area. NULL, with a line printed, if that does not go. */
static struct check *open_check(char **arguments)
{
    u64 number, mib, seed;
    if (!parse_number(arguments[1], &number) || !parse_number(arguments[2], &mib) ||
        !parse_number(arguments[3], &seed) || !mib)
        return NULL;
    struct blk *blk = blk_open(number);
    if (!blk)
        return NULL;
    if (!check && !(check = (struct check *)page_alloc((sizeof *check + PAGE_SIZE - 1) / PAGE_SIZE)))
        return NULL;
    struct check *c = check;
    u64 blocks = mib << 8, pages = (2 * sizeof(u32) * blocks + PAGE_SIZE - 1) / PAGE_SIZE;
    if (mib > 1u << 24 || blocks > blk->capacity / (BLOCK / SECTOR)) {
        print("%s: the disk has only %lu MiB\n", arguments[0], blk->capacity >> 11);
        return NULL;
    }
    if (pages > c->table_pages) {
        c->certain = (u32 *)dma_alloc(pages);
        c->table_pages = c->certain ? pages : 0;
        c->blocks = 0;
    }
    c->memory = blk_memory(DEPTH * CHUNK * BLOCK);
    if (!c->table_pages || !c->memory)
        return NULL;
    if (c->number != number || c->blocks != blocks || c->seed != seed) {
        memset(c->certain, 0, pages * PAGE_SIZE);
        c->possible = c->certain + blocks;
        c->number = number;
        c->blocks = blocks;
        c->seed = seed;
    }
    memset(c->jobs, 0, sizeof c->jobs);
    c->blk = blk;
    c->writes = c->reads = c->flushes = c->wrong = c->failed = c->unreadable = 0;
    return c;
}

bool cmd_blkfill(int count, char **arguments)
{
    u64 seconds = 0;
    if (count < 4 || count > 5 || (count == 5 && !parse_number(arguments[4], &seconds)))
        return false;
    struct check *c = open_check(arguments);
    if (!c)
        return true;
    u64 start = rdtsc(), passes = 0, end = seconds ? start + ms_to_tsc(seconds * 1000) : 0;
    while (pass(c, BLK_WRITE, false, c->blocks, passes ? end : 0)) {
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
    struct check *c = open_check(arguments);
    if (c) {
        pass(c, BLK_READ, false, c->blocks, 0);
        print("blkcheck: %lu blocks, %lu errors, %lu unreadable\n", c->position, c->wrong, c->unreadable);
    }
    return true;
}

bool cmd_blkstress(int count, char **arguments)
{
    u64 requests;
    if (count != 5 || !parse_number(arguments[4], &requests))
        return false;
    struct check *c = open_check(arguments);
    if (!c)
        return true;
    u64 start = rdtsc();
    c->random = c->seed * 2 + 1;
    bool whole = pass(c, BLK_WRITE, false, c->blocks, 0) && pass(c, 0, true, requests, 0) &&
                 pass(c, BLK_READ, false, c->blocks, 0);
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
