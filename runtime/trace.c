/* SPDX-License-Identifier: Apache-2.0
 *
 * Module by module against a reference's traces: which is the first whose output departs.
 */
#include "runtime/runtime.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MAX_MODULES ((size_t)1 << 16)

struct module {
    struct ek_trace_module t;
    float *want; /* [n][dim], NULL: the reference has no trace of it */
    size_t n, at;
    uint32_t dim;
};

struct tracer {
    const char *path;
    pthread_mutex_t lock; /* workers of several devices call */
    struct module *modules;
    size_t n, cap;
    enum ek_status st; /* of the first that went wrong */
    char message[512];
};

/* The module of that name, with its trace; new ones go behind: the order is that of execution. */
static enum ek_status find(struct tracer *t, const char *name, struct module **out)
{
    struct module *m;

    for (size_t i = 0; i < t->n; i++)
        if (strcmp(t->modules[i].t.name, name) == 0) {
            *out = &t->modules[i];
            return EK_OK;
        }
    EK_TRY(ek_grow((void **)&t->modules, &t->cap, t->n + 1, sizeof(*t->modules), MAX_MODULES));
    m = &t->modules[t->n++];
    *m = (struct module){0};
    snprintf(m->t.name, sizeof(m->t.name), "%s", name);
    *out = m;
    return ek_reference_trace(t->path, name, &m->want, &m->n, &m->dim);
}

static enum ek_status compare(struct tracer *t, const char *name, const float *rows, size_t n,
                              uint32_t dim)
{
    struct module *m = NULL;
    const float *want;

    EK_TRY(find(t, name, &m));
    if (m->want == NULL)
        return EK_OK;
    if (m->dim != dim || m->n - m->at < n)
        return ek_error(EK_EFORMAT, "%s: trace.%s has %zu rows of %u, ours %zu or more of %u",
                        t->path, name, m->n, m->dim, m->at + n, dim);
    want = m->want + m->at * dim;
    for (size_t i = 0; i < n * dim; i++) {
        double d = fabs((double)rows[i] - want[i]);
        m->t.max_abs = d <= m->t.max_abs ? m->t.max_abs : d; /* NaN stays */
        m->t.largest = fabs(want[i]) > m->t.largest ? fabs(want[i]) : m->t.largest;
    }
    m->at += n;
    m->t.rows = m->at;
    return EK_OK;
}

static void on_rows(void *user, const char *name, const float *rows, size_t n, uint32_t dim)
{
    struct tracer *t = user;
    enum ek_status st;

    pthread_mutex_lock(&t->lock);
    st = t->st == EK_OK ? compare(t, name, rows, n, dim) : EK_OK;
    if (st != EK_OK) {
        t->st = st;
        snprintf(t->message, sizeof(t->message), "%s", ek_last_error());
    }
    pthread_mutex_unlock(&t->lock);
}

static enum ek_status run(struct tracer *t, const struct ek_model *m, const struct ek_plan *p,
                          const struct ek_reference *r, struct ek_comparison *logits)
{
    struct ek_engine_options opt = {.trace = on_rows, .trace_user = t};
    struct ek_engine *e = NULL;
    enum ek_status st;

    EK_TRY(ek_engine_open(m, p, &opt, &e));
    st = ek_compare(e, r, logits);
    ek_engine_close(e);
    if (st == EK_OK && t->st != EK_OK)
        st = ek_error(t->st, "%s", t->message);
    return st;
}

static enum ek_status take(const struct tracer *t, double tolerance, struct ek_trace_module **out,
                           size_t *n)
{
    if ((*out = ek_calloc(t->n ? t->n : 1, sizeof(**out))) == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < t->n; i++) {
        struct ek_trace_module *m = &(*out)[(*n)++];
        *m = t->modules[i].t;
        m->departs = !(m->max_abs <= tolerance * m->largest);
    }
    return EK_OK;
}

enum ek_status ek_trace(const struct ek_model *m, const struct ek_plan *p, const char *path,
                        const struct ek_reference *r, double tolerance,
                        struct ek_trace_module **out, size_t *n, struct ek_comparison *logits)
{
    struct tracer t = {.path = path};
    enum ek_status st;

    *out = NULL;
    *n = 0;
    if (pthread_mutex_init(&t.lock, NULL) != 0)
        return ek_error(EK_EENV, "no lock for a trace");
    st = run(&t, m, p, r, logits);
    if (st == EK_OK)
        st = take(&t, tolerance, out, n);
    for (size_t i = 0; i < t.n; i++)
        free(t.modules[i].want);
    free(t.modules);
    pthread_mutex_destroy(&t.lock);
    return st;
}
