/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "tests/planner/instances.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t below(uint64_t *seed, uint64_t n)
{
    return ek_random_u64(seed) % n;
}

static double some(uint64_t *seed, double low, double high)
{
    return low + (high - low) * ek_random_unit(seed);
}

static void add_times(json_t *times, const char *cls, const char *sig, int tp, double prefill,
                      double decode)
{
    json_array_append_new(times, json_pack("{s:s s:s s:i s:f s:f}", "class", cls, "signature", sig,
                                           "tp", tp, "prefill", prefill, "decode", decode));
}

static void add_link(json_t *links, const char *a, const char *b, double alpha, double beta)
{
    json_array_append_new(links, json_pack("{s:s s:s s:f s:f}", "from", a, "to", b, "alpha_s",
                                           alpha, "beta_bytes_s", beta));
}

/* ---- Tiny ---------------------------------------------------------------------------------------
 */
/* The first `parts` of the chain's n modules are a cut tower; beside it only vectors are sides. */
static const char *tiny_kind(int i, int n, int parts)
{
    static const char *const kinds[] = {"patches", "block", "merger"};

    if (i < parts)
        return kinds[i];
    return i == parts ? "embed" : i == n - 1 ? "head" : "layer";
}

static void tiny_modules(uint64_t *s, json_t *modules, int n, int sides, int parts)
{
    static const char *const kinds[] = {"vision", "projector", "vector"};
    char name[32], embed[32];

    for (int i = 0; i < sides; i++) {
        snprintf(name, sizeof(name), "side%d", i);
        json_array_append_new(modules, json_pack("{s:s s:s s:I}", "name", name, "kind",
                                                 parts ? "vector" : kinds[i], "weights",
                                                 (json_int_t)below(s, 60)));
    }
    snprintf(embed, sizeof(embed), "m.%d", parts);
    for (int i = 0; i < n; i++) {
        json_t *m;
        snprintf(name, sizeof(name), "m.%d", i);
        m = json_pack("{s:s s:s s:I s:I s:I}", "name", name, "kind", tiny_kind(i, n, parts),
                      "weights", (json_int_t)(20 + below(s, 80)), "kv",
                      (json_int_t)(i < parts ? 0 : below(s, 3)), "boundary",
                      (json_int_t)below(s, 4) * 50);
        if (i > parts && i == n - 1 && below(s, 3) == 0)
            json_object_set_new(m, "tied_to", json_string(embed));
        json_array_append_new(modules, m);
    }
}

/* Bytes of a message between parts of a cut tower. */
static json_int_t tiny_message(uint64_t *s, const json_t *module)
{
    const char *kind = json_string_value(json_object_get(module, "kind"));

    return strcmp(kind, "patches") == 0 || strcmp(kind, "block") == 0 || strcmp(kind, "merger") == 0
               ? (json_int_t)below(s, 20)
               : 0;
}

