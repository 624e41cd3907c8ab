/* SPDX-License-Identifier: Apache-2.0
 *
 * Tokenizers against the ids that Hugging Face gives (tests/reference/make_tokenizers.py).
 */
#include "model/tokenizer.h"

#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TEXTS 256
#define MAX_FILE  ((size_t)1 << 20)

static const struct {
    const char *name;
    bool gguf;
    const char *template; /* NULL: none */
    int32_t bos, eos;
    bool adds_bos;
} fixtures[] = {
    {"smollm2", false, "chatml", 1, 2, false},
    {"smollm2", true, "chatml", 1, 2, false},
    {"qwen2.5", false, "chatml", -1, 1402, false},
    {"qwen2.5", true, "chatml", -1, 1402, false},
    {"llama3", false, "llama3", 1400, 1404, true},
    {"llama3", true, "llama3.1", 1400, 1404, true},
    {"deepseek-llm", false, "deepseek-llm", 1400, 1401, true},
    {"deepseek-llm", true, "deepseek-llm", 1400, 1401, true},
    {"deepseek-v3", false, "deepseek-v3", 0, 1, true},
    {"deepseek-v3", true, "deepseek-v3", 0, 1, true},
    {"deepseek-vl2", false, "deepseek-vl2", 0, 1, true},
    {"deepseek-vl2", true, "deepseek-vl2", 0, 1, true},
    {"gpt2", false, NULL, 1400, 1400, false},
    {"gpt2", true, NULL, 1400, 1400, false},
    {"odd", false, NULL, -1, -1, false},
};

struct text {
    char *s;
    size_t n;
};
struct texts {
    struct text items[MAX_TEXTS];
    size_t n;
};

/* ---- Fixtures -------------------------------------------------------------------------------- */

static char *fixture_path(const char *name)
{
    const char *top = getenv("srcdir");

    return ek_asprintf("%s/tests/fixtures/tokenizers/%s", top ? top : ".", name);
}

static char *read_fixture(const char *name, size_t *n)
{
    char *path = fixture_path(name), *data;

    ck_assert_msg(ek_file_read(path, MAX_FILE, &data, n) == EK_OK, "%s", ek_last_error());
    free(path);
    return data;
}

static struct ek_tokenizer *open_fixture(const char *name, bool gguf)
{
    char *relative = ek_asprintf(gguf ? "%s/tokenizer.gguf" : "%s", name);
    char *path = fixture_path(relative);
    struct ek_tokenizer *t;

    ck_assert_msg(ek_tokenizer_open(path, &t) == EK_OK, "%s", ek_last_error());
    free(relative);
    free(path);
    return t;
}

static void add_text(struct texts *t, const char *s, size_t n)
{
    char *copy = ek_calloc(n + 1, 1);

    ck_assert_uint_lt(t->n, MAX_TEXTS);
    memcpy(copy, s, n);
    t->items[t->n++] = (struct text){copy, n};
}

static void free_texts(struct texts *t)
{
    for (size_t i = 0; i < t->n; i++)
        free(t->items[i].s);
}

static void add_hex(struct texts *t, const char *hex, size_t n)
{
    char bytes[64];
    unsigned value;

    ck_assert_uint_le(n / 2, sizeof(bytes));
    for (size_t i = 0; i < n / 2; i++) {
        ck_assert_int_eq(sscanf(hex + 2 * i, "%2x", &value), 1);
        bytes[i] = (char)value;
    }
    add_text(t, bytes, n / 2);
}

/* Calls add for each line; behind the last newline too, where empty is set. */
static void each_line(struct texts *t, const char *data, size_t n, bool empty,
                      void (*add)(struct texts *t, const char *s, size_t n))
{
    const char *end = data + n, *line = data, *stop;

    for (; (stop = memchr(line, '\n', (size_t)(end - line))) != NULL; line = stop + 1)
        add(t, line, (size_t)(stop - line));
    if (empty)
        add(t, line, (size_t)(end - line));
}

