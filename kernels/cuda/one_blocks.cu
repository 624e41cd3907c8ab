// SPDX-License-Identifier: Apache-2.0
// Products of one token and weights in blocks, as fast as memory. Each block of threads takes an
// equal share of the bands, two at a time where rows of both belong together, and deals their bytes
// to its warps, which read them straight to registers and wait for each other only once, at the
// end. The first weights are asked for before the kernel ahead has finished. The token (normalised
// here when asked) is in shared memory.
#include "kernels/cuda/one_blocks.h"
#include "kernels/cuda/one_bands.cuh"
#include "kernels/cuda/staged.cuh"

#define ONE_BLOCKS_OWN 1024 // bytes of shared memory that the kernel has besides, at most

// Bands of the matrices of a product.
template <int W, int MODE> struct OneSource {
    using O = BandTile<MODE>;
    static const bool weighted = false;
    const ek_cu_product &p;
    uint32_t first; // tile
    const uint8_t *at;

    __device__ __forceinline__ void open(uint32_t band)
    {
        at = O::band(p, first + band / O::members, band % O::members);
    }
    __device__ __forceinline__ OnePiece piece(uint32_t in) const
    {
        return {at, in * OneAhead<W>::subs, p.cols / 32, in * OneAhead<W>::subs, 1};
    }
};

// What a thread makes of the sums: a unit of the block's.
template <typename T, int MODE> struct OneResult {
    using O = BandTile<MODE>;
    uint32_t tile, l, u, m, row[O::members];
    Finish<T, MODE> finish;

    __device__ __forceinline__ bool find(const ek_cu_product &p, const OneShare &s, uint32_t i)
    {
        tile = s.first + i / 16;
        l = i % 16;
        return tile < s.end && O::find(p, tile, l, &u, &m, row);
    }
    __device__ __forceinline__ void prepare(const ek_cu_product &p)
    {
        finish.prepare(p, 0, u, m, row);
    }
    __device__ __forceinline__ void run(const ek_cu_product &p, const OneShare &s,
                                        const float *sums) const
    {
        float v[O::members] = {};

#pragma unroll
        for (int r = 0; r < O::members; r++) {
            uint32_t place = O::members == 2 ? Tile<MODE>::place(p, l, r) : l;

            v[r] = sum_of(s, sums, (tile - s.first) * O::members + place / 16, place % 16);
        }
        finish.run(p, 0, u, m, row, v);
    }
};

template <int W, typename T, int MODE>
__global__ void __launch_bounds__(ONE_BLOCKS_THREADS, 1)
    one_blocks_k(const ek_cu_product p, uint32_t tiles)
{
    const uint32_t n_subs = p.cols / 32, warp = threadIdx.x / 32, per = OneAhead<W>::subs;
    extern __shared__ __align__(128) uint8_t raw[];
    OneShare s(tiles, BandTile<MODE>::members, (n_subs + per - 1) / per);
    OneToken<W> x(shared_at(raw), n_subs);
    float *sums = reinterpret_cast<float *>(raw + OneToken<W>::bytes(n_subs));
    T *token = reinterpret_cast<T *>(reinterpret_cast<uint8_t *>(sums) +
                                     sum_bytes((s.end - s.first) * BandTile<MODE>::members));
    uint32_t item = s.begin_of(warp), end = s.begin_of(warp + 1);
    OneCursor<W, OneSource<W, MODE>> c({p, s.first, p.mat[0].data}, s, item);
    OneResult<T, MODE> result;
    OneAhead<W> next;

    c.ask(next, true, item < end);
    const float *norm = stage_norm(p.norm, p.cols, token);
    pdl_next();
    pdl_wait();
    if (result.find(p, s, threadIdx.x))
        result.prepare(p);
    if (p.norm) {
        ask_token((const T *)p.x, p.cols, token);
        stage_token(norm, p.eps, p.cols, token);
    }
    x.make(p.norm ? token : (const T *)p.x, n_subs);
    __syncthreads();
    sum_bands<W, T>(c, next, s, x, n_subs, item, end, sums);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < 16 * (s.end - s.first); i += ONE_BLOCKS_THREADS) {
        if (!result.find(p, s, i))
            continue;
        if (i != threadIdx.x)
            result.prepare(p);
        result.run(p, s, sums);
    }
}

// ---- launch
// Of blocks that take so many bands.
template <int W, typename T>
static size_t one_blocks_shared(const struct ek_cu_product *p, uint32_t bands)
{
    return OneToken<W>::bytes(p->cols / 32) + sum_bytes(bands) +
           (p->norm ? token_bytes<T>(p->cols, true) : 0);
}

template <int W, typename T, int MODE>
static cudaError_t one_blocks_launch(const struct ek_cu_queue *q, const struct ek_cu_product *p)
{
    auto kernel = one_blocks_k<W, T, MODE>;
    uint32_t tiles = BandTile<MODE>::count(*p), blocks = tiles < q->n_sm ? tiles : q->n_sm;
    size_t shared = one_blocks_shared<W, T>(p, div_up(tiles, blocks) * BandTile<MODE>::members);
    cudaError_t r = split_memory(kernel, shared > ONE_BLOCKS_SHARED ? SPLIT_COPIES : SPLIT_LOADS);

    return r == cudaSuccess ? launch(q, kernel, blocks, ONE_BLOCKS_THREADS, shared, *p, tiles) : r;
}

template <int W, typename T>
static cudaError_t one_blocks_typed(const struct ek_cu_queue *q, enum ek_cu_mode mode,
                                    const struct ek_cu_product *p)
{
    switch (mode) {
    case EK_CU_LINEAR:
        return one_blocks_launch<W, T, EK_CU_LINEAR>(q, p);
    case EK_CU_GATE_UP:
        return one_blocks_launch<W, T, EK_CU_GATE_UP>(q, p);
    case EK_CU_QKV:
        return one_blocks_launch<W, T, EK_CU_QKV>(q, p);
    }
    return cudaErrorNotSupported;
}

template <int W>
static cudaError_t one_blocks_any(const struct ek_cu_queue *q, enum ek_dtype act,
                                  enum ek_cu_mode mode, const struct ek_cu_product *p)
{
    return act == EK_BF16  ? one_blocks_typed<W, bf16>(q, mode, p)
           : act == EK_F16 ? one_blocks_typed<W, f16>(q, mode, p)
                           : cudaErrorNotSupported;
}

extern "C" bool ek_cu_one_blocks_fits(const struct ek_cu_queue *q, enum ek_dtype w,
                                      const struct ek_cu_product *p)
{
    uint32_t bands = 0;

    if (w < EK_Q4_0 || p->cols % 32)
        return false;
    for (uint32_t i = 0; i < p->n_mats; i++)
        bands += div_up(p->mat[i].rows, 16);
    return one_blocks_shared<EK_Q6_K, bf16>(p, div_up(bands, q->n_sm) + 1) + ONE_BLOCKS_OWN <=
           q->shared;
}

extern "C" cudaError_t ek_cu_product_one_blocks(const struct ek_cu_queue *q, enum ek_dtype w,
                                                enum ek_dtype act, enum ek_cu_mode mode,
                                                const struct ek_cu_product *p)
{
    EK_DISPATCH_BLOCKS(w, return one_blocks_any<W>(q, act, mode, p));
}
