// SPDX-License-Identifier: Apache-2.0
// Experts of one token and weights in blocks, and shared layers with them, as products of one token
// are (one_bands.cuh): each weight is read once. One launch for gate, up and their product, one for
// down and the weighted sum, for which the layers' inner rows are one row.
#include "kernels/cuda/layers.cuh"
#include "kernels/cuda/one_bands.cuh"

// ---- gate and up: bands of both by turns, layer after layer
template <int W> struct UpSource {
    static const bool weighted = false;
    const ek_cu_experts &e;
    const Layers &layers;
    uint32_t first; // tile
    const uint8_t *at;

    __device__ __forceinline__ uint32_t layer(uint32_t band) const
    {
        return (first + band / 2) / (e.inner / 16);
    }
    __device__ __forceinline__ void open(uint32_t band)
    {
        uint32_t row = (first + band / 2) % (e.inner / 16) * 16;
        WeightRow up, gate = layers.gate<W>(e, layer(band), row, &up);

        at = band % 2 ? up.at : gate.at;
    }
    __device__ __forceinline__ OnePiece piece(uint32_t in) const
    {
        return {at, in * OneAhead<W>::subs, e.hidden / 32, in * OneAhead<W>::subs, 1};
    }
};

// Rows of shared layers are on their way before the kernel ahead, which chooses the experts, has
// finished.
template <int W, typename T>
__global__ void __launch_bounds__(ONE_BLOCKS_THREADS, 1) up_blocks_k(const ek_cu_experts e)
{
    const uint32_t n_subs = e.hidden / 32, warp = threadIdx.x / 32, per = OneAhead<W>::subs;
    extern __shared__ __align__(128) uint8_t raw[];
    __shared__ Layers layers;
    OneShare s((e.n_shared + e.top_k) * (e.inner / 16), 2, (n_subs + per - 1) / per);
    OneToken<W> x(shared_at(raw), n_subs);
    float *sums = reinterpret_cast<float *>(raw + OneToken<W>::bytes(n_subs));
    uint32_t item = s.begin_of(warp), end = s.begin_of(warp + 1);
    OneCursor<W, UpSource<W>> c({e, layers, s.first, e.gate_up}, s, item);
    bool early = c.source.layer(c.band) < e.n_shared;
    OneAhead<W> next;

    c.ask(next, true, early && item < end);
    pdl_next();
    pdl_wait();
    layers.read(e, 0);
    __syncthreads();
    if (!early)
        c.ask(next, true, item < end);
    x.make((const T *)e.x, n_subs);
    __syncthreads();
    sum_bands<W, T>(c, next, s, x, n_subs, item, end, sums);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < 16 * (s.end - s.first); i += ONE_BLOCKS_THREADS) {
        float gate = sum_of(s, sums, i / 16 * 2, i % 16);
        float up = sum_of(s, sums, i / 16 * 2 + 1, i % 16);

        ((T *)e.inner_x)[16 * s.first + i] = from_f<T>(silu(round_to<T>(gate)) * round_to<T>(up));
    }
}

// ---- down: a band's items are those of its layers, one behind the other
template <int W> struct DownSource {
    static const bool weighted = true;
    const ek_cu_experts &e;
    const Layers &layers;
    uint32_t first, per; // band; items of a layer
    uint32_t row;

    __device__ __forceinline__ void open(uint32_t band)
    {
        row = 16 * (first + band);
    }
    __device__ __forceinline__ OnePiece piece(uint32_t in) const
    {
        uint32_t layer = in / per, sub = in % per * OneAhead<W>::subs, end = e.inner / 32;

        return {layers.down<W>(e, layer, row).at, sub, end, layer * end + sub,
                layers.weight(e, layer)};
    }
};

