/* SPDX-License-Identifier: Apache-2.0
 *
 * An answer's text as it grows, up to the first of its stop strings, and the documents that carry
 * the answers to a request.
 */
#ifndef EK_SERVER_ANSWER_H
#define EK_SERVER_ANSWER_H

#include "server/request.h"
#include "server/score.h"

#define DOCUMENT_MAX ((size_t)64 << 20) /* bytes */

/* What all answers to a request have in common. */
struct reply {
    const struct request *request;
    const char *model; /* its name */
    char id[48];
    int64_t created;                               /* seconds since 1970 */
    uint64_t prompt_tokens, cached_tokens, tokens; /* of all prompts, of all answers */
};
/* Borrows all. */
enum ek_status reply_open(struct reply *r, const struct request *request, const char *model);

struct answer {
    const struct reply *reply;
    uint32_t index; /* among the answers */
    char *text;
    size_t n, cap;
    size_t sent;          /* bytes that the client has */
    size_t characters;    /* that were added */
    bool stopped;         /* by a stop string, which the text ends before */
    const char *finish;   /* why it is over: "stop" or "length"; NULL: it is not */
    struct scores scores; /* of tokens that the client was not told of */
};
/* Borrows all. t: for log-probabilities. */
enum ek_status answer_open(struct answer *a, const struct reply *r, uint32_t index,
                           const struct ek_tokenizer *t);
void answer_close(struct answer *a); /* zeroes it; a zeroed one is fine */
/* A token's log-probability and the best ones, [1 + n_best], before its text. */
enum ek_status answer_score(struct answer *a, const struct scored *of);
/* More text. */
enum ek_status answer_add(struct answer *a, const char *text);
/* Bytes of the text that no stop string can take back any more; all of it once it is over. */
size_t answer_ready(const struct answer *a);

/* Documents, appended; each is one line that ends with a newline. EK_EFORMAT where they become
 * larger than DOCUMENT_MAX; nothing of an event is there then. */
/* A choice of the whole document: its text and log-probabilities. */
enum ek_status answer_choice(struct answer *a, struct text *to);
enum ek_status reply_begin(const struct reply *r, struct text *to); /* what stands before them */
enum ek_status reply_end(const struct reply *r, struct text *to);
/* An event: text up to `ready`, as the next piece of a stream; its first one, with a role, when
 * first. It is the last where the answer is over. */
enum ek_status answer_event(struct answer *a, size_t ready, bool first, struct text *to);
enum ek_status reply_usage_event(const struct reply *r, struct text *to);
/* code: a word of the interface's, or NULL. NULL without memory. */
char *answer_error(int status, const char *code, const char *message);

#endif
