/* SPDX-License-Identifier: Apache-2.0
 *
 * Entries of the table that need little more than their launcher.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/parts.h"
#include "kernels/cuda/deepseek.h"

static enum ek_status issue(struct ek_device *dev, cudaError_t e, const char *op)
{
    return ek_cuda_issued(ek_cuda(dev), e, op);
}

static const struct ek_cu_queue *queue(struct ek_device *dev)
{
    ek_cuda_use(ek_cuda(dev));
    return &ek_cuda(dev)->queue;
}

enum ek_status ek_cuda_embed(struct ek_device *dev, const struct ek_mat *table, const int32_t *ids,
                             uint32_t n, void *out)
{
    EK_TRY(ek_args_embed(table));
    if (n == 0)
        return EK_OK;
    return issue(dev,
                 ek_cu_embed(queue(dev), table->dtype, dev->act, table->data,
                             (size_t)(table->bytes / table->rows), table->rows, table->cols, ids, n,
                             out),
                 "embed");
}

enum ek_status ek_cuda_rms_norm(struct ek_device *dev, const void *x, size_t ldx,
                                const float *weight, float eps, uint32_t n, uint32_t dim, void *out,
                                size_t ldo)
{
    EK_TRY(ek_args_rows("rms_norm", n, dim, ldx < ldo ? ldx : ldo));
    if (n == 0)
        return EK_OK;
    return issue(dev, ek_cu_rms_norm(queue(dev), dev->act, x, ldx, weight, eps, n, dim, out, ldo),
                 "rms_norm");
}

enum ek_status ek_cuda_layer_norm(struct ek_device *dev, const void *x, const float *weight,
                                  const float *bias, float eps, uint32_t n, uint32_t dim, void *out)
{
    EK_TRY(ek_args_rows("layer_norm", n, dim, dim));
    if (n == 0)
        return EK_OK;
    return issue(dev, ek_cu_layer_norm(queue(dev), dev->act, x, weight, bias, eps, n, dim, out),
                 "layer_norm");
}

enum ek_status ek_cuda_swiglu(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                              uint32_t dim, void *out, size_t ldo)
{
    EK_TRY(ek_args_rows("swiglu", n, 2 * (uint64_t)dim, ldx));
    EK_TRY(ek_args_rows("swiglu", n, dim, ldo));
    if (n == 0)
        return EK_OK;
    return issue(dev, ek_cu_swiglu(queue(dev), dev->act, x, ldx, n, dim, out, ldo), "swiglu");
}

enum ek_status ek_cuda_gather(struct ek_device *dev, const void *x, size_t ldx, const int32_t *rows,
                              uint32_t n, uint32_t dim, void *out)
{
    EK_TRY(ek_args_rows("gather", n, dim, ldx));
    if (n == 0)
        return EK_OK;
    return issue(dev, ek_cu_gather(queue(dev), dev->act, x, ldx, rows, n, dim, out), "gather");
}

enum ek_status ek_cuda_permute(struct ek_device *dev, const void *x, size_t ldx,
                               const int32_t *order, uint32_t n, uint32_t dim, void *out)
{
    EK_TRY(ek_args_rows("permute", n, dim, ldx));
    if (n == 0)
        return EK_OK;
    return issue(dev, ek_cu_permute(queue(dev), dev->act, x, ldx, order, n, dim, out), "permute");
}

enum ek_status ek_cuda_argmax(struct ek_device *dev, const float *logits, uint32_t n,
                              uint32_t vocab, int32_t *ids)
{
    struct ek_cuda *d = ek_cuda(dev);
    void *best, *counted;

    EK_TRY(ek_args_rows("argmax", n, vocab, vocab));
    if (n == 0)
        return EK_OK;
    ek_cuda_use(d);
    EK_TRY(ek_cuda_scratch(d, EK_CU_OP, (size_t)n * EK_CU_ARGMAX * 8, &best));
    EK_TRY(ek_cuda_scratch(d, EK_CU_COUNTED, n * sizeof(uint32_t), &counted));
    return issue(dev, ek_cu_argmax(&d->queue, logits, n, vocab, best, counted, ids), "argmax");
}

enum ek_status ek_cuda_sample(struct ek_device *dev, const float *logits, uint32_t n,
                              uint32_t vocab, const struct ek_draw *draws, int32_t *ids)
{
    EK_TRY(ek_args_rows("sample", n, vocab, vocab));
    if (n == 0)
        return EK_OK;
    return issue(dev, ek_cu_sample(queue(dev), logits, n, vocab, draws, ids), "sample");
}

enum ek_status ek_cuda_take(struct ek_device *dev, int32_t *dst, const int32_t *src, size_t n,
                            uint32_t n_ids, const int32_t *ids)
{
    if (n == 0)
        return EK_OK;
    return issue(dev, ek_cu_take(queue(dev), dst, src, n, n_ids, ids), "take");
}

enum ek_status ek_cuda_convert(struct ek_device *dev, const void *x, enum ek_dtype from, void *out,
                               enum ek_dtype to, size_t n)
{
    if (n == 0)
        return EK_OK;
    return issue(dev, ek_cu_convert(queue(dev), x, from, out, to, n), "convert");
}

enum ek_status ek_cuda_rope_append(struct ek_device *dev, void *qkv, size_t ld,
                                   const struct ek_rope *rope, const struct ek_batch *batch,
                                   uint32_t heads, const struct ek_kv *kv)
{
    EK_TRY(ek_args_rope_append(rope, batch, heads, kv, ld));
    if (batch->n_tokens == 0)
        return EK_OK;
    return issue(dev, ek_cu_rope_append(queue(dev), dev->act, qkv, ld, rope, batch, heads, kv),
                 "rope_append");
}

/* ---- attention ---------------------------------------------------------------------------------
 */
