/* rfb.h: the encodings that are made of tiles, Hextile (RFC 6143, 7.7.4) and ZRLE before its compression (7.7.6). */
#include "rfb.h"

#include <string.h>

#pragma GCC push_options
#pragma GCC optimize("O3")

#define HEXTILE 16u
#define HEXTILE_PIXELS (HEXTILE * HEXTILE)
#define HEXTILE_COLOURS 16u /* a tile with more is sent as it is */
#define HEX_RAW 1u
#define HEX_BACKGROUND 2u
#define HEX_FOREGROUND 4u
#define HEX_SUBRECTS 8u
#define HEX_COLOURED 16u

/* What the viewer carries over from tile to tile. */
struct hextile_state {
    uint32_t background, foreground;
    uint32_t have_background, have_foreground;
};

/* Colours of a tile with how many pixels each has; 0 if there are too many. The most frequent one is first. */
static uint32_t hextile_colours(const uint32_t *pixels, uint32_t count, uint32_t *colours)
{
    uint32_t found = 0, counts[HEXTILE_COLOURS], most = 0;
    for (uint32_t at = 0; at < count;) {
        uint32_t length = run_length(pixels, at, count), number = 0;
        while (number < found && colours[number] != pixels[at])
            number++;
        if (number == HEXTILE_COLOURS)
            return 0;
        if (number == found) {
            colours[found] = pixels[at];
            counts[found++] = 0;
        }
        counts[number] += length;
        at += length;
    }
    for (uint32_t number = 1; number < found; number++)
        if (counts[number] > counts[most])
            most = number;
    uint32_t first = colours[0];
    colours[0] = colours[most];
    colours[most] = first;
    return found;
}

/* Rectangles over a background, at most 255 and `limit` bytes: how many bytes they take, 0 if there are more. */
static uint32_t hextile_subrects(const uint32_t *pixels, uint32_t width, uint32_t height, uint32_t background,
                                 uint32_t coloured, uint32_t bytes, uint32_t limit, uint8_t *out, uint32_t *found)
{
    uint8_t done[HEXTILE_PIXELS] = {0}, *start = out;
    uint32_t each = coloured ? bytes + 2 : 2, count = 0;
    for (uint32_t y = 0; y < height; y++)
        for (uint32_t x = 0; x < width; x++) {
            uint32_t colour = pixels[y * width + x], right = x + 1, bottom = y + 1;
            if (colour == background || done[y * width + x])
                continue;
            while (right < width && pixels[y * width + right] == colour && !done[y * width + right])
                right++;
            for (; bottom < height; bottom++) {
                uint32_t column = x;
                while (column < right && pixels[bottom * width + column] == colour)
                    column++;
                if (column < right)
                    break;
            }
            for (uint32_t row = y; row < bottom; row++)
                memset(done + row * width + x, 1, right - x);
            if (++count > 255 || count * each > limit)
                return 0;
            if (coloured)
                out = put_pixel(out, colour, bytes);
            *out++ = (uint8_t)(x << 4 | y);
            *out++ = (uint8_t)((right - x - 1) << 4 | (bottom - y - 1));
        }
    *found = count;
    return (uint32_t)(out - start);
}

