/* See remap.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "remap.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

/* The file's bytes from `offset` on; what is written stays in this process unless `shared`. 0 or -errno: then what was there
 * is there still. */
int tvmm_map_file(uint8_t *at, uint64_t length, int fd, uint64_t offset, int shared)
{
    int flags = MAP_FIXED | (shared ? MAP_SHARED : MAP_PRIVATE | MAP_NORESERVE);
    return mmap(at, length, PROT_READ | PROT_WRITE, flags, fd, (off_t)offset) == MAP_FAILED ? -errno : 0;
}

/* Zeros that take no memory before they are written. 0 or -errno. */
int tvmm_map_anonymous(uint8_t *at, uint64_t length)
{
    if (mmap(at, length, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
        return -errno;
    /* As a block has it from the start; advice and no more. */
    madvise(at, length, MADV_HUGEPAGE);
    return 0;
}

/* Anybody's access may be the one that faults, also KVM's reports of what a vCPU did: so this says it from the signal, with
 * nothing that could wait for a lock. The handler is gone by then (SA_RESETHAND): the access is done again, and ends the
 * process as it would have done. The terminal may be raw. */
static void on_bus_error(int number, siginfo_t *info, void *context)
{
    static const char text[] = "\r\ntvmm: memory of a guest is gone: the snapshot file that it came from was cut short, or cannot be "
                               "read; its machine ends\r\n";
    (void)number;
    (void)context;
    if (info->si_code == BUS_ADRERR && write(STDERR_FILENO, text, sizeof text - 1) < 0)
        return;
}

/* Have this process not die of a file that is cut short without a word, unless somebody else looks at SIGBUS. */
void tvmm_tell_bus_errors(void)
{
    struct sigaction now, action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_RESETHAND};
    if (sigaction(SIGBUS, NULL, &now) == 0 && !(now.sa_flags & SA_SIGINFO) && now.sa_handler == SIG_DFL)
        sigaction(SIGBUS, &action, NULL);
}
