/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A smaller integer program where devices share memories. Those of one memory count as alike, each
 * as good as the best of them; so do memories that are about alike; hops cost nothing. Of what it
 * has no plan for there is none, and questions that memories decide end here, since what is the
 * same in all orders of devices is looked at once.
 */
#include "planner/ilp_memory.h"
#include "planner/glpk_guard.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NODES  3000
#define MAX_SPLITS 16
#define ROOM       1e-6 /* relative: rounding inside GLPK must not hide a plan at the cutoff */
#define MOST_ROWS  (12 + EK_PLAN_MAX_SIDES) /* of a column */

enum { STAGES, ITEMS, LAST_ITEM, N_COUNTS }; /* of a memory: whole numbers to branch upon */

struct cheapest { /* what a stage takes at least, on the best device that it counts with */
    double sum, prefill, bytes;
    bool there;
};
struct program {
    const struct ek_problem *p;
    const struct ek_limits *l;
    const uint8_t *deny;
    struct ek_effort *e;
    double cutoff, longest; /* of the sum; of the prefill of a stage */
    uint32_t n_pools;       /* the last: of devices that share none */
    uint32_t devices[EK_PLAN_MAX_POOLS + 1];
    uint32_t like[EK_PLAN_MAX_POOLS + 1]; /* the first memory that counts as this one, ... */
    double room[EK_PLAN_MAX_POOLS + 1];   /* ... and of such the bytes of the largest */
    glp_prob *lp;
    struct cheapest *least; /* of the columns that begin at one item: see place_of */
    double *prefill;        /* [variables + 1] */
    int node, side, device, bytes, stages, count; /* first rows of each sort, 0: none */
    int first_count, limit;                       /* variables; limit: of the cutoff, or 0 */
    double scale;                                 /* of the objective */
    int nodes;
    bool maybe, any; /* there may be a plan; this one: its sum and longest prefill */
    double found_sum, found_longest;
};

static uint32_t pool_of(const struct ek_problem *p, const struct ek_column *c)
{
    int32_t pool = p->groups[p->kinds[c->kind].group].pool;

    return pool < 0 ? p->n_pools : (uint32_t)pool;
}

static bool allowed(const struct program *b, size_t i)
{
    const struct ek_column *c = &b->p->columns[i];

    return c->work <= b->l->work && c->prefill <= b->longest && c->ratio <= b->l->ratio &&
           !(b->deny && b->deny[i]);
}

/* ---- Memories that count as one -----------------------------------------------------------------
 */
static bool about_equal(double a, double b, double within)
{
    return fabs(a - b) <= within * fmax(a, b);
}

static void find_alike(struct program *b)
{
    const struct ek_problem *p = b->p;
    double bytes[EK_PLAN_MAX_POOLS + 1] = {0}, sum[EK_PLAN_MAX_POOLS + 1] = {0};

    for (uint32_t g = 0; g < p->n_groups; g++)
        b->devices[p->groups[g].pool < 0 ? (int32_t)p->n_pools : p->groups[g].pool] +=
            p->groups[g].count;
    for (size_t i = 0; i < p->n_columns; i++) {
        bytes[pool_of(p, &p->columns[i])] += (double)p->columns[i].total;
        sum[pool_of(p, &p->columns[i])] += p->columns[i].sum;
        b->scale = fmax(b->scale, p->columns[i].sum / 1000);
    }
    for (uint32_t i = 0; i < b->n_pools; i++) {
        uint32_t k = 0;
        while (k < i &&
               !(i < p->n_pools && b->like[k] == k && b->devices[k] == b->devices[i] &&
                 about_equal((double)p->pools[k], (double)p->pools[i], 0.01) &&
                 about_equal(bytes[k], bytes[i], 0.02) && about_equal(sum[k], sum[i], 0.1)))
            k++;
        b->like[i] = k;
        if (i < p->n_pools)
            b->room[k] = fmax(b->room[k], (double)p->pools[i]);
    }
}

/* ---- Rows ---------------------------------------------------------------------------------------
 */
