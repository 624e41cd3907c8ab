/* SPDX-License-Identifier: Apache-2.0
 *
 * A server and its clients, over sockets: answers are those of ek_generate, whoever else is there,
 * leaves, or asks for the impossible.
 */
#include "tests/server/live.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CLIENTS = 7 };

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
        alone(asked[i].first, asked[i].n, asked[i].temperature, 9, &want[i]);
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

    alone(20, 30, 0, 9, &want);
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

/* What was said before is in the cache: three words more are all that there is to compute. */
START_TEST(a_turn_that_goes_on_is_computed_from_where_the_last_one_ended)
{
    static char answer[ANSWER];
    char body[512] = "{\"temperature\": 0, \"max_tokens\": 8, \"prompt\": [20, 2, 3";
    json_t *v;
    int fd;

    for (int i = 0; i < 40; i++)
        sprintf(body + strlen(body), ", %d", i + 5);
    start();
    for (int turn = 0; turn < 2; turn++) {
        fd = dial();
        strcat(body, turn ? ", 7, 8, 9]}" : "]}");
        post(fd, "/v1/completions", body);
        v = document_of(hear(fd, answer));
        ck_assert_int_eq(json_integer_value(json_object_get(
                             json_object_get(json_object_get(v, "usage"), "prompt_tokens_details"),
                             "cached_tokens")),
                         turn ? 43 : 0);
        json_decref(v);
        body[strlen(body) - 2] = '\0';
    }
    ck_assert(metric("evenkeel:prefix_cache_hits_total ") == 43);
    ck_assert(metric("evenkeel:prompt_tokens_total ") == 43 + 46);
    end(EK_OK);
}
END_TEST

/* Of the token that greedy takes behind (20, 2, 3), from the engine's own logits. */
static double largest_logprob(void)
{
    int32_t ids[] = {20, 2, 3};
    uint32_t vocab = model->config.vocab;
    float *logits = all_logits(engine, ids, 3), *last = logits + (size_t)2 * vocab;
    double sum = 0, most = -INFINITY;

    for (uint32_t i = 0; i < vocab; i++) {
        sum += exp((double)last[i]);
        most = fmax(most, (double)last[i]);
    }
    free(logits);
    return most - log(sum);
}

static double number_at(const json_t *list, size_t i)
{
    return json_number_value(json_array_get(list, i));
}

START_TEST(log_probabilities_are_those_of_the_logits)
{
    static char answer[ANSWER];
    json_t *v, *scores, *tokens, *best;
    double want;
    char name[64];
    int fd;

    want = largest_logprob();
    start();
    fd = dial();
    post(fd, "/v1/completions",
         "{\"prompt\": [20, 2, 3], \"max_tokens\": 4, \"temperature\": 0, \"logprobs\": 3}");
    v = document_of(hear(fd, answer));
    scores = json_object_get(json_array_get(json_object_get(v, "choices"), 0), "logprobs");
    tokens = json_object_get(scores, "tokens");
    ck_assert_msg(json_array_size(tokens) == 4, "%s", answer);
    ck_assert_double_eq_tol(number_at(json_object_get(scores, "token_logprobs"), 0), want, 1e-4);
    best = json_array_get(json_object_get(scores, "top_logprobs"), 0);
    ck_assert_uint_eq(json_object_size(best), 3);
    snprintf(name, sizeof(name), "%s", json_string_value(json_array_get(tokens, 0)));
    ck_assert_double_eq_tol(json_number_value(json_object_get(best, name)), want, 1e-4);
    json_decref(v);
    end(EK_OK);
}
END_TEST

START_TEST(a_chat_has_its_log_probabilities_token_by_token)
{
    static char answer[ANSWER];
    size_t n = 0;
    int fd;

    start();
    fd = dial();
    post(fd, "/v1/chat/completions",
         "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"max_tokens\": 5, "
         "\"temperature\": 0, \"logprobs\": true, \"top_logprobs\": 2, \"stream\": true}");
    hear(fd, answer);
    for (const char *p = strstr(answer, "data: {"); p; p = strstr(p + 1, "data: {")) {
        json_t *v = NULL, *list, *one;
        size_t i;
        ck_ok(ek_json_parse(p + 6, strcspn(p + 6, "\n"), "event", &v));
        list = json_object_get(json_array_get(json_object_get(v, "choices"), 0), "logprobs");
        json_array_foreach(json_object_get(list, "content"), i, one)
        {
            const json_t *top = json_object_get(one, "top_logprobs");
            ck_assert_uint_eq(json_array_size(top), 2);
            ck_assert_double_le(json_number_value(json_object_get(one, "logprob")), 0);
            ck_assert_double_eq(
                json_number_value(json_object_get(json_array_get(top, 0), "logprob")),
                json_number_value(json_object_get(one, "logprob"))); /* greedy takes the best */
            ck_assert(json_is_array(json_object_get(one, "bytes")));
            n++;
        }
        json_decref(v);
    }
    ck_assert_msg(n == 5, "%zu\n%s", n, answer);
    end(EK_OK);
}
END_TEST

