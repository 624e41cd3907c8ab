// SPDX-License-Identifier: Apache-2.0
// Experts with many tokens each, grouped by expert: tiles of 128 places by 128 rows of weights, on
// tensor cores, fed through three buffers of shared memory; where experts_wide.cu does not fit.
// Which tile a block takes follows from the counts in device memory, so that the host never waits.
// A tile of gate and up holds 64 rows of each: both of an element meet in a lane.
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/deepseek.h"

#define MANY_THREADS  256
#define MANY_TILE     128 // places, and rows of weights
#define MANY_K        64  // columns a step
#define MANY_STAGES   3
#define MANY_RESIDENT 2

template <typename T> struct ManyShared {
    T x[MANY_STAGES][MANY_TILE * MANY_K], w[MANY_STAGES][MANY_TILE * MANY_K];
};

__device__ __forceinline__ uint32_t place(uint32_t row, uint32_t piece)
{
    return row * 64 + ((piece ^ row) & 7) * 8;
}

struct ManyTile {
    uint32_t expert, first, n; // places
};

// The tile of places that block row `index` takes; n = 0 when there are fewer tiles.
__device__ __forceinline__ ManyTile find_tile(const ek_cu_experts &e, uint32_t index)
{
    __shared__ ManyTile found;
    uint32_t lane = threadIdx.x, before = 0;

    if (threadIdx.x == 0)
        found.n = 0;
    __syncwarp();
    if (threadIdx.x < 32)
        for (uint32_t base = 0; base < e.n_experts && before <= index; base += 32) {
            uint32_t i = min(base + lane, e.n_experts - 1);
            uint32_t first = (uint32_t)e.first[i], n = (uint32_t)e.first[i + 1] - first;
            uint32_t tiles = base + lane < e.n_experts ? (n + MANY_TILE - 1) / MANY_TILE : 0;
            uint32_t to = tiles; // of this lane's expert and those before

#pragma unroll
            for (int d = 1; d < 32; d *= 2) {
                uint32_t v = __shfl_up_sync(0xffffffffu, to, d);
                to += lane >= d ? v : 0;
            }
            to += before;
            if (index < to && index >= to - tiles) {
                uint32_t at = (index - (to - tiles)) * MANY_TILE;
                found = {i, first + at, min(n - at, (uint32_t)MANY_TILE)};
            }
            before = __shfl_sync(0xffffffffu, to, 31);
        }
    __syncthreads();
    return found;
}

// ---- copies: a thread takes one piece of 4 rows, 32 apart
template <typename T, bool UP> struct ManyCopy {
    const T *x[4], *w[4];
    uint32_t valid; // bits 0..3: x, 4..7: w
    uint32_t cols, row, piece;

    __device__ __forceinline__ void start(const ek_cu_experts &e, const ManyTile &t)
    {
        row = threadIdx.x / 8;
        piece = threadIdx.x % 8;
        cols = UP ? e.hidden : e.inner;
        valid = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t r = row + 32 * i, at = t.first + min(r, t.n - 1);

            x[i] = UP ? (const T *)e.x + (uint32_t)e.order[at] / e.top_k * e.ldx
                      : (const T *)e.inner_x + (size_t)at * e.inner;
            valid |= r < t.n ? 1u << i : 0;
            uint32_t of = UP ? MANY_TILE / 2 * blockIdx.x + r % 64 : MANY_TILE * blockIdx.x + r;
            uint32_t limit = UP ? e.inner : e.hidden;
            size_t line = (size_t)t.expert * (UP ? 2 : 1) * limit + (UP ? r / 64 * limit : 0) +
                          min(of, limit - 1);
            w[i] = (const T *)(UP ? e.gate_up : e.down) + line * cols;
            valid |= of < limit ? 16u << i : 0;
        }
    }

    __device__ __forceinline__ void run(ManyShared<T> &s, uint32_t stage, uint32_t k) const
    {
        uint32_t c = k * MANY_K + 8 * piece, from = c < cols ? c : 0;

#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t at = place(row + 32 * i, piece);

            copy16(shared_at(s.x[stage] + at), x[i] + from, c < cols && valid >> i & 1);
            copy16(shared_at(s.w[stage] + at), w[i] + from, c < cols && valid >> i & 16);
        }
    }
};

