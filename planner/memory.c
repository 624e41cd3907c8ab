/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Memory of modules and stages for one workload.
 */
#include "planner/planner.h"
#include "planner/problem.h"

#include <math.h>
#include <string.h>

/* ---- Bytes of one module's steps ----------------------------------------------------------------
 * docs/measurement.md: the smallest point that is large enough, activations linear in the tokens
 * between two such points; never under. Beyond the points they grow by sequences and tokens as the
 * last points do, and in proportion to the context. */
static uint64_t lerp_up(uint64_t a, uint64_t b, double f)
{
    return (uint64_t)ceil((double)a + ((double)b - (double)a) * f);
}

/* Activations and messages are affine in the tokens of a step; workspace grows in steps. */
static struct ek_cost_space blend(const struct ek_cost_space *a, const struct ek_cost_space *b,
                                  double f)
{
    struct ek_cost_space s = *b;

    s.activations = lerp_up(a->activations, b->activations, f);
    if (s.activations > b->activations)
        s.activations = b->activations;
    s.comm = lerp_up(a->comm, b->comm, f); /* messages of so many tokens */
    if (s.comm > b->comm)
        s.comm = b->comm;
    return s;
}

static bool covers(const struct ek_cost_space *s, uint32_t batch, uint32_t context)
{
    return s->batch >= batch && s->context >= context;
}

/* The smallest point of at least (dir > 0) or the largest of at most (dir < 0) that many tokens. */
static const struct ek_cost_space *nearest(const struct ek_cost_memory *m, uint32_t tokens,
                                           uint32_t batch, uint32_t context, int dir)
{
    const struct ek_cost_space *best = NULL;

    for (size_t i = 0; i < m->n; i++) {
        const struct ek_cost_space *s = &m->points[i];
        if (!covers(s, batch, context) || (dir > 0 ? s->tokens < tokens : s->tokens > tokens))
            continue;
        if (best == NULL || (dir > 0 ? s->tokens < best->tokens : s->tokens > best->tokens) ||
            (s->tokens == best->tokens &&
             s->activations + s->workspace < best->activations + best->workspace))
            best = s;
    }
    return best;
}

/* Nothing measured is large enough: what each of the largest points says, grown by axis; the most
 * of it all, since a decode step of many sequences may pass a prefill of many tokens. */
enum axis { BY_BATCH, BY_TOKENS };

static uint32_t along(const struct ek_cost_space *s, enum axis axis)
{
    return axis == BY_BATCH ? s->batch : s->tokens;
}

/* The next smaller point along an axis, all else alike; NULL: none. */
static const struct ek_cost_space *smaller(const struct ek_cost_memory *m,
                                           const struct ek_cost_space *s, enum axis axis)
{
    enum axis other = axis == BY_BATCH ? BY_TOKENS : BY_BATCH;
    const struct ek_cost_space *best = NULL;

    for (size_t i = 0; i < m->n; i++) {
        const struct ek_cost_space *q = &m->points[i];
        if (q->context == s->context && along(q, other) == along(s, other) &&
            along(q, axis) < along(s, axis) && (best == NULL || along(q, axis) > along(best, axis)))
            best = q;
    }
    return best;
}

/* No point of as many tokens is larger. */
static bool is_corner(const struct ek_cost_memory *m, const struct ek_cost_space *s)
{
    for (size_t i = 0; i < m->n; i++) {
        const struct ek_cost_space *q = &m->points[i];
        if (q->tokens == s->tokens && covers(q, s->batch, s->context) &&
            (q->batch > s->batch || q->context > s->context))
            return false;
    }
    return true;
}

/* Bytes of so many more of an axis at a slope. */
static uint64_t add(uint64_t bytes, double slope, uint32_t more)
{
    return (uint64_t)fmin(ceil((double)bytes + slope * more), 1e15);
}

