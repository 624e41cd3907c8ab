/* SPDX-License-Identifier: Apache-2.0
 *
 * The arithmetic of drawing a token, shared by the host and by devices: the same logits give the
 * same token on either, for every product and sum is rounded and sums of many are of integers. Only
 * kernels/ includes this.
 */
#ifndef EK_KERNELS_SAMPLE_H
#define EK_KERNELS_SAMPLE_H

#include <stdint.h>
#include <string.h>

#ifdef __clang__ /* no product and sum in one rounding */
#pragma STDC FP_CONTRACT OFF
#elif !defined(__CUDACC__)
#pragma GCC optimize("fp-contract=off")
#endif

#ifdef __CUDACC__
#define EK_SAMPLE static __host__ __device__ __forceinline__
#else
#define EK_SAMPLE static inline
#endif

/* Logits in their order as integers; 0 for what is no number. */
EK_SAMPLE uint32_t ek_sample_key(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    if (x != x)
        return 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* p x + c, both rounded. */
EK_SAMPLE float ek_sample_step(float p, float x, float c)
{
#ifdef __CUDA_ARCH__
    return __fadd_rn(__fmul_rn(p, x), c);
#else
    return p * x + c;
#endif
}

/* 2^(scale * (x - best)) in units of 2^-40, to 24 bits; 0 from 2^-40 on, and for what is no number.
 * scale: log2(e) / temperature. */
EK_SAMPLE uint64_t ek_sample_weight(float x, float best, float scale)
{
    float d = (best - x) * scale, g, p;
    int whole;

    if (!(d < 40.0f))
        return 0;
    whole = (int)d;
    g = d - (float)whole - 0.5f; /* 2^-(g + 1/2) by the series of 2^-g */
    p = 1.07853115e-05f;
    p = ek_sample_step(p, -g, 1.08919408e-04f);
    p = ek_sample_step(p, -g, 9.42824938e-04f);
    p = ek_sample_step(p, -g, 6.80104431e-03f);
    p = ek_sample_step(p, -g, 3.92473316e-02f);
    p = ek_sample_step(p, -g, 1.69865792e-01f);
    p = ek_sample_step(p, -g, 4.90129072e-01f);
    p = ek_sample_step(p, -g, 7.07106781e-01f);
    return ((uint64_t)(uint32_t)(p * 16777216.0f) << 16) >> whole;
}

/* The least sum of weights that is a share of all of them. */
EK_SAMPLE uint64_t ek_sample_share(uint64_t all, float share)
{
    uint64_t least = (uint64_t)((double)all * (double)share);

    return least ? least : 1;
}

/* A number below n from 64 random bits. */
EK_SAMPLE uint64_t ek_sample_below(uint64_t random, uint64_t n)
{
#ifdef __CUDA_ARCH__
    return __umul64hi(random, n);
#else
    return (uint64_t)(((unsigned __int128)random * n) >> 64);
#endif
}

#endif
