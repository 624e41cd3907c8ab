/* SPDX-License-Identifier: Apache-2.0
 *
 * Hostile and unsupported tokenizer files: each is refused in one line that names file and field.
 */
#include "model/tokenizer.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];

static void make_folder(void)
{
    strcpy(folder, "/tmp/ek-tokenizer-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void remove_folder(void)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "tokenizer.gguf",
                                        "chat_template.jinja", "config.json"};

    for (size_t i = 0; i < EK_ARRAY_LEN(names); i++) {
        char *path = ek_path_join(folder, names[i]);
        (void)unlink(path);
        free(path);
    }
    (void)rmdir(folder);
}

static void write_file(const char *name, const void *data, size_t n)
{
    char *path = ek_path_join(folder, name);

    ck_assert_int_eq(ek_file_write(path, data, n, true), EK_OK);
    free(path);
}

/* The message is one line, names the file and has the words. */
static void expect_refusal(enum ek_status got, enum ek_status expected, const char *file,
                           const char *words)
{
    const char *message = ek_last_error();

    ck_assert_msg(got == expected, "%s: status %d, '%s'", words, (int)got, message);
    ck_assert_msg(strstr(message, words) != NULL, "no '%s' in '%s'", words, message);
    ck_assert_msg(strstr(message, file) != NULL, "no '%s' in '%s'", file, message);
    ck_assert_ptr_null(strchr(message, '\n'));
}

/* ---- tokenizer.json -------------------------------------------------------------------------- */

/* A small byte-level BPE: printable ASCII, space and newline (ids 0 to 95), ab, abc. */
static json_t *base_json(void)
{
    json_t *vocab = json_object(), *root;
    char text[2] = "";

    for (int c = 0x21; c < 0x7f; c++) {
        text[0] = (char)c;
        json_object_set_new(vocab, text, json_integer(c - 0x21));
    }
    json_object_set_new(vocab, "\u0120", json_integer(94));
    json_object_set_new(vocab, "\u010a", json_integer(95));
    json_object_set_new(vocab, "ab", json_integer(96));
    json_object_set_new(vocab, "abc", json_integer(97));
    root = json_loads("{\"added_tokens\": [{\"id\": 98, \"content\": \"<s>\", \"special\": true}],"
                      " \"normalizer\": null, \"post_processor\": null,"
                      " \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false},"
                      " \"decoder\": {\"type\": \"ByteLevel\"},"
                      " \"model\": {\"type\": \"BPE\", \"merges\": [\"a b\", [\"ab\", \"c\"]]}}",
                      0, NULL);
    json_object_set_new(json_object_get(root, "model"), "vocab", vocab);
    return root;
}

/* Sets the value at a path ("model.vocab.a", "added_tokens.0.id"); NULL removes it. */
static void set(json_t *at, const char *path, json_t *value)
{
    char key[64];
    size_t n = strcspn(path, ".");

    memcpy(key, path, n);
    key[n] = '\0';
    if (path[n] == '.')
        set(json_is_array(at) ? json_array_get(at, strtoul(key, NULL, 10))
                              : json_object_get(at, key),
            path + n + 1, value);
    else if (json_is_array(at))
        json_array_append_new(at, value);
    else if (value != NULL)
        json_object_set_new(at, key, value);
    else
        json_object_del(at, key);
}

static enum ek_status open_json(const json_t *root, struct ek_tokenizer **t)
{
    char *text = json_dumps(root, 0);

    write_file("tokenizer.json", text, strlen(text));
    free(text);
    return ek_tokenizer_open(folder, t);
}

#define SPLIT(pattern, behavior)                                                                   \
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": " pattern     \
    ", \"behavior\": \"" behavior "\"}, {\"type\": \"ByteLevel\"}]}"

