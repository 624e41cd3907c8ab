// SPDX-License-Identifier: Apache-2.0
// A mixture of experts for one token, from the norm before it to the residual behind it, in two
// launches. In the first, blocks that have done their row of the router go on with the layers that
// every token goes to, while one more warp of each waits for all logits and chooses the experts for
// its block; weights come straight to registers. In the second, each warp streams its rows through
// slots of shared memory by bulk copies. Both ask for weights from before the kernel ahead has
// finished. Sums are in a fixed order, whoever makes them.
#include <type_traits>

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/deepseek.h"
#include "kernels/cuda/route.cuh"
#include "kernels/cuda/split.cuh"

#define TOK_WARPS    16 // that multiply in the first launch ...
#define TOK_DOWNS    16 // ... and in the second
#define TOK_SLOTS    8  // of a warp of the second, at most
#define TOK_SHARED   (212 * 1024)
#define TOK_OWN      (5 * 1024) // what the kernels have besides, at most
#define TOK_CHUNKS   2          // of the token a thread, at most
#define TOK_PATIENCE 4096       // looks for the logits before a block makes them for itself
#define TOK_UP       (32 * (TOK_WARPS + 1))
#define TOK_DOWN     (32 * TOK_DOWNS)

// The token's layers by number: the shared ones, which weigh 1, then its experts.
struct TokenLayers {
    int32_t ids[EK_CU_TOKEN_CHOSEN];
    float weights[EK_CU_TOKEN_CHOSEN];

    template <typename T>
    __device__ __forceinline__ const T *gate(const ek_cu_experts &e, uint32_t unit,
                                             const T **up) const
    {
        uint32_t layer = unit / e.inner, row = unit % e.inner;
        bool shared = layer < e.n_shared;
        const T *w = (const T *)(shared ? e.shared_up : e.gate_up);
        size_t at = shared ? (size_t)unit : (size_t)ids[layer - e.n_shared] * 2 * e.inner + row;

        *up = w + (at + (shared ? e.n_shared : 1) * e.inner) * e.hidden;
        return w + at * e.hidden;
    }
    template <typename T>
    __device__ __forceinline__ const T *down(const ek_cu_experts &e, uint32_t layer,
                                             uint32_t row) const
    {
        if (layer < e.n_shared)
            return (const T *)e.shared_down + ((size_t)row * e.n_shared + layer) * e.inner;
        return (const T *)e.down + ((size_t)ids[layer - e.n_shared] * e.hidden + row) * e.inner;
    }
    __device__ __forceinline__ float weight(const ek_cu_experts &e, uint32_t layer) const
    {
        return layer < e.n_shared ? 1.0f : weights[layer - e.n_shared];
    }
};

template <typename T> __device__ __forceinline__ float dot8(const T *a, const T *b, float sum)
{
    float x[8], y[8];

    load8(a, x);
    load8(b, y);
#pragma unroll
    for (int j = 0; j < 8; j++)
        sum = fmaf(x[j], y[j], sum);
    return sum;
}