/* A user's turn of n pictures of 2 x 1 pixels and a word. */
static char *pictures_body(int n)
{
    static const char part[] =
        "{\"type\": \"image_url\", \"image_url\": {\"url\": \"data:image/png;base64,"
        "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAIAAAB7QOjdAAAADUlEQVR4nGP4zwAE/wEHAAH/"
        "4iOeWQAAAABJRU5ErkJg"
        "gg==\"}},";
    char *parts = ek_calloc((size_t)n + 1, sizeof(part)), *body;

    for (int i = 0; i < n; i++)
        strcat(parts, part);
    body = ek_asprintf("{\"messages\": [{\"role\": \"user\", \"content\": [%s{\"type\": \"text\", "
                       "\"text\": \"a\"}]}], \"max_tokens\": 3, \"temperature\": 0}",
                       parts);
    free(parts);
    return body;
}

/* A conversation about a picture of 2 x 1 pixels: so many turns of it, the last of them a question.
 */
static json_t *talk(const char *picture, int turns)
{
    static char answer[ANSWER];
    char *body =
        ek_asprintf("{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\", "
                    "\"image_url\": "
                    "{\"url\": \"data:image/png;base64,%s\"}}, {\"type\": \"text\", \"text\": "
                    "\"What is it? And what is it not?\"}]}%s], "
                    "\"max_tokens\": 9, \"temperature\": 0}",
                    picture,
                    turns == 1
                        ? ""
                        : ", {\"role\": \"assistant\", \"content\": \"b\"}, {\"role\": \"user\", "
                          "\"content\": \"c\"}");
    int fd = dial();

    post(fd, "/v1/chat/completions", body);
    free(body);
    hear(fd, answer);
    ck_assert_msg(code_of(answer) == 200, "%s", answer);
    return document_of(answer);
}

static json_int_t cached(const json_t *v)
{
    return json_integer_value(json_object_get(
        json_object_get(json_object_get(v, "usage"), "prompt_tokens_details"), "cached_tokens"));
}

static bool same_answer(const json_t *a, const json_t *b)
{
    return json_equal(json_object_get(json_array_get(json_object_get(a, "choices"), 0), "message"),
                      json_object_get(json_array_get(json_object_get(b, "choices"), 0), "message"));
}

/* What the cache holds of a picture is there for the next turn, and for no other picture. */
START_TEST(a_turn_about_the_same_picture_is_computed_from_where_the_last_one_ended)
{
    static const char *const models[] = {"deepseek-vl2-tiny", "qwen2.5-vl"};
    static const char *const pictures[] = {"iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAIAAAB7QOjdAAAADUlEQVR"
                                           "4nGP4zwAE/wEHAAH/4iOeWQAAAABJRU5ErkJg"
                                           "gg==",
                                           "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAIAAAB7QOjdAAAAD0lEQVR"
                                           "4nGPgOiH3S6QHAAhFAot6wUftAAAAAElFTkSuQmCC"};
    json_t *alone[2], *first, *next, *other;

    close_server();
    open_server_of(models[_i]);
    for (int i = 0; i < 2; i++) {
        start();
        alone[i] = talk(pictures[i], 2);
        ck_assert_int_eq(cached(alone[i]), 0);
        end(EK_OK);
    }
    start();
    first = talk(pictures[0], 1);
    next = talk(pictures[0], 2);
    other = talk(pictures[1], 2);
    end(EK_OK);
    ck_assert_int_eq(cached(first), 0);
    ck_assert_msg(cached(next) >= 32 && cached(next) > cached(other), "%d, %d", (int)cached(next),
                  (int)cached(other));
    ck_assert(same_answer(next, alone[0]));
    ck_assert_int_lt(cached(other), 32);
    ck_assert(same_answer(other, alone[1]));
    json_decref(alone[0]);
    json_decref(alone[1]);
    json_decref(first);
    json_decref(next);
    json_decref(other);
}
END_TEST

/* What a server says to a chat with n pictures. */
static const char *ask_of_pictures(int n, int code)
{
    static char answer[ANSWER];
    char *body = pictures_body(n);
    int fd;

    start();
    fd = dial();
    post(fd, "/v1/chat/completions", body);
    hear(fd, answer);
    end(EK_OK);
    free(body);
    ck_assert_msg(code_of(answer) == code, "%s", answer);
    return answer;
}

START_TEST(a_picture_is_looked_at)
{
    const char *answer = ask_of_pictures(1, 200);

    ck_assert_ptr_nonnull(strstr(answer, "\"completion_tokens\":3"));
}
END_TEST