static double slope_of(uint64_t at, uint64_t before, uint32_t steps)
{
    return at > before ? (double)(at - before) / steps : 0;
}

/* By the slope between a point and the one before; in proportion where there is none. Messages go
 * by tokens alone. */
static void grow(const struct ek_cost_memory *m, const struct ek_cost_space *point, enum axis axis,
                 uint32_t n, struct ek_cost_space *s)
{
    static const struct ek_cost_space none;
    const struct ek_cost_space *q = smaller(m, point, axis), *at = q ? point : s;
    uint32_t from = along(point, axis), steps = q ? from - along(q, axis) : from;

    if (n <= from)
        return;
    q = q ? q : &none;
    s->activations =
        add(s->activations, slope_of(at->activations, q->activations, steps), n - from);
    s->workspace = add(s->workspace, slope_of(at->workspace, q->workspace, steps), n - from);
    if (axis == BY_TOKENS)
        s->comm = add(s->comm, slope_of(at->comm, q->comm, steps), n - from);
}

static void grow_context(uint32_t context, struct ek_cost_space *s)
{
    if (s->context == 0 || context <= s->context)
        return;
    s->activations = add(0, (double)s->activations / s->context, context);
    s->workspace = add(0, (double)s->workspace / s->context, context);
}

static struct ek_cost_space scaled(const struct ek_cost_memory *m, uint32_t tokens, uint32_t batch,
                                   uint32_t context)
{
    struct ek_cost_space out = {.tokens = tokens, .batch = batch, .context = context};
    uint32_t most = 0, enough = 0; /* tokens of the largest points, and of the first that cover */

    for (size_t i = 0; i < m->n; i++) {
        uint32_t t = m->points[i].tokens;
        most = t > most ? t : most;
        enough = t >= tokens && (enough == 0 || t < enough) ? t : enough;
    }
    for (size_t i = 0; i < m->n; i++) {
        struct ek_cost_space s = m->points[i];
        if (!is_corner(m, &s) || (enough && s.tokens > enough))
            continue;
        if (s.tokens == most)
            grow(m, &m->points[i], BY_TOKENS, tokens, &s);
        grow(m, &m->points[i], BY_BATCH, batch, &s);
        grow_context(context, &s);
        out.activations = s.activations > out.activations ? s.activations : out.activations;
        out.workspace = s.workspace > out.workspace ? s.workspace : out.workspace;
        out.comm = s.comm > out.comm ? s.comm : out.comm;
    }
    return out;
}

struct ek_cost_space ek_space_at(const struct ek_cost_memory *m, uint32_t tokens, uint32_t batch,
                                 uint32_t context)
{
    const struct ek_cost_space *above = nearest(m, tokens, batch, context, 1);
    const struct ek_cost_space *below = nearest(m, tokens, batch, context, -1);

    if (above == NULL)
        return scaled(m, tokens, batch, context);
    if (below == NULL || below->tokens == above->tokens)
        return *above;
    return blend(below, above,
                 (double)(tokens - below->tokens) / (double)(above->tokens - below->tokens));
}

/* Of the points on one side of a context the nearest; of those the largest. */
static const struct ek_cost_space *nearest_context(const struct ek_cost_memory *m, uint32_t context,
                                                   int dir)
{
    const struct ek_cost_space *best = NULL;

    for (size_t i = 0; i < m->n; i++) {
        const struct ek_cost_space *s = &m->points[i];
        if (dir > 0 ? s->context < context : s->context > context)
            continue;
        if (best == NULL || (dir > 0 ? s->context < best->context : s->context > best->context) ||
            (s->context == best->context && s->activations > best->activations))
            best = s;
    }
    return best;
}

