/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Costs by roofline: a step takes as long as its bytes need at the memory's bandwidth or its
 * arithmetic at the peak, whichever is more, at the fractions of both that good kernels reach.
 */
#include "planner/hardware.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BANDWIDTH_REACHED 0.80 /* of the datasheet's, by single-token products */
#define PEAK_REACHED      0.60 /* of the datasheet's, by large products */
#define LONGEST           32768
#define UNBOUNDED         (1u << 26) /* tokens and contexts whose memory does not matter */
#define MEMORY_POINTS     22
#define MOST_PATCHES      65536u /* at once, as the runtime has it */
#define MOST_TILES        10u
#define COMM_RESERVE      (400 * EK_MIB) /* NCCL's buffers */

static const uint32_t widths[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};

struct estimator {
    const struct ek_model *m;
    const struct ek_fleet *f;
    struct ek_costs *c;
    enum ek_dtype act, cache;
};

static size_t act_bytes(const struct estimator *es)
{
    return ek_dtype_block_bytes(es->act);
}

static double peak_of(const struct ek_card *card, enum ek_dtype act)
{
    if (act == EK_BF16 && card->peak_bf16 > 0)
        return card->peak_bf16;
    if (act != EK_F32 && card->peak_f16 > 0)
        return card->peak_f16;
    return card->peak_f32;
}

double ek_step_floor(const struct ek_model *m, const struct ek_module *mod,
                     const struct ek_card *card, const struct ek_step_shape *s)
{
    double n = (double)s->sequences * s->tokens;
    double flops = s->sequences * ek_module_flops(m, mod, s->tokens, s->context, false);
    double bytes =
        ek_module_read_bytes(m, mod, (uint64_t)n) +
        (double)s->sequences * s->context * (double)ek_module_kv_bytes(m, mod, s->cache) +
        2 * n * (double)ek_module_boundary_bytes(m, mod, s->act);

    return fmax(bytes / s->tp / card->bandwidth, flops / s->tp / peak_of(card, s->act));
}

/* Two all-reduces a layer over rings. */
double ek_step_reduce(const struct ek_model *m, const struct ek_module *mod,
                      const struct ek_card *card, const struct ek_step_shape *s)
{
    double bytes =
        (double)s->sequences * s->tokens * m->config.hidden * (double)ek_dtype_block_bytes(s->act);

    if (s->tp == 1 || mod->kind != EK_MODULE_LAYER)
        return 0;
    return 2 * (2 * (s->tp - 1) * card->link_alpha +
                2.0 * (s->tp - 1) / s->tp * bytes / card->link_beta);
}

static double step_seconds(const struct estimator *es, const struct ek_card *card,
                           const struct ek_module *mod, const struct ek_step_shape *s)
{
    struct ek_card reached = *card;

    reached.bandwidth *= BANDWIDTH_REACHED;
    reached.peak_f32 *= PEAK_REACHED;
    reached.peak_f16 *= PEAK_REACHED;
    reached.peak_bf16 *= PEAK_REACHED;
    return ek_step_floor(es->m, mod, &reached, s) + EK_LAUNCH_SECONDS +
           ek_step_reduce(es->m, mod, card, s);
}

/* A chain's norm and head see one row a sequence in prefill. */
uint32_t ek_step_rows(const struct ek_module *mod, uint32_t tokens)
{
    return mod->kind == EK_MODULE_NORM || mod->kind == EK_MODULE_HEAD ? 1 : tokens;
}

static enum ek_status fill_curve(const struct estimator *es, const struct ek_card *card,
                                 const struct ek_module *mod, uint32_t tp, enum ek_phase phase,
                                 struct ek_cost_curve *c)
{
    bool decode = phase == EK_PHASE_DECODE;
    struct ek_step_shape shape;

    c->rows = ek_calloc(EK_ARRAY_LEN(widths) * 2, sizeof(*c->rows));
    if (c->rows == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < EK_ARRAY_LEN(widths); i++)
        for (int deep = 0; deep < 2; deep++) {
            struct ek_store_time_row *r = &c->rows[c->n++];
            uint32_t tokens = decode ? 1 : widths[i];
            r->key.phase = phase;
            r->key.batch = decode ? widths[i] : 1;
            r->key.tokens = tokens;
            r->key.context = deep ? LONGEST + tokens : tokens;
            shape = (struct ek_step_shape){.sequences = r->key.batch,
                                           .tokens = ek_step_rows(mod, tokens),
                                           .context = r->key.context,
                                           .tp = tp,
                                           .act = es->act,
                                           .cache = es->cache};
            r->time.median_s = step_seconds(es, card, mod, &shape);
        }
    return EK_OK;
}

