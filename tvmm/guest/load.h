/*
 * A checked load: page writes, disk requests and echoes in turns on one CPU, each at its rate, while the meter looks at
 * the clocks. Every page, block, request and packet is accounted for, so what a migration damages or loses is found.
 */
#ifndef GUEST_LOAD_H
#define GUEST_LOAD_H

#include "blkdata.h"
#include "meter.h"
#include "virtio_net.h"

struct pace { /* so many a second */
    u64 rate; /* 0: as fast as it goes */
    u64 start, done;
};

#define ECHO_RING 16384

struct echoes {
    struct net *net; /* NULL: none */
    struct pace pace;
    u64 *waiting;    /* by number modulo ECHO_RING: number + 1, or 0 once it is answered */
    u64 next, answered, lost, wrong, twice, missed;
    u64 last, suspect; /* meter.ran: at the last answer, and when frames were first seen that no interrupt told of */
};

struct load {
    const char *name; /* of the command */
    bool pages;
    struct pace page_pace;
    struct blkdata *disk; /* NULL: none */
    struct pace disk_pace;
    u32 depth;
    u64 disk_last, disk_suspect; /* as those of echoes */
    u64 disk_missed, disk_lost;
    u32 disk_interrupts;
    struct echoes echoes;
    bool poll, spin; /* look at queues without interrupts; look at the clock instead of sleeping */
    bool all_cpus;   /* the other CPUs look at the clock too */
    u64 log_ms, seconds; /* 0: no log; no end */

    struct meter meter;
    int rtc_off; /* seconds, as of the end */
    u64 pages_before, errors_before;
    u64 log_next, lap_pages, lap_start, log_pages, marks, lap_longest, log_longest;
};

bool number_option(const char *word, const char *name, u64 limit, u64 *value); /* `name` ends in `=` */
bool load_option(struct load *load, const char *word); /* spin, poll, cpus, log=MS */
void load_run(struct load *load); /* until its end, Ctrl-C or the key `q`; `s` prints the summary, `m` a mark */
/* One line; later: by print_later(). */
void load_summary(const struct load *load, bool later);
u64 load_page_errors(const struct load *load);

/* load_echo.c */
bool echoes_start(struct echoes *echoes, u32 peer); /* false, with a line printed, if the peer is not to be found */
void echoes_send(struct echoes *echoes); /* one, if there is a free buffer; the caller kicks */
void echoes_poll(struct echoes *echoes, u64 ran, bool always);
bool echoes_answered(const struct echoes *echoes); /* all of them */
void echoes_stop(struct echoes *echoes);           /* those that are left are lost */

#endif
