/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What runs really took corrects what is predicted of the next ones: each device's times of a phase
 * are multiplied by the median of measured over predicted over the stages that `bench` ran on it.
 */
#include "planner/planner.h"

#include <stdlib.h>
#include <string.h>

#define MOST  10.0 /* a factor beyond says that something else ran: refused */
#define LEAST 0.1

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static bool counts(const struct ek_store_run *r, const struct ek_costs *c, const char *device,
                   const char *quantity)
{
    return strcmp(r->model_hash, c->model_hash) == 0 && strcmp(r->device, device) == 0 &&
           strcmp(r->quantity, quantity) == 0 && r->predicted > 0 && r->measured > 0 &&
           r->factor > 0;
}

/* Median of measured over what an uncalibrated plan predicts; 1 where nothing ran. */
static enum ek_status factor_of(const struct ek_costs *c, const struct ek_store_run *runs, size_t n,
                                const char *device, const char *quantity, double *factor,
                                uint32_t *behind)
{
    double *v = ek_calloc(n ? n : 1, sizeof(*v));
    size_t k = 0;

    if (v == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < n; i++)
        if (counts(&runs[i], c, device, quantity))
            v[k++] = runs[i].measured * runs[i].factor / runs[i].predicted;
    qsort(v, k, sizeof(*v), by_value);
    *factor = k == 0 ? 1 : k % 2 ? v[k / 2] : (v[k / 2 - 1] + v[k / 2]) / 2;
    *behind += (uint32_t)k;
    free(v);
    if (*factor < LEAST || *factor > MOST)
        return ek_error(EK_EENV,
                        "%s of %s took %.3g times what was predicted: no calibration mends that; "
                        "profile again",
                        quantity, device, *factor);
    return EK_OK;
}

static void multiply(struct ek_cost_curve *curve, double factor)
{
    for (size_t i = 0; i < curve->n; i++)
        curve->rows[i].time.median_s *= factor;
    curve->context_s *= factor;
    curve->short_context_s *= factor;
}

static enum ek_status calibrate_class(struct ek_costs *c, uint32_t cls,
                                      const struct ek_store_run *runs, size_t n)
{
    struct ek_cost_class *k = &c->classes[cls];
    struct ek_calibration *f = &k->calibration;

    f->n = 0;
    EK_TRY(factor_of(c, runs, n, k->devices[0].name, "prefill", &f->prefill, &f->n));
    EK_TRY(factor_of(c, runs, n, k->devices[0].name, "decode", &f->decode, &f->n));
    for (size_t i = 0; i < c->n_times; i++)
        if (c->times[i].cls == cls) {
            multiply(&c->times[i].prefill, f->prefill);
            multiply(&c->times[i].decode, f->decode);
        }
    return EK_OK;
}

enum ek_status ek_costs_calibrate(struct ek_costs *c, struct ek_store *store)
{
    struct ek_store_run *runs;
    size_t n;
    uint32_t behind = 0;
    enum ek_status st = EK_OK;

    EK_TRY(ek_store_runs(store, &runs, &n));
    for (uint32_t i = 0; st == EK_OK && i < c->n_classes; i++) {
        st = calibrate_class(c, i, runs, n);
        behind += c->classes[i].calibration.n;
    }
    free(runs);
    if (st == EK_OK && behind == 0)
        st = ek_error(EK_EENV,
                      "the profile has no runs of %s to calibrate with; `evenkeel bench ... --plan "
                      "PLAN --db PROFILE` stores some",
                      c->model_name);
    return st;
}
