// SPDX-License-Identifier: Apache-2.0
// Experts token by token, and shared layers with them: each weight is read once, at memory speed.
// One launch for gate, up and their product, one for down and the weighted sum, whose order is
// fixed. Also the way of fp32 activations.
#include "kernels/cuda/layers.cuh"

#define ONE_THREADS  256
#define ONE_WARPS    (ONE_THREADS / 32)
#define ONE_RESIDENT 2

template <typename T> __device__ __forceinline__ void stage(const T *from, T *to, uint32_t n)
{
    for (uint32_t i = threadIdx.x; i < n * sizeof(T) / 16; i += ONE_THREADS)
        copy16(shared_at((char *)to + 16 * i), (const char *)from + 16 * i);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
}

template <int W, typename T>
__device__ __forceinline__ float multiply(const typename Weight<W>::Raw &raw, const T *x,
                                          uint32_t c, float sum)
{
    float xv[8], wv[8];

    load4(x + Weight<W>::lo(c), xv);
    load4(x + Weight<W>::hi(c), xv + 4);
    Weight<W>::decode(raw, c, wv);
#pragma unroll
    for (int j = 0; j < 8; j++)
        sum = fmaf(xv[j], wv[j], sum);
    return sum;
}

// Loads in flight of two rows.
template <int W, int N> struct Rows {
    typename Weight<W>::Raw a[N], b[N];

    __device__ __forceinline__ void load(const WeightRow &first, const WeightRow &second,
                                         uint32_t c, uint32_t chunks)
    {
#pragma unroll
        for (int i = 0; i < N; i++) {
            bool in = c + 32 * i < chunks;
            a[i] = in ? Weight<W>::load(first, c + 32 * i) : typename Weight<W>::Raw{};
            b[i] = in ? Weight<W>::load(second, c + 32 * i) : typename Weight<W>::Raw{};
        }
    }
    template <typename T>
    __device__ __forceinline__ void multiply_by(const T *x, const T *y, uint32_t c, uint32_t chunks,
                                                float &s, float &t) const
    {
#pragma unroll
        for (int i = 0; i < N; i++) {
            uint32_t at = c + 32 * i < chunks ? c + 32 * i : 0; // zeros times what is there
            s = multiply<W>(a[i], x, at, s);
            t = multiply<W>(b[i], y, at, t);
        }
    }
};

// Gate and up: a warp takes one element of an inner layer. Rows of shared layers are on their way
// before the kernel ahead, which chooses the experts, has finished.
template <int W, typename T>
__global__ void __launch_bounds__(ONE_THREADS, ONE_RESIDENT) up_k(const ek_cu_experts e)
{
    const int N = W == EK_F32 ? 4 : 8;
    extern __shared__ uint4 raw_shared[];
    __shared__ Layers layers;
    T *x = reinterpret_cast<T *>(raw_shared);
    uint32_t lane = threadIdx.x % 32, chunks = e.hidden / 8, token = blockIdx.y;
    uint32_t u = blockIdx.x + gridDim.x * (threadIdx.x / 32), all = e.n_shared + e.top_k;
    bool loaded = u < e.n_shared * e.inner;
    WeightRow gate, up;
    Rows<W, N> rows;

    if (loaded) {
        gate = layers.gate<W>(e, u / e.inner, u % e.inner, &up);
        rows.load(gate, up, lane, chunks);
    }
    pdl_next();
    pdl_wait();
    layers.read(e, token);
    stage((const T *)e.x + token * e.ldx, x, e.hidden);
    for (; u < all * e.inner; u += gridDim.x * ONE_WARPS) {
        float g = 0, v = 0;

        gate = layers.gate<W>(e, u / e.inner, u % e.inner, &up);
        for (uint32_t c = lane; c < chunks; c += 32 * N) {
            if (!loaded)
                rows.load(gate, up, c, chunks);
            loaded = false;
            rows.multiply_by(x, x, c, chunks, g, v);
        }
        g = warp_sum(g);
        v = warp_sum(v);
        if (lane == 0)
            ((T *)e.inner_x)[(size_t)token * all * e.inner + u] =
                from_f<T>(silu(round_to<T>(g)) * round_to<T>(v));
    }
}