static int add_rows(struct program *b, uint32_t n, int type, double low, double high)
{
    int first = n ? glp_add_rows(b->lp, (int)n) : 0;

    for (uint32_t i = 0; i < n; i++)
        glp_set_row_bnds(b->lp, first + (int)i, type, low, high);
    return first;
}

static void make_rows(struct program *b)
{
    const struct ek_problem *p = b->p;

    b->node = add_rows(b, p->n_items + 1, GLP_FX, 0, 0);
    glp_set_row_bnds(b->lp, b->node, GLP_FX, 1, 1);
    glp_set_row_bnds(b->lp, b->node + (int)p->n_items, GLP_FX, -1, -1);
    b->side = add_rows(b, p->n_sides, GLP_FX, 1, 1);
    b->device = add_rows(b, b->n_pools, GLP_UP, 0, 0);
    for (uint32_t i = 0; i < b->n_pools; i++)
        glp_set_row_bnds(b->lp, b->device + (int)i, p->use_all ? GLP_FX : GLP_UP, b->devices[i],
                         b->devices[i]);
    b->bytes = add_rows(b, p->n_pools, GLP_UP, 0, 1);
    b->stages = p->max_stages ? add_rows(b, 1, GLP_UP, 0, p->max_stages) : 0;
    b->count = add_rows(b, N_COUNTS * b->n_pools, GLP_FX, 0, 0);
}

struct entries {
    int row[MOST_ROWS + 1], n; /* from 1 */
    double value[MOST_ROWS + 1];
};

static void put(struct entries *e, int row, double value)
{
    if (row == 0 || value == 0)
        return;
    e->row[++e->n] = row;
    e->value[e->n] = value;
}

static void add_stage(struct program *b, const struct ek_column *c, uint32_t pool, uint32_t tp,
                      const struct cheapest *m)
{
    const struct ek_problem *p = b->p;
    int v = glp_add_cols(b->lp, 1), count = b->count + (int)(N_COUNTS * pool);
    struct entries e = {.n = 0};

    glp_set_col_kind(b->lp, v, GLP_BV);
    glp_set_obj_coef(b->lp, v, m->sum / b->scale);
    b->prefill[v] = m->prefill;
    put(&e, b->node + c->first, c->first <= c->last);
    put(&e, b->node + c->last + 1, c->first <= c->last ? -1 : 0);
    for (uint32_t s = 0; s < p->n_sides; s++)
        put(&e, b->side + (int)s, c->sides >> s & 1);
    put(&e, b->device + (int)pool, tp);
    if (pool < p->n_pools)
        put(&e, b->bytes + (int)pool, m->bytes / fmax(1, b->room[b->like[pool]]));
    put(&e, b->stages, 1);
    put(&e, count + STAGES, 1);
    put(&e, count + ITEMS, c->last - c->first + 1);
    put(&e, count + LAST_ITEM, c->first <= c->last && c->last + 1 == (int32_t)p->n_items);
    glp_set_mat_col(b->lp, v, e.n, e.row, e.value);
}

/* ---- Columns ------------------------------------------------------------------------------------
 */
static size_t place_of(const struct program *b, const struct ek_column *c, uint32_t pool,
                       uint32_t tp)
{
    size_t masks = (size_t)1 << b->p->n_sides;

    return (((size_t)(c->last + 1) * masks + c->sides) * b->n_pools + pool) * (EK_PLAN_MAX_TP + 1) +
           tp;
}

static size_t places(const struct program *b)
{
    return place_of(b, &(struct ek_column){.last = (int32_t)b->p->n_items}, 0, 0);
}

/* Of all columns that begin at an item, the least by end, sides, memory and degree. */
static void gather(const struct program *b, uint32_t first)
{
    const struct ek_problem *p = b->p;

    memset(b->least, 0, places(b) * sizeof(*b->least));
    for (size_t i = p->start[first]; i < p->start[first + 1]; i++) {
        const struct ek_column *c = &p->columns[i];
        uint32_t tp = p->kinds[c->kind].tp;
        struct cheapest *at = &b->least[place_of(b, c, b->like[pool_of(p, c)], tp)];
        if (!allowed(b, i))
            continue;
        if (!at->there)
            *at = (struct cheapest){INFINITY, INFINITY, INFINITY, true};
        at->sum = fmin(at->sum, c->sum);
        at->prefill = fmin(at->prefill, c->prefill);
        at->bytes = fmin(at->bytes, (double)c->total * tp);
    }
}

