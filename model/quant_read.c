/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of quantised matrices: gathered from a checkpoint's packed tensors, which mostly run along
 * the outputs, or made from plain weights; then packed into groups along the row, or decoded where
 * the tensor's type is a plain one. Layouts: docs/models.md.
 */
#include "model/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Some rows of a matrix, as the files have them. */
struct piece {
    const struct ek_model *m;
    const struct ek_tensor *t;
    const struct ek_quant *q;
    uint64_t row, rows;
    uint32_t shift;                              /* a word holds 1 << shift numbers */
    const uint32_t *weights, *zeros;             /* words [..][weight_cols], [groups][zero_cols] */
    uint64_t weight_cols, zero_cols, first_word; /* first_word: of words along the outputs */
    const uint16_t *scales;                      /* [groups][rows] */
    const uint8_t *fp8;                          /* [rows][cols] */
    const float *fp8_scales;                     /* [blocks of rows][groups] */
};

/* ---- Reading ----------------------------------------------------------------------------------*/

/* Columns [col, col + cols) of rows of a part, of `size` bytes each, into fresh memory. */
static enum ek_status read_columns(const struct piece *p, enum ek_quant_part_kind kind,
                                   uint64_t row, uint64_t rows, uint64_t col, uint64_t cols,
                                   size_t size, void **out)
{
    const struct ek_quant_part *part = &p->q->parts[kind];
    const struct ek_safetensors *s = p->m->files->shards[part->file];
    uint64_t at = part->offset + (row * part->cols + col) * size;
    uint64_t pieces = cols == part->cols ? 1 : rows, bytes = rows / pieces * cols * size;
    char *dst = ek_calloc(rows, cols * size);
    enum ek_status st = dst ? EK_OK : EK_ENOMEM;

    *out = dst;
    for (uint64_t i = 0; st == EK_OK && i < pieces; i++)
        st = ek_safetensors_pread(s, at + i * part->cols * size, bytes, dst + i * bytes);
    return st;
}

static enum ek_status read_words(struct piece *p, void *memory[3])
{
    uint64_t in = p->t->shape[1], last = (p->row + p->rows - 1) >> p->shift;
    bool awq = p->q->method == EK_QUANT_AWQ;

    p->first_word = p->row >> p->shift;
    p->zero_cols = last - p->first_word + 1;
    p->weight_cols = awq ? p->zero_cols : p->rows;
    EK_TRY(read_columns(p, EK_PART_WEIGHTS, 0, awq ? in : in >> p->shift,
                        awq ? p->first_word : p->row, p->weight_cols, 4, &memory[0]));
    EK_TRY(read_columns(p, EK_PART_ZEROS, 0, p->q->groups, p->first_word, p->zero_cols, 4,
                        &memory[1]));
    EK_TRY(read_columns(p, EK_PART_SCALES, 0, p->q->groups, p->row, p->rows, 2, &memory[2]));
    p->weights = memory[0];
    p->zeros = memory[1];
    p->scales = memory[2];
    return EK_OK;
}

static enum ek_status read_fp8(struct piece *p, void *memory[3])
{
    uint64_t first = p->row / p->q->block, last = (p->row + p->rows - 1) / p->q->block;

    EK_TRY(read_columns(p, EK_PART_WEIGHTS, p->row, p->rows, 0, p->t->shape[1], 1, &memory[0]));
    EK_TRY(
        read_columns(p, EK_PART_SCALES, first, last - first + 1, 0, p->q->groups, 4, &memory[1]));
    p->fp8 = memory[0];
    p->fp8_scales = memory[1];
    return EK_OK;
}

/* ---- Numbers of a piece; r counts from its first row ------------------------------------------*/

static uint8_t take_bits(const struct piece *p, uint32_t word, uint32_t at)
{
    return (uint8_t)(word >> (at * p->q->bits) & ((1u << p->q->bits) - 1));
}

