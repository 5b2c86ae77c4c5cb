/* The network driver: buffers, queues, the control queue. */
#include "virtio_net.h"
#include "clock.h"
#include "console.h"
#include "irq.h"
#include "machine.h"

enum { CONFIG_MAC = 0, CONFIG_MAX_PAIRS = 8 };

#define WANTED (NET_F_CSUM | NET_F_GUEST_CSUM | NET_F_MTU | NET_F_MAC | NET_F_HOST_TSO4 | NET_F_HOST_TSO6 | \
                NET_F_MRG_RXBUF | NET_F_STATUS | NET_F_CTRL_VQ | NET_F_CTRL_RX | NET_F_ANNOUNCE | NET_F_CTRL_MAC)

#define CONTROL_TIMEOUT_MS 2000
#define MERGE_TIMEOUT_US   10000

_Static_assert(sizeof(struct net_header) == NET_HEADER, "the header with num_buffers");

static u64 rx_buffer(const struct net *net, u16 pair, u64 token)
{
    return net->rx_memory + ((u64)pair * NET_RING + token) * NET_RX_BYTES;
}

void net_post(struct net *net, u16 pair, u64 token)
{
    struct buffer buffer = {rx_buffer(net, pair, token), NET_RX_BYTES, true};
    virtq_add(net->rx[pair], &buffer, 1, token);
}

static bool set_up_queues(struct net *net)
{
    struct virtio *device = net->device;
    u16 max_pairs = device->features & NET_F_MQ ? virtio_config16(device, CONFIG_MAX_PAIRS) : 1;
    net->pairs = (u16)min_u64(max_pairs, NET_MAX_PAIRS);
    for (u16 pair = 0; pair < net->pairs; pair++) {
        net->rx[pair] = virtio_queue(device, (u16)(2 * pair), NET_RING, 1);
        net->tx[pair] = virtio_queue(device, (u16)(2 * pair + 1), NET_RING, 2);
        if (!net->rx[pair] || !net->tx[pair])
            return false;
    }
    net->control = NULL;
    if (device->features & NET_F_CTRL_VQ)
        net->control = virtio_queue(device, (u16)(2 * max_pairs), 64, 4);
    return true;
}

static bool start(struct net *net)
{
    struct virtio *device = net->device;
    u64 wanted = WANTED | (command_line_has("mq") ? NET_F_MQ : 0);
    if (device->offered & NET_F_MRG_RXBUF) /* else each buffer would have to hold a whole 64 KiB */
        wanted |= NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6;
    if (!virtio_begin(device, wanted) || !set_up_queues(net))
        return false;
    if (!net->rx_memory)
        net->rx_memory = dma_alloc((u64)net->pairs * NET_RING * NET_RX_BYTES / PAGE_SIZE);
    if (!net->tx_memory)
        net->tx_memory = dma_alloc(NET_TX_SLOTS * NET_TX_BYTES / PAGE_SIZE);
    if (!net->frame_memory)
        net->frame_memory = dma_alloc(NET_MAX_FRAME / PAGE_SIZE + 2);
    if (!net->rx_memory || !net->tx_memory || !net->frame_memory) {
        print("net: no memory for its buffers\n");
        return false;
    }
    for (net->tx_free_count = 0; net->tx_free_count < NET_TX_SLOTS; net->tx_free_count++)
        net->tx_free[net->tx_free_count] = net->tx_free_count;
    for (u32 i = 0; i < 6; i++)
        net->mac[i] = device->features & NET_F_MAC ? virtio_config8(device, CONFIG_MAC + i) : "\x52\x54\0\0\0\1"[i];
    virtio_ready(device);
    for (u16 pair = 0; pair < net->pairs; pair++) {
        for (u16 i = 0; i < net->rx[pair]->size; i++)
            net_post(net, pair, i);
        virtq_kick(net->rx[pair]);
    }
    if (net->pairs > 1 && !net_control(net, NET_CTRL_PAIRS, &net->pairs, 2))
        net->pairs = 1;
    return true;
}

static bool is_sound(const struct net *net)
{
    for (u16 pair = 0; pair < net->pairs; pair++)
        if (net->rx[pair]->broken || net->tx[pair]->broken)
            return false;
    return !(virtio_status(net->device) & STATUS_NEEDS_RESET);
}

struct net *net_open(u64 number)
{
    struct virtio *device = virtio_find(VIRTIO_NET, number);
    if (!device)
        return NULL;
    struct net *net = device->driver;
    if (!net) {
        device->driver = net = (struct net *)page_alloc((sizeof *net + PAGE_SIZE - 1) / PAGE_SIZE);
        if (!net)
            return NULL;
        net->device = device;
    }
    if (device->running && is_sound(net))
        return net;
    if (!start(net))
        return NULL;
    if (net->answering)
        ip_start(net, net->address, net->prefix);
    return net;
}

bool net_control(struct net *net, u16 command, const void *data, u32 length)
{
    struct {
        u8 class, command, ack, data[61];
    } *request = (void *)(net->frame_memory + NET_MAX_FRAME / PAGE_SIZE * PAGE_SIZE + PAGE_SIZE);
    u64 token, end = rdtsc() + ms_to_tsc(CONTROL_TIMEOUT_MS);
    if (!net->control || net->control->broken || length > sizeof request->data)
        return false;
    request->class = (u8)(command >> 8);
    request->command = (u8)command;
    request->ack = 0xff;
    memcpy(request->data, data, length);
    struct buffer ack = {(u64)&request->ack, 1, true};
    struct buffer buffers[3] = {{(u64)request, 2, false}, {(u64)request->data, length, false}, ack};
    if (!length)
        buffers[1] = ack;
    if (!virtq_add(net->control, buffers, length ? 3 : 2, 0))
        return false;
    virtq_kick(net->control);
    u32 written;
    while (!virtq_pop(net->control, &token, &written)) {
        if (rdtsc() >= end) {
            print("net: no answer from the control queue\n");
            return false;
        }
        cpu_relax();
    }
    return *(volatile u8 *)&request->ack == 0;
}

