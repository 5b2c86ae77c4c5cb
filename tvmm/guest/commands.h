/* What the command table points to; each group lives in its own file. */
#ifndef GUEST_COMMANDS_H
#define GUEST_COMMANDS_H

#include "arch.h"

#define COMMAND(name) bool name(int count, char **arguments)

COMMAND(cmd_help);
/* cmd_info.c */
COMMAND(cmd_info);
COMMAND(cmd_echo);
/* cmd_mem.c */
COMMAND(cmd_mem);
COMMAND(cmd_poke);
/* cmd_cpu.c */
COMMAND(cmd_cpus);
COMMAND(cmd_smp);
COMMAND(cmd_spin);
COMMAND(cmd_spinoff);
COMMAND(cmd_stall);
/* cmd_dirty.c */
COMMAND(cmd_dirty);
COMMAND(cmd_check);
/* cmd_churn.c */
COMMAND(cmd_churn);
/* cmd_serial.c */
COMMAND(cmd_emit);
COMMAND(cmd_sink);
/* cmd_time.c */
COMMAND(cmd_clock);
COMMAND(cmd_timer);
COMMAND(cmd_rtc);
/* cmd_io.c, cmd_fuzz.c */
COMMAND(cmd_pio);
COMMAND(cmd_kbd);
COMMAND(cmd_fuzz);
/* cmd_virtio.c, cmd_blk.c, cmd_mq.c, cmd_blkdata.c */
COMMAND(cmd_virtio);
COMMAND(cmd_vreset);
COMMAND(cmd_blk);
COMMAND(cmd_blkbench);
COMMAND(cmd_mqbench);
COMMAND(cmd_ringops);
COMMAND(cmd_flush);
COMMAND(cmd_discard);
COMMAND(cmd_zeroes);
COMMAND(cmd_rdsec);
COMMAND(cmd_wrsec);
COMMAND(cmd_blkfill);
COMMAND(cmd_blkcheck);
COMMAND(cmd_blkstress);
COMMAND(cmd_blkreset);
/* cmd_net.c, cmd_mqnet.c */
COMMAND(cmd_ip);
COMMAND(cmd_ping);
COMMAND(cmd_mac);
COMMAND(cmd_link);
COMMAND(cmd_nettx);
COMMAND(cmd_netrx);
COMMAND(cmd_netecho);
COMMAND(cmd_mqtx);
COMMAND(cmd_mqrx);
/* cmd_balloon.c */
COMMAND(cmd_balloon);
/* cmd_vcon.c, virtio_rng.c */
COMMAND(cmd_vcon);
COMMAND(cmd_rng);
/* cmd_genid.c */
COMMAND(cmd_genid);
/* cmd_vsock.c */
COMMAND(cmd_vsock);
/* cmd_screen.c, cmd_input.c */
COMMAND(cmd_screen);
COMMAND(cmd_input);
COMMAND(cmd_keys);
COMMAND(cmd_mouse);
COMMAND(cmd_leds);
/* cmd_end.c */
COMMAND(cmd_halt);
COMMAND(cmd_crash);
COMMAND(cmd_badop);
COMMAND(cmd_reboot);
COMMAND(cmd_poweroff);
COMMAND(cmd_exit);

#endif
