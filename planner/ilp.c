/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The integer program, solved by GLPK. One binary variable a stage column. A plan is a unit of flow
 * from the first item to the last: cover rows in difference form, two entries a column, which keeps
 * the matrix sparse. Where hops depend on the pair of kinds the flow also passes through hop
 * variables, so that no product is linearised.
 */
#include "planner/bound.h"
#include "planner/glpk_guard.h"
#include "planner/ilp_memory.h"
#include "planner/planner.h"
#include "planner/reduce.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CUTOFF_ROOM 1e-6 /* relative: rounding inside GLPK must not hide a plan at the cutoff */

struct builder {
    const struct ek_problem *p;
    struct ek_limits limits; /* as asked for, or tighter where nothing is lost */
    double filled;           /* cutoff of the sum with its fill */
    const struct ek_limits *l;
    const uint8_t *deny;
    uint8_t *drop; /* columns left out of a large program, or NULL */
    glp_prob *lp;
    int *rows, *cols; /* triplets, from 1 */
    double *values;
    size_t n, cap;
    uint32_t *column_of; /* structural variable (from 1) -> stage column, or UINT32_MAX */
    size_t column_cap;
    int *out_row, *in_row;   /* [n_items][n_kinds] rows of the flow through hops, 0: none */
    int *side_out, *side_in; /* [n_kinds] flow from the side modules' stage to the first */
    double scale;            /* of the objective */
    /* the stages of each kind are counted: branching on such a count halves the problem where
     * branching on one column barely changes it */
    int *tally;      /* [n_kinds] rows */
    int first_count; /* their variables, from here */
    int cutoff;      /* a variable without rows, fixed at 0, or 0: see ek_glpk_offer_cutoff */
};

const char *ek_ilp_version(void)
{
    return glp_version();
}

/* ---- Building -----------------------------------------------------------------------------------
 */
static enum ek_status put(struct builder *b, int row, int col, double v)
{
    size_t cap = b->cap, same = b->cap, again = b->cap;

    if (b->n + 2 > b->cap) {
        EK_TRY(ek_grow((void **)&b->rows, &cap, b->n + 2, sizeof(int), (size_t)1 << 30));
        EK_TRY(ek_grow((void **)&b->cols, &same, b->n + 2, sizeof(int), (size_t)1 << 30));
        EK_TRY(ek_grow((void **)&b->values, &again, b->n + 2, sizeof(double), (size_t)1 << 30));
        b->cap = cap < same ? cap : same;
        b->cap = b->cap < again ? b->cap : again;
    }
    b->n++;
    b->rows[b->n] = row;
    b->cols[b->n] = col;
    b->values[b->n] = v;
    return EK_OK;
}

static int add_row(struct builder *b, int type, double low, double high)
{
    int r = glp_add_rows(b->lp, 1);

    glp_set_row_bnds(b->lp, r, type, low, high);
    return r;
}

static bool allowed(const struct builder *b, size_t i)
{
    const struct ek_column *c = &b->p->columns[i];

    if (b->p->uniform && c->first > 0 && c->first <= c->last &&
        ek_problem_hop_work(b->p, c->first - 1, c->kind, c->kind) > b->l->hop)
        return false;
    return c->work <= b->l->work && c->prefill <= b->l->prefill && c->ratio <= b->l->ratio &&
           !(b->deny && b->deny[i]);
}

static bool exits(const struct builder *b, const struct ek_column *c)
{
    return b->p->n_sides && (c->sides >> b->p->exit_side & 1);
}

/* The hops of a column that do not depend on its neighbours. */
static double own_hops(const struct builder *b, const struct ek_problem *p,
                       const struct ek_column *c)
{
    double v = 0;

    if (p->uniform && c->first > 0 && c->first <= c->last)
        v += ek_problem_hop(p, c->first - 1, c->kind, c->kind);
    if (p->uniform && exits(b, c) && c->first > 0)
        v += ek_problem_side_hop(p, c->kind, c->kind);
    return v;
}