/* The texts in the order of the ids files. */
static void read_texts(struct texts *t)
{
    size_t n, i;
    char *data = read_fixture("text.txt", &n);
    json_t *extra, *item;

    t->n = 0;
    each_line(t, data, n, true, add_text);
    add_text(t, data, n);
    free(data);
    data = read_fixture("extra.json", &n);
    ck_assert_ptr_nonnull(extra = json_loadb(data, n, JSON_ALLOW_NUL, NULL));
    json_array_foreach(extra, i, item)
        add_text(t, json_string_value(item), json_string_length(item));
    json_decref(extra);
    free(data);
    data = read_fixture("invalid.hex", &n);
    each_line(t, data, n, false, add_hex);
    free(data);
}

/* Ids as a line of an ids file. */
static char *line_of(const int32_t *ids, size_t n)
{
    char *line = ek_calloc(n + 1, 12), *at = line;

    for (size_t i = 0; i < n; i++)
        at += sprintf(at, i ? " %d" : "%d", ids[i]);
    return line;
}

/* Holds ids against the line at *expected, moves on to the next line, and frees ids. */
static void match_line(const char **expected, int32_t *ids, size_t n, const char *what, size_t i)
{
    char *got = line_of(ids, n);
    size_t len = strcspn(*expected, "\n");

    ck_assert_msg(strlen(got) == len && memcmp(got, *expected, len) == 0,
                  "%s %zu: expected %.*s\ngot %s", what, i, (int)len, *expected, got);
    *expected += len + 1;
    free(got);
    free(ids);
}

static char *read_beside(const char *name, const char *file)
{
    char *relative = ek_asprintf("%s/%s", name, file);
    size_t n;
    char *data = read_fixture(relative, &n);

    free(relative);
    return data;
}

/* ---- Against Hugging Face -------------------------------------------------------------------- */

START_TEST(ids_equal_those_of_hugging_face)
{
    struct ek_tokenizer *t = open_fixture(fixtures[_i].name, fixtures[_i].gguf);
    char *data = read_beside(fixtures[_i].name, "ids");
    const char *expected = data;
    struct texts texts;
    int32_t *ids;
    size_t n;

    read_texts(&texts);
    for (size_t i = 0; i < texts.n; i++) {
        ck_assert_int_eq(ek_tokenizer_encode(t, texts.items[i].s, texts.items[i].n,
                                             EK_ENCODE_SPECIAL, &ids, &n),
                         EK_OK);
        match_line(&expected, ids, n, fixtures[_i].name, i);
    }
    ck_assert_int_eq(*expected, '\0');
    free_texts(&texts);
    free(data);
    ek_tokenizer_free(t);
}
END_TEST

static size_t read_messages(const json_t *chat, struct ek_message *messages)
{
    size_t i;
    json_t *m;

    json_array_foreach((json_t *)chat, i, m)
    {
        messages[i].role = json_string_value(json_object_get(m, "role"));
        messages[i].content = json_string_value(json_object_get(m, "content"));
    }
    return json_array_size(chat);
}

START_TEST(chats_equal_the_rendered_templates)
{
    bool other = fixtures[_i].gguf && strcmp(fixtures[_i].name, "llama3") == 0;
    struct ek_tokenizer *t = open_fixture(fixtures[_i].name, fixtures[_i].gguf);
    struct ek_message messages[8];
    char *data, *text;
    const char *expected;
    json_t *chats, *chat;
    int32_t *ids;
    size_t n, i;

    if (fixtures[_i].template == NULL) {
        ck_assert_ptr_null(ek_chat_template(t));
        ek_tokenizer_free(t);
        return;
    }
    ck_assert_str_eq(ek_chat_template(t), fixtures[_i].template);
    expected = data = read_beside(fixtures[_i].name, other ? "gguf.chat" : "chat");
    text = read_fixture("chats.json", &n);
    ck_assert_int_eq(ek_json_parse(text, n, "chats.json", &chats), EK_OK);
    json_array_foreach(chats, i, chat)
    {
        n = read_messages(chat, messages);
        ck_assert_int_eq(ek_chat_encode(t, messages, n, &ids, &n), EK_OK);
        match_line(&expected, ids, n, fixtures[_i].name, i);
    }
    json_decref(chats);
    free(text);
    free(data);
    ek_tokenizer_free(t);
}
END_TEST

