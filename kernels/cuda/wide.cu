// SPDX-License-Identifier: Apache-2.0
// Products with 17 to 32 tokens on Hopper: bound by reading the weights, which stream through
// shared memory to the tensor cores, as much in flight as a multiprocessor has room for. The
// weights are the tall side of the products: 64 rows of them times 32 tokens. One thread asks for
// boxes of them, another for the tokens that go with them; one warpgroup multiplies, and one
// finishes what it summed. Few tiles of rows are shared by the blocks of clusters, a part of the
// columns each: what a warp sums of 16 rows goes to the block that finishes them, added in the
// order of the columns.
#include "kernels/cuda/tma.cuh"
#include "kernels/cuda/units.cuh"
#include "kernels/cuda/wide.h"

#define WIDE_CHUNKS  2                        // of 64 columns a step
#define WIDE_K       (EK_CHUNK * WIDE_CHUNKS) // columns a step
#define WIDE_ROWS    64                       // of a tile
#define WIDE_WBYTES  (WIDE_ROWS * WIDE_K * 2)
#define NT           (EK_CU_WIDE_TOKENS / 8) // tiles of tokens
#define WIDE_XBYTES  (EK_CU_WIDE_TOKENS * WIDE_K * 2)
#define WIDE_PART    (16 * EK_CU_WIDE_TOKENS * 4) // bytes of a warp's sums
#define WIDE_STAGES  12                           // steps of weights under way, at most,
#define WIDE_XSTAGES 5                            // and of tokens
#define WIDE_SHARED  (225 * 1024) // a multiprocessor's: no block shares one with another
#define WIDE_WARPS   4            // that multiply, 16 rows each; as many finish what they summed
#define WIDE_THREADS (2 * 32 * WIDE_WARPS + 64) // and two copy
#define WIDE_BUFFERS 2                          // of sums

struct wide_barriers {
    uint64_t w_full[WIDE_STAGES], w_empty[WIDE_STAGES];   // steps of weights
    uint64_t x_full[WIDE_XSTAGES], x_empty[WIDE_XSTAGES]; // and of tokens
    // of the rows of each warp:
    uint64_t sums[WIDE_BUFFERS][WIDE_WARPS]; // all blocks' have come, where they are finished
    uint64_t room[WIDE_BUFFERS][WIDE_WARPS]; // for this block's, where they are finished
    float squares[WIDE_WARPS][EK_CU_WIDE_TOKENS], factor[EK_CU_WIDE_TOKENS]; // of a norm
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

__device__ __forceinline__ void copy_tokens(const wide_maps &maps, const wide_plan &s,
                                            const WideSpan &span, uint32_t base)
{
    WideSlot x = {WIDE_XSTAGES, 0, 1};

    fetch_map(&maps.x);
    pdl_wait();
    for (uint32_t tile = blockIdx.y; tile < s.tiles; tile += gridDim.y)
        for (uint32_t step = span.first; step < span.end; step++, x.next()) {
            uint32_t full = AT(x_full) + 8 * x.at;

            barrier_wait(AT(x_empty) + 8 * x.at, x.parity);
            barrier_expect(full, WIDE_XBYTES);
            copy_box(base + s.tokens + x.at * WIDE_XBYTES, &maps.x, 0, step * WIDE_CHUNKS, full,
                     false);
        }
}

// ---- one step
template <typename T>
__device__ __forceinline__ void multiply(float (&c)[NT][4], uint32_t w, uint32_t x, bool add)
{
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < WIDE_K / 16; k++)
        wgmma_shared(c, operand_at(w + k / 4 * (WIDE_ROWS * 128) + k % 4 * 32, 0),
                     operand_at(x + k / 4 * (NT * 1024) + k % 4 * 32, 0), add || k > 0, T());
    wgmma_commit();
}

