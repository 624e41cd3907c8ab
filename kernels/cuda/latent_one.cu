// SPDX-License-Identifier: Apache-2.0
// Latent attention of one new token a sequence in one launch, where the context is short: latent
// and rotated key into the cache, the query into the latent space, attention, and its output out of
// that space. What bounds the separate kernels is the way from one to the next, not what they read.
// A cluster takes one head of a sequence, each of its blocks an eighth of the context, of the
// columns of W_uk and of the rows of W_uv; they meet twice, through each other's shared memory, and
// join the parts in order. Weights are on their way before the kernel ahead has finished.
#include <cooperative_groups.h>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/deepseek.h"
#include "kernels/cuda/split.cuh"
#include "kernels/cuda/turn.cuh"

#define LO_THREADS 256
#define LO_WARPS   (LO_THREADS / 32)
#define LO_STEP    64 // tokens at a time
#define LO_LORA    EK_CU_LATENT_VALUE
#define LO_KEY     EK_CU_LATENT_DIM
#define LO_ROPE    (LO_KEY - LO_LORA)
#define LO_LD      (LO_KEY + 8)                // of cached tokens: ldmatrix meets no bank twice
#define LO_COLS    (LO_LORA / EK_CU_CLUSTER)   // columns of W_uk a block
#define LO_PIECES  (LO_KEY / 8)                // 16-byte pieces of a cached token
#define LO_TILES   (LO_LORA / 16 / LO_WARPS)   // of 16 value dimensions a warp
#define LO_SPLIT   (LO_WARPS / (LO_STEP / 16)) // warps that share out a tile's dimensions

template <typename T> struct OneShared {
    T k[LO_STEP][LO_LD];
    T uk[EK_CU_LATENT_ONE_HEAD][LO_COLS];
    T uv[EK_CU_LATENT_ONE_HEAD / EK_CU_CLUSTER][LO_LORA];
    T fresh[LO_KEY]; // the new token's latent and key
    T q[LO_KEY];
    union {
        float part[LO_WARPS][LO_COLS]; // of the query
        T p[LO_WARPS][LO_STEP];        // each warp's copy of the probabilities
        float mixed[LO_LORA];          // attention's output, all parts joined
    };
    float o[LO_LORA], score[LO_SPLIT][LO_STEP], nope[EK_CU_LATENT_ONE_HEAD], squares[LO_WARPS];
    float2 total; // the block's maximum and weight
};

struct OneRange { // what a block works on
    uint32_t rank, head, seq, begin, end, len;
    int32_t slot; // where the new token goes, or -1
    bool fresh;   // its place in the context is the last of the block's
};

template <typename T>
__device__ __forceinline__ void copy_weights(const ek_cu_latent &a, const OneRange &r,
                                             OneShared<T> &sh)
{
    const ek_latent &l = a.shape;
    const T *w = (const T *)a.kv_b + (size_t)r.head * (l.nope + l.v) * LO_LORA;
    const T *uv = w + (l.nope + r.rank * (l.v / EK_CU_CLUSTER)) * LO_LORA;
    const uint32_t pieces = LO_COLS / 8;

    for (uint32_t i = threadIdx.x; i < l.nope * pieces; i += LO_THREADS)
        copy16(shared_at(&sh.uk[i / pieces][i % pieces * 8]),
               w + i / pieces * LO_LORA + r.rank * LO_COLS + i % pieces * 8);
    for (uint32_t i = threadIdx.x; i < l.v / EK_CU_CLUSTER * (LO_LORA / 8); i += LO_THREADS)
        copy16(shared_at(&sh.uv[0][0] + 8 * i), uv + 8 * i);
    copy_commit();
}

// Where the thread's cached token of a step is: four threads a token.
__device__ __forceinline__ size_t place_of(const ek_cu_attention &a, const OneRange &r,
                                           uint32_t first)
{
    uint32_t token = first + threadIdx.x / 4;

    return first < r.end ? slot_of(a, r.seq, token < r.end ? token : r.begin) : 0;
}