template <int W, typename T>
__global__ void __launch_bounds__(ONE_BLOCKS_THREADS, 1) down_blocks_k(const ek_cu_experts e)
{
    const uint32_t all = e.n_shared + e.top_k, n_subs = all * (e.inner / 32);
    const uint32_t warp = threadIdx.x / 32;
    const uint32_t per = (e.inner / 32 + OneAhead<W>::subs - 1) / OneAhead<W>::subs;
    extern __shared__ __align__(128) uint8_t raw[];
    __shared__ Layers layers;
    OneShare s(e.hidden / 16, 1, all * per);
    OneToken<W> x(shared_at(raw), n_subs);
    float *sums = reinterpret_cast<float *>(raw + OneToken<W>::bytes(n_subs));
    uint32_t item = s.begin_of(warp), end = s.begin_of(warp + 1);
    OneCursor<W, DownSource<W>> c({e, layers, s.first, per, 0}, s, item);
    OneAhead<W> next;

    pdl_next();
    pdl_wait();
    layers.read(e, 0);
    __syncthreads();
    c.ask(next, true, item < end);
    x.make((const T *)e.inner_x, n_subs);
    __syncthreads();
    sum_bands<W, T>(c, next, s, x, n_subs, item, end, sums);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < 16 * (s.end - s.first); i += ONE_BLOCKS_THREADS) {
        T *out = (T *)e.out + 16 * s.first + i;

        *out = from_f<T>(to_f(*out) + sum_of(s, sums, i / 16, i % 16));
    }
}

// ---- launch
template <int W> static size_t up_shared(const ek_cu_experts *e, uint32_t blocks)
{
    uint32_t tiles = (e->n_shared + e->top_k) * (e->inner / 16);

    return OneToken<W>::bytes(e->hidden / 32) + sum_bytes(2 * div_up(tiles, blocks));
}
template <int W> static size_t down_shared(const ek_cu_experts *e, uint32_t blocks)
{
    uint32_t n_subs = (e->n_shared + e->top_k) * (e->inner / 32);

    return OneToken<W>::bytes(n_subs) + sum_bytes(div_up(e->hidden / 16, blocks));
}

template <typename... P>
static cudaError_t experts_launch(const struct ek_cu_queue *q, void (*kernel)(P...),
                                  uint32_t blocks, size_t shared, const struct ek_cu_experts *e)
{
    cudaError_t r = split_memory(kernel, shared > ONE_BLOCKS_SHARED ? SPLIT_COPIES : SPLIT_LOADS);

    return r == cudaSuccess ? launch(q, kernel, blocks, ONE_BLOCKS_THREADS, shared, *e) : r;
}
template <int W>
static cudaError_t up_any(const struct ek_cu_queue *q, enum ek_dtype act,
                          const struct ek_cu_experts *e)
{
    uint32_t tiles = (e->n_shared + e->top_k) * (e->inner / 16);
    uint32_t blocks = tiles < q->n_sm ? tiles : q->n_sm;
    size_t shared = up_shared<W>(e, blocks);

    return act == EK_BF16 ? experts_launch(q, up_blocks_k<W, bf16>, blocks, shared, e)
                          : experts_launch(q, up_blocks_k<W, f16>, blocks, shared, e);
}
template <int W>
static cudaError_t down_any(const struct ek_cu_queue *q, enum ek_dtype act,
                            const struct ek_cu_experts *e)
{
    uint32_t bands = e->hidden / 16, blocks = bands < q->n_sm ? bands : q->n_sm;
    size_t shared = down_shared<W>(e, blocks);

    return act == EK_BF16 ? experts_launch(q, down_blocks_k<W, bf16>, blocks, shared, e)
                          : experts_launch(q, down_blocks_k<W, f16>, blocks, shared, e);
}

extern "C" bool ek_cu_experts_blocks_fits(const struct ek_cu_queue *q, enum ek_dtype w_up,
                                          enum ek_dtype w_down, enum ek_dtype act,
                                          const struct ek_cu_experts *e)
{
    size_t up, down;

    if (act == EK_F32 || w_up < EK_Q4_0 || w_down < EK_Q4_0 || e->n != 1 || e->hidden % 32 ||
        e->inner % 32)
        return false;
    up = up_shared<EK_Q6_K>(e, q->n_sm), down = down_shared<EK_Q6_K>(e, q->n_sm);
    return (up > down ? up : down) + sizeof(Layers) <= q->shared;
}

extern "C" cudaError_t ek_cu_experts_blocks(const struct ek_cu_queue *q, enum ek_dtype w_up,
                                            enum ek_dtype w_down, enum ek_dtype act,
                                            const struct ek_cu_experts *e)
{
    cudaError_t r = [&] { EK_DISPATCH_BLOCKS(w_up, return up_any<W>(q, act, e)); }();

    if (r != cudaSuccess)
        return r;
    EK_DISPATCH_BLOCKS(w_down, return down_any<W>(q, act, e));
}
