/* The command shell and the table of commands. */
#ifndef GUEST_SHELL_H
#define GUEST_SHELL_H

#include "arch.h"

#define MAX_ARGUMENTS 16

struct command {
    const char *name, *arguments, *help;
    bool (*run)(int count, char **arguments); /* arguments[0] is the name; false: they make no sense */
};

extern const struct command commands[]; /* ends with a NULL name */

void shell_init(void);                       /* orders from the kernel command line */
bool shell_quiet(void);                      /* `quiet` is on the kernel command line */
void shell_run(void) __attribute__((noreturn)); /* `run=`, `then=`, then the prompt */
void shell_recover(void) __attribute__((noreturn)); /* after a fault: the prompt again */

#endif
