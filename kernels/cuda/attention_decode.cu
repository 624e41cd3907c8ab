// SPDX-License-Identifier: Apache-2.0
// Decode attention of a cache of E4M3 (attention_parts.cu: of activations): one new token a
// sequence. All heads that share a cached head are the columns of a tensor-core product whose rows
// are 16 tokens, so the cache is read once: S^T = K q^T, and O^T = V^T P^T. Each warp streams its
// own steps through its own ring in shared memory, with no barrier but at the end of a pair, where
// they are joined.
#include "kernels/cuda/cache.cuh"
#include "kernels/cuda/decode_join.cuh"

#define DEC_STAGES 3 // of a warp, at most

// 4 bytes from memory to shared memory.
__device__ __forceinline__ void copy4(uint32_t to, const void *from)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
#else
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(*(const uint32_t *)from) : "memory");
#endif
}

// Keeps in a register what the compiler would work out again in each step.
__device__ __forceinline__ void keep(uint32_t &v)
{
    asm volatile("" : "+r"(v));
}

// A step's keys and values in shared memory: rows of tokens, their pieces of 16 bytes exchanged so
// that no two lanes of a load meet in a bank. Behind them scales of keys, then of values.
template <int D> struct DecodeStage {
    static constexpr uint32_t ROW = D * sizeof(f8), PIECES = ROW / 16, VALUES = DEC_STEP * ROW,
                              SCALES = 2 * DEC_STEP * ROW,
                              BYTES = SCALES + 2 * DEC_STEP * sizeof(float);

    static __device__ __forceinline__ uint32_t place(uint32_t token, uint32_t piece)
    {
        uint32_t turn = token / 2 % 4 + (PIECES >= 8 ? token % 2 * 4 : 0);

        return token * ROW + (piece ^ turn) * 16;
    }
    // Where a lane's pieces go: piece i is at to[i % TURNS] + i * AHEAD.
    static constexpr uint32_t COPIES = DEC_STEP * PIECES / 32, TURNS = COPIES < 4 ? COPIES : 4,
                              AHEAD = 32 * 16;

    static __device__ __forceinline__ void places(uint32_t to[TURNS], uint32_t lane)
    {
#pragma unroll
        for (uint32_t i = 0; i < TURNS; i++) {
            to[i] = place((32 * i + lane) / PIECES, lane % PIECES) - i * AHEAD;
            keep(to[i]);
        }
    }
    // row: of the cache, of the step's first token; n tokens (the last again for those behind it),
    // apart rows from one to the next.
    static __device__ __forceinline__ void fetch(const ek_cu_attention &a, uint32_t stage,
                                                 const uint32_t to[TURNS], size_t row, uint32_t n,
                                                 uint32_t apart, uint32_t lane)
    {
        size_t at = row * ROW + lane % PIECES * 16;
        const char *k = (const char *)a.kv.k + at, *v = (const char *)a.kv.v + at;

#pragma unroll
        for (uint32_t i = 0; i < COPIES; i++) {
            uint32_t behind = min((32 * i + lane) / PIECES, n - 1) * apart * ROW;

            copy16(stage + to[i % TURNS] + i * AHEAD, k + behind);
            copy16(stage + VALUES + to[i % TURNS] + i * AHEAD, v + behind);
        }
        copy4(stage + SCALES + 4 * lane, (lane < DEC_STEP ? a.kv.k_scale : a.kv.v_scale) + row +
                                             min(lane % DEC_STEP, n - 1) * apart);
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
template <typename T, int D, int TILES> struct DecodeWarp {
    using Stage = DecodeStage<D>;
    static constexpr int E = 16 / sizeof(f8); // elements of a piece

    uint32_t q[TILES][D / 16][2];
    float o[TILES][D / 16][4];
    float peak[TILES][2], weight[TILES][2];          // weight: of this lane's tokens
    uint32_t keys[D / (4 * E)], values[D / (2 * E)]; // where this lane's pieces of a stage are

    __device__ __forceinline__ void places(uint32_t lane)
    {
        uint32_t low = lane % 8, eight = lane / 8 % 2, upper = lane / 16;

#pragma unroll
        for (int i = 0; i < D / (4 * E); i++) {
            keys[i] = Stage::place(lane / 4, 4 * i + lane % 4);
            keep(keys[i]);
        }
#pragma unroll
        for (int i = 0; i < D / (2 * E); i++) {
            values[i] = Stage::VALUES + Stage::place(8 * eight + low, 2 * i + upper);
            keep(values[i]);
        }
    }

    static __device__ __forceinline__ uint32_t dim_of(uint32_t m, uint32_t r, uint32_t g)
    {
        return 16 * m + 2 * g + r;
    }

    // Of 8 elements of a query, the operands of two products.
    static __device__ __forceinline__ void place_q(uint32_t (*to)[2], const uint4 &v)
    {
        // bytes 0 and 2, 1 and 3 are widened together
        to[0][0] = lift<T>(__byte_perm(v.x, v.y, 0x5410));
        to[0][1] = lift<T>(__byte_perm(v.x, v.y, 0x7632));
        to[1][0] = lift<T>(__byte_perm(v.z, v.w, 0x5410));
        to[1][1] = lift<T>(__byte_perm(v.z, v.w, 0x7632));
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
        uint2 u = widen4<T>(i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w);
        uint2 v = widen4<T>(i == 0 ? y.x : i == 1 ? y.y : i == 2 ? y.z : y.w);
        k[0] = u.x, k[1] = v.x, k[2] = u.y, k[3] = v.y;
    }

    __device__ __forceinline__ void scores(uint32_t stage, float s[TILES][4], uint32_t g) const
    {
        float odd[TILES][4] = {};

#pragma unroll
        for (int i = 0; i < D / (4 * E); i++) {
            uint4 x = load_shared(stage + keys[i]);
            uint4 y = load_shared(stage + keys[i] + 8 * Stage::ROW); // 8 tokens on: turned alike
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
        for (int r = 0; r < 2; r++)
            f[r] = load_scale(stage + Stage::SCALES + 4 * (g + 8 * r)) / (WIDENED<T> * LIFT<T>);
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[n][i] = (s[n][i] + odd[n][i]) * f[i / 2];
    }

    // How far (in powers of two) scores may rise above the maximum that sums are relative to: what
    // bounds them is the range of T, of which the values' scales need some.
    static constexpr float SLACK = std::is_same<T, f16>::value ? 0 : 8;

    // A new maximum; rescales what was summed before.
    __device__ __forceinline__ void raise(const float s[4], int n)
    {
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float m = fmaxf(s[c], s[c + 2]);
#pragma unroll
            for (int d = 4; d < 32; d *= 2)
                m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, d));
            m = fmaxf(m, peak[n][c]);
            float shrink = power2(peak[n][c] - m);
            weight[n][c] *= shrink;
            peak[n][c] = m;
#pragma unroll
            for (int i = 0; i < D / 16; i++)
                o[n][i][c] *= shrink, o[n][i][c + 2] *= shrink;
        }
    }
    // Scores in units of log2 to probabilities.
    __device__ __forceinline__ void softmax(float s[4], int n)
    {
        bool above =
            fmaxf(s[0], s[2]) > peak[n][0] + SLACK || fmaxf(s[1], s[3]) > peak[n][1] + SLACK;

        if (__any_sync(0xffffffffu, above))
            raise(s, n);
#pragma unroll
        for (int c = 0; c < 2; c++) {
            s[c] = power2(s[c] - peak[n][c]);
            s[c + 2] = power2(s[c + 2] - peak[n][c]);
            weight[n][c] += s[c] + s[c + 2];
        }
    }

    // Probabilities of 16 tokens, as they are multiplied by the values: times these' scales.
    __device__ __forceinline__ void turn(uint32_t stage, float s[4], uint32_t p[2],
                                         uint32_t g) const
    {
        for (int r = 0; r < 2; r++) {
            float f = load_scale(stage + Stage::SCALES + 4 * (DEC_STEP + g + 8 * r)) *
                      (LIFT<T> == 1 ? 1 / WIDENED<T> : LIFT<T>);
            s[2 * r] *= f, s[2 * r + 1] *= f;
        }
        p[0] = turn_tile(pack2<T>(s[0], s[1]));
        p[1] = turn_tile(pack2<T>(s[2], s[3]));
    }
    // What the sums are to be multiplied by in the end.
    static constexpr float WHOLE = LIFT<T> != 1 ? 1 / (WIDENED<T> * LIFT<T>) : 1.0f;

    // Values of 16 dimensions, turned, of 16 tokens (E4M3: of 32 in two operands).
    __device__ __forceinline__ void add_values(uint32_t stage, const uint32_t p[TILES][2])
    {
        uint32_t v[4], k[4];

#pragma unroll
        for (int m = 0; m < D / 16; m += 2) {
            load_tiles_turned(v, stage + values[m / 2]);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint2 x = widen4<T>(v[2 * h]), y = widen4<T>(v[2 * h + 1]);
                k[0] = x.x, k[1] = x.y, k[2] = y.x, k[3] = y.y;
#pragma unroll
                for (int n = 0; n < TILES; n++)
                    mma<T>(o[n][m + h], k, p[n][0], p[n][1]);
            }
        }
    }

    // Tokens first .. first + 15, those from len on masked.
    __device__ __forceinline__ void step(const ek_cu_attention &a, uint32_t stage, uint32_t first,
                                         uint32_t len, uint32_t lane)
    {
        uint32_t g = lane / 4, p[TILES][2];
        float s[TILES][4] = {};

        scores(stage, s, g);
#pragma unroll
        for (int n = 0; n < TILES; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[n][i] = first + g + i / 2 * 8 < len ? s[n][i] * (a.scale * LOG2E) : -INFINITY;
            softmax(s[n], n);
            turn(stage, s[n], p[n], g);
        }
        add_values(stage, p);
    }
};

