/* SPDX-License-Identifier: Apache-2.0
 *
 * A profile database: whatever the bytes, opening refuses it or every row is read checked. The
 * first byte picks how much of what follows is the database and how much its journal.
 */
#include "profiler/store.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[64];

static void write_file(const char *name, const void *data, size_t n)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    if (fd < 0 || write(fd, data, n) != (ssize_t)n)
        abort();
    close(fd);
}

static void remove_files(void)
{
    static const char *const ends[] = {"", "-wal", "-shm", "-journal"};
    char name[96];

    for (size_t i = 0; i < EK_ARRAY_LEN(ends); i++) {
        snprintf(name, sizeof(name), "%s%s", path, ends[i]);
        unlink(name);
    }
}

static void read_rows_of(struct ek_store *s, const struct ek_store_device *d)
{
    static const char *const signatures[] = {EK_STORE_STAGE, "layer"};

    for (size_t i = 0; i < EK_ARRAY_LEN(signatures); i++) {
        struct ek_store_time_row *rows;
        struct ek_store_memory *memories;
        size_t n;
        if (ek_store_times(s, d->id, signatures[i], &rows, &n) == EK_OK) {
            struct ek_point at = {EK_PHASE_DECODE, 3, 1, 100};
            (void)ek_interpolate(rows, n, &at, NULL);
            free(rows);
        }
        if (ek_store_memories(s, d->id, signatures[i], &memories, &n) == EK_OK)
            free(memories);
    }
}

static void read_all(struct ek_store *s)
{
    struct ek_store_device *devices;
    struct ek_store_link *links;
    struct ek_store_run *runs;
    char identity[33];
    double slow;
    uint32_t busy;
    size_t n;

    (void)ek_store_identity(s, identity);
    if (ek_store_devices(s, &devices, &n) == EK_OK) {
        for (size_t i = 0; i < n && i < 8; i++) {
            read_rows_of(s, &devices[i]);
            (void)ek_store_slowdown(s, devices[i].id, EK_PHASE_DECODE, &slow, &busy);
        }
        free(devices);
    }
    if (ek_store_links(s, &links, &n) == EK_OK)
        free(links);
    if (ek_store_runs(s, &runs, &n) == EK_OK)
        free(runs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ek_store *s;
    size_t split;

    if (size < 1)
        return 0;
    if (!path[0]) {
        const char *dir = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
        snprintf(path, sizeof(path), "%s/ek-fuzz-profile-%d", dir, (int)getpid());
        atexit(remove_files);
    }
    split = size - 1;
    if (data[0] < 255) /* 255: no journal */
        split = split * data[0] / 255;
    remove_files();
    write_file(path, data + 1, split);
    if (split < size - 1) {
        char wal[96];
        snprintf(wal, sizeof(wal), "%s-wal", path);
        write_file(wal, data + 1 + split, size - 1 - split);
    }
    if (ek_store_open(path, size % 2 ? EK_STORE_READ : EK_STORE_WRITE, &s) == EK_OK) {
        read_all(s);
        ek_store_close(s);
    }
    return 0;
}
