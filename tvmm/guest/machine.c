/*
 * Reads what the loader left in memory, by either boot protocol, and copies it at once: nothing keeps the
 * loader's pages from being reused. RAM above 4 GiB is mapped here, out of reach of the static tables.
 */
#include "machine.h"
#include "console.h"

#define PVH_MAGIC      0x336ec578
#define LINUX_E820     0x2d0
#define LINUX_E820_MAX 128
#define PTE_TABLE      0x07 /* present, writable, user */
#define PTE_RAM        0xe7 /* the same, accessed, dirty, 2 MiB page */
#define GIB            (1ull << 30)
/* What page_alloc() has, besides a page directory for each GiB of RAM: stacks of 256 CPUs take 5 MiB. */
#define ALLOCATOR_BYTES (8ull << 20)

struct pvh_start_info {
    u32 magic, version, flags, module_count;
    u64 modules, command_line, rsdp, memory_map;
    u32 memory_map_entries, reserved;
};

struct pvh_module {
    u64 address, size, command_line, reserved;
};

struct pvh_memory {
    u64 start, size;
    u32 type, reserved;
};

struct linux_e820 {
    u64 start, size;
    u32 type;
} __attribute__((packed));

struct machine machine;
static u64 alloc_next, alloc_end;
static u64 kept_end;
static u64 dma_start = (u64)-1; /* what dma_alloc() has given away begins here, in the highest piece of RAM */

extern u64 pdpt[512];

static void copy_command_line(u64 address)
{
    const char *from = (const char *)address;
    size_t length = 0;
    while (address && from[length] && length < sizeof machine.command_line - 1)
        length++;
    memcpy(machine.command_line, from, length);
}

static void add_region(u64 start, u64 size, u32 type)
{
    if (machine.region_count == MAX_REGIONS || size == 0)
        return;
    machine.regions[machine.region_count++] = (struct region){start, size, type};
    if (type == REGION_RAM)
        machine.ram_bytes += size;
}

static void read_pvh(const struct pvh_start_info *info)
{
    if (info->magic != PVH_MAGIC)
        return;
    copy_command_line(info->command_line);
    const struct pvh_memory *entry = (const void *)info->memory_map;
    for (u32 i = 0; info->version >= 1 && i < info->memory_map_entries; i++)
        add_region(entry[i].start, entry[i].size, entry[i].type);
    if (info->module_count) {
        const struct pvh_module *module = (const void *)info->modules;
        machine.initrd_start = module->address;
        machine.initrd_size = module->size;
    }
}

static u32 zero_page_u32(const u8 *page, size_t offset)
{
    u32 value;
    memcpy(&value, page + offset, sizeof value);
    return value;
}

static u64 zero_page_u64(const u8 *page, size_t low, size_t high)
{
    return zero_page_u32(page, low) | (u64)zero_page_u32(page, high) << 32;
}

static void read_zero_page(const u8 *page)
{
    copy_command_line(zero_page_u64(page, 0x228, 0x0c8)); /* cmd_line_ptr, ext_cmd_line_ptr */
    machine.initrd_start = zero_page_u64(page, 0x218, 0x0c0);
    machine.initrd_size = zero_page_u64(page, 0x21c, 0x0c4);
    const struct linux_e820 *entry = (const void *)(page + LINUX_E820);
    for (u32 i = 0; i < page[0x1e8] && i < LINUX_E820_MAX; i++)
        add_region(entry[i].start, entry[i].size, entry[i].type);
}

/* One page directory for each GiB above 4 GiB that has RAM in it; new entries need no TLB flush. */
static void map_high(const struct region *ram)
{
    u64 end = min_u64(ram->start + ram->size, 512 * GIB);
    for (u64 gib = max_u64(ram->start, 4 * GIB) / GIB; gib * GIB < end; gib++) {
        if (pdpt[gib])
            continue;
        u64 *directory = (u64 *)page_alloc(1);
        if (!directory)
            return;
        for (u64 i = 0; i < 512; i++)
            directory[i] = (gib * GIB + (i << 21)) | PTE_RAM;
        pdpt[gib] = (u64)directory | PTE_TABLE;
    }
}