static void add_stages(struct program *b)
{
    const struct ek_problem *p = b->p;

    for (uint32_t first = 0; first <= p->n_items; first++) {
        struct ek_column c = {.first = (int32_t)first};
        gather(b, first);
        for (c.last = (int32_t)first - 1; c.last < (int32_t)p->n_items; c.last++)
            for (c.sides = 0; c.sides < 1u << p->n_sides; c.sides++)
                for (uint32_t pool = 0; pool < b->n_pools; pool++)
                    for (uint32_t tp = 1; tp <= EK_PLAN_MAX_TP; tp *= 2) {
                        const struct cheapest *at = &b->least[place_of(b, &c, b->like[pool], tp)];
                        if (at->there)
                            add_stage(b, &c, pool, tp, at);
                    }
    }
}

/* Of memories that are alike the earlier holds no fewer items. */
static void put_in_order(struct program *b, uint32_t pool)
{
    int items = b->first_count + ITEMS, row;
    uint32_t before = pool;

    while (before > 0 && (before == pool || b->like[before] != b->like[pool]))
        before--;
    if (before == pool || b->like[before] != b->like[pool])
        return;
    row = add_rows(b, 1, GLP_LO, 0, 0);
    glp_set_mat_row(b->lp, row, 2,
                    (int[]){0, items + (int)(N_COUNTS * before), items + (int)(N_COUNTS * pool)},
                    (double[]){0, 1, -1});
}

static void add_counts(struct program *b)
{
    b->first_count = glp_get_num_cols(b->lp) + 1;
    for (int i = 0; i < (int)(N_COUNTS * b->n_pools); i++) {
        int v = glp_add_cols(b->lp, 1);
        glp_set_col_bnds(b->lp, v, GLP_LO, 0, 0);
        glp_set_col_kind(b->lp, v, GLP_IV);
        glp_set_mat_col(b->lp, v, 1, (int[]){0, b->count + i}, (double[]){0, -1});
    }
    for (uint32_t i = 1; i < b->p->n_pools; i++)
        put_in_order(b, i);
}

/* ---- Solving ------------------------------------------------------------------------------------
 */
/* Nothing above it counts: see ek_glpk_offer_cutoff. */
static void add_cutoff(struct program *b)
{
    if (isinf(b->cutoff))
        return;
    b->limit = glp_add_cols(b->lp, 1);
    glp_set_col_bnds(b->lp, b->limit, GLP_FX, 0, 0);
    glp_set_obj_coef(b->lp, b->limit, b->cutoff / b->scale * (1 + ROOM) + ROOM);
}

static bool is_plan(const struct program *b)
{
    int status = glp_mip_status(b->lp);

    return (status == GLP_OPT || status == GLP_FEAS) &&
           !(b->limit && glp_mip_col_val(b->lp, b->limit) > 0.5);
}

static void on_node(glp_tree *tree, void *info)
{
    struct program *b = info;
    int v, reason = glp_ios_reason(tree);

    b->nodes += reason == GLP_ISELECT;
    if (reason == GLP_IBRANCH) {
        v = ek_glpk_most_fractional(tree, b->first_count, (int)(N_COUNTS * b->n_pools));
        if (v)
            glp_ios_branch_upon(tree, v, GLP_NO_BRNCH);
    } else if (reason == GLP_IHEUR && b->limit && glp_mip_status(b->lp) == GLP_UNDEF) {
        ek_glpk_offer_cutoff(tree, b->limit);
    } else if ((reason == GLP_IBINGO && is_plan(b)) || b->nodes > MAX_NODES ||
               ek_effort_over(b->e)) {
        glp_ios_terminate(tree);
    }
}

