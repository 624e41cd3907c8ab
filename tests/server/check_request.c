/* SPDX-License-Identifier: Apache-2.0
 *
 * What clients send: documents, pictures in URLs; and how an answer grows up to its stops.
 */
#include "server/answer.h"
#include "server/request.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

/* ---- Documents --------------------------------------------------------------------------------
 */
#define USER(content) "{\"messages\": [{\"role\": \"user\", \"content\": " content "}]"
#define PICTURE       "{\"type\": \"image_url\", \"image_url\": {\"url\": \"data:,\"}}"
#define WORDS(w)      "{\"type\": \"text\", \"text\": \"" w "\"}"

static const struct {
    const char *text, *says; /* NULL: it is fine */
} documents[] = {
    {USER("\"a\"") "}", NULL},
    {USER("\"a\"") ", \"tools\": [], \"n\": 1, \"logprobs\": false, \"later\": {\"x\": 1}}", NULL},
    {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", "
     "\"content\": null}]}",
     NULL},
    {USER("\"a\"") ", \"stop\": null, \"seed\": null, \"max_tokens\": null}", NULL},
    {USER("\"a\"") ", \"tools\": [{}]}", "tools is not supported"},
    {USER("\"a\"") ", \"tools\": [{}], \"tool_choice\": \"none\"}", NULL},
    {USER("\"a\"") ", \"tools\": [{}], \"tool_choice\": \"auto\"}", "tools is not supported"},
    {USER("\"a\"") ", \"n\": 2, \"best_of\": 2}", NULL},
    {USER("\"a\"") ", \"n\": 0}", "n must be from 1 to 128"},
    {USER("\"a\"") ", \"n\": 129}", "n must be from 1 to 128"},
    {USER("\"a\"") ", \"best_of\": 2}", "best_of above n is not supported"},
    {USER("\"a\"") ", \"top_k\": -1}", NULL},
    {USER("\"a\"") ", \"top_k\": -2}", "top_k must be"},
    {USER("\"a\"") ", \"min_tokens\": 2}", "min_tokens is not supported"},
    {USER("\"a\"") ", \"guided_regex\": \"a*\"}", "guided_regex is not supported"},
    {USER("\"a\"") ", \"stop_token_ids\": [3, 4], \"ignore_eos\": true}", NULL},
    {USER("\"a\"") ", \"stop_token_ids\": [3, -4]}", "stop_token_ids[1] must be a token id"},
    {USER("\"a\"") ", \"stop_token_ids\": 3}", "stop_token_ids must be a list"},
    {USER("\"a\"") ", \"logprobs\": true, \"top_logprobs\": 20}", NULL},
    {USER("\"a\"") ", \"logprobs\": true, \"top_logprobs\": 21}", "top_logprobs must be"},
    {USER("\"a\"") ", \"top_logprobs\": 2}", "top_logprobs needs logprobs"},
    {USER("\"a\"") ", \"logprobs\": 2}", "logprobs must be"},
    {USER("\"a\"") ", \"logit_bias\": {\"1\": 2, \"7\": -100}}", NULL},
    {USER("\"a\"") ", \"logit_bias\": {\"1\": 101}}", "logit_bias.1 must be from -100 to 100"},
    {USER("\"a\"") ", \"logit_bias\": {\"a\": 1}}", "logit_bias"},
    {USER("\"a\"") ", \"logit_bias\": [1]}", "logit_bias must be an object"},
    {USER("\"a\"") ", \"response_format\": {\"type\": \"json_object\"}}", "response_format"},
    {USER("\"a\"") ", \"presence_penalty\": 0.5, \"frequency_penalty\": -2}", NULL},
    {USER("\"a\"") ", \"presence_penalty\": 2.5}", "presence_penalty must be from -2 to 2"},
    {USER("\"a\"") ", \"repetition_penalty\": 0}", "repetition_penalty must be from 0.01"},
    {USER("\"a\"") ", \"temperature\": \"hot\"}", "temperature must be a number"},
    {USER("\"a\"") ", \"temperature\": -1}", "temperature must be from 0"},
    {USER("\"a\"") ", \"top_p\": 0}", "top_p must be above 0"},
    {USER("\"a\"") ", \"max_tokens\": 0}", "max_tokens must be from 1"},
    {USER("\"a\"") ", \"seed\": 1.5}", "seed must be a whole number"},
    {USER("\"a\"") ", \"stop\": \"\"}", "stop must be strings"},
    {USER("\"a\"") ", \"stop\": [1]}", "stop must be strings"},
    {USER("\"a\"") ", \"stream\": 1}", "stream must be"},
    {USER("null") "}", "messages[0].content must be a string or a list"},
    {USER("[\"a\"]") "}", "messages[0].content must be a string or a list of objects"},
    {USER("[{\"type\": \"audio\"}]") "}", "type 'audio', must be text or image_url"},
    {USER("[{\"type\": \"image_url\"}]") "}", "image_url.url"},
    {"{\"messages\": []}", "0 messages"},
    {"{\"messages\": [1]}", "messages[0] must be an object"},
    {"{}", "messages must be an array"},
    {"[]", "must be a JSON object"},
    {"{", "not valid JSON"},
};

