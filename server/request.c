/* SPDX-License-Identifier: Apache-2.0 */
#include "server/request.h"
#include "server/score.h"
#include "server/text.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define MESSAGES_MAX 65536
#define TEXT_MAX     ((size_t)16 << 20) /* of one message */
#define MARK         "<image>"          /* where a picture stands */
#define MARK_LEN     7

static const struct ek_json_at AT = {"request", ""};

/* ---- What is refused ------------------------------------------------------------------------- */
/* null, false, 0, "", [] and {} ask for nothing. */
static bool asks(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return json_object_size(v) > 0;
    case JSON_ARRAY:
        return json_array_size(v) > 0;
    case JSON_STRING:
        return json_string_length(v) > 0;
    case JSON_INTEGER:
        return json_integer_value(v) != 0;
    case JSON_REAL:
        return json_real_value(v) != 0;
    default:
        return json_is_true(v);
    }
}

static bool says(const json_t *o, const char *name, const char *word)
{
    const char *v = json_string_value(json_object_get(o, name));

    return v != NULL && strcmp(v, word) == 0;
}

static enum ek_status refuse_unsupported(const json_t *o)
{
    static const struct {
        const char *name, *unless; /* a field that says "none" */
    } known[] = {{"tools", "tool_choice"},
                 {"functions", "function_call"},
                 {"echo", NULL},
                 {"suffix", NULL},
                 {"audio", NULL},
                 {"prediction", NULL},
                 {"min_tokens", NULL},
                 {"prompt_logprobs", NULL},
                 {"guided_json", NULL},
                 {"guided_regex", NULL},
                 {"guided_choice", NULL},
                 {"guided_grammar", NULL},
                 {"use_beam_search", NULL},
                 {"structured_outputs", NULL}};
    const json_t *format = json_object_get(o, "response_format"), *type;

    for (size_t i = 0; i < EK_ARRAY_LEN(known); i++) {
        const json_t *v = json_object_get(o, known[i].name);
        if (v != NULL && asks(v) && !(known[i].unless && says(o, known[i].unless, "none")))
            return ek_error(EK_EUNSUPPORTED, "request: %s is not supported", known[i].name);
    }
    type = json_object_get(format, "type");
    if (type != NULL && strcmp(json_is_string(type) ? json_string_value(type) : "", "text") != 0)
        return ek_error(EK_EUNSUPPORTED, "request: response_format other than text is not "
                                         "supported");
    return EK_OK;
}

/* A string that outlives the document. */
static enum ek_status keep(struct request *r, json_t *v, const char **out)
{
    if (json_array_append(r->strings, v) != 0)
        return ek_error(EK_ENOMEM, "no memory for a request");
    *out = json_string_value(v);
    return EK_OK;
}

/* ---- Settings -------------------------------------------------------------------------------- */
static enum ek_status read_id(const json_t *v, const char *list, size_t i, int32_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
        return ek_error(EK_EFORMAT, "request: %s[%zu] must be a token id", list, i);
    *out = (int32_t)json_integer_value(v);
    return EK_OK;
}

static enum ek_status read_stops(const json_t *o, struct request *r)
{
    json_t *v = json_object_get(o, "stop");
    size_t n = json_is_array(v) ? json_array_size(v) : v != NULL && !json_is_null(v);

    if (n > REQUEST_STOPS_MAX)
        return ek_error(EK_EFORMAT, "request: stop has %zu strings, at most %d", n,
                        REQUEST_STOPS_MAX);
    for (size_t i = 0; i < n; i++) {
        json_t *s = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_string(s) || json_string_length(s) == 0 ||
            json_string_length(s) > REQUEST_STOP_MAX)
            return ek_error(EK_EFORMAT, "request: stop must be strings of 1 to %d bytes",
                            REQUEST_STOP_MAX);
        EK_TRY(keep(r, s, &r->stops[r->n_stops++]));
    }
    return EK_OK;
}

static enum ek_status read_stop_ids(const json_t *o, struct request *r)
{
    const json_t *v = json_object_get(o, "stop_token_ids");
    size_t n = json_array_size(v); /* 0 where it is no list */