static enum ek_status add_variable(struct builder *b, double cost, bool binary, uint32_t column,
                                   int *out)
{
    int v = glp_add_cols(b->lp, 1);

    EK_TRY(ek_grow((void **)&b->column_of, &b->column_cap, (size_t)v + 1, sizeof(uint32_t),
                   (size_t)1 << 30));
    b->column_of[v] = column;
    glp_set_obj_coef(b->lp, v, cost / b->scale);
    if (binary)
        glp_set_col_kind(b->lp, v, GLP_BV);
    else
        glp_set_col_bnds(b->lp, v, GLP_LO, 0, 0);
    *out = v;
    return EK_OK;
}

/* ---- Rows ---------------------------------------------------------------------------------------
 */
struct rows {
    int node[EK_PLAN_MAX_MODULES + 1]; /* flow through positions (uniform), else first and last */
    int group[EK_PLAN_MAX_DEVICES], stages, second, side[EK_PLAN_MAX_SIDES],
        pool[EK_PLAN_MAX_POOLS];
};

static void make_rows(struct builder *b, struct rows *r)
{
    const struct ek_problem *p = b->p;

    for (uint32_t i = 0; i <= p->n_items; i++) {
        double rhs = i == 0 ? 1 : i == p->n_items ? -1 : 0;
        r->node[i] = p->uniform || rhs != 0 ? add_row(b, GLP_FX, rhs, rhs) : 0;
    }
    for (uint32_t g = 0; g < p->n_groups; g++)
        r->group[g] =
            add_row(b, p->use_all ? GLP_FX : GLP_UP, p->groups[g].count, p->groups[g].count);
    r->stages = p->max_stages ? add_row(b, GLP_UP, 0, p->max_stages) : 0;
    for (uint32_t s = 0; s < p->n_sides; s++)
        r->side[s] = add_row(b, GLP_FX, 1, 1);
    for (uint32_t i = 0; i < p->n_pools; i++)
        r->pool[i] = add_row(b, GLP_UP, 0, 1);
    r->second = b->l->second.columns ? add_row(b, GLP_UP, 0, 1) : 0;
    for (uint32_t i = 0; i < p->n_kinds; i++)
        b->tally[i] = add_row(b, GLP_FX, 0, 0);
}

static int flow_row(struct builder *b, int *at)
{
    if (*at == 0)
        *at = add_row(b, GLP_FX, 0, 0);
    return *at;
}

static enum ek_status put_flow(struct builder *b, struct rows *r, const struct ek_column *c, int v)
{
    const struct ek_problem *p = b->p;
    uint32_t end = (uint32_t)c->last + 1;

    if (c->first > c->last)
        return EK_OK;
    if (p->uniform || c->first == 0)
        EK_TRY(put(b, r->node[c->first], v, 1));
    else
        EK_TRY(put(b, flow_row(b, &b->in_row[(uint32_t)(c->first - 1) * p->n_kinds + c->kind]), v,
                   -1));
    if (p->uniform || end == p->n_items)
        return put(b, r->node[end], v, -1);
    return put(b, flow_row(b, &b->out_row[(uint32_t)c->last * p->n_kinds + c->kind]), v, 1);
}

static enum ek_status put_sides(struct builder *b, struct rows *r, const struct ek_column *c, int v)
{
    const struct ek_problem *p = b->p;

    for (uint32_t s = 0; s < p->n_sides; s++)
        if (c->sides >> s & 1)
            EK_TRY(put(b, r->side[s], v, 1));
    if (p->uniform || p->n_sides == 0 || p->workload.images == 0)
        return EK_OK;
    if (exits(b, c) && c->first > 0)
        return put(b, flow_row(b, &b->side_out[c->kind]), v, 1);
    if (!exits(b, c) && c->first == 0)
        return put(b, flow_row(b, &b->side_in[c->kind]), v, -1);
    return EK_OK;
}

static enum ek_status put_second(struct builder *b, const struct rows *r, int v, double part)
{
    return put(b, r->second, v, part / b->l->second.most);
}

static enum ek_status put_column(struct builder *b, struct rows *r, uint32_t i)
{
    const struct ek_problem *p = b->p;
    const struct ek_column *c = &p->columns[i];
    const struct ek_kind *k = &p->kinds[c->kind];
    int v, pool = p->groups[k->group].pool;

