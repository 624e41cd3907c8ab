/* SPDX-License-Identifier: Apache-2.0
 *
 * Four floats in the compiler's own vector type: plain C for every processor.
 */
#include <string.h>

#define SIMD_NAME  "c"
#define SIMD_TABLE cpu_simd_c
enum { VL = 4, TILE = 2, ROWS_M = 4, COLS_V = 2, HEADS = 2 };

typedef float vec __attribute__((vector_size(16)));
typedef int32_t ivec __attribute__((vector_size(16)));

static inline vec v_load(const float *p)
{
    vec v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static inline void v_store(float *p, vec v)
{
    memcpy(p, &v, sizeof(v));
}

static inline vec v_set1(float x)
{
    return (vec){x, x, x, x};
}

static inline vec v_fma(vec a, vec b, vec c)
{
    return a * b + c;
}

static inline vec v_max(vec a, vec b)
{
    return (vec)(((ivec)a & (a > b)) | ((ivec)b & ~(a > b)));
}

static inline vec v_min(vec a, vec b)
{
    return (vec)(((ivec)a & (a < b)) | ((ivec)b & ~(a < b)));
}

/* a where x >= limit, else 0 */
static inline vec v_keep_ge(vec a, vec x, vec limit)
{
    return (vec)((ivec)a & (x >= limit));
}

/* nearest integer, |x| < 2^22 */
static inline vec v_round(vec x)
{
    const vec magic = v_set1(12582912.0f);

    return (x + magic) - magic;
}

/* 2^n of integers -126 .. 127 */
static inline vec v_pow2(vec n)
{
    return (vec)((__builtin_convertvector(n, ivec) + 127) << 23);
}

static inline float v_first(vec v)
{
    return v[0];
}

static inline float v_sum(vec v)
{
    return (v[0] + v[2]) + (v[1] + v[3]);
}

static inline float v_hmax(vec v)
{
    vec m = v_max(v, (vec){v[2], v[3], v[0], v[1]});

    return m[0] > m[1] ? m[0] : m[1];
}

/* out = the sums of a, b, c, d, each added in one fixed order */
static inline void v_sum4(vec a, vec b, vec c, vec d, float *out)
{
    out[0] = v_sum(a);
    out[1] = v_sum(b);
    out[2] = v_sum(c);
    out[3] = v_sum(d);
}

static inline vec v_load_f16(const uint16_t *p)
{
    return (vec){ek_f16_to_f32(p[0]), ek_f16_to_f32(p[1]), ek_f16_to_f32(p[2]),
                 ek_f16_to_f32(p[3])};
}

static inline vec v_load_bf16(const uint16_t *p)
{
    return (vec)(ivec){(int32_t)((uint32_t)p[0] << 16), (int32_t)((uint32_t)p[1] << 16),
                       (int32_t)((uint32_t)p[2] << 16), (int32_t)((uint32_t)p[3] << 16)};
}

static inline void v_store_f16(uint16_t *p, vec v)
{
    for (int i = 0; i < VL; i++)
        p[i] = ek_f32_to_f16(v[i]);
}

static inline void v_store_bf16(uint16_t *p, vec v)
{
    for (int i = 0; i < VL; i++)
        p[i] = ek_f32_to_bf16(v[i]);
}

static inline vec v_choose(ivec which, vec a, vec b)
{
    return (vec)((which & (ivec)a) | (~which & (ivec)b));
}

/* v rounded to the precision of a type, to nearest, ties to even */
static inline vec v_round_bf16(vec v)
{
    ivec i = (ivec)v, up = (i + 0x7fff + (i >> 16 & 1)) & (int32_t)0xffff0000u;

    return v_choose(v == v, (vec)up, v);
}

static inline vec v_round_f16(vec v)
{
    const vec small = v_set1(0.75f); /* whose last place is 2^-24, as that of small half floats */
    ivec i = (ivec)v, size = i & 0x7fffffff, sign = i ^ size;
    ivec up = (size + 0xfff + (size >> 13 & 1)) & ~0x1fff;
    vec r = v_choose((vec)size < v_set1(0x1p-14f), ((vec)size + small) - small, (vec)up);

    r = v_choose((vec)size < v_set1(65520.0f), r, v_set1(__builtin_inff()));
    return v_choose(v == v, (vec)((ivec)r | sign), v);
}

/* a compiler's vectors need not be kept in memory */
#define IN_MEMORY(p, n) ((void)0)

/* the half float at p */
static inline float v_half(const void *p)
{
    uint16_t h;

    memcpy(&h, p, sizeof(h));
    return ek_f16_to_f32(h);
}

/* half floats at a, b, c, d */
static inline void v_four_halves(const void *a, const void *b, const void *c, const void *d,
                                 float out[4])
{
    const void *const from[4] = {a, b, c, d};

    for (int i = 0; i < 4; i++)
        out[i] = v_half(from[i]);
}

/* pairs of half floats at a, b, c, d */
static inline void v_four_pairs(const uint8_t *a, const uint8_t *b, const uint8_t *c,
                                const uint8_t *d, float out[8])
{
    float first[4], second[4];

    v_four_halves(a, b, c, d, first);
    v_four_halves(a + 2, b + 2, c + 2, d + 2, second);
    for (int i = 0; i < 4; i++) {
        out[2 * i] = first[i];
        out[2 * i + 1] = second[i];
    }
}

/* Of the heads of four groups (u16 scale, u8 zero, u8 kind): four scales, four -zero * scale. */
static inline void v_group_lines(const uint8_t *a, const uint8_t *b, const uint8_t *c,
                                 const uint8_t *d, float out[8])
{
    const uint8_t *const from[4] = {a, b, c, d};

    for (int i = 0; i < 4; i++) {
        uint16_t h;
        memcpy(&h, from[i], sizeof(h));
        out[i] = from[i][3] ? ek_bf16_to_f32(h) : ek_f16_to_f32(h);
        out[4 + i] = -(float)from[i][2] * out[i];
    }
}

/* the eight bytes, lowest first, times d */
static inline void v_eight_bytes(uint64_t bytes, float d, float out[8])
{
    for (int i = 0; i < 8; i++)
        out[i] = (float)(bytes >> 8 * i & 255) * d;
}

/* sixteen signed bytes times d: those at even places, then those at odd ones */
static inline void v_sixteen_bytes(const int8_t *bytes, float d, float out[16])
{
    for (int i = 0; i < 16; i++)
        out[i / 2 + i % 2 * 8] = (float)bytes[i] * d;
}

/* 32 quants of four bits: w = q * d + m; low nibbles are elements 0..15 */
static inline void v_nibbles(const uint8_t *q, float d, float m, vec w[CPU_UNIT / VL])
{
    UNROLL for (int j = 0; j < 4; j++)
    {
        const uint8_t *p = q + j * 4;
        ivec b = {p[0], p[1], p[2], p[3]};
        w[j] = v_fma(__builtin_convertvector(b & 15, vec), v_set1(d), v_set1(m));
        w[j + 4] = v_fma(__builtin_convertvector(b >> 4, vec), v_set1(d), v_set1(m));
    }
}

/* the same with a fifth bit: bit i of high is element i's */
static inline void v_nibbles5(const uint8_t *q, uint32_t high, float d, float m,
                              vec w[CPU_UNIT / VL])
{
    UNROLL for (int j = 0; j < 8; j++)
    {
        const uint8_t *p = q + j % 4 * 4;
        ivec b = {p[0], p[1], p[2], p[3]};
        int32_t h = (int32_t)(high >> j * 4 & 15);
        ivec five = {h << 4 & 16, h << 3 & 16, h << 2 & 16, h << 1 & 16};
        b = j < 4 ? b & 15 : b >> 4;
        w[j] = v_fma(__builtin_convertvector(b | five, vec), v_set1(d), v_set1(m));
    }
}

/* 32 unsigned bytes: w = q * d + m */
static inline void v_u8(const uint8_t *q, float d, float m, vec w[CPU_UNIT / VL])
{
    UNROLL for (int j = 0; j < 8; j++)
    {
        const uint8_t *p = q + j * 4;
        ivec b = {p[0], p[1], p[2], p[3]};
        w[j] = v_fma(__builtin_convertvector(b, vec), v_set1(d), v_set1(m));
    }
}

/* 32 nibbles, one a byte of q: the low or (shift 4) high ones */
static inline void v_k_nibbles(const uint8_t *q, int shift, float d, float m, vec w[CPU_UNIT / VL])
{
    uint8_t bytes[CPU_UNIT];

    for (int i = 0; i < CPU_UNIT; i++)
        bytes[i] = q[i] >> shift & 15;
    v_u8(bytes, d, m, w);
}

/* Q5_K: nibbles, and bit `bit` of high as the fifth */
static inline void v_k_nibbles5(const uint8_t *q, int shift, const uint8_t *high, int bit, float d,
                                float m, vec w[CPU_UNIT / VL])
{
    uint8_t bytes[CPU_UNIT];

    for (int i = 0; i < CPU_UNIT; i++)
        bytes[i] = (uint8_t)((q[i] >> shift & 15) | (high[i] >> bit & 1) << 4);
    v_u8(bytes, d, m, w);
}

/* Q6_K: nibbles, and two bits at `at` of high as the fifth and sixth; minus 32 */
static inline void v_k_six(const uint8_t *q, int shift, const uint8_t *high, int at, float d0,
                           float d1, vec w[CPU_UNIT / VL])
{
    for (int i = 0; i < CPU_UNIT; i++) {
        int six = (q[i] >> shift & 15) | (high[i] >> at & 3) << 4;
        w[i / VL][i % VL] = (float)(six - 32) * (i < CPU_UNIT / 2 ? d0 : d1);
    }
}

static inline void v_q8(const int8_t *q, float d, vec w[CPU_UNIT / VL])
{
    UNROLL for (int j = 0; j < 8; j++)
    {
        const int8_t *p = q + j * 4;
        ivec b = {p[0], p[1], p[2], p[3]};
        w[j] = __builtin_convertvector(b, vec) * v_set1(d);
    }
}

/* 32 nibbles, two a byte, the low one first, looked up in a table of sixteen */
static inline void v_pairs(const uint8_t *q, const float *table, vec w[CPU_UNIT / VL])
{
    UNROLL for (int j = 0; j < 8; j++, q += 2) w[j] =
        (vec){table[q[0] & 15], table[q[0] >> 4], table[q[1] & 15], table[q[1] >> 4]};
}

static inline void v_e4m3(const uint8_t *q, float d, vec w[CPU_UNIT / VL])
{
    UNROLL for (int j = 0; j < 8; j++, q += 4)
    {
        ivec b = {q[0], q[1], q[2], q[3]}, size = b & 127;
        vec small = __builtin_convertvector(size, vec) * v_set1(0x1p-9f);
        vec v = v_choose(size < 8, small, (vec)((size << 20) + (120 << 23)));
        v = v_choose(size == 127, v_set1(__builtin_nanf("")), v);
        w[j] = (vec)((ivec)v | (b & 128) << 24) * v_set1(d);
    }
}
