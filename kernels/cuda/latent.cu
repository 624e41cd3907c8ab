// SPDX-License-Identifier: Apache-2.0
// Latent attention around the attention itself: latents and rotated keys into the cache, queries
// into the latent space and attention's output out of it. With few tokens the products with W_uk
// and W_uv are bound by reading them once; with many they are batched products of cuBLASLt.
#include "kernels/cuda/cache.cuh"
#include "kernels/cuda/deepseek.h"
#include "kernels/cuda/turn.cuh"
#include "kernels/cuda/weights.cuh"

#define LAT_THREADS 256
#define LAT_COLS    64   // columns of W_uk a block
#define LAT_MAX     512  // rotated pairs of a head
#define LAT_ROW     1024 // elements of a row that is scaled

// ---- append: one block a token
struct append_args {
    size_t ld;
    const float *weight;
    float eps;
    struct ek_rope rope;
    struct ek_kv kv;
    const int32_t *positions, *slots;
    uint32_t n;
};

template <typename T, typename C>
__device__ __forceinline__ void append_row(const T *ckv, const append_args &a, uint32_t token,
                                           C *to)
{
    __shared__ float tmp[32];
    uint32_t lora = a.kv.v_dim;
    const T *x = ckv + token * a.ld;
    float sum = 0;

    for (uint32_t i = threadIdx.x; i < lora; i += LAT_THREADS)
        sum += to_f(x[i]) * to_f(x[i]);
    float r = rsqrtf(block_sum(sum, tmp) / (float)lora + a.eps);
    for (uint32_t i = threadIdx.x; i < lora; i += LAT_THREADS)
        to[i] = from_f<C>(round_to<T>(to_f(x[i]) * r) * a.weight[i]);
    for (uint32_t i = threadIdx.x; i < a.rope.dim / 2; i += LAT_THREADS)
        rotate_pair(a.rope, i, turn_of(a.rope, a.positions, a.n, token, i), x + lora, to + lora);
}

template <typename T, typename C>
__device__ __forceinline__ void append(const T *ckv, const append_args &a, uint32_t token)
{
    if (a.slots[token] < 0)
        return;
    size_t slot = (size_t)a.slots[token];
    C *to = (C *)a.kv.k + slot * a.kv.head_dim;
    if constexpr (SCALED<C>) {
        __shared__ float row[LAT_ROW];

        append_row(ckv, a, token, row);
        __syncthreads();
        if (threadIdx.x < 32)
            store_scaled_row(row, a.kv.head_dim, to, a.kv.k_scale + slot);
    } else {
        append_row(ckv, a, token, to);
    }
}

template <typename T, typename C>
__global__ void __launch_bounds__(LAT_THREADS) append_k(const T *ckv, const append_args a)
{
    pdl_next();
    pdl_wait();
    append<T, C>(ckv, a, blockIdx.x);
}

template <typename T>
static cudaError_t append_launch(const struct ek_cu_queue *q, const T *ckv, const append_args &a)
{
    if (a.kv.dtype == EK_F8_E4M3 && a.kv.head_dim > LAT_ROW)
        return cudaErrorNotSupported;
    EK_DISPATCH_CACHE(a.kv.dtype, C, return launch(q, append_k<T, C>, a.n, LAT_THREADS, 0, ckv, a));
}

extern "C" cudaError_t ek_cu_latent_append(const struct ek_cu_queue *q, enum ek_dtype act,
                                           const void *ckv, size_t ld, const float *weight,
                                           float eps, const struct ek_rope *rope,
                                           const struct ek_batch *batch, const struct ek_kv *kv)
{
    append_args a = {ld, weight, eps, *rope, *kv, batch->positions, batch->slots, batch->n_tokens};

    EK_DISPATCH_ACT(act, T, return append_launch(q, (const T *)ckv, a));
}

// ---- queries
// The rotated part of a head, all tokens.
template <typename T>
__device__ __forceinline__ void rotate_head(const ek_cu_latent &a, uint32_t head)
{
    const ek_latent &l = a.shape;

    for (uint32_t i = threadIdx.x; i < a.n * (l.rope / 2); i += blockDim.x) {
        uint32_t token = i / (l.rope / 2), f = i % (l.rope / 2);
        const T *from = (const T *)a.x + token * a.ldx + head * (l.nope + l.rope) + l.nope;
        T *to = (T *)a.out + token * a.ldo + head * (l.lora + l.rope) + l.lora;

        rotate_pair(a.rope, f, turn_of(a.rope, a.positions, a.n, token, f), from, to);
    }
}