    EK_TRY(add_variable(b, c->sum + own_hops(b, p, c), true, i, &v));
    if (r->second)
        EK_TRY(put_second(b, r, v, b->l->second.columns[i] + own_hops(b, b->l->second.hops, c)));
    EK_TRY(put_flow(b, r, c, v));
    EK_TRY(put_sides(b, r, c, v));
    EK_TRY(put(b, r->group[k->group], v, k->tp));
    EK_TRY(put(b, b->tally[c->kind], v, 1));
    if (r->stages)
        EK_TRY(put(b, r->stages, v, 1));
    if (pool >= 0)
        EK_TRY(
            put(b, r->pool[pool], v, (double)c->total * k->tp / fmax(1, (double)p->pools[pool])));
    return EK_OK;
}

static enum ek_status put_hops(struct builder *b, const struct rows *r)
{
    const struct ek_problem *p = b->p;
    int v;

    for (uint32_t i = 0; i + 1 < p->n_items; i++)
        for (uint32_t from = 0; from < p->n_kinds; from++)
            for (uint32_t to = 0; to < p->n_kinds; to++) {
                int out = b->out_row[i * p->n_kinds + from], in = b->in_row[i * p->n_kinds + to];
                double hop = ek_problem_hop(p, (int32_t)i, from, to);
                if (!out || !in || isinf(hop) ||
                    ek_problem_hop_work(p, (int32_t)i, from, to) > b->l->hop)
                    continue;
                EK_TRY(add_variable(b, hop, false, UINT32_MAX, &v));
                EK_TRY(put(b, out, v, -1));
                EK_TRY(put(b, in, v, 1));
                if (r->second)
                    EK_TRY(put_second(b, r, v,
                                      ek_problem_hop(b->l->second.hops, (int32_t)i, from, to)));
            }
    return EK_OK;
}

static enum ek_status put_side_hops(struct builder *b, const struct rows *r)
{
    const struct ek_problem *p = b->p;
    int v;

    for (uint32_t from = 0; from < p->n_kinds; from++)
        for (uint32_t to = 0; to < p->n_kinds; to++) {
            double hop = ek_problem_side_hop(p, from, to);
            if (!b->side_out[from] || !b->side_in[to] || isinf(hop))
                continue;
            EK_TRY(add_variable(b, hop, false, UINT32_MAX, &v));
            EK_TRY(put(b, b->side_out[from], v, -1));
            EK_TRY(put(b, b->side_in[to], v, 1));
            if (r->second)
                EK_TRY(put_second(b, r, v, ek_problem_side_hop(b->l->second.hops, from, to)));
        }
    return EK_OK;
}

static enum ek_status put_counts(struct builder *b)
{
    const struct ek_problem *p = b->p;
    int v;

    b->first_count = glp_get_num_cols(b->lp) + 1;
    for (uint32_t i = 0; i < p->n_kinds; i++) {
        EK_TRY(add_variable(b, 0, false, UINT32_MAX, &v));
        glp_set_col_kind(b->lp, v, GLP_IV);
        EK_TRY(put(b, b->tally[i], v, -1));
    }
    return EK_OK;
}

static enum ek_status add_cutoff(struct builder *b, double cost)
{
    EK_TRY(add_variable(b, cost, false, UINT32_MAX, &b->cutoff));
    glp_set_col_bnds(b->lp, b->cutoff, GLP_FX, 0, 0);
    return EK_OK;
}

static enum ek_status build(struct builder *b)
{
    const struct ek_problem *p = b->p;
    struct rows r = {0};

