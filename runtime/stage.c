/* SPDX-License-Identifier: Apache-2.0
 *
 * Stages: what they allocate, to the byte, before and while allocating it.
 */
#include "runtime/vision.h"

#include <stdlib.h>
#include <string.h>

bool stage_take(size_t *at, size_t rows, size_t cols, size_t size, size_t *offset)
{
    size_t n;

    if (!ek_mul_size(rows, cols, &n) || !ek_mul_size(n, size, &n) || n > SIZE_MAX / 4 ||
        *at > SIZE_MAX / 4)
        return false;
    *offset = *at;
    *at += ek_round_up(n, STAGE_ALIGN);
    return true;
}

/* Query, keys, values and attention's output. */
static bool attention_scratch(const struct ek_stage *s, size_t *out)
{
    const struct ek_config *c = &s->m->config;
    size_t t = s->opt.max_tokens, a = stage_act_bytes(s), q = (size_t)c->n_heads * c->head_dim,
           skip;

    *out = 0;
    return stage_take(out, t, q + 2 * (size_t)c->n_kv_heads * c->head_dim, a, &skip) &&
           stage_take(out, t, q, a, &skip);
}

/* gate|up and their product. */
static bool dense_scratch(const struct ek_stage *s, size_t *out)
{
    size_t t = s->opt.max_tokens, a = stage_act_bytes(s), inner = s->m->config.intermediate, skip;

    *out = 0;
    return stage_take(out, t, 2 * inner, a, &skip) && stage_take(out, t, inner, a, &skip);
}

/* Parts of a layer run one after the other in the same scratch. */
static bool scratch_bytes(const struct ek_stage *s, size_t *out)
{
    size_t attention, dense = 0, experts = 0;

    if (!(s->m->config.attention == EK_ATTENTION_MLA ? stage_latent_scratch
                                                     : attention_scratch)(s, &attention) ||
        (s->has_dense && !dense_scratch(s, &dense)) ||
        (s->has_experts && !stage_experts_scratch(s, &experts)))
        return false;
    *out = attention > dense ? attention : dense;
    *out = *out > experts ? *out : experts;
    return true;
}

/* Rows that replace embeddings, F32, and at *places the tokens they are for; needed before the
 * layers' scratch is. */
static bool embeds_bytes(const struct ek_stage *s, size_t *bytes, size_t *places)
{
    size_t t = s->opt.max_tokens, skip;

    *bytes = 0;
    if (!s->has_embed || s->m->config.vision == EK_VISION_NONE)
        return true;
    return stage_take(bytes, t, s->m->config.hidden, sizeof(float), &skip) &&
           stage_take(bytes, t, 1, sizeof(int32_t), places);
}

static bool lay_out(struct ek_stage *s)
{
    const struct ek_config *c = &s->m->config;
    struct batch_shape shape = stage_batch_shape(s);
    size_t t = s->opt.max_tokens, l = s->opt.max_logits, a = stage_act_bytes(s), n = 0;
    size_t scratch = 0, embeds, places;
    struct stage_arena at = {.xn = SIZE_MAX,
                             .ordered = SIZE_MAX,
                             .scratch = SIZE_MAX,
                             .rows = SIZE_MAX,
                             .logits = SIZE_MAX,
                             .embeds = SIZE_MAX,
                             .places = SIZE_MAX};

    if (!stage_take(&n, t, c->hidden, a, &at.x))
        return false;
    if ((s->n_layers > 0 || s->has_norm) && !stage_take(&n, t, c->hidden, a, &at.xn))
        return false;
    if (s->max_ordered > 0 && !stage_take(&n, t, s->max_ordered, a, &at.ordered))
        return false;
    if ((s->n_layers > 0 && !scratch_bytes(s, &scratch)) || !embeds_bytes(s, &embeds, &places))
        return false;
    if (!stage_take(&n, scratch > embeds ? scratch : embeds, 1, 1, &at.scratch))
        return false;
    if (embeds > 0) {
        at.embeds = at.scratch;
        at.places = at.scratch + places;
    }
    if (s->has_head && (!stage_take(&n, l, c->hidden, a, &at.rows) ||
                        !stage_take(&n, l, c->vocab, sizeof(float), &at.logits)))
        return false;
    if (!stage_take(&n, batch_words(&shape), 1, sizeof(int32_t), &at.batch))
        return false;
    at.bytes = s->has_chain ? n : 0;
    if (s->vision != NULL && s->vision->at.bytes > at.bytes)
        at.bytes = s->vision->at.bytes; /* they run at different times */
    s->at = at;
    return true;
}

