// SPDX-License-Identifier: Apache-2.0
// Decode attention: one new token a sequence. All heads that share a cached head are the columns of
// a tensor-core product whose rows are 16 tokens, so the cache is read once: S^T = K q^T, and
// O^T = V^T P^T. Each warp streams its own steps through its own ring in shared memory, with no
// barrier but at the end of a pair, where the warps, then the blocks of a cluster, then the teams
// that share the pair (the last to arrive, always in their order) are joined: sums do not depend on
// which it is.
#include <cooperative_groups.h>

#include "kernels/cuda/cache.cuh"
#include "kernels/cuda/decode_work.cuh"

#define DEC_WARPS  4
#define DEC_STAGES 3

// 4 bytes from memory to shared memory.
__device__ __forceinline__ void copy4(uint32_t to, const void *from)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
#else
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(*(const uint32_t *)from) : "memory");
#endif
}

// A step's keys and values in shared memory: rows of tokens, their pieces of 16 bytes exchanged so
// that no two lanes of a load meet in a bank. Behind them, where there are any, scales of keys,
// then of values.
template <typename C, int D> struct DecodeStage {
    static constexpr uint32_t ROW = D * sizeof(C), PIECES = ROW / 16, VALUES = DEC_STEP * ROW,
                              SCALES = 2 * DEC_STEP * ROW,
                              BYTES = SCALES + (SCALED<C> ? 2 * DEC_STEP * sizeof(float) : 0);

    static __device__ __forceinline__ uint32_t place(uint32_t token, uint32_t piece)
    {
        uint32_t turn = token / 2 % 4 + (PIECES >= 8 ? token % 2 * 4 : 0);

        return token * ROW + (piece ^ turn) * 16;
    }
    // row: of the cache, where token lane % 16 is.
    static __device__ __forceinline__ void fetch(const ek_cu_attention &a, uint32_t stage,
                                                 uint32_t row, uint32_t lane)
    {
#pragma unroll
        for (uint32_t i = 0; i < DEC_STEP * PIECES / 32; i++) {
            uint32_t token = (32 * i + lane) / PIECES, piece = lane % PIECES;
            size_t at = (size_t)__shfl_sync(0xffffffffu, row, token) * ROW + 16 * piece;

            copy16(stage + place(token, piece), (const char *)a.kv.k + at);
            copy16(stage + VALUES + place(token, piece), (const char *)a.kv.v + at);
        }
        if (SCALED<C>)
            copy4(stage + SCALES + 4 * lane, (lane < DEC_STEP ? a.kv.k_scale : a.kv.v_scale) + row);
    }
};

// 8x8 elements, rows for columns.
__device__ __forceinline__ uint32_t turn_tile(uint32_t v)
{
    uint32_t r;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
    return r;
}
__device__ __forceinline__ float load_scale(uint32_t at)
{
    float r;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(r) : "r"(at));
    return r;
}
__device__ __forceinline__ uint4 load_shared(uint32_t at)
{
    uint4 r;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "r"(at));
    return r;
}

// E4M3 in T is too small by WIDENED<T>: half of what that is beyond T's own reach is made up for by
// queries and probabilities, whose powers of two are free, the rest by the sums.
template <typename T> constexpr float LIFT = std::is_same<T, bf16>::value ? 0x1p60f : 1.0f;

template <typename T> __device__ __forceinline__ uint32_t lift(uint32_t v)
{
    float2 x = unpack2<T>(v);

    return pack2<T>(x.x * LIFT<T>, x.y * LIFT<T>);
}

