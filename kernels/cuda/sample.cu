// SPDX-License-Identifier: Apache-2.0
// Tokens: drawn from rows of logits, and taken into the batch of the step that goes on from them.
// A row is a cluster's, each block a part of it in shared memory, looked at again and again: every
// rule of a draw keeps an upper set of the logits, whose lower end is searched by halving. All sums
// are of integers, so their order does not matter (kernels/sample.h).
#include <cooperative_groups.h>

#include "kernels/cuda/common.cuh"
#include "kernels/sample.h"

#define THREADS  512
#define WARPS    (THREADS / 32)
#define CLUSTER  8
#define MOST_ROW ((size_t)160 << 10) // bytes of a part in shared memory; larger ones stay outside

struct Sum {
    uint64_t measure, count;
};

struct Shared {
    struct ek_draw draw;
    Sum warps[WARPS];
    Sum block[2]; // of the turns in which others may still read
};

__device__ __forceinline__ uint64_t shuffle(uint64_t v, int from)
{
    return __shfl_xor_sync(0xffffffffu, v, from);
}

__device__ __forceinline__ uint64_t warp_total(uint64_t v)
{
#pragma unroll
    for (int d = 16; d; d /= 2)
        v += shuffle(v, d);
    return v;
}

// A block's part of a row: elements [first, first + n).
template <int BLOCKS> struct Row {
    Shared &s;
    const float *x; // of the part
    uint32_t first, n;
    uint32_t turn;

    // Over all threads of the cluster: sums, or the largest measure; (ahead) the sum of measures of
    // the blocks before this one.
    template <bool LARGEST> __device__ Sum join(Sum v, uint64_t *ahead = nullptr)
    {
        auto add = [](Sum a, Sum b) {
            uint64_t more = a.measure > b.measure ? a.measure : b.measure;
            return Sum{LARGEST ? more : a.measure + b.measure, a.count + b.count};
        };
        uint32_t lane = threadIdx.x % 32;

#pragma unroll
        for (int d = 16; d; d /= 2)
            v = add(v, Sum{shuffle(v.measure, d), shuffle(v.count, d)});
        if (lane == 0)
            s.warps[threadIdx.x / 32] = v;
        __syncthreads();
        v = lane < WARPS ? s.warps[lane] : Sum{0, 0};
#pragma unroll
        for (int d = 16; d; d /= 2)
            v = add(v, Sum{shuffle(v.measure, d), shuffle(v.count, d)});
#if __CUDA_ARCH__ >= 900
        if (BLOCKS > 1) {
            auto cluster = cooperative_groups::this_cluster();
            if (threadIdx.x == 0)
                s.block[turn] = v;
            cluster.sync();
            v = lane < BLOCKS ? *cluster.map_shared_rank(&s.block[turn], lane) : Sum{0, 0};
            turn ^= 1;
            if (ahead != nullptr)
                *ahead = warp_total(lane < blockIdx.x % BLOCKS ? v.measure : 0);
#pragma unroll
            for (int d = 16; d; d /= 2)
                v = add(v, Sum{shuffle(v.measure, d), shuffle(v.count, d)});
            return v;
        }
#endif
        __syncthreads(); // before warps is written again
        return v;
    }

    // The key of the largest logit, above its position counted from the end: the lowest wins ties.
    __device__ uint64_t best()
    {
        Sum v = {0, 0};

        for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
            uint64_t at = (uint64_t)ek_sample_key(x[i]) << 32 | (0xffffffffu - (first + i));
            v.measure = at > v.measure ? at : v.measure;
        }
        return join<true>(v).measure;
    }

    // Of keys >= key: their number, and (scale above 0) the sum of their weights for a measure.
    __device__ Sum above(uint32_t key, float best, float scale)
    {
        Sum v = {0, 0};

        for (uint32_t i = threadIdx.x; i < n; i += THREADS)
            if (ek_sample_key(x[i]) >= key) {
                v.count++;
                if (scale > 0)
                    v.measure += ek_sample_weight(x[i], best, scale);
            }
        v = join<false>(v);
        return scale > 0 ? v : Sum{v.count, v.count};
    }

    // The largest key whose upper set measures at least `need`, or one with the same set. That of
    // low does, that of high does not and is empty.
    __device__ uint32_t threshold(uint32_t low, uint32_t high, float best, float scale,
                                  uint64_t need)
    {
        uint64_t at_low = ~(uint64_t)0, at_high = 0;

        while (high - low > 1 && at_low - at_high != 1) {
            uint32_t mid = low + (high - low) / 2;
            Sum v = above(mid, best, scale);
            if (v.measure >= need) {
                low = mid, at_low = v.count;
                if (v.measure == need)
                    break;
            } else {
                high = mid, at_high = v.count;
            }
        }
        return low;
    }

    __device__ uint64_t kept(uint32_t i, uint32_t key, uint64_t least, float best)
    {
        uint64_t w = ek_sample_key(x[i]) >= key ? ek_sample_weight(x[i], best, s.draw.scale) : 0;

        return w >= least ? w : 0;
    }

    // The sum of what the threads before this one in the block have.
    __device__ uint64_t before(uint64_t own)
    {
        uint32_t lane = threadIdx.x % 32;
        uint64_t sum = own, all = 0;

#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            uint64_t v = __shfl_up_sync(0xffffffffu, sum, d);
            sum += lane >= d ? v : 0;
        }
        if (lane == 31)
            s.warps[threadIdx.x / 32].measure = sum;
        __syncthreads();
        for (uint32_t w = 0; w < threadIdx.x / 32; w++)
            all += s.warps[w].measure;
        __syncthreads();
        return all + sum - own;
    }

    // Writes the id whose share of the sum of weights, in the order of ids, holds the draw.
    __device__ void draw(uint32_t key, uint64_t least, float best, int32_t *id)
    {
        uint32_t per = (n + THREADS - 1) / THREADS, i = min(threadIdx.x * per, n);
        uint32_t end = min(i + per, n);
        uint64_t own = 0, ahead = 0, left, all;

        for (uint32_t k = i; k < end; k++)
            own += kept(k, key, least, best);
        left = before(own);
        all = join<false>(Sum{own, 0}, &ahead).measure;
        left += ahead;
        all = ek_sample_below(s.draw.random, all);
        if (all < left || all - left >= own)
            return;
        for (left = all - left; left >= (own = kept(i, key, least, best)); i++)
            left -= own;
        *id = (int32_t)(first + i);
    }
};

