/* SPDX-License-Identifier: Apache-2.0
 *
 * An answer's text as it grows, up to the first of its stop strings, and the documents that carry
 * it.
 */
#ifndef EK_SERVER_ANSWER_H
#define EK_SERVER_ANSWER_H

#include "server/request.h"
#include "server/score.h"

struct answer {
    const struct request *request;
    const char *model; /* its name */
    char id[48];
    int64_t created; /* seconds since 1970 */
    char *text;
    size_t n, cap;
    size_t sent;          /* bytes that the client has */
    bool stopped;         /* by a stop string, which the text ends before */
    struct scores scores; /* of tokens that the client was not told of */
    uint32_t prompt_tokens, cached_tokens, tokens;
};
/* Borrows all. t: for log-probabilities. */
enum ek_status answer_open(struct answer *a, const struct request *r, const char *model,
                           const struct ek_tokenizer *t);
void answer_close(struct answer *a); /* zeroes it; a zeroed one is fine */
/* A token's log-probability, before its text. */
enum ek_status answer_score(struct answer *a, const struct score *of);
/* More text. */
enum ek_status answer_add(struct answer *a, const char *text);
/* Bytes of the text that no stop string can take back any more; all of it at the end. */
size_t answer_ready(const struct answer *a, bool end);

/* Documents, each one line that ends with a newline; NULL without memory. finish: "stop" or
 * "length". */
char *answer_whole(struct answer *a, const char *finish);
/* An event: text up to `ready`, as the next piece of a stream; its first one, with a role, when
 * first. finish: NULL until the last. */
char *answer_event(struct answer *a, size_t ready, bool first, const char *finish);
char *answer_usage_event(const struct answer *a);
/* code: a word of the interface's, or NULL. */
char *answer_error(int status, const char *code, const char *message);

#endif