    glp_set_obj_dir(b->lp, GLP_MIN);
    b->out_row = ek_calloc((size_t)p->n_items * p->n_kinds, sizeof(int));
    b->in_row = ek_calloc((size_t)p->n_items * p->n_kinds, sizeof(int));
    b->side_out = ek_calloc(p->n_kinds, sizeof(int));
    b->side_in = ek_calloc(p->n_kinds, sizeof(int));
    b->tally = ek_calloc(p->n_kinds, sizeof(int));
    if (!b->out_row || !b->in_row || !b->side_out || !b->side_in || !b->tally)
        return EK_ENOMEM;
    make_rows(b, &r);
    for (size_t i = 0; i < p->n_columns; i++)
        if (allowed(b, i))
            EK_TRY(put_column(b, &r, (uint32_t)i));
    if (!p->uniform) {
        EK_TRY(put_hops(b, &r));
        EK_TRY(put_side_hops(b, &r));
    }
    if (glp_get_num_cols(b->lp) == 0)
        return EK_OK;
    EK_TRY(put_counts(b));
    if (!isinf(b->l->sum))
        EK_TRY(add_cutoff(b, b->l->sum * (1 + CUTOFF_ROOM) + CUTOFF_ROOM * b->scale));
    glp_load_matrix(b->lp, (int)b->n, b->rows, b->cols, b->values);
    return EK_OK;
}

/* ---- Solving ------------------------------------------------------------------------------------
 */
struct watch {
    struct builder *b;
    struct ek_effort *e;
    double bound;
    bool any; /* the first plan will do */
};

static bool cutoff_stayed(const struct builder *b)
{
    return b->cutoff && glp_mip_col_val(b->lp, b->cutoff) > 0.5;
}

/* A plan in the room above the cutoff is none. */
static bool within_cutoff(const struct builder *b, double sum)
{
    return sum <= b->l->sum * (1 + 1e-9) + 1e-15;
}

/* Numbers of stages of the kinds first, then GLPK's own choice. */
static void branch(glp_tree *tree, const struct builder *b)
{
    int v = ek_glpk_most_fractional(tree, b->first_count, (int)b->p->n_kinds);

    if (v)
        glp_ios_branch_upon(tree, v, GLP_NO_BRNCH);
}

static void on_node(glp_tree *tree, void *info)
{
    struct watch *w = info;
    int best = glp_ios_best_node(tree);

    if (best)
        w->bound = glp_ios_node_bound(tree, best);
    switch (glp_ios_reason(tree)) {
    case GLP_IHEUR:
        if (w->b->cutoff && glp_mip_status(glp_ios_get_prob(tree)) == GLP_UNDEF)
            ek_glpk_offer_cutoff(tree, w->b->cutoff);
        break;
    case GLP_IBRANCH:
        branch(tree, w->b);
        break;
    case GLP_IBINGO:
        if (w->any && within_cutoff(w->b, glp_mip_obj_val(glp_ios_get_prob(tree)) * w->b->scale))
            glp_ios_terminate(tree);
        break;
    default:
        if (ek_effort_over(w->e))
            glp_ios_terminate(tree);
    }
}

static double exact_sum(const struct ek_problem *p, const struct ek_answer *a)
{
    double sum = 0;
    uint32_t first = UINT32_MAX;

    for (uint32_t i = 0; i < a->n; i++) {
        const struct ek_column *c = &p->columns[a->columns[i]];
        sum += c->sum;
        if (i > 0 && c->first <= c->last)
            sum += ek_problem_hop(p, c->first - 1, p->columns[a->columns[i - 1]].kind, c->kind);
        if (c->first == 0)
            first = c->kind;
        if (p->n_sides && (c->sides >> p->exit_side & 1) && c->first > 0)
            sum += ek_problem_side_hop(p, c->kind, first);
    }
    return sum;
}

/* Columns are built by position, so the variables come in the order of the chain. */
static void read_solution(struct builder *b, struct ek_answer *out)
{
    out->n = 0;
    for (int v = 1; v <= glp_get_num_cols(b->lp); v++)
        if (b->column_of[v] != UINT32_MAX && glp_mip_col_val(b->lp, v) > 0.5 &&
            out->n < EK_PLAN_MAX_DEVICES)
            out->columns[out->n++] = b->column_of[v];
    out->sum = exact_sum(b->p, out);
}

