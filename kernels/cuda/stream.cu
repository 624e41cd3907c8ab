// SPDX-License-Identifier: Apache-2.0
// Products with 2 to 16 tokens: bound by reading the weights, which stream through shared memory to
// the tensor cores, several steps of columns ahead. The first steps are asked for before the kernel
// ahead has finished: that hides the seams between kernels. A cluster of blocks takes a tile of
// rows, each block some of its columns and each warp some of a step's; then each block finishes
// some of the rows from what all have summed, in the order of the columns.
#include <cooperative_groups.h>

#include "kernels/cuda/units.cuh"

#define STREAM_THREADS 256
#define STREAM_WARPS   (STREAM_THREADS / 32)
#define STREAM_ROWS    32
#define STREAM_K       256 // columns a step: what memory likes to read of a row at a time
#define STREAM_PIECES  (STREAM_K / 8)
#define STREAM_SHARED  (110 * 1024)      // two blocks of a multiprocessor
#define STREAM_LD      (STREAM_ROWS + 4) // of sums
#define STREAM_BATCH   2                 // results a thread finishes at a time

// Tiles of 8 NT tokens.
template <int NT> struct Stream {
    static const int w_bytes = STREAM_ROWS * STREAM_K * 2, stage = w_bytes + NT * 8 * STREAM_K * 2;
    static const int stages = STREAM_SHARED / stage;
    static const int sums = NT * 8 * STREAM_LD; // [token][row] of a warp
    static_assert(STREAM_WARPS * sums * 4 <= stages * stage, "sums take the place of the steps");
};

// Byte offset of a 16-byte piece of a row: pieces are swizzled, so that ldmatrix and the copies
// meet no bank twice.
__device__ __forceinline__ uint32_t place(uint32_t row, uint32_t piece)
{
    return row * (STREAM_K * 2) + (piece / 8 * 8 + ((piece ^ row) & 7)) * 16;
}

// ---- copies: a thread takes one piece of rows that are STEP apart
#define STREAM_STEP (STREAM_THREADS / STREAM_PIECES)

template <int MODE> struct WeightCopy {
    static const int R = Unit<MODE>::rows, UNITS = STREAM_ROWS / R;
    const uint8_t *row[STREAM_ROWS / STREAM_STEP];

    __device__ __forceinline__ WeightCopy(const ek_cu_product &p, uint32_t tile, uint32_t units)
    {
#pragma unroll
        for (int i = 0; i < STREAM_ROWS / STREAM_STEP; i++) {
            uint32_t r = threadIdx.x / STREAM_PIECES + STREAM_STEP * i, m, rows[R];
            uint32_t u = min(tile * UNITS + r % UNITS, units - 1); // past the end: the last again
            bool second = R == 2 && r >= UNITS;

            Unit<MODE>::find(p, u, &m, rows);
            row[i] =
                Unit<MODE>::data(p, m, second) + (second ? rows[R - 1] : rows[0]) * p.row_bytes;
        }
    }
    __device__ __forceinline__ void run(const ek_cu_product &p, uint32_t step, uint32_t to) const
    {
        uint32_t piece = threadIdx.x % STREAM_PIECES, c = step * STREAM_K + 8 * piece;

#pragma unroll
        for (int i = 0; i < STREAM_ROWS / STREAM_STEP; i++)
            copy16(to + place(threadIdx.x / STREAM_PIECES + STREAM_STEP * i, piece),
                   row[i] + (c < p.cols ? 2 * c : 0), c < p.cols);
    }
};

template <int NT>
__device__ __forceinline__ void copy_tokens(const ek_cu_product &p, uint32_t n, uint32_t step,
                                            uint32_t to)
{
    uint32_t piece = threadIdx.x % STREAM_PIECES, c = step * STREAM_K + 8 * piece;

#pragma unroll
    for (int i = 0; i < 8 * NT / STREAM_STEP; i++) {
        uint32_t token = threadIdx.x / STREAM_PIECES + STREAM_STEP * i;
        bool valid = token < n && c < p.cols;

        copy16(to + place(token, piece), (const uint8_t *)p.x + (valid ? token * p.ldx + c : 0) * 2,
               valid);
    }
}