static bool fast_shape(const struct ek_cuda *d, const struct ek_cu_attention *a)
{
    bool dims = a->kv.head_dim == a->kv.v_dim && (a->kv.head_dim == 64 || a->kv.head_dim == 128);
    bool aligned = a->ldq % 8 == 0 && a->ldo % 2 == 0 && (uintptr_t)a->q % 16 == 0 &&
                   (uintptr_t)a->out % 4 == 0;

    if (d->base.info.compute_major < 8) /* their tiles need its copies and shared memory */
        return false;
    if (a->kv.dtype != d->base.act && (a->kv.dtype != EK_F8_E4M3 || a->batch.max_q > 1))
        return false;
    if (a->batch.max_q <= 1 && a->kv.page % 16) /* decode steps lie inside of pages */
        return false;
    return d->base.act != EK_F32 && a->kv.v && dims && aligned;
}

/* Blocks of decode attention that run at once: two a multiprocessor, but for corners that clusters
 * do not fill. How many those are differs from one GPU to the next of a kind, and the split must
 * not: of the largest clusters as many as are sure to fit. */
static uint32_t blocks_at_once(const struct ek_cuda *d, uint32_t team)
{
    return team > 4 ? d->queue.n_sm : 2 * d->queue.n_sm - (team > 1 ? 4 * team : 0);
}

/* Steps of all pairs from which on teams are two blocks at most: larger clusters leave much of a
 * GPU empty. */
#define LONG_WORK(d) (16 * (uint64_t)blocks_at_once(d, 2))

/* Blocks of a team: as many as the pairs leave room for, where each warp gets two steps or more. */
static uint32_t team_of(const struct ek_cuda *d, uint32_t pairs, uint32_t steps)
{
    uint32_t team = d->queue.pdl ? EK_CU_CLUSTER : 1;

    while (team > 1 && (pairs * team > blocks_at_once(d, team) || steps <= 2 * team ||
                        (team > 2 && (uint64_t)pairs * steps >= LONG_WORK(d))))
        team /= 2;
    return team;
}

/* One team a pair of a sequence and a cached head where that is enough; long contexts of few pairs
 * are cut further, into parts of two steps a warp or more, and by large clusters into no more than
 * a block a multiprocessor takes. */
