/* A pair of queues within the limits of its device: see limit.h and net.h.
 *
 * Frames are charged by the counters: what these have grown by since the last look is what has passed. So a frame is
 * asked for before it is read, when nobody knows how long it is, and charged when it has passed; those that are dropped
 * are not. Frames that have to wait do so where they are, in the ring or in the TAP's queue, which loses what is too
 * much, as any wire does.
 */
#include "net.h"

static void net_charge(struct tvmm_net *net, struct tvmm_limit *limit, uint64_t now_ns)
{
    const struct tvmm_net_counters *counters = &net->counters;
    uint64_t passed[2][2] = {{counters->rx_frames, counters->rx_bytes}, {counters->tx_frames, counters->tx_bytes}};
    uint32_t generation = __atomic_load_n(&limit->generation, __ATOMIC_ACQUIRE);
    struct tvmm_net_throttle *throttle = &net->throttle;

    /* What passed while nothing was limited is nobody's affair. */
    int counts = throttle->generation == generation;
    throttle->generation = generation;
    for (uint32_t index = 0; index < 2; index++) {
        uint64_t *seen = throttle->seen[index];
        uint64_t frames = passed[index][0] - seen[0], bytes = passed[index][1] - seen[1];
        seen[0] = passed[index][0];
        seen[1] = passed[index][1];
        if (counts && frames)
            tvmm_limit_charge(limit, TVMM_LIMIT_IN + index, frames, bytes, now_ns);
    }
}

/* Whether no frame may pass in the direction of a queue, TVMM_NET_RX or _TX, for now. */
int tvmm_net_closed(struct tvmm_net *net, uint32_t index)
{
    struct tvmm_limit *limit = tvmm_limit_of(&net->throttle.limit);
    uint64_t now = tvmm_now_ns();

    if (!limit)
        return 0;
    net_charge(net, limit, now);
    int closed = tvmm_limit_ask_both(limit, &net->throttle.members[index], TVMM_LIMIT_IN + index, now) != 0;
    net->throttle.closed = (net->throttle.closed & ~(1u << index)) | (uint32_t)closed << index;
    return closed;
}

/* For how many ns at most the directions stay closed; 0: one is open again. -1: none is closed. */
int64_t tvmm_net_limit_wait(struct tvmm_net *net)
{
    struct tvmm_limit *limit = tvmm_limit_of(&net->throttle.limit);
    uint64_t now = tvmm_now_ns();
    int64_t least = -1;

    if (!limit)
        return -1;
    for (uint32_t index = TVMM_NET_RX; index <= TVMM_NET_TX; index++) {
        if (!(net->throttle.closed & 1u << index))
            continue;
        int64_t wait = tvmm_limit_ask_both(limit, &net->throttle.members[index], TVMM_LIMIT_IN + index, now);
        if (!wait)
            net->throttle.closed &= ~(1u << index);
        if (least < 0 || wait < least)
            least = wait;
    }
    return least;
}

/* By any thread, which wakes the server afterwards. `limit` is the same each time, and outlives the pair. */
void tvmm_net_set_limit(struct tvmm_net *net, struct tvmm_limit *limit, uint32_t on)
{
    net->throttle.limiter = limit;
    __atomic_store_n(&net->throttle.limit, on ? limit : NULL, __ATOMIC_RELEASE);
}

/* A queue is not served for now: nobody is to wait for it. */
void tvmm_net_limit_leave(struct tvmm_net *net, uint32_t index)
{
    if (net->throttle.limiter)
        tvmm_limit_forget(net->throttle.limiter, &net->throttle.members[index]);
    net->throttle.closed &= ~(1u << index);
}
