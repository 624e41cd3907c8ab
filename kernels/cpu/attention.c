/* SPDX-License-Identifier: Apache-2.0
 *
 * Rotary positions with the cache's append, and attention: cutting a ragged batch into items. A
 * sequence with one new token is cut along its context, one with more along its queries.
 */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

enum { BLOCK_ROWS = 96, PAD = 16 };

/* ---- Rotation and append --------------------------------------------------------------------- */

struct rope_job {
    const struct cpu_device *dev;
    float *qkv;
    size_t ld;
    const struct ek_rope *rope;
    const struct ek_batch *batch;
    uint32_t heads;
    const struct ek_kv *kv;
};

void cpu_token_angles(const struct cpu_simd *simd, const struct ek_rope *rope,
                      const struct ek_batch *batch, uint32_t token, float *cosine, float *sine)
{
    uint32_t half = rope->dim / 2, at = 0;
    bool sections = rope->sections[0] || rope->sections[1] || rope->sections[2];
    size_t step = batch->position_row ? batch->position_row : batch->n_tokens;

    for (uint32_t s = 0; s < 3 && at < half; s++) {
        uint32_t n = sections ? rope->sections[s] : half;
        size_t row = sections ? s : 0;
        n = n < half - at ? n : half - at;
        simd->angles((float)batch->positions[row * step + token], rope->inv_freq + at, n,
                     rope->amplitude, cosine + at, sine + at);
        at += n;
    }
}

/* One row as E4M3 (struct ek_kv has the rule). */
static void store_scaled(const float *row, size_t n, uint8_t *to, float *scale)
{
    float largest = 0;

    for (size_t i = 0; i < n; i++)
        if (fabsf(row[i]) > largest || isnan(row[i])) /* which nothing is larger than: it stays */
            largest = fabsf(row[i]);
    *scale = largest <= 0x1p-100f ? 1.0f : largest / 448.0f;
    for (size_t i = 0; i < n; i++)
        to[i] = ek_f32_to_e4m3(row[i] / *scale);
}

void cpu_cache_store(const struct cpu_simd *simd, const struct ek_kv *kv, bool values, size_t slot,
                     const float *rows)
{
    size_t dim = values ? kv->v_dim : kv->head_dim, n = kv->kv_heads * dim, offset = slot * n;
    void *base = values ? kv->v : kv->k;
    float *scale = values ? kv->v_scale : kv->k_scale;

    if (kv->dtype == EK_F16)
        simd->to_f16(rows, (uint16_t *)base + offset, n);
    else if (kv->dtype == EK_BF16)
        simd->to_bf16(rows, (uint16_t *)base + offset, n);
    else if (kv->dtype == EK_F32)
        memcpy((float *)base + offset, rows, n * sizeof(float));
    else
        for (size_t h = 0; h < kv->kv_heads; h++)
            store_scaled(rows + h * dim, dim, (uint8_t *)base + offset + h * dim,
                         &scale[slot * kv->kv_heads + h]);
}

static void rope_item(void *arg, uint32_t token, uint32_t thread)
{
    const struct rope_job *a = arg;
    const struct ek_kv *kv = a->kv;
    float *row = a->qkv + token * a->ld, *k = row + (size_t)a->heads * kv->head_dim;
    float *v = k + (size_t)kv->kv_heads * kv->head_dim;
    float *cosine = cpu_scratch_of(a->dev, thread), *sine = cosine + a->rope->dim / 2;
    size_t slot = (size_t)a->batch->slots[token];

    cpu_token_angles(a->dev->simd, a->rope, a->batch, token, cosine, sine);
    for (uint32_t h = 0; h < a->heads + kv->kv_heads; h++)
        a->dev->simd->rotate(row + (size_t)h * kv->head_dim, cosine, sine, a->rope->dim,
                             a->rope->interleaved);
    cpu_cache_store(a->dev->simd, kv, false, slot, k);
    cpu_cache_store(a->dev->simd, kv, true, slot, v);
}

enum ek_status cpu_rope_append(struct ek_device *dev, void *qkv, size_t ld,
                               const struct ek_rope *rope, const struct ek_batch *batch,
                               uint32_t heads, const struct ek_kv *kv)
{
    struct rope_job a = {.dev = cpu_of(dev),
                         .qkv = qkv,
                         .ld = ld,
                         .rope = rope,
                         .batch = batch,
                         .heads = heads,
                         .kv = kv};
    size_t work = (size_t)(heads + 2 * kv->kv_heads) * kv->head_dim + rope->dim * 16;

    EK_TRY(ek_args_rope_append(rope, batch, heads, kv, ld));
    EK_TRY(cpu_workspace(cpu_of(dev), rope->dim * sizeof(float), 0, NULL));
    cpu_run_rows(cpu_of(dev), batch->n_tokens, work, rope_item, &a);
    return EK_OK;
}

/* ---- Attention ------------------------------------------------------------------------------- */

struct item {
    uint32_t seq, kv_head, first, count; /* queries of a block, or keys of a part */
    uint32_t one;                        /* a single query: part number + 1; else 0 */
};

struct attention_job {
    struct cpu_attend a;
    const struct cpu_device *dev;
    struct item *items;
    float *partials; /* [seq of one query][head][part], in the order of items */
    uint32_t parts;  /* most parts of a query */
    size_t stride;   /* floats of a partial */
};

