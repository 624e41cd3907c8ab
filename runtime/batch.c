/* SPDX-License-Identifier: Apache-2.0
 *
 * A ragged batch as one array of I32, so that one upload describes it to a device:
 *   tokens[cap] positions[1 or 3][cap] slots[cap] rows[cap] seq_start[n + 1 of S + 1] kv_len[S]
 *   block_table[n][max_blocks]
 * cap is max_seqs in a decode batch, max_tokens else: the arrays of decode batches then lie at
 * the same addresses whatever their size, which replayed graphs need.
 */
#include "runtime/stage.h"

#include <stdlib.h>
#include <string.h>

#define UPLOAD_PIECE ((size_t)64 << 10) /* taken at once by upload(), see kernels.h */
#define MIN_KV       256u               /* smallest rounding of max_kv in decode batches */

size_t batch_words(const struct batch_shape *shape)
{
    return (3 + (size_t)shape->position_rows) * shape->max_tokens + 2 * (size_t)shape->max_seqs +
           1 + (size_t)shape->max_seqs * shape->max_blocks;
}

struct batch_shape stage_batch_shape(const struct ek_stage *s)
{
    const uint32_t *sections = s->m->config.mrope_section;
    bool three = sections[0] || sections[1] || sections[2];

    return (struct batch_shape){s->opt.max_tokens, s->opt.max_seqs, s->max_blocks, s->opt.page,
                                three ? 3 : 1};
}

/* Sizes of padded decode batches: every one up to 8, then four an octave. */
static uint32_t bucket(uint32_t n)
{
    uint32_t step;

    if (n <= 8)
        return n;
    step = (uint32_t)1 << (29 - __builtin_clz(n - 1)); /* a quarter of the power of two below n */
    return (n + step - 1) / step * step;
}

struct image {
    int32_t *tokens, *positions, *slots, *rows, *seq_start, *kv_len, *blocks;
};

static struct image image_at(const struct batch_shape *shape, uint32_t cap, int32_t *p)
{
    size_t n = cap;
    struct image i = {.tokens = p, .positions = p + n};

    i.slots = i.positions + shape->position_rows * n;
    i.rows = i.slots + n;
    i.seq_start = i.rows + n;
    i.kv_len = i.seq_start + shape->max_seqs + 1;
    i.blocks = i.kv_len + shape->max_seqs;
    return i;
}

static enum ek_status check_bounds(const struct batch_shape *shape, const struct ek_batch_host *h)
{
    uint64_t tokens = 0;

    if (h->n_tokens == 0 || h->n_tokens > shape->max_tokens)
        return ek_error(EK_EUSAGE, "batch: %u tokens, a stage takes from 1 to %u", h->n_tokens,
                        shape->max_tokens);
    if (h->n_seqs == 0 || h->n_seqs > shape->max_seqs)
        return ek_error(EK_EUSAGE, "batch: %u sequences, a stage takes from 1 to %u", h->n_seqs,
                        shape->max_seqs);
    if (h->n_logits > h->n_tokens)
        return ek_error(EK_EUSAGE, "batch: %u rows of logits of %u tokens", h->n_logits,
                        h->n_tokens);
    for (uint32_t i = 0; i < h->n_seqs; i++) {
        uint64_t end = (uint64_t)h->past[i] + h->n_new[i];
        if (h->n_new[i] == 0)
            return ek_error(EK_EUSAGE, "batch: sequence %u has no new token", i);
        if (end > (uint64_t)shape->max_blocks * shape->page)
            return ek_error(EK_EUSAGE, "batch: sequence %u would hold %llu tokens, at most %llu", i,
                            (unsigned long long)end,
                            (unsigned long long)shape->max_blocks * shape->page);
        tokens += h->n_new[i];
    }
    if (tokens != h->n_tokens)
        return ek_error(EK_EUSAGE, "batch: sequences have %llu new tokens, %u given",
                        (unsigned long long)tokens, h->n_tokens);
    return EK_OK;
}

static void pack_sequence(const struct batch_shape *shape, const struct ek_batch_host *h,
                          uint32_t i, int32_t start, size_t cap, struct image *im)
{
    uint32_t end = h->past[i] + h->n_new[i], n = (end + shape->page - 1) / shape->page;
    int32_t *row = im->blocks + (size_t)i * shape->max_blocks;

    for (uint32_t k = 0; k < h->n_new[i]; k++) {
        uint32_t pos = h->past[i] + k;
        int32_t block = h->blocks[i][pos / shape->page];
        for (uint32_t r = 0; r < shape->position_rows; r++)
            im->positions[r * cap + (uint32_t)start + k] =
                h->positions ? h->positions[(size_t)r * h->n_tokens + (uint32_t)start + k]
                             : (int32_t)pos;
        im->slots[start + (int32_t)k] = block * (int32_t)shape->page + (int32_t)(pos % shape->page);
    }
    im->seq_start[i] = start;
    im->kv_len[i] = (int32_t)end;
    memcpy(row, h->blocks[i], n * sizeof(*row));
    memset(row + n, 0, (shape->max_blocks - n) * sizeof(*row));
}