    if (v != NULL && !json_is_null(v) && (!json_is_array(v) || n > REQUEST_STOPS_MAX))
        return ek_error(EK_EFORMAT, "request: stop_token_ids must be a list of at most %d",
                        REQUEST_STOPS_MAX);
    for (size_t i = 0; i < n; i++)
        EK_TRY(read_id(json_array_get(v, i), "stop_token_ids", i, &r->stop_ids[r->n_stop_ids++]));
    return ek_json_opt_bool(o, AT, "ignore_eos", &r->ignore_eos);
}

/* How many answers. */
static enum ek_status read_n(const json_t *o, struct request *r)
{
    uint64_t n = 1, best_of;

    EK_TRY(ek_json_opt_u64(o, AT, "n", 1, REQUEST_ANSWERS_MAX, &n));
    best_of = n;
    EK_TRY(ek_json_opt_u64(o, AT, "best_of", 1, REQUEST_ANSWERS_MAX, &best_of));
    if (best_of > n)
        return ek_error(EK_EUNSUPPORTED, "request: best_of above n is not supported");
    r->n = (uint32_t)n;
    return EK_OK;
}

static enum ek_status read_seed(const json_t *o, uint64_t *seed)
{
    const json_t *v = json_object_get(o, "seed");

    if (v == NULL || json_is_null(v))
        return getrandom(seed, sizeof(*seed), 0) == sizeof(*seed)
                   ? EK_OK
                   : ek_error(EK_EENV, "no random numbers for a seed");
    if (!json_is_integer(v))
        return ek_error(EK_EFORMAT, "request: seed must be a whole number");
    *seed = (uint64_t)json_integer_value(v);
    return EK_OK;
}

static enum ek_status read_sampling(const json_t *o, struct ek_sampling *s)
{
    uint64_t top_k = 0, state = 0;
    struct ek_draw draw;

    *s = (struct ek_sampling)EK_SAMPLING_GREEDY;
    s->temperature = 1; /* as the interface has it */
    EK_TRY(ek_json_opt_real(o, AT, "temperature", 0, 100, &s->temperature));
    EK_TRY(ek_json_opt_real(o, AT, "top_p", 0, 1, &s->top_p));
    EK_TRY(ek_json_opt_real(o, AT, "min_p", 0, 1, &s->min_p));
    if (json_integer_value(json_object_get(o, "top_k")) != -1) /* all, as 0 */
        EK_TRY(ek_json_opt_u64(o, AT, "top_k", 0, UINT32_MAX, &top_k));
    s->top_k = (uint32_t)top_k;
    EK_TRY(read_seed(o, &s->seed));
    return ek_sampling_draw(s, &state, &draw); /* once, for its refusals */
}

/* {"ID": what is added} */
static enum ek_status read_biases(const json_t *o, struct request *r)
{
    const json_t *all = json_object_get(o, "logit_bias"), *v;
    size_t n = json_object_size(all); /* 0 where it is none */
    struct ek_bias *biases;
    const char *key;

    if ((all != NULL && !json_is_null(all) && !json_is_object(all)) || n > REQUEST_BIASES_MAX)
        return ek_error(EK_EFORMAT, "request: logit_bias must be an object of at most %d tokens",
                        REQUEST_BIASES_MAX);
    if (n == 0)
        return EK_OK;
    if ((biases = ek_calloc(n, sizeof(*biases))) == NULL)
        return EK_ENOMEM;
    r->penalties.biases = biases;
    json_object_foreach((json_t *)all, key, v)
    {
        uint64_t id;
        double add = 0;
        EK_TRY(ek_parse_u64(key, "request: logit_bias", 0, INT32_MAX, &id));
        EK_TRY(ek_json_opt_real(all, (struct ek_json_at){"request", "logit_bias."}, key, -100, 100,
                                &add));
        biases[r->penalties.n_biases++] = (struct ek_bias){(int32_t)id, (float)add};
    }
    return EK_OK;
}