// ---- norm and router: a thread has up to TOK_CHUNKS chunks of the token
template <typename T, int G> struct Router {
    typename Weight<G>::Raw raw[TOK_CHUNKS]; // of the block's first row
    float x[TOK_CHUNKS][8], norm[TOK_CHUNKS][8];

    static __device__ __forceinline__ uint32_t chunk(int i)
    {
        return threadIdx.x + TOK_UP * i;
    }
    __device__ __forceinline__ void load(const ek_cu_mixture &a, uint32_t row)
    {
#pragma unroll
        for (int i = 0; i < TOK_CHUNKS; i++)
            if (chunk(i) < a.e.hidden / 8)
                raw[i] = Weight<G>::load(a.gate + row * a.gate_row, chunk(i));
    }
    __device__ __forceinline__ void load_norm(const ek_cu_mixture &a)
    {
#pragma unroll
        for (int i = 0; i < TOK_CHUNKS; i++)
            if (chunk(i) < a.e.hidden / 8)
                load8(a.norm + 8 * chunk(i), norm[i]);
    }
    // The token, normalised, to registers and to shared memory.
    __device__ __forceinline__ void normalise(const ek_cu_mixture &a, T *to, float *tmp)
    {
        float sum = 0;

#pragma unroll
        for (int i = 0; i < TOK_CHUNKS; i++)
            if (chunk(i) < a.e.hidden / 8) {
                load8((const T *)a.e.out + 8 * chunk(i), x[i]);
#pragma unroll
                for (int j = 0; j < 8; j++)
                    sum += x[i][j] * x[i][j];
            }
        float r = rsqrtf(block_sum(sum, tmp) / (float)a.e.hidden + a.eps);
#pragma unroll
        for (int i = 0; i < TOK_CHUNKS; i++)
            if (chunk(i) < a.e.hidden / 8) {
#pragma unroll
                for (int j = 0; j < 8; j++)
                    x[i][j] = round_to<T>(round_to<T>(x[i][j] * r) * norm[i][j]);
                store8(to + 8 * chunk(i), x[i]);
            }
    }
    // The block's rows.
    __device__ __forceinline__ void logits(const ek_cu_mixture &a, float *tmp)
    {
#pragma unroll 1
        for (uint32_t row = blockIdx.x; row < a.router.n_experts; row += gridDim.x) {
            float sum = 0, w[8];

            if (row != blockIdx.x)
                load(a, row);
#pragma unroll
            for (int i = 0; i < TOK_CHUNKS; i++)
                if (chunk(i) < a.e.hidden / 8) {
                    Weight<G>::decode(raw[i], chunk(i), w);
#pragma unroll
                    for (int j = 0; j < 8; j++)
                        sum = fmaf(x[i][j], w[j], sum);
                }
            sum = block_sum(sum, tmp);
            if (threadIdx.x == 0)
                __stcg(a.logits + row, sum == 0 ? -0.0f : sum);
        }
    }
};

// A row's logit by one warp, to the bit what a block makes of it.
template <typename T, int G>
__device__ __forceinline__ float logit_alone(const ek_cu_mixture &a, const T *x, uint32_t row)
{
    uint32_t lane = threadIdx.x % 32;
    float mine = 0;

#pragma unroll 1
    for (uint32_t warp = 0; warp < TOK_UP / 32; warp++) {
        float sum = 0, v[8], w[8];

#pragma unroll 1
        for (uint32_t c = 32 * warp + lane; c < a.e.hidden / 8; c += TOK_UP) {
            load8(x + 8 * c, v);
            Weight<G>::decode(Weight<G>::load(a.gate + row * a.gate_row, c), c, w);
#pragma unroll
            for (int j = 0; j < 8; j++)
                sum = fmaf(v[j], w[j], sum);
        }
        sum = warp_sum(sum);
        mine = lane == warp ? sum : mine;
    }
    return warp_sum(mine);
}

