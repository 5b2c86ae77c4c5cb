/* The table of a socket device's connections: which there are, by ports, and which have something for the guest.
 * See vsock.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "vsock.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void vsock_table_init(struct tvmm_vsock *vsock)
{
    memset(vsock->buckets, 0xff, sizeof vsock->buckets);
    for (uint32_t index = 0; index < TVMM_VSOCK_CONNECTIONS; index++) {
        vsock->conns[index].fd = -1;
        vsock->conns[index].next_in_bucket = index + 1 < TVMM_VSOCK_CONNECTIONS ? index + 1 : VSOCK_NONE;
    }
    vsock->first_free = 0;
    vsock->first_waiting = vsock->last_waiting = vsock->write_conn = VSOCK_NONE;
    vsock->next_host_port = VSOCK_FIRST_HOST_PORT;
}

static uint32_t *sock_bucket_of(struct tvmm_vsock *vsock, uint32_t guest_port, uint32_t host_port)
{
    uint64_t key = ((uint64_t)guest_port << 32 | host_port) * 0x9e3779b97f4a7c15u;
    return &vsock->buckets[(key >> 40) % TVMM_VSOCK_BUCKETS];
}

/* At most as many steps as there are connections, whatever ports the guest has thought of. */
struct vsock_conn *vsock_find(struct tvmm_vsock *vsock, uint32_t guest_port, uint32_t host_port)
{
    uint32_t index = *sock_bucket_of(vsock, guest_port, host_port);
    while (index != VSOCK_NONE) {
        struct vsock_conn *conn = &vsock->conns[index];
        if (conn->guest_port == guest_port && conn->host_port == host_port)
            return conn;
        index = conn->next_in_bucket;
    }
    return NULL;
}

void vsock_unhash(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    uint32_t *at = sock_bucket_of(vsock, conn->guest_port, conn->host_port), index = vsock_index(vsock, conn);
    while (*at != index)
        at = &vsock->conns[*at].next_in_bucket;
    *at = conn->next_in_bucket;
}

/* One that only waits for the guest to say that it is over makes room. 0: there is none. */
static int sock_evict(struct tvmm_vsock *vsock)
{
    for (uint32_t index = 0; index < TVMM_VSOCK_CONNECTIONS; index++) {
        if (vsock->conns[index].state == VSOCK_LINGERING && !vsock->conns[index].owes) {
            /* Whatever the guest says about it later is answered by a reset: there is no such connection. */
            vsock_forget(vsock, &vsock->conns[index]);
            return 1;
        }
    }
    return 0;
}

/* NULL, and counted, if the table is full. */
struct vsock_conn *vsock_make(struct tvmm_vsock *vsock, uint32_t guest_port, uint32_t host_port, uint32_t state)
{
    if (vsock->first_free == VSOCK_NONE && !sock_evict(vsock)) {
        vsock->counters.crowded++;
        return NULL;
    }
    uint32_t index = vsock->first_free, *bucket = sock_bucket_of(vsock, guest_port, host_port);
    struct vsock_conn *conn = &vsock->conns[index];
    uint32_t alloc = vsock->reserved + TVMM_VSOCK_BUFFER <= TVMM_VSOCK_BUDGET ? TVMM_VSOCK_BUFFER : TVMM_VSOCK_BUFFER_SMALL;

    vsock->first_free = conn->next_in_bucket;
    *conn = (struct vsock_conn){
        .state = state,
        .generation = conn->generation + 1,
        .fd = -1,
        .guest_port = guest_port,
        .host_port = host_port,
        .next_in_bucket = *bucket,
        .alloc = alloc,
    };
    *bucket = index;
    vsock->connections++;
    if (alloc == TVMM_VSOCK_BUFFER)
        vsock->reserved += alloc;
    return conn;
}

void vsock_drop_buffer(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    if (conn->buffer && conn->alloc == TVMM_VSOCK_BUFFER && !vsock->spare)
        vsock->spare = conn->buffer;
    else
        free(conn->buffer);
    conn->buffer = NULL;
    conn->head = 0;
}

void vsock_close(struct vsock_conn *conn)
{
    if (conn->fd >= 0)
        close(conn->fd);
    conn->fd = -1;
    conn->readable = 0;
}

void vsock_unwait(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    uint32_t index = vsock_index(vsock, conn), before = VSOCK_NONE;
    if (!conn->waits)
        return;
    for (uint32_t at = vsock->first_waiting; at != index; at = vsock->conns[at].next_waiting)
        before = at;
    if (before == VSOCK_NONE)
        vsock->first_waiting = conn->next_waiting;
    else
        vsock->conns[before].next_waiting = conn->next_waiting;
    if (vsock->last_waiting == index)
        vsock->last_waiting = before;
    conn->waits = 0;
}

/* Nothing is left of it. */
void vsock_forget(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    if (conn->state == VSOCK_KNOCKING)
        vsock->knocking--;
    if (conn->state != VSOCK_DRAINING)
        vsock_unhash(vsock, conn);
    vsock_unwait(vsock, conn);
    vsock_close(conn);
    vsock_drop_buffer(vsock, conn);
    if (conn->alloc == TVMM_VSOCK_BUFFER)
        vsock->reserved -= conn->alloc;
    conn->state = VSOCK_FREE;
    conn->generation++;
    conn->next_in_bucket = vsock->first_free;
    vsock->first_free = vsock_index(vsock, conn);
    vsock->connections--;
    vsock->counters.ended++;
}

/* --- who has something for the guest ------------------------------------------------------------------------------ */

void vsock_wait_for_guest(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    uint32_t index = vsock_index(vsock, conn);
    if (conn->waits)
        return;
    conn->waits = 1;
    conn->next_waiting = VSOCK_NONE;
    if (vsock->last_waiting == VSOCK_NONE)
        vsock->first_waiting = index;
    else
        vsock->conns[vsock->last_waiting].next_waiting = index;
    vsock->last_waiting = index;
}

/* The one that has waited longest, which waits no more. NULL: nobody does. */
struct vsock_conn *vsock_next_waiting(struct tvmm_vsock *vsock)
{
    uint32_t index = vsock->first_waiting;
    if (index == VSOCK_NONE)
        return NULL;
    struct vsock_conn *conn = &vsock->conns[index];
    vsock->first_waiting = conn->next_waiting;
    if (vsock->first_waiting == VSOCK_NONE)
        vsock->last_waiting = VSOCK_NONE;
    conn->waits = 0;
    return conn;
}
