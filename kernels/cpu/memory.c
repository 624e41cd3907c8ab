/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory of a CPU device: 64-byte aligned, tracked by tag, held to the device's budget. Large
 * blocks are aligned to huge pages and ask for them.
 */
#include "kernels/cpu/cpu.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN = 64 };
#define HUGE_PAGE ((size_t)2 << 20)

struct cpu_block { /* in front of what alloc returns */
    _Alignas(ALIGN) struct cpu_block *next;
    struct cpu_block *prev;
    size_t bytes; /* with this header and padding */
    enum ek_tag tag;
};

static uint64_t used_bytes(const struct cpu_device *dev)
{
    return ek_usage_total(dev->usage, false);
}

/* Books bytes, or refuses them: with the lock held. */
static enum ek_status book(struct cpu_device *dev, enum ek_tag tag, size_t bytes)
{
    uint64_t used = used_bytes(dev), budget = dev->base.spec.memory;
    char want[EK_UNIT_LEN], have[EK_UNIT_LEN], all[EK_UNIT_LEN];
    struct ek_usage *u = &dev->usage[tag];

    if (budget && bytes > budget - (used < budget ? used : budget))
        return ek_error(EK_ENOMEM,
                        "device %s: %s of %s do not fit: %s of the budget of %s are taken",
                        dev->base.spec.name, ek_format_bytes(want, bytes), ek_tag_names[tag],
                        ek_format_bytes(have, used), ek_format_bytes(all, budget));
    u->now += bytes;
    if (u->now > u->peak)
        u->peak = u->now;
    return EK_OK;
}

static void *get_pages(size_t bytes)
{
    void *p;

    if (posix_memalign(&p, bytes >= HUGE_PAGE ? HUGE_PAGE : ALIGN, bytes) != 0)
        return NULL;
    if (bytes >= HUGE_PAGE)
        (void)madvise(p, bytes, MADV_HUGEPAGE); /* a wish */
    return p;
}

enum ek_status cpu_alloc(struct ek_device *dev, enum ek_tag tag, size_t bytes, void **out)
{
    struct cpu_device *cpu = cpu_of(dev);
    struct cpu_block *b;
    size_t all;
    enum ek_status st;

    if (!ek_add_size(bytes, sizeof(*b) + ALIGN, &all))
        return ek_error(EK_ENOMEM, "device %s: %zu bytes are too many", dev->spec.name, bytes);
    all = ek_round_up(bytes + sizeof(*b), ALIGN);
    pthread_mutex_lock(&cpu->lock);
    st = book(cpu, tag, all);
    if (st == EK_OK && !(b = get_pages(all))) {
        cpu->usage[tag].now -= all;
        st = ek_error(EK_ENOMEM, "device %s: out of host memory for %zu bytes of %s",
                      dev->spec.name, bytes, ek_tag_names[tag]);
    }
    if (st == EK_OK) {
        *b = (struct cpu_block){.next = cpu->blocks, .bytes = all, .tag = tag};
        if (b->next)
            b->next->prev = b;
        cpu->blocks = b;
        *out = b + 1;
    }
    pthread_mutex_unlock(&cpu->lock);
    return st;
}

uint64_t cpu_alloc_bytes(const struct ek_device *dev, size_t bytes)
{
    (void)dev;
    return ek_round_up(bytes + sizeof(struct cpu_block), ALIGN);
}

void cpu_release(struct ek_device *dev, void *p)
{
    struct cpu_device *cpu = cpu_of(dev);
    struct cpu_block *b = p;

    if (!p)
        return;
    b--;
    pthread_mutex_lock(&cpu->lock);
    cpu->usage[b->tag].now -= b->bytes;
    *(b->prev ? &b->prev->next : &cpu->blocks) = b->next;
    if (b->next)
        b->next->prev = b->prev;
    pthread_mutex_unlock(&cpu->lock);
    free(b);
}

void cpu_release_all(struct cpu_device *dev)
{
    while (dev->blocks)
        cpu_release(&dev->base, dev->blocks + 1);
}

