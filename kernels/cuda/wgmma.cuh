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

// EK_LIST_n names the first 8 n registers, EK_SUMS_n binds them to c.
#define EK_C4(i)   "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define EK_LIST_1  "%0,%1,%2,%3,%4,%5,%6,%7"
#define EK_LIST_2  EK_LIST_1 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define EK_LIST_3  EK_LIST_2 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define EK_LIST_4  EK_LIST_3 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define EK_LIST_5  EK_LIST_4 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define EK_LIST_6  EK_LIST_5 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define EK_LIST_7  EK_LIST_6 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define EK_LIST_8  EK_LIST_7 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define EK_LIST_9  EK_LIST_8 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define EK_LIST_10 EK_LIST_9 ",%72,%73,%74,%75,%76,%77,%78,%79"
#define EK_LIST_11 EK_LIST_10 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define EK_LIST_12 EK_LIST_11 ",%88,%89,%90,%91,%92,%93,%94,%95"
#define EK_SUMS_1  EK_C4(0), EK_C4(1)
#define EK_SUMS_2  EK_SUMS_1, EK_C4(2), EK_C4(3)
#define EK_SUMS_3  EK_SUMS_2, EK_C4(4), EK_C4(5)
#define EK_SUMS_4  EK_SUMS_3, EK_C4(6), EK_C4(7)
#define EK_SUMS_5  EK_SUMS_4, EK_C4(8), EK_C4(9)
#define EK_SUMS_6  EK_SUMS_5, EK_C4(10), EK_C4(11)
#define EK_SUMS_7  EK_SUMS_6, EK_C4(12), EK_C4(13)
#define EK_SUMS_8  EK_SUMS_7, EK_C4(14), EK_C4(15)
#define EK_SUMS_9  EK_SUMS_8, EK_C4(16), EK_C4(17)
#define EK_SUMS_10 EK_SUMS_9, EK_C4(18), EK_C4(19)
#define EK_SUMS_11 EK_SUMS_10, EK_C4(20), EK_C4(21)
#define EK_SUMS_12 EK_SUMS_11, EK_C4(22), EK_C4(23)

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
    EK_WGMMA_SHARED_N(T, NAME, 16, "{" EK_LIST_1 "}", EK_SUMS_1, "%8", "%9", "%10")                \
    EK_WGMMA_SHARED_N(T, NAME, 32, "{" EK_LIST_2 "}", EK_SUMS_2, "%16", "%17", "%18")              \
    EK_WGMMA_SHARED_N(T, NAME, 48, "{" EK_LIST_3 "}", EK_SUMS_3, "%24", "%25", "%26")              \
    EK_WGMMA_SHARED_N(T, NAME, 64, "{" EK_LIST_4 "}", EK_SUMS_4, "%32", "%33", "%34")              \
    EK_WGMMA_SHARED_N(T, NAME, 80, "{" EK_LIST_5 "}", EK_SUMS_5, "%40", "%41", "%42")              \
    EK_WGMMA_SHARED_N(T, NAME, 96, "{" EK_LIST_6 "}", EK_SUMS_6, "%48", "%49", "%50")              \
    EK_WGMMA_SHARED_N(T, NAME, 112, "{" EK_LIST_7 "}", EK_SUMS_7, "%56", "%57", "%58")             \
    EK_WGMMA_SHARED_N(T, NAME, 128, "{" EK_LIST_8 "}", EK_SUMS_8, "%64", "%65", "%66")             \
    EK_WGMMA_SHARED_N(T, NAME, 144, "{" EK_LIST_9 "}", EK_SUMS_9, "%72", "%73", "%74")             \
    EK_WGMMA_SHARED_N(T, NAME, 160, "{" EK_LIST_10 "}", EK_SUMS_10, "%80", "%81", "%82")           \
    EK_WGMMA_SHARED_N(T, NAME, 176, "{" EK_LIST_11 "}", EK_SUMS_11, "%88", "%89", "%90")           \
    EK_WGMMA_SHARED_N(T, NAME, 192, "{" EK_LIST_12 "}", EK_SUMS_12, "%96", "%97", "%98")
// c[64 x D] += a b: a 64 x 16 in registers, b 16 rows of shared memory.
#define EK_WGMMA_REGISTERS_N(T, NAME, N, R, C, A0, A1, A2, A3, B)                                  \
    __device__ __forceinline__ void wgmma_registers(float(&c)[N / 8][4], const uint32_t a[4],      \
                                                    uint64_t b, T)                                 \
    {                                                                                              \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " " R         \
                     ", {" A0 "," A1 "," A2 "," A3 "}, " B ", 1, 1, 1, 1;"                         \
                     : C                                                                           \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                        \
    }
#define EK_WGMMA_REGISTERS(T, NAME)                                                                \
    EK_WGMMA_REGISTERS_N(T, NAME, 64, "{" EK_LIST_4 "}", EK_SUMS_4, "%32", "%33", "%34", "%35",    \
                         "%36")                                                                    \
    EK_WGMMA_REGISTERS_N(T, NAME, 80, "{" EK_LIST_5 "}", EK_SUMS_5, "%40", "%41", "%42", "%43",    \
                         "%44")                                                                    \
    EK_WGMMA_REGISTERS_N(T, NAME, 128, "{" EK_LIST_8 "}", EK_SUMS_8, "%64", "%65", "%66", "%67",   \
                         "%68")
EK_WGMMA_SHARED(bf16, "bf16")
EK_WGMMA_SHARED(f16, "f16")
EK_WGMMA_REGISTERS(bf16, "bf16")
EK_WGMMA_REGISTERS(f16, "f16")

#endif
#endif
