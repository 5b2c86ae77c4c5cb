/* The dirtier: writes self-checking pages at a given rate. */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "load.h"
#include "machine.h"
#include "pages.h"

#define MAX_RATE 1000000000

bool cmd_dirty(int count, char **arguments)
{
    struct load load = {.name = arguments[0]};
    u64 bytes;
    load.pages = count > 1 && strcmp(arguments[1], "none");
    if (count < 3 || (load.pages && !number_option(arguments[1], "", MAX_RATE, &load.page_pace.rate)) ||
        !parse_number(arguments[2], &bytes) || bytes < 16 * PAGE_SIZE)
        return false;
    for (int i = 3; i < count; i++)
        if (!(i == 3 && parse_number(arguments[i], &load.seconds)) && !load_option(&load, arguments[i]))
            return false;
    if (!pages_set_up(bytes))
        return true;
    load_run(&load);
    u64 written = pages_written() - load.pages_before, us = max_u64(tsc_to_us(load.meter.last - load.meter.start), 1);
    print("dirtied %lu pages in %lu us: %lu pages/s, %lu errors, longest pause %lu us\n", written, us,
          written * 1000000 / us, load_page_errors(&load), tsc_to_us(load.meter.longest));
    return true;
}

bool cmd_check(int count, char **arguments)
{
    (void)arguments;
    if (count != 1)
        return false;
    u64 before = pages_errors(), done = pages_verify();
    print("checked %lu pages: %lu errors\n", done, pages_errors() - before);
    return true;
}