static uint32_t new_tokens(const struct ek_batch *b, uint32_t seq)
{
    return (uint32_t)(b->seq_start[seq + 1] - b->seq_start[seq]);
}

/* Items of all sequences in the order of issue (late, long blocks first); counts when out is NULL.
 */
static uint32_t list_items(const struct cpu_attend *a, struct item *out)
{
    uint32_t n = 0;

    for (uint32_t s = 0; s < a->batch->n_seqs; s++) {
        uint32_t n_new = new_tokens(a->batch, s), total = (uint32_t)a->batch->kv_len[s];
        uint32_t length = n_new == 1 ? total : n_new, step = n_new == 1 ? CPU_SPLIT : a->block;
        uint32_t n_cut = (length + step - 1) / step;
        for (uint32_t c = n_new ? n_cut : 0; c-- > 0;)
            for (uint32_t h = 0; h < a->kv->kv_heads; h++, n++)
                if (out)
                    out[n] =
                        (struct item){.seq = s,
                                      .kv_head = h,
                                      .first = c * step,
                                      .count = length - c * step < step ? length - c * step : step,
                                      .one = n_new == 1 ? c + 1 : 0};
    }
    return n;
}

/* Partials of part p of head h of a sequence: parts of a head lie behind one another. */
static float *partial_of(const struct attention_job *job, uint32_t seq, uint32_t part,
                         uint32_t kv_head)
{
    size_t heads = job->a.heads, first = (size_t)kv_head * job->a.group;

    return job->partials + (((size_t)seq * job->parts + part) * heads + first) * job->stride;
}

static void attention_item(void *arg, uint32_t i, uint32_t thread)
{
    const struct attention_job *job = arg;
    const struct item *it = &job->items[i];
    void *scratch = cpu_scratch_of(job->dev, thread);

    if (it->one)
        job->dev->simd->attend_one(&job->a, it->seq, it->kv_head, it->first, it->first + it->count,
                                   partial_of(job, it->seq, it->one - 1, it->kv_head), scratch);
    else
        job->dev->simd->attend_block(&job->a, it->seq, it->kv_head, it->first, it->count, scratch);
}

static void merge_item(void *arg, uint32_t seq, uint32_t thread)
{
    const struct attention_job *job = arg;
    const struct cpu_attend *a = &job->a;
    uint32_t total = (uint32_t)a->batch->kv_len[seq];

    (void)thread;
    if (new_tokens(a->batch, seq) != 1)
        return;
    for (uint32_t h = 0; h < a->heads; h++)
        job->dev->simd->merge(a, seq, h, partial_of(job, seq, 0, 0) + h * job->stride,
                              (total + CPU_SPLIT - 1) / CPU_SPLIT, a->heads * job->stride);
}

static size_t padded(size_t n)
{
    return (n + PAD - 1) / PAD * PAD;
}

size_t cpu_attend_scratch(const struct cpu_attend *a)
{
    size_t rows = (size_t)a->block * a->group, kd = padded(a->kv->head_dim);
    size_t vd = padded(a->kv->v_dim), widest = kd > vd ? kd : vd;
    size_t floats = rows * (kd + CPU_KEYS + vd + 2) + CPU_KEYS * (kd + vd + widest);

    return floats * sizeof(float);
}

/* The longest context of sequences with one new token, in parts. */
static uint32_t most_parts(const struct ek_batch *b)
{
    uint32_t most = 0;

    for (uint32_t s = 0; s < b->n_seqs; s++)
        if (new_tokens(b, s) == 1 && (uint32_t)b->kv_len[s] > most)
            most = (uint32_t)b->kv_len[s];
    return (most + CPU_SPLIT - 1) / CPU_SPLIT;
}

enum ek_status cpu_attention(struct ek_device *dev, const void *q, size_t ldq,
                             const struct ek_batch *batch, const struct ek_kv *kv, uint32_t heads,
                             float scale, void *out, size_t ldo)
{
    struct cpu_device *cpu = cpu_of(dev);
    struct attention_job job = {.a = {.q = q,
                                      .out = out,
                                      .ldq = ldq,
                                      .ldo = ldo,
                                      .batch = batch,
                                      .kv = kv,
                                      .heads = heads,
                                      .scale = scale},
                                .dev = cpu,
                                .parts = most_parts(batch),
                                .stride = padded(kv->v_dim) + PAD};
    size_t partials = (size_t)batch->n_seqs * job.parts * heads * job.stride;
    uint32_t n;

    EK_TRY(ek_args_attention(batch, kv, heads, ldq, ldo));
    job.a.group = heads / kv->kv_heads;
    job.a.block = job.a.group < BLOCK_ROWS ? BLOCK_ROWS / job.a.group : 1;
    n = list_items(&job.a, NULL);
    EK_TRY(cpu_workspace(cpu, cpu_attend_scratch(&job.a),
                         partials + n * sizeof(struct item) / sizeof(float), &job.partials));
    job.items = (void *)(job.partials + partials);
    list_items(&job.a, job.items);
    cpu_run(cpu, n, attention_item, &job);
    cpu_run_rows(cpu, batch->n_seqs, (size_t)heads * kv->v_dim, merge_item, &job);
    return EK_OK;
}
