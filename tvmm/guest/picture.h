/* What commands draw: the test picture and the animation. */
#ifndef GUEST_PICTURE_H
#define GUEST_PICTURE_H

#include "lib.h"

u32 picture_draw(u32 seed); /* all of the screen; returns the FNV-1a of its pixels as bytes B, G, R, 0 */

struct animation {
    bool text, video;
    u32 frame;   /* number of the next */
    u64 noise;   /* state of the video's noise */
    u32 video_y;
};

void animation_start(struct animation *animation, bool text, bool video); /* clears the screen */
void animation_step(struct animation *animation);                       /* draws a frame */

#endif
