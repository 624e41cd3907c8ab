/* SPDX-License-Identifier: Apache-2.0
 *
 * For targets whose parser takes a path: a file in memory, named through /proc.
 */
#ifndef EK_FUZZ_MEMFILE_H
#define EK_FUZZ_MEMFILE_H

#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

struct memfile {
    int fd;
    char path[64];
};

/* Returns 0, or -1 when there is no such file. */
static inline int memfile_open(struct memfile *f, const uint8_t *data, size_t n)
{
    f->fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (f->fd < 0)
        return -1;
    if (write(f->fd, data, n) != (ssize_t)n) {
        close(f->fd);
        return -1;
    }
    snprintf(f->path, sizeof(f->path), "/proc/self/fd/%d", f->fd);
    return 0;
}

static inline void memfile_close(struct memfile *f)
{
    close(f->fd);
}

#endif
