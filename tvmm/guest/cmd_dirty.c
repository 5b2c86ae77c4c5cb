/*
 * The dirtier: writes self-checking pages at a given rate and verifies each page before it writes it again.
 *
 * Pages are visited with a stride that is coprime to their number, so the addresses look scattered, yet it is
 * known for each page how often it has been written: a page that fell back to an older content, which has a
 * valid checksum, is found as well as a torn one. The state survives the command for `check`, and for going on.
 */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "machine.h"

#define PAGE_WORDS  (PAGE_SIZE / 8)
#define MAGIC       0x7976a6d167e57000ull
#define ERRORS_SHOWN 8
#define BATCH       32 /* pages between two looks at the clock */

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

static bool set_up(u64 bytes)
{
    u64 pages = bytes / PAGE_SIZE, free = 0;
    struct region pieces[MAX_REGIONS];
    size_t count = free_ram(pieces, MAX_REGIONS);
    for (size_t i = 0; i < count; i++)
        free += pieces[i].size / PAGE_SIZE;
    if (pages > free) {
        print("dirty: only %lu MiB are free\n", free >> 8);
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

static void write_next(void)
{
    u64 sequence = dirty.written / dirty.pages;
    if (sequence)
        verify_page(dirty.position, sequence);
    write_page(dirty.position, sequence + 1);
    dirty.position = next_position(dirty.position);
    dirty.written++;
}

/* Writes pages until `end` or Ctrl-C; returns the longest pause, in TSC ticks. Rate 0: as fast as it goes. */
static u64 run(u64 rate, u64 end)
{
    u64 start = rdtsc(), expected = start, longest = 0, done = 0;
    while (!interrupted()) {
        u64 now = rdtsc();
        if (now >= end)
            break;
        if (now > expected)
            longest = max_u64(longest, now - expected);
        u64 due = rate ? tsc_to_us(now - start) * rate / 1000000 + 1 : done + BATCH;
        if (due > done + rate / 50 + BATCH) { /* after a long pause: on with the rate, not with a burst */
            start = now;
            done = 0;
            due = rate / 50 + 1;
        }
        for (u64 i = 0; done < due && i < BATCH; i++, done++)
            write_next();
        expected = rdtsc();
        if (rate && done >= due) {
            expected = min_u64(max_u64(expected + us_to_tsc(1000), start + us_to_tsc(done * 1000000 / rate)), end);
            sleep_until(expected);
        } else {
            irq_poll();
        }
    }
    return longest;
}

bool cmd_dirty(int count, char **arguments)
{
    u64 rate, bytes, seconds = 0;
    if (count < 3 || count > 4 || !parse_number(arguments[1], &rate) || !parse_number(arguments[2], &bytes) ||
        (count == 4 && !parse_number(arguments[3], &seconds)) || bytes < 16 * PAGE_SIZE || rate > 1000000000)
        return false;
    if (!set_up(bytes))
        return true;
    u64 before = dirty.written, errors = dirty.errors, start = rdtsc();
    u64 longest = run(rate, count == 4 ? start + ms_to_tsc(seconds * 1000) : (u64)-1);
    u64 written = dirty.written - before, us = max_u64(tsc_to_us(rdtsc() - start), 1);
    print("dirtied %lu pages in %lu us: %lu pages/s, %lu errors, longest pause %lu us\n", written, us,
          written * 1000000 / us, dirty.errors - errors, tsc_to_us(longest));
    return true;
}

bool cmd_check(int count, char **arguments)
{
    (void)arguments;
    if (count != 1)
        return false;
    u64 pages = min_u64(dirty.written, dirty.pages), position = 0, before = dirty.errors, done = 0;
    for (; done < pages; done++) {
        if (done % BATCH == 0 && irq_poll())
            break;
        verify_page(position, (dirty.written - 1 - done) / dirty.pages + 1);
        position = next_position(position);
    }
    print("checked %lu pages: %lu errors\n", done, dirty.errors - before);
    return true;
}
