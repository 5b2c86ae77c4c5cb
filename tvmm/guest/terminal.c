/*
 * A terminal of the simplest kind: CR, LF, backspace, and characters. A page of lines that is full scrolls by moving the
 * pixels, so no copy of the text is kept.
 */
#include "terminal.h"
#include "console.h"
#include "font.h"
#include "screen.h"

#define INK    0xc0c0c0
#define PAPER  0x000000
#define CURSOR 0x808080
#define RUN    64 /* characters that are drawn at once */

static struct {
    bool shown;
    u32 width, height; /* of the mode it was shown in */
    u32 column, line;
} terminal;

static u32 columns(void) { return screen.width / FONT_WIDTH; }
static u32 lines(void) { return screen.height / FONT_HEIGHT; }

static void cursor(u32 colour)
{
    screen_fill(terminal.column * FONT_WIDTH, terminal.line * FONT_HEIGHT + FONT_HEIGHT - 2, FONT_WIDTH, 2, colour);
}

static void next_line(void)
{
    if (++terminal.line < lines())
        return;
    terminal.line = lines() - 1;
    screen_scroll(screen.width, lines() * FONT_HEIGHT, FONT_HEIGHT);
    screen_fill(0, terminal.line * FONT_HEIGHT, screen.width, FONT_HEIGHT, PAPER);
}

static void control(char c)
{
    if (c == '\r')
        terminal.column = 0;
    else if (c == '\n')
        next_line();
    else if (c == '\b' && terminal.column)
        terminal.column--;
}

static void begin(void)
{
    terminal.width = screen.width;
    terminal.height = screen.height;
    terminal.column = terminal.line = 0;
    screen_fill(0, 0, screen.width, screen.height, PAPER);
}

static void mirror(const char *text, size_t length)
{
    if (columns() < 2 || lines() < 2)
        return; /* no mode, or one that nothing fits in */
    if (terminal.width != screen.width || terminal.height != screen.height)
        begin();
    cursor(PAPER);
    for (size_t i = 0; i < length;) {
        u32 run = 0, limit = (u32)min_u64(min_u64(columns() - terminal.column, length - i), RUN);
        while (run < limit && text[i + run] >= ' ' && text[i + run] < 0x7f)
            run++;
        if (!run) {
            control(text[i++]);
            continue;
        }
        screen_text(terminal.column * FONT_WIDTH, terminal.line * FONT_HEIGHT, text + i, run, INK, PAPER);
        terminal.column += run;
        i += run;
        if (terminal.column >= columns()) {
            terminal.column = 0;
            next_line();
        }
    }
    cursor(CURSOR);
}

void terminal_show(bool on)
{
    terminal.shown = on;
    if (on)
        begin();
    console_mirror(on ? mirror : NULL);
}

bool terminal_shown(void) { return terminal.shown; }
