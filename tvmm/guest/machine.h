/* What the loader told us: command line, memory map, initial ramdisk; and a page allocator on top of it. */
#ifndef GUEST_MACHINE_H
#define GUEST_MACHINE_H

#include "lib.h"

#define PAGE_SIZE   4096
#define MAX_REGIONS 64
#define REGION_RAM  1

struct region {
    u64 start, size;
    u32 type; /* as in e820: 1 RAM, 2 reserved, ... */
};

struct machine {
    u32 entry; /* ENTRY_PVH or ENTRY_LINUX64 */
    u64 start_tsc;
    char command_line[4096];
    struct region regions[MAX_REGIONS];
    size_t region_count;
    u64 ram_bytes;
    u64 initrd_start, initrd_size;
};

extern struct machine machine;

void machine_init(u32 entry, u64 info);
const char *entry_name(void);
bool command_line_has(const char *word); /* as a whole word */
void print_memory_map(void);

/* Contiguous zeroed pages that are never given back; 0 if memory is out. */
u64 page_alloc(size_t pages);

/*
 * The same for much memory, from the top of RAM and not zeroed: rings and buffers of devices. 0 if memory is out.
 * It is taken from what free_ram() finds.
 */
u64 dma_alloc(size_t pages);

/*
 * The RAM that nobody uses: behind the image and page_alloc()'s reserve, below what dma_alloc() gave. Returns the
 * number of pieces.
 */
size_t free_ram(struct region *pieces, size_t limit);
void keep_ram(u64 end); /* somebody uses the free RAM up to `end`: dma_alloc() gives nothing below it away */
size_t unused_ram(struct region *pieces, size_t limit); /* the part of free_ram() that nobody keeps */
u64 unused_pages(void);

/* One page of that RAM, from the top, and back again, best in the reverse order. 0: there is none. */
u64 ram_lend(void);
void ram_return(u64 page);

#endif
