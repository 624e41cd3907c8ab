// SPDX-License-Identifier: Apache-2.0
// Decode attention by parts of contexts: one new token a sequence. The blocks of a sequence take
// turns at its tokens, for the heads that share a cached head (8 of them, the columns of a
// tensor-core tile), so the cache is read once, straight to the operands' registers: the order of a
// head's dimensions is free, and lanes read 16 bytes of it. Two steps are under way before the
// kernel ahead has ended. Blocks want little shared memory, so that they start beside those of the
// kernel ahead, with the same split of a multiprocessor's memory. Where up to 8 parts are a
// cluster, its blocks send each other what they summed; else the last block to arrive joins the
// parts. Lengths come from device memory: a captured graph serves growing contexts up to the
// grid's.
#include "kernels/cuda/parts_join.cuh"
#include "kernels/cuda/split.cuh"

// Parts that are joined through memory; clusters with few warps or many. Few fit beside blocks of
// the kernel ahead and start early, where a step each is all of the context; many have more loads
// in flight.
enum { APART, FEW_WARPS, MANY_WARPS };
template <int FORM> constexpr int WARPS = FORM == FEW_WARPS ? 4 : 8;

template <int D> struct PartLoads { // K and V of 16 tokens
    uint4 k[2][D / 32], v[4][D / 64];
};

// A step's tokens first .. first + 15; past the end, the first again. place: of token lane % 16.
// The row of the token `newest` comes by itself, all others without it.
template <typename T, int D>
__device__ __forceinline__ void load_step(PartLoads<D> &to, const ek_cu_attention &a,
                                          uint32_t kv_head, uint32_t first, uint32_t end,
                                          uint32_t newest, bool late, uint32_t place, uint32_t lane)
{
    uint32_t g = lane / 4, t = lane % 4, begin = __shfl_sync(0xffffffffu, place, 0);
    bool inside = first + lane % 16 < end;
    uint32_t row = (inside ? place : begin) * a.kv.kv_heads + kv_head;
    // (where the first of the step is the newest, those past the end are late, too)
    uint32_t is_late = __ballot_sync(0xffffffffu, (inside ? first + lane % 16 : first) == newest);
    uint32_t mine = late ? is_late : ~is_late;

#pragma unroll
    for (int j = 0; j < 2; j++) {
        const T *at =
            (const T *)a.kv.k + (size_t)__shfl_sync(0xffffffffu, row, g + 8 * j) * D + 8 * t;
        if (mine >> (g + 8 * j) & 1)
#pragma unroll
            for (int i = 0; i < D / 32; i++)
                to.k[j][i] = load_once(at + 32 * i);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) { // tokens 2t, 2t+1, 2t+8, 2t+9
        uint32_t token = 2 * t + j % 2 + j / 2 * 8;
        const T *at = (const T *)a.kv.v + (size_t)__shfl_sync(0xffffffffu, row, token) * D + 8 * g;

        if (mine >> token & 1)
#pragma unroll
            for (int h = 0; h < D / 64; h++)
                to.v[j][h] = load_once(at + 64 * h);
    }
}

// Tile 4 h + j of sums, row g + 8 c: dimension 64 h + 8 g + 2 j + c.
template <typename T, int D> struct PartWarp : PartState<D> {
    using PartState<D>::o;
    uint4 q[D / 32]; // of head g: elements 32 i + 8 t ...

    __device__ __forceinline__ void load_q(const ek_cu_attention &a, uint32_t token,
                                           uint32_t first_head, uint32_t heads, uint32_t lane)
    {
        uint32_t g = lane / 4, t = lane % 4;
        const T *base = (const T *)a.q + token * a.ldq + (first_head + g) * D + 8 * t;

#pragma unroll
        for (int i = 0; i < D / 32; i++)
            q[i] = g < heads ? *reinterpret_cast<const uint4 *>(base + 32 * i)
                             : make_uint4(0, 0, 0, 0);
        this->begin();
    }

    // Tokens first .. first + 15, those from end on masked.
    __device__ __forceinline__ void step(const ek_cu_attention &a, const PartLoads<D> &now,
                                         uint32_t first, uint32_t end, uint32_t lane)
    {
        float s[1][4] = {};

#pragma unroll
        for (int i = 0; i < D / 32; i++) {
            const uint4 k[2] = {now.k[0][i], now.k[1][i]};
            const uint32_t low[4] = {k[0].x, k[1].x, k[0].y, k[1].y};
            const uint32_t high[4] = {k[0].z, k[1].z, k[0].w, k[1].w};

            mma<T>(s[0], low, q[i].x, q[i].y);
            mma<T>(s[0], high, q[i].z, q[i].w);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[0][i] = first + lane / 4 + i / 2 * 8 < end ? s[0][i] * (a.scale * LOG2E) : -INFINITY;
        this->softmax(s);
        accumulate(turn_tile(pack2<T>(s[0][0], s[0][1])), turn_tile(pack2<T>(s[0][2], s[0][3])),
                   now);
    }

    __device__ __forceinline__ void accumulate(uint32_t p0, uint32_t p1, const PartLoads<D> &now)
    {
#pragma unroll
        for (int h = 0; h < D / 64; h++) {
            const uint4 vv[4] = {now.v[0][h], now.v[1][h], now.v[2][h], now.v[3][h]};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint32_t w[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    w[i] = j == 0 ? vv[i].x : j == 1 ? vv[i].y : j == 2 ? vv[i].z : vv[i].w;
                const uint32_t v[4] = {__byte_perm(w[0], w[1], 0x5410),
                                       __byte_perm(w[0], w[1], 0x7632),
                                       __byte_perm(w[2], w[3], 0x5410),
                                       __byte_perm(w[2], w[3], 0x7632)};
                mma<T>(o[4 * h + j], v, p0, p1);
            }
        }
    }
};

// From registers to shared memory.
template <typename T, int D, typename S>
__device__ __forceinline__ void publish(S &s, const PartWarp<T, D> &state, uint32_t warp,
                                        uint32_t lane)
{
    publish_weights(s, state, warp, lane);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < D / 16; j += 2)
            *reinterpret_cast<float4 *>(
                s.sums(warp, 2 * (lane % 4) + i, j / 4 * 64 + lane / 4 * 8 + j % 4 * 2)) =
                make_float4(state.o[j][i], state.o[j][2 + i], state.o[j + 1][i],
                            state.o[j + 1][2 + i]);
}

