/* SPDX-License-Identifier: Apache-2.0
 *
 * Compiled for one instruction set by pragma, so that no build flag reaches shared inline code.
 */
#include "kernels/cpu/cpu.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq"))),                   \
    apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")
#endif
#include "kernels/cpu/simd/compiler.h"
#include "kernels/cpu/simd/vec_avx512.h"
#include "kernels/cpu/simd/decode.h"
#include "kernels/cpu/simd/products.h"
#include "kernels/cpu/simd/rows.h"
#include "kernels/cpu/simd/read.h"
#include "kernels/cpu/simd/attend.h"
#include "kernels/cpu/simd/table.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
