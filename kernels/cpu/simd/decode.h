/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights to F32 in registers, 32 at a time (a unit). Two steps a type: scales_T computes the two
 * numbers d and m of each unit of a row, unit_T makes the unit's weights, q * d + m, with at most
 * one rounding (the product is exact), which makes every path agree bit for bit.
 */
enum { UV = CPU_UNIT / VL };

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL                     _Pragma("clang loop unroll(full)")
#define SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define UNROLL _Pragma("GCC unroll 16")
#define SHUFFLE4(a, b, i, j, k, l)                                                                 \
    __builtin_shuffle(a, b, (int32_t __attribute__((vector_size(16)))){i, j, k, l})
#endif

INLINE uint16_t u16_at(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

INLINE uint32_t u32_at(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

/* n half floats to F32; n <= CHUNK_UNITS + 16 are readable and writable */
enum { CHUNK_UNITS = 32 };
INLINE void halves(uint16_t *h, float *out, size_t n)
{
    for (size_t i = 0; i < n; i += VL)
        v_store(out + i, v_load_f16(h + i));
}

/* ---- types with one scale d at offset 0, and a minimum of `times` d, a block of 32 */
INLINE void scales_d(const uint8_t *row, size_t u0, size_t n, size_t bytes, float times, float *d,
                     float *m)
{
    uint16_t h[CHUNK_UNITS] = {0};

    for (size_t i = 0; i < n; i++)
        h[i] = u16_at(row + (u0 + i) * bytes);
    halves(h, d, n);
    for (size_t i = 0; i < n; i += VL)
        v_store(m + i, v_load(d + i) * v_set1(times));
}

/* ---- types with d and m at offsets 0 and 2 */
INLINE void scales_dm(const uint8_t *row, size_t u0, size_t n, size_t bytes, float *d, float *m)
{
    uint16_t h[CHUNK_UNITS] = {0}, g[CHUNK_UNITS] = {0};

    for (size_t i = 0; i < n; i++) {
        uint32_t both = u32_at(row + (u0 + i) * bytes);
        h[i] = (uint16_t)both;
        g[i] = (uint16_t)(both >> 16);
    }
    halves(h, d, n);
    halves(g, m, n);
}

INLINE void scales_q4_0(const uint8_t *row, size_t u0, size_t n, float *d, float *m)
{
    scales_d(row, u0, n, 18, -8.0f, d, m);
}

INLINE void unit_q4_0(const uint8_t *row, size_t u, float d, float m, vec w[UV])
{
    v_nibbles(row + u * 18 + 2, d, m, w);
}

INLINE void scales_q4_1(const uint8_t *row, size_t u0, size_t n, float *d, float *m)
{
    scales_dm(row, u0, n, 20, d, m);
}

INLINE void unit_q4_1(const uint8_t *row, size_t u, float d, float m, vec w[UV])
{
    v_nibbles(row + u * 20 + 4, d, m, w);
}

INLINE void scales_q5_0(const uint8_t *row, size_t u0, size_t n, float *d, float *m)
{
    scales_d(row, u0, n, 22, -16.0f, d, m);
}

INLINE void unit_q5_0(const uint8_t *row, size_t u, float d, float m, vec w[UV])
{
    v_nibbles5(row + u * 22 + 6, u32_at(row + u * 22 + 2), d, m, w);
}

INLINE void scales_q5_1(const uint8_t *row, size_t u0, size_t n, float *d, float *m)
{
    scales_dm(row, u0, n, 24, d, m);
}

INLINE void unit_q5_1(const uint8_t *row, size_t u, float d, float m, vec w[UV])
{
    v_nibbles5(row + u * 24 + 8, u32_at(row + u * 24 + 4), d, m, w);
}

INLINE void scales_q8_0(const uint8_t *row, size_t u0, size_t n, float *d, float *m)
{
    scales_d(row, u0, n, 34, 0.0f, d, m);
}

INLINE void unit_q8_0(const uint8_t *row, size_t u, float d, float m, vec w[UV])
{
    (void)m;
    v_q8((const int8_t *)row + u * 34 + 2, d, w);
}

/* ---- K types: blocks of 256 = 8 units; row chunks start at a block (CHUNK_UNITS is 4 blocks) */

/* Six-bit scales and minima of the 8 sub-blocks of Q4_K and Q5_K, unpacked four at a time. */
INLINE void scales_k45(const uint8_t *row, size_t u0, size_t n, size_t bytes, float *d, float *m)
{
    for (size_t i = 0; i < n; i += 8) {
        const uint8_t *b = row + (u0 + i) / 8 * bytes;
        float scale = ek_f16_to_f32(u16_at(b)), min = -ek_f16_to_f32(u16_at(b + 2));
        uint32_t s0 = u32_at(b + 4), s1 = u32_at(b + 8), s2 = u32_at(b + 12);
        uint32_t sc[2] = {s0 & 0x3f3f3f3fu, (s2 & 0x0f0f0f0fu) | (s0 >> 2 & 0x30303030u)};
        uint32_t mn[2] = {s1 & 0x3f3f3f3fu, (s2 >> 4 & 0x0f0f0f0fu) | (s1 >> 2 & 0x30303030u)};
        for (int j = 0; j < 8; j++) {
            d[i + (size_t)j] = scale * (float)(sc[j / 4] >> j % 4 * 8 & 63);
            m[i + (size_t)j] = min * (float)(mn[j / 4] >> j % 4 * 8 & 63);
        }
    }
}

INLINE void scales_q4_k(const uint8_t *row, size_t u0, size_t n, float *d, float *m)
{
    scales_k45(row, u0, n, 144, d, m);
}

INLINE void unit_q4_k(const uint8_t *row, size_t u, float d, float m, vec w[UV])
{
    v_k_nibbles(row + u / 8 * 144 + 16 + u % 8 / 2 * 32, u & 1 ? 4 : 0, d, m, w);
}

INLINE void scales_q5_k(const uint8_t *row, size_t u0, size_t n, float *d, float *m)
{
    scales_k45(row, u0, n, 176, d, m);
}

INLINE void unit_q5_k(const uint8_t *row, size_t u, float d, float m, vec w[UV])
{
    const uint8_t *b = row + u / 8 * 176;

    v_k_nibbles5(b + 48 + u % 8 / 2 * 32, u & 1 ? 4 : 0, b + 16, (int)(u % 8), d, m, w);
}

/* Q6_K: two scales a unit; d and m are those of its first and second 16 weights. */
INLINE void scales_q6_k(const uint8_t *row, size_t u0, size_t n, float *d, float *m)
{
    for (size_t i = 0; i < n; i++) {
        const uint8_t *b = row + (u0 + i) / 8 * 210;
        const int8_t *sc = (const int8_t *)b + 192 + (u0 + i) % 8 * 2;
        float scale = ek_f16_to_f32(u16_at(b + 208));
        d[i] = scale * (float)sc[0];
        m[i] = scale * (float)sc[1];
    }
}

INLINE void unit_q6_k(const uint8_t *row, size_t u, float d, float m, vec w[UV])
{
    size_t half = u % 8 / 4, quarter = u % 4;
    const uint8_t *b = row + u / 8 * 210;

    v_k_six(b + half * 64 + (quarter & 1) * 32, quarter < 2 ? 0 : 4, b + 128 + half * 32,
            (int)quarter * 2, d, m, w);
}

/* ---- floats: no scales */
INLINE void scales_none(const uint8_t *row, size_t u0, size_t n, float *d, float *m)
{
    (void)row, (void)u0, (void)n, (void)d, (void)m;
}

INLINE void unit_f32(const uint8_t *row, size_t u, float d, float m, vec w[UV])
{
    (void)d, (void)m;
    for (int j = 0; j < UV; j++)
        w[j] = v_load((const float *)(const void *)row + u * CPU_UNIT + j * VL);
}

INLINE void unit_f16(const uint8_t *row, size_t u, float d, float m, vec w[UV])
{
    (void)d, (void)m;
    for (int j = 0; j < UV; j++)
        w[j] = v_load_f16((const uint16_t *)(const void *)row + u * CPU_UNIT + j * VL);
}

INLINE void unit_bf16(const uint8_t *row, size_t u, float d, float m, vec w[UV])
{
    (void)d, (void)m;
    for (int j = 0; j < UV; j++)
        w[j] = v_load_bf16((const uint16_t *)(const void *)row + u * CPU_UNIT + j * VL);
}
#define scales_f32  scales_none
#define scales_f16  scales_none
#define scales_bf16 scales_none

/* X(suffix, dtype) for every type with a decoder of its own */
#define FOR_EACH_TYPE(X) X(f32, EK_F32) FOR_EACH_SMALL_TYPE(X)
#define FOR_EACH_SMALL_TYPE(X)                                                                     \
    X(f16, EK_F16)                                                                                 \
    X(bf16, EK_BF16)                                                                               \
    X(q4_0, EK_Q4_0)                                                                               \
    X(q4_1, EK_Q4_1)                                                                               \
    X(q5_0, EK_Q5_0)                                                                               \
    X(q5_1, EK_Q5_1)                                                                               \
    X(q8_0, EK_Q8_0)                                                                               \
    X(q4_k, EK_Q4_K)                                                                               \
    X(q5_k, EK_Q5_K)                                                                               \
    X(q6_k, EK_Q6_K)

/* decode_T: n weights (a multiple of 32, except F32, F16 and BF16 whose tail is done one by one) */
#define DEFINE_DECODE(T, dtype)                                                                    \
    static void decode_##T(const void *src, float *dst, size_t n)                                  \
    {                                                                                              \
        size_t units = n / CPU_UNIT, tail = n % CPU_UNIT;                                          \
        float d[CHUNK_UNITS] = {0}, m[CHUNK_UNITS] = {0};                                          \
        vec w[UV];                                                                                 \
                                                                                                   \
        for (size_t u = 0; u < units; u++) {                                                       \
            size_t left = units - u;                                                               \
            if (u % CHUNK_UNITS == 0)                                                              \
                scales_##T(src, u, left < CHUNK_UNITS ? left : CHUNK_UNITS, d, m);                 \
            unit_##T(src, u, d[u % CHUNK_UNITS], m[u % CHUNK_UNITS], w);                           \
            for (int j = 0; j < UV; j++)                                                           \
                v_store(dst + u * CPU_UNIT + j * VL, w[j]);                                        \
        }                                                                                          \
        if (tail)                                                                                  \
            (void)ek_dequantize(                                                                   \
                dtype, (const uint8_t *)src + units * CPU_UNIT * ek_dtype_block_bytes(dtype),      \
                dst + units * CPU_UNIT, tail);                                                     \
    }
FOR_EACH_TYPE(DEFINE_DECODE)