START_TEST(bos_and_eos_follow_the_checkpoint)
{
    struct ek_tokenizer *t = open_fixture(fixtures[_i].name, fixtures[_i].gguf);
    int32_t *ids, stops[8];
    size_t n;

    ck_assert_int_eq(ek_tokenizer_bos(t), fixtures[_i].bos);
    ck_assert_int_eq(ek_tokenizer_eos(t), fixtures[_i].eos);
    ck_assert_int_eq(ek_tokenizer_adds_bos(t), fixtures[_i].adds_bos);
    ck_assert_int_eq(ek_tokenizer_encode(t, "", 0, EK_ENCODE_BOS, &ids, &n), EK_OK);
    ck_assert_uint_eq(n, fixtures[_i].adds_bos);
    if (n == 1)
        ck_assert_int_eq(ids[0], fixtures[_i].bos);
    free(ids);
    n = ek_chat_stops(t, stops, EK_ARRAY_LEN(stops));
    ck_assert(fixtures[_i].eos < 0 ? n == 0 : n > 0 && stops[0] == fixtures[_i].eos);
    ek_tokenizer_free(t);
}
END_TEST

/* ---- Decoding -------------------------------------------------------------------------------- */

static bool valid_utf8(const char *s)
{
    json_t *v = json_string(s); /* checks */

    json_decref(v);
    return v != NULL;
}

static char *stream(const struct ek_tokenizer *t, const int32_t *ids, size_t n)
{
    struct ek_decoder *d = ek_decoder_new(t, false);
    size_t len = 0, cap = 64 + 16 * n;
    char *text = ek_calloc(cap, 1);
    const char *part;

    for (size_t i = 0; i <= n; i++) {
        if (i < n)
            ck_assert_int_eq(ek_decoder_push(d, ids[i], &part), EK_OK);
        else
            part = ek_decoder_flush(d);
        ck_assert(valid_utf8(part));
        ck_assert_uint_lt(len + strlen(part), cap);
        strcpy(text + len, part);
        len += strlen(part);
    }
    ek_decoder_free(d);
    return text;
}

START_TEST(text_survives_encoding_and_decoding_whole_or_streamed)
{
    struct ek_tokenizer *t = open_fixture(fixtures[_i].name, false);
    char *text, *whole, *streamed;
    int32_t *ids;
    size_t n, m;

    text = read_fixture("text.txt", &n);
    for (char *s = text; (s = strstr(s, "\u212b")) != NULL; s++)
        memcpy(s, "AAA", 3); /* its normal form is another character */
    ck_assert_int_eq(ek_tokenizer_encode(t, text, n, EK_ENCODE_SPECIAL, &ids, &m), EK_OK);
    ck_assert_int_eq(ek_tokenizer_decode(t, ids, m, false, &whole), EK_OK);
    streamed = stream(t, ids, m);
    ck_assert_str_eq(whole, streamed);
    if (strcmp(fixtures[_i].name, "odd") != 0 && strcmp(fixtures[_i].name, "qwen2.5") != 0)
        ck_assert_str_eq(whole, text);
    free(ids);
    free(text);
    free(whole);
    free(streamed);
    ek_tokenizer_free(t);
}
END_TEST

