/* Commands about device access as such: what it costs, and the keyboard controller's scan codes. */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "input.h"
#include "irq.h"
#include "machine.h"

#define POST_PORT    0x80
#define HOLE_ADDRESS 0xd0000000 /* below 4 GiB, where no machine has RAM; see in_memory_map() */

static bool in_memory_map(u64 address)
{
    for (size_t i = 0; i < machine.region_count; i++)
        if (address - machine.regions[i].start < machine.regions[i].size)
            return true;
    return false;
}

static void out_post(void) { outb(POST_PORT, 0x55); }
static void in_post(void) { inb(POST_PORT); }
static void read_hole(void) { mmio_read32(HOLE_ADDRESS); }
static void write_hole(void) { mmio_write32(HOLE_ADDRESS, 0); }

static void measure(const char *name, void (*access)(void), u64 count)
{
    u64 shortest = (u64)-1, longest = 0, total = 0, done = 0;
    for (; done < count && !irq_poll(); done++) {
        u64 start = rdtsc();
        access();
        u64 ticks = rdtsc() - start;
        shortest = min_u64(shortest, ticks);
        longest = max_u64(longest, ticks);
        total += ticks;
    }
    if (done)
        print("%-22s %8lu times: average %lu ns, min %lu ns, max %lu ns\n", name, done, tsc_to_ns(total) / done,
              tsc_to_ns(shortest), tsc_to_ns(longest));
}

bool cmd_pio(int count, char **arguments)
{
    u64 times;
    if (count != 2 || !parse_number(arguments[1], &times) || !times)
        return false;
    measure("OUT to port 0x80", out_post, times);
    measure("IN from port 0x80", in_post, times);
    if (in_memory_map(HOLE_ADDRESS))
        return true;
    measure("read at 0xd0000000", read_hole, times);
    measure("write at 0xd0000000", write_hole, times);
    return true;
}

#define I8042_DATA    0x60
#define I8042_STATUS  0x64
#define OUTPUT_FULL   0x01
#define INPUT_FULL    0x02
#define READ_COMMAND  0x20
#define WRITE_COMMAND 0x60
#define COMMAND_IRQ1  0x01
#define COMMAND_KEYBOARD_OFF 0x10
#define KEYBOARD_IRQ  1

static void i8042_write(u16 port, u8 value)
{
    for (int i = 0; i < 1000 && (inb(I8042_STATUS) & INPUT_FULL); i++)
        cpu_relax();
    outb(port, value);
}

static int i8042_read(void)
{
    for (int i = 0; i < 1000; i++)
        if (inb(I8042_STATUS) & OUTPUT_FULL)
            return inb(I8042_DATA);
    return -1;
}

static void keyboard_service(void)
{
    while (inb(I8042_STATUS) & OUTPUT_FULL)
        print("scan code 0x%02x\n", inb(I8042_DATA));
}

bool cmd_kbd(int count, char **arguments)
{
    u64 seconds = 0;
    if (count > 2 || (count == 2 && !parse_number(arguments[1], &seconds)))
        return false;
    if (inb(I8042_STATUS) == 0xff) {
        print("kbd: no keyboard controller\n");
        return true;
    }
    i8042_write(I8042_STATUS, READ_COMMAND);
    int command = i8042_read();
    if (command < 0) {
        print("kbd: the keyboard controller does not answer\n");
        return true;
    }
    print("kbd: command byte 0x%02x; press keys, Ctrl-C here to end\n", (u32)command);
    irq_register(KEYBOARD_IRQ, keyboard_service);
    i8042_write(I8042_STATUS, WRITE_COMMAND);
    i8042_write(I8042_DATA, (u8)((command | COMMAND_IRQ1) & ~COMMAND_KEYBOARD_OFF));
    keyboard_service();
    u64 end = rdtsc() + ms_to_tsc(seconds * 1000);
    while (!interrupted() && (count == 1 || rdtsc() < end))
        irq_wait(count == 1 ? 0 : end);
    irq_mask(KEYBOARD_IRQ, true);
    ps2_resume(); /* if its driver is in use */
    return true;
}