static enum ek_status add_times(struct estimator *es, uint32_t cls, const struct ek_module *mod,
                                uint32_t sig, uint32_t tp)
{
    size_t cap = es->c->n_times;
    struct ek_cost_times *t;

    if (ek_costs_times(es->c, cls, sig, tp) != NULL)
        return EK_OK;
    EK_TRY(ek_grow((void **)&es->c->times, &cap, es->c->n_times + 1, sizeof(*t), (size_t)1 << 20));
    t = &es->c->times[es->c->n_times++];
    *t = (struct ek_cost_times){.cls = cls, .sig = sig, .tp = tp};
    EK_TRY(fill_curve(es, es->f->cards[cls], mod, tp, EK_PHASE_PREFILL, &t->prefill));
    return fill_curve(es, es->f->cards[cls], mod, tp, EK_PHASE_DECODE, &t->decode);
}

/* ---- Memory -------------------------------------------------------------------------------------
 */
/* As the runtime allocates (runtime.h, ek_stage_memory), without its exact rounding. */
static uint64_t activation_bytes(const struct estimator *es, const struct ek_module *mod,
                                 uint64_t tokens, uint64_t batch)
{
    const struct ek_config *c = &es->m->config;
    uint64_t a = act_bytes(es), head = (uint64_t)c->head_dim;
    uint64_t qkv = ((uint64_t)c->n_heads * 2 + 2 * (uint64_t)c->n_kv_heads) *
                   (head ? head : c->qk_nope + c->qk_rope);
    uint64_t inner = 3 * (uint64_t)c->intermediate, wide = qkv > inner ? qkv : inner;
    uint64_t logits =
        mod->kind == EK_MODULE_HEAD ? batch * ((uint64_t)c->vocab * 4 + c->hidden * a) : 0;

    return tokens * a * (2 * (uint64_t)c->hidden + wide) + logits + 16 * tokens;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t square(uint64_t a)
{
    return a * a;
}

/* Features of a tile of DeepSeek-VL2. */
static uint64_t tile_features(const struct ek_config *c)
{
    return square((c->vision_image / c->vision_patch + c->vision_merge - 1) / c->vision_merge);
}

/* The most patches that the runtime gives to a tower at once, and the features that they become. */
static uint64_t most_patches(const struct ek_config *c, uint64_t context, uint64_t *features)
{
    uint64_t cell = square(c->vision_merge), tiles;

    if (c->vision == EK_VISION_VL2) {
        tiles = larger(1, context / tile_features(c));
        tiles = tiles < MOST_TILES ? tiles : MOST_TILES;
        *features = tiles * tile_features(c);
        return tiles * square(c->vision_image / c->vision_patch);
    }
    *features = context * cell < MOST_PATCHES ? context : MOST_PATCHES / cell;
    return *features * cell;
}

/* The same of a module that sees, by the context that pictures may fill. */
static void picture_bytes(const struct estimator *es, const struct ek_module *mod,
                          struct ek_cost_space *s)
{
    const struct ek_config *c = &es->m->config;
    bool qwen = c->vision == EK_VISION_QWEN25, whole = mod->kind == EK_MODULE_VISION;
    uint64_t a = act_bytes(es), width = c->vision_hidden, features, scratch = 0;
    uint64_t rows = most_patches(c, s->context, &features),
             merged = square(c->vision_merge) * width;
    uint64_t pixels = 3ull * c->vision_temporal * square(c->vision_patch);
    bool merges = mod->kind == EK_MODULE_PROJECTOR || (qwen && mod->kind == EK_MODULE_MERGER);

    if (mod->kind == EK_MODULE_VECTOR)
        return;
    if (whole || mod->kind == EK_MODULE_PATCHES)
        scratch = rows * pixels * (a == sizeof(float) ? a : a + sizeof(float));
    if (whole || mod->kind == EK_MODULE_BLOCK)
        scratch = larger(scratch,
                         rows * a * larger(4 * width, (qwen ? 3ull : 1) * c->vision_intermediate));
    if (merges || (whole && qwen))
        scratch = larger(scratch, features * a * (merged + larger(c->hidden, merged)));
    s->activations =
        a * (larger(rows * width, features * c->hidden) + rows * width) + scratch + 16 * rows;
    s->comm = mod->side ? 0 : 2 * rows * width * a; /* where a cut tower ends a stage */
}

/* Picture by picture: steps and batches do not matter, the context bounds what is given at once. */
static void fill_pictures(const struct estimator *es, const struct ek_module *mod,
                          struct ek_cost_memory *m)
{
    const struct ek_config *c = &es->m->config;
    uint32_t step = c->vision == EK_VISION_VL2 ? (uint32_t)tile_features(c) : 64;

    for (uint64_t at = step; m->n + 1 < MEMORY_POINTS && at < UNBOUNDED;
         at = c->vision == EK_VISION_VL2 ? at + step : at * 4)
        m->points[m->n++] = (struct ek_cost_space){1, UNBOUNDED, (uint32_t)at, 0, 0, 0};
    m->points[m->n++] = (struct ek_cost_space){1, UNBOUNDED, UNBOUNDED, 0, 0, 0};
    for (size_t i = 0; i < m->n; i++)
        picture_bytes(es, mod, &m->points[i]);
}

static void fill_steps(const struct estimator *es, const struct ek_module *mod,
                       struct ek_cost_memory *m)
{
    static const uint32_t batches[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 65536};
    static const uint32_t tokens[] = {1, 65536};

    for (size_t b = 0; b < EK_ARRAY_LEN(batches); b++)
        for (size_t t = 0; t < EK_ARRAY_LEN(tokens); t++)
            m->points[m->n++] =
                (struct ek_cost_space){batches[b], tokens[t],
                                       UNBOUNDED,  activation_bytes(es, mod, tokens[t], batches[b]),
                                       0,          0};
}

static enum ek_status add_memory(struct estimator *es, uint32_t cls, const struct ek_module *mod,
                                 uint32_t sig, uint32_t tp)
{
    bool cpu = strcmp(es->c->classes[cls].backend, "cpu") == 0;
    size_t cap = es->c->n_memory;
    struct ek_cost_memory *m;

    for (size_t i = 0; i < es->c->n_memory; i++)
        if (es->c->memory[i].cls == cls && es->c->memory[i].sig == sig && es->c->memory[i].tp == tp)
            return EK_OK;
    EK_TRY(
        ek_grow((void **)&es->c->memory, &cap, es->c->n_memory + 1, sizeof(*m), (size_t)1 << 20));
    m = &es->c->memory[es->c->n_memory++];
    *m = (struct ek_cost_memory){.cls = cls, .sig = sig, .tp = tp};
    m->points = ek_calloc(MEMORY_POINTS, sizeof(*m->points));
    if (m->points == NULL)
        return EK_ENOMEM;
    (ek_module_is_visual(mod) ? fill_pictures : fill_steps)(es, mod, m);
    for (size_t i = 0; i < m->n; i++)
        m->points[i].workspace = cpu ? 4 * EK_MIB : 64 * EK_MIB;
    return EK_OK;
}

/* ---- Classes and links --------------------------------------------------------------------------
 */
static enum ek_status add_class(struct estimator *es, uint32_t i, uint32_t first)
{
    const struct ek_card *card = es->f->cards[i];
    struct ek_cost_class *k = &es->c->classes[es->c->n_classes++];

    snprintf(k->name, sizeof(k->name), "%s", card->name);
    for (uint32_t j = 0; j < i; j++)
        if (es->f->cards[j] == card)
            snprintf(k->name, sizeof(k->name), "%s.%u", card->name, i);
    snprintf(k->model, sizeof(k->model), "%s (described)", card->name);
    strcpy(k->backend, "cuda");
    if (card->shared)
        strcpy(k->memory_group, "host");
    k->memory = card->memory;
    k->overhead = card->overhead;
    k->tp_reserve = COMM_RESERVE;
    k->slow_prefill = k->slow_decode = k->sustained = k->looking = k->behind = 1;
    k->estimate = true;
    k->count = es->f->counts[i];
    k->devices = ek_calloc(k->count, sizeof(*k->devices));
    if (k->devices == NULL)
        return EK_ENOMEM;
    for (uint32_t d = 0; d < k->count; d++) {
        snprintf(k->devices[d].name, sizeof(k->devices[d].name), "cuda:%u", first + d);
        k->devices[d].index = first + d;
    }
    return EK_OK;
}

static enum ek_status add_links(struct estimator *es)
{
    uint32_t n = (uint32_t)es->f->n;

    es->c->links = ek_calloc((size_t)n * n, sizeof(*es->c->links));
    if (es->c->links == NULL)
        return EK_ENOMEM;
    for (uint32_t a = 0; a < n; a++)
        for (uint32_t b = 0; b < n; b++) {
            const struct ek_card *x = es->f->cards[a], *y = es->f->cards[b];
            bool like = x == y;
            struct ek_cost_link *l = &es->c->links[es->c->n_links++];
            *l = (struct ek_cost_link){.from = a, .to = b};
            l->alpha = fmax(x->link_alpha, y->link_alpha);
            l->beta = fmin(x->link_beta, y->link_beta);
            if (!like) /* unlike cards meet over the host's bus */
                l->beta = fmin(l->beta, 12e9);
            strcpy(l->mechanism, "estimate");
        }
    return EK_OK;
}

static enum ek_status build(struct estimator *es, uint32_t max_tp)
{
    struct ek_costs *c = es->c;
    uint32_t first = 0;

    EK_TRY(ek_costs_stage_signatures(c));
    EK_TRY(ek_costs_add_modules(c, es->m, es->act, es->cache));
    c->classes = ek_calloc(es->f->n, sizeof(*c->classes));
    if (c->classes == NULL)
        return EK_ENOMEM;
    for (uint32_t k = 0; k < es->f->n; k++) {
        EK_TRY(add_class(es, k, first));
        first += es->f->counts[k];
        for (size_t i = 0; i < es->m->n_modules; i++)
            for (uint32_t tp = 1; tp <= max_tp && es->m->config.n_heads % tp == 0; tp *= 2) {
                EK_TRY(add_times(es, k, &es->m->modules[i], c->modules[i].sig, tp));
                EK_TRY(add_memory(es, k, &es->m->modules[i], c->modules[i].sig, tp));
            }
    }
    EK_TRY(add_links(es));
    return ek_costs_check(c);
}

/* Activations in the type of the weights where a card has it; block types run in F16. */
static enum ek_dtype natural_act(const struct ek_model *m, const struct ek_fleet *f)
{
    bool bf16 = true;

    for (size_t i = 0; i < f->n; i++)
        bf16 = bf16 && f->cards[i]->peak_bf16 > 0;
    if (m->config.dtype == EK_F32)
        return EK_F32;
    return bf16 && m->config.dtype == EK_BF16 ? EK_BF16 : EK_F16;
}

enum ek_status ek_costs_estimate(const struct ek_model *m, const struct ek_fleet *f,
                                 const char *act, const char *cache, uint32_t max_tp,
                                 struct ek_costs **out)
{
    struct estimator es = {.m = m, .f = f};
    enum ek_status st;

    es.act = natural_act(m, f);
    if (act && (!ek_dtype_from_name(act, &es.act) || ek_dtype_block(es.act) != 1))
        return ek_error(EK_EUSAGE, "activation type \"%s\" is unknown", act);
    es.cache = es.act;
    if (cache && !ek_dtype_from_name(cache, &es.cache))
        return ek_error(EK_EUSAGE, "cache type \"%s\" is unknown", cache);
    es.c = ek_calloc(1, sizeof(*es.c));
    if (es.c == NULL)
        return EK_ENOMEM;
    strcpy(es.c->file, "estimate");
    strcpy(es.c->source, "roofline from FLOPs, bytes and device descriptions");
    es.c->estimate = true;
    es.c->page = 32;
    es.c->workload = (struct ek_workload)EK_WORKLOAD_INIT;
    st = build(&es, max_tp);
    if (st != EK_OK) {
        ek_costs_free(es.c);
        return st;
    }
    *out = es.c;
    return EK_OK;
}
