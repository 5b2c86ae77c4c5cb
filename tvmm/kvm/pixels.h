/* From the guest's video memory to the canvas: convert and compare, tile by tile.
 *
 * The canvas has 32-bit pixels 0x00RRGGBB. Tiles are TVMM_TILE_WIDTH x TVMM_TILE_HEIGHT. The guest may write while this
 * reads: a page that it writes after the dirty log was taken is in the next one, so that the tile is looked at again. */
#ifndef TVMM_PIXELS_H
#define TVMM_PIXELS_H

#include <stdint.h>

#define TVMM_TILE_WIDTH 64u
#define TVMM_TILE_HEIGHT 16u
#define TVMM_SCREEN_WIDTH_MAX 2560u
#define TVMM_SCREEN_HEIGHT_MAX 1600u
#define TVMM_VRAM_PAGE 4096u

/* Pixels that need not be aligned: the guest sets the offset and the stride. */
typedef uint32_t __attribute__((aligned(1), may_alias)) tvmm_pixel;
typedef uint16_t __attribute__((aligned(1), may_alias)) tvmm_pixel16;

struct tvmm_surface {
    uint32_t width, height, bits;
    uint64_t stride, offset;
    uint32_t palette[256];
};

/* Tiles that changed, whose bytes in `damage` are 1 now; -1 if anything would be outside of what was given. `touched` has
 * a byte for each page of the video memory, NULL: all may have changed. */
int32_t tvmm_screen_refresh(const struct tvmm_surface *surface, const uint8_t *vram, uint64_t vram_size,
                            const uint8_t *touched, uint64_t touched_size, uint8_t *canvas, uint64_t canvas_size,
                            uint8_t *damage, uint64_t damage_size);

#endif
