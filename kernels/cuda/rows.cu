// SPDX-License-Identifier: Apache-2.0
// Operations on rows and elements: norms, activations, gathers, conversions, argmax. All of them
// are bound by memory: one pass over the row where it fits, 8 elements at a time where rows allow.
#include "kernels/cuda/begun.cuh"
#include "kernels/cuda/wide.h"

#define ROW_THREADS   256
#define BEGIN_THREADS 64 // 16 columns each

// ---- norms
template <typename T>
__global__ void rms_norm_k(const T *x, size_t ldx, const float *weight, float eps, uint32_t dim,
                           T *out, size_t ldo)
{
    __shared__ float tmp[32];
    const T *row = x + blockIdx.x * ldx;
    T *to = out + blockIdx.x * ldo;
    float sum = 0;

    pdl_next();
    pdl_wait();
    for (uint32_t i = threadIdx.x; i < dim; i += ROW_THREADS) {
        float v = to_f(row[i]);
        sum += v * v;
    }
    float r = rsqrtf(block_sum(sum, tmp) / (float)dim + eps);
    for (uint32_t i = threadIdx.x; i < dim; i += ROW_THREADS)
        to[i] = from_f<T>(round_to<T>(to_f(row[i]) * r) * weight[i]);
}

// The same for rows of 8-element pieces.
template <typename T>
__global__ void rms_norm_wide(const T *x, size_t ldx, const float *weight, float eps, uint32_t dim,
                              T *out, size_t ldo)
{
    __shared__ float tmp[32];
    const T *row = x + blockIdx.x * ldx;
    T *to = out + blockIdx.x * ldo;
    float sum = 0, v[8];

    pdl_next();
    pdl_wait();
    for (uint32_t i = 8 * threadIdx.x; i < dim; i += 8 * ROW_THREADS) {
        load8(row + i, v);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum += v[j] * v[j];
    }
    float r = rsqrtf(block_sum(sum, tmp) / (float)dim + eps);
    for (uint32_t i = 8 * threadIdx.x; i < dim; i += 8 * ROW_THREADS) {
        float w[8];
        load8(row + i, v);
        load8(weight + i, w);
#pragma unroll
        for (int j = 0; j < 8; j++)
            v[j] = round_to<T>(v[j] * r) * w[j];
        store8(to + i, v);
    }
}

static bool wide(size_t element, const void *x, size_t ldx, const void *out, size_t ldo,
                 uint32_t dim)
{
    uintptr_t all = (uintptr_t)x | (uintptr_t)out | ldx * element | ldo * element;

    return dim % 8 == 0 && all % 16 == 0;
}

extern "C" cudaError_t ek_cu_rms_norm(const struct ek_cu_queue *q, enum ek_dtype act, const void *x,
                                      size_t ldx, const float *weight, float eps, uint32_t n,
                                      uint32_t dim, void *out, size_t ldo)
{
    EK_DISPATCH_ACT(act, T, {
        bool w = wide(sizeof(T), x, ldx, out, ldo, dim) && (uintptr_t)weight % 16 == 0;
        return launch(q, w ? rms_norm_wide<T> : rms_norm_k<T>, n, ROW_THREADS, 0, (const T *)x, ldx,
                      weight, eps, dim, (T *)out, ldo);
    });
}

// 16 columns a thread; of rows past the end the sums alone.
static __global__ void begin_norm_k(const bf16 *x, const float *weight, uint32_t n, uint32_t dim,
                                    bf16 *out, float *squares)
{
    uint32_t row = blockIdx.y, first = 16 * (blockIdx.x * BEGIN_THREADS + threadIdx.x);
    float *sum = squares + first / 16 * gridDim.y + row;
    size_t at = row * (size_t)dim + first;
    float v[16], w[16], scaled[16];

    pdl_next();
    if (first >= dim)
        return;
    load_some(weight + first, 8, w);
    load_some(weight + first + 8, 8, w + 8);
    pdl_wait();
    if (row >= n) {
        *sum = 0;
        return;
    }
    load8(x + at, v);
    load8(x + at + 8, v + 8);
    *sum = begin_norm<bf16>(v, w, scaled);
    store8(out + at, scaled);
    store8(out + at + 8, scaled + 8);
}

