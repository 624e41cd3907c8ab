// SPDX-License-Identifier: Apache-2.0
// Rotation of one pair of elements of a head by the position of its token.
#ifndef EK_CUDA_TURN_CUH
#define EK_CUDA_TURN_CUH

#include "kernels/cuda/common.cuh"

// cos and sin of frequency i at a token's position, times the amplitude.
__device__ __forceinline__ float2 turn_of(const struct ek_rope &rope, const int32_t *positions,
                                          uint32_t n, uint32_t token, uint32_t i)
{
    uint32_t row = 0, first = i;
    float s, c;

    while (row < 2 && rope.sections[0] && first >= rope.sections[row])
        first -= rope.sections[row++];
    sincosf((float)positions[row * n + token] * rope.inv_freq[i], &s, &c);
    return make_float2(c * rope.amplitude, s * rope.amplitude);
}

// The same of one row of positions, by the special-function unit: within 1e-5 up to positions of a
// million, for operands of 16 bits.
__device__ __forceinline__ float2 quick_turn(const struct ek_rope &rope, float frequency,
                                             int32_t position)
{
    float angle = (float)position * frequency, turns = rintf(angle * 0.159154943f);
    float rest = fmaf(turns, -1.93530718e-3f, fmaf(turns, -6.28125f, angle)); // 2 pi in two parts

    return make_float2(__cosf(rest) * rope.amplitude, __sinf(rest) * rope.amplitude);
}

// The two elements of a head that frequency i rotates.
__device__ __forceinline__ uint2 pair_at(const struct ek_rope &rope, uint32_t i)
{
    return rope.interleaved ? make_uint2(2 * i, 2 * i + 1) : make_uint2(i, i + rope.dim / 2);
}

// R: what the results are rounded to, held as a C.
template <typename T, typename C, typename R = C>
__device__ __forceinline__ void rotate_pair(const struct ek_rope &rope, uint32_t i, float2 turn,
                                            const T *from, C *to)
{
    uint2 at = pair_at(rope, i);
    float a = to_f(from[at.x]), b = to_f(from[at.y]);

    to[at.x] = from_f<C>(round_to<R>(a * turn.x - b * turn.y));
    to[at.y] = from_f<C>(round_to<R>(b * turn.x + a * turn.y));
}

#endif
