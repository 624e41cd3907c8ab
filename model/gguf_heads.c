/* SPDX-License-Identifier: Apache-2.0
 *
 * kv_b_proj of a GGUF that was made for the absorbed form of latent attention: instead of one
 * matrix [heads][nope + v] rows of lora, k_b [heads][lora][nope], each head transposed, and v_b
 * [heads][v][lora]. Read back as the one matrix. Quantised blocks of k_b lie across its rows, so
 * they are decoded: to the parts' type where both are F16 or BF16, else to F32.
 */
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

enum { K_B = EK_PART_WEIGHTS, V_B = EK_PART_SCALES };

static enum ek_status take_part(struct ek_model *m, int32_t layer, const char *name,
                                const uint64_t shape[3], struct ek_quant_part *p)
{
    const struct ek_gguf_tensor *g;

    p->name = ek_arena_printf(&m->files->arena, "blk.%d.%s", layer, name);
    if (p->name == NULL)
        return EK_ENOMEM;
    if ((g = ek_gguf_tensor_find(m->files->gguf, p->name)) == NULL)
        return ek_error(EK_EFORMAT, "%s: tensor '%s' is missing", m->path, p->name);
    if (g->n_dims != 3 || memcmp(g->shape, shape, 3 * sizeof(*shape)) != 0)
        return ek_error(EK_EFORMAT,
                        "%s: tensor '%s' is not [%llu, %llu, %llu], as the configuration has it",
                        m->path, p->name, (unsigned long long)shape[0],
                        (unsigned long long)shape[1], (unsigned long long)shape[2]);
    p->offset = g->offset;
    p->cols = g->bytes / shape[0]; /* bytes of a head */
    p->dtype = g->dtype;
    return ek_dequantize(g->dtype, NULL, NULL, 0);
}

enum ek_status ek_heads_bind(struct ek_model *m, int32_t layer, struct ek_tensor *t, bool *bound)
{
    const struct ek_config *c = &m->config;
    const uint64_t k_b[3] = {c->n_heads, c->kv_lora, c->qk_nope};
    const uint64_t v_b[3] = {c->n_heads, c->v_head, c->kv_lora};
    char whole[64];
    struct ek_quant *q;
    size_t row;

    *bound = false;
    snprintf(whole, sizeof(whole), "blk.%d.attn_kv_b.weight", layer);
    if (t->role != EK_ROLE_KV_B || ek_gguf_tensor_find(m->files->gguf, whole) != NULL)
        return EK_OK;
    if ((q = ek_arena_alloc(&m->files->arena, 1, sizeof(*q))) == NULL)
        return EK_ENOMEM;
    EK_TRY(take_part(m, layer, "attn_k_b.weight", k_b, &q->parts[K_B]));
    EK_TRY(take_part(m, layer, "attn_v_b.weight", v_b, &q->parts[V_B]));
    q->method = EK_QUANT_HEADS;
    t->dtype = q->parts[K_B].dtype;
    if (t->dtype != q->parts[V_B].dtype || (t->dtype != EK_F16 && t->dtype != EK_BF16))
        t->dtype = EK_F32;
    EK_TRY(ek_dtype_bytes(t->dtype, t->shape[1], &row));
    t->bytes = row * t->shape[0]; /* at most some times the file's */
    t->file = 0;
    t->offset = q->parts[K_B].offset;
    t->quant = q;
    *bound = true;
    return EK_OK;
}

/* ---- Reading ----------------------------------------------------------------------------------*/

static enum ek_status read_head(const struct ek_model *m, const struct ek_quant_part *p,
                                uint64_t head, size_t n, float *out)
{
    char *raw = ek_calloc(p->cols, 1);
    enum ek_status st = raw ? EK_OK : EK_ENOMEM;

    if (st == EK_OK)
        st = ek_gguf_read(m->files->gguf, p->offset + head * p->cols, p->cols, raw);
    if (st == EK_OK)
        st = ek_dequantize(p->dtype, raw, out, n);
    free(raw);
    return st;
}

static void put_value(enum ek_dtype dtype, float v, char *dst)
{
    uint16_t half = dtype == EK_F16 ? ek_f32_to_f16(v) : ek_f32_to_bf16(v);

    if (dtype == EK_F32)
        memcpy(dst, &v, sizeof(v));
    else
        memcpy(dst, &half, sizeof(half));
}

/* Rows of one head, from its row r0 on; k: [lora][nope], v: [v][lora]. */
static void put_rows(const struct ek_config *c, enum ek_dtype dtype, const float *k, const float *v,
                     uint64_t r0, uint64_t rows, char *dst)
{
    size_t size = ek_dtype_block_bytes(dtype);

    for (uint64_t r = r0; r < r0 + rows; r++)
        for (uint64_t i = 0; i < c->kv_lora; i++, dst += size)
            put_value(dtype,
                      r < c->qk_nope ? k[i * c->qk_nope + r] : v[(r - c->qk_nope) * c->kv_lora + i],
                      dst);
}

enum ek_status ek_heads_read(const struct ek_model *m, const struct ek_tensor *t, uint64_t row,
                             uint64_t rows, char *dst)
{
    const struct ek_config *c = &m->config;
    const struct ek_quant_part *parts = t->quant->parts;
    uint64_t per = c->qk_nope + c->v_head, row_bytes = t->bytes / t->shape[0];
    size_t n_k = (size_t)c->kv_lora * c->qk_nope, n_v = (size_t)c->kv_lora * c->v_head;
    float *k = ek_calloc(n_k + n_v, sizeof(*k)), *v = k ? k + n_k : NULL;
    enum ek_status st = k ? EK_OK : EK_ENOMEM;

    while (st == EK_OK && rows > 0) {
        uint64_t head = row / per, r0 = row % per, n = per - r0 < rows ? per - r0 : rows;
        st = read_head(m, &parts[K_B], head, n_k, k);
        if (st == EK_OK)
            st = read_head(m, &parts[V_B], head, n_v, v);
        if (st == EK_OK)
            put_rows(c, t->dtype, k, v, r0, n, dst);
        row += n;
        rows -= n;
        dst += n * row_bytes;
    }
    free(k);
    return st;
}
