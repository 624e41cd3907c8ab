// SPDX-License-Identifier: Apache-2.0
// Experts with many tokens each, grouped by expert, on Hopper. A tile is 256 rows of one expert's
// weights by up to 192 of its places, which are shared out evenly over the expert's tiles and
// rounded up to 16: so large that the L2 cache keeps up, and nearly all of it of use. One warpgroup
// copies, weights as boxes and places row by row, two multiply, each 128 rows. Blocks stay and take
// every n-th tile, those of an expert beside each other; copies run ahead into the next tile while
// one is stored. Which tiles there are follows from the counts in device memory, so that the host
// never waits. Rows of gate and up alternate by 8: both of an element meet in a lane.
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/deepseek.h"
#include "kernels/cuda/tma.cuh"

#define WIDE_ROWS      256
#define WIDE_PLACES    192
#define WIDE_UNIT      16 // places: widths of tiles are multiples of it
#define WIDE_K         64 // columns a step
#define WIDE_STAGES    4
#define WIDE_CONSUMERS 256
#define WIDE_PRODUCERS 128

template <typename T> struct WideStage {
    T w[WIDE_ROWS * WIDE_K], x[WIDE_PLACES * WIDE_K];
};
struct WideTile {
    uint32_t expert, first, n; // places; none: there are no more tiles
    uint32_t block;            // of rows of weights
};
struct WideBarriers {
    uint64_t full[WIDE_STAGES], empty[WIDE_STAGES];
    WideTile tile[WIDE_STAGES]; // in turns: of two steps at least, so that no later one is in reach
};

#ifdef EK_WGMMA
__device__ __forceinline__ uint32_t place(uint32_t row, uint32_t piece)
{
    return row * 64 + ((piece ^ row) & 7) * 8;
}

// What gate and up, or down, differ in.
template <typename T, bool UP> struct WideSide {
    static constexpr uint32_t OWN = UP ? 64 : 128; // columns of the answer by 128 rows of weights

    static __device__ __forceinline__ uint32_t cols(const ek_cu_experts &e)
    {
        return UP ? e.hidden : e.inner;
    }
    static __device__ __forceinline__ uint32_t limit(const ek_cu_experts &e) // of the answer
    {
        return UP ? e.inner : e.hidden;
    }
    static __device__ __forceinline__ const T *weights(const ek_cu_experts &e)
    {
        return (const T *)(UP ? e.gate_up : e.down);
    }
};

// Tile `index`; false: there are fewer. Every warp that copies looks for itself.
template <typename Side>
__device__ __forceinline__ bool find_tile(const ek_cu_experts &e, uint32_t index, WideTile &t)
{
    uint32_t lane = threadIdx.x % 32, before = 0;
    uint32_t blocks = (Side::limit(e) + 2 * Side::OWN - 1) / (2 * Side::OWN);

    for (uint32_t base = 0; base < e.n_experts; base += 32) {
        uint32_t i = min(base + lane, e.n_experts - 1), first = (uint32_t)e.first[i];
        uint32_t n = base + lane < e.n_experts ? (uint32_t)e.first[i + 1] - first : 0;
        uint32_t tiles = (n + WIDE_PLACES - 1) / WIDE_PLACES, to = tiles;

#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            uint32_t v = __shfl_up_sync(0xffffffffu, to, d);
            to += lane >= d ? v : 0;
        }
        uint32_t from = (before + to - tiles) * blocks, rest = index - from;
        uint32_t found = __ballot_sync(0xffffffffu, index >= from && rest < tiles * blocks);
        before += __shfl_sync(0xffffffffu, to, 31);
        if (found == 0)
            continue;
        uint32_t most = max(tiles, 1u), part = rest % most, at = part * n / most;
        uint32_t lead = __ffs((int)found) - 1;
        t.expert = base + lead;
        t.n = __shfl_sync(0xffffffffu, (part + 1) * n / most - at, lead);
        t.first = __shfl_sync(0xffffffffu, first + at, lead);
        t.block = __shfl_sync(0xffffffffu, rest / most, lead);
        return true;
    }
    return false;
}

// Arrives when the copies (copy16) that this thread has issued so far are done.
__device__ __forceinline__ void barrier_copied(uint32_t at)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(at) : "memory");
}

// Waits until none of the warpgroups that multiply needs a step's buffer any more.
__device__ __forceinline__ void wait_for_room(WideBarriers &b, uint32_t step)
{
    barrier_wait(shared_at(&b.empty[step % WIDE_STAGES]), step / WIDE_STAGES % 2 ^ 1);
}

