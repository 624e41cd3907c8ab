/* SPDX-License-Identifier: Apache-2.0
 *
 * A server and its clients, over sockets: answers are those of ek_generate, whoever else is there,
 * leaves, or asks for the impossible.
 */
#include "server/server.h"
#include "tests/runtime/support.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MODEL "fixtures/reference/deepseek-vl2-tiny"
enum { ANSWER = 1 << 16, CLIENTS = 7 };

static struct ek_model *model;
static struct ek_plan *plan;
static struct ek_engine *engine;
static struct ek_tokenizer *tokenizer;
static struct ek_server_options options;
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

static void open_server(void)
{
    model = fixture_model("deepseek-vl2-tiny");
    plan = one_device_plan(model);
    plan->batch = 3;
    engine = open_engine(model, plan);
    ck_ok(ek_tokenizer_open(source_path(MODEL), &tokenizer));
    options = (struct ek_server_options){
        .host = "127.0.0.1", .model = "tiny", .connections = 16, .stop = &stop, .ready = ready};
    stop = false;
    base[0] = '\0';
}

static void start(void)
{
    ck_assert_int_eq(pthread_create(&thread, NULL, serve, NULL), 0);
    pthread_mutex_lock(&lock);
    while (base[0] == '\0')
        pthread_cond_wait(&listening, &lock);
    pthread_mutex_unlock(&lock);
}

static void end(enum ek_status want)
{
    stop = true;
    pthread_join(thread, NULL);
    ck_assert_int_eq(ended, want);
}

static void close_server(void)
{
    ek_engine_close(engine);
    ek_tokenizer_free(tokenizer);
    ek_plan_free(plan);
    ek_model_close(model);
}

/* ---- A client of HTTP/1.0: answers end with the connection -------------------------------- */
static int dial(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)atoi(strrchr(base, ':') + 1))};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    return fd;
}

