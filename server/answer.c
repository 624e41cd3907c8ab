/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "server/answer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define TEXT_MAX ((size_t)1 << 28)

enum ek_status reply_open(struct reply *r, const struct request *request, const char *model)
{
    uint64_t random = 0;

    if (getrandom(&random, sizeof(random), 0) != sizeof(random))
        return ek_error(EK_EENV, "no random numbers for an id");
    *r = (struct reply){.request = request, .model = model, .created = (int64_t)time(NULL)};
    snprintf(r->id, sizeof(r->id), "%s-%016" PRIx64, request->chat ? "chatcmpl" : "cmpl", random);
    return EK_OK;
}

enum ek_status answer_open(struct answer *a, const struct reply *r, uint32_t index,
                           const struct ek_tokenizer *t)
{
    *a = (struct answer){.reply = r, .index = index};
    scores_open(&a->scores, r->request->logprobs ? t : NULL, r->request->chat, r->request->n_best);
    return answer_add(a, "");
}

void answer_close(struct answer *a)
{
    free(a->text);
    scores_close(&a->scores);
    *a = (struct answer){0};
}

static size_t characters(const char *text, size_t n)
{
    size_t count = 0;

    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)text[i] & 0xc0) != 0x80;
    return count;
}

static size_t longest_stop(const struct request *r)
{
    size_t longest = 0;

    for (size_t i = 0; i < r->n_stops; i++)
        if (strlen(r->stops[i]) > longest)
            longest = strlen(r->stops[i]);
    return longest;
}

/* The text ends before the first stop string that begins at `from` or behind. */
static void cut_at_stop(struct answer *a, size_t from)
{
    const struct request *r = a->reply->request;
    const char *first = NULL;

    for (size_t i = 0; i < r->n_stops; i++) {
        const char *p = memmem(a->text + from, a->n - from, r->stops[i], strlen(r->stops[i]));
        if (p != NULL && (first == NULL || p < first))
            first = p;
    }
    if (first == NULL)
        return;
    a->n = (size_t)(first - a->text);
    a->text[a->n] = '\0';
    a->stopped = true;
}

enum ek_status answer_add(struct answer *a, const char *text)
{
    size_t n = strlen(text), longest = longest_stop(a->reply->request), before = a->n;

    if (a->stopped)
        return EK_OK;
    EK_TRY(ek_grow((void **)&a->text, &a->cap, a->n + n + 1, 1, TEXT_MAX));
    memcpy(a->text + a->n, text, n + 1);
    a->n += n;
    a->characters += characters(text, n);
    if (longest > 0)
        cut_at_stop(a, before < longest ? 0 : before - longest + 1);
    return EK_OK;
}

enum ek_status answer_score(struct answer *a, const struct scored *of)
{
    return scores_add(&a->scores, of, (uint32_t)a->characters);
}

size_t answer_ready(const struct answer *a)
{
    size_t longest = longest_stop(a->reply->request), n = a->n;

    if (a->finish || a->stopped || longest == 0)
        return n;
    n = n < longest ? 0 : n - longest + 1;
    while (n > a->sent && ((unsigned char)a->text[n] & 0xc0) == 0x80)
        n--; /* not within a character */
    return n > a->sent ? n : a->sent;
}

/* ---- Documents ------------------------------------------------------------------------------- */
static enum ek_status put(struct text *to, const char *text)
{
    return text_add(to, text, strlen(text), DOCUMENT_MAX);
}

static enum ek_status put_json(struct text *to, json_t *v)
{
    return text_add_json(to, v, 0, DOCUMENT_MAX);
}

/* An object that goes on. */
static enum ek_status put_open(struct text *to, json_t *v)
{
    return text_add_json(to, v, 1, DOCUMENT_MAX);
}

static json_t *usage(const struct reply *r)
{
    return json_pack("{sI sI sI s{sI}}", "prompt_tokens", (json_int_t)r->prompt_tokens,
                     "completion_tokens", (json_int_t)r->tokens, "total_tokens",
                     (json_int_t)(r->prompt_tokens + r->tokens), "prompt_tokens_details",
                     "cached_tokens", (json_int_t)r->cached_tokens);
}

