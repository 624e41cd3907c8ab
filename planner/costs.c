/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Costs: life, look-ups and the checks that hold whatever they were made from.
 */
#include "planner/planner.h"

#include <stdlib.h>
#include <string.h>

void ek_costs_free(struct ek_costs *c)
{
    if (c == NULL)
        return;
    for (size_t i = 0; i < c->n_classes; i++)
        free(c->classes[i].devices);
    for (size_t i = 0; i < c->n_times; i++) {
        free(c->times[i].prefill.rows);
        free(c->times[i].decode.rows);
    }
    for (size_t i = 0; i < c->n_memory; i++)
        free(c->memory[i].points);
    free(c->classes);
    free(c->modules);
    free(c->signatures);
    free(c->times);
    free(c->memory);
    free(c->stages);
    free(c->links);
    free(c);
}

enum ek_status ek_costs_signature(struct ek_costs *c, const char *name, uint32_t *out)
{
    size_t cap = c->n_signatures;

    if (strlen(name) >= EK_PLAN_NAME || *name == '\0')
        return ek_error(EK_EFORMAT, "%s: signature \"%.80s\" must have 1 to %d characters", c->file,
                        name, EK_PLAN_NAME - 1);
    for (size_t i = 0; i < c->n_signatures; i++)
        if (strcmp(c->signatures[i], name) == 0) {
            *out = (uint32_t)i;
            return EK_OK;
        }
    EK_TRY(ek_grow((void **)&c->signatures, &cap, c->n_signatures + 1, sizeof(*c->signatures),
                   EK_PLAN_MAX_MODULES + EK_N_STAGE_SIGS));
    strcpy(c->signatures[c->n_signatures], name);
    *out = (uint32_t)c->n_signatures++;
    return EK_OK;
}

enum ek_status ek_costs_stage_signatures(struct ek_costs *c)
{
    static const char *const names[EK_N_STAGE_SIGS] = {EK_STORE_STAGE, EK_STORE_INCOMING,
                                                       EK_STORE_OUTGOING, EK_STORE_ENDING};
    uint32_t sig;

    for (size_t i = 0; i < EK_N_STAGE_SIGS; i++)
        EK_TRY(ek_costs_signature(c, names[i], &sig));
    return EK_OK;
}

const struct ek_cost_times *ek_costs_times(const struct ek_costs *c, uint32_t cls, uint32_t sig,
                                           uint32_t tp)
{
    for (size_t i = 0; i < c->n_times; i++)
        if (c->times[i].cls == cls && c->times[i].sig == sig && c->times[i].tp == tp)
            return &c->times[i];
    return NULL;
}

uint32_t ek_costs_devices(const struct ek_costs *c)
{
    uint32_t n = 0;

    for (size_t i = 0; i < c->n_classes; i++)
        n += c->classes[i].count;
    return n;
}

const struct ek_cost_link *ek_costs_link(const struct ek_costs *c, uint32_t from, uint32_t to)
{
    for (size_t i = 0; i < c->n_links; i++)
        if (c->links[i].from == from && c->links[i].to == to)
            return &c->links[i];
    return NULL;
}

/* ---- Checks -------------------------------------------------------------------------------------
 */
static enum ek_status check_names(const struct ek_costs *c)
{
    for (size_t i = 0; i < c->n_modules; i++)
        for (size_t j = 0; j < i; j++)
            if (strcmp(c->modules[i].name, c->modules[j].name) == 0)
                return ek_error(EK_EFORMAT, "%s: modules: \"%s\" is there twice", c->file,
                                c->modules[i].name);
    for (size_t i = 0; i < c->n_classes; i++)
        for (size_t j = 0; j < i; j++)
            if (strcmp(c->classes[i].name, c->classes[j].name) == 0)
                return ek_error(EK_EFORMAT, "%s: classes: \"%s\" is there twice", c->file,
                                c->classes[i].name);
    return EK_OK;
}

static enum ek_status check_devices(const struct ek_costs *c)
{
    size_t n = 0;

    for (size_t i = 0; i < c->n_classes; i++) {
        n += c->classes[i].count;
        for (size_t a = 0; a < c->classes[i].count; a++)
            for (size_t j = 0; j <= i; j++)
                for (size_t b = 0; b < (j < i ? c->classes[j].count : a); b++)
                    if (strcmp(c->classes[i].devices[a].name, c->classes[j].devices[b].name) == 0)
                        return ek_error(EK_EFORMAT, "%s: device \"%s\" is there twice", c->file,
                                        c->classes[i].devices[a].name);
    }
    if (n > EK_PLAN_MAX_DEVICES)
        return ek_error(EK_EUNSUPPORTED, "%s: %zu devices; one plan holds at most %d", c->file, n,
                        EK_PLAN_MAX_DEVICES);
    return EK_OK;
}

static enum ek_status check_chain(struct ek_costs *c)
{
    bool chain = false, text = false, tower = false;

    c->n_sides = 0;
    for (size_t i = 0; i < c->n_modules; i++) {
        const struct ek_cost_module *m = &c->modules[i];
        if (!m->side && ek_cost_module_sees(m) && (text || tower))
            return ek_error(EK_EFORMAT, "%s: modules: \"%s\", a part of a cut tower, stands %s",
                            c->file, m->name,
                            text ? "after the embedding" : "beside a tower that is a side module");
        text = text || !ek_cost_module_sees(m);
        tower = tower || (m->side && m->kind != EK_MODULE_VECTOR);
        if (c->modules[i].side && chain)
            return ek_error(EK_EFORMAT, "%s: modules: side module \"%s\" stands after the chain",
                            c->file, c->modules[i].name);
        chain = chain || !c->modules[i].side;
        c->n_sides += c->modules[i].side;
        if (c->modules[i].tied_to >= 0 && c->modules[c->modules[i].tied_to].side)
            return ek_error(EK_EFORMAT, "%s: modules: \"%s\" is tied to a side module", c->file,
                            c->modules[i].name);
    }
    return chain ? EK_OK : ek_error(EK_EFORMAT, "%s: modules: there is no chain module", c->file);
}

static enum ek_status check_times(const struct ek_costs *c)
{
    for (size_t m = 0; m < c->n_modules; m++) {
        bool found = false;
        for (size_t k = 0; k < c->n_classes && !found; k++)
            for (uint32_t tp = 1; tp <= EK_PLAN_MAX_TP && !found; tp *= 2)
                found = ek_costs_times(c, (uint32_t)k, c->modules[m].sig, tp) != NULL;
        if (!found && c->n_stages == 0)
            return ek_error(EK_EFORMAT, "%s: times: no class has times for module \"%s\"", c->file,
                            c->modules[m].name);
    }
    for (size_t i = 0; i < c->n_times; i++)
        for (size_t j = 0; j < i; j++)
            if (c->times[i].cls == c->times[j].cls && c->times[i].sig == c->times[j].sig &&
                c->times[i].tp == c->times[j].tp)
                return ek_error(EK_EFORMAT,
                                "%s: times[%zu]: class \"%s\", signature \"%s\" is "
                                "there twice",
                                c->file, i, c->classes[c->times[i].cls].name,
                                c->signatures[c->times[i].sig]);
    return EK_OK;
}

enum ek_status ek_costs_check(const struct ek_costs *c)
{
    EK_TRY(check_names(c));
    EK_TRY(check_devices(c));
    EK_TRY(check_chain((struct ek_costs *)c));
    return check_times(c);
}