// One warp's running state: column n of tile i is head 8 i + n; lane (g, t) holds of scores tokens
// g, g + 8 and of sums dimensions dim_of(m, 0) and (m, 1), both of heads 2t, 2t + 1. The order of
// dimensions inside the first product is free: lane t multiplies those of pieces t, t + 4, ...
template <typename T, typename C, int D, int TILES> struct DecodeWarp {
    using Stage = DecodeStage<C, D>;
    static constexpr int E = 16 / sizeof(C); // elements of a piece

    uint32_t q[TILES][D / 16][2];
    float o[TILES][D / 16][4];
    float peak[TILES][2], weight[TILES][2]; // weight: of this lane's tokens

    static __device__ __forceinline__ uint32_t dim_of(uint32_t m, uint32_t r, uint32_t g)
    {
        return 16 * m + (SCALED<C> ? 2 * g + r : g + 8 * r);
    }

    // Of 8 elements of a query, the operands of two products.
    static __device__ __forceinline__ void place_q(uint32_t (*to)[2], const uint4 &v)
    {
        if constexpr (SCALED<C>) { // bytes 0 and 2, 1 and 3 are widened together
            to[0][0] = lift<T>(__byte_perm(v.x, v.y, 0x5410));
            to[0][1] = lift<T>(__byte_perm(v.x, v.y, 0x7632));
            to[1][0] = lift<T>(__byte_perm(v.z, v.w, 0x5410));
            to[1][1] = lift<T>(__byte_perm(v.z, v.w, 0x7632));
        } else {
            to[0][0] = v.x, to[0][1] = v.y, to[1][0] = v.z, to[1][1] = v.w;
        }
    }

    __device__ __forceinline__ void begin(const ek_cu_attention &a, const DecodePair &p,
                                          uint32_t first_head, uint32_t heads, uint32_t g,
                                          uint32_t t)
    {
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            const T *at = (const T *)a.q + p.token * a.ldq + (first_head + 8 * n + g) * D + E * t;
#pragma unroll
            for (int i = 0; i < D / 32; i++) {
                const T *piece = at + i / (E / 8) * 4 * E + i % (E / 8) * 8;
                place_q(&q[n][2 * i], 8 * n + g < heads ? *reinterpret_cast<const uint4 *>(piece)
                                                        : make_uint4(0, 0, 0, 0));
            }
#pragma unroll
            for (int m = 0; m < D / 16; m++)
                o[n][m][0] = o[n][m][1] = o[n][m][2] = o[n][m][3] = 0;
            peak[n][0] = peak[n][1] = -INFINITY;
            weight[n][0] = weight[n][1] = 0;
        }
    }

    // Keys of tokens g and g + 8 as operands of products i and i + 1 of a piece.
    static __device__ __forceinline__ void operand(uint32_t k[4], const uint4 &x, const uint4 &y,
                                                   int i)
    {
        if constexpr (SCALED<C>) {
            uint2 u = widen4<T>(i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w);
            uint2 v = widen4<T>(i == 0 ? y.x : i == 1 ? y.y : i == 2 ? y.z : y.w);
            k[0] = u.x, k[1] = v.x, k[2] = u.y, k[3] = v.y;
        } else {
            k[0] = i ? x.z : x.x, k[1] = i ? y.z : y.x, k[2] = i ? x.w : x.y, k[3] = i ? y.w : y.y;
        }
    }

    __device__ __forceinline__ void scores(uint32_t stage, float s[TILES][4], uint32_t g,
                                           uint32_t t) const
    {
        float odd[TILES][4] = {};

#pragma unroll
        for (int i = 0; i < D / (4 * E); i++) {
            uint4 x = load_shared(stage + Stage::place(g, 4 * i + t));
            uint4 y = load_shared(stage + Stage::place(g + 8, 4 * i + t));
#pragma unroll
            for (int j = 0; j < E / 4; j++) {
                uint32_t k[4];

                operand(k, x, y, j);
#pragma unroll
                for (int n = 0; n < TILES; n++)
                    mma<T>(j % 2 ? odd[n] : s[n], k, q[n][E / 4 * i + j][0],
                           q[n][E / 4 * i + j][1]);
            }
        }
        float f[2] = {1, 1};
        if constexpr (SCALED<C>)
            for (int r = 0; r < 2; r++)
                f[r] = load_scale(stage + Stage::SCALES + 4 * (g + 8 * r)) / (WIDENED<T> * LIFT<T>);
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[n][i] = (s[n][i] + odd[n][i]) * f[i / 2];
    }

    // Scores in units of log2 to probabilities; rescales what was summed before.
    __device__ __forceinline__ void softmax(float s[4], int n)
    {
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float m = fmaxf(s[c], s[c + 2]);
#pragma unroll
            for (int d = 4; d < 32; d *= 2)
                m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, d));
            m = fmaxf(m, peak[n][c]);
            float shrink = power2(peak[n][c] - m);
            s[c] = power2(s[c] - m);
            s[c + 2] = power2(s[c + 2] - m);
            weight[n][c] = weight[n][c] * shrink + s[c] + s[c + 2];
            peak[n][c] = m;