START_TEST(a_document_is_read_or_refused_by_name)
{
    const char *text = documents[_i].text, *says = documents[_i].says;
    struct request r = {0};
    enum ek_status st = request_parse(text, strlen(text), true, &r);

    if (says == NULL) {
        ck_assert_msg(st == EK_OK, "%s: %s", text, ek_last_error());
        ck_assert_str_eq(r.messages[0].content, "a");
    } else {
        ck_assert_msg(st == EK_EFORMAT || st == EK_EUNSUPPORTED || st == EK_EUSAGE, "%s", text);
        ck_assert_msg(strstr(ek_last_error(), says) != NULL, "%s: %s", text, ek_last_error());
    }
    request_free(&r);
}
END_TEST

static const struct {
    const char *content, *text;
    size_t pictures;
} contents[] = {
    {"[" WORDS("a") ", " WORDS("b") "]", "a\nb", 0},
    {"[" PICTURE ", " WORDS("a") "]", "a", 1}, /* the template names it */
    {"[" PICTURE ", " PICTURE ", " WORDS("a") ", " WORDS("b") "]", "a\nb", 2},
    {"[" WORDS("a") ", " PICTURE "]", "a<image>", 1},
    {"[" PICTURE ", " WORDS("a") ", " PICTURE ", " WORDS("b") "]", "<image>a<image>b", 2},
    {"[]", "", 0},
    {"\"<image>\"", "<image>", 0},
};

START_TEST(parts_become_one_text_and_pictures)
{
    char *text = ek_asprintf(USER("%s") "}", contents[_i].content);
    struct request r = {0};

    ck_assert_msg(request_parse(text, strlen(text), true, &r) == EK_OK, "%s", ek_last_error());
    ck_assert_str_eq(r.messages[0].content, contents[_i].text);
    ck_assert_uint_eq(r.n_images, contents[_i].pictures);
    request_free(&r);
    free(text);
}
END_TEST

