/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention over the paged cache with an online softmax. Rows of K and V are brought to F32 rows
 * padded with zeros to whole vectors. Two forms: one query (its context cut into parts of CPU_SPLIT
 * keys that are merged in order), and a block of queries times the heads that share K and V.
 */
enum { PAD = 16 }; /* elements that rows of queries, K and V are padded to */

INLINE size_t padded(size_t n)
{
    return (n + PAD - 1) / PAD * PAD;
}

/* Element offset of key number j of a sequence in a cache with `dim` elements a head. */
INLINE size_t key_offset(const struct cpu_attend *a, uint32_t seq, uint32_t kv_head, uint32_t j,
                         size_t dim)
{
    const int32_t *blocks = a->batch->block_table + (size_t)seq * a->batch->max_blocks;
    uint32_t page = a->kv->page;
    size_t slot;

    if (a->dense_ld)
        return ((size_t)a->batch->seq_start[seq] + j) * a->dense_ld + kv_head * dim;
    slot = (size_t)blocks[j / page] * page + j % page;
    return (slot * a->kv->kv_heads + kv_head) * dim;
}

static void scaled_to_f32(const uint8_t *row, float scale, size_t dim, float *out)
{
    size_t whole = dim / CPU_UNIT * CPU_UNIT;

    for (size_t i = 0; i < whole; i += CPU_UNIT) {
        vec w[CPU_UNIT / VL];

        v_e4m3(row + i, scale, w);
        for (size_t j = 0; j < CPU_UNIT / VL; j++)
            v_store(out + i + j * VL, w[j]);
    }
    for (size_t i = whole; i < dim; i++)
        out[i] = ek_e4m3_to_f32(row[i]) * scale;
}

/* dim elements of a row of stride, at an offset of base, keys or values. */
INLINE void row_to_f32(const struct ek_kv *kv, const void *base, size_t offset, size_t dim,
                       size_t stride, float *out)
{
    if (kv->dtype == EK_F16)
        decode_f16((const uint16_t *)base + offset, out, dim);
    else if (kv->dtype == EK_BF16)
        decode_bf16((const uint16_t *)base + offset, out, dim);
    else if (kv->dtype == EK_F32)
        memcpy(out, (const float *)base + offset, dim * sizeof(float));
    else
        scaled_to_f32((const uint8_t *)base + offset,
                      (base == kv->k ? kv->k_scale : kv->v_scale)[offset / stride], dim, out);
    for (size_t i = dim; i < padded(dim); i++)
        out[i] = 0.0f;
}

/* Where values lie: latent attention's are the first elements of its keys. */
INLINE const void *values_of(const struct ek_kv *kv, size_t *stride)
{
    *stride = kv->v ? kv->v_dim : kv->head_dim;
    return kv->v ? kv->v : kv->k;
}

/* Rows of n keys (dim of stride elements) from `from` on: in the cache itself where that will do,
 * else in buffer. */
static void key_rows(const struct cpu_attend *a, const void *base, size_t dim, size_t stride,
                     uint32_t seq, uint32_t kv_head, uint32_t from, uint32_t n, float *buffer,
                     const float *rows[CPU_KEYS])
{
    size_t step = a->dense_ld ? a->dense_ld : a->kv->kv_heads * stride, at = 0;
    bool in_place = a->kv->dtype == EK_F32 && dim % PAD == 0;
    uint32_t left = 0; /* keys to the end of the page */

    for (uint32_t j = 0; j < n; j++, left--, at += step) {
        if (!left) {
            at = key_offset(a, seq, kv_head, from + j, stride);
            left = a->kv->page - (from + j) % a->kv->page;
        }
        if (in_place) {
            rows[j] = (const float *)base + at;
        } else {
            row_to_f32(a->kv, base, at, dim, stride, buffer + j * padded(dim));
            rows[j] = buffer + j * padded(dim);
        }
    }
    for (uint32_t j = n; j < CPU_KEYS; j++)
        rows[j] = rows[n - 1]; /* readable; their scores are not used */
}

/* Asks for the n rows from `from` on: heads lie between one another, which the processor's own
 * prefetching does not follow. */
