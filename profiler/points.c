/* SPDX-License-Identifier: Apache-2.0
 *
 * Which points to measure: the corners of the space first (an early stop leaves something to
 * interpolate in), then a point between two widths, and so on in those halves that do not lie on
 * the line of the other one, the worst gap first. A kernel that is taken from some width on makes a
 * step: the point in the middle of its gap may well lie on the gap's own line, and the step is in
 * the half that rises; so the search closes in on it.
 *
 * What is asked for depends on measured times alone, and the caller answers from the database where
 * it can: a profile that was interrupted takes the same way again.
 */
#include "profiler/measure.h"

#include <math.h>
#include <string.h>

enum { MAX_ROWS = 128, MAX_GAPS = 64, DEPTHS_MAX = 3 };
#define MIDDLE 0.5
#define FAR    4.0 /* a line's reach from which on its noise is no excuse for not looking */

struct gap { /* between two neighbouring widths */
    uint32_t low, high;
    double miss; /* that is to be feared in it */
};
struct points {
    const struct point_space *space;
    point_fn fn;
    void *ctx;
    struct ek_store_time_row rows[MAX_ROWS];
    size_t n_rows;
    struct gap gaps[MAX_GAPS];
    size_t n_gaps;
    uint32_t n_widths;
};

/* A context between two: a prefill step's work grows with it; decode kernels change with it from
 * the shortest on, and most contexts are far shorter than the longest. */
static uint32_t context_at(const struct point_space *s, uint32_t least, uint32_t most, double depth)
{
    if (!s->deep)
        return least;
    if (s->phase == EK_PHASE_DECODE)
        return (uint32_t)lround(least * pow((double)most / least, depth));
    return least + (uint32_t)lround((double)(most - least) * depth);
}

/* The point of a width after a share of the cache: 0 the least, 1 all of it. */
static struct ek_point point_at(const struct point_space *s, uint32_t width, double depth)
{
    struct ek_point p = {.phase = s->phase, .batch = 1, .tokens = 1};
    uint32_t least = s->phase == EK_PHASE_DECODE ? 1 : width;
    uint32_t most = s->max_context;

    if (s->phase == EK_PHASE_DECODE) {
        p.batch = width;
        if (most > s->max_cached / width)
            most = s->max_cached / width;
        least = most < EK_PAGE ? most : EK_PAGE; /* a cache of one block: what a first step sees */
    } else {
        p.tokens = width;
        if (most > s->max_cached)
            most = s->max_cached;
    }
    least = least ? least : 1;
    most = most > least ? most : least;
    p.context = context_at(s, least, most, depth);
    return p;
}

static bool deep_enough(const struct point_space *s, uint32_t width)
{
    return s->deep && point_at(s, width, 1).context > point_at(s, width, 0).context;
}

/* Measures a point and adds its row. *miss grows to the relative error of `before`, what the rows
 * said of it, less what the noise of the measurement explains. */
static enum ek_status add(struct points *p, const struct ek_point *at, double before, double *miss)
{
    struct ek_store_time t;
    enum ek_status st;

    if (p->n_rows == MAX_ROWS)
        return EK_OK;
    st = p->fn(p->ctx, at, &t);
    if (st == EK_NO)
        return EK_OK;
    EK_TRY(st);
    struct ek_store_time_row *r = &p->rows[p->n_rows++];
    r->key = (struct ek_store_key){
        .phase = at->phase, .batch = at->batch, .tokens = at->tokens, .context = at->context};
    r->time = t;
    if (before >= 0 && t.median_s > 0)
        *miss = fmax(*miss, fabs(before - t.median_s) / t.median_s - 2 * timing_error(&t));
    return EK_OK;
}

static double expected(const struct points *p, const struct ek_point *at)
{
    return ek_interpolate(p->rows, p->n_rows, at, NULL);
}

/* Both ends of a width's contexts, both expected before either is known. */
static enum ek_status add_width(struct points *p, uint32_t width, double *miss)
{
    struct ek_point ends[2] = {point_at(p->space, width, 0), point_at(p->space, width, 1)};
    double before[2] = {expected(p, &ends[0]), expected(p, &ends[1])};

    p->n_widths++;
    EK_TRY(add(p, &ends[0], before[0], miss));
    return deep_enough(p->space, width) ? add(p, &ends[1], before[1], miss) : EK_OK;
}

/* What was measured at one end of a width's contexts; NULL: nothing. */
static const struct ek_store_time *time_of(const struct points *p, uint32_t width, double depth)
{
    struct ek_point at = point_at(p->space, width, depth);

    for (size_t i = 0; i < p->n_rows; i++) {
        const struct ek_store_key *k = &p->rows[i].key;
        if (k->batch == at.batch && k->tokens == at.tokens && k->context == at.context)
            return &p->rows[i].time;
    }
    return NULL;
}

