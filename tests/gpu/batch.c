/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/gpu/gpu.h"

#include <math.h>
#include <stdlib.h>

#include <check.h>

#define MOST_SEQS 64

static int32_t *integers(size_t n)
{
    int32_t *v = calloc(n, sizeof(*v));

    ck_assert(v != NULL);
    return v;
}

/* 0 .. n - 1 in a random order. */
static int32_t *shuffled(uint32_t n, uint64_t *seed)
{
    int32_t *v = integers(n);

    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = (uint32_t)(ek_random_u64(seed) % (i + 1));

        v[i] = v[j];
        v[j] = (int32_t)i;
    }
    return v;
}

static void measure(struct paged *b, const uint32_t *past, const uint32_t *n_new)
{
    for (uint32_t q = 0; q < b->n_seqs; q++) {
        uint32_t len = past[q] + n_new[q];

        b->n += n_new[q];
        b->max_q = n_new[q] > b->max_q ? n_new[q] : b->max_q;
        b->max_kv = len > b->max_kv ? len : b->max_kv;
    }
    b->max_blocks = (b->max_kv + b->page - 1) / b->page + 1;
}

/* Where the new tokens of a sequence are, from row `at` on. */
static void place(const struct paged *b, uint32_t past, uint32_t n_new, const int32_t *blocks,
                  uint32_t at, int32_t *positions, int32_t *slots)
{
    for (uint32_t i = 0; i < n_new; i++) {
        uint32_t p = past + i;

        for (uint32_t r = 0; r < 3; r++) /* rows t, h, w differ */
            positions[r * b->n + at + i] = (int32_t)(p + 3 * r);
        slots[at + i] = blocks[p / b->page] * (int32_t)b->page + (int32_t)(p % b->page);
    }
}

struct paged paged_new(struct pair *p, uint32_t page, uint32_t n_seqs, const uint32_t *past,
                       const uint32_t *n_new, uint64_t *seed)
{
    struct paged b = {.page = page, .n_seqs = n_seqs};
    int32_t starts[MOST_SEQS + 1] = {0}, lens[MOST_SEQS], *positions, *slots, *table;

    ck_assert_uint_le(n_seqs, MOST_SEQS);
    measure(&b, past, n_new);
    positions = integers(3 * (size_t)b.n);
    slots = integers(b.n);
    table = shuffled(n_seqs * b.max_blocks, seed);
    for (uint32_t q = 0; q < n_seqs; q++) {
        place(&b, past[q], n_new[q], table + (size_t)q * b.max_blocks, (uint32_t)starts[q],
              positions, slots);
        starts[q + 1] = starts[q] + (int32_t)n_new[q];
        lens[q] = (int32_t)(past[q] + n_new[q]);
    }
    b.positions = both_ints(p, positions, 3 * (size_t)b.n);
    b.slots = both_ints(p, slots, b.n);
    b.starts = both_ints(p, starts, n_seqs + 1);
    b.lens = both_ints(p, lens, n_seqs);
    b.table = both_ints(p, table, (size_t)n_seqs * b.max_blocks);
    free(positions), free(slots), free(table);
    return b;
}

void paged_free(struct pair *p, struct paged *b)
{
    struct both *all[] = {&b->positions, &b->slots, &b->starts, &b->lens, &b->table};

    for (size_t i = 0; i < EK_ARRAY_LEN(all); i++)
        both_free(p, all[i]);
}

size_t paged_slots(const struct paged *b)
{
    return (size_t)b->n_seqs * b->max_blocks * b->page;
}

struct ek_batch paged_batch(const struct paged *b, bool gpu)
{
    return (struct ek_batch){.n_tokens = b->n,
                             .n_seqs = b->n_seqs,
                             .max_q = b->max_q,
                             .max_kv = b->max_kv,
                             .max_blocks = b->max_blocks,
                             .positions = SIDE(b->positions),
                             .slots = SIDE(b->slots),
                             .seq_start = SIDE(b->starts),
                             .kv_len = SIDE(b->lens),
                             .block_table = SIDE(b->table)};
}

struct both frequencies(struct pair *p, uint32_t dim)
{
    float f[128];

    ck_assert_uint_le(dim / 2, EK_ARRAY_LEN(f));
    for (uint32_t i = 0; i < dim / 2; i++)
        f[i] = powf(10000.0f, -2.0f * (float)i / (float)dim);
    return both_ints(p, (const int32_t *)f, dim / 2);
}
