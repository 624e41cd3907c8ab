/* SPDX-License-Identifier: Apache-2.0
 *
 * What GCC and Clang spell differently. Every variant of the vector code includes it first.
 */
#ifndef EK_KERNELS_CPU_COMPILER_H
#define EK_KERNELS_CPU_COMPILER_H

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL                     _Pragma("clang loop unroll(full)")
#define SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define UNROLL _Pragma("GCC unroll 16")
#define SHUFFLE4(a, b, i, j, k, l)                                                                 \
    __builtin_shuffle(a, b, (int32_t __attribute__((vector_size(16)))){i, j, k, l})
#endif

#endif
