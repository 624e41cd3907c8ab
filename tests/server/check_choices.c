/* SPDX-License-Identifier: Apache-2.0
 *
 * Requests for several answers, and what changes the tokens that they are made of.
 */
#include "tests/server/live.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char answer[ANSWER];

/* The answer to a body at a path, as a document. */
static json_t *ask(const char *path, const char *body)
{
    int fd = dial();

    post(fd, path, body);
    hear(fd, answer);
    ck_assert_msg(code_of(answer) == 200, "%s", answer);
    return document_of(answer);
}

static json_t *choice_at(const json_t *v, size_t i)
{
    return json_array_get(json_object_get(v, "choices"), i);
}

static json_int_t used(const json_t *v, const char *what)
{
    return json_integer_value(json_object_get(json_object_get(v, "usage"), what));
}

/* Two prompts, three answers to each: the streams of seeds that follow one another. */
START_TEST(every_answer_is_what_its_prompt_and_seed_get_alone)
{
    char *want[6];
    json_t *v;

    for (uint32_t i = 0; i < 6; i++)
        alone(i < 3 ? 20 : 21, 12, 0.9, 9 + i, &want[i]);
    start();
    v = ask("/v1/completions",
            "{\"prompt\": [[20, 2, 3], [21, 2, 3]], \"n\": 3, \"max_tokens\": 12, "
            "\"temperature\": 0.9, \"seed\": 9}");
    ck_assert_uint_eq(json_array_size(json_object_get(v, "choices")), 6);
    for (size_t i = 0; i < 6; i++) {
        const json_t *one = choice_at(v, i);
        ck_assert_int_eq(json_integer_value(json_object_get(one, "index")), (json_int_t)i);
        ck_assert_str_eq(json_string_value(json_object_get(one, "text")), want[i]);
        free(want[i]);
    }
    ck_assert_int_eq(used(v, "prompt_tokens"), 6);
    ck_assert_int_eq(used(v, "total_tokens"), 6 + used(v, "completion_tokens"));
    json_decref(v);
    end(EK_OK);
}
END_TEST

/* The pieces of each answer, by its number; one event has the numbers of tokens, the others say
 * that they have none. */
START_TEST(a_stream_of_several_answers_says_which_each_piece_is_of)
{
    static char got[3][ANSWER];
    char *want[3];
    int fd, ends = 0;

    for (uint32_t i = 0; i < 3; i++)
        alone(20, 20, 0.9, 5 + i, &want[i]);
    start();
    fd = dial();
    post(
        fd, "/v1/completions",
        "{\"prompt\": [20, 2, 3], \"n\": 3, \"max_tokens\": 20, \"temperature\": 0.9, \"seed\": 5, "
        "\"stream\": true, \"stream_options\": {\"include_usage\": true}}");
    hear(fd, answer);
    for (const char *p = strstr(answer, "data: {"); p; p = strstr(p + 1, "data: {")) {
        const json_t *one;
        json_t *v = NULL;
        ck_ok(ek_json_parse(p + 6, strcspn(p + 6, "\n"), "event", &v));
        if ((one = choice_at(v, 0)) != NULL) {
            json_int_t i = json_integer_value(json_object_get(one, "index"));
            ck_assert(i >= 0 && i < 3);
            strcat(got[i], json_string_value(json_object_get(one, "text")));
            ends += json_is_string(json_object_get(one, "finish_reason"));
            ck_assert(json_is_null(json_object_get(v, "usage")));
        } else {
            ck_assert_int_eq(used(v, "completion_tokens"), 60);
        }
        json_decref(v);
    }
    ck_assert_int_eq(ends, 3);
    for (size_t i = 0; i < 3; i++) {
        ck_assert_str_eq(got[i], want[i]);
        free(want[i]);
    }
    ck_assert_str_eq(answer + strlen(answer) - 14, "data: [DONE]\n\n");
    end(EK_OK);
}
END_TEST

/* A prompt of several chunks is computed once: answers after the first share its blocks. */
START_TEST(answers_to_one_prompt_share_what_the_cache_holds_of_it)
{
    char body[1024] = "{\"n\": 3, \"max_tokens\": 4, \"prompt\": [20";
    json_t *v;

    for (int i = 0; i < 89; i++)
        sprintf(body + strlen(body), ", %d", i % 7 + 5);
    strcat(body, "]}");
    start();
    v = ask("/v1/completions", body);
    ck_assert_int_eq(used(v, "prompt_tokens"), 90);
    ck_assert_int_eq(json_integer_value(json_object_get(json_object_get(json_object_get(v, "usage"),
                                                                        "prompt_tokens_details"),
                                                        "cached_tokens")),
                     0); /* the first had to compute it */
    json_decref(v);
    ck_assert(metric("evenkeel:prefix_cache_hits_total ") >= 2 * 64);
    end(EK_OK);
}
END_TEST

