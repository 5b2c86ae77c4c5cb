/* Requests to the server and bytes from it, on one connection: see nbd.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "nbd.h"

#include <endian.h>
#include <errno.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/socket.h>

/* Of one call; what has no room goes with the next. */
#define NBD_SEND_IOVECS 256u
#define NBD_RECEIVE_IOVECS 256u
/* While large reads are outstanding: enough for a header, and not much of the data behind it. */
#define NBD_SMALL_STAGE 512u
/* Calls of one visit, so that a fast server does not keep the queue's thread from the driver. */
#define NBD_RECEIVES 8u
/* A server has to send that much in one piece if it is asked to (DF). */
#define NBD_UNDIVIDED (64u << 10)

#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_EXTENDED_REQUEST_MAGIC 0x21e41c71u

/* --- requests ----------------------------------------------------------------------------------------------------- */

static void nbd_header(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot, uint16_t flags)
{
    uint32_t magic = htobe32(NBD_REQUEST_MAGIC), length = htobe32((uint32_t)slot->length);
    uint32_t index = slot->request ? (uint32_t)(slot - link->slots) : UINT32_MAX;
    uint64_t offset = htobe64(slot->offset), long_length = htobe64(slot->length), cookie;
    uint16_t command = htobe16(slot->command);

    slot->cookie = ++link->serial << 32 | index;
    cookie = htobe64(slot->cookie);
    if (link->transmission.extended) {
        magic = htobe32(NBD_EXTENDED_REQUEST_MAGIC);
        if (slot->command == TVMM_NBD_WRITE)
            flags |= TVMM_NBD_FLAG_PAYLOAD_LENGTH;
        memcpy(slot->header + 24, &long_length, 8);
    } else {
        memcpy(slot->header + 24, &length, 4);
    }
    flags = htobe16(flags);
    memcpy(slot->header, &magic, 4);
    memcpy(slot->header + 4, &flags, 2);
    memcpy(slot->header + 6, &command, 2);
    memcpy(slot->header + 8, &cookie, 8);
    memcpy(slot->header + 16, &offset, 8);
    slot->header_length = link->transmission.extended ? 32 : 28;
}

/* Bytes of the step that one request moves; 0: the server takes none like that. */
static uint64_t nbd_transfer_length(const struct tvmm_nbd_transmission *about, const struct tvmm_blk_step *step)
{
    uint64_t length = step->length, most = about->maximum_payload;
    if (most > TVMM_NBD_PAYLOAD_MAX)
        most = TVMM_NBD_PAYLOAD_MAX;
    if (length > most)
        length = most;
    return step->offset & (about->minimum_block - 1) ? 0 : length & ~(uint64_t)(about->minimum_block - 1);
}

/* As many bytes as the server takes at once: the rest is another step. 1, or -errno. */
static int nbd_encode_transfer(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot)
{
    const struct tvmm_nbd_transmission *about = &link->transmission;
    const struct tvmm_blk_step *step = &slot->request->step;
    uint16_t flags = 0;

    slot->length = nbd_transfer_length(about, step);
    if (!slot->length) {
        slot->request->hopeless = 1;
        return -EINVAL;
    }
    if (step->call == TVMM_BLK_CALL_READ) {
        slot->command = TVMM_NBD_READ;
        /* Small reads in one piece: a server need not look for holes then. */
        if (about->structured && about->flags & TVMM_NBD_CAN_DF && slot->length <= NBD_UNDIVIDED)
            flags = TVMM_NBD_FLAG_DF;
    } else {
        slot->command = TVMM_NBD_WRITE;
        if (step->flags & RWF_DSYNC && about->flags & TVMM_NBD_CAN_FUA)
            flags = TVMM_NBD_FLAG_FUA;
        else if (step->flags & RWF_DSYNC && about->flags & TVMM_NBD_CAN_FLUSH)
            slot->stable = 1;
    }
    nbd_header(link, slot, flags);
    return 1;
}

static int nbd_encode_range(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot)
{
    const struct tvmm_nbd_transmission *about = &link->transmission;
    const struct tvmm_blk_step *step = &slot->request->step;
    int trim = step->call == TVMM_BLK_CALL_DISCARD;

    if (!(about->flags & (trim ? TVMM_NBD_CAN_TRIM : TVMM_NBD_CAN_ZERO)))
        return -EOPNOTSUPP;
    if ((step->offset | step->length) & (about->minimum_block - 1))
        return -EINVAL;
    if (step->length > UINT32_MAX && !about->extended)
        return -EINVAL;
    slot->length = step->length;
    slot->command = trim ? TVMM_NBD_TRIM : TVMM_NBD_ZERO;
    /* Never FAST_ZERO: zeroes that the server writes slowly are still sooner there than zeroes that are sent. */
    nbd_header(link, slot, step->call == TVMM_BLK_CALL_ZERO ? TVMM_NBD_FLAG_NO_HOLE : 0);
    return 1;
}

