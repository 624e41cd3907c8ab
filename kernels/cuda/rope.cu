// SPDX-License-Identifier: Apache-2.0
// Rotation of q and k, and k and v into the cache: one block a token, the angles computed once. And
// rotation alone, of a tower's rows.
#include "kernels/cuda/cache.cuh"

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

// cos and sin of a token's frequencies; positions: its own of the first row, others n apart.
__device__ __forceinline__ void angles(const ek_rope &rope, const int32_t *positions, uint32_t n,
                                       float2 *turn)
{
    for (uint32_t i = threadIdx.x; i < rope.dim / 2; i += ROPE_THREADS) {
        int32_t at = positions[(size_t)section_of(rope, i) * n];
        float s, c;

        sincosf((float)at * rope.inv_freq[i], &s, &c);
        turn[i] = make_float2(c * rope.amplitude, s * rope.amplitude);
    }
}

// k and v of a token, behind one another, into its slot.
template <typename T, typename C>
__device__ __forceinline__ void store_cache(const ek_kv &kv, size_t slot, const T *row)
{
    uint32_t nk = kv.kv_heads * kv.head_dim, nv = kv.kv_heads * kv.v_dim;
    C *k = (C *)kv.k + slot * nk, *v = (C *)kv.v + slot * nv;

    if constexpr (SCALED<C>) {
        for (uint32_t h = threadIdx.x / 32; h < 2 * kv.kv_heads; h += ROPE_THREADS / 32) {
            uint32_t i = h % kv.kv_heads;

            if (h < kv.kv_heads)
                store_scaled_row(row + i * kv.head_dim, kv.head_dim, k + i * kv.head_dim,
                                 kv.k_scale + slot * kv.kv_heads + i);
            else
                store_scaled_row(row + nk + i * kv.v_dim, kv.v_dim, v + i * kv.v_dim,
                                 kv.v_scale + slot * kv.kv_heads + i);
        }
    } else {
        for (uint32_t i = threadIdx.x; i < nk; i += ROPE_THREADS)
            k[i] = from_f<C>(to_f(row[i]));
        for (uint32_t i = threadIdx.x; i < nv; i += ROPE_THREADS)
            v[i] = from_f<C>(to_f(row[nk + i]));
    }
}

template <typename T, typename C>
__global__ void __launch_bounds__(ROPE_THREADS) rope_k(T *qkv, const rope_args a)
{
    __shared__ float2 turn[ROPE_MAX]; // cos, sin
    uint32_t token = blockIdx.x, half = a.rope.dim / 2, dim = a.kv.head_dim;
    T *row = qkv + token * a.ld;

    pdl_next();
    pdl_wait();
    angles(a.rope, a.positions + token, a.position_row, turn);
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
    if (a.slots[token] >= 0)
        store_cache<T, C>(a.kv, (size_t)a.slots[token], row + a.heads * dim);
}

template <typename T>
static cudaError_t rope_launch(const struct ek_cu_queue *q, T *qkv, const rope_args &a)
{
    EK_DISPATCH_CACHE(a.kv.dtype, C,
                      return launch(q, rope_k<T, C>, a.n_tokens, ROPE_THREADS, 0, qkv, a));
}

extern "C" cudaError_t ek_cu_rope_append(const struct ek_cu_queue *q, enum ek_dtype act, void *qkv,
                                         size_t ld, const struct ek_rope *rope,
                                         const struct ek_batch *batch, uint32_t heads,
                                         const struct ek_kv *kv)
{
    rope_args a = {*rope,
                   *kv,
                   batch->positions,
                   batch->slots,
                   batch->n_tokens,
                   heads,
                   ld,
                   batch->position_row ? batch->position_row : batch->n_tokens};

    if (rope->dim / 2 > ROPE_MAX)
        return cudaErrorNotSupported;
    EK_DISPATCH_ACT(act, T, return rope_launch(q, (T *)qkv, a));
}

// ---- rows of a tower
struct rows_args {
    struct ek_rope rope;
    const int32_t *positions;
    size_t ld;
    uint32_t n, heads, dim;
};

template <typename T>
__global__ void __launch_bounds__(ROPE_THREADS) rope_rows_k(T *x, const rows_args a)
{
    __shared__ float2 turn[ROPE_MAX];
    uint32_t half = a.rope.dim / 2;
    T *row = x + blockIdx.x * a.ld;

    pdl_next();
    pdl_wait();
    angles(a.rope, a.positions + blockIdx.x, a.n, turn);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < a.heads * half; i += ROPE_THREADS) {
        uint32_t f = i % half;
        T *u = row + i / half * a.dim + (a.rope.interleaved ? 2 * f : f);
        T *v = u + (a.rope.interleaved ? 1 : half);
        float p = to_f(*u), r = to_f(*v);

        *u = from_f<T>(p * turn[f].x - r * turn[f].y);
        *v = from_f<T>(r * turn[f].x + p * turn[f].y);
    }
}

// The same where halves of heads are pieces of 8 elements.
template <typename T>
__global__ void __launch_bounds__(ROPE_THREADS) rope_rows_wide(T *x, const rows_args a)
{
    __shared__ float2 turn[ROPE_MAX];
    uint32_t half = a.rope.dim / 2, pieces = half / 8;
    T *row = x + blockIdx.x * a.ld;

    pdl_next();
    pdl_wait();
    angles(a.rope, a.positions + blockIdx.x, a.n, turn);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < a.heads * pieces; i += ROPE_THREADS) {
        uint32_t f = i % pieces * 8;
        T *at = row + i / pieces * a.dim + f;
        float u[8], v[8], p[8], r[8];

        load8(at, u);
        load8(at + half, v);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            p[j] = u[j] * turn[f + j].x - v[j] * turn[f + j].y;
            r[j] = v[j] * turn[f + j].x + u[j] * turn[f + j].y;
        }
        store8(at, p);
        store8(at + half, r);
    }
}

extern "C" cudaError_t ek_cu_rope_rows(const struct ek_cu_queue *q, enum ek_dtype act, void *x,
                                       size_t ld, const struct ek_rope *rope,
                                       const int32_t *positions, uint32_t n, uint32_t heads,
                                       uint32_t head_dim)
{
    rows_args a = {*rope, positions, ld, n, heads, head_dim};
    bool wide = !rope->interleaved && rope->dim % 16 == 0 && head_dim % 8 == 0 && ld % 8 == 0 &&
                (uintptr_t)x % 16 == 0;

    if (rope->dim / 2 > ROPE_MAX)
        return cudaErrorNotSupported;
    EK_DISPATCH_ACT(act, T,
                    return launch(q, wide ? rope_rows_wide<T> : rope_rows_k<T>, n, ROPE_THREADS, 0,
                                  (T *)x, a));
}
