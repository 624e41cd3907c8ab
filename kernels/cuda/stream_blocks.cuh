// SPDX-License-Identifier: Apache-2.0
// Products with up to 16 tokens and weights in blocks: bound by reading the weights. A block of
// threads takes tiles of two bands of rows, one behind the other; its warps share the columns, 64
// at a time. Each warp has a ring of copies of its own in shared memory, which runs ahead of it
// over the columns and on into the next tile, so that memory never waits for sums or for other
// warps. The first copies are asked for before the kernel ahead has finished. Where there are few
// tiles, a cluster of blocks shares the columns.
#ifndef EK_CUDA_STREAM_BLOCKS_CUH
#define EK_CUDA_STREAM_BLOCKS_CUH

#include <cooperative_groups.h>

#include "kernels/cuda/bands.cuh"
#include "kernels/cuda/integers.cuh"

#define PACK_WARPS   8
#define PACK_THREADS (32 * PACK_WARPS)
#define PACK_COLS    64       // of a step
#define PACK_LD      (32 + 4) // of sums
#define PACK_BLOCKS  2        // of a multiprocessor

// ---- steps: 64 columns of a band. Of larger blocks: the heads, and two of the sub-blocks.
template <int W, int NT> struct Pack {
    using B = Blocks<W>;
    static const bool part = B::cols > PACK_COLS;
    static const uint32_t tiles = part ? 1 : PACK_COLS / B::cols;
    static const uint32_t bytes = part ? B::heads + 2 * B::sub : tiles * B::bytes; // of a band
    static const uint32_t sums = NT * 8 * PACK_LD;                                 // of a warp
    static const uint32_t sum_bytes = 2 * PACK_WARPS * sums * 4;
    static const uint32_t stages = (EK_CU_BLOCKS_SHARED - sum_bytes) / PACK_WARPS / (2 * bytes);
    static_assert(stages >= 2, "a step is too large");

    // Sub-block i of a step in shared memory, and the heads of its block.
    static __device__ __forceinline__ SharedAt sub_at(SharedAt at, uint32_t i)
    {
        const uint32_t subs = B::cols / 32;
        return part ? at + (B::heads + i * B::sub)
                    : at + (i / subs * B::bytes + B::heads + i % subs * B::sub);
    }
    static __device__ __forceinline__ SharedAt heads_at(SharedAt at, uint32_t i)
    {
        return part ? at : at + i / (B::cols / 32) * B::bytes;
    }
    // The first sub-block's number in its block; the same for all steps of a warp, as blocks divide
    // the columns of all warps' steps.
    static __device__ __forceinline__ uint32_t number(uint32_t step)
    {
        return part ? step % (B::cols / PACK_COLS) * 2 : 0;
    }
    // Bytes of a band before a step's block, and from one step of a warp to its next.
    static __device__ __forceinline__ uint32_t offset(uint32_t step)
    {
        return part ? step / (B::cols / PACK_COLS) * B::bytes : step * bytes;
    }
    static const uint32_t next = PACK_WARPS * PACK_COLS / B::cols * B::bytes;
    static_assert(PACK_WARPS * PACK_COLS % B::cols == 0, "a warp's steps begin alike");
};

// ---- copies
// N bytes by all lanes of a warp, whose pieces are 16 bytes apart; those from `valid` on become
// zeros.
template <uint32_t N>
__device__ __forceinline__ void copy_bytes(uint32_t to, const uint8_t *from, uint32_t valid = N)
{
    uint32_t lane16 = threadIdx.x % 32 * 16;

#pragma unroll
    for (uint32_t i = 0; i < N; i += 512)
        if (i + 512 <= N || lane16 < N - i)
            copy16(to + lane16 + i, from + lane16 + i, lane16 + i < valid);
}

