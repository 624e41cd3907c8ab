/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Clusters of many nodes: a replica planned on every class and size of node, then how many of each,
 * by the integer program.
 */
#include "planner/cluster.h"
#include "planner/glpk_guard.h"

#include <glpk.h>
#include <libgen.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE ((size_t)16 << 20)

void ek_cluster_free(struct ek_cluster *c)
{
    if (c == NULL)
        return;
    for (size_t i = 0; i < c->n_classes; i++)
        ek_costs_free(c->classes[i].costs);
    free(c);
}

/* ---- The file -----------------------------------------------------------------------------------
 */
static enum ek_status read_costs(const char *file, const char *name, struct ek_costs **out)
{
    char *copy = ek_strdup(file), *path;
    enum ek_status st;

    if (copy == NULL)
        return EK_ENOMEM;
    if (*name == '\0' || name[0] == '/' || strstr(name, "..")) {
        free(copy);
        return ek_error(EK_EFORMAT, "%s: costs \"%.80s\" must be a file beside it", file, name);
    }
    path = ek_path_join(dirname(copy), name);
    st = path ? ek_costs_read(path, out) : EK_ENOMEM;
    free(path);
    free(copy);
    return st;
}

static enum ek_status read_class(struct ek_cluster *c, const char *file, const json_t *o)
{
    struct ek_json_at at = {file, "nodes[]."};
    struct ek_node_class *k = &c->classes[c->n_classes];
    const char *name, *costs;
    uint64_t count;

    EK_TRY(ek_json_string(o, at, "name", &name));
    if (*name == '\0' || strlen(name) >= sizeof(k->name))
        return ek_error(EK_EFORMAT, "%s: a node's name must have 1 to %d characters", file,
                        EK_PLAN_NAME - 1);
    strcpy(k->name, name);
    for (size_t i = 0; i < c->n_classes; i++)
        if (strcmp(c->classes[i].name, name) == 0)
            return ek_error(EK_EFORMAT, "%s: nodes: \"%s\" is there twice", file, name);
    EK_TRY(ek_json_u64(o, at, "count", 1, 1000000, &count));
    k->count = (uint32_t)count;
    k->price = 1;
    EK_TRY(ek_json_opt_real(o, at, "price", 1e-6, 1e9, &k->price));
    EK_TRY(ek_json_string(o, at, "costs", &costs));
    EK_TRY(read_costs(file, costs, &k->costs));
    c->n_classes++;
    return EK_OK;
}

static enum ek_status read_file(struct ek_cluster *c, const char *path, const json_t *root)
{
    struct ek_json_at at = {path, ""};
    const json_t *nodes;
    const char *format;
    uint64_t version;

    if (!json_is_object(root))
        return ek_error(EK_EFORMAT, "%s: not a JSON object", path);
    EK_TRY(ek_json_string(root, at, "format", &format));
    if (strcmp(format, "evenkeel-cluster") != 0)
        return ek_error(EK_EFORMAT, "%s: format must be \"evenkeel-cluster\", got \"%.40s\"", path,
                        format);
    EK_TRY(ek_json_u64(root, at, "version", 1, 1, &version));
    EK_TRY(ek_json_array(root, at, "nodes", &nodes));
    if (json_array_size(nodes) == 0 || json_array_size(nodes) > EK_CLUSTER_CLASSES)
        return ek_error(EK_EFORMAT, "%s: nodes must have 1 to %d entries", path,
                        EK_CLUSTER_CLASSES);
    for (size_t i = 0; i < json_array_size(nodes); i++) {
        EK_TRY(read_class(c, path, json_array_get(nodes, i)));
        if (strcmp(c->classes[i].costs->model_hash, c->classes[0].costs->model_hash) != 0)
            return ek_error(EK_EFORMAT, "%s: nodes[%zu].costs is of another model than nodes[0]'s",
                            path, i);
    }
    return EK_OK;
}

