/* SPDX-License-Identifier: Apache-2.0
 *
 * Copies and events of a CPU device. An operation is done when it returns, so an event is a time,
 * and waiting for one that was recorded costs nothing; one never recorded is not waited for.
 */
#include "kernels/cpu/cpu.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct ek_event {
    _Atomic uint64_t ns; /* of the issuing thread, without what others had its core for */
};

#define LOOKS     4
#define MOMENT_NS 50000
#define CHUNK     ((size_t)256 << 10) /* bytes of one item of a large copy */

struct copy_job {
    char *dst;
    const char *src;
    size_t n;
    const struct cpu_simd *simd; /* of read_bytes */
    uint64_t *sums;              /* of read_bytes: one a thread, 64 bytes apart */
};

static uint32_t n_chunks(size_t n)
{
    return (uint32_t)((n + CHUNK - 1) / CHUNK);
}

static size_t chunk_size(const struct copy_job *job, uint32_t item)
{
    size_t left = job->n - item * CHUNK;

    return left < CHUNK ? left : CHUNK;
}

static void copy_item(void *arg, uint32_t item, uint32_t thread)
{
    struct copy_job *job = arg;

    (void)thread;
    memcpy(job->dst + item * CHUNK, job->src + item * CHUNK, chunk_size(job, item));
}

static void zero_item(void *arg, uint32_t item, uint32_t thread)
{
    struct copy_job *job = arg;

    (void)thread;
    memset(job->dst + item * CHUNK, 0, chunk_size(job, item));
}

enum ek_status cpu_upload(struct ek_device *dev, void *dst, const void *src, size_t n)
{
    struct copy_job job = {.dst = dst, .src = src, .n = n};

    if (n)
        cpu_run(cpu_of(dev), n_chunks(n), copy_item, &job);
    return EK_OK;
}

enum ek_status cpu_copy_from(struct ek_device *dev, void *dst, struct ek_device *src_dev,
                             const void *src, size_t n)
{
    if (src_dev->ops != dev->ops)
        return ek_error(EK_EUNSUPPORTED, "no direct copy from %s to %s", src_dev->spec.name,
                        dev->spec.name);
    return cpu_upload(dev, dst, src, n);
}

enum ek_status cpu_zero(struct ek_device *dev, void *dst, size_t n)
{
    struct copy_job job = {.dst = dst, .n = n};

    cpu_run(cpu_of(dev), n_chunks(n), zero_item, &job);
    return EK_OK;
}

static void read_item(void *arg, uint32_t item, uint32_t thread)
{
    struct copy_job *job = arg;

    job->sums[thread * 8] ^= job->simd->read(job->src + item * CHUNK, chunk_size(job, item));
}

enum ek_status cpu_read_bytes(struct ek_device *dev, const void *p, size_t n)
{
    struct cpu_device *cpu = cpu_of(dev);
    struct copy_job job = {.src = p, .n = n, .simd = cpu->simd};
    float *sums;

    EK_TRY(cpu_workspace(cpu, 0, (size_t)cpu->cores.n * 16, &sums));
    memset(sums, 0, (size_t)cpu->cores.n * 64);
    job.sums = (void *)sums;
    cpu_run(cpu, n_chunks(n), read_item, &job);
    return EK_OK;
}

/* ---- Events ---------------------------------------------------------------------------------- */

enum ek_status cpu_event_new(struct ek_device *dev, struct ek_event **out)
{
    struct ek_event *e = ek_calloc(1, sizeof(*e));

    (void)dev;
    if (!e)
        return EK_ENOMEM;
    *out = e;
    return EK_OK;
}

void cpu_event_free(struct ek_event *e)
{
    free(e);
}

/* Nanoseconds that this thread was ready to run and another process had its core: they are not
 * work of the device. (What the others did to the memory bus meanwhile cannot be told.) 0 where the
 * system does not say. */
static uint64_t waited(void)
{
    int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    char text[96], *end;
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return 0;
    text[n] = '\0';
    (void)strtoull(text, &end, 10); /* that it ran */
    return strtoull(end, NULL, 10);
}

/* The time, without what other processes had. */
static uint64_t clock_ns(void)
{
    uint64_t from, lost = 0, now = ek_now_ns();

    /* both of one moment: a wait between them would count twice */
    for (int i = 0; i < LOOKS; i++) {
        from = now;
        lost = waited();
        now = ek_now_ns();
        if (now - from < MOMENT_NS)
            break;
    }
    return now - lost;
}

enum ek_status cpu_event_record(struct ek_device *dev, struct ek_event *e)
{
    (void)dev;
    atomic_store(&e->ns, clock_ns());
    return EK_OK;
}

enum ek_status cpu_stamp(struct ek_device *dev, uint64_t *when)
{
    (void)dev;
    *when = clock_ns();
    return EK_OK;
}

enum ek_status cpu_event_wait(struct ek_device *dev, struct ek_event *e)
{
    (void)dev;
    return cpu_event_sync(e);
}

enum ek_status cpu_event_sync(struct ek_event *e)
{
    (void)atomic_load(&e->ns); /* orders what was written before the record */
    return EK_OK;
}

enum ek_status cpu_event_passed(struct ek_event *e)
{
    return cpu_event_sync(e);
}

double cpu_event_seconds(struct ek_event *from, struct ek_event *to)
{
    return (double)(int64_t)(atomic_load(&to->ns) - atomic_load(&from->ns)) * 1e-9;
}

enum ek_status cpu_sync(struct ek_device *dev)
{
    (void)dev;
    return EK_OK;
}
