/* The command `screen`. */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "input.h"
#include "irq.h"
#include "picture.h"
#include "screen.h"
#include "terminal.h"

#define SQUARE      64 /* pixels, and how far it is from the top and the left */
#define SQUARE_ON   0xffffff
#define SQUARE_OFF  0x000080
#define DEFAULT_FPS 30
#define MAX_FPS     1000

static void show(void)
{
    char where[16], mode[48] = "off", monitor[48] = "no EDID";
    format(where, sizeof where, "%02x:%02x.%u", PCI_BUS(screen.function), PCI_SLOT(screen.function),
           PCI_FUNCTION(screen.function));
    if (screen.width)
        format(mode, sizeof mode, "%ux%u %u bits, stride %u", screen.width, screen.height, screen.bits, screen.stride);
    if (screen.preferred_width)
        format(monitor, sizeof monitor, "EDID \"%s\" %ux%u", screen.name, screen.preferred_width,
               screen.preferred_height);
    print("screen: pci %s, %lu KiB at 0x%lx, %s, %s\n", where, screen.memory_bytes >> 10, screen.memory, mode, monitor);
}

/* Decimal numbers with `x` between them, as many as there may be. Returns how many there are, 0 if it is no such text. */
static u32 parse_sizes(const char *text, u32 *sizes, u32 limit)
{
    for (u32 count = 0; count < limit;) {
        u32 value = 0, digits = 0;
        for (; *text >= '0' && *text <= '9' && digits < 5; digits++)
            value = value * 10 + (u32)(*text++ - '0');
        sizes[count++] = value;
        if (!digits || (*text && *text != 'x'))
            return 0;
        if (!*text++)
            return count;
    }
    return 0;
}

static bool known_bits(u32 bits) { return bits == 8 || bits == 15 || bits == 16 || bits == 24 || bits == 32; }

static bool set_mode(int count, char **arguments)
{
    u32 sizes[3] = {0, 0, 32};
    if (count != 3 || parse_sizes(arguments[2], sizes, 3) < 2 || !known_bits(sizes[2]) || !sizes[0] || !sizes[1] ||
        sizes[0] > SCREEN_MAX_WIDTH || sizes[1] > SCREEN_MAX_HEIGHT)
        return false;
    if (!screen_probe())
        print("screen: none\n");
    else if (!screen_set_mode(sizes[0], sizes[1], sizes[2]))
        print("screen mode: refused\n");
    else
        print("screen mode: %ux%u %u bits, stride %u\n", screen.width, screen.height, screen.bits, screen.stride);
    return true;
}

static bool draw_picture(int count, char **arguments)
{
    u64 seed = 1;
    if (count > 3 || (count == 3 && !parse_number(arguments[2], &seed)))
        return false;
    if (!screen_ready())
        return true;
    u64 start = rdtsc();
    u32 hash = picture_draw((u32)seed);
    print("screen picture: seed %u, %ux%u %u bits, fnv1a %08x, in %lu us\n", (u32)seed, screen.width, screen.height,
          screen.bits, hash, tsc_to_us(rdtsc() - start));
    return true;
}

static bool fill(int count, char **arguments)
{
    u64 area[4] = {0, 0, SCREEN_MAX_WIDTH, SCREEN_MAX_HEIGHT}, colour;
    char number[12];
    format(number, sizeof number, "0x%s", count > 2 ? arguments[2] : "");
    if ((count != 3 && count != 7) || strlen(arguments[2]) != 6 || !parse_number(number, &colour))
        return false;
    for (int i = 0; i < 4 && count == 7; i++)
        if (!parse_number(arguments[3 + i], &area[i]) || area[i] > SCREEN_MAX_WIDTH)
            return false;
    if (!screen_ready())
        return true;
    screen_fill((u32)area[0], (u32)area[1], (u32)area[2], (u32)area[3], (u32)colour);
    print("screen fill: %06x\n", (u32)colour);
    return true;
}

