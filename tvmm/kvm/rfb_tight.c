/* rfb.h: what Tight and TightPNG need. The rectangle is looked at in cells, which are the canvas's tiles cut at its edges,
 * so that what was a photograph in one update is one in the next. */
#include "rfb.h"

#include <string.h>

#pragma GCC push_options
#pragma GCC optimize("O3")

#define CELL_COLUMNS_MAX (TVMM_SCREEN_WIDTH_MAX / TVMM_TILE_WIDTH + 1)
#define CELL_ROWS_MAX (TVMM_SCREEN_HEIGHT_MAX / TVMM_TILE_HEIGHT + 1)
#define TIGHT_WIDTH_MAX 2048u
#define SOLID_AREA_MIN 4096u        /* below it a rectangle of its own costs more than the pixels among others */
#define PHOTO_AREA_MIN 2048u        /* below it JPEG's tables cost more than the pixels */
#define PHOTO_AREA_MAX (1u << 19)   /* what one picture takes from the event loop */
#define PHOTO_COLOURS 8u            /* a photograph has more colours than one for so many pixels */
#define PHOTO_ALIKE_PERCENT 50u     /* and less than so many pixels that are like their left neighbours */

/* A cell once it is part of a piece. */
#define TAKEN 255u

struct cells {
    uint32_t columns, rows, first_column, first_row;
    uint8_t kinds[CELL_ROWS_MAX][CELL_COLUMNS_MAX];
    uint32_t colours[CELL_ROWS_MAX][CELL_COLUMNS_MAX]; /* of those that are solid */
};

/* The part of a rectangle that some cells have. */
static struct tvmm_rfb_rect cells_rect(const struct cells *cells, const struct tvmm_rfb_rect *rect, uint32_t column,
                                       uint32_t row, uint32_t across, uint32_t down)
{
    uint32_t left = (cells->first_column + column) * TVMM_TILE_WIDTH, right = left + across * TVMM_TILE_WIDTH;
    uint32_t top = (cells->first_row + row) * TVMM_TILE_HEIGHT, bottom = top + down * TVMM_TILE_HEIGHT;
    if (left < rect->x)
        left = rect->x;
    if (top < rect->y)
        top = rect->y;
    if (right > rect->x + rect->width)
        right = rect->x + rect->width;
    if (bottom > rect->y + rect->height)
        bottom = rect->y + rect->height;
    return (struct tvmm_rfb_rect){left, top, right - left, bottom - top};
}

static uint32_t differing(const tvmm_pixel *restrict line, uint32_t colour, uint32_t count)
{
    uint32_t bits = 0;
    for (uint32_t at = 0; at < count; at++)
        bits |= line[at] ^ colour;
    return bits;
}

static uint32_t alike(const tvmm_pixel *line, uint32_t count)
{
    uint32_t same = 0;
    for (uint32_t at = 1; at < count; at++)
        same += line[at] == line[at - 1];
    return same;
}

static int is_solid(const struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect)
{
    uint32_t colour = *canvas_at(job, rect->x, rect->y);
    for (uint32_t y = 0; y < rect->height; y++)
        if (differing(canvas_at(job, rect->x, rect->y + y), colour, rect->width))
            return 0;
    return 1;
}

static int is_photo(const struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect, struct tvmm_rfb_palette *palette)
{
    uint32_t same = 0, area = rect->width * rect->height;
    for (uint32_t y = 0; y < rect->height; y++)
        same += alike(canvas_at(job, rect->x, rect->y + y), rect->width);
    if (same * 100 >= area * PHOTO_ALIKE_PERCENT)
        return 0;
    palette_clear(palette, area / PHOTO_COLOURS);
    for (uint32_t y = 0; y < rect->height; y++) {
        const tvmm_pixel *line = canvas_at(job, rect->x, rect->y + y);
        for (uint32_t x = 0; x < rect->width; x++)
            palette_number(palette, line[x]);
        if (palette->overflow)
            return 1;
    }
    return 0;
}

static void find_kinds(const struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect, uint32_t photos,
                       struct cells *cells)
{
    struct tvmm_rfb_palette palette;
    palette.key = job->palette.key;
    for (uint32_t row = 0; row < cells->rows; row++)
        for (uint32_t column = 0; column < cells->columns; column++) {
            struct tvmm_rfb_rect cell = cells_rect(cells, rect, column, row, 1, 1);
            cells->kinds[row][column] = TVMM_RFB_FLAT;
            if (is_solid(job, &cell)) {
                cells->kinds[row][column] = TVMM_RFB_SOLID;
                cells->colours[row][column] = *canvas_at(job, cell.x, cell.y);
            } else if (photos && is_photo(job, &cell, &palette)) {
                cells->kinds[row][column] = TVMM_RFB_PHOTO;
            }
        }
    /* A dark spot must not cut a photograph in pieces. */
    for (uint32_t row = 0; photos && row < cells->rows; row++)
        for (uint32_t column = 1; column + 1 < cells->columns; column++)
            if (cells->kinds[row][column] == TVMM_RFB_SOLID && cells->kinds[row][column - 1] == TVMM_RFB_PHOTO &&
                cells->kinds[row][column + 1] == TVMM_RFB_PHOTO)
                cells->kinds[row][column] = TVMM_RFB_PHOTO;
}

