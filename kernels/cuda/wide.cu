// SPDX-License-Identifier: Apache-2.0
// Products with 2 to 64 tokens on Hopper: bound by reading the weights, which stream through
// shared memory to the tensor cores, as much in flight as a multiprocessor has room for. The
// weights are the tall side of the products: 64 rows of them times 8 to 64 tokens. One thread asks
// for boxes of them, another for the tokens that go with them; one warpgroup multiplies, and one
// finishes what it summed. Few tiles of rows are shared by the blocks of clusters, a part of the
// columns each: what a warp sums of 16 rows goes to the block that finishes them, added in the
// order of the columns.
#include "kernels/cuda/begun.cuh"
#include "kernels/cuda/tma.cuh"
#include "kernels/cuda/units.cuh"
#include "kernels/cuda/wide.h"

#define WIDE_CHUNKS  2                        // of 64 columns a step
#define WIDE_K       (EK_CHUNK * WIDE_CHUNKS) // columns a step
#define WIDE_ROWS    64                       // of a tile
#define WIDE_WBYTES  (WIDE_ROWS * WIDE_K * 2)
#define WIDE_STAGES  12           // steps of weights under way, at most,
#define WIDE_XSTAGES 8            // and of tokens
#define WIDE_SHARED  (225 * 1024) // a multiprocessor's: no block shares one with another
#define WIDE_WARPS   4            // that multiply, 16 rows each; as many finish what they summed
#define WIDE_THREADS (2 * 32 * WIDE_WARPS + 64) // and two copy
#define WIDE_BUFFERS 2                          // of sums
#define WIDE_LONG    64                         // steps of a long row
#define WIDE_AHEAD   8                          // loads of squares under way

// Of NT tiles of 8 tokens.
template <int NT> struct Wide {
    static const uint32_t tokens = 8 * NT;
    static const uint32_t xbytes = tokens * WIDE_K * 2; // of a step
    static const uint32_t xstages = NT > 4 ? WIDE_XSTAGES / 2 : WIDE_XSTAGES;
    static const uint32_t part = 16 * tokens * 4; // bytes of a warp's sums
    static const int each = NT > 4 ? NT / 4 : 1;  // tokens that a lane finishes
};

struct wide_barriers {
    uint64_t w_full[WIDE_STAGES], w_empty[WIDE_STAGES];   // steps of weights
    uint64_t x_full[WIDE_XSTAGES], x_empty[WIDE_XSTAGES]; // and of tokens
    // of the rows of each warp:
    uint64_t sums[WIDE_BUFFERS][WIDE_WARPS]; // all blocks' have come, where they are finished
    uint64_t room[WIDE_BUFFERS][WIDE_WARPS]; // for this block's, where they are finished
    alignas(16) float squares[WIDE_WARPS][EK_CU_WIDE_TOKENS]; // of a norm
};

// How a product is cut; offsets are bytes of shared memory.
struct wide_plan {
    uint32_t units, tiles;
    uint32_t blocks, clusters; // blocks of a cluster
    uint32_t stages, tokens;   // steps of weights under way; where the tokens' are
    uint32_t sums, sums_step;  // the first buffer of sums, and from one to the next
    uint32_t buffers;
    uint32_t barriers, shared;
};
struct wide_maps {
    CUtensorMap w[3], x;
};

#ifdef EK_WGMMA
#define AT(barrier) (base + s.barriers + (uint32_t)offsetof(wide_barriers, barrier))

// Where this block is: its columns are steps [first, end).
struct WideSpan {
    uint32_t rank, first, end;

    __device__ __forceinline__ WideSpan(const ek_cu_product &p, const wide_plan &s)
    {
        uint32_t steps = (p.cols + WIDE_K - 1) / WIDE_K;

        rank = blockIdx.x;
        first = steps * rank / s.blocks;
        end = steps * (rank + 1) / s.blocks;
    }
};

// A place in a ring.
struct WideSlot {
    uint32_t slots, at, parity;

    __device__ __forceinline__ void next()
    {
        if (++at == slots)
            at = 0, parity ^= 1;
    }
};