static void prefetch_rows(const struct cpu_attend *a, const void *base, size_t dim, uint32_t seq,
                          uint32_t kv_head, uint32_t from, uint32_t n)
{
    size_t size = ek_dtype_block_bytes(a->kv->dtype), bytes = dim * size;
    size_t stride = a->kv->kv_heads * bytes;
    const uint8_t *row = base;
    uint32_t left = 0;

    for (uint32_t j = 0; j < n; j++, left--, row += stride) {
        if (!left) {
            row = (const uint8_t *)base + key_offset(a, seq, kv_head, from + j, dim) * size;
            left = a->kv->page - (from + j) % a->kv->page;
        }
        for (size_t i = 0; i < bytes; i += 64)
            __builtin_prefetch(row + i);
    }
}

/* ---- One query ------------------------------------------------------------------------------- */

/* scores[h][j] = q[h] . rows[j] of `heads` heads, for keys in fours: what is loaded of a key serves
 * every head */
INLINE void scores_tile(const float *q, const float *const rows[CPU_KEYS], uint32_t n, size_t dim,
                        const int heads, float *scores)
{
    vec acc[HEADS][4];

    for (uint32_t j = 0; j < n; j += 4) {
        UNROLL for (int h = 0; h < heads; h++) UNROLL for (int k = 0; k < 4; k++) acc[h][k] =
            v_set1(0.0f);
        for (size_t i = 0; i < dim; i += VL)
            UNROLL for (int k = 0; k < 4; k++)
            {
                vec key = v_load(rows[j + (uint32_t)k] + i);
                UNROLL for (int h = 0; h < heads; h++) acc[h][k] =
                    v_fma(v_load(q + (size_t)h * dim + i), key, acc[h][k]);
            }
        UNROLL for (int h = 0; h < heads; h++)
            v_sum4(acc[h][0], acc[h][1], acc[h][2], acc[h][3], scores + h * CPU_KEYS + j);
    }
}

/* Scores to probabilities relative to the new maximum: rescales nothing itself, returns the factor
 * that what was added before must be multiplied with. n <= CPU_KEYS; the rest becomes 0. */
static float soften(float *scores, uint32_t n, float *max, float *sum)
{
    vec most = v_set1(*max), total = v_set1(0.0f), m;
    float factor[VL];

    for (uint32_t j = n; j < CPU_KEYS; j++)
        scores[j] = -INFINITY;
    for (uint32_t j = 0; j < CPU_KEYS; j += VL)
        most = v_max(most, v_load(scores + j));
    m = v_set1(v_hmax(most));
    for (uint32_t j = 0; j < CPU_KEYS; j += VL) {
        vec p = v_exp(v_load(scores + j) - m);
        v_store(scores + j, p);
        total = total + p;
    }
    v_store(factor, v_exp(v_set1(*max) - m));
    *max = v_first(m);
    *sum = *sum * factor[0] + v_sum(total);
    return factor[0];
}

/* One column of `vecs` vectors at i of every head: acc[h] = acc[h] * factor[h] + p[h] . rows */
INLINE void values_tile(const float *p, const float *const rows[CPU_KEYS], uint32_t n, size_t i,
                        const int heads, const int vecs, const float *factor, float *acc,
                        size_t stride)
{
    vec s[HEADS][4];

    UNROLL for (int h = 0; h < heads; h++) UNROLL for (int v = 0; v < vecs; v++) s[h][v] =
        v_load(acc + (size_t)h * stride + i + (size_t)v * VL) * v_set1(factor[h]);
    for (uint32_t j = 0; j < n; j++)
        UNROLL for (int v = 0; v < vecs; v++)
        {
            vec value = v_load(rows[j] + i + (size_t)v * VL);
            UNROLL for (int h = 0; h < heads; h++) s[h][v] =
                v_fma(v_set1(p[h * CPU_KEYS + (int)j]), value, s[h][v]);
        }
    UNROLL for (int h = 0; h < heads; h++) UNROLL for (int v = 0; v < vecs; v++)
        v_store(acc + (size_t)h * stride + i + (size_t)v * VL, s[h][v]);
}

/* One block of keys for `heads` heads; part[h * stride] = {max, sum, unused, values at PAD} */
INLINE void attend_heads(const float *q, const float *const krow[CPU_KEYS],
                         const float *const vrow[CPU_KEYS], uint32_t n, size_t kd, size_t vd,
                         const int heads, float *part)
{
    size_t stride = vd + PAD, i = 0;
    float scores[HEADS * CPU_KEYS], factor[HEADS];

    scores_tile(q, krow, n, kd, heads, scores);
    for (int h = 0; h < heads; h++)
        factor[h] = soften(scores + h * CPU_KEYS, n, &part[(size_t)h * stride],
                           &part[(size_t)h * stride + 1]);
    for (; i + 4 * VL <= vd; i += 4 * VL)
        values_tile(scores, vrow, n, i, heads, 4, factor, part + PAD, stride);
    for (; i < vd; i += VL)
        values_tile(scores, vrow, n, i, heads, 1, factor, part + PAD, stride);
}