extern "C" cudaError_t ek_cu_begin_norm(const struct ek_cu_queue *q, const void *x,
                                        const float *weight, uint32_t n, uint32_t dim, void *out,
                                        float *squares)
{
    dim3 grid(div_up(dim / 16, BEGIN_THREADS), EK_CU_WIDE_PITCH(n));

    return launch(q, begin_norm_k, grid, BEGIN_THREADS, 0, (const bf16 *)x, weight, n, dim,
                  (bf16 *)out, squares);
}

template <typename T>
__global__ void layer_norm_k(const T *x, const float *weight, const float *bias, float eps,
                             uint32_t dim, T *out)
{
    __shared__ float tmp[32];
    const T *row = x + (size_t)blockIdx.x * dim;
    T *to = out + (size_t)blockIdx.x * dim;
    float sum = 0, squares = 0;

    pdl_next();
    pdl_wait();
    for (uint32_t i = threadIdx.x; i < dim; i += ROW_THREADS)
        sum += to_f(row[i]);
    float mean = block_sum(sum, tmp) / (float)dim;
    for (uint32_t i = threadIdx.x; i < dim; i += ROW_THREADS) {
        float v = to_f(row[i]) - mean;
        squares += v * v;
    }
    float r = rsqrtf(block_sum(squares, tmp) / (float)dim + eps);
    for (uint32_t i = threadIdx.x; i < dim; i += ROW_THREADS) {
        float v = (to_f(row[i]) - mean) * r * weight[i];
        to[i] = from_f<T>(bias ? v + bias[i] : v);
    }
}

// The same for rows of 8-element pieces.
template <typename T>
__global__ void layer_norm_wide(const T *x, const float *weight, const float *bias, float eps,
                                uint32_t dim, T *out)
{
    __shared__ float tmp[32];
    const T *row = x + (size_t)blockIdx.x * dim;
    T *to = out + (size_t)blockIdx.x * dim;
    float sum = 0, squares = 0, v[8];

    pdl_next();
    pdl_wait();
    for (uint32_t i = 8 * threadIdx.x; i < dim; i += 8 * ROW_THREADS) {
        load8(row + i, v);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum += v[j];
    }
    float mean = block_sum(sum, tmp) / (float)dim;
    for (uint32_t i = 8 * threadIdx.x; i < dim; i += 8 * ROW_THREADS) {
        load8(row + i, v);
#pragma unroll
        for (int j = 0; j < 8; j++)
            squares += (v[j] - mean) * (v[j] - mean);
    }
    float r = rsqrtf(block_sum(squares, tmp) / (float)dim + eps);
    for (uint32_t i = 8 * threadIdx.x; i < dim; i += 8 * ROW_THREADS) {
        float w[8], b[8] = {};
        load8(row + i, v);
        load8(weight + i, w);
        if (bias)
            load8(bias + i, b);
#pragma unroll
        for (int j = 0; j < 8; j++)
            v[j] = (v[j] - mean) * r * w[j] + b[j];
        store8(to + i, v);
    }
}

extern "C" cudaError_t ek_cu_layer_norm(const struct ek_cu_queue *q, enum ek_dtype act,
                                        const void *x, const float *weight, const float *bias,
                                        float eps, uint32_t n, uint32_t dim, void *out)
{
    EK_DISPATCH_ACT(act, T, {
        bool w = wide(sizeof(T), x, dim, out, dim, dim) &&
                 ((uintptr_t)weight | (uintptr_t)bias) % 16 == 0;
        return launch(q, w ? layer_norm_wide<T> : layer_norm_k<T>, n, ROW_THREADS, 0, (const T *)x,
                      weight, bias, eps, dim, (T *)out);
    });
}

// ---- activations
template <typename T>
__global__ void swiglu_k(const T *x, size_t ldx, uint32_t dim, T *out, size_t ldo)
{
    const T *row = x + blockIdx.y * ldx;

    pdl_next();
    pdl_wait();
    for (uint32_t i = blockIdx.x * ROW_THREADS + threadIdx.x; i < dim; i += gridDim.x * ROW_THREADS)
        out[blockIdx.y * ldo + i] = from_f<T>(silu(to_f(row[i])) * to_f(row[dim + i]));
}