// ---- copies, by a thread each. Units of a tile are of one matrix. Where they have two rows,
// groups of 8 of these take turns.
template <int MODE>
__device__ __forceinline__ void copy_weights(const wide_maps &maps, const ek_cu_product &p,
                                             const wide_plan &s, const WideSpan &span,
                                             uint32_t base)
{
    WideSlot w = {s.stages, 0, 1};
    uint32_t asked = 0;

    for (uint32_t tile = blockIdx.y; tile < s.tiles; tile += gridDim.y) {
        uint32_t rows[2], m;

        Unit<MODE>::find(p, tile * (WIDE_ROWS / Unit<MODE>::rows), &m, rows);
        for (uint32_t step = span.first; step < span.end; step++, w.next()) {
            uint32_t to = base + w.at * WIDE_WBYTES, full = AT(w_full) + 8 * w.at;

            if (asked++ == s.stages)
                pdl_next();
            barrier_wait(AT(w_empty) + 8 * w.at, w.parity);
            barrier_expect(full, WIDE_WBYTES);
            if (Unit<MODE>::rows == 2)
                copy_pairs(to, &maps.w[m], rows[0] / 8, step * WIDE_CHUNKS, full);
            else
                copy_box(to, &maps.w[m], rows[0], step * WIDE_CHUNKS, full, true);
        }
    }
    if (asked <= s.stages)
        pdl_next();
}

template <int NT>
__device__ __forceinline__ void copy_tokens(const wide_maps &maps, const wide_plan &s,
                                            const WideSpan &span, uint32_t base, uint32_t n)
{
    WideSlot x = {Wide<NT>::xstages, 0, 1};

    fetch_map(&maps.x);
    pdl_wait();
    for (uint32_t tile = blockIdx.y; tile < s.tiles; tile += gridDim.y)
        for (uint32_t step = span.first; step < span.end; step++, x.next()) {
            uint32_t full = AT(x_full) + 8 * x.at;

            barrier_wait(AT(x_empty) + 8 * x.at, x.parity);
            barrier_expect(full, n * WIDE_K * 2); // and no rows past the end, which take long
#pragma unroll
            for (uint32_t i = 0; i < WIDE_CHUNKS; i++)
                copy_box(base + s.tokens + x.at * Wide<NT>::xbytes + i * NT * 1024, &maps.x, 0,
                         step * WIDE_CHUNKS + i, full, false);
        }
}

// ---- one step
// The same `bytes` further on, by one addition: between such small products that is what takes
// long.
__device__ __forceinline__ uint64_t operand_on(uint64_t operand, uint32_t bytes)
{
    return (operand & ~(uint64_t)0xffffffffu) | ((uint32_t)operand + (bytes >> 4));
}

template <typename T, int NT>
__device__ __forceinline__ void multiply(float (&c)[NT][4], uint32_t w, uint32_t x, bool add)
{
    uint64_t a = operand_at(w, 0), b = operand_at(x, 0);

    wgmma_begin();
#pragma unroll
    for (int k = 0; k < WIDE_K / 16; k++)
        wgmma_shared(c, operand_on(a, k / 4 * (WIDE_ROWS * 128) + k % 4 * 32),
                     operand_on(b, k / 4 * (NT * 1024) + k % 4 * 32), add || k > 0, T());
    wgmma_commit();
}