#pragma unroll
            for (int i = 0; i < D / 16; i++)
                o[n][i][c] *= shrink, o[n][i][c + 2] *= shrink;
        }
    }

    // Probabilities of 16 tokens, as they are multiplied by the values: times these' scales.
    __device__ __forceinline__ void turn(uint32_t stage, float s[4], uint32_t p[2],
                                         uint32_t g) const
    {
        if constexpr (SCALED<C>)
            for (int r = 0; r < 2; r++) {
                float f = load_scale(stage + Stage::SCALES + 4 * (DEC_STEP + g + 8 * r)) *
                          (LIFT<T> == 1 ? 1 / WIDENED<T> : LIFT<T>);
                s[2 * r] *= f, s[2 * r + 1] *= f;
            }
        p[0] = turn_tile(pack2<T>(s[0], s[1]));
        p[1] = turn_tile(pack2<T>(s[2], s[3]));
    }
    // What the sums are to be multiplied by in the end.
    static constexpr float WHOLE = SCALED<C> && LIFT<T> != 1 ? 1 / (WIDENED<T> * LIFT<T>) : 1.0f;

    // Values of 16 dimensions, turned, of 16 tokens (E4M3: of 32 in two operands).
    __device__ __forceinline__ void add_values(uint32_t stage, const uint32_t p[TILES][2],
                                               uint32_t lane)
    {
        uint32_t v[4], k[4], low = lane % 8, eight = lane / 8 % 2, upper = lane / 16;

        if constexpr (SCALED<C>) {
#pragma unroll
            for (int m = 0; m < D / 16; m += 2) {
                load_tiles_turned(v,
                                  stage + Stage::VALUES + Stage::place(8 * eight + low, m + upper));
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    uint2 x = widen4<T>(v[2 * h]), y = widen4<T>(v[2 * h + 1]);
                    k[0] = x.x, k[1] = x.y, k[2] = y.x, k[3] = y.y;
#pragma unroll
                    for (int n = 0; n < TILES; n++)
                        mma<T>(o[n][m + h], k, p[n][0], p[n][1]);
                }
            }
        } else {
#pragma unroll
            for (int m = 0; m < D / 16; m++) {
                load_tiles_turned(v, stage + Stage::VALUES +
                                         Stage::place(8 * upper + low, 2 * m + eight));
#pragma unroll
                for (int n = 0; n < TILES; n++)
                    mma<T>(o[n][m], v, p[n][0], p[n][1]);
            }
        }
    }

    // Tokens first .. first + 15, those from len on masked.
    __device__ __forceinline__ void step(const ek_cu_attention &a, uint32_t stage, uint32_t first,
                                         uint32_t len, uint32_t lane)
    {
        uint32_t g = lane / 4, p[TILES][2];
        float s[TILES][4] = {};

        scores(stage, s, g, lane % 4);
#pragma unroll
        for (int n = 0; n < TILES; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[n][i] = first + g + i / 2 * 8 < len ? s[n][i] * (a.scale * LOG2E) : -INFINITY;
            softmax(s[n], n);
            turn(stage, s[n], p[n], g);
        }
        add_values(stage, p, lane);
    }
};

// ---- joining
template <int D, int TILES> struct alignas(16) DecodeShared {
    float o[DEC_WARPS][8 * TILES][D + 4];
    float2 total[DEC_WARPS][8 * TILES]; // maximum and weight; the block's in [0]
    bool last;
};