enum ek_status ek_cluster_read(const char *path, struct ek_cluster **out)
{
    struct ek_cluster *c;
    json_t *root;
    enum ek_status st;

    EK_TRY(ek_json_read(path, MAX_FILE, &root));
    c = ek_calloc(1, sizeof(*c));
    st = c ? read_file(c, path, root) : EK_ENOMEM;
    json_decref(root);
    if (st != EK_OK) {
        ek_cluster_free(c);
        return st;
    }
    *out = c;
    return EK_OK;
}

/* ---- Replicas of a class ------------------------------------------------------------------------
 */
/* A replica on some devices of a node of like devices, or on all of any node. EK_NO: does not fit.
 */
static enum ek_status price_replica(struct ek_cluster *c, uint32_t cls, uint32_t devices,
                                    const struct ek_request *r)
{
    struct ek_costs *costs = c->classes[cls].costs;
    uint32_t all = costs->classes[0].count;
    struct ek_request q = *r;
    struct ek_solution *s;
    enum ek_status st;

    q.workload = costs->workload;
    if (costs->n_classes == 1)
        costs->classes[0].count = devices;
    st = ek_solve(costs, &q, &s);
    costs->classes[0].count = all;
    EK_TRY(st);
    c->proven = c->proven && s->proven;
    c->replicas[c->n_replicas++] = (struct ek_replica){
        .cls = cls,
        .devices = devices,
        /* sequences a batch's seconds, as tokens of their answers */
        .tokens_per_s =
            (double)s->batch * fmax(1, s->problem->workload.generate) / s->score.throughput};
    ek_solution_free(s);
    return EK_OK;
}

static enum ek_status price_class(struct ek_cluster *c, uint32_t cls, const struct ek_request *r)
{
    const struct ek_costs *costs = c->classes[cls].costs;
    uint32_t all = ek_costs_devices(costs);
    enum ek_status st;

    for (uint32_t n = 1; costs->n_classes == 1 && n < all; n *= 2) {
        st = price_replica(c, cls, n, r);
        if (st != EK_OK && st != EK_NO)
            return st;
    }
    st = price_replica(c, cls, all, r);
    return st == EK_NO ? EK_OK : st;
}

/* ---- How many of which --------------------------------------------------------------------------
 * r replicas of each kind, n nodes of each class: tokens >= load, least price, and every node's
 * replicas fit it. Sizes are powers of two, and all of a node: placed largest first, they fit when
 * for each size s those of at least s fit the multiples of s in n nodes. */
struct choice {
    struct ek_cluster *c;
    double load; /* 0: the most that all nodes give */
    glp_prob *lp;
};

static void set_column(glp_prob *lp, int j, double most, double cost)
{
    glp_set_col_kind(lp, j, GLP_IV);
    glp_set_col_bnds(lp, j, GLP_DB, 0, most);
    glp_set_obj_coef(lp, j, cost);
}

static void add_room(const struct choice *w, uint32_t cls, uint32_t size)
{
    const struct ek_cluster *c = w->c;
    uint32_t room = ek_costs_devices(c->classes[cls].costs) / size * size;
    int n = 0, columns[EK_CLUSTER_OPTIONS + 2], row = glp_add_rows(w->lp, 1);
    double values[EK_CLUSTER_OPTIONS + 2];

    columns[++n] = (int)cls + 1;
    values[n] = -(double)room;
    for (size_t j = 0; j < c->n_replicas; j++)
        if (c->replicas[j].cls == cls && c->replicas[j].devices >= size) {
            columns[++n] = (int)(c->n_classes + j) + 1;
            values[n] = fmin(c->replicas[j].devices, room);
        }
    glp_set_row_bnds(w->lp, row, GLP_UP, 0, 0);
    glp_set_mat_row(w->lp, row, n, columns, values);
}