template <typename T, int D, int TILES>
__device__ __forceinline__ void publish(DecodeShared<D, TILES> &s,
                                        const DecodeWarp<T, D, TILES> &state, uint32_t heads)
{
    using Warp = DecodeWarp<T, D, TILES>;
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

// ---- a warp's steps: every so many of its team's, fetched some stages ahead. A step lies inside
// of a block of the cache; the blocks of the next 32 are looked up at once, one a lane.
template <int D> struct DecodeFeed {
    DecodePair pair;
    uint32_t u, end, stride;
    uint32_t index; // which lane has the block of step u
    int32_t block;
    uint32_t to[DecodeStage<D>::TURNS];

    __device__ __forceinline__ void find(const ek_cu_attention &a, uint32_t lane)
    {
        if (u >= end || (index < 32 && u < pair.first + pair.steps))
            return;
        while (u >= pair.first + pair.steps)
            next_pair(a, pair);
        uint32_t step = min(u + lane * stride - pair.first, pair.steps - 1);
        block = block_of(a, pair.seq, step * DEC_STEP);
        index = 0;
    }
    __device__ __forceinline__ void advance(const ek_cu_attention &a, uint32_t lane)
    {
        u += stride;
        index++;
        find(a, lane);
    }
    // The newest token was written by the kernel ahead.
    __device__ __forceinline__ bool newest() const
    {
        return u + 1 == pair.first + pair.steps;
    }
    __device__ __forceinline__ void fetch(const ek_cu_attention &a, uint32_t stage,
                                          uint32_t lane) const
    {
        uint32_t first = (u - pair.first) * DEC_STEP;
        uint32_t at = (uint32_t)__shfl_sync(0xffffffffu, block, index);

        if (u >= end || !pair.len)
            return;
        size_t slot = (size_t)at * a.kv.page + offset_of(a, first);
        DecodeStage<D>::fetch(a, stage, to, slot * a.kv.kv_heads + pair.index / a.tiles,
                              min(pair.len - first, DEC_STEP), a.kv.kv_heads, lane);
    }
};

template <int D> struct DecodeRing {
    uint32_t base, at, stages; // at: the stage that is used next

    __device__ __forceinline__ uint32_t stage() const
    {
        return base + at * DecodeStage<D>::BYTES;
    }
    __device__ __forceinline__ void advance()
    {
        at = at + 1 == stages ? 0 : at + 1;
    }
    __device__ __forceinline__ void wait() const
    {
        if (stages == DEC_STAGES)
            copy_wait<DEC_STAGES - 1>();
        else if (stages == 2)
            copy_wait<1>();
        else
            copy_wait<0>();
        __syncwarp();
    }
    // The first stages, but for the newest tokens; then, behind the kernel ahead, those: whether
    // there are any, which all copies have to be waited for.
    __device__ __forceinline__ bool fill(const ek_cu_attention &a, DecodeFeed<D> &feed,
                                         uint32_t lane)
    {
        DecodeFeed<D> ahead[DEC_STAGES];
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
                ahead[i].fetch(a, base + i * DecodeStage<D>::BYTES, lane);
            if (i < stages)
                copy_commit();
            late |= wait;
        }
        pdl_wait();
        if (!late)
            return false;
#pragma unroll
        for (int i = 0; i < DEC_STAGES; i++)
            if (i < stages && ahead[i].u < ahead[i].end && ahead[i].newest())
                ahead[i].fetch(a, base + i * DecodeStage<D>::BYTES, lane);
        copy_commit();
        return true;
    }
};