/* What the step of a slot's request is on this connection, not sent yet. 1; or its result without being sent: 0 where
 * there is nothing to do, or -errno. */
int tvmm_nbd_encode(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot)
{
    const struct tvmm_blk_step *step = &slot->request->step;

    slot->sent = slot->stable = 0;
    slot->errors = 0;
    slot->error = 0;
    slot->front = 0;
    slot->span_count = 0;
    slot->offset = step->offset;
    switch (step->call) {
    case TVMM_BLK_CALL_READ:
    case TVMM_BLK_CALL_WRITE:
        return nbd_encode_transfer(link, slot);
    case TVMM_BLK_CALL_SYNC:
        if (!(link->transmission.flags & TVMM_NBD_CAN_FLUSH))
            return 0;
        tvmm_nbd_encode_flush(link, slot);
        return 1;
    default:
        return nbd_encode_range(link, slot);
    }
}

void tvmm_nbd_encode_flush(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot)
{
    slot->command = TVMM_NBD_FLUSH;
    slot->covers = link->blk ? __atomic_load_n(&link->blk->file->changed, __ATOMIC_ACQUIRE) : 0;
    slot->sent = 0;
    slot->offset = slot->length = 0;
    nbd_header(link, slot, 0);
}

/* The end, in good manners, of a connection with nothing under way. Who cannot hear it now sees the close. */
void tvmm_nbd_say_goodbye(struct tvmm_nbd_link *link)
{
    struct tvmm_nbd_slot bye = {.command = TVMM_NBD_DISCONNECT};
    if (link->state != TVMM_NBD_UP || link->unsent)
        return;
    nbd_header(link, &bye, 0);
    if (send(link->fd, bye.header, bye.header_length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        return;
}

/* --- outstanding ones --------------------------------------------------------------------------------------------- */

static int nbd_is_large(const struct tvmm_nbd_slot *slot)
{
    return slot->request && slot->request->step.call == TVMM_BLK_CALL_READ
           && slot->request->step.length >= TVMM_NBD_DIRECT;
}

/* Behind those that are outstanding; to be sent, if there is a connection. */
void tvmm_nbd_append(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot)
{
    slot->link = link;
    slot->next = NULL;
    slot->previous = link->last;
    *(link->last ? &link->last->next : &link->first) = slot;
    link->last = slot;
    link->outstanding++;
    link->large += (uint32_t)nbd_is_large(slot);
    if (!link->unsent && link->state == TVMM_NBD_UP) {
        link->unsent = slot;
        link->sent_bytes = 0;
    }
}

/* One that is sent, or any without a connection. */
void tvmm_nbd_remove(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot)
{
    if (link->unsent == slot)
        link->unsent = slot->next;
    *(slot->next ? &slot->next->previous : &link->last) = slot->previous;
    *(slot->previous ? &slot->previous->next : &link->first) = slot->next;
    slot->link = NULL;
    link->outstanding--;
    link->large -= (uint32_t)nbd_is_large(slot);
}

/* What the kernel says of a connection whose other end is gone depends on what was on its way. */
static void nbd_broke(struct tvmm_nbd_link *link, int error)
{
    if (error == EPIPE || error == ECONNRESET)
        tvmm_nbd_drop(link, "the server has closed the connection");
    else
        tvmm_nbd_drop(link, "the connection to the server broke: %s", strerror(error));
}

/* --- sending ------------------------------------------------------------------------------------------------------ */

static uint64_t nbd_message_length(const struct tvmm_nbd_slot *slot)
{
    return slot->header_length + (slot->command == TVMM_NBD_WRITE ? slot->length : 0);
}

/* The bytes of a request from `skip` on, as far as there is room. How many iovecs that were. */
static uint32_t nbd_gather(struct tvmm_nbd_slot *slot, uint64_t skip, struct iovec *iovecs, uint32_t room)
{
    uint32_t count = 0;
    if (skip < slot->header_length) {
        iovecs[count++] = (struct iovec){slot->header + skip, slot->header_length - skip};
        skip = 0;
    } else {
        skip -= slot->header_length;
    }
    if (slot->command != TVMM_NBD_WRITE)
        return count;
    uint64_t left = slot->length - skip;
    for (const struct iovec *from = slot->request->step.iovecs; left && count < room; from++) {
        if (skip >= from->iov_len) {
            skip -= from->iov_len;
            continue;
        }
        size_t part = from->iov_len - skip < left ? from->iov_len - skip : left;
        iovecs[count++] = (struct iovec){(uint8_t *)from->iov_base + skip, part};
        left -= part;
        skip = 0;
    }
    return count;
}

static void nbd_sent(struct tvmm_nbd_link *link, uint64_t count)
{
    count += link->sent_bytes;
    while (link->unsent) {
        uint64_t length = nbd_message_length(link->unsent);
        link->unsent->sent_before = 1;
        if (count < length)
            break;
        count -= length;
        link->unsent->sent = 1;
        link->unsent = link->unsent->next;
    }
    link->sent_bytes = count;
}

/* As much as the connection takes now. */
void tvmm_nbd_send(struct tvmm_nbd_link *link)
{
    struct iovec iovecs[NBD_SEND_IOVECS];
    link->blocked = 0;
    while (link->unsent) {
        struct msghdr message = {.msg_iov = iovecs};
        uint64_t skip = link->sent_bytes;
        for (struct tvmm_nbd_slot *slot = link->unsent; slot && message.msg_iovlen < NBD_SEND_IOVECS; slot = slot->next) {
            message.msg_iovlen += nbd_gather(slot, skip, iovecs + message.msg_iovlen,
                                             NBD_SEND_IOVECS - (uint32_t)message.msg_iovlen);
            skip = 0;
        }
        ssize_t count = sendmsg(link->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (count >= 0) {
            nbd_sent(link, (uint64_t)count);
        } else if (errno == EAGAIN) {
            link->blocked = 1;
            return;
        } else if (errno != EINTR) {
            nbd_broke(link, errno);
            return;
        }
    }
}

/* --- receiving ---------------------------------------------------------------------------------------------------- */

/* Where the bytes that come next belong: those of the read that is being filled, and the stage behind them. */
static uint32_t nbd_places(struct tvmm_nbd_link *link, struct iovec *iovecs, uint64_t *length)
{
    uint32_t count = 0;
    *length = 0;
    if (link->filling) {
        const struct iovec *from = link->iovec;
        size_t skip = link->skip;
        for (; *length < link->left && count < NBD_RECEIVE_IOVECS; from++, skip = 0) {
            uint64_t left = link->left - *length;
            size_t part = from->iov_len - skip < left ? from->iov_len - skip : left;
            iovecs[count++] = (struct iovec){(uint8_t *)from->iov_base + skip, part};
            *length += part;
        }
        if (*length < link->left)
            return count;
    }
    if (link->stage_start) {
        memmove(link->stage, link->stage + link->stage_start, link->stage_end - link->stage_start);
        link->stage_end -= link->stage_start;
        link->stage_start = 0;
    }
    size_t room = TVMM_NBD_STAGE - link->stage_end;
    if (link->large && room > NBD_SMALL_STAGE && link->stage_end < NBD_SMALL_STAGE)
        room = NBD_SMALL_STAGE;
    iovecs[count++] = (struct iovec){link->stage + link->stage_end, room};
    *length += room;
    return count;
}

/* `count` bytes have arrived, first for the read that is being filled. */
static void nbd_arrived(struct tvmm_nbd_link *link, uint64_t count)
{
    if (link->filling) {
        uint64_t part = count < link->left ? count : link->left;
        tvmm_nbd_filled(link, part);
        count -= part;
    }
    link->stage_end += (uint32_t)count;
}

/* What has arrived, and what that completes. Not more after a completion: the driver's next request is to be on its way
 * while the server is still busy with the others. In bursts of all and nothing a server is half as fast. */
void tvmm_nbd_receive(struct tvmm_nbd_link *link)
{
    struct iovec iovecs[NBD_RECEIVE_IOVECS + 1];
    uint64_t completed = link->completed;
    for (uint32_t round = 0; round < NBD_RECEIVES && link->state == TVMM_NBD_UP; round++) {
        uint64_t length;
        struct msghdr message = {.msg_iov = iovecs};
        message.msg_iovlen = nbd_places(link, iovecs, &length);
        ssize_t count = recvmsg(link->fd, &message, MSG_DONTWAIT);
        if (count < 0 && errno == EAGAIN)
            break;
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0) {
            nbd_broke(link, errno);
        } else if (!count) {
            nbd_broke(link, EPIPE);
        } else {
            nbd_arrived(link, (uint64_t)count);
            tvmm_nbd_parse(link);
        }
        if (count < (ssize_t)length || link->completed != completed)
            break;
    }
}
