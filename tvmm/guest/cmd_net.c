/* Network commands: addresses, ping, and how many frames a second go out and come in. */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "virtio_net.h"

#define RECEIVE_BUDGET 64
#define PING_TIMEOUT_MS 1000
#define MIN_FRAME      60
#define SEQUENCE_BYTES 8
#define GSO_SEGMENT    1448
#define GSO_INSIDE     128

static struct net *open_argument(char **arguments)
{
    u64 number;
    return parse_number(arguments[1], &number) ? net_open(number) : NULL;
}

/* The rest of a command that polled: back to what the interrupts do. */
static void close(struct net *net, bool (*const done)(struct net *))
{
    if (done && !done(net)) {
        print("net %u: %u frames were never sent: reset\n", net->device->number, net_in_flight(net));
        virtio_reset(net->device);
    } else if (net->answering) {
        ip_service(net->device);
    }
    lapic_timer(0, false);
}

bool cmd_ip(int count, char **arguments)
{
    u32 address, prefix;
    if (count != 3 || !parse_ipv4(arguments[2], &address, &prefix))
        return false;
    struct net *net = open_argument(arguments);
    if (!net)
        return true;
    ip_start(net, address, prefix);
    ip_announce(net);
    print("ip: net %u answers for %s\n", net->device->number, arguments[2]);
    return true;
}

bool cmd_ping(int count, char **arguments)
{
    u32 address;
    u64 times, sent = 0, received = 0, shortest = (u64)-1, longest = 0, total = 0;
    if (count < 4 || count > 5 || !parse_ipv4(arguments[2], &address, NULL) || !parse_number(arguments[3], &times) ||
        (count == 5 && strcmp(arguments[4], "irq")))
        return false;
    struct net *net = open_argument(arguments);
    if (!net)
        return true;
    bool by_interrupt = count == 5, resolved = ip_resolve(net, address);
    if (!resolved)
        print("ping: %s does not answer ARP\n", arguments[2]);
    if (by_interrupt)
        lapic_timer((u32)min_u64(lapic_timer_khz() * 100, 0xffffffff), true);
    net_rx_interrupts(net, false);
    for (u16 sequence = (u16)(net->ping_sequence + 1); resolved && sent < times && !irq_poll(); sequence++) {
        u64 start = rdtsc(), end = start + ms_to_tsc(PING_TIMEOUT_MS);
        net->pong_sequence = (u16)(sequence - 1);
        sent += ip_send_ping(net, sequence) >= 0;
        while (net->pong_sequence != sequence && rdtsc() < end && !interrupted()) {
            if (!net_receive(net, ip_handle, RECEIVE_BUDGET) && by_interrupt && net_rx_interrupts(net, true))
                irq_sleep();
            if (by_interrupt)
                net_rx_interrupts(net, false);
            net_kick(net);
        }
        if (net->pong_sequence != sequence)
            continue;
        u64 ticks = rdtsc() - start;
        received++;
        total += ticks;
        shortest = min_u64(shortest, ticks);
        longest = max_u64(longest, ticks);
    }
    close(net, NULL);
    print("ping: %lu sent, %lu received", sent, received);
    if (received)
        print(", rtt %lu/%lu/%lu us", tsc_to_us(shortest), tsc_to_us(total / received), tsc_to_us(longest));
    print("\n");
    return true;
}

