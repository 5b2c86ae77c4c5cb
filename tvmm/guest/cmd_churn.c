/*
 * All that a migration could damage at once: pages, a disk, packets, clocks. A load of what there is, with a summary in
 * one line.
 */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "load.h"
#include "machine.h"
#include "pages.h"

#define MAX_RATE        1000000000
#define DEFAULT_RATE    1000 /* of pages and disk requests, a second */
#define DEFAULT_ECHOES  200
#define DEFAULT_BYTES   (64ull << 20)
#define DEFAULT_DISK_MIB 16
#define DEFAULT_DEPTH   4
#define MIN_DISK_MIB    1
#define SEED            1

struct options {
    u64 bytes, page_rate, disk, mib, depth, disk_rate, net, echo_rate;
    bool no_disk, disk_asked, with_net;
    u32 peer;
};

static bool parse(struct options *o, struct load *load, int count, char **arguments)
{
    for (int i = 1; i < count; i++) {
        const char *word = arguments[i];
        if (!strcmp(word, "disk=none"))
            o->no_disk = true;
        else if (number_option(word, "disk=", VIRTIO_MAX_DEVICES, &o->disk))
            o->disk_asked = true;
        else if (starts_with(word, "peer=") && parse_ipv4(word + 5, &o->peer, NULL))
            o->with_net = true;
        else if (!(i == 1 && parse_number(word, &load->seconds)) &&
                 !number_option(word, "pages=", (u64)-1, &o->bytes) &&
                 !number_option(word, "rate=", MAX_RATE, &o->page_rate) &&
                 !number_option(word, "mib=", 1u << 24, &o->mib) &&
                 !number_option(word, "depth=", BLKDATA_DEPTH, &o->depth) &&
                 !number_option(word, "iops=", MAX_RATE, &o->disk_rate) &&
                 !number_option(word, "net=", VIRTIO_MAX_DEVICES, &o->net) &&
                 !number_option(word, "pps=", MAX_RATE, &o->echo_rate) && !load_option(load, word))
            return false;
    }
    return o->depth && (!o->bytes || o->bytes >= 16 * PAGE_SIZE);
}

static bool have(u32 type, u64 number)
{
    virtio_probe();
    for (size_t i = 0; i < virtio_count; i++)
        if (virtio_devices[i]->type == type && virtio_devices[i]->number == number)
            return true;
    return false;
}

/* The disk's area, written once from end to end, so that every block is known. False, with a line, on failure. */
static bool open_disk(struct load *load, const struct options *o)
{
    if (o->no_disk || (!o->disk_asked && !have(VIRTIO_BLK, o->disk)))
        return true;
    struct blk *blk = blk_open(o->disk);
    if (!blk)
        return false;
    u64 mib = o->mib ? o->mib : min_u64(DEFAULT_DISK_MIB, blk->capacity >> 11);
    if (mib < MIN_DISK_MIB || blk->device->features & BLK_F_RO) {
        print("churn: disk %lu is too small or read-only\n", o->disk);
        return false;
    }
    load->disk = blkdata_open("churn", o->disk, mib, SEED);
    if (!load->disk)
        return false;
    load->disk->random = SEED * 2 + 1;
    if (!blkdata_pass(load->disk, BLK_WRITE, false, load->disk->blocks, 0) || load->disk->failed) {
        print("churn: disk %lu cannot be written\n", o->disk);
        return false;
    }
    load->disk->writes = load->disk->done = 0;
    load->depth = (u32)o->depth;
    load->disk_pace.rate = o->disk_rate;
    return true;
}

static bool open_net(struct load *load, const struct options *o)
{
    if (!o->with_net)
        return true;
    load->echoes.net = net_open(o->net);
    load->echoes.pace.rate = o->echo_rate;
    return load->echoes.net != NULL;
}

static bool open_pages(struct load *load, const struct options *o)
{
    u64 pages = o->bytes / PAGE_SIZE;
    if (!pages)
        pages = pages_count() ? pages_count() : min_u64(DEFAULT_BYTES / PAGE_SIZE, pages_free() / 2);
    load->pages = true;
    load->page_pace.rate = o->page_rate;
    return pages_set_up(pages * PAGE_SIZE);
}

/* All of it; these requests don't count, what is wrong does. */
static void verify_disk(struct blkdata *disk)
{
    u64 done = disk->done;
    blkdata_pass(disk, BLK_READ, false, disk->blocks, 0);
    disk->done = done;
}

bool cmd_churn(int count, char **arguments)
{
    struct options o = {.page_rate = DEFAULT_RATE, .disk_rate = DEFAULT_RATE, .echo_rate = DEFAULT_ECHOES,
                        .depth = DEFAULT_DEPTH};
    struct load load = {.name = arguments[0]};
    if (!parse(&o, &load, count, arguments))
        return false;
    /* Devices first: they take their memory from the top of what the pages may have. */
    if (!open_disk(&load, &o) || !open_net(&load, &o) || !open_pages(&load, &o) ||
        (o.with_net && !echoes_start(&load.echoes, o.peer)))
        return true;
    print("churning\n");
    load_run(&load);
    load.rtc_off = meter_rtc_off(&load.meter);
    clear_interrupted(); /* a second Ctrl-C breaks off what follows */
    pages_verify();
    if (load.disk)
        verify_disk(load.disk);
    load_summary(&load, false);
    return true;
}