static bool animate(int count, char **arguments)
{
    u64 seconds, fps = DEFAULT_FPS, late = 0, longest = 0, frames = 0;
    bool text = true, video = true;
    if (count < 3 || !parse_number(arguments[2], &seconds) || seconds > 86400)
        return false;
    for (int i = 3; i < count; i++) {
        bool rate = starts_with(arguments[i], "fps=");
        if (rate ? !parse_number(arguments[i] + 4, &fps) || fps > MAX_FPS
                 : strcmp(arguments[i], "text") && strcmp(arguments[i], "video") && strcmp(arguments[i], "both"))
            return false;
        if (!rate) {
            text = arguments[i][0] != 'v';
            video = arguments[i][0] != 't';
        }
    }
    if (!screen_ready())
        return true;
    struct animation animation;
    animation_start(&animation, text, video);
    print("animating\n");
    u64 start = rdtsc(), end = start + ms_to_tsc(seconds * 1000), last = start;
    while (last < end && !irq_poll()) {
        u64 due = fps ? start + us_to_tsc(frames * 1000000 / fps) : last;
        if (due >= end || sleep_until(due))
            break;
        u64 begun = rdtsc();
        late += fps && begun - due > us_to_tsc(1000000 / fps);
        animation_step(&animation);
        frames++;
        last = rdtsc();
        longest = max_u64(longest, last - begun);
    }
    sleep_until(end);
    u64 us = max_u64(tsc_to_us(rdtsc() - start), 1), rate = frames * 100000000 / us;
    print("animated %lu frames in %lu us, %lu.%02lu frames/s, %lu late, longest frame %lu us\n", frames, us, rate / 100,
          rate % 100, late, tsc_to_us(longest));
    return true;
}

static bool console(int count, char **arguments)
{
    bool on = count == 3 && !strcmp(arguments[2], "on");
    if (!on && (count != 3 || strcmp(arguments[2], "off")))
        return false;
    if (!on || screen_ready()) {
        terminal_show(on);
        if (on)
            input_open();
        print("screen console: %s\n", on ? "on" : "off");
    }
    return true;
}

static u64 presses;

/* The square changes with each press, before anything else is done about it. */
static void flash_event(const struct input_source *source, u16 type, u16 code, int value)
{
    (void)source, (void)code;
    if (type != EVENT_KEY || value != KEY_PRESSED)
        return;
    screen_fill(SQUARE, SQUARE, SQUARE, SQUARE, ++presses & 1 ? SQUARE_ON : SQUARE_OFF);
}

static bool flash(int count, char **arguments)
{
    u64 seconds = 0;
    if (count > 3 || (count == 3 && !parse_number(arguments[2], &seconds)))
        return false;
    if (!screen_ready())
        return true;
    presses = 0;
    u32 sources = input_open();
    screen_fill(SQUARE, SQUARE, SQUARE, SQUARE, SQUARE_OFF);
    input_listen(flash_event);
    print("screen flash: %u input devices, Ctrl-C here to end\n", sources);
    input_run(count == 3 ? seconds : 0);
    print("screen flash: %lu presses\n", presses);
    return true;
}

static bool sum(int count)
{
    if (count != 2)
        return false;
    u32 hash = FNV1A_START;
    for (u32 y = 0; y < screen.height && screen.width; y++)
        hash = fnv1a(hash, (const void *)(screen.memory + (u64)y * screen.stride), screen.width * ((screen.bits + 7) / 8));
    print("screen sum: fnv1a %08x\n", hash);
    return true;
}

bool cmd_screen(int count, char **arguments)
{
    const char *verb = count > 1 ? arguments[1] : "";
    if (!strcmp(verb, "mode"))
        return set_mode(count, arguments);
    if (!strcmp(verb, "picture"))
        return draw_picture(count, arguments);
    if (!strcmp(verb, "animate"))
        return animate(count, arguments);
    if (!strcmp(verb, "fill"))
        return fill(count, arguments);
    if (!strcmp(verb, "console"))
        return console(count, arguments);
    if (!strcmp(verb, "flash"))
        return flash(count, arguments);
    if (!strcmp(verb, "sum"))
        return sum(count);
    if (screen_probe())
        show();
    else
        print("screen: none\n");
    return count == 1;
}
