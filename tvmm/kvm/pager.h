/* The pager: guest RAM of which pages are still at the source of a migration, with a guest that runs on it.
 *
 * A page is absent, on its way into memory (claimed), or here (claimed and received). Absent pages are not mapped, and
 * userfaultfd reports who touches one. They come on two ways: pushed by lanes, in whatever order, and urgent, because
 * somebody waits. Whoever has a page's bytes claims its bit and only then puts them into memory: a page goes into memory
 * once, and what is here is the guest's and never written again, also where the guest has given it back to the host.
 *
 * A request, from destination to source, has 16 bytes, little endian:
 *
 *     0 magic u32    4 block u16    6 zero u16    8 first page u32    12 count u32
 *
 * What answers it are frames of lanes.h, of the kinds PAGES and ZEROS, on the same connection, in the source's order and
 * with other pages among them. Each page is asked for once on a connection.
 *
 * Everything is decided here and without the interpreter lock: who waits for a page may hold it. */
#ifndef TVMM_PAGER_H
#define TVMM_PAGER_H

#include "histogram.h"
#include "lanes.h"

#include <pthread.h>

#define TVMM_REQUEST_MAGIC 0x51505654u /* "TVPQ" */
#define TVMM_REQUEST_BYTES 16u
/* Pages in one request. A peer that asks for more is refused, so that one request cannot keep the source busy. */
#define TVMM_REQUEST_PAGES_MAX 256u
/* Requests that wait for room in the connection. */
#define TVMM_REQUESTS 1024u
/* Pages put into memory with one call: who waits for one of them is woken by the end of the call. */
#define TVMM_PLACE_RUN 32u
/* Faults that are timed at once. */
#define TVMM_WAITS 256u
/* Bytes taken from the connection at once. */
#define TVMM_PAGER_BUFFER (160u << 10)
/* And of them put into memory before the next look for faults. */
#define TVMM_PAGER_PIECE (32u << 10)

enum tvmm_pager_stop {
    TVMM_PAGER_WOKEN,
    TVMM_PAGER_COMPLETE, /* all is here */
    TVMM_PAGER_LOST,     /* the connection ended or broke: errno in `failure`, 0 for an end */
    TVMM_PAGER_REFUSED,  /* what came is no frame: the intake has why */
    TVMM_PAGER_RELEASED,
    TVMM_PAGER_FAILED, /* the host does not do its part: errno in `failure` */
};

struct tvmm_pager_counters {
    uint64_t faults;     /* read from userfaultfd */
    uint64_t requests;   /* pages asked for */
    uint64_t urgent;     /* pages put into memory by the serving thread */
    uint64_t pushed;     /* pages put into memory by lanes */
    uint64_t duplicates; /* pages that came and were here */
    uint64_t returned;   /* faults at pages that were here and had been given back to the host: zeros */
};

struct tvmm_wait {
    uint32_t block, late;
    uint64_t page, since_ns;
};

struct tvmm_pager {
    struct tvmm_ram_pages *ram;
    struct tvmm_bitmap *claimed, *received, *requested;
    const uint8_t *paged; /* by block: whether its pages may be absent */
    int uffd, nudge_fd;
    uint32_t released, overwriting;
    uint64_t remaining;
    struct tvmm_pager_counters counters;
    /* Of the serving thread. */
    int32_t fd, failure;
    uint32_t again, again_block;
    uint64_t again_word;
    uint32_t out_start, out_end, in_start, in_end; /* bytes */
    struct tvmm_intake intake;
    uint8_t out[TVMM_REQUESTS * TVMM_REQUEST_BYTES];
    uint8_t in[TVMM_PAGER_BUFFER];
    /* Of everybody, under the lock. */
    pthread_mutex_t lock;
    struct tvmm_histogram service;
    uint32_t waits_count;
    struct tvmm_wait waits[TVMM_WAITS];
};

struct tvmm_pager *tvmm_pager_new(struct tvmm_ram_pages *ram, struct tvmm_bitmap *claimed, struct tvmm_bitmap *received,
                                  struct tvmm_bitmap *requested, const uint8_t *paged, int uffd, int *error);
void tvmm_pager_free(struct tvmm_pager *pager);
int tvmm_pager_expect(struct tvmm_pager *pager, const struct tvmm_bitmap *bitmap);
int tvmm_pager_place(struct tvmm_pager *pager, uint32_t block, const uint32_t *pages, uint32_t count, const uint8_t *from,
                     int urgent);
enum tvmm_pager_stop tvmm_pager_serve(struct tvmm_pager *pager, int fd, struct tvmm_waker *waker);
void tvmm_pager_release(struct tvmm_pager *pager);
void tvmm_pager_touch(const struct tvmm_pager *pager, uint32_t block, uint64_t offset, uint64_t length);
/* For pager_serve.c. */
void tvmm_pager_settle(struct tvmm_pager *pager, uint32_t block, uint64_t page);
int tvmm_pager_give_back(struct tvmm_pager *pager, uint32_t block, uint64_t page);

static inline int tvmm_pager_has(const struct tvmm_pager *pager, uint32_t block) { return pager->paged[block]; }

static inline int tvmm_bit(const struct tvmm_bitmap *bitmap, uint32_t block, uint64_t page)
{
    return (int)(__atomic_load_n(&bitmap->blocks[block].words[page / 64], __ATOMIC_SEQ_CST) >> page % 64 & 1);
}

#endif