/* The number of an output in words that run along the outputs; AWQ interleaves them. */
static uint8_t along_outputs(const struct piece *p, const uint32_t *words, uint64_t r)
{
    static const uint8_t awq[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    uint64_t out = p->row + r;
    uint32_t at = (uint32_t)out & ((1u << p->shift) - 1);

    return take_bits(p, words[(out >> p->shift) - p->first_word],
                     p->q->method == EK_QUANT_AWQ ? awq[at] : at);
}

static uint8_t number(const struct piece *p, uint64_t r, uint64_t k)
{
    if (p->q->method == EK_QUANT_AWQ)
        return along_outputs(p, p->weights + k * p->weight_cols, r);
    return take_bits(p, p->weights[(k >> p->shift) * p->weight_cols + r],
                     (uint32_t)k & ((1u << p->shift) - 1));
}

static uint8_t zero(const struct piece *p, uint64_t r, uint64_t g)
{
    uint8_t z = along_outputs(p, p->zeros + g * p->zero_cols, r);

    return (uint8_t)((z + p->q->zero_add) & ((1u << p->q->bits) - 1));
}

static float fp8_scale(const struct piece *p, uint64_t r, uint64_t k)
{
    uint64_t block = (p->row + r) / p->q->block - p->row / p->q->block;

    return p->fp8_scales[block * p->q->groups + k / p->q->group];
}

/* The input of column k, and the group of an input. */
static uint64_t input_of(const struct piece *p, uint64_t k)
{
    return p->t->order ? (uint64_t)p->t->order[k] : k;
}

static uint64_t group_of(const struct piece *p, uint64_t input)
{
    return p->q->group_of ? (uint64_t)p->q->group_of[input] : input / p->q->group;
}

/* ---- Packing ----------------------------------------------------------------------------------*/

static void put_head(uint8_t *b, uint16_t scale, uint8_t zero_point, bool bf16)
{
    memcpy(b, &scale, sizeof(scale));
    b[2] = zero_point;
    b[3] = bf16;
}

static void put_number(uint8_t *b, uint32_t bits, uint64_t i, uint8_t q)
{
    if (bits == 8)
        b[4 + i] = q;
    else
        b[4 + i / 2] = (uint8_t)(i % 2 ? b[4 + i / 2] | q << 4 : q);
}

static void pack_integers(const struct piece *p, uint64_t r, uint8_t *dst)
{
    size_t n = ek_dtype_block(p->t->dtype), bytes = ek_dtype_block_bytes(p->t->dtype);
    bool bf16 = p->q->parts[EK_PART_SCALES].dtype == EK_BF16;

    for (uint64_t k = 0; k < p->t->shape[1]; k += n, dst += bytes) {
        uint64_t g = group_of(p, input_of(p, k));
        put_head(dst, p->scales[g * p->rows + r], zero(p, r, g), bf16);
        for (uint64_t i = 0; i < n; i++)
            put_number(dst, p->q->bits, i, number(p, r, input_of(p, k + i)));
    }
}

static void pack_fp8(const struct piece *p, uint64_t r, uint8_t *dst)
{
    size_t n = ek_dtype_block(p->t->dtype), bytes = ek_dtype_block_bytes(p->t->dtype);

    for (uint64_t k = 0; k < p->t->shape[1]; k += n, dst += bytes) {
        float scale = fp8_scale(p, r, k);
        memcpy(dst, &scale, sizeof(scale));
        memcpy(dst + 4, p->fp8 + r * p->t->shape[1] + k, n);
    }
}

/* ---- Decoding ---------------------------------------------------------------------------------*/

static void decode_integers(const struct piece *p, uint64_t r, uint16_t *dst)
{
    bool bf16 = p->t->dtype == EK_BF16;

    for (uint64_t k = 0; k < p->t->shape[1]; k++) {
        uint64_t g = group_of(p, k);
        uint16_t s = p->scales[g * p->rows + r];
        float v = (bf16 ? ek_bf16_to_f32(s) : ek_f16_to_f32(s)) *
                  (float)(number(p, r, k) - zero(p, r, g));
        dst[k] = bf16 ? ek_f32_to_bf16(v) : ek_f32_to_f16(v);
    }
}

static void decode_fp8(const struct piece *p, uint64_t r, float *dst)
{
    for (uint64_t k = 0; k < p->t->shape[1]; k++)
        dst[k] = ek_e4m3_to_f32(p->fp8[r * p->t->shape[1] + k]) * fp8_scale(p, r, k);
}

static enum ek_status read_packed(struct piece *p, char *dst)
{
    size_t row_bytes = p->t->bytes / p->t->shape[0];
    bool fp8 = p->q->method == EK_QUANT_FP8, groups = p->t->dtype >= EK_G4_32;
    void *memory[3] = {NULL, NULL, NULL};
    enum ek_status st = (fp8 ? read_fp8 : read_words)(p, memory);

    for (uint64_t r = 0; st == EK_OK && r < p->rows; r++, dst += row_bytes) {
        if (groups)
            (fp8 ? pack_fp8 : pack_integers)(p, r, (uint8_t *)dst);
        else if (fp8)
            decode_fp8(p, r, (float *)(void *)dst);
        else
            decode_integers(p, r, (uint16_t *)(void *)dst);
    }
    for (size_t i = 0; i < EK_ARRAY_LEN(memory); i++)
        free(memory[i]);
    return st;
}

/* ---- Quantising -------------------------------------------------------------------------------*/

static float plain_value(enum ek_dtype dtype, const char *src, uint64_t i)
{
    uint16_t half;
    float v;

    if (dtype == EK_F32) {
        memcpy(&v, src + i * 4, sizeof(v));
        return v;
    }
    memcpy(&half, src + i * 2, sizeof(half));
    return dtype == EK_BF16 ? ek_bf16_to_f32(half) : ek_f16_to_f32(half);
}

/* F16 where it has the scale to full precision, else BF16; rounded, into *scale, too. */
static uint16_t round_scale(float *scale, bool *bf16)
{
    uint16_t half = ek_f32_to_f16(*scale);

    *bf16 = *scale != 0 && (*scale < 0x1p-14f || *scale > 65504.0f / 256);
    if (*bf16)
        half = ek_f32_to_bf16(*scale);
    *scale = *bf16 ? ek_bf16_to_f32(half) : ek_f16_to_f32(half);
    return half;
}

/* Four bits: from the least to the greatest weight, 0 among them. Eight: symmetric. */
static void quantise_group(const float *w, size_t n, uint32_t bits, uint8_t *dst)
{
    float lo = 0, hi = 0, scale, top = (float)((1u << bits) - 1);
    uint16_t half;
    long zero_point;
    bool bf16;

    for (size_t i = 0; i < n; i++) {
        lo = w[i] < lo ? w[i] : lo;
        hi = w[i] > hi ? w[i] : hi;
    }
    scale = bits == 4 ? (hi - lo) / top : (hi > -lo ? hi : -lo) / 127;
    half = round_scale(&scale, &bf16);
    zero_point = bits == 8 || scale == 0 ? 1l << (bits - 1) : lrintf(-lo / scale);
    zero_point = zero_point > (long)top ? (long)top : zero_point;
    put_head(dst, half, (uint8_t)zero_point, bf16);
    for (size_t i = 0; i < n; i++) {
        long q = zero_point + (scale == 0 ? 0 : lrintf(w[i] / scale));
        q = q < 0 ? 0 : q > (long)top ? (long)top : q;
        put_number(dst, bits, i, (uint8_t)q);
    }
}

static enum ek_status quantise_row(const struct ek_model *m, const struct ek_tensor *t,
                                   const char *src, uint8_t *dst)
{
    size_t n = ek_dtype_block(t->dtype);
    float w[128];

    for (uint64_t k = 0; k < t->shape[1]; k += n, dst += ek_dtype_block_bytes(t->dtype)) {
        for (size_t i = 0; i < n; i++) {
            w[i] = plain_value(t->quant->source->dtype, src, k + i);
            if (!(fabsf(w[i]) < 0x1p100f))
                return ek_error(EK_EFORMAT, "%s: tensor '%s': a weight of %g cannot be quantised",
                                m->path, t->name, (double)w[i]);
        }
        quantise_group(w, n, t->quant->bits, dst);
    }
    return EK_OK;
}

static enum ek_status read_quantised(const struct ek_model *m, const struct ek_tensor *t,
                                     uint64_t row, uint64_t rows, uint8_t *dst)
{
    const struct ek_tensor *source = t->quant->source;
    size_t from = source->bytes / source->shape[0], to = t->bytes / t->shape[0];
    char *plain = ek_calloc(rows, from);
    enum ek_status st = plain ? EK_OK : EK_ENOMEM;

    if (st == EK_OK)
        st = ek_model_read(m, source, row * from, rows * from, plain);
    for (uint64_t r = 0; st == EK_OK && r < rows; r++)
        st = quantise_row(m, t, plain + r * from, dst + r * to);
    free(plain);
    return st;
}

enum ek_status ek_quant_read(const struct ek_model *m, const struct ek_tensor *t, uint64_t at,
                             uint64_t n, void *dst)
{
    uint64_t row_bytes = t->bytes / t->shape[0];
    struct piece p = {.m = m,
                      .t = t,
                      .q = t->quant,
                      .shift = t->quant->bits == 4 ? 3 : 2,
                      .row = at / row_bytes,
                      .rows = n / row_bytes};

    if (at % row_bytes || n % row_bytes)
        return ek_error(EK_EUSAGE, "%s: tensor '%s': bytes %llu to %llu are not whole rows of %llu",
                        m->path, t->name, (unsigned long long)at, (unsigned long long)(at + n),
                        (unsigned long long)row_bytes);
    if (n == 0)
        return EK_OK;
    if (t->quant->source)
        return read_quantised(m, t, p.row, p.rows, dst);
    if (t->quant->method == EK_QUANT_HEADS)
        return ek_heads_read(m, t, p.row, p.rows, dst);
    return read_packed(&p, dst);
}