static uint32_t count_teams(const struct ek_cuda *d, uint32_t team, uint32_t pairs, uint32_t steps)
{
    uint32_t blocks = team > 2 ? d->queue.n_sm : blocks_at_once(d, team);
    uint32_t most = blocks / (team * pairs), fit = (steps + 8 * team - 1) / (8 * team);

    if (steps <= 16 * team || steps <= 64 || most < 2)
        return pairs;
    return pairs * (fit < most ? fit : most);
}

#define LARGE_SHARED (200u << 10) /* twice what three steps take fits in a multiprocessor */

/* Steps of a warp that are under way: what fits twice in a multiprocessor, and no more than there
 * are, so that blocks fit beside those of the kernel ahead. */
static uint32_t count_stages(const struct ek_cuda *d, const struct ek_cu_attention *a,
                             uint32_t pairs, uint32_t steps)
{
    uint32_t group = a->heads / a->kv.kv_heads, warps = 4 * a->team * a->teams;
    uint64_t mine = ((uint64_t)pairs * steps + warps - 1) / warps;
    uint32_t most =
        a->kv.head_dim == 128 && (2 * group > EK_CU_TILE || d->queue.shared < LARGE_SHARED) ? 2 : 3;

    return mine < most ? (uint32_t)mine : most;
}

/* How decode attention is dealt out (decode_work.cuh), and memory for what teams share. It depends
 * on shapes alone: the same batch gives the same bits. */
static enum ek_status plan_teams(struct ek_cuda *d, struct ek_cu_attention *a)
{
    uint32_t group = a->heads / a->kv.kv_heads, pairs;
    uint32_t steps = ((a->batch.max_kv ? a->batch.max_kv : 1) + 15) / 16;
    size_t slots;
    void *p;

    a->tiles = (group + EK_CU_TILE - 1) / EK_CU_TILE;
    pairs = a->batch.n_seqs * a->kv.kv_heads * a->tiles;
    a->team = team_of(d, pairs, steps);
    a->teams = count_teams(d, a->team, pairs, steps);
    a->stages = count_stages(d, a, pairs, steps);
    slots = 2 * (size_t)a->teams * EK_CU_TILE;
    EK_TRY(ek_cuda_scratch(d, EK_CU_OP,
                           slots * (a->kv.v_dim * sizeof(float) + a->team * sizeof(float2)), &p));
    a->partial = p;
    a->totals = (float2 *)(a->partial + slots * a->kv.v_dim);
    EK_TRY(ek_cuda_scratch(d, EK_CU_ARRIVED, (size_t)pairs * a->team * sizeof(uint32_t), &p));
    a->arrived = p;
    return EK_OK;
}

#define PAIRED 512 /* tokens of a context that two parts are enough for */

/* Parts of the context, as many as have a multiprocessor each, and their memory. Few and short ones
 * make clusters. It depends on shapes alone, too. */
static enum ek_status plan_parts(struct ek_cuda *d, struct ek_cu_attention *a)
{
    uint32_t group = a->heads / a->kv.kv_heads;
    uint32_t tiles = (group + EK_CU_PART_HEADS - 1) / EK_CU_PART_HEADS;
    uint32_t blocks = a->batch.n_seqs * a->kv.kv_heads * tiles;
    uint32_t wanted = blocks < d->queue.n_sm ? d->queue.n_sm / blocks : 1;
    uint32_t longest = a->batch.max_kv ? a->batch.max_kv : 1;
    size_t parts;
    void *p;

    a->team = 1;
    a->part = 2 * EK_CU_PART;
    if (d->queue.pdl && longest <= 2 * EK_CU_CLUSTER * EK_CU_PART && wanted >= EK_CU_CLUSTER) {
        a->team = wanted = EK_CU_CLUSTER;
        a->part = longest <= EK_CU_CLUSTER * EK_CU_PART ? EK_CU_PART : 2 * EK_CU_PART;
    } else if (d->queue.pdl && (wanted == 2 || (wanted > 2 && longest <= PAIRED)))
        a->team = wanted = 2;
    wanted = wanted > EK_CU_MAX_PARTS ? EK_CU_MAX_PARTS : wanted;
    a->n_parts = (longest + a->part - 1) / a->part;
    a->n_parts = a->n_parts > wanted ? wanted : a->n_parts;
    parts = (size_t)a->batch.n_seqs * a->heads * a->n_parts;
    EK_TRY(ek_cuda_scratch(d, EK_CU_OP, parts * (a->kv.v_dim + 2) * sizeof(float), &p));
    a->partial = p;
    a->totals = (float2 *)(a->partial + parts * a->kv.v_dim);
    EK_TRY(ek_cuda_scratch(d, EK_CU_ARRIVED, blocks * sizeof(uint32_t), &p));
    a->arrived = p;
    return EK_OK;
}