// The same in pieces of 8 elements, or of 4 where rows are aligned to no more.
template <typename T, int N>
__global__ void swiglu_wide(const T *x, size_t ldx, uint32_t dim, T *out, size_t ldo)
{
    const T *row = x + blockIdx.y * ldx;
    uint32_t i = N * (blockIdx.x * ROW_THREADS + threadIdx.x);
    float g[N], u[N];

    pdl_next();
    pdl_wait();
    if (i >= dim)
        return;
    load_piece(row + i, g);
    load_piece(row + dim + i, u);
#pragma unroll
    for (int j = 0; j < N; j++)
        g[j] = silu(g[j]) * u[j];
    store_piece(out + blockIdx.y * ldo + i, g);
}

template <typename T>
static cudaError_t swiglu_rows(const struct ek_cu_queue *q, const T *x, size_t ldx, uint32_t n,
                               uint32_t dim, T *out, size_t ldo)
{
    uintptr_t all =
        (uintptr_t)x | (uintptr_t)out | ldx * sizeof(T) | ldo * sizeof(T) | dim * sizeof(T);
    uint32_t piece = dim % 8 == 0 && all % 16 == 0                ? 8
                     : dim % 4 == 0 && all % (4 * sizeof(T)) == 0 ? 4
                                                                  : 1;
    dim3 grid(div_up(dim, piece * ROW_THREADS), n);

    return launch(q,
                  piece == 8   ? swiglu_wide<T, 8>
                  : piece == 4 ? swiglu_wide<T, 4>
                               : swiglu_k<T>,
                  grid, ROW_THREADS, 0, x, ldx, dim, out, ldo);
}

extern "C" cudaError_t ek_cu_swiglu(const struct ek_cu_queue *q, enum ek_dtype act, const void *x,
                                    size_t ldx, uint32_t n, uint32_t dim, void *out, size_t ldo)
{
    EK_DISPATCH_ACT(act, T, {
        for (uint32_t at = 0; at < n; at += 65535) { // a grid's second side is no longer
            cudaError_t e =
                swiglu_rows(q, (const T *)x + at * ldx, ldx, n - at < 65535 ? n - at : 65535, dim,
                            (T *)out + at * ldo, ldo);
            if (e != cudaSuccess)
                return e;
        }
        return cudaSuccess;
    });
}

template <typename T>
__global__ void gelu_k(T *x, size_t ldx, uint32_t n, uint32_t dim, bool tanh_form)
{
    pdl_next();
    pdl_wait();
    for (size_t i = blockIdx.x * (size_t)ROW_THREADS + threadIdx.x; i < (size_t)n * dim;
         i += gridDim.x * (size_t)ROW_THREADS) {
        T *at = x + i / dim * ldx + i % dim;
        float v = to_f(*at);
        float inner = tanh_form ? tanhf(0.7978845608f * (v + 0.044715f * v * v * v))
                                : erff(v * 0.7071067812f);
        *at = from_f<T>(0.5f * v * (1.0f + inner));
    }
}

extern "C" cudaError_t ek_cu_gelu(const struct ek_cu_queue *q, enum ek_dtype act, void *x,
                                  size_t ldx, uint32_t n, uint32_t dim, bool tanh_form)
{
    EK_DISPATCH_ACT(act, T,
                    return launch(q, gelu_k<T>, 8 * q->n_sm, ROW_THREADS, 0, (T *)x, ldx, n, dim,
                                  tanh_form));
}

// ---- moving
template <typename T>
__global__ void gather_k(const T *x, size_t ldx, const int32_t *rows, uint32_t dim, T *out)
{
    pdl_next();
    pdl_wait();
    int32_t from = rows[blockIdx.x]; // negative: zeros
    const T *row = x + (size_t)(from < 0 ? 0 : from) * ldx;
    for (uint32_t i = threadIdx.x; i < dim; i += ROW_THREADS)
        out[(size_t)blockIdx.x * dim + i] = from < 0 ? from_f<T>(0.0f) : row[i];
}

