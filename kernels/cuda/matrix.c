/* SPDX-License-Identifier: Apache-2.0
 *
 * Weight matrices and products with them. One token: our kernels, which read the weights once at
 * memory speed and take the norm, the bias, the residual, the activation along. A few tokens: our
 * tensor-core kernels, which take along all but the norm. Many: cuBLASLt, from the matrix itself or
 * from a tile of it converted to the type of the activations. Weights in blocks are rearranged when
 * they are ready (blocks.cuh), in place, their rows filled up to a multiple of 16.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/held.h"
#include "kernels/cuda/one_blocks.h"
#include "kernels/cuda/wide.h"

#include <string.h>

#define TILE_BYTES    ((size_t)64 << 20) /* of a converted matrix, unless 16 rows are more */
#define ARRANGE_BYTES ((size_t)8 << 20)  /* of one that is rearranged, unless a band is more */

static bool weight_type(enum ek_dtype t)
{
    return t == EK_F32 || t == EK_F16 || t == EK_BF16 || (t >= EK_Q4_0 && t < EK_N_DTYPES);
}

static size_t row_bytes(const struct ek_mat *m)
{
    return (size_t)(m->bytes / m->rows);
}

#define BAND ((size_t)16) /* rows of block types that lie together */

/* ---- life --------------------------------------------------------------------------------------
 */
/* Bytes of rows, and of what a matrix takes: whole bands of block types. */
static enum ek_status matrix_bytes(enum ek_dtype dtype, uint32_t rows, uint32_t cols, size_t *used,
                                   size_t *taken)
{
    size_t row, band = dtype >= EK_Q4_0 ? BAND : 1;

    if (rows == 0 || cols == 0)
        return ek_error(EK_EFORMAT, "a matrix of %u x %u is empty", rows, cols);
    EK_TRY(ek_dtype_bytes(dtype, cols, &row));
    if (!ek_mul_size(row, ek_round_up(rows, band), taken))
        return ek_error(EK_EFORMAT, "a matrix of %u x %u overflows", rows, cols);
    *used = row * rows;
    return EK_OK;
}

uint64_t ek_cuda_mat_bytes(const struct ek_device *dev, enum ek_dtype dtype, uint32_t rows,
                           uint32_t cols)
{
    size_t used, taken;

    if (matrix_bytes(dtype, rows, cols, &used, &taken) != EK_OK)
        return UINT64_MAX;
    return ek_cuda_alloc_bytes(dev, taken);
}

enum ek_status ek_cuda_mat_new(struct ek_device *dev, enum ek_dtype dtype, uint32_t rows,
                               uint32_t cols, struct ek_mat *out)
{
    struct ek_mat m = {.dtype = dtype, .rows = rows, .cols = cols};
    size_t used, taken;

    if (!weight_type(dtype))
        return ek_error(EK_EUNSUPPORTED, "%s: no products with weights of type %s", dev->spec.name,
                        ek_dtype_name(dtype));
    EK_TRY(matrix_bytes(dtype, rows, cols, &used, &taken));
    m.bytes = used;
    EK_TRY(ek_cuda_alloc(dev, EK_TAG_WEIGHTS, taken, &m.data));
    *out = m;
    return EK_OK;
}

/* Bands are copied aside, a few at a time, and come back as they are read. */
enum ek_status ek_cuda_mat_ready(struct ek_device *dev, struct ek_mat *m)
{
    struct ek_cuda *d = ek_cuda(dev);
    size_t row = row_bytes(m), most = ARRANGE_BYTES;
    uint32_t step;
    void *aside;

    if (m->dtype < EK_Q4_0)
        return EK_OK;
    ek_cuda_use(d);
    if (most < BAND * row)
        most = BAND * row;
    step = (uint32_t)(most / row / BAND * BAND);
    EK_TRY(ek_cuda_scratch(d, EK_CU_OP, most, &aside));
    for (uint32_t r = 0; r < m->rows; r += step) {
        uint32_t n = m->rows - r < step ? m->rows - r : step;
        char *at = (char *)m->data + r * row;

        EK_TRY(ek_cuda_copy(dev, aside, at, n * row));
        EK_TRY(ek_cuda_issued(d, ek_cu_arrange(&d->queue, m->dtype, aside, row, n, m->cols, at),
                              "mat_ready"));
    }
    return EK_OK;
}

void ek_cuda_mat_free(struct ek_device *dev, struct ek_mat *m)
{
    ek_cuda_release(dev, m->data);
    *m = (struct ek_mat){0};
}

