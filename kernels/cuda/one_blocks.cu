// SPDX-License-Identifier: Apache-2.0
// Products of one token and weights in blocks, as fast as memory. Each block of threads takes an
// equal share of the bands, two at a time where rows of both belong together, and deals their bytes
// to its warps, which read them straight to registers and wait for each other only once, at the
// end. The first weights are asked for before the kernel ahead has finished. The token (normalised
// here when asked) is in shared memory.
#include "kernels/cuda/one_blocks.h"
#include "kernels/cuda/digits.cuh"
#include "kernels/cuda/split.cuh"
#include "kernels/cuda/staged.cuh"
#include "kernels/cuda/stream_blocks.cuh"

#define ONE_BLOCKS_WARPS   20 // as many as have registers for so many loads each, twice
#define ONE_BLOCKS_THREADS (32 * ONE_BLOCKS_WARPS)
#define ONE_BLOCKS_LOADS   4
#define ONE_BLOCKS_SHARED  (96 * 1024) // of a block, so that the usual split has room for it
#define ONE_BLOCKS_OWN     1024        // that the kernel has besides, at most

// ---- tiles: a band, or two that belong together
template <int MODE> struct OneTile {
    using U = Tile<MODE>;
    static const int members = U::rows;

    static uint32_t count(const ek_cu_product &p)
    {
        uint32_t n = 0;

        for (uint32_t i = 0; i < p.n_mats; i++)
            n += (p.mat[i].rows + 15) / 16;
        return n / members;
    }
    static __device__ __forceinline__ const uint8_t *band(const ek_cu_product &p, uint32_t tile,
                                                          uint32_t b)
    {
        return members == 2 ? U::band(p, tile, b) : U::band(p, tile / 2, tile % 2);
    }
    static __device__ __forceinline__ bool find(const ek_cu_product &p, uint32_t tile, uint32_t l,
                                                uint32_t *u, uint32_t *m, uint32_t row[members])
    {
        return members == 2 ? U::find(p, tile, l, u, m, row)
                            : U::find(p, tile / 2, tile % 2 * 16 + l, u, m, row);
    }
};

// What a block does: tiles [first, end). Its warps share the items in order, `per` of which are a
// band.
struct OneShare {
    uint32_t first, end, per, items, warps; // warps: that have any

    __device__ __forceinline__ OneShare(uint32_t tiles, uint32_t members, uint32_t per_band)
    {
        first = (uint32_t)((uint64_t)tiles * blockIdx.x / gridDim.x);
        end = (uint32_t)((uint64_t)tiles * (blockIdx.x + 1) / gridDim.x);
        per = per_band;
        items = (end - first) * members * per;
        warps = min(items, (uint32_t)ONE_BLOCKS_WARPS);
    }
    __device__ __forceinline__ uint32_t begin_of(uint32_t warp) const
    {
        return items * min(warp, warps) / warps;
    }
    __device__ __forceinline__ uint32_t warp_of(uint32_t item) const
    {
        return (warps * (item + 1) - 1) / items;
    }
};

// What a warp reads: a band of the block's and an item of it.
template <int W, int MODE> struct OneCursor {
    using Ahead = Weights<W, ONE_BLOCKS_LOADS>;
    using O = OneTile<MODE>;
    const uint8_t *at;
    uint32_t band, in;

    __device__ __forceinline__ void open(const ek_cu_product &p, const OneShare &s)
    {
        at = O::band(p, s.first + band / O::members, band % O::members);
    }
    __device__ __forceinline__ void start(const ek_cu_product &p, const OneShare &s, uint32_t item,
                                          bool there)
    {
        band = item / s.per, in = item % s.per;
        at = p.mat[0].data;
        if (there)
            open(p, s);
    }
    // To the next item; true: of another band.
    __device__ __forceinline__ bool next(const ek_cu_product &p, const OneShare &s, bool there)
    {
        if (++in < s.per)
            return false;
        in = 0, band++;
        if (there)
            open(p, s);
        return true;
    }
    __device__ __forceinline__ void ask(Ahead &to, uint32_t n_subs, bool there) const
    {
        to.ask(at, in * Ahead::subs, there ? n_subs : 0);
    }
};

// Sums of a band by a warp: [8 and 8 rows] in the slot of the warp's and the band's number, which
// no other two add up to, as both grow along the items.
template <int W>
__device__ __forceinline__ void put_sums(float (&sum)[2], float *sums, uint32_t slot)
{
    sum[0] = Lane<W>::join(sum[0]), sum[1] = Lane<W>::join(sum[1]);
    if (Lane<W>::chunk() == 0 && Lane<W>::sub() == 0) {
        sums[16 * slot + Lane<W>::row()] = sum[0];
        sums[16 * slot + Lane<W>::row() + 8] = sum[1];
    }
    sum[0] = sum[1] = 0;
}

// What a thread makes of the sums: a unit of the block's.
template <typename T, int MODE> struct OneResult {
    using O = OneTile<MODE>;
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
            uint32_t band = (tile - s.first) * O::members + place / 16;
            uint32_t last = s.warp_of((band + 1) * s.per - 1);

            for (uint32_t w = s.warp_of(band * s.per); w <= last; w++)
                v[r] += sums[16 * (w + band) + place % 16];
        }
        finish.run(p, 0, u, m, row, v);
    }
};

template <int W, typename T, int MODE>
__global__ void __launch_bounds__(ONE_BLOCKS_THREADS, 1)
    one_blocks_k(const ek_cu_product p, uint32_t tiles)
{
    using Ahead = Weights<W, ONE_BLOCKS_LOADS>;
    const uint32_t n_subs = p.cols / 32, warp = threadIdx.x / 32;
    extern __shared__ __align__(128) uint8_t raw[];
    OneShare s(tiles, OneTile<MODE>::members, (n_subs + Ahead::subs - 1) / Ahead::subs);
    OneToken<W> x(shared_at(raw), n_subs);
    float *sums = reinterpret_cast<float *>(raw + OneToken<W>::bytes(n_subs));
    T *token = reinterpret_cast<T *>(
        sums + 16 * ((s.end - s.first) * OneTile<MODE>::members + ONE_BLOCKS_WARPS));
    uint32_t item = s.begin_of(warp), end = s.begin_of(warp + 1);
    OneCursor<W, MODE> c;
    OneResult<T, MODE> result;
    Ahead next;
    float sum[2] = {};

    c.start(p, s, item, item < end);
    c.ask(next, n_subs, item < end);
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
    for (; item < end; item++) {
        Ahead now = next;
        uint32_t first = c.in * Ahead::subs, slot = warp + c.band;
        bool more = item + 1 < end, last = c.next(p, s, more);

        c.ask(next, n_subs, more);
        now.template multiply<T>(x, first, n_subs, sum);
        if (last || !more)
            put_sums<W>(sum, sums, slot);
    }
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
    return OneToken<W>::bytes(p->cols / 32) + 64 * (bands + ONE_BLOCKS_WARPS) +
           (p->norm ? token_bytes<T>(p->cols, true) : 0);
}

template <int W, typename T, int MODE>
static cudaError_t one_blocks_launch(const struct ek_cu_queue *q, const struct ek_cu_product *p)
{
    auto kernel = one_blocks_k<W, T, MODE>;
    uint32_t tiles = OneTile<MODE>::count(*p), blocks = tiles < q->n_sm ? tiles : q->n_sm;
    size_t shared = one_blocks_shared<W, T>(p, div_up(tiles, blocks) * OneTile<MODE>::members);
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