static void tiny_class(uint64_t *s, json_t *root, int k, const json_t *modules, bool tp)
{
    static const char *const own[] = {"stage", "incoming", "outgoing"};
    char name[16];
    const char *group = (const char *[]){"host", "card", "", "", ""}[below(s, 5)];
    json_t *times = json_object_get(root, "times"), *memory = json_object_get(root, "memory");
    json_t *m;
    size_t i;

    snprintf(name, sizeof(name), "c%d", k);
    json_array_append_new(
        json_object_get(root, "classes"),
        json_pack("{s:s s:I s:I s:I s:I s:s s:f s:f}", "name", name, "count",
                  (json_int_t)(1 + below(s, 2)), "memory", (json_int_t)(120 + below(s, 300)),
                  "overhead", (json_int_t)below(s, 20), "tp_reserve", (json_int_t)below(s, 10),
                  "memory_group", group, "slow_prefill", 1 + (double)below(s, 3) / 1.5,
                  "slow_decode", 1 + (double)below(s, 2) / 8));
    for (int g = 1; g <= (tp ? 2 : 1); g++) {
        if (below(s, 2))
            add_times(times, name, "stage", g, some(s, 0, 0.3), some(s, 0, 0.02));
        for (size_t o = 0; o < EK_ARRAY_LEN(own); o++)
            if (below(s, 3) == 0)
                json_array_append_new(memory,
                                      json_pack("{s:s s:s s:i s:[[i i i i i I]]}", "class", name,
                                                "signature", own[o], "tp", g, "points", 1000000,
                                                1000000, 1000000, 0, 0, (json_int_t)below(s, 20)));
        if (below(s, 3) == 0)
            json_array_append_new(
                memory, json_pack("{s:s s:s s:i s:[[i i i I I i]]}", "class", name, "signature",
                                  "ending", "tp", g, "points", 1000000, 1000000, 1000000,
                                  (json_int_t)below(s, 30), (json_int_t)below(s, 30), 0));
        json_array_foreach((json_t *)modules, i, m)
        {
            const char *sig = json_string_value(json_object_get(m, "name"));
            if (below(s, 40) == 0) /* this class cannot run it */
                continue;
            add_times(times, name, sig, g, (double)below(s, 6) / 4 / g, (double)below(s, 6) / 100);
            if (below(s, 3) == 0)
                json_array_append_new(memory,
                                      json_pack("{s:s s:s s:i s:[[I I I I I I]]}", "class", name,
                                                "signature", sig, "tp", g, "points",
                                                (json_int_t)1000000, (json_int_t)1000000,
                                                (json_int_t)1000000, (json_int_t)below(s, 30),
                                                (json_int_t)below(s, 30), tiny_message(s, m)));
        }
    }
}

static void tiny_links(uint64_t *s, json_t *root, int classes)
{
    bool alike = below(s, 3) == 0;
    json_t *links = json_array();

    for (int a = 0; a < classes; a++)
        for (int b = 0; b < classes; b++) {
            char x[16], y[16];
            snprintf(x, sizeof(x), "c%d", a);
            snprintf(y, sizeof(y), "c%d", b);
            if (below(s, 12) != 0)
                add_link(links, x, y, alike ? 0.01 : some(s, 0, 0.05),
                         alike ? 1e5 : some(s, 1e4, 1e6));
        }
    json_object_set_new(root, "links", links);
}

static void add_rule(struct ek_request *r, enum ek_rule_kind kind, const char *module,
                     const char *other)
{
    struct ek_rule *rule = &r->rules[r->n_rules++];

    rule->kind = kind;
    snprintf(rule->module, sizeof(rule->module), "%s", module);
    snprintf(rule->other, sizeof(rule->other), "%s", other);
}

static void tiny_rules(uint64_t *s, struct ek_request *r, int n, int classes, int sides)
{
    char module[32], other[32];

    r->rules = ek_calloc(8, sizeof(*r->rules));
    while (r->n_rules < 3 && below(s, 3) == 0) {
        snprintf(module, sizeof(module), "m.%d", (int)below(s, (uint64_t)n));
        snprintf(other, sizeof(other), "c%d:0", (int)below(s, (uint64_t)classes));
        if (below(s, 2))
            other[2] = '\0'; /* the class */
        add_rule(r, below(s, 2) ? EK_RULE_PIN : EK_RULE_BAN, module, other);
    }
    if (sides && below(s, 4) == 0) {
        snprintf(other, sizeof(other), "c%d:0", (int)below(s, (uint64_t)classes));
        add_rule(r, EK_RULE_PIN, "side*", other);
    }
    if (below(s, 6) == 0) {
        snprintf(module, sizeof(module), "m.%d", (int)below(s, (uint64_t)n));
        snprintf(other, sizeof(other), "m.%d", (int)below(s, (uint64_t)n));
        if (strcmp(module, other) != 0)
            add_rule(r, EK_RULE_TOGETHER, module, other);
    }
}

