/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "model/datafile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_MAX ((uint64_t)1 << 30) /* one pread moves at most 2 GiB less a page */

enum ek_status ek_datafile_open(struct ek_datafile *f, const char *path)
{
    struct stat sb;
    enum ek_status st = EK_OK;

    *f = (struct ek_datafile){.fd = -1};
    if ((f->path = ek_strdup(path)) == NULL)
        return EK_ENOMEM;
    f->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (f->fd < 0 || fstat(f->fd, &sb) != 0)
        st = ek_error(EK_EENV, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(sb.st_mode))
        st = ek_error(EK_EFORMAT, "%s: not a regular file", path);
    else
        f->size = (uint64_t)sb.st_size;
    if (st != EK_OK)
        ek_datafile_close(f);
    return st;
}

void ek_datafile_close(struct ek_datafile *f)
{
    if (f->fd >= 0)
        close(f->fd);
    free(f->path);
    *f = (struct ek_datafile){.fd = -1};
}

enum ek_status ek_datafile_read(const struct ek_datafile *f, uint64_t at, uint64_t n, void *dst)
{
    char *p = dst;

    while (n > 0) {
        ssize_t got = pread(f->fd, p, n < READ_MAX ? n : READ_MAX, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return ek_error(EK_EENV, "%s: read at %llu: %s", f->path, (unsigned long long)at,
                            strerror(errno));
        if (got == 0)
            return ek_error(EK_EFORMAT, "%s: ends at byte %llu, %llu bytes missing (truncated)",
                            f->path, (unsigned long long)at, (unsigned long long)n);
        p += got;
        at += (uint64_t)got;
        n -= (uint64_t)got;
    }
    return EK_OK;
}
