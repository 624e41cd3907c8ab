/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Objectives as questions to an oracle. A bottleneck is never a row of the program: columns above a
 * threshold are left out, and the threshold is bisected over the costs that occur.
 */
#include "planner/levels.h"

#include <math.h>
#include <stdlib.h>

double ek_widen(double v)
{
    return v + fabs(v) * 1e-9 + 1e-15;
}

static double fill_weight(const struct ek_problem *p)
{
    return p->chunks > 1 ? (double)(p->chunks - 1) / p->chunks : 0;
}

static double max_prefill(const struct ek_problem *p, const struct ek_answer *a)
{
    double most = 0;

    for (uint32_t i = 0; i < a->n; i++)
        most = fmax(most, p->columns[a->columns[i]].prefill);
    return most;
}

struct ek_score ek_score_of(const struct ek_problem *p, const uint32_t *columns, uint32_t n)
{
    struct ek_score s = {0};
    double prefill = 0, busiest = 0;
    uint32_t first = UINT32_MAX;

    for (uint32_t i = 0; i < n; i++) {
        const struct ek_column *c = &p->columns[columns[i]];
        s.latency += c->sum;
        prefill = fmax(prefill, c->prefill);
        s.balance_time = fmax(s.balance_time, c->work * p->micro_batches);
        s.balance = fmax(s.balance, c->ratio);
        if (c->first == 0 && c->first <= c->last)
            first = c->kind;
        if (i > 0 && c->first <= c->last) {
            uint32_t from = p->columns[columns[i - 1]].kind;
            s.latency += ek_problem_hop(p, c->first - 1, from, c->kind);
            busiest = fmax(busiest, ek_problem_hop_work(p, c->first - 1, from, c->kind));
        }
        if (p->n_sides && (c->sides >> p->exit_side & 1) && c->first > 0)
            s.latency += ek_problem_side_hop(p, c->kind, first);
    }
    s.latency += fill_weight(p) * prefill;
    s.throughput = fmax(fmax(s.balance_time, busiest * p->micro_batches), s.latency);
    return s;
}

double ek_score_value(enum ek_objective o, const struct ek_score *s)
{
    switch (o) {
    case EK_OBJ_LATENCY:
        return s->latency;
    case EK_OBJ_THROUGHPUT:
        return s->throughput;
    case EK_OBJ_BALANCE:
        return s->balance;
    case EK_OBJ_BALANCE_TIME:
        return s->balance_time;
    default:
        return 0;
    }
}

/* ---- Latency ------------------------------------------------------------------------------------
 * sum + w * (longest prefill): each answer bounds the sum from below for every tighter prefill
 * limit, so the limit drops to what could still win until nothing can. */
enum ek_status ek_least_latency(const struct ek_search_state *s, double cutoff, double enough,
                                struct ek_found *out)
{
    struct ek_limits l = s->limits;
    double w = fill_weight(s->p), best = INFINITY;
    struct ek_answer a;

    *out = (struct ek_found){.kind = EK_ANSWER_INFEASIBLE, .value = INFINITY, .bound = -INFINITY};
    l.fill = w;
    l.enough = enough;
    for (;;) {
        double longest, latency;
        l.sum = fmin(cutoff, best);
        EK_TRY(s->oracle(s->p, &l, s->deny, &a, s->effort));
        if (a.kind == EK_ANSWER_UNKNOWN)
            out->kind = EK_ANSWER_UNKNOWN;
        if (isinf(l.prefill)) /* tighter limits only cost more */
            out->bound = a.kind == EK_ANSWER_UNKNOWN ? a.bound : a.sum;
        if (a.kind == EK_ANSWER_INFEASIBLE || a.n == 0)
            return EK_OK;
        longest = max_prefill(s->p, &a);
        latency = a.sum + w * longest;
        if (latency < best && latency <= ek_widen(cutoff)) {
            best = latency;
            out->answer = a;
            out->value = latency;
            if (out->kind != EK_ANSWER_UNKNOWN)
                out->kind = EK_ANSWER_OPTIMAL;
        }
        if (w == 0 || longest == 0 || a.kind == EK_ANSWER_UNKNOWN || best <= enough)
            return EK_OK;
        l.prefill = fmin(nextafter(longest, 0), (fmin(best, ek_widen(cutoff)) - a.sum) / w);
        if (l.prefill < 0)
            return EK_OK;
    }
}