__device__ __forceinline__ float load_relaxed(const float *p)
{
    float v;

    asm volatile("ld.relaxed.gpu.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}

// The lane's of the experts that are taken whatever the router says; -1: the router's.
__device__ __forceinline__ int32_t forced_expert(const ek_cu_mixture &a)
{
    uint32_t lane = threadIdx.x % 32;

    return a.forced && lane < a.router.top_k ? a.forced[lane] : -1;
}

// All rows of the router, each lane those of its own experts. A logit is its own flag: no bits, and
// it has not come. False if other kernels keep the GPU from the blocks that make them.
__device__ __forceinline__ bool await_logits(const ek_cu_mixture &a, float *score)
{
    for (uint32_t i = 0; i < TOK_PATIENCE; i++) {
        bool all = true;

#pragma unroll 1
        for (uint32_t e = threadIdx.x % 32; e < a.router.n_experts; e += 32) {
            score[e] = load_relaxed(a.logits + e);
            all &= __float_as_uint(score[e]) != 0;
        }
        if (__all_sync(0xffffffffu, all))
            return true;
        __nanosleep(20);
    }
    return false;
}

// One warp, when all rows of the router are there. Blocks that come first make them; a block that
// has waited too long does without the others, so that none depends on another's being there.
template <typename T, int G>
__device__ __forceinline__ void choose_experts(const ek_cu_mixture &a, const T *x,
                                               Choice<EK_CU_TOKEN_EXPERTS> &c, TokenLayers &layers,
                                               int32_t forced)
{
    uint32_t k = threadIdx.x % 32, lane = k;

    if (!await_logits(a, c.score))
#pragma unroll 1
        for (uint32_t i = 0; i < a.router.n_experts; i++) {
            float v = logit_alone<T, G>(a, x, i);
            if (i % 32 == lane)
                c.score[i] = v;
        }
    choose(a.router, a.bias, c, lane, layers.ids, layers.weights);
    if (k < a.router.top_k) {
        if (forced >= 0)
            layers.ids[k] = forced;
        if (blockIdx.x == 0) {
            a.ids[k] = layers.ids[k];
            a.weights[k] = layers.weights[k];
        }
    }
    __syncwarp();
}

// ---- gate and up: a warp takes one element of an inner layer at a time; the next one's weights
// are on their way before its sums are reduced
template <typename T> struct UpStream {
    static const int W = std::is_same<T, bf16>::value ? EK_BF16 : EK_F16;
    Batch<W, 2> next;
    const uint8_t *at[2];
    uint32_t unit, step, lane, chunks;
    bool known; // the experts are

    __device__ __forceinline__ void open(const ek_cu_experts &e, const TokenLayers &layers)
    {
        const T *up, *gate = layers.gate(e, unit, &up);

        at[0] = (const uint8_t *)gate, at[1] = (const uint8_t *)up;
        next.load(at, lane, chunks);
    }
    // Whether the layers of the unit are there to read.
    __device__ __forceinline__ bool ready(const ek_cu_experts &e, const Signal &chosen, bool idle)
    {
        if (unit >= e.n_shared * e.inner && !known)
            known = chosen.given(idle);
        return known || unit < e.n_shared * e.inner;
    }
    // opened: the first unit is. Units up to end.
    __device__ __forceinline__ void run(const ek_cu_experts &e, const TokenLayers &layers,
                                        const Signal &chosen, const T *x, bool opened, uint32_t end)
    {
        const uint32_t step_chunks = 32 * UNROLL<W, 2>;

#pragma unroll 1
        while (unit < end) {
            uint32_t mine = unit;
            float sum[2] = {};

            if (!opened) {
                while (!ready(e, chosen, true))
                    continue;
                open(e, layers);
            }
#pragma unroll 1
            for (uint32_t c = lane;; c += step_chunks) {
                Batch<W, 2> now = next;
                bool last = c - lane + step_chunks >= chunks;

                if (!last) {
                    next.load(at, c + step_chunks, chunks);
                } else {
                    unit += step;
                    opened = unit < end && ready(e, chosen, false);
                    if (opened)
                        open(e, layers);
                }
                now.multiply(x, c, chunks, sum);
                if (last)
                    break;
            }
            float g = warp_sum(sum[0]), v = warp_sum(sum[1]);
            if (lane == 0)
                ((T *)e.inner_x)[mine] = from_f<T>(silu(round_to<T>(g)) * round_to<T>(v));
        }
    }
};

template <typename T, int G>
__global__ void __launch_bounds__(TOK_UP, 1) token_up_k(const ek_cu_mixture a)
{
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) uint8_t raw[];
    __shared__ Choice<EK_CU_TOKEN_EXPERTS> choice;
    __shared__ TokenLayers layers;
    __shared__ Signal chosen;
    __shared__ float tmp[32];
    const ek_cu_experts &e = a.e;
    uint32_t warp = threadIdx.x / 32, shared = e.n_shared * e.inner;
    const T *x = (const T *)raw;
    UpStream<T> s;
    Router<T, G> router;

    if (threadIdx.x == 0)
        chosen.open();
    router.load_norm(a); // before what is long
    if (blockIdx.x < a.router.n_experts)
        router.load(a, blockIdx.x);
    int32_t forced = warp == TOK_WARPS ? forced_expert(a) : 0;
    s.unit = blockIdx.x + gridDim.x * warp, s.step = gridDim.x * TOK_WARPS;
    s.lane = threadIdx.x % 32, s.chunks = e.hidden / 8;
    s.known = false;
    bool early = warp < TOK_WARPS && s.unit < shared;
    if (early)
        s.open(e, layers);
    pdl_next();
    pdl_wait();
    router.normalise(a, (T *)raw, tmp);
    router.logits(a, tmp);
    __syncthreads();
    if (warp < TOK_WARPS) {
        s.run(e, layers, chosen, x, early, shared + a.router.top_k * e.inner);
        return;
    }
    choose_experts<T, G>(a, x, choice, layers, forced);
    if (threadIdx.x % 32 == 0)
        chosen.give();
#endif
}

// ---- down: a warp takes one element of the token, two of its layers at a time. First those that
// every token goes to, of all its elements, then the experts.
struct DownPlace {             // two layers of an element
    uint32_t row, pair, first; // and the warp's first element
    bool shared;               // of the first pass

    __device__ __forceinline__ void start(uint32_t at, const ek_cu_experts &e)
    {
        row = first = at;
        pair = 0;
        shared = e.n_shared > 1;
    }
    __device__ __forceinline__ void advance(const ek_cu_experts &e, uint32_t step)
    {
        uint32_t turn = e.n_shared / 2, all = (e.n_shared + e.top_k + 1) / 2;

        if (++pair < (shared ? turn : all))
            return;
        row += step;
        if (shared && row >= e.hidden) {
            shared = false;
            row = first;
        }
        pair = shared ? 0 : turn;
    }
};

template <typename T> struct DownStream {
    BulkRing<TOK_SLOTS> ring;
    DownPlace next, now;
    uint32_t step;

    __device__ __forceinline__ void ask(const ek_cu_experts &e, const TokenLayers &layers,
                                        bool routed)
    {
        uint32_t all = e.n_shared + e.top_k, bytes = e.inner * sizeof(T);

        while (ring.room() && next.row < e.hidden && (next.shared || routed)) {
            uint32_t l = 2 * next.pair;

            ring.ask(layers.down<T>(e, l, next.row), bytes,
                     l + 1 < all ? layers.down<T>(e, l + 1, next.row) : NULL,
                     l + 1 < all ? bytes : 0);
            next.advance(e, step);
        }
    }
    // This lane's part of the two layers' sum.
    __device__ __forceinline__ float take(const ek_cu_experts &e, const TokenLayers &layers,
                                          const T *x, const uint8_t *slots)
    {
        uint32_t l = 2 * now.pair, lane = threadIdx.x % 32;
        bool both = l + 1 < e.n_shared + e.top_k;
        const T *w = (const T *)(slots + ring.wait() * ring.bytes);
        float s = 0, t = 0;

        x += (size_t)l * e.inner;
#pragma unroll 2
        for (uint32_t c = 8 * lane; c < e.inner; c += 256) {
            s = dot8(x + c, w + c, s);
            if (both)
                t = dot8(x + e.inner + c, w + e.inner + c, t);
        }
        ring.give_back();
        return s * layers.weight(e, l) + (both ? t * layers.weight(e, l + 1) : 0.0f);
    }
};

template <typename T>
__global__ void __launch_bounds__(TOK_DOWN, 1) token_down_k(const ek_cu_mixture a)
{
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) uint8_t raw[];
    __shared__ uint64_t barriers[TOK_DOWNS][TOK_SLOTS];
    __shared__ TokenLayers layers;
    const ek_cu_experts &e = a.e;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, bytes = 2 * e.inner * sizeof(T);
    uint32_t all = e.n_shared + e.top_k, pairs = (all + 1) / 2, rows = a.rows;
    T *x = (T *)raw;
    float *kept = (float *)(raw + pairs * bytes) + warp * rows * 32 + lane;
    uint8_t *slots = raw + pairs * bytes + TOK_DOWNS * rows * 128 + (size_t)warp * a.slots * bytes;
    DownStream<T> s;
    float sum = 0, before = 0;

    s.step = gridDim.x * TOK_DOWNS;
    s.next.start(blockIdx.x + gridDim.x * warp, e);
    s.now = s.next;
    s.ring.open(barriers[warp], slots, a.slots, bytes);
    s.ask(e, layers, false);
    pdl_next();
    pdl_wait();
    if (blockIdx.x == 0)
        for (uint32_t i = threadIdx.x; i < e.n_experts; i += TOK_DOWN)
            a.logits[i] = 0;
    if (threadIdx.x < e.top_k) {
        layers.ids[threadIdx.x] = a.ids[threadIdx.x];
        layers.weights[threadIdx.x] = a.weights[threadIdx.x];
    }
    for (uint32_t i = threadIdx.x; i < all * e.inner / 8; i += TOK_DOWN)
        copy16(shared_at(x + 8 * i), (const T *)e.inner_x + 8 * i);
    copy_commit();
    __syncthreads();
    s.ask(e, layers, true);
    copy_wait<0>();
    __syncthreads();
    while (s.now.row < e.hidden) {
        uint32_t row = s.now.row, pair = s.now.pair, turn = e.n_shared / 2;
        float *mine = kept + row / s.step * 32;
        bool shared = s.now.shared;

        T *out = (T *)e.out + row;

        if (!shared && pair == turn && lane == 0)
            before = to_f(*out);
        if (pair == (shared ? 0 : turn))
            sum = shared || turn == 0 ? 0.0f : *mine;
        sum += s.take(e, layers, x, slots);
        s.now.advance(e, s.step);
        s.ask(e, layers, true);
        if (shared && pair == turn - 1)
            *mine = sum;
        if (!shared && pair == pairs - 1) {
            float v = warp_sum(sum);
            if (lane == 0)
                *out = from_f<T>(before + v);
        }
    }
#endif
}

