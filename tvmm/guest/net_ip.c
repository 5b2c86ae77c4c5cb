/*
 * As much of ARP, IPv4, ICMP and UDP as it takes to be found and to answer: no options, no fragments, one
 * address, one peer whose hardware address is remembered. Checksums are left to the device where it offers that.
 */
#include "clock.h"
#include "console.h"
#include "irq.h"
#include "virtio_net.h"

#define ETH_IPV4     0x0800
#define ETH_ARP      0x0806
#define ARP_BYTES    28
#define UDP_HEADER   8
#define TCP_HEADER   20
#define ECHO_PORT    7
#define DISCARD_PORT 9
#define PING_PAYLOAD 56
#define PING_ID      0x7476
#define RECEIVE_BUDGET 256 /* frames in one round of the service routine */

static const u8 broadcast[6] = {255, 255, 255, 255, 255, 255}, nobody[6];

static u16 get16(const u8 *at) { return (u16)(at[0] << 8 | at[1]); }
static u32 get32(const u8 *at) { return (u32)get16(at) << 16 | get16(at + 2); }

static void put16(u8 *at, u32 value)
{
    at[0] = (u8)(value >> 8);
    at[1] = (u8)value;
}

static void put32(u8 *at, u32 value)
{
    put16(at, value >> 16);
    put16(at + 2, value);
}

static u32 add_words(u32 sum, const void *data, u32 length)
{
    const u8 *at = data;
    u64 wide = sum;
    for (; length > 1; length -= 2, at += 2)
        wide += get16(at);
    if (length)
        wide += (u32)at[0] << 8;
    while (wide >> 16)
        wide = (wide & 0xffff) + (wide >> 16);
    return (u32)wide;
}

/* One's complement of the sum, as the protocols want it (RFC 1071); `sum` is what was added up before. */
u16 ip_checksum(u32 sum, const void *data, u32 length) { return (u16)~add_words(sum, data, length); }

static u32 pseudo_header(const u8 *ip, u32 length) { return add_words(ip[9] + length, ip + 12, 8); }

bool parse_ipv4(const char *text, u32 *address, u32 *prefix)
{
    char number[8];
    u64 value;
    *address = 0;
    for (int i = 0; i < 5; i++) {
        size_t length = 0;
        while (*text && *text != '.' && *text != '/' && length < sizeof number - 1)
            number[length++] = *text++;
        number[length] = 0;
        if (!parse_number(number, &value) || value > (i == 4 ? 32 : 255))
            return false;
        if (i == 4)
            *prefix = (u32)value;
        else
            *address = *address << 8 | (u32)value;
        if (*text == 0)
            return i == (prefix ? 4 : 3);
        if (*text++ != (i == 3 ? '/' : '.') || (i == 3 && !prefix))
            return false;
    }
    return false;
}

static void put_ethernet(struct net *net, u8 *frame, const u8 *to, u16 type)
{
    memcpy(frame, to, 6);
    memcpy(frame + 6, net->mac, 6);
    put16(frame + 12, type);
}

/* Sends a frame from anywhere: through a slot if it fits, else as it lies, waiting until it is gone. */
static void send(struct net *net, const struct net_header *header, u8 *frame, u32 length)
{
    int slot = net_tx_slot(net);
    if (slot < 0)
        return; /* as any network would: dropped */
    *net_slot(net, slot) = *header;
    if (length <= NET_TX_FRAME) {
        memmove(net_slot(net, slot) + 1, frame, length);
        net_send(net, slot, length, 0, 0);
    } else {
        net_send(net, slot, 0, (u64)frame, length);
        net_tx_flush(net);
    }
}

static void send_arp(struct net *net, u16 operation, const u8 *to, const u8 *target_mac, u32 target)
{
    u8 frame[ETH_HEADER + ARP_BYTES];
    struct net_header header = {0};
    put_ethernet(net, frame, to, ETH_ARP);
    memcpy(frame + 14, "\0\1\x08\0\6\4", 6); /* Ethernet, IPv4, and their addresses' lengths */
    put16(frame + 20, operation);
    memcpy(frame + 22, net->mac, 6);
    put32(frame + 28, net->address);
    memcpy(frame + 32, target_mac, 6);
    put32(frame + 38, target);
    send(net, &header, frame, sizeof frame);
    net_kick(net);
}

