/* pixels.h. Plain loops of known length that the compiler turns into vector code; -O2 alone does not. */
#include "pixels.h"

#include <string.h>

#pragma GCC push_options
#pragma GCC optimize("O3")

/* Bits by which two runs of pixels differ; the top byte of the guest's is anything. */
static inline uint32_t differs_32(const tvmm_pixel *restrict source, const tvmm_pixel *restrict target, uint32_t count)
{
    uint32_t bits = 0;
    if (count == TVMM_TILE_WIDTH) { /* a length that is known makes better code */
        for (uint32_t at = 0; at < TVMM_TILE_WIDTH; at++)
            bits |= source[at] ^ target[at];
    } else {
        for (uint32_t at = 0; at < count; at++)
            bits |= source[at] ^ target[at];
    }
    return bits & 0xffffff;
}

static inline void convert_32(const uint8_t *source, uint32_t *restrict target, uint32_t count)
{
    const tvmm_pixel *pixels = (const tvmm_pixel *)source;
    for (uint32_t at = 0; at < count; at++)
        target[at] = pixels[at] & 0xffffff;
}

static inline void convert_24(const uint8_t *restrict source, uint32_t *restrict target, uint32_t count)
{
    for (uint32_t at = 0; at < count; at++)
        target[at] = source[3 * at] | (uint32_t)source[3 * at + 1] << 8 | (uint32_t)source[3 * at + 2] << 16;
}

/* Fewer bits become 8 by repeating the upper ones below, so that all ones stay all ones. */
static inline void convert_16(const uint8_t *source, uint32_t *restrict target, uint32_t count)
{
    const tvmm_pixel16 *pixels = (const tvmm_pixel16 *)source;
    for (uint32_t at = 0; at < count; at++) {
        uint32_t pixel = pixels[at];
        uint32_t red = pixel >> 11, green = pixel >> 5 & 63, blue = pixel & 31;
        target[at] = (red << 3 | red >> 2) << 16 | (green << 2 | green >> 4) << 8 | (blue << 3 | blue >> 2);
    }
}

static inline void convert_15(const uint8_t *source, uint32_t *restrict target, uint32_t count)
{
    const tvmm_pixel16 *pixels = (const tvmm_pixel16 *)source;
    for (uint32_t at = 0; at < count; at++) {
        uint32_t pixel = pixels[at];
        uint32_t red = pixel >> 10 & 31, green = pixel >> 5 & 31, blue = pixel & 31;
        target[at] = (red << 3 | red >> 2) << 16 | (green << 3 | green >> 2) << 8 | (blue << 3 | blue >> 2);
    }
}

static inline void convert_8(const uint8_t *restrict source, const uint32_t *restrict palette,
                             uint32_t *restrict target, uint32_t count)
{
    for (uint32_t at = 0; at < count; at++)
        target[at] = palette[source[at]] & 0xffffff;
}

static void convert_row(const struct tvmm_surface *surface, const uint8_t *source, uint32_t *target, uint32_t count)
{
    switch (surface->bits) {
    case 8: convert_8(source, surface->palette, target, count); break;
    case 15: convert_15(source, target, count); break;
    case 16: convert_16(source, target, count); break;
    case 24: convert_24(source, target, count); break;
    default: convert_32(source, target, count); break;
    }
}

/* One tile: 1 if it changed. Lines before the first that differs are only read. */
static uint32_t refresh_tile(const struct tvmm_surface *surface, const uint8_t *source, uint8_t *target, uint32_t width,
                             uint32_t height)
{
    uint32_t changed = 0, row[TVMM_TILE_WIDTH];
    for (uint32_t y = 0; y < height; y++, source += surface->stride, target += 4ull * surface->width) {
        if (surface->bits == 32 && !differs_32((const tvmm_pixel *)source, (const tvmm_pixel *)target, width))
            continue;
        convert_row(surface, source, row, width);
        if (surface->bits != 32 && !memcmp(row, target, 4ull * width))
            continue;
        memcpy(target, row, 4ull * width);
        changed = 1;
    }
    return changed;
}

#pragma GCC pop_options

/* Whether a page with any of the bytes from `first` up to `end` was touched. */
static int any_touched(const uint8_t *touched, uint64_t first, uint64_t end)
{
    uint64_t page = first / TVMM_VRAM_PAGE;
    return memchr(touched + page, 1, (end - 1) / TVMM_VRAM_PAGE - page + 1) != NULL;
}

static int lines_touched(const struct tvmm_surface *surface, const uint8_t *touched, uint64_t first, uint64_t bytes,
                         uint32_t lines)
{
    for (uint32_t y = 0; y < lines; y++, first += surface->stride)
        if (any_touched(touched, first, first + bytes))
            return 1;
    return 0;
}

static int surface_fits(const struct tvmm_surface *surface, uint64_t vram_size)
{
    uint32_t bytes = (surface->bits + 7) / 8;
    if (surface->bits != 8 && surface->bits != 15 && surface->bits != 16 && surface->bits != 24 && surface->bits != 32)
        return 0;
    if (!surface->width || surface->width > TVMM_SCREEN_WIDTH_MAX)
        return 0;
    if (!surface->height || surface->height > TVMM_SCREEN_HEIGHT_MAX)
        return 0;
    /* With these the sum below cannot wrap. */
    if (surface->stride > 1u << 31 || surface->offset > vram_size || vram_size > 1ull << 48)
        return 0;
    return surface->offset + (surface->height - 1) * surface->stride + (uint64_t)surface->width * bytes <= vram_size;
}

int32_t tvmm_screen_refresh(const struct tvmm_surface *surface, const uint8_t *vram, uint64_t vram_size,
                            const uint8_t *touched, uint64_t touched_size, uint8_t *canvas, uint64_t canvas_size,
                            uint8_t *damage, uint64_t damage_size)
{
    uint32_t width = surface->width, height = surface->height, bytes = (surface->bits + 7) / 8;
    int32_t changed = 0;
    if (!surface_fits(surface, vram_size) || canvas_size != 4ull * width * height)
        return -1;
    uint32_t columns = (width + TVMM_TILE_WIDTH - 1) / TVMM_TILE_WIDTH;
    uint32_t rows = (height + TVMM_TILE_HEIGHT - 1) / TVMM_TILE_HEIGHT;
    if (damage_size != (uint64_t)columns * rows)
        return -1;
    if (touched && touched_size < (vram_size + TVMM_VRAM_PAGE - 1) / TVMM_VRAM_PAGE)
        return -1;
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t y = row * TVMM_TILE_HEIGHT;
        uint32_t lines = height - y < TVMM_TILE_HEIGHT ? height - y : TVMM_TILE_HEIGHT;
        uint64_t first = surface->offset + y * surface->stride;
        if (touched && !any_touched(touched, first, first + (lines - 1) * surface->stride + (uint64_t)width * bytes))
            continue;
        for (uint32_t column = 0; column < columns; column++) {
            uint32_t x = column * TVMM_TILE_WIDTH;
            uint32_t across = width - x < TVMM_TILE_WIDTH ? width - x : TVMM_TILE_WIDTH;
            uint64_t from = first + (uint64_t)x * bytes;
            if (touched && !lines_touched(surface, touched, from, (uint64_t)across * bytes, lines))
                continue;
            if (!refresh_tile(surface, vram + from, canvas + 4 * ((uint64_t)y * width + x), across, lines))
                continue;
            damage[(uint64_t)row * columns + column] = 1;
            changed++;
        }
    }
    return changed;
}
