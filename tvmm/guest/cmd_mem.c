/* Commands that look at memory and write to it. Any address may be tried: a fault only ends the command. */
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "machine.h"

/* Words of 4 bytes, since devices often answer to nothing else. */
static void dump_line(u64 address, u64 length)
{
    u32 words[4] = {0};
    char text[17] = {0};
    print("%012lx ", address);
    for (u64 i = 0; i < 4; i++)
        if (i * 4 < length)
            words[i] = mmio_read32(address + i * 4);
    for (u64 i = 0; i < 16; i++) {
        u8 byte = ((u8 *)words)[i];
        if (i < length)
            print(" %02x", byte);
        else
            print("   ");
        text[i] = i >= length ? 0 : byte >= ' ' && byte < 0x7f ? (char)byte : '.';
    }
    print("  %s\n", text);
}

bool cmd_mem(int count, char **arguments)
{
    u64 address, length = 64;
    if (count == 1) {
        print_memory_map();
        return true;
    }
    if (count > 3 || !parse_number(arguments[1], &address) || (count == 3 && !parse_number(arguments[2], &length)))
        return false;
    for (u64 done = 0; done < length && !irq_poll(); done += 16)
        dump_line(address + done, min_u64(length - done, 16));
    return true;
}

bool cmd_poke(int count, char **arguments)
{
    u64 address, value, size = 4;
    if (count < 3 || count > 4 || !parse_number(arguments[1], &address) || !parse_number(arguments[2], &value) ||
        (count == 4 && !parse_number(arguments[3], &size)))
        return false;
    switch (size) {
    case 1: *(volatile u8 *)address = (u8)value; break;
    case 2: *(volatile u16 *)address = (u16)value; break;
    case 4: *(volatile u32 *)address = (u32)value; break;
    case 8: *(volatile u64 *)address = value; break;
    default: return false;
    }
    return true;
}
