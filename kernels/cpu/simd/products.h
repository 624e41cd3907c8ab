/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of four rows of weights with up to TILE tokens: vector lanes run along the row, so the
 * weights need no rearrangement and one token and many take the same steps. Quantised rows are
 * decoded in registers, once for all tokens.
 */
/* The four rows lie behind one another, and so do the next four: what will be needed some rows
 * later is asked for in the order of memory, since four short streams defeat the processor's own
 * prefetching. */
enum { PREFETCH_AHEAD = 4096 };
#define PREFETCH_UNIT(row, unit, dtype_bytes)                                                      \
    for (size_t at_ = 0; at_ < 4 * (dtype_bytes); at_ += 64)                                       \
    __builtin_prefetch((row) + (unit)*4 * (dtype_bytes) + PREFETCH_AHEAD + at_)

/* acc[r][t] += unit u of row r times the same inputs of token t */
#define DEFINE_TILE(T, dtype, group, UB, RS, US)                                                   \
    INLINE void tile_##T(const uint8_t *const row[4], size_t units, const float *x, size_t ldx,    \
                         const int n, float *y, size_t ldy)                                        \
    {                                                                                              \
        float scales[MAX_SCALES];                                                                  \
        vec acc[4][TILE], w[UV];                                                                   \
                                                                                                   \
        UNROLL for (int r = 0; r < 4; r++) UNROLL for (int t = 0; t < n; t++) acc[r][t] =          \
            v_set1(0.0f);                                                                          \
        for (size_t g = 0; g < units; g += group) {                                                \
            scales_##T(row, g, scales);                                                            \
            for (size_t u = 0; u < group; u++) {                                                   \
                PREFETCH_UNIT(row[0], g + u, UB);                                                  \
                const float *xu = x + (g + u) * CPU_UNIT;                                          \
                UNROLL for (int r = 0; r < 4; r++)                                                 \
                {                                                                                  \
                    unit_##T(row[r], g + u, scales + r * RS + u * US, w);                          \
                    UNROLL for (int t = 0; t < n; t++) UNROLL for (int j = 0; j < UV; j++)         \
                        acc[r][t] = v_fma(w[j], v_load(xu + (size_t)t * ldx + j * VL), acc[r][t]); \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        UNROLL for (int t = 0; t < n; t++)                                                         \
            v_sum4(acc[0][t], acc[1][t], acc[2][t], acc[3][t], y + (size_t)t * ldy);               \
    }
FOR_EACH_SMALL_TYPE(DEFINE_TILE)

/* F32: inputs are kept in registers over the four rows. */
INLINE void tile_f32(const uint8_t *const row[4], size_t units, const float *x, size_t ldx,
                     const int n, float *y, size_t ldy)
{
    vec acc[4][TILE], in[TILE];

    UNROLL for (int r = 0; r < 4; r++) UNROLL for (int t = 0; t < n; t++) acc[r][t] = v_set1(0.0f);
    for (size_t i = 0; i < units * CPU_UNIT; i += VL) {
        UNROLL for (int t = 0; t < n; t++) in[t] = v_load(x + (size_t)t * ldx + i);
        UNROLL for (int r = 0; r < 4; r++)
        {
            vec w = v_load((const float *)(const void *)row[r] + i);
            UNROLL for (int t = 0; t < n; t++) acc[r][t] = v_fma(w, in[t], acc[r][t]);
        }
    }
    UNROLL for (int t = 0; t < n; t++)
        v_sum4(acc[0][t], acc[1][t], acc[2][t], acc[3][t], y + (size_t)t * ldy);
}

/* Four rows, any count of tokens up to TILE: each count is unrolled on its own. */
#define CASE_TILE(T, k)                                                                            \
    case k:                                                                                        \
        tile_##T(row, units, x, ldx, k <= TILE ? k : TILE, y, ldy);                                \
        break;
#define DEFINE_DOTS(T, dtype, group, UB, RS, US)                                                   \
    static void four_##T(const uint8_t *const row[4], size_t units, const float *x, size_t ldx,    \
                         uint32_t n, float *y, size_t ldy)                                         \
    {                                                                                              \
        switch (n < TILE ? n : TILE) {                                                             \
            CASE_TILE(T, 1)                                                                        \
            CASE_TILE(T, 2)                                                                        \
            CASE_TILE(T, 3)                                                                        \
            CASE_TILE(T, 4)                                                                        \
            CASE_TILE(T, 5)                                                                        \
            CASE_TILE(T, 6)                                                                        \
        default:                                                                                   \
            break;                                                                                 \
        }                                                                                          \
    }                                                                                              \
    static void dots_##T(const void *w, size_t row_bytes, uint32_t rows, uint32_t cols,            \
                         const float *x, size_t ldx, uint32_t n, float *y, size_t ldy)             \
    {                                                                                              \
        const uint8_t *base = w, *row[4];                                                          \
        float last[4 * TILE]; /* the last rows, where they are not four */                         \
        uint32_t r = 0;                                                                            \
                                                                                                   \
        for (; r + 4 <= rows; r += 4) {                                                            \
            for (uint32_t i = 0; i < 4; i++)                                                       \
                row[i] = base + (size_t)(r + i) * row_bytes;                                       \
            four_##T(row, cols / CPU_UNIT, x, ldx, n, y + r, ldy);                                 \
        }                                                                                          \
        if (r == rows)                                                                             \
            return;                                                                                \
        for (uint32_t i = 0; i < 4; i++)                                                           \
            row[i] = base + (size_t)(r + i < rows ? r + i : rows - 1) * row_bytes;                 \
        four_##T(row, cols / CPU_UNIT, x, ldx, n, last, 4);                                        \
        for (uint32_t t = 0; t < n; t++)                                                           \
            memcpy(y + t * ldy + r, last + t * 4, (rows - r) * sizeof(float));                     \
    }
FOR_EACH_TYPE(DEFINE_DOTS)
