/* Which pages of a video memory the vCPUs wrote, for two who ask at times of their own: whoever looks at the screen, and a
 * migration. KVM forgets what it has told once, so both get everything that it tells. */
#ifndef TVMM_VRAM_H
#define TVMM_VRAM_H

#include <stdint.h>

/* `pages` is a multiple of 64. `touched` has a byte for each page, `pending` a bit. */
struct tvmm_vram_log {
    int vm_fd;
    uint32_t slot;
    uint64_t pages;
    uint64_t *scratch; /* the bitmap as KVM gives it */
    uint8_t *touched;
    uint64_t *pending;
};

int64_t tvmm_vram_collect(struct tvmm_vram_log *log);

#endif
