/* 16550A serial port, COM1. */
#ifndef GUEST_UART_H
#define GUEST_UART_H

#include "arch.h"

void uart_init(void);
void uart_write(const void *data, size_t length);
bool uart_try(u8 byte);  /* false if there is no room for it yet */
void uart_enable_receive(void); /* by interrupt if there is an I/O APIC; else irq_poll() looks at the port */
void uart_reset(void); /* whatever state it is in: ready again, nothing received */
void uart_resume(void); /* there is room again after console_room() was exhausted */

#endif