START_TEST(a_character_split_over_tokens_is_held_back_until_it_is_whole)
{
    struct ek_tokenizer *t = open_fixture("gpt2", false);
    struct ek_decoder *d = ek_decoder_new(t, true);
    const int32_t e_acute[] = {ek_tokenizer_id(t, "\xc3"), ek_tokenizer_id(t, "\xa9")};
    const char *part;

    ck_assert_int_eq(ek_decoder_push(d, e_acute[0], &part), EK_OK);
    ck_assert_str_eq(part, "");
    ck_assert_int_eq(ek_decoder_push(d, e_acute[1], &part), EK_OK);
    ck_assert_str_eq(part, "\u00e9");
    ck_assert_str_eq(ek_decoder_flush(d), "");
    ck_assert_int_eq(ek_decoder_push(d, e_acute[0], &part), EK_OK);
    ck_assert_str_eq(ek_decoder_flush(d), "\ufffd");
    ck_assert_str_eq(ek_decoder_flush(d), "");
    ck_assert_int_eq(ek_decoder_push(d, e_acute[0], &part), EK_OK);
    ck_assert_int_eq(ek_decoder_push(d, ek_tokenizer_id(t, "a"), &part), EK_OK);
    ck_assert_str_eq(part, "\ufffd"
                           "a");
    ck_assert_int_eq(ek_decoder_push(d, ek_tokenizer_eos(t), &part), EK_OK);
    ck_assert_str_eq(part, "");
    ek_decoder_free(d);
    ek_tokenizer_free(t);
}
END_TEST

START_TEST(ids_without_a_token_are_no_text_and_nul_is_replaced)
{
    struct ek_tokenizer *t = open_fixture("gpt2", false);
    const int32_t ids[] = {ek_tokenizer_id(t, "a"), -5, 1 << 30, ek_tokenizer_id(t, "b")};
    int32_t *nul;
    char *text;
    size_t n;

    ck_assert_int_eq(ek_tokenizer_decode(t, ids, 4, false, &text), EK_OK);
    ck_assert_str_eq(text, "ab");
    free(text);
    ck_assert_int_eq(ek_tokenizer_encode(t, "a\0b", 3, 0, &nul, &n), EK_OK);
    ck_assert_int_eq(ek_tokenizer_decode(t, nul, n, false, &text), EK_OK);
    ck_assert_str_eq(text, "a\ufffd"
                           "b");
    free(text);
    free(nul);
    ck_assert_int_eq(ek_tokenizer_decode(t, NULL, 0, false, &text), EK_OK);
    ck_assert_str_eq(text, "");
    free(text);
    ek_tokenizer_free(t);
}
END_TEST

/* ---- Special tokens, chats ------------------------------------------------------------------- */

START_TEST(special_tokens_in_plain_text_stay_text)
{
    static const char *const markers[] = {"<|im_start|>", "<|im_end|>", "<|endoftext|>",
                                          "<｜User｜>",   "<|User|>",   "<|eot_id|>",
                                          "<tool_call>",  "<image>",    "<｜end▁of▁sentence｜>",
                                          "<mask>",       "<|/ref|>"};
    struct ek_tokenizer *t = open_fixture(fixtures[_i].name, fixtures[_i].gguf);
    char *text;
    int32_t *ids;
    size_t n;

    for (size_t i = 0; i < EK_ARRAY_LEN(markers); i++) {
        int32_t id = ek_tokenizer_id(t, markers[i]);
        ck_assert_int_eq(ek_tokenizer_encode(t, markers[i], strlen(markers[i]), 0, &ids, &n),
                         EK_OK);
        for (size_t j = 0; j < n; j++)
            ck_assert_int_ne(ids[j], id >= 0 ? id : INT32_MAX);
        ck_assert_int_eq(ek_tokenizer_decode(t, ids, n, true, &text), EK_OK);
        ck_assert_str_eq(text[0] == ' ' ? text + 1 : text, markers[i]);
        free(text);
        free(ids);
    }
    ek_tokenizer_free(t);
}
END_TEST