template <typename T, typename C, int D, int TILES>
__device__ __forceinline__ void publish(DecodeShared<D, TILES> &s,
                                        const DecodeWarp<T, C, D, TILES> &state, uint32_t heads)
{
    using Warp = DecodeWarp<T, C, D, TILES>;
    uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            uint32_t head = 8 * n + 2 * t + c;
            float w = state.weight[n][c];
#pragma unroll
            for (int d = 4; d < 32; d *= 2)
                w += __shfl_xor_sync(0xffffffffu, w, d);
            if (head >= heads)
                continue;
            if (g == 0)
                s.total[warp][head] = make_float2(state.peak[n][c], w);
#pragma unroll
            for (int m = 0; m < D / 16; m++)
#pragma unroll
                for (int r = 0; r < 2; r++)
                    s.o[warp][head][Warp::dim_of(m, r, g)] = state.o[n][m][c + 2 * r] * Warp::WHOLE;
        }
}

// Sums of parts that have maxima of their own, one after the other.
struct DecodeSum {
    float4 o;
    float peak, weight;

    __device__ __forceinline__ void add(float2 total, const float4 &v)
    {
        float m = fmaxf(peak, total.x), f = total.x == -INFINITY ? 0.0f : power2(total.x - m);
        float keep = peak == -INFINITY ? 0.0f : power2(peak - m);

        o = make_float4(o.x * keep + f * v.x, o.y * keep + f * v.y, o.z * keep + f * v.z,
                        o.w * keep + f * v.w);
        weight = weight * keep + f * total.y;
        peak = m;
    }
    template <typename T> __device__ __forceinline__ void store(T *to) const
    {
        float f = weight > 0 ? 1.0f / weight : 0.0f; // 0: no context at all
        float v[4] = {o.x * f, o.y * f, o.z * f, o.w * f};

        store4(to, v);
    }
};
__device__ __forceinline__ DecodeSum empty_sum()
{
    return DecodeSum{make_float4(0, 0, 0, 0), -INFINITY, 0};
}

// Where a block stands: which of its team, and which team.
struct DecodeTeam {
    uint32_t rank, size, index;
};

__device__ __forceinline__ void team_sync(const DecodeTeam &team)
{
#if __CUDA_ARCH__ >= 900
    if (team.size > 1) {
        cooperative_groups::this_cluster().sync();
        return;
    }
#endif
    __syncthreads();
}

template <int D, int TILES>
__device__ __forceinline__ const DecodeShared<D, TILES> *
shared_of(const DecodeTeam &team, DecodeShared<D, TILES> &s, uint32_t rank)
{
#if __CUDA_ARCH__ >= 900
    if (team.size > 1)
        return cooperative_groups::this_cluster().map_shared_rank(&s, rank);
#endif
    return &s;
}

// The block's warps, into the first one's place.
template <int D, int TILES>
__device__ __forceinline__ void join_warps(DecodeShared<D, TILES> &s, uint32_t heads)
{
    for (uint32_t i = threadIdx.x; i < heads * (D / 4); i += 32 * DEC_WARPS) {
        uint32_t head = i / (D / 4), d = i % (D / 4) * 4;
        float4 sum = make_float4(0, 0, 0, 0);
        float m = -INFINITY;

#pragma unroll
        for (int w = 0; w < DEC_WARPS; w++)
            m = fmaxf(m, s.total[w][head].x);
        m = m == -INFINITY ? 0.0f : m;
#pragma unroll
        for (int w = 0; w < DEC_WARPS; w++) {
            float4 v = *reinterpret_cast<const float4 *>(&s.o[w][head][d]);
            float f = power2(s.total[w][head].x - m);

            sum = make_float4(sum.x + f * v.x, sum.y + f * v.y, sum.z + f * v.z, sum.w + f * v.w);
        }
        *reinterpret_cast<float4 *>(&s.o[0][head][d]) = sum; // read by this thread alone before
    }
    __syncthreads();
    if (threadIdx.x < heads) {
        float2 total = make_float2(-INFINITY, 0);

#pragma unroll
        for (int w = 0; w < DEC_WARPS; w++)
            total.x = fmaxf(total.x, s.total[w][threadIdx.x].x);
#pragma unroll
        for (int w = 0; w < DEC_WARPS; w++)
            if (s.total[w][threadIdx.x].x != -INFINITY)
                total.y += power2(s.total[w][threadIdx.x].x - total.x) * s.total[w][threadIdx.x].y;
        s.total[0][threadIdx.x] = total;
    }
}

