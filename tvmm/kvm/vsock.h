/* A socket device's queues (Virtio 1.3, 5.10), served by one thread: streams between the rings and unix sockets.
 *
 * Data is never copied here as long as both sides keep up: what the guest sends is written from guest memory to the
 * connection's socket, what comes from there is read into guest memory behind its header. What a socket does not take at
 * the moment waits in a buffer of the connection, which has room for as much as the guest has been given credit for. A guest
 * that sends more than that loses the connection. In the other direction nothing is buffered: without the guest's credit
 * nothing is read.
 *
 * Each bound on what a guest or a client can cause is a constant here. A guest cannot make the server hold more than
 * TVMM_VSOCK_CONNECTIONS connections, their buffers (TVMM_VSOCK_BUDGET and a small one for each) and TVMM_VSOCK_REPLIES
 * resets for packets of no connection: while those wait for receive buffers, nothing more is taken from it.
 *
 * All of it belongs to the server's thread, but for the counters, which anybody may read.
 */
#ifndef TVMM_VSOCK_H
#define TVMM_VSOCK_H

#include "serve.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#define TVMM_VSOCK_HEADER 44u
#define TVMM_VSOCK_HOST_CID 2u
#define TVMM_VSOCK_CONNECTIONS 1024u
/* Credit of a connection in bytes: the large one while all of them together are in the budget, the small one behind. */
#define TVMM_VSOCK_BUFFER (256u << 10)
#define TVMM_VSOCK_BUFFER_SMALL (32u << 10)
#define TVMM_VSOCK_BUDGET (64u << 20)
#define TVMM_VSOCK_REPLIES 128u
/* Chains of one direction before the other one has its turn, and before the driver hears of them. */
#define TVMM_VSOCK_TURN 64u
/* Bytes that are read from a socket before the next one has its turn. */
#define TVMM_VSOCK_READ_MAX (64u << 10)
#define TVMM_VSOCK_IOVECS 1024u
#define TVMM_VSOCK_BUCKETS 2048u
/* How long a guest's request waits for a listener whose queue is full, and how often that is tried. */
#define TVMM_VSOCK_KNOCK_MS 2000u
#define TVMM_VSOCK_KNOCK_EVERY_MS 2u

enum { TVMM_VSOCK_RX, TVMM_VSOCK_TX, TVMM_VSOCK_EVENT, TVMM_VSOCK_QUEUES };

enum { VSOCK_STREAM = 1 };

enum {
    VSOCK_OP_REQUEST = 1,
    VSOCK_OP_RESPONSE,
    VSOCK_OP_RST,
    VSOCK_OP_SHUTDOWN,
    VSOCK_OP_RW,
    VSOCK_OP_CREDIT_UPDATE,
    VSOCK_OP_CREDIT_REQUEST,
};

/* Flags of SHUTDOWN: whoever says it receives, or sends, no more. */
enum { VSOCK_NO_RECEIVE = 1, VSOCK_NO_SEND = 2, VSOCK_NOTHING = 3 };

