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
struct WideBarriers {
    uint64_t full[WIDE_STAGES], empty[WIDE_STAGES];
};

struct WideTile {
    uint32_t expert, first, n; // places
    uint32_t block;            // of rows of weights
};

#ifdef EK_WGMMA
// EK_LIST_n names the first 8 n registers, EK_SUMS_n binds them to c.
#define EK_LIST_1  "%0,%1,%2,%3,%4,%5,%6,%7"
#define EK_LIST_2  EK_LIST_1 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define EK_LIST_3  EK_LIST_2 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define EK_LIST_4  EK_LIST_3 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define EK_LIST_5  EK_LIST_4 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define EK_LIST_6  EK_LIST_5 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define EK_LIST_7  EK_LIST_6 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define EK_LIST_8  EK_LIST_7 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define EK_LIST_9  EK_LIST_8 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define EK_LIST_10 EK_LIST_9 ",%72,%73,%74,%75,%76,%77,%78,%79"
#define EK_LIST_11 EK_LIST_10 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define EK_LIST_12 EK_LIST_11 ",%88,%89,%90,%91,%92,%93,%94,%95"
#define EK_SUMS_1  EK_C4(0), EK_C4(1)
#define EK_SUMS_2  EK_SUMS_1, EK_C4(2), EK_C4(3)
#define EK_SUMS_3  EK_SUMS_2, EK_C4(4), EK_C4(5)
#define EK_SUMS_4  EK_SUMS_3, EK_C4(6), EK_C4(7)
#define EK_SUMS_5  EK_SUMS_4, EK_C4(8), EK_C4(9)
#define EK_SUMS_6  EK_SUMS_5, EK_C4(10), EK_C4(11)
#define EK_SUMS_7  EK_SUMS_6, EK_C4(12), EK_C4(13)
#define EK_SUMS_8  EK_SUMS_7, EK_C4(14), EK_C4(15)
#define EK_SUMS_9  EK_SUMS_8, EK_C4(16), EK_C4(17)
#define EK_SUMS_10 EK_SUMS_9, EK_C4(18), EK_C4(19)
#define EK_SUMS_11 EK_SUMS_10, EK_C4(20), EK_C4(21)
#define EK_SUMS_12 EK_SUMS_11, EK_C4(22), EK_C4(23)
#define EK_WGMMA_WIDTHS(T, NAME)                                                                   \
    EK_WGMMA_SHARED_N(T, NAME, 48, "{" EK_LIST_3 "}", EK_SUMS_3, "%24", "%25", "%26")              \
    EK_WGMMA_SHARED_N(T, NAME, 80, "{" EK_LIST_5 "}", EK_SUMS_5, "%40", "%41", "%42")              \
    EK_WGMMA_SHARED_N(T, NAME, 96, "{" EK_LIST_6 "}", EK_SUMS_6, "%48", "%49", "%50")              \
    EK_WGMMA_SHARED_N(T, NAME, 112, "{" EK_LIST_7 "}", EK_SUMS_7, "%56", "%57", "%58")             \
    EK_WGMMA_SHARED_N(T, NAME, 144, "{" EK_LIST_9 "}", EK_SUMS_9, "%72", "%73", "%74")             \
    EK_WGMMA_SHARED_N(T, NAME, 160, "{" EK_LIST_10 "}", EK_SUMS_10, "%80", "%81", "%82")           \
    EK_WGMMA_SHARED_N(T, NAME, 176, "{" EK_LIST_11 "}", EK_SUMS_11, "%88", "%89", "%90")           \
    EK_WGMMA_SHARED_N(T, NAME, 192, "{" EK_LIST_12 "}", EK_SUMS_12, "%96", "%97", "%98")
EK_WGMMA_WIDTHS(bf16, "bf16")
EK_WGMMA_WIDTHS(f16, "f16")

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

// Tile `index`; false: there are fewer. Every warp looks for itself.
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
                                          uint32_t &step)
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
        if (threadIdx.x == WIDE_CONSUMERS)
            copy_weights<T, UP>(e, map, t, k, shared_at(to.w), full);
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

// By the fast division: the tensor cores wait for it.
template <typename T> __device__ __forceinline__ float gated(float gate, float up)
{
    float g = round_to<T>(gate);

    return __fdividef(g, 1.0f + __expf(-g)) * round_to<T>(up);
}

// A tile of 8 x 8: rows become columns.
__device__ __forceinline__ uint32_t turned(uint32_t v)
{
    uint32_t r;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
    return r;
}

// Where 8 columns of the answer are staged, of place `row`, of the 128 rows' OWN columns.
template <typename Side> __device__ __forceinline__ uint32_t staged(uint32_t row, uint32_t piece)
{
    return row * Side::OWN + (piece / 8 * 8 + ((piece ^ row) & 7)) * 8;
}

// Sums of a half (rows 128 h on) to rows of places.
template <typename T, bool UP, int N>
__device__ __forceinline__ void stage_half(const float (&c)[N / 8][4], T *to)
{
    using Side = WideSide<T, UP>;
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;

#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        uint32_t row = 8 * j + lane / 4, v[2];

        if (UP) {
            v[0] = pack2<T>(gated<T>(c[j][0], c[j][2]), gated<T>(c[j][1], c[j][3]));
        } else {
            v[0] = pack2<T>(c[j][0], c[j][1]);
            v[1] = pack2<T>(c[j][2], c[j][3]);
        }
#pragma unroll
        for (int r = 0; r < (UP ? 1 : 2); r++)
            *reinterpret_cast<uint32_t *>(to + staged<Side>(row, (UP ? 1 : 2) * warp + r) +
                                          2 * (lane % 4)) = turned(v[r]);
    }
}

