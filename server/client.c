/* SPDX-License-Identifier: Apache-2.0 */
#include "server/client.h"
#include "server/answer.h"
#include "server/prompt.h"
#include "server/text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#define STOP_IDS_MAX 16
#define OUT_MAX      ((size_t)64 << 20) /* of events that the client has not taken */

struct way {
    const char *path, *method;
    bool (*reply)(struct client *c);
    bool open; /* without a key */
};

struct client {
    struct server *s;
    struct MHD_Connection *connection;
    struct guest *guest;
    const struct way *way;
    const char *rest; /* of the path: the connection's */
    struct text body;
    bool too_large; /* the body is: ... */
    bool lacking;   /* there was no memory for it: its rest is passed over */
    struct request request;
    struct server_prompt prompt;
    struct ek_decoder *decoder;
    struct answer answer;
    struct job job;
    int32_t stops[STOP_IDS_MAX];
    size_t read;     /* tokens of the job that are in the answer */
    bool put;        /* the job is in the queue */
    bool begun;      /* the first event is out */
    bool over;       /* all of the answer is made */
    struct text out; /* events, ... */
    size_t taken;    /* ... of which so much is sent */
};

/* ---- Answers ----------------------------------------------------------------------------------
 */
static bool add_header(struct MHD_Response *r, const char *name, const char *value)
{
    return MHD_add_response_header(r, name, value) == MHD_YES;
}

