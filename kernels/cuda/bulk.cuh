// SPDX-License-Identifier: Apache-2.0
// Hopper's bulk copies, from memory to shared memory past the threads. Addresses and sizes are
// multiples of 16 bytes.
#ifndef EK_CUDA_BULK_CUH
#define EK_CUDA_BULK_CUH

#include "kernels/cuda/common.cuh"

// What one thread of a block tells the others, once. It lies in shared memory.
struct Signal {
    uint64_t barrier;

    __device__ __forceinline__ void open() // one thread, before a barrier of the block
    {
#if __CUDA_ARCH__ >= 900
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_at(&barrier))
                     : "memory");
#endif
    }
    __device__ __forceinline__ void give()
    {
#if __CUDA_ARCH__ >= 900
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_at(&barrier))
                     : "memory");
#endif
    }
    // Whether it was given; a thread that has nothing else to do waits a while.
    __device__ __forceinline__ bool given(bool idle) const
    {
        uint32_t yes = 1;
#if __CUDA_ARCH__ >= 900
        if (idle)
            asm volatile("{.reg .pred p;\n"
                         "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\n"
                         "selp.u32 %0, 1, 0, p;}"
                         : "=r"(yes)
                         : "r"(shared_at(&barrier))
                         : "memory");
        else
            asm volatile("{.reg .pred p;\n"
                         "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], 0;\n"
                         "selp.u32 %0, 1, 0, p;}"
                         : "=r"(yes)
                         : "r"(shared_at(&barrier))
                         : "memory");
#endif
        return __all_sync(0xffffffffu, yes);
    }
};

// Slots of shared memory that one warp fills by bulk copies and empties in the same order. All
// lanes call everything.
template <int SLOTS_MOST> struct BulkRing {
    uint32_t slots, bytes, at, full; // how many, of each, and the addresses of slots and barriers
    uint32_t ask_slot, take_slot, phase, pending;

    // barriers: SLOTS_MOST of the warp's own
    __device__ __forceinline__ void open(uint64_t *barriers, void *memory, uint32_t n,
                                         uint32_t slot_bytes)
    {
        slots = n, bytes = slot_bytes, at = shared_at(memory), full = shared_at(barriers);
        ask_slot = take_slot = phase = pending = 0;
#if __CUDA_ARCH__ >= 900
        if (threadIdx.x % 32 == 0) {
#pragma unroll 1
            for (uint32_t i = 0; i < n; i++)
                asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(full + 8 * i)
                             : "memory");
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        }
        __syncwarp();
#endif
    }
    __device__ __forceinline__ bool room() const
    {
        return pending < slots;
    }
    // Two pieces, one behind the other; the second may be empty. There is room.
    __device__ __forceinline__ void ask(const void *first, uint32_t n_first, const void *second,
                                        uint32_t n_second)
    {
#if __CUDA_ARCH__ >= 900
        if (threadIdx.x % 32 == 0) {
            uint32_t to = at + ask_slot * bytes, barrier = full + 8 * ask_slot;

            expect(barrier, n_first + n_second);
            copy(to, first, n_first, barrier);
            if (n_second)
                copy(to + n_first, second, n_second, barrier);
        }
#endif
        ask_slot = ask_slot + 1 < slots ? ask_slot + 1 : 0;
        pending++;
    }
    // Lane i < n: a row of so many bytes, rows of the slot ld bytes apart.
    __device__ __forceinline__ void ask_rows(const void *row, uint32_t n_row, uint32_t n,
                                             uint32_t ld)
    {
#if __CUDA_ARCH__ >= 900
        uint32_t to = at + ask_slot * bytes, barrier = full + 8 * ask_slot, lane = threadIdx.x % 32;

        if (lane == 0)
            expect(barrier, n * n_row);
        __syncwarp();
        if (lane < n)
            copy(to + lane * ld, row, n_row, barrier);
#endif
        ask_slot = ask_slot + 1 < slots ? ask_slot + 1 : 0;
        pending++;
    }
    // Waits for the oldest slot that was asked for.
    __device__ __forceinline__ uint32_t wait() const
    {
#if __CUDA_ARCH__ >= 900
        asm volatile("{.reg .pred p;\n"
                     "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                     "@!p bra again;}" ::"r"(full + 8 * take_slot),
                     "r"(phase)
                     : "memory");
#endif
        return take_slot;
    }
    // All lanes have read it.
    __device__ __forceinline__ void give_back()
    {
        __syncwarp();
        take_slot++;
        if (take_slot == slots)
            take_slot = 0, phase ^= 1;
        pending--;
    }

  private:
    static __device__ __forceinline__ void expect(uint32_t barrier, uint32_t n)
    {
#if __CUDA_ARCH__ >= 900
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(n)
                     : "memory");
#endif
    }
    static __device__ __forceinline__ void copy(uint32_t to, const void *from, uint32_t n,
                                                uint32_t barrier)
    {
#if __CUDA_ARCH__ >= 900
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                     "[%0], [%1], %2, [%3];" ::"r"(to),
                     "l"(from), "r"(n), "r"(barrier)
                     : "memory");
#endif
    }
};

#endif
