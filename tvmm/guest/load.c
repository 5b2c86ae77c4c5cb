/* The loop of `dirty` and `churn`. Nothing in it takes longer than some 10 us, so that the meter is as exact. */
#include "load.h"
#include "clock.h"
#include "console.h"
#include "irq.h"
#include "pages.h"
#include "smp.h"

#define BURST          32   /* operations beyond the rate that are made up for after a pause */
#define NAP_US         1000 /* of sleep: no pause that is longer is slept over, and there is something to do after it */
#define PACE_SECONDS   8    /* after which a pace begins anew, so that no product overflows */
#define MISSED_MS      1000 /* without an answer: is there one that no interrupt told of? */
#define PATIENCE_MS    10000 /* in which the disk must answer in the end, in time that the guest runs */
#define ECHO_PATIENCE_MS 500
#define FLAT_OUT_ECHOES 64  /* in flight */
#define MAX_COMPLAINTS 8

static volatile bool stop;

bool number_option(const char *word, const char *name, u64 limit, u64 *value)
{
    u64 number;
    if (!starts_with(word, name) || !parse_number(word + strlen(name), &number) || number > limit)
        return false;
    *value = number;
    return true;
}

bool load_option(struct load *load, const char *word)
{
    bool *flag = !strcmp(word, "spin") ? &load->spin : !strcmp(word, "cpus") ? &load->all_cpus
               : !strcmp(word, "poll") ? &load->poll : NULL;
    if (flag)
        return *flag = true;
    return number_option(word, "log=", 86400000, &load->log_ms) && load->log_ms;
}

/* The job of the other CPUs: their longest gap, in ticks. */
static void watch_clock(struct cpu *cpu)
{
    for (u64 now, last = rdtsc(); !stop; last = now) {
        now = rdtsc();
        if (now > last && now - last > cpu->counter)
            cpu->counter = now - last;
    }
}

static void pace_start(struct pace *pace, u64 now)
{
    pace->start = now;
    pace->done = 0;
}

/* How many operations are due now. After a long pause it goes on with the rate, not with a burst. */
static u64 pace_due(struct pace *pace, u64 now)
{
    if (!pace->rate)
        return BURST;
    if (now < pace->start || (now - pace->start >= ms_to_tsc(PACE_SECONDS * 1000) &&
                              pace->done >= PACE_SECONDS * pace->rate))
        pace_start(pace, now);
    u64 due = tsc_to_us(now - pace->start) * pace->rate / 1000000 + 1;
    if (due > pace->done + pace->rate / 50 + BURST) {
        pace_start(pace, now);
        due = pace->rate / 50 + 1;
    }
    return due > pace->done ? due - pace->done : 0;
}

static u64 pace_next(const struct pace *pace, u64 now)
{
    return pace->rate ? pace->start + us_to_tsc(pace->done * 1000000 / pace->rate) : now;
}

static void reap(struct load *load)
{
    do {
        blk_interrupts(load->disk->blk, false);
        if (blkdata_reap(load->disk))
            load->disk_last = load->meter.ran;
    } while (!load->poll && !blk_interrupts(load->disk->blk, true));
}

/* Are there answers that no interrupt told of? */
static void look_for_missed(struct load *load)
{
    struct blk *blk = load->disk->blk;
    u64 ran = load->meter.ran;
    if (!blk_in_flight(blk))
        load->disk_last = ran;
    if (load->poll || ran - load->disk_last < ms_to_tsc(MISSED_MS) || blk_interrupts(blk, true)) {
        load->disk_suspect = 0;
    } else if (!load->disk_suspect) {
        load->disk_suspect = ran;
    } else if (ran - load->disk_suspect >= ms_to_tsc(MISSED_MS / 10)) {
        if (load->disk_missed++ < MAX_COMPLAINTS)
            print_later("error: blk %u: answers that no interrupt told of\n", blk->device->number);
        load->disk_suspect = 0;
        reap(load);
    }
}

