/* Commands that measure the console's line: bytes out, bytes in. */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"

#define LINE_BYTES 64

/*
 * One line of the pattern: number (8 hex digits), a blank, 45 letters that depend on the number, a blank, the
 * FNV-1a of the 54 bytes before that blank (8 hex digits), LF.
 */
static void pattern_line(char line[LINE_BYTES + 1], u32 number)
{
    format(line, LINE_BYTES, "%08x ", number);
    for (u32 i = 0; i < 45; i++)
        line[9 + i] = (char)('A' + (number + i) % 26);
    format(line + 54, LINE_BYTES + 1 - 54, " %08x\n", fnv1a(FNV1A_START, line, 54));
}

bool cmd_emit(int count, char **arguments)
{
    char line[LINE_BYTES + 1];
    u64 bytes;
    if (count != 2 || !parse_number(arguments[1], &bytes))
        return false;
    u64 start = rdtsc(), done = 0;
    for (u32 number = 0; done < bytes && !irq_poll(); number++) {
        u64 length = min_u64(bytes - done, LINE_BYTES);
        pattern_line(line, number);
        console_raw(line, length);
        done += length;
    }
    u64 us = tsc_to_us(rdtsc() - start);
    print("%semitted %lu bytes in %lu us\n", done % LINE_BYTES ? "\n" : "", done, us);
    return true;
}

bool cmd_sink(int count, char **arguments)
{
    u64 bytes, start = 0, done = 0;
    u32 hash = FNV1A_START;
    if (count != 2 || !parse_number(arguments[1], &bytes))
        return false;
    console_set_raw(true);
    print("sink: send %lu bytes\n", bytes);
    while (done < bytes) {
        int c = console_read();
        if (c < 0) {
            irq_wait(0);
            continue;
        }
        if (done++ == 0)
            start = rdtsc();
        u8 byte = (u8)c;
        hash = fnv1a(hash, &byte, 1);
    }
    u64 us = bytes ? tsc_to_us(rdtsc() - start) : 0;
    console_set_raw(false);
    print("sank %lu bytes in %lu us, fnv1a %08x\n", done, us, hash);
    return true;
}
