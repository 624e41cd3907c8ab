/* SPDX-License-Identifier: Apache-2.0 */
#include "server/score.h"

#include <math.h>

#define LEAST (-9999.0f) /* what JSON can say of a probability of 0 */

/* ---- Of a row of logits ------------------------------------------------------------------------
 */
static void put_best(struct score *s, uint32_t most, int32_t id, float logit)
{
    uint32_t at = s->n < most ? s->n++ : most - 1;

    for (; at > 0 && logit > s->best[at - 1].logprob; at--)
        s->best[at] = s->best[at - 1];
    s->best[at] = (struct scored){id, logit};
}

void score_row(const float *logits, uint32_t vocab, int32_t id, uint32_t n, struct score *out)
{
    float most = logits[0], total;
    double sum = 0;

    out->n = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        most = logits[i] > most ? logits[i] : most;
        if (n > 0 && (out->n < n || logits[i] > out->best[n - 1].logprob))
            put_best(out, n, (int32_t)i, logits[i]);
    }
    for (uint32_t i = 0; i < vocab; i++)
        sum += expf(logits[i] - most);
    total = most + (float)log(sum);
    out->token = (struct scored){id, fmaxf(logits[id] - total, LEAST)};
    for (uint32_t i = 0; i < out->n; i++)
        out->best[i].logprob = fmaxf(out->best[i].logprob - total, LEAST);
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

static bool add_chat(struct scores *s, const struct score *of)
{
    json_t *one = chat_token(s, &of->token), *top = json_array();
    bool ok = one != NULL;

    for (uint32_t i = 0; i < of->n; i++)
        ok &= json_array_append_new(top, chat_token(s, &of->best[i])) == 0;
    ok &= json_object_set_new(one, "top_logprobs", top) == 0;
    return json_array_append_new(json_object_get(s->root, "content"), one) == 0 && ok;
}

static bool add_text(struct scores *s, const struct score *of, size_t offset)
{
    json_t *top = json_object(), *text = token_text(s, of->token.id), *name;
    bool ok = true;

    for (uint32_t i = 0; i < of->n; i++) {
        name = token_text(s, of->best[i].id);
        ok &= name != NULL && json_object_set_new(top, json_string_value(name),
                                                  json_real((double)of->best[i].logprob)) == 0;
        json_decref(name);
    }
    ok &= json_array_append_new(json_object_get(s->root, "tokens"), text) == 0;
    ok &= json_array_append_new(json_object_get(s->root, "token_logprobs"),
                                json_real((double)of->token.logprob)) == 0;
    ok &= json_array_append_new(json_object_get(s->root, "text_offset"),
                                json_integer((json_int_t)offset)) == 0;
    return json_array_append_new(json_object_get(s->root, "top_logprobs"), top) == 0 && ok;
}

static json_t *empty(bool chat)
{
    return chat ? json_pack("{s[] sn}", "content", "refusal")
                : json_pack("{s[] s[] s[] s[]}", "tokens", "token_logprobs", "top_logprobs",
                            "text_offset");
}

enum ek_status scores_open(struct scores *s, const struct ek_tokenizer *t, bool chat)
{
    *s = (struct scores){.tokenizer = t, .chat = chat, .root = empty(chat)};
    return s->root ? EK_OK : ek_error(EK_ENOMEM, "no memory for log-probabilities");
}

void scores_close(struct scores *s)
{
    json_decref(s->root);
    *s = (struct scores){0};
}

enum ek_status scores_add(struct scores *s, const struct score *of, size_t offset)
{
    return (s->chat ? add_chat(s, of) : add_text(s, of, offset))
               ? EK_OK
               : ek_error(EK_ENOMEM, "no memory for log-probabilities");
}

json_t *scores_take(struct scores *s)
{
    json_t *v = s->root;

    if (v != NULL)
        s->root = empty(s->chat);
    return v;
}