START_TEST(pictures_beyond_the_context_are_refused_as_a_long_prompt_is)
{
    const char *answer = ask_of_pictures(16, 400);

    ck_assert_ptr_nonnull(strstr(answer, " tokens, at most 128"));
    ck_assert_ptr_nonnull(strstr(answer, "\"code\":\"context_length_exceeded\""));
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
    {"POST", "/v1/completions", "{\"prompt\": [1], \"n\": 300}", 400},
    {"POST", "/v1/completions", "{\"prompt\": [1], \"logit_bias\": {\"99999999\": 1}}", 400},
    {"HEAD", "/health", "", 200},
    {"POST", "/v1/chat/completions", "{\"messages\": [{\"role\": \"x\", \"content\": \"\"}]}", 400},
    {"POST", "/health", "", 405},
    {"GET", "/v1/completions", "", 405},
    {"DELETE", "/v1/completions", "", 405},
    {"GET", "/", "", 404},
    {"GET", "/../etc/passwd", "", 404},
    {"GET", "/health", "", 200},
    {"GET", "/v1/models", "", 200},
    {"GET", "/v1/models/", "", 404},
    {"GET", "/v1/models/tiny", "", 200},
    {"GET", "/v1/models/tinier", "", 404},
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
    ck_assert_ptr_nonnull(strstr(answer, "\"code\":\"context_length_exceeded\""));
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
        ck_assert_int_eq(tries[i].code == 401, strstr(answer, "\"invalid_api_key\"") != NULL);
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
        hear_until(fd,
                   "\"completion_tokens\":2,\"total_tokens\":3,\"prompt_tokens_details\":{\"cached_"
                   "tokens\":0}}}\n",
                   answer);
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

/* What it has so far is not passed off as the answer. */
START_TEST(who_is_being_answered_when_it_stops_is_told_so)
{
    static char answer[2][ANSWER];
    int whole, stream;

    make_slow();
    start();
    whole = dial();
    stream = dial();
    post(whole, "/v1/completions", "{\"prompt\": [20, 2, 3], \"temperature\": 0}");
    post(stream, "/v1/completions", "{\"prompt\": [20, 2], \"temperature\": 0, \"stream\": true}");
    hear_until(stream, "data: {", answer[1]);
    while (metric("evenkeel:num_requests_running ") < 2)
        usleep(10000);
    end(EK_OK);
    ck_assert_int_eq(code_of(hear(whole, answer[0])), 503);
    ck_assert_ptr_nonnull(strstr(answer[0], "the server is stopping"));
    hear(stream, answer[1]);
    ck_assert_ptr_nonnull(
        strstr(answer[1], "data: {\"error\":{\"message\":\"the server is stopping"));
    ck_assert_ptr_null(strstr(answer[1], "[DONE]"));
}
END_TEST

START_TEST(when_a_device_fails_clients_are_told_and_serving_ends)
{
    static char answer[ANSWER];
    const char *event;
    int fd;

    make_fail(engine, 1, 0, 20);
    start();
    fd = dial();
    post(fd, "/v1/completions", "{\"prompt\": [20, 2, 3], \"temperature\": 0, \"stream\": true}");
    hear(fd, answer);
    ck_assert_int_ne(ended_with(), EK_OK);
    event = strstr(answer, "data: {\"error\"");
    ck_assert_msg(event && strstr(event, "\"server_error\""), "%s", answer);
    ck_assert_ptr_nonnull(strstr(event, "\n\n")); /* else clients would wait for its end */
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
    tcase_add_test(tc, a_turn_that_goes_on_is_computed_from_where_the_last_one_ended);
    tcase_add_test(tc, log_probabilities_are_those_of_the_logits);
    tcase_add_test(tc, a_chat_has_its_log_probabilities_token_by_token);
    tcase_add_loop_test(tc, a_turn_about_the_same_picture_is_computed_from_where_the_last_one_ended,
                        0, 2);
    tcase_add_test(tc, a_picture_is_looked_at);
    tcase_add_test(tc, pictures_beyond_the_context_are_refused_as_a_long_prompt_is);
    tcase_add_test(tc, what_cannot_be_answered_is_refused_and_the_next_is_served);
    tcase_add_test(tc, a_prompt_longer_than_the_context_is_refused_with_both_numbers);
    tcase_add_test(tc, a_key_is_asked_for);
    tcase_add_test(tc, a_connection_takes_requests_one_after_another_whole_or_in_chunks);
    tcase_add_test(tc, a_body_that_is_too_large_is_refused_before_it_comes_or_when_it_has);
    tcase_add_test(tc, who_is_being_answered_when_it_stops_is_told_so);
    tcase_add_test(tc, when_a_device_fails_clients_are_told_and_serving_ends);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
