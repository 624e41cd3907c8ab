/* SPDX-License-Identifier: Apache-2.0
 *
 * How likely a token was, and which others were: log-probabilities of the model's own logits,
 * before temperature and the like.
 */
#ifndef EK_SERVER_SCORE_H
#define EK_SERVER_SCORE_H

#include "model/tokenizer.h"

#define SCORE_MOST 20 /* others that may be asked for */

struct score {
    struct scored {
        int32_t id;
        float logprob;
    } token, best[SCORE_MOST]; /* best: most likely first, the token among them or not */
    uint32_t n;
};
void score_row(const float *logits, uint32_t vocab, int32_t id, uint32_t n, struct score *out);

/* Scores of tokens, one after another, as either interface has them. */
struct scores {
    const struct ek_tokenizer *tokenizer;
    bool chat;
    json_t *root; /* NULL: none are asked for, or there was no memory */
};
enum ek_status scores_open(struct scores *s, const struct ek_tokenizer *t, bool chat);
void scores_close(struct scores *s); /* a zeroed one is fine */
/* offset: characters of the answer before the token. */
enum ek_status scores_add(struct scores *s, const struct score *of, size_t offset);
/* What was added since the last time, the caller's: what a choice says under "logprobs". */
json_t *scores_take(struct scores *s);

#endif
