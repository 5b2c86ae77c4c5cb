/* Commands about keyboards and pointers: what there is, what it says, its lamps. */
#include "commands.h"
#include "console.h"
#include "input.h"

static u64 event_count;
static int moved_x, moved_y, at_x, at_y; /* since the last sync */
static bool at_changed;

bool cmd_input(int count, char **arguments)
{
    (void)count, (void)arguments;
    u32 sources = input_open();
    for (u32 i = 0; i < sources; i++) {
        const struct input_source *source = input_source(i);
        print("input %u: %s \"%s\"", i, source->where, source->name);
        if (source->range_x)
            print(", absolute 0..%u 0..%u", source->range_x, source->range_y);
        print("%s\n", source->set_leds ? ", LEDs" : "");
    }
    if (!sources)
        print("no input devices\n");
    return true;
}

static bool is_button(u16 code) { return code >= BUTTON_FIRST && code <= BUTTON_LAST; }

static void key_event(const struct input_source *source, u16 type, u16 code, int value)
{
    static const char *const values[] = {"up", "down", "repeat"};
    if (type != EVENT_KEY || is_button(code))
        return;
    event_count++;
    print("key %u %s from %u\n", code, values[(u32)value % 3], source->number);
}

static void pointer_synced(const struct input_source *source)
{
    event_count += (moved_x || moved_y) + at_changed;
    if (moved_x || moved_y)
        print("move %d %d from %u\n", moved_x, moved_y, source->number);
    if (at_changed)
        print("at %d %d from %u\n", at_x, at_y, source->number);
    moved_x = moved_y = at_changed = 0;
}

static void pointer_event(const struct input_source *source, u16 type, u16 code, int value)
{
    static const char *const names[] = {"left", "right", "middle"};
    if (type == EVENT_KEY && is_button(code)) {
        pointer_synced(source); /* where it was pressed comes before the press */
        event_count++;
        if (code - BUTTON_FIRST < 3)
            print("button %s", names[code - BUTTON_FIRST]);
        else
            print("button %u", code);
        print(" %s from %u\n", value ? "down" : "up", source->number);
    } else if (type == EVENT_RELATIVE && (code == AXIS_X || code == AXIS_Y)) {
        *(code == AXIS_X ? &moved_x : &moved_y) += value;
    } else if (type == EVENT_RELATIVE && (code == AXIS_WHEEL || code == AXIS_HWHEEL)) {
        event_count++;
        print("%s %d from %u\n", code == AXIS_WHEEL ? "wheel" : "hwheel", value, source->number);
    } else if (type == EVENT_ABSOLUTE && (code == AXIS_X || code == AXIS_Y)) {
        *(code == AXIS_X ? &at_x : &at_y) = value;
        at_changed = true;
    } else if (type == EVENT_SYNC) {
        pointer_synced(source);
    }
}

static bool watch(int count, char **arguments, input_listener listener)
{
    u64 seconds = 0;
    if (count > 2 || (count == 2 && !parse_number(arguments[1], &seconds)))
        return false;
    u32 sources = input_open();
    event_count = 0;
    input_listen(listener);
    print("%s: %u input devices, Ctrl-C here to end\n", arguments[0], sources);
    input_run(seconds);
    print("%s: %lu events\n", arguments[0], event_count);
    return true;
}

bool cmd_keys(int count, char **arguments) { return watch(count, arguments, key_event); }
bool cmd_mouse(int count, char **arguments) { return watch(count, arguments, pointer_event); }

bool cmd_leds(int count, char **arguments)
{
    u64 leds;
    if (count != 2 || !parse_number(arguments[1], &leds) || leds > (LED_SCROLL | LED_NUM | LED_CAPS))
        return false;
    input_open();
    print("leds: %lu on %u devices\n", leds, input_leds((u32)leds));
    return true;
}