// ---- the copying warpgroup: the first thread takes the weights of a step, all of them pieces of
// every 16th place
template <typename T, bool UP>
__device__ __forceinline__ void copy_weights(const ek_cu_experts &e, const CUtensorMap &map,
                                             const WideTile &t, uint32_t k, uint32_t to,
                                             uint32_t full)
{
    uint32_t first = t.block * (UP ? 128 : 256);

    barrier_expect(full, WIDE_ROWS * WIDE_K * sizeof(T));
    if (UP)
        copy_pairs(to, &map, (t.expert * 2 * e.inner + first) / 8, k, full);
    else
        copy_box(to, &map, t.expert * e.hidden + first, k, full, true);
}

template <typename T, bool UP>
__device__ __forceinline__ void copy_tile(const ek_cu_experts &e, const CUtensorMap &map,
                                          const WideTile &t, WideStage<T> *stages, WideBarriers &b,
                                          uint32_t tile, uint32_t &step)
{
    constexpr int X_ROWS = WIDE_PLACES / 16;
    uint32_t row = threadIdx.x % WIDE_PRODUCERS / 8, piece = threadIdx.x % 8;
    uint32_t from[X_ROWS], steps = WideSide<T, UP>::cols(e) / WIDE_K;
    const T *x = (const T *)(UP ? e.x : e.inner_x) + 8 * piece;

#pragma unroll
    for (int i = 0; i < X_ROWS; i++) {
        uint32_t at = t.first + min(row + 16 * i, t.n - 1);
        from[i] = UP ? (uint32_t)e.order[at] / e.top_k * (uint32_t)e.ldx : at * e.inner;
    }
#pragma unroll 1
    for (uint32_t k = 0; k < steps; k++, step++, x += WIDE_K) {
        WideStage<T> &to = stages[step % WIDE_STAGES];
        uint32_t xa = shared_at(to.x + place(row, piece));
        uint32_t full = shared_at(&b.full[step % WIDE_STAGES]);

        wait_for_room(b, step);
        if (threadIdx.x == WIDE_CONSUMERS) {
            if (k == 0)
                b.tile[tile % WIDE_STAGES] = t;
            copy_weights<T, UP>(e, map, t, k, shared_at(to.w), full);
        }
#pragma unroll
        for (int i = 0; i < X_ROWS; i++) // rows that no place is for keep what they were
            if (row + 16 * i < t.n)
                copy16(xa + i * 16 * 128, x + from[i]);
        barrier_copied(full);
    }
}

// ---- the multiplying warpgroups
__device__ __forceinline__ void consumers_meet()
{
    asm volatile("bar.sync 1, %0;" ::"n"(WIDE_CONSUMERS) : "memory");
}
__device__ __forceinline__ void leave_stage(WideBarriers &b, uint32_t step)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        barrier_arrive(shared_at(&b.empty[step % WIDE_STAGES]));
}

// Two elements, by the fast division: the tensor cores wait for them.
template <typename T> __device__ __forceinline__ uint32_t gated(const float (&c)[4])
{
    float2 g = unpack2<T>(pack2<T>(c[0], c[1])), u = unpack2<T>(pack2<T>(c[2], c[3]));

    return pack2<T>(__fdividef(g.x, 1.0f + __expf(-g.x)) * u.x,
                    __fdividef(g.y, 1.0f + __expf(-g.y)) * u.y);
}

// A tile of 8 x 8: rows become columns.
__device__ __forceinline__ uint32_t turned(uint32_t v)
{
    uint32_t r;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
    return r;
}

// Sums of rows 128 h on to rows of places, WIDE_PITCH elements apart.
#define WIDE_PITCH 136 // rows of 128 columns, apart so that no bank is met twice
template <typename T, bool UP, int N>
__device__ __forceinline__ void stage_half(const float (&c)[N / 8][4], T *to)
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;

#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        T *row = to + (8 * j + lane / 4) * WIDE_PITCH + 2 * (lane % 4) + (UP ? 8 : 16) * warp;

        if (UP) {
            *reinterpret_cast<uint32_t *>(row) = turned(gated<T>(c[j]));
        } else {
            *reinterpret_cast<uint32_t *>(row) = turned(pack2<T>(c[j][0], c[j][1]));
            *reinterpret_cast<uint32_t *>(row + 8) = turned(pack2<T>(c[j][2], c[j][3]));
        }
    }
}

// The buffers of the last steps that a tile's answers leave through: both halves of gate and up
// side by side, those of down in one each.
template <bool UP> constexpr uint32_t WIDE_HELD = UP ? 1 : 2;