static enum ek_status attention_decode(struct ek_cuda *d, struct ek_cu_attention *a)
{
    if (a->kv.dtype == EK_F8_E4M3) { /* which teams alone read */
        EK_TRY(plan_teams(d, a));
        return issue(&d->base, ek_cu_attention_decode(&d->queue, d->base.act, a), "attention");
    }
    EK_TRY(plan_parts(d, a));
    if (ek_cu_boxed_takes(&d->queue, a))
        return issue(&d->base, ek_cu_attention_boxed(&d->queue, d->base.act, a), "attention");
    return issue(&d->base, ek_cu_attention_parts(&d->queue, d->base.act, a), "attention");
}

/* Kernels of many rows, and latent attention, read a cache of activations: the batch's contexts are
 * unpacked into one. */
static bool is_unpacked(const struct ek_cuda *d, const struct ek_cu_attention *a)
{
    return a->kv.dtype == EK_F8_E4M3 && d->base.act != EK_F32 && a->kv.head_dim % 16 == 0 &&
           a->kv.v_dim % 16 == 0 && (a->batch.max_q > 1 || a->kv.v == NULL);
}

static enum ek_status unpack(struct ek_cuda *d, struct ek_cu_attention *a)
{
    uint32_t blocks = ((a->batch.max_kv ? a->batch.max_kv : 1) - 1) / a->kv.page + 1;
    size_t rows = (size_t)a->batch.n_seqs * blocks * a->kv.page * a->kv.kv_heads;
    size_t k = rows * a->kv.head_dim * 2, v = a->kv.v ? rows * a->kv.v_dim * 2 : 0;
    char *p;

    EK_TRY(ek_cuda_scratch(d, EK_CU_UNPACKED,
                           k + v + (size_t)a->batch.n_seqs * blocks * sizeof(int32_t),
                           (void **)&p));
    EK_TRY(issue(&d->base,
                 ek_cu_unpack(&d->queue, d->base.act, a, p, v ? p + k : NULL,
                              (int32_t *)(void *)(p + k + v), blocks),
                 "attention"));
    a->kv.k = p;
    a->kv.v = v ? p + k : NULL;
    a->kv.dtype = d->base.act;
    a->batch.block_table = (const int32_t *)(const void *)(p + k + v);
    a->batch.max_blocks = blocks;
    return EK_OK;
}

/* The kernel for any shape keeps a head's query and sums in shared memory. */
static enum ek_status check_any(const struct ek_cuda *d, const struct ek_cu_attention *a)
{
    size_t head = ((size_t)a->kv.head_dim + a->kv.v_dim) * sizeof(float);

    if (head > ek_cuda_room(d))
        return ek_error(EK_EUNSUPPORTED, "%s: attention: heads of %u and %u take %zu bytes of %zu",
                        d->base.spec.name, a->kv.head_dim, a->kv.v_dim, head, ek_cuda_room(d));
    return EK_OK;
}