static void tiny_request(uint64_t *s, struct ek_request *r, bool tp)
{
    static const enum ek_objective all[] = {EK_OBJ_LATENCY, EK_OBJ_THROUGHPUT, EK_OBJ_BALANCE,
                                            EK_OBJ_BALANCE_TIME};
    size_t first = below(s, 4), second = below(s, 4);

    r->objectives[0] = all[first];
    r->objectives[1] = all[second];
    r->n_objectives = first == second ? 1 : 2;
    r->workload.batch = 1 + (uint32_t)below(s, 6);
    r->workload.prompt = (uint32_t)below(s, 3) * 10;
    r->workload.generate = (uint32_t)(r->workload.prompt ? below(s, 12) : 1 + below(s, 12));
    r->workload.prefill_chunk = 1 + (uint32_t)below(s, 12);
    r->workload.micro_batches = 1 + (uint32_t)below(s, r->workload.batch);
    r->workload.images = (uint32_t)below(s, 3);
    r->workload.image_tokens = 2;
    r->workload.context = r->workload.prompt + r->workload.generate + 4;
    r->margin = below(s, 3) == 0 ? below(s, 20) : 0;
    r->margin_fraction = below(s, 4) == 0 ? 0.05 : 0;
    r->use_all = below(s, 8) == 0;
    r->max_stages = below(s, 6) == 0 ? 1 + (uint32_t)below(s, 3) : 0;
    r->fixed_order = !tp && below(s, 6) == 0;
    r->split_sides = below(s, 3) == 0;
    if (below(s, 6) == 0) {
        r->budgets = ek_calloc(1, sizeof(*r->budgets));
        r->n_budgets = 1;
        r->budgets[0].bytes = 150 + below(s, 200);
        if (below(s, 2) && !tp)
            strcpy(r->budgets[0].name, "c0:0");
    }
}

void tiny_instance(uint64_t seed, struct ek_costs **c, struct ek_request *r)
{
    uint64_t s = seed * 7919 + 1;
    int classes = 1 + (int)below(&s, 3), n = 2 + (int)below(&s, 4);
    int sides = below(&s, 3) == 0 ? 1 + (int)below(&s, 2) : 0;
    bool tp = below(&s, 4) == 0;
    int parts = seed % 4 == 3 ? 1 + (int)(seed / 4 % 3) : 0;
    json_t *root = json_pack("{s:s s:i s:[] s:[] s:[] s:[]}", "format", "evenkeel-costs", "version",
                             1, "classes", "modules", "times", "memory");

    *r = (struct ek_request)EK_REQUEST_INIT;
    n = parts && n > 3 ? 3 : n; /* few enough for brute force */
    tiny_modules(&s, json_object_get(root, "modules"), n + parts, sides, parts);
    for (int k = 0; k < classes; k++)
        tiny_class(&s, root, k, json_object_get(root, "modules"), tp);
    if (below(&s, 5) != 0)
        tiny_links(&s, root, classes);
    tiny_request(&s, r, tp);
    if (!tp)
        tiny_rules(&s, r, n + parts, classes, sides);
    *c = NULL;
    ek_costs_from_json(root, "tiny", c); /* refused (no times for a module): *c stays NULL */
    json_decref(root);
}

void fill_memories(uint64_t seed, struct ek_costs *c, const struct ek_request *r)
{
    uint64_t need = 0, s = seed * 104729 + 7;
    double part = some(&s, 0.4, 1.6); /* as if there were one memory, or two */

    for (size_t i = 0; i < c->n_modules; i++)
        need += c->modules[i].weights + c->modules[i].kv * r->workload.batch * r->workload.context;
    for (size_t k = 0; k < c->n_classes; k++)
        if (c->classes[k].memory_group[0])
            c->classes[k].memory = (uint64_t)((double)need * part) + c->classes[k].overhead;
}

/* ---- Large --------------------------------------------------------------------------------------
 */
static const double speeds[] = {1, .62, .38, .24, .9, .55, .33, .2};
static const double capacities[] = {70, 36, 40, 20, 60, 32, 44, 24};