// ---- what runs ahead: steps of a warp, tile after tile
struct PackRange {
    uint32_t first, end; // steps of the warp
    uint32_t tiles;
    enum ek_cu_mode mode;
};
template <int W> struct Ahead {
    using B = Blocks<W>;
    using S = Pack<W, 1>;
    const uint8_t *band[2]; // at the step, the lane's piece
    uint32_t tile, step, cols;

    __device__ __forceinline__ Ahead(const ek_cu_product &p, const PackRange &r)
    {
        cols = p.cols;
        tile = r.first < r.end ? blockIdx.y : r.tiles;
        find(p, r);
    }
    // to: the lane's place
    __device__ __forceinline__ void run(const ek_cu_product &p, const PackRange &r, uint32_t to)
    {
        if (tile < r.tiles) {
            copy(to);
            band[0] += S::next, band[1] += S::next;
            step += PACK_WARPS;
            if (step >= r.end) {
                tile += gridDim.y;
                find(p, r);
            }
        }
        copy_commit();
    }

  private:
    __device__ __forceinline__ void find(const ek_cu_product &p, const PackRange &r)
    {
        step = r.first;
        if (tile >= r.tiles)
            return;
        BAND_DISPATCH(r.mode, band[0] = Tile<MODE>::band(p, tile, 0),
                      band[1] = Tile<MODE>::band(p, tile, 1))
        band[0] += S::offset(step);
        band[1] += S::offset(step);
    }
    __device__ __forceinline__ void copy(uint32_t to) const
    {
#pragma unroll
        for (int b = 0; b < 2; b++, to += S::bytes) {
            if (S::part) {
                copy_bytes<B::heads>(to, band[b]);
                copy_bytes<2 * B::sub>(to + B::heads,
                                       band[b] + B::heads + S::number(step) * B::sub);
            } else if (S::tiles == 1) {
                copy_bytes<S::bytes>(to, band[b]);
            } else { // the last step may have half of the columns
                copy_bytes<S::bytes>(to, band[b],
                                     step * PACK_COLS + B::cols < cols ? S::bytes : B::bytes);
            }
        }
    }
};

// ---- one step
// A token's elements that chunk t of each sub-block meets. Past the end: any, as the weights are
// zeros.
template <int W, typename T, int NT>
__device__ __forceinline__ void load_tokens(uint4 (&x)[2][NT], const T *const (&token)[NT],
                                            uint32_t step, uint32_t cols)
{
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t c = min(step * PACK_COLS + 32 * i, cols - 32);
#pragma unroll
        for (int j = 0; j < NT; j++) {
            if (Blocks<W>::split) {
                uint2 lo = *reinterpret_cast<const uint2 *>(token[j] + c);
                uint2 hi = *reinterpret_cast<const uint2 *>(token[j] + c + 16);
                x[i][j] = make_uint4(lo.x, lo.y, hi.x, hi.y);
            } else {
                x[i][j] = *reinterpret_cast<const uint4 *>(token[j] + c);
            }
        }
    }
}
template <int W, typename T, int NT>
__device__ __forceinline__ void multiply_step(float (&sum)[2][NT][4], SharedAt at, uint32_t number,
                                              const uint4 (&x)[2][NT])
{
    using B = Blocks<W>;
    using S = Pack<W, NT>;
    uint32_t lane = threadIdx.x % 32, g = lane / 4;
    typename B::Words words[2][2];

#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        BiasSums<W, T, NT> bias(x[i]);
#pragma unroll
        for (int b = 0; b < 2; b++) {
            SharedAt heads = S::heads_at(at + b * S::bytes, i);
            Chunk c[2];
            Scale s[2];

            chunks_at<W>(S::sub_at(at + b * S::bytes, i), lane, c);
            if (i == 0 || B::split || !S::part)
                B::load2(heads, g, number + i, words[b]);
            s[0] = B::scale(words[b][0], i), s[1] = B::scale(words[b][1], i);
            add_sub_block<W, T, NT>(sum[b], c, s, x[i], bias);
        }
    }
}

