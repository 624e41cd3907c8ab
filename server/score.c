/* SPDX-License-Identifier: Apache-2.0 */
#include "server/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SCORES_MAX ((size_t)1 << 23)
#define LEAST      (-9999.0f) /* what JSON can say of a probability of 0 */

/* ---- Of a row of logits ------------------------------------------------------------------------
 */
/* *have of the best so far, at most `most`. */
static void put_best(struct scored *best, uint32_t *have, uint32_t most, struct scored one)
{
    uint32_t at = *have < most ? (*have)++ : most - 1;

    for (; at > 0 && one.logprob > best[at - 1].logprob; at--)
        best[at] = best[at - 1];
    best[at] = one;
}

void score_row(const float *logits, uint32_t vocab, int32_t id, uint32_t n, struct scored *out)
{
    struct scored *best = out + 1;
    float most = logits[0], total;
    uint32_t have = 0;
    double sum = 0;

    for (uint32_t i = 0; i < vocab; i++) {
        most = logits[i] > most ? logits[i] : most;
        if (n > 0 && (have < n || logits[i] > best[n - 1].logprob))
            put_best(best, &have, n, (struct scored){(int32_t)i, logits[i]});
    }
    for (uint32_t i = 0; i < vocab; i++)
        sum += expf(logits[i] - most);
    total = most + (float)log(sum);
    out[0] = (struct scored){id, fmaxf(logits[id] - total, LEAST)};
    for (uint32_t i = 0; i < n; i++)
        best[i].logprob = fmaxf(best[i].logprob - total, LEAST);
}

/* ---- As documents ------------------------------------------------------------------------------
 */
/* A token by itself may be part of a character only: "bytes:\\xe2\\x80" then. */
static json_t *token_text(const struct scores *s, int32_t id)
{
    char text[6 + 4 * 64 + 1] = "bytes:";
    const char *bytes;
    size_t n;
    json_t *v;

    ek_tokenizer_bytes(s->tokenizer, id, &bytes, &n);
    if ((v = json_stringn(bytes, n)) != NULL)
        return v;
    for (size_t i = 0; i < n && i < 64; i++)
        sprintf(text + 6 + 4 * i, "\\x%02x", (unsigned char)bytes[i]);
    return json_string(text);
}

static json_t *token_bytes(const struct scores *s, int32_t id)
{
    json_t *v = json_array();
    const char *bytes;
    size_t n;

    ek_tokenizer_bytes(s->tokenizer, id, &bytes, &n);
    for (size_t i = 0; i < n; i++)
        if (json_array_append_new(v, json_integer((unsigned char)bytes[i])) != 0) {
            json_decref(v);
            return NULL;
        }
    return v;
}

static json_t *chat_token(const struct scores *s, const struct scored *t)
{
    return json_pack("{so sf so}", "token", token_text(s, t->id), "logprob", (double)t->logprob,
                     "bytes", token_bytes(s, t->id));
}

static json_t *chat_entry(const struct scores *s, const struct scored *row)
{
    json_t *one = chat_token(s, row), *top = json_array();
    bool ok = one != NULL;

    for (uint32_t i = 1; i <= s->n_best; i++)
        ok &= json_array_append_new(top, chat_token(s, &row[i])) == 0;
    ok &= json_object_set_new(one, "top_logprobs", top) == 0;
    if (ok)
        return one;
    json_decref(one);
    return NULL;
}

/* Of the others alone, by their texts. */
static json_t *best_by_text(const struct scores *s, const struct scored *row)
{
    json_t *top = json_object(), *name;
    bool ok = true;

    for (uint32_t i = 1; i <= s->n_best; i++) {
        name = token_text(s, row[i].id);
        ok &= name != NULL && json_object_set_new(top, json_string_value(name),
                                                  json_real((double)row[i].logprob)) == 0;
        json_decref(name);
    }
    if (ok)
        return top;
    json_decref(top);
    return NULL;
}

enum list { CONTENT, TOKENS, LOGPROBS, BEST, OFFSETS };

static json_t *entry(const struct scores *s, enum list list, size_t i)
{
    const struct scored *row = s->rows + i * (1 + s->n_best);

    switch (list) {
    case CONTENT:
        return chat_entry(s, row);
    case TOKENS:
        return token_text(s, row->id);
    case LOGPROBS:
        return json_real((double)row->logprob);
    case BEST:
        return best_by_text(s, row);
    default:
        return json_integer((json_int_t)s->offsets[i]);
    }
}

/* before: what stands before the list; a token's entry at a time is more than text. */
static enum ek_status put_list(const struct scores *s, enum list list, const char *before,
                               struct text *to, size_t max)
{
    EK_TRY(text_add(to, before, strlen(before), max));
    for (size_t i = 0; i < s->n; i++) {
        if (i > 0)
            EK_TRY(text_add(to, ",", 1, max));
        EK_TRY(text_add_json(to, entry(s, list, i), 0, max));
    }
    return text_add(to, "]", 1, max);
}

enum ek_status scores_put(struct scores *s, struct text *to, size_t max)
{
    if (s->tokenizer == NULL)
        return text_add(to, "null", 4, max);
    if (s->chat) {
        EK_TRY(put_list(s, CONTENT, "{\"content\":[", to, max));
        EK_TRY(text_add(to, ",\"refusal\":null}", 16, max));
    } else {
        EK_TRY(put_list(s, TOKENS, "{\"tokens\":[", to, max));
        EK_TRY(put_list(s, LOGPROBS, ",\"token_logprobs\":[", to, max));
        EK_TRY(put_list(s, BEST, ",\"top_logprobs\":[", to, max));
        EK_TRY(put_list(s, OFFSETS, ",\"text_offset\":[", to, max));
        EK_TRY(text_add(to, "}", 1, max));
    }
    s->n = 0;
    return EK_OK;
}

void scores_open(struct scores *s, const struct ek_tokenizer *t, bool chat, uint32_t n_best)
{
    *s = (struct scores){.tokenizer = t, .chat = chat, .n_best = n_best};
}

void scores_close(struct scores *s)
{
    free(s->rows);
    free(s->offsets);
    *s = (struct scores){0};
}

enum ek_status scores_add(struct scores *s, const struct scored *of, uint32_t offset)
{
    size_t row = (1 + s->n_best) * sizeof(*of);

    EK_TRY(ek_grow((void **)&s->rows, &s->rows_cap, s->n + 1, row, SCORES_MAX));
    EK_TRY(ek_grow((void **)&s->offsets, &s->offsets_cap, s->n + 1, sizeof(uint32_t), SCORES_MAX));
    memcpy(s->rows + s->n * (1 + s->n_best), of, row);
    s->offsets[s->n++] = offset;
    return EK_OK;
}
