/* Ways to end the machine, and the power button. */
#ifndef GUEST_POWER_H
#define GUEST_POWER_H

#include "arch.h"

void power_init(void); /* enables the power button if there is an ACPI PM block */
bool power_has_pm_block(void);
void power_also(void (*service)(void)); /* another one for the same interrupt, the SCI */

void power_off(void) __attribute__((noreturn));
void power_reboot(void) __attribute__((noreturn));
void power_exit(u8 code); /* isa-debug-exit; returns if there is none */
void triple_fault(void) __attribute__((noreturn));

#endif