// ---- a tile's sums
// Blocks of a cluster, or the threads of a block, have come here.
__device__ __forceinline__ void meet()
{
#if __CUDA_ARCH__ >= 900
    if (gridDim.x > 1) {
        cooperative_groups::this_cluster().sync();
        return;
    }
#endif
    __syncthreads();
}
__device__ __forceinline__ const float *sums_of(float *sums, uint32_t block)
{
#if __CUDA_ARCH__ >= 900
    if (gridDim.x > 1)
        return cooperative_groups::this_cluster().map_shared_rank(sums, block);
#endif
    return sums;
}

template <int NT>
__device__ __forceinline__ void publish_tile(const float (&c)[2][NT][4], float *sums)
{
    uint32_t lane = threadIdx.x % 32;
    float *to = sums + threadIdx.x / 32 * Pack<EK_Q4_0, NT>::sums + lane / 4;

#pragma unroll
    for (int b = 0; b < 2; b++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int v = 0; v < 4; v++)
                to[(8 * j + 2 * (lane % 4) + v % 2) * PACK_LD + 16 * b + v / 2 * 8] = c[b][j][v];
}

// Sums of all warps, then what becomes of them: each block of a cluster finishes some of the units.
// turn: whose threads begin, so that not always the same warp is late.
template <typename T, int MODE, int NT>
__device__ __forceinline__ void finish_tile(const ek_cu_product &p, uint32_t n, uint32_t tile,
                                            uint32_t turn, const float (&c)[2][NT][4], float *sums)
{
    using U = Tile<MODE>;
    uint32_t share = U::units / gridDim.x, at = (threadIdx.x - 64 * turn) % PACK_THREADS;
    bool met = false;

    do {
        uint32_t token = at / share, l = blockIdx.x * share + at % share, u, m, row[U::rows];
        bool there = token < n && U::find(p, tile, l, &u, &m, row);
        float sum[U::rows] = {};
        Finish<T, MODE> finish;

        if (there)
            finish.prepare(p, token, u, m, row);
        if (!met) {
            publish_tile<NT>(c, sums);
            meet();
            met = true;
        }
        if (there) {
            for (uint32_t b = 0; b < gridDim.x; b++) {
                const float *part = sums_of(sums, b) + token * PACK_LD;
#pragma unroll
                for (int r = 0; r < U::rows; r++)
#pragma unroll
                    for (int w = 0; w < PACK_WARPS; w++)
                        sum[r] += part[w * Pack<EK_Q4_0, NT>::sums + U::place(p, l, r)];
            }
            finish.run(p, token, u, m, row, sum);
        }
        at += PACK_THREADS;
    } while (at < n * share);
}

// Blocks along x: the parts of the columns, a cluster; along y: those that tiles are dealt to.
template <int W, typename T, int NT>
__global__ void __launch_bounds__(PACK_THREADS, PACK_BLOCKS)
    stream_blocks_k(const ek_cu_product p, enum ek_cu_mode mode, uint32_t n, uint32_t tiles)
{
    using S = Pack<W, NT>;
    extern __shared__ __align__(128) uint8_t raw[];
    float *sums = reinterpret_cast<float *>(raw);
    uint32_t steps = (p.cols + PACK_COLS - 1) / PACK_COLS, warp = threadIdx.x / 32;
    PackRange r = {steps * blockIdx.x / gridDim.x + warp, steps * (blockIdx.x + 1) / gridDim.x,
                   tiles, mode};
    const uint32_t stage = 2 * S::bytes;
    uint32_t ring = shared_at(raw) + S::sum_bytes + warp * (S::stages * stage);
    uint32_t at = ring, number = S::number(r.first), turn = 0;
    Ahead<W> ahead(p, r);
    const T *token[NT];
    uint4 next[2][NT];

#pragma unroll
    for (uint32_t i = 0; i < S::stages - 1; i++)
        ahead.run(p, r, ring + i * stage);
#pragma unroll
    for (int j = 0; j < NT; j++) // past the end: the last again
        token[j] = (const T *)p.x + min(threadIdx.x % 32 / 4 + 8 * j, n - 1) * p.ldx +
                   (Blocks<W>::split ? 4 : 8) * (threadIdx.x % 4);
    pdl_next();
    pdl_wait();
    load_tokens<W, T, NT>(next, token, r.first, p.cols);
    for (uint32_t tile = blockIdx.y; tile < tiles; tile += gridDim.y, turn++) {
        float c[2][NT][4] = {};

        for (uint32_t step = r.first; step < r.end; step += PACK_WARPS) {
            uint32_t before = at == ring ? ring + (S::stages - 1) * stage : at - stage;
            uint4 x[2][NT];

#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < NT; j++)
                    x[i][j] = next[i][j];
            load_tokens<W, T, NT>(next, token,
                                  step + PACK_WARPS < r.end ? step + PACK_WARPS : r.first, p.cols);
            __syncwarp(); // all lanes have done with the step that is copied over
            ahead.run(p, r, before);
            copy_wait<S::stages - 1>();
            __syncwarp();
            multiply_step<W, T, NT>(c, SharedAt{at}, number, x);
            at = at == ring + (S::stages - 1) * stage ? ring : at + stage;
        }
        BAND_DISPATCH(mode, finish_tile<T, MODE, NT>(p, n, tile, turn, c,
                                                     sums + turn % 2 * (S::sum_bytes / 8)))
    }
    if (gridDim.x > 1)
        meet(); // no block leaves while others read from it
}