// Sums of a part of a pair, in memory: a team has at most two, of the pair that it begins in and of
// the one that it ends in. Each block of a team has its own elements and its own totals.
struct DecodeParts {
    float *o;       // [slot][EK_CU_TILE][D]
    float2 *totals; // [slot][rank][EK_CU_TILE]
};

__device__ __forceinline__ uint32_t slot_of_part(const DecodeShare &share, const DecodePair &p,
                                                 uint32_t team)
{
    return 2 * team + (team * share.per < p.first);
}

template <int D>
__device__ __forceinline__ void put_part(const ek_cu_attention &a, const DecodeTeam &team,
                                         uint32_t slot, uint32_t head, uint32_t d,
                                         const DecodeSum &sum)
{
    size_t at = (size_t)slot * EK_CU_TILE + head;

    __stcg(reinterpret_cast<float4 *>(a.partial + at * D + d), sum.o);
    __stcg(a.totals + ((size_t)slot * team.size + team.rank) * EK_CU_TILE + head,
           make_float2(sum.peak, sum.weight));
}

// True in the block of a rank that arrives last of its pair's teams.
template <int D, int TILES>
__device__ __forceinline__ bool last_to_arrive(const ek_cu_attention &a, const DecodeTeam &team,
                                               const DecodePair &p, DecodeShared<D, TILES> &s,
                                               uint32_t teams)
{
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t *arrived =
            a.arrived + (p.seq * pairs_of_sequence(a) + p.index) * team.size + team.rank;
        s.last = atomicAdd(arrived, 1u) == teams - 1;
        if (s.last)
            *arrived = 0;
    }
    __syncthreads();
    __threadfence();
    return s.last;
}

// All teams' sums of the elements that this block has, by the last one to arrive. Where elements
// are few, groups of threads take every so many of the teams.
template <typename T, int D, int TILES>
__device__ __forceinline__ void join_teams(const ek_cu_attention &a, const DecodeTeam &team,
                                           const DecodeShare &share, const DecodePair &p,
                                           DecodeShared<D, TILES> &s, uint32_t heads, T *out)
{
    uint32_t from = p.first / share.per, to = (p.first + p.steps - 1) / share.per;
    uint32_t n = heads * (D / 4) / team.size, lanes = n <= 32 ? 32 : n <= 64 ? 64 : 128;
    uint32_t groups = 32 * DEC_WARPS / lanes, group = threadIdx.x / lanes;
    DecodeSum *sums = reinterpret_cast<DecodeSum *>(&s.o[0][0][0]); // [groups][lanes]

    if (!last_to_arrive(a, team, p, s, to - from + 1))
        return;
    for (uint32_t i = threadIdx.x % lanes; i - threadIdx.x % lanes < n; i += lanes) {
        uint32_t e = team.rank * n + min(i, n - 1), head = e / (D / 4), d = e % (D / 4) * 4;
        DecodeSum sum = empty_sum();

#pragma unroll 4
        for (uint32_t k = from + group; k <= to; k += groups) {
            size_t slot = slot_of_part(share, p, k);
            float2 total = __ldcg(a.totals + (slot * team.size + team.rank) * EK_CU_TILE + head);
            sum.add(total, __ldcg(reinterpret_cast<const float4 *>(
                               a.partial + (slot * EK_CU_TILE + head) * D + d)));
        }
        sums[threadIdx.x] = sum;
        __syncthreads();
        for (uint32_t g = 1; group == 0 && g < groups; g++)
            sum.add(make_float2(sums[g * lanes + i % lanes].peak,
                                sums[g * lanes + i % lanes].weight),
                    sums[g * lanes + i % lanes].o);
        if (group == 0 && i < n)
            sum.store(out + head * D + d);
        __syncthreads();
    }
}

