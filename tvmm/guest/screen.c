/*
 * The display driver. The framebuffer is memory of the host, so it is mapped like RAM: uncached, as devices are, each
 * store would go out alone where the host's processor honours the guest's memory types.
 */
#include "screen.h"
#include "console.h"
#include "font.h"
#include "machine.h"

#define DISPLAY_ID   0x11111234
#define DAC          0x400 /* BAR 2: EDID, then the VGA ports from 0x3c0 on (standard VGA only), then VBE */
#define DISPI        0x500
#define ATTRIBUTE    (DAC + 0x00)
#define DAC_INDEX    (DAC + 0x08)
#define DAC_DATA     (DAC + 0x09)
#define INPUT_STATUS (DAC + 0x1a)
#define PALETTE_ON   0x20

enum { VBE_ID, VBE_WIDTH, VBE_HEIGHT, VBE_BITS, VBE_ENABLE, VBE_BANK, VBE_VIRTUAL_WIDTH, VBE_VIRTUAL_HEIGHT, VBE_X, VBE_Y,
       VBE_MEMORY };
#define ENABLED 0x01
#define DAC_8BIT 0x20
#define LINEAR  0x40

#define EDID_BYTES 128
#define EDID_NAME  0xfc

#define PDE_RAM     0xe7 /* as in tables.S */
#define LARGE_PAGE  (2ull << 20)

struct screen screen;
extern u64 pdpt[512];

static u16 vbe_read(u32 index) { return mmio_read16(screen.registers + DISPI + 2 * index); }
static void vbe_write(u32 index, u32 value) { mmio_write16(screen.registers + DISPI + 2 * index, (u16)value); }

static void read_edid(void)
{
    u8 edid[EDID_BYTES];
    for (u32 i = 0; i < EDID_BYTES; i += 4) {
        u32 word = mmio_read32(screen.registers + i);
        memcpy(edid + i, &word, 4);
    }
    if (memcmp(edid, "\0\xff\xff\xff\xff\xff\xff", 8))
        return;
    for (u32 at = 54; at < 126; at += 18) {
        const u8 *block = edid + at;
        if (at == 54 && (block[0] || block[1])) {
            screen.preferred_width = block[2] | (block[4] & 0xf0u) << 4;
            screen.preferred_height = block[5] | (block[7] & 0xf0u) << 4;
        } else if (!block[0] && !block[1] && block[3] == EDID_NAME) {
            for (u32 i = 0; i < EDID_NAME_BYTES - 1 && block[5 + i] >= ' ' && block[5 + i] < 0x7f; i++)
                screen.name[i] = (char)block[5 + i];
        }
    }
}

/* The page tables of the low 4 GiB are made of 2 MiB pages; what of the framebuffer fills such pages becomes cached. */
static void map_cached(u64 start, u64 bytes)
{
    for (u64 at = start; at % LARGE_PAGE == 0 && at + LARGE_PAGE <= start + bytes; at += LARGE_PAGE) {
        u64 *directory = (u64 *)(pdpt[at >> 30] & ~0xfffull);
        directory[at >> 21 & 511] = at | PDE_RAM;
    }
    syscall(SYS_FLUSH, 0, 0);
}

static bool try_function(pci_address function)
{
    if (pci_read32(function, PCI_VENDOR) != DISPLAY_ID)
        return false;
    screen.function = function;
    screen.memory = pci_bar(function, 0);
    screen.registers = pci_bar(function, 2);
    if (!screen.memory || !screen.registers)
        return false;
    pci_write16(function, PCI_COMMAND, pci_read16(function, PCI_COMMAND) | PCI_COMMAND_MEMORY);
    if ((vbe_read(VBE_ID) & 0xfff0) != 0xb0c0)
        return false;
    screen.memory_bytes = (u64)vbe_read(VBE_MEMORY) << 16;
    map_cached(screen.memory, screen.memory_bytes);
    read_edid();
    return true;
}

bool screen_probe(void)
{
    static bool done, found;
    pci_address functions[PCI_MAX_FUNCTIONS];
    size_t count = done ? 0 : pci_scan(functions, PCI_MAX_FUNCTIONS);
    done = true;
    for (size_t i = 0; i < count && !found; i++)
        found = try_function(functions[i]);
    return found;
}

/* Indexes of 8 bits are red, green and blue with 3, 3 and 2 of them. Also ends VGA's blanking, as it is after reset. */
static void set_palette(void)
{
    mmio_read8(screen.registers + INPUT_STATUS);
    mmio_write8(screen.registers + ATTRIBUTE, PALETTE_ON);
    if (screen.bits != 8)
        return;
    mmio_write8(screen.registers + DAC_INDEX, 0);
    for (u32 i = 0; i < 256; i++) {
        mmio_write8(screen.registers + DAC_DATA, (u8)((i >> 5) * 255 / 7));
        mmio_write8(screen.registers + DAC_DATA, (u8)((i >> 2 & 7) * 255 / 7));
        mmio_write8(screen.registers + DAC_DATA, (u8)((i & 3) * 255 / 3));
    }
}

