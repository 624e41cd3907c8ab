// SPDX-License-Identifier: Apache-2.0
// Attention for every shape and type: one block a token and head, the context 128 tokens at a time
// with a running maximum. What the tensor-core kernels do not take comes here: fp32, other head
// sizes, a cache of another type than the activations.
#include "kernels/cuda/attention.cuh"

#define ANY_THREADS 128

template <typename T, typename C>
__global__ void __launch_bounds__(ANY_THREADS) any_k(const ek_cu_attention a)
{
    extern __shared__ float shared[]; // q [head_dim], acc [v_dim]
    __shared__ float p[ANY_THREADS], tmp[32];
    __shared__ size_t slot[ANY_THREADS];
    uint32_t token = blockIdx.x, head = blockIdx.y, seq = 0, dim = a.kv.head_dim;
    uint32_t kv_head = head / (a.heads / a.kv.kv_heads);
    // without values of their own (latent attention) they are the keys' first elements
    const C *values = (const C *)(a.kv.v ? a.kv.v : a.kv.k);
    uint32_t value_row = a.kv.v ? a.kv.v_dim : dim;
    float *q = shared, *acc = shared + dim, peak = -INFINITY, weight = 0;

    pdl_next();
    pdl_wait();
    while (seq + 1 < a.batch.n_seqs && (int32_t)token >= a.batch.seq_start[seq + 1])
        seq++;
    // the token sees the context up to itself
    int32_t len = a.batch.kv_len[seq] - (a.batch.seq_start[seq + 1] - 1 - (int32_t)token);
    for (uint32_t i = threadIdx.x; i < dim; i += ANY_THREADS)
        q[i] = to_f(((const T *)a.q)[token * a.ldq + head * dim + i]) * a.scale * LOG2E;
    for (uint32_t i = threadIdx.x; i < a.kv.v_dim; i += ANY_THREADS)
        acc[i] = 0;
    __syncthreads();
    for (int32_t first = 0; first < len; first += ANY_THREADS) {
        int32_t at = first + (int32_t)threadIdx.x, n = min(len - first, ANY_THREADS);
        float s = -INFINITY;

        if (at < len) {
            slot[threadIdx.x] = slot_of(a, seq, (uint32_t)at) * a.kv.kv_heads + kv_head;
            const C *k = (const C *)a.kv.k + slot[threadIdx.x] * dim;
            s = 0;
            for (uint32_t i = 0; i < dim; i++)
                s = fmaf(q[i], to_f(k[i]), s);
        }
        float highest = fmaxf(peak, block_max(s, tmp)), shrink = exp2f(peak - highest);
        p[threadIdx.x] = exp2f(s - highest);
        weight = weight * shrink + block_sum(p[threadIdx.x], tmp);
        peak = highest;
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

template <typename T>
static cudaError_t any_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    size_t shared = ((size_t)a->kv.head_dim + a->kv.v_dim) * sizeof(float);

    EK_DISPATCH_ACT(a->kv.dtype, C,
                    return launch(q, any_k<T, C>, dim3(a->batch.n_tokens, a->heads), ANY_THREADS,
                                  shared, *a));
}

extern "C" cudaError_t ek_cu_attention_any(const struct ek_cu_queue *q, enum ek_dtype act,
                                           const struct ek_cu_attention *a)
{
    EK_DISPATCH_ACT(act, T, return any_launch<T>(q, a));
}