template <typename T, bool UP>
__device__ __forceinline__ void store_half(const ek_cu_experts &e, const WideTile &t, uint32_t h,
                                           const T *from)
{
    using Side = WideSide<T, UP>;
    constexpr uint32_t PIECES = Side::OWN / 8, ROUND = 3; // all reads of a round before its writes
    uint32_t limit = Side::limit(e), first = (2 * t.block + h) * Side::OWN;
    uint32_t piece = threadIdx.x % PIECES, col = first + 8 * piece;
    T *to = (UP ? (T *)e.inner_x : (T *)e.each) + col;

    if (col >= limit)
        return;
    for (uint32_t row = threadIdx.x / PIECES; row < t.n; row += ROUND * WIDE_CONSUMERS / PIECES) {
        uint32_t at[ROUND];
        uint4 v[ROUND];

#pragma unroll
        for (uint32_t i = 0; i < ROUND; i++) {
            uint32_t r = min(row + i * WIDE_CONSUMERS / PIECES, t.n - 1);
            v[i] = *reinterpret_cast<const uint4 *>(from + staged<Side>(r, piece));
            at[i] = UP ? t.first + r : (uint32_t)e.order[t.first + r];
        }
#pragma unroll
        for (uint32_t i = 0; i < ROUND; i++)
            if (row + i * WIDE_CONSUMERS / PIECES < t.n)
                *reinterpret_cast<uint4 *>(to + (size_t)at[i] * limit) = v[i];
    }
}

// Through the buffer of the last step: both halves of gate and up at once, those of down one by
// one.
template <typename T, bool UP, int N>
__device__ __forceinline__ void store(const ek_cu_experts &e, const WideTile &t,
                                      const float (&c)[2][N / 8][4], T *buffer)
{
    constexpr int AT_ONCE = UP ? 2 : 1, EACH = WIDE_PLACES * WideSide<T, UP>::OWN;
    static_assert(AT_ONCE * EACH * sizeof(T) <= sizeof(WideStage<T>), "answers fit a stage");

#pragma unroll
    for (int h = 0; h < 2; h += AT_ONCE) {
        consumers_meet(); // the buffer is free
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            stage_half<T, UP, N>(c[h + i], buffer + i * EACH);
        consumers_meet();
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            store_half<T, UP>(e, t, h + i, buffer + i * EACH);
    }
}

// What a multiplying warpgroup goes by from tile to tile.
struct WideState {
    WideTile t;
    uint32_t index, step; // of the tile; steps so far
    bool any;
};

template <typename T, bool UP, int N>
__device__ __forceinline__ void multiply_tile(const ek_cu_experts &e, WideStage<T> *stages,
                                              WideBarriers &b, WideState &at)
{
    const WideTile t = at.t;
    uint32_t steps = WideSide<T, UP>::cols(e) / WIDE_K;
    float c[2][N / 8][4] = {};

#pragma unroll 1
    for (uint32_t k = 0; k < steps; k++) {
        uint32_t step = at.step + k;
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
        if (k > 0)
            leave_stage(b, step - 1);
    }
    at.step += steps;
    wgmma_wait(c[0]);
    wgmma_wait(c[1]);
    store<T, UP, N>(e, t, c, (T *)&stages[(at.step - 1) % WIDE_STAGES]);
    publish_shared(); // before boxes come to where the answers were
    leave_stage(b, at.step - 1);
    at.index += gridDim.x;
    at.any = find_tile<WideSide<T, UP>>(e, at.index, at.t);
}

// By the width that holds the tile's places: N or a smaller one.
template <typename T, bool UP, int N>
__device__ __forceinline__ void multiply_width(const ek_cu_experts &e, WideStage<T> *stages,
                                               WideBarriers &b, WideState &at)
{
    if constexpr (N > WIDE_UNIT)
        if (at.t.n <= N - WIDE_UNIT)
            return multiply_width<T, UP, N - WIDE_UNIT>(e, stages, b, at);
    multiply_tile<T, UP, N>(e, stages, b, at);
}

template <typename T, bool UP>
__device__ __forceinline__ void multiply_all(const ek_cu_experts &e, WideStage<T> *stages,
                                             WideBarriers &b)
{
    WideState at = {.index = blockIdx.x};

    at.any = find_tile<WideSide<T, UP>>(e, at.index, at.t);
    while (at.any)
        multiply_width<T, UP, WIDE_PLACES>(e, stages, b, at);
}

template <typename T, bool UP>
__device__ __forceinline__ void copy_all(const ek_cu_experts &e, const CUtensorMap &map,
                                         WideStage<T> *stages, WideBarriers &b)
{
    uint32_t step = 0;
    WideTile t;

    for (uint32_t i = blockIdx.x; find_tile<WideSide<T, UP>>(e, i, t); i += gridDim.x)
        copy_tile<T, UP>(e, map, t, stages, b, step);
    copy_wait<0>();
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
    return hopper_built() && e->hidden % WIDE_K == 0 && e->inner % WIDE_K == 0 &&
           e->n * e->ldx <= UINT32_MAX && (size_t)e->n * e->top_k * e->inner <= UINT32_MAX;
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
