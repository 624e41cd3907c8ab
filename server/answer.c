/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "server/answer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define TEXT_MAX ((size_t)1 << 28)

enum ek_status answer_open(struct answer *a, const struct request *r, const char *model,
                           const struct ek_tokenizer *t)
{
    uint64_t random = 0;

    if (getrandom(&random, sizeof(random), 0) != sizeof(random))
        return ek_error(EK_EENV, "no random numbers for an id");
    *a = (struct answer){.request = r, .model = model, .created = (int64_t)time(NULL)};
    snprintf(a->id, sizeof(a->id), "%s-%016" PRIx64, r->chat ? "chatcmpl" : "cmpl", random);
    if (r->logprobs)
        EK_TRY(scores_open(&a->scores, t, r->chat));
    return answer_add(a, "");
}

void answer_close(struct answer *a)
{
    free(a->text);
    scores_close(&a->scores);
    *a = (struct answer){0};
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
    const struct request *r = a->request;
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
    size_t n = strlen(text), longest = longest_stop(a->request), before = a->n;

    if (a->stopped)
        return EK_OK;
    EK_TRY(ek_grow((void **)&a->text, &a->cap, a->n + n + 1, 1, TEXT_MAX));
    memcpy(a->text + a->n, text, n + 1);
    a->n += n;
    if (longest > 0)
        cut_at_stop(a, before < longest ? 0 : before - longest + 1);
    return EK_OK;
}

enum ek_status answer_score(struct answer *a, const struct score *of)
{
    size_t characters = 0;

    for (size_t i = 0; !a->request->chat && i < a->n; i++)
        characters += ((unsigned char)a->text[i] & 0xc0) != 0x80;
    return scores_add(&a->scores, of, characters);
}

size_t answer_ready(const struct answer *a, bool end)
{
    size_t longest = longest_stop(a->request), n = a->n;

    if (end || a->stopped || longest == 0)
        return n;
    n = n < longest ? 0 : n - longest + 1;
    while (n > a->sent && ((unsigned char)a->text[n] & 0xc0) == 0x80)
        n--; /* not within a character */
    return n > a->sent ? n : a->sent;
}

/* ---- Documents ------------------------------------------------------------------------------- */
static char *dump(json_t *v, const char *before, const char *after)
{
    char *text = v ? json_dumps(v, JSON_COMPACT) : NULL, *out = NULL;

    if (text != NULL)
        out = ek_asprintf("%s%s%s", before, text, after);
    free(text);
    json_decref(v);
    return out;
}

static json_t *usage(const struct answer *a)
{
    return json_pack("{sI sI sI s{sI}}", "prompt_tokens", (json_int_t)a->prompt_tokens,
                     "completion_tokens", (json_int_t)a->tokens, "total_tokens",
                     (json_int_t)a->prompt_tokens + (json_int_t)a->tokens, "prompt_tokens_details",
                     "cached_tokens", (json_int_t)a->cached_tokens);
}

static json_t *envelope(const struct answer *a, const char *object, json_t *choices)
{
    return json_pack("{ss ss sI ss so}", "id", a->id, "object", object, "created",
                     (json_int_t)a->created, "model", a->model, "choices", choices);
}

char *answer_whole(struct answer *a, const char *finish)
{
    bool chat = a->request->chat;
    json_t *choice = chat ? json_pack("{si s{ss ss%} so? ss}", "index", 0, "message", "role",
                                      "assistant", "content", a->text, a->n, "logprobs",
                                      scores_take(&a->scores), "finish_reason", finish)
                          : json_pack("{si ss% so? ss}", "index", 0, "text", a->text, a->n,
                                      "logprobs", scores_take(&a->scores), "finish_reason", finish);
    json_t *v = envelope(a, chat ? "chat.completion" : "text_completion", json_pack("[o]", choice));

    if (v != NULL)
        json_object_set_new(v, "usage", usage(a));
    return dump(v, "", "\n");
}

char *answer_event(struct answer *a, size_t ready, bool first, const char *finish)
{
    bool chat = a->request->chat;
    json_t *piece = json_stringn(a->text + a->sent, ready - a->sent), *choice;

    if (chat)
        choice = json_pack("{si s{so} so? ss?}", "index", 0, "delta", "content", piece, "logprobs",
                           scores_take(&a->scores), "finish_reason", finish);
    else
        choice = json_pack("{si so so? ss?}", "index", 0, "text", piece, "logprobs",
                           scores_take(&a->scores), "finish_reason", finish);
    if (chat && first && choice != NULL)
        json_object_set_new(json_object_get(choice, "delta"), "role", json_string("assistant"));
    return dump(envelope(a, chat ? "chat.completion.chunk" : "text_completion",
                         json_pack("[o]", choice)),
                "data: ", "\n\n");
}

char *answer_usage_event(const struct answer *a)
{
    json_t *v =
        envelope(a, a->request->chat ? "chat.completion.chunk" : "text_completion", json_array());

    if (v != NULL)
        json_object_set_new(v, "usage", usage(a));
    return dump(v, "data: ", "\n\n");
}

char *answer_error(int status, const char *code, const char *message)
{
    const char *type = status == 401   ? "authentication_error"
                       : status == 429 ? "rate_limit_error"
                       : status < 500  ? "invalid_request_error"
                                       : "server_error";

    return dump(json_pack("{s{ss ss sn ss?}}", "error", "message", message, "type", type, "param",
                          "code", code),
                "", "\n");
}
