/* SPDX-License-Identifier: Apache-2.0
 *
 * Eight floats: AVX2, FMA, F16C.
 */

#define SIMD_NAME  "avx2"
#define SIMD_TABLE cpu_simd_avx2
enum { VL = 8, TILE = 3, ROWS_M = 6, COLS_V = 2, HEADS = 2 };

typedef __m256 vec;

static inline vec v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

static inline void v_store(float *p, vec v)
{
    _mm256_storeu_ps(p, v);
}

static inline vec v_set1(float x)
{
    return _mm256_set1_ps(x);
}

static inline vec v_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline vec v_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}

static inline vec v_min(vec a, vec b)
{
    return _mm256_min_ps(a, b);
}

static inline vec v_keep_ge(vec a, vec x, vec limit)
{
    return _mm256_and_ps(a, _mm256_cmp_ps(x, limit, _CMP_GE_OQ));
}

static inline vec v_round(vec x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vec v_pow2(vec n)
{
    __m256i i = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));

    return _mm256_castsi256_ps(_mm256_slli_epi32(i, 23));
}

static inline float v_first(vec v)
{
    return _mm256_cvtss_f32(v);
}

/* the sums of a, b, c, d, each added in one fixed order */
static inline void v_sum4(vec a, vec b, vec c, vec d, float *out)
{
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));

    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

static inline float v_sum(vec v)
{
    float s[4];

    v_sum4(v, v, v, v, s);
    return s[0];
}

static inline float v_hmax(vec v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));

    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

static inline vec v_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

static inline vec v_load_bf16(const uint16_t *p)
{
    __m256i i = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));

    return _mm256_castsi256_ps(_mm256_slli_epi32(i, 16));
}

static inline void v_store_f16(uint16_t *p, vec v)
{
    __m128i h = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);

    _mm_storeu_si128((__m128i *)(void *)p, h);
}

/* the bits of v rounded to nearest, ties to even, in their upper halves; not of every NaN */
static inline __m256i v_bf16_bits(vec v)
{
    __m256i i = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(i, 16), _mm256_set1_epi32(1));

    return _mm256_add_epi32(_mm256_add_epi32(i, _mm256_set1_epi32(0x7fff)), odd);
}

/* a NaN keeps its upper bits and stays one */
static inline void v_store_bf16(uint16_t *p, vec v)
{
    __m256i i = _mm256_castps_si256(v), quiet = _mm256_set1_epi32(0x400000);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    __m256i bits = _mm256_blendv_epi8(v_bf16_bits(v), _mm256_or_si256(i, quiet), nan);

    bits = _mm256_srli_epi32(bits, 16);
    bits = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_castsi256_si128(bits));
}

/* v rounded to the precision of a type; a NaN must come from one of that type */
static inline vec v_round_bf16(vec v)
{
    return _mm256_castsi256_ps(
        _mm256_and_si256(v_bf16_bits(v), _mm256_set1_epi32((int)0xffff0000u)));
}

static inline vec v_round_f16(vec v)
{
    return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* ---- 32 quants: w = q * d + m ---------------------------------------------------------------- */

/* eight signed or unsigned bytes at the start of q */
static inline vec v_from_unsigned(__m128i q)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(q));
}

static inline vec v_from_signed(__m128i q)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
}

/* 32 unsigned bytes in registers */
static inline void v_bytes(__m256i q, float d, float m, vec w[4])
{
    __m128i lo = _mm256_castsi256_si128(q), hi = _mm256_extracti128_si256(q, 1);

    w[0] = v_fma(v_from_unsigned(lo), v_set1(d), v_set1(m));
    w[1] = v_fma(v_from_unsigned(_mm_srli_si128(lo, 8)), v_set1(d), v_set1(m));
    w[2] = v_fma(v_from_unsigned(hi), v_set1(d), v_set1(m));
    w[3] = v_fma(v_from_unsigned(_mm_srli_si128(hi, 8)), v_set1(d), v_set1(m));
}

/* 32 signed bytes; the halves have their own scales */
static inline void v_signed_bytes(__m256i q, float d0, float d1, vec w[4])
{
    __m128i lo = _mm256_castsi256_si128(q), hi = _mm256_extracti128_si256(q, 1);

    w[0] = v_from_signed(lo) * v_set1(d0);
    w[1] = v_from_signed(_mm_srli_si128(lo, 8)) * v_set1(d0);
    w[2] = v_from_signed(hi) * v_set1(d1);
    w[3] = v_from_signed(_mm_srli_si128(hi, 8)) * v_set1(d1);
}

static inline __m256i v_split(const uint8_t *q)
{
    __m128i b = _mm_loadu_si128((const __m128i *)(const void *)q);

    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(b, 4), b), _mm256_set1_epi8(15));
}

/* low nibbles are elements 0..15 */
static inline void v_nibbles(const uint8_t *q, float d, float m, vec w[4])
{
    const __m256i nibble = _mm256_set1_epi32(15);
    vec scale = v_set1(d), min = v_set1(m);

    UNROLL for (int j = 0; j < 2; j++)
    {
        __m256i b =
            _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(q + j * 8)));
        w[j] = v_fma(_mm256_cvtepi32_ps(_mm256_and_si256(b, nibble)), scale, min);
        w[j + 2] = v_fma(_mm256_cvtepi32_ps(_mm256_srli_epi32(b, 4)), scale, min);
    }
}

/* the same with a fifth bit: bit i of high is element i's */
static inline void v_nibbles5(const uint8_t *q, uint32_t high, float d, float m, vec w[4])
{
    const __m256i which =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32((int)high), which);
    __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);

    v_bytes(_mm256_or_si256(v_split(q), _mm256_and_si256(set, _mm256_set1_epi8(16))), d, m, w);
}

static inline __m256i shift_bytes(__m256i x, int n, int mask);

/* 32 nibbles, one a byte of q: the low or (shift 4) high ones */
static inline void v_k_nibbles(const uint8_t *q, int shift, float d, float m, vec w[4])
{
    v_bytes(shift_bytes(_mm256_loadu_si256((const __m256i *)(const void *)q), shift, 15), d, m, w);
}
#include "kernels/cpu/simd/bytes_avx2.h"

/* 32 nibbles, two a byte, the low one first, looked up in a table of sixteen */
static inline void v_pairs(const uint8_t *q, const float *table, vec w[4])
{
    vec low = v_load(table), high = v_load(table + 8);

    UNROLL for (int j = 0; j < 4; j++)
    {
        __m128i b = v_spread(q, j / 2);
        __m256i i = _mm256_cvtepu8_epi32(j % 2 ? _mm_srli_si128(b, 8) : b);
        w[j] = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, i), _mm256_permutevar8x32_ps(high, i),
                                _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
    }
}

static inline void v_e4m3(const uint8_t *q, float d, vec w[4])
{
    vec scale = v_set1(d) * v_set1(256.0f);

    UNROLL for (int j = 0; j < 2; j++)
    {
        __m256i h = v_e4m3_halves(q + j * 16);
        w[2 * j] = _mm256_cvtph_ps(_mm256_castsi256_si128(h)) * scale;
        w[2 * j + 1] = _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1)) * scale;
    }
}
