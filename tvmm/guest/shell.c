/*
 * The shell: a line editor, and orders from the kernel command line (`run=`, `then=`, `quiet`).
 *
 * A command line can't hold spaces inside of a word, so `run=` takes commas for spaces and semicolons between
 * commands: run=smp,2;check then=poweroff
 */
#include "shell.h"
#include "clock.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "power.h"

#define PROMPT "tvmm> "

static char orders[sizeof machine.command_line]; /* all `run=` words, commas already turned into spaces */
static char *next_order = orders;
static enum { THEN_SHELL, THEN_POWEROFF, THEN_REBOOT } then;
static bool quiet;

static void add_orders(const char *word, size_t length)
{
    size_t used = strlen(orders);
    for (size_t i = 0; i < length; i++)
        orders[used++] = word[i] == ',' ? ' ' : word[i];
    orders[used] = ';';
}

void shell_init(void)
{
    const char *at = machine.command_line;
    while (*at) {
        size_t length = 0;
        while (at[length] && at[length] != ' ')
            length++;
        if (starts_with(at, "run="))
            add_orders(at + 4, length - 4);
        at += length;
        while (*at == ' ')
            at++;
    }
    quiet = command_line_has("quiet");
    then = command_line_has("then=poweroff") ? THEN_POWEROFF
         : command_line_has("then=reboot")   ? THEN_REBOOT
                                             : THEN_SHELL;
}

bool shell_quiet(void) { return quiet; }

static void execute(char *line)
{
    char *arguments[MAX_ARGUMENTS + 1];
    int count = 0;
    while (*line && count < MAX_ARGUMENTS) {
        while (*line == ' ')
            *line++ = 0;
        if (!*line)
            break;
        arguments[count++] = line;
        while (*line && *line != ' ')
            line++;
    }
    arguments[count] = NULL;
    if (!count)
        return;
    clear_interrupted();
    for (const struct command *c = commands; c->name; c++) {
        if (strcmp(c->name, arguments[0]))
            continue;
        if (!c->run(count, arguments))
            print("usage: %s %s\n", c->name, c->arguments);
        if (interrupted())
            print("^C\n");
        return;
    }
    print("%s: no such command; `help` lists them\n", arguments[0]);
}

/* Reads a line with backspace, Ctrl-U (forget the line) and Ctrl-C (likewise, on a new line). */
static void read_line(char *line, size_t size)
{
    size_t length = 0;
    clear_interrupted();
    print(PROMPT);
    for (;;) {
        int c = console_read();
        if (interrupted()) {
            clear_interrupted();
            length = 0;
            print("^C\n" PROMPT);
        } else if (c < 0) {
            irq_wait(0);
        } else if (c == '\r' || c == '\n') {
            break;
        } else if (c == 0x7f || c == '\b') {
            if (length) {
                length--;
                print("\b \b");
            }
        } else if (c == 0x15) {
            for (; length; length--)
                print("\b \b");
        } else if (c >= ' ' && c < 0x7f && length + 1 < size) {
            line[length++] = (char)c;
            print("%c", c);
        }
    }
    line[length] = 0;
    print("\n");
}

void shell_recover(void)
{
    static char line[512];
    for (;;) {
        while (*next_order) {
            char *order = next_order;
            while (*next_order && *next_order != ';')
                next_order++;
            if (*next_order)
                *next_order++ = 0;
            execute(order);
        }
        if (then == THEN_POWEROFF)
            power_off();
        if (then == THEN_REBOOT)
            power_reboot();
        read_line(line, sizeof line);
        execute(line);
    }
}

void shell_run(void)
{
    shell_recover();
}