static uint8_t *hextile_tile(const uint32_t *pixels, uint32_t width, uint32_t height, uint32_t bytes,
                             struct hextile_state *state, uint8_t *out)
{
    uint32_t colours[HEXTILE_COLOURS], count = width * height, raw = count * bytes, found, subrects = 0, size = 0;
    uint8_t rects[HEXTILE_PIXELS * 4 + TVMM_RFB_SLACK];
    found = hextile_colours(pixels, count, colours);
    if (found > 1)
        size = hextile_subrects(pixels, width, height, colours[0], found > 2, bytes, raw, rects, &subrects);
    if (!found || (found > 1 && (!size || size + 1 + 2 * bytes >= raw))) {
        *out++ = HEX_RAW;
        state->have_background = state->have_foreground = 0;
        return put_pixels(out, pixels, count, bytes);
    }
    uint8_t *mask = out++;
    *mask = 0;
    if (!state->have_background || state->background != colours[0]) {
        *mask |= HEX_BACKGROUND;
        out = put_pixel(out, colours[0], bytes);
        state->background = colours[0];
        state->have_background = 1;
    }
    if (found == 1)
        return out;
    *mask |= HEX_SUBRECTS;
    if (found > 2) {
        *mask |= HEX_COLOURED;
        state->have_foreground = 0;
    } else if (!state->have_foreground || state->foreground != colours[1]) {
        *mask |= HEX_FOREGROUND;
        out = put_pixel(out, colours[1], bytes);
        state->foreground = colours[1];
        state->have_foreground = 1;
    }
    *out++ = (uint8_t)subrects;
    memcpy(out, rects, size);
    return out + size;
}

int64_t tvmm_rfb_hextile(struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect)
{
    uint32_t bytes = job->format->bytes, pixels[HEXTILE_PIXELS];
    struct hextile_state state = {0};
    uint8_t *out = job->out;
    if (!rect_fits(job, rect))
        return -1;
    uint64_t tiles = (uint64_t)((rect->width + HEXTILE - 1) / HEXTILE) * ((rect->height + HEXTILE - 1) / HEXTILE);
    if (!room_for(job, tiles + (uint64_t)rect->width * rect->height * bytes))
        return -1;
    for (uint32_t y = 0; y < rect->height; y += HEXTILE)
        for (uint32_t x = 0; x < rect->width; x += HEXTILE) {
            struct tvmm_rfb_rect tile = {rect->x + x, rect->y + y, HEXTILE, HEXTILE};
            if (rect->width - x < HEXTILE)
                tile.width = rect->width - x;
            if (rect->height - y < HEXTILE)
                tile.height = rect->height - y;
            convert_rect(job, &tile, pixels);
            out = hextile_tile(pixels, tile.width, tile.height, bytes, &state, out);
        }
    return out - job->out;
}

/* --- ZRLE ---------------------------------------------------------------------------------------------------------- */

#define ZRLE_TILE 64u
#define ZRLE_PIXELS (ZRLE_TILE * ZRLE_TILE)
#define ZRLE_COLOURS 127u /* that a palette with run lengths can have */
#define ZRLE_PACKED 16u   /* and one without */

/* A tile's runs. */
struct zrle_runs {
    uint32_t count;
    uint32_t singles;      /* runs of one pixel */
    uint32_t length_bytes; /* of the lengths of all others */
    uint16_t lengths[ZRLE_PIXELS];
    uint8_t numbers[ZRLE_PIXELS]; /* in the palette, as long as that holds */
};

static void zrle_find_runs(const uint32_t *pixels, uint32_t count, struct tvmm_rfb_palette *palette,
                           struct zrle_runs *runs)
{
    uint32_t number = 0;
    runs->count = runs->singles = runs->length_bytes = 0;
    palette_clear(palette, ZRLE_COLOURS);
    for (uint32_t at = 0; at < count;) {
        uint32_t length = run_length(pixels, at, count);
        if (!palette->overflow)
            number = palette_number(palette, pixels[at]);
        runs->numbers[runs->count] = (uint8_t)number;
        runs->lengths[runs->count++] = (uint16_t)length;
        if (length == 1)
            runs->singles++;
        else
            runs->length_bytes += 1 + (length - 1) / 255;
        at += length;
    }
}

static inline uint8_t *put_length(uint8_t *out, uint32_t length)
{
    for (length--; length >= 255; length -= 255)
        *out++ = 255;
    *out++ = (uint8_t)length;
    return out;
}

static uint32_t packed_bits(uint32_t colours) { return colours <= 2 ? 1 : colours <= 4 ? 2 : 4; }

