/* SPDX-License-Identifier: Apache-2.0 */
#include "server/client.h"
#include "server/answer.h"
#include "server/http.h"
#include "server/prompt.h"

#include <stdlib.h>
#include <string.h>

#define STOP_IDS_MAX 16

struct client {
    struct server *s;
    int fd;
    struct request request;
    struct server_prompt prompt;
    struct ek_decoder *decoder;
    struct answer answer;
    struct job job;
    int32_t stops[STOP_IDS_MAX];
    size_t read; /* tokens of the job that are in the answer */
    bool begun;  /* the stream's head is sent */
    bool gone;
};

/* ---- Answers without generation ---------------------------------------------------------------
 */
static bool send_owned(int fd, char *text)
{
    bool ok = text != NULL && http_send(fd, text, strlen(text));

    free(text);
    return ok;
}

static void reply_json(int fd, int code, char *text)
{
    if (text != NULL)
        http_reply(fd, code, "application/json", text, strlen(text));
    free(text);
}

static void reply_error(int fd, int code, const char *message)
{
    reply_json(fd, code, answer_error(code, message));
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

static void reply_models(struct server *s, int fd)
{
    json_t *v = json_pack("{ss s[{ss ss ss sI}]}", "object", "list", "data", "id", s->opt->model,
                          "object", "model", "owned_by", "evenkeel", "max_model_len",
                          (json_int_t)ek_engine_max_context(s->engine));
    char *text = v ? json_dumps(v, JSON_COMPACT) : NULL;

    json_decref(v);
    reply_json(fd, 200, text);
}

static void reply_health(struct server *s, int fd)
{
    (void)s;
    http_reply(fd, 200, "application/json", "{\"status\":\"ok\"}\n", 16);
}

/* In the form that Prometheus reads. */
static void reply_metrics(struct server *s, int fd)
{
    struct queue_numbers n = queue_look(&s->queue);
    unsigned long long done = n.stopped + n.full + n.cancelled;
    char text[2048];
    int k = snprintf(text, sizeof(text),
                     "# TYPE evenkeel:num_requests_running gauge\n"
                     "evenkeel:num_requests_running %llu\n"
                     "# TYPE evenkeel:num_requests_waiting gauge\n"
                     "evenkeel:num_requests_waiting %llu\n"
                     "# TYPE evenkeel:prompt_tokens_total counter\n"
                     "evenkeel:prompt_tokens_total %llu\n"
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
                     (unsigned long long)n.prompt_tokens, (unsigned long long)n.tokens,
                     (unsigned long long)n.stopped, (unsigned long long)n.full,
                     (unsigned long long)n.cancelled, n.first_token_s,
                     (unsigned long long)n.first_tokens, n.whole_s, done);

    http_reply(fd, 200, "text/plain; version=0.0.4", text, (size_t)k);
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
    EK_TRY(answer_open(&c->answer, &c->request, s->opt->model));
    c->answer.prompt_tokens = (uint32_t)p->n;
    c->job.generation.prompt = *p;
    c->job.generation.opt =
        (struct ek_generate_options){.sampling = c->request.sampling,
                                     .max_tokens = asked > 0 && asked < room ? asked : room,
                                     .stop = c->stops,
                                     .n_stop = stop_ids(s, c->stops)};
    return EK_OK;
}

static enum ek_status open_client(struct client *c, const struct http_request *http, bool chat)
{
    struct server *s = c->s;

    EK_TRY(request_parse(http->body, http->head.length, chat, &c->request));
    EK_TRY(server_prompt_open(s->engine, s->tokenizer, s->sees ? &s->rules : NULL, &c->request,
                              &c->prompt));
    return open_job(c);
}

/* What can be said by now, as an event. */
static void send_piece(struct client *c, const char *finish)
{
    size_t ready = answer_ready(&c->answer, finish != NULL);
    bool first = !c->begun;

    if (!c->request.stream || c->gone || (ready == c->answer.sent && !first && finish == NULL))
        return;
    if (first)
        c->gone = !http_stream(c->fd);
    c->begun = true;
    c->gone |= !send_owned(c->fd, answer_event(&c->answer, ready, first, finish));
    c->answer.sent = ready;
}

/* Tokens up to n into the answer. */
static enum ek_status take_tokens(struct client *c, size_t n)
{
    const char *text;

    for (; c->read < n && !c->answer.stopped; c->read++) {
        int32_t id = queue_token(&c->s->queue, &c->job, c->read);
        EK_TRY(ek_decoder_push(c->decoder, id, &text));
        EK_TRY(answer_add(&c->answer, text));
        c->answer.tokens++;
    }
    return EK_OK;
}

/* Until the job has ended. */
static enum ek_status follow(struct client *c)
{
    struct queue *q = &c->s->queue;
    bool over = false;
    size_t n;

    while (!over) {
        over = queue_wait(q, &c->job, c->read, &n);
        if (!c->answer.stopped && n > c->read) {
            EK_TRY(take_tokens(c, n));
            send_piece(c, NULL);
        }
        c->gone |= http_gone(c->fd);
        if (c->gone || c->answer.stopped) {
            queue_cancel(q, &c->job, !c->gone);
            return EK_OK;
        }
    }
    if (c->job.status != EK_OK)
        return queue_reason(q, &c->job);
    return answer_add(&c->answer, ek_decoder_flush(c->decoder));
}

static void finish(struct client *c)
{
    bool full = !c->answer.stopped && c->job.generation.out.finish == EK_FINISH_LENGTH;
    const char *why = full ? "length" : "stop";

    if (c->gone)
        return;
    if (!c->request.stream) {
        reply_json(c->fd, 200, answer_whole(&c->answer, why));
        return;
    }
    send_piece(c, why);
    if (c->request.usage && !c->gone)
        c->gone = !send_owned(c->fd, answer_usage_event(&c->answer));
    if (!c->gone)
        http_send(c->fd, "data: [DONE]\n\n", 14);
}

/* A stream that has begun ends with the error as its last event. */
static void fail(struct client *c, enum ek_status st)
{
    char *text = answer_error(code_of(st), ek_last_error());

    if (!c->begun) {
        reply_json(c->fd, code_of(st), text);
    } else {
        if (http_send(c->fd, "data: ", 6) && send_owned(c->fd, text))
            http_send(c->fd, "\n", 1);
        else
            c->gone = true;
    }
}

static void generate(struct server *s, int fd, const struct http_request *http, bool chat)
{
    struct client c = {.s = s, .fd = fd};
    enum ek_status st = open_client(&c, http, chat);
    bool put = st == EK_OK;

    if (put) {
        queue_put(&s->queue, &c.job);
        st = follow(&c);
    }
    if (st == EK_OK)
        finish(&c);
    else
        fail(&c, st);
    if (put)
        queue_leave(&s->queue, &c.job);
    answer_close(&c.answer);
    ek_decoder_free(c.decoder);
    server_prompt_close(&c.prompt);
    request_free(&c.request);
}

static void reply_chat(struct server *s, int fd, const struct http_request *http)
{
    generate(s, fd, http, true);
}

static void reply_completion(struct server *s, int fd, const struct http_request *http)
{
    generate(s, fd, http, false);
}

/* ---- Ways -------------------------------------------------------------------------------------
 */
static const struct way {
    const char *path;
    void (*get)(struct server *s, int fd);
    void (*post)(struct server *s, int fd, const struct http_request *http);
} ways[] = {
    {"/v1/chat/completions", NULL, reply_chat}, {"/v1/completions", NULL, reply_completion},
    {"/v1/models", reply_models, NULL},         {"/health", reply_health, NULL},
    {"/metrics", reply_metrics, NULL},
};

static const struct way *find_way(const char *path)
{
    for (size_t i = 0; i < EK_ARRAY_LEN(ways); i++)
        if (strcmp(path, ways[i].path) == 0)
            return &ways[i];
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

/* Before the body is read. */
static int allowed(void *user, const struct http_head *h)
{
    const struct server *s = user;
    const struct way *w = find_way(h->path);
    bool post = strcmp(h->method, "POST") == 0, get = strcmp(h->method, "GET") == 0;

    if (s->opt->key != NULL && (w == NULL || w->get != reply_health) &&
        (strncmp(h->authorization, "Bearer ", 7) != 0 ||
         !same_key(h->authorization + 7, s->opt->key)))
        return 401;
    if (w == NULL)
        return 404;
    if (!(post && w->post) && !(get && w->get))
        return 405;
    return post && !h->has_length ? 411 : 0;
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
    case 408:
        return "the request did not come in time";
    case 411:
        return "a Content-Length is needed";
    case 413:
        return "the body is too large";
    case 431:
        return "the headers are too large";
    case 505:
        return "only HTTP/1.1 is spoken";
    default:
        return code == 503 ? "out of memory" : "the request is malformed";
    }
}

void client_serve(struct server *s, int fd)
{
    struct http_request http = {0};
    int code = http_read(fd, &s->closing, allowed, s, &http);

    if (code > 0) {
        reply_error(fd, code, refusal(code));
    } else if (code == 0) {
        const struct way *w = find_way(http.head.path);
        if (strcmp(http.head.method, "POST") == 0)
            w->post(s, fd, &http);
        else
            w->get(s, fd);
    }
    http_request_free(&http);
}
