/* The command `vsock`: streams to the host and from it. */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "virtio_vsock.h"

#define TIMEOUT_MS  10000
#define SAMPLES     65536
#define ALARM_TICKS 1000000 /* of the local APIC's clock: who sleeps looks for Ctrl-C now and then */

static bool sleeps; /* the word `irq` */

static bool timed_out(u64 start) { return rdtsc() - start >= ms_to_tsc(TIMEOUT_MS); }

/* Until the host has answered. False, with a line printed, if it does not or says no. */
static bool await_open(struct vsock *v, struct vsock_conn *conn)
{
    u64 start = rdtsc();
    while (conn->state == VSOCK_CONNECTING && !timed_out(start) && !irq_poll())
        vsock_wait(v, false);
    if (conn->state == VSOCK_OPEN)
        return true;
    print("vsock: port %u: %s\n", conn->host_port, conn->was_reset ? "refused" : "no answer");
    vsock_forget(v, conn);
    return false;
}

static struct vsock_conn *connect(struct vsock *v, u64 port, bool keep)
{
    struct vsock_conn *conn = vsock_connect(v, (u32)port, keep);
    if (!conn)
        print("vsock: no room for another connection\n");
    return conn && await_open(v, conn) ? conn : NULL;
}

static void list(struct vsock *v)
{
    u32 open = 0;
    for (u32 i = 0; i < VSOCK_CONNS; i++)
        open += v->conns[i].state == VSOCK_OPEN;
    print("vsock: cid %lu, %u open, %lu accepted, %lu refused, %lu resets, %lu strays, %lu transport resets\n", v->cid, open,
          v->accepted, v->refused, v->resets, v->strays, v->transport_resets);
}

/* --- by the host -------------------------------------------------------------------------------------------------- */

static void finish(struct vsock *v, struct vsock_conn *conn, bool print_it)
{
    if (print_it && conn->alloc == VSOCK_UNKEPT)
        print("vsock sink: %lu bytes, %s%s\n", conn->checked, conn->wrong ? "WRONG" : "right",
              conn->was_reset ? ", reset" : "");
    vsock_forget(v, conn);
}

/* What came goes back, as far as the host takes it. True if it is over. */
static bool serve(struct vsock *v, struct vsock_conn *conn)
{
    static u8 *data;
    if (!data)
        data = (u8 *)page_alloc(VSOCK_KEPT / PAGE_SIZE);
    while (conn->alloc == VSOCK_KEPT && conn->state == VSOCK_OPEN) {
        u32 bytes = (u32)min_u64(conn->received - conn->forwarded, vsock_room(conn));
        if (!bytes || v->tx_free_count < 2) /* reading may give credit */
            break;
        bytes = vsock_read(v, conn, data, (u32)min_u64(bytes, VSOCK_KEPT));
        if (!vsock_write(v, conn, data, bytes))
            print("vsock echo: %u bytes lost\n", bytes);
    }
    if (conn->state == VSOCK_CLOSED)
        return true;
    if (conn->peer_shut & VSOCK_NO_SEND && conn->received == conn->forwarded)
        vsock_shut(v, conn, VSOCK_NOTHING);
    return false;
}

/* `count` connections, one after the other or at once; 0: until Ctrl-C. */
static void listen(struct vsock *v, u64 port, u64 count, bool keep)
{
    u64 ended = 0, bytes = 0;
    v->listen_port = (u32)port;
    v->keeps = keep;
    v->listening = true;
    print("vsock: listening at port %lu\n", port);
    if (sleeps)
        lapic_timer(ALARM_TICKS, true);
    while ((!count || ended < count) && !irq_poll()) {
        vsock_wait(v, sleeps);
        for (u32 i = 0; i < VSOCK_CONNS; i++) {
            struct vsock_conn *conn = &v->conns[i];
            if (conn->state == VSOCK_FREE || !conn->by_host || !serve(v, conn))
                continue;
            ended++;
            bytes += conn->checked;
            finish(v, conn, true);
        }
        virtq_kick(v->tx);
    }
    if (sleeps)
        lapic_timer(0, false);
    v->listening = false;
    for (u32 i = 0; i < VSOCK_CONNS; i++)
        if (v->conns[i].state != VSOCK_FREE && v->conns[i].by_host)
            vsock_forget(v, &v->conns[i]);
    virtq_kick(v->tx);
    print("vsock: %lu connections, %lu bytes\n", ended, bytes);
}