// Down: a warp takes one element of the token, all of its layers, two at a time.
template <int W, typename T>
__global__ void __launch_bounds__(ONE_THREADS, ONE_RESIDENT) down_k(const ek_cu_experts e)
{
    const int N = W == EK_F32 ? 3 : 6;
    extern __shared__ uint4 raw_shared[];
    __shared__ Layers layers;
    T *x = reinterpret_cast<T *>(raw_shared);
    uint32_t lane = threadIdx.x % 32, chunks = e.inner / 8, token = blockIdx.y;
    uint32_t row = blockIdx.x + gridDim.x * (threadIdx.x / 32), all = e.n_shared + e.top_k;
    bool loaded = e.n_shared > 1 && row < e.hidden;
    Rows<W, N> rows;

    if (loaded)
        rows.load(layers.down<W>(e, 0, row), layers.down<W>(e, 1, row), lane, chunks);
    pdl_next();
    pdl_wait();
    layers.read(e, token);
    stage((const T *)e.inner_x + (size_t)token * all * e.inner, x, all * e.inner);
    for (; row < e.hidden; row += gridDim.x * ONE_WARPS) {
        float sum = 0;

        for (uint32_t k = 0; k < all; k += 2) {
            uint32_t second = k + 1 < all ? k + 1 : k;
            WeightRow w0 = layers.down<W>(e, k, row), w1 = layers.down<W>(e, second, row);
            float f0 = layers.weight(e, k), f1 = second > k ? layers.weight(e, second) : 0.0f;
            float s0 = 0, s1 = 0;

            for (uint32_t c = lane; c < chunks; c += 32 * N) {
                if (!loaded)
                    rows.load(w0, w1, c, chunks);
                loaded = false;
                rows.multiply_by(x + k * e.inner, x + second * e.inner, c, chunks, s0, s1);
            }
            sum += f0 * s0 + f1 * s1;
        }
        sum = warp_sum(sum);
        T *out = (T *)e.out + token * e.ldo + row;
        if (lane == 0)
            *out = from_f<T>(to_f(*out) + sum);
    }
}

static dim3 grid_of(const struct ek_cu_queue *q, const struct ek_cu_experts *e, uint32_t units)
{
    uint32_t most = div_up(ONE_RESIDENT * q->n_sm, e->n), blocks = div_up(units, ONE_WARPS);

    return dim3(blocks < most ? blocks : most, e->n);
}

template <int W>
static cudaError_t up_launch(const struct ek_cu_queue *q, enum ek_dtype act,
                             const struct ek_cu_experts *e)
{
    EK_DISPATCH_ACT(act, T,
                    return launch(q, up_k<W, T>, grid_of(q, e, (e->n_shared + e->top_k) * e->inner),
                                  ONE_THREADS, e->hidden * sizeof(T), *e));
}
template <int W>
static cudaError_t down_launch(const struct ek_cu_queue *q, enum ek_dtype act,
                               const struct ek_cu_experts *e)
{
    EK_DISPATCH_ACT(act, T,
                    return launch(q, down_k<W, T>, grid_of(q, e, e->hidden), ONE_THREADS,
                                  (size_t)(e->n_shared + e->top_k) * e->inner * sizeof(T), *e));
}

extern "C" cudaError_t ek_cu_experts_one(const struct ek_cu_queue *q, enum ek_dtype w_up,
                                         enum ek_dtype w_down, enum ek_dtype act,
                                         const struct ek_cu_experts *e)
{
    cudaError_t r = [&] { EK_DISPATCH_WEIGHT(w_up, return up_launch<W>(q, act, e)); }();

    if (r != cudaSuccess)
        return r;
    EK_DISPATCH_WEIGHT(w_down, return down_launch<W>(q, act, e));
}