void machine_init(u32 entry, u64 info)
{
    machine.entry = entry;
    if (entry == ENTRY_PVH)
        read_pvh((const void *)info);
    else
        read_zero_page((const void *)info);
    alloc_next = ((u64)image_end + PAGE_SIZE - 1) & -(u64)PAGE_SIZE;
    for (size_t i = 0; i < machine.region_count; i++) {
        const struct region *r = &machine.regions[i];
        if (r->type == REGION_RAM && r->start <= alloc_next && alloc_next - r->start < r->size)
            alloc_end = min_u64(r->start + r->size,
                                alloc_next + ALLOCATOR_BYTES + machine.ram_bytes / GIB * PAGE_SIZE);
    }
    for (size_t i = 0; i < machine.region_count; i++)
        if (machine.regions[i].type == REGION_RAM)
            map_high(&machine.regions[i]);
}

const char *entry_name(void)
{
    return machine.entry == ENTRY_PVH ? "PVH" : "64-bit Linux boot";
}

bool command_line_has(const char *word)
{
    const char *at = machine.command_line;
    size_t length = strlen(word);
    while (*at) {
        if (starts_with(at, word) && (at[length] == ' ' || at[length] == 0))
            return true;
        while (*at && *at != ' ')
            at++;
        while (*at == ' ')
            at++;
    }
    return false;
}

void print_memory_map(void)
{
    static const char *const names[] = {"?", "RAM", "reserved", "ACPI tables", "ACPI NVS", "unusable"};
    for (size_t i = 0; i < machine.region_count; i++) {
        const struct region *r = &machine.regions[i];
        print("  0x%012lx-0x%012lx %10lu KiB  %s\n", r->start, r->start + r->size - 1, r->size >> 10,
              r->type < ARRAY_SIZE(names) ? names[r->type] : "?");
    }
    print("  0x%012lx-0x%012lx %10lu KiB  this program\n", (u64)image_start, (u64)image_end - 1,
          (u64)(image_end - image_start) >> 10);
}

u64 page_alloc(size_t pages)
{
    if (alloc_end - alloc_next < pages * PAGE_SIZE)
        return 0;
    u64 address = alloc_next;
    alloc_next += pages * PAGE_SIZE;
    memset((void *)address, 0, pages * PAGE_SIZE);
    return address;
}

size_t free_ram(struct region *pieces, size_t limit)
{
    size_t count = 0;
    for (size_t i = 0; i < machine.region_count && count < limit; i++) {
        const struct region *r = &machine.regions[i];
        u64 start = max_u64(r->start, alloc_end), end = min_u64(min_u64(r->start + r->size, 512 * GIB), dma_start);
        start = (start + PAGE_SIZE - 1) & -(u64)PAGE_SIZE;
        if (r->type == REGION_RAM && start < end)
            pieces[count++] = (struct region){start, (end - start) & -(u64)PAGE_SIZE, REGION_RAM};
    }
    return count;
}

void keep_ram(u64 end) { kept_end = end; }

u64 dma_alloc(size_t pages)
{
    struct region pieces[MAX_REGIONS];
    const struct region *highest = NULL;
    size_t count = free_ram(pieces, MAX_REGIONS);
    for (size_t i = 0; i < count; i++)
        if (!highest || pieces[i].start > highest->start)
            highest = &pieces[i];
    if (!highest || highest->size / PAGE_SIZE < pages)
        return 0;
    u64 start = highest->start + highest->size - pages * PAGE_SIZE;
    if (start < kept_end)
        return 0;
    return dma_start = start;
}

size_t unused_ram(struct region *pieces, size_t limit)
{
    size_t count = free_ram(pieces, limit), left = 0;
    for (size_t i = 0; i < count; i++) {
        u64 end = pieces[i].start + pieces[i].size, start = max_u64(pieces[i].start, kept_end);
        if (start < end)
            pieces[left++] = (struct region){start, end - start, REGION_RAM};
    }
    return left;
}

u64 unused_pages(void)
{
    struct region pieces[MAX_REGIONS];
    size_t count = unused_ram(pieces, MAX_REGIONS);
    u64 pages = 0;
    for (size_t i = 0; i < count; i++)
        pages += pieces[i].size / PAGE_SIZE;
    return pages;
}

/* Pages that came back when others had been taken below them: each has the address of the next. */
static u64 returned;

u64 ram_lend(void)
{
    u64 page = returned;
    if (!page)
        return dma_alloc(1);
    returned = *(u64 *)page;
    return page;
}

void ram_return(u64 page)
{
    if (page == dma_start) {
        dma_start += PAGE_SIZE;
    } else {
        *(u64 *)page = returned;
        returned = page;
    }
}
