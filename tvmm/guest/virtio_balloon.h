/*
 * The virtio memory balloon (5.5). Once open it is served from irq_poll(), whatever command runs: it takes as many pages
 * out of the free RAM as the host wants, from the top down, answers when statistics are asked for, and tells of free
 * pages while the guest is migrated.
 */
#ifndef GUEST_VIRTIO_BALLOON_H
#define GUEST_VIRTIO_BALLOON_H

#include "virtio.h"

enum { BALLOON_INFLATE, BALLOON_DEFLATE, BALLOON_STATS, BALLOON_HINT, BALLOON_REPORT, BALLOON_ROLES };

#define BALLOON_PAGES 1024 /* page numbers in one request */

struct balloon {
    struct virtio *device;
    struct virtq *queues[BALLOON_ROLES]; /* NULL: not there */
    u32 *numbers[2];   /* of inflate and deflate: BALLOON_PAGES of them */
    u8 *stats;
    u32 *command;      /* two: the number that is answered, and 0 */
    u32 *held;         /* page numbers in the balloon, in the order in which they came */
    u64 limit;         /* of them */
    u64 actual, moving;
    u32 wanted, hinting; /* as the configuration has them */
    u64 hint_next;     /* address of the next free page to be told of; 0: none */
    bool hint_started, hint_ended;
    u64 hinted, reported, answers, short_of; /* pages, pages, answers, times that no page was free */
    u64 report_next;
};

struct balloon *balloon_open(u64 number); /* NULL, with a line printed, if there is none or it does not work */
bool balloon_settled(const struct balloon *b);
void balloon_report(struct balloon *b); /* begins to tell of all free pages */
void balloon_inflate_raw(struct balloon *b, u32 first, u32 count); /* numbers that may be of no page of ours */

#endif