// Zeros behind the end. The new token's row is left out.
template <typename T>
__device__ __forceinline__ void copy_step(const ek_cu_attention &a, const OneRange &r,
                                          uint32_t first, size_t place, OneShared<T> &sh)
{
    uint32_t row = threadIdx.x / 4, token = first + row;
    bool valid = token < r.end;

    if (first < r.end && !(r.fresh && token == r.end - 1)) {
        const T *from = (const T *)a.kv.k + place * LO_KEY;
#pragma unroll
        for (uint32_t i = 0; i < LO_PIECES / 4; i++) {
            uint32_t at = 8 * (threadIdx.x % 4 + 4 * i);
            copy16(shared_at(&sh.k[row][at]), from + at, valid);
        }
    }
    copy_commit();
}

// What the kernel ahead made, in registers until all of it is on its way.
template <typename T> struct OneToken {
    static const int EACH = LO_LORA / LO_THREADS; // of the latent, a thread
    float latent[EACH], weight[EACH], nope;
    float2 turn;

    // What does not wait for the kernel ahead.
    __device__ __forceinline__ void prepare(const ek_cu_latent &a, const OneRange &r)
    {
        if (threadIdx.x >= LO_THREADS - LO_ROPE / 2)
            turn =
                turn_of(a.rope, a.positions, a.n, r.seq, threadIdx.x - (LO_THREADS - LO_ROPE / 2));
#pragma unroll
        for (int i = 0; i < EACH; i++)
            weight[i] = a.norm[threadIdx.x + LO_THREADS * i];
    }
    __device__ __forceinline__ void load(const ek_cu_latent &a, const OneRange &r)
    {
        const ek_latent &l = a.shape;

#pragma unroll
        for (int i = 0; i < EACH; i++)
            latent[i] = to_f(((const T *)a.ckv + r.seq * a.ld_ckv)[threadIdx.x + LO_THREADS * i]);
        if (threadIdx.x < l.nope)
            nope = to_f(((const T *)a.x + r.seq * a.ldx)[r.head * (l.nope + l.rope) + threadIdx.x]);
    }
    // The rotated parts, by one warp; the others' numbers for all to read.
    __device__ __forceinline__ void publish(const ek_cu_latent &a, const OneRange &r,
                                            OneShared<T> &sh)
    {
        const ek_latent &l = a.shape;
        const T *q = (const T *)a.x + r.seq * a.ldx + r.head * (l.nope + l.rope) + l.nope;
        float sum = 0;

        if (threadIdx.x < l.nope)
            sh.nope[threadIdx.x] = nope;
#pragma unroll
        for (int i = 0; i < EACH; i++)
            sum = fmaf(latent[i], latent[i], sum);
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0)
            sh.squares[threadIdx.x / 32] = sum;
        if (threadIdx.x >= LO_THREADS - LO_ROPE / 2) {
            uint32_t i = threadIdx.x - (LO_THREADS - LO_ROPE / 2);
            rotate_pair(a.rope, i, turn, q, sh.q + LO_LORA);
            rotate_pair(a.rope, i, turn, (const T *)a.ckv + r.seq * a.ld_ckv + LO_LORA,
                        sh.fresh + LO_LORA);
        }
    }
    // The latent, when all squares are there.
    __device__ __forceinline__ void normalise(const ek_cu_latent &a, OneShared<T> &sh) const
    {
        float sum = 0;

#pragma unroll
        for (int i = 0; i < LO_WARPS; i++)
            sum += sh.squares[i];
        float f = rsqrtf(sum / (float)LO_LORA + a.eps);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            sh.fresh[threadIdx.x + LO_THREADS * i] =
                from_f<T>(round_to<T>(latent[i] * f) * weight[i]);
    }
};

