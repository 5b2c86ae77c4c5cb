/* The virtio network device (5.1): frames in and out. What is in the frames is net_ip.c's business. */
#ifndef GUEST_VIRTIO_NET_H
#define GUEST_VIRTIO_NET_H

#include "virtio.h"

#define NET_F_CSUM       FEATURE(0)
#define NET_F_GUEST_CSUM FEATURE(1)
#define NET_F_MTU        FEATURE(3)
#define NET_F_MAC        FEATURE(5)
#define NET_F_GUEST_TSO4 FEATURE(7)
#define NET_F_GUEST_TSO6 FEATURE(8)
#define NET_F_HOST_TSO4  FEATURE(11)
#define NET_F_HOST_TSO6  FEATURE(12)
#define NET_F_MRG_RXBUF  FEATURE(15)
#define NET_F_STATUS     FEATURE(16)
#define NET_F_CTRL_VQ    FEATURE(17)
#define NET_F_CTRL_RX    FEATURE(18)
#define NET_F_ANNOUNCE   FEATURE(21)
#define NET_F_MQ         FEATURE(22)
#define NET_F_CTRL_MAC   FEATURE(23)

#define NET_S_LINK_UP  1
#define NET_S_ANNOUNCE 2

#define NET_HDR_NEEDS_CSUM 1
#define NET_HDR_DATA_VALID 2
#define NET_GSO_TCPV4      1

/* Commands of the control queue: class and command (5.1.6.5). */
#define NET_CTRL_PROMISC  0x0000
#define NET_CTRL_MAC_SET  0x0101
#define NET_CTRL_ANNOUNCE 0x0300
#define NET_CTRL_PAIRS    0x0400

struct net_header { /* virtio_net_hdr */
    u8 flags, gso_type;
    u16 header_length, gso_size, csum_start, csum_offset, num_buffers;
};

#define NET_HEADER    12
#define NET_MAX_FRAME 65550    /* 64 KiB of IP, and Ethernet's header */
#define NET_MAX_PAIRS 4
#define NET_RX_BYTES  4096     /* of one receive buffer */
#define NET_RING      1024     /* entries that we use at most */
#define NET_TX_SLOTS  256
#define NET_TX_BYTES  2048     /* of one slot: header, and the frame if it fits */
#define NET_TX_FRAME  (NET_TX_BYTES - NET_HEADER)

struct net;
typedef void net_handler(struct net *net, struct net_header *header, u8 *frame, u32 length);

struct net {
    struct virtio *device;
    net_handler *handler; /* what ip_service() gives frames to; NULL: ip_handle() */
    u16 pairs;
    struct virtq *rx[NET_MAX_PAIRS], *tx[NET_MAX_PAIRS], *control;
    u64 rx_memory, tx_memory, frame_memory;
    u16 tx_free[NET_TX_SLOTS], tx_free_count, tx_next_pair;
    u8 mac[6];
    /* net_ip.c: */
    bool answering;
    u32 address, prefix;            /* IPv4, host byte order; 0: none */
    u32 peer_address;
    u8 peer_mac[6];
    bool peer_known;
    u16 ping_sequence, pong_sequence; /* last echo request sent, last answer received */
    u64 received, received_bytes, sent, errors, bad_checksums, announcements;
};

/* Network device `number`, set up if it is not yet; NULL, with a line printed, if that fails. */
struct net *net_open(u64 number);

/* True if the device took the command; `data` is for it to read. */
bool net_control(struct net *net, u16 command, const void *data, u32 length);

/* Gives at most `budget` received frames to `handle` and their buffers back to the device. Returns how many. */
u32 net_receive(struct net *net, net_handler *handle, u32 budget);
void net_post(struct net *net, u16 pair, u64 token); /* a receive buffer that was popped, to the device again */
bool net_rx_interrupts(struct net *net, bool on); /* as virtq_interrupts(), of all receive queues */

/* A free transmit slot, or -1 if all are in flight; net_slot() is where its header and frame go. */
int net_tx_slot(struct net *net);
static inline struct net_header *net_slot(const struct net *net, int slot)
{
    return (struct net_header *)(net->tx_memory + (u64)slot * NET_TX_BYTES);
}
/* Queues a slot with `length` bytes of frame in it and `more` bytes at `body`. Does not ring the doorbell. */
bool net_send(struct net *net, int slot, u32 length, u64 body, u32 more);
void net_kick(struct net *net);
u32 net_tx_reclaim(struct net *net); /* how many were done */
u32 net_in_flight(const struct net *net);
bool net_tx_flush(struct net *net);  /* waits until all is sent; false after 2 s */

u64 net_kicks(const struct net *net, bool tx);
u64 net_interrupts(const struct net *net, bool tx);
void net_start_counts(struct net *net);

/* net_ip.c: answers ARP, ICMP echo and UDP echo (port 7) to `address`. */
void ip_start(struct net *net, u32 address, u32 prefix);
net_handler ip_handle;
bool ip_resolve(struct net *net, u32 address);     /* by ARP into peer_mac; false after a second */
void ip_announce(struct net *net);                 /* gratuitous ARP */
void ip_service(struct virtio *device);
int ip_send_ping(struct net *net, u16 sequence);   /* to the peer */
/* Ethernet, IPv4 and UDP or TCP headers at `frame` for `length` bytes in all. Returns the headers' length. */
u32 ip_build(struct net *net, u8 *frame, u32 length, u8 protocol);
u16 ip_checksum(u32 sum, const void *data, u32 length);
bool parse_ipv4(const char *text, u32 *address, u32 *prefix); /* prefix may be NULL: then none is allowed */

#define ETH_HEADER   14
#define IP_HEADER    20
#define ICMP_HEADER  8
#define ECHO_REQUEST 8
#define ECHO_REPLY   0

#define IP_ICMP 1
#define IP_TCP  6
#define IP_UDP  17

#endif
