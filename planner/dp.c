/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The exact dynamic program: the cheapest way to reach each (item, devices used, side groups done,
 * kind of the last stage), over the same columns as the integer program and by no code of its. A
 * narrow first pass finds a plan, the bound of bound.c then prunes what cannot beat it.
 */
#include "planner/bound.h"
#include "planner/shared.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LABELS    ((size_t)12 << 20)
#define NO_LABEL      UINT32_MAX
#define BOUND_ROUNDS  60
#define FEW_ROUNDS    12
#define BEAM          48
#define WIDE_BEAM     (16 * BEAM)
#define ABOVE_NOTHING 1e-6  /* by more than rounding, at prices about 1 */
#define MANY_LABELS   10000 /* from there on it pays to look at what shared memories can hold ... */
#define VERY_MANY     50000 /* ... and, from there on, to do so from the beginning */

struct label {
    double cost, paid; /* of the columns and hops; prices of the devices used */
    uint64_t used;     /* devices of each group in mixed radix */
    uint32_t prev, column;
    uint32_t next;              /* in its position's list */
    uint32_t chain;             /* in its hash bucket */
    uint16_t mask, last, first; /* sides done; kind of the last stage; of the first (or 0) */
    bool dead;
};
struct top { /* the least promises seen, as a heap with the largest at the root */
    double *promise;
    uint32_t n;
};

struct search {
    const struct ek_problem *p;
    struct ek_bound *b;
    struct ek_effort *e;
    struct label *labels;
    struct ek_shared_bytes *pools; /* of shared memory used; NULL without pools */
    struct ek_shared shared;
    size_t n, cap, pool_cap;
    uint32_t *buckets;
    size_t n_buckets;
    uint32_t *head, *tail; /* [n_items + 1] list of each position */
    struct top *narrow;    /* [n_items + 1] in a narrow pass, else NULL */
    double *promises;      /* [n_items + 1][beam] theirs */
    uint32_t beam;
    uint64_t radix[EK_MAX_RESOURCES];
    double upper, all_prices;
    bool full, track_first;
    uint32_t best;
    double best_cost;
};

bool ek_effort_over(struct ek_effort *e)
{
    if (e == NULL)
        return false;
    if ((e->stop && *e->stop) || (e->deadline_ns && ek_now_ns() > e->deadline_ns))
        e->expired = true;
    return e->expired;
}

static bool make_radix(struct search *s)
{
    uint64_t r = 1;

    for (uint32_t i = 0; i < s->b->n_counted; i++) {
        s->radix[i] = r;
        if (__builtin_mul_overflow(r, (uint64_t)s->b->supply[i] + 1, &r))
            return false;
    }
    return true;
}

static uint32_t used_of(const struct search *s, const struct label *l, uint32_t resource)
{
    return (uint32_t)(l->used / s->radix[resource] % (s->b->supply[resource] + 1));
}

/* ---- Labels -------------------------------------------------------------------------------------
 */
static size_t hash_of(const struct search *s, uint32_t pos, const struct label *l)
{
    uint64_t h = l->used * 0x9e3779b97f4a7c15u + pos;

    h = (h ^ h >> 29) * 0xbf58476d1ce4e5b9u +
        ((uint64_t)l->mask << 32 | (uint64_t)l->last << 16 | l->first);
    h = (h ^ h >> 32) * 0x94d049bb133111ebu;
    return (h ^ h >> 31) & (s->n_buckets - 1);
}

static uint32_t position_of(const struct search *s, const struct label *l)
{
    return l->column == NO_LABEL ? 0 : (uint32_t)s->p->columns[l->column].last + 1;
}

static void rehash(struct search *s, uint32_t *buckets, size_t n)
{
    free(s->buckets);
    s->buckets = buckets;
    s->n_buckets = n;
    memset(buckets, 0xff, n * sizeof(*buckets));
    for (size_t i = 0; i < s->n; i++) {
        size_t h;
        if (s->labels[i].dead)
            continue;
        h = hash_of(s, position_of(s, &s->labels[i]), &s->labels[i]);
        s->labels[i].chain = buckets[h];
        buckets[h] = (uint32_t)i;
    }
}

