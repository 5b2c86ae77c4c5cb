/* What the encodings of RFB (RFC 6143, section 7.7, and rfbproto for Tight) need done pixel by pixel: conversion to the
 * viewer's pixels, tiles, palettes, run lengths. Compression and headers are Python's.
 *
 * Each function takes a rectangle of the canvas and fills the buffer of its job; it returns the bytes used, and -1 if the
 * rectangle is not on the canvas or the worst case would not fit into the buffer. Nothing is written behind `room`. */
#ifndef TVMM_RFB_H
#define TVMM_RFB_H

#include "pixels.h"

/* Bytes of a buffer that are never part of an answer: a pixel is written as 4 bytes, whatever its size. */
#define TVMM_RFB_SLACK 16u
/* Pixels in one call of those that need all of them at once. A multiple of a ZRLE tile. */
#define TVMM_RFB_AREA_MAX 65536u
#define TVMM_RFB_PALETTE_MAX 256u
#define TVMM_RFB_SLOTS 1024u

/* A viewer's pixel is the low `bytes` bytes, lowest first, of red[r] | green[g] | blue[b]. That covers every byte order
 * and the pixels of three bytes that ZRLE and Tight have. */
struct tvmm_rfb_format {
    uint32_t red[256], green[256], blue[256];
    uint32_t bytes;
    uint32_t plain;   /* the values are those of the canvas */
    uint32_t shifted; /* each table is but a shift: by these, of 8 bits of a colour. Faster than a look-up. */
    uint32_t red_shift, green_shift, blue_shift;
};

/* Colours in the order in which they came, and a hash table to find them in. */
struct tvmm_rfb_palette {
    uint32_t count;
    uint32_t limit;    /* at most TVMM_RFB_PALETTE_MAX */
    uint32_t overflow; /* there were more */
    uint32_t key;      /* odd and random: a guest that knew it could have all of its colours collide */
    uint32_t colours[TVMM_RFB_PALETTE_MAX];
    uint16_t slots[TVMM_RFB_SLOTS]; /* number of a colour plus 1 */
};

struct tvmm_rfb_job {
    const struct tvmm_rfb_format *format;
    const uint8_t *canvas;
    uint64_t canvas_size;
    uint32_t width, height; /* of the canvas */
    uint8_t *out;
    uint64_t room;
    struct tvmm_rfb_palette palette;
    uint32_t pixels[TVMM_RFB_AREA_MAX];
};

struct tvmm_rfb_rect {
    uint32_t x, y, width, height;
};

int64_t tvmm_rfb_raw(struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect);
int64_t tvmm_rfb_hextile(struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect);
int64_t tvmm_rfb_zrle(struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect);

/* --- Tight --------------------------------------------------------------------------------------------------------- */

enum tvmm_rfb_kind {
    TVMM_RFB_SOLID, /* one colour, and large */
    TVMM_RFB_FLAT,  /* text and drawings: few colours, or runs of the same */
    TVMM_RFB_PHOTO, /* many colours that change from pixel to pixel */
};

struct tvmm_rfb_piece {
    struct tvmm_rfb_rect rect;
    uint32_t kind;
};

/* Divide a rectangle of at most `width_max` pixels across into pieces of one kind: how many, -1 as above, or -2 if there
 * would be more than `limit`. Pieces that are not solid and not photos have TVMM_RFB_AREA_MAX pixels at most. `photos`:
 * whether those are to be told from the rest. */
int64_t tvmm_rfb_plan(const struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect, uint32_t photos,
                      struct tvmm_rfb_piece *pieces, uint64_t limit);

/* What rows are made of: whole pixels, or indices of `job->palette` of that many bits, the leftmost pixel in the upper
 * ones. */
enum tvmm_rfb_rows { TVMM_RFB_ROWS_TIGHT, TVMM_RFB_ROWS_GRADIENT, TVMM_RFB_ROWS_PNG };

/* The pixels of a piece as indices if there are at most `colours` colours (the palette has them, and `bits` is 0 for one,
 * 1, 2, 4 or 8) or as they are (`bits` is 32). Tight has no 2 and 4; PNG has a filter byte before each row. With GRADIENT
 * pixels, which have three bytes then, are what a viewer's prediction from their neighbours lacks. */
int64_t tvmm_rfb_piece_rows(struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect, enum tvmm_rfb_rows rows,
                            uint32_t colours, uint32_t *bits);

#endif
