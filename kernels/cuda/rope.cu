// SPDX-License-Identifier: Apache-2.0
// Rotation of q and k, and k and v into the cache: one block a token, the angles computed once.
#include "kernels/cuda/common.cuh"

#define ROPE_THREADS 256
#define ROPE_MAX     512 // rotated pairs of a head

// The row of positions that frequency i belongs to: 0, or t, h, w by the sections.
__device__ __forceinline__ uint32_t section_of(const struct ek_rope &rope, uint32_t i)
{
    uint32_t s = 0;

    while (s < 2 && rope.sections[0] && i >= rope.sections[s])
        i -= rope.sections[s++];
    return s;
}

struct rope_args {
    struct ek_rope rope;
    struct ek_kv kv;
    const int32_t *positions, *slots;
    uint32_t n_tokens, heads;
    size_t ld;
    uint32_t position_row;
};

template <typename T, typename C>
__global__ void __launch_bounds__(ROPE_THREADS) rope_k(T *qkv, const rope_args a)
{
    __shared__ float2 turn[ROPE_MAX]; // cos, sin
    uint32_t token = blockIdx.x, half = a.rope.dim / 2, dim = a.kv.head_dim;
    T *row = qkv + token * a.ld;

    pdl_next();
    pdl_wait();
    for (uint32_t i = threadIdx.x; i < half; i += ROPE_THREADS) {
        int32_t at = a.positions[section_of(a.rope, i) * a.position_row + token];
        float s, c;

        sincosf((float)at * a.rope.inv_freq[i], &s, &c);
        turn[i] = make_float2(c * a.rope.amplitude, s * a.rope.amplitude);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < (a.heads + a.kv.kv_heads) * half; i += ROPE_THREADS) {
        T *head = row + i / half * dim;
        uint32_t f = i % half, x = a.rope.interleaved ? 2 * f : f;
        uint32_t y = a.rope.interleaved ? 2 * f + 1 : f + half;
        float u = to_f(head[x]), v = to_f(head[y]);

        head[x] = from_f<T>(u * turn[f].x - v * turn[f].y);
        head[y] = from_f<T>(v * turn[f].x + u * turn[f].y);
    }
    __syncthreads();
    if (a.slots[token] < 0)
        return;
    uint32_t nk = a.kv.kv_heads * dim, nv = a.kv.kv_heads * a.kv.v_dim;
    C *k = (C *)a.kv.k + (size_t)a.slots[token] * nk,
      *v = (C *)a.kv.v + (size_t)a.slots[token] * nv;
    for (uint32_t i = threadIdx.x; i < nk; i += ROPE_THREADS)
        k[i] = from_f<C>(to_f(row[a.heads * dim + i]));
    for (uint32_t i = threadIdx.x; i < nv; i += ROPE_THREADS)
        v[i] = from_f<C>(to_f(row[a.heads * dim + nk + i]));
}

template <typename T>
static cudaError_t rope_launch(const struct ek_cu_queue *q, T *qkv, const rope_args &a)
{
    EK_DISPATCH_ACT(a.kv.dtype, C,
                    return launch(q, rope_k<T, C>, a.n_tokens, ROPE_THREADS, 0, qkv, a));
}

extern "C" cudaError_t ek_cu_rope_append(const struct ek_cu_queue *q, enum ek_dtype act, void *qkv,
                                         size_t ld, const struct ek_rope *rope,
                                         const struct ek_batch *batch, uint32_t heads,
                                         const struct ek_kv *kv)
{
    rope_args a = {*rope, *kv, batch->positions, batch->slots, batch->n_tokens, heads, ld,
                   batch->position_row ? batch->position_row : batch->n_tokens};

    if (rope->dim / 2 > ROPE_MAX)
        return cudaErrorNotSupported;
    EK_DISPATCH_ACT(act, T, return rope_launch(q, (T *)qkv, a));
}
