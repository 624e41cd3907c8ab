// SPDX-License-Identifier: Apache-2.0
// Products with up to 8 tokens and plain weights of another type than the activations, or where the
// weights cannot be streamed: converted on their way from memory to the tensor cores. A block takes
// 16 output rows (or 8 units of two that belong together), its warps share the columns.
#ifndef EK_CUDA_FEW_CUH
#define EK_CUDA_FEW_CUH

#include "kernels/cuda/chunks.cuh"
#include "kernels/cuda/units.cuh"

template <int W, typename T, int MODE, int WARPS>
__global__ void __launch_bounds__((32 * WARPS), 16 / WARPS)
    few_k(const ek_cu_product p, uint32_t n, uint32_t units)
{
    const int R = Unit<MODE>::rows, UNITS = 16 / R;
    __shared__ float parts[WARPS][8][17];
    uint32_t g = threadIdx.x % 32 / 4, first = blockIdx.x * UNITS;
    WeightRow row[2];
    const T *x[1];
    float sum[1][4] = {};

#pragma unroll
    for (int r = 0; r < 2; r++) { // rows past the end repeat the last
        uint32_t m, rows[R], member = R == 2 ? r : 0;

        Unit<MODE>::find(p, min(first + g + (R == 1 ? 8 * r : 0), units - 1), &m, rows);
        row[r] = row_of<W>(Unit<MODE>::data(p, m, (int)member), rows[member], p.row_bytes);
    }
    x[0] = g < n ? (const T *)p.x + g * p.ldx : NULL;
    multiply_rows<W, T, 1, WARPS>(sum, row, p.cols / 8, x, [] {
        pdl_next();
        pdl_wait();
    });
    publish(parts[threadIdx.x / 32], sum);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < UNITS * n; i += (32 * WARPS)) {
        uint32_t token = i / UNITS, at = i % UNITS, m, rows[R];
        Finish<T, MODE> finish;
        float v[R] = {};

        if (first + at >= units)
            continue;
        Unit<MODE>::find(p, first + at, &m, rows);
        finish.prepare(p, token, first + at, m, rows);
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int w = 0; w < WARPS; w++)
                v[r] += parts[w][token][at + 8 * r];
        finish.run(p, token, first + at, m, rows, v);
    }
}

// Short matrices have fewer blocks than there is room for: theirs have twice the warps.
template <int W, typename T, int MODE>
static cudaError_t few_launch(const struct ek_cu_queue *q, uint32_t n,
                              const struct ek_cu_product *p)
{
    uint32_t rows = 0, units, blocks;

    for (uint32_t i = 0; i < p->n_mats; i++)
        rows += p->mat[i].rows;
    units = rows / Unit<MODE>::rows;
    blocks = div_up(rows, 16);
    if constexpr (SAME_TYPE<W, T>)
        if (blocks < 2 * q->n_sm)
            return launch(q, few_k<W, T, MODE, 16>, blocks, 512, 0, *p, n, units);
    return launch(q, few_k<W, T, MODE, 8>, blocks, 256, 0, *p, n, units);
}

template <int W, typename T>
static cudaError_t few_typed(const struct ek_cu_queue *q, enum ek_cu_mode mode, uint32_t n,
                             const struct ek_cu_product *p)
{
    switch (mode) {
    case EK_CU_LINEAR:
        return few_launch<W, T, EK_CU_LINEAR>(q, n, p);
    case EK_CU_GATE_UP:
        return few_launch<W, T, EK_CU_GATE_UP>(q, n, p);
    case EK_CU_QKV:
        return few_launch<W, T, EK_CU_QKV>(q, n, p);
    }
    return cudaErrorNotSupported;
}

template <int W>
static cudaError_t few_any(const struct ek_cu_queue *q, enum ek_dtype act, enum ek_cu_mode mode,
                           uint32_t n, const struct ek_cu_product *p)
{
    return act == EK_BF16  ? few_typed<W, bf16>(q, mode, n, p)
           : act == EK_F16 ? few_typed<W, f16>(q, mode, n, p)
                           : cudaErrorNotSupported;
}

#endif
