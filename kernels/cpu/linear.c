/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of activations with weight matrices. An item is some rows of one matrix for a block of
 * tokens. With few tokens the rows are decoded in registers; with many they are decoded once into
 * the thread's scratch. Both give the same bits, so neither the cut into items nor the number of
 * tokens changes a result.
 */
#include "kernels/cpu/cpu.h"

#include <string.h>

enum {
    INPUT_BYTES = 524288,   /* inputs of an item's tokens, to stay in L2 */
    ITEMS_PER_THREAD = 8,   /* evens out the threads */
    MAX_ROWS = 64,          /* rows of an item */
    DECODED_BYTES = 196608, /* decoded rows of an item, to stay in L2 */
};

struct product {
    struct cpu_device *dev;
    const float *x; /* [n][ldx], readable up to `cols` */
    size_t ldx;
    uint32_t n, cols; /* cols: rounded up to whole units */
    const struct ek_mat *mats;
    size_t n_mats;
    const float *const *biases; /* NULL: none */
    float *out;
    size_t ldo;
    int flags;
    bool gated; /* mats are gate and up: out = silu(gate) * up */
    uint32_t tokens, rows, items;
};

/* ---- Weights --------------------------------------------------------------------------------- */

enum ek_status cpu_mat_new(struct ek_device *dev, enum ek_dtype dtype, uint32_t rows, uint32_t cols,
                           struct ek_mat *out)
{
    size_t row_bytes, bytes;
    float probe[256];
    void *data;

    if (!rows || !cols)
        return ek_error(EK_EFORMAT, "a matrix of %u x %u is empty", rows, cols);
    /* which types can be decoded is known to ek_dequantize alone */
    EK_TRY(ek_dequantize(dtype, NULL, probe, 0));
    EK_TRY(ek_dtype_bytes(dtype, cols, &row_bytes));
    if (!ek_mul_size(row_bytes, rows, &bytes))
        return ek_error(EK_ENOMEM, "a matrix of %u x %u %s overflows", rows, cols,
                        ek_dtype_name(dtype));
    EK_TRY(cpu_alloc(dev, EK_TAG_WEIGHTS, bytes, &data));
    *out =
        (struct ek_mat){.data = data, .dtype = dtype, .rows = rows, .cols = cols, .bytes = bytes};
    return EK_OK;
}

enum ek_status cpu_mat_ready(struct ek_device *dev, struct ek_mat *m)
{
    (void)dev, (void)m; /* the checkpoint's form is the one that is read */
    return EK_OK;
}

void cpu_mat_free(struct ek_device *dev, struct ek_mat *m)
{
    cpu_release(dev, m->data);
    *m = (struct ek_mat){.data = NULL};
}

uint64_t cpu_mat_bytes(const struct ek_device *dev, enum ek_dtype dtype, uint32_t rows,
                       uint32_t cols)
{
    size_t row, bytes;

    if (ek_dtype_bytes(dtype, cols, &row) != EK_OK || !ek_mul_size(row, rows, &bytes))
        return UINT64_MAX; /* mat_new refuses it */
    return cpu_alloc_bytes(dev, bytes);
}

/* ---- Items ----------------------------------------------------------------------------------- */

static size_t row_bytes(const struct ek_mat *m)
{
    return m->bytes / m->rows;
}

/* Whether rows of m are multiplied as they are. */
static bool direct(const struct product *p, const struct ek_mat *m, uint32_t n)
{
    const struct cpu_simd *simd = p->dev->simd;

    return simd->dots[m->dtype] && m->cols == p->cols && (n <= simd->tile || m->dtype == EK_F32);
}

/* Decoded rows, padded with zeros to whole units. */
static void decode_rows(const struct product *p, const struct ek_mat *m, uint32_t row,
                        uint32_t rows, float *out)
{
    const uint8_t *src = (const uint8_t *)m->data + row * row_bytes(m);

    for (uint32_t r = 0; r < rows; r++, src += row_bytes(m), out += p->cols) {
        if (p->dev->simd->decode[m->dtype])
            p->dev->simd->decode[m->dtype](src, out, m->cols);
        else
            (void)ek_dequantize(m->dtype, src, out, m->cols); /* checked by mat_new */
        memset(out + m->cols, 0, (p->cols - m->cols) * sizeof(float));
    }
}

