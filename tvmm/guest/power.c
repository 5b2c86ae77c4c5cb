/*
 * Ways to end the machine, each falling back on the next, and the power button (SCI, ISA interrupt 9).
 * A machine without the PM block reads all ones there and is left alone.
 */
#include "power.h"
#include "clock.h"
#include "console.h"
#include "irq.h"

#define PM1_STATUS  0x600
#define PM1_ENABLE  0x602
#define PM1_CONTROL 0x604
#define PM1_POWER_BUTTON (1 << 8)
#define PM1_SLEEP_ENABLE (1 << 13) /* with sleep type 0 in bits 10-12: soft off */
#define SCI_IRQ     9
#define DEBUG_EXIT  0x501
#define I8042       0x64
#define I8042_RESET 0xfe

static bool has_pm_block;
static void (*another_service)(void);

/* Gives the host time to act on the write before. */
static void let_it_happen(void)
{
    u64 start = rdtsc();
    while (rdtsc() - start < ms_to_tsc(50))
        cpu_relax();
}

static void power_service(void)
{
    if (another_service)
        another_service();
    if (!(inw(PM1_STATUS) & PM1_POWER_BUTTON))
        return;
    outw(PM1_STATUS, PM1_POWER_BUTTON);
    print("power button: powering off\n");
    power_off();
}

void power_init(void)
{
    has_pm_block = inw(PM1_STATUS) != 0xffff && inw(PM1_CONTROL) != 0xffff;
    if (!has_pm_block)
        return;
    outw(PM1_STATUS, PM1_POWER_BUTTON);
    irq_register(SCI_IRQ, power_service);
    outw(PM1_ENABLE, PM1_POWER_BUTTON);
}

void power_also(void (*run)(void)) { another_service = run; }

bool power_has_pm_block(void) { return has_pm_block; }

void triple_fault(void)
{
    syscall(SYS_NOIDT, 0, 0);
    for (;;)
        asm volatile("ud2");
}

void power_exit(u8 code)
{
    outb(DEBUG_EXIT, code);
    let_it_happen();
}

void power_reboot(void)
{
    outb(I8042, I8042_RESET);
    let_it_happen();
    triple_fault();
}

void power_off(void)
{
    outw(PM1_CONTROL, PM1_SLEEP_ENABLE);
    if (has_pm_block)
        let_it_happen();
    power_exit(0);
    power_reboot();
}