// The new token's row: into the cache, by one block of all; and to its place among the block's,
// unless the context's last token is another, which is in the cache then.
template <typename T>
__device__ __forceinline__ void put_fresh(const ek_cu_latent_step &a, const OneRange &r,
                                          uint32_t first, OneShared<T> &sh)
{
    const uint4 *from = reinterpret_cast<const uint4 *>(sh.fresh);
    T *cache = (T *)a.attention.kv.k;

    if (threadIdx.x >= LO_PIECES)
        return;
    if (first == r.begin && r.head == 0 && r.rank == 0 && r.slot >= 0)
        reinterpret_cast<uint4 *>(cache + (size_t)r.slot * LO_KEY)[threadIdx.x] = from[threadIdx.x];
    if (r.fresh && r.end - 1 - first < LO_STEP) {
        size_t slot = slot_of(a.attention, r.seq, r.end - 1);

        if (slot != (size_t)r.slot)
            from = reinterpret_cast<const uint4 *>(cache + slot * LO_KEY);
        reinterpret_cast<uint4 *>(&sh.k[r.end - 1 - first][0])[threadIdx.x] = from[threadIdx.x];
    }
}

// The block's columns of the query in the latent space, to all blocks of the cluster.
template <typename T>
__device__ __forceinline__ void sum_query(const ek_cu_latent &a, OneShared<T> &sh)
{
    uint32_t piece = threadIdx.x % 8, group = threadIdx.x / 8;
    float sum[8] = {}, w[8];

#pragma unroll 4
    for (uint32_t d = group; d < a.shape.nope; d += LO_THREADS / 8) {
        load8(&sh.uk[d][8 * piece], w);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum[j] = fmaf(sh.nope[d], w[j], sum[j]);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], 8);
        sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], 16);
    }
    if (threadIdx.x % 32 < 8)
        store8(&sh.part[threadIdx.x / 32][8 * piece], sum);
}
template <typename T>
__device__ __forceinline__ void send_query(const OneRange &r, OneShared<T> &sh)
{
    auto cluster = cooperative_groups::this_cluster();
    uint32_t col = 2 * (threadIdx.x % 32);
    float lo = 0, hi = 0;

#pragma unroll
    for (int i = 0; i < LO_WARPS; i++) {
        float2 v = *reinterpret_cast<const float2 *>(&sh.part[i][col]);
        lo += v.x, hi += v.y;
    }
    T *to = cluster.map_shared_rank(sh.q, threadIdx.x / 32) + r.rank * LO_COLS + col;
    *reinterpret_cast<uint32_t *>(to) = pack2<T>(lo, hi);
}