void cpu_usage(struct ek_device *dev, struct ek_usage by_tag[EK_N_TAGS])
{
    struct cpu_device *cpu = cpu_of(dev);

    pthread_mutex_lock(&cpu->lock);
    memcpy(by_tag, cpu->usage, sizeof(cpu->usage));
    pthread_mutex_unlock(&cpu->lock);
}

void cpu_reset_peaks(struct ek_device *dev)
{
    struct cpu_device *cpu = cpu_of(dev);

    pthread_mutex_lock(&cpu->lock);
    for (int t = 0; t < EK_N_TAGS; t++)
        cpu->usage[t].peak = cpu->usage[t].now;
    pthread_mutex_unlock(&cpu->lock);
}

uint64_t cpu_memory_free(struct ek_device *dev)
{
    struct cpu_device *cpu = cpu_of(dev);
    uint64_t host = cpu_host_memory_free(), budget = dev->spec.memory, used;

    pthread_mutex_lock(&cpu->lock);
    used = used_bytes(cpu);
    pthread_mutex_unlock(&cpu->lock);
    if (budget && budget - (used < budget ? used : budget) < host)
        return budget - (used < budget ? used : budget);
    return host;
}

enum ek_status cpu_host_alloc(struct ek_device *dev, size_t bytes, void **out)
{
    void *p = bytes <= SIZE_MAX - ALIGN ? aligned_alloc(ALIGN, ek_round_up(bytes, ALIGN)) : NULL;

    (void)dev;
    if (!p && bytes)
        return ek_error(EK_ENOMEM, "out of host memory for %zu bytes", bytes);
    *out = p;
    return EK_OK;
}

void cpu_host_free(struct ek_device *dev, void *p)
{
    (void)dev;
    free(p);
}

static enum ek_status grow(struct cpu_device *dev, size_t bytes)
{
    void *p;

    if (bytes <= dev->space_bytes)
        return EK_OK;
    if (dev->held_bytes > 0 && dev->held == NULL)
        dev->held = dev->space; /* pointers into it are in use */
    else
        cpu_release(&dev->base, dev->space);
    dev->space = NULL;
    dev->space_bytes = 0;
    EK_TRY(cpu_alloc(&dev->base, EK_TAG_WORKSPACE, bytes, &p));
    dev->space = p;
    dev->space_bytes = bytes;
    return EK_OK;
}

/* *sum += n * size, rounded up. */
static bool add_to(size_t *sum, size_t n, size_t size)
{
    size_t bytes;

    return ek_mul_size(n, size, &bytes) && bytes <= SIZE_MAX - ALIGN &&
           ek_add_size(*sum, ek_round_up(bytes, ALIGN), sum);
}

enum ek_status cpu_workspace(struct cpu_device *dev, size_t scratch, size_t n, float **shared)
{
    size_t each = 0, before = dev->held_bytes, all;

    if (!add_to(&each, scratch, 1) || !add_to(&before, each, dev->cores.n) ||
        (all = before, !add_to(&all, n, sizeof(float))))
        return ek_error(EK_ENOMEM, "device %s: workspace overflows", dev->base.spec.name);
    EK_TRY(grow(dev, all));
    dev->scratch_bytes = each;
    if (shared != NULL)
        *shared = (float *)(dev->space + before);
    return EK_OK;
}

size_t cpu_workspace_bytes(const struct cpu_device *dev, size_t scratch, size_t shared)
{
    return ek_round_up(scratch, ALIGN) * dev->cores.n + ek_round_up(shared, ALIGN);
}

enum ek_status cpu_hold(struct cpu_device *dev, size_t n, size_t inner, float **out)
{
    size_t held = 0, all;

    if (!add_to(&held, n, sizeof(float)) || !ek_add_size(held, inner, &all))
        return ek_error(EK_ENOMEM, "device %s: workspace overflows", dev->base.spec.name);
    EK_TRY(grow(dev, all));
    dev->held_bytes = held;
    *out = (float *)dev->space;
    return EK_OK;
}

void cpu_let_go(struct cpu_device *dev)
{
    cpu_release(&dev->base, dev->held);
    dev->held = NULL;
    dev->held_bytes = 0;
}