static void print_mac(const u8 *mac)
{
    print("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
}

static bool parse_mac(const char *text, u8 *mac)
{
    for (int i = 0; i < 6; i++, text += 3) {
        char number[5] = {'0', 'x', text[0], text[0] ? text[1] : 0};
        u64 value;
        if (!parse_number(number, &value) || value > 255 || text[2] != (i < 5 ? ':' : 0))
            return false;
        mac[i] = (u8)value;
    }
    return true;
}

bool cmd_mac(int count, char **arguments)
{
    u8 mac[6];
    if (count < 2 || count > 3 || (count == 3 && (strlen(arguments[2]) != 17 || !parse_mac(arguments[2], mac))))
        return false;
    struct net *net = open_argument(arguments);
    if (!net)
        return true;
    if (count == 3 && net_control(net, NET_CTRL_MAC_SET, mac, 6))
        memcpy(net->mac, mac, 6);
    else if (count == 3)
        print("mac: the device does not take it\n");
    print("mac: ");
    print_mac(net->mac);
    print("\n");
    return true;
}

bool cmd_link(int count, char **arguments)
{
    if (count < 2 || count > 3 || (count == 3 && strcmp(arguments[2], "promisc") && strcmp(arguments[2], "nopromisc")))
        return false;
    struct net *net = open_argument(arguments);
    if (!net)
        return true;
    struct virtio *device = net->device;
    u8 on = count == 3 && arguments[2][0] == 'p';
    if (count == 3 && !net_control(net, NET_CTRL_PROMISC, &on, 1))
        print("link: the device does not take it\n");
    bool up = !(device->features & NET_F_STATUS) || virtio_config16(device, 6) & NET_S_LINK_UP;
    u16 mtu = device->features & NET_F_MTU ? virtio_config16(device, 10) : 1500;
    u16 max_pairs = device->offered & NET_F_MQ ? virtio_config16(device, 8) : 1;
    print("link: %s, mtu %u, pairs %u of %u, rings of %u and %u, features 0x%lx\n", up ? "up" : "down", mtu, net->pairs,
          max_pairs, net->rx[0]->size, net->tx[0]->size, device->features);
    net_tx_reclaim(net);
    print("  %lu frames received, %lu bytes, %lu frames sent, %lu errors, %lu bad checksums, %lu announcements\n",
          net->received, net->received_bytes, net->sent, net->errors, net->bad_checksums, net->announcements);
    return true;
}

/* Of a frame that does not fit into a slot, the headers are in it, and of one without GSO as much as goes in. */
static u32 bytes_inside(u32 bytes, bool gso)
{
    return bytes <= NET_TX_FRAME ? bytes : gso ? GSO_INSIDE : NET_TX_FRAME;
}

/* All slots hold the same frame; what does not fit into a slot is shared, at `body`. */
static u32 prepare(struct net *net, u32 bytes, bool gso, u64 body)
{
    u32 inside = bytes_inside(bytes, gso), headers = 0;
    for (int slot = 0; slot < NET_TX_SLOTS; slot++) {
        struct net_header *header = net_slot(net, slot);
        u8 *frame = (u8 *)(header + 1);
        memset(frame, 0, inside);
        headers = ip_build(net, frame, bytes, gso ? IP_TCP : IP_UDP);
        *header = (struct net_header){0};
        if (gso)
            *header = (struct net_header){NET_HDR_NEEDS_CSUM, NET_GSO_TCPV4, (u16)headers, GSO_SEGMENT, 34, 16, 0};
    }
    memset((void *)body, 0, bytes - inside);
    return headers;
}

static void put_sequence(struct net *net, int slot, u32 headers, u64 sequence)
{
    u64 swapped = __builtin_bswap64(sequence);
    memcpy((u8 *)(net_slot(net, slot) + 1) + headers, &swapped, SEQUENCE_BYTES);
}

bool cmd_nettx(int count, char **arguments)
{
    u64 bytes, seconds;
    bool gso = count == 5 && !strcmp(arguments[4], "gso");
    if (count < 4 || count > 5 || (count == 5 && !gso) || !parse_number(arguments[2], &bytes) ||
        !parse_number(arguments[3], &seconds) || bytes < MIN_FRAME || bytes > 65535 || (gso && bytes < GSO_INSIDE))
        return false;
    struct net *net = open_argument(arguments);
    u64 body = net ? net->frame_memory : 0;
    if (!net || !net_tx_flush(net))
        return true;
    if (gso && !(net->device->features & NET_F_HOST_TSO4 && net->device->features & NET_F_CSUM)) {
        print("nettx: the device does not take GSO frames\n");
        return true;
    }
    u32 inside = bytes_inside((u32)bytes, gso), headers = prepare(net, (u32)bytes, gso, body);
    u64 start = rdtsc(), end = start + ms_to_tsc(seconds * 1000), queued = 0, before = net->sent;
    net_start_counts(net);
    for (u32 idle = 0; rdtsc() < end;) {
        int slot;
        for (u32 batch = 0; batch < RECEIVE_BUDGET && (slot = net_tx_slot(net)) >= 0; batch++, idle = 0) {
            put_sequence(net, slot, headers, queued);
            if (!net_send(net, slot, inside, body, (u32)bytes - inside))
                break;
            queued++;
        }
        net_kick(net);
        if (idle++ > 16 && irq_poll())
            break;
    }
    u64 kicks = net_kicks(net, true), us = max_u64(tsc_to_us(rdtsc() - start), 1);
    net_tx_reclaim(net);
    u64 sent = net->sent - before;
    close(net, net_tx_flush);
    print("nettx: %lu frames/s, %lu Mbit/s, %lu kicks, %lu interrupts\n", sent * 1000000 / us, sent * bytes * 8 / us,
          kicks, net_interrupts(net, true));
    return true;
}

/* What `netrx` has seen; the handler has no other way to get at it. */
static struct {
    u64 first_tsc, last_tsc, frames, bytes, first, last;
} seen;

static void count_frame(struct net *net, struct net_header *header, u8 *frame, u32 length)
{
    u64 sequence = 0;
    (void)net, (void)header;
    seen.last_tsc = rdtsc();
    if (length >= 42 + SEQUENCE_BYTES && frame[12] == 8 && frame[23] == IP_UDP) {
        memcpy(&sequence, frame + 42, SEQUENCE_BYTES);
        seen.last = __builtin_bswap64(sequence);
    }
    if (!seen.frames++) {
        seen.first_tsc = seen.last_tsc;
        seen.first = seen.last;
    }
    seen.bytes += length;
}

bool cmd_netrx(int count, char **arguments)
{
    u64 seconds;
    bool by_interrupt = count == 4 && !strcmp(arguments[3], "irq");
    if (count < 3 || (count > 3 && !by_interrupt) || !parse_number(arguments[2], &seconds))
        return false;
    struct net *net = open_argument(arguments);
    if (!net)
        return true;
    u64 end = rdtsc() + ms_to_tsc(seconds * 1000);
    memset(&seen, 0, sizeof seen);
    net->device->service = NULL;
    net_start_counts(net);
    net_rx_interrupts(net, false);
    if (by_interrupt)
        lapic_timer((u32)min_u64(lapic_timer_khz() * 100, 0xffffffff), true);
    while (rdtsc() < end) {
        if (net_receive(net, count_frame, RECEIVE_BUDGET))
            continue;
        if (by_interrupt && net_rx_interrupts(net, true))
            irq_sleep();
        if (by_interrupt)
            net_rx_interrupts(net, false);
        if (irq_poll())
            break;
    }
    u64 us = max_u64(tsc_to_us(seen.last_tsc - seen.first_tsc), 1), intervals = seen.frames ? seen.frames - 1 : 0;
    u64 kicks = net_kicks(net, false), interrupts = net_interrupts(net, false);
    if (net->answering)
        net->device->service = ip_service;
    close(net, NULL);
    print("netrx: %lu frames/s, %lu Mbit/s, %lu frames, %lu bytes in %lu us, sequence %lu..%lu, %lu kicks, "
          "%lu interrupts\n",
          intervals * 1000000 / us, seen.bytes * 8 / us, seen.frames, seen.bytes, us, seen.first, seen.last, kicks,
          interrupts);
    return true;
}

bool cmd_netecho(int count, char **arguments)
{
    if (count != 2)
        return false;
    struct net *net = open_argument(arguments);
    if (!net)
        return true;
    if (!net->address)
        print("netecho: it has no address; see `ip`\n");
    u64 received = net->received, sent = net->sent;
    net_rx_interrupts(net, false);
    while (!irq_poll()) {
        net_receive(net, ip_handle, RECEIVE_BUDGET);
        net_kick(net);
        net_rx_interrupts(net, false);
    }
    close(net, net_tx_flush);
    print("netecho: %lu frames received, %lu sent\n", net->received - received, net->sent - sent);
    return true;
}