struct ek_cost_space ek_picture_space_at(const struct ek_cost_memory *m, uint32_t tokens,
                                         uint32_t context)
{
    const struct ek_cost_space *above = nearest_context(m, context, 1);
    const struct ek_cost_space *below = nearest_context(m, context, -1);
    struct ek_cost_space s = ek_space_at(m, tokens, 1, 0), at;

    if (above == NULL) { /* in proportion */
        at = *below;
        at.activations = (uint64_t)fmin((double)at.activations * context / below->context, 1e15);
        at.comm = (uint64_t)fmin((double)at.comm * context / below->context, 1e15);
    } else if (below == NULL || below->context == above->context) {
        at = *above;
    } else {
        at = blend(below, above,
                   (double)(context - below->context) / (double)(above->context - below->context));
    }
    s.activations = at.activations;
    s.comm = at.comm;
    return s;
}

/* ---- Stages -------------------------------------------------------------------------------------
 */
/* a * b * c, at most 2^60: a figure that large fits nowhere, and sums of them do not wrap. */
static uint64_t product(uint64_t a, uint64_t b, uint64_t c)
{
    double d = (double)a * (double)b * (double)c;

    return d > 1e18 ? (uint64_t)1 << 60 : a * b * c;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t share(uint64_t bytes, uint32_t tp)
{
    return (bytes + tp - 1) / tp;
}

/* Modules of a stage run one after the other. */
static void use_buffers(const struct ek_cost_space *s, uint64_t *activations, uint64_t *workspace)
{
    *activations = larger(*activations, s->activations);
    *workspace = larger(*workspace, s->workspace);
}

void ek_use_add(const struct ek_problem *p, uint32_t kind, uint32_t module, bool tied_here,
                struct ek_memory_use *u)
{
    const struct ek_kind *k = &p->kinds[kind];
    const struct ek_cost_module *m = &p->costs->modules[module];
    const struct ek_modcost *c = ek_modcost_of(p, p->groups[k->group].cls, k->tp, module);

    uint32_t page = p->costs->page, blocks = (p->workload.context + page - 1) / page;
    uint64_t kv = c->kv_block ? c->kv_block : m->kv * page;

    if (!tied_here)
        u->weights += c->weights ? c->weights : share(m->weights, k->tp);
    u->kv += share(product(kv, p->workload.batch, blocks), c->kv_block ? 1 : k->tp);
    if (c->kv_block) /* K and V, and scales of their rows, are each rounded up to 256 bytes */
        u->kv += strcmp(p->workload.cache, "F8_E4M3") == 0 ? 1024 : 512;
    if (u->kv > (uint64_t)1 << 60)
        u->kv = (uint64_t)1 << 60;
    u->layers |= m->kind == EK_MODULE_LAYER;
    if (m->kind == EK_MODULE_NORM || m->kind == EK_MODULE_HEAD)
        use_buffers(&c->space, &u->ending.activations, &u->ending.workspace);
    else
        use_buffers(&c->space, &u->activations, &u->workspace);
    if (!m->side && ek_cost_module_sees(m))
        u->crossing = c->space.comm > u->crossing ? c->space.comm : u->crossing;
    else if (c->space.comm > u->comm)
        u->comm = c->space.comm;
}

/* Its workspace is what a library that hands over takes of a device, once. */
static void use_hand_over(const struct ek_cost_space *s, uint64_t *library, struct ek_memory_use *u)
{
    u->comm += s->comm;
    *library = s->workspace > *library ? s->workspace : *library;
}

void ek_use_cross(const struct ek_problem *p, uint32_t kind, int32_t first, int32_t last,
                  struct ek_memory_use *u)
{
    int32_t end = (int32_t)p->n_seeing - 1; /* its features go by the host */
    uint32_t cls = p->groups[p->kinds[kind].group].cls, tp = p->kinds[kind].tp;
    uint64_t library = 0;

    if (first > last)
        return;
    if (first > 0)
        use_hand_over(ek_stage_space(p, cls, tp, EK_SIG_INCOMING), &library, u);
    if (last + 1 < (int32_t)p->n_items)
        use_hand_over(ek_stage_space(p, cls, tp, EK_SIG_OUTGOING), &library, u);
    u->overhead += library;
    u->comm += first > 0 && first <= end ? u->crossing : 0;
    u->comm += last < end ? u->crossing : 0;
}

void ek_use_begin(const struct ek_problem *p, uint32_t kind, struct ek_memory_use *u)
{
    const struct ek_kind *k = &p->kinds[kind];
    const struct ek_cost_class *cls = &p->costs->classes[p->groups[k->group].cls];

    *u = (struct ek_memory_use){.overhead = cls->overhead + (k->tp > 1 ? cls->tp_reserve : 0)};
}

/* What a final norm or a head takes behind a layer, or without one where that is known. */
static void use_ending(const struct ek_problem *p, const struct ek_kind *k, struct ek_memory_use *u)
{
    const struct ek_cost_space *alone =
        ek_stage_space(p, p->groups[k->group].cls, k->tp, EK_SIG_ENDING);
    bool apart = !u->layers && u->ending.activations > 0 && alone->activations > 0;

    use_buffers(apart ? alone : &u->ending, &u->activations, &u->workspace);
}

/* Adds what a stage takes whatever its modules, and sums up. */
void ek_use_end(const struct ek_problem *p, uint32_t kind, struct ek_memory_use *u)
{
    const struct ek_kind *k = &p->kinds[kind];
    const struct ek_cost_space *s = ek_stage_space(p, p->groups[k->group].cls, k->tp, EK_SIG_STAGE);

    use_ending(p, k, u);
    u->activations += s->activations;
    u->workspace += s->workspace;
    u->comm += s->comm;
    u->total = u->weights + u->kv + u->activations + u->workspace + u->comm + u->overhead;
}

void ek_use_join(struct ek_memory_use *u, const struct ek_memory_use *other)
{
    u->weights += other->weights;
    u->kv += other->kv;
    u->activations += other->activations;
    u->comm += other->comm;
    u->layers |= other->layers;
    use_buffers(&other->ending, &u->ending.activations, &u->ending.workspace);
    u->workspace = larger(u->workspace, other->workspace);
    if (u->layers) /* scratch of a head behind layers may be more than of either */
        u->workspace = larger(u->workspace, u->ending.workspace);
    u->overhead = larger(u->overhead, other->overhead);
    u->total = u->weights + u->kv + u->activations + u->workspace + u->comm + u->overhead;
}

bool ek_sides_apart(int32_t first, int32_t last, uint32_t sides)
{
    return sides && first > 0 && first <= last;
}

bool ek_tied_within(const struct ek_problem *p, uint32_t module, int32_t first, int32_t last)
{
    int32_t t = p->costs->modules[module].tied_to - (int32_t)p->first_item;

    return t >= first && t <= last;
}

struct ek_memory_use ek_problem_memory(const struct ek_problem *p, uint32_t kind, int32_t first,
                                       int32_t last, uint32_t sides)
{
    int32_t n = (int32_t)p->n_items;
    struct ek_memory_use u, beside;

    if (ek_sides_apart(first, last, sides)) {
        u = ek_problem_memory(p, kind, first, last, 0);
        beside = ek_problem_memory(p, kind, n, n - 1, sides);
        ek_use_join(&u, &beside);
        return u;
    }
    ek_use_begin(p, kind, &u);
    for (int32_t i = first; i <= last; i++) {
        uint32_t m = p->first_item + (uint32_t)i;
        ek_use_add(p, kind, m, ek_tied_within(p, m, first, last), &u);
    }
    for (uint32_t s = 0; s < p->n_sides; s++)
        for (uint32_t j = 0; (sides >> s & 1) && j < p->sides[s].n; j++)
            ek_use_add(p, kind, p->sides[s].modules[j], false, &u);
    ek_use_cross(p, kind, first, last, &u);
    ek_use_end(p, kind, &u);
    return u;
}
