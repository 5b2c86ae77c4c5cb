/* What of the picture only moved up or down since the last one, for RFB's CopyRect.
 *
 * A finder keeps the last picture, and a hash of each line of each column of tiles of it. Lines of the new picture that
 * are found elsewhere in the old one vote for a distance; the rectangles that moved so far are then compared pixel by
 * pixel, so that a hash only ever proposes. */
#ifndef TVMM_SCROLL_H
#define TVMM_SCROLL_H

#include "pixels.h"

#define TVMM_SCROLLS_MAX 4u
#define TVMM_SCROLL_COLUMNS (TVMM_SCREEN_WIDTH_MAX / TVMM_TILE_WIDTH)

struct tvmm_scroll {
    uint32_t x, y, width, height; /* where it is now: whole tiles */
    uint32_t source_y;            /* and where it was */
};

struct tvmm_scroll_finder {
    uint8_t *previous; /* as many bytes as the canvas */
    uint64_t previous_size;
    uint32_t width, height;
    uint64_t key; /* random: a guest that knew it could have all lines look for a place at the same one */
    uint64_t old[TVMM_SCROLL_COLUMNS][TVMM_SCREEN_HEIGHT_MAX];
    uint64_t now[TVMM_SCROLL_COLUMNS][TVMM_SCREEN_HEIGHT_MAX];
    uint8_t alike[TVMM_SCROLL_COLUMNS][TVMM_SCREEN_HEIGHT_MAX];
    uint32_t votes[2 * TVMM_SCREEN_HEIGHT_MAX];
    struct tvmm_scroll found[TVMM_SCROLLS_MAX];
};

/* How many rectangles of the canvas were elsewhere in the last picture, in an order in which they may be copied one after
 * the other. `damage` has the tiles that changed since the last call. The canvas is the last picture after that. -1: the
 * sizes do not fit together. */
int32_t tvmm_scroll_update(struct tvmm_scroll_finder *finder, const uint8_t *canvas, uint64_t canvas_size,
                           const uint8_t *damage, uint64_t damage_size);

#endif