enum ek_status ek_cuda_attention(struct ek_device *dev, const void *q, size_t ldq,
                                 const struct ek_batch *batch, const struct ek_kv *kv,
                                 uint32_t heads, float scale, void *out, size_t ldo)
{
    struct ek_cuda *d = ek_cuda(dev);
    struct ek_cu_attention a = {.q = q,
                                .ldq = ldq,
                                .batch = *batch,
                                .kv = *kv,
                                .heads = heads,
                                .scale = scale,
                                .out = out,
                                .ldo = ldo};
    bool taken;

    EK_TRY(ek_args_attention(batch, kv, heads, ldq, ldo));
    if (batch->n_tokens == 0)
        return EK_OK;
    ek_cuda_use(d);
    if (is_unpacked(d, &a))
        EK_TRY(unpack(d, &a));
    EK_TRY(ek_cuda_latent_attention(d, &a, &taken));
    if (taken)
        return EK_OK;
    if (!fast_shape(d, &a)) {
        EK_TRY(check_any(d, &a));
        return issue(dev, ek_cu_attention_any(&d->queue, dev->act, &a), "attention");
    }
    if (batch->max_q > 1)
        return issue(dev, ek_cu_attention_prefill(&d->queue, dev->act, &a), "attention");
    return attention_decode(d, &a);
}

/* ---- vision ------------------------------------------------------------------------------------
 */
enum ek_status ek_cuda_scatter_rows(struct ek_device *dev, const float *x, const int32_t *rows,
                                    uint32_t n, uint32_t dim, void *out, size_t ldo)
{
    EK_TRY(ek_args_rows("scatter_rows", n, dim, ldo));
    if (n == 0)
        return EK_OK;
    return issue(dev, ek_cu_scatter(queue(dev), dev->act, x, rows, n, dim, out, ldo),
                 "scatter_rows");
}

enum ek_status ek_cuda_rope_rows(struct ek_device *dev, void *x, size_t ld,
                                 const struct ek_rope *rope, const int32_t *positions, uint32_t n,
                                 uint32_t heads, uint32_t head_dim)
{
    EK_TRY(ek_args_rope("rope_rows", rope, head_dim));
    EK_TRY(ek_args_rows("rope_rows", n, (uint64_t)heads * head_dim, ld));
    if (n == 0)
        return EK_OK;
    return issue(dev,
                 ek_cu_rope_rows(queue(dev), dev->act, x, ld, rope, positions, n, heads, head_dim),
                 "rope_rows");
}

static bool dense_fast(const struct ek_cuda *d, const struct ek_cu_attention *a)
{
    if (d->base.info.compute_major < 8 || d->base.act == EK_F32)
        return false;
    return a->kv.head_dim % 8 == 0 && a->kv.head_dim <= 128 && a->ldq % 8 == 0 && a->ldo % 2 == 0 &&
           (uintptr_t)a->q % 16 == 0 && (uintptr_t)a->out % 4 == 0;
}

enum ek_status ek_cuda_attention_dense(struct ek_device *dev, const void *qkv, size_t ld,
                                       uint32_t n, const int32_t *segments, uint32_t n_segments,
                                       uint32_t max_segment, uint32_t heads, uint32_t head_dim,
                                       float scale, void *out, size_t ldo)
{
    struct ek_cuda *d = ek_cuda(dev);
    size_t width = (size_t)heads * head_dim * (dev->act == EK_F32 ? 4 : 2);
    struct ek_cu_attention a = {
        .q = qkv,
        .ldq = ld,
        .row = ld,
        .batch = {.n_tokens = n, .n_seqs = n_segments, .max_q = max_segment, .seq_start = segments},
        .kv = {.k = (char *)(uintptr_t)qkv + width,
               .v = (char *)(uintptr_t)qkv + 2 * width,
               .dtype = dev->act,
               .kv_heads = heads,
               .head_dim = head_dim,
               .v_dim = head_dim},
        .heads = heads,
        .scale = scale,
        .out = out,
        .ldo = ldo};

    EK_TRY(ek_args_attention_dense(n, n_segments, max_segment, heads, head_dim, ld, ldo));
    if (n_segments == 0)
        return EK_OK;
    if (n_segments > 65535 || max_segment > 65535u * 128)
        return ek_error(EK_EUNSUPPORTED, "attention: %u segments of up to %u rows", n_segments,
                        max_segment);
    ek_cuda_use(d);
    if (!dense_fast(d, &a))
        EK_TRY(check_any(d, &a));
    return issue(dev,
                 dense_fast(d, &a) ? ek_cu_attention_dense(&d->queue, dev->act, &a)
                                   : ek_cu_attention_dense_any(&d->queue, dev->act, &a),
                 "attention_dense");
}