/* Rows n_seqs .. padded repeat the first sequence: they write the same values to the same slot. */
static void pad_decode(const struct batch_shape *shape, const struct batch_counts *c,
                       struct image *im)
{
    for (uint32_t i = c->n_seqs; i < c->padded; i++) {
        im->tokens[i] = im->tokens[0];
        for (uint32_t r = 0; r < shape->position_rows; r++)
            im->positions[(size_t)r * c->cap + i] = im->positions[(size_t)r * c->cap];
        im->slots[i] = im->slots[0];
        im->rows[i] = im->rows[0];
        im->seq_start[i + 1] = (int32_t)i + 1;
        im->kv_len[i] = im->kv_len[0];
        memcpy(im->blocks + (size_t)i * shape->max_blocks, im->blocks,
               shape->max_blocks * sizeof(*im->blocks));
    }
}

enum ek_status batch_pack(const struct batch_shape *shape, const struct ek_batch_host *h,
                          int32_t *image, struct batch_counts *out)
{
    struct batch_counts c = {
        .n_tokens = h->n_tokens, .n_seqs = h->n_seqs, .n_logits = h->n_logits, .padded = h->n_seqs};
    bool decode = h->n_tokens == h->n_seqs;
    struct image im;
    int32_t start = 0;

    EK_TRY(check_bounds(shape, h));
    c.cap = decode ? shape->max_seqs : shape->max_tokens;
    im = image_at(shape, c.cap, image);
    memcpy(im.tokens, h->tokens, h->n_tokens * sizeof(*im.tokens));
    im.rows[0] = 0;
    if (h->n_logits > 0)
        memcpy(im.rows, h->logit_rows, h->n_logits * sizeof(*im.rows));
    for (uint32_t i = 0; i < h->n_seqs; i++) {
        pack_sequence(shape, h, i, start, c.cap, &im);
        start += (int32_t)h->n_new[i];
        c.max_q = h->n_new[i] > c.max_q ? h->n_new[i] : c.max_q;
        c.max_kv = (uint32_t)im.kv_len[i] > c.max_kv ? (uint32_t)im.kv_len[i] : c.max_kv;
    }
    im.seq_start[h->n_seqs] = start;
    if (decode) {
        c.padded = bucket(h->n_seqs) < shape->max_seqs ? bucket(h->n_seqs) : shape->max_seqs;
        pad_decode(shape, &c, &im);
    }
    c.words = (size_t)(im.blocks - image) + (size_t)c.padded * shape->max_blocks;
    *out = c;
    return EK_OK;
}

static uint32_t round_kv(const struct ek_stage *s, uint32_t max_kv)
{
    uint64_t top = (uint64_t)s->max_blocks * s->opt.page, r = MIN_KV;

    while (r < max_kv)
        r *= 2;
    return (uint32_t)(r < top ? r : top);
}

/* What a packed image is once it lies on the device. */
static void describe(struct ek_stage *s, const struct batch_counts *c, struct ek_batch *out,
                     const int32_t **rows, uint32_t *n_rows)
{
    struct batch_shape shape = stage_batch_shape(s);
    struct image im = image_at(&shape, c->cap, stage_at(s, s->at.batch));
    bool replay = s->dev->ops->graph_begin != NULL && c->n_tokens == c->n_seqs;

    *out = (struct ek_batch){.n_tokens = replay ? c->padded : c->n_tokens,
                             .n_seqs = replay ? c->padded : c->n_seqs,
                             .max_q = c->max_q,
                             .max_kv = replay ? round_kv(s, c->max_kv) : c->max_kv,
                             .max_blocks = s->max_blocks,
                             .tokens = im.tokens,
                             .positions = im.positions,
                             .position_row = c->cap,
                             .slots = im.slots,
                             .seq_start = im.seq_start,
                             .kv_len = im.kv_len,
                             .block_table = im.blocks};
    *rows = im.rows;
    *n_rows = replay && c->n_logits == c->n_seqs && c->padded <= s->opt.max_logits ? c->padded
                                                                                   : c->n_logits;
}

enum ek_status stage_take_image(struct ek_stage *s, const int32_t *image, const int32_t *ids,
                                const struct batch_counts *c, struct ek_batch *out,
                                const int32_t **rows, uint32_t *n_rows)
{
    uint32_t n_ids = c->n_tokens > c->padded ? c->n_tokens : c->padded;

    EK_TRY(s->dev->ops->take(s->dev, stage_at(s, s->at.batch), image, c->words, n_ids, ids));
    describe(s, c, out, rows, n_rows);
    return EK_OK;
}

static enum ek_status upload(struct ek_stage *s, const int32_t *image, size_t words)
{
    char *to = stage_at(s, s->at.batch);
    size_t bytes = words * sizeof(*image);

    for (size_t at = 0; at < bytes; at += UPLOAD_PIECE)
        EK_TRY(s->dev->ops->upload(s->dev, to + at, (const char *)image + at,
                                   bytes - at < UPLOAD_PIECE ? bytes - at : UPLOAD_PIECE));
    return EK_OK;
}

enum ek_status ek_stage_upload(struct ek_stage *s, const struct ek_batch_host *h,
                               struct ek_batch *out, const int32_t **rows, uint32_t *n_rows)
{
    struct batch_shape shape = stage_batch_shape(s);
    int32_t *image = ek_calloc(batch_words(&shape), sizeof(*image));
    struct batch_counts c;
    enum ek_status st = EK_ENOMEM;

    if (image == NULL)
        return st;
    st = batch_pack(&shape, h, image, &c);
    if (st == EK_OK)
        st = upload(s, image, c.words);
    if (st == EK_OK)
        describe(s, &c, out, rows, n_rows);
    free(image);
    return st;
}