START_TEST(chats_refuse_what_no_template_renders)
{
    static const struct ek_message user = {"user", "x"}, tool = {"tool", "x"};
    static const struct ek_message late[] = {{"user", "x"}, {"system", "y"}};
    struct ek_tokenizer *chatml = open_fixture("smollm2", false),
                        *gpt2 = open_fixture("gpt2", true);
    struct ek_tokenizer *vl2 = open_fixture("deepseek-vl2", false);
    int32_t *ids;
    size_t n;

    ck_assert_int_eq(ek_chat_encode(chatml, &tool, 1, &ids, &n), EK_EUSAGE);
    ck_assert_str_eq(ek_last_error(),
                     "chat: message 0 has role 'tool', must be system, user or assistant");
    ck_assert_int_eq(ek_chat_encode(chatml, &user, 0, &ids, &n), EK_EUSAGE);
    ck_assert_int_eq(ek_chat_encode(gpt2, &user, 1, &ids, &n), EK_EUNSUPPORTED);
    ck_assert_str_eq(ek_last_error(), "chat: the checkpoint has no chat template");
    ck_assert_int_eq(ek_chat_encode(vl2, late, 2, &ids, &n), EK_EUSAGE);
    ek_tokenizer_free(chatml);
    ek_tokenizer_free(gpt2);
    ek_tokenizer_free(vl2);
}
END_TEST

START_TEST(an_embedding_may_have_more_rows_than_tokens_but_not_fewer)
{
    struct ek_tokenizer *t = open_fixture("qwen2.5", false);

    ck_assert_uint_eq(ek_tokenizer_size(t), 1422);
    ck_assert_int_eq(ek_tokenizer_fits(t, 1422), EK_OK);
    ck_assert_int_eq(ek_tokenizer_fits(t, 1536), EK_OK);
    ck_assert_int_eq(ek_tokenizer_fits(t, 1421), EK_EFORMAT);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "1422"));
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "1421"));
    ek_tokenizer_free(t);
}
END_TEST

/* ---- Robustness ------------------------------------------------------------------------------ */

START_TEST(long_runs_are_encoded_whatever_they_are_made_of)
{
    static const char *const units[] = {"a", " ", "\n", "ab", "\u6df1", "1", "<", "\xff", "'s "};
    size_t n = (size_t)1 << 18, m, len = strlen(units[_i]);
    char *text = ek_calloc(n, 1), *back;
    int32_t *ids;

    for (size_t i = 0; i < n; i++)
        text[i] = units[_i][i % len];
    for (size_t f = 0; f < EK_ARRAY_LEN(fixtures); f++) {
        struct ek_tokenizer *t = open_fixture(fixtures[f].name, false);
        if (strcmp(fixtures[f].name, "odd") == 0 || fixtures[f].gguf) {
            ek_tokenizer_free(t);
            continue;
        }
        ck_assert_msg(ek_tokenizer_encode(t, text, n - n % len, 0, &ids, &m) == EK_OK, "%s: %s",
                      fixtures[f].name, ek_last_error());
        ck_assert_int_eq(ek_tokenizer_decode(t, ids, m, false, &back), EK_OK);
        ck_assert(units[_i][0] == '\xff' || memcmp(back, text, n - n % len) == 0);
        free(back);
        free(ids);
        ek_tokenizer_free(t);
    }
    free(text);
}
END_TEST

struct job {
    const struct ek_tokenizer *t;
    const char *text;
    size_t n, n_ids;
    int32_t *ids;
};

static void *encode_many(void *arg)
{
    struct job *job = arg;

    for (int i = 0; i < 20; i++) {
        free(job->ids);
        job->ids = NULL;
        if (ek_tokenizer_encode(job->t, job->text, job->n, 0, &job->ids, &job->n_ids) != EK_OK)
            return NULL;
    }
    return NULL;
}