static const struct {
    const char *path, *value; /* JSON; NULL: removed */
    enum ek_status status;
    const char *words;
} changes[] = {
    {"model", "3", EK_EFORMAT, "model must be an object, got an integer"},
    {"model", NULL, EK_EFORMAT, "model must be an object, got nothing"},
    {"model.type", "\"Unigram\"", EK_EUNSUPPORTED, "model.type 'Unigram' is not supported"},
    {"model.type", "\"WordPiece\"", EK_EUNSUPPORTED, "model.type 'WordPiece' is not supported"},
    {"model.type", "\"Word\\nLevel\"", EK_EUNSUPPORTED, "model.type 'Word?Level'"},
    {"model.type", "7", EK_EFORMAT, "model.type must be a string"},
    {"model.vocab", "[]", EK_EFORMAT, "model.vocab must be an object"},
    {"model.vocab.Q", "-1", EK_EFORMAT, "model.vocab['Q'] must be a whole number from 0"},
    {"model.vocab.Q", "\"5\"", EK_EFORMAT, "model.vocab['Q'] must be a whole number"},
    {"model.vocab.Q", "5.5", EK_EFORMAT, "model.vocab['Q'] must be a whole number"},
    {"model.vocab.Q", "5", EK_EFORMAT, "has id 5, which another token has too"},
    {"model.vocab.Q", "1048576", EK_EFORMAT, "has id 1048576, the highest supported is 1048575"},
    {"model.vocab.Q", "9000000000000000000", EK_EFORMAT, "the highest supported"},
    {"model.vocab.Q", NULL, EK_EFORMAT, "no token for byte 0x51"},
    {"model.vocab.abcd", "105", EK_EFORMAT, "no token has id 99, but ids go up to 105"},
    {"model.vocab.", "99", EK_EFORMAT, "token 99 has 0 bytes"},
    {"model.merges", "{}", EK_EFORMAT, "model.merges must be an array"},
    {"model.merges.2", "3", EK_EFORMAT, "model.merges[2] must be"},
    {"model.merges.2", "\"ab\"", EK_EFORMAT, "model.merges[2] must be"},
    {"model.merges.2", "\"a b c\"", EK_EFORMAT, "model.merges[2] must be"},
    {"model.merges.2", "[\"a\"]", EK_EFORMAT, "model.merges[2] must be"},
    {"model.merges.2", "[\"a\", 3]", EK_EFORMAT, "model.merges[2] must be"},
    {"model.merges.2", "\" b\"", EK_EFORMAT, "merge 2 has parts of 0 and 1 bytes"},
    {"model.merges.2", "\"zq b\"", EK_EFORMAT, "merge 2 names 'zq', which is no token"},
    {"model.merges.2", "\"a bz\"", EK_EFORMAT, "merge 2 names 'bz', which is no token"},
    {"model.merges.2", "\"a c\"", EK_EFORMAT, "merge 2 makes 'ac', which is no token"},
    {"model.byte_fallback", "true", EK_EUNSUPPORTED, "model.byte_fallback 'true'"},
    {"model.dropout", "0.1", EK_EUNSUPPORTED, "model.dropout"},
    {"model.dropout", "7", EK_EFORMAT, "model.dropout must be from 0 to 1"},
    {"model.continuing_subword_prefix", "\"##\"", EK_EUNSUPPORTED, "continuing_subword_prefix"},
    {"model.end_of_word_suffix", "\"</w>\"", EK_EUNSUPPORTED, "end_of_word_suffix '</w>'"},
    {"model.ignore_merges", "1", EK_EFORMAT, "model.ignore_merges must be true or false"},
    {"model.unk_token", "{}", EK_EFORMAT, "model.unk_token must be a string"},
    {"added_tokens", "{}", EK_EFORMAT, "added_tokens must be an array"},
    {"added_tokens.1", "5", EK_EFORMAT, "added_tokens[].content must be a string"},
    {"added_tokens.0.content", "\"\"", EK_EFORMAT, "added token 98 has 0 bytes"},
    {"added_tokens.0.content", NULL, EK_EFORMAT, "added_tokens[].content must be a string"},
    {"added_tokens.0.content", "\"abc\"", EK_EFORMAT, "'abc' has id 98, but it is token 97"},
    {"added_tokens.0.id", "-3", EK_EFORMAT, "added_tokens[].id must be from 0"},
    {"added_tokens.0.id", "97", EK_EFORMAT, "'<s>' has id 97, which another token has too"},
    {"added_tokens.0.id", "99", EK_EFORMAT, "no token has id 98"},
    {"added_tokens.1", "{\"id\": 98, \"content\": \"<t>\"}", EK_EFORMAT, "which another has too"},
    {"added_tokens.1", "{\"id\": 99, \"content\": \"<s>\"}", EK_EFORMAT, "but it is token 98"},
    {"added_tokens.0.lstrip", "1", EK_EFORMAT, "added_tokens[].lstrip must be true or false"},
    {"normalizer", "{\"type\": \"Lowercase\"}", EK_EUNSUPPORTED, "normalizer 'Lowercase'"},
    {"normalizer", "[]", EK_EFORMAT, "normalizer.type must be a string"},
    {"normalizer", "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Strip\"}]}",
     EK_EUNSUPPORTED, "normalizer 'Strip'"},
    {"pre_tokenizer", "null", EK_EFORMAT, "pre_tokenizer must be an object, got null"},
    {"pre_tokenizer", "{\"type\": \"Metaspace\"}", EK_EUNSUPPORTED, "pre_tokenizer 'Metaspace'"},
    {"pre_tokenizer", "{\"type\": \"Digits\"}", EK_EUNSUPPORTED, "(anything but byte-level)"},
    {"pre_tokenizer",
     "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"ByteLevel\"}, {\"type\": "
     "\"Digits\"}]}",
     EK_EUNSUPPORTED, "pre_tokenizer behind ByteLevel 'Digits'"},
    {"pre_tokenizer", SPLIT("{\"Regex\": \"(a\"}", "Isolated"), EK_EFORMAT, "does not compile"},
    {"pre_tokenizer", SPLIT("{\"Regex\": \"[z-a]\"}", "Isolated"), EK_EFORMAT, "does not compile"},
    {"pre_tokenizer", SPLIT("{\"Regex\": \"\"}", "Isolated"), EK_EFORMAT, "pattern has 0 bytes"},
    {"pre_tokenizer", SPLIT("{\"String\": \"\"}", "Isolated"), EK_EFORMAT, "pattern has 0 bytes"},
    {"pre_tokenizer", SPLIT("{}", "Isolated"), EK_EFORMAT, "pre_tokenizer.Regex must be a string"},
    {"pre_tokenizer", SPLIT("{\"Regex\": \"a\"}", "MergedWithNext"), EK_EUNSUPPORTED,
     "pre_tokenizer.behavior 'MergedWithNext'"},
    {"decoder", "null", EK_EFORMAT, "decoder must be an object, got null"},
    {"decoder", "{\"type\": \"WordPiece\"}", EK_EUNSUPPORTED, "decoder 'WordPiece'"},
    {"post_processor", "{\"type\": \"BertProcessing\"}", EK_EUNSUPPORTED, "'BertProcessing'"},
};

