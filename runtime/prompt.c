/* SPDX-License-Identifier: Apache-2.0
 *
 * What a prompt has beside its ids: rows of its pictures, positions of M-RoPE.
 */
#include "runtime/prompt.h"

#include <stdlib.h>

uint32_t prompt_embeds(const struct ek_prompt *p, size_t at, uint32_t n, uint32_t base,
                       struct ek_embed_row *rows)
{
    const struct ek_embeds *x = p->embeds;
    size_t low = 0, high = x ? x->n : 0;
    uint32_t count = 0;

    while (low < high) { /* the first row at or behind `at` */
        size_t mid = low + (high - low) / 2;
        if (x->tokens[mid] < at)
            low = mid + 1;
        else
            high = mid;
    }
    for (; x && low < x->n && x->tokens[low] < at + n; low++)
        rows[count++] = (struct ek_embed_row){base + (uint32_t)(x->tokens[low] - at), x->rows[low]};
    return count;
}

void prompt_positions(const struct ek_prompt *p, size_t at, uint32_t n, int32_t *out, size_t ld)
{
    for (size_t r = 0; r < 3; r++)
        for (uint32_t i = 0; i < n; i++)
            out[r * ld + i] = p->positions && at + i < p->n ? p->positions[r * p->n + at + i]
                                                            : (int32_t)(at + i) + p->delta;
}

bool prompt_has_rows(const struct ek_model *m)
{
    const uint32_t *s = m->config.mrope_section;

    return s[0] || s[1] || s[2];
}

/* ---- pictures to prompts */
void ek_vision_prompt_close(struct ek_vision_prompt *v)
{
    ek_embeds_free(&v->embeds);
    ek_vl_prompt_free(&v->vl);
    free(v->names);
    v->names = NULL;
    v->prompt = (struct ek_prompt){0};
}

static void bind_prompt(struct ek_vision_prompt *v)
{
    v->prompt = (struct ek_prompt){.ids = v->vl.ids,
                                   .n = v->vl.n_ids,
                                   .positions = v->vl.positions,
                                   .delta = v->vl.delta,
                                   .embeds = &v->embeds,
                                   .names = v->names};
}

/* Two rows that hold the same at the same positions are the same, whatever picture they are of. */
static enum ek_status name_tokens(struct ek_vision_prompt *v, size_t hidden)
{
    const struct ek_vl_prompt *vl = &v->vl;

    if ((v->names = ek_calloc(vl->n_ids, sizeof(*v->names))) == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < vl->n_ids; i++)
        v->names[i] = (uint32_t)vl->ids[i];
    for (size_t k = 0; k < v->embeds.n; k++) {
        size_t i = v->embeds.tokens[k];
        uint64_t what[4] = {ek_hash_u64(v->embeds.rows[k], hidden * sizeof(float))};
        for (size_t r = 0; vl->positions && r < 3; r++)
            what[1 + r] = (uint32_t)vl->positions[r * vl->n_ids + i];
        v->names[i] = ek_hash_u64(what, sizeof(what)) | (uint64_t)1 << 63; /* no id */
    }
    return EK_OK;
}

enum ek_status ek_vision_prompt_open(struct ek_engine *e, const struct ek_vl_rules *rules,
                                     const int32_t *ids, size_t n_ids,
                                     const struct ek_vl_item *items, size_t n_items,
                                     struct ek_vision_prompt *out)
{
    struct ek_vision_prompt v = {0};
    enum ek_status st;

    EK_GOTO(ek_vl_prompt(rules, ids, n_ids, items, n_items, ek_engine_max_context(e), &v.vl), st,
            fail);
    EK_GOTO(ek_engine_encode(e, rules, &v.vl, &v.embeds), st, fail);
    EK_GOTO(name_tokens(&v, ek_engine_model(e)->config.hidden), st, fail);
    for (size_t i = 0; i < v.vl.n_visuals; i++) { /* the pixels are not needed any more */
        free(v.vl.visuals[i].pixels);
        v.vl.visuals[i].pixels = NULL;
    }
    *out = v;
    bind_prompt(out);
    return EK_OK;
fail:
    ek_vision_prompt_close(&v);
    return st;
}