static void add_load(const struct choice *w)
{
    const struct ek_cluster *c = w->c;
    int n = 0, columns[EK_CLUSTER_CLASSES * EK_CLUSTER_OPTIONS + 1], row = glp_add_rows(w->lp, 1);
    double values[EK_CLUSTER_CLASSES * EK_CLUSTER_OPTIONS + 1];

    for (size_t j = 0; j < c->n_replicas; j++) {
        columns[++n] = (int)(c->n_classes + j) + 1;
        values[n] = c->replicas[j].tokens_per_s;
    }
    glp_set_row_bnds(w->lp, row, GLP_LO, w->load, 0);
    glp_set_mat_row(w->lp, row, n, columns, values);
}

static void fill_program(const struct choice *w)
{
    const struct ek_cluster *c = w->c;
    int n = (int)c->n_classes;

    glp_set_obj_dir(w->lp, w->load > 0 ? GLP_MIN : GLP_MAX);
    glp_add_cols(w->lp, n + (int)c->n_replicas);
    for (int i = 0; i < n; i++)
        set_column(w->lp, i + 1, c->classes[i].count, w->load > 0 ? c->classes[i].price : 0);
    for (size_t j = 0; j < c->n_replicas; j++) {
        const struct ek_replica *r = &c->replicas[j];
        const struct ek_node_class *k = &c->classes[r->cls];
        double most = (double)k->count * (ek_costs_devices(k->costs) / r->devices);
        set_column(w->lp, n + 1 + (int)j, most, w->load > 0 ? 0 : r->tokens_per_s);
    }
    for (int i = 0; i < n; i++) {
        uint32_t all = ek_costs_devices(c->classes[i].costs);
        for (uint32_t size = 1; size <= all; size *= 2)
            if (size == 1 || all % size != 0) /* else the row of 1 says it */
                add_room(w, (uint32_t)i, size);
    }
    if (w->load > 0)
        add_load(w);
}

static enum ek_status solve(void *data)
{
    struct choice *w = data;
    struct ek_cluster *c = w->c;
    int rc, n = (int)c->n_classes;
    glp_iocp o;

    w->lp = glp_create_prob();
    fill_program(w);
    glp_init_iocp(&o);
    o.presolve = GLP_ON;
    o.msg_lev = GLP_MSG_OFF;
    o.tm_lim = 20000;
    o.mip_gap = 1e-6;
    rc = glp_intopt(w->lp, &o);
    if (rc == GLP_ENOPFS || (rc == 0 && glp_mip_status(w->lp) == GLP_NOFEAS))
        return ek_error(EK_NO, "all nodes together give less than %.1f tokens/s", w->load);
    if (glp_mip_status(w->lp) != GLP_OPT && glp_mip_status(w->lp) != GLP_FEAS)
        return ek_error(EK_EUNPROVEN, "stopped before any choice of replicas was found");
    c->proven = c->proven && glp_mip_status(w->lp) == GLP_OPT;
    for (int i = 0; i < n; i++) {
        c->nodes[i] = (uint32_t)lround(glp_mip_col_val(w->lp, i + 1));
        c->price += c->nodes[i] * c->classes[i].price;
    }
    for (int j = 0; j < (int)c->n_replicas; j++) {
        c->replicas[j].chosen = (uint32_t)lround(glp_mip_col_val(w->lp, n + 1 + j));
        c->tokens_per_s += c->replicas[j].chosen * c->replicas[j].tokens_per_s;
    }
    return EK_OK;
}

enum ek_status ek_cluster_plan(struct ek_cluster *c, const struct ek_request *r, double load)
{
    c->proven = true;
    c->n_replicas = 0;
    c->price = c->tokens_per_s = 0;
    for (uint32_t i = 0; i < c->n_classes; i++)
        EK_TRY(price_class(c, i, r));
    if (c->n_replicas == 0)
        return ek_error(EK_NO, "the model fits on no class of node");
    return ek_glpk_guarded(solve, &(struct choice){.c = c, .load = load});
}