// The batch's description was uploaded, and the cache of earlier tokens written, before the kernels
// of this step: both are read before the end of the kernel ahead is awaited. The new token's row is
// read after it.
template <typename T, int D, int FORM>
__global__ void __launch_bounds__((32 * WARPS<FORM>)) parts_k(const ek_cu_attention a)
{
    using Shared = PartShared<D, WARPS<FORM>, EK_CU_CLUSTER>;
    extern __shared__ uint4 raw[];
    Shared &shared = *reinterpret_cast<Shared *>(raw);
    const PartSpan<WARPS<FORM>> p(a);
    uint32_t places[2] = {place_of(a, p.seq, p.first + p.lane % 16),
                          place_of(a, p.seq, p.first + p.stride + p.lane % 16)};

#if __CUDA_ARCH__ >= 900
    if (FORM != APART)
        cooperative_groups::this_cluster().barrier_arrive();
#endif
    pdl_next();
    uint32_t token = (uint32_t)a.batch.seq_start[p.seq];
    uint32_t len = (uint32_t)max(a.batch.kv_len[p.seq], 0), parts = p.parts(len);
    bool none = (int32_t)token == a.batch.seq_start[p.seq + 1];
    PartWarp<T, D> state;
    PartLoads<D> even, odd;
    auto load = [&](auto &to, uint32_t at, uint32_t place, bool late) {
        if (at < len && (!late || at + PART_STEP >= len))
            load_step<T, D>(to, a, p.kv_head, at, len, len - 1, late, place, p.lane);
    };
    load(even, p.first, places[0], false);
    load(odd, p.first + p.stride, places[1], false);
    pdl_wait();
    if (none)
        return; // a sequence without a new token
    if (FORM == APART && blockIdx.x >= max(parts, 1u))
        return;
    load(even, p.first, places[0], true);
    load(odd, p.first + p.stride, places[1], true);
    state.load_q(a, token, p.head, p.heads, p.lane);
    auto step = [&](auto &now, uint32_t at) {
        uint32_t next = at + 2 * p.stride;

        if (at >= len)
            return;
        state.step(a, now, at, len, p.lane);
        if (next < len)
            load_step<T, D>(now, a, p.kv_head, next, len, ~0u, false,
                            place_of(a, p.seq, next + p.lane % 16), p.lane);
    };
    for (uint32_t at = p.first; at < len; at += 2 * p.stride) {
        step(even, at);
        step(odd, at + p.stride);
    }
    publish(shared, state, p.warp, p.lane);
    join<T, FORM != APART>(a, shared, p, parts, (T *)a.out + token * a.ldo + p.head * D);
}

template <typename T, int D, int FORM>
static cudaError_t form_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    cudaError_t r = split_memory(parts_k<T, D, FORM>, SPLIT_LOADS);

    return r == cudaSuccess ? launch_cluster(q, parts_k<T, D, FORM>, part_grid(a), 32 * WARPS<FORM>,
                                             sizeof(PartShared<D, WARPS<FORM>, EK_CU_CLUSTER>),
                                             a->team > 1 ? a->n_parts : 1, *a)
                            : r;
}

template <typename T, int D>
static cudaError_t parts_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    dim3 grid = part_grid(a);

    if (a->team <= 1 || a->n_parts <= 1)
        return form_launch<T, D, APART>(q, a);
    if (a->part == PART_STEP * WARPS<FEW_WARPS> ||
        (a->team == EK_CU_CLUSTER && 2 * grid.x * grid.y * grid.z > q->n_sm))
        return form_launch<T, D, FEW_WARPS>(q, a);
    return form_launch<T, D, MANY_WARPS>(q, a);
}

extern "C" cudaError_t ek_cu_attention_parts(const struct ek_cu_queue *q, enum ek_dtype act,
                                             const struct ek_cu_attention *a)
{
    bool narrow = a->kv.head_dim == 64;

    if (act == EK_BF16)
        return narrow ? parts_launch<bf16, 64>(q, a) : parts_launch<bf16, 128>(q, a);
    if (act == EK_F16)
        return narrow ? parts_launch<f16, 64>(q, a) : parts_launch<f16, 128>(q, a);
    return cudaErrorNotSupported;
}