/* As it is in guest memory; little-endian, as every host that has KVM for x86. */
struct vsock_packet {
    uint64_t src_cid, dst_cid;
    uint32_t src_port, dst_port, length;
    uint16_t type, op;
    uint32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

/* FREE: not in use. KNOCKING: the guest's request waits for a listener with a full queue. CALLED: the guest has been sent
 * a request, or will be. OPEN: streams. LINGERING: the host's side is gone and the guest was told; it has to answer by a
 * reset. DEAD: the guest is to get a reset. DRAINING: the guest's side is gone, and what it sent is passed on; not found
 * by its ports any more. */
enum {
    VSOCK_FREE,
    VSOCK_KNOCKING,
    VSOCK_CALLED,
    VSOCK_OPEN,
    VSOCK_LINGERING,
    VSOCK_DEAD,
    VSOCK_DRAINING,
};

/* Packets that a connection owes the guest. */
enum {
    VSOCK_OWES_REQUEST = 1,
    VSOCK_OWES_RESPONSE = 2,
    VSOCK_OWES_CREDIT = 4,
    VSOCK_ASKS_CREDIT = 8,
    VSOCK_OWES_SHUTDOWN = 16,
};

#define VSOCK_NONE UINT32_MAX
/* Ports of the host's end when it begins: apart from those that anybody chooses. */
#define VSOCK_FIRST_HOST_PORT (1u << 30)
#define VSOCK_LAST_HOST_PORT ((1u << 31) - 1)

/* Counts of bytes go round at 2^32, as those in packets do. `received` and `forwarded` are the guest's bytes, and between
 * them is what waits in the buffer; `told` is the last `forwarded` that the guest knows of. `sent` are those to the guest,
 * which has said `peer_alloc` and `peer_forwarded`. */
struct vsock_conn {
    uint32_t state, generation;
    int fd;
    uint32_t guest_port, host_port;
    uint32_t next_in_bucket, next_waiting;
    uint32_t waits, turn;      /* in the list of those that have something for the guest; looked at in this turn */
    uint32_t owes;
    uint32_t readable;         /* the socket may have something: a read that found nothing says no */
    uint32_t starved;          /* it had, and the guest gave no credit; the guest has been asked */
    uint32_t guest_shut, host_shut;
    uint32_t sent, peer_alloc, peer_forwarded;
    uint32_t received, forwarded, told, alloc;
    uint32_t head;             /* of the ring that `buffer` is */
    uint8_t *buffer;
    uint64_t deadline_ns;      /* KNOCKING */
};

/* `no_credit` connections were reset because the guest sent more than it may, `malformed` packets dropped, `strays` answered
 * by a reset. `buffered`: bytes that a socket did not take at once; `starved`: waits for the guest's credit. `refused`: the
 * guest's requests without a listener, `declined`: the host's that the guest refused, `crowded`: those of either side
 * that met a full table. */
struct tvmm_vsock_counters {
    uint64_t rx_packets, rx_bytes, rx_turns, tx_packets, tx_bytes, tx_turns;
    uint64_t by_guest, by_host, refused, declined, crowded, ended;
    uint64_t no_credit, malformed, strays, resets_sent, resets_received;
    uint64_t buffered, discarded, starved, credit_updates, replies_full;
};

struct vsock_reply {
    uint64_t cid;
    uint32_t host_port, guest_port;
    uint16_t type;
};

struct tvmm_vsock {
    struct tvmm_served queues[TVMM_VSOCK_QUEUES];
    struct tvmm_waker *waker;
    struct tvmm_batch *rx_batch, *tx_batch, *event_batch;
    struct tvmm_spin spin;
    uint64_t guest_cid;
    uint32_t queue;        /* which of `queues` the word that `serve` came back with is about */
    uint32_t bad_chain;    /* BROKEN is about a receive buffer that is none, not about the ring */
    uint32_t stopped;      /* bit for each queue that BROKEN was told of */
    uint32_t reset_due;    /* the guest has to hear that all connections are gone (5.10.6.7) */
    uint32_t connections;  /* of any state but FREE */
    struct tvmm_vsock_counters counters;
    /* the rest is not for Python */
    int epoll_fd;
    uint32_t turn, hungry, knocking, rx_first;
    uint32_t rx_pushed, rx_next; /* chains of rx_batch that the driver has back, that are used up */
    uint32_t reply_first, reply_count;
    uint32_t first_waiting, last_waiting, first_free;
    uint32_t next_host_port;
    uint64_t reserved;     /* bytes of large buffers that connections may come to need */
    uint64_t knocked_ns;
    uint32_t write_conn, write_count; /* what is to be written next: pieces of chains for one connection */
    uint64_t write_bytes;
    socklen_t path_length;
    struct sockaddr_un path;
    uint8_t *spare;        /* a large buffer that nobody uses */
    struct vsock_reply replies[TVMM_VSOCK_REPLIES];
    uint32_t buckets[TVMM_VSOCK_BUCKETS];
    struct vsock_conn conns[TVMM_VSOCK_CONNECTIONS];
    struct iovec write_pieces[TVMM_VSOCK_IOVECS], read_pieces[TVMM_VSOCK_IOVECS];
};

struct tvmm_vsock *tvmm_vsock_new(uint64_t guest_cid, const char *path, int *error);
void tvmm_vsock_free(struct tvmm_vsock *vsock);
int tvmm_vsock_start(struct tvmm_vsock *vsock, uint32_t index, struct tvmm_vring *ring, int kick_fd, int32_t call_fd);
void tvmm_vsock_stop(struct tvmm_vsock *vsock, uint32_t index);
void tvmm_vsock_drain(struct tvmm_vsock *vsock);
void tvmm_vsock_close_all(struct tvmm_vsock *vsock);
int tvmm_vsock_call(struct tvmm_vsock *vsock, int fd, uint32_t port);
int tvmm_vsock_serve(struct tvmm_vsock *vsock, uint32_t sleeps);

/* What a turn came to, besides the words that `serve` comes back with. */
enum { VSOCK_IDLE = -2, VSOCK_WORKED = -1 };

static inline int vsock_serves(const struct tvmm_vsock *vsock, uint32_t index)
{
    return vsock->queues[index].ring && !(vsock->stopped & 1u << index);
}

static inline uint32_t vsock_index(const struct tvmm_vsock *vsock, const struct vsock_conn *conn)
{
    return (uint32_t)(conn - vsock->conns);
}

int vsock_broken(struct tvmm_vsock *vsock, uint32_t index);
int vsock_told(struct tvmm_vsock *vsock, uint32_t index);

/* vsock_table.c: the table */
void vsock_table_init(struct tvmm_vsock *vsock);
struct vsock_conn *vsock_find(struct tvmm_vsock *vsock, uint32_t guest_port, uint32_t host_port);
struct vsock_conn *vsock_make(struct tvmm_vsock *vsock, uint32_t guest_port, uint32_t host_port, uint32_t state);
void vsock_forget(struct tvmm_vsock *vsock, struct vsock_conn *conn);
void vsock_wait_for_guest(struct tvmm_vsock *vsock, struct vsock_conn *conn);
struct vsock_conn *vsock_next_waiting(struct tvmm_vsock *vsock);
void vsock_unwait(struct tvmm_vsock *vsock, struct vsock_conn *conn);
void vsock_unhash(struct tvmm_vsock *vsock, struct vsock_conn *conn);
void vsock_close(struct vsock_conn *conn);
void vsock_drop_buffer(struct tvmm_vsock *vsock, struct vsock_conn *conn);

/* vsock_conn.c: what becomes of a connection */
int vsock_request(struct tvmm_vsock *vsock, const struct vsock_packet *packet);
void vsock_answered(struct tvmm_vsock *vsock, struct vsock_conn *conn);
void vsock_knock_again(struct tvmm_vsock *vsock);
void vsock_reset(struct tvmm_vsock *vsock, struct vsock_conn *conn);
void vsock_guest_reset(struct tvmm_vsock *vsock, struct vsock_conn *conn);
void vsock_guest_shut(struct tvmm_vsock *vsock, struct vsock_conn *conn, uint32_t flags);
void vsock_host_shut(struct tvmm_vsock *vsock, struct vsock_conn *conn, uint32_t flags);
void vsock_happened(struct tvmm_vsock *vsock, uint64_t what, uint32_t events);

/* vsock_tx.c: from the guest */
int vsock_send(struct tvmm_vsock *vsock);
void vsock_flush_buffer(struct tvmm_vsock *vsock, struct vsock_conn *conn);

/* vsock_rx.c: to the guest */
int vsock_receive(struct tvmm_vsock *vsock);
int vsock_tell_reset(struct tvmm_vsock *vsock);
void vsock_return_pool(struct tvmm_vsock *vsock);
int vsock_has_news(const struct tvmm_vsock *vsock);
uint32_t vsock_credit(const struct vsock_conn *conn);
int vsock_may_read(const struct vsock_conn *conn);

#endif
