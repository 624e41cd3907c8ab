/* SPDX-License-Identifier: Apache-2.0
 *
 * Internal to model/: a weight file read by pread alone, so that a file that shrinks after it was
 * opened is an error and never a signal. Reads may come from several threads.
 */
#ifndef EK_MODEL_DATAFILE_H
#define EK_MODEL_DATAFILE_H

#include "base/base.h"

struct ek_datafile {
    char *path;
    int fd;        /* -1: not open */
    int direct;    /* the same past the page cache, -1: not possible */
    uint64_t size; /* at open */
};
#define EK_DATAFILE_INIT                                                                           \
    {                                                                                              \
        .fd = -1, .direct = -1                                                                     \
    }

/* Refuses what is not a regular file. On failure *f needs no close. */
enum ek_status ek_datafile_open(struct ek_datafile *f, const char *path);
void ek_datafile_close(struct ek_datafile *f);
/* n bytes from offset `at`; EK_EFORMAT when the file ends before (it was cut after open). Long
 * reads take what the page cache has from there and the rest past it, which is faster and leaves
 * the cache to others. */
enum ek_status ek_datafile_read(const struct ek_datafile *f, uint64_t at, uint64_t n, void *dst);
/* All of the file into the page cache, or out of it. */
enum ek_status ek_datafile_cache(const struct ek_datafile *f, bool in);

#endif