// ---- sums of the 16 rows of a warp, on their way to the block that finishes them
template <int NT> struct WideSums {
    const wide_plan &s;
    uint32_t base, rank, warp, round;

    __device__ __forceinline__ uint32_t owner() const
    {
        return warp * s.blocks / WIDE_WARPS;
    }
    // Number of these rows among those that their block finishes.
    __device__ __forceinline__ uint32_t place() const
    {
        return warp - (owner() * WIDE_WARPS + s.blocks - 1) / s.blocks;
    }
    // From the block `from`; of tokens 8 j .. 8 j + 7 at + j * 512, rows g and g + 8 of them in the
    // 64 bytes g of that (odd j: g ^ 1, so that no two lanes of take() meet in a bank), 16 bytes
    // for two tokens.
    __device__ __forceinline__ uint32_t slot(uint32_t from) const
    {
        return base + s.sums + round % s.buffers * s.sums_step +
               (place() * s.blocks + from) * Wide<NT>::part;
    }
    __device__ __forceinline__ uint32_t come() const
    {
        return AT(sums) + 8 * (round % s.buffers * WIDE_WARPS + warp);
    }
    __device__ __forceinline__ uint32_t room() const
    {
        return AT(room) + 8 * (round % s.buffers * WIDE_WARPS + warp);
    }
    __device__ __forceinline__ void give(const float (&c)[NT][4]) const
    {
        uint32_t lane = threadIdx.x % 32;

        if (round >= s.buffers)
            barrier_wait_far(room(), (round / s.buffers - 1) % 2);
        bool far = s.blocks > 1;
        uint32_t to = far ? at_block(slot(rank), owner()) : slot(0);
        uint32_t arrived = far ? at_block(come(), owner()) : 0;
#pragma unroll
        for (int j = 0; j < NT; j++) {
            const float v[4] = {c[j][0], c[j][2], c[j][1], c[j][3]};
            uint32_t at = to + j * 512 + (lane ^ (j % 2 * 4)) * 16;

            if (far)
                send(at, v, arrived);
            else
                store_shared4(at, v);
        }
        __syncwarp();
        if (!far && lane == 0)
            barrier_arrive(come());
    }
    __device__ __forceinline__ void await() const
    {
        if (s.blocks > 1 && threadIdx.x % 32 == 0)
            barrier_expect(come(), s.blocks * Wide<NT>::part);
        barrier_wait_far(come(), round / s.buffers % 2);
    }
    // The sums of all blocks, in their order: 16 rows of a token.
    __device__ __forceinline__ void take(float (&v)[16], uint32_t token) const
    {
        uint32_t odd = token / 8 % 2 * 64;

#pragma unroll
        for (int r = 0; r < 16; r++)
            v[r] = 0;
        for (uint32_t from = 0; from < s.blocks; from++) {
            uint32_t at = slot(from) + token / 8 * 512 + token % 8 * 8;
#pragma unroll
            for (int g = 0; g < 8; g++) {
                float2 w = load_shared2(at + (g % 2 ? g * 64 - odd : g * 64 + odd));

                v[g] += w.x, v[g + 8] += w.y;
            }
        }
    }
    // More may be given in their place.
    __device__ __forceinline__ void leave() const
    {
        uint32_t lane = threadIdx.x % 32;

        __syncwarp();
        if (s.blocks > 1 && lane < s.blocks)
            barrier_arrive_far(at_block(room(), lane));
        if (s.blocks == 1 && lane == 0)
            barrier_arrive(room());
    }
};

