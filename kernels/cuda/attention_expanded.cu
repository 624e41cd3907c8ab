// SPDX-License-Identifier: Apache-2.0
// Prefill over a latent cache by keys and values of every head, as kv_b makes them of the latents:
// 192 and 128 elements a token and head instead of 576 and 512, which all heads share. The latents
// are gathered from the paged cache, multiplied by cuBLASLt, and attended to on tensor cores; the
// rotated part of the keys stays with the latents, that of the queries is rotated on its way.
#include "kernels/cuda/attention_boxes.cuh"
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
                                                uint32_t tile, TileSpan &s)
    {
        if (!causal_span(a, rows, tile, s) || s.end <= a.from)
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

    // Rotates N rows of queries in shared memory, from row `from` of a tile of ROWS, as far as the
    // tile has them, by 2 N threads: a lane takes a frequency. Positions are one row.
    template <typename T, int ROWS, int N>
    static __device__ __forceinline__ void turn(const ek_cu_attention &a, T *q, const TileSpan &s,
                                                uint32_t from)
    {
        constexpr uint32_t HALF = ROPE / 2, STEP = 2 * N / HALF;
        uint32_t first = from + threadIdx.x % (2 * N) / HALF, f = threadIdx.x % HALF;
        uint2 at = pair_at(a.rope, f);
        float frequency = a.rope.inv_freq[f];

#pragma unroll 8
        for (uint32_t i = 0; i < N / STEP; i++) {
            uint32_t row = first + i * STEP;
            float2 by =
                quick_turn(a.rope, frequency, a.batch.positions[s.token + min(row, s.n - 1)]);
            T *x = q + place<ROWS>(row, (NOPE + at.x) / 8) + at.x % 8;
            T *y = q + place<ROWS>(row, (NOPE + at.y) / 8) + at.y % 8;
            float u = to_f(*x), v = to_f(*y);

            *x = from_f<T>(u * by.x - v * by.y);
            *y = from_f<T>(v * by.x + u * by.y);
        }
    }
};

struct ExpandedBoxes : ExpandedSource {
    static constexpr int GROUPS = 2, KV = 128;

#ifdef EK_WGMMA
    static __device__ __forceinline__ void queries(const box_maps &maps, const TileSpan &s,
                                                   uint32_t to, uint32_t full)
    {
        if (threadIdx.x % 32 == 0)
            copy_box(to, &maps.q, s.token, s.head * (DK / EK_CHUNK), full, false);
    }
    template <typename T>
    static __device__ __forceinline__ void prepare(const ek_cu_attention &a, T *q,
                                                   const TileSpan &s)
    {
        turn<T, 64 * GROUPS, 64>(a, q, s, threadIdx.x / 128 * 64);
        publish_shared();
        group_meets(threadIdx.x / 128);
    }

    // A head's chunks of keys and of values are beside each other in the first map; the rotated
    // keys are the last chunk of the latents.
    struct Boxes {
        __device__ __forceinline__ Boxes(const ek_cu_attention &, const TileSpan &)
        {
        }
        __device__ __forceinline__ void copy(const box_maps &maps, const ek_cu_attention &a,
                                             const TileSpan &s, uint32_t first, bool values,
                                             uint32_t to, uint32_t full)
        {
            constexpr uint32_t NOPES = NOPE / EK_CHUNK, BOTH = (NOPE + DV) / EK_CHUNK;
            uint32_t lane = threadIdx.x % 32, row = s.seq * a.span + first - a.from;

            if (lane == 0)
                copy_box(to, &maps.k, row, s.head * BOTH + (values ? NOPES : 0), full, false);
            else if (lane == 1 && !values)
                copy_box(to + NOPES * KV * 128, &maps.v, row, a.kv.v_dim / EK_CHUNK, full, false);
        }
    };
#endif
};

template <typename T>
static cudaError_t expanded_boxes(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    static_assert(ExpandedSource::NOPE == ExpandedSource::DV, "one shape of boxes for both");
    uint32_t rows = a->batch.n_seqs * a->span, latent = (uint32_t)a->latent_row;
    struct box_maps maps;
    cudaError_t e = matrix_map(&maps.q, a->q, a->batch.n_tokens, a->heads * ExpandedSource::DK,
                               a->ldq * 2, BOX_ROWS<ExpandedBoxes>, ExpandedSource::DK / EK_CHUNK);

    if (e == cudaSuccess)
        e = matrix_map(&maps.k, a->kv.v, rows, (uint32_t)a->row, a->row * 2, ExpandedBoxes::KV,
                       ExpandedSource::DV / EK_CHUNK);
    if (e == cudaSuccess)
        e = matrix_map(&maps.v, a->latents, rows, latent, latent * 2, ExpandedBoxes::KV, 1);
    return e == cudaSuccess ? boxes_launch<T, ExpandedBoxes>(q, a, &maps) : e;
}

template <typename T>
static cudaError_t expanded(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    uint32_t blocks = a->batch.n_seqs * div_up(a->batch.max_q, 128) * a->heads;

    if (q->wgmma && a->batch.max_q > 64)
        return expanded_boxes<T>(q, a);
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

extern "C" bool ek_cu_attention_expanded_fits(const struct ek_cu_queue *q)
{
    using Shared = TileShared<bf16, ExpandedSource::DK, ExpandedSource::DV, 8, 2, 1>;

    return q->shared >= sizeof(Shared);
}