/* ---- which way ---------------------------------------------------------------------------------
 */
/* Rows can be read in 16-byte pieces, and their products staged in shared memory. */
static bool readable(const struct ek_cuda *d, const struct ek_mat *m)
{
    size_t x = (size_t)m->cols * (d->base.act == EK_F32 ? 4 : 2);

    if (m->cols % 8 || x > ek_cuda_room(d))
        return false;
    return m->dtype >= EK_Q4_0 || row_bytes(m) % 16 == 0;
}

static void add_matrix(struct ek_cu_product *p, const struct ek_mat *m, const float *bias)
{
    p->mat[p->n_mats].data = m->data;
    p->mat[p->n_mats].rows = m->rows;
    p->mat[p->n_mats].bias = bias;
    p->n_mats++;
    p->cols = m->cols;
    p->row_bytes = row_bytes(m);
}

/* Matrices that one launch can read: equal type and columns. */
static bool alike(const struct ek_cuda *d, const struct ek_mat *mats, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (mats[i].dtype != mats[0].dtype || mats[i].cols != mats[0].cols ||
            !readable(d, &mats[i]))
            return false;
    return n <= 3;
}

/* ---- many tokens -------------------------------------------------------------------------------
 */
/* The bias in the type of the output, as cuBLASLt wants it. */
static enum ek_status bias_as(struct ek_cuda *d, const float *bias, uint32_t rows,
                              enum ek_dtype type, const void **out)
{
    void *p;

    *out = bias;
    if (bias == NULL || type == EK_F32)
        return EK_OK;
    EK_TRY(ek_cuda_scratch(d, EK_CU_BIAS, (size_t)rows * 2, &p));
    EK_TRY(ek_cuda_issued(d, ek_cu_convert(&d->queue, bias, EK_F32, p, type, rows), "linear"));
    *out = p;
    return EK_OK;
}

/* Converts rows of the matrix a tile at a time and multiplies with it. */
static enum ek_status tiled(struct ek_cuda *d, const struct ek_mat *w, struct ek_cu_gemm g)
{
    size_t element = d->base.act == EK_F32 ? 4 : 2, out_element = g.out_type == EK_F32 ? 4 : 2;
    size_t tile = TILE_BYTES / (w->cols * element) / 16 * 16, bytes;
    const char *bias = g.bias;
    char *out = g.out;
    void *buffer;

    if (tile < 16)
        tile = 16;
    if (tile > w->rows)
        tile = w->rows;
    bytes = tile * w->cols * element; /* of one size, so that unlike modules share it */
    EK_TRY(ek_cuda_scratch(d, EK_CU_WEIGHTS, bytes < TILE_BYTES ? TILE_BYTES : bytes, &buffer));
    for (size_t r = 0; r < w->rows; r += tile) {
        uint32_t n = (uint32_t)(w->rows - r < tile ? w->rows - r : tile);
        const char *src = (const char *)w->data + r * row_bytes(w);

        EK_TRY(ek_cuda_issued(d,
                              ek_cu_dequantize(&d->queue, w->dtype, d->base.act, src, row_bytes(w),
                                               n, w->cols, buffer),
                              "linear"));
        g.w = buffer;
        g.rows = n;
        g.bias = bias ? bias + r * out_element : NULL;
        g.out = out + r * out_element;
        EK_TRY(ek_cuda_gemm(d, &g));
    }
    return EK_OK;
}

static enum ek_status many(struct ek_cuda *d, const void *x, size_t ldx, uint32_t n,
                           const struct ek_mat *w, const float *bias, void *out, size_t ldo,
                           int flags)
{
    enum ek_dtype act = d->base.act;
    struct ek_cu_gemm g = {.w = w->data,
                           .x = x,
                           .in = act,
                           .rows = w->rows,
                           .cols = w->cols,
                           .n = n,
                           .ldx = ldx,
                           .ldo = ldo,
                           .out = out};

    g.out_type = flags & EK_LINEAR_OUT_F32 ? EK_F32 : act;
    g.add = flags & EK_LINEAR_ADD;
    g.gelu = flags & EK_LINEAR_GELU_TANH && g.out_type != EK_F32;
    EK_TRY(bias_as(d, bias, w->rows, g.out_type, &g.bias));
    EK_TRY(w->dtype == act ? ek_cuda_gemm(d, &g) : tiled(d, w, g));
    if (flags & (EK_LINEAR_GELU | EK_LINEAR_GELU_TANH) && !g.gelu)
        return ek_cuda_issued(
            d, ek_cu_gelu(&d->queue, g.out_type, out, ldo, n, w->rows, flags & EK_LINEAR_GELU_TANH),
            "gelu");
    return EK_OK;
}