// The batch's description was uploaded, and the cache of earlier tokens written, before the kernels
// of this step: both are read before the end of the kernel ahead is awaited.
template <typename T, int D, int TILES>
__global__ void __launch_bounds__(32 * DEC_WARPS, 2) decode_k(const ek_cu_attention a)
{
    extern __shared__ uint4 raw[];
    DecodeShared<D, TILES> &shared = *reinterpret_cast<DecodeShared<D, TILES> *>(raw);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = a.heads / a.kv.kv_heads;
    DecodeTeam team = {blockIdx.x % a.team, a.team, blockIdx.x / a.team};
    uint32_t mine = team.rank * DEC_WARPS + warp;
    DecodeWarp<T, D, TILES> state;

    pdl_next();
    DecodeShare share = decode_share(a, team.index, lane);
    DecodeFeed<D> feed = {
        share.pair, share.begin + mine, share.end, team.size * DEC_WARPS, 32 /* looks up */, 0};
    DecodeRing<D> ring = {shared_at(&shared + 1), 0, a.stages};
    ring.base += warp * a.stages * DecodeStage<D>::BYTES;
    DecodeStage<D>::places(feed.to, lane);
    state.places(lane);
    feed.find(a, lane);
    bool late = ring.fill(a, feed, lane);
    DecodePair pair = share.pair;
    for (uint32_t u = share.begin + mine, at = share.begin; at < share.end;) {
        uint32_t tile = pair.index % a.tiles, head = pair.index / a.tiles * group;
        uint32_t end = min(pair.first + pair.steps, share.end);
        uint32_t heads = min(group - EK_CU_TILE * tile, (uint32_t)EK_CU_TILE);

        head += EK_CU_TILE * tile;
        state.begin(a, pair, head, heads, lane / 4, lane % 4);
        if (late)
            copy_wait<0>();
        late = false;
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

// More blocks than there are multiprocessors lie two on each: of smaller ones three would fit, and
// leave others empty.
#define DEC_THIRD (77u << 10)

template <typename T, int D, int TILES>
static cudaError_t decode_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    uint32_t blocks = a->team * a->teams, stage = DecodeStage<D>::BYTES;
    uint32_t bytes = (uint32_t)sizeof(DecodeShared<D, TILES>) + DEC_WARPS * a->stages * stage;

    if (blocks > q->n_sm && q->pdl && bytes < DEC_THIRD)
        bytes = DEC_THIRD;
    return launch_cluster(q, decode_k<T, D, TILES>, dim3(blocks), 32 * DEC_WARPS, bytes, a->team,
                          *a);
}

template <typename T>
static cudaError_t decode_type(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    bool two = a->heads / a->kv.kv_heads > EK_CU_TILE / 2;

    if (a->kv.head_dim == 64)
        return two ? decode_launch<T, 64, 2>(q, a) : decode_launch<T, 64, 1>(q, a);
    return two ? decode_launch<T, 128, 2>(q, a) : decode_launch<T, 128, 1>(q, a);
}

extern "C" cudaError_t ek_cu_attention_decode(const struct ek_cu_queue *q, enum ek_dtype act,
                                              const struct ek_cu_attention *a)
{
    if (act == EK_BF16)
        return decode_type<bf16>(q, a);
    if (act == EK_F16)
        return decode_type<f16>(q, a);
    return cudaErrorNotSupported;
}
