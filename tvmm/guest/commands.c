/* The table of commands. To add one: write it in a cmd_*.c, declare it in commands.h, add a line here. */
#include "commands.h"
#include "console.h"
#include "shell.h"

const struct command commands[] = {
    {"help", "", "this list", cmd_help},
    {"info", "", "entry, command line, CPUs, clocks, uptime", cmd_info},
    {"echo", "TEXT", "print TEXT", cmd_echo},
    {"mem", "[ADDRESS [LENGTH]]", "the memory map, or a hex dump", cmd_mem},
    {"poke", "ADDRESS VALUE [SIZE]", "write 1, 2, 4 (default) or 8 bytes", cmd_poke},
    {"cpus", "", "start all CPUs; each counts to a million", cmd_cpus},
    {"smp", "SECONDS", "all CPUs count; iterations of each", cmd_smp},
    {"spin", "[SECONDS]", "keep one CPU busy, or until Ctrl-C", cmd_spin},
    {"spinoff", "", "spin in kernel mode with interrupts off, for ever", cmd_spinoff},
    {"stall", "[SECONDS]", "longest time in which this CPU did not run", cmd_stall},
    {"dirty", "RATE SIZE [SECONDS] [spin] [cpus] [log=MS]", "write RATE pages/s; 0: flat out", cmd_dirty},
    {"check", "", "verify all pages that `dirty` wrote", cmd_check},
    {"churn", "[SECONDS] [KEY=VALUE...]", "checked pages, disk, echoes and clocks at once", cmd_churn},
    {"clock", "", "RTC, kvmclock and TSC", cmd_clock},
    {"timer", "HZ TICKS [pit]", "count timer interrupts: local APIC, or PIT", cmd_timer},
    {"rtc", "", "try the RTC's update and alarm interrupts", cmd_rtc},
    {"pio", "COUNT", "what a port or device memory access costs", cmd_pio},
    {"kbd", "[SECONDS]", "scan codes from the keyboard controller", cmd_kbd},
    {"fuzz", "SECONDS SEED", "random accesses to ports and memory holes", cmd_fuzz},
    {"emit", "BYTES", "send a checksummed pattern over the console", cmd_emit},
    {"sink", "BYTES", "receive BYTES over the console; their FNV-1a", cmd_sink},
    {"virtio", "", "virtio devices", cmd_virtio},
    {"vreset", "DEVICE COUNT", "reset a virtio device and set it up, over and over", cmd_vreset},
    {"blk", "[N]", "what disk N is", cmd_blk},
    {"blkbench", "N OP BYTES QD SECONDS [irq] [sg]", "OP is read, write, randread or randwrite", cmd_blkbench},
    {"mqbench", "N OP BYTES QD SECONDS [irq]", "the same, each CPU with a queue of its own (`mq`)", cmd_mqbench},
    {"ringops", "N COUNT", "small disk requests that touch no data", cmd_ringops},
    {"flush", "N", "write disk N's cache back", cmd_flush},
    {"discard", "N SECTOR COUNT", "give sectors back", cmd_discard},
    {"zeroes", "N SECTOR COUNT", "write zeroes", cmd_zeroes},
    {"rdsec", "N SECTOR", "the first 64 bytes of a sector", cmd_rdsec},
    {"wrsec", "N SECTOR TEXT", "write a sector", cmd_wrsec},
    {"blkfill", "N MIB SEED [SECONDS]", "write a checkable pattern, once or for some time", cmd_blkfill},
    {"blkcheck", "N MIB SEED", "verify it", cmd_blkcheck},
    {"blkstress", "N MIB SEED COUNT", "random reads, writes and flushes, all verified", cmd_blkstress},
    {"blkreset", "N COUNT [queue]", "reset the disk, or its queue, with requests in flight", cmd_blkreset},
    {"ip", "N ADDRESS/PREFIX", "answer ARP, ping and UDP echo on network device N", cmd_ip},
    {"ping", "N ADDRESS COUNT [irq]", "ICMP echo, one after the other", cmd_ping},
    {"mac", "N [MAC]", "hardware address", cmd_mac},
    {"link", "N [promisc|nopromisc]", "state, features, counters", cmd_link},
    {"nettx", "N BYTES SECONDS [gso]", "send frames as fast as it goes", cmd_nettx},
    {"netrx", "N SECONDS [irq]", "count frames that come in", cmd_netrx},
    {"mqtx", "N BYTES SECONDS", "send, each CPU by a pair of queues of its own (`mq`)", cmd_mqtx},
    {"mqrx", "N SECONDS", "count what comes in, likewise", cmd_mqrx},
    {"netecho", "N", "answer without sleeping, until Ctrl-C", cmd_netecho},
    {"vcon", "[open|close|write|read|echo|pump PORT [TEXT|BYTES]]", "ports of the virtio console", cmd_vcon},
    {"balloon", "[serve SECONDS|report|raw PAGE COUNT]", "pages that the host has got, statistics, free pages", cmd_balloon},
    {"genid", "", "the generation ID, and how often it has changed", cmd_genid},
    {"rng", "N BYTES", "random bytes", cmd_rng},
    {"vsock", "[echo|sink|send|recv|ping|many|flood|junk ...]", "streams to the host; README.md has the arguments", cmd_vsock},
    {"screen", "[mode|picture|animate|fill|console|flash|sum [...]]", "the display; README.md has the arguments", cmd_screen},
    {"input", "", "keyboards, mice and tablets", cmd_input},
    {"keys", "[SECONDS]", "what keyboards say, in Linux's codes", cmd_keys},
    {"mouse", "[SECONDS]", "what mice and tablets say", cmd_mouse},
    {"leds", "N", "keyboard lamps: 1 scroll, 2 num, 4 caps", cmd_leds},
    {"halt", "", "all CPUs: interrupts off, HLT", cmd_halt},
    {"crash", "", "triple fault", cmd_crash},
    {"badop", "", "run CRC32 in kernel mode, which instruction emulators lack", cmd_badop},
    {"reboot", "", "reset through the keyboard controller, then by triple fault", cmd_reboot},
    {"poweroff", "", "ACPI soft off, then debug exit 0, then reboot", cmd_poweroff},
    {"exit", "CODE", "leave through the isa-debug-exit port", cmd_exit},
    {NULL, NULL, NULL, NULL},
};

bool cmd_help(int count, char **arguments)
{
    (void)count, (void)arguments;
    for (const struct command *c = commands; c->name; c++) {
        char left[48];
        format(left, sizeof left, "%s %s", c->name, c->arguments);
        print("%-28s %s\n", left, c->help);
    }
    return true;
}
