/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights to F32 in registers, 32 at a time (a unit). Two steps a type: scales_T computes what the
 * units of one group (a block of the file) need for four rows, mostly two numbers d and m; unit_T
 * makes a unit's weights, q * d + m, with at most one rounding (the product is exact), which makes
 * every path agree bit for bit.
 */
enum { UV = CPU_UNIT / VL };

INLINE uint32_t u32_at(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

enum { MAX_SCALES = 4 * 16 };

/* unit_T finds what scales_T made for row r and unit u of the group at s = scales + r * RS + u * US
 * (see FOR_EACH_TYPE). */

/* ---- blocks of 32 with one scale; the minimum is `times` the scale */
INLINE void scales_d(const uint8_t *const row[4], size_t at, float times, float *scales)
{
    v_four_halves(row[0] + at, row[1] + at, row[2] + at, row[3] + at, scales);
    for (int r = 0; r < 4; r++)
        scales[4 + r] = scales[r] * times;
}

/* ---- blocks of 32 with a scale and a minimum */
INLINE void scales_dm(const uint8_t *const row[4], size_t at, float *scales)
{
    v_four_pairs(row[0] + at, row[1] + at, row[2] + at, row[3] + at, scales);
}

INLINE void scales_q4_0(const uint8_t *const row[4], size_t u, float *scales)
{
    scales_d(row, u * 18, -8.0f, scales);
}

INLINE void unit_q4_0(const uint8_t *row, size_t u, const float *s, vec w[UV])
{
    v_nibbles(row + u * 18 + 2, s[0], s[4], w);
}

INLINE void scales_q4_1(const uint8_t *const row[4], size_t u, float *scales)
{
    scales_dm(row, u * 20, scales);
}

INLINE void unit_q4_1(const uint8_t *row, size_t u, const float *s, vec w[UV])
{
    v_nibbles(row + u * 20 + 4, s[0], s[1], w);
}

INLINE void scales_q5_0(const uint8_t *const row[4], size_t u, float *scales)
{
    scales_d(row, u * 22, -16.0f, scales);
}

INLINE void unit_q5_0(const uint8_t *row, size_t u, const float *s, vec w[UV])
{
    v_nibbles5(row + u * 22 + 6, u32_at(row + u * 22 + 2), s[0], s[4], w);
}

INLINE void scales_q5_1(const uint8_t *const row[4], size_t u, float *scales)
{
    scales_dm(row, u * 24, scales);
}

INLINE void unit_q5_1(const uint8_t *row, size_t u, const float *s, vec w[UV])
{
    v_nibbles5(row + u * 24 + 8, u32_at(row + u * 24 + 4), s[0], s[1], w);
}

INLINE void scales_q8_0(const uint8_t *const row[4], size_t u, float *scales)
{
    scales_d(row, u * 34, 0.0f, scales);
}

INLINE void unit_q8_0(const uint8_t *row, size_t u, const float *s, vec w[UV])
{
    v_q8((const int8_t *)row + u * 34 + 2, s[0], w);
}

/* ---- K types: blocks of 256, 8 units */

/* Six-bit scales and minima of the 8 units of Q4_K and Q5_K. */
INLINE void scales_k45(const uint8_t *const row[4], size_t at, float *scales)
{
    for (int r = 0; r < 4; r++) {
        const uint8_t *b = row[r] + at;
        float d = v_half(b), dmin = -v_half(b + 2);
        uint32_t s0 = u32_at(b + 4), s1 = u32_at(b + 8), s2 = u32_at(b + 12);
        uint64_t high = (s2 & 0x0f0f0f0fu) | (s0 >> 2 & 0x30303030u);
        uint64_t mins = (s2 >> 4 & 0x0f0f0f0fu) | (s1 >> 2 & 0x30303030u);
        v_eight_bytes(high << 32 | (s0 & 0x3f3f3f3fu), d, scales + r * 16);
        v_eight_bytes(mins << 32 | (s1 & 0x3f3f3f3fu), dmin, scales + r * 16 + 8);
    }
}

INLINE void scales_q4_k(const uint8_t *const row[4], size_t u, float *scales)
{
    scales_k45(row, u / 8 * 144, scales);
}

INLINE void unit_q4_k(const uint8_t *row, size_t u, const float *s, vec w[UV])
{
    v_k_nibbles(row + u / 8 * 144 + 16 + u % 8 / 2 * 32, u & 1 ? 4 : 0, s[0], s[8], w);
}

INLINE void scales_q5_k(const uint8_t *const row[4], size_t u, float *scales)
{
    scales_k45(row, u / 8 * 176, scales);
}

INLINE void unit_q5_k(const uint8_t *row, size_t u, const float *s, vec w[UV])
{
    const uint8_t *b = row + u / 8 * 176;

    v_k_nibbles5(b + 48 + u % 8 / 2 * 32, u & 1 ? 4 : 0, b + 16, (int)(u % 8), s[0], s[8], w);
}

/* Q6_K: two scales a unit; d and m are those of its first and second 16 weights. */
INLINE void scales_q6_k(const uint8_t *const row[4], size_t u, float *scales)
{
    for (int r = 0; r < 4; r++) {
        const uint8_t *b = row[r] + u / 8 * 210;
        v_sixteen_bytes((const int8_t *)b + 192, v_half(b + 208), scales + r * 16);
    }
}

INLINE void unit_q6_k(const uint8_t *row, size_t u, const float *s, vec w[UV])
{
    size_t half = u % 8 / 4, quarter = u % 4;
    const uint8_t *b = row + u / 8 * 210;

    v_k_six(b + half * 64 + (quarter & 1) * 32, quarter < 2 ? 0 : 4, b + 128 + half * 32,
            (int)quarter * 2, s[0], s[8], w);
}

/* ---- floats: no scales */
INLINE void scales_none(const uint8_t *const row[4], size_t u, float *scales)
{
    (void)row, (void)u, (void)scales;
}

INLINE void unit_f32(const uint8_t *row, size_t u, const float *s, vec w[UV])
{
    (void)s;
    UNROLL for (int j = 0; j < UV; j++) w[j] =
        v_load((const float *)(const void *)row + u * CPU_UNIT + j * VL);
}

INLINE void unit_f16(const uint8_t *row, size_t u, const float *s, vec w[UV])
{
    (void)s;
    UNROLL for (int j = 0; j < UV; j++) w[j] =
        v_load_f16((const uint16_t *)(const void *)row + u * CPU_UNIT + j * VL);
}

INLINE void unit_bf16(const uint8_t *row, size_t u, const float *s, vec w[UV])
{
    (void)s;
    UNROLL for (int j = 0; j < UV; j++) w[j] =
        v_load_bf16((const uint16_t *)(const void *)row + u * CPU_UNIT + j * VL);
}
#define scales_f32  scales_none
#define scales_f16  scales_none
#define scales_bf16 scales_none

/* ---- groups: scale, zero and kind of the scale (F16, or 1: BF16) before the quants of 32, 64 or
 * 128 weights, each rounded to the scale's type */
INLINE vec v_round_half(vec v, uint8_t bf16)
{
    return bf16 ? v_round_bf16(v) : v_round_f16(v);
}

/* Four bits: the sixteen weights that a quant may mean, for each of four rows. */
INLINE void scales_g4(const uint8_t *const row[4], size_t at, float *scales)
{
    static const float iota[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    float g[8];

    v_group_lines(row[0] + at, row[1] + at, row[2] + at, row[3] + at, g);
    UNROLL for (int r = 0; r < 4; r++) UNROLL for (int j = 0; j < 16 / VL; j++)
    {
        vec v = v_fma(v_load(iota + j * VL), v_set1(g[r]), v_set1(g[4 + r]));
        v_store(scales + r * 16 + j * VL, v_round_half(v, row[r][at + 3]));
    }
}

INLINE void unit_of_g4(const uint8_t *b, size_t u, const float *s, vec w[UV])
{
    v_pairs(b + 4 + u * CPU_UNIT / 2, s, w);
}

INLINE void scales_g8(const uint8_t *const row[4], size_t at, float *scales)
{
    v_group_lines(row[0] + at, row[1] + at, row[2] + at, row[3] + at, scales);
    IN_MEMORY(scales, 8);
}

INLINE void unit_of_g8(const uint8_t *b, size_t u, const float *s, vec w[UV])
{
    v_u8(b + 4 + u * CPU_UNIT, s[0], s[4], w);
    UNROLL for (int j = 0; j < UV; j++) w[j] = v_round_half(w[j], b[3]);
}

/* E4M3 under an F32 scale */
INLINE void scales_b8(const uint8_t *const row[4], size_t at, float *scales)
{
    UNROLL for (int r = 0; r < 4; r++) memcpy(scales + r, row[r] + at, sizeof(float));
    IN_MEMORY(scales, 4);
}

INLINE void unit_of_b8(const uint8_t *b, size_t u, const float *s, vec w[UV])
{
    v_e4m3(b + 4 + u * CPU_UNIT, s[0], w);
}

/* the types of groups of n units: a head of four bytes and n times `quants` */
#define DEFINE_GROUP(T, N, n, quants)                                                              \
    INLINE void scales_##T##_##N(const uint8_t *const row[4], size_t u, float *scales)             \
    {                                                                                              \
        scales_##T(row, u / n * (4 + n * quants), scales);                                         \
    }                                                                                              \
    INLINE void unit_##T##_##N(const uint8_t *row, size_t u, const float *s, vec w[UV])            \
    {                                                                                              \
        unit_of_##T(row + u / n * (4 + n * quants), u % n, s, w);                                  \
    }
#define DEFINE_GROUPS(T, quants)                                                                   \
    DEFINE_GROUP(T, 32, 1, quants) DEFINE_GROUP(T, 64, 2, quants) DEFINE_GROUP(T, 128, 4, quants)
DEFINE_GROUPS(g4, 16)
DEFINE_GROUPS(g8, 32)
DEFINE_GROUPS(b8, 32)

/* X(suffix, dtype, units of a group, bytes of a unit (up to one more), RS, US) for every type with
 * a decoder of its own */
#define FOR_EACH_TYPE(X) X(f32, EK_F32, 1, 128, 0, 0) FOR_EACH_SMALL_TYPE(X)
#define FOR_EACH_SMALL_TYPE(X)                                                                     \
    X(f16, EK_F16, 1, 64, 0, 0)                                                                    \
    X(bf16, EK_BF16, 1, 64, 0, 0)                                                                  \
    X(q4_0, EK_Q4_0, 1, 18, 1, 0)                                                                  \
    X(q4_1, EK_Q4_1, 1, 20, 2, 0)                                                                  \
    X(q5_0, EK_Q5_0, 1, 22, 1, 0)                                                                  \
    X(q5_1, EK_Q5_1, 1, 24, 2, 0)                                                                  \
    X(q8_0, EK_Q8_0, 1, 34, 1, 0)                                                                  \
    X(q4_k, EK_Q4_K, 8, 18, 16, 1)                                                                 \
    X(q5_k, EK_Q5_K, 8, 22, 16, 1)                                                                 \
    X(q6_k, EK_Q6_K, 8, 27, 16, 1)                                                                 \
    X(g4_32, EK_G4_32, 1, 20, 16, 0)                                                               \
    X(g4_64, EK_G4_64, 2, 18, 16, 0)                                                               \
    X(g4_128, EK_G4_128, 4, 17, 16, 0)                                                             \
    X(g8_32, EK_G8_32, 1, 36, 1, 0)                                                                \
    X(g8_64, EK_G8_64, 2, 34, 1, 0)                                                                \
    X(g8_128, EK_G8_128, 4, 33, 1, 0)                                                              \
    X(b8_32, EK_B8_32, 1, 36, 1, 0)                                                                \
    X(b8_64, EK_B8_64, 2, 34, 1, 0)                                                                \
    X(b8_128, EK_B8_128, 4, 33, 1, 0)

/* decode_T: n weights. Four groups at a time stand for four rows; a tail of under a unit (floats
 * only) is left to the reference. */
#define DEFINE_DECODE(T, dtype, group, UB, RS, US)                                                 \
    static void decode_##T(const void *src, float *dst, size_t n)                                  \
    {                                                                                              \
        size_t groups = n / (CPU_UNIT * group), tail = n % (CPU_UNIT * group);                     \
        size_t bytes = CPU_UNIT * group / ek_dtype_block(dtype) * ek_dtype_block_bytes(dtype);     \
        float scales[MAX_SCALES] = {0};                                                            \
        const uint8_t *row[4];                                                                     \
        vec w[UV];                                                                                 \
                                                                                                   \
        for (size_t g = 0; g < groups; g++) {                                                      \
            size_t r = g % 4;                                                                      \
            for (size_t i = 0; !r && i < 4; i++)                                                   \
                row[i] = (const uint8_t *)src + (g + i < groups ? g + i : g) * bytes;              \
            if (!r)                                                                                \
                scales_##T(row, 0, scales);                                                        \
            for (size_t u = 0; u < group; u++) {                                                   \
                unit_##T(row[r], u, scales + r * RS + u * US, w);                                  \
                UNROLL for (int j = 0; j < UV; j++)                                                \
                    v_store(dst + (g * group + u) * CPU_UNIT + j * VL, w[j]);                      \
            }                                                                                      \
        }                                                                                          \
        if (tail)                                                                                  \
            (void)ek_dequantize(dtype, (const uint8_t *)src + groups * bytes,                      \
                                dst + groups * CPU_UNIT * group, tail);                            \
    }
FOR_EACH_TYPE(DEFINE_DECODE)
