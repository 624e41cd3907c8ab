// SPDX-License-Identifier: Apache-2.0
// Mixtures of experts for a few tokens, weights of the activations' type: bound by reading the
// weights of the experts that any token goes to. Each warp streams tiles of 16 rows (of gate and up
// 8 each, so that both of an element meet in a lane) through slots of shared memory of its own, by
// bulk copies, 256 columns at a time and tile after tile, and multiplies them with up to 16 tokens
// of the expert: no warp waits for another. The layers that every token goes to are experts of all
// tokens and come first: their weights are on their way before the kernel ahead has finished.
// Every block groups the tokens by expert for itself.
#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/deepseek.h"
#include "kernels/cuda/weights.cuh"

#define XS_WARPS   8
#define XS_THREADS (32 * XS_WARPS)
#define XS_ROWS    16
#define XS_K       256             // columns a step
#define XS_LD      (XS_K * 2 + 64) // bytes from row to row: lanes meet no bank twice
#define XS_SLOTS   3               // steps of a warp on their way
#define XS_TOKENS  16              // of an expert at a time
#define XS_EXPERTS 256             // at most
#define XS_SLOT    (XS_ROWS * XS_LD)

struct XsGroup { // up to XS_TOKENS tokens of one expert; shared layers are behind the experts
    uint16_t expert, count;
    uint32_t first; // place
};
struct XsGroups {
    int32_t ids[EK_CU_STREAM_PAIRS];    // by pair
    uint16_t order[EK_CU_STREAM_PAIRS]; // the pair at a place
    uint16_t start[XS_EXPERTS], count[XS_EXPERTS];
    XsGroup group[XS_EXPERTS + EK_CU_STREAM_PAIRS / XS_TOKENS];
    uint32_t n; // groups
};

// How many tokens each expert has and where they begin; then the groups. All threads.
__device__ __forceinline__ void group_tokens(const ek_cu_experts &e, XsGroups &s)
{
    uint32_t pairs = e.n * e.top_k;

    for (uint32_t i = threadIdx.x; i < pairs; i += XS_THREADS)
        s.ids[i] = e.ids[i];
    __syncthreads();
    for (int32_t x = (int32_t)threadIdx.x; x < (int32_t)e.n_experts; x += XS_THREADS) {
        uint32_t less = 0, equal = 0;

        for (uint32_t i = 0; i < pairs; i++) {
            less += s.ids[i] < x;
            equal += s.ids[i] == x;
        }
        s.start[x] = (uint16_t)less;
        s.count[x] = (uint16_t)equal;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < pairs; i += XS_THREADS) {
        uint32_t place = s.start[s.ids[i]];

        for (uint32_t j = 0; j < i; j++)
            place += s.ids[j] == s.ids[i];
        s.order[place] = (uint16_t)i;
    }
    for (uint32_t x = threadIdx.x; x < e.n_experts; x += XS_THREADS) {
        uint32_t at = 0, groups = (s.count[x] + XS_TOKENS - 1) / XS_TOKENS;

        for (uint32_t y = 0; y < x; y++)
            at += (s.count[y] + XS_TOKENS - 1) / XS_TOKENS;
        for (uint32_t i = 0; i < groups; i++)
            s.group[at + i] = {(uint16_t)x,
                               (uint16_t)min((uint32_t)XS_TOKENS, s.count[x] - i * XS_TOKENS),
                               s.start[x] + i * XS_TOKENS};
        if (x == e.n_experts - 1)
            s.n = at + groups;
    }
    __syncthreads();
}

