/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/cpu.h"

#include <math.h>

#include "kernels/cpu/simd/compiler.h"
#include "kernels/cpu/simd/vec_c.h"
#include "kernels/cpu/simd/decode.h"
#include "kernels/cpu/simd/products.h"
#include "kernels/cpu/simd/rows.h"
#include "kernels/cpu/simd/read.h"
#include "kernels/cpu/simd/attend.h"
#include "kernels/cpu/simd/table.h"
