/*
 * Is what was written what is read? Every 4 KiB block of the test area holds its number, a generation that grows with
 * each write, the seed, and words that follow from these three; so a block that was lost, torn, misplaced or is an
 * older version is found. For each block it is known which generations it may have: one, or after a write that failed
 * for good, any from the last certain one on.
 */
#include "blkdata.h"
#include "clock.h"
#include "console.h"
#include "irq.h"
#include "machine.h"

#define WORDS          (BLOCK / 8)
#define CHUNK          16 /* blocks in one request when it goes from end to end */
#define RANDOM_CHUNK   8
#define MAX_TRIES      8
#define MAX_COMPLAINTS 8

static struct blkdata *check;

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

static void complain(struct blkdata *c, u64 block, const u64 *data, int word)
{
    if (c->wrong++ < MAX_COMPLAINTS)
        print("block %lu: word %d is 0x%lx; block %lu, generation %lu, seed %lu; expected generation %u to %u\n", block,
              word, data[word], data[0], data[1], data[2], c->certain[block], c->possible[block]);
}

/* A block whose generation is not known may have any but 0, and none at all if only failed writes are known of. */
static void verify_block(struct blkdata *c, u64 block, const u64 *data)
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

static u64 *job_data(struct blkdata *c, const struct blkdata_job *job)
{
    return (u64 *)(c->memory + (u64)(job - c->jobs) * CHUNK * BLOCK);
}

static void prepare(struct blkdata *c, struct blkdata_job *job)
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

static void submit(struct blkdata *c, struct blkdata_job *job)
{
    u32 length = job->type == BLK_FLUSH ? 0 : job->blocks * BLOCK;
    job->busy = blk_add(c->blk, (u32)(job - c->jobs), job->type, length ? job->block * (BLOCK / SECTOR) : 0,
                        (u64)job_data(c, job), length);
}

/* A read that failed for good goes on block by block; a block that can't be read then is unreadable. */
static void give_up(struct blkdata *c, struct blkdata_job *job)
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

static void finish(struct blkdata *c, struct blkdata_job *job, u32 status)
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
    c->done += !job->busy;
}

static bool overlaps(const struct blkdata *c, u64 block, u64 blocks)
{
    for (const struct blkdata_job *job = c->jobs; job < c->jobs + BLKDATA_DEPTH; job++)
        if (job->busy && job->type != BLK_FLUSH && block < job->block + job->blocks + job->rest &&
            job->block < block + blocks)
            return true;
    return false;
}

/* The next request of a pass from end to end. */
static void next_in_order(struct blkdata *c, struct blkdata_job *job, u32 type)
{
    job->type = type;
    job->block = c->position;
    job->blocks = (u32)min_u64(c->blocks - c->position, CHUNK);
    c->position += job->blocks;
    c->left -= job->blocks;
}

static void next_at_random(struct blkdata *c, struct blkdata_job *job)
{
    u64 dice = random_next(&c->random);
    job->type = dice % 64 == 0 ? BLK_FLUSH : dice & 64 ? BLK_WRITE : BLK_READ;
    u64 most = min_u64(RANDOM_CHUNK, c->blocks / (2 * BLKDATA_DEPTH));
    job->blocks = job->type == BLK_FLUSH ? 0 : (u32)(1 + (dice >> 8) % most);
    do
        job->block = random_next(&c->random) % (c->blocks - job->blocks + 1);
    while (job->blocks && overlaps(c, job->block, job->blocks));
    c->left--;
}

static void begin(struct blkdata *c, struct blkdata_job *job)
{
    prepare(c, job);
    submit(c, job);
    *(job->type == BLK_READ ? &c->reads : job->type == BLK_WRITE ? &c->writes : &c->flushes) += 1;
}

bool blkdata_add(struct blkdata *c, u32 depth, u64 now)
{
    for (struct blkdata_job *job = c->jobs; job < c->jobs + depth; job++) {
        if (job->busy)
            continue;
        *job = (struct blkdata_job){.added = now};
        next_at_random(c, job);
        begin(c, job);
        return job->busy;
    }
    return false;
}

u32 blkdata_reap(struct blkdata *c)
{
    u32 slot, status, done = 0;
    for (; blk_pop(c->blk, &slot, &status); done++)
        finish(c, &c->jobs[slot], status);
    return done;
}

bool blkdata_pass(struct blkdata *c, u32 type, bool random, u64 left, u64 end)
{
    u64 last = rdtsc();
    c->left = left;
    c->position = 0;
    for (;;) {
        for (u32 i = 0; i < BLKDATA_DEPTH && c->left && !(end && rdtsc() >= end); i++) {
            struct blkdata_job *job = &c->jobs[i];
            if (job->busy)
                continue;
            *job = (struct blkdata_job){0};
            random ? next_at_random(c, job) : next_in_order(c, job, type);
            begin(c, job);
        }
        blk_kick(c->blk);
        if (!blk_in_flight(c->blk))
            return true;
        if (blkdata_reap(c))
            last = rdtsc();
        c->stuck = blk_broken(c->blk) || rdtsc() - last > ms_to_tsc(BLK_TIMEOUT_MS);
        if (irq_poll() || c->stuck) {
            c->stuck |= !blk_drain(c->blk); /* what was in flight stays uncertain */
            return false;
        }
    }
}

struct blkdata *blkdata_open(const char *who, u64 number, u64 mib, u64 seed)
{
    struct blk *blk = blk_open(number);
    if (!blk)
        return NULL;
    if (!check && !(check = (struct blkdata *)page_alloc((sizeof *check + PAGE_SIZE - 1) / PAGE_SIZE)))
        return NULL;
    struct blkdata *c = check;
    u64 blocks = mib << 8, pages = (2 * sizeof(u32) * blocks + PAGE_SIZE - 1) / PAGE_SIZE;
    if (mib > 1u << 24 || blocks > blk->capacity / (BLOCK / SECTOR)) {
        print("%s: the disk has only %lu MiB\n", who, blk->capacity >> 11);
        return NULL;
    }
    if (pages > c->table_pages) {
        c->certain = (u32 *)dma_alloc(pages);
        c->table_pages = c->certain ? pages : 0;
        c->blocks = 0;
    }
    c->memory = blk_memory(BLKDATA_DEPTH * CHUNK * BLOCK);
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
    c->writes = c->reads = c->flushes = c->done = c->wrong = c->failed = c->unreadable = 0;
    return c;
}
