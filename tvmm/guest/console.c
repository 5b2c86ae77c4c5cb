/*
 * Text in and out. One ring holds what was typed while a command runs; Ctrl-C never enters it, so that it
 * works however much was typed ahead. Raw input (command `sink`) takes every byte, and none is dropped.
 */
#include "console.h"
#include "machine.h"
#include "uart.h"

#define CTRL_C 3
#define LATER  PAGE_SIZE

static u8 ring[4096];
static size_t ring_head, ring_tail; /* head: next to write; tail: next to read; both only grow */
static bool raw_input, ctrl_c;
static char *later; /* a page of its own, so that .bss stays small */
static size_t later_head, later_tail; /* as those of the ring */
static void (*mirror)(const char *text, size_t length);

static void send(const void *data, size_t length)
{
    uart_write(data, length);
    if (mirror)
        mirror(data, length);
}

static void send_later(void)
{
    while (later_tail != later_head) {
        size_t at = later_tail % LATER, length = min_u64(later_head - later_tail, LATER - at);
        send(later + at, length);
        later_tail += length;
    }
}

void console_mirror(void (*write)(const char *text, size_t length)) { mirror = write; }

void console_raw(const void *data, size_t length)
{
    send_later();
    send(data, length);
}

void console_write(const char *text, size_t length)
{
    char with_cr[256];
    size_t used = 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] == '\n')
            with_cr[used++] = '\r';
        with_cr[used++] = text[i];
        if (used + 2 > sizeof with_cr) {
            console_raw(with_cr, used);
            used = 0;
        }
    }
    console_raw(with_cr, used);
}

void print(const char *text, ...)
{
    char line[512];
    va_list list;
    va_start(list, text);
    console_write(line, format_list(line, sizeof line, text, list));
    va_end(list);
}

void print_later(const char *text, ...)
{
    char line[512];
    va_list list;
    va_start(list, text);
    size_t length = min_u64(format_list(line, sizeof line, text, list), sizeof line - 1);
    va_end(list);
    if (!later && !(later = (char *)page_alloc(LATER / PAGE_SIZE)))
        return;
    if (later_head - later_tail + 2 * length > LATER)
        return;
    for (size_t i = 0; i < length; i++) {
        if (line[i] == '\n')
            later[later_head++ % LATER] = '\r';
        later[later_head++ % LATER] = line[i];
    }
}

bool console_trickle(void)
{
    char *byte = later + later_tail % LATER;
    if (later_tail != later_head && uart_try((u8)*byte)) {
        if (mirror)
            mirror(byte, 1);
        later_tail++;
    }
    return later_tail != later_head;
}

size_t console_room(void)
{
    return raw_input ? sizeof ring - (ring_head - ring_tail) : sizeof ring;
}

void console_receive(u8 byte)
{
    if (byte == CTRL_C && !raw_input)
        ctrl_c = true;
    else if (ring_head - ring_tail < sizeof ring)
        ring[ring_head++ % sizeof ring] = byte;
}

int console_read(void)
{
    if (ring_head == ring_tail)
        uart_resume();
    return ring_head == ring_tail ? -1 : ring[ring_tail++ % sizeof ring];
}

void console_set_raw(bool raw)
{
    raw_input = raw;
    ring_tail = ring_head;
}

bool interrupted(void) { return ctrl_c; }
void clear_interrupted(void) { ctrl_c = false; }