/* ---- up to a few tokens -------------------------------------------------------------------------
 */
enum way { /* of a product */
           WAY_MANY,
           WAY_ONE,        /* plain weights, one token */
           WAY_HELD,       /* a small matrix behind a norm is there before the token */
           WAY_WIDE,       /* weights of the activations' type stream to Hopper's tensor cores */
           WAY_STREAM,     /* the same to others, for shapes that are not for those */
           WAY_ONE_BLOCKS, /* blocks, one token */
           WAY_FEW,        /* other types are decoded on their way there, blocks stream as well */
};

static bool holds(const struct ek_cuda *d, enum ek_cu_mode mode, enum ek_dtype t,
                  const struct ek_cu_product *p)
{
    return mode == EK_CU_LINEAR && t == d->base.act && t != EK_F32 && ek_cu_held_fits(&d->queue, p);
}

/* Of the matrices in p, which were checked to be alike where `alike` says so. */
static enum way way_of(const struct ek_cuda *d, enum ek_cu_mode mode, enum ek_dtype t, bool alike,
                       uint32_t n, const struct ek_cu_product *p)
{
    bool blocks = t >= EK_Q4_0;

    if (n == 0 || !alike || (uintptr_t)p->x % 16)
        return WAY_MANY;
    if (n == 1 && !blocks)
        return holds(d, mode, t, p) ? WAY_HELD : WAY_ONE;
    if (d->base.act == EK_F32 || (n > 1 && p->ldx % 8))
        return WAY_MANY;
    if (t == d->base.act && d->queue.wgmma && n <= EK_CU_WIDE_TOKENS && ek_cu_wide_takes(mode, p))
        return WAY_WIDE;
    if (t == d->base.act && n <= EK_CU_STREAM_TOKENS && ek_cu_stream_fits(&d->queue))
        return WAY_STREAM;
    if (n == 1 && ek_cu_one_blocks_fits(&d->queue, t, p))
        return WAY_ONE_BLOCKS;
    if (p->cols % 32 || n > (blocks ? EK_CU_FEW_BLOCKS : EK_CU_FEW) ||
        (blocks && d->queue.shared < EK_CU_BLOCKS_SHARED))
        return WAY_MANY;
    return WAY_FEW;
}

static enum ek_status issue(struct ek_cuda *d, enum way way, enum ek_dtype t, enum ek_cu_mode mode,
                            uint32_t n, const struct ek_cu_product *p, const char *op)
{
    const struct ek_cu_queue *q = &d->queue;
    enum ek_dtype act = d->base.act;

    return ek_cuda_issued(d,
                          way == WAY_HELD         ? ek_cu_product_held(q, act, p)
                          : way == WAY_ONE        ? ek_cu_product_one(q, t, act, mode, p)
                          : way == WAY_ONE_BLOCKS ? ek_cu_product_one_blocks(q, t, act, mode, p)
                          : way == WAY_STREAM     ? ek_cu_product_stream(q, act, mode, n, p)
                          : way == WAY_WIDE       ? ek_cu_product_wide(q, act, mode, n, p)
                                                  : ek_cu_product_few(q, t, act, mode, n, p),
                          op);
}

/* ---- entries of the table ----------------------------------------------------------------------
 */
enum ek_status ek_cuda_linear(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                              const struct ek_mat *w, const float *bias, void *out, size_t ldo,
                              int flags)
{
    struct ek_cuda *d = ek_cuda(dev);
    struct ek_cu_product p = {.x = x, .out = out, .flags = flags, .ldx = ldx, .ldo = ldo};
    enum way way;

    EK_TRY(ek_args_linear(n, w, ldx, ldo));
    if (flags & EK_LINEAR_ADD && flags & (EK_LINEAR_GELU | EK_LINEAR_GELU_TANH))
        return ek_error(EK_EUNSUPPORTED, "linear: a GELU and a residual in one product");
    ek_cuda_use(d);
    add_matrix(&p, w, bias);
    way = way_of(d, EK_CU_LINEAR, w->dtype, alike(d, w, 1), n, &p);
    if (way == WAY_MANY)
        return n ? many(d, x, ldx, n, w, bias, out, ldo, flags) : EK_OK;
    return issue(d, way, w->dtype, EK_CU_LINEAR, n, &p, "linear");
}