// ---- products: c of a warp: its 16 places, 16 tiles of 8 rows of weights
template <typename T>
__device__ __forceinline__ void multiply(float (&c)[16][4], const T *x, const T *w)
{
    uint32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 16;

#pragma unroll
    for (int d = 0; d < MANY_K / 16; d++) {
        uint32_t a[4], b[4];

        load_tiles(a, shared_at(x + place(row, 2 * d + lane / 16)));
#pragma unroll
        for (int j = 0; j < 8; j++) {
            uint32_t at = 16 * j + lane / 16 * 8 + lane % 8;

            load_tiles(b, shared_at(w + place(at, 2 * d + lane / 8 % 2)));
            mma<T>(c[2 * j], a, b[0], b[1]);
            mma<T>(c[2 * j + 1], a, b[2], b[3]);
        }
    }
}

template <typename T> __device__ __forceinline__ float gated(float gate, float up)
{
    return silu(round_to<T>(gate)) * round_to<T>(up);
}

template <typename T, bool UP>
__device__ __forceinline__ void store(const ek_cu_experts &e, const ManyTile &t,
                                      const float (&c)[16][4])
{
    uint32_t lane = threadIdx.x % 32;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t row = threadIdx.x / 32 * 16 + lane / 4 + 8 * h, at = t.first + row;

        if (row >= t.n)
            continue;
        if (UP) {
            uint32_t col = MANY_TILE / 2 * blockIdx.x + 2 * (lane % 4);
            T *to = (T *)e.inner_x + (size_t)at * e.inner + col;
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (col + 8 * i < e.inner)
                    *reinterpret_cast<uint32_t *>(to + 8 * i) =
                        pack2<T>(gated<T>(c[i][2 * h], c[i + 8][2 * h]),
                                 gated<T>(c[i][2 * h + 1], c[i + 8][2 * h + 1]));
        } else {
            uint32_t col = MANY_TILE * blockIdx.x + 2 * (lane % 4);
            T *to = (T *)e.each + (size_t)e.order[at] * e.hidden + col;
#pragma unroll
            for (int i = 0; i < 16; i++)
                if (col + 8 * i < e.hidden)
                    *reinterpret_cast<uint32_t *>(to + 8 * i) =
                        pack2<T>(c[i][2 * h], c[i][2 * h + 1]);
        }
    }
}

template <typename T, bool UP>
__global__ void __launch_bounds__(MANY_THREADS, MANY_RESIDENT) many_k(const ek_cu_experts e)
{
    extern __shared__ __align__(1024) uint4 raw[];
    ManyShared<T> &s = *reinterpret_cast<ManyShared<T> *>(raw);
    ManyCopy<T, UP> copy;
    float c[16][4] = {};

    pdl_next();
    pdl_wait();
    ManyTile t = find_tile(e, blockIdx.y);
    if (t.n == 0)
        return;
    copy.start(e, t);
    uint32_t steps = (copy.cols + MANY_K - 1) / MANY_K;
#pragma unroll
    for (uint32_t k = 0; k < MANY_STAGES - 1; k++) {
        if (k < steps)
            copy.run(s, k, k);
        copy_commit();
    }
    for (uint32_t k = 0; k < steps; k++) {
        copy_wait<MANY_STAGES - 2>();
        __syncthreads(); // step k is here, and all have done with step k - 1
        if (k + MANY_STAGES - 1 < steps)
            copy.run(s, (k + MANY_STAGES - 1) % MANY_STAGES, k + MANY_STAGES - 1);
        copy_commit();
        multiply<T>(c, s.x[k % MANY_STAGES], s.w[k % MANY_STAGES]);
    }
    store<T, UP>(e, t, c);
}

template <typename T, bool UP>
static cudaError_t many_launch(const struct ek_cu_queue *q, const struct ek_cu_experts *e)
{
    uint32_t rows = UP ? div_up(e->inner, MANY_TILE / 2) : div_up(e->hidden, MANY_TILE);
    uint32_t pairs = e->n * e->top_k, used = pairs < e->n_experts ? pairs : e->n_experts;
    dim3 grid(rows, used + (pairs - used) / MANY_TILE); // at most so many tiles of places

    return launch(q, many_k<T, UP>, grid, MANY_THREADS, sizeof(ManyShared<T>), *e);
}

extern "C" bool ek_cu_experts_many_fits(const struct ek_cu_queue *q)
{
    return q->shared >= sizeof(ManyShared<bf16>);
}

extern "C" cudaError_t ek_cu_experts_many(const struct ek_cu_queue *q, enum ek_dtype act,
                                          const struct ek_cu_experts *e)
{
    cudaError_t r = cudaErrorNotSupported;

    if (act == EK_BF16)
        r = many_launch<bf16, true>(q, e);
    else if (act == EK_F16)
        r = many_launch<f16, true>(q, e);
    if (r != cudaSuccess)
        return r;
    return act == EK_BF16 ? many_launch<bf16, false>(q, e) : many_launch<f16, false>(q, e);
}
