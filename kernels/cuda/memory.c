/* SPDX-License-Identifier: Apache-2.0
 *
 * Device memory: slabs taken from the driver in its own granules, allocations cut from them, each
 * with a tag. An allocation released and cut again is safe without waiting, as one stream orders
 * everything that a device does. reserve() makes one slab of exactly what a stage will need, so
 * that next to nothing is lost to granules.
 */
#define _GNU_SOURCE
#include "kernels/cuda/cuda.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SMALL   ((size_t)64 << 10) /* bytes of each small slot of scratch, at least */
#define GRANULE (2u << 20)         /* what the driver rounds up to */
#define SLAB    (8u << 20)         /* of small allocations, when nothing was reserved */

struct block { /* address order within a slab */
    struct block *next;
    size_t at, bytes;
    enum ek_tag tag;
    bool used;
};
struct ek_cu_slab {
    struct ek_cu_slab *next;
    char *base;
    size_t bytes;
    enum ek_tag tag; /* allocations of one tag alone */
    struct block *blocks;
};

static void slab_free(struct ek_cu_slab *s)
{
    struct block *b, *next;

    for (b = s->blocks; b; b = next) {
        next = b->next;
        free(b);
    }
    cudaFree(s->base);
    free(s);
}

static enum ek_status slab_new(struct ek_cuda *d, enum ek_tag tag, size_t bytes,
                               struct ek_cu_slab **out)
{
    struct ek_cu_slab *s = ek_calloc(1, sizeof(*s));
    cudaError_t e;

    if (s == NULL || (s->blocks = ek_calloc(1, sizeof(*s->blocks))) == NULL) {
        free(s);
        return EK_ENOMEM;
    }
    s->bytes = ek_round_up(bytes, GRANULE);
    s->tag = tag;
    s->blocks->bytes = s->bytes;
    e = cudaMalloc((void **)&s->base, s->bytes);
    if (e != cudaSuccess) {
        free(s->blocks);
        free(s);
        return ek_cuda_failed(d, e, "cudaMalloc");
    }
    s->next = d->memory.slabs;
    d->memory.slabs = s;
    *out = s;
    return EK_OK;
}

/* Cuts bytes from the first free block that holds them; NULL when none does or no host memory. */
static struct block *slab_cut(struct ek_cu_slab *s, enum ek_tag tag, size_t bytes)
{
    for (struct block *b = s->blocks; b; b = b->next) {
        struct block *rest;

        if (b->used || b->bytes < bytes)
            continue;
        if (b->bytes > bytes) {
            if ((rest = ek_calloc(1, sizeof(*rest))) == NULL)
                return NULL;
            *rest = (struct block){.next = b->next, .at = b->at + bytes, .bytes = b->bytes - bytes};
            b->next = rest;
            b->bytes = bytes;
        }
        b->used = true;
        b->tag = tag;
        return b;
    }
    return NULL;
}

void ek_cuda_count(struct ek_cuda *d, enum ek_tag tag, int64_t bytes)
{
    struct ek_usage *u = &d->memory.usage[tag];

    u->now += (uint64_t)bytes;
    d->memory.total += (uint64_t)bytes;
    if (u->now > u->peak)
        u->peak = u->now;
}

static enum ek_status over_budget(const struct ek_cuda *d, enum ek_tag tag, size_t bytes)
{
    char want[EK_UNIT_LEN], used[EK_UNIT_LEN], budget[EK_UNIT_LEN];

    return ek_error(EK_ENOMEM, "%s: %s for %s: %s of the budget of %s are in use",
                    d->base.spec.name, ek_format_bytes(want, bytes), ek_tag_names[tag],
                    ek_format_bytes(used, d->memory.total),
                    ek_format_bytes(budget, d->memory.budget));
}

uint64_t ek_cuda_alloc_bytes(const struct ek_device *dev, size_t bytes)
{
    (void)dev;
    return ek_round_up(bytes ? bytes : 1, EK_CU_ALIGN);
}

enum ek_status ek_cuda_alloc(struct ek_device *dev, enum ek_tag tag, size_t bytes, void **out)
{
    struct ek_cuda *d = ek_cuda(dev);
    struct ek_cu_slab *s;
    struct block *b = NULL;

    if (bytes > SIZE_MAX / 2)
        return ek_error(EK_ENOMEM, "%s: %zu bytes asked for", dev->spec.name, bytes);
    bytes = ek_cuda_alloc_bytes(dev, bytes);
    if (d->memory.budget && d->memory.total + bytes > d->memory.budget)
        return over_budget(d, tag, bytes);
    ek_cuda_use(d);
    for (s = d->memory.slabs; s && b == NULL; s = b ? s : s->next)
        if (s->tag == tag)
            b = slab_cut(s, tag, bytes);
    if (b == NULL) {
        EK_TRY(slab_new(d, tag, bytes < SLAB / 2 ? SLAB : bytes, &s));
        if ((b = slab_cut(s, tag, bytes)) == NULL)
            return EK_ENOMEM;
    }
    ek_cuda_count(d, tag, (int64_t)bytes);
    *out = s->base + b->at;
    return EK_OK;
}