static enum ek_status make_room(struct search *s)
{
    if (s->n >= MAX_LABELS) {
        s->full = true;
        return EK_OK;
    }
    EK_TRY(ek_grow((void **)&s->labels, &s->cap, s->n + 1, sizeof(*s->labels), MAX_LABELS));
    if (s->p->n_pools)
        EK_TRY(ek_grow((void **)&s->pools, &s->pool_cap, s->n + 1, sizeof(*s->pools), MAX_LABELS));
    if (s->n_buckets < s->n * 2 + 1024) {
        size_t n = s->n_buckets ? s->n_buckets * 4 : 4096;
        uint32_t *buckets = ek_calloc(n, sizeof(*buckets));
        if (buckets == NULL)
            return EK_ENOMEM;
        rehash(s, buckets, n);
    }
    return EK_OK;
}

static bool same_state(const struct label *a, const struct label *b)
{
    return a->used == b->used && a->mask == b->mask && a->last == b->last && a->first == b->first;
}

/* Is a no dearer than b, and takes no more of any shared memory? */
static bool as_good(const struct search *s, const struct label *a,
                    const struct ek_shared_bytes *used_a, const struct label *b,
                    const struct ek_shared_bytes *used_b)
{
    for (uint32_t i = 0; i < s->p->n_pools; i++)
        if (used_a->of[i] > used_b->of[i])
            return false;
    return a->cost <= b->cost;
}

/* ---- The narrow pass ----------------------------------------------------------------------------
 * Each position takes new labels only while they are among its most promising so far: finds a plan
 * quickly, proves nothing. */
static void sift_down(struct top *t)
{
    uint32_t i = 0;

    for (;;) {
        uint32_t k = 2 * i + 1;
        double v = t->promise[i];
        if (k >= t->n)
            return;
        if (k + 1 < t->n && t->promise[k + 1] > t->promise[k])
            k++;
        if (t->promise[k] <= v)
            return;
        t->promise[i] = t->promise[k];
        t->promise[k] = v;
        i = k;
    }
}

static void sift_up(struct top *t, uint32_t i)
{
    while (i > 0 && t->promise[(i - 1) / 2] < t->promise[i]) {
        double v = t->promise[i];
        t->promise[i] = t->promise[(i - 1) / 2];
        t->promise[(i - 1) / 2] = v;
        i = (i - 1) / 2;
    }
}

static bool among_best(struct top *t, uint32_t beam, double promise)
{
    if (t->n < beam) {
        t->promise[t->n] = promise;
        sift_up(t, t->n++);
        return true;
    }
    if (promise >= t->promise[0])
        return false;
    t->promise[0] = promise;
    sift_down(t);
    return true;
}

/* Adds a label at pos unless one as good is there; labels that it beats die. */
static enum ek_status add_label(struct search *s, uint32_t pos, const struct label *l,
                                const struct ek_shared_bytes *used)
{
    size_t h;
    uint32_t *link;

    EK_TRY(make_room(s));
    if (s->full)
        return EK_OK;
    h = hash_of(s, pos, l);
    for (link = &s->buckets[h]; *link != NO_LABEL;) {
        uint32_t i = *link;
        struct label *o = &s->labels[i];
        const struct ek_shared_bytes *other = s->pools ? &s->pools[i] : NULL;
        bool same = same_state(o, l) && position_of(s, o) == pos;
        if (same && as_good(s, o, other, l, used))
            return EK_OK;
        o->dead = same && as_good(s, l, used, o, other);
        if (o->dead)
            *link = o->chain;
        else
            link = &o->chain;
    }
    s->labels[s->n] = *l;
    s->labels[s->n].next = NO_LABEL;
    s->labels[s->n].chain = s->buckets[h];
    s->buckets[h] = (uint32_t)s->n;
    if (s->pools)
        s->pools[s->n] = *used;
    if (s->tail[pos] == NO_LABEL)
        s->head[pos] = (uint32_t)s->n;
    else
        s->labels[s->tail[pos]].next = (uint32_t)s->n;
    s->tail[pos] = (uint32_t)s->n++;
    return EK_OK;
}

