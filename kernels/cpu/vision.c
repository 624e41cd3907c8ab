/* SPDX-License-Identifier: Apache-2.0
 *
 * Operations of vision towers: rotation by positions given row by row, attention of packed segments
 * without a cache, and rows of pictures to their places among the embeddings.
 */
#include "kernels/cpu/cpu.h"

#include <string.h>

enum { BLOCK_ROWS = 96 };

struct scatter_job {
    const float *x;
    const int32_t *rows;
    uint32_t dim;
    float *out;
    size_t ldo;
};

static void scatter_row(void *arg, uint32_t i, uint32_t thread)
{
    const struct scatter_job *a = arg;

    (void)thread;
    memcpy(a->out + (size_t)a->rows[i] * a->ldo, a->x + (size_t)i * a->dim, a->dim * sizeof(float));
}

enum ek_status cpu_scatter_rows(struct ek_device *dev, const float *x, const int32_t *rows,
                                uint32_t n, uint32_t dim, void *out, size_t ldo)
{
    struct scatter_job a = {.x = x, .rows = rows, .dim = dim, .out = out, .ldo = ldo};

    EK_TRY(ek_args_rows("scatter_rows", n, dim, ldo));
    for (uint32_t i = 0; i < n; i++)
        if (rows[i] < 0)
            return ek_error(EK_EUSAGE, "scatter: row %u goes to %d", i, rows[i]);
    cpu_run_rows(cpu_of(dev), n, dim, scatter_row, &a);
    return EK_OK;
}

/* ---- Rotation ---------------------------------------------------------------------------------
 */
struct rope_job {
    const struct cpu_device *dev;
    float *x;
    size_t ld;
    const struct ek_rope *rope;
    struct ek_batch batch; /* positions alone */
    uint32_t heads, head_dim;
};

static void rope_item(void *arg, uint32_t row, uint32_t thread)
{
    const struct rope_job *a = arg;
    float *cosine = cpu_scratch_of(a->dev, thread), *sine = cosine + a->rope->dim / 2;

    cpu_token_angles(a->dev->simd, a->rope, &a->batch, row, cosine, sine);
    for (uint32_t h = 0; h < a->heads; h++)
        a->dev->simd->rotate(a->x + row * a->ld + (size_t)h * a->head_dim, cosine, sine,
                             a->rope->dim, a->rope->interleaved);
}

enum ek_status cpu_rope_rows(struct ek_device *dev, void *x, size_t ld, const struct ek_rope *rope,
                             const int32_t *positions, uint32_t n, uint32_t heads,
                             uint32_t head_dim)
{
    struct rope_job a = {.dev = cpu_of(dev),
                         .x = x,
                         .ld = ld,
                         .rope = rope,
                         .batch = {.n_tokens = n, .positions = positions},
                         .heads = heads,
                         .head_dim = head_dim};

    EK_TRY(ek_args_rope("rope_rows", rope, head_dim));
    EK_TRY(ek_args_rows("rope_rows", n, (uint64_t)heads * head_dim, ld));
    EK_TRY(cpu_workspace(cpu_of(dev), rope->dim * sizeof(float), 0, NULL));
    cpu_run_rows(cpu_of(dev), n, (size_t)heads * head_dim + rope->dim * 16, rope_item, &a);
    return EK_OK;
}

/* ---- Attention --------------------------------------------------------------------------------
 */
struct item {
    uint32_t segment, head, first, count; /* queries of a block */
};

struct dense_job {
    struct cpu_attend a;
    const struct cpu_device *dev;
    struct item *items;
};

/* Segments of one row have an item as all others: attend_block takes any number of queries. */
static uint32_t list_items(const struct cpu_attend *a, struct item *out)
{
    uint32_t n = 0;

    for (uint32_t s = 0; s < a->batch->n_seqs; s++) {
        uint32_t rows = (uint32_t)(a->batch->seq_start[s + 1] - a->batch->seq_start[s]);
        for (uint32_t h = 0; h < a->heads; h++)
            for (uint32_t at = 0; at < rows; at += a->block, n++)
                if (out)
                    out[n] = (struct item){s, h, at, rows - at < a->block ? rows - at : a->block};
    }
    return n;
}

static void dense_item(void *arg, uint32_t i, uint32_t thread)
{
    const struct dense_job *job = arg;
    const struct item *it = &job->items[i];

    job->dev->simd->attend_block(&job->a, it->segment, it->head, it->first, it->count,
                                 cpu_scratch_of(job->dev, thread));
}

static enum ek_status check_segments(const int32_t *segments, uint32_t n, uint32_t max_segment,
                                     uint32_t rows)
{
    for (uint32_t i = 0; i < n; i++)
        if (segments[i + 1] <= segments[i] ||
            (uint32_t)(segments[i + 1] - segments[i]) > max_segment)
            return ek_error(EK_EUSAGE, "attention: segment %u from %d to %d, at most %u rows", i,
                            segments[i], segments[i + 1], max_segment);
    if (segments[0] != 0 || (uint32_t)segments[n] != rows)
        return ek_error(EK_EUSAGE, "attention: segments from %d to %d of %u rows", segments[0],
                        segments[n], rows);
    return EK_OK;
}

enum ek_status cpu_attention_dense(struct ek_device *dev, const void *qkv, size_t ld, uint32_t n,
                                   const int32_t *segments, uint32_t n_segments,
                                   uint32_t max_segment, uint32_t heads, uint32_t head_dim,
                                   float scale, void *out, size_t ldo)
{
    struct cpu_device *cpu = cpu_of(dev);
    size_t width = (size_t)heads * head_dim;
    float *q = (float *)(uintptr_t)qkv, *shared;
    struct ek_kv kv = {.k = q + width,
                       .v = q + 2 * width,
                       .dtype = EK_F32,
                       .kv_heads = heads,
                       .head_dim = head_dim,
                       .v_dim = head_dim,
                       .page = UINT32_MAX};
    struct ek_batch batch = {.n_seqs = n_segments, .seq_start = segments};
    struct dense_job job = {.a = {.q = qkv,
                                  .out = out,
                                  .ldq = ld,
                                  .ldo = ldo,
                                  .batch = &batch,
                                  .kv = &kv,
                                  .heads = heads,
                                  .group = 1,
                                  .block = BLOCK_ROWS,
                                  .scale = scale,
                                  .dense_ld = ld},
                            .dev = cpu};

    EK_TRY(ek_args_attention_dense(n, n_segments, max_segment, heads, head_dim, ld, ldo));
    EK_TRY(check_segments(segments, n_segments, max_segment, n));
    n = list_items(&job.a, NULL);
    EK_TRY(cpu_workspace(cpu, cpu_attend_scratch(&job.a), n * sizeof(struct item) / sizeof(float),
                         &shared));
    job.items = (void *)shared;
    list_items(&job.a, job.items);
    cpu_run(cpu, n, dense_item, &job);
    return EK_OK;
}