// ---- what a lane makes of its sums: of the token of its number, and of 64 tokens of another, 16
// rows, which are as many units, or 8 of two rows each. begin() reads what was there before the
// kernels of this step, the model and the batch, read() what they wrote.
template <typename T, int MODE, int NT> struct WideFinish;
template <typename T, int NT> struct WideFinish<T, EK_CU_LINEAR, NT> {
    float add[16], norm[16]; // norm: weights of the one that follows
    uint32_t first, rows;

    __device__ __forceinline__ void begin(const ek_cu_product &p, uint32_t row, uint32_t all,
                                          uint32_t, uint32_t)
    {
        uint32_t m, at[1];

        first = row;
        rows = row < all ? min(all - row, 16u) : 0;
        Unit<EK_CU_LINEAR>::find(p, row, &m, at);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t n = rows > 8 * h ? rows - 8 * h : 0;

            load_some(p.mat[m].bias + at[0] + 8 * h, p.mat[m].bias ? n : 0, add + 8 * h);
            load_some(p.next_norm + row + 8 * h, p.next_norm ? n : 0, norm + 8 * h);
        }
    }
    __device__ __forceinline__ void read(const ek_cu_product &p, uint32_t token, uint32_t n)
    {
        size_t at = token * p.ldo + first;

        if (!(p.flags & EK_LINEAR_ADD) || token >= n)
            return;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t some = rows > 8 * h ? rows - 8 * h : 0;
            float v[8];

            if (p.flags & EK_LINEAR_OUT_F32)
                load_some((const float *)p.out + at + 8 * h, some, v);
            else
                load_some((const T *)p.out + at + 8 * h, some, v);
#pragma unroll
            for (int i = 0; i < 8; i++)
                add[8 * h + i] += v[i];
        }
    }
    __device__ __forceinline__ void run(const ek_cu_product &p, float (&v)[16], uint32_t token,
                                        uint32_t n) const
    {
#pragma unroll
        for (int r = 0; r < 16; r++)
            v[r] += add[r];
        if (p.flags & (EK_LINEAR_GELU | EK_LINEAR_GELU_TANH)) {
#pragma unroll
            for (int r = 0; r < 16; r++)
                v[r] = activate(p.flags, v[r]);
        }
        if (token < n)
            store(p, token, v);
        if (p.next_norm && rows)
            leave_scaled(p, token, n, v);
    }
    __device__ __forceinline__ void store(const ek_cu_product &p, uint32_t token,
                                          const float (&v)[16]) const
    {
        size_t at = token * p.ldo + first;

#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t some = rows > 8 * h ? rows - 8 * h : 0;

            if (p.flags & EK_LINEAR_OUT_F32)
                store_some((float *)p.out + at + 8 * h, some, v + 8 * h);
            else
                store_some((T *)p.out + at + 8 * h, some, v + 8 * h);
        }
    }
    // A norm between two products: the first leaves rows times its weights, and sums of squares of
    // 16 columns each; the second's sums are scaled by the factor of each row.
    __device__ __forceinline__ void leave_scaled(const ek_cu_product &p, uint32_t token, uint32_t n,
                                                 const float (&v)[16]) const
    {
        T *to = (T *)p.next_x + token * p.ldo + first;
        float scaled[16], sum = begin_norm<T>(v, norm, scaled);

        if (token < Wide<NT>::tokens)
            p.next_squares[first / 16 * Wide<NT>::tokens + token] = token < n ? sum : 0.0f;
        if (token >= n)
            return;
        store_some(to, 8, scaled);
        store_some(to + 8, 8, scaled + 8);
    }
};
template <typename T, int NT> struct WideFinish<T, EK_CU_GATE_UP, NT> {
    uint32_t first, units;

    __device__ __forceinline__ void begin(const ek_cu_product &, uint32_t row, uint32_t all,
                                          uint32_t, uint32_t)
    {
        first = row / 2;
        units = first < all ? 8 : 0;
    }
    __device__ __forceinline__ void read(const ek_cu_product &, uint32_t, uint32_t)
    {
    }
    __device__ __forceinline__ void run(const ek_cu_product &p, const float (&v)[16],
                                        uint32_t token, uint32_t n) const
    {
        float inner[8];

#pragma unroll
        for (int i = 0; i < 8; i++)
            inner[i] = silu(round_to<T>(v[i])) * round_to<T>(v[i + 8]);
        if (token < n)
            store_some((T *)p.out + token * p.ldo + first, units, inner);
    }
};
template <typename T, int NT> struct WideFinish<T, EK_CU_QKV, NT> {
    Finish<T, EK_CU_QKV> f[8];
    uint32_t m, row[2];

    __device__ __forceinline__ void begin(const ek_cu_product &p, uint32_t at, uint32_t,
                                          uint32_t token, uint32_t n)
    {
        Unit<EK_CU_QKV>::find(p, at / 2, &m, row);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            uint32_t pair[2] = {row[0] + i, row[1] + i};

            f[i].prepare(p, min(token, n - 1), 0, m, pair);
        }
    }
    __device__ __forceinline__ void read(const ek_cu_product &, uint32_t, uint32_t)
    {
    }
    __device__ __forceinline__ void run(const ek_cu_product &p, const float (&v)[16],
                                        uint32_t token, uint32_t n) const
    {
        float turned[2][8];
        T *to = f[0].place(p, token, m);

#pragma unroll
        for (int i = 0; i < 8; i++)
            f[i].turn(v[i], v[i + 8], &turned[0][i], &turned[1][i]);
        if (token >= n || to == NULL)
            return;
        store_some(to + row[0], 8, turned[0]);
        store_some(to + row[1], 8, turned[1]);
    }
};