static void judge(struct builder *b, const struct watch *w, int rc, struct ek_answer *out)
{
    int status = glp_mip_status(b->lp);
    bool plan = (status == GLP_OPT || status == GLP_FEAS) && !cutoff_stayed(b);
    bool stopped = rc == GLP_ETMLIM || rc == GLP_ESTOP;

    if (rc == GLP_ENOPFS || rc == GLP_ENODFS || (rc == 0 && !plan)) {
        out->kind = EK_ANSWER_INFEASIBLE;
        return;
    }
    if (plan)
        read_solution(b, out);
    out->kind = plan && (!stopped || w->any) ? EK_ANSWER_OPTIMAL : EK_ANSWER_UNKNOWN;
    out->bound = out->kind == EK_ANSWER_OPTIMAL ? out->sum : w->bound * b->scale;
    if (out->kind == EK_ANSWER_OPTIMAL && !within_cutoff(b, out->sum))
        out->kind = EK_ANSWER_INFEASIBLE;
}

/* The linear relaxation, which glp_intopt wants solved: its own presolver renumbers the counts. */
static int relax(struct builder *b, struct watch *w, int tm_lim)
{
    glp_smcp o;
    int rc;

    glp_init_smcp(&o);
    o.msg_lev = GLP_MSG_OFF;
    o.presolve = GLP_ON;
    o.tm_lim = tm_lim;
    rc = glp_simplex(b->lp, &o);
    if (rc == 0 && glp_get_status(b->lp) != GLP_OPT)
        return GLP_ENOPFS;
    if (rc == 0)
        w->bound = glp_get_obj_val(b->lp);
    return rc;
}

static enum ek_status run(struct builder *b, struct ek_effort *e, struct ek_answer *out)
{
    struct watch w = {.b = b, .e = e, .any = isinf(b->l->enough) && b->l->enough > 0};
    glp_iocp o;
    int rc;

    EK_TRY(build(b));
    if (glp_get_num_cols(b->lp) == 0) {
        out->kind = EK_ANSWER_INFEASIBLE;
        return EK_OK;
    }
    glp_init_iocp(&o);
    o.msg_lev = GLP_MSG_OFF;
    o.cb_func = on_node;
    o.cb_info = &w;
    o.tm_lim = ek_glpk_time_left(e->deadline_ns);
    rc = relax(b, &w, o.tm_lim);
    if (rc == 0)
        rc = glp_intopt(b->lp, &o);
    if (rc == GLP_ETMLIM)
        e->expired = true;
    judge(b, &w, rc, out);
    return EK_OK;
}

static double objective_scale(const struct ek_problem *p)
{
    double most = 0;

    for (size_t i = 0; i < p->n_columns; i++)
        most = fmax(most, p->columns[i].sum);
    return most > 0 ? most / 1000 : 1;
}

struct work { /* nothing that a long jump could lose: the caller owns *b */
    struct builder *b;
    struct ek_effort *e;
    struct ek_answer *out;
};

static enum ek_status build_and_solve(void *data)
{
    struct work *w = data;

    w->b->lp = glp_create_prob();
    return run(w->b, w->e, w->out);
}

#define WHOLE_PROGRAM ((size_t)6000) /* columns up to which nothing is left out */
#define PRICE_ROUNDS  300
#define MAX_SPLITS    6

/* One round of shedding with the best prices for what is left. */
static enum ek_status shed_once(struct builder *b, struct ek_effort *e, double *least)
{
    struct ek_bound bound;
    enum ek_status st;

    EK_TRY(ek_bound_new(b->p, b->l, b->deny, &bound));
    ek_bound_improve(&bound, b->l->sum, PRICE_ROUNDS, e);
    st = ek_reduce(b->p, b->l, b->filled, b->deny, bound.price, b->drop, least);
    ek_bound_free(&bound);
    b->deny = b->drop;
    return st;
}

/* Large programs shed what cannot matter: see reduce.c. The less room the least sum leaves for the
 * longest prefill, the more goes, which raises the least sum. */
static enum ek_status shed_columns(struct builder *b, struct ek_effort *e)
{
    double least, longest;

    if (b->p->n_columns <= WHOLE_PROGRAM || isinf(b->l->sum) || e->whole_program)
        return EK_OK;
    b->drop = ek_calloc(b->p->n_columns, 1);
    if (b->drop == NULL)
        return EK_ENOMEM;
    e->priced = NULL; /* from nothing: slower, and better prices */
    for (;;) {
        EK_TRY(shed_once(b, e, &least));
        if (b->limits.fill == 0 || least > b->limits.sum)
            return EK_OK;
        longest = (b->filled * (1 + CUTOFF_ROOM) - least) / b->limits.fill;
        if (longest > b->limits.prefill * 0.98)
            return EK_OK;
        b->limits.prefill = longest;
    }
}

