/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights to F32 in plain C: the reference that every backend is tested against. Every value is
 * exact or rounded once, so vectorised decoders can be held to bit equality.
 */
#include "base/base.h"

#include <string.h>

typedef void (*block_fn)(const uint8_t *block, float *out);

static uint32_t get_u16(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8;
}

static uint32_t get_u32(const uint8_t *p)
{
    return get_u16(p) | get_u16(p + 2) << 16;
}

static float get_f16(const uint8_t *p)
{
    return ek_f16_to_f32((uint16_t)get_u16(p));
}

static void block_f32(const uint8_t *b, float *out)
{
    memcpy(out, b, sizeof(*out));
}

static void block_f16(const uint8_t *b, float *out)
{
    *out = get_f16(b);
}

static void block_bf16(const uint8_t *b, float *out)
{
    *out = ek_bf16_to_f32((uint16_t)get_u16(b));
}

static void block_f64(const uint8_t *b, float *out)
{
    double d;

    memcpy(&d, b, sizeof(d));
    *out = (float)d;
}

static void block_f8_e4m3(const uint8_t *b, float *out)
{
    *out = ek_e4m3_to_f32(*b);
}

/* E5M2: the upper byte of an F16. */
static void block_f8_e5m2(const uint8_t *b, float *out)
{
    *out = ek_f16_to_f32((uint16_t)(*b << 8));
}

static void block_q4_0(const uint8_t *b, float *out)
{
    float d = get_f16(b);

    for (int j = 0; j < 16; j++) {
        out[j] = (float)((b[2 + j] & 15) - 8) * d;
        out[j + 16] = (float)((b[2 + j] >> 4) - 8) * d;
    }
}

static void block_q4_1(const uint8_t *b, float *out)
{
    float d = get_f16(b), m = get_f16(b + 2);

    for (int j = 0; j < 16; j++) {
        out[j] = (float)(b[4 + j] & 15) * d + m;
        out[j + 16] = (float)(b[4 + j] >> 4) * d + m;
    }
}

/* The fifth bits of elements 0..15 are bits 0..15 of qh, those of 16..31 bits 16..31. */
static int five_bits(uint32_t qh, const uint8_t *qs, int j, int high)
{
    int nibble = high ? qs[j] >> 4 : qs[j] & 15;

    return nibble | (int)(qh >> (j + 16 * high) & 1) << 4;
}

static void block_q5_0(const uint8_t *b, float *out)
{
    float d = get_f16(b);
    uint32_t qh = get_u32(b + 2);

    for (int j = 0; j < 16; j++) {
        out[j] = (float)(five_bits(qh, b + 6, j, 0) - 16) * d;
        out[j + 16] = (float)(five_bits(qh, b + 6, j, 1) - 16) * d;
    }
}

static void block_q5_1(const uint8_t *b, float *out)
{
    float d = get_f16(b), m = get_f16(b + 2);
    uint32_t qh = get_u32(b + 4);

    for (int j = 0; j < 16; j++) {
        out[j] = (float)five_bits(qh, b + 8, j, 0) * d + m;
        out[j + 16] = (float)five_bits(qh, b + 8, j, 1) * d + m;
    }
}

static void block_q8_0(const uint8_t *b, float *out)
{
    float d = get_f16(b);

    for (int j = 0; j < 32; j++)
        out[j] = (float)(int8_t)b[2 + j] * d;
}

/* Six-bit scale and minimum of sub-block j (of 8) of a Q4_K or Q5_K block. */
static void k_scale(const uint8_t *s, int j, int *scale, int *min)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

/* Q4_K without, Q5_K with qh: sub-blocks 2c and 2c + 1 are the nibbles of 32 bytes. */
static void block_k45(const uint8_t *b, const uint8_t *qh, const uint8_t *qs, float *out)
{
    float d = get_f16(b), dmin = get_f16(b + 2);
    int scale, min;

    for (int j = 0; j < 8; j++) {
        k_scale(b + 4, j, &scale, &min);
        for (int l = 0; l < 32; l++) {
            int q = j & 1 ? qs[j / 2 * 32 + l] >> 4 : qs[j / 2 * 32 + l] & 15;
            if (qh)
                q |= (qh[l] >> j & 1) << 4;
            out[j * 32 + l] = (float)q * (d * (float)scale) - dmin * (float)min;
        }
    }
}

static void block_q4_k(const uint8_t *b, float *out)
{
    block_k45(b, NULL, b + 16, out);
}