/* The query's heads of kv_head over keys [from, to): partial[h] = {max, sum, 14 unused, values}. */
static void attend_one(const struct cpu_attend *a, uint32_t seq, uint32_t kv_head, uint32_t from,
                       uint32_t to, float *partial, void *scratch)
{
    const struct ek_kv *kv = a->kv;
    size_t kd = padded(kv->head_dim), vd = padded(kv->v_dim), stride = vd + PAD;
    float *q = scratch, *keys = q + a->group * kd, *values = keys + CPU_KEYS * kd;

    const float *krow[CPU_KEYS], *vrow[CPU_KEYS];
    size_t value_stride;
    const void *value_base = values_of(kv, &value_stride);
    const float *from_q = a->q + (size_t)a->batch->seq_start[seq] * a->ldq;

    for (uint32_t h = 0; h < a->group; h++) {
        for (size_t i = 0; i < kd; i++)
            q[h * kd + i] = i < kv->head_dim
                                ? from_q[(kv_head * a->group + h) * kv->head_dim + i] * a->scale
                                : 0.0f;
        partial[h * stride] = -INFINITY;
        for (size_t i = 1; i < stride; i++)
            partial[h * stride + i] = 0.0f;
    }
    for (uint32_t k = from; k < to; k += CPU_KEYS) {
        uint32_t n = to - k < CPU_KEYS ? to - k : CPU_KEYS;
        uint32_t next = k + n, more = to - next < CPU_KEYS ? to - next : CPU_KEYS;
        if (k == from) { /* V is needed only after the scores */
            prefetch_rows(a, kv->k, kv->head_dim, seq, kv_head, k, n);
            if (kv->v)
                prefetch_rows(a, kv->v, kv->v_dim, seq, kv_head, k, n);
        }
        prefetch_rows(a, kv->k, kv->head_dim, seq, kv_head, next, more);
        if (kv->v)
            prefetch_rows(a, kv->v, kv->v_dim, seq, kv_head, next, more);
        key_rows(a, kv->k, kv->head_dim, kv->head_dim, seq, kv_head, k, n, keys, krow);
        key_rows(a, value_base, kv->v_dim, value_stride, seq, kv_head, k, n, values, vrow);
        for (uint32_t h = 0; h < a->group; h += HEADS) {
            const float *qh = q + h * kd;
            float *part = partial + h * stride;
            switch (a->group - h) {
            case 1:
                attend_heads(qh, krow, vrow, n, kd, vd, 1, part);
                break;
            case 2:
                attend_heads(qh, krow, vrow, n, kd, vd, HEADS < 2 ? HEADS : 2, part);
                break;
            case 3:
                attend_heads(qh, krow, vrow, n, kd, vd, HEADS < 3 ? HEADS : 3, part);
                break;
            default:
                attend_heads(qh, krow, vrow, n, kd, vd, HEADS, part);
            }
        }
    }
}

/* Parts of one query and head, in the order of the context, into its output. */
static void merge(const struct cpu_attend *a, uint32_t seq, uint32_t head, const float *partials,
                  uint32_t n_partials, size_t stride)
{
    size_t dim = a->kv->v_dim;
    float *out = a->out + (size_t)a->batch->seq_start[seq] * a->ldo + head * dim;
    float most = -INFINITY, sum = 0.0f;

    for (uint32_t p = 0; p < n_partials; p++)
        most = partials[p * stride] > most ? partials[p * stride] : most;
    for (uint32_t p = 0; p < n_partials; p++)
        sum += partials[p * stride + 1] * v_first(v_exp(v_set1(partials[p * stride] - most)));
    for (size_t i = 0; i < dim; i += VL) {
        vec total = v_set1(0.0f);
        for (uint32_t p = 0; p < n_partials; p++) {
            const float *part = partials + p * stride;
            total = v_fma(v_exp(v_set1(part[0] - most)), v_load(part + PAD + i), total);
        }
        store_part(out + i, total / v_set1(sum > 0 ? sum : 1), dim - i < VL ? dim - i : VL);
    }
}

/* ---- Blocks of queries ----------------------------------------------------------------------- */

