/* SPDX-License-Identifier: Apache-2.0
 *
 * What AVX2 and AVX-512 share: scales, and quants of more than four bits brought to one byte each,
 * 32 in a register.
 */

/* Broadcasts from memory are free, those from a register's elements are not: keeps the compiler
 * from forwarding what was stored. */
#define IN_MEMORY(p, n) __asm__("" : "+m"(*(float(*)[n])(p)))

static inline uint16_t u16_of(const void *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static inline int32_t i32_of(const void *p)
{
    int32_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

/* the half float at p */
static inline float v_half(const void *p)
{
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(u16_of(p))));
}

/* half floats at a, b, c, d */
static inline void v_four_halves(const void *a, const void *b, const void *c, const void *d,
                                 float out[4])
{
    __m128i h = _mm_cvtsi32_si128(u16_of(a));

    h = _mm_insert_epi16(h, u16_of(b), 1);
    h = _mm_insert_epi16(h, u16_of(c), 2);
    h = _mm_insert_epi16(h, u16_of(d), 3);
    _mm_storeu_ps(out, _mm_cvtph_ps(h));
    IN_MEMORY(out, 4);
}

/* pairs of half floats at a, b, c, d */
static inline void v_four_pairs(const void *a, const void *b, const void *c, const void *d,
                                float out[8])
{
    __m128i h = _mm_cvtsi32_si128(i32_of(a));

    h = _mm_insert_epi32(h, i32_of(b), 1);
    h = _mm_insert_epi32(h, i32_of(c), 2);
    h = _mm_insert_epi32(h, i32_of(d), 3);
    _mm256_storeu_ps(out, _mm256_cvtph_ps(h));
    IN_MEMORY(out, 8);
}

/* Of the heads of four groups (u16 scale, u8 zero, u8 kind): four scales, four -zero * scale. */
static inline void v_group_lines(const void *a, const void *b, const void *c, const void *d,
                                 float out[8])
{
    const __m128i lower = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 0, 1, 4, 5, 8, 9, 12, 13);
    __m128i h = _mm_cvtsi32_si128(i32_of(a)), f16;
    __m128 scale, zero;

    h = _mm_insert_epi32(h, i32_of(b), 1);
    h = _mm_insert_epi32(h, i32_of(c), 2);
    h = _mm_insert_epi32(h, i32_of(d), 3);
    f16 = _mm_cmpeq_epi32(_mm_srli_epi32(h, 24), _mm_setzero_si128());
    scale = _mm_blendv_ps(_mm_castsi128_ps(_mm_slli_epi32(h, 16)),
                          _mm_cvtph_ps(_mm_shuffle_epi8(h, lower)), _mm_castsi128_ps(f16));
    zero = _mm_cvtepi32_ps(_mm_and_si128(_mm_srli_epi32(h, 16), _mm_set1_epi32(255)));
    _mm_storeu_ps(out, scale);
    _mm_storeu_ps(out + 4, _mm_fnmadd_ps(zero, scale, _mm_setzero_ps()));
}

/* the eight bytes, lowest first, times d */
static inline void v_eight_bytes(uint64_t bytes, float d, float out[8])
{
    __m256i i = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));

    _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(i), _mm256_set1_ps(d)));
}

/* sixteen signed bytes times d: those at even places, then those at odd ones */
static inline void v_sixteen_bytes(const int8_t *bytes, float d, float out[16])
{
    const __m128i apart = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    __m128i b = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)bytes), apart);
    __m256 even = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b));
    __m256 odd = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(b, 8)));

    _mm256_storeu_ps(out, _mm256_mul_ps(even, _mm256_set1_ps(d)));
    _mm256_storeu_ps(out + 8, _mm256_mul_ps(odd, _mm256_set1_ps(d)));
}

static inline __m256i load32(const void *p)
{
    return _mm256_loadu_si256(p);
}

/* x >> n in each byte, keeping the bits of mask */
static inline __m256i shift_bytes(__m256i x, int n, int mask)
{
    return _mm256_and_si256(_mm256_srl_epi16(x, _mm_cvtsi32_si128(n)),
                            _mm256_set1_epi8((char)mask));
}

/* Q5_K: nibbles (low, or high with shift 4), and bit `bit` of high as the fifth */
static inline void v_k_nibbles5(const uint8_t *q, int shift, const uint8_t *high, int bit, float d,
                                float m, vec w[CPU_UNIT / VL])
{
    __m256i five = _mm256_slli_epi16(shift_bytes(load32(high), bit, 1), 4);

    v_bytes(_mm256_or_si256(shift_bytes(load32(q), shift, 15), five), d, m, w);
}

/* Q6_K: nibbles, and two bits at `at` of high as the fifth and sixth; minus 32 */
static inline void v_k_six(const uint8_t *q, int shift, const uint8_t *high, int at, float d0,
                           float d1, vec w[CPU_UNIT / VL])
{
    __m256i upper = _mm256_slli_epi16(shift_bytes(load32(high), at, 3), 4);
    __m256i six = _mm256_or_si256(shift_bytes(load32(q), shift, 15), upper);

    v_signed_bytes(_mm256_sub_epi8(six, _mm256_set1_epi8(32)), d0, d1, w);
}

static inline void v_q8(const int8_t *q, float d, vec w[CPU_UNIT / VL])
{
    v_signed_bytes(load32(q), d, d, w);
}

/* 32 unsigned bytes: w = q * d + m */
static inline void v_u8(const uint8_t *q, float d, float m, vec w[CPU_UNIT / VL])
{
    v_bytes(load32(q), d, m, w);
}

/* 16 bytes of two nibbles, the low one first, as one a byte; upper bits are left */
static inline __m128i v_spread(const uint8_t *q, int upper)
{
    __m128i b = _mm_loadu_si128((const __m128i *)(const void *)q), high = _mm_srli_epi16(b, 4);

    return upper ? _mm_unpackhi_epi8(b, high) : _mm_unpacklo_epi8(b, high);
}

/* 16 E4M3 bytes as half floats that are 256 times too small; NaN is kept */
static inline __m256i v_e4m3_halves(const uint8_t *q)
{
    __m128i b = _mm_loadu_si128((const __m128i *)(const void *)q);
    __m256i x = _mm256_slli_epi16(_mm256_cvtepi8_epi16(b), 7), sign = _mm256_set1_epi16(-0x8000);
    __m256i most = _mm256_set1_epi16(-0x4080); /* all but the exponent's upper bit */

    x = _mm256_and_si256(x, most);
    return _mm256_or_si256(x, _mm256_cmpeq_epi16(_mm256_or_si256(x, sign), most));
}
