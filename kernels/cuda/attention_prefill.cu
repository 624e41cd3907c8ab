// SPDX-License-Identifier: Apache-2.0
// Prefill attention on tensor cores: causal, ragged, over the paged cache. On Hopper by boxes, of
// as many rows as a page has (attention_boxes.cuh); elsewhere, for few rows, and where pages are no
// boxes: attention_tiles.cuh.
#include "kernels/cuda/attention_boxes.cuh"

#define PAGED_KV 128 // tokens a step

template <int D> struct PagedBoxes : PagedSource<D> {
    static constexpr int GROUPS = 2, KV = PAGED_KV;

#ifdef EK_WGMMA
    static __device__ __forceinline__ void queries(const box_maps &maps, const TileSpan &s,
                                                   uint32_t to, uint32_t full)
    {
        if (threadIdx.x % 32 == 0)
            copy_box(to, &maps.q, s.token, s.head * (D / EK_CHUNK), full, false);
    }
    template <typename T>
    static __device__ __forceinline__ void prepare(const ek_cu_attention &, T *, const TileSpan &)
    {
    }

    // A lane copies some rows of a page, one chunk of them, and looks up where those of the next
    // step lie.
    struct Boxes {
        uint32_t at, chunk, last, slot;
        bool copies;

        __device__ __forceinline__ Boxes(const ek_cu_attention &a, const TileSpan &s)
        {
            uint32_t rows = min(a.kv.page, (uint32_t)PAGED_KV), lane = threadIdx.x % 32;

            at = lane / (D / EK_CHUNK) * rows;
            chunk = lane % (D / EK_CHUNK);
            last = (s.end - 1) / rows * rows;
            copies = at < PAGED_KV;
            slot = copies ? (uint32_t)slot_of(a, s.seq, min(at, last)) : 0;
        }
        __device__ __forceinline__ void copy(const box_maps &maps, const ek_cu_attention &a,
                                             const TileSpan &s, uint32_t first, bool values,
                                             uint32_t to, uint32_t full)
        {
            if (!copies)
                return;
            copy_box4(to + (chunk * PAGED_KV + at) * 128, values ? &maps.v : &maps.k, slot, chunk,
                      s.kv_head, full);
            slot = (uint32_t)slot_of(a, s.seq, min(first + PAGED_KV + at, last));
        }
    };
#endif
};

// Keys or values: [slot][head][D], in boxes of rows x D of one head.
static cudaError_t cache_map(CUtensorMap *map, const void *data, const struct ek_kv *kv,
                             uint32_t rows)
{
    const size_t dims[4] = {EK_CHUNK, INT32_MAX, kv->head_dim / EK_CHUNK, kv->kv_heads};
    const size_t strides[3] = {(size_t)kv->kv_heads * kv->head_dim * 2, EK_CHUNK * 2,
                               (size_t)kv->head_dim * 2};
    const uint32_t box[4] = {EK_CHUNK, rows, 1, 1};

    return tensor_map(map, data, 4, dims, strides, box);
}

template <typename T, int D>
static cudaError_t prefill_boxes(const struct ek_cu_queue *q, const struct ek_cu_attention *a,
                                 uint32_t rows)
{
    struct box_maps maps;
    cudaError_t e = matrix_map(&maps.q, a->q, a->batch.n_tokens, a->heads * D, a->ldq * 2,
                               BOX_ROWS<PagedBoxes<D>>, D / EK_CHUNK);

    if (e == cudaSuccess)
        e = cache_map(&maps.k, a->kv.k, &a->kv, rows);
    if (e == cudaSuccess)
        e = cache_map(&maps.v, a->kv.v, &a->kv, rows);
    return e == cudaSuccess ? boxes_launch<T, PagedBoxes<D>>(q, a, &maps) : e;
}

template <typename T, int D>
static cudaError_t prefill(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    uint32_t page = a->kv.page, rows = page < PAGED_KV ? page : PAGED_KV;
    /* boxes take rows behind a context along, which in an unpacked cache are anything */
    bool boxes = a->kv.k_scale == NULL && page % 8 == 0 && PAGED_KV % rows == 0 &&
                 page % rows == 0 && PAGED_KV / rows * (D / EK_CHUNK) <= 32 && a->ldq % 8 == 0 &&
                 (uintptr_t)a->q % 16 == 0;

    return boxes && q->wgmma && a->batch.max_q > 64 ? prefill_boxes<T, D>(q, a, rows)
                                                    : tiles_launch<T, 8, 2, PagedSource<D>>(q, a);
}

extern "C" cudaError_t ek_cu_attention_prefill(const struct ek_cu_queue *q, enum ek_dtype act,
                                               const struct ek_cu_attention *a)
{
    bool narrow = a->kv.head_dim == 64;

    if (act == EK_BF16)
        return narrow ? prefill<bf16, 64>(q, a) : prefill<bf16, 128>(q, a);
    if (act == EK_F16)
        return narrow ? prefill<f16, 64>(q, a) : prefill<f16, 128>(q, a);
    return cudaErrorNotSupported;
}
