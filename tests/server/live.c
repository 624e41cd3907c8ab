/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/server/live.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct ek_model *model;
static struct ek_plan *plan;
struct ek_engine *engine;
struct ek_tokenizer *tokenizer;
struct ek_server_options options;
static pthread_t thread;
static enum ek_status ended;
static atomic_bool stop;
static char base[64];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t listening = PTHREAD_COND_INITIALIZER;

/* ---- The server -------------------------------------------------------------------------------
 */
static void ready(const char *url)
{
    pthread_mutex_lock(&lock);
    snprintf(base, sizeof(base), "%s", url);
    pthread_cond_signal(&listening);
    pthread_mutex_unlock(&lock);
}

static void *serve(void *arg)
{
    (void)arg;
    ended = ek_serve(engine, tokenizer, &options);
    return NULL;
}

void open_server(void)
{
    open_server_of("deepseek-vl2-tiny");
}

void open_server_of(const char *name)
{
    char *path = ek_asprintf("fixtures/reference/%s", name);

    model = fixture_model(name);
    plan = one_device_plan(model);
    plan->batch = 3;
    engine = open_engine(model, plan);
    ck_ok(ek_tokenizer_open(source_path(path), &tokenizer));
    free(path);
    options = (struct ek_server_options){.host = "127.0.0.1",
                                         .model = "tiny",
                                         .connections = 16,
                                         .per_address = 16,
                                         .request_s = 30,
                                         .stop = &stop,
                                         .ready = ready};
}

void start(void)
{
    stop = false;
    base[0] = '\0';
    ck_assert_int_eq(pthread_create(&thread, NULL, serve, NULL), 0);
    pthread_mutex_lock(&lock);
    while (base[0] == '\0')
        pthread_cond_wait(&listening, &lock);
    pthread_mutex_unlock(&lock);
}

enum ek_status ended_with(void)
{
    pthread_join(thread, NULL);
    return ended;
}

void end(enum ek_status want)
{
    stop = true;
    ck_assert_int_eq(ended_with(), want);
}

void close_server(void)
{
    ek_engine_close(engine);
    ek_tokenizer_free(tokenizer);
    ek_plan_free(plan);
    ek_model_close(model);
}

static struct ek_ops whole, slowed;

static enum ek_status slow_attention(struct ek_device *dev, const void *q, size_t ldq,
                                     const struct ek_batch *batch, const struct ek_kv *kv,
                                     uint32_t heads, float scale, void *out, size_t ldo)
{
    usleep(20000);
    return whole.attention(dev, q, ldq, batch, kv, heads, scale, out, ldo);
}

void make_slow(void)
{
    struct ek_device *dev = ek_engine_device(engine, 0);

    whole = slowed = *dev->ops;
    slowed.attention = slow_attention;
    dev->ops = &slowed;
}

/* ---- A client of HTTP/1.0: answers end with the connection -------------------------------- */
int dial_from(const char *address)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)atoi(strrchr(base, ':') + 1))};
    struct sockaddr_in from = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
    inet_pton(AF_INET, address, &from.sin_addr);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&from, sizeof(from)), 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    return fd;
}

int dial(void)
{
    return dial_from("127.0.0.1");
}

void say(int fd, const char *text)
{
    ck_assert_int_eq(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

/* Everything until the server closes, or until the text `last`, NUL-terminated. */
const char *hear_until(int fd, const char *last, char *to)
{
    size_t n = 0;
    ssize_t k;

    do {
        k = recv(fd, to + n, ANSWER - 1 - n, 0);
        n += k > 0 ? (size_t)k : 0;
        to[n] = '\0';
    } while (k > 0 && n < ANSWER - 1 && (last == NULL || strstr(to, last) == NULL));
    return to;
}

const char *hear(int fd, char *to)
{
    hear_until(fd, NULL, to);
    close(fd);
    return to;
}

void post(int fd, const char *path, const char *body)
{
    char *text =
        ek_asprintf("POST %s HTTP/1.0\r\nContent-Length: %zu\r\n\r\n%s", path, strlen(body), body);

    say(fd, text);
    free(text);
}

int code_of(const char *answer)
{
    return strncmp(answer, "HTTP/1.", 7) == 0 ? atoi(answer + 9) : -1;
}

json_t *document_of(const char *answer)
{
    const char *body = strstr(answer, "\r\n\r\n");
    json_t *v = NULL;

    ck_assert_ptr_nonnull(body);
    ck_ok(ek_json_parse(body + 4, strlen(body + 4), "answer", &v));
    return v;
}

/* What ek_generate makes of three ids, alone. *text is freed by the caller. */
void alone(int32_t first, uint32_t n, double temperature, uint64_t seed, char **text)
{
    int32_t ids[] = {first, 2, 3};
    struct ek_prompt prompt = {.ids = ids, .n = 3};
    struct ek_generate_options opt = {.sampling = {temperature, 0, 1, 0, seed},
                                      .max_tokens = n,
                                      .stop = model->config.eos,
                                      .n_stop = model->config.n_eos};
    struct ek_completion *c = NULL;

    ck_ok(ek_generate(engine, &prompt, 1, &opt, &c, NULL));
    ck_ok(ek_tokenizer_decode(tokenizer, c->ids, c->n, true, text));
    ek_completions_free(c, 1);
}

const char *choice_text(const json_t *v)
{
    return json_string_value(
        json_object_get(json_array_get(json_object_get(v, "choices"), 0), "text"));
}

double metric(const char *name)
{
    static char answer[ANSWER];
    const char *at;
    int fd = dial();

    say(fd, "GET /metrics HTTP/1.0\r\n\r\n");
    hear(fd, answer);
    ck_assert_int_eq(code_of(answer), 200);
    for (at = strstr(answer, name); at != NULL && at[-1] != '\n';)
        at = strstr(at + 1, name);
    ck_assert_msg(at != NULL, "%s: not in %s", name, answer);
    return strtod(at + strlen(name), NULL);
}