void ip_announce(struct net *net)
{
    net->announcements++;
    send_arp(net, 1, broadcast, nobody, net->address);
}

static void handle_arp(struct net *net, const u8 *frame, u32 length)
{
    if (length < ETH_HEADER + ARP_BYTES || memcmp(frame + 14, "\0\1\x08\0\6\4", 6))
        return;
    u32 sender = get32(frame + 28);
    if (sender == net->peer_address && sender) {
        memcpy(net->peer_mac, frame + 22, 6);
        net->peer_known = true;
    }
    if (get16(frame + 20) == 1 && get32(frame + 38) == net->address && net->address)
        send_arp(net, 2, frame + 22, frame + 22, sender);
}

/* The frame becomes its own answer: addresses swapped. */
static void turn_round(struct net *net, u8 *frame)
{
    u8 mac[6];
    memcpy(mac, frame + 6, 6);
    put_ethernet(net, frame, mac, ETH_IPV4);
    u32 from = get32(frame + ETH_HEADER + 12);
    put32(frame + ETH_HEADER + 12, net->address);
    put32(frame + ETH_HEADER + 16, from);
    frame[ETH_HEADER + 8] = 64; /* time to live */
    put16(frame + ETH_HEADER + 10, 0);
    put16(frame + ETH_HEADER + 10, ip_checksum(0, frame + ETH_HEADER, IP_HEADER));
}

static void handle_icmp(struct net *net, u8 *frame, u32 length)
{
    u8 *icmp = frame + ETH_HEADER + IP_HEADER;
    u32 bytes = length - ETH_HEADER - IP_HEADER;
    struct net_header header = {0};
    if (bytes < 8)
        return;
    if (ip_checksum(0, icmp, bytes)) {
        net->bad_checksums++;
    } else if (icmp[0] == ECHO_REPLY && get16(icmp + 4) == PING_ID) {
        net->pong_sequence = get16(icmp + 6);
    } else if (icmp[0] == ECHO_REQUEST) {
        icmp[0] = ECHO_REPLY;
        put16(icmp + 2, 0);
        put16(icmp + 2, ip_checksum(0, icmp, bytes));
        turn_round(net, frame);
        send(net, &header, frame, length);
    }
}

static void handle_udp(struct net *net, const struct net_header *received, u8 *frame, u32 length)
{
    u8 *ip = frame + ETH_HEADER, *udp = ip + IP_HEADER;
    u32 bytes = length - ETH_HEADER - IP_HEADER;
    struct net_header header = {0};
    if (bytes < UDP_HEADER || get16(udp + 4) != bytes || get16(udp + 2) != ECHO_PORT)
        return;
    if (!(received->flags & (NET_HDR_NEEDS_CSUM | NET_HDR_DATA_VALID)) && get16(udp + 6) &&
        ip_checksum(pseudo_header(ip, bytes), udp, bytes)) {
        net->bad_checksums++;
        return;
    }
    u16 port = get16(udp);
    put16(udp, ECHO_PORT);
    put16(udp + 2, port);
    turn_round(net, frame);
    u32 sum = pseudo_header(ip, bytes);
    if (net->device->features & NET_F_CSUM) {
        header.flags = NET_HDR_NEEDS_CSUM;
        header.csum_start = ETH_HEADER + IP_HEADER;
        header.csum_offset = 6;
        put16(udp + 6, sum);
    } else {
        put16(udp + 6, 0);
        u16 checksum = ip_checksum(sum, udp, bytes);
        put16(udp + 6, checksum ? checksum : 0xffff);
    }
    send(net, &header, frame, length);
}

void ip_handle(struct net *net, struct net_header *header, u8 *frame, u32 length)
{
    u16 type = get16(frame + 12);
    u8 *ip = frame + ETH_HEADER;
    if (type == ETH_ARP)
        handle_arp(net, frame, length);
    if (type != ETH_IPV4 || length < ETH_HEADER + IP_HEADER || ip[0] != 0x45 || get32(ip + 16) != net->address ||
        !net->address || get16(ip + 6) & 0x3fff)
        return;
    u32 bytes = get16(ip + 2);
    if (bytes < IP_HEADER || bytes > length - ETH_HEADER || ip_checksum(0, ip, IP_HEADER)) {
        net->bad_checksums++;
        return;
    }
    if (ip[9] == IP_ICMP)
        handle_icmp(net, frame, ETH_HEADER + bytes);
    else if (ip[9] == IP_UDP)
        handle_udp(net, header, frame, ETH_HEADER + bytes);
}