// ---- the warps that multiply
template <typename T, int NT>
__device__ __forceinline__ void wide_multiply(const wide_plan &s, const WideSpan &span,
                                              uint32_t base, uint32_t warp)
{
    WideSums<NT> sums = {s, base, span.rank, warp, 0};
    WideSlot w = {s.stages, 0, 0}, x = {Wide<NT>::xstages, 0, 0};
    bool leader = threadIdx.x % 32 == 0;

    for (uint32_t tile = blockIdx.y; tile < s.tiles; tile += gridDim.y, sums.round++) {
        uint32_t w_before = 0, x_before = 0;
        float c[NT][4];

        for (uint32_t step = span.first; step < span.end; step++, w.next(), x.next()) {
            barrier_wait(AT(w_full) + 8 * w.at, w.parity);
            barrier_wait(AT(x_full) + 8 * x.at, x.parity);
            multiply<T, NT>(c, base + w.at * WIDE_WBYTES, base + s.tokens + x.at * Wide<NT>::xbytes,
                            step > span.first);
            wgmma_wait_but<1>(c);
            if (step > span.first && leader) {
                barrier_arrive(AT(w_empty) + 8 * w_before);
                barrier_arrive(AT(x_empty) + 8 * x_before);
            }
            w_before = w.at, x_before = x.at;
        }
        wgmma_wait(c);
        if (leader) {
            barrier_arrive(AT(w_empty) + 8 * w_before);
            barrier_arrive(AT(x_empty) + 8 * x_before);
        }
        sums.give(c);
    }
}

// ---- the warps that finish what the others summed
// The factors of all tokens, of a norm that was begun ahead: each warp sums some of their squares,
// a lane those of 4 tokens.
template <int NT>
__device__ __forceinline__ void find_factors(const ek_cu_product &p, wide_barriers *own)
{
    const uint32_t each = 2 * NT, many = 32 / each; // lanes of 16 columns; columns of a warp
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 - WIDE_WARPS, n = p.cols / 16;
    float4 all = make_float4(0, 0, 0, 0);

    for (uint32_t i = many * warp + lane / each; i < n; i += many * WIDE_WARPS * WIDE_AHEAD) {
        float4 v[WIDE_AHEAD];

#pragma unroll
        for (uint32_t k = 0; k < WIDE_AHEAD; k++) {
            uint32_t at = i + many * WIDE_WARPS * k;

            v[k] = make_float4(0, 0, 0, 0);
            if (at < n)
                v[k] = ((const float4 *)p.squares)[at * each + lane % each];
        }
#pragma unroll
        for (uint32_t k = 0; k < WIDE_AHEAD; k++)
            all.x += v[k].x, all.y += v[k].y, all.z += v[k].z, all.w += v[k].w;
    }
#pragma unroll
    for (uint32_t d = each; d < 32; d *= 2) {
        all.x += __shfl_xor_sync(0xffffffffu, all.x, d);
        all.y += __shfl_xor_sync(0xffffffffu, all.y, d);
        all.z += __shfl_xor_sync(0xffffffffu, all.z, d);
        all.w += __shfl_xor_sync(0xffffffffu, all.w, d);
    }
    if (lane < each)
        *reinterpret_cast<float4 *>(&own->squares[warp][4 * lane]) = all;
    asm volatile("bar.sync 1, %0;" ::"n"(32 * WIDE_WARPS) : "memory");
}
__device__ __forceinline__ float factor_of(const ek_cu_product &p, const wide_barriers *own,
                                           uint32_t token)
{
    float sum = 0;

#pragma unroll
    for (int i = 0; i < WIDE_WARPS; i++)
        sum += own->squares[i][token];
    return rsqrtf(sum / (float)p.cols + p.eps);
}

