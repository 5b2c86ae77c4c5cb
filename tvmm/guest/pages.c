/*
 * Self-checking pages: each holds its index, the number of times it was written, and a checksum.
 *
 * They are visited with a stride that is coprime to their number, so the addresses look scattered, yet it is
 * known for each page how often it has been written: a page that fell back to an older content, which has a
 * valid checksum, is found as well as a torn one. The state survives the command for `check`, and for going on.
 */
#include "pages.h"
#include "console.h"
#include "irq.h"
#include "machine.h"

#define PAGE_WORDS  (PAGE_SIZE / 8)
#define MAGIC       0x7976a6d167e57000ull
#define ERRORS_SHOWN 8
#define POLL_EVERY  32 /* pages */

struct page {
    u64 magic; /* MAGIC + index of the page */
    u64 sequence, checksum;
    u64 fill[PAGE_WORDS - 3];
};

static struct {
    struct region pieces[MAX_REGIONS];
    size_t piece_count;
    u64 pages, stride;
    u64 position; /* page to be written next */
    u64 written;  /* number of page writes so far: page number `position` has had written / pages of them */
    u64 errors;
} dirty;

static u64 gcd(u64 a, u64 b)
{
    while (b) {
        u64 rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static struct page *page_at(u64 index)
{
    const struct region *piece = dirty.pieces;
    while (index >= piece->size / PAGE_SIZE)
        index -= piece++->size / PAGE_SIZE;
    return (struct page *)(piece->start + index * PAGE_SIZE);
}

static u64 next_position(u64 position)
{
    position += dirty.stride;
    return position >= dirty.pages ? position - dirty.pages : position;
}

static u64 checksum_of(const struct page *page)
{
    u64 sum = page->magic ^ (page->sequence << 32 | page->sequence >> 32);
    for (size_t i = 0; i < ARRAY_SIZE(page->fill); i++)
        sum = (sum << 1 | sum >> 63) + page->fill[i];
    return sum;
}

static void write_page(u64 index, u64 sequence)
{
    struct page *page = page_at(index);
    u64 value = (index + 1) * 0x9e3779b97f4a7c15ull ^ sequence;
    page->magic = MAGIC + index;
    page->sequence = sequence;
    for (size_t i = 0; i < ARRAY_SIZE(page->fill); i++)
        page->fill[i] = value += 0xd1342543de82ef95ull;
    page->checksum = checksum_of(page);
}

static void verify_page(u64 index, u64 sequence)
{
    const struct page *page = page_at(index);
    const char *what;
    if (page->magic != MAGIC + index)
        what = "is not this page";
    else if (page->checksum != checksum_of(page))
        what = "has a wrong checksum";
    else if (page->sequence != sequence)
        what = "is a wrong version";
    else
        return;
    if (dirty.errors++ < ERRORS_SHOWN)
        print("error: page 0x%lx %s: sequence %lu, should be %lu\n", (u64)page, what, page->sequence, sequence);
}

u64 pages_free(void)
{
    struct region pieces[MAX_REGIONS];
    size_t count = free_ram(pieces, MAX_REGIONS);
    u64 free = 0;
    for (size_t i = 0; i < count; i++)
        free += pieces[i].size / PAGE_SIZE;
    return free;
}

bool pages_set_up(u64 bytes)
{
    u64 pages = bytes / PAGE_SIZE, free = pages_free();
    struct region pieces[MAX_REGIONS];
    size_t count = free_ram(pieces, MAX_REGIONS);
    if (pages > free) {
        print("only %lu MiB are free\n", free >> 8);
        return false;
    }
    if (pages == dirty.pages)
        return true;
    memcpy(dirty.pieces, pieces, sizeof pieces);
    dirty.piece_count = count;
    dirty.pages = pages;
    dirty.position = dirty.written = dirty.errors = 0;
    dirty.stride = pages * 5 / 8 | 1; /* about the golden ratio: neighbours in time are far apart */
    while (gcd(dirty.stride, pages) != 1)
        dirty.stride += 2;
    dirty.stride %= pages;
    keep_ram((u64)(page_at(pages - 1) + 1));
    return true;
}

void pages_write_next(void)
{
    u64 sequence = dirty.written / dirty.pages;
    if (sequence)
        verify_page(dirty.position, sequence);
    write_page(dirty.position, sequence + 1);
    dirty.position = next_position(dirty.position);
    dirty.written++;
}

u64 pages_count(void) { return dirty.pages; }
u64 pages_written(void) { return dirty.written; }
u64 pages_errors(void) { return dirty.errors; }

u64 pages_verify(void)
{
    u64 pages = min_u64(dirty.written, dirty.pages), position = 0, done = 0;
    for (; done < pages; done++) {
        if (done % POLL_EVERY == 0 && irq_poll())
            break;
        verify_page(position, (dirty.written - 1 - done) / dirty.pages + 1);
        position = next_position(position);
    }
    return done;
}
