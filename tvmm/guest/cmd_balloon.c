/* The memory balloon's command. */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "virtio_balloon.h"

static void summary(const struct balloon *b)
{
    print("balloon: %lu of %u pages, %lu hinted, %lu reported, %lu answers%s\n", b->actual, b->wanted, b->hinted,
          b->reported, b->answers, b->short_of ? ", no more are free" : "");
}

/* Until it has what the host wants, or Ctrl-C. */
static void settle(struct balloon *b)
{
    while (!irq_poll() && !balloon_settled(b)) /* in this order: polling may be what settles it */
        irq_sleep();
}

bool cmd_balloon(int count, char **arguments)
{
    u64 first, pages, seconds = 0;
    bool serve = count == 3 && !strcmp(arguments[1], "serve") && parse_number(arguments[2], &seconds);
    bool report = count == 2 && !strcmp(arguments[1], "report");
    bool raw = count == 4 && !strcmp(arguments[1], "raw") && parse_number(arguments[2], &first) &&
               parse_number(arguments[3], &pages) && first <= 0xffffffff && pages <= BALLOON_PAGES;
    if (count != 1 && !serve && !report && !raw)
        return false;
    struct balloon *b = balloon_open(0);
    if (!b)
        return true;
    settle(b);
    if (report)
        balloon_report(b);
    if (raw)
        balloon_inflate_raw(b, (u32)first, (u32)pages);
    if (serve)
        sleep_until(rdtsc() + ms_to_tsc(seconds * 1000));
    settle(b);
    summary(b);
    return true;
}
