// SPDX-License-Identifier: Apache-2.0
// Products with a norm, one token and matrices of few bytes a multiprocessor, as latent attention
// begins with: what bounds them is the way from one kernel to the next. A warp takes a row, as good
// as always one: it comes to shared memory by a bulk copy while the kernel ahead is at work, but
// for its last columns, which are in registers. Both are cut so that the kernels around keep their
// places on the multiprocessor.
#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/held.h"
#include "kernels/cuda/split.cuh"
#include "kernels/cuda/staged.cuh"
#include "kernels/cuda/units.cuh"

#define HELD_WARPS 28
#define HELD_LAST  256          // columns in registers
#define HELD_MOST  (128 * 1024) // of the weights that a block has to read, at most

// A warp's row, asked for and then multiplied.
template <typename T> struct HeldRow {
    BulkRing<1> ring;
    uint32_t m, row;
    uint4 last;
    const T *slot;

    __device__ __forceinline__ void ask(const ek_cu_product &p, uint32_t u)
    {
        uint32_t bytes = p.row_bytes - HELD_LAST * sizeof(T);

        Unit<EK_CU_LINEAR>::find(p, u, &m, &row);
        const uint8_t *at = p.mat[m].data + row * p.row_bytes;
        last = load_stream(at + bytes + 16 * (threadIdx.x % 32));
        ring.ask(at, bytes, NULL, 0);
    }
    static __device__ __forceinline__ float dot(const uint4 &w, const float x[8], float sum)
    {
        float v[8];

        load8(reinterpret_cast<const T *>(&w), v);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum = fmaf(x[j], v[j], sum);
        return sum;
    }
    // x in shared memory
    __device__ __forceinline__ float sum(const T *x, uint32_t cols)
    {
        uint32_t held = cols - HELD_LAST, lane = threadIdx.x % 32;
        float xv[8], sum = 0;

        ring.wait();
#pragma unroll 2
        for (uint32_t c = 8 * lane; c < held; c += 256) {
            load8(x + c, xv);
            sum = dot(*reinterpret_cast<const uint4 *>(slot + c), xv, sum);
        }
        ring.give_back();
        load8(x + held + 8 * lane, xv);
        return warp_sum(dot(last, xv, sum));
    }
};

template <typename T>
__global__ void __maxnreg__(40)
    held_k(const ek_cu_product p, uint32_t rows, uint32_t front, uint32_t slot_bytes)
{
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) uint8_t held[];
    __shared__ uint64_t barriers[HELD_WARPS];
    uint32_t warp = threadIdx.x / 32, warps = blockDim.x / 32;
    T *token = reinterpret_cast<T *>(held);
    uint8_t *slot = held + front + warp * slot_bytes;
    HeldRow<T> mine;
    Finish<T, EK_CU_LINEAR> finish;

    mine.slot = (const T *)slot;
    mine.ring.open(barriers + warp, slot, 1, slot_bytes);
    uint32_t u = blockIdx.x + gridDim.x * warp;
    if (u < rows)
        mine.ask(p, u);
    const float *norm = stage_norm(p.norm, p.cols, token);
    pdl_next();
    pdl_wait();
    ask_token((const T *)p.x, p.cols, token);
    if (u < rows)
        finish.prepare(p, 0, u, mine.m, &mine.row);
    stage_token(norm, p.eps, p.cols, token);
    while (u < rows) {
        float sum = mine.sum(token, p.cols);

        if (threadIdx.x % 32 == 0)
            finish.run(p, 0, u, mine.m, &mine.row, &sum);
        u += gridDim.x * warps;
        if (u < rows) {
            mine.ask(p, u);
            finish.prepare(p, 0, u, mine.m, &mine.row);
        }
    }
#endif
}

// ---- launch
static uint32_t rows_of(const struct ek_cu_product *p)
{
    uint32_t rows = 0;

    for (uint32_t i = 0; i < p->n_mats; i++)
        rows += p->mat[i].rows;
    return rows;
}

static uint32_t front_bytes(const struct ek_cu_product *p) // the token, and its norm's weights
{
    return ((uint32_t)token_bytes<bf16>(p->cols, p->norm != NULL) + 127) & ~127u;
}

static uint32_t slot_of(const struct ek_cu_product *p)
{
    return (uint32_t)p->row_bytes - 2 * HELD_LAST;
}

// Warps of a block that has so many rows, as far as there is shared memory for a slot each.
static uint32_t warps_of(const struct ek_cu_product *p, uint32_t rows)
{
    uint32_t front = front_bytes(p), room = EK_CU_HELD_SHARED - 1024; // the kernel has its own
    uint32_t n = front < room ? (room - front) / slot_of(p) : 0;

    n = n < HELD_WARPS ? n : HELD_WARPS;
    return n < rows ? n : rows;
}

extern "C" bool ek_cu_held_fits(const struct ek_cu_queue *q, const struct ek_cu_product *p)
{
    uint64_t bytes = (uint64_t)rows_of(p) * p->row_bytes;
    uint32_t each = div_up(rows_of(p), q->n_sm);

    return q->pdl && q->shared >= EK_CU_HELD_SHARED && p->norm != NULL &&
           p->cols >= 2 * HELD_LAST && p->row_bytes == 2 * (size_t)p->cols &&
           bytes <= (uint64_t)HELD_MOST * q->n_sm && each > 0 && 2 * warps_of(p, each) >= each;
}

template <typename T>
static cudaError_t held_launch(const struct ek_cu_queue *q, const struct ek_cu_product *p)
{
    uint32_t rows = rows_of(p), each = div_up(rows, q->n_sm), slot = slot_of(p);
    uint32_t warps = warps_of(p, each), front = front_bytes(p);
    cudaError_t r = split_memory(held_k<T>, SPLIT_COPIES);

    return r == cudaSuccess ? launch(q, held_k<T>, div_up(rows, each), 32 * warps,
                                     front + warps * slot, *p, rows, front, slot)
                            : r;
}

extern "C" cudaError_t ek_cu_product_held(const struct ek_cu_queue *q, enum ek_dtype act,
                                          const struct ek_cu_product *p)
{
    return act == EK_BF16  ? held_launch<bf16>(q, p)
           : act == EK_F16 ? held_launch<f16>(q, p)
                           : cudaErrorNotSupported;
}
