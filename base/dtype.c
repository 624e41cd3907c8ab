/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base.h"

#include <math.h>
#include <string.h>
#include <strings.h>

static const struct {
    const char *name, *alias;
    uint16_t block, bytes;
} dtypes[EK_N_DTYPES] = {
    [EK_F32] = {"F32", "float32", 1, 4},
    [EK_F16] = {"F16", "float16", 1, 2},
    [EK_BF16] = {"BF16", "bfloat16", 1, 2},
    [EK_F64] = {"F64", "float64", 1, 8},
    [EK_F8_E4M3] = {"F8_E4M3", "float8_e4m3fn", 1, 1},
    [EK_F8_E5M2] = {"F8_E5M2", "float8_e5m2", 1, 1},
    [EK_I64] = {"I64", "int64", 1, 8},
    [EK_I32] = {"I32", "int32", 1, 4},
    [EK_I16] = {"I16", "int16", 1, 2},
    [EK_I8] = {"I8", "int8", 1, 1},
    [EK_U8] = {"U8", "uint8", 1, 1},
    [EK_BOOL] = {"BOOL", "bool", 1, 1},
    [EK_Q4_0] = {"Q4_0", "q4_0", 32, 18},
    [EK_Q4_1] = {"Q4_1", "q4_1", 32, 20},
    [EK_Q5_0] = {"Q5_0", "q5_0", 32, 22},
    [EK_Q5_1] = {"Q5_1", "q5_1", 32, 24},
    [EK_Q8_0] = {"Q8_0", "q8_0", 32, 34},
    [EK_Q4_K] = {"Q4_K", "q4_k", 256, 144},
    [EK_Q5_K] = {"Q5_K", "q5_k", 256, 176},
    [EK_Q6_K] = {"Q6_K", "q6_k", 256, 210},
    [EK_G4_32] = {"G4_32", "g4_32", 32, 20},
    [EK_G4_64] = {"G4_64", "g4_64", 64, 36},
    [EK_G4_128] = {"G4_128", "g4_128", 128, 68},
    [EK_G8_32] = {"G8_32", "g8_32", 32, 36},
    [EK_G8_64] = {"G8_64", "g8_64", 64, 68},
    [EK_G8_128] = {"G8_128", "g8_128", 128, 132},
    [EK_B8_32] = {"B8_32", "b8_32", 32, 36},
    [EK_B8_64] = {"B8_64", "b8_64", 64, 68},
    [EK_B8_128] = {"B8_128", "b8_128", 128, 132},
};

const char *ek_dtype_name(enum ek_dtype t)
{
    return dtypes[t].name;
}

bool ek_dtype_from_name(const char *name, enum ek_dtype *out)
{
    for (int t = 0; t < EK_N_DTYPES; t++)
        if (strcasecmp(name, dtypes[t].name) == 0 || strcasecmp(name, dtypes[t].alias) == 0) {
            *out = (enum ek_dtype)t;
            return true;
        }
    if (strcasecmp(name, "fp8") == 0) {
        *out = EK_F8_E4M3;
        return true;
    }
    return false;
}

bool ek_dtype_is_act(enum ek_dtype t)
{
    return t == EK_F32 || t == EK_F16 || t == EK_BF16;
}

bool ek_dtype_is_cache(enum ek_dtype t)
{
    return ek_dtype_is_act(t) || t == EK_F8_E4M3;
}

size_t ek_dtype_block(enum ek_dtype t)
{
    return dtypes[t].block;
}

size_t ek_dtype_block_bytes(enum ek_dtype t)
{
    return dtypes[t].bytes;
}

enum ek_status ek_dtype_bytes(enum ek_dtype t, size_t n, size_t *out)
{
    size_t bytes;

    if (n % dtypes[t].block)
        return ek_error(EK_EFORMAT, "%zu elements of %s: not a multiple of its block of %u", n,
                        dtypes[t].name, dtypes[t].block);
    if (!ek_mul_size(n / dtypes[t].block, dtypes[t].bytes, &bytes))
        return ek_error(EK_EFORMAT, "%zu elements of %s overflow", n, dtypes[t].name);
    *out = bytes;
    return EK_OK;
}

float ek_e4m3_to_f32(uint8_t x)
{
    int exponent = x >> 3 & 15, mantissa = x & 7;
    float v = exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);

    if ((x & 0x7f) == 0x7f)
        v = NAN;
    return x & 0x80 ? -v : v;
}

uint8_t ek_f32_to_e4m3(float x)
{
    uint32_t bits, sign, size;

    memcpy(&bits, &x, sizeof(bits));
    sign = bits >> 24 & 0x80;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return (uint8_t)(sign | 0x7f);
    if (bits < 121u << 23) /* below 2^-6: multiples of 2^-9 */
        return (uint8_t)(sign | (uint32_t)lrintf(ldexpf(fabsf(x), 9)));
    size = ((bits + 0x7ffffu + (bits >> 20 & 1)) >> 20) - (120u << 3);
    return (uint8_t)(sign | (bits >= 0x7f800000u || size > 0x7e ? 0x7e : size));
}

float ek_bf16_to_f32(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float f;

    memcpy(&f, &bits, sizeof(f));
    return f;
}

uint16_t ek_f32_to_bf16(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

float ek_f16_to_f32(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16;
    uint32_t exponent = (x >> 10) & 31, mantissa = x & 1023u;
    uint32_t bits;
    float f;

    if (exponent == 31) {
        bits = sign | 0x7f800000u | (mantissa << 13);
    } else if (exponent) {
        bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
    } else { /* subnormal: an integer times 2^-24, exact in fp32 */
        f = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &f, sizeof(bits));
        bits |= sign;
    }
    memcpy(&f, &bits, sizeof(f));
    return f;
}

uint16_t ek_f32_to_f16(float x)
{
    uint32_t bits, sign, rest;
    int exponent;

    memcpy(&bits, &x, sizeof(bits));
    sign = (bits >> 16) & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (bits >= 0x477ff000u) /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00u);
    exponent = (int)(bits >> 23) - 112;
    if (exponent > 0) {
        rest = bits & 0x1fffu;
        bits = (bits - (112u << 23)) >> 13;
        bits += rest > 0x1000u || (rest == 0x1000u && (bits & 1));
        return (uint16_t)(sign | bits);
    }
    if (exponent < -10)
        return (uint16_t)sign;
    rest = (bits & 0x7fffffu) | 0x800000u;
    bits = rest >> (14 - exponent);
    rest &= (1u << (14 - exponent)) - 1;
    bits += rest > (1u << (13 - exponent)) || (rest == (1u << (13 - exponent)) && (bits & 1));
    return (uint16_t)(sign | bits);
}
