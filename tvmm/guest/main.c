/* Where user mode begins, and where its faults end. */
#include "clock.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "mptable.h"
#include "power.h"
#include "shell.h"
#include "uart.h"

extern char bsp_ustack[];

void guest_main(u32 entry, u64 info) __attribute__((noreturn));
void user_fault(struct percpu *cpu) __attribute__((noreturn));

_Static_assert(offsetof(struct percpu, events) == PERCPU_EVENTS, "traps.S relies on it");
_Static_assert(offsetof(struct percpu, fault_vector) == PERCPU_FAULT_VEC, "traps.S relies on it");
_Static_assert(offsetof(struct percpu, fault_error) == PERCPU_FAULT_ERR, "traps.S relies on it");
_Static_assert(offsetof(struct percpu, fault_rip) == PERCPU_FAULT_RIP, "traps.S relies on it");
_Static_assert(offsetof(struct percpu, fault_rsp) == PERCPU_FAULT_RSP, "traps.S relies on it");
_Static_assert(offsetof(struct percpu, fault_cr2) == PERCPU_FAULT_CR2, "traps.S relies on it");
_Static_assert(offsetof(struct percpu, ustack) == PERCPU_USTACK, "traps.S relies on it");

/* First instruction in user mode. The banner's first half is out before anything is looked at. */
void guest_main(u32 entry, u64 info)
{
    machine.start_tsc = rdtsc();
    bsp_kstack.ustack = (u64)bsp_ustack + USTACK_SIZE - 8;
    uart_init();
    machine_init(entry, info);
    shell_init();
    if (!shell_quiet())
        print("tvmm built-in guest\n");
    mptable_init();
    if (!shell_quiet())
        print("%lu MiB, %u CPU%s, entered by %s\n", (machine.ram_bytes + 0xfffff) >> 20, mptable.cpu_count,
              mptable.cpu_count == 1 ? "" : "s", entry_name());
    irq_init();
    uart_enable_receive();
    power_init();
    shell_run();
}

/* A fault of user mode: the command is over. A fault on an application processor retires that CPU. */
void user_fault(struct percpu *cpu)
{
    uart_reset(); /* the fault may have come while it was being tampered with */
    print("\nfault: vector %lu, error 0x%lx, rip 0x%lx, rsp 0x%lx, cr2 0x%lx\n", cpu->fault_vector,
          cpu->fault_error, cpu->fault_rip, cpu->fault_rsp, cpu->fault_cr2);
    if (cpu != &bsp_kstack)
        syscall(SYS_HALT, 0, 0);
    console_set_raw(false);
    shell_recover();
}
