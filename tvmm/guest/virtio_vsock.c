/* The socket driver: packets, credit, connections. */
#include "virtio_vsock.h"
#include "clock.h"
#include "console.h"
#include "irq.h"
#include "machine.h"

#define SEND_TIMEOUT_MS 5000
#define FIRST_PORT      1024
#define EVENTS          4

_Static_assert(sizeof(struct vsock_packet) == VSOCK_HEADER, "the header of 5.10.6");

const u8 *vsock_pattern(u64 offset)
{
    static u8 *pattern;
    if (!pattern) {
        pattern = (u8 *)dma_alloc(2 * VSOCK_PATTERN / PAGE_SIZE);
        for (u32 i = 0; pattern && i < 2 * VSOCK_PATTERN; i++)
            pattern[i] = (u8)(i ^ i >> 8);
    }
    return pattern + offset % VSOCK_PATTERN;
}

static u64 rx_buffer(const struct vsock *v, u64 token) { return v->rx_memory + token * VSOCK_BYTES; }
static u64 tx_buffer(const struct vsock *v, u64 token) { return v->tx_memory + token * VSOCK_BYTES; }

static void post(struct vsock *v, u64 token)
{
    struct buffer buffer = {rx_buffer(v, token), VSOCK_BYTES, true};
    virtq_add(v->rx, &buffer, 1, token);
}

static void post_event(struct vsock *v, u64 token)
{
    struct buffer buffer = {v->event_memory + 8 * token, 8, true};
    virtq_add(v->events, &buffer, 1, token);
}

static bool start(struct vsock *v)
{
    struct virtio *device = v->device;
    if (!virtio_begin(device, FEATURE(0)))
        return false;
    v->rx = virtio_queue(device, 0, VSOCK_BUFFERS, 1);
    v->tx = virtio_queue(device, 1, VSOCK_BUFFERS, 2);
    v->events = virtio_queue(device, 2, EVENTS, 1);
    if (!v->rx || !v->tx || !v->events)
        return false;
    if (!v->rx_memory) {
        v->rx_memory = dma_alloc(VSOCK_BUFFERS * VSOCK_BYTES / PAGE_SIZE);
        v->tx_memory = dma_alloc(VSOCK_BUFFERS * VSOCK_BYTES / PAGE_SIZE);
        v->event_memory = page_alloc(1);
    }
    if (!v->rx_memory || !v->tx_memory || !v->event_memory || !vsock_pattern(0)) {
        print("vsock: no memory for its buffers\n");
        return false;
    }
    for (u32 i = 0; i < VSOCK_CONNS; i++)
        v->conns[i] = (struct vsock_conn){.kept = v->conns[i].kept};
    v->cid = virtio_config64(device, 0);
    v->next_port = FIRST_PORT;
    v->listening = false;
    virtio_ready(device);
    for (v->tx_free_count = 0; v->tx_free_count < v->tx->size; v->tx_free_count++)
        v->tx_free[v->tx_free_count] = v->tx_free_count;
    for (u16 i = 0; i < v->rx->size; i++)
        post(v, i);
    for (u16 i = 0; i < v->events->size; i++)
        post_event(v, i);
    virtq_kick(v->rx);
    virtq_kick(v->events);
    return true;
}

struct vsock *vsock_open(void)
{
    struct virtio *device = virtio_find(VIRTIO_VSOCK, 0);
    if (!device)
        return NULL;
    struct vsock *v = device->driver;
    if (!v) {
        device->driver = v = (struct vsock *)page_alloc((sizeof *v + PAGE_SIZE - 1) / PAGE_SIZE);
        if (!v)
            return NULL;
        v->device = device;
    }
    if (!device->running || virtio_status(device) & STATUS_NEEDS_RESET)
        return start(v) ? v : NULL;
    vsock_poll(v);
    return v;
}

/* --- sending ------------------------------------------------------------------------------------------------------ */

static bool reclaim(struct vsock *v)
{
    u64 token;
    u32 length;
    while (virtq_pop(v->tx, &token, &length))
        v->tx_free[v->tx_free_count++] = (u16)token;
    return v->tx_free_count;
}