/* ---- Expansion ----------------------------------------------------------------------------------
 */
static bool take_devices(const struct search *s, const struct label *from,
                         const struct ek_column *c, struct label *to)
{
    const struct ek_kind *k = &s->p->kinds[c->kind];
    uint32_t stages = s->p->n_groups;

    if (used_of(s, from, k->group) + k->tp > s->b->supply[k->group])
        return false;
    to->used = from->used + s->radix[k->group] * k->tp;
    if (s->b->n_counted > stages) {
        if (used_of(s, from, stages) + 1 > s->b->supply[stages])
            return false;
        to->used += s->radix[stages];
    }
    return true;
}

static void devices_left(const struct search *s, const struct label *l, uint32_t *left)
{
    memcpy(left, s->shared.devices, sizeof(s->shared.devices));
    for (uint32_t g = 0; g < s->p->n_groups; g++)
        left[s->p->groups[g].pool < 0 ? (int32_t)s->p->n_pools : s->p->groups[g].pool] -=
            used_of(s, l, g);
}

static bool take_pools(const struct search *s, uint32_t from, const struct ek_column *c,
                       const struct label *to, struct ek_shared_bytes *out)
{
    const struct ek_kind *k = &s->p->kinds[c->kind];
    int32_t pool = s->p->groups[k->group].pool;
    uint32_t left[EK_PLAN_MAX_POOLS + 1];

    if (s->pools == NULL)
        return true;
    *out = s->pools[from];
    if (pool >= 0)
        out->of[pool] += c->total * k->tp;
    if (pool >= 0 && out->of[pool] > s->p->pools[pool])
        return false;
    devices_left(s, to, left);
    return ek_shared_settle(&s->shared, (uint32_t)c->last + 1, left, out);
}

/* Hop into the column, and from the side modules to the first stage where they part. */
static double hops_into(const struct search *s, const struct label *from, const struct ek_column *c)
{
    bool exits = s->p->n_sides && (c->sides >> s->p->exit_side & 1);
    double hop = 0;

    if (c->first > 0 && c->first <= c->last)
        hop = ek_bound_hop(s->b, c->first - 1, from->last, c->kind);
    if (exits && c->first > 0 && s->track_first)
        hop += ek_problem_side_hop(s->p, c->kind, from->first);
    return s->b->any && !isinf(hop) ? 0 : hop;
}

static enum ek_status extend(struct search *s, uint32_t from, const struct ek_open *o)
{
    const struct ek_column *c = &s->p->columns[o->column];
    struct label f = s->labels[from], l = {.prev = from, .column = o->column};
    struct ek_shared_bytes pools;
    uint32_t pos = (uint32_t)c->last + 1;
    double hop, left;

    if ((c->sides & f.mask) || !take_devices(s, &f, c, &l) || !take_pools(s, from, c, &l, &pools))
        return EK_OK;
    hop = hops_into(s, &f, c);
    if (isinf(hop))
        return EK_OK;
    l.cost = f.cost + hop + o->cost;
    l.paid = f.paid + ek_bound_paid(s->b, o);
    l.mask = (uint16_t)(f.mask | c->sides);
    l.last = s->p->uniform || s->b->linked ? 0 : (uint16_t)c->kind;
    if (s->track_first && !(l.mask >> s->p->exit_side & 1))
        l.first = c->first == 0 ? (uint16_t)c->kind : f.first;
    left = s->b->to_go[ek_bound_at(s->b, pos, l.mask, c->kind)] - (s->all_prices - l.paid);
    if (l.cost + left > s->upper ||
        (s->narrow && !among_best(&s->narrow[pos], s->beam, l.cost + left)))
        return EK_OK;
    return add_label(s, pos, &l, &pools);
}

