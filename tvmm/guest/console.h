/* Text in and out, whatever it is that carries it: drivers push what was typed and print what is written. */
#ifndef GUEST_CONSOLE_H
#define GUEST_CONSOLE_H

#include "lib.h"

void print(const char *text, ...) __attribute__((format(printf, 1, 2)));
void console_write(const char *text, size_t length); /* adds a CR before each LF */
void console_raw(const void *data, size_t length);   /* byte by byte as it is */

/*
 * For lines from a loop that no long output may hold up: print_later() keeps the text, and each console_trickle() sends
 * a byte of it. Other output sends the rest first. A line that there is no room for is left out.
 */
void print_later(const char *text, ...) __attribute__((format(printf, 1, 2)));
bool console_trickle(void); /* true if there is more */

/* All output goes to `write` too, until NULL is set. */
void console_mirror(void (*write)(const char *text, size_t length));

/* For drivers: one received byte. Ctrl-C becomes interrupted() unless raw input was asked for. */
void console_receive(u8 byte);
size_t console_room(void); /* leave what exceeds this in the device: raw input must not lose any */

int console_read(void);        /* next typed byte, or -1 */
void console_set_raw(bool raw); /* forgets what was typed so far */

bool interrupted(void);       /* Ctrl-C since the last clear_interrupted() */
void clear_interrupted(void);

#endif