void ip_service(struct virtio *device)
{
    struct net *net = device->driver;
    net_handler *handle = net->handler ? net->handler : ip_handle;
    if (virtio_config_changed(device) && device->features & NET_F_STATUS &&
        virtio_config16(device, 6) & NET_S_ANNOUNCE) {
        ip_announce(net);
        net_control(net, NET_CTRL_ANNOUNCE, NULL, 0);
    }
    do {
        net_rx_interrupts(net, false);
        while (net_receive(net, handle, RECEIVE_BUDGET))
            net_kick(net);
    } while (!net_rx_interrupts(net, true));
}

void ip_start(struct net *net, u32 address, u32 prefix)
{
    net->address = address;
    net->prefix = prefix;
    net->answering = true;
    net->device->service = ip_service;
    ip_service(net->device);
}

bool ip_resolve(struct net *net, u32 address)
{
    if (net->peer_address != address)
        net->peer_known = false;
    net->peer_address = address;
    for (int i = 0; i < 4 && !net->peer_known; i++) {
        u64 end = rdtsc() + ms_to_tsc(250);
        send_arp(net, 1, broadcast, nobody, address);
        while (!net->peer_known && rdtsc() < end && !irq_poll())
            net_receive(net, ip_handle, RECEIVE_BUDGET);
    }
    return net->peer_known;
}

u32 ip_build(struct net *net, u8 *frame, u32 length, u8 protocol)
{
    u8 *ip = frame + ETH_HEADER, *payload = ip + IP_HEADER;
    u32 to = net->peer_address ? net->peer_address : 0xffffffff, bytes = length - ETH_HEADER - IP_HEADER;
    put_ethernet(net, frame, net->peer_known ? net->peer_mac : broadcast, ETH_IPV4);
    memset(ip, 0, IP_HEADER + TCP_HEADER);
    ip[0] = 0x45;
    put16(ip + 2, length - ETH_HEADER);
    ip[8] = 64;
    ip[9] = protocol;
    put32(ip + 12, net->address);
    put32(ip + 16, to);
    put16(ip + 10, ip_checksum(0, ip, IP_HEADER));
    if (protocol == IP_ICMP)
        return ETH_HEADER + IP_HEADER;
    put16(payload, DISCARD_PORT);
    put16(payload + 2, DISCARD_PORT);
    if (protocol == IP_UDP) {
        put16(payload + 4, bytes);
        return ETH_HEADER + IP_HEADER + UDP_HEADER;
    }
    payload[12] = TCP_HEADER / 4 << 4;
    payload[13] = 0x10; /* ACK */
    put16(payload + 14, 0xffff);
    put16(payload + 16, pseudo_header(ip, bytes)); /* the device completes it */
    return ETH_HEADER + IP_HEADER + TCP_HEADER;
}

int ip_send_ping(struct net *net, u16 sequence)
{
    u32 length = ETH_HEADER + IP_HEADER + 8 + PING_PAYLOAD;
    int slot = net_tx_slot(net);
    if (slot < 0)
        return -1;
    *net_slot(net, slot) = (struct net_header){0};
    u8 *frame = (u8 *)(net_slot(net, slot) + 1), *icmp = frame + ETH_HEADER + IP_HEADER;
    ip_build(net, frame, length, IP_ICMP);
    for (u32 i = 0; i < PING_PAYLOAD; i++)
        icmp[8 + i] = (u8)i;
    memset(icmp, 0, 8);
    icmp[0] = ECHO_REQUEST;
    put16(icmp + 4, PING_ID);
    put16(icmp + 6, sequence);
    put16(icmp + 2, ip_checksum(0, icmp, 8 + PING_PAYLOAD));
    net->ping_sequence = sequence;
    net_send(net, slot, length, 0, 0);
    net_kick(net);
    return slot;
}