/* A plan of all modules? */
static bool complete(const struct search *s, const struct label *l)
{
    if (l->mask != s->b->masks - 1)
        return false;
    for (uint32_t g = 0; s->p->use_all && g < s->p->n_groups; g++)
        if (used_of(s, l, g) != s->b->supply[g])
            return false;
    return true;
}

/* Columns of one kind lie together: the hop into them is the same. */
static enum ek_status expand_kind(struct search *s, uint32_t pos, uint32_t i, size_t a, size_t end)
{
    const struct ek_bound *b = s->b;
    const struct label *l = &s->labels[i];
    uint32_t kind = b->open[a].kind, mask = l->mask;
    bool hops = pos > 0 && pos < s->p->n_items;
    double so_far = l->cost + l->paid - s->all_prices +
                    (hops ? ek_bound_hop(b, (int32_t)pos - 1, l->last, kind) : 0);

    if (pos < s->p->n_items && so_far + b->best_begin[ek_begin_at(b, pos, mask, kind)] > s->upper)
        return EK_OK;
    for (; a < end && !s->full; a++)
        if (!(b->open[a].sides & mask) &&
            so_far + ek_bound_through(b, &b->open[a], mask) <= s->upper)
            EK_TRY(extend(s, i, &b->open[a]));
    return EK_OK;
}

static enum ek_status expand_label(struct search *s, uint32_t pos, uint32_t i)
{
    size_t a = s->b->start[pos], all = s->b->start[pos + 1], end;

    for (; a < all; a = end) {
        for (end = a + 1; end < all && s->b->open[end].kind == s->b->open[a].kind;)
            end++;
        EK_TRY(expand_kind(s, pos, i, a, end));
    }
    return EK_OK;
}

static enum ek_status expand_position(struct search *s, uint32_t pos)
{
    if (ek_effort_over(s->e))
        return EK_OK;
    s->e->early_needs |= s->n > VERY_MANY;
    if (s->p->n_pools && (s->n > MANY_LABELS || s->e->early_needs) && s->shared.needs == NULL)
        EK_TRY(ek_shared_need(&s->shared, s->e));
    for (uint32_t i = s->head[pos]; i != NO_LABEL && !s->full; i = s->labels[i].next) {
        if (s->labels[i].dead)
            continue;
        if ((i & 255) == 0 && ek_effort_over(s->e))
            return EK_OK;
        if (pos == s->p->n_items && complete(s, &s->labels[i]) &&
            s->labels[i].cost < s->best_cost) {
            s->best = i;
            s->best_cost = s->labels[i].cost;
        }
        EK_TRY(expand_label(s, pos, i));
    }
    return EK_OK;
}

/* ---- One search ---------------------------------------------------------------------------------
 */
static void search_free(struct search *s)
{
    free(s->labels);
    free(s->pools);
    ek_shared_free(&s->shared);
    free(s->buckets);
    free(s->head);
    free(s->tail);
    free(s->narrow);
    free(s->promises);
}

/* A list of the best for each position, where only so many are followed. */
static enum ek_status make_narrow(struct search *s)
{
    size_t n = s->p->n_items + 1;

    s->narrow = ek_calloc(n, sizeof(*s->narrow));
    s->promises = ek_calloc(n * s->beam, sizeof(*s->promises));
    if (s->narrow == NULL || s->promises == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < n; i++)
        s->narrow[i].promise = s->promises + i * s->beam;
    return EK_OK;
}

static void read_answer(const struct search *s, struct ek_answer *out)
{
    uint32_t n = 0;

    for (uint32_t i = s->best; s->labels[i].column != NO_LABEL; i = s->labels[i].prev)
        n++;
    out->n = n;
    out->sum = s->best_cost;
    for (uint32_t i = s->best; s->labels[i].column != NO_LABEL; i = s->labels[i].prev)
        out->columns[--n] = s->labels[i].column;
}

