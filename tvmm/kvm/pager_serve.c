/* The thread that answers faults: see pager.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pager.h"
#include "uffd.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NO_CONNECTION (-2) /* differs from what any caller says, so that the next one begins anew */

/* The connection is another, or none: what was half sent and half read went with the old one, and what was asked for there
 * is asked for again. */
static void pager_connect(struct tvmm_pager *pager, int fd)
{
    pager->fd = fd;
    pager->out_start = pager->out_end = pager->in_start = pager->in_end = 0;
    pager->again = fd >= 0;
    pager->again_block = 0;
    pager->again_word = 0;
    uint8_t *bounce = pager->intake.bounce;
    memset(&pager->intake, 0, sizeof pager->intake);
    pager->intake.bounce = bounce;
    pager->intake.ram = pager->ram;
    pager->intake.pager = pager;
    pager->intake.urgent = 1;
    pager->intake.fd = -1;
}

static uint32_t out_room(struct tvmm_pager *pager)
{
    if (pager->out_start == pager->out_end)
        pager->out_start = pager->out_end = 0;
    return (uint32_t)(sizeof pager->out - pager->out_end) / TVMM_REQUEST_BYTES;
}

static void ask(struct tvmm_pager *pager, uint32_t block, uint64_t page)
{
    uint32_t magic = TVMM_REQUEST_MAGIC, first = (uint32_t)page, pages = 1;
    uint16_t block16 = (uint16_t)block;
    uint8_t *at = pager->out + pager->out_end;
    memcpy(at, &magic, 4);
    memcpy(at + 4, &block16, 2);
    memset(at + 6, 0, 2);
    memcpy(at + 8, &first, 4);
    memcpy(at + 12, &pages, 4);
    pager->out_end += TVMM_REQUEST_BYTES;
    pager->counters.requests++;
}

/* What was asked for on the connection before, as far as there is room for it. */
static void ask_again(struct tvmm_pager *pager)
{
    for (; pager->again_block < pager->ram->count; pager->again_block++, pager->again_word = 0) {
        uint64_t words = tvmm_bits_words(pager->ram->blocks[pager->again_block].pages);
        for (; pager->again_word < words; pager->again_word++) {
            uint64_t bits = __atomic_load_n(&pager->requested->blocks[pager->again_block].words[pager->again_word],
                                            __ATOMIC_SEQ_CST);
            if (!bits)
                continue;
            if (out_room(pager) < 64)
                return;
            bits &= ~__atomic_load_n(&pager->claimed->blocks[pager->again_block].words[pager->again_word],
                                     __ATOMIC_SEQ_CST);
            for (; bits; bits &= bits - 1)
                ask(pager, pager->again_block, 64 * pager->again_word + (uint64_t)__builtin_ctzll(bits));
        }
    }
    pager->again = 0;
}

static void note_wait(struct tvmm_pager *pager, uint32_t block, uint64_t page, uint64_t now, uint32_t late, int first)
{
    pthread_mutex_lock(&pager->lock);
    if (first && pager->waits_count < TVMM_WAITS)
        pager->waits[pager->waits_count++] =
            (struct tvmm_wait){.block = block, .page = page, .since_ns = now, .late = late};
    for (uint32_t index = 0; !first && late && index < pager->waits_count; index++)
        if (pager->waits[index].block == block && pager->waits[index].page == page)
            pager->waits[index].late = 1;
    pthread_mutex_unlock(&pager->lock);
}

/* Somebody waits for a page. 0 or -errno. */
static int fault(struct tvmm_pager *pager, uint64_t address, uint64_t now)
{
    uint32_t block = 0;
    for (; block < pager->ram->count; block++) {
        const struct tvmm_page_block *at = &pager->ram->blocks[block];
        if (pager->paged[block] && address >= (uint64_t)at->base
            && address - (uint64_t)at->base < at->pages * TVMM_PAGE)
            break;
    }
    if (block == pager->ram->count)
        return 0;
    uint64_t page = (address - (uint64_t)pager->ram->blocks[block].base) / TVMM_PAGE, bit = 1ull << page % 64;
    pager->counters.faults++;
    if (tvmm_bit(pager->received, block, page)) {
        pager->counters.returned++;
        return tvmm_pager_give_back(pager, block, page);
    }
    uint32_t claimed = (uint32_t)tvmm_bit(pager->claimed, block, page);
    uint64_t *asked = &pager->requested->blocks[block].words[page / 64];
    int first = !(tvmm_bit(pager->requested, block, page));
    /* The wait before the bit: whoever sees the bit finds the wait. */
    note_wait(pager, block, page, now, claimed, first);
    if (first) {
        __atomic_fetch_or(asked, bit, __ATOMIC_SEQ_CST);
        if (!claimed && pager->fd >= 0)
            ask(pager, block, page);
    }
    if (tvmm_bit(pager->received, block, page))
        tvmm_pager_settle(pager, block, page);
    return 0;
}

