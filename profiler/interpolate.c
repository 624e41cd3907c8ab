/* SPDX-License-Identifier: Apache-2.0
 *
 * Times between the points that were measured. One rule for the planner, who asks, and for the
 * profiler, who adds points where this rule errs.
 *
 * A point has a width (how many tokens a module processes at once: decode's batch, prefill's
 * tokens) and a depth (how much cache each of them attends to). At one width the time is linear in
 * the depth, as attention is; over the widths it has the knees of a roofline, so it is piecewise
 * linear there, with measured points at the knees.
 */
#include "profiler/store.h"

#include <math.h>
#include <stdlib.h>

/* Depth is the context in decode, and the context before this step in prefill. A prefill step of b
 * sequences of t tokens after p is the width w = b t with the same attention as one sequence of w
 * tokens after p + t/2 - w/2: both attend to w (p + t/2) cached tokens. */
static void locate(enum ek_phase phase, uint32_t batch, uint32_t tokens, uint32_t context,
                   double *width, double *depth)
{
    if (phase == EK_PHASE_DECODE) {
        *width = batch;
        *depth = context;
    } else {
        *width = (double)batch * tokens;
        *depth = (double)context - tokens + ((double)tokens - *width) / 2;
    }
}

struct view { /* rows of one phase, with their places */
    const struct ek_store_time_row *rows;
    size_t n;
    enum ek_phase phase;
};

static bool place(const struct view *v, size_t i, double *width, double *depth)
{
    const struct ek_store_key *k = &v->rows[i].key;

    locate(v->phase, k->batch, k->tokens, k->context, width, depth);
    return k->phase == v->phase;
}

/* The nearest width on each side of at, and the next one beyond each; NAN where there is none. */
struct around {
    double below2, below, above, above2;
};

static void add_width(struct around *a, double at, double w)
{
    if (w <= at && w != a->below) {
        if (isnan(a->below) || w > a->below) {
            a->below2 = a->below;
            a->below = w;
        } else if (isnan(a->below2) || w > a->below2) {
            a->below2 = w;
        }
    }
    if (w >= at && w != a->above) {
        if (isnan(a->above) || w < a->above) {
            a->above2 = a->above;
            a->above = w;
        } else if (isnan(a->above2) || w < a->above2) {
            a->above2 = w;
        }
    }
}

/* Linear through two points; NAN as second point: constant. */
static double line(double x, double x0, double y0, double x1, double y1)
{
    return isnan(x1) || x1 == x0 ? y0 : y0 + (y1 - y0) * (x - x0) / (x1 - x0);
}

/* Two points to draw a line through at x: those on either side, else the two nearest. False: x lies
 * outside of them. */
static bool choose(const struct around *a, double *x0, double *x1)
{
    if (!isnan(a->below) && !isnan(a->above)) {
        *x0 = a->below;
        *x1 = a->above;
        return true;
    }
    *x0 = isnan(a->below) ? a->above : a->below;
    *x1 = isnan(a->below) ? a->above2 : a->below2;
    return false;
}

static double time_at(const struct view *v, double width, double depth)
{
    for (size_t i = 0; i < v->n; i++) {
        double w, d;
        if (place(v, i, &w, &d) && w == width && d == depth)
            return v->rows[i].time.median_s;
    }
    return NAN;
}

/* Seconds for each token of depth between the least and the greatest that a width was measured at.
 */
static double slope_at(const struct view *v, double width)
{
    double low = INFINITY, high = -INFINITY;

    for (size_t i = 0; i < v->n; i++) {
        double w, d;
        if (place(v, i, &w, &d) && w == width) {
            low = fmin(low, d);
            high = fmax(high, d);
        }
    }
    return high > low ? (time_at(v, width, high) - time_at(v, width, low)) / (high - low) : 0;
}

/* The same for a width that was measured at one depth: as on either side of it. */
static double slope_near(const struct view *v, double width, double depth)
{
    struct around a = {NAN, NAN, NAN, NAN};

    for (size_t i = 0; i < v->n; i++) {
        double w, d;
        if (place(v, i, &w, &d) && d > depth && w != width)
            add_width(&a, width, w);
    }
    if (isnan(a.below) && isnan(a.above))
        return 0;
    if (isnan(a.below) || isnan(a.above))
        return slope_at(v, isnan(a.below) ? a.above : a.below);
    return line(width, a.below, slope_at(v, a.below), a.above, slope_at(v, a.above));
}

/* Time at a measured width: linear in the depth. */
static double at_width(const struct view *v, double width, double depth, bool *inside)
{
    struct around a = {NAN, NAN, NAN, NAN};
    double d0, d1, t0, t;

    for (size_t i = 0; i < v->n; i++) {
        double w, d;
        if (place(v, i, &w, &d) && w == width)
            add_width(&a, depth, d);
    }
    if (!choose(&a, &d0, &d1)) /* a single depth: other widths tell, or the module does not depend
                                * on it; below 0: several sequences, no token sees the others' */
        *inside = *inside && (isnan(d1) || depth < 0);
    t0 = time_at(v, width, d0);
    if (isnan(d1))
        t = t0 + (depth == d0 ? 0 : (depth - d0) * slope_near(v, width, d0));
    else
        t = line(depth, d0, t0, d1, time_at(v, width, d1));
    return fmax(t, t0 / 4); /* noise must not carry an extrapolation to nothing */
}

double ek_interpolate(const struct ek_store_time_row *rows, size_t n, const struct ek_point *at,
                      bool *outside)
{
    struct view v = {rows, n, at->phase};
    struct around a = {NAN, NAN, NAN, NAN};
    double width, depth, w0, w1, t0, t1, t;
    bool inside = true;

    locate(at->phase, at->batch, at->tokens, at->context, &width, &depth);
    for (size_t i = 0; i < n; i++) {
        double w, d;
        if (place(&v, i, &w, &d))
            add_width(&a, width, w);
    }
    if (isnan(a.below) && isnan(a.above))
        return -1;
    inside = choose(&a, &w0, &w1);
    t0 = at_width(&v, w0, depth, &inside);
    if (isnan(w1)) /* one width: more tokens take at least their share */
        t = width > w0 ? t0 * width / w0 : t0;
    else {
        t1 = at_width(&v, w1, depth, &inside);
        t = line(width, w0, t0, w1, t1);
        if (width < fmin(w0, w1)) /* no line may say that fewer tokens cost less than their share */
            t = fmax(t, t0 * width / w0);
    }
    if (outside)
        *outside = !inside;
    return fmax(t, 0);
}

struct sized {
    double width, seconds;
};

static int by_width(const void *a, const void *b)
{
    const struct sized *x = a, *y = b;

    return x->width < y->width ? -1 : x->width > y->width;
}

static int by_seconds(const void *a, const void *b)
{
    const struct sized *x = a, *y = b;

    return x->seconds < y->seconds ? -1 : x->seconds > y->seconds;
}

double ek_typical(const struct ek_store_time_row *rows, size_t n, enum ek_phase phase)
{
    enum { MOST = 256 };
    struct sized v[MOST];
    size_t k = 0;

    for (size_t i = 0; i < n && k < MOST; i++) {
        const struct ek_store_key *key = &rows[i].key;
        if (key->phase == phase)
            v[k++] = (struct sized){(double)key->batch * key->tokens, rows[i].time.median_s};
    }
    qsort(v, k, sizeof(*v), by_width);
    k = (k + 1) / 2;
    qsort(v, k, sizeof(*v), by_seconds);
    return k ? (v[(k - 1) / 2].seconds + v[k / 2].seconds) / 2 : 0;
}
