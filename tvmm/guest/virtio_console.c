/* The console driver. Received buffers go back to the device when they have been read, so nothing is lost. */
#include "virtio_console.h"
#include "clock.h"
#include "console.h"
#include "irq.h"
#include "machine.h"

enum { DEVICE_READY, PORT_ADD, PORT_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME };

struct control { /* virtio_console_control, and what follows it */
    u32 port;
    u16 event, value;
    u8 data[120];
};

enum { CONFIG_COLUMNS = 0, CONFIG_ROWS = 2, CONFIG_MAX_PORTS = 4 };

#define CONTROL_BUFFERS    128 /* a host with many ports says much at once */
#define CONTROL_HEADER     8
#define CONTROL_TIMEOUT_MS 2000
#define QUIET_MS           20  /* no message for so long: the host has told all it has to say at the start */

_Static_assert(sizeof(struct control) == 128, "a buffer of the control queue");

/* The last buffer is for what we send. */
static struct control *control_buffer(struct vconsole *console, u64 index)
{
    return (struct control *)console->control_memory + index;
}

static void post_control(struct vconsole *console, u64 index)
{
    struct buffer buffer = {(u64)control_buffer(console, index), sizeof(struct control), true};
    virtq_add(console->control_rx, &buffer, 1, index);
}

static bool send_control(struct vconsole *console, u32 port, u16 event, u16 value)
{
    struct control *message = control_buffer(console, CONTROL_BUFFERS);
    struct buffer buffer = {(u64)message, CONTROL_HEADER, false};
    u64 token, end = rdtsc() + ms_to_tsc(CONTROL_TIMEOUT_MS);
    u32 length;
    *message = (struct control){.port = port, .event = event, .value = value};
    if (!virtq_add(console->control_tx, &buffer, 1, 0))
        return false;
    virtq_kick(console->control_tx);
    while (!virtq_pop(console->control_tx, &token, &length)) {
        if (rdtsc() >= end) {
            print("vcon: no answer from the control queue\n");
            return false;
        }
        cpu_relax();
    }
    return true;
}

static void post(struct port *port, u64 index)
{
    struct buffer buffer = {port->rx_memory + index * PORT_BYTES, PORT_BYTES, true};
    virtq_add(port->rx, &buffer, 1, index);
}

static void start_port(struct port *port)
{
    for (u64 i = 0; !port->posted && i < PORT_BUFFERS && i < port->rx->size; i++)
        post(port, i);
    port->present = port->posted = true;
    virtq_kick(port->rx);
}

static void handle(struct vconsole *console, const struct control *message, u32 length)
{
    struct port *port = message->port < console->port_count ? &console->ports[message->port] : NULL;
    u32 bytes = length - CONTROL_HEADER;
    if (!port || (message->event != PORT_ADD && !port->present)) {
        console->errors++;
        return;
    }
    switch (message->event) {
    case PORT_ADD:
        start_port(port);
        send_control(console, message->port, PORT_READY, 1);
        break;
    case PORT_REMOVE:
        port->present = port->host_open = port->guest_open = false;
        break;
    case CONSOLE_PORT:
        port->is_console = true;
        port->guest_open = true;
        send_control(console, message->port, PORT_OPEN, 1);
        break;
    case RESIZE:
        memcpy(&port->columns, message->data, 2);
        memcpy(&port->rows, message->data + 2, 2);
        break;
    case PORT_OPEN:
        port->host_open = message->value;
        break;
    case PORT_NAME:
        memset(port->name, 0, sizeof port->name);
        memcpy(port->name, message->data, min_u64(bytes, sizeof port->name - 1));
        break;
    default:
        console->errors++;
    }
}

void vconsole_poll(struct vconsole *console)
{
    u64 index;
    u32 length;
    if (console->device->features & CONSOLE_F_SIZE && virtio_config_changed(console->device)) {
        console->ports[0].columns = virtio_config16(console->device, CONFIG_COLUMNS);
        console->ports[0].rows = virtio_config16(console->device, CONFIG_ROWS);
    }
    if (!console->control_rx)
        return;
    while (virtq_pop(console->control_rx, &index, &length)) {
        struct control message = *control_buffer(console, index);
        post_control(console, index);
        console->messages++;
        if (length >= CONTROL_HEADER && length <= sizeof message)
            handle(console, &message, length);
        else
            console->errors++;
    }
    virtq_kick(console->control_rx);
}

static void service(struct virtio *device)
{
    struct vconsole *console = device->driver;
    do
        vconsole_poll(console);
    while (console->control_rx && !virtq_interrupts(console->control_rx, true));
}

