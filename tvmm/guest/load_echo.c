/*
 * Numbered ICMP echo requests. The answer must have the payload that was sent; it may be lost on its way, which is
 * counted apart from what never may happen: an answer that is wrong, or that comes twice.
 */
#include "clock.h"
#include "console.h"
#include "irq.h"
#include "load.h"
#include "machine.h"

#define ECHO_ID        0x7463
#define MIN_PAYLOAD    16
#define MAX_PAYLOAD    1400
#define MAX_COMPLAINTS 8
#define MISSED_MS      1000 /* without an answer: are there frames that no interrupt told of? */
#define FRAME_HEADERS  (ETH_HEADER + IP_HEADER + ICMP_HEADER)

static struct echoes *active; /* whose answers come in */

static u32 payload_length(u64 number)
{
    return MIN_PAYLOAD + (u32)(number * 88 % (MAX_PAYLOAD - MIN_PAYLOAD + 8)) / 8 * 8;
}

static u64 next_word(u64 word) { return word * 6364136223846793005ull + 1442695040888963407ull; }

static void put_payload(u8 *to, u64 number)
{
    u64 word = number;
    for (u32 at = 0, length = payload_length(number); at < length; at += 8, word = next_word(word))
        memcpy(to + at, &word, 8);
}

static bool payload_is(const u8 *from, u64 number)
{
    u64 word = number;
    for (u32 at = 0, length = payload_length(number); at < length; at += 8, word = next_word(word))
        if (memcmp(from + at, &word, 8))
            return false;
    return true;
}

static void complain(u64 *count, const char *what, u64 number)
{
    if ((*count)++ < MAX_COMPLAINTS)
        print_later("error: echo %lu %s\n", number, what);
}

/* An answer to one of ours: IP and ICMP headers are there. */
static void handle_answer(struct echoes *e, const u8 *frame, u32 length)
{
    const u8 *ip = frame + ETH_HEADER, *icmp = ip + IP_HEADER, *payload = icmp + ICMP_HEADER;
    u32 bytes = (u32)(ip[2] << 8 | ip[3]);
    u64 number;
    if (length < FRAME_HEADERS + MIN_PAYLOAD || bytes > length - ETH_HEADER ||
        bytes < FRAME_HEADERS - ETH_HEADER + MIN_PAYLOAD) {
        complain(&e->wrong, "is cut short", e->next);
        return;
    }
    memcpy(&number, payload, 8);
    u64 *waiting = &e->waiting[number % ECHO_RING];
    if (ip_checksum(0, ip, IP_HEADER) || ip_checksum(0, icmp, bytes - IP_HEADER))
        complain(&e->wrong, "has a wrong checksum", number);
    else if (number >= e->next || number + ECHO_RING < e->next)
        complain(&e->wrong, "was not asked for", number);
    else if (bytes != FRAME_HEADERS - ETH_HEADER + payload_length(number) || !payload_is(payload, number))
        complain(&e->wrong, "has another payload", number);
    else if (*waiting != number + 1)
        complain(&e->twice, "was answered twice", number);
    else {
        *waiting = 0;
        e->answered++;
        e->last = (u64)-1; /* echoes_poll() puts the time in */
    }
}

static void handle(struct net *net, struct net_header *header, u8 *frame, u32 length)
{
    const u8 *icmp = frame + ETH_HEADER + IP_HEADER;
    if (active && active->net == net && length >= FRAME_HEADERS && frame[12] == 8 && frame[13] == 0 &&
        frame[ETH_HEADER] == 0x45 && frame[ETH_HEADER + 9] == IP_ICMP && icmp[0] == ECHO_REPLY &&
        (icmp[4] << 8 | icmp[5]) == ECHO_ID)
        handle_answer(active, frame, length);
    else
        ip_handle(net, header, frame, length);
}

bool echoes_start(struct echoes *e, u32 peer)
{
    static u64 *ring;
    if (!e->net->answering) {
        print("net %u has no address; see `ip`\n", e->net->device->number);
        return false;
    }
    if (!ip_resolve(e->net, peer)) {
        print("the peer does not answer ARP\n");
        return false;
    }
    if (!ring && !(ring = (u64 *)page_alloc(ECHO_RING * sizeof *ring / PAGE_SIZE)))
        return false;
    memset(ring, 0, ECHO_RING * sizeof *ring);
    e->waiting = ring;
    active = e;
    e->net->handler = handle;
    ip_service(e->net->device);
    return true;
}

void echoes_send(struct echoes *e)
{
    struct net *net = e->net;
    u64 number = e->next, *waiting = &e->waiting[number % ECHO_RING];
    u32 bytes = payload_length(number);
    int slot = net_tx_slot(net);
    if (slot < 0)
        return;
    *net_slot(net, slot) = (struct net_header){0};
    u8 *frame = (u8 *)(net_slot(net, slot) + 1), *icmp = frame + ip_build(net, frame, FRAME_HEADERS + bytes, IP_ICMP);
    u16 number16 = (u16)number;
    memcpy(icmp, (u8[]){ECHO_REQUEST, 0, 0, 0, ECHO_ID >> 8, ECHO_ID & 255, (u8)(number16 >> 8), (u8)number16},
           ICMP_HEADER);
    put_payload(icmp + ICMP_HEADER, number);
    u16 sum = ip_checksum(0, icmp, ICMP_HEADER + bytes);
    icmp[2] = (u8)(sum >> 8);
    icmp[3] = (u8)sum;
    if (!net_send(net, slot, FRAME_HEADERS + bytes, 0, 0))
        return;
    e->lost += *waiting != 0;
    *waiting = number + 1;
    e->next++;
}

void echoes_poll(struct echoes *e, u64 ran, bool always)
{
    if (always)
        ip_service(e->net->device);
    if (e->last == (u64)-1 || echoes_answered(e))
        e->last = ran;
    if (ran - e->last < ms_to_tsc(MISSED_MS) || net_rx_interrupts(e->net, true)) {
        e->suspect = 0;
    } else if (!e->suspect) {
        e->suspect = ran;
    } else if (ran - e->suspect >= ms_to_tsc(MISSED_MS / 10)) { /* its interrupt is not just on the way */
        if (e->missed++ < MAX_COMPLAINTS)
            print_later("error: net %u: frames that no interrupt told of\n", e->net->device->number);
        e->suspect = 0;
        ip_service(e->net->device);
    }
}

bool echoes_answered(const struct echoes *e) { return e->answered + e->lost == e->next; }

void echoes_stop(struct echoes *e)
{
    e->lost = e->next - e->answered;
    e->net->handler = NULL;
    active = NULL;
    net_tx_flush(e->net);
    ip_service(e->net->device);
}