static int same_cell(const struct cells *cells, uint32_t row, uint32_t column, uint32_t kind, uint32_t colour)
{
    return cells->kinds[row][column] == kind &&
           (kind != TVMM_RFB_SOLID || cells->colours[row][column] == colour);
}

/* The widest, and then highest, rectangle of like cells from one on, within the limits of a piece. */
static void grow(const struct cells *cells, const struct tvmm_rfb_rect *rect, uint32_t column, uint32_t row,
                 uint32_t *across, uint32_t *down)
{
    uint32_t kind = cells->kinds[row][column], colour = kind == TVMM_RFB_SOLID ? cells->colours[row][column] : 0;
    uint32_t limit = kind == TVMM_RFB_SOLID ? ~0u : kind == TVMM_RFB_PHOTO ? PHOTO_AREA_MAX : TVMM_RFB_AREA_MAX;
    struct tvmm_rfb_rect grown;
    for (*across = 1, *down = 1; column + *across < cells->columns; ++*across) {
        if (!same_cell(cells, row, column + *across, kind, colour))
            break;
        grown = cells_rect(cells, rect, column, row, *across + 1, 1);
        if (grown.width > TIGHT_WIDTH_MAX)
            break;
    }
    for (; row + *down < cells->rows; ++*down) {
        for (uint32_t at = column; at < column + *across; at++)
            if (!same_cell(cells, row + *down, at, kind, colour))
                return;
        grown = cells_rect(cells, rect, column, row, *across, *down + 1);
        if (grown.width * grown.height > limit)
            return;
    }
}

static int take_piece(struct cells *cells, const struct tvmm_rfb_rect *rect, uint32_t column, uint32_t row,
                      uint32_t across, uint32_t down, struct tvmm_rfb_piece *pieces, uint64_t *count, uint64_t limit)
{
    if (*count == limit)
        return -2;
    struct tvmm_rfb_piece *piece = &pieces[(*count)++];
    piece->kind = cells->kinds[row][column];
    piece->rect = cells_rect(cells, rect, column, row, across, down);
    if (piece->kind == TVMM_RFB_PHOTO && piece->rect.width * piece->rect.height < PHOTO_AREA_MIN)
        piece->kind = TVMM_RFB_FLAT;
    for (uint32_t y = row; y < row + down; y++)
        memset(&cells->kinds[y][column], TAKEN, across);
    return 0;
}

int64_t tvmm_rfb_plan(const struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect, uint32_t photos,
                      struct tvmm_rfb_piece *pieces, uint64_t limit)
{
    struct cells cells;
    uint32_t across, down;
    uint64_t count = 0;
    if (!rect_fits(job, rect))
        return -1;
    cells.first_column = rect->x / TVMM_TILE_WIDTH;
    cells.first_row = rect->y / TVMM_TILE_HEIGHT;
    cells.columns = (rect->x + rect->width - 1) / TVMM_TILE_WIDTH - cells.first_column + 1;
    cells.rows = (rect->y + rect->height - 1) / TVMM_TILE_HEIGHT - cells.first_row + 1;
    find_kinds(job, rect, photos, &cells);
    for (uint32_t row = 0; row < cells.rows; row++)
        for (uint32_t column = 0; column < cells.columns; column++) {
            if (cells.kinds[row][column] != TVMM_RFB_SOLID)
                continue;
            grow(&cells, rect, column, row, &across, &down);
            struct tvmm_rfb_rect grown = cells_rect(&cells, rect, column, row, across, down);
            /* A small one is left to what is around it, and so are its parts. */
            if (grown.width * grown.height < SOLID_AREA_MIN && (across < cells.columns || down < cells.rows)) {
                cells.kinds[row][column] = TVMM_RFB_FLAT;
                continue;
            }
            if (take_piece(&cells, rect, column, row, across, down, pieces, &count, limit))
                return -2;
        }
    for (uint32_t row = 0; row < cells.rows; row++)
        for (uint32_t column = 0; column < cells.columns; column++) {
            if (cells.kinds[row][column] == TAKEN)
                continue;
            grow(&cells, rect, column, row, &across, &down);
            if (take_piece(&cells, rect, column, row, across, down, pieces, &count, limit))
                return -2;
        }
    return (int64_t)count;
}

/* --- rows ---------------------------------------------------------------------------------------------------------- */