static bool set_up_queues(struct vconsole *console)
{
    struct virtio *device = console->device;
    bool multiport = device->features & CONSOLE_F_MULTIPORT;
    u32 ports = multiport ? virtio_config32(device, CONFIG_MAX_PORTS) : 1;
    console->port_count = (u32)min_u64(ports, CONSOLE_MAX_PORTS);
    console->control_rx = console->control_tx = NULL;
    if (multiport) {
        console->control_rx = virtio_queue(device, 2, CONTROL_BUFFERS, 1);
        console->control_tx = virtio_queue(device, 3, CONTROL_BUFFERS, 1);
        if (!console->control_rx || !console->control_tx)
            return false;
    }
    for (u32 i = 0; i < console->port_count; i++) {
        struct port *port = &console->ports[i];
        u64 memory = port->rx_memory ? port->rx_memory : dma_alloc(2 * PORT_BUFFERS * PORT_BYTES / PAGE_SIZE);
        u16 first = (u16)(i ? 2 * i + 2 : 0);
        *port = (struct port){.rx_memory = memory, .tx_memory = memory + PORT_BUFFERS * PORT_BYTES};
        port->rx = virtio_queue(device, first, PORT_BUFFERS, 1);
        port->tx = virtio_queue(device, (u16)(first + 1), PORT_BUFFERS, 1);
        if (!port->rx || !port->tx || !memory)
            return false;
    }
    return true;
}

static bool start(struct vconsole *console)
{
    struct virtio *device = console->device;
    if (!virtio_begin(device, CONSOLE_F_SIZE | CONSOLE_F_MULTIPORT | CONSOLE_F_EMERGENCY) || !set_up_queues(console))
        return false;
    virtio_ready(device);
    device->config_pending = device->features & CONSOLE_F_SIZE; /* the size that it begins with */
    device->service = service;
    if (!console->control_rx) {
        start_port(&console->ports[0]);
        console->ports[0].is_console = console->ports[0].host_open = console->ports[0].guest_open = true;
        vconsole_poll(console);
        return true;
    }
    for (u64 i = 0; i < console->control_rx->size; i++)
        post_control(console, i);
    virtq_kick(console->control_rx);
    if (!send_control(console, 0, DEVICE_READY, 1))
        return false;
    u64 seen = console->messages, last = rdtsc();
    while (rdtsc() - last < ms_to_tsc(QUIET_MS)) {
        vconsole_poll(console);
        if (seen != console->messages)
            last = rdtsc();
        seen = console->messages;
    }
    service(device);
    return true;
}

struct vconsole *vconsole_open(u64 number)
{
    struct virtio *device = virtio_find(VIRTIO_CONSOLE, number);
    if (!device)
        return NULL;
    struct vconsole *console = device->driver;
    if (!console) {
        console = device->driver = (struct vconsole *)page_alloc((sizeof *console + PAGE_SIZE - 1) / PAGE_SIZE);
        if (!console)
            return NULL;
        console->device = device;
        u64 memory = dma_alloc((CONTROL_BUFFERS + 1) * sizeof(struct control) / PAGE_SIZE + 1);
        console->control_memory = memory;
    }
    if (!console->control_memory)
        return NULL;
    if (!device->running || virtio_status(device) & STATUS_NEEDS_RESET)
        return start(console) ? console : NULL;
    vconsole_poll(console);
    return console;
}

bool port_open(struct vconsole *console, u32 port, bool open)
{
    if (console->control_tx && console->ports[port].guest_open != open && !send_control(console, port, PORT_OPEN, open))
        return false;
    console->ports[port].guest_open = open;
    return true;
}

u32 port_read(struct port *port, u8 *to, u32 limit)
{
    if (port->offset == port->length) {
        port->offset = 0;
        if (!virtq_pop(port->rx, &port->token, &port->length)) {
            port->length = 0;
            return 0;
        }
        port->length = (u32)min_u64(port->length, PORT_BYTES);
    }
    u32 bytes = (u32)min_u64(limit, port->length - port->offset);
    memcpy(to, (const void *)(port->rx_memory + port->token * PORT_BYTES + port->offset), bytes);
    port->offset += bytes;
    if (port->offset == port->length) {
        post(port, port->token);
        virtq_kick(port->rx);
    }
    return bytes;
}

/* Buffers come back in the order in which they went out, or at least the next one is free when there is room. */
bool port_write(struct port *port, const void *data, u32 length)
{
    u64 token, index = port->tx_next % PORT_BUFFERS;
    u32 ignored;
    while (virtq_pop(port->tx, &token, &ignored))
        ;
    struct buffer buffer = {port->tx_memory + index * PORT_BYTES, length, false};
    if (virtq_in_flight(port->tx) >= min_u64(PORT_BUFFERS, port->tx->size))
        return false;
    memcpy((void *)buffer.address, data, length);
    if (!virtq_add(port->tx, &buffer, 1, index))
        return false;
    port->tx_next++;
    return true;
}