template <typename T, int MODE, int NT>
__device__ __forceinline__ void wide_finish(const ek_cu_product &p, const wide_plan &s,
                                            const WideSpan &span, uint32_t base, uint32_t warp,
                                            uint32_t n, wide_barriers *own)
{
    WideSums<NT> sums = {s, base, span.rank, warp - WIDE_WARPS, 0};
    uint32_t lane = threadIdx.x % 32, row = blockIdx.y * WIDE_ROWS + 16 * sums.warp;
    bool mine = sums.owner() == span.rank;
    float factor[Wide<NT>::each];
    WideFinish<T, MODE, NT> f[Wide<NT>::each];

#pragma unroll
    for (int i = 0; i < Wide<NT>::each && mine; i++)
        f[i].begin(p, row, s.units, lane + 32 * i, n);
    pdl_wait();
#pragma unroll
    for (int i = 0; i < Wide<NT>::each && mine; i++)
        f[i].read(p, lane + 32 * i, n);
    if (p.squares)
        find_factors<NT>(p, own);
    if (!mine)
        return;
#pragma unroll
    for (int i = 0; i < Wide<NT>::each; i++)
        factor[i] = p.squares ? factor_of(p, own, lane % Wide<NT>::tokens + 32 * i) : 1.0f;
    for (uint32_t tile = blockIdx.y;; sums.round++) {
        sums.await();
#pragma unroll
        for (int i = 0; i < Wide<NT>::each; i++) {
            float v[16];

            sums.take(v, lane % Wide<NT>::tokens + 32 * i);
#pragma unroll
            for (int r = 0; r < 16; r++)
                v[r] *= factor[i];
            f[i].run(p, v, lane + 32 * i, n);
        }
        if (tile + s.buffers * gridDim.y < s.tiles)
            sums.leave();
        tile += gridDim.y;
        if (tile >= s.tiles)
            return;
#pragma unroll
        for (int i = 0; i < Wide<NT>::each; i++) {
            f[i].begin(p, tile * WIDE_ROWS + 16 * sums.warp, s.units, lane + 32 * i, n);
            f[i].read(p, lane + 32 * i, n);
        }
    }
}

template <typename T, int MODE, int NT>
__device__ __forceinline__ void wide_consume(const ek_cu_product &p, const wide_plan &s,
                                             const WideSpan &span, uint32_t base, uint32_t warp,
                                             uint32_t n, wide_barriers *own)
{
    if (s.blocks > 1)
        cluster_wait(); // the others' barriers are there
    if (warp < WIDE_WARPS)
        wide_multiply<T, NT>(s, span, base, warp);
    else
        wide_finish<T, MODE, NT>(p, s, span, base, warp, n, own);
}

__device__ __forceinline__ void init_barriers(uint32_t base, const wide_plan &s)
{
    for (uint32_t i = 0; i < WIDE_STAGES; i++) {
        barrier_init(AT(w_full) + 8 * i, 1);
        barrier_init(AT(w_empty) + 8 * i, WIDE_WARPS);
    }
    for (uint32_t i = 0; i < WIDE_XSTAGES; i++) {
        barrier_init(AT(x_full) + 8 * i, 1);
        barrier_init(AT(x_empty) + 8 * i, WIDE_WARPS);
    }
    for (uint32_t i = 0; i < WIDE_BUFFERS * WIDE_WARPS; i++) {
        barrier_init(AT(sums) + 8 * i, 1);
        barrier_init(AT(room) + 8 * i, 1);
    }
    barriers_ready();
}
#endif

// Blocks along x: the parts of a tile's columns, a cluster; along y: clusters.
template <typename T, int MODE, int NT>
__global__ void __launch_bounds__(WIDE_THREADS, 1)
    wide_k(const __grid_constant__ wide_maps maps, const __grid_constant__ ek_cu_product p,
           const __grid_constant__ wide_plan s, uint32_t n)
{
#ifdef EK_WGMMA
    extern __shared__ __align__(1024) uint8_t raw[];
    // Of all lanes alike, and known to be, so that operands' addresses need not go the long way to
    // the registers of a warp between one product and the next.
    uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    uint32_t base = shared_at(raw);
    WideSpan span(p, s);

    if (threadIdx.x == 64 * WIDE_WARPS)
        init_barriers(base, s);
    __syncthreads();
    if (s.blocks > 1)
        cluster_arrive();
    if (warp < 2 * WIDE_WARPS) {
        wide_consume<T, MODE, NT>(p, s, span, base, warp, n, (wide_barriers *)(raw + s.barriers));
    } else {
        if (threadIdx.x == 64 * WIDE_WARPS)
            copy_weights<MODE>(maps, p, s, span, base);
        else if (threadIdx.x == 64 * WIDE_WARPS + 32)
            copy_tokens<NT>(maps, s, span, base, n);
        __syncwarp();
        if (s.blocks > 1)
            cluster_wait();
    }
#endif
}