/* Waits for the next buffer of a frame, which the device has promised with the first. */
static bool pop_more(struct virtq *q, u64 *token, u32 *length)
{
    u64 end = rdtsc() + us_to_tsc(MERGE_TIMEOUT_US);
    while (!virtq_pop(q, token, length))
        if (rdtsc() >= end || q->broken)
            return false;
    return true;
}

/* A frame in several buffers is put together in frame_memory. Returns its length, or 0 if it is not whole. */
static u32 merge(struct net *net, u16 pair, u64 first, u32 length, u16 buffers)
{
    u32 total = 0;
    bool whole = true;
    for (u64 token = first;;) {
        if (total + length <= NET_MAX_FRAME + NET_HEADER && length <= NET_RX_BYTES)
            memcpy((void *)(net->frame_memory + total), (void *)rx_buffer(net, pair, token), length);
        else
            whole = false;
        total += length;
        net_post(net, pair, token);
        if (!--buffers)
            return whole ? total : 0;
        if (!pop_more(net->rx[pair], &token, &length))
            return 0;
    }
}

static bool receive_one(struct net *net, u16 pair, net_handler *handle)
{
    u64 token;
    u32 length;
    if (!virtq_pop(net->rx[pair], &token, &length))
        return false;
    u64 memory = rx_buffer(net, pair, token);
    u16 buffers = net->device->features & NET_F_MRG_RXBUF ? ((struct net_header *)memory)->num_buffers : 1;
    bool merged = buffers > 1;
    if (length < NET_HEADER + 14 || length > NET_RX_BYTES || !buffers) {
        net->errors++;
        net_post(net, pair, token);
        return true;
    }
    if (merged) {
        length = merge(net, pair, token, length, buffers);
        memory = net->frame_memory;
    }
    if (length) {
        net->received++;
        net->received_bytes += length - NET_HEADER;
        handle(net, (struct net_header *)memory, (u8 *)memory + NET_HEADER, length - NET_HEADER);
    } else {
        net->errors++;
    }
    if (!merged)
        net_post(net, pair, token);
    return true;
}

u32 net_receive(struct net *net, net_handler *handle, u32 budget)
{
    u32 done = 0;
    for (u16 pair = 0; pair < net->pairs; pair++) {
        while (done < budget && receive_one(net, pair, handle))
            done++;
        virtq_kick(net->rx[pair]);
    }
    return done;
}

bool net_rx_interrupts(struct net *net, bool on)
{
    bool idle = true;
    for (u16 pair = 0; pair < net->pairs; pair++)
        idle &= virtq_interrupts(net->rx[pair], on);
    return idle;
}

u32 net_tx_reclaim(struct net *net)
{
    u32 done = 0, length;
    u64 token;
    for (u16 pair = 0; pair < net->pairs; pair++)
        for (; virtq_pop(net->tx[pair], &token, &length); done++)
            net->tx_free[net->tx_free_count++] = (u16)token;
    net->sent += done;
    return done;
}

int net_tx_slot(struct net *net)
{
    if (!net->tx_free_count)
        net_tx_reclaim(net);
    return net->tx_free_count ? net->tx_free[--net->tx_free_count] : -1;
}

bool net_send(struct net *net, int slot, u32 length, u64 body, u32 more)
{
    struct buffer buffers[2] = {{(u64)net_slot(net, slot), NET_HEADER + length, false}, {body, more, false}};
    struct virtq *q = net->tx[net->tx_next_pair++ % net->pairs];
    if (virtq_add(q, buffers, more ? 2 : 1, (u64)slot))
        return true;
    net->tx_free[net->tx_free_count++] = (u16)slot;
    return false;
}

void net_kick(struct net *net)
{
    for (u16 pair = 0; pair < net->pairs; pair++)
        virtq_kick(net->tx[pair]);
}

u32 net_in_flight(const struct net *net)
{
    u32 count = 0;
    for (u16 pair = 0; pair < net->pairs; pair++)
        count += virtq_in_flight(net->tx[pair]);
    return count;
}

bool net_tx_flush(struct net *net)
{
    u64 end = rdtsc() + ms_to_tsc(2000);
    net_kick(net);
    while (net_in_flight(net) && rdtsc() < end)
        if (!net_tx_reclaim(net))
            cpu_relax();
    return !net_in_flight(net);
}

u64 net_kicks(const struct net *net, bool tx)
{
    u64 count = 0;
    for (u16 pair = 0; pair < net->pairs; pair++)
        count += (tx ? net->tx : net->rx)[pair]->kicks;
    return count;
}

u64 net_interrupts(const struct net *net, bool tx)
{
    return virtq_interrupt_sum(tx ? net->tx : net->rx, net->pairs);
}

void net_start_counts(struct net *net)
{
    for (u16 pair = 0; pair < net->pairs; pair++) {
        virtq_start_counts(net->rx[pair]);
        virtq_start_counts(net->tx[pair]);
    }
}