START_TEST(settings_are_the_clients_and_the_rest_is_the_interfaces)
{
    static const char given[] =
        "{\"prompt\": [1, 2], \"temperature\": 0.5, \"top_p\": 0.9, \"top_k\": 7, \"min_p\": 0.1,"
        "\"seed\": 5, \"max_tokens\": 9, \"stop\": [\"x\", \"yz\"], \"stream\": true,"
        "\"stream_options\": {\"include_usage\": true}}";
    static const char none[] = "{\"prompt\": \"a\"}";
    static const char many[] = "{\"prompt\": [\"a\", [1, 2]], \"n\": 3, \"logit_bias\": {\"7\": 2},"
                               "\"stop_token_ids\": [9], \"presence_penalty\": 1}";
    struct request m = {0};
    struct request r = {0}, s = {0};

    ck_assert_int_eq(request_parse(given, sizeof(given) - 1, false, &r), EK_OK);
    ck_assert_double_eq(r.sampling.temperature, 0.5);
    ck_assert_double_eq(r.sampling.top_p, 0.9);
    ck_assert_double_eq(r.sampling.min_p, 0.1);
    ck_assert_uint_eq(r.sampling.top_k, 7);
    ck_assert_uint_eq(r.sampling.seed, 5);
    ck_assert_uint_eq(r.max_tokens, 9);
    ck_assert_uint_eq(r.n_stops, 2);
    ck_assert_uint_eq(r.prompts[0].n_ids, 2);
    ck_assert(!r.penalised && r.n == 1);
    ck_assert_int_eq(request_parse(many, sizeof(many) - 1, false, &m), EK_OK);
    ck_assert_uint_eq(m.n_prompts, 2);
    ck_assert_str_eq(m.prompts[0].text, "a");
    ck_assert_uint_eq(m.prompts[1].n_ids, 2);
    ck_assert(m.n == 3 && m.penalised && m.penalties.presence == 1 && m.penalties.repetition == 1);
    ck_assert(m.penalties.n_biases == 1 && m.penalties.biases[0].id == 7);
    ck_assert(m.n_stop_ids == 1 && m.stop_ids[0] == 9);
    request_free(&m);
    ck_assert(r.stream && r.usage);
    ck_assert_int_eq(request_parse(none, sizeof(none) - 1, false, &s), EK_OK);
    ck_assert_double_eq(s.sampling.temperature, 1);
    ck_assert_uint_eq(s.max_tokens, 0);
    ck_assert(!s.stream);
    request_free(&r);
    request_free(&s);
}
END_TEST

static const struct {
    const char *url, *data; /* NULL: refused */
} urls[] = {
    {"data:image/png;base64,aGVsbG8=", "hello"},
    {"data:;base64,aGVsbG8", "hello"},
    {"data:image/png;base64,", ""},
    {"data:image/png;base64,a!", NULL},
    {"data:image/png,hello", NULL},
    {"data:", NULL},
    {"http://example.org/a.png", NULL},
    {"file:///etc/passwd", NULL},
    {"", NULL},
};

START_TEST(pictures_come_in_their_urls_and_nothing_is_fetched)
{
    char *data = NULL;
    size_t n = 0;
    enum ek_status st = request_image(urls[_i].url, &data, &n);

    if (urls[_i].data == NULL) {
        ck_assert_int_ne(st, EK_OK);
        return;
    }
    ck_assert_int_eq(st, EK_OK);
    ck_assert_uint_eq(n, strlen(urls[_i].data));
    ck_assert_mem_eq(data, urls[_i].data, n);
    free(data);
}
END_TEST

/* ---- Answers ----------------------------------------------------------------------------------
 */
static const struct {
    const char *stops[3], *pieces[4], *text;
    bool stopped;
} answers[] = {
    {{NULL}, {"ab", "cd"}, "abcd", false},
    {{"cd"}, {"ab", "cd", "ef"}, "ab", true},
    {{"bcd"}, {"ab", "c", "def"}, "a", true},
    {{"x", "de"}, {"abcdex"}, "abc", true},
    {{"abcd"}, {"abc"}, "abc", false},
    {{"zz"}, {"caf\xc3\xa9", "\xc3\xa9"}, "caf\xc3\xa9\xc3\xa9", false},
};

START_TEST(an_answer_ends_before_its_stop_and_is_never_taken_back)
{
    struct request r = {.chat = true};
    struct reply reply;
    struct answer a;
    size_t ready = 0;

    while (answers[_i].stops[r.n_stops] != NULL) {
        r.stops[r.n_stops] = answers[_i].stops[r.n_stops];
        r.n_stops++;
    }
    ck_assert_int_eq(reply_open(&reply, &r, "m"), EK_OK);
    ck_assert_int_eq(answer_open(&a, &reply, 0, NULL), EK_OK);
    for (int k = 0; k < 4 && answers[_i].pieces[k]; k++) {
        ck_assert_int_eq(answer_add(&a, answers[_i].pieces[k]), EK_OK);
        ck_assert_uint_ge(answer_ready(&a), ready);
        ready = answer_ready(&a);
        ck_assert_uint_le(ready, strlen(answers[_i].text));
        ck_assert_int_ne((unsigned char)answers[_i].text[ready] & 0xc0, 0x80);
        a.sent = ready;
    }
    ck_assert_str_eq(a.text, answers[_i].text);
    a.finish = "stop";
    ck_assert_uint_eq(answer_ready(&a), strlen(answers[_i].text));
    ck_assert(a.stopped == answers[_i].stopped);
    answer_close(&a);
}
END_TEST