static json_t *large_modules(uint32_t layers, bool full, uint64_t *s)
{
    json_t *m = json_array();
    char name[48], sig[48];

    if (full)
        json_array_append_new(m, json_pack("{s:s s:s s:I}", "name", "vision", "kind", "vision",
                                           "weights", (json_int_t)1400 << 20));
    json_array_append_new(m, json_pack("{s:s s:s s:I s:I}", "name", "model.embed_tokens", "kind",
                                       "embed", "weights", (json_int_t)2400 << 20, "boundary",
                                       (json_int_t)16384));
    for (uint32_t i = 0; i < layers; i++) {
        snprintf(name, sizeof(name), "model.layers.%u", i);
        snprintf(sig, sizeof(sig), "layer%u", i);
        json_array_append_new(
            m, json_pack("{s:s s:s s:s s:I s:I s:I}", "name", name, "kind", "layer", "signature",
                         sig, "weights",
                         (json_int_t)((double)((json_int_t)1700 << 20) * some(s, 0.95, 1.05)), "kv",
                         (json_int_t)4096, "boundary", (json_int_t)16384));
    }
    json_array_append_new(m,
                          json_pack("{s:s s:s s:I s:I}", "name", "model.norm", "kind", "norm",
                                    "weights", (json_int_t)16384, "boundary", (json_int_t)16384));
    json_array_append_new(m, json_pack("{s:s s:s s:I}", "name", "lm_head", "kind", "head",
                                       "weights", (json_int_t)2400 << 20));
    return m;
}

static void large_times(json_t *times, const char *cls, double speed, int tp, const json_t *modules,
                        uint64_t noise)
{
    double gain = tp == 1 ? 1 : tp == 2 ? 1.8 : 3.1;
    json_t *m;
    size_t i;

    json_array_foreach((json_t *)modules, i, m)
    {
        const char *kind = json_string_value(json_object_get(m, "kind"));
        const char *name = json_string_value(json_object_get(m, "name"));
        const json_t *sig = json_object_get(m, "signature");
        bool layer = strcmp(kind, "layer") == 0, light = strcmp(kind, "norm") == 0;
        double f = some(&noise, 0.95, 1.05) / speed / gain;
        double p = strcmp(kind, "vision") == 0 ? 0.4 : layer ? 0.09 : light ? 1e-4 : 0.01;
        double d = layer ? 0.0009 : light ? 1e-5 : 0.0008;
        add_times(times, cls, sig ? json_string_value(sig) : name, tp, p * f, d * f);
    }
}

json_t *large_instance(uint32_t layers, uint32_t devices, uint32_t classes, bool unlike_links,
                       bool full, uint64_t seed)
{
    json_t *root =
        json_pack("{s:s s:i s:[] s:[] s:[] s:{s:i s:i s:i s:i s:i}}", "format", "evenkeel-costs",
                  "version", 1, "classes", "times", "links", "workload", "batch", 16, "prompt",
                  2048, "generate", 256, "images", full ? 1 : 0, "image_tokens", 512);
    json_t *modules = large_modules(layers, full, &seed);
    char a[16], b[16];

    json_object_set_new(root, "modules", modules);
    for (uint32_t k = 0; k < classes; k++) {
        bool own = classes > EK_ARRAY_LEN(speeds); /* every device its own class */
        double speed = speeds[k % 4] * (own ? some(&seed, 0.85, 1.15) : 1);
        snprintf(a, sizeof(a), "c%u", k);
        json_array_append_new(
            json_object_get(root, "classes"),
            json_pack("{s:s s:I s:I s:I s:I}", "name", a, "count", (json_int_t)(devices / classes),
                      "memory", (json_int_t)(capacities[k % 4] * 1073741824), "overhead",
                      (json_int_t)600 << 20, "tp_reserve", (json_int_t)400 << 20));
        for (int tp = 1; tp <= (full ? 4 : 1); tp *= 2)
            large_times(json_object_get(root, "times"), a, speed, tp, modules, seed);
        for (uint32_t j = 0; j < classes; j++) {
            snprintf(b, sizeof(b), "c%u", j);
            add_link(json_object_get(root, "links"), a, b, 1e-5,
                     unlike_links ? (j == k ? 2e11 : some(&seed, 1e10, 2.5e10)) : 2e10);
        }
    }
    return root;
}
