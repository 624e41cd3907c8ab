// SPDX-License-Identifier: Apache-2.0
// Attention for every shape and type: one block a token and head, the context 128 tokens at a time
// with a running maximum. What the tensor-core kernels do not take comes here: fp32, other head
// sizes, a cache of another type than the activations. Dense: keys and values in rows beside the
// queries, a segment an index of z, every row sees all of its segment.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/cache.cuh"

#define ANY_THREADS 128

// Where this block's token is: its sequence, its row, and the tokens that it sees.
template <bool DENSE>
__device__ __forceinline__ bool any_token(const ek_cu_attention &a, uint32_t &seq, uint32_t &token,
                                          int32_t &len)
{
    if (DENSE) {
        seq = blockIdx.z;
        len = a.batch.seq_start[seq + 1] - a.batch.seq_start[seq];
        token = (uint32_t)a.batch.seq_start[seq] + blockIdx.x;
        return (int32_t)blockIdx.x < len;
    }
    token = blockIdx.x;
    while (seq + 1 < a.batch.n_seqs && (int32_t)token >= a.batch.seq_start[seq + 1])
        seq++;
    len = a.batch.kv_len[seq] - (a.batch.seq_start[seq + 1] - 1 - (int32_t)token);
    return true;
}

template <typename T, typename C, bool DENSE>
__global__ void __launch_bounds__(ANY_THREADS) any_k(const ek_cu_attention a)
{
    extern __shared__ float shared[]; // q [head_dim], acc [v_dim]
    __shared__ float p[ANY_THREADS], tmp[32];
    __shared__ size_t slot[ANY_THREADS];
    uint32_t token, head = blockIdx.y, seq = 0, dim = a.kv.head_dim;
    uint32_t kv_head = head / (a.heads / a.kv.kv_heads);
    // without values of their own (latent attention) they are the keys' first elements
    const C *values = (const C *)(a.kv.v ? a.kv.v : a.kv.k);
    size_t value_row = DENSE ? 1 : a.kv.v ? a.kv.v_dim : dim, key_row = DENSE ? 1 : dim;
    int32_t len;
    float *q = shared, *acc = shared + dim, peak = -INFINITY, weight = 0;

    pdl_next();
    pdl_wait();
    if (!any_token<DENSE>(a, seq, token, len))
        return;
    for (uint32_t i = threadIdx.x; i < dim; i += ANY_THREADS)
        q[i] = to_f(((const T *)a.q)[token * a.ldq + head * dim + i]) * a.scale * LOG2E;
    for (uint32_t i = threadIdx.x; i < a.kv.v_dim; i += ANY_THREADS)
        acc[i] = 0;
    __syncthreads();
    for (int32_t first = 0; first < len; first += ANY_THREADS) {
        int32_t at = first + (int32_t)threadIdx.x, n = min(len - first, ANY_THREADS);
        float s = -INFINITY;

        if (at < len) {
            slot[threadIdx.x] =
                DENSE ? ((uint32_t)a.batch.seq_start[seq] + (size_t)at) * a.row + head * dim
                      : slot_of(a, seq, (uint32_t)at) * a.kv.kv_heads + kv_head;
            const C *k = (const C *)a.kv.k + slot[threadIdx.x] * key_row;
            s = 0;
            for (uint32_t i = 0; i < dim; i++)
                s = fmaf(q[i], to_f(k[i]), s);
            if (SCALED<C>)
                s *= a.kv.k_scale[slot[threadIdx.x]];
        }
        float highest = fmaxf(peak, block_max(s, tmp)), shrink = exp2f(peak - highest);
        p[threadIdx.x] = exp2f(s - highest);
        weight = weight * shrink + block_sum(p[threadIdx.x], tmp);
        peak = highest;
        if (SCALED<C> && at < len)
            p[threadIdx.x] *= (a.kv.v ? a.kv.v_scale : a.kv.k_scale)[slot[threadIdx.x]];
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < a.kv.v_dim; i += ANY_THREADS) {
            float v = acc[i] * shrink;

            for (int32_t j = 0; j < n; j++)
                v = fmaf(p[j], to_f(values[slot[j] * value_row + i]), v);
            acc[i] = v;
        }
        __syncthreads();
    }
    for (uint32_t i = threadIdx.x; i < a.kv.v_dim; i += ANY_THREADS)
        ((T *)a.out)[token * a.ldo + head * a.kv.v_dim + i] =
            from_f<T>(len > 0 ? acc[i] / weight : 0.0f);
}

static size_t any_shared(const struct ek_cu_attention *a)
{
    return ((size_t)a->kv.head_dim + a->kv.v_dim) * sizeof(float);
}

template <typename T>
static cudaError_t any_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    EK_DISPATCH_CACHE(a->kv.dtype, C,
                      return launch(q, any_k<T, C, false>, dim3(a->batch.n_tokens, a->heads),
                                    ANY_THREADS, any_shared(a), *a));
}

extern "C" cudaError_t ek_cu_attention_any(const struct ek_cu_queue *q, enum ek_dtype act,
                                           const struct ek_cu_attention *a)
{
    EK_DISPATCH_ACT(act, T, return any_launch<T>(q, a));
}

extern "C" cudaError_t ek_cu_attention_dense_any(const struct ek_cu_queue *q, enum ek_dtype act,
                                                 const struct ek_cu_attention *a)
{
    dim3 grid(a->batch.max_q, a->heads, a->batch.n_seqs);

    EK_DISPATCH_ACT(act, T,
                    return launch(q, any_k<T, T, true>, grid, ANY_THREADS, any_shared(a), *a));
}
