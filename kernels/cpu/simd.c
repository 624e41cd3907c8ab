/* SPDX-License-Identifier: Apache-2.0
 *
 * Which vector code this processor runs.
 */
#include "kernels/cpu/cpu.h"

#ifdef HAVE_X86_SIMD
#include <cpuid.h>
#endif
#include <stdlib.h>
#include <string.h>

static bool any(void)
{
    return true;
}

#ifdef HAVE_X86_SIMD
static bool has_avx2(void)
{
    unsigned a, b, c, d; /* Clang does not know f16c by name */

    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

static const struct {
    const struct cpu_simd *table;
    bool (*works)(void);
} variants[] = {/* best first */
#ifdef HAVE_X86_SIMD
                {&cpu_simd_avx512, has_avx512},
                {&cpu_simd_avx2, has_avx2},
#endif
                {&cpu_simd_c, any}};

enum ek_status cpu_simd_find(const struct cpu_simd **out)
{
    const char *forced = getenv("EK_SIMD");

    for (size_t i = 0; i < EK_ARRAY_LEN(variants); i++) {
        if (forced && *forced && strcmp(forced, variants[i].table->name) != 0)
            continue;
        if (variants[i].works()) {
            *out = variants[i].table;
            return EK_OK;
        }
    }
    return ek_error(EK_EENV, "EK_SIMD=%s is not available on this processor (c, avx2, avx512)",
                    forced);
}