// ---- sums of the 16 rows of a warp, on their way to the block that finishes them
struct WideSums {
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
    __device__ __forceinline__ uint32_t slot(uint32_t from) const
    {
        return base + s.sums + round % s.buffers * s.sums_step +
               (place() * s.blocks + from) * WIDE_PART + threadIdx.x % 32 * 16;
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
        if (round >= s.buffers)
            barrier_wait(room(), (round / s.buffers - 1) % 2);
        if (s.blocks > 1) {
            uint32_t far = at_block(slot(rank), owner()), arrived = at_block(come(), owner());
#pragma unroll
            for (int j = 0; j < NT; j++)
                send(far + j * 512, c[j], arrived);
            return;
        }
#pragma unroll
        for (int j = 0; j < NT; j++)
            store_shared4(slot(0) + j * 512, c[j]);
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            barrier_arrive(come());
    }
    // The sums of all blocks, in their order. last: no more will be given after the buffers at
    // hand.
    __device__ __forceinline__ void take(float (&c)[NT][4], bool last) const
    {
        uint32_t lane = threadIdx.x % 32;

        if (s.blocks > 1 && lane == 0)
            barrier_expect(come(), s.blocks * WIDE_PART);
        barrier_wait(come(), round / s.buffers % 2);
#pragma unroll
        for (int j = 0; j < NT; j++)
            c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
        for (uint32_t from = 0; from < s.blocks; from++)
#pragma unroll
            for (int j = 0; j < NT; j++) {
                float v[4];
                load_shared4(slot(from) + j * 512, v);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    c[j][i] += v[i];
            }
        __syncwarp();
        if (last)
            return;
        if (s.blocks > 1 && lane < s.blocks)
            barrier_arrive_far(at_block(room(), lane));
        if (s.blocks == 1 && lane == 0)
            barrier_arrive(room());
    }
};

// What a lane makes of its sums: of token 8 j + 2 t + i % 2 the rows g and g + 8, one unit or two.
template <typename T, int MODE> struct WideResults {
    static const int R = Unit<MODE>::rows, N = 4 / R; // units of a tile of tokens
    Finish<T, MODE> f[NT][N];
    uint32_t unit[2 / R], m[2 / R], row[2 / R][R];

    __device__ __forceinline__ static uint32_t token(int j, int i)
    {
        return 8 * j + 2 * (threadIdx.x % 4) + i % 2;
    }
    __device__ __forceinline__ void prepare(const ek_cu_product &p, uint32_t first, uint32_t units,
                                            uint32_t n)
    {
#pragma unroll
        for (int u = 0; u < 2 / R; u++) {
            unit[u] = first + threadIdx.x % 32 / 4 + 8 * u;
            if (unit[u] < units)
                Unit<MODE>::find(p, unit[u], &m[u], row[u]);
        }
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int i = 0; i < N; i++)
                if (token(j, i) < n && unit[i / 2] < units)
                    f[j][i].prepare(p, token(j, i), unit[i / 2], m[i / 2], row[i / 2]);
    }
    __device__ __forceinline__ void run(const ek_cu_product &p, const float (&c)[NT][4],
                                        uint32_t units, uint32_t n) const
    {
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int i = 0; i < N; i++) {
                float sum[R];
#pragma unroll
                for (int r = 0; r < R; r++)
                    sum[r] = c[j][i % 2 + 2 * (R == 1 ? i / 2 : r)];
                if (token(j, i) < n && unit[i / 2] < units)
                    f[j][i].run(p, token(j, i), unit[i / 2], m[i / 2], row[i / 2], sum);
            }
    }
};

