/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights from a seed: a function of (seed, tensor's name, position) alone, so that any piece may
 * be read in any order by any process. Matrices have a standard deviation of 1/sqrt(fan-in), norms
 * are near 1 and biases small: activations stay of order 1 through any number of layers.
 *
 * Attention at random averages its tokens, and layer by layer they grow alike: a router then sends
 * most of a prompt to the same few experts, as a trained one does not. In a model with routers the
 * tokens' own embeddings are large beside what layers add to them, and a picture's patches beside
 * what its tower's blocks add: choices are even, and of each layer's own (128 tokens of 64 experts,
 * 6 each: 52 reached, 64 here).
 */
#include "model/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK       256 /* elements made at a time: a multiple of every block */
#define CHUNK_BYTES ((size_t)CHUNK * 4)
#define SAMPLES     1024   /* of a normal distribution, antithetic: their mean is 0 */
#define ROUTED_ADDS 0.125f /* of what layers add elsewhere, in a model with routers */

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t draw(uint64_t key, uint64_t counter)
{
    return mix(key + counter * 0x9e3779b97f4a7c15u);
}

static uint64_t key_of(uint64_t seed, const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (const char *p = name; *p; p++)
        h = (h ^ (unsigned char)*p) * 0x100000001b3u;
    return mix(h + mix(seed));
}

/* ---- Distribution -----------------------------------------------------------------------------*/

struct spread {
    float mean, deviation;
};

static bool is_norm(const struct ek_tensor *t)
{
    if (t->role == EK_ROLE_ROUTER_BIAS)
        return false;
    return t->role != EK_ROLE_OTHER || ek_ends_with(t->name, ".weight");
}

static bool is_bias(const struct ek_tensor *t)
{
    return ek_ends_with(t->name, "bias");
}

/* Is its product added to the rows that it came of? */
static bool is_added(const struct ek_tensor *t)
{
    if (t->role == EK_ROLE_OTHER) /* a block of a tower */
        return ek_ends_with(t->name, ".attn.proj.weight") ||
               ek_ends_with(t->name, ".mlp.fc2.weight");
    return t->role == EK_ROLE_O || t->role == EK_ROLE_DOWN || t->role == EK_ROLE_EXPERT_DOWN ||
           t->role == EK_ROLE_SHARED_DOWN;
}

/* Of a matrix whose product has a deviation of 1 beside the others'. */
static float gain_of(const struct ek_tensor *t, bool routed)
{
    bool adds = is_added(t);

    return routed && adds ? ROUTED_ADDS : 1;
}

static struct spread spread_of(const struct ek_tensor *t, bool routed)
{
    uint64_t fan_in = 1;

    if (t->n_dims == 1 && is_bias(t))
        return (struct spread){0, 0.02f};
    if (t->n_dims == 1 && is_norm(t))
        return (struct spread){1, 0.05f};
    for (uint32_t i = 1; i < t->n_dims; i++)
        fan_in *= t->shape[i];
    if (t->n_dims == 1)
        fan_in = t->shape[0];
    if (routed && t->role == EK_ROLE_EMBED)
        return (struct spread){0, 1};
    return (struct spread){0, gain_of(t, routed) / sqrtf((float)fan_in)};
}

/* Sums of twelve uniform numbers, by integers and one multiplication: the same on every machine. */
static void make_samples(struct spread s, float out[SAMPLES])
{
    for (int i = 0; i < SAMPLES / 2; i++) {
        int64_t sum = -6 * 65535;
        for (int j = 0; j < 3; j++) {
            uint64_t r = draw(12345, (uint64_t)(3 * i + j));
            sum += (r & 0xffff) + (r >> 16 & 0xffff) + (r >> 32 & 0xffff) + (r >> 48);
        }
        out[i] = s.mean + (float)sum * 0x1p-16f * s.deviation;
        out[i + SAMPLES / 2] = s.mean - (float)sum * 0x1p-16f * s.deviation;
    }
}

/* ---- Plain types ------------------------------------------------------------------------------*/

static void fill_f32(uint64_t key, uint64_t chunk, const void *table, void *out)
{
    const float *samples = table;
    float *dst = out;

    for (uint64_t i = 0; i < CHUNK; i += 4) {
        uint64_t r = draw(key, chunk * (CHUNK / 4) + i / 4);
        dst[i] = samples[r >> 54];
        dst[i + 1] = samples[r >> 44 & (SAMPLES - 1)];
        dst[i + 2] = samples[r >> 34 & (SAMPLES - 1)];
        dst[i + 3] = samples[r >> 24 & (SAMPLES - 1)];
    }
}

static void fill_16(uint64_t key, uint64_t chunk, const void *table, void *out)
{
    const uint16_t *samples = table;
    uint16_t *dst = out;

    for (uint64_t i = 0; i < CHUNK; i += 4) {
        uint64_t r = draw(key, chunk * (CHUNK / 4) + i / 4);
        dst[i] = samples[r >> 54];
        dst[i + 1] = samples[r >> 44 & (SAMPLES - 1)];
        dst[i + 2] = samples[r >> 34 & (SAMPLES - 1)];
        dst[i + 3] = samples[r >> 24 & (SAMPLES - 1)];
    }
}

/* ---- ggml's blocks ----------------------------------------------------------------------------*/

struct block {
    uint8_t d_at, m_at; /* half floats: scale, offset (0: none) */
    int8_t m_sign;      /* the offset is added or, in the K types, subtracted */
    uint8_t random_at, random_n;
    uint8_t scales_at, sub; /* where small scales lie (0: none), all of value sub */
    uint16_t levels;        /* of a quantised number */
};

static const struct block blocks[EK_N_DTYPES] = {
    [EK_Q4_0] = {0, 0, 0, 2, 16, 0, 1, 16},    [EK_Q4_1] = {0, 2, -1, 4, 16, 0, 1, 16},
    [EK_Q5_0] = {0, 0, 0, 2, 20, 0, 1, 32},    [EK_Q5_1] = {0, 2, -1, 4, 20, 0, 1, 32},
    [EK_Q8_0] = {0, 0, 0, 2, 32, 0, 1, 256},   [EK_Q4_K] = {0, 2, 1, 16, 128, 4, 8, 16},
    [EK_Q5_K] = {0, 2, 1, 16, 160, 4, 8, 32},  [EK_Q6_K] = {208, 0, 0, 0, 192, 192, 8, 64},
    [EK_G4_32] = {0, 0, 0, 4, 16, 0, 1, 16},   [EK_G4_64] = {0, 0, 0, 4, 32, 0, 1, 16},
    [EK_G4_128] = {0, 0, 0, 4, 64, 0, 1, 16},  [EK_G8_32] = {0, 0, 0, 4, 32, 0, 1, 256},
    [EK_G8_64] = {0, 0, 0, 4, 64, 0, 1, 256},  [EK_G8_128] = {0, 0, 0, 4, 128, 0, 1, 256},
    [EK_B8_32] = {0, 0, 0, 4, 32, 0, 1, 16},   [EK_B8_64] = {0, 0, 0, 4, 64, 0, 1, 16},
    [EK_B8_128] = {0, 0, 0, 4, 128, 0, 1, 16},
};

struct quantised {
    enum ek_dtype dtype;
    uint16_t d, m; /* of positive blocks */
    float scale;   /* of E4M3 groups */
};

static struct quantised quantise(enum ek_dtype dtype, struct spread s)
{
    const struct block *b = &blocks[dtype];
    float sigma = sqrtf(((float)b->levels * b->levels - 1) / 12) * b->sub;
    float d = s.deviation / sigma;
    uint16_t d16 = ek_f32_to_f16(d);

    return (struct quantised){
        dtype, d16, ek_f32_to_f16((float)b->m_sign * ek_f16_to_f32(d16) * (b->levels - 1) / 2),
        s.deviation / 1.46f};
}

static void put16(unsigned char *p, uint16_t v)
{
    p[0] = (unsigned char)(v & 0xff);
    p[1] = (unsigned char)(v >> 8);
}

/* K types hold 6-bit scales and offsets of 8 sub-blocks in 12 bytes; Q6_K 16 signed bytes. */
static void put_scales(const struct block *b, enum ek_dtype dtype, unsigned char *p)
{
    if (dtype == EK_Q6_K) {
        memset(p + b->scales_at, b->sub, 16);
    } else {
        memset(p + b->scales_at, b->sub, 8);
        memset(p + b->scales_at + 8, b->sub | b->sub << 4, 4);
    }
}

static void fill_block(uint64_t key, uint64_t number, const struct quantised *q, unsigned char *p)
{
    const struct block *b = &blocks[q->dtype];
    uint16_t sign = (uint16_t)(draw(~key, number) & 0x8000); /* so that the mean is 0 */
    unsigned char random[192];

    for (size_t i = 0; i < b->random_n; i += 8) {
        uint64_t r = draw(key, number * 24 + i / 8);
        memcpy(random + i, &r, 8);
    }
    memcpy(p + b->random_at, random, b->random_n);
    if (b->scales_at)
        put_scales(b, q->dtype, p);
    put16(p + b->d_at, q->d ^ sign);
    if (b->m_at)
        put16(p + b->m_at, q->m ^ sign);
    if (q->dtype >= EK_B8_32) { /* +-1 to +-1.875 times an F32 scale */
        for (size_t i = 0; i < b->random_n; i++)
            p[4 + i] = (p[4 + i] & 0x87) | 0x38;
        memcpy(p, &q->scale, sizeof(q->scale));
    } else if (q->dtype >= EK_G4_32) { /* the zero in the middle, an F16 scale */
        p[2] = (unsigned char)(b->levels / 2);
        p[3] = 0;
    }
}

static void fill_blocks(uint64_t key, uint64_t chunk, const void *table, void *out)
{
    const struct quantised *q = table;
    size_t n = CHUNK / ek_dtype_block(q->dtype), bytes = ek_dtype_block_bytes(q->dtype);

    for (size_t i = 0; i < n; i++)
        fill_block(key, chunk * n + i, q, (unsigned char *)out + i * bytes);
}

/* ---- Any piece of a tensor --------------------------------------------------------------------*/

typedef void fill_function(uint64_t key, uint64_t chunk, const void *table, void *out);

static void fill_range(fill_function *fill, uint64_t key, const void *table, size_t chunk_bytes,
                       uint64_t at, uint64_t n, char *dst)
{
    max_align_t whole[CHUNK_BYTES / sizeof(max_align_t)];

    while (n > 0) {
        uint64_t chunk = at / chunk_bytes, skip = at % chunk_bytes, take = chunk_bytes - skip;
        take = take < n ? take : n;
        fill(key, chunk, table, whole);
        memcpy(dst, (const char *)whole + skip, take);
        dst += take;
        at += take;
        n -= take;
    }
}

enum ek_status ek_synthetic_read(uint64_t seed, bool routed, const struct ek_tensor *t, uint64_t at,
                                 uint64_t n, void *dst)
{
    struct spread s = spread_of(t, routed);
    uint64_t key = key_of(seed, t->name);
    float samples[SAMPLES];
    uint16_t halves[SAMPLES];
    struct quantised q;

    if (t->dtype >= EK_Q4_0) {
        q = quantise(t->dtype, s);
        fill_range(fill_blocks, key, &q,
                   CHUNK / ek_dtype_block(t->dtype) * ek_dtype_block_bytes(t->dtype), at, n, dst);
        return EK_OK;
    }
    make_samples(s, samples);
    if (t->dtype == EK_F32) {
        fill_range(fill_f32, key, samples, CHUNK * 4, at, n, dst);
        return EK_OK;
    }
    if (t->dtype != EK_BF16 && t->dtype != EK_F16)
        return ek_error(EK_EUNSUPPORTED, "tensor '%s': no synthetic weights of dtype %s", t->name,
                        ek_dtype_name(t->dtype));
    for (int i = 0; i < SAMPLES; i++)
        halves[i] = t->dtype == EK_BF16 ? ek_f32_to_bf16(samples[i]) : ek_f32_to_f16(samples[i]);
    fill_range(fill_16, key, halves, CHUNK * 2, at, n, dst);
    return EK_OK;
}
