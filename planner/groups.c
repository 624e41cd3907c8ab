/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Devices of a problem: budgets, rules (pins, bans, colocation), and groups of devices that are
 * interchangeable under them, which removes every symmetry from the search.
 */
#include "planner/planner.h"
#include "planner/problem.h"

#include <stdlib.h>
#include <string.h>

static const struct ek_cost_class *class_of(const struct ek_problem *p, const struct ek_pdevice *d)
{
    return &p->costs->classes[d->cls];
}

static const char *device_name(const struct ek_problem *p, uint32_t d)
{
    return class_of(p, &p->devices[d])->devices[p->devices[d].member].name;
}

/* name is the device's, its class's, or an ordinal as in Hugging Face's maps. */
static bool is_named(const struct ek_problem *p, uint32_t d, const char *name)
{
    char ordinal[12];

    snprintf(ordinal, sizeof(ordinal), "%u", d);
    return strcmp(device_name(p, d), name) == 0 ||
           strcmp(class_of(p, &p->devices[d])->name, name) == 0 || strcmp(ordinal, name) == 0;
}

/* ---- Budgets ------------------------------------------------------------------------------------
 */
static void set_budget(struct ek_problem *p, uint32_t d, const struct ek_budget *b)
{
    uint64_t total = class_of(p, &p->devices[d])->memory;
    uint64_t bytes = b->fraction > 0 ? (uint64_t)(b->fraction * (double)total) : b->bytes;

    p->devices[d].memory = bytes < total ? bytes : total;
    p->devices[d].budgeted = true;
}

static enum ek_status set_budgets(struct ek_problem *p, const struct ek_request *r)
{
    size_t unnamed = 0, next = 0;
    bool found;

    for (size_t i = 0; i < r->n_budgets; i++)
        unnamed += r->budgets[i].name[0] == '\0';
    if (unnamed > 1 && unnamed != p->n_devices)
        return ek_error(
            EK_EUSAGE,
            "--max-memory has %zu sizes for %u devices; give one for all, one for each, "
            "or NAME=SIZE",
            unnamed, p->n_devices);
    for (size_t i = 0; i < r->n_budgets; i++) {
        const struct ek_budget *b = &r->budgets[i];
        found = b->name[0] == '\0';
        for (uint32_t d = 0; d < p->n_devices; d++)
            if (b->name[0] ? is_named(p, d, b->name) : unnamed == 1 || d == next) {
                set_budget(p, d, b);
                found = true;
            }
        next += b->name[0] == '\0';
        if (!found)
            return ek_error(EK_EUSAGE, "--max-memory: there is no device \"%s\"", b->name);
    }
    return EK_OK;
}

static void set_margins(struct ek_problem *p, const struct ek_request *r)
{
    for (uint32_t d = 0; d < p->n_devices; d++) {
        uint64_t part = (uint64_t)(r->margin_fraction * (double)p->devices[d].memory);
        p->devices[d].margin = part > r->margin ? part : r->margin;
    }
}

/* ---- Rules --------------------------------------------------------------------------------------
 */
/* A module's name; a prefix of it up to a dot; or a prefix ending in '*'. */
static bool matches(const char *pattern, const char *name)
{
    size_t n = strlen(pattern);

    if (n && pattern[n - 1] == '*')
        return strncmp(pattern, name, n - 1) == 0;
    return strncmp(pattern, name, n) == 0 && (name[n] == '\0' || name[n] == '.');
}

static enum ek_status apply_place(struct ek_problem *p, const struct ek_rule *rule, uint32_t m)
{
    bool found = false;

    for (uint32_t d = 0; d < p->n_devices; d++) {
        bool named = is_named(p, d, rule->other);
        found = found || named;
        if (named == (rule->kind == EK_RULE_BAN))
            p->devices[d].banned[m] = 1;
    }
    return found ? EK_OK
                 : ek_error(EK_EUSAGE, "rule \"%s=%s\": there is no device \"%s\"", rule->module,
                            rule->other, rule->other);
}

static enum ek_status add_pair(struct ek_problem *p, uint32_t a, uint32_t b)
{
    size_t cap = p->n_together;

    EK_TRY(ek_grow((void **)&p->together, &cap, p->n_together + 1, sizeof(*p->together),
                   (size_t)1 << 20));
    p->together[p->n_together++] = (struct ek_pair){a, b};
    return EK_OK;
}