// ---- launch
// Clusters of so many blocks that the multiprocessors hold: of large ones a sixteenth less, as
// groups of multiprocessors are no multiples of them.
static uint32_t pack_most(const struct ek_cu_queue *q, uint32_t parts)
{
    uint32_t n = PACK_BLOCKS * q->n_sm / parts;

    return parts > 2 ? n - div_up(n, 16) : n;
}
// Blocks of a cluster: as many as fit at once, with a step for each warp.
static uint32_t pack_parts(const struct ek_cu_queue *q, uint32_t tiles, uint32_t steps)
{
    uint32_t parts = q->pdl ? EK_CU_CLUSTER : 1;

    while (parts > 1 && (tiles > pack_most(q, parts) || steps < PACK_WARPS * parts))
        parts /= 2;
    return parts;
}

static uint32_t pack_tiles(enum ek_cu_mode mode, const ek_cu_product &p)
{
    uint32_t tiles = 0;

    BAND_DISPATCH(mode, tiles = Tile<MODE>::count(p))
    return tiles;
}

template <int W, typename T, int NT>
static cudaError_t pack_launch(const struct ek_cu_queue *q, enum ek_cu_mode mode, uint32_t n,
                               const struct ek_cu_product *p)
{
    using S = Pack<W, NT>;
    uint32_t tiles = pack_tiles(mode, *p);
    uint32_t parts = pack_parts(q, tiles, div_up(p->cols, PACK_COLS)), most = pack_most(q, parts);

    return launch_cluster(q, stream_blocks_k<W, T, NT>, dim3(parts, tiles < most ? tiles : most),
                          PACK_THREADS, S::sum_bytes + 2 * PACK_WARPS * S::stages * S::bytes, parts,
                          *p, mode, n, tiles);
}

template <int W, typename T>
static cudaError_t pack_typed(const struct ek_cu_queue *q, enum ek_cu_mode mode, uint32_t n,
                              const struct ek_cu_product *p)
{
    return n <= 8 ? pack_launch<W, T, 1>(q, mode, n, p) : pack_launch<W, T, 2>(q, mode, n, p);
}

template <int W>
static cudaError_t pack_any(const struct ek_cu_queue *q, enum ek_dtype act, enum ek_cu_mode mode,
                            uint32_t n, const struct ek_cu_product *p)
{
    return act == EK_BF16  ? pack_typed<W, bf16>(q, mode, n, p)
           : act == EK_F16 ? pack_typed<W, f16>(q, mode, n, p)
                           : cudaErrorNotSupported;
}

#endif
