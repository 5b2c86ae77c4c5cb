/*
 * Text in and out. One ring holds what was typed while a command runs; Ctrl-C never enters it, so that it
 * works however much was typed ahead. Raw input (command `sink`) takes every byte, and none is dropped.
 */
#include "console.h"
#include "uart.h"

#define CTRL_C 3

static u8 ring[4096];
static size_t ring_head, ring_tail; /* head: next to write; tail: next to read; both only grow */
static bool raw_input, ctrl_c;

void console_raw(const void *data, size_t length)
{
    uart_write(data, length);
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
