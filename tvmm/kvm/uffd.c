/* See uffd.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/* The system call wants a capability, or a sysctl, because faults of the kernel are asked for, which KVM's are; the device
 * wants its file's rights. */
static int open_any(void)
{
    int flags = O_CLOEXEC | O_NONBLOCK;
    int fd = (int)syscall(SYS_userfaultfd, flags);
    if (fd >= 0)
        return fd;
    int error = -errno, device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0)
        return error;
    fd = ioctl(device, USERFAULTFD_IOC_NEW, flags);
    if (fd < 0)
        fd = -errno;
    close(device);
    return fd;
}

/* A descriptor whose reads do not wait, or -errno; -EOPNOTSUPP: it has not all of these features. */
int tvmm_uffd_open(uint64_t features)
{
    int fd = open_any();
    if (fd < 0)
        return fd;
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    int error = 0;
    if (ioctl(fd, UFFDIO_API, &api) < 0)
        error = errno == EINVAL ? -EOPNOTSUPP : -errno;
    else if ((api.features & features) != features)
        error = -EOPNOTSUPP;
    if (!error)
        return fd;
    close(fd);
    return error;
}

/* `calls`: a bit for each of the calls that the range takes. 0 or -errno. */
int tvmm_uffd_register(int fd, void *base, uint64_t length, uint64_t mode, uint64_t *calls)
{
    struct uffdio_register range = {.range = {(uint64_t)base, length}, .mode = mode};
    if (ioctl(fd, UFFDIO_REGISTER, &range) < 0)
        return -errno;
    *calls = range.ioctls;
    return 0;
}

/* Whoever waits for a page there goes on, and finds what an ordinary fault gives it. 0 or -errno. */
int tvmm_uffd_unregister(int fd, void *base, uint64_t length)
{
    struct uffdio_range range = {(uint64_t)base, length};
    return ioctl(fd, UFFDIO_UNREGISTER, &range) < 0 ? -errno : 0;
}

/* How many bytes of a run are there now, with whoever waited for them woken; -errno if it is none of them, -EEXIST: the
 * first page is there already. */
int64_t tvmm_uffd_copy(int fd, void *to, const void *from, uint64_t length, uint64_t mode)
{
    for (;;) {
        struct uffdio_copy copy = {.dst = (uint64_t)to, .src = (uint64_t)from, .len = length, .mode = mode};
        if (!ioctl(fd, UFFDIO_COPY, &copy))
            return (int64_t)length;
        if (copy.copy > 0)
            return copy.copy;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
    }
}

/* The same with zeros. */
int64_t tvmm_uffd_zero(int fd, void *to, uint64_t length, uint64_t mode)
{
    for (;;) {
        struct uffdio_zeropage zero = {.range = {(uint64_t)to, length}, .mode = mode};
        if (!ioctl(fd, UFFDIO_ZEROPAGE, &zero))
            return (int64_t)length;
        if (zero.zeropage > 0)
            return zero.zeropage;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
    }
}

int tvmm_uffd_wake(int fd, void *base, uint64_t length)
{
    struct uffdio_range range = {(uint64_t)base, length};
    return ioctl(fd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

/* UFFDIO_WRITEPROTECT_MODE_WP in `mode`: writes wait from now on; else those that wait go on. 0 or -errno. */
int tvmm_uffd_protect(int fd, void *base, uint64_t length, uint64_t mode)
{
    for (;;) {
        struct uffdio_writeprotect protect = {.range = {(uint64_t)base, length}, .mode = mode};
        if (!ioctl(fd, UFFDIO_WRITEPROTECT, &protect))
            return 0;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
    }
}

/* Faults that are there now: how many, 0 if there are none, or -errno. */
int tvmm_uffd_read(int fd, struct tvmm_uffd_fault *faults, uint32_t room)
{
    struct uffd_msg messages[TVMM_UFFD_READ_MAX];
    uint32_t want = room < TVMM_UFFD_READ_MAX ? room : TVMM_UFFD_READ_MAX;
    ssize_t came;
    do
        came = read(fd, messages, want * sizeof messages[0]);
    while (came < 0 && errno == EINTR);
    if (came < 0)
        return errno == EAGAIN ? 0 : -errno;
    int count = 0;
    for (uint32_t index = 0; index < (size_t)came / sizeof messages[0]; index++) {
        if (messages[index].event != UFFD_EVENT_PAGEFAULT)
            continue;
        faults[count].address = messages[index].arg.pagefault.address & ~4095ull;
        faults[count++].flags = messages[index].arg.pagefault.flags;
    }
    return count;
}
