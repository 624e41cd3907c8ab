/* SPDX-License-Identifier: Apache-2.0
 *
 * How likely a token was, and which others were: log-probabilities of the model's own logits,
 * before temperature and the like.
 */
#ifndef EK_SERVER_SCORE_H
#define EK_SERVER_SCORE_H

#include "model/tokenizer.h"
#include "server/text.h"

#define SCORE_MOST 20 /* others that may be asked for */

struct scored {
    int32_t id;
    float logprob;
};
/* out: [1 + n] id, then the n best, most likely first, it among them or not. */
void score_row(const float *logits, uint32_t vocab, int32_t id, uint32_t n, struct scored *out);

/* Scores of an answer's tokens, one after another, as either interface has them. */
struct scores {
    const struct ek_tokenizer *tokenizer; /* NULL: none are asked for */
    bool chat;
    uint32_t n_best;     /* others at each place */
    struct scored *rows; /* [n][1 + n_best]: the token, then these */
    uint32_t *offsets;   /* [n] characters of the answer before the token */
    size_t n, rows_cap, offsets_cap;
};
/* t: borrowed, NULL where none are asked for. */
void scores_open(struct scores *s, const struct ek_tokenizer *t, bool chat, uint32_t n_best);
void scores_close(struct scores *s); /* a zeroed one is fine */
/* of: [1 + n_best] */
enum ek_status scores_add(struct scores *s, const struct scored *of, uint32_t offset);
/* What a choice says under "logprobs" of those that were added since the last time, as text of at
 * most max bytes. */
enum ek_status scores_put(struct scores *s, struct text *to, size_t max);

#endif
