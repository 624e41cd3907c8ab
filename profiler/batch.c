/* SPDX-License-Identifier: Apache-2.0
 *
 * The batch of a point: sequences of equal length with random tokens, each with its own blocks; of
 * a prefill with two, the first is the end of a prompt, and the other one the beginning of the
 * next, as long as the step has room.
 */
#include "profiler/measure.h"

#include <stdlib.h>

struct rig_batch {
    struct ek_batch_host host;
    uint32_t max_tokens, max_seqs, row; /* row: blocks of a sequence at most */
    int32_t *tokens, *rows, *block_ids;
    uint32_t *n_new, *past;
    const int32_t **blocks;
};

enum ek_status rig_batch_new(const struct ek_model *m, uint32_t max_tokens, uint32_t max_seqs,
                             uint32_t max_context, struct rig_batch **out)
{
    struct rig_batch *b = ek_calloc(1, sizeof(*b));
    uint64_t seed = 3, vocab = m->config.vocab;

    if (!b)
        return EK_ENOMEM;
    b->max_tokens = max_tokens;
    b->max_seqs = max_seqs;
    b->row = (uint32_t)ek_cache_blocks(1, max_context);
    b->tokens = ek_calloc(max_tokens, sizeof(*b->tokens));
    b->rows = ek_calloc(max_seqs, sizeof(*b->rows));
    b->n_new = ek_calloc(max_seqs, sizeof(*b->n_new));
    b->past = ek_calloc(max_seqs, sizeof(*b->past));
    b->blocks = ek_calloc(max_seqs, sizeof(*b->blocks));
    b->block_ids = ek_calloc(max_seqs, b->row * sizeof(*b->block_ids));
    if (!b->tokens || !b->rows || !b->n_new || !b->past || !b->blocks || !b->block_ids) {
        rig_batch_free(b);
        return EK_ENOMEM;
    }
    for (uint32_t i = 0; i < max_tokens; i++)
        b->tokens[i] = (int32_t)(ek_random_u64(&seed) % vocab);
    *out = b;
    return EK_OK;
}

void rig_batch_free(struct rig_batch *b)
{
    if (!b)
        return;
    free(b->tokens);
    free(b->rows);
    free(b->n_new);
    free(b->past);
    free(b->blocks);
    free(b->block_ids);
    free(b);
}

/* The next prompt, behind the end of the first. */
static bool begins(const struct ek_point *at, uint32_t i)
{
    return at->phase == EK_PHASE_PREFILL && i == 1;
}

void rig_batch_set(struct rig_batch *b, const struct ek_point *at)
{
    uint32_t row = (uint32_t)ek_cache_blocks(1, at->context), all = 0;

    for (uint32_t i = 0; i < at->batch; i++) {
        int32_t *ids = b->block_ids + (size_t)i * b->row;
        for (uint32_t j = 0; j < row; j++)
            ids[j] = (int32_t)(i * row + j);
        b->blocks[i] = ids;
        b->n_new[i] = begins(at, i) ? b->max_tokens - at->tokens : at->tokens;
        b->past[i] = begins(at, i) ? 0 : at->context - at->tokens;
        all += b->n_new[i];
        b->rows[i] = (int32_t)all - 1; /* the last token of each */
    }
    b->host = (struct ek_batch_host){.n_tokens = all,
                                     .n_seqs = at->batch,
                                     .n_logits = at->batch,
                                     .tokens = b->tokens,
                                     .n_new = b->n_new,
                                     .past = b->past,
                                     .blocks = b->blocks,
                                     .logit_rows = b->rows};
}

const struct ek_batch_host *rig_batch_host(const struct rig_batch *b)
{
    return &b->host;
}