/* ---- Thresholds ---------------------------------------------------------------------------------
 */
struct thresholds {
    double *v;
    size_t n;
};

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static size_t collect_hops(const struct ek_search_state *s, double *v)
{
    const struct ek_problem *p = s->p;
    size_t n = 0, pairs = p->uniform ? 1 : (size_t)p->n_kinds * p->n_kinds;

    for (uint32_t i = 0; i + 1 < p->n_items; i++) {
        if (i > 0 && i != p->n_seeing && p->boundary[i] == p->boundary[i - 1])
            continue;
        for (size_t k = 0; k < pairs; k++) {
            double h = ek_problem_hop_work(p, (int32_t)i, (uint32_t)(k / p->n_kinds),
                                           (uint32_t)(k % p->n_kinds));
            if (h <= s->limits.hop && !isinf(h))
                v[n++] = h;
        }
    }
    return n;
}

/* The distinct values that the objective's limit can take, ascending. */
static enum ek_status collect(const struct ek_search_state *s, enum ek_objective o,
                              struct thresholds *t)
{
    const struct ek_problem *p = s->p;
    size_t pairs = p->uniform ? 1 : (size_t)p->n_kinds * p->n_kinds, n = 0;

    t->n = 0;
    t->v = ek_calloc(p->n_columns + pairs * p->n_items, sizeof(double));
    if (t->v == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < p->n_columns; i++) {
        const struct ek_column *c = &p->columns[i];
        if (c->work <= s->limits.work && c->ratio <= s->limits.ratio &&
            c->prefill <= s->limits.prefill && !(s->deny && s->deny[i]))
            t->v[n++] = o == EK_OBJ_BALANCE ? c->ratio : c->work;
    }
    if (o == EK_OBJ_THROUGHPUT)
        n += collect_hops(s, t->v + n);
    qsort(t->v, n, sizeof(double), compare_double);
    for (size_t i = 0; i < n; i++)
        if (t->n == 0 || t->v[i] > t->v[t->n - 1])
            t->v[t->n++] = t->v[i];
    return EK_OK;
}

static void set_threshold(struct ek_search_state *s, enum ek_objective o, double v)
{
    if (o == EK_OBJ_BALANCE)
        s->limits.ratio = fmin(s->limits.ratio, v);
    else
        s->limits.work = fmin(s->limits.work, v);
    if (o == EK_OBJ_THROUGHPUT)
        s->limits.hop = fmin(s->limits.hop, v);
}

/* Whether a plan exists under threshold v; throughput also wants its latency under m * v. */
static enum ek_status try_threshold(const struct ek_search_state *s, enum ek_objective o, double v,
                                    struct ek_found *f)
{
    struct ek_search_state at = *s;
    double cutoff = s->latency;

    set_threshold(&at, o, v);
    if (o == EK_OBJ_THROUGHPUT)
        cutoff = fmin(cutoff, v * s->p->micro_batches);
    return ek_least_latency(&at, cutoff, ek_widen(cutoff), f);
}

