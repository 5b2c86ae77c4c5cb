/*
 * PS/2 keyboard and mouse behind the keyboard controller (IBM PS/2 Technical Reference; the wheel as Microsoft's
 * IntelliMouse has it). The controller translates to scan code set 1, whose numbers are those of Linux but for the
 * prefixed ones.
 */
#include "clock.h"
#include "console.h"
#include "input.h"
#include "irq.h"

#define DATA   0x60
#define STATUS 0x64
#define OUTPUT_FULL 0x01
#define INPUT_FULL  0x02
#define FROM_MOUSE  0x20

enum { READ_CONFIG = 0x20, WRITE_CONFIG = 0x60, MOUSE_OFF = 0xa7, TEST_MOUSE = 0xa9, KEYBOARD_OFF = 0xad,
       TO_MOUSE = 0xd4 };

#define CONFIG_INTERRUPTS 0x03
#define CONFIG_OFF        0x30 /* keyboard, mouse */
#define CONFIG_TRANSLATE  0x40
#define KEYBOARD_IRQ 1
#define MOUSE_IRQ    12

enum { SET_LEDS = 0xed, IDENTIFY = 0xf2, SET_RATE = 0xf3, REPORT = 0xf4, DEFAULTS = 0xf6, ACKNOWLEDGED = 0xfa };
#define WHEEL_MOUSE 3

#define TIMEOUT_MS 50   /* of an answer */
#define AT_ONCE    1024 /* bytes, before others have their turn */
#define PACKET_SYNC 0x08

static struct input_source *keyboard, *mouse;
static u8 prefix, pause_bytes; /* of scan codes */
static u32 down[8];            /* by code, up to 255: a second press is a repetition */
static u8 packet[4], packet_length, packet_size, buttons;
static int mouse_answer = -1; /* while it is asked for something, what comes from it is an answer */
static bool asking;

/* What keys with the prefix 0xe0 are, and those without one that are not their own number. */
static const u8 extended[128] = {
    [0x10] = 165, [0x19] = 163, [0x1c] = 96,  [0x1d] = 97,  [0x20] = 113, [0x21] = 140, [0x22] = 164, [0x24] = 166,
    [0x2e] = 114, [0x30] = 115, [0x32] = 172, [0x35] = 98,  [0x37] = 99,  [0x38] = 100, [0x46] = 119, [0x47] = 102,
    [0x48] = 103, [0x49] = 104, [0x4b] = 105, [0x4d] = 106, [0x4f] = 107, [0x50] = 108, [0x51] = 109, [0x52] = 110,
    [0x53] = 111, [0x5b] = 125, [0x5c] = 126, [0x5d] = 127, [0x5e] = 116, [0x5f] = 142, [0x63] = 143, [0x65] = 217,
    [0x66] = 156, [0x67] = 173, [0x68] = 128, [0x69] = 159, [0x6a] = 158, [0x6b] = 157, [0x6c] = 155, [0x6d] = 226,
};
static const u8 plain[128 - 0x54] = {
    [0x54 - 0x54] = 99,  [0x56 - 0x54] = 86,  [0x57 - 0x54] = 87,  [0x58 - 0x54] = 88,  [0x59 - 0x54] = 117,
    [0x64 - 0x54] = 183, [0x65 - 0x54] = 184, [0x66 - 0x54] = 185, [0x67 - 0x54] = 186, [0x68 - 0x54] = 187,
    [0x69 - 0x54] = 188, [0x6a - 0x54] = 189, [0x6b - 0x54] = 190, [0x6c - 0x54] = 191, [0x6d - 0x54] = 192,
    [0x6e - 0x54] = 193, [0x70 - 0x54] = 93,  [0x73 - 0x54] = 89,  [0x76 - 0x54] = 194, [0x77 - 0x54] = 90,
    [0x78 - 0x54] = 91,  [0x79 - 0x54] = 92,  [0x7b - 0x54] = 94,  [0x7d - 0x54] = 124, [0x7e - 0x54] = 121,
};
#define PAUSE 119

static void report_key(u8 code, bool pressed)
{
    u32 *word = &down[code / 32], bit = 1u << code % 32;
    int value = !pressed ? KEY_RELEASED : *word & bit ? KEY_REPEATED : KEY_PRESSED;
    *word = pressed ? *word | bit : *word & ~bit;
    input_report(keyboard, EVENT_KEY, code, value);
    input_report(keyboard, EVENT_SYNC, 0, 0);
}

/* Pause is the one key with six bytes, and the one that says nothing when it is let go. */
static void pause_byte(u8 byte)
{
    static const u8 bytes[] = {0x1d, 0x45, 0xe1, 0x9d, 0xc5};
    if (byte != bytes[pause_bytes - 1])
        pause_bytes = 0;
    else if (++pause_bytes > sizeof bytes) {
        pause_bytes = 0;
        report_key(PAUSE, true);
        report_key(PAUSE, false);
    }
}

static void keyboard_byte(u8 byte)
{
    u8 key = byte & 0x7f, before = prefix, code;
    if (pause_bytes) {
        pause_byte(byte);
        return;
    }
    prefix = 0;
    if (byte == 0xe1) {
        pause_bytes = 1;
        return;
    }
    if (byte == 0xe0) {
        prefix = byte;
        return;
    }
    if (byte == ACKNOWLEDGED || byte == 0xff || byte == 0xfe)
        return;
    code = before ? extended[key] : key < 0x54 ? key : plain[key - 0x54];
    if (code) /* 0: unknown, or a shift that an extended key brings along */
        report_key(code, !(byte & 0x80));
}

