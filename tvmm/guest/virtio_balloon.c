/* See virtio_balloon.h. One request at a time and queue: none of them waits for the device. */
#include "virtio_balloon.h"
#include "console.h"
#include "irq.h"
#include "machine.h"

enum { CONFIG_WANTED = 0, CONFIG_ACTUAL = 4, CONFIG_COMMAND = 8 };

#define F_MUST_TELL FEATURE(0)
#define F_STATS     FEATURE(1)
#define F_ON_OOM    FEATURE(2)
#define F_HINT      FEATURE(3)
#define F_REPORT    FEATURE(5)

#define FIRST_COMMAND 2
#define PIECE         (4u << 20) /* bytes of free RAM in one buffer */
#define HINT_BUFFERS  64
#define REPORT_PIECES 16
#define STAT_BYTES    10
#define STATS         4

static void put_stat(struct balloon *b, u32 index, u16 tag, u64 value)
{
    memcpy(b->stats + index * STAT_BYTES, &tag, 2);
    memcpy(b->stats + index * STAT_BYTES + 2, &value, 8);
}

static void answer(struct balloon *b)
{
    u64 free = unused_pages() * PAGE_SIZE;
    put_stat(b, 0, 5, machine.ram_bytes);
    put_stat(b, 1, 4, free);
    put_stat(b, 2, 6, free);
    put_stat(b, 3, 3, b->answers); /* minor faults: there are none to count */
    struct buffer buffer = {(u64)b->stats, STATS * STAT_BYTES, false};
    virtq_add(b->queues[BALLOON_STATS], &buffer, 1, 0);
    virtq_kick(b->queues[BALLOON_STATS]);
}

static bool take_answers(struct balloon *b)
{
    u64 token;
    u32 length;
    if (!b->queues[BALLOON_STATS] || !virtq_pop(b->queues[BALLOON_STATS], &token, &length))
        return false;
    b->answers++;
    answer(b);
    return true;
}

static void move_pages(struct balloon *b, u32 which, u64 count)
{
    struct buffer buffer = {(u64)b->numbers[which], (u32)(count * sizeof(u32)), false};
    b->moving = count;
    virtq_add(b->queues[which], &buffer, 1, count);
    virtq_kick(b->queues[which]);
}

static void inflate(struct balloon *b)
{
    u64 count = 0, room = min_u64(b->wanted - b->actual, min_u64(BALLOON_PAGES, b->limit - b->actual));
    u64 page;
    while (count < room && (page = ram_lend())) {
        b->held[b->actual + count] = (u32)(page / PAGE_SIZE);
        count++;
    }
    memcpy(b->numbers[BALLOON_INFLATE], b->held + b->actual, count * sizeof(u32));
    if (count)
        move_pages(b, BALLOON_INFLATE, count);
    else
        b->short_of++;
}

static void deflate(struct balloon *b)
{
    u64 count = min_u64(b->actual - b->wanted, BALLOON_PAGES);
    memcpy(b->numbers[BALLOON_DEFLATE], b->held + b->actual - count, count * sizeof(u32));
    move_pages(b, BALLOON_DEFLATE, count);
}

/* What has come back from the device, and the next step towards what it wants. */
static bool change_size(struct balloon *b)
{
    u64 count;
    u32 length;
    if (virtq_pop(b->queues[BALLOON_INFLATE], &count, &length)) {
        b->actual += count;
    } else if (virtq_pop(b->queues[BALLOON_DEFLATE], &count, &length)) {
        /* Only now are they ours again. */
        for (; count; count--)
            ram_return((u64)b->held[--b->actual] * PAGE_SIZE);
    } else {
        count = ~0ull;
    }
    if (count != ~0ull) {
        b->moving = 0;
        virtio_set_config32(b->device, CONFIG_ACTUAL, (u32)b->actual);
    }
    if (b->moving || b->actual == b->wanted || (b->actual < b->wanted && b->short_of))
        return false;
    (b->actual < b->wanted ? inflate : deflate)(b);
    return true;
}

/* The next piece of free RAM from `*at` on, which moves behind it; 0 bytes: there is no more, and `*at` is 0. */
static struct buffer next_free(u64 *at)
{
    struct region pieces[MAX_REGIONS];
    size_t count = unused_ram(pieces, MAX_REGIONS);
    for (size_t i = 0; i < count; i++) {
        u64 start = max_u64(pieces[i].start, *at), end = pieces[i].start + pieces[i].size;
        if (start >= end)
            continue;
        u64 length = min_u64(end - start, PIECE - start % PIECE);
        *at = start + length;
        return (struct buffer){start, (u32)length, true};
    }
    *at = 0;
    return (struct buffer){0, 0, true};
}

static bool add_command(struct balloon *b, u32 index, u32 number)
{
    struct buffer buffer = {(u64)&b->command[index], sizeof(u32), false};
    b->command[index] = number;
    return virtq_add(b->queues[BALLOON_HINT], &buffer, 1, 0);
}

static bool give_hints(struct balloon *b)
{
    struct virtq *q = b->queues[BALLOON_HINT];
    u64 bytes;
    u32 length;
    bool any = false;
    if (!q)
        return false;
    while (virtq_pop(q, &bytes, &length))
        any = true;
    if (b->hinting >= FIRST_COMMAND && !b->hint_started) {
        b->hint_started = add_command(b, 0, b->hinting);
        b->hint_next = PAGE_SIZE;
        b->hint_ended = false;
        any = true;
    }
    while (b->hint_next && b->hinting >= FIRST_COMMAND) {
        u64 at = b->hint_next;
        struct buffer buffer = next_free(&at);
        if (buffer.length && !virtq_add(q, &buffer, 1, 1))
            break;
        b->hint_next = at;
        b->hinted += buffer.length / PAGE_SIZE;
        any = true;
    }
    if (b->hint_started && !b->hint_ended && (!b->hint_next || b->hinting < FIRST_COMMAND)) {
        b->hint_ended = add_command(b, 1, 0);
        any = true;
    }
    virtq_kick(q);
    return any;
}