// ---- launch
// Where things lie; as many steps of weights as there is room for.
template <int NT> static void lay_out(struct wide_plan *s)
{
    uint32_t taken;

    s->sums_step = div_up(WIDE_WARPS, s->blocks) * s->blocks * Wide<NT>::part;
    s->buffers = s->tiles > s->clusters ? WIDE_BUFFERS : 1;
    taken = s->buffers * s->sums_step + (uint32_t)sizeof(struct wide_barriers) +
            Wide<NT>::xstages * Wide<NT>::xbytes;
    s->stages = (WIDE_SHARED - taken) / WIDE_WBYTES;
    if (s->stages > WIDE_STAGES)
        s->stages = WIDE_STAGES;
    s->tokens = s->stages * WIDE_WBYTES;
    s->sums = s->tokens + Wide<NT>::xstages * Wide<NT>::xbytes;
    s->barriers = s->sums + s->buffers * s->sums_step;
    s->shared = s->barriers + (uint32_t)sizeof(struct wide_barriers);
}

// Clusters that run at once, and the steps that the busiest of their blocks takes.
static uint32_t clusters_of(const struct ek_cu_queue *q, uint32_t blocks)
{
    return q->n_sm > blocks ? q->n_sm / blocks : 1;
}
static uint32_t busiest(const struct ek_cu_queue *q, uint32_t tiles, uint32_t steps,
                        uint32_t blocks)
{
    return div_up(tiles, clusters_of(q, blocks)) * div_up(steps, blocks);
}

// Two for a tile where tiles are fewer than multiprocessors, or many are left without one in the
// last round; three of long rows. More take as long: sums have further to go, and a few
// multiprocessors with that much under way read as fast as all. Queries, keys and values leave the
// others to attention, whose contexts come meanwhile.
static uint32_t blocks_of(const struct ek_cu_queue *q, enum ek_cu_mode mode, uint32_t tiles,
                          uint32_t steps)
{
    if (steps == 1 || (mode == EK_CU_QKV && tiles < q->n_sm))
        return 1;
    if (tiles < q->n_sm)
        return steps >= WIDE_LONG && 3 * tiles <= q->n_sm ? 3 : 2;
    return 16 * busiest(q, tiles, steps, 2) <= 15 * busiest(q, tiles, steps, 1) ? 2 : 1;
}

template <int NT>
static void cut(const struct ek_cu_queue *q, enum ek_cu_mode mode, const struct ek_cu_product *p,
                struct wide_plan *s)
{
    uint32_t rows = 0, most;

    for (uint32_t i = 0; i < p->n_mats; i++)
        rows += p->mat[i].rows;
    s->tiles = div_up(rows, WIDE_ROWS);
    s->blocks = blocks_of(q, mode, s->tiles, div_up(p->cols, WIDE_K));
    most = clusters_of(q, s->blocks);
    s->clusters = s->tiles < most ? s->tiles : most;
    lay_out<NT>(s);
}

// Rows that belong together, 8 and 8 in turn: the second lie `apart` bytes behind the first.
static cudaError_t pairs_map(CUtensorMap *map, const struct ek_cu_product *p, uint32_t m,
                             size_t apart)
{
    const size_t dims[5] = {EK_CHUNK, 8, 2, p->mat[m].rows / 8, p->cols / EK_CHUNK};
    const size_t strides[4] = {p->row_bytes, apart, 8 * p->row_bytes, EK_CHUNK * 2};
    const uint32_t box[5] = {EK_CHUNK, 8, 2, WIDE_ROWS / 16, WIDE_CHUNKS};

    return tensor_map(map, p->mat[m].data, 5, dims, strides, box);
}