/* Fills out's plan when it finds one of at most upper; *whole: nothing was left out. beam: states
 * of each position that are followed, 0: all. */
static enum ek_status search(struct ek_bound *b, double upper, uint32_t beam, struct ek_effort *e,
                             struct ek_answer *out, bool *found, bool *whole)
{
    const struct ek_problem *p = b->p;
    struct search s = {.p = p,
                       .b = b,
                       .e = e,
                       .upper = upper,
                       .beam = beam,
                       .best = NO_LABEL,
                       .best_cost = INFINITY};
    struct label origin = {.column = NO_LABEL, .prev = NO_LABEL};
    struct ek_shared_bytes none = {{0}};
    enum ek_status st;

    *found = *whole = false;
    s.track_first = !p->uniform && !b->linked && p->n_sides && p->workload.images > 0;
    if (!make_radix(&s))
        return EK_OK;
    for (uint32_t r = 0; r < b->n_resources; r++)
        s.all_prices += b->price[r] * b->supply[r];
    s.head = ek_calloc(p->n_items + 1, sizeof(*s.head));
    s.tail = ek_calloc(p->n_items + 1, sizeof(*s.tail));
    if (s.head == NULL || s.tail == NULL) {
        st = EK_ENOMEM;
        goto end;
    }
    if (beam)
        EK_GOTO(make_narrow(&s), st, end);
    memset(s.head, 0xff, (p->n_items + 1) * sizeof(*s.head));
    memset(s.tail, 0xff, (p->n_items + 1) * sizeof(*s.tail));
    if (p->n_pools)
        EK_GOTO(ek_shared_new(b, &s.shared), st, end);
    EK_GOTO(add_label(&s, 0, &origin, &none), st, end);
    for (uint32_t i = 0; i <= p->n_items; i++)
        EK_GOTO(expand_position(&s, i), st, end);
    *whole = beam == 0 && !s.full && !ek_effort_over(e);
    *found = s.best != NO_LABEL;
    if (*found)
        read_answer(&s, out);
    e->labels += s.n;
    st = EK_OK;
end:
    search_free(&s);
    return st;
}

/* A plan quickly, by narrow passes: where memories are shared most states are dead ends, so that a
 * wider one follows. */
static enum ek_status seek(struct ek_bound *b, double upper, struct ek_effort *e,
                           struct ek_answer *out, bool *found)
{
    bool whole;

    EK_TRY(search(b, upper, BEAM, e, out, found, &whole));
    if (!*found && b->p->n_pools > 0)
        EK_TRY(search(b, upper, WIDE_BEAM, e, out, found, &whole));
    return EK_OK;
}

/* Room for rounding above a limit. */
static double widen(double v)
{
    return v + fabs(v) * 1e-9 + 1e-15;
}

static double with_fill(const struct ek_problem *p, const struct ek_limits *l,
                        const struct ek_answer *a)
{
    double longest = 0;

    for (uint32_t i = 0; i < a->n; i++)
        longest = fmax(longest, p->columns[a->columns[i]].prefill);
    return a->sum + l->fill * longest;
}

/* Prices that bound well. The less room the bound leaves for the longest prefill, the more columns
 * go, which raises the bound. */
static void tighten(struct ek_bound *b, const struct ek_limits *l, double upper, double of_interest,
                    struct ek_effort *e)
{
    double longest = l->prefill, next;

    ek_bound_improve(b, upper, l->fill > 0 ? FEW_ROUNDS : BOUND_ROUNDS, e);
    while (l->fill > 0 && b->bound <= widen(upper)) {
        next = (widen(of_interest) - b->bound) / l->fill;
        if (!(next < longest * 0.98) || ek_effort_over(e))
            break;
        longest = next;
        ek_bound_tighten(b, longest);
        ek_bound_improve(b, upper, FEW_ROUNDS, e);
    }
    if (l->fill > 0 && b->bound <= widen(upper))
        ek_bound_improve(b, upper, BOUND_ROUNDS, e);
}