enum ek_status ek_cuda_reserve(struct ek_device *dev, enum ek_tag tag, uint64_t bytes)
{
    struct ek_cu_slab *s;

    ek_cuda_use(ek_cuda(dev));
    return bytes ? slab_new(ek_cuda(dev), tag, bytes, &s) : EK_OK;
}

static void merge_free(struct ek_cu_slab *s)
{
    for (struct block *b = s->blocks; b; b = b->next)
        while (!b->used && b->next && !b->next->used) {
            struct block *gone = b->next;

            b->bytes += gone->bytes;
            b->next = gone->next;
            free(gone);
        }
}

void ek_cuda_release(struct ek_device *dev, void *p)
{
    struct ek_cuda *d = ek_cuda(dev);
    struct ek_cu_slab **at, *s;

    for (at = &d->memory.slabs; p && (s = *at) != NULL; at = &s->next) {
        size_t offset = (size_t)((char *)p - s->base);
        struct block *b;

        if ((char *)p < s->base || offset >= s->bytes)
            continue;
        for (b = s->blocks; b && b->at != offset; b = b->next)
            ;
        if (b == NULL || !b->used)
            return;
        b->used = false;
        ek_cuda_count(d, b->tag, -(int64_t)b->bytes);
        merge_free(s);
        if (!s->blocks->used && s->blocks->next == NULL) {
            *at = s->next;
            ek_cuda_use(d);
            slab_free(s);
        }
        return;
    }
}

void ek_cuda_usage(struct ek_device *dev, struct ek_usage by_tag[EK_N_TAGS])
{
    memcpy(by_tag, ek_cuda(dev)->memory.usage, sizeof(ek_cuda(dev)->memory.usage));
}

void ek_cuda_reset_peaks(struct ek_device *dev)
{
    for (int t = 0; t < EK_N_TAGS; t++)
        ek_cuda(dev)->memory.usage[t].peak = ek_cuda(dev)->memory.usage[t].now;
}

uint64_t ek_cuda_avail(const struct ek_cuda *d)
{
    size_t avail = 0, total = 0;

    ek_cuda_use(d);
    return cudaMemGetInfo(&avail, &total) == cudaSuccess ? avail : 0;
}

uint64_t ek_cuda_memory_free(struct ek_device *dev)
{
    const struct ek_cuda *d = ek_cuda(dev);
    uint64_t avail = ek_cuda_avail(d), left;

    if (d->memory.budget == 0)
        return avail;
    left = d->memory.budget > d->memory.total ? d->memory.budget - d->memory.total : 0;
    return left < avail ? left : avail;
}

void ek_cuda_memory_close(struct ek_cuda *d)
{
    struct ek_cu_slab *s, *next;

    for (s = d->memory.slabs; s; s = next) {
        next = s->next;
        slab_free(s);
    }
    d->memory.slabs = NULL;
}

enum ek_status ek_cuda_scratch(struct ek_cuda *d, enum ek_cu_scratch which, size_t bytes,
                               void **out)
{
    void *p;

    if (d->scratch[which].bytes < bytes) {
        if (!d->captured) /* else a graph may hold its address: kept until the device closes */
            ek_cuda_release(&d->base, d->scratch[which].p);
        d->scratch[which].p = NULL;
        d->scratch[which].bytes = 0;
        EK_TRY(ek_cuda_alloc(&d->base, EK_TAG_WORKSPACE, bytes, &p));
        d->scratch[which].p = p;
        d->scratch[which].bytes = bytes;
        EK_CU_TRY(d, cudaMemsetAsync(p, 0, bytes, d->queue.stream));
    }
    *out = d->scratch[which].p;
    return EK_OK;
}

enum ek_status ek_cuda_small_scratch(struct ek_cuda *d)
{
    void *p;

    for (int i = EK_CU_BIAS; i <= EK_CU_ROUTED; i++)
        EK_TRY(ek_cuda_scratch(d, (enum ek_cu_scratch)i, SMALL, &p));
    return EK_OK;
}

/* ---- the host's
 * Pinned memory of our own pages: of the size that the kernel clears and pins at once, where it has
 * such. cudaHostAlloc takes 0.4 ms a MiB, and 0.1 to free it. This takes 0.03 and 0.02, and 0.15
 * for clearing the pages, which several threads do where there are many; and 0.2 ms the call. A
 * page in front says what is to be undone. */
#define HUGE ((size_t)2 << 20)
#define PAGE ((size_t)4096)

struct pinned {
    void *map;
    size_t map_bytes;
};