static enum ek_status read_penalties(const json_t *o, struct request *r)
{
    double presence = 0, frequency = 0, repetition = 1;

    EK_TRY(ek_json_opt_real(o, AT, "presence_penalty", -2, 2, &presence));
    EK_TRY(ek_json_opt_real(o, AT, "frequency_penalty", -2, 2, &frequency));
    EK_TRY(ek_json_opt_real(o, AT, "repetition_penalty", 0.01, 100, &repetition));
    EK_TRY(read_biases(o, r));
    r->penalties.presence = (float)presence;
    r->penalties.frequency = (float)frequency;
    r->penalties.repetition = (float)repetition;
    r->penalised = presence != 0 || frequency != 0 || repetition != 1 || r->penalties.n_biases > 0;
    return EK_OK;
}

/* Of a chat: whether, and how many others; else one number, which says both. */
static enum ek_status read_logprobs(const json_t *o, struct request *r)
{
    const json_t *v = json_object_get(o, "logprobs");
    uint64_t n = 0;

    if (!r->chat) {
        r->logprobs = v != NULL && !json_is_null(v) && !json_is_false(v);
        if (r->logprobs && !json_is_true(v))
            EK_TRY(ek_json_opt_u64(o, AT, "logprobs", 0, SCORE_MOST, &n));
    } else {
        EK_TRY(ek_json_opt_bool(o, AT, "logprobs", &r->logprobs));
        EK_TRY(ek_json_opt_u64(o, AT, "top_logprobs", 0, SCORE_MOST, &n));
        if (n > 0 && !r->logprobs)
            return ek_error(EK_EFORMAT, "request: top_logprobs needs logprobs");
    }
    r->n_best = (uint32_t)n;
    return EK_OK;
}

static enum ek_status read_settings(const json_t *o, struct request *r)
{
    const json_t *options = json_object_get(o, "stream_options");
    uint64_t most = 0;

    EK_TRY(refuse_unsupported(o));
    EK_TRY(ek_json_opt_u64(o, AT, "max_tokens", 1, 1u << 22, &most));
    EK_TRY(ek_json_opt_u64(o, AT, "max_completion_tokens", 1, 1u << 22, &most));
    r->max_tokens = (uint32_t)most;
    EK_TRY(ek_json_opt_bool(o, AT, "stream", &r->stream));
    if (json_is_object(options))
        EK_TRY(ek_json_opt_bool(options, (struct ek_json_at){"request", "stream_options."},
                                "include_usage", &r->usage));
    EK_TRY(read_n(o, r));
    EK_TRY(read_stops(o, r));
    EK_TRY(read_stop_ids(o, r));
    EK_TRY(read_logprobs(o, r));
    EK_TRY(read_penalties(o, r));
    return read_sampling(o, &r->sampling);
}

/* ---- Messages -------------------------------------------------------------------------------- */
struct content {
    struct text text;
    bool words; /* it ends with those of a text part */
};

static enum ek_status add(struct content *c, const char *s, size_t n)
{
    return text_add(&c->text, s, n, TEXT_MAX);
}

static enum ek_status add_image(const json_t *part, struct ek_json_at at, struct request *r,
                                struct content *t)
{
    json_t *v = json_object_get(part, "image_url");
    const char *url = json_string_value(v);

    if (url == NULL) {
        EK_TRY(ek_json_string(v, (struct ek_json_at){at.file, "image_url."}, "url", &url));
        v = json_object_get(v, "url");
    }
    if (r->n_images == EK_VL_ITEMS_MAX)
        return ek_error(EK_EFORMAT, "request: more than %d pictures", EK_VL_ITEMS_MAX);
    if (r->images == NULL && (r->images = ek_calloc(EK_VL_ITEMS_MAX, sizeof(*r->images))) == NULL)
        return EK_ENOMEM;
    EK_TRY(keep(r, v, &r->images[r->n_images++]));
    t->words = false;
    return add(t, MARK, MARK_LEN);
}

/* Pieces of text that follow one another are lines. */
static enum ek_status add_part(const json_t *part, struct ek_json_at at, struct request *r,
                               struct content *t)
{
    const char *type = NULL, *text = NULL;

