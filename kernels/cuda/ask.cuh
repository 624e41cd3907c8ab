// SPDX-License-Identifier: Apache-2.0
// Loads of weights that may not be there: zeros then. No branch: compilers keep loads in flight
// apart from each other only in code without any. AT: bytes behind the address, which the load adds
// by itself.
#ifndef EK_CUDA_ASK_CUH
#define EK_CUDA_ASK_CUH

#include <cstdint>
#include <cuda_runtime.h>

template <uint32_t AT = 0>
__device__ __forceinline__ uint16_t ask_u16(const uint8_t *p, uint32_t there)
{
    uint16_t v = 0;
    asm volatile("{.reg .pred q;\nsetp.ne.u32 q, %2, 0;\n"
                 "@q ld.global.nc.L1::no_allocate.u16 %0, [%1 + %3];}"
                 : "+h"(v)
                 : "l"(p), "r"(there), "n"(AT));
    return v;
}
template <uint32_t AT = 0>
__device__ __forceinline__ uint32_t ask_u32(const uint8_t *p, uint32_t there)
{
    uint32_t v = 0;
    asm volatile("{.reg .pred q;\nsetp.ne.u32 q, %2, 0;\n"
                 "@q ld.global.nc.L1::no_allocate.u32 %0, [%1 + %3];}"
                 : "+r"(v)
                 : "l"(p), "r"(there), "n"(AT));
    return v;
}
template <uint32_t AT = 0>
__device__ __forceinline__ uint2 ask_u64(const uint8_t *p, uint32_t there)
{
    uint2 v = make_uint2(0, 0);
    asm volatile("{.reg .pred q;\nsetp.ne.u32 q, %3, 0;\n"
                 "@q ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2 + %4];}"
                 : "+r"(v.x), "+r"(v.y)
                 : "l"(p), "r"(there), "n"(AT));
    return v;
}
template <uint32_t AT = 0>
__device__ __forceinline__ uint4 ask_u128(const uint8_t *p, uint32_t there)
{
    uint4 v = make_uint4(0, 0, 0, 0);
    asm volatile("{.reg .pred q;\nsetp.ne.u32 q, %5, 0;\n"
                 "@q ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4 + %6];}"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                 : "l"(p), "r"(there), "n"(AT));
    return v;
}

#endif