// ---- launch
template <typename T, int G>
static cudaError_t token_launch(const struct ek_cu_queue *q, struct ek_cu_mixture a)
{
    const struct ek_cu_experts *e = &a.e;
    uint32_t up = e->hidden * sizeof(T), down = e->inner * sizeof(T);
    uint32_t all = e->n_shared + e->top_k, pairs = (all + 1) / 2;
    uint32_t blocks = div_up(all * e->inner, TOK_WARPS), kept;
    cudaError_t r = split_memory(token_up_k<T, G>, SPLIT_LOADS);

    blocks = blocks < q->n_sm ? blocks : q->n_sm;
    if (r == cudaSuccess)
        r = launch(q, token_up_k<T, G>, blocks, TOK_UP, up, a);
    if (r != cudaSuccess)
        return r;
    blocks = div_up(e->hidden, TOK_DOWNS);
    blocks = blocks < q->n_sm ? blocks : q->n_sm;
    a.rows = div_up(e->hidden, blocks * TOK_DOWNS);
    kept = 2 * pairs * down + TOK_DOWNS * a.rows * 128;
    a.slots = (TOK_SHARED - kept) / (TOK_DOWNS * 2 * down);
    a.slots = a.slots < TOK_SLOTS ? a.slots : TOK_SLOTS;
    return launch(q, token_down_k<T>, blocks, TOK_DOWN, kept + TOK_DOWNS * a.slots * 2 * down, a);
}

