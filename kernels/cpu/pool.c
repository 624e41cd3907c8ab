/* SPDX-License-Identifier: Apache-2.0
 *
 * The threads of a device. A job is one 64-bit word, generation << 32 | items not yet taken: a
 * thread takes an item by decrementing it, so a helper that comes late (or not at all, because
 * another device was given the same core) never holds a job up. Waiting spins for some tens of
 * microseconds, which covers the gaps between the operations of a layer, then sleeps on a futex.
 */
#include "kernels/cpu/cpu.h"

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPINS = 2000 };

struct cpu_pool {
    _Alignas(64) atomic_uint_fast64_t job;
    _Alignas(64) atomic_uint done; /* items finished of the present job */
    _Alignas(64) atomic_uint wake; /* futex of sleeping helpers: a count of jobs */
    atomic_uint sleepers;
    atomic_uint waiting; /* futex: the issuing thread sleeps until done == n_items */
    atomic_bool stop;
    /* written by the issuing thread between jobs only */
    cpu_item_fn fn;
    void *arg;
    uint32_t n_items, generation;
    uint32_t n_helpers;
    struct helper {
        struct cpu_pool *pool;
        pthread_t thread;
        uint32_t index;
        int core;
    } helpers[];
};

static inline void pause_core(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(atomic_uint *word, unsigned value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* Takes items of the present job until none is left. */
static void work(struct cpu_pool *pool, uint32_t thread)
{
    uint64_t job = atomic_load(&pool->job);

    while ((uint32_t)job) {
        if (!atomic_compare_exchange_weak(&pool->job, &job, job - 1))
            continue;
        uint32_t n_items = pool->n_items; /* stable: this item is not done yet */
        pool->fn(pool->arg, n_items - (uint32_t)job, thread);
        if (atomic_fetch_add(&pool->done, 1) + 1 == n_items && atomic_exchange(&pool->waiting, 0))
            futex_wake(&pool->waiting, 1);
        job = atomic_load(&pool->job);
    }
}

static void helper_wait(struct cpu_pool *pool)
{
    for (int i = 0; i < SPINS; i++) {
        if ((uint32_t)atomic_load_explicit(&pool->job, memory_order_relaxed) ||
            atomic_load_explicit(&pool->stop, memory_order_relaxed))
            return;
        pause_core();
    }
    unsigned seen = atomic_load(&pool->wake);
    atomic_fetch_add(&pool->sleepers, 1);
    if (!(uint32_t)atomic_load(&pool->job) && !atomic_load(&pool->stop))
        futex_wait(&pool->wake, seen);
    atomic_fetch_sub(&pool->sleepers, 1);
}

static void *helper_main(void *arg)
{
    struct helper *h = arg;

    cpu_bind_thread(h->core);
    while (!atomic_load(&h->pool->stop)) {
        work(h->pool, h->index);
        helper_wait(h->pool);
    }
    return NULL;
}

/* Until every item is done: the last ones may be in the hands of helpers. */
static void issuer_wait(struct cpu_pool *pool)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&pool->done) == pool->n_items)
            return;
        pause_core();
    }
    while (atomic_load(&pool->done) != pool->n_items) {
        atomic_store(&pool->waiting, 1);
        if (atomic_load(&pool->done) != pool->n_items)
            futex_wait(&pool->waiting, 1);
        atomic_store(&pool->waiting, 0);
    }
}

void cpu_pool_run(struct cpu_pool *pool, uint32_t n_items, cpu_item_fn fn, void *arg)
{
    if (!pool->n_helpers || n_items < 2) {
        for (uint32_t i = 0; i < n_items; i++)
            fn(arg, i, 0);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    pool->n_items = n_items;
    atomic_store(&pool->done, 0);
    atomic_store(&pool->job, (uint64_t)++pool->generation << 32 | n_items);
    if (atomic_load(&pool->sleepers)) {
        atomic_fetch_add(&pool->wake, 1);
        futex_wake(&pool->wake, (int)pool->n_helpers);
    }
    work(pool, 0);
    issuer_wait(pool);
}

enum ek_status cpu_pool_new(const struct cpu_cores *cores, struct cpu_pool **out)
{
    uint32_t n = cores->n - 1;
    size_t bytes = ek_round_up(sizeof(struct cpu_pool) + n * sizeof(struct helper), 64);
    struct cpu_pool *pool = aligned_alloc(64, bytes);

    if (!pool)
        return ek_error(EK_ENOMEM, "out of host memory");
    *pool = (struct cpu_pool){.fn = NULL};
    for (uint32_t i = 0; i < n; i++) {
        struct helper *h = &pool->helpers[i];
        *h = (struct helper){.pool = pool, .index = i + 1, .core = cores->id[i + 1]};
        if (pthread_create(&h->thread, NULL, helper_main, h) != 0) {
            cpu_pool_free(pool);
            return ek_error(EK_EENV, "cannot start thread %u of %u", i + 2, cores->n);
        }
        pool->n_helpers = i + 1;
    }
    *out = pool;
    return EK_OK;
}

void cpu_pool_free(struct cpu_pool *pool)
{
    if (!pool)
        return;
    atomic_store(&pool->stop, true);
    atomic_fetch_add(&pool->wake, 1);
    futex_wake(&pool->wake, (int)pool->n_helpers);
    for (uint32_t i = 0; i < pool->n_helpers; i++)
        pthread_join(pool->helpers[i].thread, NULL);
    free(pool);
}
