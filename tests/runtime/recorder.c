/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/runtime/recorder.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_CALLS = 512, MAX_MATS = 4 };

struct call; /* arguments by value; what lies behind pointers to host structures is copied too */
typedef enum ek_status (*replay)(struct ek_device *dev, const struct call *c);
struct call {
    replay run;
    const void *x;
    void *out;
    const void *p, *q; /* weights, ids, rows, biases */
    size_t ldx, ldo, n_mats;
    uint32_t n, dim;
    float f;
    int flags;
    struct ek_mat mats[MAX_MATS];
    const float *biases[MAX_MATS];
    struct ek_batch batch;
    struct ek_kv kv;
    struct ek_rope rope;
};

struct ek_graph {
    size_t n;
    struct call calls[MAX_CALLS];
};

static struct ek_ops table, cpu;
static struct ek_graph *open_graph; /* being captured, or NULL */
static unsigned captures, launches;
static enum ek_status refusal;

static enum ek_status put(struct ek_device *dev, const struct call *c)
{
    if (open_graph == NULL)
        return c->run(dev, c);
    if (open_graph->n == MAX_CALLS)
        return ek_error(EK_EDEVICE, "too many calls in a graph");
    open_graph->calls[open_graph->n++] = *c;
    return EK_OK;
}

static enum ek_status do_embed(struct ek_device *dev, const struct call *c)
{
    return cpu.embed(dev, c->mats, c->p, c->n, c->out);
}

static enum ek_status embed(struct ek_device *dev, const struct ek_mat *t, const int32_t *ids,
                            uint32_t n, void *out)
{
    return put(dev, &(struct call){.run = do_embed, .mats = {*t}, .p = ids, .n = n, .out = out});
}

static enum ek_status do_copy(struct ek_device *dev, const struct call *c)
{
    return cpu.copy(dev, c->out, c->x, c->ldx);
}

static enum ek_status copy(struct ek_device *dev, void *dst, const void *src, size_t n)
{
    return put(dev, &(struct call){.run = do_copy, .out = dst, .x = src, .ldx = n});
}

static enum ek_status do_rms_norm(struct ek_device *dev, const struct call *c)
{
    return cpu.rms_norm(dev, c->x, c->ldx, c->p, c->f, c->n, c->dim, c->out, c->ldo);
}

static enum ek_status rms_norm(struct ek_device *dev, const void *x, size_t ldx, const float *w,
                               float eps, uint32_t n, uint32_t dim, void *out, size_t ldo)
{
    return put(dev, &(struct call){.run = do_rms_norm,
                                   .x = x,
                                   .ldx = ldx,
                                   .p = w,
                                   .f = eps,
                                   .n = n,
                                   .dim = dim,
                                   .out = out,
                                   .ldo = ldo});
}

static enum ek_status do_linear(struct ek_device *dev, const struct call *c)
{
    return cpu.linear(dev, c->x, c->ldx, c->n, c->mats, c->p, c->out, c->ldo, c->flags);
}

static enum ek_status linear(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                             const struct ek_mat *w, const float *bias, void *out, size_t ldo,
                             int flags)
{
    return put(dev, &(struct call){.run = do_linear,
                                   .x = x,
                                   .ldx = ldx,
                                   .n = n,
                                   .mats = {*w},
                                   .p = bias,
                                   .out = out,
                                   .ldo = ldo,
                                   .flags = flags});
}

static enum ek_status do_rope_append(struct ek_device *dev, const struct call *c)
{
    return cpu.rope_append(dev, c->out, c->ldx, &c->rope, &c->batch, c->n, &c->kv);
}

static enum ek_status rope_append(struct ek_device *dev, void *qkv, size_t ld,
                                  const struct ek_rope *rope, const struct ek_batch *batch,
                                  uint32_t heads, const struct ek_kv *kv)
{
    return put(dev, &(struct call){.run = do_rope_append,
                                   .out = qkv,
                                   .ldx = ld,
                                   .rope = *rope,
                                   .batch = *batch,
                                   .n = heads,
                                   .kv = *kv});
}

static enum ek_status do_attention(struct ek_device *dev, const struct call *c)
{
    return cpu.attention(dev, c->x, c->ldx, &c->batch, &c->kv, c->n, c->f, c->out, c->ldo);
}

