// SPDX-License-Identifier: Apache-2.0
// Attention of vision towers on tensor cores: every row to all rows of its segment. Segments of at
// most 64 rows (windows) take a block of 64 rows and one step; heads of 72 and 80 elements in
// longer ones go by boxes on Hopper.
#include "kernels/cuda/attention_boxes.cuh"

// Weights of scores take longer than products of so short heads: three warpgroups, and steps whose
// scores leave room for a third one's registers.
template <int D> struct RowBoxes : RowSource<D, 2> {
    static constexpr int GROUPS = 3, KV = 96;
    static constexpr uint32_t CHUNKS = (D + EK_CHUNK - 1) / EK_CHUNK;

#ifdef EK_WGMMA
    // Chunk by chunk, so that what lies behind a head's last element is zeros.
    static __device__ __forceinline__ void copy_chunks(const CUtensorMap &map, uint32_t row,
                                                       uint32_t head, uint32_t rows, uint32_t to,
                                                       uint32_t full)
    {
        uint32_t lane = threadIdx.x % 32;

        if (lane < CHUNKS)
            copy_part(to + lane * rows * 128, &map, lane * EK_CHUNK, row, head, full);
    }
    static __device__ __forceinline__ void queries(const box_maps &maps, const TileSpan &s,
                                                   uint32_t to, uint32_t full)
    {
        copy_chunks(maps.q, s.token, s.head, 64 * GROUPS, to, full);
    }
    template <typename T>
    static __device__ __forceinline__ void prepare(const ek_cu_attention &, T *, const TileSpan &)
    {
    }

    struct Boxes {
        __device__ __forceinline__ Boxes(const ek_cu_attention &, const TileSpan &)
        {
        }
        __device__ __forceinline__ void copy(const box_maps &maps, const ek_cu_attention &,
                                             const TileSpan &s, uint32_t first, bool values,
                                             uint32_t to, uint32_t full)
        {
            copy_chunks(values ? maps.v : maps.k, s.token - s.past + first, s.head, KV, to, full);
        }
    };
#endif
};

// [row][head][dim], in boxes of 64 elements of one head.
static cudaError_t head_map(CUtensorMap *map, const void *data, const struct ek_cu_attention *a,
                            size_t row, uint32_t box_rows)
{
    const size_t dims[3] = {a->kv.head_dim, a->batch.n_tokens, a->heads};
    const size_t strides[2] = {row * 2, (size_t)a->kv.head_dim * 2};
    const uint32_t box[3] = {EK_CHUNK, box_rows, 1};

    return tensor_map(map, data, 3, dims, strides, box);
}

template <typename T, int D>
static cudaError_t dense_boxes(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    struct box_maps maps;
    cudaError_t e = head_map(&maps.q, a->q, a, a->ldq, BOX_ROWS<RowBoxes<D>>);

    if (e == cudaSuccess)
        e = head_map(&maps.k, a->kv.k, a, a->row, RowBoxes<D>::KV);
    if (e == cudaSuccess)
        e = head_map(&maps.v, a->kv.v, a, a->row, RowBoxes<D>::KV);
    return e == cudaSuccess ? boxes_launch<T, RowBoxes<D>>(q, a, &maps) : e;
}

template <typename T, int D>
static cudaError_t dense(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    return a->batch.max_q <= TILE_KV ? tiles_launch<T, 4, 1, RowSource<D, 1>>(q, a)
                                     : tiles_launch<T, 8, 2, RowSource<D, 2>>(q, a);
}

template <typename T>
static cudaError_t dense_of(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    uint32_t dim = a->kv.head_dim;

    if (dim > 64 && dim <= 80 && a->batch.max_q > TILE_KV && q->wgmma)
        return dense_boxes<T, 80>(q, a);
    if (dim <= 64)
        return dense<T, 64>(q, a);
    return dim <= 80 ? dense<T, 80>(q, a) : dense<T, 128>(q, a);
}

extern "C" cudaError_t ek_cu_attention_dense(const struct ek_cu_queue *q, enum ek_dtype act,
                                             const struct ek_cu_attention *a)
{
    return act == EK_BF16  ? dense_of<bf16>(q, a)
           : act == EK_F16 ? dense_of<f16>(q, a)
                           : cudaErrorNotSupported;
}
