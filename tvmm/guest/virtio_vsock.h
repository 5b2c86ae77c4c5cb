/* The socket device (5.10): streams to the host, by ports. One that polls; connections have no threads. */
#ifndef GUEST_VIRTIO_VSOCK_H
#define GUEST_VIRTIO_VSOCK_H

#include "virtio.h"

#define VSOCK_CONNS     256   /* at once */
#define VSOCK_BUFFERS   64    /* in each direction */
#define VSOCK_BYTES     32768 /* of one, with its header */
#define VSOCK_HEADER    44
#define VSOCK_DATA      (VSOCK_BYTES - VSOCK_HEADER)
#define VSOCK_KEPT      16384 /* of what is to be read by a command: a connection's room */
#define VSOCK_UNKEPT    (256 * 1024) /* the room of one that looks at data and throws it away at once */
#define VSOCK_HOST      2

enum { VSOCK_REQUEST = 1, VSOCK_RESPONSE, VSOCK_RST, VSOCK_SHUTDOWN, VSOCK_RW, VSOCK_CREDIT_UPDATE, VSOCK_CREDIT_REQUEST };
enum { VSOCK_NO_RECEIVE = 1, VSOCK_NO_SEND = 2, VSOCK_NOTHING = 3 };
enum { VSOCK_FREE, VSOCK_CONNECTING, VSOCK_OPEN, VSOCK_CLOSED };

struct vsock_packet {
    u64 src_cid, dst_cid;
    u32 src_port, dst_port, length;
    u16 type, op;
    u32 flags, alloc, forwarded;
} __attribute__((packed));

struct vsock_conn {
    u32 state, port, host_port;
    u32 peer_alloc, peer_forwarded, sent;       /* what the host has room for */
    u32 alloc, received, forwarded, told;       /* and what we have */
    u32 peer_shut, shut;
    bool was_reset, by_host;
    u8 *kept;                                   /* a ring of VSOCK_KEPT bytes from `forwarded` to `received` */
    u64 checked, wrong;                         /* of a stream that is only looked at: bytes, the first bad one + 1 */
    u64 start;                                  /* TSC, when the first byte came */
};

struct vsock {
    struct virtio *device;
    struct virtq *rx, *tx, *events;
    u64 cid;
    u64 rx_memory, tx_memory, event_memory;
    u16 tx_free[VSOCK_BUFFERS], tx_free_count;
    u32 next_port, listen_port;
    bool listening, keeps;      /* connections by the host: to be read, or only looked at */
    u64 accepted, refused, resets, strays, transport_resets;
    struct vsock_conn conns[VSOCK_CONNS];
};

struct vsock *vsock_open(void); /* NULL, with a line printed, if there is none or it fails */
void vsock_poll(struct vsock *v);
void vsock_wait(struct vsock *v, bool sleep); /* vsock_poll(); with `sleep` after an interrupt if there is nothing yet */
struct vsock_conn *vsock_connect(struct vsock *v, u32 host_port, bool keep); /* begins to; NULL: too many */
u32 vsock_room(const struct vsock_conn *conn); /* bytes that may be sent */
u32 vsock_write(struct vsock *v, struct vsock_conn *conn, const void *data, u32 length); /* as much as goes now */
u32 vsock_read(struct vsock *v, struct vsock_conn *conn, void *to, u32 limit); /* what is there now */
void vsock_shut(struct vsock *v, struct vsock_conn *conn, u32 flags);
void vsock_forget(struct vsock *v, struct vsock_conn *conn); /* resets it if it is not closed */
bool vsock_send_packet(struct vsock *v, const struct vsock_packet *packet, const void *data); /* any */
const u8 *vsock_pattern(u64 offset); /* VSOCK_PATTERN bytes of the test stream, from there on */
#define VSOCK_PATTERN 65536

#endif