static uint32_t row_bits(uint32_t colours, enum tvmm_rfb_rows rows)
{
    if (colours <= 2)
        return colours - 1;
    if (rows != TVMM_RFB_ROWS_PNG || colours > 16)
        return 8;
    return colours <= 4 ? 2 : 4;
}

static void find_palette(struct tvmm_rfb_palette *palette, const uint32_t *pixels, uint32_t count, uint32_t colours)
{
    palette_clear(palette, colours);
    for (uint32_t at = 0; at < count && !palette->overflow;) {
        palette_number(palette, pixels[at]);
        at += run_length(pixels, at, count);
    }
}

static uint8_t *put_numbers(struct tvmm_rfb_palette *palette, const uint32_t *pixels, uint32_t width, uint32_t bits,
                            uint8_t *out)
{
    uint8_t numbers[TVMM_SCREEN_WIDTH_MAX], *target = bits == 8 ? out : numbers;
    for (uint32_t at = 0; at < width;) {
        uint32_t length = run_length(pixels, at, width);
        memset(target + at, (int)palette_number(palette, pixels[at]), length);
        at += length;
    }
    return bits == 8 ? out + width : put_packed(out, numbers, width, bits);
}

/* PNG's filter type 1: each byte less the one of the pixel to the left. */
static uint8_t *put_sub_filtered(const uint32_t *pixels, uint32_t width, uint8_t *out)
{
    uint32_t left = 0;
    *out++ = 1;
    for (uint32_t at = 0; at < width; left = pixels[at++]) {
        uint32_t pixel = pixels[at];
        /* The bytes are kept from borrowing from each other by a bit above each. */
        uint32_t even = ((pixel & 0xff00ff) | 0x1000100) - (left & 0xff00ff);
        uint32_t odd = ((pixel & 0xff00) | 0x10000) - (left & 0xff00);
        out = put_pixel(out, (even & 0xff00ff) | (odd & 0xff00), 3);
    }
    return out;
}

#define LINE_BYTES (3 * (TIGHT_WIDTH_MAX + 1) + TVMM_RFB_SLACK)

/* The GradientFilter: each byte less left + above - above and left, kept from 0 to 255. Lines begin with a pixel of
 * zeros, which is what lies outside. */
static void put_differences(const uint8_t *restrict line, const uint8_t *restrict above, uint64_t bytes,
                            uint8_t *restrict out)
{
    const uint8_t *restrict own = line + 3, *restrict upper = above + 3;
    for (uint64_t at = 0; at < bytes; at++) {
        int16_t guess = (int16_t)(line[at] + upper[at] - above[at]);
        guess = guess < 0 ? 0 : guess;
        guess = guess > 255 ? 255 : guess;
        out[at] = (uint8_t)(own[at] - guess);
    }
}

static uint8_t *put_gradient(const uint32_t *pixels, uint32_t width, uint32_t height, uint8_t *out)
{
    uint8_t lines[2][LINE_BYTES];
    memset(lines, 0, sizeof lines);
    for (uint32_t y = 0; y < height; y++, pixels += width, out += 3 * width) {
        put_pixels(lines[y & 1] + 3, pixels, width, 3);
        put_differences(lines[y & 1], lines[~y & 1], 3 * width, out);
    }
    return out;
}

int64_t tvmm_rfb_piece_rows(struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect, enum tvmm_rfb_rows rows,
                            uint32_t colours, uint32_t *bits)
{
    uint32_t bytes = job->format->bytes;
    const uint32_t *line = job->pixels;
    uint8_t *out = job->out;
    if (!rect_fits(job, rect) || rect->width > TIGHT_WIDTH_MAX)
        return -1;
    uint32_t count = rect->width * rect->height;
    if (count > TVMM_RFB_AREA_MAX || !room_for(job, (uint64_t)count * bytes + rect->height))
        return -1;
    if (rows != TVMM_RFB_ROWS_TIGHT && bytes != 3)
        return -1;
    convert_rect(job, rect, job->pixels);
    find_palette(&job->palette, job->pixels, count, colours);
    if (job->palette.overflow) {
        *bits = 32;
        if (rows == TVMM_RFB_ROWS_TIGHT)
            return put_pixels(out, job->pixels, count, bytes) - job->out;
        if (rows == TVMM_RFB_ROWS_GRADIENT)
            return put_gradient(job->pixels, rect->width, rect->height, out) - job->out;
        for (uint32_t y = 0; y < rect->height; y++, line += rect->width)
            out = put_sub_filtered(line, rect->width, out);
        return out - job->out;
    }
    *bits = row_bits(job->palette.count, rows);
    if (!*bits)
        return 0;
    for (uint32_t y = 0; y < rect->height; y++, line += rect->width) {
        if (rows == TVMM_RFB_ROWS_PNG)
            *out++ = 0;
        out = put_numbers(&job->palette, line, rect->width, *bits, out);
    }
    return out - job->out;
}

#pragma GCC pop_options
