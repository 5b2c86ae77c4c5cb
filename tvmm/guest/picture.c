/*
 * The test picture. README.md defines it, tests/support/guest_picture.py is the same in Python. It has what encoders
 * treat in different ways: flat areas, few colours, gradients, single pixels, text, noise.
 */
#include "picture.h"
#include "font.h"
#include "screen.h"

#define BANDS 6

static const u32 palette[8] = {0x000000, 0xff0000, 0x00ff00, 0xffff00, 0x0000ff, 0xff00ff, 0x00ffff, 0xffffff};

static void bars(u32 *row, u32 width)
{
    for (u32 x = 0; x < width; x++)
        row[x] = palette[7 - x * 8 / width];
}

static void gradients(u32 *row, u32 width, u32 y, u32 height)
{
    for (u32 x = 0; x < width; x++) {
        u32 red = x * 256 / width;
        row[x] = red << 16 | (y * 256 / height) << 8 | (255 - red);
    }
}

static void grid(u32 *row, u32 width, u32 y)
{
    for (u32 x = 0; x < width; x++) {
        bool white = x < width / 2 ? (x ^ y) & 1 : x % 8 == 0 || y % 8 == 0;
        row[x] = white ? 0xffffff : 0x000000;
    }
}

static void text(u32 *row, u32 width, u32 y, u32 seed)
{
    for (u32 x = 0; x < width; x++) {
        u32 column = x / FONT_WIDTH, line = y / FONT_HEIGHT;
        u8 character = (u8)(FONT_FIRST + (column + line * 7 + seed) % (FONT_LAST - FONT_FIRST + 1));
        bool ink = font_row(character, y % FONT_HEIGHT) & 0x80 >> x % FONT_WIDTH;
        row[x] = ink ? palette[1 + (column + line) % 7] : 0x000000;
    }
}

static void noise(u32 *row, u32 width, u32 *state)
{
    for (u32 x = 0; x < width; x++) {
        *state = *state * 1664525 + 1013904223;
        row[x] = *state >> 8;
    }
}

static void tiles(u32 *row, u32 width, u32 y, u32 seed)
{
    for (u32 x = 0; x < width; x++)
        row[x] = palette[((x / 16) ^ (y / 16) ^ seed) % 8];
}

static void draw_row(u32 *row, u32 y, u32 seed, u32 *state)
{
    u32 width = screen.width, height = screen.height, band = (u32)max_u64(height / BANDS, 1);
    u32 which = (u32)min_u64(y / band, BANDS - 1), inside = y - which * band;
    switch (which) {
    case 0: bars(row, width); break;
    case 1: gradients(row, width, inside, band); break;
    case 2: grid(row, width, inside); break;
    case 3: text(row, width, inside, seed); break;
    case 4: noise(row, width, state); break;
    default: tiles(row, width, inside, seed);
    }
    row[0] = row[width - 1] = 0xffffff;
    if (y == 0 || y == height - 1) {
        for (u32 x = 0; x < width; x++)
            row[x] = 0xffffff;
        row[0] = y ? 0x0000ff : 0xff0000; /* red, green: top left and right; blue, yellow: bottom */
        row[width - 1] = y ? 0xffff00 : 0x00ff00;
    }
}

u32 picture_draw(u32 seed)
{
    u32 *row = screen_row(), hash = FNV1A_START, state = seed;
    for (u32 y = 0; row && y < screen.height; y++) {
        draw_row(row, y, seed, &state);
        hash = fnv1a(hash, row, 4ull * screen.width);
        screen_put_row(0, y, row, screen.width);
    }
    return hash;
}