template <int BLOCKS>
__global__ void __launch_bounds__(THREADS)
    sample_k(const float *logits, uint32_t vocab, const struct ek_draw *draws, int32_t *ids,
             bool staged)
{
#if __CUDA_ARCH__ >= 900
    constexpr bool works = true;
#else
    constexpr bool works = BLOCKS == 1;
#endif
    extern __shared__ float part[];
    __shared__ Shared s;
    uint32_t row = blockIdx.x / BLOCKS, rank = blockIdx.x % BLOCKS, key = 1;
    uint32_t per = (vocab + BLOCKS - 1) / BLOCKS, first = min(rank * per, vocab);
    const float *x = logits + (size_t)row * vocab + first;
    Row<BLOCKS> r = {s, staged ? part : x, first, min(per, vocab - first), 0};
    uint64_t best, least = 0;

    if (threadIdx.x == 0)
        s.draw = draws[row]; // the host's, there before the kernel
    pdl_next();
    pdl_wait();
    for (uint32_t i = threadIdx.x; staged && i < r.n; i += THREADS)
        part[i] = x[i];
    __syncthreads();
    if (works) {
        best = r.best();
        uint32_t top = (uint32_t)(best >> 32);
        float most = __uint_as_float(top & 0x80000000u ? top & 0x7fffffffu : ~top);
        bool finite = top != 0 && isfinite(most);
        if (!finite || s.draw.scale == 0) {
            if (threadIdx.x == 0 && rank == 0)
                ids[row] = finite ? (int32_t)(0xffffffffu - (uint32_t)best) : -1;
        } else {
            const struct ek_draw d = s.draw;
            if (d.top_k > 0 && d.top_k < r.above(key, most, 0).count)
                key = r.threshold(key, top + 1, most, 0, d.top_k);
            if (d.top_p < 1)
                key = r.threshold(key, top + 1, most, d.scale,
                                  ek_sample_share(r.above(key, most, d.scale).measure, d.top_p));
            if (d.min_p > 0)
                least = ek_sample_share(ek_sample_weight(most, most, d.scale), d.min_p);
            r.draw(key, least, most, ids + row);
        }
    }
#if __CUDA_ARCH__ >= 900
    if (BLOCKS > 1)
        cooperative_groups::this_cluster().sync(); // no block leaves while others read from it
#endif
}

extern "C" cudaError_t ek_cu_sample(const struct ek_cu_queue *q, const float *logits, uint32_t n,
                                    uint32_t vocab, const struct ek_draw *draws, int32_t *ids)
{
    size_t bytes = sizeof(float) * ((vocab + CLUSTER - 1) / CLUSTER);
    bool staged = bytes <= MOST_ROW && bytes + EK_CU_OWN_SHARED <= q->shared;

    if (!q->pdl) // no clusters before compute capability 9.0
        return launch(q, sample_k<1>, n, THREADS, 0, logits, vocab, draws, ids, false);
    return launch_cluster(q, sample_k<CLUSTER>, dim3(n * CLUSTER), THREADS, staged ? bytes : 0,
                          CLUSTER, logits, vocab, draws, ids, staged);
}

// ---- the words of a batch, from the host's memory; ids that were drawn in the place of tokens
__global__ void __launch_bounds__(THREADS)
    take_k(int32_t *dst, const int32_t *src, size_t n, uint32_t n_ids, const int32_t *ids)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    int32_t word = i < n ? src[i] : 0; // there before the kernel

    pdl_wait(); // and no pdl_next: kernels behind read the words before their own wait
    if (i >= n)
        return;
    if (ids != nullptr && i < n_ids && word < 0)
        word = max(*(const volatile int32_t *)(ids - 1 - word), 0);
    dst[i] = word;
}

extern "C" cudaError_t ek_cu_take(const struct ek_cu_queue *q, int32_t *dst, const int32_t *src,
                                  size_t n, uint32_t n_ids, const int32_t *ids)
{
    return launch(q, take_k, dim3((uint32_t)((n + THREADS - 1) / THREADS)), THREADS, 0, dst, src, n,
                  n_ids, ids);
}