/* --- to the host -------------------------------------------------------------------------------------------------- */

/* The host has to say that it is over, or reset. */
static void await_end(struct vsock *v, struct vsock_conn *conn)
{
    u64 start = rdtsc();
    while (conn->state == VSOCK_OPEN && conn->peer_shut != VSOCK_NOTHING && !timed_out(start) && !irq_poll())
        vsock_wait(v, false);
}

static void send(struct vsock *v, u64 port, u64 wanted, u64 piece)
{
    struct vsock_conn *conn = connect(v, port, false);
    u64 done = 0, start = rdtsc(), waits = 0;
    if (!conn)
        return;
    virtq_start_counts(v->tx);
    while (done < wanted && conn->state == VSOCK_OPEN && !(conn->peer_shut & VSOCK_NO_RECEIVE)) {
        u32 bytes = vsock_write(v, conn, vsock_pattern(done), (u32)min_u64(wanted - done, piece));
        done += bytes;
        if (bytes)
            continue;
        waits++;
        vsock_wait(v, false);
        if (irq_poll())
            break;
        cpu_relax();
    }
    vsock_shut(v, conn, VSOCK_NO_SEND);
    virtq_kick(v->tx);
    await_end(v, conn);
    u64 us = max_u64(tsc_to_us(rdtsc() - start), 1);
    print("vsock send %lu: %lu bytes in %lu us, %lu MiB/s, %lu kicks, %lu waits%s\n", port, done, us,
          (done * 1000000 / us) >> 20, v->tx->kicks, waits, done < wanted ? ", not all taken" : "");
    vsock_shut(v, conn, VSOCK_NOTHING);
    vsock_forget(v, conn);
    virtq_kick(v->tx);
}

static void receive(struct vsock *v, u64 port)
{
    struct vsock_conn *conn = connect(v, port, false);
    if (!conn)
        return;
    while (conn->state == VSOCK_OPEN && !(conn->peer_shut & VSOCK_NO_SEND) && !irq_poll())
        vsock_wait(v, false);
    u64 us = max_u64(tsc_to_us(rdtsc() - conn->start), 1);
    print("vsock recv %lu: %lu bytes in %lu us, %lu MiB/s, %s%s\n", port, conn->checked, us,
          (conn->checked * 1000000 / us) >> 20, conn->wrong ? "WRONG" : "right", conn->was_reset ? ", reset" : "");
    vsock_shut(v, conn, VSOCK_NOTHING);
    vsock_forget(v, conn);
    virtq_kick(v->tx);
}

static void sort(u32 *values, u64 count)
{
    for (u64 gap = count / 2; gap; gap /= 2)
        for (u64 i = gap; i < count; i++)
            for (u64 j = i; j >= gap && values[j - gap] > values[j]; j -= gap) {
                u32 other = values[j];
                values[j] = values[j - gap];
                values[j - gap] = other;
            }
}

