/* A fixed font of 8x16 pixels. */
#ifndef GUEST_FONT_H
#define GUEST_FONT_H

#include "arch.h"

#define FONT_WIDTH  8
#define FONT_HEIGHT 16
#define FONT_ABOVE  2  /* blank rows above those that are stored */
#define FONT_ROWS   13
#define FONT_FIRST  ' '
#define FONT_LAST   '~'

extern const u8 font_rows[FONT_LAST - FONT_FIRST + 1][FONT_ROWS];

/* Row 0 to 15 of a character's cell; other characters are blank. */
static inline u8 font_row(u8 character, u32 row)
{
    if (character < FONT_FIRST || character > FONT_LAST || row - FONT_ABOVE >= FONT_ROWS)
        return 0;
    return font_rows[character - FONT_FIRST][row - FONT_ABOVE];
}

#endif