// A block's part of attention, by the tensor cores: the cache is the operand of 16 rows, and one of
// 8 columns is used. A warp has 64 of the values' dimensions.
template <typename T> struct OnePart {
    float o[LO_TILES][4], peak, weight;
    uint32_t lane, warp;

    __device__ __forceinline__ void start()
    {
        lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        peak = -INFINITY, weight = 0;
#pragma unroll
        for (int i = 0; i < LO_TILES; i++)
            o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0;
    }
    // Elements k + 2t, 2t + 1 of a vector, to the lanes of the first column.
    __device__ __forceinline__ uint32_t column(const T *v, uint32_t k) const
    {
        return lane < 4 ? *reinterpret_cast<const uint32_t *>(v + k + 2 * lane) : 0;
    }
    // Of a tile of 16 tokens, half of the dimensions.
    __device__ __forceinline__ void scores(OneShared<T> &sh) const
    {
        const int STEPS = LO_KEY / 16 / LO_SPLIT;
        uint32_t tile = warp % (LO_STEP / 16), half = warp / (LO_STEP / 16);
        float even[4] = {}, odd[4] = {};

#pragma unroll 6
        for (int i = 0; i < STEPS; i++) {
            uint32_t d = 16 * (half * STEPS + i), w[4];

            load_tiles(w, shared_at(&sh.k[16 * tile + lane % 16][d + lane / 16 * 8]));
            mma<T>(i % 2 ? odd : even, w, column(sh.q, d), column(sh.q, d + 8));
        }
        if (lane % 4 == 0) {
            sh.score[half][16 * tile + lane / 4] = even[0] + odd[0];
            sh.score[half][16 * tile + lane / 4 + 8] = even[2] + odd[2];
        }
    }
    // Every warp for itself, in the same order.
    __device__ __forceinline__ void softmax(uint32_t n, float scale, OneShared<T> &sh)
    {
        float s[LO_STEP / 32], m = peak, sum = 0;

#pragma unroll
        for (int i = 0; i < LO_STEP / 32; i++) {
            uint32_t at = lane + 32 * i;

            s[i] = at < n ? (sh.score[0][at] + sh.score[1][at]) * scale : -INFINITY;
            m = fmaxf(m, s[i]);
        }
        m = warp_max(m);
#pragma unroll
        for (int i = 0; i < LO_STEP / 32; i++) {
            float p = power2(s[i] - m);

            sh.p[warp][lane + 32 * i] = from_f<T>(p);
            sum += p;
        }
        float shrink = power2(peak - m);
        weight = weight * shrink + warp_sum(sum);
        peak = m;
#pragma unroll
        for (int i = 0; i < LO_TILES; i++)
            o[i][0] *= shrink, o[i][2] *= shrink;
        __syncwarp();
    }
    __device__ __forceinline__ void values(const OneShared<T> &sh)
    {
#pragma unroll
        for (int j = 0; j < LO_STEP / 16; j++) {
            uint32_t lo = column(sh.p[warp], 16 * j), hi = column(sh.p[warp], 16 * j + 8), w[4];
            uint32_t token = 16 * j + lane / 16 * 8 + lane % 8;
#pragma unroll
            for (int i = 0; i < LO_TILES; i++) {
                uint32_t d = 16 * (LO_TILES * warp + i) + lane / 8 % 2 * 8;

                load_tiles_turned(w, shared_at(&sh.k[token][d]));
                mma<T>(o[i], w, lo, hi);
            }
        }
    }
    __device__ __forceinline__ void publish(OneShared<T> &sh) const
    {
        if (lane % 4 == 0)
#pragma unroll
            for (int i = 0; i < LO_TILES; i++) {
                float *to = sh.o + 16 * (LO_TILES * warp + i) + lane / 4;
                to[0] = o[i][0], to[8] = o[i][2];
            }
        if (threadIdx.x == 0)
            sh.total = make_float2(peak, weight);
    }
};

// All parts, in order; of no context zeros.
template <typename T> __device__ __forceinline__ void join(const OneRange &r, OneShared<T> &sh)
{
    auto cluster = cooperative_groups::this_cluster();
    uint32_t lane = threadIdx.x % 32;
    float2 total = make_float2(-INFINITY, 0), v[EK_CU_CLUSTER];
    float sum[2] = {};

    if (lane < EK_CU_CLUSTER)
        total = *cluster.map_shared_rank(&sh.total, lane);
#pragma unroll
    for (int i = 0; i < EK_CU_CLUSTER; i++)
        v[i] =
            *reinterpret_cast<const float2 *>(cluster.map_shared_rank(sh.o, i) + 2 * threadIdx.x);
    float f = power2(total.x - warp_max(total.x)), all = warp_sum(f * total.y);
#pragma unroll
    for (int i = 0; i < EK_CU_CLUSTER; i++) {
        float g = __shfl_sync(0xffffffffu, f, i);

        sum[0] = fmaf(g, v[i].x, sum[0]);
        sum[1] = fmaf(g, v[i].y, sum[1]);
    }
    sh.mixed[2 * threadIdx.x] = r.len ? round_to<T>(sum[0] / all) : 0.0f;
    sh.mixed[2 * threadIdx.x + 1] = r.len ? round_to<T>(sum[1] / all) : 0.0f;
}

// The block's rows of W_uv, a warp each.
template <typename T>
__device__ __forceinline__ void make_values(const ek_cu_latent &a, const OneRange &r,
                                            const OneShared<T> &sh)
{
    uint32_t lane = threadIdx.x % 32, rows = a.shape.v / EK_CU_CLUSTER;

#pragma unroll 2
    for (uint32_t row = threadIdx.x / 32; row < rows; row += LO_WARPS) {
        float sum = 0, w[8], f[8];

#pragma unroll
        for (int i = 0; i < LO_LORA / 256; i++) {
            load8(&sh.uv[row][8 * (lane + 32 * i)], w);
            load8(sh.mixed + 8 * (lane + 32 * i), f);
#pragma unroll
            for (int j = 0; j < 8; j++)
                sum = fmaf(f[j], w[j], sum);
        }
        sum = warp_sum(sum);
        if (lane == 0)
            ((T *)a.out)[r.seq * a.ldo + r.head * a.shape.v + r.rank * rows + row] = from_f<T>(sum);
    }
}

