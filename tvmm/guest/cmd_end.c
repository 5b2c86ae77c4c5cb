/* Commands that end the machine, or try to. */
#include "commands.h"
#include "console.h"
#include "lib.h"
#include "power.h"
#include "smp.h"

bool cmd_halt(int count, char **arguments)
{
    (void)count, (void)arguments;
    print("halting\n");
    smp_halt();
    syscall(SYS_HALT, 0, 0);
    return true;
}

bool cmd_crash(int count, char **arguments)
{
    (void)count, (void)arguments;
    triple_fault();
}

bool cmd_badop(int count, char **arguments)
{
    (void)count, (void)arguments;
    u64 result = syscall(SYS_BADOP, 0x12345678, 0);
    if (result == (u64)-1)
        print("badop: refused with an exception\n");
    else
        print("badop: executed, crc32 0x%lx\n", result);
    return true;
}

bool cmd_reboot(int count, char **arguments)
{
    (void)count, (void)arguments;
    power_reboot();
}

bool cmd_poweroff(int count, char **arguments)
{
    (void)count, (void)arguments;
    power_off();
}

bool cmd_exit(int count, char **arguments)
{
    u64 code;
    if (count != 2 || !parse_number(arguments[1], &code) || code > 0xff)
        return false;
    power_exit((u8)code);
    print("exit: nothing answers at the debug exit port\n");
    return true;
}