template <typename T>
static cudaError_t token_any(const struct ek_cu_queue *q, const struct ek_cu_mixture *a)
{
    switch (a->gate_type) {
    case EK_F32:
        return token_launch<T, EK_F32>(q, *a);
    case EK_BF16:
        return token_launch<T, EK_BF16>(q, *a);
    case EK_F16:
        return token_launch<T, EK_F16>(q, *a);
    default:
        return cudaErrorNotSupported;
    }
}

extern "C" bool ek_cu_token_fits(const struct ek_cu_queue *q, const struct ek_cu_mixture *a)
{
    const struct ek_cu_experts *e = &a->e;
    uint64_t up = e->hidden * 2, down = e->inner * 2, pairs = (e->n_shared + e->top_k + 1) / 2;
    uint64_t blocks = div_up(e->hidden, TOK_DOWNS), most = blocks < q->n_sm ? blocks : q->n_sm;
    uint64_t rows = div_up(e->hidden, (uint32_t)most * TOK_DOWNS);

    return q->pdl && TOK_SHARED + TOK_OWN <= q->shared && e->hidden <= TOK_CHUNKS * TOK_UP * 8 &&
           e->n_experts <= EK_CU_TOKEN_EXPERTS && e->top_k <= EK_CU_TOKEN_CHOSEN &&
           up <= TOK_SHARED &&
           2 * pairs * down + TOK_DOWNS * rows * 128 + 2 * TOK_DOWNS * 2 * down <= TOK_SHARED;
}

extern "C" cudaError_t ek_cu_token(const struct ek_cu_queue *q, enum ek_dtype act,
                                   const struct ek_cu_mixture *a)
{
    return act == EK_BF16  ? token_any<bf16>(q, a)
           : act == EK_F16 ? token_any<f16>(q, a)
                           : cudaErrorNotSupported;
}
