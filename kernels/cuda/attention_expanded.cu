// SPDX-License-Identifier: Apache-2.0
// Prefill over a latent cache by keys and values of every head, as kv_b makes them of the latents:
// 192 and 128 elements a token and head instead of 576 and 512, which all heads share. The latents
// are gathered from the paged cache, multiplied by cuBLASLt, and attended to on tensor cores; the
// rotated part of the keys stays with the latents, that of the queries is rotated on its way.
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/deepseek.h"
#include "kernels/cuda/turn.cuh"

#define GATHER_ROWS    4 // a block
#define GATHER_THREADS (32 * GATHER_ROWS)

// ---- latents of the tokens [from, from + span) of every sequence; rows behind its end are zeros
template <typename T>
__global__ void __launch_bounds__(GATHER_THREADS) gather_k(const ek_cu_attention a, T *out)
{
    uint32_t row = blockIdx.x * GATHER_ROWS + threadIdx.x / 32, seq = blockIdx.y;
    uint32_t token = a.from + row;

    pdl_next();
    pdl_wait();
    if (row >= a.span)
        return;
    bool valid = (int32_t)token < a.batch.kv_len[seq];
    const uint4 *from =
        (const uint4 *)((const T *)a.kv.k + (valid ? slot_of(a, seq, token) : 0) * a.kv.head_dim);
    uint4 *to = (uint4 *)(out + ((size_t)seq * a.span + row) * a.latent_row);
    for (uint32_t i = threadIdx.x % 32; i < a.kv.head_dim / 8; i += 32)
        to[i] = valid ? from[i] : make_uint4(0, 0, 0, 0);
}

// ---- attention
struct ExpandedSource {
    static constexpr int NOPE = EK_CU_EXPANDED_NOPE, ROPE = EK_CU_EXPANDED_ROPE;
    static constexpr int DK = NOPE + ROPE, DV = EK_CU_EXPANDED_V, VALUES = 1;
    static constexpr bool causal = true;

    static __device__ __forceinline__ uint32_t dim(const ek_cu_attention &)
    {
        return DK;
    }
    static __device__ __forceinline__ bool span(const ek_cu_attention &a, uint32_t rows,
                                                TileSpan &s)
    {
        if (!causal_span(a, rows, s) || s.end <= a.from)
            return false;
        s.begin = a.from;
        s.done = s.end <= a.from + a.span;
        s.end = min(s.end, a.from + a.span);
        return true;
    }

    // Rows behind a sequence's end are zeros up to the span's, which is whole steps.
    template <typename T, int WARPS> struct Copy {
        const T *made, *latents; // of this thread: its piece of the span's first rows
        uint32_t row, latent_row, from;

        __device__ __forceinline__ Copy(const ek_cu_attention &a, const TileSpan &s)
        {
            size_t first = (size_t)s.seq * a.span;

            row = (uint32_t)a.row;
            latent_row = (uint32_t)a.latent_row;
            from = a.from;
            made = (const T *)a.kv.v + (first + threadIdx.x / (NOPE / 8)) * row +
                   s.head * (NOPE + DV) + threadIdx.x % (NOPE / 8) * 8;
            latents = (const T *)a.latents + (first + threadIdx.x / (ROPE / 8)) * latent_row +
                      a.kv.v_dim + threadIdx.x % (ROPE / 8) * 8;
        }
        // N pieces a row, the first of them piece FIRST in shared memory.
        template <int FIRST, int N>
        static __device__ __forceinline__ void rows(T *to, const T *source, uint32_t row)
        {
            constexpr uint32_t STEP = 32 * WARPS / N;
            uint32_t at = shared_at(to + place<TILE_KV>(threadIdx.x / N, FIRST + threadIdx.x % N));

#pragma unroll
            for (uint32_t i = 0; i < TILE_KV / STEP; i++)
                copy16(at + i * STEP * 128, source + (size_t)(i * STEP) * row);
        }
        __device__ __forceinline__ void keys(T *k, uint32_t first) const
        {
            rows<0, NOPE / 8>(k, made + (size_t)(first - from) * row, row);
            rows<NOPE / 8, ROPE / 8>(k, latents + (size_t)(first - from) * latent_row, latent_row);
        }
        __device__ __forceinline__ void values(T *v, uint32_t first) const
        {
            rows<0, DV / 8>(v, made + (size_t)(first - from) * row + NOPE, row);
        }
    };

    // Rotates the queries in shared memory.
    template <typename T, int WARPS>
    static __device__ __forceinline__ void turn(const ek_cu_attention &a, T *q, const TileSpan &s)
    {
        constexpr uint32_t HALF = ROPE / 2;

        for (uint32_t i = threadIdx.x; i < s.n * HALF; i += 32 * WARPS) {
            uint32_t row = i / HALF, f = i % HALF;
            uint2 at = pair_at(a.rope, f);
            float2 by = turn_of(a.rope, a.batch.positions, a.batch.n_tokens, s.token + row, f);
            T *x = q + place<16 * WARPS>(row, (NOPE + at.x) / 8) + at.x % 8;
            T *y = q + place<16 * WARPS>(row, (NOPE + at.y) / 8) + at.y % 8;
            float u = to_f(*x), v = to_f(*y);

            *x = from_f<T>(u * by.x - v * by.y);
            *y = from_f<T>(v * by.x + u * by.y);
        }
    }
};

template <typename T>
static cudaError_t expanded(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    uint32_t blocks = a->batch.n_seqs * div_up(a->batch.max_q, 128) * a->heads;

    return blocks < q->n_sm ? tiles_launch<T, 4, 2, ExpandedSource>(q, a)
                            : tiles_launch<T, 8, 2, ExpandedSource>(q, a);
}

extern "C" cudaError_t ek_cu_attention_expanded(const struct ek_cu_queue *q, enum ek_dtype act,
                                                const struct ek_cu_attention *a)
{
    return act == EK_BF16  ? expanded<bf16>(q, a)
           : act == EK_F16 ? expanded<f16>(q, a)
                           : cudaErrorNotSupported;
}

extern "C" cudaError_t ek_cu_latent_gather(const struct ek_cu_queue *q,
                                           const struct ek_cu_attention *a, void *out)
{
    dim3 grid(div_up(a->span, GATHER_ROWS), a->batch.n_seqs);

    return launch(q, gather_k<uint16_t>, grid, GATHER_THREADS, 0, *a, (uint16_t *)out);
}

extern "C" bool ek_cu_attention_expanded_fits(int gpu)
{
    using Shared = TileShared<bf16, ExpandedSource::DK, ExpandedSource::DV, 8, 2, 1>;
    int most = 0;

    return cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, gpu) ==
               cudaSuccess &&
           (size_t)most >= sizeof(Shared);
}