// ---- units: a tile of rows and a group of tokens. Those of shared layers come first.
template <typename T, bool UP> struct XsUnit {
    uint32_t expert, tile, first, count; // first: place of the first token

    __device__ __forceinline__ XsUnit(const ek_cu_experts &e, const XsGroups &s, uint32_t u)
    {
        uint32_t tiles = UP ? (e.inner + 7) / 8 : (e.hidden + 15) / 16;
        uint32_t each = (e.n + XS_TOKENS - 1) / XS_TOKENS, at = u / tiles;

        tile = u % tiles;
        if (at < each * e.n_shared) {
            uint32_t from = at % each * XS_TOKENS;

            expert = e.n_experts + at / each;
            first = e.n * e.top_k + at / each * e.n + from;
            count = min((uint32_t)XS_TOKENS, e.n - from);
        } else {
            const XsGroup &g = s.group[at - each * e.n_shared];

            expert = g.expert, first = g.first, count = g.count;
        }
    }
    // Of shared layers, and of all.
    static __device__ __forceinline__ uint32_t fixed(const ek_cu_experts &e)
    {
        return (UP ? (e.inner + 7) / 8 : (e.hidden + 15) / 16) *
               ((e.n + XS_TOKENS - 1) / XS_TOKENS) * e.n_shared;
    }
    static __device__ __forceinline__ uint32_t all(const ek_cu_experts &e, const XsGroups &s)
    {
        return fixed(e) + (UP ? (e.inner + 7) / 8 : (e.hidden + 15) / 16) * s.n;
    }
    // Row 0 .. 15 of the tile; past the end the last one again.
    __device__ __forceinline__ const T *row(const ek_cu_experts &e, uint32_t r) const
    {
        bool shared = expert >= e.n_experts;
        uint32_t layer = expert - e.n_experts, wide = e.n_shared * e.inner;
        uint32_t at = UP ? min(8 * tile + r % 8, e.inner - 1) : min(16 * tile + r, e.hidden - 1);

        if (UP && shared)
            return (const T *)e.shared_up +
                   ((size_t)(r / 8) * wide + layer * e.inner + at) * e.hidden;
        if (UP)
            return (const T *)e.gate_up + ((size_t)(2 * expert + r / 8) * e.inner + at) * e.hidden;
        if (shared)
            return (const T *)e.shared_down + (size_t)at * wide + layer * e.inner;
        return (const T *)e.down + ((size_t)expert * e.hidden + at) * e.inner;
    }
    // What the token at `at` of the group multiplies.
    __device__ __forceinline__ const T *token(const ek_cu_experts &e, const XsGroups &s,
                                              uint32_t at) const
    {
        if (at >= count)
            return NULL;
        if (!UP)
            return (const T *)e.inner_x + (size_t)(first + at) * e.inner;
        uint32_t t = expert < e.n_experts ? s.order[first + at] / e.top_k
                                          : (first + at - e.n * e.top_k) % e.n;
        return (const T *)e.x + t * e.ldx;
    }
    __device__ __forceinline__ void put(const ek_cu_experts &e, const XsGroups &s, uint32_t at,
                                        uint32_t r, float a, float b) const
    {
        if (at >= count)
            return;
        if (UP) {
            if (8 * tile + r < e.inner)
                ((T *)e.inner_x)[(size_t)(first + at) * e.inner + 8 * tile + r] =
                    from_f<T>(silu(round_to<T>(a)) * round_to<T>(b));
            return;
        }
        uint32_t all = e.n_shared + e.top_k, pair, to = 16 * tile + r;
        if (expert < e.n_experts)
            pair = s.order[first + at] / e.top_k * all + e.n_shared + s.order[first + at] % e.top_k;
        else
            pair = (first + at - e.n * e.top_k) % e.n * all + expert - e.n_experts;
        if (to < e.hidden)
            ((T *)e.each)[(size_t)pair * e.hidden + to] = from_f<T>(a);
        if (to + 8 < e.hidden)
            ((T *)e.each)[(size_t)pair * e.hidden + to + 8] = from_f<T>(b);
    }
};

