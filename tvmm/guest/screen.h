/*
 * The display of QEMU's bochs-display and standard VGA (PCI 1234:1111): a linear framebuffer and the Bochs VBE
 * registers. Colours are 0xRRGGBB everywhere; what a mode cannot show is cut off, 8 bits are RGB 3:3:2.
 */
#ifndef GUEST_SCREEN_H
#define GUEST_SCREEN_H

#include "pci.h"

#define SCREEN_MAX_WIDTH  2560
#define SCREEN_MAX_HEIGHT 1600
#define EDID_NAME_BYTES   14

struct screen {
    pci_address function;
    u64 memory, memory_bytes, registers;
    u32 width, height, bits, stride; /* of the mode; width is 0 before there is one */
    u32 preferred_width, preferred_height; /* of the EDID; 0 without one */
    char name[EDID_NAME_BYTES];
};

extern struct screen screen;

bool screen_probe(void); /* finds the display, once; false if there is none */
/* 8, 15, 16, 24 or 32 bits. False if the display does not take it; the old mode is then gone too. */
bool screen_set_mode(u32 width, u32 height, u32 bits);
/* Sets the EDID's preferred mode, or 1024x768, if there is no mode yet. Prints a line if there is none to be had. */
bool screen_ready(void);

/* What reaches over the edge is left out. */
void screen_put_row(u32 x, u32 y, const u32 *colours, u32 count);
void screen_fill(u32 x, u32 y, u32 width, u32 height, u32 colour);
void screen_text(u32 x, u32 y, const char *text, u32 length, u32 ink, u32 paper); /* top left corner in pixels */
void screen_scroll(u32 width, u32 height, u32 rows); /* the top left rectangle: up by so many rows of pixels */

/* A row of SCREEN_MAX_WIDTH colours to compose in, for whoever draws. NULL: no memory. */
u32 *screen_row(void);

#endif
