/* SPDX-License-Identifier: Apache-2.0
 *
 * A file of weights: read by offset, past the page cache where that pays; a file that shrinks is an
 * error, never a fault.
 */
#define _GNU_SOURCE
#include "model/datafile.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define READ_MAX     ((uint64_t)1 << 30)   /* one pread moves at most 2 GiB less a page */
#define DIRECT_LEAST ((uint64_t)256 << 10) /* shorter reads are left to the page cache */
#define DIRECT_MOST  ((uint64_t)4 << 20)   /* of one direct read */
#define DIRECT_ALIGN ((uint64_t)4096)      /* of its place in file and memory */

enum ek_status ek_datafile_open(struct ek_datafile *f, const char *path)
{
    enum ek_status st;

    *f = (struct ek_datafile)EK_DATAFILE_INIT;
    if ((f->path = ek_strdup(path)) == NULL)
        return EK_ENOMEM;
    st = ek_file_open(path, &f->fd, &f->size);
    if (st == EK_OK)
        f->direct = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (st != EK_OK)
        ek_datafile_close(f);
    return st;
}

void ek_datafile_close(struct ek_datafile *f)
{
    if (f->fd >= 0)
        close(f->fd);
    if (f->direct >= 0)
        close(f->direct);
    free(f->path);
    *f = (struct ek_datafile)EK_DATAFILE_INIT;
}

static enum ek_status failed(const struct ek_datafile *f, uint64_t at)
{
    return ek_error(EK_EENV, "%s: read at %llu: %s", f->path, (unsigned long long)at,
                    strerror(errno));
}

static enum ek_status truncated(const struct ek_datafile *f, uint64_t at, uint64_t n)
{
    return ek_error(EK_EFORMAT, "%s: ends at byte %llu, %llu bytes missing (truncated)", f->path,
                    (unsigned long long)at, (unsigned long long)n);
}

static enum ek_status read_plainly(const struct ek_datafile *f, uint64_t at, uint64_t n, char *p)
{
    while (n > 0) {
        ssize_t got = pread(f->fd, p, n < READ_MAX ? n : READ_MAX, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return failed(f, at);
        if (got == 0)
            return truncated(f, at, n);
        p += got;
        at += (uint64_t)got;
        n -= (uint64_t)got;
    }
    return EK_OK;
}

/* ---- past the page cache ------------------------------------------------------------------------
 */
static pthread_key_t bounce_key;
static pthread_once_t bounce_once = PTHREAD_ONCE_INIT;

static void make_key(void)
{
    pthread_key_create(&bounce_key, free);
}

/* This thread's aligned memory for one direct read; NULL: there is none to be had. */
static char *bounce_buffer(void)
{
    char *p;

    pthread_once(&bounce_once, make_key);
    if ((p = pthread_getspecific(bounce_key)) != NULL)
        return p;
    p = aligned_alloc(DIRECT_ALIGN, DIRECT_MOST + 2 * DIRECT_ALIGN);
    if (p != NULL && pthread_setspecific(bounce_key, p) != 0) {
        free(p);
        p = NULL;
    }
    return p;
}

/* How many of n bytes the page cache had, from the first on; -1: it cannot be asked. */
static ssize_t read_cached(const struct ek_datafile *f, uint64_t at, uint64_t n, char *p)
{
    uint64_t have = 0;

    while (have < n) {
        struct iovec v = {p + have, n - have < READ_MAX ? n - have : READ_MAX};
        ssize_t got = preadv2(f->fd, &v, 1, (off_t)(at + have), RWF_NOWAIT);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno != EAGAIN)
            return -1;
        if (got <= 0)
            break;
        have += (uint64_t)got;
    }
    return (ssize_t)have;
}

/* EK_NO: not possible after all. *done: bytes that are there. */
static enum ek_status read_direct(const struct ek_datafile *f, uint64_t at, uint64_t n, char *p,
                                  uint64_t *done)
{
    char *bounce = bounce_buffer();

    for (*done = 0; *done < n && bounce;) {
        uint64_t from = (at + *done) & ~(DIRECT_ALIGN - 1), skip = at + *done - from;
        uint64_t want = n - *done < DIRECT_MOST ? n - *done : DIRECT_MOST;
        ssize_t got = pread(f->direct, bounce, ek_round_up(skip + want, DIRECT_ALIGN), (off_t)from);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno != EINVAL)
            return failed(f, at + *done);
        if (got < 0)
            return EK_NO;
        if ((uint64_t)got <= skip)
            return truncated(f, at + *done, n - *done);
        want = (uint64_t)got - skip < want ? (uint64_t)got - skip : want;
        memcpy(p + *done, bounce + skip, want);
        *done += want;
    }
    return bounce ? EK_OK : EK_NO;
}

enum ek_status ek_datafile_read(const struct ek_datafile *f, uint64_t at, uint64_t n, void *dst)
{
    char *p = dst;
    uint64_t done = 0;
    ssize_t cached;
    enum ek_status st;

    if (n < DIRECT_LEAST || f->direct < 0 || (cached = read_cached(f, at, n, p)) < 0)
        return read_plainly(f, at, n, p);
    at += (uint64_t)cached;
    n -= (uint64_t)cached;
    p += cached;
    st = read_direct(f, at, n, p, &done);
    return st == EK_NO ? read_plainly(f, at + done, n - done, p + done) : st;
}

enum ek_status ek_datafile_cache(const struct ek_datafile *f, bool in)
{
    char *p = bounce_buffer();
    enum ek_status st = EK_OK;

    if (!in)
        return posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED) == 0
                   ? EK_OK
                   : ek_error(EK_EENV, "%s: cannot be taken out of the page cache", f->path);
    if (p == NULL)
        return ek_error(EK_ENOMEM, "out of host memory");
    for (uint64_t at = 0; at < f->size && st == EK_OK; at += DIRECT_MOST)
        st = read_plainly(f, at, f->size - at < DIRECT_MOST ? f->size - at : DIRECT_MOST, p);
    return st;
}
