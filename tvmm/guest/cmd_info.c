/* Commands about the machine as a whole. */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "mptable.h"
#include "power.h"
#include "smp.h"

static void print_cpus(void)
{
    u32 online = smp_online();
    print("CPUs          %u, %u online (`cpus` starts them)\n", mptable.cpu_count, online);
    for (u32 i = 0; i < mptable.cpu_count; i++)
        print("  cpu %-2u      apic %u, %s\n", i, mptable.apic_id[i],
              i == 0 || cpus[i].online ? "online" : "not started");
}

bool cmd_info(int count, char **arguments)
{
    (void)count, (void)arguments;
    print("entry         %s\n", entry_name());
    print("command line  %s\n", machine.command_line);
    print("memory        %lu KiB RAM in %lu regions:\n", machine.ram_bytes >> 10, machine.region_count);
    print_memory_map();
    if (machine.initrd_size)
        print("initrd        0x%lx, %lu bytes, fnv1a %08x\n", machine.initrd_start, machine.initrd_size,
              fnv1a(FNV1A_START, (const void *)machine.initrd_start, machine.initrd_size));
    print_cpus();
    print("MP table      %s\n", mptable.found ? "found" : "none");
    print("local APIC    %s\n", !irq_has_lapic() ? "none" : apic_is_x2apic ? "x2APIC" : "xAPIC");
    if (irq_has_ioapic())
        print("I/O APIC      0x%lx\n", mptable.ioapic);
    else
        print("I/O APIC      none: devices are polled\n");
    print("ACPI PM block %s\n", power_has_pm_block() ? "at 0x600" : "none");
    print("TSC           %lu kHz by %s\n", tsc_khz(), tsc_khz_source());
    print("uptime        %lu us\n", tsc_to_us(rdtsc() - machine.start_tsc));
    return true;
}

bool cmd_echo(int count, char **arguments)
{
    for (int i = 1; i < count; i++)
        print(i == 1 ? "%s" : " %s", arguments[i]);
    print("\n");
    return true;
}