/* By how much the line through near and mid misses far, less what noise explains; and no more than
 * what lies between mid and far, for times mostly grow. */
static double bend(const struct points *p, uint32_t near, uint32_t mid, uint32_t far, double depth)
{
    const struct ek_store_time *a = time_of(p, near, depth), *b = time_of(p, mid, depth),
                               *c = time_of(p, far, depth);
    double reach = ((double)far - near) / ((double)mid - near), noise, line, rise;

    if (!a || !b || !c || !(c->median_s > 0))
        return 0;
    line = a->median_s + (b->median_s - a->median_s) * reach;
    noise = 2 * fmax(timing_error(c), fmin(reach, FAR) * fmax(timing_error(a), timing_error(b)));
    rise = fabs(c->median_s - b->median_s) / fmax(c->median_s, b->median_s);
    return fmin(fabs(line - c->median_s) / c->median_s - noise, rise);
}

static void push_gap(struct points *p, uint32_t low, uint32_t high, double miss)
{
    if (high > low + 1 && p->n_gaps < MAX_GAPS)
        p->gaps[p->n_gaps++] = (struct gap){low, high, miss};
}

static struct gap pop_worst(struct points *p)
{
    size_t worst = 0;
    struct gap g;

    for (size_t i = 1; i < p->n_gaps; i++)
        if (p->gaps[i].miss >= p->gaps[worst].miss) /* of equals the wider one: it costs more */
            worst = i;
    g = p->gaps[worst];
    memmove(&p->gaps[worst], &p->gaps[worst + 1],
            (--p->n_gaps - worst) * sizeof(*p->gaps)); /* the order of the others is kept */
    return g;
}

/* Between two widths: a power of two where there is one (chunks and batches usually are), nearest
 * to the geometric mean; a picture's is that of a nearly square one. */
static uint32_t between(const struct point_space *s, uint32_t low, uint32_t high)
{
    double mean = sqrt((double)low * high), side = fmax(round(sqrt(mean)), 1);
    uint32_t power = (uint32_t)lround(exp2(round(log2(mean) + 1e-9)));

    if (s->step > 0) {
        double steps = fmax(round((mean - s->first) / s->step), 0);
        power = s->first + (uint32_t)steps * s->step;
        return power <= low ? power + s->step : power >= high ? power - s->step : power;
    }
    if (s->picture)
        power = (uint32_t)(side * round(mean / side));
    if (power <= low || power >= high)
        power = (uint32_t)lround(mean);
    return power <= low ? low + 1 : power >= high ? high - 1 : power;
}

/* Prompts go in long steps: a short one is the end of a prompt, and its error as small as it is. */
static double weight(const struct point_space *s, uint32_t width)
{
    return s->phase == EK_PHASE_PREFILL ? sqrt((double)width / s->max_width) : 1;
}

/* The gap between mid and far, where it does not go on as from near to mid. */
static void push_half(struct points *p, uint32_t near, uint32_t mid, uint32_t far)
{
    double miss = bend(p, near, mid, far, 0);

    if (deep_enough(p->space, far))
        miss = fmax(miss, bend(p, near, mid, far, 1));
    miss *= weight(p->space, mid > far ? mid : far);
    if (miss > p->space->target)
        push_gap(p, mid < far ? mid : far, mid < far ? far : mid, miss);
}

static enum ek_status refine_widths(struct points *p)
{
    while (p->n_gaps && p->n_widths < p->space->max_widths) {
        struct gap g = pop_worst(p);
        uint32_t mid = between(p->space, g.low, g.high);
        double skip = 0;

        if (mid <= g.low || mid >= g.high) /* no whole step lies between them */
            continue;
        EK_TRY(add_width(p, mid, &skip));
        push_half(p, g.high, mid, g.low);
        push_half(p, g.low, mid, g.high);
    }
    return EK_OK;
}

/* One kernel of attention is linear in the context but for the cache's levels: one look in the
 * middle, and where that misses, one more in either half. */
static enum ek_status refine_depth(struct points *p, uint32_t width)
{
    double miss = 0;

    for (int i = 0; deep_enough(p->space, width) && i < DEPTHS_MAX; i++) {
        static const double depths[DEPTHS_MAX] = {MIDDLE, 0.25, 0.75};
        struct ek_point at = point_at(p->space, width, depths[i]);
        EK_TRY(add(p, &at, expected(p, &at), &miss));
        if (miss <= p->space->target && !p->space->choosy)
            break;
    }
    return EK_OK;
}

