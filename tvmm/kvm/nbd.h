/* Connections to an NBD server in the transmission phase, and the requests of a disk's queue on them.
 *
 * A link is one connection of one queue, and what is outstanding on it. Others give it connected sockets, one after the
 * other, and hear when one is of no use any more; the queue's thread does all of the rest. So a link has two halves: what
 * is under its lock, for any thread (nbd_link.c), and what is the queue's thread's (nbd_wire.c, nbd_reply.c). The engine of
 * blk.h that has some links is in blk_nbd.c.
 *
 * Requests are sent in the order in which they were started, several in one call, with the guest's memory as it is. What
 * the server sends goes through a stage of some KiB: replies to small reads are taken out of it, dozens with one call,
 * and of a large one only the beginning; the rest is received where it belongs. Replies in guest memory before they
 * are known to belong there were considered, and rejected: a guest could write a reply of its own there.
 *
 * A connection that is lost takes nothing with it: what is outstanding is sent again, in order, on the next one. So a
 * write may be done twice, which does no harm, since the driver has not heard of the first.
 *
 * The server is not trusted. Whatever it says is loaded once and checked; what breaks a rule ends the connection, with a
 * reason in words. Data lands in the buffers of the read it belongs to or nowhere.
 */
#ifndef TVMM_NBD_H
#define TVMM_NBD_H

#include "blk.h"

#include <pthread.h>

#define TVMM_NBD_LINKS_MAX TVMM_BLK_WAITS_MAX
/* In one request or reply, whatever the server says that it takes. */
#define TVMM_NBD_PAYLOAD_MAX (1u << 30)
#define TVMM_NBD_BLOCK_MAX (64u << 10)
/* Where the server's words arrive. More than the largest thing that has to be there in one piece. */
#define TVMM_NBD_STAGE (64u << 10)
/* Of a string, says the protocol. */
#define TVMM_NBD_TEXT_MAX 4096u
/* Of an error that is told in a chunk; of kinds that are not known too. */
#define TVMM_NBD_ERROR_MAX (6u + TVMM_NBD_TEXT_MAX + 64u)
/* One read may fail at several places. A server that goes on for ever would never be heard to finish. */
#define TVMM_NBD_ERRORS_MAX 64u
/* Pieces of one read that arrived out of order, with others missing in between. */
#define TVMM_NBD_SPANS_MAX 256u
/* Reads of which at least that much is still to come are received in place. */
#define TVMM_NBD_DIRECT (16u << 10)
/* What a flush of the owner's waits for a server that does not answer. */
#define TVMM_NBD_FLUSH_PATIENCE_NS 60000000000u
#define TVMM_NBD_REASON 160u
#define TVMM_NBD_HEADER_MAX 32u

/* As the protocol has them: commands, their flags, and what an export can (its transmission flags). */
enum {
    TVMM_NBD_READ = 0,
    TVMM_NBD_WRITE = 1,
    TVMM_NBD_DISCONNECT = 2,
    TVMM_NBD_FLUSH = 3,
    TVMM_NBD_TRIM = 4,
    TVMM_NBD_ZERO = 6,
};
#define TVMM_NBD_FLAG_FUA (1u << 0)
#define TVMM_NBD_FLAG_NO_HOLE (1u << 1)
#define TVMM_NBD_FLAG_DF (1u << 2)
#define TVMM_NBD_FLAG_PAYLOAD_LENGTH (1u << 5)
#define TVMM_NBD_CAN_FLUSH (1u << 2)
#define TVMM_NBD_CAN_FUA (1u << 3)
#define TVMM_NBD_CAN_TRIM (1u << 5)
#define TVMM_NBD_CAN_ZERO (1u << 6)
#define TVMM_NBD_CAN_DF (1u << 7)

enum tvmm_nbd_state {
    TVMM_NBD_LOST, /* or there was none yet: what is started waits */
    TVMM_NBD_UP,
    TVMM_NBD_FAILING, /* what is started fails */
};

/* Of an export, as it was agreed. `flags` are the protocol's transmission flags. `minimum_block` is a power of two, and
 * `maximum_payload` has at least that many bytes. */
struct tvmm_nbd_transmission {
    uint32_t flags, structured, extended;
    uint32_t minimum_block, maximum_payload;
};

struct tvmm_nbd_span {
    uint64_t start, end;
};