/* c[r][0 .. nv) (+)= sum_k a[r][k] b[k][0 .. nv) for n rows; nv vectors */
INLINE void mm_tile(const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc,
                    size_t k, const int n, const int nv, bool add)
{
    vec acc[ROWS_M][COLS_V];

    UNROLL for (int r = 0; r < n; r++) UNROLL for (int v = 0; v < nv; v++) acc[r][v] =
        add ? v_load(c + (size_t)r * ldc + v * VL) : v_set1(0.0f);
    for (size_t i = 0; i < k; i++) {
        vec bv[COLS_V];
        UNROLL for (int v = 0; v < nv; v++) bv[v] = v_load(b + i * ldb + v * VL);
        UNROLL for (int r = 0; r < n; r++)
        {
            vec x = v_set1(a[(size_t)r * lda + i]);
            UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_fma(x, bv[v], acc[r][v]);
        }
    }
    UNROLL for (int r = 0; r < n; r++) UNROLL for (int v = 0; v < nv; v++)
        v_store(c + (size_t)r * ldc + v * VL, acc[r][v]);
}

/* c[rows][cols] (+)= a[rows][k] b[k][cols]; cols a multiple of PAD */
static void mm(const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc,
               size_t rows, size_t k, size_t cols, bool add)
{
    for (size_t r = 0; r < rows;) {
        size_t j = 0, n = rows - r >= ROWS_M ? ROWS_M : 1;
        for (; n == ROWS_M && j + COLS_V * VL <= cols; j += COLS_V * VL)
            mm_tile(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, k, ROWS_M, COLS_V, add);
        for (; n == ROWS_M && j < cols; j += VL)
            mm_tile(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, k, ROWS_M, 1, add);
        for (; j + COLS_V * VL <= cols; j += COLS_V * VL)
            mm_tile(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, k, 1, COLS_V, add);
        for (; j < cols; j += VL)
            mm_tile(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, k, 1, 1, add);
        r += n;
    }
}

/* out[i][j] = rows[j][i] in squares of four; dim a multiple of 4 */
static void transpose_keys(const float *const rows[CPU_KEYS], size_t dim, float *out)
{
    typedef float v4 __attribute__((vector_size(16)));

    for (uint32_t j = 0; j < CPU_KEYS; j += 4)
        for (size_t i = 0; i < dim; i += 4) {
            v4 r[4], t[4], o[4];
            for (uint32_t k = 0; k < 4; k++)
                memcpy(&r[k], rows[j + k] + i, sizeof(v4));
            t[0] = SHUFFLE4(r[0], r[1], 0, 4, 1, 5);
            t[1] = SHUFFLE4(r[2], r[3], 0, 4, 1, 5);
            t[2] = SHUFFLE4(r[0], r[1], 2, 6, 3, 7);
            t[3] = SHUFFLE4(r[2], r[3], 2, 6, 3, 7);
            o[0] = SHUFFLE4(t[0], t[1], 0, 1, 4, 5);
            o[1] = SHUFFLE4(t[0], t[1], 2, 3, 6, 7);
            o[2] = SHUFFLE4(t[2], t[3], 0, 1, 4, 5);
            o[3] = SHUFFLE4(t[2], t[3], 2, 3, 6, 7);
            for (uint32_t k = 0; k < 4; k++)
                memcpy(out + (i + k) * CPU_KEYS + j, &o[k], sizeof(v4));
        }
}

/* Scratch of a block of queries: rows = queries * heads that share K and V. */
struct block_scratch {
    float *q, *scores, *values, *keys, *v, *max, *sum, *rows;
};

static struct block_scratch block_layout(const struct cpu_attend *a, void *scratch)
{
    size_t rows = (size_t)a->block * a->group;
    size_t kd = padded(a->kv->head_dim), vd = padded(a->kv->v_dim);
    struct block_scratch s = {.q = scratch};

    s.scores = s.q + rows * kd;
    s.values = s.scores + rows * CPU_KEYS;
    s.keys = s.values + rows * vd;
    s.v = s.keys + kd * CPU_KEYS;
    s.rows = s.v + CPU_KEYS * vd;
    s.max = s.rows + CPU_KEYS * (kd > vd ? kd : vd);
    s.sum = s.max + rows;
    return s;
}

