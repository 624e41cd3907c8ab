// SPDX-License-Identifier: Apache-2.0
// Stores into the memory of another GPU, and the flag that says that they have arrived.
#include "kernels/cuda/common.cuh"

#define THREADS     512
#define BLOCK_BYTES ((size_t)32 << 10) // of a message, one block's
#define IN_FLIGHT   4                  // loads of a thread
#define STOP_EVERY  4096u              // looks at the flag, a few milliseconds
#define MAX_BLOCKS  64u                // enough for the link; the queue's own work waits anyway

__device__ __forceinline__ void raise_flag(uint32_t *flag, uint32_t value)
{
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

__device__ __forceinline__ uint32_t look(const uint32_t *flag)
{
    uint32_t now;

    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(now) : "l"(flag) : "memory");
    return now;
}

// stop is in the host's memory, far away: it is looked at now and then.
__device__ __forceinline__ void await_flag(const uint32_t *flag, uint32_t least,
                                           const uint32_t *stop)
{
    for (uint32_t n = 1; (int32_t)(look(flag) - least) < 0; n++)
        if (stop != nullptr && n % STOP_EVERY == 0 && look(stop) != 0)
            return;
}

__device__ __forceinline__ uint64_t clock_ns()
{
    uint64_t now;

    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

__device__ __forceinline__ void note(uint64_t *when, uint64_t time)
{
    if (when != nullptr)
        *(volatile uint64_t *)when = time;
}

__device__ __forceinline__ void copy_part(uint8_t *dst, const uint8_t *src, size_t n)
{
    size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x,
           step = (size_t)gridDim.x * blockDim.x;
    size_t wide = n / sizeof(uint4);

    if (((uintptr_t)dst | (uintptr_t)src) % sizeof(uint4) != 0)
        wide = 0;
    for (size_t i = at; i < wide; i += IN_FLIGHT * step) {
        uint4 v[IN_FLIGHT];
#pragma unroll
        for (size_t k = 0; k < IN_FLIGHT; k++)
            if (i + k * step < wide)
                v[k] = ((const uint4 *)src)[i + k * step];
#pragma unroll
        for (size_t k = 0; k < IN_FLIGHT; k++)
            if (i + k * step < wide)
                ((uint4 *)dst)[i + k * step] = v[k];
    }
    for (size_t i = wide * sizeof(uint4) + at; i < n; i += step)
        dst[i] = src[i];
}

// The last block to arrive raises the flag; the counter is zero again for the next message. The
// host's memory is far away: the time is written when nobody waits for this thread any more.
__global__ void __launch_bounds__(THREADS)
    store_k(uint8_t *dst, const uint8_t *src, size_t n, uint32_t *flag, uint32_t value,
            uint32_t *arrived, uint64_t *when)
{
    uint64_t began = clock_ns();
    bool last = gridDim.x == 1;

    copy_part(dst, src, n);
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    __threadfence_system(); // this block's stores are seen before what follows
    if (flag != nullptr && !last && (last = atomicAdd(arrived, 1) == gridDim.x - 1)) {
        *arrived = 0;
        __threadfence_system();
    }
    if (flag != nullptr && last)
        raise_flag(flag, value);
    if (blockIdx.x == 0)
        note(when, began);
}

// One thread waits: it sees the flag sooner than the queue's own way of waiting, and there is never
// more than one such thread a queue, so that the senders find room beside it.
__global__ void await_k(const uint32_t *flag, uint32_t value, const uint32_t *stop, uint64_t *when)
{
    await_flag(flag, value, stop);
    note(when, clock_ns());
}

__global__ void stamp_k(uint64_t *when)
{
    note(when, clock_ns());
}

extern "C" cudaError_t ek_cu_store(const struct ek_cu_queue *q, void *dst, const void *src,
                                   size_t n, uint32_t *flag, uint32_t value, uint32_t *arrived,
                                   uint64_t *when)
{
    size_t blocks = (n + BLOCK_BYTES - 1) / BLOCK_BYTES;
    uint32_t grid = blocks < 1 ? 1 : blocks < MAX_BLOCKS ? (uint32_t)blocks : MAX_BLOCKS;

    store_k<<<grid, THREADS, 0, q->stream>>>((uint8_t *)dst, (const uint8_t *)src, n, flag, value,
                                             arrived, when);
    return cudaGetLastError();
}

extern "C" cudaError_t ek_cu_await(const struct ek_cu_queue *q, const uint32_t *flag,
                                   uint32_t value, const uint32_t *stop, uint64_t *when)
{
    await_k<<<1, 1, 0, q->stream>>>(flag, value, stop, when);
    return cudaGetLastError();
}

extern "C" cudaError_t ek_cu_stamp(const struct ek_cu_queue *q, uint64_t *when)
{
    stamp_k<<<1, 1, 0, q->stream>>>(when);
    return cudaGetLastError();
}
