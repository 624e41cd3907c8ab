/* SPDX-License-Identifier: Apache-2.0
 *
 * Sampling until the median is known: the rule of nvbench on robust statistics. A machine that does
 * other things too makes samples with a long tail, which would hold up a rule on means for ever.
 */
#include "profiler/measure.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SIGMA_OF_MAD  1.4826 /* of a normal distribution */
#define MEDIAN_OF_SEM 1.2533 /* standard error of the median over that of the mean */
enum { STABLE_WINDOW = 32, FEWEST = 3 };
#define STABLE_SPREAD 0.05

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

double timing_median(double *values, size_t n)
{
    qsort(values, n, sizeof(*values), compare);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

double timing_mad(const double *values, size_t n, double median, double *scratch)
{
    for (size_t i = 0; i < n; i++)
        scratch[i] = fabs(values[i] - median);
    return timing_median(scratch, n);
}

double timing_error(const struct ek_store_time *t)
{
    if (t->median_s <= 0)
        return INFINITY;
    return MEDIAN_OF_SEM * SIGMA_OF_MAD * t->mad_s / sqrt(t->n) / t->median_s;
}

/* Of sorted values, without a tenth at either end. */
static double middle_mean(const double *values, size_t n)
{
    size_t cut = n / 10;
    double sum = 0;

    for (size_t i = cut; i < n - cut; i++)
        sum += values[i];
    return sum / (double)(n - 2 * cut);
}

struct samples {
    double *values[TIMING_VALUES]; /* max_n each */
    double *scratch;
    uint32_t n;
    bool mean;
    double noise[STABLE_WINDOW]; /* the last relative spreads, a ring */
};

static struct ek_store_time summary(const struct samples *s, int which)
{
    struct ek_store_time t = {.n = s->n};

    memcpy(s->scratch, s->values[which], s->n * sizeof(double));
    t.median_s = timing_median(s->scratch, s->n);
    t.min_s = s->scratch[0]; /* sorted by now */
    if (s->mean)
        t.median_s = middle_mean(s->scratch, s->n);
    t.mad_s = timing_mad(s->values[which], s->n, t.median_s, s->scratch);
    return t;
}

/* The last relative spreads differ by little: it is the machine's own noise. */
static bool noise_is_stable(const struct samples *s)
{
    double low = INFINITY, high = 0;

    if (s->n < STABLE_WINDOW * 2)
        return false;
    for (int i = 0; i < STABLE_WINDOW; i++) {
        low = fmin(low, s->noise[i]);
        high = fmax(high, s->noise[i]);
    }
    return high - low <= STABLE_SPREAD * high;
}

/* NULL: go on. */
static const char *why_stop(const struct timing_rule *rule, struct samples *s, double elapsed_s)
{
    struct ek_store_time t = summary(s, 0);

    s->noise[s->n % STABLE_WINDOW] = t.median_s > 0 ? t.mad_s / t.median_s : INFINITY;
    if (s->n >= rule->min_n && timing_error(&t) <= rule->noise)
        return "converged";
    if (s->n >= rule->min_n && noise_is_stable(s))
        return "stable-noise";
    if (s->n >= rule->max_n || (elapsed_s >= rule->timeout_s && s->n >= FEWEST))
        return "timeout";
    return NULL;
}

static enum ek_status sample_all(const struct timing_rule *rule, timing_sample_fn sample,
                                 timing_clock_fn clock, void *ctx, struct samples *s,
                                 const char **stop)
{
    uint64_t begin = clock(ctx);

    for (;;) {
        double v[TIMING_VALUES] = {0};

        EK_TRY(sample(ctx, v));
        for (int i = 0; i < TIMING_VALUES; i++) {
            if (!isfinite(v[i]))
                return ek_error(EK_EDEVICE, "the device's clock gave no time");
            s->values[i][s->n] = v[i];
        }
        s->n++;
        if ((*stop = why_stop(rule, s, (double)(clock(ctx) - begin) * 1e-9)))
            return EK_OK;
    }
}

enum ek_status timing_run(const struct timing_rule *rule, timing_sample_fn sample,
                          timing_clock_fn clock, void *ctx, struct ek_store_time out[TIMING_VALUES])
{
    double *all = ek_calloc(rule->max_n, (TIMING_VALUES + 1) * sizeof(double));
    struct samples s = {.mean = rule->mean};
    const char *stop = NULL;
    enum ek_status st = EK_ENOMEM;

    if (!all)
        return st;
    for (int i = 0; i < TIMING_VALUES; i++)
        s.values[i] = all + (size_t)i * rule->max_n;
    s.scratch = all + (size_t)TIMING_VALUES * rule->max_n;
    st = sample_all(rule, sample, clock, ctx, &s, &stop);
    for (int i = 0; st == EK_OK && i < TIMING_VALUES; i++) {
        out[i] = summary(&s, i);
        snprintf(out[i].stop, sizeof(out[i].stop), "%s", stop);
    }
    free(all);
    return st;
}

/* ---- Work that goes on --------------------------------------------------------------------------
 */
enum { MOST_RUNS = 512, FEWEST_RUNS = 6 };
#define TOLD_APART 1.01
#define MOST_BACK  0.99
#define NEVER_BACK 1000.0 /* seconds */

/* Seconds until two runs in a row are over a limit, or under it. */
static double runs_until(const double *seconds, size_t n, double limit, bool over)
{
    double spent = 0;

    for (size_t i = 0; i + 1 < n; spent += seconds[i++])
        if (over ? fmin(seconds[i], seconds[i + 1]) >= limit
                 : fmax(seconds[i], seconds[i + 1]) <= limit)
            break;
    return spent;
}

void sustain_read(const double *seconds, size_t n, double rested, double *ratio, double *burst_s)
{
    size_t third = n / 3;
    double last[MOST_RUNS];

    *ratio = 1;
    *burst_s = 0;
    if (n < FEWEST_RUNS || n > MOST_RUNS || !(rested > 0))
        return;
    memcpy(last, seconds + n - third, third * sizeof(*last));
    *ratio = timing_median(last, third) / rested;
    if (!(*ratio > TOLD_APART)) {
        *ratio = 1;
        return;
    }
    *burst_s = runs_until(seconds, n, rested * (1 + (*ratio - 1) / 2), true);
}

double refill_read(const double *seconds, size_t n, double rested, double ratio, double burst_s,
                   double between_s)
{
    double back = runs_until(seconds, n, rested * (1 + (ratio - 1) / 2), true) / burst_s;

    return back > 0 ? between_s / -log2(1 - fmin(back, MOST_BACK)) : NEVER_BACK;
}

#define AT_FIRST 0.01 /* seconds */

void recover_read(const double *seconds, size_t n, double rested, double *ratio, double *half_s)
{
    double first[MOST_RUNS], spent = 0;
    size_t k = 0;

    *ratio = 1;
    *half_s = 0;
    if (n < FEWEST_RUNS || n > MOST_RUNS || !(rested > 0))
        return;
    for (; k < n && spent < AT_FIRST; k++)
        spent += first[k] = seconds[k];
    *ratio = timing_median(first, k) / rested;
    if (!(*ratio > TOLD_APART)) {
        *ratio = 1;
        return;
    }
    *half_s = runs_until(seconds, n, rested * (1 + (*ratio - 1) / 2), false);
}