static enum ek_status apply_together(struct ek_problem *p, const struct ek_rule *rule, uint32_t m,
                                     bool *used)
{
    for (uint32_t o = 0; o < p->costs->n_modules; o++) {
        if (!matches(rule->other, p->costs->modules[o].name) || o == m)
            continue;
        *used = true;
        EK_TRY(add_pair(p, m, o));
    }
    return EK_OK;
}

static enum ek_status apply_rule(struct ek_problem *p, const struct ek_rule *rule)
{
    bool used = false;

    for (uint32_t m = 0; m < p->costs->n_modules; m++) {
        if (!matches(rule->module, p->costs->modules[m].name))
            continue;
        if (rule->kind == EK_RULE_TOGETHER) {
            EK_TRY(apply_together(p, rule, m, &used));
            continue;
        }
        used = true;
        EK_TRY(apply_place(p, rule, m));
    }
    return used ? EK_OK
                : ek_error(EK_EUSAGE, "rule \"%s=%s\": no module has that name", rule->module,
                           rule->other);
}

/* Nothing on CPUs where they are refused; of a device_map they are one, and tied modules share a
 * device. */
static enum ek_status apply_engine(struct ek_problem *p, const struct ek_request *r)
{
    uint32_t n = p->costs->n_modules, cpus = 0;

    for (uint32_t d = 0; d < p->n_devices; d++) {
        struct ek_pdevice *v = &p->devices[d];
        if (strcmp(class_of(p, v)->backend, "cpu") != 0)
            continue;
        if (r->no_cpu)
            memset(v->banned, 1, n);
        if (memchr(v->banned, 0, n) && ++cpus > 1 && r->as_map)
            return ek_error(EK_NO, "a device_map knows one CPU: leave out %s (--ban '*=%s')",
                            device_name(p, d), device_name(p, d));
    }
    for (uint32_t m = 0; r->as_map && m < n; m++)
        if (p->costs->modules[m].tied_to >= 0)
            EK_TRY(add_pair(p, m, (uint32_t)p->costs->modules[m].tied_to));
    return EK_OK;
}

static bool pair_divided(const struct ek_problem *p, const struct ek_pair *t, int32_t first,
                         int32_t last, uint32_t sides)
{
    bool in[2] = {false, false};
    uint32_t m[2] = {t->a, t->b};

    for (int k = 0; k < 2; k++) {
        int32_t item = (int32_t)m[k] - (int32_t)p->first_item;
        in[k] = item >= 0 && item >= first && item <= last;
        for (uint32_t s = 0; s < p->n_sides; s++)
            for (uint32_t j = 0; (sides >> s & 1) && j < p->sides[s].n; j++)
                in[k] = in[k] || p->sides[s].modules[j] == m[k];
    }
    return in[0] != in[1];
}

static bool has_layer(const struct ek_problem *p, int32_t first, int32_t last)
{
    for (int32_t i = first; i <= last; i++)
        if (p->costs->modules[p->first_item + (uint32_t)i].kind == EK_MODULE_LAYER)
            return true;
    return false;
}

bool ek_rules_allow(const struct ek_problem *p, uint32_t kind, int32_t first, int32_t last,
                    uint32_t sides)
{
    const uint8_t *banned = p->devices[p->groups[p->kinds[kind].group].members[0]].banned;

    if (p->whole_layers && !has_layer(p, first, last))
        return false;
    for (int32_t i = first; i <= last; i++)
        if (banned[p->first_item + (uint32_t)i])
            return false;
    for (uint32_t s = 0; s < p->n_sides; s++)
        for (uint32_t j = 0; (sides >> s & 1) && j < p->sides[s].n; j++)
            if (banned[p->sides[s].modules[j]])
                return false;
    for (size_t i = 0; i < p->n_together; i++)
        if (pair_divided(p, &p->together[i], first, last, sides))
            return false;
    return true;
}

/* Unless they are placed one by one, side modules go together where a pin or ban sends one of them;
 * pins that no one device can keep part them. */