static void disk_step(struct load *load, u64 now, bool more)
{
    struct blk *blk = load->disk->blk;
    u32 interrupts = (u32)blk_interrupt_count(blk);
    if (load->poll || interrupts != load->disk_interrupts) {
        load->disk_interrupts = interrupts; /* before the look: what comes from now on is another round */
        reap(load);
    }
    bool added = false;
    u64 due = more ? pace_due(&load->disk_pace, now) : 0;
    for (; due && blkdata_add(load->disk, load->depth, now); due--) {
        load->disk_pace.done++;
        added = true;
    }
    if (added)
        blk_kick(blk);
    look_for_missed(load);
}

static void echo_step(struct load *load, u64 now, bool more)
{
    struct echoes *e = &load->echoes;
    echoes_poll(e, load->meter.ran, load->poll);
    u64 due = more ? pace_due(&e->pace, now) : 0;
    if (!e->pace.rate && e->next - e->answered - e->lost >= FLAT_OUT_ECHOES)
        due = 0;
    if (!due)
        return;
    echoes_send(e); /* one at a turn */
    net_kick(e->net);
    e->pace.done++;
}

/* One page in a turn when it is flat out, so that the clock is looked at after each. */
static void page_step(struct load *load, u64 now)
{
    if (load->page_pace.rate && !pace_due(&load->page_pace, now))
        return;
    pages_write_next();
    load->page_pace.done++;
}

static u64 disk_errors(const struct load *load)
{
    const struct blkdata *c = load->disk;
    return c ? c->wrong + c->failed + c->unreadable + load->disk_missed + load->disk_lost + blk_broken(c->blk) : 0;
}

u64 load_page_errors(const struct load *load) { return pages_errors() - load->errors_before; }

void load_summary(const struct load *load, bool later)
{
    const struct meter *m = &load->meter;
    const struct echoes *e = &load->echoes;
    const struct blkdata *c = load->disk;
    char drift[48] = "no kvmclock", line[512];
    if (m->has_kvmclock)
        format(drift, sizeof drift, "drift %lu us", m->drift / 1000);
    format(line, sizeof line, "%s: %lu page writes, %lu page errors, %lu disk requests, %lu disk errors, %lu echoes, "
           "%lu lost, %lu wrong, longest stall %lu us, clock %lu backward, %s, rtc %d s off, in %lu us", load->name,
           pages_written() - load->pages_before, load_page_errors(load), c ? c->done : 0, disk_errors(load),
           e->answered, e->lost, e->wrong + e->twice + e->missed, tsc_to_us(m->longest), m->backward,
           drift, load->rtc_off, tsc_to_us(m->last - m->start));
    if (later)
        print_later("%s\n", line);
    else
        print("%s\n", line);
}

static void lap(struct load *load)
{
    u64 longest = meter_lap(&load->meter);
    load->lap_longest = max_u64(load->lap_longest, longest);
    load->log_longest = max_u64(load->log_longest, longest);
}

/* What happened since the last mark. */
static void mark(struct load *load, u64 now)
{
    lap(load);
    print_later("mark %lu: %lu page writes in %lu us, longest pause %lu us\n", ++load->marks,
                pages_written() - load->lap_pages, tsc_to_us(now - load->lap_start), tsc_to_us(load->lap_longest));
    load->lap_pages = pages_written();
    load->lap_start = now;
    load->lap_longest = 0;
}

static void log_line(struct load *load, u64 now)
{
    lap(load);
    print_later("at %lu us: %lu page writes, longest pause %lu us\n", tsc_to_us(now - load->meter.start),
                pages_written() - load->log_pages, tsc_to_us(load->log_longest));
    load->log_pages = pages_written();
    load->log_longest = 0;
    load->log_next += ms_to_tsc(load->log_ms);
    if (load->log_next <= now)
        load->log_next = now + ms_to_tsc(load->log_ms);
}