template <typename T> __global__ void __launch_bounds__(LAT_THREADS) rotate_k(const ek_cu_latent a)
{
    __shared__ float2 turn[LAT_MAX];
    const ek_latent &l = a.shape;
    uint32_t token = blockIdx.x, half = l.rope / 2;

    pdl_next();
    pdl_wait();
    for (uint32_t i = threadIdx.x; i < half; i += LAT_THREADS)
        turn[i] = turn_of(a.rope, a.positions, a.n, token, i);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < l.heads * half; i += LAT_THREADS) {
        uint32_t head = i / half, f = i % half;
        const T *from = (const T *)a.x + token * a.ldx + head * (l.nope + l.rope) + l.nope;
        T *to = (T *)a.out + token * a.ldo + head * (l.lora + l.rope) + l.lora;

        rotate_pair(a.rope, f, turn[f], from, to);
    }
}

extern "C" cudaError_t ek_cu_latent_rotate(const struct ek_cu_queue *q, enum ek_dtype act,
                                           const struct ek_cu_latent *a)
{
    if (a->shape.rope / 2 > LAT_MAX)
        return cudaErrorNotSupported;
    EK_DISPATCH_ACT(act, T, return launch(q, rotate_k<T>, a->n, LAT_THREADS, 0, *a));
}

// A block takes 64 columns of one head's W_uk; 8 lanes read a row of them, 32 rows at a time. The
// last block of a head rotates.
template <typename WT> __device__ constexpr int weight_of()
{
    return std::is_same<WT, float>::value  ? EK_F32
           : std::is_same<WT, bf16>::value ? EK_BF16
                                           : EK_F16;
}

template <typename WT, typename T, int NT>
__global__ void __launch_bounds__(LAT_THREADS) query_k(const ek_cu_latent a)
{
    using Row = Weight<weight_of<WT>()>;
    const int UNROLL = 4;
    __shared__ float parts[LAT_THREADS / 32][NT][LAT_COLS];
    const ek_latent &l = a.shape;
    uint32_t head = blockIdx.y, chunk = threadIdx.x % 8, group = threadIdx.x / 8;
    uint32_t at = blockIdx.x * (LAT_COLS / 8) + chunk;
    const uint8_t *w = a.kv_b + (size_t)head * (l.nope + l.v) * l.lora * sizeof(WT);
    typename Row::Raw raw[UNROLL];
    float sum[NT][8] = {};
    auto load = [&](uint32_t d) {
#pragma unroll
        for (int i = 0; i < UNROLL; i++)
            raw[i] = d + 32 * i < l.nope && at < l.lora / 8
                         ? Row::load(w + (size_t)(d + 32 * i) * l.lora * sizeof(WT), at)
                         : typename Row::Raw{};
    };

    if (blockIdx.x == gridDim.x - 1) {
        pdl_next();
        pdl_wait();
        if (head < l.heads)
            rotate_head<T>(a, head);
        return;
    }
    if (head == l.heads) {
        append_args own = {a.ld_ckv, a.norm, a.eps, a.rope, a.kv, a.positions, a.slots, a.n};

        pdl_next();
        pdl_wait();
        for (uint32_t token = blockIdx.x; token < a.n; token += gridDim.x - 1)
            append<T, T>((const T *)a.ckv, own, token);
        return;
    }
    load(group);
    pdl_next();
    pdl_wait();
    const T *x = (const T *)a.x + head * (l.nope + l.rope);
    for (uint32_t d = group; d < l.nope; d += 32 * UNROLL) {
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            float v[8];

            Row::decode(raw[i], at, v);
#pragma unroll
            for (int t = 0; t < NT; t++) {
                bool here = d + 32 * i < l.nope && t < a.n;
                float f = here ? to_f(x[t * a.ldx + d + 32 * i]) : 0.0f;
#pragma unroll
                for (int j = 0; j < 8; j++)
                    sum[t][j] = fmaf(f, v[j], sum[t][j]);
            }
        }
        load(d + 32 * UNROLL);
    }
#pragma unroll
    for (int t = 0; t < NT; t++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float v = sum[t][j];

            v += __shfl_xor_sync(0xffffffffu, v, 8);
            v += __shfl_xor_sync(0xffffffffu, v, 16);
            if (threadIdx.x % 32 < 8)
                parts[threadIdx.x / 32][t][8 * chunk + j] = v;
        }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < a.n * LAT_COLS; i += LAT_THREADS) {
        uint32_t token = i / LAT_COLS, col = i % LAT_COLS, to = blockIdx.x * LAT_COLS + col;
        float v = 0;

        if (to >= l.lora)
            continue;
#pragma unroll
        for (int k = 0; k < LAT_THREADS / 32; k++)
            v += parts[k][token][col];
        ((T *)a.out)[token * a.ldo + head * (l.lora + l.rope) + to] = from_f<T>(v);
    }
}

