/* What Python's own system calls do not tell about a disk image: see blk.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "blk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>

/* How O_DIRECT on `fd` wants memory and offsets aligned, in bytes; 0, or -errno if the system does not say. */
int tvmm_direct_alignment(int fd, uint32_t *memory, uint32_t *offset)
{
#ifdef STATX_DIOALIGN
    struct statx about;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &about) < 0)
        return -errno;
    if (!(about.stx_mask & STATX_DIOALIGN) || !about.stx_dio_mem_align || !about.stx_dio_offset_align)
        return -EOPNOTSUPP;
    *memory = about.stx_dio_mem_align;
    *offset = about.stx_dio_offset_align;
    return 0;
#else
    (void)fd, (void)memory, (void)offset;
    return -ENOSYS;
#endif
}

/* Whether a file is memory all the time: no call on it ever waits for a device. */
int tvmm_in_memory(int fd)
{
    struct statfs about;
    return !fstatfs(fd, &about) && (about.f_type == TMPFS_MAGIC || about.f_type == RAMFS_MAGIC);
}

/* Whether holes can be punched into a file open for writing; tried behind its end, where nothing is. */
int tvmm_can_punch(int fd, uint64_t end)
{
    return !fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)end, 4096);
}

/* Zeroes without writing them, as a hole where that is possible; 0, or -errno. Inside of the file, which is open for writing. */
int tvmm_zero_range(int fd, uint64_t offset, uint64_t length)
{
    uint64_t range[2] = {offset, length};
    struct stat about;
    int result;

    if (fstat(fd, &about) < 0)
        return -errno;
    if (S_ISBLK(about.st_mode))
        return ioctl(fd, BLKZEROOUT, range) < 0 ? -errno : 0;
    do
        result = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : 0;
}