/* The cache of one layer, nothing allocated. */
static struct ek_kv layer_kv(const struct ek_stage *s)
{
    const struct ek_config *c = &s->m->config;
    struct ek_kv kv = {.dtype = s->opt.cache, .page = s->opt.page};

    if (c->attention == EK_ATTENTION_MLA) {
        kv.kv_heads = 1;
        kv.head_dim = c->kv_lora + c->qk_rope;
        kv.v_dim = c->kv_lora; /* inside of the keys */
    } else {
        kv.kv_heads = c->n_kv_heads;
        kv.head_dim = kv.v_dim = c->head_dim;
    }
    return kv;
}

/* Where the parts of one layer's cache begin, and its bytes: keys, values and, where rows are
 * scaled, their scales. */
struct layer_cache {
    size_t k, v, k_scale, v_scale, bytes;
};

static bool lay_out_cache(const struct ek_stage *s, struct layer_cache *out)
{
    struct ek_kv kv = layer_kv(s);
    struct layer_cache at = {0};
    size_t slots, size = ek_dtype_block_bytes(s->opt.cache);
    size_t scales = s->opt.cache == EK_F8_E4M3 ? kv.kv_heads : 0;
    size_t values = s->m->config.attention == EK_ATTENTION_MLA ? 0 : kv.kv_heads;

    if (!ek_mul_size(s->opt.n_blocks, s->opt.page, &slots) || slots > INT32_MAX ||
        !stage_take(&at.bytes, slots, (size_t)kv.kv_heads * kv.head_dim, size, &at.k) ||
        !stage_take(&at.bytes, slots, values * kv.v_dim, size, &at.v) ||
        !stage_take(&at.bytes, slots, scales, sizeof(float), &at.k_scale) ||
        !stage_take(&at.bytes, slots, values ? scales : 0, sizeof(float), &at.v_scale))
        return false;
    *out = at;
    return true;
}

static enum ek_status check_options(const struct ek_stage_options *o)
{
    if (o->page == 0 || o->n_blocks == 0 || o->max_tokens == 0 || o->max_seqs == 0 ||
        o->max_context == 0)
        return ek_error(EK_EUSAGE,
                        "stage: page %u, n_blocks %u, max_tokens %u, max_seqs %u and max_context "
                        "%u must be at least 1",
                        o->page, o->n_blocks, o->max_tokens, o->max_seqs, o->max_context);
    if (!ek_dtype_is_cache(o->cache))
        return ek_error(EK_EUNSUPPORTED, "stage: a cache of type %s", ek_dtype_name(o->cache));
    return EK_OK;
}

/* What the device must offer for this model's layers. */
static enum ek_status check_config(const struct ek_config *c, const struct ek_device *dev)
{
    if (c->attention == EK_ATTENTION_MLA && dev->ops->latent_append == NULL)
        return ek_error(EK_EUNSUPPORTED, "%s: %s has no latent attention", c->architecture,
                        dev->spec.name);
    if (c->n_experts > 0 && dev->ops->experts == NULL)
        return ek_error(EK_EUNSUPPORTED, "%s: %s has no mixtures of experts", c->architecture,
                        dev->spec.name);
    return EK_OK;
}

static void scan_orders(struct ek_stage *s, const struct ek_module *mod)
{
    for (size_t i = 0; i < mod->n_tensors; i++) {
        const struct ek_tensor *t = &mod->tensors[i];
        if (t->order != NULL && t->shape[1] > s->max_ordered)
            s->max_ordered = (uint32_t)t->shape[1];
    }
}

