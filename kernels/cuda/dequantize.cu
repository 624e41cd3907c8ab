// SPDX-License-Identifier: Apache-2.0
// Weight rows to activations: whole tiles of a matrix for large products, single rows for
// embeddings.
#include "kernels/cuda/weights.cuh"

// Row y of the tile, or row ids[y] of a table of `limit` rows: zeros when there is no such row.
template <int W, typename T>
__global__ void rows_k(const uint8_t *src, size_t row_bytes, uint32_t rows, uint32_t cols,
                       const int32_t *ids, uint32_t limit, T *out)
{
    uint32_t c = blockIdx.x * blockDim.x + threadIdx.x;

    pdl_next();
    pdl_wait();
    for (uint32_t y = blockIdx.y; y < rows; y += gridDim.y) {
        uint32_t row = ids ? (uint32_t)ids[y] : y;
        T *to = out + (size_t)y * cols;
        float v[8] = {};

        if (c >= cols / 8)
            continue;
        if (row < limit)
            Weight<W>::decode(Weight<W>::load(row_of<W>(src, row, row_bytes), c), c, v);
        store4(to + Weight<W>::lo(c), v);
        store4(to + Weight<W>::hi(c), v + 4);
    }
}

// Whole bands of a matrix in blocks: a warp takes a sub-block of 16 rows, as it lies.
template <int W, typename T>
__global__ void bands_k(const uint8_t *src, size_t row_bytes, uint32_t rows, uint32_t cols, T *out)
{
    uint32_t sub = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t c = 4 * sub + lane % 4;

    pdl_next();
    pdl_wait();
    if (c >= cols / 8)
        return;
    for (uint32_t band = blockIdx.y; band < (rows + 15) / 16; band += gridDim.y)
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            uint32_t row = 16 * band + lane / 4 + 8 * r;
            T *to = out + (size_t)row * cols;
            float v[8];

            if (row >= rows)
                continue;
            Weight<W>::decode(Weight<W>::load(row_of<W>(src, row, row_bytes), c), c, v);
            store4(to + Weight<W>::lo(c), v);
            store4(to + Weight<W>::hi(c), v + 4);
        }
}

// Rows that cannot be read 8 elements at a time (plain types alone).
template <typename W, typename T>
__global__ void rows_odd(const W *src, uint32_t rows, uint32_t cols, const int32_t *ids,
                         uint32_t limit, T *out)
{
    pdl_next();
    pdl_wait();
    for (uint32_t y = blockIdx.y; y < rows; y += gridDim.y) {
        uint32_t row = ids ? (uint32_t)ids[y] : y;

        for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < cols;
             i += gridDim.x * blockDim.x)
            out[(size_t)y * cols + i] =
                from_f<T>(row < limit ? to_f(src[(size_t)row * cols + i]) : 0.0f);
    }
}

static dim3 grid_of(uint32_t pieces, uint32_t rows)
{
    return dim3(div_up(pieces, 128), rows < 65535 ? rows : 65535);
}

template <int W>
static cudaError_t block_rows(const struct ek_cu_queue *q, enum ek_dtype act, const void *src,
                              size_t row_bytes, uint32_t rows, uint32_t cols, const int32_t *ids,
                              uint32_t limit, void *out)
{
    EK_DISPATCH_ACT(act, T,
                    return launch(q, rows_k<W, T>, grid_of(cols / 8, rows), 128, 0,
                                  (const uint8_t *)src, row_bytes, rows, cols, ids, limit,
                                  (T *)out));
}

template <int W, typename S>
static cudaError_t plain_rows(const struct ek_cu_queue *q, enum ek_dtype act, const void *src,
                              size_t row_bytes, uint32_t rows, uint32_t cols, const int32_t *ids,
                              uint32_t limit, void *out)
{
    if (cols % 8 == 0 && row_bytes % 16 == 0 && (uintptr_t)out % 16 == 0)
        return block_rows<W>(q, act, src, row_bytes, rows, cols, ids, limit, out);
    EK_DISPATCH_ACT(act, T,
                    return launch(q, rows_odd<S, T>, grid_of(cols, rows), 128, 0, (const S *)src,
                                  rows, cols, ids, limit, (T *)out));
}

static cudaError_t any_rows(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                            const void *src, size_t row_bytes, uint32_t rows, uint32_t cols,
                            const int32_t *ids, uint32_t limit, void *out)
{
    switch (w) {
    case EK_F32:
        return plain_rows<EK_F32, float>(q, act, src, row_bytes, rows, cols, ids, limit, out);
    case EK_BF16:
        return plain_rows<EK_BF16, bf16>(q, act, src, row_bytes, rows, cols, ids, limit, out);
    case EK_F16:
        return plain_rows<EK_F16, f16>(q, act, src, row_bytes, rows, cols, ids, limit, out);
    default:
        EK_DISPATCH_BLOCKS(w, return block_rows<W>(q, act, src, row_bytes, rows, cols, ids, limit,
                                                   out));
    }
}

template <int W>
static cudaError_t bands(const struct ek_cu_queue *q, enum ek_dtype act, const void *src,
                         size_t row_bytes, uint32_t rows, uint32_t cols, void *out)
{
    dim3 grid = grid_of(cols, div_up(rows, 16)); // a lane: a chunk of two rows

    EK_DISPATCH_ACT(act, T,
                    return launch(q, bands_k<W, T>, grid, 128, 0, (const uint8_t *)src, row_bytes,
                                  rows, cols, (T *)out));
}

extern "C" cudaError_t ek_cu_dequantize(const struct ek_cu_queue *q, enum ek_dtype w,
                                        enum ek_dtype act, const void *src, size_t row_bytes,
                                        uint32_t rows, uint32_t cols, void *out)
{
    if (w < EK_Q4_0)
        return any_rows(q, w, act, src, row_bytes, rows, cols, NULL, rows, out);
    EK_DISPATCH_BLOCKS(w, return bands<W>(q, act, src, row_bytes, rows, cols, out));
}

extern "C" cudaError_t ek_cu_embed(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                                   const void *table, size_t row_bytes, uint32_t rows,
                                   uint32_t cols, const int32_t *ids, uint32_t n, void *out)
{
    return any_rows(q, w, act, table, row_bytes, n, cols, ids, rows, out);
}
