/* Sources, the one listener, and keys as text by the US layout. */
#include "input.h"
#include "clock.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "terminal.h"

#define MAX_SOURCES 16
#define CTRL_C      3

enum { LEFT_CTRL = 29, LEFT_SHIFT = 42, RIGHT_SHIFT = 54, CAPS_LOCK = 58, KEYPAD_7 = 71, KEYPAD_ENTER = 96,
       RIGHT_CTRL = 97, KEYPAD_SLASH = 98 };

static struct input_source *sources;
static u32 source_count;
static input_listener listener;
static bool shift[2], ctrl[2];
static u32 leds;

struct input_source *input_add(void)
{
    _Static_assert(sizeof(struct input_source) * MAX_SOURCES <= PAGE_SIZE, "all in a page");
    if (!sources)
        sources = (struct input_source *)page_alloc(1);
    if (!sources || source_count == MAX_SOURCES)
        return NULL;
    sources[source_count].number = source_count;
    return &sources[source_count++];
}

u32 input_open(void)
{
    static bool done;
    if (!done) {
        ps2_open();
        virtio_input_open();
    } else {
        ps2_resume();
    }
    done = true;
    return source_count;
}

const struct input_source *input_source(u32 number) { return &sources[number]; }

void input_listen(input_listener wanted) { listener = wanted; }

void input_run(u64 seconds)
{
    u64 end = seconds ? rdtsc() + ms_to_tsc(seconds * 1000) : 0;
    while (!irq_poll() && (!end || rdtsc() < end))
        irq_wait(end);
    input_listen(NULL);
}

u32 input_leds(u32 wanted)
{
    u32 count = 0;
    leds = wanted;
    for (u32 i = 0; i < source_count; i++)
        count += sources[i].set_leds && sources[i].set_leds(&sources[i], leds);
    return count;
}

/* What a key types; 0: nothing. */
static char character_of(u16 code)
{
    static const char plain[] = "\0\0331234567890-=\b\tqwertyuiop[]\r\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
    static const char shifted[] = "\0\033!@#$%^&*()_+\b\tQWERTYUIOP{}\r\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 ";
    static const char keypad[] = "789-456+1230.";
    if (code == KEYPAD_ENTER || code == KEYPAD_SLASH)
        return code == KEYPAD_ENTER ? '\r' : '/';
    if (code >= KEYPAD_7 && code < KEYPAD_7 + sizeof keypad - 1)
        return keypad[code - KEYPAD_7];
    if (code >= sizeof plain - 1)
        return 0;
    bool letter = plain[code] >= 'a' && plain[code] <= 'z', up = shift[0] || shift[1];
    if (letter && leds & LED_CAPS)
        up = !up;
    char c = up ? shifted[code] : plain[code];
    return (ctrl[0] || ctrl[1]) && c >= '@' ? c & 0x1f : c;
}

/* While somebody else listens, Ctrl-C is all that reaches the shell. */
static void type_key(u16 code, int value)
{
    bool down = value != KEY_RELEASED;
    char c = down && terminal_shown() ? character_of(code) : 0;
    if (code == LEFT_SHIFT || code == RIGHT_SHIFT)
        shift[code == RIGHT_SHIFT] = down;
    else if (code == LEFT_CTRL || code == RIGHT_CTRL)
        ctrl[code == RIGHT_CTRL] = down;
    else if (code == CAPS_LOCK && value == KEY_PRESSED && !listener)
        input_leds(leds ^ LED_CAPS);
    else if (c && (!listener || c == CTRL_C))
        console_receive((u8)c);
}

void input_report(const struct input_source *source, u16 type, u16 code, int value)
{
    if (listener)
        listener(source, type, code, value);
    if (type == EVENT_KEY)
        type_key(code, value);
}