START_TEST(a_bad_tokenizer_json_is_refused_by_field)
{
    json_t *root = base_json();
    struct ek_tokenizer *t;

    set(root, changes[_i].path,
        changes[_i].value ? json_loads(changes[_i].value, JSON_DECODE_ANY, NULL) : NULL);
    expect_refusal(open_json(root, &t), changes[_i].status, "tokenizer.json", changes[_i].words);
    json_decref(root);
}
END_TEST

START_TEST(the_base_of_these_cases_is_accepted)
{
    json_t *root = base_json();
    struct ek_tokenizer *t;
    int32_t *ids;
    size_t n;

    ck_assert_msg(open_json(root, &t) == EK_OK, "%s", ek_last_error());
    ck_assert_int_eq(ek_tokenizer_encode(t, "abcab<s>", 8, EK_ENCODE_SPECIAL, &ids, &n), EK_OK);
    ck_assert_uint_eq(n, 3);
    ck_assert(ids[0] == 97 && ids[1] == 96 && ids[2] == 98);
    free(ids);
    ek_tokenizer_free(t);
    json_decref(root);
}
END_TEST

static const struct {
    const char *text, *words;
} raw[] = {
    {"", "not valid JSON"},
    {"{", "not valid JSON"},
    {"\xff\xfe", "not valid JSON"},
    {"[1]", "must be a JSON object"},
    {"{\"model\": {\"vocab\": {\"a\": 0, \"a\": 1}}}", "duplicate"},
    {"{\"model\": {\"vocab\": {\"\\ud800\": 0}}}", "not valid JSON"},
    {"{\"model\": {\"vocab\": {\"\\u0000\": 0}}}", "not valid JSON"},
    {"{\"model\": {\"vocab\": {}, \"merges\": []}}", "no token for byte 0x20"},
};