/* Kinds of the modules, which must come in the model's order. */
static enum ek_status scan(struct ek_stage *s, const size_t *modules, size_t n)
{
    if (n == 0)
        return ek_error(EK_EUSAGE, "stage: no modules");
    for (size_t i = 0; i < n; i++) {
        if (modules[i] >= s->m->n_modules || (i > 0 && modules[i] <= modules[i - 1]))
            return ek_error(EK_EUSAGE, "stage: modules out of order");
        s->has_chain |= !ek_module_is_visual(&s->m->modules[modules[i]]);
        switch (s->m->modules[modules[i]].kind) {
        case EK_MODULE_EMBED:
            s->has_embed = true;
            break;
        case EK_MODULE_LAYER:
            s->n_layers++;
            scan_orders(s, &s->m->modules[modules[i]]);
            if (ek_module_tensor(&s->m->modules[modules[i]], EK_ROLE_ROUTER, -1) != NULL)
                s->has_experts = true;
            else
                s->has_dense = true;
            break;
        case EK_MODULE_NORM:
            s->has_norm = true;
            break;
        case EK_MODULE_HEAD:
            s->has_head = true;
            break;
        default:
            EK_TRY(vision_scan(s, &s->m->modules[modules[i]]));
        }
    }
    return EK_OK;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Everything about the stage that needs no allocation on the device. */
static enum ek_status describe(struct ek_stage *s, struct ek_device *dev, const struct ek_model *m,
                               const size_t *modules, size_t n, const struct ek_stage_options *opt)
{
    s->dev = dev;
    s->m = m;
    s->opt = *opt;
    EK_TRY(check_options(opt));
    EK_TRY(check_config(&m->config, dev));
    s->opt.max_seqs = least(opt->max_seqs, opt->max_tokens);
    s->opt.max_logits = least(opt->max_logits ? opt->max_logits : 1, opt->max_tokens);
    s->max_blocks = (opt->max_context - 1) / opt->page + 1;
    EK_TRY(scan(s, modules, n));
    if (s->vision != NULL)
        EK_TRY(vision_lay_out(s));
    if (!lay_out(s))
        return ek_error(EK_EUSAGE, "stage: activations of %u tokens overflow", opt->max_tokens);
    if (s->n_layers > 0 && (s->layers = ek_calloc(s->n_layers, sizeof(*s->layers))) == NULL)
        return EK_ENOMEM;
    return EK_OK;
}

static uint64_t padded(const struct ek_device *dev, size_t bytes)
{
    if (bytes == 0)
        return 0;
    return dev->ops->alloc_bytes ? dev->ops->alloc_bytes(dev, bytes) : bytes;
}

static enum ek_status kv_total(const struct ek_stage *s, size_t *out)
{
    struct layer_cache layer;
    size_t n;

    if (!lay_out_cache(s, &layer) || !ek_mul_size(s->n_layers, layer.bytes, &n))
        return ek_error(EK_EUSAGE, "stage: a cache of %u blocks of %u tokens overflows",
                        s->opt.n_blocks, s->opt.page);
    *out = n;
    return EK_OK;
}

enum ek_status ek_stage_memory(const struct ek_device *dev, const struct ek_model *m,
                               const size_t *modules, size_t n, const struct ek_stage_options *opt,
                               uint64_t by_tag[EK_N_TAGS])
{
    struct ek_stage s = {0};
    struct stage_weights w;
    size_t kv;
    enum ek_status st;

    EK_GOTO(describe(&s, (struct ek_device *)(uintptr_t)dev, m, modules, n, opt), st, done);
    EK_GOTO(stage_weights_count(&s, modules, n, &w), st, done);
    EK_GOTO(kv_total(&s, &kv), st, done);
    memset(by_tag, 0, EK_N_TAGS * sizeof(*by_tag));
    by_tag[EK_TAG_WEIGHTS] = w.mat_bytes + padded(dev, w.vector_bytes);
    by_tag[EK_TAG_KV] = padded(dev, kv);
    by_tag[EK_TAG_ACTIVATIONS] = padded(dev, s.at.bytes);
done:
    vision_free(&s);
    free(s.layers);
    return st;
}

static enum ek_status make_cache(struct ek_stage *s)
{
    struct ek_kv kv = layer_kv(s);
    bool latent = s->m->config.attention == EK_ATTENTION_MLA;
    struct layer_cache of;
    size_t total;
    char *at;