/* Round trips of `bytes` to an echo on the host. */
static void ping(struct vsock *v, u64 port, u64 count, u64 bytes)
{
    static u32 *samples;
    static u8 *data;
    if (!samples) {
        samples = (u32 *)page_alloc(SAMPLES * sizeof *samples / PAGE_SIZE);
        data = (u8 *)page_alloc(VSOCK_KEPT / PAGE_SIZE);
    }
    struct vsock_conn *conn = connect(v, port, true);
    u64 done = 0;
    if (!conn || !samples || !data)
        return;
    if (sleeps)
        lapic_timer(ALARM_TICKS, true);
    for (; done < count && conn->state == VSOCK_OPEN; done++) {
        u64 start = rdtsc();
        u32 came = 0;
        if (vsock_write(v, conn, vsock_pattern(done), (u32)bytes) != bytes)
            break;
        virtq_kick(v->tx);
        while (came < bytes && conn->state == VSOCK_OPEN && !(conn->peer_shut & VSOCK_NO_SEND)) {
            vsock_wait(v, sleeps);
            came += vsock_read(v, conn, data + came, (u32)(bytes - came));
            if (!came && irq_poll())
                break;
        }
        if (came < bytes || memcmp(data, vsock_pattern(done), bytes))
            break;
        samples[done] = (u32)tsc_to_ns(rdtsc() - start);
    }
    if (sleeps)
        lapic_timer(0, false);
    if (done) {
        sort(samples, done);
        print("vsock ping %lu: %lu round trips of %lu bytes, ns: min %u, median %u, p99 %u, max %u%s\n", port, done, bytes,
              samples[0], samples[done / 2], samples[done * 99 / 100], samples[done - 1], done < count ? ", broken off" : "");
    } else {
        print("vsock ping %lu: no answer\n", port);
    }
    vsock_shut(v, conn, VSOCK_NOTHING);
    vsock_forget(v, conn);
    virtq_kick(v->tx);
}

/* Many at once, each sends `bytes` to an echo and reads them back. */
static void many(struct vsock *v, u64 port, u64 count, u64 bytes)
{
    static u8 *data;
    static struct vsock_conn **conns;
    u64 sent[VSOCK_CONNS] = {0}, came[VSOCK_CONNS] = {0}, wrong = 0, ended = 0, open = 0, start = rdtsc();
    if (!data) {
        data = (u8 *)page_alloc(VSOCK_KEPT / PAGE_SIZE);
        conns = (struct vsock_conn **)page_alloc(VSOCK_CONNS * sizeof *conns / PAGE_SIZE + 1);
    }
    for (u64 i = 0; i < count; i++)
        if (!(conns[i] = vsock_connect(v, (u32)port, true)))
            count = i;
    while (ended < count && !irq_poll()) {
        vsock_poll(v);
        ended = 0;
        u64 at_once = 0;
        for (u64 i = 0; i < count; i++) {
            struct vsock_conn *conn = conns[i];
            u32 read;
            at_once += conn->state == VSOCK_OPEN;
            while (sent[i] < bytes) {
                u32 wrote = vsock_write(v, conn, vsock_pattern(i + sent[i]), (u32)min_u64(bytes - sent[i], VSOCK_KEPT));
                sent[i] += wrote;
                if (!wrote)
                    break;
            }
            if (sent[i] == bytes)
                vsock_shut(v, conn, VSOCK_NO_SEND);
            while ((read = vsock_read(v, conn, data, VSOCK_KEPT))) {
                wrong += memcmp(data, vsock_pattern(i + came[i]), read) != 0;
                came[i] += read;
            }
            ended += conn->state == VSOCK_CLOSED || conn->peer_shut & VSOCK_NO_SEND;
        }
        open = max_u64(open, at_once);
    }
    u64 total = 0, whole = 0;
    for (u64 i = 0; i < count; i++) {
        total += came[i];
        whole += came[i] == bytes;
        vsock_shut(v, conns[i], VSOCK_NOTHING);
        vsock_forget(v, conns[i]);
    }
    virtq_kick(v->tx);
    print("vsock many %lu: %lu connections, %lu at once, %lu whole, %lu bytes back, %lu wrong, %lu us\n", port, count, open,
          whole, total, wrong, tsc_to_us(rdtsc() - start));
}

/* --- what no guest should do ---------------------------------------------------------------------------------------- */