template <typename WT, typename T>
static cudaError_t query_launch(const struct ek_cu_queue *q, const ek_cu_latent *a)
{
    dim3 grid(div_up(a->shape.lora, LAT_COLS) + 1, a->shape.heads + (a->ckv ? 1 : 0));

    return launch(q, a->n == 1 ? query_k<WT, T, 1> : query_k<WT, T, EK_CU_LATENT_FEW>, grid,
                  LAT_THREADS, 0, *a);
}

// ---- values: a warp takes two rows of one head's W_uv
template <typename WT, typename T>
__global__ void __launch_bounds__(LAT_THREADS) value_k(const ek_cu_latent a)
{
    using Row = Weight<weight_of<WT>()>;
    const int UNROLL = 2;
    const ek_latent &l = a.shape;
    uint32_t lane = threadIdx.x % 32, chunks = l.lora / 8;
    uint32_t row = 2 * (blockIdx.x * (LAT_THREADS / 32) + threadIdx.x / 32);
    uint32_t head = row / l.v, r = row % l.v;
    const uint8_t *w = a.kv_b + ((size_t)head * (l.nope + l.v) + l.nope + r) * l.lora * sizeof(WT);
    typename Row::Raw raw[2][UNROLL];
    float sum[EK_CU_LATENT_FEW][2] = {};
    auto load = [&](uint32_t c) {
#pragma unroll
        for (int k = 0; k < 2; k++)
#pragma unroll
            for (int i = 0; i < UNROLL; i++)
                raw[k][i] = c + 32 * i < chunks
                                ? Row::load(w + (size_t)k * l.lora * sizeof(WT), c + 32 * i)
                                : typename Row::Raw{};
    };

    pdl_next();
    if (row >= l.heads * l.v)
        return;
    load(lane);
    pdl_wait();
    const T *x = (const T *)a.x + head * l.lora;
    for (uint32_t c = lane; c < chunks; c += 32 * UNROLL) {
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            uint32_t at = c + 32 * i < chunks ? c + 32 * i : 0; // zeros times what is there
            float v[2][8], f[8];

            Row::decode(raw[0][i], at, v[0]);
            Row::decode(raw[1][i], at, v[1]);
#pragma unroll
            for (int t = 0; t < EK_CU_LATENT_FEW; t++) {
                if (t >= a.n)
                    break;
                load8(x + t * a.ldx + 8 * at, f);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    sum[t][0] = fmaf(f[j], v[0][j], sum[t][0]);
                    sum[t][1] = fmaf(f[j], v[1][j], sum[t][1]);
                }
            }
        }
        load(c + 32 * UNROLL);
    }
#pragma unroll
    for (int t = 0; t < EK_CU_LATENT_FEW; t++) {
        if (t >= a.n)
            break;
        float lo = warp_sum(sum[t][0]), hi = warp_sum(sum[t][1]);
        T *to = (T *)a.out + t * a.ldo + row;
        if (lane < 2)
            to[lane] = from_f<T>(lane ? hi : lo);
    }
}

template <typename WT, typename T>
static cudaError_t value_launch(const struct ek_cu_queue *q, const ek_cu_latent *a)
{
    uint32_t rows = a->shape.heads * a->shape.v;

    return launch(q, value_k<WT, T>, div_up(rows, 2 * (LAT_THREADS / 32)), LAT_THREADS, 0, *a);
}

template <typename T>
static cudaError_t query_any(const struct ek_cu_queue *q, enum ek_dtype w, const ek_cu_latent *a)
{
    EK_DISPATCH_ACT(w, WT, return query_launch<WT, T>(q, a));
}

template <typename T>
static cudaError_t value_any(const struct ek_cu_queue *q, enum ek_dtype w, const ek_cu_latent *a)
{
    EK_DISPATCH_ACT(w, WT, return value_launch<WT, T>(q, a));
}

extern "C" cudaError_t ek_cu_latent_query(const struct ek_cu_queue *q, enum ek_dtype w,
                                          enum ek_dtype act, const struct ek_cu_latent *a)
{
    EK_DISPATCH_ACT(act, T, return query_any<T>(q, w, a));
}

extern "C" cudaError_t ek_cu_latent_value(const struct ek_cu_queue *q, enum ek_dtype w,
                                          enum ek_dtype act, const struct ek_cu_latent *a)
{
    EK_DISPATCH_ACT(act, T, return value_any<T>(q, w, a));
}
