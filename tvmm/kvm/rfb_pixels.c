/* rfb.h: what all encodings share, and the Raw one. */
#include "rfb.h"

#include <string.h>

#pragma GCC push_options
#pragma GCC optimize("O3")

static int rect_fits(const struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect)
{
    if (!job->width || job->width > TVMM_SCREEN_WIDTH_MAX || !job->height || job->height > TVMM_SCREEN_HEIGHT_MAX)
        return 0;
    if (job->canvas_size != 4ull * job->width * job->height)
        return 0;
    if (!rect->width || rect->width > job->width || rect->x > job->width - rect->width)
        return 0;
    return rect->height && rect->height <= job->height && rect->y <= job->height - rect->height;
}

/* Whether `bytes` may be written, and the rest of a pixel behind them. */
static int room_for(const struct tvmm_rfb_job *job, uint64_t bytes)
{
    return job->room >= TVMM_RFB_SLACK && bytes <= job->room - TVMM_RFB_SLACK;
}

static inline const tvmm_pixel *canvas_at(const struct tvmm_rfb_job *job, uint32_t x, uint32_t y)
{
    return (const tvmm_pixel *)(job->canvas + 4 * ((uint64_t)y * job->width + x));
}

static void shift_line(const tvmm_pixel *restrict source, uint32_t *restrict target, uint32_t count, uint32_t red,
                       uint32_t green, uint32_t blue)
{
    for (uint32_t at = 0; at < count; at++) {
        uint32_t pixel = source[at];
        target[at] = (pixel >> 16 & 255) << red | (pixel >> 8 & 255) << green | (pixel & 255) << blue;
    }
}

static inline void convert_line(const struct tvmm_rfb_format *format, const tvmm_pixel *source, uint32_t *target,
                                uint32_t count)
{
    if (format->plain) {
        memcpy(target, source, 4ull * count);
        return;
    }
    if (format->shifted) {
        shift_line(source, target, count, format->red_shift & 31, format->green_shift & 31, format->blue_shift & 31);
        return;
    }
    for (uint32_t at = 0; at < count; at++) {
        uint32_t pixel = source[at];
        target[at] = format->red[pixel >> 16 & 255] | format->green[pixel >> 8 & 255] | format->blue[pixel & 255];
    }
}

/* A rectangle of the canvas in the viewer's values, without gaps. `target` has room for all of it. */
static void convert_rect(const struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect, uint32_t *target)
{
    for (uint32_t y = 0; y < rect->height; y++, target += rect->width)
        convert_line(job->format, canvas_at(job, rect->x, rect->y + y), target, rect->width);
}

static inline uint8_t *put_pixel(uint8_t *out, uint32_t value, uint32_t bytes)
{
    memcpy(out, &value, 4);
    return out + bytes;
}

static uint8_t *put_pixels(uint8_t *restrict out, const uint32_t *restrict pixels, uint32_t count, uint32_t bytes)
{
    switch (bytes) {
    case 1:
        for (uint32_t at = 0; at < count; at++)
            out[at] = (uint8_t)pixels[at];
        break;
    case 2:
        for (uint32_t at = 0; at < count; at++)
            ((tvmm_pixel16 *)out)[at] = (uint16_t)pixels[at];
        break;
    case 3:
        for (uint32_t at = 0; at < count; at++)
            memcpy(out + 3 * at, &pixels[at], 4);
        break;
    default: memcpy(out, pixels, 4ull * count); break;
    }
    return out + (uint64_t)count * bytes;
}

/* --- palettes ------------------------------------------------------------------------------------------------------ */

static void palette_clear(struct tvmm_rfb_palette *palette, uint32_t limit)
{
    palette->count = 0;
    palette->limit = limit < TVMM_RFB_PALETTE_MAX ? limit : TVMM_RFB_PALETTE_MAX;
    palette->overflow = 0;
    memset(palette->slots, 0, sizeof palette->slots);
}

/* The number of a colour, which is taken in if it is new. Once there was one too many, 0. */
static inline uint32_t palette_number(struct tvmm_rfb_palette *palette, uint32_t colour)
{
    /* Four times as many slots as colours: there is always a free one. */
    uint32_t slot = (colour * palette->key) >> 22;
    for (; palette->slots[slot]; slot = (slot + 1) % TVMM_RFB_SLOTS)
        if (palette->colours[palette->slots[slot] - 1] == colour)
            return palette->slots[slot] - 1u;
    if (palette->count == palette->limit) {
        palette->overflow = 1;
        return 0;
    }
    palette->colours[palette->count++] = colour;
    palette->slots[slot] = (uint16_t)palette->count;
    return palette->count - 1;
}

/* Length of the run that begins at `at`. */
static inline uint32_t run_length(const uint32_t *pixels, uint32_t at, uint32_t count)
{
    uint32_t colour = pixels[at], end = at + 1;
    while (end < count && pixels[end] == colour)
        end++;
    return end - at;
}

/* Indices of a row, which are below 2^bits, as bits. */
static uint8_t *put_packed(uint8_t *out, const uint8_t *numbers, uint32_t count, uint32_t bits)
{
    uint32_t per_byte = 8 / bits, at = 0;
    for (; at + per_byte <= count; at += per_byte) {
        uint32_t byte = 0;
        for (uint32_t next = 0; next < per_byte; next++)
            byte = byte << bits | numbers[at + next];
        *out++ = (uint8_t)byte;
    }
    if (at < count) {
        uint32_t byte = 0;
        for (uint32_t next = 0; next < per_byte; next++)
            byte = byte << bits | (at + next < count ? numbers[at + next] : 0u);
        *out++ = (uint8_t)byte;
    }
    return out;
}

int64_t tvmm_rfb_raw(struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect)
{
    uint32_t bytes = job->format->bytes;
    uint32_t line[TVMM_SCREEN_WIDTH_MAX];
    uint8_t *out = job->out;
    if (!rect_fits(job, rect) || !room_for(job, (uint64_t)rect->width * rect->height * bytes))
        return -1;
    for (uint32_t y = 0; y < rect->height; y++) {
        convert_line(job->format, canvas_at(job, rect->x, rect->y + y), line, rect->width);
        out = put_pixels(out, line, rect->width, bytes);
    }
    return out - job->out;
}

#pragma GCC pop_options