// Lengths, slots and blocks were uploaded before the step's first kernel.
__device__ __forceinline__ OneRange range_of(const ek_cu_latent_step &a)
{
    OneRange r = {blockIdx.x, blockIdx.y, blockIdx.z};

    r.len = (uint32_t)max(a.attention.batch.kv_len[r.seq], 0);
    r.slot = a.l.slots[r.seq];
    uint32_t each = (r.len + 8 * EK_CU_CLUSTER - 1) / (8 * EK_CU_CLUSTER) * 8;
    r.begin = min(r.rank * each, r.len);
    r.end = min(r.begin + each, r.len);
    r.fresh = r.begin < r.end && r.end == r.len && r.slot >= 0;
    return r;
}

template <typename T>
__global__ void __launch_bounds__(LO_THREADS, 2) latent_one_k(const ek_cu_latent_step a)
{
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) uint4 raw[];
    OneShared<T> &sh = *reinterpret_cast<OneShared<T> *>(raw);
    auto cluster = cooperative_groups::this_cluster();
    OneRange r = range_of(a);
    OneToken<T> token;
    OnePart<T> part;

    cluster.barrier_arrive(); // all have begun: their memory may be written
    copy_weights(a.l, r, sh);
    token.prepare(a.l, r);
    size_t place = place_of(a.attention, r, r.begin);
    pdl_wait();
    token.load(a.l, r);
    copy_step(a.attention, r, r.begin, place, sh);
    token.publish(a.l, r, sh);
    copy_wait<1>(); // the weights
    __syncthreads();
    pdl_next(); // not before: this block's token would wait behind the next kernel's weights
    token.normalise(a.l, sh);
    sum_query(a.l, sh);
    __syncthreads();
    cluster.barrier_wait();
    send_query(r, sh);
    cluster.sync();
    part.start();
    for (uint32_t first = r.begin; first == r.begin || first < r.end; first += LO_STEP) {
        put_fresh(a, r, first, sh);
        copy_wait<0>();
        __syncthreads();
        if (first < r.end) {
            part.scores(sh);
            __syncthreads();
            part.softmax(r.end - first, a.attention.scale * LOG2E, sh);
            part.values(sh);
        }
        if (first + LO_STEP < r.end) {
            __syncthreads();
            copy_step(a.attention, r, first + LO_STEP, place_of(a.attention, r, first + LO_STEP),
                      sh);
        }
    }
    part.publish(sh);
    cluster.sync();
    join(r, sh);
    cluster.barrier_arrive(); // no block leaves while others read from it
    __syncthreads();
    make_values(a.l, r, sh);
    cluster.barrier_wait();
#endif
}

template <typename T>
static cudaError_t one_launch(const struct ek_cu_queue *q, const struct ek_cu_latent_step *a)
{
    dim3 grid(EK_CU_CLUSTER, a->attention.heads, a->attention.batch.n_seqs);
    cudaError_t r = split_memory(latent_one_k<T>, SPLIT_COPIES);

    return r == cudaSuccess ? launch_cluster(q, latent_one_k<T>, grid, LO_THREADS,
                                             sizeof(OneShared<T>), EK_CU_CLUSTER, *a)
                            : r;
}

extern "C" bool ek_cu_latent_one_fits(const struct ek_cu_queue *q)
{
    return q->pdl && q->shared >= sizeof(OneShared<bf16>);
}

extern "C" cudaError_t ek_cu_latent_one(const struct ek_cu_queue *q, enum ek_dtype act,
                                        const struct ek_cu_latent_step *a)
{
    return act == EK_BF16  ? one_launch<bf16>(q, a)
           : act == EK_F16 ? one_launch<f16>(q, a)
                           : cudaErrorNotSupported;
}