/* Prefill: of the widest steps. Which kernel a decode step takes depends on its sequences and their
 * contexts: of every width that was measured. */
static enum ek_status refine_depths(struct points *p)
{
    size_t n = p->n_rows;

    if (p->space->phase != EK_PHASE_DECODE)
        return refine_depth(p, p->space->max_width);
    for (size_t i = 0; i < n; i++) {
        uint32_t width = p->rows[i].key.batch;
        if (p->rows[i].key.context == point_at(p->space, width, 0).context)
            EK_TRY(refine_depth(p, width));
    }
    return EK_OK;
}

/* Products are made of tiles: 704 tokens may take longer than 736. */
enum { SWEEP_FROM = 128, SWEEP_TO = 8192, SWEEP_STEP = 32, SWEEP_FINE = 1024 };

/* The width behind one of a sweep: 16 steps (a picture: 8) from a power of two to the next, finer
 * below 1024. */
static uint32_t next_swept(const struct point_space *s, uint32_t width)
{
    uint32_t step = s->picture ? 2 * SWEEP_STEP : SWEEP_STEP;

    for (uint32_t from = SWEEP_FINE; from <= width; from *= 2)
        step *= 2;
    return width + step;
}

static enum ek_status sweep(struct points *p)
{
    const struct point_space *s = p->space;
    uint32_t end = s->max_width < SWEEP_TO ? s->max_width : SWEEP_TO;
    double skip = 0;

    for (uint32_t w = SWEEP_FROM; s->sweep && w < end; w = next_swept(s, w)) {
        struct ek_point at = point_at(s, w, 0);
        if (time_of(p, w, 0) == NULL)
            EK_TRY(add(p, &at, -1, &skip));
    }
    return EK_OK;
}

static size_t most_swept(const struct point_space *s)
{
    size_t n = 0;

    for (uint32_t w = SWEEP_FROM; s->sweep && w < s->max_width && w < SWEEP_TO;
         w = next_swept(s, w))
        n++;
    return n;
}

size_t points_corners(const struct point_space *s, struct ek_point out[4])
{
    uint32_t widths[2] = {s->max_width, 1};
    size_t n = 0;

    for (int w = 0; w < (s->max_width > 1 ? 2 : 1); w++) {
        out[n++] = point_at(s, widths[w], 0);
        if (deep_enough(s, widths[w]))
            out[n++] = point_at(s, widths[w], 1);
    }
    return n;
}

struct ek_point points_middle(const struct point_space *s)
{
    return point_at(s, s->max_width, MIDDLE);
}

size_t points_most(const struct point_space *s)
{
    size_t widths = s->max_widths < s->max_width ? s->max_widths : s->max_width;
    size_t looked_into = s->phase == EK_PHASE_DECODE ? widths : 1;

    return (s->deep ? 2 * widths + DEPTHS_MAX * looked_into : widths) + most_swept(s);
}

/* Widths that are measured in any case, ascending, between 1 and the largest: 2 sequences, behind
 * which kernels change; a half and a quarter of the longest chunk, for plans choose among those. */
static size_t known_widths(const struct point_space *s, uint32_t out[2])
{
    uint32_t quarter = s->max_width / 4, half = s->max_width / 2;

    if (s->phase == EK_PHASE_DECODE) {
        out[0] = 2;
        return s->max_width > 2;
    }
    out[0] = quarter;
    out[1] = half;
    return s->deep && quarter > EK_PAGE ? 2 : 0;
}

static enum ek_status measure_widths(struct points *p)
{
    const struct point_space *s = p->space;
    uint32_t known[2], low = 1;
    size_t n = known_widths(s, known);
    double unknown = 0, miss = INFINITY;

    EK_TRY(add_width(p, low, &unknown));
    for (size_t i = 0; i < n; i++) {
        double before = miss;
        miss = s->phase == EK_PHASE_DECODE ? INFINITY : 0; /* nothing comes between 1 and 2 */
        EK_TRY(add_width(p, known[i], &miss));
        before = fmax(before, miss) * weight(s, known[i]);
        if (before > s->target)
            push_gap(p, low, known[i], before);
        low = known[i];
    }
    if (miss > s->target)
        push_gap(p, low, s->max_width, miss);
    return refine_widths(p);
}

enum ek_status points_measure(const struct point_space *space, point_fn fn, void *ctx)
{
    struct points p = {.space = space, .fn = fn, .ctx = ctx};
    double unknown = 0;

    EK_TRY(add_width(&p, space->max_width, &unknown));
    if (space->max_width > 1)
        EK_TRY(measure_widths(&p));
    EK_TRY(refine_depths(&p));
    return sweep(&p);
}