// ---- the warps that multiply
template <typename T>
__device__ __forceinline__ void wide_multiply(const wide_plan &s, const WideSpan &span,
                                              uint32_t base)
{
    WideSums sums = {s, base, span.rank, threadIdx.x / 32, 0};
    WideSlot w = {s.stages, 0, 0}, x = {WIDE_XSTAGES, 0, 0};
    bool leader = threadIdx.x % 32 == 0;

    for (uint32_t tile = blockIdx.y; tile < s.tiles; tile += gridDim.y, sums.round++) {
        uint32_t w_before = 0, x_before = 0;
        float c[NT][4];

        for (uint32_t step = span.first; step < span.end; step++, w.next(), x.next()) {
            barrier_wait(AT(w_full) + 8 * w.at, w.parity);
            barrier_wait(AT(x_full) + 8 * x.at, x.parity);
            multiply<T>(c, base + w.at * WIDE_WBYTES, base + s.tokens + x.at * WIDE_XBYTES,
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

// ---- a norm between two products: the first leaves rows times its weights, and sums of squares of
// 16 columns each; the second's sums are scaled by the factor of each row.
__device__ __forceinline__ void find_factors(const ek_cu_product &p, wide_barriers *own)
{
    uint32_t token = threadIdx.x % 32, warp = threadIdx.x / 32 - WIDE_WARPS;
    float sum = 0;

#pragma unroll 16
    for (uint32_t i = warp; i < p.cols / 16; i += WIDE_WARPS)
        sum += p.squares[i * EK_CU_WIDE_TOKENS + token];
    own->squares[warp][token] = sum;
    asm volatile("bar.sync 1, %0;" ::"n"(32 * WIDE_WARPS) : "memory");
    sum = 0;
    for (int i = 0; i < WIDE_WARPS; i++)
        sum += own->squares[i][token];
    if (warp == 0)
        own->factor[token] = rsqrtf(sum / (float)p.cols + p.eps);
    asm volatile("bar.sync 1, %0;" ::"n"(32 * WIDE_WARPS) : "memory");
}

__device__ __forceinline__ void scale(float (&c)[NT][4], const float *factor)
{
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            c[j][i] *= factor[8 * j + 2 * (threadIdx.x % 4) + i % 2];
}

// Rows g and g + 8 of the warp's; c: sums, add: what was added to them.
template <typename T, typename F>
__device__ __forceinline__ void leave_scaled(const ek_cu_product &p, const float (&c)[NT][4],
                                             const F &f, uint32_t first, uint32_t n)
{
    uint32_t row = first + threadIdx.x % 32 / 4;
    float weight[2] = {p.next_norm[row], p.next_norm[row + 8]};

#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            uint32_t token = 8 * j + 2 * (threadIdx.x % 4) + e;
            float square = 0;

#pragma unroll
            for (int h = 0; h < 2 && token < n; h++) {
                float v = round_to<T>(c[j][e + 2 * h] + f[j][e + 2 * h].add);

                ((T *)p.next_x)[(size_t)token * p.ldo + row + 8 * h] = from_f<T>(v * weight[h]);
                square += v * v;
            }
            for (int d = 4; d < 32; d *= 2)
                square += __shfl_xor_sync(0xffffffffu, square, d);
            if (threadIdx.x % 32 < 4)
                p.next_squares[first / 16 * EK_CU_WIDE_TOKENS + token] = square;
        }
}

// ---- the warps that finish what the others summed
template <typename T, int MODE>
__device__ __forceinline__ void wide_finish(const ek_cu_product &p, const wide_plan &s,
                                            const WideSpan &span, uint32_t base, uint32_t n,
                                            wide_barriers *own)
{
    WideSums sums = {s, base, span.rank, threadIdx.x / 32 - WIDE_WARPS, 0};

    if (p.squares)
        find_factors(p, own);
    if (sums.owner() != span.rank)
        return;
    for (uint32_t tile = blockIdx.y; tile < s.tiles; tile += gridDim.y, sums.round++) {
        uint32_t row = tile * WIDE_ROWS + 16 * sums.warp;
        WideResults<T, MODE> results;
        float c[NT][4];

        results.prepare(p, row / Unit<MODE>::rows, s.units, n);
        sums.take(c, tile + s.buffers * gridDim.y >= s.tiles);
        if (p.squares)
            scale(c, own->factor);
        results.run(p, c, s.units, n);
        if constexpr (MODE == EK_CU_LINEAR)
            if (p.next_norm && row < s.units)
                leave_scaled<T>(p, c, results.f, row, n);
    }
}

template <typename T, int MODE>
__device__ __forceinline__ void wide_consume(const ek_cu_product &p, const wide_plan &s,
                                             const WideSpan &span, uint32_t base, uint32_t n,
                                             wide_barriers *own)
{
    if (s.blocks > 1)
        cluster_wait(); // the others' barriers are there
    pdl_wait();
    if (threadIdx.x < 32 * WIDE_WARPS)
        wide_multiply<T>(s, span, base);
    else
        wide_finish<T, MODE>(p, s, span, base, n, own);
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
template <typename T, int MODE>
__global__ void __launch_bounds__(WIDE_THREADS, 1)
    wide_k(const __grid_constant__ wide_maps maps, const __grid_constant__ ek_cu_product p,
           const __grid_constant__ wide_plan s, uint32_t n)
{
#ifdef EK_WGMMA
    extern __shared__ __align__(1024) uint8_t raw[];
    uint32_t base = shared_at(raw);
    WideSpan span(p, s);

    if (threadIdx.x == 64 * WIDE_WARPS)
        init_barriers(base, s);
    __syncthreads();
    if (s.blocks > 1)
        cluster_arrive();
    if (threadIdx.x < 64 * WIDE_WARPS) {
        wide_consume<T, MODE>(p, s, span, base, n, (wide_barriers *)(raw + s.barriers));
    } else {
        if (threadIdx.x == 64 * WIDE_WARPS)
            copy_weights<MODE>(maps, p, s, span, base);
        else if (threadIdx.x == 64 * WIDE_WARPS + 32)
            copy_tokens(maps, s, span, base);
        __syncwarp();
        if (s.blocks > 1)
            cluster_wait();
    }
#endif
}

// ---- launch
// Where things lie; as many steps of weights as there is room for.
static void lay_out(struct wide_plan *s)
{
    uint32_t taken;

    s->sums_step = div_up(WIDE_WARPS, s->blocks) * s->blocks * WIDE_PART;
    s->buffers = s->tiles > s->clusters ? WIDE_BUFFERS : 1;
    taken = s->buffers * s->sums_step + (uint32_t)sizeof(struct wide_barriers) +
            WIDE_XSTAGES * WIDE_XBYTES;
    s->stages = (WIDE_SHARED - taken) / WIDE_WBYTES;
    if (s->stages > WIDE_STAGES)
        s->stages = WIDE_STAGES;
    s->tokens = s->stages * WIDE_WBYTES;
    s->sums = s->tokens + WIDE_XSTAGES * WIDE_XBYTES;
    s->barriers = s->sums + s->buffers * s->sums_step;
    s->shared = s->barriers + (uint32_t)sizeof(struct wide_barriers);
}

// Tiles for every multiprocessor, or two for a tile. More for one take as long: sums have further
// to go, and a few multiprocessors with that much under way read as fast as all.
static void cut(const struct ek_cu_queue *q, const struct ek_cu_product *p, struct wide_plan *s)
{
    uint32_t rows = 0, most;

    for (uint32_t i = 0; i < p->n_mats; i++)
        rows += p->mat[i].rows;
    s->tiles = div_up(rows, WIDE_ROWS);
    s->blocks = s->tiles < q->n_sm && p->cols > WIDE_K ? 2 : 1;
    most = q->n_sm > s->blocks ? q->n_sm / s->blocks : 1;
    s->clusters = s->tiles < most ? s->tiles : most;
    lay_out(s);
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

template <typename T, int MODE>
static cudaError_t wide_launch(const struct ek_cu_queue *q, uint32_t n,
                               const struct ek_cu_product *p)
{
    struct wide_plan s = {};
    struct wide_maps maps;
    cudaError_t e =
        matrix_map(&maps.x, p->x, n, p->cols, p->ldx * sizeof(T), EK_CU_WIDE_TOKENS, WIDE_CHUNKS);

    for (uint32_t i = 0; i < p->n_mats && e == cudaSuccess; i++) {
        s.units += p->mat[i].rows / Unit<MODE>::rows;
        e = weights_map(&maps.w[i], p, i, (enum ek_cu_mode)MODE);
    }
    if (e != cudaSuccess)
        return e;
    cut(q, p, &s);
    return launch_cluster(q, wide_k<T, MODE>, dim3(s.blocks, s.clusters), WIDE_THREADS, s.shared,
                          s.blocks, maps, *p, s, n);
}

template <typename T>
static cudaError_t wide_mode(const struct ek_cu_queue *q, enum ek_cu_mode mode, uint32_t n,
                             const struct ek_cu_product *p)
{
    switch (mode) {
    case EK_CU_LINEAR:
        return wide_launch<T, EK_CU_LINEAR>(q, n, p);
    case EK_CU_GATE_UP:
        return wide_launch<T, EK_CU_GATE_UP>(q, n, p);
    case EK_CU_QKV:
        return wide_launch<T, EK_CU_QKV>(q, n, p);
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
