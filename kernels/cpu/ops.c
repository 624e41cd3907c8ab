/* SPDX-License-Identifier: Apache-2.0
 *
 * Operations on rows: one token is one item.
 */
#include "kernels/cpu/cpu.h"

#include <stdlib.h>
#include <string.h>

struct rows_job {
    const struct cpu_simd *simd;
    const float *x, *weight, *bias;
    const int32_t *index;
    size_t ldx, ldo;
    uint32_t dim;
    float eps;
    float *out;
    int32_t *ids;
    const struct ek_mat *table;
};

/* ---- Rows ------------------------------------------------------------------------------------ */

static void embed_row(void *arg, uint32_t i, uint32_t thread)
{
    const struct rows_job *a = arg;
    const struct ek_mat *t = a->table;
    const uint8_t *src = (const uint8_t *)t->data + (size_t)a->index[i] * (t->bytes / t->rows);
    float *out = a->out + (size_t)i * t->cols;

    (void)thread;
    if (a->simd->decode[t->dtype])
        a->simd->decode[t->dtype](src, out, t->cols);
    else
        (void)ek_dequantize(t->dtype, src, out, t->cols); /* checked by mat_new */
}

enum ek_status cpu_embed(struct ek_device *dev, const struct ek_mat *table, const int32_t *ids,
                         uint32_t n, void *out)
{
    struct rows_job a = {.simd = cpu_of(dev)->simd, .index = ids, .out = out, .table = table};

    EK_TRY(ek_args_embed(table));
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= table->rows)
            return ek_error(EK_EUSAGE, "token id %d is not below the vocabulary's %u", ids[i],
                            table->rows);
    cpu_run_rows(cpu_of(dev), n, table->cols, embed_row, &a);
    return EK_OK;
}

static void rms_norm_row(void *arg, uint32_t i, uint32_t thread)
{
    const struct rows_job *a = arg;

    (void)thread;
    a->simd->rms_norm(a->x + i * a->ldx, a->weight, a->eps, a->dim, a->out + i * a->ldo);
}

enum ek_status cpu_rms_norm(struct ek_device *dev, const void *x, size_t ldx, const float *weight,
                            float eps, uint32_t n, uint32_t dim, void *out, size_t ldo)
{
    struct rows_job a = {.simd = cpu_of(dev)->simd,
                         .x = x,
                         .weight = weight,
                         .ldx = ldx,
                         .ldo = ldo,
                         .dim = dim,
                         .eps = eps,
                         .out = out};

    EK_TRY(ek_args_rows("rms_norm", n, dim, ldx < ldo ? ldx : ldo));
    cpu_run_rows(cpu_of(dev), n, dim, rms_norm_row, &a);
    return EK_OK;
}

static void layer_norm_row(void *arg, uint32_t i, uint32_t thread)
{
    const struct rows_job *a = arg;
    size_t at = (size_t)i * a->dim;

    (void)thread;
    a->simd->layer_norm(a->x + at, a->weight, a->bias, a->eps, a->dim, a->out + at);
}

enum ek_status cpu_layer_norm(struct ek_device *dev, const void *x, const float *weight,
                              const float *bias, float eps, uint32_t n, uint32_t dim, void *out)
{
    struct rows_job a = {.simd = cpu_of(dev)->simd,
                         .x = x,
                         .weight = weight,
                         .bias = bias,
                         .dim = dim,
                         .eps = eps,
                         .out = out};

    EK_TRY(ek_args_rows("layer_norm", n, dim, dim));
    cpu_run_rows(cpu_of(dev), n, dim, layer_norm_row, &a);
    return EK_OK;
}

static void swiglu_row(void *arg, uint32_t i, uint32_t thread)
{
    const struct rows_job *a = arg;
    const float *gate = a->x + i * a->ldx;

    (void)thread;
    a->simd->swiglu(gate, gate + a->dim, a->dim, a->out + i * a->ldo);
}

enum ek_status cpu_swiglu(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                          uint32_t dim, void *out, size_t ldo)
{
    struct rows_job a = {
        .simd = cpu_of(dev)->simd, .x = x, .ldx = ldx, .ldo = ldo, .dim = dim, .out = out};

    EK_TRY(ek_args_rows("swiglu", n, 2 * (uint64_t)dim, ldx));
    EK_TRY(ek_args_rows("swiglu", n, dim, ldo));
    cpu_run_rows(cpu_of(dev), n, (size_t)dim * 4, swiglu_row, &a);
    return EK_OK;
}

static void gather_row(void *arg, uint32_t i, uint32_t thread)
{
    const struct rows_job *a = arg;
    float *out = a->out + (size_t)i * a->dim;

    (void)thread;
    if (a->index[i] < 0)
        memset(out, 0, a->dim * sizeof(float));
    else
        memcpy(out, a->x + (size_t)a->index[i] * a->ldx, a->dim * sizeof(float));
}

enum ek_status cpu_gather(struct ek_device *dev, const void *x, size_t ldx, const int32_t *rows,
                          uint32_t n, uint32_t dim, void *out)
{
    struct rows_job a = {.x = x, .ldx = ldx, .index = rows, .dim = dim, .out = out};

    EK_TRY(ek_args_rows("gather", n, dim, ldx));
    cpu_run_rows(cpu_of(dev), n, dim, gather_row, &a);
    return EK_OK;
}

