/*
 * Keyboards, mice and tablets, whatever carries them. Events are those of Linux (linux/input-event-codes.h): a driver
 * reports them, and whoever listens gets them from irq_poll(). With nobody listening, keys are typed into the shell if it
 * is on the screen.
 */
#ifndef GUEST_INPUT_H
#define GUEST_INPUT_H

#include "lib.h"

#define EVENT_SYNC     0x00 /* what was reported since the last one belongs together */
#define EVENT_KEY      0x01
#define EVENT_RELATIVE 0x02
#define EVENT_ABSOLUTE 0x03
#define EVENT_LED      0x11

enum { KEY_RELEASED, KEY_PRESSED, KEY_REPEATED };

#define AXIS_X       0
#define AXIS_Y       1
#define AXIS_HWHEEL  6 /* relative only, as the next; away from the user and to the right is positive */
#define AXIS_WHEEL   8
#define BUTTON_FIRST 0x110 /* left, right, middle */
#define BUTTON_LAST  0x11f

#define LED_SCROLL 1 /* bits of input_leds(), as PS/2 has them */
#define LED_NUM    2
#define LED_CAPS   4

struct input_source {
    u32 number;
    char where[24], name[64];
    u32 range_x, range_y; /* of absolute positions, from 0; 0 if it has none */
    bool (*set_leds)(struct input_source *source, u32 leds); /* NULL: it has none */
    void *driver;
};

typedef void (*input_listener)(const struct input_source *source, u16 type, u16 code, int value);

u32 input_open(void); /* sets up what there is, once; how many sources */
const struct input_source *input_source(u32 number);
void input_listen(input_listener listener); /* NULL: back to the shell */
/* Lets events come for `seconds` (0: for ever) or until Ctrl-C on the serial line, then listens no more. */
void input_run(u64 seconds);
u32 input_leds(u32 leds); /* on all that have them; how many */

/* For drivers. */
struct input_source *input_add(void); /* a zeroed one; NULL: no memory, or too many */
void input_report(const struct input_source *source, u16 type, u16 code, int value);
void ps2_open(void);
void ps2_resume(void); /* once more after somebody else used the controller */
void virtio_input_open(void);

#endif