static size_t normed_bytes(const struct ek_cuda *d, uint32_t n, uint32_t dim)
{
    return ek_round_up((size_t)n * dim * (d->base.act == EK_F32 ? 4 : 2), EK_CU_ALIGN);
}

/* Normalised rows in scratch memory, and behind them room for `more` bytes. */
static enum ek_status normed(struct ek_cuda *d, const void *x, const float *weight, float eps,
                             uint32_t n, uint32_t dim, size_t more, void **out)
{
    EK_TRY(ek_cuda_scratch(d, EK_CU_OP, normed_bytes(d, n, dim) + more, out));
    return ek_cuda_issued(
        d, ek_cu_rms_norm(&d->queue, d->base.act, x, dim, weight, eps, n, dim, *out, dim),
        "rms_norm");
}

/* Matrices that lie behind each other in memory, as those of a stage do, are one taller matrix; the
 * biases must too. Returns how many of mats[0..n) were joined into *all. */
static size_t join(const struct ek_mat *mats, size_t n, const float *const *biases,
                   struct ek_mat *all)
{
    size_t i;

    *all = mats[0];
    for (i = 1; i < n; i++) {
        const struct ek_mat *m = &mats[i];
        const float *first = biases ? biases[0] : NULL, *next = biases ? biases[i] : NULL;

        if (m->dtype != all->dtype || m->cols != all->cols ||
            (const char *)all->data + all->bytes != (const char *)m->data)
            break;
        if (first ? next != first + all->rows : next != NULL)
            break;
        all->rows += m->rows;
        all->bytes += m->bytes;
    }
    return i;
}

/* One product a matrix, or fewer, each into its own columns of out. */
static enum ek_status side_by_side(struct ek_device *dev, const void *x, uint32_t n,
                                   const struct ek_mat *mats, size_t n_mats,
                                   const float *const *biases, void *out, size_t ldo)
{
    size_t element = dev->act == EK_F32 ? 4 : 2;
    char *at = out;

    for (size_t i = 0, joined; i < n_mats; i += joined) {
        struct ek_mat all;

        joined = join(&mats[i], n_mats - i, biases ? &biases[i] : NULL, &all);
        EK_TRY(ek_cuda_linear(dev, x, all.cols, n, &all, biases ? biases[i] : NULL, at, ldo, 0));
        at += all.rows * element;
    }
    return EK_OK;
}

/* Blocks are streamed whole bands at a time: pairs that rotate must be in the same two. */
static bool bands_rotate(enum ek_dtype t, const struct ek_cu_product *p)
{
    uint32_t dim = p->kv.head_dim;

    return t < EK_Q4_0 || (dim % 32 == 0 && (p->rope.interleaved || p->rope.dim == dim));
}

/* Sums of squares of n rows whose norm is begun, 16 columns each. */
static enum ek_status squares_of(struct ek_cuda *d, uint32_t n, uint32_t cols, void **out)
{
    return ek_cuda_scratch(d, EK_CU_SQUARES,
                           (size_t)cols / 16 * EK_CU_WIDE_PITCH(n) * sizeof(float), out);
}

/* A layer's first norm, in BF16 before wide products: begun as the tail of the layer before would
 * have, so that bits do not depend on where a stage begins. */
static enum ek_status begin_norm(struct ek_cuda *d, uint32_t n, struct ek_cu_product *p)
{
    void *rows, *squares;

    EK_TRY(ek_cuda_scratch(d, EK_CU_OP, (size_t)n * p->cols * 2, &rows));
    EK_TRY(squares_of(d, n, p->cols, &squares));
    EK_TRY(ek_cuda_issued(d, ek_cu_begin_norm(&d->queue, p->x, p->norm, n, p->cols, rows, squares),
                          "rms_norm"));
    p->x = rows;
    p->squares = squares;
    return EK_OK;
}

/* One launch for all matrices, and one for the norm where the kernel does not take it along and
 * nothing was done ahead; x, norm and what becomes of the sums are in p. False in *taken: nothing
 * was issued. */