static void read_plan(struct program *b)
{
    b->any = is_plan(b);
    b->maybe |= b->any;
    b->found_sum = b->any ? glp_mip_obj_val(b->lp) * b->scale : 0;
    b->found_longest = 0;
    for (int v = 1; b->any && v < b->first_count; v++)
        if (glp_mip_col_val(b->lp, v) > 0.5)
            b->found_longest = fmax(b->found_longest, b->prefill[v]);
}

static enum ek_status run(void *data)
{
    struct program *b = data;
    glp_smcp simplex;
    glp_iocp o;
    int rc;

    b->lp = glp_create_prob();
    make_rows(b);
    add_stages(b);
    add_counts(b);
    add_cutoff(b);
    glp_init_smcp(&simplex);
    simplex.msg_lev = GLP_MSG_OFF;
    simplex.presolve = GLP_ON;
    simplex.tm_lim = ek_glpk_time_left(b->e->deadline_ns);
    rc = glp_simplex(b->lp, &simplex);
    if (rc == GLP_ENOPFS || (rc == 0 && glp_get_status(b->lp) == GLP_NOFEAS))
        return EK_OK;
    glp_init_iocp(&o);
    o.msg_lev = GLP_MSG_OFF;
    o.cb_func = on_node;
    o.cb_info = b;
    if (rc == 0)
        rc = glp_intopt(b->lp, &o);
    b->maybe = rc != 0;
    read_plan(b);
    return EK_OK;
}

/* Is there a plan whose longest prefill is at least low and at most high? */
static enum ek_status ask(struct program *b, double low, double high)
{
    b->cutoff = b->l->sum - (low > 0 ? b->l->fill * low : 0);
    b->longest = high;
    b->maybe = b->any = false;
    b->nodes = b->limit = 0;
    if (b->cutoff < 0)
        return EK_OK;
    b->maybe = ek_effort_over(b->e);
    return b->maybe ? EK_OK : ek_glpk_guarded(run, b);
}

/* What is left of a range of the longest prefill; where there is a plan of the program within it,
 * all below that plan's may go. One that is none by its longest prefill parts the range in two that
 * exclude it. */
static enum ek_status shrink(struct program *b, struct ek_prefill_range *r, int *splits)
{
    struct ek_prefill_range below = *r, above = *r;

    EK_TRY(ask(b, r->low, r->high));
    r->none = !b->maybe;
    if (r->none || !b->any || b->l->fill == 0 || isinf(b->l->sum) || (*splits)-- <= 0 ||
        b->found_longest <= r->low)
        return EK_OK;
    above.low = b->found_longest;
    below.high = nextafter(b->found_longest, 0);
    if (b->found_sum + b->l->fill * b->found_longest > b->l->sum) {
        EK_TRY(shrink(b, &above, splits));
        EK_TRY(shrink(b, &below, splits));
    } else {
        EK_TRY(ask(b, below.low, below.high));
        below.none = !b->maybe;
    }
    r->none = above.none && below.none;
    r->low = below.none ? above.low : below.low;
    r->high = above.none ? below.high : above.high;
    return EK_OK;
}

enum ek_status ek_ilp_memory(const struct ek_problem *p, const struct ek_limits *l,
                             const uint8_t *deny, struct ek_effort *e, struct ek_prefill_range *out)
{
    struct program b = {.p = p, .l = l, .deny = deny, .e = e, .n_pools = p->n_pools + 1};
    int splits = MAX_SPLITS;
    enum ek_status st;

    *out = (struct ek_prefill_range){.high = l->prefill};
    if (p->n_pools == 0)
        return EK_OK;
    find_alike(&b);
    b.scale = b.scale > 0 ? b.scale : 1;
    b.prefill = ek_calloc(p->n_columns * (EK_PLAN_MAX_POOLS + 1) + 1, sizeof(*b.prefill));
    b.least = ek_calloc(places(&b), sizeof(*b.least));
    st = b.prefill && b.least ? shrink(&b, out, &splits) : EK_ENOMEM;
    free(b.prefill);
    free(b.least);
    return st;
}