static enum ek_status attention(struct ek_device *dev, const void *q, size_t ldq,
                                const struct ek_batch *batch, const struct ek_kv *kv,
                                uint32_t heads, float scale, void *out, size_t ldo)
{
    return put(dev, &(struct call){.run = do_attention,
                                   .x = q,
                                   .ldx = ldq,
                                   .batch = *batch,
                                   .kv = *kv,
                                   .n = heads,
                                   .f = scale,
                                   .out = out,
                                   .ldo = ldo});
}

static enum ek_status do_gather(struct ek_device *dev, const struct call *c)
{
    return cpu.gather(dev, c->x, c->ldx, c->p, c->n, c->dim, c->out);
}

static enum ek_status gather(struct ek_device *dev, const void *x, size_t ldx, const int32_t *rows,
                             uint32_t n, uint32_t dim, void *out)
{
    return put(
        dev, &(struct call){
                 .run = do_gather, .x = x, .ldx = ldx, .p = rows, .n = n, .dim = dim, .out = out});
}

static enum ek_status do_norm_linear(struct ek_device *dev, const struct call *c)
{
    return cpu.norm_linear(dev, c->x, c->p, c->f, c->n, c->mats, c->n_mats,
                           c->flags ? c->biases : NULL, c->out, c->ldo);
}

static enum ek_status norm_linear(struct ek_device *dev, const void *x, const float *w, float eps,
                                  uint32_t n, const struct ek_mat *mats, size_t n_mats,
                                  const float *const *biases, void *out, size_t ldo)
{
    struct call c = {.run = do_norm_linear,
                     .x = x,
                     .p = w,
                     .f = eps,
                     .n = n,
                     .n_mats = n_mats,
                     .flags = biases != NULL,
                     .out = out,
                     .ldo = ldo};

    memcpy(c.mats, mats, n_mats * sizeof(*mats));
    if (biases)
        memcpy(c.biases, biases, n_mats * sizeof(*biases));
    return put(dev, &c);
}

static enum ek_status do_norm_gate_up(struct ek_device *dev, const struct call *c)
{
    return cpu.norm_gate_up(dev, c->x, c->p, c->f, c->n, c->mats, c->out, c->ldo);
}

static enum ek_status norm_gate_up(struct ek_device *dev, const void *x, const float *w, float eps,
                                   uint32_t n, const struct ek_mat mats[2], void *out, size_t ldo)
{
    return put(dev, &(struct call){.run = do_norm_gate_up,
                                   .x = x,
                                   .p = w,
                                   .f = eps,
                                   .n = n,
                                   .mats = {mats[0], mats[1]},
                                   .out = out,
                                   .ldo = ldo});
}

static enum ek_status graph_begin(struct ek_device *dev)
{
    (void)dev;
    open_graph = ek_calloc(1, sizeof(*open_graph));
    return open_graph ? EK_OK : EK_ENOMEM;
}

static enum ek_status graph_end(struct ek_device *dev, struct ek_graph **out)
{
    struct ek_graph *g = open_graph;
    enum ek_status st = refusal;

    (void)dev;
    open_graph = NULL;
    refusal = EK_OK;
    if (st != EK_OK) {
        free(g);
        return ek_error(st, "no capture today");
    }
    captures++;
    *out = g;
    return EK_OK;
}

static enum ek_status graph_launch(struct ek_device *dev, struct ek_graph *g)
{
    launches++;
    for (size_t i = 0; i < g->n; i++)
        EK_TRY(g->calls[i].run(dev, &g->calls[i]));
    return EK_OK;
}

static void graph_free(struct ek_graph *g)
{
    free(g);
}

void recorder_attach(struct ek_device *dev)
{
    if (dev->ops != &table)
        cpu = *dev->ops;
    table = cpu;
    table.embed = embed;
    table.copy = copy;
    table.rms_norm = rms_norm;
    table.linear = linear;
    table.rope_append = rope_append;
    table.attention = attention;
    table.gather = gather;
    table.norm_linear = norm_linear;
    table.norm_gate_up = norm_gate_up;
    table.graph_begin = graph_begin;
    table.graph_end = graph_end;
    table.graph_launch = graph_launch;
    table.graph_free = graph_free;
    dev->ops = &table;
    captures = launches = 0;
}

unsigned recorder_captures(void)
{
    return captures;
}

unsigned recorder_launches(void)
{
    return launches;
}

void recorder_refuse(enum ek_status st)
{
    refusal = st;
}