    if (!json_is_object(part))
        return ek_error(EK_EFORMAT, "request: %scontent must be a string or a list of objects",
                        at.prefix);
    EK_TRY(ek_json_string(part, at, "type", &type));
    if (strcmp(type, "image_url") == 0)
        return add_image(part, at, r, t);
    if (strcmp(type, "text") != 0)
        return ek_error(EK_EUNSUPPORTED, "request: %stype '%.32s', must be text or image_url",
                        at.prefix, type);
    EK_TRY(ek_json_string(part, at, "text", &text));
    if (t->words)
        EK_TRY(add(t, "\n", 1));
    t->words = true;
    return add(t, text, strlen(text));
}

static enum ek_status read_content(const json_t *v, struct ek_json_at at, struct request *r,
                                   const char **out)
{
    struct content t = {{0}, false};
    enum ek_status st = add(&t, "", 0);

    if (st == EK_OK && json_is_string(v))
        st = add(&t, json_string_value(v), json_string_length(v));
    else if (st == EK_OK && !json_is_array(v))
        st = ek_error(EK_EFORMAT, "request: %scontent must be a string or a list", at.prefix);
    for (size_t i = 0; st == EK_OK && json_is_array(v) && i < json_array_size(v); i++)
        st = add_part(json_array_get(v, i), at, r, &t);
    if (st == EK_OK)
        *out = t.text.data;
    else
        free(t.text.data);
    return st;
}

static enum ek_status read_message(const json_t *o, size_t i, struct request *r)
{
    struct ek_message *m = &r->messages[i];
    const json_t *content;
    char prefix[48];
    struct ek_json_at at = {"request", prefix};

    snprintf(prefix, sizeof(prefix), "messages[%zu].", i);
    if (!json_is_object(o))
        return ek_error(EK_EFORMAT, "request: messages[%zu] must be an object", i);
    EK_TRY(ek_json_string(o, at, "role", &m->role));
    EK_TRY(keep(r, json_object_get(o, "role"), &m->role));
    if (strcmp(m->role, "developer") == 0)
        m->role = "system";
    content = json_object_get(o, "content");
    if (strcmp(m->role, "assistant") == 0 && (content == NULL || json_is_null(content)))
        return (m->content = ek_strdup("")) ? EK_OK : EK_ENOMEM; /* it called a tool, elsewhere */
    return read_content(content, at, r, &m->content);
}

/* Pictures that all stand before the first user's text are left unnamed: the model's template knows
 * how it is told of them. */
static void unname_leading(struct request *r)
{
    size_t i = 0, n = 0;
    char *text;

    while (i < r->n_messages && strcmp(r->messages[i].role, "user") != 0)
        i++;
    if (i == r->n_messages)
        return;
    text = (char *)r->messages[i].content;
    while (strncmp(text + n * MARK_LEN, MARK, MARK_LEN) == 0)
        n++;
    if (n == r->n_images)
        memmove(text, text + n * MARK_LEN, strlen(text + n * MARK_LEN) + 1);
}

static enum ek_status read_messages(const json_t *o, struct request *r)
{
    const json_t *list = NULL;
    size_t n;

    EK_TRY(ek_json_array(o, AT, "messages", &list));
    n = json_array_size(list);
    if (n == 0 || n > MESSAGES_MAX)
        return ek_error(EK_EFORMAT, "request: %zu messages, from 1 to %d possible", n,
                        MESSAGES_MAX);
    if ((r->messages = ek_calloc(n, sizeof(*r->messages))) == NULL)
        return EK_ENOMEM;
    r->n_messages = n;
    for (size_t i = 0; i < n; i++)
        EK_TRY(read_message(json_array_get(list, i), i, r));
    if (r->n_images > 0)
        unname_leading(r);
    return EK_OK;
}

