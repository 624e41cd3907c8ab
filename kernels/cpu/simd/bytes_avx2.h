/* SPDX-License-Identifier: Apache-2.0
 *
 * Quants of more than four bits brought to one byte each, 32 in a register (AVX2 and AVX-512).
 */
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
