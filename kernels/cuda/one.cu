// SPDX-License-Identifier: Apache-2.0
// Products with one token and plain weights: the whole weight is read once, so these kernels are as
// fast as memory. A warp takes a unit: one output row, or two that belong together (gate and up;
// the two elements that rotate as a pair). Its lanes read 16 bytes each, UNROLL loads of a row in
// flight while the ones before are multiplied; the next unit's loads start before this unit's sum
// is reduced, and the first ones before the kernel ahead has finished. The token (normalised here
// when asked) is in shared memory.
#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/split.cuh"
#include "kernels/cuda/staged.cuh"
#include "kernels/cuda/units.cuh"

#define ONE_THREADS 256
#define ONE_WARPS   (ONE_THREADS / 32)

// Blocks that a multiprocessor has registers for.
#define ONE_RESIDENT 2
// Of a block, so that the usual split has room for them.
#define ONE_SHARED (48 * 1024)

// ---- the kernel
// STAGED: the token goes through shared memory, where it is normalised; else every warp reads it
// from L1, so that blocks need not wait for their warps.
template <int W, typename T, int MODE, bool STAGED>
__global__ void __launch_bounds__(ONE_THREADS, ONE_RESIDENT)
    one_k(const ek_cu_product p, uint32_t units)
{
    const int R = Unit<MODE>::rows;
    extern __shared__ uint4 shared[];
    const T *x = STAGED ? reinterpret_cast<T *>(shared) : (const T *)p.x;
    uint32_t lane = threadIdx.x % 32, stride = gridDim.x * ONE_WARPS;
    uint32_t u = blockIdx.x + gridDim.x * (threadIdx.x / 32), chunks = p.cols / 8, m, row[R];
    const uint8_t *at[R];
    Batch<W, R> next;

    auto open = [&](uint32_t unit) {
        Unit<MODE>::find(p, unit, &m, row);
#pragma unroll
        for (int r = 0; r < R; r++)
            at[r] = Unit<MODE>::data(p, m, r) + row[r] * p.row_bytes;
        next.load(at, lane, chunks);
    };
    T *token = reinterpret_cast<T *>(shared);
    const float *norm = STAGED ? stage_norm(p.norm, p.cols, token) : nullptr;
    if (u < units)
        open(u);
    pdl_next();
    pdl_wait();
    if (STAGED) {
        ask_token((const T *)p.x, p.cols, token);
        stage_token(norm, p.eps, p.cols, token);
    }
    while (u < units) {
        uint32_t this_u = u, this_m = m, this_row[R];
        Finish<T, MODE> finish;
        float sum[R];

#pragma unroll
        for (int r = 0; r < R; r++)
            sum[r] = 0, this_row[r] = row[r];
        finish.prepare(p, 0, u, m, row);
        u += stride;
        for (uint32_t c = lane;; c += 32 * UNROLL<W, R>) {
            Batch<W, R> now = next;
            bool last = c - lane + 32 * UNROLL<W, R> >= chunks;

            if (!last)
                next.load(at, c + 32 * UNROLL<W, R>, chunks);
            else if (u < units)
                open(u);
            now.multiply(x, c, chunks, sum);
            if (last)
                break;
        }
#pragma unroll
        for (int r = 0; r < R; r++)
            sum[r] = warp_sum(sum[r]);
        if (lane == 0)
            finish.run(p, 0, this_u, this_m, this_row, sum);
    }
}

// As many blocks as fit at once, or fewer so that every warp takes the same number of units.
static uint32_t one_blocks(const struct ek_cu_queue *q, uint32_t units)
{
    uint32_t rounds = div_up(units, ONE_RESIDENT * q->n_sm * ONE_WARPS);

    return div_up(units, ONE_WARPS * rounds);
}

template <int W, typename T, int MODE>
static cudaError_t one_launch(const struct ek_cu_queue *q, const struct ek_cu_product *p)
{
    bool staged = MODE != EK_CU_LINEAR || p->norm != NULL;
    auto kernel = staged ? one_k<W, T, MODE, true> : one_k<W, T, MODE, MODE != EK_CU_LINEAR>;
    size_t shared = staged ? token_bytes<T>(p->cols, p->norm != NULL) : 0;
    uint32_t rows = 0, units;
    cudaError_t r = split_memory(kernel, shared > ONE_SHARED ? SPLIT_COPIES : SPLIT_LOADS);

    for (uint32_t i = 0; i < p->n_mats; i++)
        rows += p->mat[i].rows;
    units = rows / Unit<MODE>::rows;
    return r == cudaSuccess
               ? launch(q, kernel, one_blocks(q, units), ONE_THREADS, shared, *p, units)
               : r;
}

template <int W>
static cudaError_t one_any(const struct ek_cu_queue *q, enum ek_dtype act, enum ek_cu_mode mode,
                           const struct ek_cu_product *p)
{
    EK_DISPATCH_ACT(act, T, {
        switch (mode) {
        case EK_CU_LINEAR:
            return one_launch<W, T, EK_CU_LINEAR>(q, p);
        case EK_CU_GATE_UP:
            return one_launch<W, T, EK_CU_GATE_UP>(q, p);
        case EK_CU_QKV:
            return one_launch<W, T, EK_CU_QKV>(q, p);
        }
        return cudaErrorNotSupported;
    });
}

extern "C" cudaError_t ek_cu_product_one(const struct ek_cu_queue *q, enum ek_dtype w,
                                         enum ek_dtype act, enum ek_cu_mode mode,
                                         const struct ek_cu_product *p)
{
    switch (w) {
        EK_WEIGHT_CASE(EK_F32, return one_any<W>(q, act, mode, p))
        EK_WEIGHT_CASE(EK_BF16, return one_any<W>(q, act, mode, p))
        EK_WEIGHT_CASE(EK_F16, return one_any<W>(q, act, mode, p))
    default:
        return cudaErrorNotSupported;
    }
}
