/* The engines that make steps by plain system calls: on the server's thread, and on a pool of threads. See blk.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "blk.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

/* --- on the server's thread --------------------------------------------------------------------------------------- */

static int blk_sync_open(struct tvmm_blk *blk)
{
    (void)blk;
    return 0;
}

static void blk_sync_close(struct tvmm_blk *blk) { (void)blk; }

static int blk_sync_start(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    request->result = tvmm_blk_execute(blk, &request->step);
    return 0;
}

static int blk_sync_nothing(struct tvmm_blk *blk)
{
    (void)blk;
    return 0;
}

static uint32_t blk_sync_waits(struct tvmm_blk *blk, struct pollfd *waits)
{
    (void)blk;
    (void)waits;
    return 0;
}

const struct tvmm_blk_engine tvmm_blk_sync_engine = {
    blk_sync_open, blk_sync_close, blk_sync_start, blk_sync_nothing, blk_sync_nothing, blk_sync_waits, NULL,
};

/* --- on a pool of threads ----------------------------------------------------------------------------------------- */

/* `todo` and `done` are lists with their last elements. Threads are started when there is work and nobody free. */
struct blk_pool {
    const struct tvmm_blk *blk;
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct tvmm_blk_request *todo, *todo_last, *done, *done_last;
    int event_fd, quit;
    uint32_t threads, todo_count, idle;
    pthread_t ids[TVMM_BLK_THREADS_MAX];
};

static void blk_pool_append(struct tvmm_blk_request **first, struct tvmm_blk_request **last,
                            struct tvmm_blk_request *request)
{
    request->next = NULL;
    if (*first)
        (*last)->next = request;
    else
        __atomic_store_n(first, request, __ATOMIC_RELEASE);
    *last = request;
}

static void *blk_pool_work(void *argument)
{
    struct blk_pool *pool = argument;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (!pool->todo && !pool->quit) {
            pool->idle++;
            pthread_cond_wait(&pool->work, &pool->lock);
            pool->idle--;
        }
        if (!pool->todo)
            break;
        struct tvmm_blk_request *request = pool->todo;
        pool->todo = request->next;
        pool->todo_count--;
        pthread_mutex_unlock(&pool->lock);
        request->result = tvmm_blk_execute(pool->blk, &request->step);
        pthread_mutex_lock(&pool->lock);
        int first = !pool->done;
        blk_pool_append(&pool->done, &pool->done_last, request);
        if (first)
            eventfd_write(pool->event_fd, 1);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static int blk_pool_open(struct tvmm_blk *blk)
{
    struct blk_pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return -ENOMEM;
    pool->blk = blk;
    pool->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (pool->event_fd < 0) {
        int error = -errno;
        free(pool);
        return error;
    }
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    blk->engine_state = pool;
    return 0;
}

static void blk_pool_close(struct tvmm_blk *blk)
{
    struct blk_pool *pool = blk->engine_state;
    pthread_mutex_lock(&pool->lock);
    pool->quit = 1;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (uint32_t index = 0; index < pool->threads; index++)
        pthread_join(pool->ids[index], NULL);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    close(pool->event_fd);
    free(pool);
}

/* A read that the page cache has is not worth the way to another thread. */
static int blk_pool_peek(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    const struct tvmm_blk_step *step = &request->step;
    if (step->call != TVMM_BLK_CALL_READ || blk->no_peek || blk->setup.fd != blk->setup.plain_fd)
        return 0;
    int64_t result =
        preadv2(blk->setup.fd, step->iovecs, (int)step->iovec_count, (off_t)step->offset, RWF_NOWAIT);
    if (result < 0 && errno == EOPNOTSUPP)
        blk->no_peek = 1;
    if (result < 0)
        return 0;
    request->result = result;
    blk->counters.cached++;
    return 1;
}

static int blk_pool_start(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    struct blk_pool *pool = blk->engine_state;
    if (blk_pool_peek(blk, request))
        return 0;
    pthread_mutex_lock(&pool->lock);
    if (pool->todo_count >= pool->idle && pool->threads < TVMM_BLK_THREADS_MAX
        && !pthread_create(&pool->ids[pool->threads], NULL, blk_pool_work, pool))
        pool->threads++;
    if (!pool->threads) {
        pthread_mutex_unlock(&pool->lock);
        return blk_sync_start(blk, request);
    }
    blk_pool_append(&pool->todo, &pool->todo_last, request);
    pool->todo_count++;
    pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    return 1;
}

static int blk_pool_reap(struct tvmm_blk *blk)
{
    struct blk_pool *pool = blk->engine_state;
    eventfd_t count;
    int reaped = 0;

    if (!__atomic_load_n(&pool->done, __ATOMIC_ACQUIRE))
        return 0;
    pthread_mutex_lock(&pool->lock);
    /* Under the lock: the descriptor is readable if and only if there is a list. */
    if (eventfd_read(pool->event_fd, &count) < 0)
        count = 0;
    struct tvmm_blk_request *request = pool->done;
    __atomic_store_n(&pool->done, NULL, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&pool->lock);
    while (request) {
        struct tvmm_blk_request *next = request->next;
        tvmm_blk_returned(blk, request, request->result);
        request = next;
        reaped++;
    }
    return reaped;
}

static uint32_t blk_pool_waits(struct tvmm_blk *blk, struct pollfd *waits)
{
    *waits = (struct pollfd){.fd = ((const struct blk_pool *)blk->engine_state)->event_fd, .events = POLLIN};
    return blk->at_engine != 0;
}

const struct tvmm_blk_engine tvmm_blk_threads_engine = {
    blk_pool_open, blk_pool_close, blk_pool_start, blk_sync_nothing, blk_pool_reap, blk_pool_waits,
    NULL,
};