// A pair's end: the team's sums of it, each block some of the elements, to the output, or to memory
// when other teams have parts of it.
template <typename T, int D, int TILES>
__device__ __forceinline__ void join(const ek_cu_attention &a, const DecodeTeam &team,
                                     const DecodeShare &share, const DecodePair &p,
                                     DecodeShared<D, TILES> &s, uint32_t heads, T *out)
{
    bool whole = share.per == 0 || (share.begin <= p.first && p.first + p.steps <= share.end);
    uint32_t n = heads * (D / 4) / team.size;

    join_warps(s, heads);
    team_sync(team);
    for (uint32_t i = threadIdx.x; i < n; i += 32 * DEC_WARPS) {
        uint32_t e = team.rank * n + i, head = e / (D / 4), d = e % (D / 4) * 4;
        DecodeSum sum = empty_sum();
        float4 v[EK_CU_CLUSTER];
        float2 total[EK_CU_CLUSTER];

#pragma unroll
        for (int b = 0; b < EK_CU_CLUSTER; b++) {
            const DecodeShared<D, TILES> *from = shared_of(team, s, min(b, team.size - 1));
            total[b] = b < team.size ? from->total[0][head] : make_float2(-INFINITY, 0);
            v[b] = *reinterpret_cast<const float4 *>(&from->o[0][head][d]);
        }
#pragma unroll
        for (int b = 0; b < EK_CU_CLUSTER; b++)
            sum.add(total[b], v[b]);
        if (whole)
            sum.store(out + head * D + d);
        else
            put_part<D>(a, team, slot_of_part(share, p, team.index), head, d, sum);
    }
    team_sync(team); // nobody goes on, or leaves, while others read from it
    if (!whole)
        join_teams<T>(a, team, share, p, s, heads, out);
}

// ---- a warp's steps: every so many of its team's, fetched some stages ahead
template <typename C, int D> struct DecodeFeed {
    DecodePair pair;
    uint32_t u, end, stride;
    uint32_t token; // this lane's of step u
    int32_t block;  // where it is: looked up a step before that is used

    __device__ __forceinline__ void find_row(const ek_cu_attention &a, uint32_t lane)
    {
        if (u >= end)
            return;
        while (u >= pair.first + pair.steps)
            next_pair(a, pair);
        token = min((u - pair.first) * DEC_STEP + lane % DEC_STEP, pair.len ? pair.len - 1 : 0);
        block = block_of(a, pair.seq, token);
    }
    __device__ __forceinline__ void advance(const ek_cu_attention &a, uint32_t lane)
    {
        u += stride;
        find_row(a, lane);
    }
    // The newest token was written by the kernel ahead.
    __device__ __forceinline__ bool newest() const
    {
        return u + 1 == pair.first + pair.steps;
    }
    __device__ __forceinline__ void fetch(const ek_cu_attention &a, uint32_t stage,
                                          uint32_t lane) const
    {
        if (u >= end || !pair.len)
            return;
        uint32_t slot = (uint32_t)block * a.kv.page + offset_of(a, token);
        DecodeStage<C, D>::fetch(a, stage, slot * a.kv.kv_heads + pair.index / a.tiles, lane);
    }
};

template <typename C, int D> struct DecodeRing {
    uint32_t base, at, stages; // at: the stage that is used next

    __device__ __forceinline__ uint32_t stage() const
    {
        return base + at * DecodeStage<C, D>::BYTES;
    }
    __device__ __forceinline__ void advance()
    {
        at = at + 1 == stages ? 0 : at + 1;
    }
    __device__ __forceinline__ void wait() const
    {
        if (stages == DEC_STAGES)
            copy_wait<DEC_STAGES - 1>();
        else
            copy_wait<1>();
        __syncwarp();
    }
    // The first stages, but for the newest tokens; then, behind the kernel ahead, those.
    __device__ __forceinline__ void fill(const ek_cu_attention &a, DecodeFeed<C, D> &feed,
                                         uint32_t lane)
    {
        DecodeFeed<C, D> ahead[DEC_STAGES];
        bool late = false;

#pragma unroll
        for (int i = 0; i < DEC_STAGES; i++) {
            ahead[i] = feed;
            if (i < stages)
                feed.advance(a, lane);
        }
#pragma unroll
        for (int i = 0; i < DEC_STAGES; i++) {
            bool wait = i < stages && ahead[i].u < ahead[i].end && ahead[i].newest();
            if (i < stages && !wait)
                ahead[i].fetch(a, base + i * DecodeStage<C, D>::BYTES, lane);
            if (i < stages)
                copy_commit();
            late |= wait;
        }
        pdl_wait();
        if (!late)
            return;
#pragma unroll
        for (int i = 0; i < DEC_STAGES; i++)
            if (i < stages && ahead[i].u < ahead[i].end && ahead[i].newest())
                ahead[i].fetch(a, base + i * DecodeStage<C, D>::BYTES, lane);
        copy_commit();
        copy_wait<0>();
    }
};

