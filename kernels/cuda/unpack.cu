// SPDX-License-Identifier: Apache-2.0
// The contexts of a batch out of a cache of E4M3 into one of activations, whose blocks lie in
// order: for attention of many rows, which reads them many times.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/cache.cuh"

#define UNPACK_THREADS 256
#define UNPACK_PIECE   16 // elements of a thread

template <typename T>
__global__ void __launch_bounds__(UNPACK_THREADS)
    unpack_k(const ek_cu_attention a, T *k, T *v, int32_t *table, uint32_t blocks)
{
    uint32_t seq = blockIdx.y, at = blockIdx.x * UNPACK_THREADS + threadIdx.x;
    uint32_t dim = blockIdx.z ? a.kv.v_dim : a.kv.head_dim, pieces = dim / UNPACK_PIECE;
    uint32_t token = at / (a.kv.kv_heads * pieces), head = at / pieces % a.kv.kv_heads;
    uint32_t piece = at % pieces;
    float out[UNPACK_PIECE];

    pdl_next();
    pdl_wait();
    if (blockIdx.z == 0 && at < blocks)
        table[seq * blocks + at] = (int32_t)(seq * blocks + at);
    if ((int32_t)token >= a.batch.kv_len[seq])
        return;
    size_t row = slot_of(a, seq, token) * a.kv.kv_heads + head;
    size_t to = ((size_t)seq * blocks * a.kv.page + token) * a.kv.kv_heads + head;
    float scale = blockIdx.z ? a.kv.v_scale[row] : a.kv.k_scale[row];
    union {
        uint4 all;
        f8 each[UNPACK_PIECE];
    } in;
    in.all = *reinterpret_cast<const uint4 *>((const char *)(blockIdx.z ? a.kv.v : a.kv.k) +
                                              row * dim + UNPACK_PIECE * piece);
#pragma unroll
    for (int i = 0; i < UNPACK_PIECE; i++)
        out[i] = to_f(in.each[i]) * scale;
    store8((blockIdx.z ? v : k) + to * dim + UNPACK_PIECE * piece, out);
    store8((blockIdx.z ? v : k) + to * dim + UNPACK_PIECE * piece + 8, out + 8);
}

extern "C" cudaError_t ek_cu_unpack(const struct ek_cu_queue *q, enum ek_dtype act,
                                    const struct ek_cu_attention *a, void *k, void *v,
                                    int32_t *table, uint32_t blocks)
{
    uint32_t pieces = blocks * a->kv.page * a->kv.kv_heads * (a->kv.head_dim / UNPACK_PIECE);
    dim3 grid(div_up(pieces, UNPACK_THREADS), a->batch.n_seqs, v ? 2 : 1);

    if (act == EK_BF16)
        return launch(q, unpack_k<bf16>, grid, UNPACK_THREADS, 0, *a, (bf16 *)k, (bf16 *)v, table,
                      blocks);
    if (act == EK_F16)
        return launch(q, unpack_k<f16>, grid, UNPACK_THREADS, 0, *a, (f16 *)k, (f16 *)v, table,
                      blocks);
    return cudaErrorNotSupported;
}
