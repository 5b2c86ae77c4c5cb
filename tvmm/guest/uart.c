/*
 * 16550A on COM1: 115200 8N1, FIFO on. Transmit polls THRE once for every 16 bytes, which is as many as the
 * FIFO takes: an access to the port costs the host far more than the byte itself. Receive by interrupt.
 */
#include "uart.h"
#include "console.h"
#include "irq.h"

#define COM1 0x3f8
#define DATA 0 /* and divisor, low byte, while DLAB is set */
#define IER  1 /* and divisor, high byte */
#define IIR  2 /* read */
#define FCR  2 /* write */
#define LCR  3
#define MCR  4
#define LSR  5

#define LSR_DATA_READY 0x01
#define LSR_THRE       0x20
#define IIR_ID         0x0f
#define IIR_RECEIVED   0x04 /* at least TRIGGER_LEVEL bytes are there */
#define FIFO_DEPTH     16
#define TRIGGER_LEVEL  14

void uart_init(void)
{
    outb(COM1 + LCR, 0x80); /* DLAB */
    outb(COM1 + DATA, 1);   /* 115200 */
    outb(COM1 + IER, 0);
    outb(COM1 + LCR, 0x03); /* 8N1 */
    outb(COM1 + FCR, 0xc7); /* FIFO on and cleared; interrupt at 14 bytes, or when no more come */
}

void uart_write(const void *data, size_t length)
{
    const u8 *byte = data;
    while (length) {
        while (!(inb(COM1 + LSR) & LSR_THRE))
            cpu_relax();
        size_t burst = min_u64(length, FIFO_DEPTH);
        length -= burst;
        while (burst--)
            outb(COM1 + DATA, *byte++);
    }
}

bool uart_try(u8 byte)
{
    static size_t room;
    if (!room && inb(COM1 + LSR) & LSR_THRE)
        room = FIFO_DEPTH;
    if (!room)
        return false;
    room--;
    outb(COM1 + DATA, byte);
    return true;
}

static bool held; /* bytes may be left in the FIFO, so no edge will come */

/*
 * Empties the FIFO, so that the interrupt line falls and the next byte makes an edge. As long as the FIFO is at its
 * trigger level, that many bytes need no look at LSR each.
 */
static void receive(void)
{
    while (console_room() >= TRIGGER_LEVEL && (inb(COM1 + IIR) & IIR_ID) == IIR_RECEIVED)
        for (int i = 0; i < TRIGGER_LEVEL; i++)
            console_receive(inb(COM1 + DATA));
    while (!(held = !console_room()) && (inb(COM1 + LSR) & LSR_DATA_READY))
        console_receive(inb(COM1 + DATA));
}

void uart_resume(void)
{
    if (held)
        receive();
}

void uart_enable_receive(void)
{
    irq_register(4, receive);
    outb(COM1 + MCR, 0x0b); /* DTR, RTS, and OUT2, which lets the interrupt through */
    outb(COM1 + IER, 0x01);
}

void uart_reset(void)
{
    outb(COM1 + MCR, 0); /* out of loopback, or what follows would come back */
    uart_init();
    inb(COM1 + DATA);
    uart_enable_receive();
}