// ---- one step: all rows, the warp's columns
template <typename T, int NT>
__device__ __forceinline__ void multiply(float (&c)[2][NT][4], uint32_t w, uint32_t x)
{
    uint32_t lane = threadIdx.x % 32, first = threadIdx.x / 32 * (STREAM_PIECES / STREAM_WARPS);

#pragma unroll
    for (int k = 0; k < STREAM_K / STREAM_WARPS / 16; k++) {
        uint32_t a[2][4], b[4], piece = first + 2 * k;

#pragma unroll
        for (int i = 0; i < 2; i++)
            load_tiles(a[i], w + place(16 * i + lane % 16, piece + lane / 16));
        load_tiles(b, x + place((NT > 1 ? lane / 16 * 8 : 0) + lane % 8, piece + lane / 8 % 2));
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                mma<T>(c[i][j], a[i], b[2 * j], b[2 * j + 1]);
    }
}

// ---- a tile's sums
template <int NT> __device__ __forceinline__ void publish(const float (&c)[2][NT][4], float *sums)
{
    uint32_t lane = threadIdx.x % 32;
    float *to = sums + threadIdx.x / 32 * Stream<NT>::sums + lane / 4;

#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int v = 0; v < 4; v++)
                to[(8 * j + 2 * (lane % 4) + v % 2) * STREAM_LD + 16 * i + v / 2 * 8] = c[i][j][v];
}

// What a thread makes of the sums: STREAM_BATCH results at a time, the first ones looked up while
// the sums are on their way.
template <typename T, int MODE, int NT> struct Results {
    static const int R = Unit<MODE>::rows, UNITS = STREAM_ROWS / R;
    Finish<T, MODE> f[STREAM_BATCH];
    uint32_t m[STREAM_BATCH], row[STREAM_BATCH][R];
    uint32_t n, units; // tokens, and units of the whole product
    uint32_t share;    // units of a tile that a block finishes

    // Result `at` of this block: a token and a unit of the tile; false when it is past the end.
    __device__ __forceinline__ bool find(uint32_t at, uint32_t *token, uint32_t *unit) const
    {
        *token = at / share;
        *unit = blockIdx.x * share + at % share;
        return *token < n && blockIdx.y * UNITS + *unit < units;
    }
    __device__ __forceinline__ void prepare(const ek_cu_product &p, uint32_t base)
    {
#pragma unroll
        for (int i = 0; i < STREAM_BATCH; i++) {
            uint32_t token, unit;

            if (!find(base + i * STREAM_THREADS, &token, &unit))
                continue;
            unit += blockIdx.y * UNITS;
            Unit<MODE>::find(p, unit, &m[i], row[i]);
            f[i].prepare(p, token, unit, m[i], row[i]);
        }
    }
    __device__ __forceinline__ void run(const ek_cu_product &p, uint32_t base, float *sums) const
    {
#if __CUDA_ARCH__ >= 900
        auto cluster = cooperative_groups::this_cluster();
        float sum[STREAM_BATCH][R] = {};

#pragma unroll 4
        for (uint32_t b = 0; b < gridDim.x; b++) {
            const float *part = cluster.map_shared_rank(sums, b);
#pragma unroll
            for (int i = 0; i < STREAM_BATCH; i++) {
                uint32_t token, unit;

                if (find(base + i * STREAM_THREADS, &token, &unit))
#pragma unroll
                    for (int r = 0; r < R; r++)
#pragma unroll
                        for (int w = 0; w < STREAM_WARPS; w++)
                            sum[i][r] +=
                                part[w * Stream<NT>::sums + token * STREAM_LD + r * UNITS + unit];
            }
        }
#pragma unroll
        for (int i = 0; i < STREAM_BATCH; i++) {
            uint32_t token, unit;

            if (find(base + i * STREAM_THREADS, &token, &unit))
                f[i].run(p, token, blockIdx.y * UNITS + unit, m[i], row[i], sum[i]);
        }
#endif
    }
};