/* Takes text over, which may be NULL for want of memory. */
static bool reply(struct client *c, int code, const char *type, char *text)
{
    struct MHD_Response *r =
        text ? MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE) : NULL;
    bool ok;

    if (r == NULL) {
        free(text);
        return false;
    }
    ok = add_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type) &&
         (code != 401 || add_header(r, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer")) &&
         (code != 405 || add_header(r, MHD_HTTP_HEADER_ALLOW, c->way->method)) &&
         (c->guest == NULL || c->guest->refused == 0 ||
          (add_header(r, MHD_HTTP_HEADER_CONNECTION, "close") &&
           add_header(r, MHD_HTTP_HEADER_RETRY_AFTER, "1"))) &&
         MHD_queue_response(c->connection, (unsigned)code, r) == MHD_YES;
    MHD_destroy_response(r);
    guests_move(&c->s->guests, c->guest, GUEST_TAKES);
    return ok;
}

static bool reply_json(struct client *c, int code, char *text)
{
    return reply(c, code, "application/json", text);
}

static bool reply_error(struct client *c, int status, const char *code, const char *message)
{
    return reply_json(c, status, answer_error(status, code, message));
}

static int code_of(enum ek_status st)
{
    switch (st) {
    case EK_NO:
    case EK_EUSAGE:
    case EK_EFORMAT:
    case EK_EUNSUPPORTED:
        return 400;
    case EK_ENOMEM:
    case EK_EINTR:
        return 503;
    default:
        return 500;
    }
}

/* What a client may branch on; NULL: there is no word for it. */
static const char *word_of(enum ek_status st)
{
    return st == EK_NO ? "context_length_exceeded" : NULL;
}

static bool reply_failure(struct client *c, enum ek_status st)
{
    return reply_error(c, code_of(st), word_of(st), ek_last_error());
}

static bool reply_document(struct client *c, json_t *v)
{
    char *text = v ? json_dumps(v, JSON_COMPACT) : NULL;

    json_decref(v);
    return reply_json(c, 200, text);
}

static json_t *model_document(const struct client *c)
{
    return json_pack("{ss ss si ss sI}", "id", c->s->opt->model, "object", "model", "created", 0,
                     "owned_by", "evenkeel", "max_model_len",
                     (json_int_t)ek_engine_max_context(c->s->engine));
}

static bool reply_models(struct client *c)
{
    return reply_document(c, json_pack("{ss s[o]}", "object", "list", "data", model_document(c)));
}

static bool reply_model(struct client *c)
{
    if (strcmp(c->rest, c->s->opt->model) != 0)
        return reply_error(c, 404, "model_not_found", "no model of this name is here");
    return reply_document(c, model_document(c));
}

static bool reply_health(struct client *c)
{
    return reply_json(c, 200, ek_strdup("{\"status\":\"ok\"}\n"));
}

/* In the form that Prometheus reads. */
static bool reply_metrics(struct client *c)
{
    struct queue_numbers n = queue_look(&c->s->queue);
    unsigned long long done = n.stopped + n.full + n.cancelled;
    char *text =
        ek_asprintf("# TYPE evenkeel:num_requests_running gauge\n"
                    "evenkeel:num_requests_running %llu\n"
                    "# TYPE evenkeel:num_requests_waiting gauge\n"
                    "evenkeel:num_requests_waiting %llu\n"
                    "# TYPE evenkeel:prompt_tokens_total counter\n"
                    "evenkeel:prompt_tokens_total %llu\n"
                    "# TYPE evenkeel:prefix_cache_hits_total counter\n"
                    "evenkeel:prefix_cache_hits_total %llu\n"
                    "# TYPE evenkeel:generation_tokens_total counter\n"
                    "evenkeel:generation_tokens_total %llu\n"
                    "# TYPE evenkeel:request_success_total counter\n"
                    "evenkeel:request_success_total{finished_reason=\"stop\"} %llu\n"
                    "evenkeel:request_success_total{finished_reason=\"length\"} %llu\n"
                    "evenkeel:request_success_total{finished_reason=\"abort\"} %llu\n"
                    "# TYPE evenkeel:time_to_first_token_seconds summary\n"
                    "evenkeel:time_to_first_token_seconds_sum %.6f\n"
                    "evenkeel:time_to_first_token_seconds_count %llu\n"
                    "# TYPE evenkeel:e2e_request_latency_seconds summary\n"
                    "evenkeel:e2e_request_latency_seconds_sum %.6f\n"
                    "evenkeel:e2e_request_latency_seconds_count %llu\n",
                    (unsigned long long)n.running, (unsigned long long)n.waiting,
                    (unsigned long long)n.prompt_tokens, (unsigned long long)n.cached_tokens,
                    (unsigned long long)n.tokens, (unsigned long long)n.stopped,
                    (unsigned long long)n.full, (unsigned long long)n.cancelled, n.first_token_s,
                    (unsigned long long)n.first_tokens, n.whole_s, done);

    return reply(c, 200, "text/plain; version=0.0.4", text);
}

/* ---- Generation -------------------------------------------------------------------------------
 */
static size_t stop_ids(const struct server *s, int32_t *ids)
{
    const struct ek_config *c = &ek_engine_model(s->engine)->config;
    size_t n = 0;

    for (uint32_t i = 0; i < c->n_eos && n < STOP_IDS_MAX; i++)
        ids[n++] = c->eos[i];
    return n + ek_chat_stops(s->tokenizer, ids + n, STOP_IDS_MAX - n);
}

static enum ek_status open_job(struct client *c)
{
    struct server *s = c->s;
    const struct ek_prompt *p = &c->prompt.prompt;
    uint32_t room = ek_engine_max_context(s->engine) - (uint32_t)p->n + 1;
    uint32_t asked = c->request.max_tokens;

    if ((c->decoder = ek_decoder_new(s->tokenizer, true)) == NULL)
        return EK_ENOMEM;
    EK_TRY(answer_open(&c->answer, &c->request, s->opt->model, s->tokenizer));
    c->answer.prompt_tokens = (uint32_t)p->n;
    c->job.scored = c->request.logprobs;
    c->job.n_best = c->request.n_best;
    c->job.vocab = ek_engine_model(s->engine)->config.vocab;
    c->job.generation.prompt = *p;
    c->job.generation.opt =
        (struct ek_generate_options){.sampling = c->request.sampling,
                                     .max_tokens = asked > 0 && asked < room ? asked : room,
                                     .stop = c->stops,
                                     .n_stop = stop_ids(s, c->stops)};
    return EK_OK;
}

static void drop_body(struct client *c)
{
    atomic_fetch_sub(&c->s->bodies, c->body.n);
    free(c->body.data);
    c->body = (struct text){0};
}

static enum ek_status open_generation(struct client *c, bool chat)
{
    struct server *s = c->s;

    EK_TRY(request_parse(c->body.data ? c->body.data : "", c->body.n, chat, &c->request));
    drop_body(c);
    EK_TRY(server_prompt_open(s->engine, s->tokenizer, s->sees ? &s->rules : NULL, &c->request,
                              &c->prompt));
    return open_job(c);
}

/* The client has closed its end. */
static bool gone(const struct client *c)
{
    int fd = MHD_get_connection_info(c->connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    char byte;
    ssize_t n = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

    return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

static enum ek_status put_event(struct client *c, char *text)
{
    enum ek_status st = text ? text_add(&c->out, text, strlen(text), OUT_MAX) : EK_ENOMEM;

    free(text);
    return st;
}

/* What can be said by now. finish: NULL until the last. */
static enum ek_status put_piece(struct client *c, const char *finish)
{
    size_t ready = answer_ready(&c->answer, finish != NULL);
    bool first = !c->begun;

    if (!c->request.stream || (ready == c->answer.sent && !first && finish == NULL))
        return EK_OK;
    c->begun = true;
    EK_TRY(put_event(c, answer_event(&c->answer, ready, first, finish)));
    c->answer.sent = ready;
    return EK_OK;
}

/* The token that ends the answer is no part of it. */
static bool is_stop(const struct client *c, int32_t id)
{
    const struct ek_generate_options *o = &c->job.generation.opt;

    for (size_t i = 0; i < o->n_stop; i++)
        if (o->stop[i] == id)
            return true;
    return false;
}

static enum ek_status take_score(struct client *c)
{
    struct score s = queue_score(&c->s->queue, &c->job, c->read);

    return answer_score(&c->answer, &s);
}

/* Tokens up to n into the answer. */
static enum ek_status take_tokens(struct client *c, size_t n)
{
    const char *text;

    for (; c->read < n && !c->answer.stopped; c->read++) {
        int32_t id = queue_token(&c->s->queue, &c->job, c->read);
        if (c->job.scored && !is_stop(c, id))
            EK_TRY(take_score(c));
        EK_TRY(ek_decoder_push(c->decoder, id, &text));
        EK_TRY(answer_add(&c->answer, text));
        c->answer.tokens++;
    }
    return EK_OK;
}

/* The rest of the answer, after its last token or before its stop string. */
static enum ek_status finish(struct client *c)
{
    const char *why = "stop";

    if (!c->answer.stopped) {
        EK_TRY(answer_add(&c->answer, ek_decoder_flush(c->decoder)));
        why = c->job.generation.out.finish == EK_FINISH_LENGTH ? "length" : "stop";
    }
    c->over = true;
    c->answer.cached_tokens = (uint32_t)c->job.generation.kept;
    if (!c->request.stream)
        return put_event(c, answer_whole(&c->answer, why));
    EK_TRY(put_piece(c, why));
    if (c->request.usage)
        EK_TRY(put_event(c, answer_usage_event(&c->answer)));
    return text_add(&c->out, "data: [DONE]\n\n", 14, OUT_MAX);
}

/* Waits for tokens, but a moment only, and makes of them what is to be sent. EK_NO: nobody is there
 * to take it. */
static enum ek_status follow(struct client *c)
{
    struct queue *q = &c->s->queue;
    size_t n;
    bool ended = queue_wait(q, &c->job, c->read, &n);

    if (n > c->read) {
        EK_TRY(take_tokens(c, n));
        EK_TRY(put_piece(c, NULL));
    }
    if (gone(c))
        return EK_NO;
    if (c->answer.stopped) {
        queue_cancel(q, &c->job, true);
        return finish(c);
    }
    if (!ended)
        return EK_OK;
    return c->job.status == EK_OK ? finish(c) : queue_reason(q, &c->job);
}

/* A stream that has begun ends with the error as its last event. */
static void put_error(struct client *c, enum ek_status st)
{
    char *text = answer_error(code_of(st), word_of(st), ek_last_error());

    c->over = true;
    if (text != NULL && text_add(&c->out, "data: ", 6, OUT_MAX) == EK_OK &&
        text_add(&c->out, text, strlen(text), OUT_MAX) == EK_OK)
        (void)text_add(&c->out, "\n", 1, OUT_MAX);
    free(text);
}

/* While something is generated nobody needs to move. */
static void may_be_silent(struct client *c, bool may)
{
    MHD_set_connection_option(c->connection, MHD_CONNECTION_OPTION_TIMEOUT,
                              may ? 0u : (unsigned)SILENT_S);
}

/* More events, where all that were made are sent. False: the client has gone. */
static bool make_events(struct client *c)
{
    enum ek_status st = EK_OK;

    c->out.n = c->taken = 0;
    may_be_silent(c, true);
    while (st == EK_OK && !c->over && c->out.n == 0)
        st = follow(c);
    may_be_silent(c, false);
    if (st != EK_OK && st != EK_NO)
        put_error(c, st);
    if (c->over)
        guests_move(&c->s->guests, c->guest, GUEST_TAKES);
    return st != EK_NO;
}

static ssize_t send_events(void *user, uint64_t at, char *to, size_t room)
{
    struct client *c = user;
    size_t n;

    (void)at;
    if (c->taken == c->out.n && !c->over && !make_events(c))
        return MHD_CONTENT_READER_END_WITH_ERROR;
    n = c->out.n - c->taken;
    if (n == 0)
        return MHD_CONTENT_READER_END_OF_STREAM;
    n = n < room ? n : room;
    memcpy(to, c->out.data + c->taken, n);
    c->taken += n;
    return (ssize_t)n;
}

static bool reply_stream(struct client *c)
{
    struct MHD_Response *r =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, send_events, c, NULL);
    bool ok = r != NULL && add_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, "text/event-stream") &&
              add_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache") &&
              MHD_queue_response(c->connection, MHD_HTTP_OK, r) == MHD_YES;

    if (r != NULL)
        MHD_destroy_response(r);
    return ok;
}

static bool reply_whole(struct client *c)
{
    enum ek_status st = EK_OK;

    may_be_silent(c, true);
    while (st == EK_OK && !c->over)
        st = follow(c);
    may_be_silent(c, false);
    if (st == EK_NO)
        return false;
    if (st != EK_OK)
        return reply_failure(c, st);
    return reply_json(c, 200, ek_strdup(c->out.data));
}

static bool generate(struct client *c, bool chat)
{
    enum ek_status st = open_generation(c, chat);

    if (st != EK_OK)
        return reply_failure(c, st);
    queue_put(&c->s->queue, &c->job);
    c->put = true;
    return c->request.stream ? reply_stream(c) : reply_whole(c);
}

static bool reply_chat(struct client *c)
{
    return generate(c, true);
}

static bool reply_completion(struct client *c)
{
    return generate(c, false);
}

/* ---- Ways -------------------------------------------------------------------------------------
 */
static const struct way ways[] = {
    {"/v1/chat/completions", "POST", reply_chat, false},
    {"/v1/completions", "POST", reply_completion, false},
    {"/v1/models", "GET", reply_models, false},
    {"/v1/models/", "GET", reply_model, false},
    {"/health", "GET", reply_health, true},
    {"/metrics", "GET", reply_metrics, false},
};

/* *rest: what follows a way that ends with a slash. */
static const struct way *find_way(const char *path, const char **rest)
{
    for (size_t i = 0; i < EK_ARRAY_LEN(ways); i++) {
        size_t n = strlen(ways[i].path);
        bool open_end = ways[i].path[n - 1] == '/';
        if (strncmp(path, ways[i].path, n) == 0 && (path[n] == '\0') != open_end) {
            *rest = path + n;
            return &ways[i];
        }
    }
    return NULL;
}

/* In a time that does not depend on where they differ. */
static bool same_key(const char *given, const char *key)
{
    size_t n = strlen(key), k = strlen(given);
    unsigned char differ = n != k;

    for (size_t i = 0; i < n; i++)
        differ |= (unsigned char)(key[i] ^ given[i < k ? i : 0]);
    return differ == 0;
}

static const char *header(const struct client *c, const char *name)
{
    const char *value = MHD_lookup_connection_value(c->connection, MHD_HEADER_KIND, name);

    return value ? value : "";
}

/* The code that the head is refused with, or 0. */
static int refused_with(const struct client *c, const char *method)
{
    const char *key = c->s->opt->key, *given = header(c, MHD_HTTP_HEADER_AUTHORIZATION);
    uint64_t length = 0;

    if (c->guest != NULL && c->guest->refused != 0)
        return c->guest->refused;
    if (key != NULL && !(c->way && c->way->open) &&
        (strncasecmp(given, "Bearer ", 7) != 0 || !same_key(given + 7, key)))
        return 401;
    if (c->way == NULL)
        return 404;
    if (strcmp(method, c->way->method) != 0)
        return 405;
    (void)ek_parse_u64(header(c, MHD_HTTP_HEADER_CONTENT_LENGTH), "length", 0, UINT64_MAX, &length);
    return length > BODY_MAX ? 413 : 0;
}

static const char *refusal(int code)
{
    switch (code) {
    case 401:
        return "an API key is needed: Authorization: Bearer KEY";
    case 404:
        return "no such path (POST /v1/chat/completions, /v1/completions; GET /v1/models, "
               "/health, /metrics)";
    case 405:
        return "the path does not take this method";
    case 429:
        return "too many connections from this address";
    case 503:
        return "too many connections";
    default:
        return "the body is too large";
    }
}

struct client *client_new(struct server *s, struct MHD_Connection *connection, const char *path,
                          const char *method)
{
    struct client *c = ek_calloc(1, sizeof(*c));
    int code;

    if (c == NULL)
        return NULL;
    c->s = s;
    c->connection = connection;
    c->guest = guests_find(connection);
    c->way = find_way(path, &c->rest);
    code = refused_with(c, method);
    if (code != 0 && !reply_error(c, code, code == 401 ? "invalid_api_key" : NULL, refusal(code))) {
        free(c);
        return NULL;
    }
    return c;
}

/* What cannot be kept is passed over, and what was kept of it is not needed any more. */
void client_read(struct client *c, const char *data, size_t n)
{
    if (c->too_large || c->lacking)
        return;
    c->too_large = n > BODY_MAX - c->body.n;
    c->lacking = !c->too_large && (n + atomic_load(&c->s->bodies) > BODIES_MAX ||
                                   text_add(&c->body, data, n, BODY_MAX + 1) != EK_OK);
    if (c->too_large || c->lacking)
        drop_body(c);
    else
        atomic_fetch_add(&c->s->bodies, n);
}

bool client_answer(struct client *c)
{
    guests_move(&c->s->guests, c->guest, GUEST_WAITS);
    if (c->too_large)
        return reply_error(c, 413, NULL, refusal(413));
    return c->lacking ? reply_error(c, 503, NULL, "no memory for the body") : c->way->reply(c);
}

void client_free(struct client *c)
{
    if (c == NULL)
        return;
    if (c->put)
        queue_leave(&c->s->queue, &c->job);
    guests_move(&c->s->guests, c->guest, GUEST_RESTS);
    answer_close(&c->answer);
    ek_decoder_free(c->decoder);
    server_prompt_close(&c->prompt);
    request_free(&c->request);
    drop_body(c);
    free(c->out.data);
    free(c);
}