static enum ek_status fused(struct ek_cuda *d, enum ek_cu_mode mode, uint32_t n,
                            const struct ek_mat *mats, size_t n_mats, const float *const *biases,
                            const struct ek_norm_ahead *ahead, struct ek_cu_product *p,
                            const char *op, bool *taken)
{
    bool same = alike(d, mats, n_mats);
    enum way way;
    void *xn;

    p->ldx = mats[0].cols;
    for (size_t i = 0; same && i < n_mats; i++)
        add_matrix(p, &mats[i], biases ? biases[i] : NULL);
    way = way_of(d, mode, mats[0].dtype, same, n, p);
    *taken = way != WAY_MANY && (mode != EK_CU_QKV || bands_rotate(mats[0].dtype, p));
    if (!*taken)
        return EK_OK;
    if (way == WAY_WIDE && ahead != NULL) {
        p->x = ahead->rows;
        p->squares = ahead->squares;
    } else if (way == WAY_WIDE && mode == EK_CU_QKV && d->base.act == EK_BF16) {
        EK_TRY(begin_norm(d, n, p));
    } else if (way != WAY_ONE && way != WAY_HELD && way != WAY_ONE_BLOCKS) {
        EK_TRY(normed(d, p->x, p->norm, p->eps, n, p->cols, 0, &xn));
        p->x = xn;
    }
    return issue(d, way, mats[0].dtype, mode, n, p, op);
}

enum ek_status ek_cuda_norm_linear(struct ek_device *dev, const void *x, const float *norm_weight,
                                   float eps, uint32_t n, const struct ek_mat *mats, size_t n_mats,
                                   const float *const *biases, void *out, size_t ldo)
{
    struct ek_cuda *d = ek_cuda(dev);
    struct ek_cu_product p = {.x = x, .norm = norm_weight, .eps = eps, .out = out, .ldo = ldo};
    bool taken;
    void *xn;

    EK_TRY(ek_args_norm_linear(n, mats, n_mats, ldo));
    if (n == 0)
        return EK_OK;
    ek_cuda_use(d);
    EK_TRY(fused(d, EK_CU_LINEAR, n, mats, n_mats, biases, NULL, &p, "norm_linear", &taken));
    if (taken)
        return EK_OK;
    EK_TRY(normed(d, x, norm_weight, eps, n, mats[0].cols, 0, &xn));
    return side_by_side(dev, xn, n, mats, n_mats, biases, out, ldo);
}

enum ek_status ek_cuda_norm_gate_up(struct ek_device *dev, const void *x, const float *norm_weight,
                                    float eps, uint32_t n, const struct ek_mat mats[2], void *out,
                                    size_t ldo)
{
    struct ek_cuda *d = ek_cuda(dev);
    struct ek_cu_product p = {.x = x, .norm = norm_weight, .eps = eps, .out = out, .ldo = ldo};
    size_t element = dev->act == EK_F32 ? 4 : 2;
    uint32_t dim = mats[0].rows;
    void *xn, *both;
    bool taken;

    EK_TRY(ek_args_gate_up(n, mats, ldo));
    if (n == 0)
        return EK_OK;
    ek_cuda_use(d);
    EK_TRY(fused(d, EK_CU_GATE_UP, n, mats, 2, NULL, NULL, &p, "norm_gate_up", &taken));
    if (taken)
        return EK_OK;
    EK_TRY(normed(d, x, norm_weight, eps, n, mats[0].cols, (size_t)n * 2 * dim * element, &xn));
    both = (char *)xn + normed_bytes(d, n, mats[0].cols);
    EK_TRY(side_by_side(dev, xn, n, mats, 2, NULL, both, (size_t)2 * dim));
    return ek_cuda_issued(
        d, ek_cu_swiglu(&d->queue, dev->act, both, (size_t)2 * dim, n, dim, out, ldo),
        "norm_gate_up");
}

enum ek_status ek_cuda_norm_qkv_rope(struct ek_device *dev, const void *x, const float *norm_weight,
                                     float eps, const struct ek_batch *batch,
                                     const struct ek_mat mats[3], const float *const biases[3],
                                     const struct ek_rope *rope, const struct ek_kv *kv,
                                     const struct ek_norm_ahead *ahead, void *out, size_t ldo)
{
    struct ek_cuda *d = ek_cuda(dev);
    uint32_t n = batch->n_tokens;
    struct ek_cu_product p = {
        .x = x, .norm = norm_weight, .eps = eps, .out = out, .ldo = ldo, .rope = *rope, .kv = *kv};
    bool taken = false;

    EK_TRY(ek_args_qkv_rope(mats, rope, batch, kv, ldo));
    if (n == 0)
        return EK_OK;
    ek_cuda_use(d);
    p.positions = batch->positions;
    p.slots = batch->slots;
    p.position_row = batch->position_row ? batch->position_row : n;
    if (kv->dtype == dev->act && kv->v_dim == kv->head_dim && kv->head_dim % 2 == 0)
        EK_TRY(fused(d, EK_CU_QKV, n, mats, 3, biases, ahead, &p, "norm_qkv_rope", &taken));
    if (taken)
        return EK_OK;
    EK_TRY(ek_cuda_norm_linear(dev, x, norm_weight, eps, n, mats, 3, biases, out, ldo));
    return ek_cuda_rope_append(dev, out, ldo, rope, batch, mats[0].rows / kv->head_dim, kv);
}