// Blocks along x: the parts of a tile's columns, a cluster; along y: tiles.
template <typename T, int MODE, int NT>
__global__ void __launch_bounds__(STREAM_THREADS, 2)
    stream_k(const ek_cu_product p, uint32_t n, uint32_t units)
{
#if __CUDA_ARCH__ >= 900
    using S = Stream<NT>;
    extern __shared__ __align__(128) uint8_t raw[];
    float *sums = reinterpret_cast<float *>(raw);
    uint32_t at = shared_at(raw), steps = (p.cols + STREAM_K - 1) / STREAM_K;
    uint32_t first = steps * blockIdx.x / gridDim.x, end = steps * (blockIdx.x + 1) / gridDim.x;
    auto cluster = cooperative_groups::this_cluster();
    WeightCopy<MODE> weights(p, blockIdx.y, units);
    Results<T, MODE, NT> results;
    float c[2][NT][4] = {};

#pragma unroll
    for (int i = 0; i < S::stages - 1; i++)
        if (first + i < end)
            weights.run(p, first + i, at + i * S::stage);
    pdl_next();
    pdl_wait();
#pragma unroll
    for (int i = 0; i < S::stages - 1; i++) {
        if (first + i < end)
            copy_tokens<NT>(p, n, first + i, at + i * S::stage + S::w_bytes);
        copy_commit(); // the first of these groups holds the weights of all
    }
    for (uint32_t step = first, i = 0; step < end; step++, i = i + 1 < S::stages ? i + 1 : 0) {
        uint32_t ahead = step + S::stages - 1, to = at + (i ? i - 1 : S::stages - 1) * S::stage;

        copy_wait<S::stages - 2>();
        __syncthreads(); // this step is here, and all have done with the one before
        if (ahead < end) {
            weights.run(p, ahead, to);
            copy_tokens<NT>(p, n, ahead, to + S::w_bytes);
        }
        copy_commit();
        multiply<T, NT>(c, at + i * S::stage, at + i * S::stage + S::w_bytes);
    }
    results.n = n, results.units = units, results.share = results.UNITS / gridDim.x;
    results.prepare(p, threadIdx.x);
    __syncthreads(); // the steps' memory becomes that of the sums
    publish<NT>(c, sums);
    cluster.sync();
    for (uint32_t base = threadIdx.x; base < n * results.share;
         base += STREAM_BATCH * STREAM_THREADS) {
        if (base != threadIdx.x)
            results.prepare(p, base);
        results.run(p, base, sums);
    }
    cluster.sync(); // no block leaves while others read from it
#endif
}

// ---- launch
// Blocks of a cluster: about as many in all as there are multiprocessors.
static uint32_t blocks_of(const struct ek_cu_queue *q, uint32_t tiles, uint32_t steps)
{
    uint32_t blocks = EK_CU_CLUSTER;

    while (blocks > 1 && (4 * tiles * blocks > 5 * q->n_sm || steps < 2 * blocks))
        blocks /= 2;
    return blocks;
}

template <typename T, int MODE>
static cudaError_t stream_launch(const struct ek_cu_queue *q, uint32_t n,
                                 const struct ek_cu_product *p)
{
    uint32_t rows = 0, units, tiles, blocks;

    for (uint32_t i = 0; i < p->n_mats; i++)
        rows += p->mat[i].rows;
    units = rows / Unit<MODE>::rows;
    tiles = div_up(units, STREAM_ROWS / Unit<MODE>::rows);
    blocks = blocks_of(q, tiles, div_up(p->cols, STREAM_K));
    if (n <= 8)
        return launch_cluster(q, stream_k<T, MODE, 1>, dim3(blocks, tiles), STREAM_THREADS,
                              Stream<1>::stages * Stream<1>::stage, blocks, *p, n, units);
    return launch_cluster(q, stream_k<T, MODE, 2>, dim3(blocks, tiles), STREAM_THREADS,
                          Stream<2>::stages * Stream<2>::stage, blocks, *p, n, units);
}

template <typename T>
static cudaError_t stream_mode(const struct ek_cu_queue *q, enum ek_cu_mode mode, uint32_t n,
                               const struct ek_cu_product *p)
{
    switch (mode) {
    case EK_CU_LINEAR:
        return stream_launch<T, EK_CU_LINEAR>(q, n, p);
    case EK_CU_GATE_UP:
        return stream_launch<T, EK_CU_GATE_UP>(q, n, p);
    case EK_CU_QKV:
        return stream_launch<T, EK_CU_QKV>(q, n, p);
    }
    return cudaErrorNotSupported;
}

extern "C" cudaError_t ek_cu_product_stream(const struct ek_cu_queue *q, enum ek_dtype act,
                                            enum ek_cu_mode mode, uint32_t n,
                                            const struct ek_cu_product *p)
{
    return act == EK_BF16  ? stream_mode<bf16>(q, mode, n, p)
           : act == EK_F16 ? stream_mode<f16>(q, mode, n, p)
                           : cudaErrorNotSupported;
}

extern "C" bool ek_cu_stream_fits(const struct ek_cu_queue *q)
{
    return q->pdl && q->shared >= STREAM_SHARED;
}