bool vsock_send_packet(struct vsock *v, const struct vsock_packet *packet, const void *data)
{
    u64 end = rdtsc() + ms_to_tsc(SEND_TIMEOUT_MS);
    while (!v->tx_free_count && !reclaim(v)) {
        virtq_kick(v->tx);
        if (rdtsc() >= end || v->tx->broken)
            return false;
        cpu_relax();
    }
    u16 slot = v->tx_free[--v->tx_free_count];
    u8 *memory = (u8 *)tx_buffer(v, slot);
    memcpy(memory, packet, VSOCK_HEADER);
    if (packet->length && data)
        memcpy(memory + VSOCK_HEADER, data, packet->length);
    struct buffer buffer = {(u64)memory, VSOCK_HEADER + (u32)min_u64(packet->length, VSOCK_DATA), false};
    return virtq_add(v->tx, &buffer, 1, slot);
}

static bool tell(struct vsock *v, struct vsock_conn *conn, u16 op, u32 flags, const void *data, u32 length)
{
    conn->told = conn->forwarded;
    return vsock_send_packet(v, &(struct vsock_packet){v->cid, VSOCK_HOST, conn->port, conn->host_port, length, 1, op,
                                                       flags, conn->alloc, conn->forwarded}, data);
}

u32 vsock_room(const struct vsock_conn *conn)
{
    u32 under_way = conn->sent - conn->peer_forwarded;
    if (conn->state != VSOCK_OPEN || conn->shut & VSOCK_NO_SEND || conn->peer_shut & VSOCK_NO_RECEIVE)
        return 0;
    return under_way < conn->peer_alloc ? conn->peer_alloc - under_way : 0;
}

u32 vsock_write(struct vsock *v, struct vsock_conn *conn, const void *data, u32 length)
{
    u32 bytes = (u32)min_u64(min_u64(length, vsock_room(conn)), VSOCK_DATA);
    if (!bytes || (!v->tx_free_count && !reclaim(v)))
        return 0;
    if (!tell(v, conn, VSOCK_RW, 0, data, bytes))
        return 0;
    conn->sent += bytes;
    return bytes;
}

/* Credit for what has been read, when it is a good part of all. */
static void give_credit(struct vsock *v, struct vsock_conn *conn)
{
    if (conn->state == VSOCK_OPEN && conn->forwarded - conn->told >= conn->alloc / 4)
        tell(v, conn, VSOCK_CREDIT_UPDATE, 0, NULL, 0);
}

u32 vsock_read(struct vsock *v, struct vsock_conn *conn, void *to, u32 limit)
{
    u32 bytes = (u32)min_u64(limit, conn->received - conn->forwarded), at = conn->forwarded % VSOCK_KEPT;
    u32 first = (u32)min_u64(bytes, VSOCK_KEPT - at);
    memcpy(to, conn->kept + at, first);
    memcpy((u8 *)to + first, conn->kept, bytes - first);
    conn->forwarded += bytes;
    give_credit(v, conn);
    return bytes;
}

void vsock_shut(struct vsock *v, struct vsock_conn *conn, u32 flags)
{
    if (conn->state != VSOCK_OPEN || (conn->shut & flags) == flags)
        return;
    conn->shut |= flags;
    tell(v, conn, VSOCK_SHUTDOWN, conn->shut, NULL, 0);
}

void vsock_forget(struct vsock *v, struct vsock_conn *conn)
{
    if (conn->state == VSOCK_OPEN || conn->state == VSOCK_CONNECTING)
        tell(v, conn, VSOCK_RST, 0, NULL, 0);
    conn->state = VSOCK_FREE;
}

/* --- connections -------------------------------------------------------------------------------------------------- */

static struct vsock_conn *find(struct vsock *v, u32 port, u32 host_port)
{
    for (u32 i = 0; i < VSOCK_CONNS; i++)
        if (v->conns[i].state != VSOCK_FREE && v->conns[i].port == port && v->conns[i].host_port == host_port)
            return &v->conns[i];
    return NULL;
}

static struct vsock_conn *make(struct vsock *v, u32 port, u32 host_port, u32 state, bool keep)
{
    for (u32 i = 0; i < VSOCK_CONNS; i++) {
        struct vsock_conn *conn = &v->conns[i];
        if (conn->state != VSOCK_FREE)
            continue;
        u8 *kept = conn->kept;
        if (keep && !kept && !(kept = (u8 *)dma_alloc(VSOCK_KEPT / PAGE_SIZE)))
            return NULL;
        *conn = (struct vsock_conn){.state = state, .port = port, .host_port = host_port, .kept = kept,
                                    .alloc = keep ? VSOCK_KEPT : VSOCK_UNKEPT};
        return conn;
    }
    return NULL;
}

struct vsock_conn *vsock_connect(struct vsock *v, u32 host_port, bool keep)
{
    struct vsock_conn *conn = make(v, v->next_port++, host_port, VSOCK_CONNECTING, keep);
    if (conn && !tell(v, conn, VSOCK_REQUEST, 0, NULL, 0)) {
        conn->state = VSOCK_FREE;
        return NULL;
    }
    virtq_kick(v->tx);
    return conn;
}

