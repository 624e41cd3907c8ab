// SPDX-License-Identifier: Apache-2.0
// Hopper's asynchronous tensor-core products of a warpgroup (128 threads): 64 rows of a, in shared
// memory or registers, times b in shared memory. Operands in shared memory are tiles of 64 16-bit
// columns, rows of 128 bytes, their 16-byte pieces swizzled by row % 8, 1024-byte aligned. The
// accumulators of a warp are its 16 rows in the layout of mma().
#ifndef EK_CUDA_WGMMA_CUH
#define EK_CUDA_WGMMA_CUH

#include "kernels/cuda/common.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define EK_WGMMA 1

// Shared memory at byte address `at`; next: bytes to the tile of the next 64 columns when columns
// are the product's own (b turned), else unused. Groups of 8 rows are `group` bytes apart.
__device__ __forceinline__ uint64_t operand_at(uint32_t at, uint32_t next, uint32_t group = 1024)
{
    return (uint64_t)((at & 0x3ffff) >> 4) | (uint64_t)(next >> 4) << 16 |
           (uint64_t)(group >> 4) << 32 | (uint64_t)1 << 62;
}
__device__ __forceinline__ void wgmma_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits for all committed products but the last LEFT; those accumulators may be read after it.
template <int LEFT, int N> __device__ __forceinline__ void wgmma_wait_but(float (&c)[N][4])
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])::"memory");
}
template <int N> __device__ __forceinline__ void wgmma_wait(float (&c)[N][4])
{
    wgmma_wait_but<0>(c);
}
// Shared memory written by this thread's ordinary stores and copies becomes visible to wgmma.
__device__ __forceinline__ void publish_shared()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#define EK_C4(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define EK_C8    EK_C4(0), EK_C4(1)
#define EK_C16   EK_C8, EK_C4(2), EK_C4(3)
#define EK_C32   EK_C16, EK_C4(4), EK_C4(5), EK_C4(6), EK_C4(7)
#define EK_C40   EK_C32, EK_C4(8), EK_C4(9)
#define EK_C64                                                                                     \
    EK_C32, EK_C4(8), EK_C4(9), EK_C4(10), EK_C4(11), EK_C4(12), EK_C4(13), EK_C4(14), EK_C4(15)
#define EK_R32                                                                                     \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"  \
    "%25,%26,%27,%28,%29,%30,%31}"
#define EK_R40                                                                                     \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"  \
    "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39}"
#define EK_R64                                                                                     \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"  \
    "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"

// c[64 x N] = (add ? c : 0) + a b^T of 16 columns of a and b, both in shared memory. A, B, ADD: the
// operands after the registers C.
#define EK_WGMMA_SHARED_N(T, NAME, N, R, C, A, B, ADD)                                             \
    __device__ __forceinline__ void wgmma_shared(float(&c)[N / 8][4], uint64_t a, uint64_t b,      \
                                                 bool add, T)                                      \
    {                                                                                              \
        asm volatile("{.reg .pred p; setp.ne.b32 p, " ADD ", 0;\n"                                 \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " " R ", " A  \
                     ", " B ", p, 1, 1, 0, 0;}"                                                    \
                     : C                                                                           \
                     : "l"(a), "l"(b), "r"((int)add));                                             \
    }
#define EK_WGMMA_SHARED(T, NAME)                                                                   \
    EK_WGMMA_SHARED_N(T, NAME, 8, "{%0,%1,%2,%3}", EK_C4(0), "%4", "%5", "%6")                     \
    EK_WGMMA_SHARED_N(T, NAME, 16, "{%0,%1,%2,%3,%4,%5,%6,%7}", EK_C8, "%8", "%9", "%10")          \
    EK_WGMMA_SHARED_N(T, NAME, 32, "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}",      \
                      EK_C16, "%16", "%17", "%18")                                                 \
    EK_WGMMA_SHARED_N(T, NAME, 64, EK_R32, EK_C32, "%32", "%33", "%34")                            \
    EK_WGMMA_SHARED_N(T, NAME, 128, EK_R64, EK_C64, "%64", "%65", "%66")
// c[64 x D] += a b: a 64 x 16 in registers, b 16 rows of shared memory.
#define EK_WGMMA_REGISTERS(T, NAME)                                                                \
    __device__ __forceinline__ void wgmma_registers(float(&c)[8][4], const uint32_t a[4],          \
                                                    uint64_t b, T)                                 \
    {                                                                                              \
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " " EK_R32        \
                     ", {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"                                       \
                     : EK_C32                                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                        \
    }                                                                                              \
    __device__ __forceinline__ void wgmma_registers(float(&c)[10][4], const uint32_t a[4],         \
                                                    uint64_t b, T)                                 \
    {                                                                                              \
        asm volatile("wgmma.mma_async.sync.aligned.m64n80k16.f32." NAME "." NAME " " EK_R40        \
                     ", {%40,%41,%42,%43}, %44, 1, 1, 1, 1;"                                       \
                     : EK_C40                                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                        \
    }                                                                                              \
    __device__ __forceinline__ void wgmma_registers(float(&c)[16][4], const uint32_t a[4],         \
                                                    uint64_t b, T)                                 \
    {                                                                                              \
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " " EK_R64       \
                     ", {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"                                       \
                     : EK_C64                                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                        \
    }
EK_WGMMA_SHARED(bf16, "bf16")
EK_WGMMA_SHARED(f16, "f16")
EK_WGMMA_REGISTERS(bf16, "bf16")
EK_WGMMA_REGISTERS(f16, "f16")

#endif
#endif
