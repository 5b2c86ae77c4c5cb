/* userfaultfd(2): page faults of this process, also those that KVM takes for the guest, as messages that somebody answers.
 *
 * Nothing but the calls, each with its -errno. Ranges are whole pages of 4096 bytes. */
#ifndef TVMM_UFFD_H
#define TVMM_UFFD_H

#include <stdint.h>

/* Messages that one read takes. */
#define TVMM_UFFD_READ_MAX 32u

struct tvmm_uffd_fault {
    uint64_t address; /* the page's */
    uint64_t flags;   /* UFFD_PAGEFAULT_FLAG_*: a write; a page that is protected */
};

int tvmm_uffd_open(uint64_t features);
int tvmm_uffd_register(int fd, void *base, uint64_t length, uint64_t mode, uint64_t *calls);
int tvmm_uffd_unregister(int fd, void *base, uint64_t length);
int64_t tvmm_uffd_copy(int fd, void *to, const void *from, uint64_t length, uint64_t mode);
int64_t tvmm_uffd_zero(int fd, void *to, uint64_t length, uint64_t mode);
int tvmm_uffd_wake(int fd, void *base, uint64_t length);
int tvmm_uffd_protect(int fd, void *base, uint64_t length, uint64_t mode);
int tvmm_uffd_read(int fd, struct tvmm_uffd_fault *faults, uint32_t room);

#endif
