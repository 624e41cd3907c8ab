/* SPDX-License-Identifier: Apache-2.0
 *
 * Drawing a token on the host: the reference of what devices do. Every rule keeps an upper set of
 * the logits in their order, found by histograms of a third of a key each; no sort.
 */
#include "kernels/kernels.h"
#include "kernels/sample.h"

#include <math.h>
#include <stdlib.h>

#define BITS 11 /* of a key, looked at together */
#define BINS (1u << BITS)

struct candidate {
    int32_t id;
    uint32_t key;
    uint64_t weight;
};

/* The highest bin that, with those above it, measures at least *need, which is in them all; *need:
 * what those above leave for it. */
static uint32_t descend(const uint64_t bins[BINS], uint64_t *need)
{
    uint32_t bin = BINS - 1;

    for (; bin > 0 && bins[bin] < *need; bin--)
        *need -= bins[bin];
    return bin;
}

/* The largest key t for which the candidates of keys >= t measure at least `need`: their number, or
 * (weigh) the sum of their weights. */
static uint32_t threshold(const struct candidate *c, size_t n, bool weigh, uint64_t need)
{
    uint64_t bins[BINS], t = 0;

    for (int shift = 2 * BITS; shift >= 0; shift -= BITS) {
        memset(bins, 0, sizeof(bins));
        for (size_t i = 0; i < n; i++)
            if ((uint64_t)c[i].key >> (shift + BITS) == t)
                bins[c[i].key >> shift & (BINS - 1)] += weigh ? c[i].weight : 1;
        t = t << BITS | descend(bins, &need);
    }
    return (uint32_t)t;
}

/* Keeps the candidates of keys >= key and weights >= weight, in their order. */
static size_t keep(struct candidate *c, size_t n, uint32_t key, uint64_t weight)
{
    size_t kept = 0;

    for (size_t i = 0; i < n; i++)
        if (c[i].key >= key && c[i].weight >= weight)
            c[kept++] = c[i];
    return kept;
}

static uint64_t sum_of(const struct candidate *c, size_t n)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += c[i].weight;
    return sum;
}

/* The rules, in their order; returns how many are left. */
static size_t apply(const struct ek_draw *d, const float *logits, float best, struct candidate *c,
                    size_t n)
{
    if (d->top_k > 0 && d->top_k < n)
        n = keep(c, n, threshold(c, n, false, d->top_k), 0);
    for (size_t i = 0; i < n; i++)
        c[i].weight = ek_sample_weight(logits[c[i].id], best, d->scale);
    if (d->top_p < 1)
        n = keep(c, n, threshold(c, n, true, ek_sample_share(sum_of(c, n), d->top_p)), 0);
    if (d->min_p > 0)
        n = keep(c, n, 0, ek_sample_share(ek_sample_weight(best, best, d->scale), d->min_p));
    return n;
}

static int32_t draw(const struct candidate *c, size_t n, uint64_t random)
{
    uint64_t left = ek_sample_below(random, sum_of(c, n));
    size_t i = 0;

    while (left >= c[i].weight)
        left -= c[i++].weight;
    return c[i].id;
}

/* The largest logit, the lowest id on ties; -1 when it is not finite. */
static int32_t best_of(const float *logits, uint32_t vocab)
{
    int32_t best = -1;

    for (uint32_t i = 0; i < vocab; i++)
        if (!isnan(logits[i]) && (best < 0 || logits[i] > logits[best]))
            best = (int32_t)i;
    return best >= 0 && isfinite(logits[best]) ? best : -1;
}

enum ek_status ek_draw_token(const struct ek_draw *d, const float *logits, uint32_t vocab,
                             int32_t *id)
{
    int32_t best = best_of(logits, vocab);
    struct candidate *c;
    size_t n = 0;

    if (best < 0 || d->scale == 0) {
        *id = best;
        return EK_OK;
    }
    if ((c = ek_calloc(vocab, sizeof(*c))) == NULL)
        return EK_ENOMEM;
    for (uint32_t i = 0; i < vocab; i++)
        if (!isnan(logits[i]))
            c[n++] = (struct candidate){.id = (int32_t)i, .key = ek_sample_key(logits[i])};
    *id = draw(c, apply(d, logits, logits[best], c, n), d->random);
    free(c);
    return EK_OK;
}
