/*
 * A load for whoever carries the screen elsewhere: text that scrolls by a line each frame, as a console's does, and a
 * region that changes as a video does, all of its pixels by a little, while it moves up and down.
 *
 * The right VIDEO_COLUMN pixels are the video's, if the screen is wide enough; what is left of them is the text's. At
 * the top right there is the frame's number, for whoever counts frames: 32 cells of 8x16 pixels, white for 1, the
 * highest bit first.
 */
#include "font.h"
#include "picture.h"
#include "screen.h"

#define VIDEO_WIDTH   320
#define VIDEO_HEIGHT  240
#define VIDEO_COLUMN  336
#define VIDEO_STEP    4   /* pixels a frame */
#define NUMBER_BITS   32
#define NUMBER_HEIGHT 16
#define LINE_CHARACTERS (SCREEN_MAX_WIDTH / FONT_WIDTH)

static u32 video_left(void) { return screen.width > 2 * VIDEO_COLUMN ? screen.width - VIDEO_COLUMN : 0; }

void animation_start(struct animation *animation, bool text, bool video)
{
    *animation = (struct animation){.text = text, .video = video, .noise = 1, .video_y = NUMBER_HEIGHT};
    screen_fill(0, 0, screen.width, screen.height, 0);
}

/* Words of letters, of lengths and in number as they come; the line's number in front. */
static void compose(char *line, u32 number)
{
    u64 state = number * 2654435761ull + 1;
    u32 at = (u32)format(line, LINE_CHARACTERS, "%08u ", number);
    u32 end = 20 + (u32)(random_next(&state) >> 32) % (LINE_CHARACTERS - 20);
    memset(line + at, ' ', LINE_CHARACTERS - at);
    while (at < end) {
        u64 letters = random_next(&state);
        for (u32 i = 2 + letters % 9; i-- && at < LINE_CHARACTERS; letters = letters >> 4 | letters << 60)
            line[at++] = (char)('a' + letters % 26);
        at++;
    }
}

static void scroll_text(const struct animation *animation)
{
    static const u32 inks[] = {0xc0c0c0, 0xc0c0c0, 0xc0c0c0, 0x60c060, 0x6090f0, 0xe0b040};
    char line[LINE_CHARACTERS];
    u32 width = (video_left() ? video_left() : screen.width) & ~(FONT_WIDTH - 1u), rows = screen.height / FONT_HEIGHT;
    if (!rows)
        return;
    compose(line, animation->frame);
    screen_scroll(width, rows * FONT_HEIGHT, FONT_HEIGHT);
    screen_text(0, (rows - 1) * FONT_HEIGHT, line, width / FONT_WIDTH, inks[animation->frame % ARRAY_SIZE(inks)], 0);
}

/* 0 to 255 and back. */
static u32 wave(u32 value) { return value & 256 ? 255 - (value & 255) : value & 255; }

static void video_row(struct animation *animation, u32 *row, u32 y)
{
    u32 n = animation->frame;
    u64 noise = 0;
    for (u32 x = 0; x < VIDEO_WIDTH; x++) {
        if (x % 16 == 0)
            noise = random_next(&animation->noise);
        u32 grain = noise & 7;
        noise >>= 4;
        u32 red = wave(x + 5 * n), green = wave(y * 2 + 3 * n), blue = wave(x + y + 256 - n);
        row[x] = (red & 0xf8) << 16 | (green & 0xf8) << 8 | (blue & 0xf8) | grain * 0x010101;
    }
}

static void move_video(struct animation *animation)
{
    u32 left = video_left(), *row = screen_row();
    u32 travel = screen.height > VIDEO_HEIGHT + NUMBER_HEIGHT ? screen.height - VIDEO_HEIGHT - NUMBER_HEIGHT : 0;
    u32 step = travel ? animation->frame * VIDEO_STEP % (2 * travel) : 0;
    u32 top = NUMBER_HEIGHT + (step < travel ? step : 2 * travel - step), before = animation->video_y;
    if (!row)
        return;
    if (top > before)
        screen_fill(left, before, VIDEO_WIDTH, top - before, 0);
    else if (top < before)
        screen_fill(left, top + VIDEO_HEIGHT, VIDEO_WIDTH, before - top, 0);
    for (u32 y = 0; y < VIDEO_HEIGHT; y++) {
        video_row(animation, row, y);
        screen_put_row(left, top + y, row, VIDEO_WIDTH);
    }
    animation->video_y = top;
}

static void show_number(u32 number)
{
    for (u32 bit = 0; bit < NUMBER_BITS; bit++)
        screen_fill(screen.width - 8 * (NUMBER_BITS - bit), 0, 8, NUMBER_HEIGHT,
                    number >> (NUMBER_BITS - 1 - bit) & 1 ? 0xffffff : 0);
}

void animation_step(struct animation *animation)
{
    if (animation->text)
        scroll_text(animation);
    if (animation->video)
        move_video(animation);
    show_number(animation->frame++);
}