START_TEST(only_what_is_pointed_to_is_kept_of_a_document)
{
    static const char text[] = "{\"prompt\": [\"a\", \"b\"], \"stop\": \"c\", \"user\": \"d\", "
                               "\"numbers\": [1, 2, 3]}";
    struct request r;

    ck_assert_int_eq(request_parse(text, strlen(text), false, &r), EK_OK);
    ck_assert_uint_eq(json_array_size(r.strings), 3);
    ck_assert_str_eq(r.prompts[1].text, "b");
    ck_assert_str_eq(r.stops[0], "c");
    for (size_t i = 0; i < 3; i++)
        ck_assert_uint_eq(json_array_get(r.strings, i)->refcount, 1);
    request_free(&r);
}
END_TEST

/* Whatever part of it there is still room for. */
START_TEST(an_event_is_made_whole_or_not_at_all)
{
    struct request r = {.chat = true, .stream = true, .usage = true};
    struct text to = {NULL, 0, 0};
    struct reply reply;
    struct answer a;

    ck_assert_int_eq(reply_open(&reply, &r, "m"), EK_OK);
    ck_assert_int_eq(answer_open(&a, &reply, 0, NULL), EK_OK);
    ck_assert_int_eq(answer_add(&a, "abc"), EK_OK);
    ck_assert_int_eq(answer_event(&a, 3, true, &to), EK_OK);
    ck_assert_int_eq(ek_grow((void **)&to.data, &to.cap, DOCUMENT_MAX, 1, DOCUMENT_MAX), EK_OK);
    for (size_t room = 1, whole = to.n; room <= whole; room++) {
        to.n = DOCUMENT_MAX - room;
        ck_assert_int_eq(answer_event(&a, 3, true, &to), EK_EFORMAT);
        ck_assert_uint_eq(to.n, DOCUMENT_MAX - room);
        if (room < 100) {
            ck_assert_int_eq(reply_usage_event(&reply, &to), EK_EFORMAT);
            ck_assert_uint_eq(to.n, DOCUMENT_MAX - room);
        }
    }
    free(to.data);
    answer_close(&a);
}
END_TEST

START_TEST(an_error_is_said_whatever_it_quotes)
{
    char *text = answer_error(400, NULL, "type 'caf\xc3'");

    ck_assert_str_eq(text,
                     "{\"error\":{\"message\":\"type 'caf?'\",\"type\":\"invalid_request_error\","
                     "\"param\":null,\"code\":null}}\n");
    free(text);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("request");
    TCase *tc = tcase_create("request");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_loop_test(tc, a_document_is_read_or_refused_by_name, 0, EK_ARRAY_LEN(documents));
    tcase_add_loop_test(tc, parts_become_one_text_and_pictures, 0, EK_ARRAY_LEN(contents));
    tcase_add_test(tc, settings_are_the_clients_and_the_rest_is_the_interfaces);
    tcase_add_loop_test(tc, pictures_come_in_their_urls_and_nothing_is_fetched, 0,
                        EK_ARRAY_LEN(urls));
    tcase_add_test(tc, only_what_is_pointed_to_is_kept_of_a_document);
    tcase_add_test(tc, an_event_is_made_whole_or_not_at_all);
    tcase_add_test(tc, an_error_is_said_whatever_it_quotes);
    tcase_add_loop_test(tc, an_answer_ends_before_its_stop_and_is_never_taken_back, 0,
                        EK_ARRAY_LEN(answers));
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
