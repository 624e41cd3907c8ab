/* SPDX-License-Identifier: Apache-2.0
 *
 * Sixteen floats: AVX-512 F, BW, VL, DQ.
 */

#define SIMD_NAME  "avx512"
#define SIMD_TABLE cpu_simd_avx512
enum { VL = 16, TILE = 6, ROWS_M = 6, COLS_V = 4, HEADS = 4 };

typedef __m512 vec;

static inline vec v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline void v_store(float *p, vec v)
{
    _mm512_storeu_ps(p, v);
}

static inline vec v_set1(float x)
{
    return _mm512_set1_ps(x);
}

static inline vec v_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline vec v_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

static inline vec v_min(vec a, vec b)
{
    return _mm512_min_ps(a, b);
}

static inline vec v_keep_ge(vec a, vec x, vec limit)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), a);
}

static inline vec v_round(vec x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vec v_pow2(vec n)
{
    __m512i i = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));

    return _mm512_castsi512_ps(_mm512_slli_epi32(i, 23));
}

static inline float v_first(vec v)
{
    return _mm512_cvtss_f32(v);
}

static inline __m256 v_halve(vec v)
{
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

/* the sums of a, b, c, d, each added in one fixed order */
static inline void v_sum4(vec a, vec b, vec c, vec d, float *out)
{
    __m256 ab = _mm256_hadd_ps(v_halve(a), v_halve(b)), cd = _mm256_hadd_ps(v_halve(c), v_halve(d));
    __m256 s = _mm256_hadd_ps(ab, cd);

    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

static inline float v_sum(vec v)
{
    return _mm512_reduce_add_ps(v);
}

static inline float v_hmax(vec v)
{
    return _mm512_reduce_max_ps(v);
}

static inline vec v_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

static inline vec v_load_bf16(const uint16_t *p)
{
    __m512i i = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));

    return _mm512_castsi512_ps(_mm512_slli_epi32(i, 16));
}

static inline void v_store_f16(uint16_t *p, vec v)
{
    __m256i h = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);

    _mm256_storeu_si256((__m256i *)(void *)p, h);
}

/* the bits of v rounded to nearest, ties to even, in their upper halves; not of every NaN */
static inline __m512i v_bf16_bits(vec v)
{
    __m512i i = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(i, 16), _mm512_set1_epi32(1));

    return _mm512_add_epi32(_mm512_add_epi32(i, _mm512_set1_epi32(0x7fff)), odd);
}

/* a NaN keeps its upper bits and stays one */
static inline void v_store_bf16(uint16_t *p, vec v)
{
    __m512i i = _mm512_castps_si512(v), quiet = _mm512_set1_epi32(0x400000);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    __m512i bits = _mm512_mask_or_epi32(v_bf16_bits(v), nan, i, quiet);

    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}

/* v rounded to the precision of a type; a NaN must come from one of that type */
static inline vec v_round_bf16(vec v)
{
    return _mm512_castsi512_ps(
        _mm512_and_si512(v_bf16_bits(v), _mm512_set1_epi32((int)0xffff0000u)));
}

static inline vec v_round_f16(vec v)
{
    return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* ---- 32 quants: w = q * d + m ---------------------------------------------------------------- */

/* The sixteen values that a nibble may mean, looked up by the low four bits of each lane. */
static inline vec v_nibble_table(float d, float m)
{
    const vec iota = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

    return v_fma(iota, v_set1(d), v_set1(m));
}

static inline __m512i v_widen(const uint8_t *q)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)q));
}

/* low nibbles are elements 0..15 */
static inline void v_nibbles(const uint8_t *q, float d, float m, vec w[2])
{
    vec table = v_nibble_table(d, m);
    __m512i b = v_widen(q);

    w[0] = _mm512_permutexvar_ps(b, table);
    w[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(b, 4), table);
}

/* the same with a fifth bit: bit i of high is element i's */
static inline void v_nibbles5(const uint8_t *q, uint32_t high, float d, float m, vec w[2])
{
    const __m512i nibble = _mm512_set1_epi32(15), five = _mm512_set1_epi32(16);
    __m512i b = v_widen(q), lo = _mm512_and_si512(b, nibble), hi = _mm512_srli_epi32(b, 4);

    lo = _mm512_mask_or_epi32(lo, (__mmask16)high, lo, five);
    hi = _mm512_mask_or_epi32(hi, (__mmask16)(high >> 16), hi, five);
    w[0] = v_fma(_mm512_cvtepi32_ps(lo), v_set1(d), v_set1(m));
    w[1] = v_fma(_mm512_cvtepi32_ps(hi), v_set1(d), v_set1(m));
}

/* 32 nibbles, one a byte of q: the low or (shift 4) high ones */
static inline void v_k_nibbles(const uint8_t *q, int shift, float d, float m, vec w[2])
{
    vec table = v_nibble_table(d, m);

    __m512i a = v_widen(q), b = v_widen(q + 16);

    if (shift) { /* alternates from unit to unit: foreseen, and cheaper than a shift by register */
        a = _mm512_srli_epi32(a, 4);
        b = _mm512_srli_epi32(b, 4);
    }
    w[0] = _mm512_permutexvar_ps(a, table);
    w[1] = _mm512_permutexvar_ps(b, table);
}

/* 32 unsigned bytes in registers */
static inline void v_bytes(__m256i q, float d, float m, vec w[2])
{
    __m512i lo = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(q));
    __m512i hi = _mm512_cvtepu8_epi32(_mm256_extracti128_si256(q, 1));

    w[0] = v_fma(_mm512_cvtepi32_ps(lo), v_set1(d), v_set1(m));
    w[1] = v_fma(_mm512_cvtepi32_ps(hi), v_set1(d), v_set1(m));
}

/* 32 signed bytes; the halves have their own scales */
static inline void v_signed_bytes(__m256i q, float d0, float d1, vec w[2])
{
    __m512i lo = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(q));
    __m512i hi = _mm512_cvtepi8_epi32(_mm256_extracti128_si256(q, 1));

    w[0] = _mm512_cvtepi32_ps(lo) * v_set1(d0);
    w[1] = _mm512_cvtepi32_ps(hi) * v_set1(d1);
}
#include "kernels/cpu/simd/bytes_avx2.h"

/* 32 nibbles, two a byte, the low one first, looked up in a table of sixteen */
static inline void v_pairs(const uint8_t *q, const float *table, vec w[2])
{
    vec t = v_load(table);

    w[0] = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(v_spread(q, 0)), t);
    w[1] = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(v_spread(q, 1)), t);
}

static inline void v_e4m3(const uint8_t *q, float d, vec w[2])
{
    vec scale = v_set1(d) * v_set1(256.0f);

    UNROLL for (int j = 0; j < 2; j++) w[j] = _mm512_cvtph_ps(v_e4m3_halves(q + j * 16)) * scale;
}