/* What is said of three ids, greedily, with more fields. */
static char *said(const char *fields, const char **finish)
{
    char *body = ek_asprintf("{\"prompt\": [20, 2, 3], \"max_tokens\": 24, \"temperature\": 0, "
                             "\"logprobs\": 0%s}",
                             fields);
    json_t *v = ask("/v1/completions", body), *one = choice_at(v, 0);
    const json_t *tokens = json_object_get(json_object_get(one, "logprobs"), "tokens");
    char *text = json_dumps(tokens, 0);

    ck_assert((choice_text(v)[0] == '\0') == (json_array_size(tokens) == 0));
    *finish = strcmp(json_string_value(json_object_get(one, "finish_reason")), "stop") ? "length"
                                                                                       : "stop";
    json_decref(v);
    free(body);
    return text;
}

static void must_say(const char *fields, const char *want, const char *why)
{
    const char *finish;
    char *text = said(fields, &finish);

    ck_assert_str_eq(text, want);
    ck_assert_str_eq(finish, why);
    free(text);
}

START_TEST(biases_penalties_and_stops_change_what_is_said)
{
    const char *finish;
    char *plain, *biased;
    json_t *tokens = NULL;

    start();
    plain = said("", &finish);
    must_say(
        ", \"presence_penalty\": 0, \"frequency_penalty\": null, \"logit_bias\": {}, \"top_k\": -1",
        plain, finish);
    biased = said(", \"logit_bias\": {\"30\": 100}", &finish);
    ck_assert_str_ne(biased, plain);
    ck_ok(ek_json_parse(biased, strlen(biased), "tokens", &tokens));
    for (size_t i = 1; i < 24; i++)
        ck_assert(json_equal(json_array_get(tokens, i), json_array_get(tokens, 0)));
    ck_assert_uint_eq(json_array_size(tokens), 24);
    json_decref(tokens);
    must_say(", \"logit_bias\": {\"30\": 100}, \"stop_token_ids\": [30]", "[]", "stop");
    free(biased);
    biased = said(", \"logit_bias\": {\"30\": 2, \"31\": 2}, \"presence_penalty\": 2, "
                  "\"frequency_penalty\": 2, \"repetition_penalty\": 1.5",
                  &finish);
    ck_assert_str_ne(biased, plain);
    free(biased);
    free(plain);
    end(EK_OK);
}
END_TEST

START_TEST(the_models_own_end_may_be_passed_over)
{
    char *body =
        ek_asprintf("{\"prompt\": [20, 2, 3], \"max_tokens\": 5, \"logit_bias\": {\"%d\": 100}, "
                    "\"ignore_eos\": true}",
                    model->config.eos[0]);
    json_t *v;

    start();
    v = ask("/v1/completions", body);
    ck_assert_int_eq(used(v, "completion_tokens"), 5);
    ck_assert_str_eq(json_string_value(json_object_get(choice_at(v, 0), "finish_reason")),
                     "length");
    json_decref(v);
    strcpy(strstr(body, ", \"ignore_eos"), "}");
    v = ask("/v1/completions", body);
    ck_assert_int_eq(used(v, "completion_tokens"), 1);
    ck_assert_str_eq(json_string_value(json_object_get(choice_at(v, 0), "finish_reason")), "stop");
    json_decref(v);
    free(body);
    end(EK_OK);
}
END_TEST

/* One answer is enough early, by its stop string; the others go on. */
START_TEST(answers_end_by_themselves)
{
    const char *from, *to;
    json_t *v, *one;
    char *text, *body;
    int stops = 0;

    alone(20, 40, 0.9, 5, &text);
    for (from = text + strlen(text) / 2; (*from & 0xc0) == 0x80;)
        from++;
    for (to = from + 6; (*to & 0xc0) == 0x80;)
        to++;
    v = json_pack("{s[iii] si si sf si ss%}", "prompt", 20, 2, 3, "n", 4, "max_tokens", 40,
                  "temperature", 0.9, "seed", 5, "stop", from, (size_t)(to - from));
    body = json_dumps(v, 0);
    json_decref(v);
    start();
    v = ask("/v1/completions", body);
    for (size_t i = 0; i < 4; i++) {
        one = choice_at(v, i);
        stops += strcmp(json_string_value(json_object_get(one, "finish_reason")), "stop") == 0;
    }
    ck_assert_int_ge(stops, 1);
    ck_assert_uint_lt(strlen(choice_text(v)), strlen(text));
    json_decref(v);
    while (metric("evenkeel:num_requests_running ") > 0)
        usleep(10000);
    ck_assert(metric("evenkeel:request_success_total{finished_reason=\"abort\"} ") == 0);
    free(body);
    free(text);
    end(EK_OK);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("choices");
    TCase *tc = tcase_create("choices");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, open_server, close_server);
    tcase_add_test(tc, every_answer_is_what_its_prompt_and_seed_get_alone);
    tcase_add_test(tc, a_stream_of_several_answers_says_which_each_piece_is_of);
    tcase_add_test(tc, answers_to_one_prompt_share_what_the_cache_holds_of_it);
    tcase_add_test(tc, biases_penalties_and_stops_change_what_is_said);
    tcase_add_test(tc, the_models_own_end_may_be_passed_over);
    tcase_add_test(tc, answers_end_by_themselves);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