/* Pages that cannot be asked for now: their faults wait in the kernel. */
static int out_full(struct tvmm_pager *pager) { return pager->again || out_room(pager) < TVMM_UFFD_READ_MAX; }

/* How many faults there were, or -errno. */
static int take_faults(struct tvmm_pager *pager)
{
    struct tvmm_uffd_fault faults[TVMM_UFFD_READ_MAX];
    if (out_full(pager))
        return 0;
    int found = tvmm_uffd_read(pager->uffd, faults, TVMM_UFFD_READ_MAX);
    uint64_t now = found > 0 ? tvmm_now_ns() : 0;
    for (int index = 0; index < found; index++) {
        int error = fault(pager, faults[index].address, now);
        if (error)
            return error;
    }
    return found;
}

/* 1: some of it went, 0: none, -1: the connection is lost. */
static int send_requests(struct tvmm_pager *pager)
{
    if (pager->out_start == pager->out_end)
        return 0;
    ssize_t sent = send(pager->fd, pager->out + pager->out_start, pager->out_end - pager->out_start,
                        MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (sent < 0) {
        pager->failure = errno;
        return -1;
    }
    pager->out_start += (uint32_t)sent;
    return 1;
}

/* Pages that have come. 1: some, 0: none, -1 and the reason. */
static int take_pages(struct tvmm_pager *pager, enum tvmm_pager_stop *why)
{
    if (pager->in_start == pager->in_end) {
        ssize_t came = recv(pager->fd, pager->in, sizeof pager->in, MSG_DONTWAIT);
        if (came < 0 && (errno == EAGAIN || errno == EINTR))
            return 0;
        *why = TVMM_PAGER_LOST;
        if (came <= 0) {
            pager->failure = came < 0 ? errno : 0;
            return -1;
        }
        pager->in_start = 0;
        pager->in_end = (uint32_t)came;
    }
    uint64_t left = pager->in_end - pager->in_start, consumed = 0;
    const uint8_t *from = pager->in + pager->in_start;
    enum tvmm_lane_stop stop =
        tvmm_intake_take(&pager->intake, from, left < TVMM_PAGER_PIECE ? left : TVMM_PAGER_PIECE, &consumed);
    pager->in_start += (uint32_t)consumed;
    switch (stop) {
    case TVMM_LANE_STOP_MORE:
        return 1;
    case TVMM_LANE_STOP_FAILED:
        pager->failure = pager->intake.failure;
        *why = TVMM_PAGER_FAILED;
        return -1;
    default:
        *why = TVMM_PAGER_REFUSED;
        return -1;
    }
}

static void pager_sleep(struct tvmm_pager *pager, const struct tvmm_waker *waker)
{
    uint64_t nudges;
    int asking = pager->out_start != pager->out_end;
    struct pollfd all[4] = {
        {.fd = out_full(pager) ? -1 : pager->uffd, .events = POLLIN},
        {.fd = pager->nudge_fd, .events = POLLIN},
        {.fd = waker->event_fd, .events = POLLIN},
        {.fd = pager->fd, .events = (short)(POLLIN | (asking ? POLLOUT : 0))},
    };
    poll(all, 4, -1);
    if (all[1].revents && read(pager->nudge_fd, &nudges, sizeof nudges) < 0)
        return;
}

/* Answer faults until there is something for the caller to decide. `fd`: the connection, or -1: then only what needs none is
 * answered. */
enum tvmm_pager_stop tvmm_pager_serve(struct tvmm_pager *pager, int fd, struct tvmm_waker *waker)
{
    enum tvmm_pager_stop why;
    if (fd != pager->fd)
        pager_connect(pager, fd);
    pager->failure = 0;
    for (;;) {
        int released = (int)__atomic_load_n(&pager->released, __ATOMIC_SEQ_CST);
        if (released || !__atomic_load_n(&pager->remaining, __ATOMIC_SEQ_CST)) {
            /* The next connection may have the same number. */
            pager->fd = NO_CONNECTION;
            return released ? TVMM_PAGER_RELEASED : TVMM_PAGER_COMPLETE;
        }
        if (tvmm_woken(waker))
            return TVMM_PAGER_WOKEN;
        if (pager->again)
            ask_again(pager);
        int faults = take_faults(pager);
        if (faults < 0) {
            pager->failure = -faults;
            return TVMM_PAGER_FAILED;
        }
        int sent = fd >= 0 ? send_requests(pager) : 0;
        why = TVMM_PAGER_LOST;
        int came = fd >= 0 && sent >= 0 ? take_pages(pager, &why) : 0;
        if (sent < 0 || came < 0) {
            pager->fd = NO_CONNECTION;
            return why;
        }
        /* Not one look more: where lanes use the processors, who looks for nothing waits longer for its next turn. */
        if (!faults && !sent && !came)
            pager_sleep(pager, waker);
    }
}
