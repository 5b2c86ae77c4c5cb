/* The servers of disks and networks on one thread, which is the driver too: so many requests through a ring, and that is
 * all. Built twice and run by bench/limits.py, behind the text of the sources in tvmm/kvm.
 *
 *     limit_cost disk|tx|rx BATCH LAPS FILE        prints nanoseconds a request
 *
 * A batch is shown to the server at once, and the server comes back to have the driver interrupted.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define BENCH_MEMORY (1u << 20)
#define BENCH_SIZE 256u
#define BENCH_AVAIL 0x2000u
#define BENCH_USED 0x3000u
#define BENCH_HEADER 0x8000u
#define BENCH_STATUS 0x9000u
#define BENCH_DATA 0x10000u
#define BENCH_FRAME 1526u

static uint8_t *bench_memory;
static uint16_t bench_shown;

static void bench_descriptor(uint32_t index, uint64_t gpa, uint32_t length, uint16_t flags, uint16_t next)
{
    uint8_t *at = bench_memory + 16 * index;
    memcpy(at, &gpa, 8);
    memcpy(at + 8, &length, 4);
    memcpy(at + 12, &flags, 2);
    memcpy(at + 14, &next, 2);
}

/* Chains of `pieces` descriptors each. */
static void bench_show(uint32_t batch, uint32_t pieces)
{
    uint16_t *avail = (uint16_t *)(bench_memory + BENCH_AVAIL);
    for (uint32_t number = 0; number < batch; number++, bench_shown++)
        avail[2 + bench_shown % BENCH_SIZE] = (uint16_t)(number * pieces);
    __atomic_store_n(&avail[1], bench_shown, __ATOMIC_RELEASE);
}

static struct tvmm_vring *bench_ring(void)
{
    struct tvmm_vring *ring = tvmm_vring_new();
    struct tvmm_memory_map *map = calloc(1, sizeof *map + sizeof map->regions[0]);
    static struct tvmm_device_log log;
    map->count = 1;
    map->log = &log;
    map->regions[0] = (struct tvmm_region){0, BENCH_MEMORY, bench_memory, 0};
    ring->size = BENCH_SIZE;
    ring->descriptor_area = 0;
    ring->driver_area = BENCH_AVAIL;
    ring->device_area = BENCH_USED;
    if (tvmm_vring_configure(ring, map) || ring->error)
        abort();
    return ring;
}

static uint32_t bench_disk(uint32_t batch, uint32_t laps, const char *path)
{
    struct tvmm_waker waker;
    static struct tvmm_blk_file file;
    struct tvmm_blk_setup setup = {.memory_align = 1, .offset_align = 1, .engine = TVMM_BLK_SYNC, .depth = BENCH_SIZE};
    int error;

    setup.fd = setup.plain_fd = open(path, O_RDONLY);
    tvmm_waker_open(&waker);
    struct tvmm_blk *blk = tvmm_blk_new(&setup, &file, &waker, waker.event_fd, 0, &error);
    blk->limits.capacity = 8;
    blk->queue.call_fd = TVMM_CALL_PYTHON;
    for (uint32_t number = 0; number < batch; number++) {
        bench_descriptor(3 * number, BENCH_HEADER, 16, 1, (uint16_t)(3 * number + 1));
        bench_descriptor(3 * number + 1, BENCH_DATA, 4096, 3, (uint16_t)(3 * number + 2));
        bench_descriptor(3 * number + 2, BENCH_STATUS, 1, 2, 0);
    }
    if (tvmm_blk_start(blk, bench_ring()))
        abort();
    for (uint32_t lap = 0; lap < laps; lap++) {
        bench_show(batch, 3);
        if (tvmm_blk_serve(blk) != TVMM_SERVE_INTERRUPT)
            abort();
    }
    return (uint32_t)blk->counters.requests[TVMM_BLK_READ];
}

static uint32_t bench_net(uint32_t batch, uint32_t laps, int sends)
{
    static struct tvmm_chain chains[2][TVMM_NET_TURN];
    static struct tvmm_used used[2][TVMM_NET_TURN];
    static struct iovec iovecs[2][TVMM_NET_TURN];
    static struct mmsghdr messages[TVMM_NET_TURN];
    struct tvmm_batch batches[2];
    struct tvmm_waker waker;
    struct iovec frame = {bench_memory + BENCH_DATA, BENCH_FRAME};
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends) < 0)
        abort();
    for (uint32_t index = 0; index < 2; index++)
        batches[index] = (struct tvmm_batch){.chain_limit = TVMM_NET_TURN, .iovec_limit = TVMM_NET_TURN,
                                             .chains = chains[index], .used = used[index], .iovecs = iovecs[index]};
    tvmm_waker_open(&waker);
    struct tvmm_net *net = tvmm_net_new(sends ? open("/dev/null", O_WRONLY) : ends[0]);
    net->waker = &waker;
    net->rx_batch = &batches[0];
    net->tx_batch = &batches[1];
    net->attached = net->link_up = 1;
    net->filter.modes = TVMM_NET_PROMISCUOUS;
    for (uint32_t number = 0; number < batch; number++) {
        bench_descriptor(number, BENCH_DATA, BENCH_FRAME, sends ? 0 : 2, 0);
        messages[number].msg_hdr = (struct msghdr){.msg_iov = &frame, .msg_iovlen = 1};
    }
    tvmm_net_start(net, sends ? TVMM_NET_TX : TVMM_NET_RX, bench_ring(), waker.event_fd, TVMM_CALL_PYTHON);
    for (uint32_t lap = 0; lap < laps; lap++) {
        if (!sends && sendmmsg(ends[1], messages, batch, 0) != (int)batch)
            abort();
        bench_show(batch, 1);
        if (tvmm_net_serve(net) != TVMM_SERVE_INTERRUPT)
            abort();
    }
    return (uint32_t)(sends ? net->counters.tx_frames : net->counters.rx_frames);
}

int main(int count, char **words)
{
    if (count != 5)
        return 2;
    uint32_t batch = (uint32_t)atoi(words[2]), laps = (uint32_t)atoi(words[3]);
    bench_memory = mmap(NULL, BENCH_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t start = tvmm_now_ns();
    uint32_t done = words[1][0] == 'd' ? bench_disk(batch, laps, words[4]) : bench_net(batch, laps, words[1][0] == 't');
    if (done != batch * laps)
        abort();
    printf("%.1f\n", (double)(tvmm_now_ns() - start) / done);
    return 0;
}