/* Sends whatever room the host has said it has, until it is thrown out. */
static void flood(struct vsock *v, u64 port)
{
    struct vsock_conn *conn = connect(v, port, false);
    u64 sent = 0, start = rdtsc();
    if (!conn)
        return;
    while (conn->state == VSOCK_OPEN && !timed_out(start) && !irq_poll()) {
        conn->peer_forwarded = conn->sent; /* as if all had been taken */
        sent += vsock_write(v, conn, vsock_pattern(sent), VSOCK_DATA);
        vsock_poll(v);
    }
    print("vsock flood %lu: %s after %lu bytes\n", port, conn->was_reset ? "reset" : "still open", sent);
    vsock_forget(v, conn);
}

/* Packets that say anything. */
static void junk(struct vsock *v, u64 count, u64 seed)
{
    u64 state = seed | 1, resets = v->strays;
    for (u64 i = 0; i < count && !irq_poll(); i++) {
        u64 what = random_next(&state);
        struct vsock_packet packet = {
            .src_cid = what & 1 || what & 2 ? v->cid : what >> 40,
            .dst_cid = what & 4 || what & 8 ? VSOCK_HOST : what >> 44,
            .src_port = (u32)(what >> 8 & 7),
            .dst_port = (u32)(what >> 12 & 7),
            .length = what & 16 ? (u32)(what >> 20 & 0xfff) : what & 32 ? (u32)(what >> 24) : 0,
            .type = (u16)(what & 64 ? 1 : what >> 16),
            .op = (u16)(random_next(&state) % 9),
            .flags = (u32)random_next(&state),
            .alloc = (u32)random_next(&state),
            .forwarded = (u32)random_next(&state),
        };
        if (!vsock_send_packet(v, &packet, NULL))
            break;
        virtq_kick(v->tx);
        vsock_poll(v);
    }
    u64 start = rdtsc();
    while (virtq_in_flight(v->tx) && rdtsc() - start < ms_to_tsc(1000)) {
        u64 token;
        u32 length;
        if (virtq_pop(v->tx, &token, &length))
            v->tx_free[v->tx_free_count++] = (u16)token;
        vsock_poll(v);
    }
    print("vsock junk: %lu packets, %lu resets came back\n", count, v->strays - resets);
}

bool cmd_vsock(int count, char **arguments)
{
    u64 numbers[3] = {0};
    const char *verb = count > 1 ? arguments[1] : "";
    sleeps = count > 2 && !strcmp(arguments[count - 1], "irq");
    count -= sleeps;
    if (count > 5)
        return false;
    for (int i = 2; i < count; i++)
        if (!parse_number(arguments[i], &numbers[i - 2]))
            return false;
    struct vsock *v = vsock_open();
    if (!v)
        return true;
    if (count == 1)
        list(v);
    else if (!strcmp(verb, "echo") && count >= 3)
        listen(v, numbers[0], numbers[1], true);
    else if (!strcmp(verb, "sink") && count >= 3)
        listen(v, numbers[0], numbers[1], false);
    else if (!strcmp(verb, "send") && count >= 4)
        send(v, numbers[0], numbers[1], numbers[2] ? numbers[2] : VSOCK_DATA);
    else if (!strcmp(verb, "recv") && count == 3)
        receive(v, numbers[0]);
    else if (!strcmp(verb, "ping") && count >= 4)
        ping(v, numbers[0], min_u64(numbers[1], SAMPLES), min_u64(max_u64(numbers[2], 1), VSOCK_KEPT));
    else if (!strcmp(verb, "many") && count == 5)
        many(v, numbers[0], min_u64(numbers[1], VSOCK_CONNS), numbers[2]);
    else if (!strcmp(verb, "flood") && count == 3)
        flood(v, numbers[0]);
    else if (!strcmp(verb, "junk") && count == 4)
        junk(v, numbers[0], numbers[1]);
    else
        return false;
    return true;
}