/* A request under way. `request` is NULL in a link's own. `stable`: a write for a server that has no FUA: 1, a flush is to
 * follow; 2, it is that flush. Of a read the first `front` bytes are there, and those of `spans`, in order. */
struct tvmm_nbd_slot {
    struct tvmm_nbd_link *link; /* NULL: free */
    struct tvmm_nbd_slot *next, *previous;
    struct tvmm_blk_request *request;
    uint64_t cookie, offset, length;
    uint16_t command;
    uint8_t sent, sent_before, stable, header_length;
    uint64_t written; /* by the write that is being flushed */
    uint64_t covers;  /* of a flush: the file's `changed` when it was made */
    uint32_t errors;
    int32_t error;
    uint64_t front;
    struct tvmm_nbd_span *spans;
    uint32_t span_count;
    uint8_t header[TVMM_NBD_HEADER_MAX];
};

struct tvmm_nbd_link {
    /* Under the lock. `fd` is changed by the queue's thread only. */
    pthread_mutex_t lock;
    struct tvmm_waker *waker; /* NULL without a queue */
    int fd, given_fd, lost_fd;
    struct tvmm_nbd_transmission given;
    int32_t fail_error;
    uint32_t orders; /* given_fd or fail_error are news; looked at without the lock */
    uint32_t lost, hung_up;
    char reason[TVMM_NBD_REASON];
    /* The queue's thread's. */
    struct tvmm_blk *blk;
    enum tvmm_nbd_state state;
    int32_t failing;
    struct tvmm_nbd_transmission transmission;
    struct tvmm_nbd_slot *slots; /* by the lower half of cookies */
    uint32_t slot_count;
    struct tvmm_nbd_slot *first, *last; /* outstanding, in order */
    uint32_t outstanding, large;        /* `large`: reads that are received in place */
    uint64_t serial, completed;
    struct tvmm_nbd_slot *unsent; /* the first that is not sent, of which `sent_bytes` are */
    uint64_t sent_bytes;
    uint32_t blocked;
    uint32_t fresh; /* all that is outstanding was sent a moment ago: no need to look yet */
    struct tvmm_nbd_slot *filling; /* the read whose data arrives: `left` bytes, from `skip` bytes into its iovec on */
    uint64_t left;
    struct iovec *iovec;
    size_t skip;
    uint32_t last_chunk;
    struct tvmm_nbd_slot own; /* of tvmm_nbd_link_flush */
    uint32_t stage_start, stage_end;
    uint8_t stage[TVMM_NBD_STAGE];
};

/* nbd_link.c, for any thread */
struct tvmm_nbd_link *tvmm_nbd_link_new(int *error);
void tvmm_nbd_link_free(struct tvmm_nbd_link *link);
int tvmm_nbd_link_lost_fd(const struct tvmm_nbd_link *link);
int tvmm_nbd_link_give(struct tvmm_nbd_link *link, int fd, const struct tvmm_nbd_transmission *transmission);
void tvmm_nbd_link_fail(struct tvmm_nbd_link *link, int error);
void tvmm_nbd_link_hang_up(struct tvmm_nbd_link *link);
int tvmm_nbd_link_take_loss(struct tvmm_nbd_link *link, char *text, uint32_t room);

/* nbd_link.c, for the queue's thread, and for whoever has it held */
int tvmm_nbd_link_flush(struct tvmm_nbd_link *link);
void tvmm_nbd_drop(struct tvmm_nbd_link *link, const char *format, ...) __attribute__((format(printf, 2, 3)));
void tvmm_nbd_take_orders(struct tvmm_nbd_link *link);

/* nbd_wire.c */
int tvmm_nbd_encode(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot);
void tvmm_nbd_encode_flush(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot);
void tvmm_nbd_say_goodbye(struct tvmm_nbd_link *link);
void tvmm_nbd_append(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot);
void tvmm_nbd_remove(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot);
void tvmm_nbd_send(struct tvmm_nbd_link *link);
void tvmm_nbd_receive(struct tvmm_nbd_link *link);

/* nbd_reply.c */
void tvmm_nbd_parse(struct tvmm_nbd_link *link);
void tvmm_nbd_filled(struct tvmm_nbd_link *link, uint64_t count);

/* blk_nbd.c */
void tvmm_nbd_again(struct tvmm_nbd_link *link);
void tvmm_nbd_finish(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot, int64_t result);

#endif