static void permute_row(void *arg, uint32_t i, uint32_t thread)
{
    const struct rows_job *a = arg;
    const float *x = a->x + i * a->ldx;
    float *out = a->out + (size_t)i * a->dim;

    (void)thread;
    for (uint32_t c = 0; c < a->dim; c++)
        out[c] = x[a->index[c]];
}

enum ek_status cpu_permute(struct ek_device *dev, const void *x, size_t ldx, const int32_t *order,
                           uint32_t n, uint32_t dim, void *out)
{
    struct rows_job a = {.x = x, .ldx = ldx, .index = order, .dim = dim, .out = out};

    EK_TRY(ek_args_rows("permute", n, dim, ldx));
    cpu_run_rows(cpu_of(dev), n, (size_t)dim * 2, permute_row, &a);
    return EK_OK;
}

static void argmax_row(void *arg, uint32_t i, uint32_t thread)
{
    const struct rows_job *a = arg;

    (void)thread;
    a->ids[i] = (int32_t)a->simd->argmax(a->x + (size_t)i * a->dim, a->dim);
}

enum ek_status cpu_argmax(struct ek_device *dev, const float *logits, uint32_t n, uint32_t vocab,
                          int32_t *ids)
{
    struct rows_job a = {.simd = cpu_of(dev)->simd, .x = logits, .dim = vocab, .ids = ids};

    EK_TRY(ek_args_rows("argmax", n, vocab, vocab));
    cpu_run_rows(cpu_of(dev), n, vocab, argmax_row, &a);
    return EK_OK;
}

struct sample_job {
    const float *logits;
    uint32_t vocab;
    const struct ek_draw *draws;
    int32_t *ids;
    _Atomic int status;
};

static void sample_row(void *arg, uint32_t i, uint32_t thread)
{
    struct sample_job *a = arg;
    enum ek_status st =
        ek_draw_token(&a->draws[i], a->logits + (size_t)i * a->vocab, a->vocab, &a->ids[i]);

    (void)thread;
    if (st != EK_OK)
        a->status = st;
}

enum ek_status cpu_sample(struct ek_device *dev, const float *logits, uint32_t n, uint32_t vocab,
                          const struct ek_draw *draws, int32_t *ids)
{
    struct sample_job a = {.logits = logits, .vocab = vocab, .draws = draws, .ids = ids};

    EK_TRY(ek_args_rows("sample", n, vocab, vocab));
    cpu_run_rows(cpu_of(dev), n, vocab, sample_row, &a);
    return a.status == EK_OK ? EK_OK : ek_error(EK_ENOMEM, "out of memory for a draw");
}

enum ek_status cpu_take(struct ek_device *dev, int32_t *dst, const int32_t *src, size_t n,
                        uint32_t n_ids, const int32_t *ids)
{
    (void)dev;
    memcpy(dst, src, n * sizeof(*dst));
    for (uint32_t i = 0; ids != NULL && i < n_ids; i++)
        if (dst[i] < 0) {
            int32_t id = ids[-1 - dst[i]];
            dst[i] = id > 0 ? id : 0;
        }
    return EK_OK;
}

/* ---- Conversion ------------------------------------------------------------------------------ */

enum { CONVERT_CHUNK = 4096 }; /* elements: a multiple of every block */

struct convert_job {
    const struct cpu_simd *simd;
    const uint8_t *x;
    uint8_t *out;
    enum ek_dtype from, to;
    size_t n;
};

static void convert_item(void *arg, uint32_t item, uint32_t thread)
{
    const struct convert_job *a = arg;
    size_t at = (size_t)item * CONVERT_CHUNK;
    size_t n = a->n - at < CONVERT_CHUNK ? a->n - at : CONVERT_CHUNK;
    const uint8_t *src = a->x + at / ek_dtype_block(a->from) * ek_dtype_block_bytes(a->from);
    uint8_t *dst = a->out + at * ek_dtype_block_bytes(a->to);
    float buffer[CONVERT_CHUNK], *f = a->to == EK_F32 ? (float *)(void *)dst : buffer;

    (void)thread;
    if (a->simd->decode[a->from])
        a->simd->decode[a->from](src, f, n);
    else
        (void)ek_dequantize(a->from, src, f, n); /* checked by the caller */
    if (a->to == EK_F16)
        a->simd->to_f16(f, (uint16_t *)(void *)dst, n);
    else if (a->to == EK_BF16)
        a->simd->to_bf16(f, (uint16_t *)(void *)dst, n);
}

enum ek_status cpu_convert(struct ek_device *dev, const void *x, enum ek_dtype from, void *out,
                           enum ek_dtype to, size_t n)
{
    struct convert_job a = {
        .simd = cpu_of(dev)->simd, .x = x, .out = out, .from = from, .to = to, .n = n};
    float probe[1];
    size_t bytes;

    if (to != EK_F32 && to != EK_F16 && to != EK_BF16)
        return ek_error(EK_EUNSUPPORTED, "no conversion to %s", ek_dtype_name(to));
    EK_TRY(ek_dequantize(from, NULL, probe, 0));
    EK_TRY(ek_dtype_bytes(from, n, &bytes));
    cpu_run(cpu_of(dev), (uint32_t)((n + CONVERT_CHUNK - 1) / CONVERT_CHUNK), convert_item, &a);
    return EK_OK;
}