START_TEST(what_is_no_tokenizer_json_is_refused)
{
    struct ek_tokenizer *t;

    write_file("tokenizer.json", raw[_i].text, strlen(raw[_i].text));
    expect_refusal(ek_tokenizer_open(folder, &t), EK_EFORMAT, "tokenizer.json", raw[_i].words);
}
END_TEST

START_TEST(long_things_are_refused_with_their_maximum)
{
    char long_text[20000];
    char *path = ek_path_join(folder, "tokenizer.json");
    json_t *root = base_json(), *steps;
    struct ek_tokenizer *t;

    memset(long_text, 'a', sizeof(long_text));
    long_text[4097] = '\0';
    set(root, "model.vocab", json_object());
    json_object_set_new(json_object_get(json_object_get(root, "model"), "vocab"), long_text,
                        json_integer(0));
    expect_refusal(open_json(root, &t), EK_EFORMAT, "tokenizer.json", "has 4097 bytes");
    json_decref(root);

    root = base_json();
    long_text[4097] = 'a';
    long_text[16385] = '\0';
    set(root, "pre_tokenizer",
        json_pack("{s:s, s:{s:s}, s:s}", "type", "Split", "pattern", "Regex", long_text, "behavior",
                  "Isolated"));
    expect_refusal(open_json(root, &t), EK_EFORMAT, "tokenizer.json", "pattern has 16385 bytes");
    steps = json_array();
    for (int i = 0; i < 17; i++)
        json_array_append_new(steps, json_pack("{s:s}", "type", "Digits"));
    set(root, "pre_tokenizer", json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", steps));
    expect_refusal(open_json(root, &t), EK_EUNSUPPORTED, "tokenizer.json", "more than 16 splits");
    json_decref(root);

    ck_assert_int_eq(truncate(path, ((off_t)64 << 20) + 1), 0);
    expect_refusal(ek_tokenizer_open(folder, &t), EK_EFORMAT, "tokenizer.json", "67108865");
    free(path);
}
END_TEST

START_TEST(a_missing_file_is_named)
{
    struct ek_tokenizer *t;

    expect_refusal(ek_tokenizer_open(folder, &t), EK_EENV, "tokenizer.json", "No such file");
    expect_refusal(ek_tokenizer_open("/nonexistent/x.gguf", &t), EK_EENV, "/nonexistent/x.gguf",
                   "No such file");
}
END_TEST

START_TEST(a_pattern_that_backtracks_without_end_is_stopped)
{
    static const char *const patterns[] = {"(?:a|a|aa)+$", "(a+)+b", "(?:a|a)+[^ax]"};
    json_t *root = base_json();
    struct ek_tokenizer *t;
    char text[2001];
    int32_t *ids;
    size_t n;

    memset(text, 'a', 2000);
    text[1999] = 'x';
    set(root, "pre_tokenizer",
        json_pack("{s:s, s:[{s:s, s:{s:s}, s:s}, {s:s}]}", "type", "Sequence", "pretokenizers",
                  "type", "Split", "pattern", "Regex", patterns[_i], "behavior", "Isolated", "type",
                  "ByteLevel"));
    ck_assert_msg(open_json(root, &t) == EK_OK, "%s", ek_last_error());
    expect_refusal(ek_tokenizer_encode(t, text, 2000, 0, &ids, &n), EK_EFORMAT, "pre_tokenizer",
                   "backtracks too much");
    ek_tokenizer_free(t);
    json_decref(root);
}
END_TEST

START_TEST(a_text_over_the_maximum_is_refused)
{
    const size_t n = ((size_t)16 << 20) + 1;
    json_t *root = base_json();
    struct ek_tokenizer *t;
    char *text = ek_calloc(n, 1);
    int32_t *ids;
    size_t n_ids;

    ck_assert_int_eq(open_json(root, &t), EK_OK);
    expect_refusal(ek_tokenizer_encode(t, text, n, 0, &ids, &n_ids), EK_EUSAGE, "16777217",
                   "at most 16777216");
    ek_tokenizer_free(t);
    json_decref(root);
    free(text);
}
END_TEST

/* ---- tokenizer_config.json and templates ----------------------------------------------------- */

static const struct {
    const char *config, *words; /* NULL words: accepted */
    int32_t bos;
    bool adds_bos;
} configs[] = {
    {"{\"bos_token\": \"<s>\", \"add_bos_token\": true}", NULL, 98, true},
    {"{\"bos_token\": {\"content\": \"<s>\"}, \"add_bos_token\": false}", NULL, 98, false},
    {"{\"bos_token\": \"<unknown>\", \"add_bos_token\": true}", NULL, -1, false},
    {"{\"bos_token\": null, \"model_max_length\": 1000000000000000019884624838656}", NULL, -1,
     false},
    {"{\"chat_template\": [{\"name\": \"tools\", \"template\": \"x\"}, 5]}", NULL, -1, false},
    {"{\"chat_template\": 5}", NULL, -1, false},
    {"{\"add_bos_token\": \"yes\"}", "add_bos_token must be true or false", 0, false},
    {"[]", "must be a JSON object", 0, false},
    {"{\"bos_token\": ", "not valid JSON", 0, false},
};

START_TEST(a_tokenizer_config_is_read_or_refused)
{
    json_t *root = base_json();
    struct ek_tokenizer *t;
    enum ek_status st;

    write_file("tokenizer_config.json", configs[_i].config, strlen(configs[_i].config));
    st = open_json(root, &t);
    json_decref(root);
    if (configs[_i].words != NULL) {
        expect_refusal(st, EK_EFORMAT, "tokenizer_config.json", configs[_i].words);
        return;
    }
    ck_assert_msg(st == EK_OK, "%s", ek_last_error());
    ck_assert_int_eq(ek_tokenizer_bos(t), configs[_i].bos);
    ck_assert_int_eq(ek_tokenizer_adds_bos(t), configs[_i].adds_bos);
    ek_tokenizer_free(t);
}
END_TEST

START_TEST(a_jinja_file_beside_the_tokenizer_is_its_template)
{
    static const char jinja[] = "{{ 'User: ' + m }}{{ 'Assistant:' }}", odd[] = "{{ x }}";
    static const struct ek_message user = {"user", "a"};
    json_t *root = base_json();
    struct ek_tokenizer *t;
    int32_t *ids;
    size_t n;

    write_file("chat_template.jinja", jinja, sizeof(jinja) - 1);
    ck_assert_int_eq(open_json(root, &t), EK_OK);
    ck_assert_str_eq(ek_chat_template(t), "deepseek-llm");
    ek_tokenizer_free(t);
    write_file("chat_template.jinja", odd, sizeof(odd) - 1);
    ck_assert_int_eq(open_json(root, &t), EK_OK);
    ck_assert_int_eq(ek_chat_encode(t, &user, 1, &ids, &n), EK_EUNSUPPORTED);
    ck_assert_str_eq(ek_last_error(),
                     "chat: the checkpoint has a chat template of no known family");
    ek_tokenizer_free(t);
    json_decref(root);
}
END_TEST

static const struct {
    const char *template, *rendered; /* NULL: not supported */
} templates[] = {
    {"{{ '<|im_start|>system\\nBe good.<|im_end|>\\n' }}{{ '<|im_start|>assistant\\n' }}",
     "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\n a <|im_end|>\n"
     "<|im_start|>assistant\n"},
    {"{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{{ '<|im_start|>assistant\n' }}",
     "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\n a <|im_end|>\n"
     "<|im_start|>assistant\n"},
    {"{{ '<|im_start|>system\\n' }}{{ m }}{{ '<|im_end|><|im_start|>system\\nIn \\\\boxed{}"
     "\\'s<|im_end|>\\n<|im_start|>assistant\\n' }}",
     "<|im_start|>system\nIn \\boxed{}'s<|im_end|>\n<|im_start|>user\n a <|im_end|>\n"
     "<|im_start|>assistant\n"},
    {"<|im_start|>system\n{{ m }}<|im_end|>\n<|im_start|>assistant\n",
     "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n"},
    {"<|im_start|>{{ role }}<|im_end|>", NULL},
    {"<|im_start|>assistant\n<think>\n", NULL},
    {"{% if x %}{{ '<|start_header_id|>' + m['role'] }}{% endif %}",
     "<s><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>"
     "<|start_header_id|>assistant<|end_header_id|>\n\n"},
    {"<|start_header_id|>Cutting Knowledge Date: December 2023",
     "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
     "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\na"
     "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"},
    {"{{ 'User: ' + m }}{{ 'Assistant:' }}", "<s>User:  a \n\nAssistant:"},
    {"{{ '[INST] ' + m + ' [/INST]' }}", NULL},
};

START_TEST(a_known_template_is_rendered_and_others_are_not_supported)
{
    static const char *const added[] = {"<|im_start|>", "<|im_end|>", "<|start_header_id|>",
                                        "<|end_header_id|>", "<|eot_id|>"};
    static const struct ek_message user = {"user", " a "};
    json_t *root = base_json();
    json_t *config =
        json_pack("{s:s, s:s}", "bos_token", "<s>", "chat_template", templates[_i].template);
    char *text = json_dumps(config, 0);
    struct ek_tokenizer *t;
    int32_t *ids;
    size_t n;

    for (size_t i = 0; i < EK_ARRAY_LEN(added); i++)
        set(root, "added_tokens.1",
            json_pack("{s:i, s:s, s:b}", "id", (int)(99 + i), "content", added[i], "special", 1));
    write_file("tokenizer_config.json", text, strlen(text));
    free(text);
    ck_assert_msg(open_json(root, &t) == EK_OK, "%s", ek_last_error());
    if (templates[_i].rendered == NULL) {
        ck_assert_int_eq(ek_chat_encode(t, &user, 1, &ids, &n), EK_EUNSUPPORTED);
    } else {
        ck_assert_msg(ek_chat_encode(t, &user, 1, &ids, &n) == EK_OK, "%s", ek_last_error());
        ck_assert_int_eq(ek_tokenizer_decode(t, ids, n, false, &text), EK_OK);
        ck_assert_str_eq(text, templates[_i].rendered);
        free(text);
        free(ids);
    }
    ek_tokenizer_free(t);
    json_decref(config);
    json_decref(root);
}
END_TEST

/* ---- GGUF ------------------------------------------------------------------------------------ */

struct gguf {
    uint8_t data[65536];
    size_t n;
    uint64_t n_kv;
};

static void put(struct gguf *g, const void *data, size_t n)
{
    ck_assert_uint_le(g->n + n, sizeof(g->data));
    memcpy(g->data + g->n, data, n);
    g->n += n;
}

static void put_u32(struct gguf *g, uint32_t v)
{
    put(g, &v, sizeof(v));
}

static void put_string(struct gguf *g, const char *s)
{
    uint64_t n = strlen(s);

    put(g, &n, sizeof(n));
    put(g, s, n);
}

static void key(struct gguf *g, const char *name, uint32_t type)
{
    put_string(g, name);
    put_u32(g, type);
    g->n_kv++;
}

static void kv_string(struct gguf *g, const char *name, const char *value)
{
    if (value == NULL)
        return;
    key(g, name, 8);
    put_string(g, value);
}

static void kv_u32(struct gguf *g, const char *name, int64_t value)
{
    if (value < 0)
        return;
    key(g, name, 4);
    put_u32(g, (uint32_t)value);
}

static void kv_strings(struct gguf *g, const char *name, const char *const *values, uint64_t n)
{
    key(g, name, 9);
    put_u32(g, 8);
    put(g, &n, sizeof(n));
    for (uint64_t i = 0; i < n; i++)
        put_string(g, values[i]);
}

static void kv_numbers(struct gguf *g, const char *name, uint32_t value, uint64_t n)
{
    key(g, name, 9);
    put_u32(g, 5);
    put(g, &n, sizeof(n));
    for (uint64_t i = 0; i < n; i++)
        put_u32(g, value);
}

#define N_TOKENS 97 /* printable ASCII with the space, newline, and one to change */

static const struct {
    const char *model, *pre, *token, *merge;
    uint64_t n_types;
    int64_t bos;
    bool tokens_are_numbers, no_merges;
    enum ek_status status;
    const char *words;
} ggufs[] = {
    {"gpt2", "gpt-2", "ab", "a b", N_TOKENS, 3, false, false, EK_OK, NULL},
    {"gpt2", "llama-bpe", "ab", "a b", N_TOKENS, 3, false, false, EK_OK, NULL},
    {"llama", "gpt-2", "ab", "a b", N_TOKENS, 3, false, false, EK_EUNSUPPORTED,
     "tokenizer.ggml.model 'llama' is not supported"},
    {NULL, "gpt-2", "ab", "a b", N_TOKENS, 3, false, false, EK_EFORMAT, "tokenizer.ggml.model"},
    {"gpt2", "chameleon", "ab", "a b", N_TOKENS, 3, false, false, EK_EUNSUPPORTED,
     "tokenizer.ggml.pre 'chameleon' is not supported"},
    {"gpt2", "gpt-2", "a", "a b", N_TOKENS, 3, false, false, EK_EFORMAT, "have the same text 'a'"},
    {"gpt2", "gpt-2", "", "a b", N_TOKENS, 3, false, false, EK_EFORMAT, "token 96 has 0 bytes"},
    {"gpt2", "gpt-2", "ab", "ab", N_TOKENS, 3, false, false, EK_EFORMAT, "merges[0] must be"},
    {"gpt2", "gpt-2", "ab", "a c", N_TOKENS, 3, false, false, EK_EFORMAT, "makes 'ac'"},
    {"gpt2", "gpt-2", "ab", "a zz", N_TOKENS, 3, false, false, EK_EFORMAT, "names 'zz'"},
    {"gpt2", "gpt-2", "ab", "a b", 5, 3, false, false, EK_EFORMAT,
     "tokenizer.ggml.token_type has 5 items, but tokenizer.ggml.tokens has 97"},
    {"gpt2", "gpt-2", "ab", "a b", N_TOKENS, 97, false, false, EK_EFORMAT,
     "tokenizer.ggml.bos_token_id"},
    {"gpt2", "gpt-2", "ab", "a b", N_TOKENS, 3, true, false, EK_EFORMAT,
     "tokenizer.ggml.tokens must be an array of strings"},
    {"gpt2", "gpt-2", "ab", "a b", N_TOKENS, 3, false, true, EK_EFORMAT, "tokenizer.ggml.merges"},
};

static void write_gguf(int i)
{
    static struct gguf g;
    const char *tokens[N_TOKENS];
    char texts[N_TOKENS][2];
    const uint64_t none = 0;

    for (int c = 0; c < 94; c++) {
        texts[c][0] = (char)(c + 0x21);
        texts[c][1] = '\0';
        tokens[c] = texts[c];
    }
    tokens[94] = "\u0120";
    tokens[95] = "\u010a";
    tokens[96] = ggufs[i].token;
    g.n = 24;
    g.n_kv = 0;
    kv_string(&g, "tokenizer.ggml.model", ggufs[i].model);
    kv_string(&g, "tokenizer.ggml.pre", ggufs[i].pre);
    if (ggufs[i].tokens_are_numbers)
        kv_numbers(&g, "tokenizer.ggml.tokens", 1, N_TOKENS);
    else
        kv_strings(&g, "tokenizer.ggml.tokens", tokens, N_TOKENS);
    kv_numbers(&g, "tokenizer.ggml.token_type", 1, ggufs[i].n_types);
    if (!ggufs[i].no_merges)
        kv_strings(&g, "tokenizer.ggml.merges", &ggufs[i].merge, 1);
    kv_u32(&g, "tokenizer.ggml.bos_token_id", ggufs[i].bos);
    memcpy(g.data, "GGUF\3\0\0", 8);
    memcpy(g.data + 8, &none, 8);
    memcpy(g.data + 16, &g.n_kv, 8);
    write_file("tokenizer.gguf", g.data, g.n);
}

START_TEST(a_ggufs_tokenizer_is_read_or_refused_by_key)
{
    char *path = ek_path_join(folder, "tokenizer.gguf");
    struct ek_tokenizer *t;
    enum ek_status st;

    write_gguf(_i);
    st = ek_tokenizer_open(path, &t);
    if (ggufs[_i].status == EK_OK) {
        ck_assert_msg(st == EK_OK, "%s", ek_last_error());
        ck_assert_int_eq(ek_tokenizer_bos(t), 3);
        ck_assert_int_eq(ek_tokenizer_adds_bos(t), strcmp(ggufs[_i].pre, "llama-bpe") == 0);
        ek_tokenizer_free(t);
    } else {
        expect_refusal(st, ggufs[_i].status, "tokenizer.gguf", ggufs[_i].words);
    }
    free(path);
}
END_TEST

START_TEST(every_path_that_opens_a_model_opens_its_tokenizer)
{
    char *gguf = ek_path_join(folder, "tokenizer.gguf");
    char *json = ek_path_join(folder, "tokenizer.json");
    char *config = ek_path_join(folder, "config.json");
    const char *const first[] = {folder, gguf}, *const both[] = {folder, json, config};
    json_t *root = base_json();
    struct ek_tokenizer *t;

    write_gguf(0);
    for (size_t i = 0; i < EK_ARRAY_LEN(first); i++) {
        ck_assert_msg(ek_tokenizer_open(first[i], &t) == EK_OK, "%s", ek_last_error());
        ck_assert_uint_eq(ek_tokenizer_size(t), N_TOKENS);
        ek_tokenizer_free(t);
    }
    write_file("config.json", "{}", 2);
    ck_assert_int_eq(open_json(root, &t), EK_OK);
    ek_tokenizer_free(t);
    for (size_t i = 0; i < EK_ARRAY_LEN(both); i++) {
        ck_assert_msg(ek_tokenizer_open(both[i], &t) == EK_OK, "%s", ek_last_error());
        ck_assert_uint_eq(ek_tokenizer_size(t), 99);
        ek_tokenizer_free(t);
    }
    json_decref(root);
    free(gguf);
    free(json);
    free(config);
}
END_TEST

static Suite *files_suite(void)
{
    Suite *s = suite_create("tokenizer files");
    TCase *tc = tcase_create("hostile");

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, make_folder, remove_folder);
    tcase_add_test(tc, the_base_of_these_cases_is_accepted);
    tcase_add_loop_test(tc, a_bad_tokenizer_json_is_refused_by_field, 0,
                        (int)EK_ARRAY_LEN(changes));
    tcase_add_loop_test(tc, what_is_no_tokenizer_json_is_refused, 0, (int)EK_ARRAY_LEN(raw));
    tcase_add_test(tc, long_things_are_refused_with_their_maximum);
    tcase_add_test(tc, a_missing_file_is_named);
    tcase_add_loop_test(tc, a_pattern_that_backtracks_without_end_is_stopped, 0, 3);
    tcase_add_test(tc, a_text_over_the_maximum_is_refused);
    tcase_add_loop_test(tc, a_tokenizer_config_is_read_or_refused, 0, (int)EK_ARRAY_LEN(configs));
    tcase_add_test(tc, a_jinja_file_beside_the_tokenizer_is_its_template);
    tcase_add_loop_test(tc, a_known_template_is_rendered_and_others_are_not_supported, 0,
                        (int)EK_ARRAY_LEN(templates));
    tcase_add_loop_test(tc, a_ggufs_tokenizer_is_read_or_refused_by_key, 0,
                        (int)EK_ARRAY_LEN(ggufs));
    tcase_add_test(tc, every_path_that_opens_a_model_opens_its_tokenizer);
    suite_add_tcase(s, tc);
    return s;
}

int main(void)
{
    SRunner *r = srunner_create(files_suite());
    int failed;

    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
