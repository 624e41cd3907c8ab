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
    uint64_t size; /* at open */
};

/* Refuses what is not a regular file. On failure *f needs no close. */
enum ek_status ek_datafile_open(struct ek_datafile *f, const char *path);
void ek_datafile_close(struct ek_datafile *f);
/* n bytes from offset `at`; EK_EFORMAT when the file ends before (it was cut after open). */
enum ek_status ek_datafile_read(const struct ek_datafile *f, uint64_t at, uint64_t n, void *dst);

#endif