START_TEST(threads_may_share_a_tokenizer)
{
    struct ek_tokenizer *t = open_fixture("deepseek-llm", false);
    struct job jobs[4];
    pthread_t threads[4];
    size_t n;
    char *text = read_fixture("text.txt", &n);

    for (int i = 0; i < 4; i++) {
        jobs[i] = (struct job){.t = t, .text = text, .n = n};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, encode_many, &jobs[i]), 0);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 4; i++) {
        ck_assert_ptr_nonnull(jobs[i].ids);
        ck_assert_uint_eq(jobs[i].n_ids, jobs[0].n_ids);
        ck_assert_mem_eq(jobs[i].ids, jobs[0].ids, jobs[0].n_ids * sizeof(int32_t));
    }
    for (int i = 0; i < 4; i++)
        free(jobs[i].ids);
    free(text);
    ek_tokenizer_free(t);
}
END_TEST

/* Each test runs in its own process, so that the count of allocations begins anew. */
START_TEST(failing_allocations_are_reported_and_nothing_leaks)
{
    static const struct ek_message hi = {"user", "hi"};
    const char *top = getenv("srcdir");
    char number[16], path[4096];
    struct ek_tokenizer *t = NULL;
    int32_t *ids = NULL;
    char *text = NULL;
    size_t n;
    enum ek_status st;

    snprintf(number, sizeof(number), "%d", _i / 2 + 1);
    setenv("EK_FAIL_ALLOC", number, 1);
    snprintf(path, sizeof(path), "%s/tests/fixtures/tokenizers/qwen2.5%s", top ? top : ".",
             _i % 2 ? "/tokenizer.gguf" : "");
    st = ek_tokenizer_open(path, &t);
    if (st == EK_OK)
        st = ek_chat_encode(t, &hi, 1, &ids, &n);
    if (st == EK_OK)
        st = ek_tokenizer_decode(t, ids, n, false, &text);
    ck_assert_msg(st == EK_ENOMEM || _i > 100, "allocation %s: %d", number, (int)st);
    ck_assert(st == EK_OK || st == EK_ENOMEM);
    free(text);
    free(ids);
    ek_tokenizer_free(t);
}
END_TEST

static Suite *tokenizer_suite(void)
{
    const int n = (int)EK_ARRAY_LEN(fixtures);
    Suite *s = suite_create("tokenizer");
    TCase *tc = tcase_create("fixtures");

    tcase_set_timeout(tc, 180);
    tcase_add_loop_test(tc, ids_equal_those_of_hugging_face, 0, n);
    tcase_add_loop_test(tc, chats_equal_the_rendered_templates, 0, n);
    tcase_add_loop_test(tc, bos_and_eos_follow_the_checkpoint, 0, n);
    tcase_add_loop_test(tc, special_tokens_in_plain_text_stay_text, 0, n - 1); /* "odd": NFKD */
    tcase_add_loop_test(tc, text_survives_encoding_and_decoding_whole_or_streamed, 0, n);
    tcase_add_test(tc, a_character_split_over_tokens_is_held_back_until_it_is_whole);
    tcase_add_test(tc, ids_without_a_token_are_no_text_and_nul_is_replaced);
    tcase_add_test(tc, chats_refuse_what_no_template_renders);
    tcase_add_test(tc, an_embedding_may_have_more_rows_than_tokens_but_not_fewer);
    tcase_add_loop_test(tc, long_runs_are_encoded_whatever_they_are_made_of, 0, 9);
    tcase_add_test(tc, threads_may_share_a_tokenizer);
    if (getenv("CK_FORK") == NULL)
        tcase_add_loop_test(tc, failing_allocations_are_reported_and_nothing_leaks, 0, 160);
    suite_add_tcase(s, tc);
    return s;
}

int main(void)
{
    SRunner *r = srunner_create(tokenizer_suite());
    int failed;

    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