/* Keys; false after `q`. */
static bool take_keys(struct load *load, u64 now)
{
    for (int key; (key = console_read()) >= 0;) {
        if (key == 'm')
            mark(load, now);
        else if (key == 's')
            load_summary(load, true);
        else if (key == 'q')
            return false;
    }
    return true;
}

/* Sleeps until there is something to do, unless there is already. */
static void rest(struct load *load, u64 now, u64 end)
{
    bool flat_out = load->pages && !load->page_pace.rate;
    if (load->spin || load->poll || flat_out)
        return;
    u64 next = end;
    if (load->pages)
        next = min_u64(next, pace_next(&load->page_pace, now));
    if (load->disk && !(load->disk_pace.rate == 0 && blk_in_flight(load->disk->blk)))
        next = min_u64(next, pace_next(&load->disk_pace, now));
    if (load->echoes.net && !(load->echoes.pace.rate == 0 && !echoes_answered(&load->echoes)))
        next = min_u64(next, pace_next(&load->echoes.pace, now));
    if (next <= now)
        return;
    next = min_u64(end, now + us_to_tsc(NAP_US));
    if (load->log_ms)
        next = min_u64(next, load->log_next);
    if (next > now)
        meter_sleep(&load->meter, next);
}

/* What is still in flight: answered, or lost. */
static void finish(struct load *load)
{
    struct meter *m = &load->meter;
    u64 start = m->ran;
    while (load->disk && blk_in_flight(load->disk->blk) && !blk_broken(load->disk->blk) &&
           m->ran - start < ms_to_tsc(PATIENCE_MS)) {
        disk_step(load, meter_look(m), false);
        irq_poll();
    }
    if (load->disk) {
        load->disk_lost = load->disk->writes + load->disk->reads + load->disk->flushes - load->disk->done;
        blk_interrupts(load->disk->blk, false);
        blk_drain(load->disk->blk);
    }
    start = m->ran;
    while (load->echoes.net && !echoes_answered(&load->echoes) && m->ran - start < ms_to_tsc(ECHO_PATIENCE_MS)) {
        echo_step(load, meter_look(m), false);
        irq_poll();
    }
    if (load->echoes.net)
        echoes_stop(&load->echoes);
}

void load_run(struct load *load)
{
    struct meter *m = &load->meter;
    stop = false;
    load->poll |= !irq_has_ioapic();
    if (load->all_cpus && smp_start() > 1)
        smp_run(watch_clock);
    load->pages_before = load->lap_pages = load->log_pages = pages_written();
    load->errors_before = pages_errors();
    if (load->disk) {
        blk_start_counts(load->disk->blk);
        blk_interrupts(load->disk->blk, !load->poll);
    }
    meter_start(m);
    u64 now = m->last, end = load->seconds ? now + ms_to_tsc(load->seconds * 1000) : (u64)-1;
    pace_start(&load->page_pace, now);
    pace_start(&load->disk_pace, now);
    pace_start(&load->echoes.pace, now);
    load->lap_start = now;
    load->log_next = now + ms_to_tsc(load->log_ms);
    while (!irq_poll() && (now = meter_look(m)) < end && take_keys(load, now)) {
        if (load->pages)
            page_step(load, now);
        if (load->disk)
            disk_step(load, now, true);
        if (load->echoes.net)
            echo_step(load, now, true);
        if (load->log_ms && now >= load->log_next)
            log_line(load, now);
        if (!console_trickle())
            rest(load, now, end);
    }
    meter_look(m); /* what was slept over before Ctrl-C */
    finish(load);
    lap(load);
    stop = true;
    while (load->all_cpus && !smp_idle() && !irq_poll())
        cpu_relax();
    for (u32 i = 1; load->all_cpus && i < MAX_CPUS; i++)
        if (cpus[i].online)
            print("cpu %u: longest pause %lu us\n", i, tsc_to_us(cpus[i].counter));
}