/* ---- a layer from its output product on ---------------------------------------------------------
 */
struct tail {
    struct ek_cu_product output, gate_up, down;
};

/* What the products of a tail share: the SwiGLU, the rows on their way to the norm in between, and
 * the squares of rows on their way to that norm and the next. */
static enum ek_status tail_buffers(struct ek_cuda *d, uint32_t n, const float *norm,
                                   struct ek_norm_ahead *next, struct tail *t)
{
    size_t act = ek_round_up((size_t)n * t->down.cols * 2, EK_CU_ALIGN);
    void *op, *squares;

    EK_TRY(ek_cuda_scratch(d, EK_CU_OP, act + (size_t)n * t->gate_up.cols * 2, &op));
    EK_TRY(squares_of(d, n, t->gate_up.cols, &squares));
    t->gate_up.out = op;
    t->down.x = op;
    t->gate_up.x = t->output.next_x = (char *)op + act;
    t->gate_up.squares = t->output.next_squares = squares;
    t->output.next_norm = norm;
    if (next == NULL)
        return EK_OK;
    t->down.next_norm = next->weight;
    t->down.next_x = next->rows;
    next->squares = t->down.next_squares = squares;
    return EK_OK;
}

/* Where wide.h takes all three. */
static bool tail_takes(const struct ek_cuda *d, uint32_t n, const struct ek_mat *o,
                       const struct ek_mat gate_up[2], const struct ek_mat *down,
                       const struct tail *t)
{
    enum ek_dtype type = d->base.act;

    return d->queue.wgmma && type == EK_BF16 && n > 1 && n <= EK_CU_WIDE_TOKENS &&
           o->dtype == type && gate_up[0].dtype == type && gate_up[1].dtype == type &&
           down->dtype == type && o->rows % 16 == 0 && ek_cu_wide_takes(EK_CU_LINEAR, &t->output) &&
           ek_cu_wide_takes(EK_CU_GATE_UP, &t->gate_up) && ek_cu_wide_takes(EK_CU_LINEAR, &t->down);
}

/* BF16 alone: rows times the norm's weights may be too large for F16. */
enum ek_status ek_cuda_layer_tail(struct ek_device *dev, const void *in, size_t ldi, uint32_t n,
                                  const struct ek_mat *o, const float *norm_weight, float eps,
                                  const struct ek_mat gate_up[2], const struct ek_mat *down,
                                  void *x, struct ek_norm_ahead *next, bool *taken)
{
    struct ek_cuda *d = ek_cuda(dev);
    size_t hidden = o->rows, inner = gate_up[0].rows;
    struct tail t = {
        .output = {.x = in, .out = x, .flags = EK_LINEAR_ADD, .ldx = ldi, .ldo = hidden},
        .gate_up = {.eps = eps, .ldx = hidden, .ldo = inner},
        .down = {.out = x, .flags = EK_LINEAR_ADD, .ldx = inner, .ldo = hidden}};

    EK_TRY(ek_args_layer_tail(n, ldi, o, gate_up, down));
    add_matrix(&t.output, o, NULL);
    add_matrix(&t.gate_up, &gate_up[0], NULL);
    add_matrix(&t.gate_up, &gate_up[1], NULL);
    add_matrix(&t.down, down, NULL);
    ek_cuda_use(d);
    *taken = (uintptr_t)in % 16 == 0 && ldi % 8 == 0 && tail_takes(d, n, o, gate_up, down, &t);
    if (!*taken)
        return EK_OK;
    EK_TRY(tail_buffers(d, n, norm_weight, next, &t));
    EK_TRY(issue(d, WAY_WIDE, EK_BF16, EK_CU_LINEAR, n, &t.output, "layer_tail"));
    EK_TRY(issue(d, WAY_WIDE, EK_BF16, EK_CU_GATE_UP, n, &t.gate_up, "layer_tail"));
    return issue(d, WAY_WIDE, EK_BF16, EK_CU_LINEAR, n, &t.down, "layer_tail");
}
