/* SPDX-License-Identifier: Apache-2.0
 *
 * Drawing a token: temperature, top-k, top-p, min-p, in the order and with the meaning of Hugging
 * Face's generate; then one draw from what is left.
 */
#include "runtime/runtime.h"

#include <math.h>
#include <stdlib.h>

struct candidate {
    int32_t id;
    float logit;
    double p; /* not normalised: exp((logit - best) / temperature) */
};

/* Best first; equal logits by id. */
static int best_first(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;

    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* The largest logit, the lowest id on ties; -1 when none is a number. */
static int32_t best_of(const float *logits, uint32_t vocab)
{
    int32_t best = -1;

    for (uint32_t i = 0; i < vocab; i++)
        if (!isnan(logits[i]) && (best < 0 || logits[i] > logits[best]))
            best = (int32_t)i;
    return best;
}

static enum ek_status check(const struct ek_sampling *s, uint32_t vocab)
{
    if (vocab == 0 || vocab > INT32_MAX)
        return ek_error(EK_EUSAGE, "sampling: vocabulary of %u", vocab);
    if (!isfinite(s->temperature) || s->temperature < 0)
        return ek_error(EK_EUSAGE, "sampling: temperature must be 0 or more, got %g",
                        s->temperature);
    if (!(s->top_p > 0 && s->top_p <= 1))
        return ek_error(EK_EUSAGE, "sampling: top_p must be above 0 and at most 1, got %g",
                        s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return ek_error(EK_EUSAGE, "sampling: min_p must be from 0 to 1, got %g", s->min_p);
    return EK_OK;
}

static double sum_of(const struct candidate *c, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += c[i].p;
    return sum;
}

/* Keeps the candidates with p >= least, order kept. */
static size_t keep_at_least(struct candidate *c, size_t n, double least)
{
    size_t kept = 0;

    for (size_t i = 0; i < n; i++)
        if (c[i].p >= least)
            c[kept++] = c[i];
    return kept;
}

/* The k best and whatever equals the k-th. */
static size_t keep_top_k(struct candidate *c, size_t n, uint32_t k)
{
    if (k == 0 || k >= n)
        return n;
    qsort(c, n, sizeof(*c), best_first);
    while (k < n && c[k].logit == c[k - 1].logit)
        k++;
    return k;
}

/* The fewest best whose probabilities reach top_p. Candidates so unlikely that all of them together
 * stay under 1 - top_p are dropped before the sort. */
static size_t keep_top_p(struct candidate *c, size_t n, double top_p)
{
    double sum = sum_of(c, n), have = 0;
    size_t kept = 0;

    if (top_p >= 1)
        return n;
    n = keep_at_least(c, n, (1 - top_p) / (double)n * sum);
    qsort(c, n, sizeof(*c), best_first);
    while (kept < n && (kept == 0 || have < top_p * sum))
        have += c[kept++].p;
    return kept;
}

static int32_t draw(const struct candidate *c, size_t n, uint64_t *state)
{
    double left = ek_random_unit(state) * sum_of(c, n);

    for (size_t i = 0; i + 1 < n; i++) {
        left -= c[i].p;
        if (left < 0)
            return c[i].id;
    }
    return c[n - 1].id;
}

enum ek_status ek_sample(const struct ek_sampling *s, const float *logits, uint32_t vocab,
                         uint64_t *state, int32_t *id)
{
    struct candidate *c;
    size_t n = 0;
    int32_t best;

    EK_TRY(check(s, vocab));
    best = best_of(logits, vocab);
    if (best < 0 || isinf(logits[best]))
        return ek_error(EK_EDEVICE, "sampling: the logits are not finite");
    if (s->temperature == 0) {
        *id = best;
        return EK_OK;
    }
    if ((c = ek_calloc(vocab, sizeof(*c))) == NULL)
        return EK_ENOMEM;
    for (uint32_t i = 0; i < vocab; i++)
        if (!isnan(logits[i]))
            c[n++] = (struct candidate){(int32_t)i, logits[i],
                                        exp(((double)logits[i] - (double)logits[best]) /
                                            s->temperature)};
    n = keep_top_k(c, n, s->top_k);
    n = keep_top_p(c, n, s->top_p);
    n = keep_at_least(c, n, s->min_p); /* p of the best is 1 */
    *id = draw(c, n, state);
    free(c);
    return EK_OK;
}