static void share_bans(struct ek_problem *p)
{
    bool somewhere = false;

    for (uint32_t pass = 0; pass < 2; pass++)
        for (uint32_t d = 0; d < p->n_devices; d++) {
            uint8_t any = 0;
            for (uint32_t m = 0; m < p->first_item; m++)
                any |= p->devices[d].banned[m];
            somewhere = somewhere || !any;
            for (uint32_t m = 0; pass == 1 && somewhere && m < p->first_item; m++)
                p->devices[d].banned[m] |= any;
        }
}

/* ---- Groups and shared memories -----------------------------------------------------------------
 */
static bool alike(const struct ek_problem *p, uint32_t a, uint32_t b)
{
    const struct ek_pdevice *x = &p->devices[a], *y = &p->devices[b];

    return x->cls == y->cls && x->memory == y->memory && x->margin == y->margin &&
           x->budgeted == y->budgeted && memcmp(x->banned, y->banned, p->costs->n_modules) == 0;
}

static void make_groups(struct ek_problem *p, const struct ek_request *r)
{
    for (uint32_t d = 0; d < p->n_devices; d++) {
        uint32_t g = 0;
        while (g < p->n_groups &&
               (r->fixed_order || r->distinct_devices || !alike(p, p->groups[g].members[0], d)))
            g++;
        if (g == p->n_groups) {
            struct ek_group *n = &p->groups[p->n_groups++];
            n->cls = p->devices[d].cls;
            n->pool = -1;
            n->cap = p->devices[d].memory > p->devices[d].margin
                         ? p->devices[d].memory - p->devices[d].margin
                         : 0;
        }
        p->groups[g].members[p->groups[g].count++] = d;
        p->devices[d].group = g;
    }
}

static bool pooled(const struct ek_problem *p, uint32_t d)
{
    const struct ek_cost_class *k = class_of(p, &p->devices[d]);

    return k->memory_group[0] && !k->budgeted && !p->devices[d].budgeted;
}

/* Devices without budgets of their own that share one memory share the smallest figure given. */
static enum ek_status make_pools(struct ek_problem *p)
{
    for (uint32_t d = 0; d < p->n_devices; d++) {
        struct ek_group *g = &p->groups[p->devices[d].group];
        const char *name = class_of(p, &p->devices[d])->memory_group;
        uint32_t n = 0;
        uint64_t cap = UINT64_MAX;
        if (!pooled(p, d) || g->pool >= 0)
            continue;
        for (uint32_t e = 0; e < p->n_devices; e++)
            if (pooled(p, e) && strcmp(class_of(p, &p->devices[e])->memory_group, name) == 0) {
                n++;
                cap = p->groups[p->devices[e].group].cap < cap ? p->groups[p->devices[e].group].cap
                                                               : cap;
            }
        if (n < 2)
            continue;
        if (p->n_pools == EK_PLAN_MAX_POOLS)
            return ek_error(EK_EUNSUPPORTED, "more than %d memories are shared by devices",
                            EK_PLAN_MAX_POOLS);
        for (uint32_t e = 0; e < p->n_devices; e++)
            if (pooled(p, e) && strcmp(class_of(p, &p->devices[e])->memory_group, name) == 0)
                p->groups[p->devices[e].group].pool = (int32_t)p->n_pools;
        p->pools[p->n_pools++] = cap;
    }
    return EK_OK;
}

enum ek_status ek_problem_devices(struct ek_problem *p, const struct ek_request *r)
{
    for (uint32_t k = 0; k < p->costs->n_classes; k++)
        for (uint32_t i = 0; i < p->costs->classes[k].count; i++) {
            struct ek_pdevice *d = &p->devices[p->n_devices++];
            d->cls = k;
            d->member = i;
            d->memory = p->costs->classes[k].memory;
            d->banned = ek_calloc(p->costs->n_modules, 1);
            if (d->banned == NULL)
                return EK_ENOMEM;
        }
    EK_TRY(set_budgets(p, r));
    for (uint32_t d = 0; d < p->n_devices; d++)
        p->devices[d].memory += r->more_memory;
    set_margins(p, r);
    for (size_t i = 0; i < r->n_rules; i++)
        EK_TRY(apply_rule(p, &r->rules[i]));
    EK_TRY(apply_engine(p, r));
    if (!r->split_sides)
        share_bans(p);
    make_groups(p, r);
    return make_pools(p);
}