// pair: the row of down's answer that this thread's place goes to, where it has one.
template <typename T, bool UP, int N>
__device__ __forceinline__ void store(const ek_cu_experts &e, const WideTile &t,
                                      const float (&c)[2][N / 8][4], WideStage<T> *stages,
                                      uint32_t end, uint32_t pair)
{
    constexpr uint32_t HELD = WIDE_HELD<UP>;
    uint32_t limit = WideSide<T, UP>::limit(e), first = 2 * WideSide<T, UP>::OWN * t.block;
    uint32_t at = UP ? t.first + threadIdx.x : pair;
    static_assert(WIDE_PLACES * WIDE_PITCH * sizeof(T) <= sizeof(WideStage<T>), "a stage is room");

    consumers_meet(); // the buffers are free
#pragma unroll
    for (int h = 0; h < 2; h++)
        stage_half<T, UP, N>(c[h], (T *)&stages[(end - HELD + h % HELD) % WIDE_STAGES] +
                                       (UP ? 64 * h : 0));
    publish_shared();
    consumers_meet();
    if (threadIdx.x < t.n)
#pragma unroll
        for (uint32_t i = 0; i < HELD; i++) {
            uint32_t col = first + 128 * i;
            T *to = (UP ? (T *)e.inner_x : (T *)e.each) + (size_t)at * limit + col;

            if (col < limit)
                copy_out(to,
                         shared_at((T *)&stages[(end - HELD + i) % WIDE_STAGES] +
                                   threadIdx.x * WIDE_PITCH),
                         min(limit - col, 128u) * (uint32_t)sizeof(T));
        }
    copy_out_commit();
}

template <typename T, bool UP, int N>
__device__ __forceinline__ void multiply_tile(const ek_cu_experts &e, const WideTile &t,
                                              WideStage<T> *stages, WideBarriers &b,
                                              uint32_t &first)
{
    constexpr uint32_t HELD = WIDE_HELD<UP>;
    uint32_t steps = WideSide<T, UP>::cols(e) / WIDE_K, own = min(threadIdx.x, t.n - 1);
    uint32_t pair = UP ? 0 : (uint32_t)e.order[t.first + own];
    float c[2][N / 8][4] = {};

#pragma unroll 1
    for (uint32_t k = 0; k < steps; k++) {
        uint32_t step = first + k;
        const WideStage<T> &s = stages[step % WIDE_STAGES];
        uint32_t wa = shared_at(s.w) + threadIdx.x / 128 * 64 * 128, xa = shared_at(s.x);

        barrier_wait(shared_at(&b.full[step % WIDE_STAGES]), step / WIDE_STAGES % 2);
        publish_shared();
        wgmma_begin();
#pragma unroll
        for (int d = 0; d < WIDE_K / 16; d++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                wgmma_shared(c[h], operand_at(wa + h * 128 * 128 + 32 * d, 0),
                             operand_at(xa + 32 * d, 0), true, T());
        wgmma_commit();
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); // the step before this one
        if (k > 0 && k + HELD <= steps)
            leave_stage(b, step - 1);
        if (k == 0 && first > 0) { // the answers before have left
            copy_out_read();
            for (uint32_t i = HELD; i > 0; i--)
                leave_stage(b, step - i);
        }
    }
    wgmma_wait(c[0]);
    wgmma_wait(c[1]);
    first += steps;
    store<T, UP, N>(e, t, c, stages, first, pair);
}

// By the width that holds the tile's places: N or a smaller one.
template <typename T, bool UP, int N>
__device__ __forceinline__ void multiply_width(const ek_cu_experts &e, const WideTile &t,
                                               WideStage<T> *stages, WideBarriers &b,
                                               uint32_t &step)
{
    if constexpr (N > WIDE_UNIT)
        if (t.n <= N - WIDE_UNIT)
            return multiply_width<T, UP, N - WIDE_UNIT>(e, t, stages, b, step);
    multiply_tile<T, UP, N>(e, t, stages, b, step);
}

template <typename T, bool UP>
__device__ __forceinline__ void multiply_all(const ek_cu_experts &e, WideStage<T> *stages,
                                             WideBarriers &b)
{
    for (uint32_t step = 0, tile = 0;; tile++) {
        const WideTile &t = b.tile[tile % WIDE_STAGES];

        barrier_wait(shared_at(&b.full[step % WIDE_STAGES]), step / WIDE_STAGES % 2);
        if (t.n == 0)
            break;
        multiply_width<T, UP, WIDE_PLACES>(e, t, stages, b, step);
    }
    copy_out_read();
}