/* y[t][r] for rows of m and tokens t0 .. t0 + n; decoded: room for the rows */
static void multiply(const struct product *p, const struct ek_mat *m, uint32_t row, uint32_t rows,
                     uint32_t t0, uint32_t n, float *decoded, float *y)
{
    const struct cpu_simd *simd = p->dev->simd;
    const void *w = (const uint8_t *)m->data + row * row_bytes(m);
    enum ek_dtype dtype = m->dtype;
    size_t bytes = row_bytes(m);

    if (!direct(p, m, n)) {
        decode_rows(p, m, row, rows, decoded);
        w = decoded;
        dtype = EK_F32;
        bytes = p->cols * sizeof(float);
    }
    for (uint32_t t = 0; t < n; t += simd->tile)
        simd->dots[dtype](w, bytes, rows, p->cols, p->x + (t0 + t) * p->ldx, p->ldx,
                          n - t < simd->tile ? n - t : simd->tile, y + (size_t)t * rows, rows);
}

static uint32_t n_panels(const struct product *p, const struct ek_mat *m)
{
    return (m->rows + p->rows - 1) / p->rows;
}

/* The matrix, its first row and its first column in out of panel number k; false past the last. */
static bool find_panel(const struct product *p, uint32_t k, size_t *mat, uint32_t *row,
                       size_t *column)
{
    *column = 0;
    for (*mat = 0; *mat < p->n_mats; ++*mat) {
        const struct ek_mat *m = &p->mats[*mat];
        if (k < n_panels(p, m)) {
            *row = k * p->rows;
            *column += *row;
            return true;
        }
        k -= n_panels(p, m);
        *column += m->rows;
    }
    return false;
}

static void product_item(void *arg, uint32_t item, uint32_t thread)
{
    const struct product *p = arg;
    const struct cpu_simd *simd = p->dev->simd;
    uint32_t per_block = p->items / ((p->n + p->tokens - 1) / p->tokens);
    uint32_t t0 = item / per_block * p->tokens, row, rows, n;
    float *y = cpu_scratch_of(p->dev, thread), *up, *decoded;
    size_t mat, column;

    if (!find_panel(p, item % per_block, &mat, &row, &column))
        return;
    rows = p->mats[mat].rows - row < p->rows ? p->mats[mat].rows - row : p->rows;
    n = p->n - t0 < p->tokens ? p->n - t0 : p->tokens;
    up = y + (size_t)n * rows;
    decoded = y + 2 * (size_t)p->tokens * p->rows;
    multiply(p, &p->mats[mat], row, rows, t0, n, decoded, y);
    if (p->gated)
        multiply(p, &p->mats[1], row, rows, t0, n, decoded, up);
    for (uint32_t t = 0; t < n; t++, y += rows, up += rows) {
        float *out = p->out + (t0 + t) * p->ldo + column;
        if (p->gated)
            simd->swiglu(y, up, rows, out);
        else
            simd->finish(out, y, p->biases && p->biases[mat] ? p->biases[mat] + row : NULL, rows,
                         p->flags);
    }
}

/* Whole tiles, at least four, so that decoding the rows once more for each block is little. */
static uint32_t tokens_of_item(const struct product *p, uint32_t tile)
{
    size_t fit = INPUT_BYTES / sizeof(float) / p->cols;

    return tile * (uint32_t)(fit / tile < 4 ? 4 : fit / tile > 64 ? 64 : fit / tile);
}

/* Cuts the product into items; the bytes of scratch that they take of each thread. */
static size_t plan_items(struct product *p)
{
    const struct cpu_device *dev = p->dev;
    uint32_t tile = dev->simd->tile, total = 0, blocks, rows, most;
    bool decoded = false;

    most = p->n <= tile ? tile : tokens_of_item(p, tile);
    p->tokens = p->n < most ? p->n : most;
    for (size_t i = 0; i < p->n_mats; i++) {
        total += p->mats[i].rows;
        decoded |= !direct(p, &p->mats[i], p->tokens);
    }
    blocks = (p->n + p->tokens - 1) / p->tokens;
    rows = (uint32_t)((uint64_t)total * blocks / (dev->cores.n * ITEMS_PER_THREAD));
    if (rows > MAX_ROWS)
        rows = MAX_ROWS;
    if (decoded && rows > DECODED_BYTES / sizeof(float) / p->cols)
        rows = (uint32_t)(DECODED_BYTES / sizeof(float) / p->cols);
    p->rows = rows < 4 ? 4 : rows & ~3u;
    p->items = 0;
    for (size_t i = 0; i < p->n_mats; i++)
        p->items += n_panels(p, &p->mats[i]);
    p->items *= blocks;
    return ((size_t)2 * p->tokens + (decoded ? p->cols : 0)) * p->rows * sizeof(float);
}

static void product_run(struct product *p)
{
    /* gated: an item takes the same rows of both matrices */
    if (p->gated) {
        p->n_mats = 1;
        p->items /= 2;
    }
    cpu_run(p->dev, p->items, product_item, p);
}

/* ---- Inputs ---------------------------------------------------------------------------------- */