static uint8_t *zrle_packed(const struct zrle_runs *runs, uint32_t width, uint32_t height, uint32_t bits, uint8_t *out)
{
    uint8_t numbers[ZRLE_PIXELS];
    uint32_t at = 0;
    for (uint32_t run = 0; run < runs->count; at += runs->lengths[run++])
        memset(numbers + at, runs->numbers[run], runs->lengths[run]);
    for (uint32_t y = 0; y < height; y++)
        out = put_packed(out, numbers + y * width, width, bits);
    return out;
}

static uint8_t *zrle_palette_runs(const struct zrle_runs *runs, uint8_t *out)
{
    for (uint32_t run = 0; run < runs->count; run++) {
        if (runs->lengths[run] == 1) {
            *out++ = runs->numbers[run];
            continue;
        }
        *out++ = runs->numbers[run] | 128;
        out = put_length(out, runs->lengths[run]);
    }
    return out;
}

static uint8_t *zrle_plain_runs(const struct zrle_runs *runs, const uint32_t *pixels, uint32_t bytes, uint8_t *out)
{
    for (uint32_t run = 0; run < runs->count; pixels += runs->lengths[run++]) {
        out = put_pixel(out, *pixels, bytes);
        out = put_length(out, runs->lengths[run]);
    }
    return out;
}

/* The smallest of what a tile can be. None takes more than its raw pixels and one byte. */
static uint8_t *zrle_tile(const uint32_t *pixels, uint32_t width, uint32_t height, uint32_t bytes,
                          struct tvmm_rfb_palette *palette, uint8_t *out)
{
    struct zrle_runs runs;
    uint32_t count = width * height;
    zrle_find_runs(pixels, count, palette, &runs);
    if (runs.count == 1) {
        *out++ = 1;
        return put_pixel(out, pixels[0], bytes);
    }
    uint32_t best = count * bytes, kind = 0, colours = palette->count;
    uint32_t plain = runs.count * bytes + runs.singles + runs.length_bytes;
    if (plain < best) {
        best = plain;
        kind = 128;
    }
    if (!palette->overflow) {
        uint32_t mapped = colours * bytes + runs.count + runs.length_bytes;
        if (mapped < best) {
            best = mapped;
            kind = 128 + colours;
        }
        if (colours <= ZRLE_PACKED) {
            uint32_t bits = packed_bits(colours);
            uint32_t packed = colours * bytes + (width * bits + 7) / 8 * height;
            if (packed <= best)
                kind = colours;
        }
    }
    *out++ = (uint8_t)kind;
    if (!kind)
        return put_pixels(out, pixels, count, bytes);
    if (kind == 128)
        return zrle_plain_runs(&runs, pixels, bytes, out);
    out = put_pixels(out, palette->colours, colours, bytes);
    return kind < 128 ? zrle_packed(&runs, width, height, packed_bits(colours), out) : zrle_palette_runs(&runs, out);
}

int64_t tvmm_rfb_zrle(struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect)
{
    uint32_t bytes = job->format->bytes;
    uint8_t *out = job->out;
    if (!rect_fits(job, rect))
        return -1;
    uint64_t tiles = (uint64_t)((rect->width + ZRLE_TILE - 1) / ZRLE_TILE) * ((rect->height + ZRLE_TILE - 1) / ZRLE_TILE);
    if (!room_for(job, tiles + (uint64_t)rect->width * rect->height * bytes))
        return -1;
    for (uint32_t y = 0; y < rect->height; y += ZRLE_TILE)
        for (uint32_t x = 0; x < rect->width; x += ZRLE_TILE) {
            struct tvmm_rfb_rect tile = {rect->x + x, rect->y + y, ZRLE_TILE, ZRLE_TILE};
            if (rect->width - x < ZRLE_TILE)
                tile.width = rect->width - x;
            if (rect->height - y < ZRLE_TILE)
                tile.height = rect->height - y;
            convert_rect(job, &tile, job->pixels);
            out = zrle_tile(job->pixels, tile.width, tile.height, bytes, &job->palette, out);
        }
    return out - job->out;
}

#pragma GCC pop_options