/* First threshold of at least v. */
static size_t at_least(const struct thresholds *t, double v)
{
    size_t low = 0, high = t->n;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (t->v[mid] < v)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static double metric(const struct ek_problem *p, enum ek_objective o, const struct ek_answer *a)
{
    struct ek_score sc = ek_score_of(p, a->columns, a->n);

    return ek_score_value(o, &sc) / (o == EK_OBJ_BALANCE ? 1 : p->micro_batches);
}

/* What is proven when no plan exists under thresholds before low. Under a threshold throughput also
 * wants the latency that goes with it: its plans may lie above the one just below. */
static double bound_at(const struct ek_search_state *s, enum ek_objective o,
                       const struct thresholds *t, size_t low)
{
    double m = o == EK_OBJ_BALANCE ? 1 : s->p->micro_batches;

    if (o == EK_OBJ_THROUGHPUT && low <= t->n)
        return low > 0 ? fmax(s->floor, t->v[low - 1] * m) : s->floor;
    return low < t->n ? t->v[low] * m : INFINITY;
}

/* The least feasible threshold: index in *k (t->n: latency is above them all), plan in *out.
 * Infeasible below *k is proven. */
static enum ek_status bisect(const struct ek_search_state *s, enum ek_objective o,
                             const struct thresholds *t, size_t *k, struct ek_found *out)
{
    struct ek_found f;
    size_t low = 0, high = t->n;

    EK_TRY(ek_least_latency(s, s->latency, ek_widen(s->latency), out)); /* any plan begins */
    if (o == EK_OBJ_THROUGHPUT)
        low = at_least(t, s->floor / s->p->micro_batches * (1 - 1e-12));
    if (out->kind != EK_ANSWER_OPTIMAL) {
        out->bound = fmax(bound_at(s, o, t, low), o == EK_OBJ_THROUGHPUT ? out->bound : -INFINITY);
        return EK_OK;
    }
    high = at_least(t, metric(s->p, o, &out->answer) * (1 - 1e-12));
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        EK_TRY(try_threshold(s, o, t->v[mid], &f));
        if (f.kind == EK_ANSWER_UNKNOWN) {
            out->kind = EK_ANSWER_UNKNOWN;
            out->bound = bound_at(s, o, t, low);
            return EK_OK;
        }
        if (f.kind == EK_ANSWER_OPTIMAL) {
            double v = metric(s->p, o, &f.answer);
            size_t reached = at_least(t, v * (1 - 1e-12));
            *out = f;
            high = reached < mid ? reached : mid;
            high = high < low ? low : high;
        } else {
            low = mid + 1;
        }
    }
    *k = low;
    return EK_OK;
}

/* Throughput's best lies at the least feasible threshold or, where latency rules, just below it. */
static enum ek_status throughput_below(const struct ek_search_state *s, const struct thresholds *t,
                                       size_t k, struct ek_found *out)
{
    struct ek_search_state at = *s;
    struct ek_found f;
    double cutoff = s->latency;

    out->value = ek_score_of(s->p, out->answer.columns, out->answer.n).throughput;
    if (k == 0)
        return EK_OK;
    set_threshold(&at, EK_OBJ_THROUGHPUT, t->v[k - 1]);
    cutoff = fmin(cutoff, out->value);
    EK_TRY(ek_least_latency(&at, cutoff, -INFINITY, &f));
    if (f.kind == EK_ANSWER_UNKNOWN) {
        out->kind = EK_ANSWER_UNKNOWN;
        out->bound = fmin(f.bound, bound_at(s, EK_OBJ_THROUGHPUT, t, k + 1));
        out->bound = fmax(out->bound, bound_at(s, EK_OBJ_THROUGHPUT, t, k));
    } else if (f.kind == EK_ANSWER_OPTIMAL) {
        double v = ek_score_of(s->p, f.answer.columns, f.answer.n).throughput;
        if (v < out->value) {
            *out = f;
            out->value = v;
        }
    }
    return EK_OK;
}

static enum ek_status bottleneck(const struct ek_search_state *s, enum ek_objective o,
                                 struct ek_found *out)
{
    struct thresholds t = {0};
    size_t k = 0;
    enum ek_status st;