static bool give_reports(struct balloon *b)
{
    struct virtq *q = b->queues[BALLOON_REPORT];
    struct buffer buffers[REPORT_PIECES];
    u64 pages, told = 0;
    u32 length;
    u16 count = 0;
    if (!q)
        return false;
    while (virtq_pop(q, &pages, &length))
        b->reported += pages;
    if (!b->report_next || virtq_in_flight(q))
        return false;
    while (count < REPORT_PIECES && b->report_next) {
        buffers[count] = next_free(&b->report_next);
        if (!buffers[count].length)
            break;
        told += buffers[count++].length / PAGE_SIZE;
    }
    if (!count)
        return false;
    virtq_add(q, buffers, count, told);
    virtq_kick(q);
    return true;
}

static void look_at_config(struct balloon *b)
{
    u32 before = b->hinting;
    b->wanted = virtio_config32(b->device, CONFIG_WANTED);
    b->short_of = 0;
    if (!b->queues[BALLOON_HINT])
        return;
    b->hinting = virtio_config32(b->device, CONFIG_COMMAND);
    if (b->hinting != before && b->hinting >= FIRST_COMMAND)
        b->hint_started = false;
}

static void service(struct virtio *device)
{
    struct balloon *b = device->driver;
    bool again;
    if (virtio_config_changed(device))
        look_at_config(b);
    do {
        again = false;
        while (change_size(b) | take_answers(b) | give_hints(b) | give_reports(b))
            ;
        for (u32 role = 0; role < BALLOON_ROLES; role++)
            again |= b->queues[role] && !virtq_interrupts(b->queues[role], true);
    } while (again);
}

static bool start(struct balloon *b)
{
    static const u64 features[BALLOON_ROLES] = {0, 0, F_STATS, F_HINT, F_REPORT};
    struct virtio *device = b->device;
    u64 wanted = F_MUST_TELL | F_STATS | F_ON_OOM | F_REPORT | (command_line_has("nohints") ? 0 : F_HINT);
    u16 index = 0;
    if (!virtio_begin(device, wanted))
        return false;
    for (u32 role = 0; role < BALLOON_ROLES; role++) {
        b->queues[role] = NULL;
        if (features[role] && !(device->features & features[role]))
            continue;
        if (!(b->queues[role] = virtio_queue(device, index++, HINT_BUFFERS, role == BALLOON_REPORT ? REPORT_PIECES : 1)))
            return false;
    }
    virtio_ready(device);
    look_at_config(b);
    virtio_set_config32(device, CONFIG_ACTUAL, 0);
    if (b->queues[BALLOON_STATS])
        answer(b);
    device->service = service;
    service(device);
    return true;
}

static struct balloon *make(struct virtio *device)
{
    struct balloon *b = (struct balloon *)page_alloc(1);
    u64 limit = machine.ram_bytes / PAGE_SIZE, memory = dma_alloc(limit * sizeof(u32) / PAGE_SIZE + 1), pages = page_alloc(3);
    if (!b || !memory || !pages) {
        print("balloon: no memory for its lists\n");
        return NULL;
    }
    _Static_assert(sizeof *b + STATS * STAT_BYTES + 64 <= PAGE_SIZE, "all in a page");
    _Static_assert(BALLOON_PAGES * sizeof(u32) == PAGE_SIZE, "numbers in a page");
    *b = (struct balloon){
        .device = device,
        .numbers = {(u32 *)pages, (u32 *)(pages + PAGE_SIZE)},
        .stats = (u8 *)(pages + 2 * PAGE_SIZE),
        .command = (u32 *)(pages + 2 * PAGE_SIZE + 1024),
        .held = (u32 *)memory,
        .limit = limit,
    };
    device->driver = b;
    return b;
}

struct balloon *balloon_open(u64 number)
{
    struct virtio *device = virtio_find(VIRTIO_BALLOON, number);
    struct balloon *b = device ? device->driver : NULL;
    if (!device || (!b && !(b = make(device))))
        return NULL;
    if (device->running && !(virtio_status(device) & STATUS_NEEDS_RESET))
        return b;
    /* From the beginning: the device forgets what it had. */
    while (b->actual)
        ram_return((u64)b->held[--b->actual] * PAGE_SIZE);
    b->moving = b->hint_next = b->report_next = 0;
    b->hint_started = false;
    return start(b) ? b : NULL;
}

bool balloon_settled(const struct balloon *b)
{
    return !b->moving && (b->actual == b->wanted || (b->actual < b->wanted && b->short_of)) && !b->report_next &&
           !(b->queues[BALLOON_REPORT] && virtq_in_flight(b->queues[BALLOON_REPORT]));
}

void balloon_report(struct balloon *b)
{
    b->report_next = PAGE_SIZE;
    service(b->device);
}

void balloon_inflate_raw(struct balloon *b, u32 first, u32 count)
{
    u64 token;
    u32 length;
    struct virtq *q = b->queues[BALLOON_INFLATE];
    for (u32 i = 0; i < count && i < BALLOON_PAGES; i++)
        b->numbers[BALLOON_INFLATE][i] = first + i;
    move_pages(b, BALLOON_INFLATE, min_u64(count, BALLOON_PAGES));
    while (!virtq_pop(q, &token, &length) && !q->broken && !(virtio_status(b->device) & STATUS_NEEDS_RESET))
        cpu_relax();
    b->moving = 0;
}