static void take_data(struct vsock *v, struct vsock_conn *conn, const u8 *data, u32 length)
{
    if (!conn->checked)
        conn->start = rdtsc();
    if (conn->received - conn->forwarded + length > conn->alloc) {
        conn->was_reset = true;
        tell(v, conn, VSOCK_RST, 0, NULL, 0);
        conn->state = VSOCK_CLOSED;
        return;
    }
    conn->received += length;
    if (conn->alloc == VSOCK_KEPT) {
        u32 at = (conn->received - length) % VSOCK_KEPT, first = (u32)min_u64(length, VSOCK_KEPT - at);
        memcpy(conn->kept + at, data, first);
        memcpy(conn->kept, data + first, length - first);
        conn->checked += length;
        return;
    }
    if (!conn->wrong && memcmp(data, vsock_pattern(conn->checked), length))
        conn->wrong = conn->checked + 1;
    conn->checked += length;
    conn->forwarded += length;
    give_credit(v, conn);
}

static void answer_stranger(struct vsock *v, const struct vsock_packet *p)
{
    if (p->op == VSOCK_REQUEST && v->listening && p->dst_port == v->listen_port) {
        struct vsock_conn *conn = make(v, p->dst_port, p->src_port, VSOCK_OPEN, v->keeps);
        if (conn) {
            conn->peer_alloc = p->alloc;
            conn->peer_forwarded = p->forwarded;
            conn->by_host = true;
            v->accepted++;
            tell(v, conn, VSOCK_RESPONSE, 0, NULL, 0);
            return;
        }
    }
    if (p->op == VSOCK_REQUEST)
        v->refused++;
    if (p->op == VSOCK_RST)
        v->strays++;
    else
        vsock_send_packet(v, &(struct vsock_packet){p->dst_cid, p->src_cid, p->dst_port, p->src_port, 0, p->type, VSOCK_RST,
                                                    0, 0, 0}, NULL);
}

static void take(struct vsock *v, const struct vsock_packet *p, const u8 *data)
{
    struct vsock_conn *conn = find(v, p->dst_port, p->src_port);
    if (!conn || conn->state == VSOCK_CLOSED) {
        if (!conn || p->op != VSOCK_RST)
            answer_stranger(v, p);
        return;
    }
    conn->peer_alloc = p->alloc;
    conn->peer_forwarded = p->forwarded;
    switch (p->op) {
    case VSOCK_RESPONSE:
        conn->state = VSOCK_OPEN;
        break;
    case VSOCK_RW:
        take_data(v, conn, data, p->length);
        break;
    case VSOCK_CREDIT_REQUEST:
        tell(v, conn, VSOCK_CREDIT_UPDATE, 0, NULL, 0);
        break;
    case VSOCK_SHUTDOWN:
        conn->peer_shut |= p->flags;
        break;
    case VSOCK_RST:
        v->resets++;
        conn->was_reset = true;
        conn->state = VSOCK_CLOSED;
        break;
    }
}

static void take_events(struct vsock *v)
{
    u64 token;
    u32 length;
    while (virtq_pop(v->events, &token, &length)) {
        post_event(v, token);
        v->transport_resets++;
        for (u32 i = 0; i < VSOCK_CONNS; i++) {
            if (v->conns[i].state != VSOCK_FREE) {
                v->conns[i].state = VSOCK_CLOSED;
                v->conns[i].was_reset = true;
            }
        }
        v->cid = virtio_config64(v->device, 0);
    }
    virtq_kick(v->events);
}

void vsock_poll(struct vsock *v)
{
    u64 token;
    u32 length;
    reclaim(v);
    take_events(v);
    while (virtq_pop(v->rx, &token, &length)) {
        struct vsock_packet packet;
        const u8 *memory = (const u8 *)rx_buffer(v, token);
        memcpy(&packet, memory, VSOCK_HEADER);
        if (length >= VSOCK_HEADER && packet.length <= length - VSOCK_HEADER)
            take(v, &packet, memory + VSOCK_HEADER);
        else
            v->strays++;
        post(v, token);
    }
    virtq_kick(v->rx);
    virtq_kick(v->tx);
}

void vsock_wait(struct vsock *v, bool sleep)
{
    if (sleep && virtq_interrupts(v->rx, true))
        irq_sleep();
    if (sleep)
        virtq_interrupts(v->rx, false);
    vsock_poll(v);
}