static void block_q5_k(const uint8_t *b, float *out)
{
    block_k45(b, b + 16, b + 48, out);
}

static void block_q6_k(const uint8_t *b, float *out)
{
    float d = get_f16(b + 208);

    for (int i = 0; i < 256; i++) {
        int half = i / 128, quarter = i / 32 % 4, l = i % 32;
        int low = b[half * 64 + (quarter & 1) * 32 + l];
        int q = (quarter < 2 ? low & 15 : low >> 4) | (b[128 + half * 32 + l] >> 2 * quarter & 3)
                                                          << 4;
        out[i] = (float)(q - 32) * (d * (float)(int8_t)b[192 + i / 16]);
    }
}

/* ---- Groups: scale, zero, kind of the scale; the product is rounded to the scale's type --------
 */

static float grouped(const uint8_t *b, int q)
{
    float diff = (float)(q - b[2]);

    if (b[3])
        return ek_bf16_to_f32(ek_f32_to_bf16(ek_bf16_to_f32((uint16_t)get_u16(b)) * diff));
    return ek_f16_to_f32(ek_f32_to_f16(get_f16(b) * diff));
}

static void group4(const uint8_t *b, float *out, int n)
{
    for (int i = 0; i < n; i += 2) {
        out[i] = grouped(b, b[4 + i / 2] & 15);
        out[i + 1] = grouped(b, b[4 + i / 2] >> 4);
    }
}

static void group8(const uint8_t *b, float *out, int n)
{
    for (int i = 0; i < n; i++)
        out[i] = grouped(b, b[4 + i]);
}

static void group_e4m3(const uint8_t *b, float *out, int n)
{
    float scale;

    memcpy(&scale, b, sizeof(scale));
    for (int i = 0; i < n; i++)
        out[i] = ek_e4m3_to_f32(b[4 + i]) * scale;
}

#define GROUP(name, decode, n)                                                                     \
    static void block_##name##_##n(const uint8_t *b, float *out)                                   \
    {                                                                                              \
        decode(b, out, n);                                                                         \
    }
GROUP(g4, group4, 32)
GROUP(g4, group4, 64)
GROUP(g4, group4, 128)
GROUP(g8, group8, 32)
GROUP(g8, group8, 64)
GROUP(g8, group8, 128)
GROUP(b8, group_e4m3, 32)
GROUP(b8, group_e4m3, 64)
GROUP(b8, group_e4m3, 128)

static const block_fn decoders[EK_N_DTYPES] = {
    [EK_F32] = block_f32,     [EK_F16] = block_f16,         [EK_BF16] = block_bf16,
    [EK_F64] = block_f64,     [EK_F8_E4M3] = block_f8_e4m3, [EK_F8_E5M2] = block_f8_e5m2,
    [EK_Q4_0] = block_q4_0,   [EK_Q4_1] = block_q4_1,       [EK_Q5_0] = block_q5_0,
    [EK_Q5_1] = block_q5_1,   [EK_Q8_0] = block_q8_0,       [EK_Q4_K] = block_q4_k,
    [EK_Q5_K] = block_q5_k,   [EK_Q6_K] = block_q6_k,       [EK_G4_32] = block_g4_32,
    [EK_G4_64] = block_g4_64, [EK_G4_128] = block_g4_128,   [EK_G8_32] = block_g8_32,
    [EK_G8_64] = block_g8_64, [EK_G8_128] = block_g8_128,   [EK_B8_32] = block_b8_32,
    [EK_B8_64] = block_b8_64, [EK_B8_128] = block_b8_128,
};

enum ek_status ek_dequantize(enum ek_dtype dtype, const void *src, float *dst, size_t n)
{
    block_fn decode = (unsigned)dtype < EK_N_DTYPES ? decoders[dtype] : NULL;
    const uint8_t *p = src;
    size_t block, bytes;

    if (!decode)
        return ek_error(EK_EUNSUPPORTED, "weights of type %s are not supported",
                        (unsigned)dtype < EK_N_DTYPES ? ek_dtype_name(dtype) : "?");
    block = ek_dtype_block(dtype);
    bytes = ek_dtype_block_bytes(dtype);
    if (n % block)
        return ek_error(EK_EFORMAT, "%zu elements of %s: not a multiple of its block of %zu", n,
                        ek_dtype_name(dtype), block);
    for (size_t i = 0; i < n; i += block, p += bytes)
        decode(p, dst + i);
    return EK_OK;
}
