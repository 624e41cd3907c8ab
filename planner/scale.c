/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A measured profile on another card. A time is what launching takes, and the rest; the rest keeps
 * its distance to the roofline: it is multiplied by the roofline there over the roofline here, so a
 * step that memory bounds goes by bandwidth, one that arithmetic bounds by the peak, and one that
 * changes sides by both.
 */
#include "planner/hardware.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What measured ceilings are of a datasheet's figures: ten H200s (results/h200x*) read 0.82 to 0.87
 * of the bandwidth, and multiply at 0.80 to 0.82 of the peak. */
#define BANDWIDTH_SEEN 0.84
#define PEAK_SEEN      0.80

struct scaler {
    const struct ek_model *m;
    struct ek_costs *from, *to;
    struct ek_card here, there;                /* ceilings as measured, or as they would be */
    bool gpu;                                  /* here */
    struct ek_step_shape from_shape, to_shape; /* types */
};

static enum ek_status types_of(const struct ek_costs *c, struct ek_step_shape *s)
{
    if (!ek_dtype_from_name(c->workload.act, &s->act) ||
        !ek_dtype_from_name(c->workload.cache, &s->cache))
        return ek_error(EK_EFORMAT, "%s: rows of unknown types", c->file);
    return EK_OK;
}

/* The measured device as a card. */
static enum ek_status describe(struct scaler *sc, struct ek_store *store)
{
    const char *name = sc->from->classes[0].devices[0].name;
    struct ek_store_device *all;
    enum ek_status st;
    size_t n;

    EK_TRY(ek_store_devices(store, &all, &n));
    st = ek_error(EK_EENV,
                  "the profile has no measured ceilings of %s to scale from; `evenkeel devices "
                  "--measure --db` measures them",
                  name);
    for (size_t i = 0; i < n && st != EK_OK; i++) {
        const struct ek_store_device *d = &all[i];
        if (strcmp(d->name, name) != 0 || d->read_bandwidth <= 0 || d->peak_f32 <= 0)
            continue;
        sc->here = (struct ek_card){.bandwidth = d->read_bandwidth,
                                    .peak_f32 = d->peak_f32,
                                    .peak_f16 = d->peak_f16,
                                    .peak_bf16 = d->peak_bf16};
        sc->gpu = strcmp(d->backend, "cpu") != 0;
        st = EK_OK;
    }
    free(all);
    return st;
}

static struct ek_card seen(const struct ek_card *card)
{
    struct ek_card c = *card;

    c.bandwidth *= BANDWIDTH_SEEN;
    c.peak_f32 *= PEAK_SEEN;
    c.peak_f16 *= PEAK_SEEN;
    c.peak_bf16 *= PEAK_SEEN;
    return c;
}

static double scaled(const struct scaler *sc, const struct ek_module *mod, uint32_t tp,
                     const struct ek_store_time_row *r)
{
    struct ek_step_shape a = sc->from_shape, b = sc->to_shape;
    double t = r->time.median_s, here, there, launch;

    a.sequences = b.sequences = r->key.batch;
    a.tokens = b.tokens =
        r->key.phase == EK_PHASE_PREFILL ? ek_step_rows(mod, r->key.tokens) : r->key.tokens;
    a.context = b.context = r->key.context;
    a.tp = 1;
    b.tp = tp;
    here = fmax(ek_step_floor(sc->m, mod, &sc->here, &a), 1e-12);
    there = ek_step_floor(sc->m, mod, &sc->there, &b);
    launch = sc->gpu ? fmin(fmax(t - here, 0), EK_LAUNCH_SECONDS) : 0;
    return (t - launch) * there / here + (sc->gpu ? launch : EK_LAUNCH_SECONDS) +
           ek_step_reduce(sc->m, mod, &sc->there, &b);
}

/* The measured rows take the place of the estimated ones. */
static enum ek_status scale_curve(const struct scaler *sc, const struct ek_module *mod, uint32_t tp,
                                  const struct ek_cost_curve *from, struct ek_cost_curve *to)
{
    struct ek_store_time_row *rows;

    if (from->constant)
        return EK_OK;
    if ((rows = ek_calloc(from->n, sizeof(*rows))) == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < from->n; i++) {
        rows[i] = from->rows[i];
        rows[i].time.median_s = scaled(sc, mod, tp, &from->rows[i]);
    }
    free(to->rows);
    *to = (struct ek_cost_curve){.rows = rows, .n = from->n};
    return EK_OK;
}

static const struct ek_module *module_of(const struct ek_model *m, const char *signature)
{
    for (size_t i = 0; i < m->n_modules; i++)
        if (strcmp(m->modules[i].signature, signature) == 0)
            return &m->modules[i];
    return NULL;
}

static enum ek_status scale_class(struct scaler *sc, uint32_t cls)
{
    struct ek_costs *to = sc->to;

    for (size_t i = 0; i < to->n_times; i++) {
        struct ek_cost_times *t = &to->times[i];
        const char *signature = to->signatures[t->sig];
        const struct ek_module *mod = module_of(sc->m, signature);
        const struct ek_cost_times *from = NULL;
        uint32_t sig;
        if (t->cls != cls || mod == NULL)
            continue;
        EK_TRY(ek_costs_signature(sc->from, signature, &sig));
        from = ek_costs_times(sc->from, 0, sig, 1);
        if (from == NULL)
            return ek_error(EK_EENV, "the profile has no times of %s to scale", mod->name);
        EK_TRY(scale_curve(sc, mod, t->tp, &from->prefill, &t->prefill));
        EK_TRY(scale_curve(sc, mod, t->tp, &from->decode, &t->decode));
    }
    return EK_OK;
}

static enum ek_status scale_all(struct scaler *sc, struct ek_store *store, const struct ek_fleet *f)
{
    const struct ek_cost_class *from = &sc->from->classes[0];

    EK_TRY(describe(sc, store));
    EK_TRY(types_of(sc->from, &sc->from_shape));
    EK_TRY(types_of(sc->to, &sc->to_shape));
    for (uint32_t k = 0; k < sc->to->n_classes; k++) {
        struct ek_cost_class *c = &sc->to->classes[k];
        sc->there = seen(f->cards[k]);
        snprintf(c->model, sizeof(c->model), "%.24s (scaled from %.48s)", f->cards[k]->name,
                 from->model[0] ? from->model : from->name);
        c->return_s = sc->gpu ? from->return_s : 0;
        EK_TRY(scale_class(sc, k));
    }
    strcpy(sc->to->file, "scaled profile");
    snprintf(sc->to->source, sizeof(sc->to->source),
             "a profile measured on %.64s (%.64s), scaled by roofline", from->name, from->model);
    strcpy(sc->to->profile_identity, sc->from->profile_identity);
    return EK_OK;
}

enum ek_status ek_costs_scale(const struct ek_model *m, struct ek_store *store,
                              const struct ek_profile_choice *choice, const struct ek_fleet *f,
                              const char *act, const char *cache, uint32_t max_tp,
                              struct ek_costs **out)
{
    struct ek_profile_choice own = {.devices = choice->devices}; /* rows of whatever types it has */
    struct scaler sc = {.m = m};
    enum ek_status st = ek_costs_from_profile(m, store, &own, &sc.from);

    if (st == EK_OK)
        st = ek_costs_estimate(m, f, act, cache, max_tp, &sc.to);
    if (st == EK_OK)
        st = scale_all(&sc, store, f);
    ek_costs_free(sc.from);
    if (st != EK_OK) {
        ek_costs_free(sc.to);
        return st;
    }
    *out = sc.to;
    return EK_OK;
}