static void report_motion(u16 axis, int value)
{
    if (value)
        input_report(mouse, EVENT_RELATIVE, axis, value);
}

static void mouse_byte(u8 byte)
{
    if (!packet_length && !(byte & PACKET_SYNC))
        return; /* cannot begin a packet */
    packet[packet_length++] = byte;
    if (packet_length < packet_size)
        return;
    packet_length = 0;
    report_motion(AXIS_X, packet[1] - (packet[0] << 4 & 0x100));
    report_motion(AXIS_Y, (packet[0] << 3 & 0x100) - packet[2]); /* up is positive on the wire */
    if (packet_size > 3)
        report_motion(AXIS_WHEEL, -(int8_t)packet[3]);
    for (u16 i = 0; i < 3; i++)
        if ((packet[0] ^ buttons) >> i & 1)
            input_report(mouse, EVENT_KEY, (u16)(BUTTON_FIRST + i), packet[0] >> i & 1);
    buttons = packet[0];
    input_report(mouse, EVENT_SYNC, 0, 0);
}

/* Takes one byte if there is one. */
static bool take(void)
{
    u8 status = inb(STATUS);
    if (status == 0xff || !(status & OUTPUT_FULL))
        return false;
    u8 byte = inb(DATA);
    if (status & FROM_MOUSE && asking)
        mouse_answer = byte;
    else if (status & FROM_MOUSE && mouse)
        mouse_byte(byte);
    else if (keyboard && !(status & FROM_MOUSE))
        keyboard_byte(byte);
    return true;
}

static void service(void)
{
    for (u32 i = 0; i < AT_ONCE && take(); i++)
        ;
}

static void send(u16 port, u8 byte)
{
    u64 end = rdtsc() + ms_to_tsc(TIMEOUT_MS);
    while (inb(STATUS) & INPUT_FULL && rdtsc() < end)
        cpu_relax();
    outb(port, byte);
}

/* The next byte, whoever sent it; -1: none comes. */
static int answer(void)
{
    u64 end = rdtsc() + ms_to_tsc(TIMEOUT_MS);
    while (!(inb(STATUS) & OUTPUT_FULL))
        if (rdtsc() >= end)
            return -1;
    return inb(DATA);
}

static int mouse_receive(void)
{
    u64 end = rdtsc() + ms_to_tsc(TIMEOUT_MS);
    mouse_answer = -1;
    while (mouse_answer < 0 && rdtsc() < end)
        take();
    return mouse_answer;
}

static bool mouse_command(u8 byte)
{
    send(STATUS, TO_MOUSE);
    send(DATA, byte);
    return mouse_receive() == ACKNOWLEDGED;
}

/* Three rates in this order are the question whether it has a wheel. */
static bool start_mouse(int *id)
{
    static const u8 knock[] = {DEFAULTS, SET_RATE, 200, SET_RATE, 100, SET_RATE, 80, IDENTIFY};
    bool well = true;
    asking = true;
    for (size_t i = 0; i < sizeof knock && well; i++)
        well = mouse_command(knock[i]);
    *id = well ? mouse_receive() : -1;
    well = *id >= 0 && mouse_command(REPORT);
    asking = false;
    return well;
}

/* The bytes go out whatever the keyboard says; what it says is seen by `service`. */
static bool set_leds(struct input_source *source, u32 leds)
{
    (void)source;
    send(DATA, SET_LEDS);
    u64 end = rdtsc() + ms_to_tsc(TIMEOUT_MS);
    while (!take() && rdtsc() < end)
        cpu_relax();
    send(DATA, (u8)leds);
    return true;
}

void ps2_resume(void)
{
    if (keyboard)
        irq_register(KEYBOARD_IRQ, service);
    if (mouse)
        irq_register(MOUSE_IRQ, service);
    if (keyboard)
        service();
}

void ps2_open(void)
{
    int id;
    u32 drained = 0;
    if (inb(STATUS) == 0xff)
        return;
    send(STATUS, KEYBOARD_OFF); /* what is typed now must not be taken for an answer */
    send(STATUS, MOUSE_OFF);
    while (inb(STATUS) & OUTPUT_FULL && drained++ < AT_ONCE)
        inb(DATA);
    send(STATUS, TEST_MOUSE);
    bool has_mouse = answer() == 0;
    send(STATUS, READ_CONFIG);
    int config = answer();
    if (config < 0)
        return;
    send(STATUS, WRITE_CONFIG);
    send(DATA, (u8)((config & ~CONFIG_OFF) | CONFIG_INTERRUPTS | CONFIG_TRANSLATE));
    if ((keyboard = input_add())) {
        format(keyboard->where, sizeof keyboard->where, "ps2 keyboard");
        format(keyboard->name, sizeof keyboard->name, "set 1");
        keyboard->set_leds = set_leds;
    }
    if (has_mouse && start_mouse(&id) && (mouse = input_add())) {
        packet_size = id == WHEEL_MOUSE ? 4 : 3;
        format(mouse->where, sizeof mouse->where, "ps2 mouse");
        format(mouse->name, sizeof mouse->name, "id %u", (u32)id);
    }
    ps2_resume();
}