/* ---- Prompts --------------------------------------------------------------------------------- */
static enum ek_status read_ids(const json_t *v, struct request_prompt *p)
{
    p->n_ids = json_array_size(v); /* 0 where it is no list */
    if (p->n_ids == 0)
        return ek_error(EK_EFORMAT, "request: prompt must be a string or a list of token ids, or a "
                                    "list of these");
    if ((p->ids = ek_calloc(p->n_ids, sizeof(*p->ids))) == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < p->n_ids; i++)
        EK_TRY(read_id(json_array_get(v, i), "prompt", i, &p->ids[i]));
    return EK_OK;
}

/* One prompt, or a list of them. */
static enum ek_status read_prompts(const json_t *o, struct request *r)
{
    json_t *v = json_object_get(o, "prompt"), *first = json_array_get(v, 0);
    bool list = json_is_string(first) || json_is_array(first);
    size_t n = list ? json_array_size(v) : 1;

    if (n * r->n > REQUEST_ANSWERS_MAX)
        return ek_error(EK_EFORMAT, "request: %zu prompts, %u answers to each: at most %d in all",
                        n, r->n, REQUEST_ANSWERS_MAX);
    if ((r->prompts = ek_calloc(n, sizeof(*r->prompts))) == NULL)
        return EK_ENOMEM;
    r->n_prompts = n;
    for (size_t i = 0; i < n; i++) {
        json_t *one = list ? json_array_get(v, i) : v;
        EK_TRY(json_is_string(one) ? keep(r, one, &r->prompts[i].text)
                                   : read_ids(one, &r->prompts[i]));
    }
    return EK_OK;
}

enum ek_status request_parse(const char *text, size_t n, bool chat, struct request *out)
{
    struct request r = {.chat = chat, .n_prompts = chat, .strings = json_array()};
    json_t *root = NULL;
    enum ek_status st = ek_json_parse(text, n, "request", &root);

    if (st == EK_OK && !json_is_object(root))
        st = ek_error(EK_EFORMAT, "request: must be a JSON object");
    if (st == EK_OK)
        st = read_settings(root, &r);
    if (st == EK_OK)
        st = chat ? read_messages(root, &r) : read_prompts(root, &r);
    json_decref(root);
    if (st == EK_OK)
        *out = r;
    else
        request_free(&r);
    return st;
}

void request_free(struct request *r)
{
    for (size_t i = 0; i < r->n_messages; i++)
        free((char *)r->messages[i].content);
    for (size_t i = 0; r->prompts && i < r->n_prompts; i++)
        free(r->prompts[i].ids);
    free(r->prompts);
    free(r->messages);
    free(r->images);
    free((void *)r->penalties.biases);
    json_decref(r->strings);
    *r = (struct request){0};
}

/* ---- Pictures -------------------------------------------------------------------------------- */
static int sextet(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' || c == '-' ? 62 : c == '/' || c == '_' ? 63 : -1;
}

static enum ek_status decode_base64(const char *text, char **data, size_t *n)
{
    size_t len = strlen(text), k = 0;
    uint32_t bits = 0, have = 0;
    char *out;

    while (len > 0 && text[len - 1] == '=')
        len--;
    if ((out = malloc(len / 4 * 3 + 3)) == NULL)
        return ek_error(EK_ENOMEM, "no memory for a picture");
    for (size_t i = 0; i < len; i++) {
        int s = sextet(text[i]);
        if (s < 0) {
            free(out);
            return ek_error(EK_EFORMAT, "request: a picture's base64 is malformed at byte %zu", i);
        }
        bits = bits << 6 | (uint32_t)s;
        have += 6;
        if (have >= 8) {
            have -= 8;
            out[k++] = (char)(bits >> have);
        }
    }
    *data = out;
    *n = k;
    return EK_OK;
}

enum ek_status request_image(const char *url, char **data, size_t *n)
{
    const char *comma = strchr(url, ',');

    if (strncmp(url, "data:", 5) != 0 || comma == NULL || comma - url < 7 ||
        strncmp(comma - 7, ";base64", 7) != 0)
        return ek_error(EK_EUNSUPPORTED,
                        "request: a picture must be a URL as data:image/png;base64,... (no other "
                        "is fetched)");
    return decode_base64(comma + 1, data, n);
}
