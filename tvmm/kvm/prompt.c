/* A thread that is to run soon after it wakes, beside others that compute all the time. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PROMPT_SLICE_NS 100000u /* the shortest that there is: who asks for little is served first (Linux 6.12) */
#define PROMPT_NICE (-19)
#define PROMPT_RESET_ON_FORK 1u /* threads that this one starts are ordinary ones */

/* sched_setattr(2); the C library has no name for it everywhere. */
struct tvmm_sched_attr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

/* The calling thread, if it is an ordinary one. 0, or -errno if it stays as it is; `before` is for tvmm_unprompt. */
int tvmm_prompt(struct tvmm_sched_attr *before)
{
    if (syscall(SYS_sched_getattr, 0, before, sizeof *before, 0) < 0)
        return -errno;
    if (before->policy || before->nice || before->runtime < PROMPT_SLICE_NS)
        return -EALREADY;
    struct tvmm_sched_attr wanted = *before;
    wanted.size = sizeof wanted;
    wanted.flags |= PROMPT_RESET_ON_FORK;
    wanted.runtime = PROMPT_SLICE_NS;
    wanted.nice = PROMPT_NICE;
    if (!syscall(SYS_sched_setattr, 0, &wanted, 0))
        return 0;
    /* Without the right to that, the short slice alone. */
    wanted.nice = 0;
    return syscall(SYS_sched_setattr, 0, &wanted, 0) ? -errno : 0;
}

/* As it was. Who has no right to may not drop the flag, which then stays. */
void tvmm_unprompt(const struct tvmm_sched_attr *before)
{
    struct tvmm_sched_attr wanted = *before;
    wanted.size = sizeof wanted;
    if (!syscall(SYS_sched_setattr, 0, &wanted, 0))
        return;
    wanted.flags |= PROMPT_RESET_ON_FORK;
    syscall(SYS_sched_setattr, 0, &wanted, 0);
}