/* Is there any plan? Where nothing costs anything, a bound above nothing says no; and of what leads
 * to one state one is as good as another. */
static enum ek_status find_any(struct ek_bound *b, const struct ek_limits *l, struct ek_effort *e,
                               struct ek_answer *out)
{
    bool found, whole = false;

    ek_bound_improve(b, 1, BOUND_ROUNDS, e);
    if (b->bound > ABOVE_NOTHING) {
        out->kind = EK_ANSWER_INFEASIBLE;
        return EK_OK;
    }
    EK_TRY(seek(b, ABOVE_NOTHING, e, out, &found));
    if (!found)
        EK_TRY(search(b, ABOVE_NOTHING, 0, e, out, &found, &whole));
    if (found) {
        ek_bound_spread(b, out);
        out->kind = EK_ANSWER_OPTIMAL;
        out->sum = 0;
        out->sum = ek_score_of(b->p, out->columns, out->n).latency - with_fill(b->p, l, out);
    } else if (whole) {
        out->kind = EK_ANSWER_INFEASIBLE;
    }
    return EK_OK;
}

static enum ek_status solve(struct ek_bound *b, const struct ek_limits *l, struct ek_effort *e,
                            struct ek_answer *out)
{
    double upper, of_interest = l->sum, room = 0;
    bool found = false, again = false, whole = false;

    if (l->fill > 0)
        EK_TRY(ek_bound_longest(b, &room));
    if (isinf(room)) {
        out->kind = EK_ANSWER_INFEASIBLE;
        return EK_OK;
    }
    room *= l->fill; /* that the longest prefill takes at least */
    upper = of_interest - room;
    if (isinf(upper)) { /* any plan's cost will do for a start */
        ek_bound_improve(b, upper, 4, e);
        if (!isinf(b->bound))
            EK_TRY(seek(b, upper, e, out, &found));
        if (found && with_fill(b->p, l, out) <= l->enough) {
            out->kind = EK_ANSWER_OPTIMAL;
            return EK_OK;
        }
        of_interest = found ? with_fill(b->p, l, out) : of_interest;
        upper = found ? fmin(out->sum, of_interest - room) : upper;
    }
    tighten(b, l, upper, of_interest, e);
    out->bound = b->bound;
    if ((isinf(b->bound) || b->bound > widen(upper)) && !found) {
        out->kind = EK_ANSWER_INFEASIBLE;
        return EK_OK;
    }
    EK_TRY(seek(b, widen(upper), e, out, &again));
    found = found || again;
    if (found && with_fill(b->p, l, out) <= l->enough) {
        out->kind = EK_ANSWER_OPTIMAL;
        return EK_OK;
    }
    if (found)
        upper = out->sum;
    EK_TRY(search(b, widen(upper), 0, e, out, &again, &whole));
    found = found || again;
    if (whole)
        out->kind = found ? EK_ANSWER_OPTIMAL : EK_ANSWER_INFEASIBLE;
    if (whole && found)
        out->bound = out->sum;
    return EK_OK;
}

enum ek_status ek_dp_solve(const struct ek_problem *p, const struct ek_limits *l,
                           const uint8_t *deny, struct ek_answer *out, void *effort)
{
    struct ek_effort *e = effort;
    struct ek_bound b;
    uint64_t t0 = ek_now_ns();
    enum ek_status st;

    *out = (struct ek_answer){.kind = EK_ANSWER_UNKNOWN, .sum = INFINITY, .bound = 0};
    EK_TRY(ek_bound_new(p, l, deny, &b));
    st = b.any ? find_any(&b, l, e, out) : solve(&b, l, e, out);
    ek_bound_free(&b);
    e->solves++;
    e->seconds += (double)(ek_now_ns() - t0) * 1e-9;
    return st;
}