// The same for rows of 16-byte pieces.
__global__ void gather_wide(const uint4 *x, size_t ldx, const int32_t *rows, uint32_t pieces,
                            uint4 *out)
{
    pdl_next();
    pdl_wait();
    int32_t from = rows[blockIdx.x];
    const uint4 *row = x + (size_t)(from < 0 ? 0 : from) * ldx;
    for (uint32_t i = threadIdx.x; i < pieces; i += ROW_THREADS)
        out[(size_t)blockIdx.x * pieces + i] = from < 0 ? make_uint4(0, 0, 0, 0) : row[i];
}

extern "C" cudaError_t ek_cu_gather(const struct ek_cu_queue *q, enum ek_dtype act, const void *x,
                                    size_t ldx, const int32_t *rows, uint32_t n, uint32_t dim,
                                    void *out)
{
    EK_DISPATCH_ACT(act, T, {
        if (wide(sizeof(T), x, ldx, out, dim, dim))
            return launch(q, gather_wide, n, ROW_THREADS, 0, (const uint4 *)x, ldx * sizeof(T) / 16,
                          rows, (uint32_t)(dim * sizeof(T) / 16), (uint4 *)out);
        return launch(q, gather_k<T>, n, ROW_THREADS, 0, (const T *)x, ldx, rows, dim, (T *)out);
    });
}

template <typename T>
__global__ void permute_k(const T *x, size_t ldx, const int32_t *order, uint32_t dim, T *out)
{
    const T *row = x + blockIdx.x * ldx;

    pdl_next();
    pdl_wait();
    for (uint32_t i = threadIdx.x; i < dim; i += ROW_THREADS)
        out[(size_t)blockIdx.x * dim + i] = row[order[i]];
}

extern "C" cudaError_t ek_cu_permute(const struct ek_cu_queue *q, enum ek_dtype act, const void *x,
                                     size_t ldx, const int32_t *order, uint32_t n, uint32_t dim,
                                     void *out)
{
    EK_DISPATCH_ACT(act, T, {
        return launch(q, permute_k<T>, n, ROW_THREADS, 0, (const T *)x, ldx, order, dim, (T *)out);
    });
}

template <typename T>
__global__ void scatter_k(const float *x, const int32_t *rows, uint32_t dim, T *out, size_t ldo)
{
    pdl_next();
    pdl_wait();
    T *to = out + (size_t)rows[blockIdx.x] * ldo;
    for (uint32_t i = threadIdx.x; i < dim; i += ROW_THREADS)
        to[i] = from_f<T>(x[(size_t)blockIdx.x * dim + i]);
}

extern "C" cudaError_t ek_cu_scatter(const struct ek_cu_queue *q, enum ek_dtype act, const float *x,
                                     const int32_t *rows, uint32_t n, uint32_t dim, void *out,
                                     size_t ldo)
{
    EK_DISPATCH_ACT(act, T,
                    return launch(q, scatter_k<T>, n, ROW_THREADS, 0, x, rows, dim, (T *)out, ldo));
}

template <typename F, typename T> __global__ void convert_k(const F *x, T *out, size_t n)
{
    pdl_next();
    pdl_wait();
    for (size_t i = blockIdx.x * (size_t)ROW_THREADS + threadIdx.x; i < n;
         i += gridDim.x * (size_t)ROW_THREADS)
        out[i] = from_f<T>(to_f(x[i]));
}

template <typename F>
static cudaError_t convert_from(const struct ek_cu_queue *q, const F *x, void *out,
                                enum ek_dtype to, size_t n)
{
    size_t blocks = (n + ROW_THREADS - 1) / ROW_THREADS, most = 16 * (size_t)q->n_sm;

    EK_DISPATCH_ACT(to, T,
                    return launch(q, convert_k<F, T>, (uint32_t)(blocks < most ? blocks : most),
                                  ROW_THREADS, 0, x, (T *)out, n));
}

extern "C" cudaError_t ek_cu_convert(const struct ek_cu_queue *q, const void *x, enum ek_dtype from,
                                     void *out, enum ek_dtype to, size_t n)
{
    EK_DISPATCH_ACT(from, F, return convert_from<F>(q, (const F *)x, out, to, n));
}

