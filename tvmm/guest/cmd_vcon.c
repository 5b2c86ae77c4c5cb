/* The command `vcon`: ports of the first virtio console. */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "virtio_console.h"

#define SHOWN 64 /* bytes of what was read that are printed */

static u8 *scratch(void)
{
    static u64 page;
    if (!page)
        page = page_alloc(1);
    return (u8 *)page;
}

static void list_ports(struct vconsole *console)
{
    print("vcon: %u ports, %s, %lu control messages, %lu errors\n", console->port_count,
          console->control_rx ? "multiport" : "one port only", console->messages, console->errors);
    for (u32 i = 0; i < console->port_count; i++) {
        const struct port *port = &console->ports[i];
        if (port->present)
            print("port %u: %s, name \"%s\", host %s, guest %s, %ux%u\n", i, port->is_console ? "console" : "serial",
                  port->name, port->host_open ? "open" : "closed", port->guest_open ? "open" : "closed", port->columns,
                  port->rows);
    }
}

/* Waits until all that was written has been taken. */
static bool drain(struct port *port)
{
    u64 token;
    u32 length;
    virtq_kick(port->tx);
    while (virtq_in_flight(port->tx) && !irq_poll() && !port->tx->broken)
        if (!virtq_pop(port->tx, &token, &length))
            cpu_relax();
    return !virtq_in_flight(port->tx);
}

static void write_text(u32 number, struct port *port, int count, char **words)
{
    u8 *text = scratch();
    size_t length = 0;
    for (int i = 0; i < count; i++)
        length += format((char *)text + length, PORT_BYTES - length, i ? " %s" : "%s", words[i]);
    text[length++] = '\n';
    bool queued;
    while (!(queued = port_write(port, text, (u32)length)) && !irq_poll())
        cpu_relax();
    print("vcon write %u: %lu bytes%s\n", number, length, queued && drain(port) ? "" : ", not taken");
}

static void print_escaped(const u8 *data, u64 length)
{
    for (u64 i = 0; i < length; i++)
        print(data[i] >= ' ' && data[i] < 0x7f && data[i] != '\\' ? "%c" : "\\x%02x", data[i]);
}

/* `wanted` bytes, or if that is 0 whatever comes first. */
static void read_bytes(u32 number, struct port *port, u64 wanted)
{
    u8 *data = scratch(), shown[SHOWN];
    u64 done = 0, start = rdtsc();
    u32 hash = FNV1A_START;
    while (done < max_u64(wanted, 1)) {
        u32 bytes = port_read(port, data, wanted ? (u32)min_u64(wanted - done, PORT_BYTES) : PORT_BYTES);
        if (!done)
            start = rdtsc();
        if (done < SHOWN)
            memcpy(shown + done, data, min_u64(bytes, SHOWN - done));
        hash = fnv1a(hash, data, bytes);
        done += bytes;
        if (!bytes && irq_poll())
            break;
    }
    print("vcon read %u: %lu bytes in %lu us, fnv1a 0x%08x, \"", number, done, tsc_to_us(rdtsc() - start), hash);
    print_escaped(shown, min_u64(done, SHOWN));
    print("\"\n");
}

static void echo(u32 number, struct port *port)
{
    u8 *data = scratch();
    u64 total = 0;
    while (!irq_poll()) {
        u32 bytes = port_read(port, data, PORT_BYTES);
        while (bytes && !port_write(port, data, bytes) && !irq_poll())
            cpu_relax();
        virtq_kick(port->tx);
        total += bytes;
    }
    print("vcon echo %u: %lu bytes\n", number, total);
}

/* Each piece begins with its offset (8 bytes, little endian); the other bytes are their index, modulo 256. */
static void pump(u32 number, struct port *port, u64 wanted)
{
    u8 *data = scratch();
    u64 start = rdtsc(), done = 0;
    for (int i = 0; i < PORT_BYTES; i++)
        data[i] = (u8)i;
    virtq_start_counts(port->tx);
    while (done < wanted) {
        u32 bytes = (u32)min_u64(wanted - done, PORT_BYTES);
        memcpy(data, &done, sizeof done);
        if (port_write(port, data, bytes)) {
            done += bytes;
            continue;
        }
        virtq_kick(port->tx);
        if (irq_poll())
            break;
        cpu_relax();
    }
    bool taken = drain(port);
    u64 us = max_u64(tsc_to_us(rdtsc() - start), 1);
    print("vcon pump %u: %lu bytes in %lu us, %lu MiB/s, %lu kicks, %u interrupts%s\n", number, done, us,
          (done * 1000000 / us) >> 20, port->tx->kicks, virtq_interrupt_count(port->tx),
          taken ? "" : ", not all taken");
}

bool cmd_vcon(int count, char **arguments)
{
    u64 number = 0, bytes = 0;
    const char *verb = count > 1 ? arguments[1] : "";
    bool takes_bytes = !strcmp(verb, "read") || !strcmp(verb, "pump");
    if (count == 2 || (count > 2 && !parse_number(arguments[2], &number)) ||
        (takes_bytes && count == 4 && !parse_number(arguments[3], &bytes)))
        return false;
    struct vconsole *console = vconsole_open(0);
    if (!console)
        return true;
    if (count == 1) {
        list_ports(console);
        return true;
    }
    if (number >= console->port_count || !console->ports[number].present) {
        print("vcon: there is no port %lu; `vcon` lists what there is\n", number);
        return true;
    }
    struct port *port = &console->ports[number];
    bool closing = !strcmp(verb, "close");
    if (!port_open(console, (u32)number, !closing))
        return true;
    if (!strcmp(verb, "write") && count > 3)
        write_text((u32)number, port, count - 3, arguments + 3);
    else if (!strcmp(verb, "read") && count <= 4)
        read_bytes((u32)number, port, bytes);
    else if (!strcmp(verb, "pump") && count == 4)
        pump((u32)number, port, bytes);
    else if (!strcmp(verb, "echo") && count == 3)
        echo((u32)number, port);
    else
        return count == 3 && (closing || !strcmp(verb, "open"));
    return true;
}