// ---- one warp
template <typename T, bool UP> struct XsWarp {
    BulkRing<XS_SLOTS> ring;
    const uint8_t *slots;
    uint32_t unit, step; // to ask for next
    uint32_t cols, steps;
    const T *from; // this lane's row of it

    __device__ __forceinline__ void ask(const ek_cu_experts &e, const XsGroups &s, uint32_t end)
    {
        uint32_t lane = threadIdx.x % 32;

        while (ring.room() && unit < end) {
            uint32_t n = min(cols - step * XS_K, (uint32_t)XS_K);

            if (step == 0)
                from = XsUnit<T, UP>(e, s, unit).row(e, lane % XS_ROWS);
            ring.ask_rows(from + step * XS_K, n * sizeof(T), XS_ROWS, XS_LD);
            if (++step == steps) {
                step = 0;
                unit += gridDim.x * XS_WARPS;
            }
        }
    }

    // sum += the slot's rows times the tokens x, which are advanced to the step.
    template <int NT>
    __device__ __forceinline__ void multiply(float (&sum)[NT][4], const T *const (&x)[NT],
                                             uint32_t n)
    {
        const int LOADS = XS_K / 32; // of a lane
        uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        uint4 v[NT][LOADS];

#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int i = 0; i < LOADS; i++)
                v[j][i] = x[j] && 32 * i + 8 * t < n
                              ? *reinterpret_cast<const uint4 *>(x[j] + 32 * i + 8 * t)
                              : make_uint4(0, 0, 0, 0);
        const uint8_t *w = slots + ring.wait() * ring.bytes + g * XS_LD + 16 * t;
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            uint4 p = make_uint4(0, 0, 0, 0), q = p;

            if (32 * (uint32_t)i >= n)
                break;
            if (32 * i + 8 * t < n) { // else not of this step
                p = *reinterpret_cast<const uint4 *>(w + 64 * i);
                q = *reinterpret_cast<const uint4 *>(w + 64 * i + 8 * XS_LD);
            }
            uint32_t a[2][4] = {{p.x, q.x, p.y, q.y}, {p.z, q.z, p.w, q.w}};
#pragma unroll
            for (int j = 0; j < NT; j++) {
                mma<T>(sum[j], a[0], v[j][i].x, v[j][i].y);
                mma<T>(sum[j], a[1], v[j][i].z, v[j][i].w);
            }
        }
        ring.give_back();
    }

    template <int NT>
    __device__ __forceinline__ void run(const ek_cu_experts &e, const XsGroups &s,
                                        const XsUnit<T, UP> &u, uint32_t end)
    {
        uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        float sum[NT][4] = {};
        const T *x[NT];

#pragma unroll
        for (int j = 0; j < NT; j++)
            x[j] = u.token(e, s, g + 8 * j);
        for (uint32_t at = 0; at < cols; at += XS_K) {
            multiply<NT>(sum, x, min(cols - at, (uint32_t)XS_K));
            ask(e, s, end);
#pragma unroll
            for (int j = 0; j < NT; j++)
                x[j] = x[j] ? x[j] + XS_K : NULL;
        }
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                u.put(e, s, 8 * j + 2 * t + i, g, sum[j][i], sum[j][i + 2]);
    }
};

template <typename T, bool UP>
__global__ void __launch_bounds__(XS_THREADS, 1) experts_stream_k(const ek_cu_experts e)
{
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) uint8_t raw[];
    __shared__ uint64_t barriers[XS_WARPS][XS_SLOTS];
    __shared__ XsGroups groups;
    uint32_t warp = threadIdx.x / 32, first = blockIdx.x + gridDim.x * warp;
    XsWarp<T, UP> w;

    w.slots = raw + warp * XS_SLOTS * XS_SLOT;
    w.unit = first, w.step = 0;
    w.cols = UP ? e.hidden : e.inner;
    w.steps = (w.cols + XS_K - 1) / XS_K;
    w.ring.open(barriers[warp], raw + warp * XS_SLOTS * XS_SLOT, XS_SLOTS, XS_SLOT);
    w.ask(e, groups, XsUnit<T, UP>::fixed(e));
    pdl_next();
    pdl_wait();
    group_tokens(e, groups);
    uint32_t end = XsUnit<T, UP>::all(e, groups);
    w.ask(e, groups, end);
    for (uint32_t unit = first; unit < end; unit += gridDim.x * XS_WARPS) {
        XsUnit<T, UP> u(e, groups, unit);

        if (u.count <= 8)
            w.template run<1>(e, groups, u, end);
        else
            w.template run<2>(e, groups, u, end);
    }
#endif
}

#define XS_SHARED ((size_t)XS_WARPS * XS_SLOTS * XS_SLOT)

extern "C" bool ek_cu_experts_stream_fits(const struct ek_cu_queue *q)
{
    return q->pdl &&
           XS_SHARED + sizeof(XsGroups) + sizeof(uint64_t) * XS_WARPS * XS_SLOTS <= q->shared;
}

template <typename T>
static cudaError_t stream_launch(const struct ek_cu_queue *q, const struct ek_cu_experts *e)
{
    cudaError_t r = launch(q, experts_stream_k<T, true>, q->n_sm, XS_THREADS, XS_SHARED, *e);

    return r == cudaSuccess
               ? launch(q, experts_stream_k<T, false>, q->n_sm, XS_THREADS, XS_SHARED, *e)
               : r;
}

extern "C" cudaError_t ek_cu_experts_stream(const struct ek_cu_queue *q, enum ek_dtype act,
                                            const struct ek_cu_experts *e)
{
    return act == EK_BF16  ? stream_launch<bf16>(q, e)
           : act == EK_F16 ? stream_launch<f16>(q, e)
                           : cudaErrorNotSupported;
}