static bool still_large(const struct builder *b)
{
    size_t left = 0;

    for (size_t i = 0; b->drop && i < b->p->n_columns; i++)
        left += !b->drop[i];
    return left > WHOLE_PROGRAM;
}

static void builder_free(struct builder *b)
{
    free(b->drop);
    free(b->rows);
    free(b->cols);
    free(b->values);
    free(b->column_of);
    free(b->out_row);
    free(b->in_row);
    free(b->side_out);
    free(b->side_in);
    free(b->tally);
    free(b);
}

/* Plans whose longest prefill is at least low: their sum has the less room. *split: not solved,
 * still large, the longest prefill is at most that; 0: solved. */
static enum ek_status solve_part(const struct ek_problem *p, const struct ek_limits *l,
                                 const uint8_t *deny, double low, struct ek_effort *e,
                                 struct ek_answer *out, double *split)
{
    struct builder *b = ek_calloc(1, sizeof(*b));
    bool may_split = *split > 0;
    enum ek_status st;

    if (b == NULL)
        return EK_ENOMEM;
    b->p = p;
    b->limits = *l;
    b->limits.sum = l->sum - (low > 0 ? l->fill * low : 0);
    b->filled = l->sum;
    b->l = &b->limits;
    b->deny = deny;
    b->scale = objective_scale(p);
    *out = (struct ek_answer){.kind = EK_ANSWER_UNKNOWN, .sum = INFINITY};
    *split = 0;
    st = shed_columns(b, e);
    if (st == EK_OK && may_split && l->fill > 0 && !isinf(b->limits.prefill) && still_large(b))
        *split = b->limits.prefill;
    else if (st == EK_OK)
        st = ek_glpk_guarded(build_and_solve, &(struct work){b, e, out});
    builder_free(b);
    return st;
}

/* Halves the range of the longest prefill until the programs are small: the cheapest answer. */
static enum ek_status solve_range(const struct ek_problem *p, const struct ek_limits *l,
                                  const uint8_t *deny, double low, int splits, struct ek_effort *e,
                                  struct ek_answer *out)
{
    struct ek_limits lower = *l;
    struct ek_answer other;
    double split = splits;

    EK_TRY(solve_part(p, l, deny, low, e, out, &split));
    if (split == 0)
        return EK_OK;
    lower.prefill = low + (split - low) / 2;
    EK_TRY(solve_range(p, l, deny, lower.prefill, splits - 1, e, out));
    EK_TRY(solve_range(p, &lower, deny, low, splits - 1, e, &other));
    if (out->kind == EK_ANSWER_INFEASIBLE ||
        (other.kind == EK_ANSWER_OPTIMAL && other.sum < out->sum)) {
        struct ek_answer first = *out;
        *out = other;
        other = first;
    }
    if (other.kind == EK_ANSWER_UNKNOWN && out->kind == EK_ANSWER_OPTIMAL) {
        out->kind = EK_ANSWER_UNKNOWN;
        out->bound = fmin(out->sum, other.bound);
    }
    return EK_OK;
}

enum ek_status ek_ilp_solve(const struct ek_problem *p, const struct ek_limits *l,
                            const uint8_t *deny, struct ek_answer *out, void *effort)
{
    struct ek_effort *e = effort;
    struct ek_limits limits = *l;
    struct ek_prefill_range range;
    uint64_t t0 = ek_now_ns();
    enum ek_status st = ek_ilp_memory(p, l, deny, e, &range);

    *out = (struct ek_answer){.kind = EK_ANSWER_INFEASIBLE, .sum = INFINITY};
    limits.prefill = range.high;
    if (st == EK_OK && !range.none)
        st = solve_range(p, &limits, deny, range.low, MAX_SPLITS, e, out);
    e->solves++;
    e->seconds += (double)(ek_now_ns() - t0) * 1e-9;
    return st;
}