static u32 pixel_bytes(void) { return (screen.bits + 7) / 8; }

bool screen_set_mode(u32 width, u32 height, u32 bits)
{
    screen.width = 0;
    screen.bits = bits;
    vbe_write(VBE_ENABLE, 0);
    vbe_write(VBE_BITS, bits);
    vbe_write(VBE_WIDTH, width);
    vbe_write(VBE_HEIGHT, height);
    vbe_write(VBE_BANK, 0);
    vbe_write(VBE_VIRTUAL_WIDTH, width);
    vbe_write(VBE_X, 0);
    vbe_write(VBE_Y, 0);
    vbe_write(VBE_ENABLE, ENABLED | LINEAR | (bits == 8 ? DAC_8BIT : 0));
    screen.stride = vbe_read(VBE_VIRTUAL_WIDTH) * pixel_bytes();
    if (vbe_read(VBE_WIDTH) != width || vbe_read(VBE_HEIGHT) != height || vbe_read(VBE_BITS) != bits ||
        screen.stride < width * pixel_bytes() || (u64)screen.stride * height > screen.memory_bytes)
        return false;
    set_palette();
    screen.width = width;
    screen.height = height;
    screen_fill(0, 0, width, height, 0); /* not every display starts a mode with a black screen */
    return true;
}

bool screen_ready(void)
{
    if (!screen_probe()) {
        print("screen: none\n");
        return false;
    }
    u32 width = screen.preferred_width, height = screen.preferred_height;
    if (screen.width || (width && height && screen_set_mode(width, height, 32)) || screen_set_mode(1024, 768, 32))
        return true;
    print("screen: the display takes no mode\n");
    return false;
}

static void put_pixels(u64 to, const u32 *colours, u32 count)
{
    switch (screen.bits) {
    case 32:
        memcpy((void *)to, colours, 4ull * count);
        break;
    case 24:
        for (u32 i = 0; i < count; i++) {
            ((u8 *)to)[3 * i] = (u8)colours[i];
            ((u8 *)to)[3 * i + 1] = (u8)(colours[i] >> 8);
            ((u8 *)to)[3 * i + 2] = (u8)(colours[i] >> 16);
        }
        break;
    case 16:
        for (u32 i = 0; i < count; i++)
            ((u16 *)to)[i] = (u16)((colours[i] >> 8 & 0xf800) | (colours[i] >> 5 & 0x7e0) | (colours[i] >> 3 & 0x1f));
        break;
    case 15:
        for (u32 i = 0; i < count; i++)
            ((u16 *)to)[i] = (u16)((colours[i] >> 9 & 0x7c00) | (colours[i] >> 6 & 0x3e0) | (colours[i] >> 3 & 0x1f));
        break;
    default:
        for (u32 i = 0; i < count; i++)
            ((u8 *)to)[i] = (u8)((colours[i] >> 16 & 0xe0) | (colours[i] >> 11 & 0x1c) | (colours[i] >> 6 & 3));
    }
}

static u64 pixel_at(u32 x, u32 y) { return screen.memory + (u64)y * screen.stride + x * pixel_bytes(); }

void screen_put_row(u32 x, u32 y, const u32 *colours, u32 count)
{
    if (x < screen.width && y < screen.height)
        put_pixels(pixel_at(x, y), colours, (u32)min_u64(count, screen.width - x));
}

u32 *screen_row(void)
{
    static u32 *row;
    if (!row)
        row = (u32 *)page_alloc((SCREEN_MAX_WIDTH * 4 + PAGE_SIZE - 1) / PAGE_SIZE);
    return row;
}

/* One row by pixels, the others as copies of it. */
void screen_fill(u32 x, u32 y, u32 width, u32 height, u32 colour)
{
    u32 *row = screen_row();
    if (!row || x >= screen.width || y >= screen.height || !width)
        return;
    width = (u32)min_u64(width, screen.width - x);
    height = (u32)min_u64(height, screen.height - y);
    for (u32 i = 0; i < width; i++)
        row[i] = colour;
    for (u32 i = 0; i < height; i++)
        screen_put_row(x, y + i, row, width);
}

void screen_text(u32 x, u32 y, const char *text, u32 length, u32 ink, u32 paper)
{
    u32 *row = screen_row();
    if (!row || x >= screen.width)
        return;
    u32 width = (u32)min_u64((u64)length * FONT_WIDTH, screen.width - x);
    for (u32 line = 0; line < FONT_HEIGHT; line++) {
        for (u32 i = 0; i < width; i++)
            row[i] = font_row((u8)text[i / FONT_WIDTH], line) & 0x80 >> i % FONT_WIDTH ? ink : paper;
        screen_put_row(x, y + line, row, width);
    }
}

void screen_scroll(u32 width, u32 height, u32 rows)
{
    u64 bytes = min_u64(width, screen.width) * pixel_bytes();
    height = (u32)min_u64(height, screen.height);
    for (u32 y = rows; y < height; y++)
        memcpy((void *)pixel_at(0, y - rows), (const void *)pixel_at(0, y), bytes);
}