    EK_TRY(kv_total(s, &total));
    if (total == 0)
        return EK_OK;
    EK_TRY(s->dev->ops->alloc(s->dev, EK_TAG_KV, total, (void **)&s->kv));
    EK_TRY(s->dev->ops->zero(s->dev, s->kv, total)); /* so that it is really there */
    lay_out_cache(s, &of);
    at = s->kv;
    for (size_t i = 0; i < s->n_layers; i++, at += of.bytes) {
        kv.k = at + of.k;
        kv.v = latent ? NULL : at + of.v;
        if (kv.dtype == EK_F8_E4M3) {
            kv.k_scale = (float *)(void *)(at + of.k_scale);
            kv.v_scale = latent ? NULL : (float *)(void *)(at + of.v_scale);
        }
        s->layers[i].kv = kv;
    }
    return EK_OK;
}

static enum ek_status make(struct ek_stage *s, const size_t *modules, size_t n)
{
    const struct ek_ops *ops = s->dev->ops;
    uint64_t by_tag[EK_N_TAGS];
    struct stage_weights w;

    EK_TRY(stage_weights_count(s, modules, n, &w));
    EK_TRY(make_cache(s));
    if (ops->reserve != NULL) {
        EK_TRY(ek_stage_memory(s->dev, s->m, modules, n, &s->opt, by_tag));
        EK_TRY(ops->reserve(s->dev, EK_TAG_WEIGHTS, by_tag[EK_TAG_WEIGHTS]));
    }
    if (s->at.bytes > 0) {
        EK_TRY(ops->alloc(s->dev, EK_TAG_ACTIVATIONS, s->at.bytes, (void **)&s->arena));
        EK_TRY(ops->zero(s->dev, s->arena, s->at.bytes));
        stage_work_at(s, NULL);
    }
    if (w.vector_bytes > 0) {
        EK_TRY(ops->alloc(s->dev, EK_TAG_WEIGHTS, w.vector_bytes, (void **)&s->vectors));
        EK_TRY(ops->zero(s->dev, s->vectors, w.vector_bytes)); /* biases that are not there */
    }
    return stage_weights_load(s, modules, n);
}

enum ek_status ek_stage_new(struct ek_device *dev, const struct ek_model *m, const size_t *modules,
                            size_t n, const struct ek_stage_options *opt, struct ek_stage **out)
{
    struct ek_stage *s = ek_calloc(1, sizeof(*s));
    enum ek_status st = EK_ENOMEM;

    if (s == NULL)
        return st;
    EK_GOTO(describe(s, dev, m, modules, n, opt), st, fail);
    EK_GOTO(make(s, modules, n), st, fail);
    *out = s;
    return EK_OK;
fail:
    ek_stage_free(s);
    return st;
}

void stage_drain(struct ek_device *dev)
{
    char message[1024];

    snprintf(message, sizeof(message), "%s", ek_last_error());
    if (dev->ops->sync(dev) != EK_OK)
        (void)ek_error(EK_EDEVICE, "%s", message);
}

void ek_stage_free(struct ek_stage *s)
{
    if (s == NULL)
        return;
    stage_drain(s->dev);
    stage_graphs_free(s);
    stage_weights_free(s);
    if (s->vectors != NULL)
        s->dev->ops->release(s->dev, s->vectors);
    if (s->kv != NULL)
        s->dev->ops->release(s->dev, s->kv);
    if (s->arena != NULL)
        s->dev->ops->release(s->dev, s->arena);
    vision_free(s);
    free(s->layers);
    free(s);
}

void stage_work_at(struct ek_stage *s, void *x)
{
    s->x = x ? x : stage_at(s, s->at.x);
}

void *ek_stage_hidden(struct ek_stage *s)
{
    return s->x;
}

float *ek_stage_logits(struct ek_stage *s)
{
    return stage_at(s, s->at.logits);
}

bool ek_stage_has_head(const struct ek_stage *s)
{
    return s->has_head;
}