static cudaError_t weights_map(CUtensorMap *map, const struct ek_cu_product *p, uint32_t m,
                               enum ek_cu_mode mode)
{
    if (mode == EK_CU_GATE_UP)
        return pairs_map(map, p, 0, (size_t)(p->mat[1].data - p->mat[0].data));
    if (mode == EK_CU_QKV)
        return pairs_map(map, p, m, p->kv.head_dim / 2 * p->row_bytes);
    return matrix_map(map, p->mat[m].data, p->mat[m].rows, p->cols, p->row_bytes, WIDE_ROWS,
                      WIDE_CHUNKS);
}

template <typename T, int MODE, int NT>
static cudaError_t wide_launch(const struct ek_cu_queue *q, uint32_t n,
                               const struct ek_cu_product *p)
{
    struct wide_plan s = {};
    struct wide_maps maps;
    cudaError_t e = matrix_map(&maps.x, p->x, n, p->cols, p->ldx * sizeof(T), n, 1);

    for (uint32_t i = 0; i < p->n_mats && e == cudaSuccess; i++) {
        s.units += p->mat[i].rows / Unit<MODE>::rows;
        e = weights_map(&maps.w[i], p, i, (enum ek_cu_mode)MODE);
    }
    if (e != cudaSuccess)
        return e;
    cut<NT>(q, (enum ek_cu_mode)MODE, p, &s);
    return launch_cluster(q, wide_k<T, MODE, NT>, dim3(s.blocks, s.clusters), WIDE_THREADS,
                          s.shared, s.blocks, maps, *p, s, n);
}

template <typename T, int MODE>
static cudaError_t wide_tokens(const struct ek_cu_queue *q, uint32_t n,
                               const struct ek_cu_product *p)
{
    return n <= 8    ? wide_launch<T, MODE, 1>(q, n, p)
           : n <= 16 ? wide_launch<T, MODE, 2>(q, n, p)
           : n <= 32 ? wide_launch<T, MODE, 4>(q, n, p)
                     : wide_launch<T, MODE, 8>(q, n, p);
}

template <typename T>
static cudaError_t wide_mode(const struct ek_cu_queue *q, enum ek_cu_mode mode, uint32_t n,
                             const struct ek_cu_product *p)
{
    switch (mode) {
    case EK_CU_LINEAR:
        return wide_tokens<T, EK_CU_LINEAR>(q, n, p);
    case EK_CU_GATE_UP:
        return wide_tokens<T, EK_CU_GATE_UP>(q, n, p);
    case EK_CU_QKV:
        return wide_tokens<T, EK_CU_QKV>(q, n, p);
    }
    return cudaErrorNotSupported;
}

extern "C" cudaError_t ek_cu_product_wide(const struct ek_cu_queue *q, enum ek_dtype act,
                                          enum ek_cu_mode mode, uint32_t n,
                                          const struct ek_cu_product *p)
{
    return act == EK_BF16  ? wide_mode<bf16>(q, mode, n, p)
           : act == EK_F16 ? wide_mode<f16>(q, mode, n, p)
                           : cudaErrorNotSupported;
}

// Tiles are of one matrix, and rows are whole chunks.
extern "C" bool ek_cu_wide_takes(enum ek_cu_mode mode, const struct ek_cu_product *p)
{
    const struct ek_rope *r = &p->rope;

    if (p->cols % EK_CHUNK || p->row_bytes % 16 || p->row_bytes < 2 * (size_t)p->cols)
        return false;
    for (uint32_t i = 0; i < p->n_mats; i++)
        if ((uintptr_t)p->mat[i].data % 16)
            return false;
    if (mode == EK_CU_GATE_UP)
        return p->mat[0].rows % 8 == 0 && p->mat[1].data > p->mat[0].data;
    for (uint32_t i = 0; i + 1 < p->n_mats; i++)
        if (p->mat[i].rows % WIDE_ROWS)
            return false;
    return mode != EK_CU_QKV ||
           (!r->interleaved && r->dim == p->kv.head_dim &&
            p->mat[p->n_mats - 1].rows % WIDE_ROWS == 0 && r->dim % WIDE_ROWS == 0);
}