// The batch's description was uploaded, and the cache of earlier tokens written, before the kernels
// of this step: both are read before the end of the kernel ahead is awaited.
template <typename T, typename C, int D, int TILES>
__global__ void __launch_bounds__(32 * DEC_WARPS, 2) decode_k(const ek_cu_attention a)
{
    extern __shared__ uint4 raw[];
    DecodeShared<D, TILES> &shared = *reinterpret_cast<DecodeShared<D, TILES> *>(raw);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = a.heads / a.kv.kv_heads;
    DecodeTeam team = {blockIdx.x % a.team, a.team, blockIdx.x / a.team};
    uint32_t mine = team.rank * DEC_WARPS + warp;
    DecodeWarp<T, C, D, TILES> state;

    pdl_next();
    DecodeShare share = decode_share(a, team.index, lane);
    DecodeFeed<C, D> feed = {share.pair, share.begin + mine, share.end, team.size * DEC_WARPS, 0,
                             0};
    DecodeRing<C, D> ring = {shared_at(&shared + 1), 0, a.stages};
    ring.base += warp * a.stages * DecodeStage<C, D>::BYTES;
    feed.find_row(a, lane);
    ring.fill(a, feed, lane);
    DecodePair pair = share.pair;
    for (uint32_t u = share.begin + mine, at = share.begin; at < share.end;) {
        uint32_t tile = pair.index % a.tiles, head = pair.index / a.tiles * group;
        uint32_t end = min(pair.first + pair.steps, share.end);
        uint32_t heads = min(group - EK_CU_TILE * tile, (uint32_t)EK_CU_TILE);

        head += EK_CU_TILE * tile;
        state.begin(a, pair, head, heads, lane / 4, lane % 4);
        for (; u < end; u += feed.stride) {
            ring.wait();
            if (pair.len)
                state.step(a, ring.stage(), (u - pair.first) * DEC_STEP, pair.len, lane);
            __syncwarp();
            feed.fetch(a, ring.stage(), lane);
            copy_commit();
            ring.advance();
            feed.advance(a, lane);
        }
        publish(shared, state, heads);
        __syncthreads();
        join(a, team, share, pair, shared, heads, (T *)a.out + pair.token * a.ldo + head * D);
        at = end;
        if (at < share.end) {
            __syncthreads();
            next_pair(a, pair);
        }
    }
}

template <typename T, typename C, int D, int TILES>
static cudaError_t decode_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    size_t shared =
        sizeof(DecodeShared<D, TILES>) + (size_t)DEC_WARPS * a->stages * DecodeStage<C, D>::BYTES;

    return launch_cluster(q, decode_k<T, C, D, TILES>, dim3(a->team * a->teams), 32 * DEC_WARPS,
                          shared, a->team, *a);
}

template <typename T, typename C>
static cudaError_t decode_type(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    bool two = a->heads / a->kv.kv_heads > EK_CU_TILE / 2;

    if (a->kv.head_dim == 64)
        return two ? decode_launch<T, C, 64, 2>(q, a) : decode_launch<T, C, 64, 1>(q, a);
    return two ? decode_launch<T, C, 128, 2>(q, a) : decode_launch<T, C, 128, 1>(q, a);
}

extern "C" cudaError_t ek_cu_attention_decode(const struct ek_cu_queue *q, enum ek_dtype act,
                                              const struct ek_cu_attention *a)
{
    bool scaled = a->kv.dtype == EK_F8_E4M3;

    if (act == EK_BF16)
        return scaled ? decode_type<bf16, f8>(q, a) : decode_type<bf16, bf16>(q, a);
    if (act == EK_F16)
        return scaled ? decode_type<f16, f8>(q, a) : decode_type<f16, f16>(q, a);
    return cudaErrorNotSupported;
}