template <typename T, bool UP>
__device__ __forceinline__ void copy_all(const ek_cu_experts &e, const CUtensorMap &map,
                                         WideStage<T> *stages, WideBarriers &b)
{
    uint32_t step = 0, tile = 0;
    WideTile t;

    for (uint32_t i = blockIdx.x; find_tile<WideSide<T, UP>>(e, i, t); i += gridDim.x)
        copy_tile<T, UP>(e, map, t, stages, b, tile++, step);
    wait_for_room(b, step);
    if (threadIdx.x == WIDE_CONSUMERS) {
        b.tile[tile % WIDE_STAGES].n = 0;
        barrier_arrive(shared_at(&b.full[step % WIDE_STAGES]));
    }
    barrier_copied(shared_at(&b.full[step % WIDE_STAGES]));
}
#endif

template <typename T, bool UP>
__global__ void __launch_bounds__(WIDE_CONSUMERS + WIDE_PRODUCERS, 1)
    wide_k(const __grid_constant__ CUtensorMap map, const __grid_constant__ ek_cu_experts e)
{
#ifdef EK_WGMMA
    extern __shared__ __align__(1024) uint4 raw[];
    __shared__ WideBarriers b;
    WideStage<T> *stages = reinterpret_cast<WideStage<T> *>(raw);

    if (threadIdx.x < WIDE_STAGES) {
        barrier_init(shared_at(&b.full[threadIdx.x]), WIDE_PRODUCERS + 1);
        barrier_init(shared_at(&b.empty[threadIdx.x]), WIDE_CONSUMERS / 32);
        barriers_ready();
    }
    pdl_next();
    pdl_wait();
    __syncthreads();
    if (threadIdx.x >= WIDE_CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        copy_all<T, UP>(e, map, stages, b);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        multiply_all<T, UP>(e, stages, b);
    }
#endif
}

// Gate and up: 8 rows of each in turn, as far as both are there; down: as it is.
static cudaError_t weights_map(CUtensorMap *map, const ek_cu_experts *e, bool up)
{
    size_t row = (size_t)(up ? e->hidden : e->inner) * 2;
    const size_t dims[5] = {WIDE_K, 8, 2, (2 * (size_t)e->n_experts - 1) * e->inner / 8,
                            e->hidden / WIDE_K};
    const size_t strides[4] = {row, e->inner * row, 8 * row, WIDE_K * 2};
    const uint32_t box[5] = {WIDE_K, 8, 2, WIDE_ROWS / 16, 1};

    return up ? tensor_map(map, e->gate_up, 5, dims, strides, box)
              : matrix_map(map, e->down, e->n_experts * e->hidden, e->inner, row, WIDE_ROWS, 1);
}

template <typename T, bool UP>
static cudaError_t wide_launch(const struct ek_cu_queue *q, const struct ek_cu_experts *e)
{
    uint32_t blocks = div_up(UP ? e->inner : e->hidden, UP ? 128 : 256);
    uint32_t pairs = e->n * e->top_k, used = pairs < e->n_experts ? pairs : e->n_experts;
    uint32_t most = (used + (pairs - used) / WIDE_PLACES) * blocks; // tiles
    CUtensorMap map;
    cudaError_t r = weights_map(&map, e, UP);

    if (r != cudaSuccess)
        return r;
    return launch(q, wide_k<T, UP>, most < q->n_sm ? most : q->n_sm,
                  WIDE_CONSUMERS + WIDE_PRODUCERS, WIDE_STAGES * sizeof(WideStage<T>), map, *e);
}

// Whole steps, and places by offsets of 32 bits.
extern "C" bool ek_cu_experts_wide_fits(const struct ek_cu_experts *e)
{
    return e->hidden % WIDE_K == 0 && e->inner % WIDE_K == 0 && e->hidden >= 2 * WIDE_K &&
           e->inner >= 2 * WIDE_K && e->n * e->ldx <= UINT32_MAX &&
           (size_t)e->n * e->top_k * e->inner <= UINT32_MAX;
}

extern "C" cudaError_t ek_cu_experts_wide(const struct ek_cu_queue *q, enum ek_dtype act,
                                          const struct ek_cu_experts *e)
{
    cudaError_t r = cudaErrorNotSupported;

    if (act == EK_BF16)
        r = wide_launch<bf16, true>(q, e);
    else if (act == EK_F16)
        r = wide_launch<f16, true>(q, e);
    if (r != cudaSuccess)
        return r;
    return act == EK_BF16 ? wide_launch<bf16, false>(q, e) : wide_launch<f16, false>(q, e);
}