struct norm_rows {
    const struct cpu_simd *simd;
    const float *x, *weight; /* weight NULL: copied as they are */
    size_t ldx;
    uint32_t dim, cols;
    float eps;
    float *out; /* [n][cols], zeros from dim on */
};

static void norm_row(void *arg, uint32_t i, uint32_t thread)
{
    const struct norm_rows *a = arg;
    float *out = a->out + (size_t)i * a->cols;

    (void)thread;
    if (a->weight)
        a->simd->rms_norm(a->x + i * a->ldx, a->weight, a->eps, a->dim, out);
    else
        memcpy(out, a->x + i * a->ldx, a->dim * sizeof(float));
    memset(out + a->dim, 0, (a->cols - a->dim) * sizeof(float));
}

/* The product of normed (or copied) inputs, padded to whole units, in the device's workspace. */
static enum ek_status run_on_inputs(const float *x, size_t ldx, const float *weight, float eps,
                                    uint32_t dim, struct product *p)
{
    struct norm_rows a = {.simd = p->dev->simd,
                          .x = x,
                          .weight = weight,
                          .ldx = ldx,
                          .dim = dim,
                          .cols = p->cols,
                          .eps = eps};

    if (p->n == 0)
        return EK_OK;
    EK_TRY(cpu_workspace(p->dev, plan_items(p), (size_t)p->n * p->cols, &a.out));
    cpu_run_rows(p->dev, p->n, dim, norm_row, &a);
    p->x = a.out;
    p->ldx = p->cols;
    product_run(p);
    return EK_OK;
}

static uint32_t whole_units(uint32_t cols)
{
    return (cols + CPU_UNIT - 1) / CPU_UNIT * CPU_UNIT;
}

/* ---- Operations ------------------------------------------------------------------------------ */

enum ek_status cpu_linear(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                          const struct ek_mat *w, const float *bias, void *out, size_t ldo,
                          int flags)
{
    const float *const biases[1] = {bias};
    struct product p = {.dev = cpu_of(dev),
                        .x = x,
                        .ldx = ldx,
                        .n = n,
                        .cols = whole_units(w->cols),
                        .mats = w,
                        .n_mats = 1,
                        .biases = biases,
                        .out = out,
                        .ldo = ldo,
                        .flags = flags};

    EK_TRY(ek_args_linear(n, w, ldx, ldo));
    if (p.cols != w->cols)
        return run_on_inputs(x, ldx, NULL, 0.0f, w->cols, &p);
    if (n == 0)
        return EK_OK;
    EK_TRY(cpu_workspace(p.dev, plan_items(&p), 0, NULL));
    product_run(&p);
    return EK_OK;
}

/* Up to a tile of rows are multiplied as they are, more by decoded weights: either may take more.
 */
size_t cpu_linear_space(const struct ek_device *dev, uint32_t n, const struct ek_mat *w)
{
    struct cpu_device *cpu = cpu_of((struct ek_device *)dev);
    size_t most = 0;

    for (int i = 0; i < 2 && n > 0; i++) {
        struct product p = {.dev = cpu,
                            .n = i && n > cpu->simd->tile ? cpu->simd->tile : n,
                            .cols = whole_units(w->cols),
                            .mats = w,
                            .n_mats = 1};
        size_t inputs = p.cols != w->cols ? (size_t)p.n * p.cols * sizeof(float) : 0;
        size_t bytes = cpu_workspace_bytes(cpu, plan_items(&p), inputs);
        most = bytes > most ? bytes : most;
    }
    return most;
}

enum ek_status cpu_norm_linear(struct ek_device *dev, const void *x, const float *norm_weight,
                               float eps, uint32_t n, const struct ek_mat *mats, size_t n_mats,
                               const float *const *biases, void *out, size_t ldo)
{
    struct product p = {.dev = cpu_of(dev),
                        .n = n,
                        .cols = whole_units(mats[0].cols),
                        .mats = mats,
                        .n_mats = n_mats,
                        .biases = biases,
                        .out = out,
                        .ldo = ldo};

    EK_TRY(ek_args_norm_linear(n, mats, n_mats, ldo));
    return run_on_inputs(x, mats[0].cols, norm_weight, eps, mats[0].cols, &p);
}

enum ek_status cpu_norm_gate_up(struct ek_device *dev, const void *x, const float *norm_weight,
                                float eps, uint32_t n, const struct ek_mat mats[2], void *out,
                                size_t ldo)
{
    struct product p = {.dev = cpu_of(dev),
                        .n = n,
                        .cols = whole_units(mats[0].cols),
                        .mats = mats,
                        .n_mats = 2,
                        .out = out,
                        .ldo = ldo,
                        .gated = true};

    EK_TRY(ek_args_gate_up(n, mats, ldo));
    return run_on_inputs(x, mats[0].cols, norm_weight, eps, mats[0].cols, &p);
}
