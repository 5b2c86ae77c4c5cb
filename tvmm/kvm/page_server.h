/* The source's side of pager.h: pages that the destination's guest waits for, ahead of those that lanes push.
 *
 * Server and lanes share the bitmap of what has not been sent. A page that is asked for is sent at once, also if a lane has
 * taken it, which may have megabytes before it. Behind it come pages around it that nobody has taken yet. The guest is
 * paused here for good: pages do not change. */
#ifndef TVMM_PAGE_SERVER_H
#define TVMM_PAGE_SERVER_H

#include "lanes.h"
#include "pager.h"

/* Pages around one that is asked for: a power of two up to 64. */
#define TVMM_PREFETCH_MAX 64u
/* Of them sent at once, before the next look for requests. */
#define TVMM_PREFETCH_PIECE 8u
/* Requests taken from the connection at once. */
#define TVMM_SERVER_REQUESTS 64u

enum tvmm_server_stop {
    TVMM_SERVER_WOKEN,
    TVMM_SERVER_LOST,    /* the connection ended or broke: errno in `failure`, 0 for an end */
    TVMM_SERVER_REFUSED, /* what came is no request: `refusal` */
};

enum tvmm_server_refusal {
    TVMM_REQUEST_FINE,
    TVMM_REQUEST_BAD_MAGIC,
    TVMM_REQUEST_BAD_ZERO,
    TVMM_REQUEST_BAD_BLOCK,
    TVMM_REQUEST_BAD_COUNT,
    TVMM_REQUEST_BAD_RANGE,
};

struct tvmm_server_counters {
    uint64_t requests;   /* requests */
    uint64_t pages;      /* pages asked for and sent */
    uint64_t taken;      /* of them those that a lane had taken */
    uint64_t prefetched; /* pages sent besides */
    uint64_t bytes;
};

struct tvmm_page_server {
    struct tvmm_lane_group *group;
    int32_t fd, failure;
    uint32_t refusal;
    uint64_t refused_value, refused_limit;
    uint32_t prefetch; /* pages; 0: none */
    struct tvmm_server_counters counters;
    /* Requests that have come; and the last page that was answered, with how many around it are still to be looked at. */
    uint32_t in_start, in_end;
    uint32_t near, near_block;
    uint64_t near_page;
    uint8_t in[TVMM_SERVER_REQUESTS * TVMM_REQUEST_BYTES];
    /* What is on its way to the connection. */
    struct tvmm_frame_head zero_head, normal_head;
    struct iovec pieces[TVMM_REQUEST_PAGES_MAX + 2];
    uint32_t piece, piece_count;
};

enum tvmm_server_stop tvmm_page_server_serve(struct tvmm_page_server *server, int fd, struct tvmm_waker *waker);
void tvmm_bitmap_lacking(struct tvmm_bitmap *into, const struct tvmm_bitmap *wanted, const struct tvmm_bitmap *received);

#endif