struct span {
    char *p;
    size_t bytes;
    pthread_t thread;
    bool running;
};

static void *touch(void *arg)
{
    const struct span *s = arg;

    for (size_t at = 0; at < s->bytes; at += PAGE)
        *(volatile char *)(s->p + at) = 0;
    return NULL;
}

/* Makes the kernel give the pages, and clear them. */
static void touch_all(char *p, size_t bytes)
{
    struct span spans[8];
    size_t n = bytes / (2 * HUGE) < EK_ARRAY_LEN(spans) ? bytes / (2 * HUGE) : EK_ARRAY_LEN(spans);

    n = n ? n : 1;
    for (size_t i = 0; i < n; i++) {
        size_t from = bytes / HUGE * i / n * HUGE;
        size_t to = i + 1 == n ? bytes : bytes / HUGE * (i + 1) / n * HUGE;

        spans[i] = (struct span){.p = p + from, .bytes = to - from};
        spans[i].running =
            i + 1 < n && pthread_create(&spans[i].thread, NULL, touch, &spans[i]) == 0;
        if (!spans[i].running)
            touch(&spans[i]);
    }
    for (size_t i = 0; i < n; i++)
        if (spans[i].running)
            pthread_join(spans[i].thread, NULL);
}

enum ek_status ek_cuda_pages_new(struct ek_cuda *d, size_t bytes, void **out)
{
    size_t align = bytes < HUGE / 2 ? PAGE : HUGE, size = ek_round_up(bytes ? bytes : 1, align);
    size_t map_bytes = size + align + PAGE;
    cudaError_t e;
    char *p, *map;

    if (bytes > SIZE_MAX / 2 || (map = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) == MAP_FAILED)
        return ek_error(EK_ENOMEM, "%s: %zu bytes of host memory: none left", d->base.spec.name,
                        bytes);
    p = map + PAGE;
    p += (align - (uintptr_t)p % align) % align;
    *(struct pinned *)(void *)(p - PAGE) = (struct pinned){map, map_bytes};
    if (align == HUGE)
        (void)madvise(p, size, MADV_HUGEPAGE);
    touch_all(p, size);
    ek_cuda_use(d);
    e = cudaHostRegister(p, size, cudaHostRegisterPortable);
    if (e != cudaSuccess) {
        munmap(map, map_bytes);
        return ek_cuda_failed(d, e, "cudaHostRegister");
    }
    *out = p;
    return EK_OK;
}

static void pages_free(struct ek_cuda *d, void *p)
{
    struct pinned of;

    if (p == NULL)
        return;
    ek_cuda_use(d);
    cudaHostUnregister(p);
    of = *(struct pinned *)(void *)((char *)p - PAGE);
    munmap(of.map, of.map_bytes);
}

/* ---- what is kept */
static void *make_kept(void *arg)
{
    struct ek_cuda *d = arg;
    void *p;

    if (ek_cuda_pages_new(d, EK_CU_KEPT, &p) == EK_OK)
        d->kept.p = p;
    return NULL;
}

void ek_cuda_kept_begin(struct ek_cuda *d)
{
    d->kept.making = pthread_create(&d->kept.thread, NULL, make_kept, d) == 0;
}

static void wait_for_kept(struct ek_cuda *d)
{
    if (d->kept.making)
        pthread_join(d->kept.thread, NULL);
    d->kept.making = false;
}

void ek_cuda_kept_end(struct ek_cuda *d)
{
    wait_for_kept(d);
    pages_free(d, d->kept.p);
    pthread_mutex_destroy(&d->kept.lock);
}

/* What is kept, when it is there, free and fits; or NULL. */
static void *take_kept(struct ek_cuda *d, size_t bytes)
{
    void *p = NULL;

    if (bytes < EK_CU_KEPT / 8 || bytes > EK_CU_KEPT)
        return NULL;
    pthread_mutex_lock(&d->kept.lock);
    wait_for_kept(d);
    if (!d->kept.taken)
        p = d->kept.p;
    d->kept.taken = true;
    pthread_mutex_unlock(&d->kept.lock);
    return p;
}

enum ek_status ek_cuda_host_alloc(struct ek_device *dev, size_t bytes, void **out)
{
    void *kept = take_kept(ek_cuda(dev), bytes);

    if (kept == NULL)
        return ek_cuda_pages_new(ek_cuda(dev), bytes, out);
    *out = kept;
    return EK_OK;
}

void ek_cuda_host_free(struct ek_device *dev, void *p)
{
    struct ek_cuda *d = ek_cuda(dev);

    pthread_mutex_lock(&d->kept.lock);
    if (p != NULL && !d->kept.making && p == d->kept.p) { /* while it is made nobody has it */
        d->kept.taken = false;
        p = NULL;
    }
    pthread_mutex_unlock(&d->kept.lock);
    pages_free(d, p);
}