static void say(int fd, const char *text)
{
    ck_assert_int_eq(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

/* Everything until the server closes, or until the text `last`, NUL-terminated. */
static const char *hear_until(int fd, const char *last, char *to)
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

static const char *hear(int fd, char *to)
{
    hear_until(fd, NULL, to);
    close(fd);
    return to;
}

static void post(int fd, const char *path, const char *body)
{
    char *text =
        ek_asprintf("POST %s HTTP/1.0\r\nContent-Length: %zu\r\n\r\n%s", path, strlen(body), body);

    say(fd, text);
    free(text);
}

static int code_of(const char *answer)
{
    return strncmp(answer, "HTTP/1.", 7) == 0 ? atoi(answer + 9) : -1;
}

static json_t *document_of(const char *answer)
{
    const char *body = strstr(answer, "\r\n\r\n");
    json_t *v = NULL;

    ck_assert_ptr_nonnull(body);
    ck_ok(ek_json_parse(body + 4, strlen(body + 4), "answer", &v));
    return v;
}

/* What ek_generate makes of three ids, alone. *text is freed by the caller. */
static void alone(int32_t first, uint32_t n, double temperature, char **text)
{
    int32_t ids[] = {first, 2, 3};
    struct ek_prompt prompt = {.ids = ids, .n = 3};
    struct ek_generate_options opt = {.sampling = {temperature, 0, 1, 0, 9},
                                      .max_tokens = n,
                                      .stop = model->config.eos,
                                      .n_stop = model->config.n_eos};
    struct ek_completion *c = NULL;

    ck_ok(ek_generate(engine, &prompt, 1, &opt, &c, NULL));
    ck_ok(ek_tokenizer_decode(tokenizer, c->ids, c->n, true, text));
    ek_completions_free(c, 1);
}

static const char *choice_text(const json_t *v)
{
    return json_string_value(
        json_object_get(json_array_get(json_object_get(v, "choices"), 0), "text"));
}

/* ---- Tests ------------------------------------------------------------------------------------
 */
struct asked {
    int32_t first;
    uint32_t n;
    double temperature;
    char answer[ANSWER];
};

static void *ask(void *arg)
{
    struct asked *a = arg;
    char *body = ek_asprintf("{\"prompt\": [%d, 2, 3], \"max_tokens\": %u, \"temperature\": %g, "
                             "\"seed\": 9}",
                             a->first, a->n, a->temperature);
    int fd = dial();

    post(fd, "/v1/completions", body);
    hear(fd, a->answer);
    free(body);
    return NULL;
}

START_TEST(clients_at_once_get_the_answers_that_each_gets_alone)
{
    static struct asked asked[CLIENTS];
    pthread_t threads[CLIENTS];
    char *want[CLIENTS];

    for (int i = 0; i < CLIENTS; i++) {
        asked[i] = (struct asked){.first = 20 + i, .n = 5 + 9 * (uint32_t)i, .temperature = i % 2};
        alone(asked[i].first, asked[i].n, asked[i].temperature, &want[i]);
    }
    start();
    for (int i = 0; i < CLIENTS; i++)
        pthread_create(&threads[i], NULL, ask, &asked[i]);
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(threads[i], NULL);
        ck_assert_int_eq(code_of(asked[i].answer), 200);
        json_t *v = document_of(asked[i].answer);
        ck_assert_str_eq(choice_text(v), want[i]);
        json_decref(v);
        free(want[i]);
    }
    end(EK_OK);
}
END_TEST

START_TEST(a_stream_is_the_whole_answer_in_pieces)
{
    static char answer[ANSWER];
    char *want, got[ANSWER] = "";
    int fd;

    alone(20, 30, 0, &want);
    start();
    fd = dial();
    post(fd, "/v1/completions",
         "{\"prompt\": [20, 2, 3], \"max_tokens\": 30, \"temperature\": 0, \"stream\": true, "
         "\"stream_options\": {\"include_usage\": true}}");
    hear(fd, answer);
    end(EK_OK);
    ck_assert_int_eq(code_of(answer), 200);
    ck_assert_ptr_nonnull(
        strstr(answer, "\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":30"));
    ck_assert_ptr_nonnull(strstr(answer, "\"finish_reason\":\"length\""));
    ck_assert_str_eq(answer + strlen(answer) - 14, "data: [DONE]\n\n");
    for (const char *p = strstr(answer, "data: {"); p; p = strstr(p + 1, "data: {")) {
        json_t *v = NULL;
        ck_ok(ek_json_parse(p + 6, strcspn(p + 6, "\n"), "event", &v));
        if (json_array_size(json_object_get(v, "choices")) > 0)
            strcat(got, choice_text(v));
        json_decref(v);
    }
    ck_assert_str_eq(got, want);
    free(want);
}
END_TEST

START_TEST(a_picture_is_looked_at)
{
    static const char picture[] = /* 2 x 1 pixels */
        "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAIAAAB7QOjdAAAADUlEQVR4nGP4"
        "zwAE/wEHAAH/4iOeWQAAAABJRU5ErkJggg==";
    static char answer[ANSWER];
    char *body = ek_asprintf(
        "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\", "
        "\"image_url\": {\"url\": \"data:image/png;base64,%s\"}}, {\"type\": \"text\", \"text\": "
        "\"a\"}]}], \"max_tokens\": 3, \"temperature\": 0}",
        picture);
    int fd;

    start();
    fd = dial();
    post(fd, "/v1/chat/completions", body);
    hear(fd, answer);
    end(EK_OK);
    ck_assert_msg(code_of(answer) == 200, "%s", answer);
    ck_assert_ptr_nonnull(strstr(answer, "\"completion_tokens\":3"));
    free(body);
}
END_TEST

static const struct {
    const char *method, *path, *body;
    int code;
} refused[] = {
    {"POST", "/v1/completions", "{\"prompt\": [1]", 400},
    {"POST", "/v1/completions", "{\"prompt\": []}", 400},
    {"POST", "/v1/completions", "{\"prompt\": \"\"}", 400},
    {"POST", "/v1/completions", "{\"prompt\": [999999]}", 400},
    {"POST", "/v1/completions", "{\"prompt\": [1], \"n\": 3}", 400},
    {"POST", "/v1/chat/completions", "{\"messages\": [{\"role\": \"x\", \"content\": \"\"}]}", 400},
    {"POST", "/health", "", 405},
    {"GET", "/v1/completions", "", 405},
    {"DELETE", "/v1/completions", "", 405},
    {"GET", "/", "", 404},
    {"GET", "/../etc/passwd", "", 404},
    {"GET", "/health", "", 200},
    {"GET", "/v1/models", "", 200},
    {"GET", "/metrics", "", 200},
};

START_TEST(what_cannot_be_answered_is_refused_and_the_next_is_served)
{
    static char answer[ANSWER];

    start();
    for (size_t i = 0; i < EK_ARRAY_LEN(refused); i++) {
        int fd = dial();
        char *text =
            ek_asprintf("%s %s HTTP/1.0\r\nContent-Length: %zu\r\n\r\n%s", refused[i].method,
                        refused[i].path, strlen(refused[i].body), refused[i].body);
        say(fd, text);
        hear(fd, answer);
        ck_assert_msg(code_of(answer) == refused[i].code, "%s\n%s", text, answer);
        ck_assert_int_eq(refused[i].code == 405, strstr(answer, "\r\nAllow: ") != NULL);
        free(text);
    }
    end(EK_OK);
}
END_TEST

START_TEST(a_prompt_longer_than_the_context_is_refused_with_both_numbers)
{
    static char answer[ANSWER];
    char body[1024] = "{\"prompt\": [1";
    int fd;

    for (int i = 0; i < 128; i++)
        strcat(body, ",1");
    strcat(body, "]}");
    start();
    fd = dial();
    post(fd, "/v1/completions", body);
    hear(fd, answer);
    ck_assert_int_eq(code_of(answer), 400);
    ck_assert_ptr_nonnull(strstr(answer, "129 tokens, at most 128"));
    end(EK_OK);
}
END_TEST

/* More than the engine has sequences leave in the middle; those that come then are served. */
START_TEST(clients_that_leave_make_room)
{
    static char answer[ANSWER];
    int fds[8];

    start();
    for (int i = 0; i < 8; i++) {
        fds[i] = dial();
        post(fds[i], "/v1/completions",
             i % 2 ? "{\"prompt\": [1], \"stream\": true}" : "{\"prompt\": [1]}");
    }
    for (int i = 0; i < 8; i++)
        close(fds[i]);
    fds[0] = dial();
    post(fds[0], "/v1/completions", "{\"prompt\": [1, 2], \"max_tokens\": 4, \"temperature\": 0}");
    hear(fds[0], answer);
    ck_assert_int_eq(code_of(answer), 200);
    end(EK_OK);
}
END_TEST

START_TEST(a_key_is_asked_for)
{
    static const struct {
        const char *path, *header;
        int code;
    } tries[] = {{"/v1/models", "", 401},
                 {"/v1/models", "Authorization: Bearer secreT\r\n", 401},
                 {"/v1/models", "Authorization: Bearer secre\r\n", 401},
                 {"/v1/models", "Authorization: Bearer secret\r\n", 200},
                 {"/v1/models", "authorization: bearer secret\r\n", 200},
                 {"/nothing", "", 401},
                 {"/health", "", 200}};
    static char answer[ANSWER];

    options.key = "secret";
    start();
    for (size_t i = 0; i < EK_ARRAY_LEN(tries); i++) {
        int fd = dial();
        char *text = ek_asprintf("GET %s HTTP/1.0\r\n%s\r\n", tries[i].path, tries[i].header);
        say(fd, text);
        ck_assert_int_eq(code_of(hear(fd, answer)), tries[i].code);
        ck_assert_int_eq(tries[i].code == 401, strstr(answer, "\r\nWWW-Authenticate: ") != NULL);
        free(text);
    }
    end(EK_OK);
}
END_TEST

START_TEST(a_connection_takes_requests_one_after_another_whole_or_in_chunks)
{
    static const char *const requests[] = {
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        "1c\r\n{\"prompt\": [1],\"max_tokens\"\r\n4\r\n: 2}\r\n0\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 32\r\n\r\n"
        "{\"prompt\": [2], \"max_tokens\": 2}"};
    static char answer[ANSWER];
    int fd;

    start();
    fd = dial();
    for (size_t i = 0; i < 2 * EK_ARRAY_LEN(requests); i++) {
        say(fd, requests[i % 2]);
        hear_until(fd, "\"completion_tokens\":2,\"total_tokens\":3}}\n", answer);
        ck_assert_msg(code_of(answer) == 200, "%s", answer);
    }
    close(fd);
    end(EK_OK);
}
END_TEST

START_TEST(a_body_that_is_too_large_is_refused_before_it_comes_or_when_it_has)
{
    static char answer[ANSWER], piece[(1 << 20) + 1];
    int fd;

    memset(piece, ' ', 1 << 20);
    start();
    fd = dial();
    say(fd, "POST /v1/completions HTTP/1.0\r\nContent-Length: 33554433\r\n\r\n");
    ck_assert_int_eq(code_of(hear(fd, answer)), 413);
    fd = dial();
    say(fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            "Transfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 33; i++) {
        say(fd, "100000\r\n");
        say(fd, piece);
        say(fd, "\r\n");
    }
    say(fd, "0\r\n\r\n");
    ck_assert_int_eq(code_of(hear(fd, answer)), 413);
    end(EK_OK);
}
END_TEST

START_TEST(connections_beyond_the_limit_are_closed_and_leave_room_when_others_are)
{
    static char answer[ANSWER];
    int fds[2], fd;

    options.connections = 2;
    start();
    for (int i = 0; i < 2; i++) {
        say(fds[i] = dial(), "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
        ck_assert_int_eq(code_of(hear_until(fds[i], "\"ok\"}\n", answer)), 200);
    }
    ck_assert_str_eq(hear(dial(), answer), "");
    close(fds[0]);
    do { /* the server may not have seen it yet */
        fd = dial();
        (void)send(fd, "GET /health HTTP/1.0\r\n\r\n", 24, MSG_NOSIGNAL);
    } while (code_of(hear(fd, answer)) != 200);
    close(fds[1]);
    end(EK_OK);
}
END_TEST

START_TEST(when_a_device_fails_clients_are_told_and_serving_ends)
{
    static char answer[ANSWER];
    int fd;

    make_fail(engine, 1, 0, 20);
    start();
    fd = dial();
    post(fd, "/v1/completions", "{\"prompt\": [20, 2, 3], \"temperature\": 0, \"stream\": true}");
    hear(fd, answer);
    pthread_join(thread, NULL);
    ck_assert_int_ne(ended, EK_OK);
    ck_assert_msg(strstr(answer, "\"server_error\"") != NULL, "%s", answer);
    ck_assert_ptr_null(strstr(answer, "[DONE]"));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("serve");
    TCase *tc = tcase_create("serve");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, open_server, close_server);
    tcase_add_test(tc, clients_at_once_get_the_answers_that_each_gets_alone);
    tcase_add_test(tc, a_stream_is_the_whole_answer_in_pieces);
    tcase_add_test(tc, a_picture_is_looked_at);
    tcase_add_test(tc, what_cannot_be_answered_is_refused_and_the_next_is_served);
    tcase_add_test(tc, a_prompt_longer_than_the_context_is_refused_with_both_numbers);
    tcase_add_test(tc, clients_that_leave_make_room);
    tcase_add_test(tc, a_key_is_asked_for);
    tcase_add_test(tc, a_connection_takes_requests_one_after_another_whole_or_in_chunks);
    tcase_add_test(tc, a_body_that_is_too_large_is_refused_before_it_comes_or_when_it_has);
    tcase_add_test(tc, connections_beyond_the_limit_are_closed_and_leave_room_when_others_are);
    tcase_add_test(tc, when_a_device_fails_clients_are_told_and_serving_ends);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