/* A document up to its choices. */
static enum ek_status put_head(const struct reply *r, const char *object, struct text *to)
{
    EK_TRY(put_open(to, json_pack("{ss ss sI ss}", "id", r->id, "object", object, "created",
                                  (json_int_t)r->created, "model", r->model)));
    return put(to, ",\"choices\":[");
}

/* What a choice has besides: its text, and so on, in v. */
static enum ek_status put_choice(struct answer *a, json_t *v, struct text *to)
{
    EK_TRY(put_open(to, v));
    EK_TRY(put(to, ",\"logprobs\":"));
    EK_TRY(scores_put(&a->scores, to, DOCUMENT_MAX));
    EK_TRY(put(to, ",\"finish_reason\":"));
    EK_TRY(put_json(to, a->finish ? json_string(a->finish) : json_null()));
    return put(to, "}");
}

enum ek_status reply_begin(const struct reply *r, struct text *to)
{
    return put_head(r, r->request->chat ? "chat.completion" : "text_completion", to);
}

enum ek_status answer_choice(struct answer *a, struct text *to)
{
    bool chat = a->reply->request->chat;

    if (a->index > 0)
        EK_TRY(put(to, ","));
    return put_choice(a,
                      chat ? json_pack("{si s{ss ss%}}", "index", (int)a->index, "message", "role",
                                       "assistant", "content", a->text, a->n)
                           : json_pack("{si ss%}", "index", (int)a->index, "text", a->text, a->n),
                      to);
}

enum ek_status reply_end(const struct reply *r, struct text *to)
{
    EK_TRY(put(to, "],\"usage\":"));
    EK_TRY(put_json(to, usage(r)));
    return put(to, "}\n");
}

static enum ek_status begin_event(const struct reply *r, struct text *to)
{
    EK_TRY(put(to, "data: "));
    return put_head(r, r->request->chat ? "chat.completion.chunk" : "text_completion", to);
}

/* An event that could not be made to its end is no part of the stream. */
static enum ek_status end_event(enum ek_status st, struct text *to, size_t begun)
{
    if (st != EK_OK)
        to->n = begun;
    return st;
}

static enum ek_status put_piece(struct answer *a, size_t ready, bool first, struct text *to)
{
    const struct request *r = a->reply->request;
    json_t *piece, *v;

    EK_TRY(begin_event(a->reply, to));
    piece = json_stringn(a->text + a->sent, ready - a->sent);
    v = r->chat ? json_pack("{si s{so}}", "index", (int)a->index, "delta", "content", piece)
                : json_pack("{si so}", "index", (int)a->index, "text", piece);
    if (r->chat && first && v != NULL)
        json_object_set_new(json_object_get(v, "delta"), "role", json_string("assistant"));
    EK_TRY(put_choice(a, v, to));
    return put(to, r->usage ? "],\"usage\":null}\n\n" : "]}\n\n");
}

enum ek_status answer_event(struct answer *a, size_t ready, bool first, struct text *to)
{
    size_t begun = to->n;

    return end_event(put_piece(a, ready, first, to), to, begun);
}

static enum ek_status put_usage(const struct reply *r, struct text *to)
{
    EK_TRY(begin_event(r, to));
    EK_TRY(put(to, "],\"usage\":"));
    EK_TRY(put_json(to, usage(r)));
    return put(to, "}\n\n");
}

enum ek_status reply_usage_event(const struct reply *r, struct text *to)
{
    size_t begun = to->n;

    return end_event(put_usage(r, to), to, begun);
}

/* What is quoted in a message may have been cut within a character. */
static json_t *message_json(const char *message)
{
    json_t *v = json_string(message);
    char *plain = v ? NULL : ek_strdup(message);

    for (char *p = plain; p && *p; p++)
        *p = (unsigned char)*p < 0x80 ? *p : '?';
    if (plain != NULL)
        v = json_string(plain);
    free(plain);
    return v;
}

char *answer_error(int status, const char *code, const char *message)
{
    const char *type = status == 401   ? "authentication_error"
                       : status == 429 ? "rate_limit_error"
                       : status < 500  ? "invalid_request_error"
                                       : "server_error";
    json_t *v = json_pack("{s{so ss sn ss?}}", "error", "message", message_json(message), "type",
                          type, "param", "code", code);
    struct text t = {NULL, 0, 0};

    if (put_json(&t, v) == EK_OK && put(&t, "\n") == EK_OK)
        return t.data;
    free(t.data);
    return NULL;
}