static void block_start(const struct cpu_attend *a, uint32_t token, uint32_t kv_head,
                        uint32_t count, struct block_scratch *s)
{
    size_t dim = a->kv->head_dim, kd = padded(dim), vd = padded(a->kv->v_dim);

    for (uint32_t i = 0, row = 0; i < count; i++)
        for (uint32_t h = 0; h < a->group; h++, row++) {
            const float *q = a->q + (size_t)(token + i) * a->ldq + (kv_head * a->group + h) * dim;
            for (size_t d = 0; d < kd; d++)
                s->q[row * kd + d] = d < dim ? q[d] * a->scale : 0.0f;
            memset(s->values + row * vd, 0, vd * sizeof(float));
            s->max[row] = -INFINITY;
            s->sum[row] = 0.0f;
        }
}

/* Keys [from, from + n) of the sequence: transposed K, and V in rows with zeros behind. */
static void block_load(const struct cpu_attend *a, uint32_t seq, uint32_t kv_head, uint32_t from,
                       uint32_t n, struct block_scratch *s)
{
    size_t kd = padded(a->kv->head_dim), vd = padded(a->kv->v_dim), value_stride;
    const void *value_base = values_of(a->kv, &value_stride);
    const float *rows[CPU_KEYS];

    key_rows(a, a->kv->k, a->kv->head_dim, a->kv->head_dim, seq, kv_head, from, n, s->rows, rows);
    transpose_keys(rows, kd, s->keys);
    for (uint32_t j = 0; j < n; j++)
        row_to_f32(a->kv, value_base, key_offset(a, seq, kv_head, from + j, value_stride),
                   a->kv->v_dim, value_stride, s->v + j * vd);
    memset(s->v + n * vd, 0, (CPU_KEYS - n) * vd * sizeof(float));
}

static void block_finish(const struct cpu_attend *a, uint32_t token, uint32_t kv_head,
                         uint32_t count, const struct block_scratch *s)
{
    size_t dim = a->kv->v_dim, vd = padded(dim);

    for (uint32_t i = 0, row = 0; i < count; i++)
        for (uint32_t h = 0; h < a->group; h++, row++) {
            float *out = a->out + (size_t)(token + i) * a->ldo + (kv_head * a->group + h) * dim;
            for (size_t d = 0; d < dim; d++)
                out[d] = s->values[row * vd + d] / s->sum[row];
        }
}

/* Queries first .. first + count of the sequence's new tokens, the heads of kv_head: causal, or
 * (dense) over all keys. */
static void attend_block(const struct cpu_attend *a, uint32_t seq, uint32_t kv_head, uint32_t first,
                         uint32_t count, void *scratch)
{
    const struct ek_batch *b = a->batch;
    struct block_scratch s = block_layout(a, scratch);
    size_t kd = padded(a->kv->head_dim), vd = padded(a->kv->v_dim);
    uint32_t token = (uint32_t)b->seq_start[seq] + first;
    uint32_t n_new = (uint32_t)(b->seq_start[seq + 1] - b->seq_start[seq]);
    uint32_t past = a->dense_ld ? 0 : (uint32_t)b->kv_len[seq] - n_new;
    uint32_t position = past + first, n_rows = count * a->group;
    uint32_t end = a->dense_ld ? n_new : position + count;

    block_start(a, token, kv_head, count, &s);
    for (uint32_t k = 0; k < end; k += CPU_KEYS) {
        uint32_t left = end - k, n = left < CPU_KEYS ? left : CPU_KEYS;
        block_load(a, seq, kv_head, k, n, &s);
        mm(s.q, kd, s.keys, CPU_KEYS, s.scores, CPU_KEYS, n_rows, kd, CPU_KEYS, false);
        for (uint32_t row = 0; row < n_rows; row++) {
            uint32_t limit = a->dense_ld ? end : position + row / a->group + 1; /* keys seen */
            uint32_t seen = limit <= k ? 0 : limit - k < n ? limit - k : n;
            float *p = s.scores + (size_t)row * CPU_KEYS;
            if (!seen) { /* all later than this query */
                memset(p, 0, CPU_KEYS * sizeof(float));
                continue;
            }
            vec f = v_set1(soften(p, seen, &s.max[row], &s.sum[row]));
            for (size_t d = 0; d < vd; d += VL)
                v_store(s.values + row * vd + d, v_load(s.values + row * vd + d) * f);
        }
        mm(s.scores, CPU_KEYS, s.v, vd, s.values, vd, n_rows, CPU_KEYS, vd, true);
    }
    block_finish(a, token, kv_head, count, &s);
}