// ---- argmax: the lowest index among the largest; a NaN is never the largest
struct best {
    float v;
    int32_t i;
};
__device__ __forceinline__ best better(best a, best b)
{
    return b.v > a.v || (b.v == a.v && b.i < a.i) ? b : a;
}
__device__ __forceinline__ best warp_best(best a)
{
#pragma unroll
    for (int d = 16; d; d /= 2)
        a = better(a, {__shfl_xor_sync(0xffffffffu, a.v, d), __shfl_xor_sync(0xffffffffu, a.i, d)});
    return a;
}

__device__ __forceinline__ best block_best(best a, best *tmp)
{
    a = warp_best(a);
    if (threadIdx.x % 32 == 0)
        tmp[threadIdx.x / 32] = a;
    __syncthreads();
    a = threadIdx.x % 32 < ROW_THREADS / 32 ? tmp[threadIdx.x % 32] : best{-INFINITY, 0x7fffffff};
    return warp_best(a);
}

// A block takes one of EK_CU_ARGMAX pieces of a row; the last to finish joins them.
__global__ void __launch_bounds__(ROW_THREADS)
    argmax_k(const float *logits, uint32_t vocab, best *partial, uint32_t *arrived, int32_t *ids)
{
    __shared__ best tmp[ROW_THREADS / 32];
    __shared__ bool last;
    const float *row = logits + (size_t)blockIdx.y * vocab;
    best a = {-INFINITY, 0x7fffffff};

    pdl_next();
    pdl_wait();
#pragma unroll 8
    for (uint32_t i = blockIdx.x * ROW_THREADS + threadIdx.x; i < vocab;
         i += EK_CU_ARGMAX * ROW_THREADS)
        a = better(a, {row[i], (int32_t)i});
    a = block_best(a, tmp);
    if (threadIdx.x == 0) {
        partial[blockIdx.y * EK_CU_ARGMAX + blockIdx.x] = a;
        __threadfence();
        last = atomicAdd(arrived + blockIdx.y, 1u) == EK_CU_ARGMAX - 1;
    }
    __syncthreads();
    if (!last)
        return;
    __threadfence();
    a = {-INFINITY, 0x7fffffff};
    if (threadIdx.x < EK_CU_ARGMAX) {
        float2 v = __ldcg((const float2 *)partial + blockIdx.y * EK_CU_ARGMAX + threadIdx.x);
        a = {v.x, __float_as_int(v.y)};
    }
    a = block_best(a, tmp);
    if (threadIdx.x == 0) {
        arrived[blockIdx.y] = 0;
        ids[blockIdx.y] = a.i == 0x7fffffff ? 0 : a.i;
    }
}

extern "C" cudaError_t ek_cu_argmax(const struct ek_cu_queue *q, const float *logits, uint32_t n,
                                    uint32_t vocab, void *partial, uint32_t *arrived, int32_t *ids)
{
    return launch(q, argmax_k, dim3(EK_CU_ARGMAX, n), ROW_THREADS, 0, logits, vocab,
                  (best *)partial, arrived, ids);
}

// ---- the read ceiling
__global__ void __launch_bounds__(512) read_k(const uint8_t *p, size_t n, uint32_t *sink)
{
    size_t stride = (size_t)gridDim.x * 512, i = (size_t)blockIdx.x * 512 + threadIdx.x;
    size_t pieces = n / 16;
    uint32_t sum = 0;

    pdl_next();
    pdl_wait();
    for (; i + 3 * stride < pieces; i += 4 * stride) {
        uint4 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            v[j] = load_stream(p + 16 * (i + j * stride));
#pragma unroll
        for (int j = 0; j < 4; j++)
            sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    for (; i < pieces; i += stride) {
        uint4 v = load_stream(p + 16 * i);
        sum += v.x ^ v.y ^ v.z ^ v.w;
    }
    if (blockIdx.x == 0 && threadIdx.x < n % 16)
        sum += p[n - 1 - threadIdx.x];
    if (sum == 0x9e3779b9u)
        *sink = sum;
}

extern "C" cudaError_t ek_cu_read(const struct ek_cu_queue *q, const void *p, size_t n,
                                  uint32_t *sink)
{
    return launch(q, read_k, 8 * q->n_sm, 512, 0, (const uint8_t *)p, n, sink);
}
