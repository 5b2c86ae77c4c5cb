/* The virtio console device (5.3): ports, and the control queue that speaks about them. */
#ifndef GUEST_VIRTIO_CONSOLE_H
#define GUEST_VIRTIO_CONSOLE_H

#include "virtio.h"

#define CONSOLE_F_SIZE      FEATURE(0)
#define CONSOLE_F_MULTIPORT FEATURE(1)
#define CONSOLE_F_EMERGENCY FEATURE(2)

#define CONSOLE_MAX_PORTS 31
#define PORT_NAME_BYTES   32
#define PORT_BUFFERS      16   /* in each direction */
#define PORT_BYTES        4096 /* of one buffer */

struct port {
    bool present, is_console, host_open, guest_open;
    bool posted; /* its receive buffers are the device's, or being read: once for good */
    char name[PORT_NAME_BYTES];
    u16 columns, rows;
    struct virtq *rx, *tx;
    u64 rx_memory, tx_memory;
    u64 token;           /* received buffer that is being read */
    u32 offset, length;  /* in it */
    u16 tx_next;
};

struct vconsole {
    struct virtio *device;
    u32 port_count;
    struct virtq *control_rx, *control_tx;
    u64 control_memory;
    u64 messages, errors;
    struct port ports[CONSOLE_MAX_PORTS];
};

/* Console `number`, set up if it is not yet; NULL, with a line printed, if that fails. */
struct vconsole *vconsole_open(u64 number);
void vconsole_poll(struct vconsole *console); /* takes what the control queue has */
bool port_open(struct vconsole *console, u32 port, bool open); /* tells the host */

u32 port_read(struct port *port, u8 *to, u32 limit); /* what is there, without waiting */
/* Queues up to PORT_BYTES of `data`; false if all buffers are in flight. virtq_kick() sends. */
bool port_write(struct port *port, const void *data, u32 length);

#endif
