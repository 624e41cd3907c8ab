/* SPDX-License-Identifier: Apache-2.0 */
#include "server/client.h"
#include "server/choice.h"
#include "server/prompt.h"
#include "server/text.h"

#include <errno.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#define STOP_IDS_MAX 16 /* of the model */

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
    struct server_prompt *prompts; /* [request.n_prompts] */
    struct reply reply;
    struct choice *choices; /* [n_choices]; request.n of each prompt, one's behind another's */
    size_t n_choices;
    uint64_t moves, seen; /* of their jobs, counted by the queue; as seen */
    int32_t stops[STOP_IDS_MAX + REQUEST_STOPS_MAX];
    size_t n_stops;
    bool over;       /* all of the answer is made */
    struct text out; /* events, or the whole answer ... */
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
    struct text t = {NULL, 0, 0};
    enum ek_status st = text_add_json(&t, v, 0, DOCUMENT_MAX);

    if (st == EK_OK)
        st = text_add(&t, "\n", 1, DOCUMENT_MAX);
    if (st == EK_OK)
        return reply_json(c, 200, t.data);
    free(t.data);
    return reply_failure(c, st);
}

static json_t *model_document(const struct client *c)
{
    return json_pack("{ss ss sI ss sI}", "id", c->s->opt->model, "object", "model", "created",
                     (json_int_t)c->s->started, "owned_by", "evenkeel", "max_model_len",
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
static void read_stop_ids(struct client *c)
{
    const struct ek_config *m = &ek_engine_model(c->s->engine)->config;
    const struct request *r = &c->request;

    for (size_t i = 0; i < r->n_stop_ids; i++)
        c->stops[c->n_stops++] = r->stop_ids[i];
    if (r->ignore_eos)
        return;
    for (uint32_t i = 0; i < m->n_eos && i < STOP_IDS_MAX; i++)
        c->stops[c->n_stops++] = m->eos[i];
    c->n_stops +=
        ek_chat_stops(c->s->tokenizer, c->stops + c->n_stops, EK_ARRAY_LEN(c->stops) - c->n_stops);
}

static enum ek_status open_choice(struct client *c, size_t i)
{
    struct server *s = c->s;
    struct choice *choice = &c->choices[i];
    const struct ek_prompt *p = &c->prompts[i / c->request.n].prompt;
    uint32_t room = ek_engine_max_context(s->engine) - (uint32_t)p->n + 1;
    uint32_t asked = c->request.max_tokens;

    EK_TRY(choice_open(choice, &s->queue, &c->reply, (uint32_t)i, s->tokenizer,
                       ek_engine_model(s->engine)->config.vocab));
    choice->job.moves = &c->moves;
    choice->job.generation.prompt = *p;
    choice->job.generation.opt =
        (struct ek_generate_options){.sampling = c->request.sampling,
                                     .penalties =
                                         c->request.penalised ? &c->request.penalties : NULL,
                                     .max_tokens = asked > 0 && asked < room ? asked : room,
                                     .stop = c->stops,
                                     .n_stop = c->n_stops};
    choice->job.generation.opt.sampling.seed += i;
    return EK_OK;
}

static enum ek_status open_prompts(struct client *c)
{
    struct server *s = c->s;

    if ((c->prompts = ek_calloc(c->request.n_prompts, sizeof(*c->prompts))) == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < c->request.n_prompts; i++) {
        EK_TRY(server_prompt_open(s->engine, s->tokenizer, s->sees ? &s->rules : NULL, &c->request,
                                  i, &c->prompts[i]));
        c->reply.prompt_tokens += c->prompts[i].prompt.n;
    }
    return EK_OK;
}

static enum ek_status open_choices(struct client *c)
{
    size_t n = c->request.n_prompts * c->request.n;

    if ((c->choices = ek_calloc(n, sizeof(*c->choices))) == NULL)
        return EK_ENOMEM;
    c->n_choices = n;
    read_stop_ids(c);
    for (size_t i = 0; i < n; i++)
        EK_TRY(open_choice(c, i));
    return EK_OK;
}

static void drop_body(struct client *c)
{
    atomic_fetch_sub(&c->s->bodies, c->body.n);
    free(c->body.data);
    c->body = (struct text){0};
}

/* A document of numbers takes twenty times its text until it is read: of large ones there is one at
 * a time, and its memory goes back to the system, not to this thread's heap alone. */
static enum ek_status parse_body(struct client *c, bool chat)
{
    bool large = c->body.n > LARGE_BODY;
    enum ek_status st;

    if (large)
        pthread_mutex_lock(&c->s->parsing);
    st = request_parse(c->body.data ? c->body.data : "", c->body.n, chat, &c->request);
    drop_body(c);
    if (large) {
#ifdef __GLIBC__
        malloc_trim(0);
#endif
        pthread_mutex_unlock(&c->s->parsing);
    }
    return st;
}

static enum ek_status open_generation(struct client *c, bool chat)
{
    struct server *s = c->s;
    uint32_t vocab = ek_engine_model(s->engine)->config.vocab;

    EK_TRY(parse_body(c, chat));
    EK_TRY(ek_penalties_check(&c->request.penalties, vocab));
    if (c->request.n_best > vocab)
        c->request.n_best = vocab;
    EK_TRY(reply_open(&c->reply, &c->request, s->opt->model));
    EK_TRY(open_prompts(c));
    return open_choices(c);
}

/* The client has closed its end. */
static bool gone(const struct client *c)
{
    int fd = MHD_get_connection_info(c->connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    char byte;
    ssize_t n = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

    return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

static enum ek_status put_whole(struct client *c)
{
    EK_TRY(reply_begin(&c->reply, &c->out));
    for (size_t i = 0; i < c->n_choices; i++)
        EK_TRY(answer_choice(&c->choices[i].answer, &c->out));
    return reply_end(&c->reply, &c->out);
}

/* Every answer is there. */
static enum ek_status finish(struct client *c)
{
    enum ek_status st;

    for (size_t i = 0; i < c->n_choices; i++) {
        c->reply.tokens += c->choices[i].read;
        if (i % c->request.n == 0)
            c->reply.cached_tokens += c->choices[i].job.generation.kept;
    }
    c->over = true;
    if (c->request.stream) {
        if (c->request.usage)
            EK_TRY(reply_usage_event(&c->reply, &c->out));
        return text_add(&c->out, "data: [DONE]\n\n", 14, DOCUMENT_MAX);
    }
    st = put_whole(c);
    return st == EK_EFORMAT ? ek_error(st,
                                       "request: the answer is larger than %zu MiB: ask for fewer "
                                       "log-probabilities, or for a stream",
                                       DOCUMENT_MAX >> 20)
                            : st;
}

/* Waits for tokens, but a moment only, and makes of them what is to be sent. EK_NO: nobody is there
 * to take it. */
static enum ek_status follow(struct client *c)
{
    size_t done = 0;

    queue_wait(&c->s->queue, &c->moves, &c->seen);
    for (size_t i = 0; i < c->n_choices; i++) {
        EK_TRY(choice_follow(&c->choices[i], &c->out));
        done += c->choices[i].answer.finish != NULL;
    }
    if (gone(c))
        return EK_NO;
    return done == c->n_choices ? finish(c) : EK_OK;
}

/* A stream that has begun ends with the error as its last event. */
static void put_error(struct client *c, enum ek_status st)
{
    char *error = answer_error(code_of(st), word_of(st), ek_last_error());
    char *text = error ? ek_asprintf("data: %s\n", error) : NULL;

    c->over = true;
    if (text != NULL)
        (void)text_add(&c->out, text, strlen(text), 2 * DOCUMENT_MAX);
    free(text);
    free(error);
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
    char *text;

    may_be_silent(c, true);
    while (st == EK_OK && !c->over)
        st = follow(c);
    may_be_silent(c, false);
    if (st == EK_NO)
        return false;
    if (st != EK_OK)
        return reply_failure(c, st);
    text = c->out.data;
    c->out = (struct text){NULL, 0, 0};
    return reply_json(c, 200, text);
}

static bool generate(struct client *c, bool chat)
{
    enum ek_status st = open_generation(c, chat);

    if (st != EK_OK)
        return reply_failure(c, st);
    for (size_t i = 0; i < c->n_choices; i++)
        choice_put(&c->choices[i]);
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
    if (strcmp(method, c->way->method) != 0 &&
        !(strcmp(method, "HEAD") == 0 && strcmp(c->way->method, "GET") == 0))
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
    for (size_t i = 0; i < c->n_choices; i++)
        choice_leave(&c->choices[i]);
    for (size_t i = 0; i < c->n_choices; i++)
        choice_close(&c->choices[i]);
    guests_move(&c->s->guests, c->guest, GUEST_RESTS);
    for (size_t i = 0; c->prompts && i < c->request.n_prompts; i++)
        server_prompt_close(&c->prompts[i]);
    free(c->choices);
    free(c->prompts);
    request_free(&c->request);
    drop_body(c);
    free(c->out.data);
    free(c);
}