    *out = (struct ek_found){.kind = EK_ANSWER_INFEASIBLE, .bound = -INFINITY};
    EK_GOTO(collect(s, o, &t), st, end);
    if (t.n == 0)
        goto end;
    EK_GOTO(bisect(s, o, &t, &k, out), st, end);
    if (out->kind != EK_ANSWER_OPTIMAL)
        goto end;
    if (o == EK_OBJ_THROUGHPUT) {
        st = throughput_below(s, &t, k, out);
    } else {
        struct ek_score sc = ek_score_of(s->p, out->answer.columns, out->answer.n);
        out->value = ek_score_value(o, &sc);
    }
end:
    free(t.v);
    return st;
}

enum ek_status ek_level_solve(struct ek_search_state *s, enum ek_objective o, struct ek_found *out)
{
    if (o == EK_OBJ_LATENCY)
        EK_TRY(ek_least_latency(s, s->latency, -INFINITY, out));
    else
        EK_TRY(bottleneck(s, o, out));
    if (out->kind == EK_ANSWER_OPTIMAL) {
        out->bound = out->value;
        ek_level_settle(s, o, out->value);
    }
    return EK_OK;
}

void ek_level_settle(struct ek_search_state *s, enum ek_objective o, double value)
{
    double v = ek_widen(value);

    if (o == EK_OBJ_LATENCY || o == EK_OBJ_THROUGHPUT)
        s->latency = fmin(s->latency, v);
    if (o == EK_OBJ_THROUGHPUT || o == EK_OBJ_BALANCE_TIME)
        s->limits.work = fmin(s->limits.work, v / s->p->micro_batches);
    if (o == EK_OBJ_THROUGHPUT)
        s->limits.hop = fmin(s->limits.hop, v / s->p->micro_batches);
    if (o == EK_OBJ_BALANCE)
        s->limits.ratio = fmin(s->limits.ratio, v);
}

enum ek_status ek_level_below(const struct ek_search_state *before, enum ek_objective o,
                              double value, struct ek_found *out)
{
    struct ek_search_state s = *before;
    double v = value - fabs(value) * 1e-6;

    if (value <= 0) { /* nothing is below nothing */
        out->kind = EK_ANSWER_INFEASIBLE;
        return EK_OK;
    }
    ek_level_settle(&s, o, v);
    return ek_least_latency(&s, s.latency, ek_widen(s.latency), out);
}

/* ---- Without solving ----------------------------------------------------------------------------
 */
double ek_level_floor(const struct ek_problem *p, enum ek_objective o)
{
    double *least = ek_calloc(4 * (size_t)p->n_items, sizeof(*least)), total[4] = {0};
    double devices = p->n_devices, latency;

    if (least == NULL)
        return 0;
    for (size_t i = 0; i < 4 * (size_t)p->n_items; i++)
        least[i] = INFINITY;
    for (size_t i = 0; i < p->n_columns; i++) {
        const struct ek_column *c = &p->columns[i];
        double n = c->last - c->first + 1.0;
        for (int32_t k = c->first; k <= c->last; k++) {
            double *l = &least[4 * (size_t)k];
            l[0] = fmin(l[0], c->work / n);
            l[1] = fmin(l[1], c->sum / n);
            l[2] = fmin(l[2], c->ratio / n);
            l[3] = fmin(l[3], c->prefill / n);
        }
    }
    for (size_t i = 0; i < 4 * (size_t)p->n_items; i++)
        total[i % 4] += isinf(least[i]) ? 0 : least[i];
    free(least);
    latency = total[1] + fill_weight(p) * total[3] / devices;
    switch (o) {
    case EK_OBJ_LATENCY:
        return latency;
    case EK_OBJ_BALANCE:
        return total[2] / devices;
    case EK_OBJ_BALANCE_TIME:
        return total[0] * p->micro_batches / devices;
    default:
        return fmax(total[0] * p->micro_batches / devices, latency);
    }
}
