/* SPDX-License-Identifier: Apache-2.0
 *
 * Checkpoints as they are opened and read: files held against the configuration, GGUF's row order,
 * weights from a seed.
 */
#include "kernels/kernels.h"
#include "model/internal.h"
#include "tests/model/files.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LAYERS "reference/llama-llama3-rope"

static struct ek_model *open_fixture(const char *name, const struct ek_model_options *options)
{
    struct ek_model *m = NULL;
    char path[512];
    enum ek_status st = ek_model_open(fixture(name, path), options, &m);

    ck_assert_msg(st == EK_OK, "%s", ek_last_error());
    return m;
}

/* ---- Directories ------------------------------------------------------------------------------*/

START_TEST(a_sharded_checkpoint_is_read_tensor_by_tensor)
{
    struct ek_model *m = open_fixture(LAYERS, NULL);
    char path[512];
    size_t n = 0;

    ck_assert(m->has_weights);
    ck_assert_uint_eq(m->config.n_eos, 3); /* generation_config.json */
    for (int shard = 1; shard <= 3; shard++) {
        char name[128];
        struct ek_safetensors *s;
        snprintf(name, sizeof(name), LAYERS "/model-0000%d-of-00003.safetensors", shard);
        ck_assert_int_eq(ek_safetensors_open(fixture(name, path), &s), EK_OK);
        n += ek_safetensors_count(s);
        for (size_t i = 0; i < m->n_modules; i++)
            for (size_t j = 0; j < m->modules[i].n_tensors; j++) {
                const struct ek_tensor *t = &m->modules[i].tensors[j];
                const struct ek_safetensors_entry *e = ek_safetensors_find(s, t->name);
                char *a, *b;
                if (e == NULL)
                    continue;
                a = malloc(t->bytes);
                b = malloc(t->bytes);
                ck_assert_uint_eq(t->bytes, e->bytes);
                ck_assert_int_eq(ek_model_read(m, t, 0, t->bytes, a), EK_OK);
                ck_assert_int_eq(ek_safetensors_read(s, e, 0, e->bytes, b), EK_OK);
                ck_assert_mem_eq(a, b, t->bytes);
                ck_assert_int_eq(ek_model_read(m, t, 8, 16, a), EK_OK);
                ck_assert_mem_eq(a, b + 8, 16);
                ck_assert_int_eq(ek_model_read(m, t, t->bytes - 4, 5, a), EK_EUSAGE);
                free(a);
                free(b);
            }
        ek_safetensors_close(s);
    }
    ck_assert_uint_eq(n, 21);
    ek_model_close(m);
}
END_TEST

START_TEST(a_configuration_alone_is_the_same_model_without_weights)
{
    struct ek_model *whole = open_fixture("reference/llama-gqa-tied", NULL);
    struct ek_model *alone = open_fixture("reference/llama-gqa-tied/config.json", NULL);
    struct ek_model *synthetic =
        open_fixture("reference/llama-gqa-tied/",
                     &(struct ek_model_options){.seed = 3, .synthetic = true});

    ck_assert_str_eq(whole->hash, alone->hash);
    ck_assert_str_eq(whole->hash, synthetic->hash);
    ck_assert_str_eq(whole->name, "llama-gqa-tied");
    ck_assert_str_eq(alone->name, "llama-gqa-tied");
    ck_assert_str_eq(synthetic->name, "llama-gqa-tied");
    ck_assert(whole->has_weights && !alone->has_weights && !synthetic->has_weights);
    ek_model_close(whole);
    ek_model_close(alone);
    ek_model_close(synthetic);
}
END_TEST

START_TEST(every_reference_fixture_opens_with_all_its_tensors)
{
    static const char *const names[] = {
        "llama-mha",    "llama-gqa-tied",     "llama-linear-rope", "llama-biases-f16",
        "qwen2-tied",   "qwen2-bf16",         "deepseek-v2",       "deepseek-v2-lite",
        "deepseek-vl2", "deepseek-vl2-small", "deepseek-vl2-tiny", "qwen2.5-vl",
    };
    char name[128];

    for (size_t i = 0; i < EK_ARRAY_LEN(names); i++) {
        struct ek_model *m;
        snprintf(name, sizeof(name), "reference/%s", names[i]);
        m = open_fixture(name, NULL);
        ck_assert(m->has_weights);
        ek_model_close(m);
    }
}
END_TEST

/* A small checkpoint in the temporary directory: a fixture's weights under an edited config. */
static enum ek_status open_edited(const char *patch)
{
    struct ek_model *m = NULL;
    char path[512], *real;
    json_t *config = NULL, *changes = json_loads(patch, 0, NULL);
    enum ek_status st;

    ck_assert_int_eq(
        ek_json_read(fixture("reference/llama-mha/config.json", path), 1 << 20, &config), EK_OK);
    json_object_update(config, changes);
    ck_assert_int_eq(ek_json_write(temp_path("config.json"), config, true), EK_OK);
    json_decref(config);
    json_decref(changes);
    real = realpath(fixture("reference/llama-mha/model.safetensors", path), NULL);
    ck_assert_int_eq(symlink(real, temp_path("model.safetensors")), 0);
    free(real);
    st = ek_model_open(temp_path(""), NULL, &m);
    ek_model_close(m);
    return st;
}

static const struct {
    const char *patch;
    enum ek_status st;
    const char *message;
} mismatches[] = {
    {"{}", EK_OK, NULL},
    {"{\"num_hidden_layers\":9}", EK_EFORMAT, "layers.2.input_layernorm.weight' ["},
    {"{\"num_hidden_layers\":1}", EK_EUNSUPPORTED, "layers.1."},
    {"{\"vocab_size\":300}", EK_EFORMAT, "in the file, [300, "},
    {"{\"intermediate_size\":64}", EK_EFORMAT, "by the configuration"},
    {"{\"num_key_value_heads\":1}", EK_EFORMAT, "k_proj.weight"},
    {"{\"attention_bias\":true}", EK_EFORMAT, "q_proj.bias"},
    {"{\"tie_word_embeddings\":true}", EK_OK, NULL}, /* a copy of the head is left over */
};

START_TEST(tensors_are_held_against_the_configuration)
{
    enum ek_status st = open_edited(mismatches[_i].patch);

    ck_assert_msg(st == mismatches[_i].st, "%s", ek_last_error());
    if (mismatches[_i].message)
        ck_assert_msg(strstr(ek_last_error(), mismatches[_i].message), "%s", ek_last_error());
}
END_TEST

START_TEST(paths_that_are_no_model_are_refused)
{
    struct ek_model *m = NULL;

    ck_assert_int_eq(ek_model_open(temp_path("absent"), NULL, &m), EK_EENV);
    ck_assert_int_eq(ek_model_open(temp_path(""), NULL, &m), EK_EFORMAT);
    ck_assert_msg(strstr(ek_last_error(), "neither config.json nor"), "%s", ek_last_error());
    ck_assert_int_eq(ek_model_open(temp_text("model.bin", "x"), NULL, &m), EK_EUSAGE);
    ck_assert_int_eq(ek_model_open(temp_text("config.json", "{"), NULL, &m), EK_EFORMAT);
    ck_assert_ptr_null(m);
}
END_TEST

/* One allocation after the other fails; what was reached is freed and said. */
START_TEST(running_out_of_memory_is_an_error)
{
    static const char *const names[] = {LAYERS, "reference/deepseek-vl2-tiny"};
    struct ek_model *m = NULL;
    char count[16], path[512];

    snprintf(count, sizeof(count), "%d", _i / 2 * 3 + 1);
    setenv("EK_FAIL_ALLOC", count, 1); /* read once a process: each test has its own */
    if (ek_model_open(fixture(names[_i % 2], path), NULL, &m) != EK_OK) {
        ck_assert_ptr_null(m);
        ck_assert_msg(strstr(ek_last_error(), "out of host memory"), "%s", ek_last_error());
    }
    ek_model_close(m);
}
END_TEST

/* ---- GGUF -------------------------------------------------------------------------------------*/

#define HEADS    4
#define KV_HEADS 2
#define HEAD_DIM 128
#define HIDDEN   256 /* a block of the K types */
#define FFN      256
#define VOCAB    3

struct gguf_writer {
    struct bytes infos, data;
    uint64_t n;
    uint32_t type; /* of matrices */
};

static const struct {
    uint32_t ggml;
    enum ek_dtype dtype;
} types[] = {
    {0, EK_F32},  {1, EK_F16},  {30, EK_BF16}, {2, EK_Q4_0},  {3, EK_Q4_1},  {6, EK_Q5_0},
    {7, EK_Q5_1}, {8, EK_Q8_0}, {12, EK_Q4_K}, {13, EK_Q5_K}, {14, EK_Q6_K},
};

/* A tensor whose every row is filled with the low byte of its own number. */
static void add_rows(struct gguf_writer *w, const char *name, uint64_t rows, uint64_t cols, int t)
{
    const uint64_t dims[] = {cols, rows, 0}, vector[] = {cols, 0};
    size_t bytes;

    gguf_tensor(&w->infos, name, rows ? dims : vector, types[t].ggml, w->data.n);
    ck_assert_int_eq(ek_dtype_bytes(types[t].dtype, cols, &bytes), EK_OK);
    for (uint64_t r = 0; r < (rows ? rows : 1); r++)
        for (size_t i = 0; i < bytes; i++)
            put(&w->data, &(char){(char)(r & 0x3f)}, 1);
    gguf_align(&w->data, 32);
    w->n++;
}

static void add_layer(struct gguf_writer *w, int t, bool qwen)
{
    add_rows(w, "blk.0.attn_norm.weight", 0, HIDDEN, 0);
    add_rows(w, "blk.0.attn_q.weight", HEADS * HEAD_DIM, HIDDEN, t);
    add_rows(w, "blk.0.attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN, t);
    add_rows(w, "blk.0.attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN, t);
    add_rows(w, "blk.0.attn_output.weight", HIDDEN, HEADS * HEAD_DIM, t);
    add_rows(w, "blk.0.ffn_norm.weight", 0, HIDDEN, 0);
    add_rows(w, "blk.0.ffn_gate.weight", FFN, HIDDEN, t);
    add_rows(w, "blk.0.ffn_up.weight", FFN, HIDDEN, t);
    add_rows(w, "blk.0.ffn_down.weight", HIDDEN, FFN, t);
    if (qwen) {
        add_rows(w, "blk.0.attn_q.bias", 0, HEADS * HEAD_DIM, 0);
        add_rows(w, "blk.0.attn_k.bias", 0, KV_HEADS * HEAD_DIM, 0);
        add_rows(w, "blk.0.attn_v.bias", 0, KV_HEADS * HEAD_DIM, 0);
    }
}

/* A key that replaces one of the usual, or comes in addition; with a NULL value: leaves it out. */
struct key {
    const char *name; /* behind "ARCH." */
    uint32_t type;    /* 4: whole, 6: real, 8: text; 0: left out */
    uint32_t whole;
    float real;
    const char *text;
};

static void put_key(struct bytes *b, const char *arch, const struct key *k)
{
    char name[96];

    snprintf(name, sizeof(name), "%s.%s", arch, k->name);
    if (k->type == 4)
        gguf_u32(b, name, k->whole);
    else if (k->type == 6)
        gguf_f32(b, name, k->real);
    else if (k->type == 8)
        gguf_string(b, name, k->text);
}

/* Returns how many keys it wrote. */
static uint64_t add_keys(struct bytes *b, const char *arch, const struct key *other)
{
    static const struct key usual[] = {
        {"block_count", 4, 1, 0, NULL},
        {"embedding_length", 4, HIDDEN, 0, NULL},
        {"feed_forward_length", 4, FFN, 0, NULL},
        {"attention.head_count", 4, HEADS, 0, NULL},
        {"attention.head_count_kv", 4, KV_HEADS, 0, NULL},
        {"attention.key_length", 4, HEAD_DIM, 0, NULL},
        {"attention.layer_norm_rms_epsilon", 6, 0, 1e-5f, NULL},
    };
    uint64_t n = 2;

    gguf_string(b, "general.architecture", arch);
    gguf_u32(b, "tokenizer.ggml.eos_token_id", 2);
    for (size_t i = 0; i < EK_ARRAY_LEN(usual); i++)
        if (!other || strcmp(other->name, usual[i].name) != 0) {
            put_key(b, arch, &usual[i]);
            n++;
        }
    if (other && other->type) {
        put_key(b, arch, other);
        n++;
    }
    return n;
}

static enum ek_status make_gguf(const char *arch, int t, bool tied, const struct key *other,
                                const float *factors, uint64_t n_factors, struct ek_model **out)
{
    struct gguf_writer w = {0};
    struct bytes file = {0}, keys = {0};
    uint64_t n_keys = add_keys(&keys, arch, other);
    const uint64_t dims[] = {n_factors, 0};
    enum ek_status st;

    add_rows(&w, "token_embd.weight", VOCAB, HIDDEN, t);
    add_layer(&w, t, strcmp(arch, "qwen2") == 0);
    add_rows(&w, "output_norm.weight", 0, HIDDEN, 0);
    if (!tied)
        add_rows(&w, "output.weight", VOCAB, HIDDEN, t);
    if (factors) {
        gguf_tensor(&w.infos, "rope_freqs.weight", dims, 0, w.data.n);
        put(&w.data, factors, n_factors * sizeof(*factors));
        gguf_align(&w.data, 32);
        w.n++;
    }
    gguf_header(&file, 3, w.n, n_keys);
    put(&file, keys.p, keys.n);
    put(&file, w.infos.p, w.infos.n);
    gguf_align(&file, 32);
    put(&file, w.data.p, w.data.n);
    st = ek_model_open(temp_write("made.gguf", file.p, file.n), NULL, out);
    put_free(&w.infos);
    put_free(&w.data);
    put_free(&keys);
    put_free(&file);
    return st;
}

static struct ek_model *open_made_gguf(const char *arch, int t, bool tied)
{
    struct ek_model *m = NULL;
    enum ek_status st = make_gguf(arch, t, tied, NULL, NULL, 0, &m);

    ck_assert_msg(st == EK_OK, "%s", ek_last_error());
    return m;
}

/* Row of the file that Hugging Face's row r lies in, for a permuted matrix. */
static uint64_t permuted(uint64_t r)
{
    uint64_t head = r / HEAD_DIM, within = r % HEAD_DIM, half = HEAD_DIM / 2;

    return head * HEAD_DIM + within % half * 2 + within / half;
}

static void check_rows(const struct ek_model *m, enum ek_role role, bool is_permuted)
{
    const struct ek_tensor *t = ek_module_tensor(&m->modules[1], role, -1);
    uint64_t rows = t->shape[0], row = t->bytes / rows;
    char *all = malloc(t->bytes), *part = malloc(t->bytes);
    size_t bad = 0;

    ck_assert_int_eq(ek_model_read(m, t, 0, t->bytes, all), EK_OK);
    for (uint64_t r = 0; r < rows; r++) {
        uint64_t from = is_permuted ? permuted(r) : r;
        bad += all[r * row] != (char)(from & 0x3f);
        bad += all[r * row + row - 1] != (char)(from & 0x3f);
    }
    ck_assert_uint_eq(bad, 0);
    /* pieces that start and end inside heads */
    ck_assert_int_eq(ek_model_read(m, t, 77 * row, 100 * row, part), EK_OK);
    ck_assert_mem_eq(part, all + 77 * row, 100 * row);
    if (is_permuted)
        ck_assert_int_eq(ek_model_read(m, t, 1, row, part), EK_EUSAGE);
    free(all);
    free(part);
}

START_TEST(llama_ggufs_are_read_in_hugging_face_s_row_order)
{
    struct ek_model *m = open_made_gguf("llama", _i, false);

    ck_assert_str_eq(m->config.architecture, "LlamaForCausalLM");
    ck_assert_int_eq(m->config.dtype, types[_i].dtype);
    ck_assert_uint_eq(m->config.vocab, VOCAB);
    ck_assert_str_eq(m->modules[1].name, "model.layers.0");
    ck_assert_str_eq(ek_module_tensor(&m->modules[1], EK_ROLE_Q, -1)->name,
                     "model.layers.0.self_attn.q_proj.weight");
    check_rows(m, EK_ROLE_Q, true);
    check_rows(m, EK_ROLE_K, true);
    check_rows(m, EK_ROLE_V, false);
    ck_assert(m->gguf && m->has_weights && !m->config.tied_head);
    ek_model_close(m);
}
END_TEST

START_TEST(qwen2_ggufs_are_not_permuted_and_have_biases)
{
    struct ek_model *m = open_made_gguf("qwen2", 3, true);

    ck_assert_str_eq(m->config.architecture, "Qwen2ForCausalLM");
    ck_assert(m->config.qkv_bias && m->config.tied_head);
    check_rows(m, EK_ROLE_Q, false);
    ck_assert_int_eq(ek_module_tensor(&m->modules[1], EK_ROLE_K_BIAS, -1)->dtype, EK_F32);
    ck_assert_int_eq(m->modules[3].tied_to, 0);
    ek_model_close(m);
}
END_TEST

START_TEST(a_directory_of_one_gguf_opens_and_truncation_is_an_error)
{
    struct ek_model *m = NULL;
    const struct ek_tensor *t;
    char *dst;

    ek_model_close(open_made_gguf("llama", 8, true));
    ck_assert_int_eq(ek_model_open(temp_path(""), NULL, &m), EK_OK);
    ck_assert_int_eq(truncate(temp_path("made.gguf"), 5000), 0);
    t = ek_module_tensor(&m->modules[1], EK_ROLE_DOWN, -1);
    dst = malloc(t->bytes);
    ck_assert_int_eq(ek_model_read(m, t, 0, t->bytes, dst), EK_EFORMAT);
    ck_assert_msg(strstr(ek_last_error(), "truncated"), "%s", ek_last_error());
    free(dst);
    ek_model_close(m);
}
END_TEST

static const struct {
    struct key key;
    enum ek_status st;
    const char *message;
} hostile_keys[] = {
    {{"block_count", 0, 0, 0, NULL}, EK_EFORMAT, "'llama.block_count' is missing"},
    {{"block_count", 4, 1025, 0, NULL}, EK_EFORMAT, "from 1 to 1024, got 1025"},
    {{"block_count", 4, 2, 0, NULL}, EK_EFORMAT, "layers.1.input_layernorm.weight' [256] is miss"},
    {{"block_count", 8, 0, 0, "1"}, EK_EFORMAT, "string where a whole number is expected"},
    {{"embedding_length", 4, 0, 0, NULL}, EK_EFORMAT, "got 0"},
    {{"embedding_length", 4, 512, 0, NULL}, EK_EFORMAT, "[3, 256] in the file, [3, 512] by"},
    {{"attention.head_count", 4, 0, 0, NULL}, EK_EFORMAT, "got 0"},
    {{"attention.head_count_kv", 4, 3, 0, NULL}, EK_EFORMAT, "no multiple of 3 key-value heads"},
    {{"attention.key_length", 4, 127, 0, NULL}, EK_EFORMAT, "127 rotary dimensions"},
    {{"attention.layer_norm_rms_epsilon", 6, 0, NAN, NULL}, EK_EFORMAT, "not a finite number"},
    {{"attention.layer_norm_rms_epsilon", 6, 0, -1, NULL}, EK_EFORMAT, "got -1"},
    {{"rope.dimension_count", 4, 64, 0, NULL}, EK_EUNSUPPORTED, "partial rope"},
    {{"rope.freq_base", 6, 0, INFINITY, NULL}, EK_EFORMAT, "not a finite number"},
    {{"rope.freq_base", 6, 0, -1e4f, NULL}, EK_EFORMAT, "got -10000"},
    {{"rope.scaling.type", 8, 0, 0, "longrope"}, EK_EUNSUPPORTED, "'longrope' is not supported"},
    {{"rope.scaling.type", 8, 0, 0, "linear"}, EK_EFORMAT, "rope.scaling.factor' is missing"},
    {{"expert_count", 4, 8, 0, NULL}, EK_EUNSUPPORTED, "experts are not supported"},
};

START_TEST(hostile_metadata_is_refused_with_the_key)
{
    struct ek_model *m = NULL;
    enum ek_status st = make_gguf("llama", 3, true, &hostile_keys[_i].key, NULL, 0, &m);

    ck_assert_msg(strstr(ek_last_error(), hostile_keys[_i].message), "%s", ek_last_error());
    ck_assert_int_eq(st, hostile_keys[_i].st);
    ck_assert_ptr_null(m);
}
END_TEST

START_TEST(rope_factors_are_read_and_held_against_the_heads)
{
    float factors[HEAD_DIM / 2], f[HEAD_DIM / 2], amplitude, scale;
    struct ek_model *m = NULL;

    for (int i = 0; i < HEAD_DIM / 2; i++)
        factors[i] = i < 32 ? 1 : 8;
    ck_assert_int_eq(make_gguf("llama", 3, true, NULL, factors, HEAD_DIM / 2, &m), EK_OK);
    ek_config_rope(&m->config, f, &amplitude, &scale);
    ck_assert_float_eq(f[0], 1);
    ck_assert_float_eq_tol(f[32], 0.01f / 8, 1e-8); /* 10000^(-64/128) */
    ek_model_close(m);
    m = NULL;
    ck_assert_int_eq(make_gguf("llama", 3, true, NULL, factors, 8, &m), EK_EFORMAT);
    ck_assert_msg(strstr(ek_last_error(), "must be 64 numbers"), "%s", ek_last_error());
    factors[5] = 0;
    ck_assert_int_eq(make_gguf("llama", 3, true, NULL, factors, HEAD_DIM / 2, &m), EK_EFORMAT);
    ck_assert_msg(strstr(ek_last_error(), "rope_freqs.weight[5] is 0"), "%s", ek_last_error());
}
END_TEST

START_TEST(other_architectures_of_gguf_are_refused_by_name)
{
    struct bytes b = {0};
    struct ek_model *m = NULL;

    gguf_header(&b, 3, 0, 1);
    gguf_string(&b, "general.architecture", "mamba");
    ck_assert_int_eq(ek_model_open(temp_write("m.gguf", b.p, b.n), NULL, &m), EK_EUNSUPPORTED);
    ck_assert_msg(strstr(ek_last_error(), "'mamba' is not supported"), "%s", ek_last_error());
    put_free(&b);
}
END_TEST

/* ---- Weights from a seed ----------------------------------------------------------------------*/

static struct ek_tensor make_tensor(enum ek_dtype dtype, const char *name, enum ek_role role,
                                    uint64_t rows, uint64_t cols)
{
    struct ek_tensor t = {.name = name, .role = role, .index = -1, .dtype = dtype, .file = -1};
    size_t bytes;

    t.n_dims = rows ? 2 : 1;
    t.shape[0] = rows ? rows : cols;
    t.shape[1] = rows ? cols : 0;
    ck_assert_int_eq(ek_dtype_bytes(dtype, (rows ? rows : 1) * cols, &bytes), EK_OK);
    t.bytes = bytes;
    return t;
}

static void moments_of(const struct ek_tensor *t, uint64_t seed, bool routed, double *mean,
                       double *deviation)
{
    size_t n = t->shape[0] * (t->n_dims == 2 ? t->shape[1] : 1);
    unsigned char *raw = malloc(t->bytes);
    float *values = malloc(n * sizeof(*values));
    double sum = 0, squares = 0;
    size_t bad = 0; /* an assertion a value would be slow */

    ck_assert_int_eq(ek_synthetic_read(seed, routed, t, 0, t->bytes, raw), EK_OK);
    ck_assert_int_eq(ek_dequantize(t->dtype, raw, values, n), EK_OK);
    for (size_t i = 0; i < n; i++) {
        bad += !isfinite(values[i]);
        sum += values[i];
        squares += (double)values[i] * values[i];
    }
    ck_assert_uint_eq(bad, 0);
    *mean = sum / (double)n;
    *deviation = sqrt(squares / (double)n - *mean * *mean);
    free(raw);
    free(values);
}

static void moments(const struct ek_tensor *t, uint64_t seed, double *mean, double *deviation)
{
    moments_of(t, seed, false, mean, deviation);
}

START_TEST(seeded_matrices_keep_activations_of_order_one)
{
    enum ek_dtype dtype = types[_i].dtype;
    static const uint64_t widths[] = {256, 4096, 29696};
    double mean, deviation;

    for (size_t i = 0; i < EK_ARRAY_LEN(widths); i++) {
        struct ek_tensor t = make_tensor(dtype, "m.weight", EK_ROLE_UP, 32, widths[i]);
        moments(&t, 1, &mean, &deviation);
        ck_assert_double_eq_tol(deviation * sqrt((double)widths[i]), 1, 0.08);
        ck_assert_double_eq_tol(mean * sqrt((double)widths[i]), 0, 0.06);
    }
}
END_TEST

START_TEST(seeded_norms_are_near_one_and_biases_small)
{
    struct ek_tensor norm = make_tensor(EK_BF16, "x.input_layernorm.weight", EK_ROLE_NORM, 0, 4096);
    struct ek_tensor bias = make_tensor(EK_F32, "x.q_proj.bias", EK_ROLE_Q_BIAS, 0, 4096);
    double mean, deviation;

    moments(&norm, 1, &mean, &deviation);
    ck_assert_double_eq_tol(mean, 1, 0.01);
    ck_assert_double_eq_tol(deviation, 0.05, 0.01);
    moments(&bias, 1, &mean, &deviation);
    ck_assert_double_eq_tol(mean, 0, 0.005);
    ck_assert_double_eq_tol(deviation, 0.02, 0.004);
}
END_TEST

START_TEST(tokens_stand_out_of_what_layers_add_in_a_model_with_routers)
{
    struct ek_tensor embed = make_tensor(EK_F32, "embed.weight", EK_ROLE_EMBED, 64, 768),
                     down = make_tensor(EK_F32, "down.weight", EK_ROLE_EXPERT_DOWN, 64, 768);
    double mean, deviation;

    moments_of(&embed, 1, true, &mean, &deviation);
    ck_assert_double_eq_tol(deviation, 1, 0.05);
    moments_of(&embed, 1, false, &mean, &deviation);
    ck_assert_double_eq_tol(deviation, 1 / sqrt(768), 0.05 / sqrt(768));
    moments_of(&down, 1, true, &mean, &deviation);
    ck_assert_double_eq_tol(deviation, 0.125 / sqrt(768), 0.01 / sqrt(768));
}
END_TEST

START_TEST(seeded_weights_are_the_same_whatever_the_pieces)
{
    struct ek_tensor t = make_tensor(types[_i].dtype, "a.weight", EK_ROLE_UP, 5, 768);
    char *whole = malloc(t.bytes), *pieces = malloc(t.bytes);
    uint64_t state = 7;

    ck_assert_int_eq(ek_synthetic_read(1, false, &t, 0, t.bytes, whole), EK_OK);
    for (uint64_t at = 0, n; at < t.bytes; at += n) {
        n = 1 + ek_random_u64(&state) % 700;
        n = n < t.bytes - at ? n : t.bytes - at;
        ck_assert_int_eq(ek_synthetic_read(1, false, &t, at, n, pieces + at), EK_OK);
    }
    ck_assert_mem_eq(whole, pieces, t.bytes);
    ck_assert_int_eq(ek_synthetic_read(2, false, &t, 0, t.bytes, pieces), EK_OK);
    ck_assert_mem_ne(whole, pieces, t.bytes); /* another seed */
    t.name = "b.weight";
    ck_assert_int_eq(ek_synthetic_read(1, false, &t, 0, t.bytes, pieces), EK_OK);
    ck_assert_mem_ne(whole, pieces, t.bytes); /* another tensor */
    free(whole);
    free(pieces);
}
END_TEST

/* A configuration alone, written out and opened again. */
START_TEST(written_weights_are_the_models)
{
    const struct ek_model_options seeded = {.seed = 3, .synthetic = true};
    const atomic_bool stop = true;
    struct ek_model *m = open_fixture("reference/llama-gqa-tied/config.json", &seeded), *again;
    char from[512], *folder = ek_strdup(temp_path("")), *text;
    size_t n;

    ck_assert_int_eq(ek_model_write(m, temp_path("model.safetensors"), false, NULL), EK_OK);
    ck_assert_int_eq(ek_model_write(m, temp_path("model.safetensors"), false, NULL), EK_EUSAGE);
    ck_assert_int_eq(ek_model_write(m, temp_path("stopped"), false, &stop), EK_EINTR);
    ck_assert(!ek_file_exists(temp_path("stopped")));
    ck_assert_int_eq(ek_file_read(fixture("reference/llama-gqa-tied/config.json", from), 1 << 20,
                                  &text, &n),
                     EK_OK);
    temp_write("config.json", text, n);
    ck_assert_msg(ek_model_open(folder, NULL, &again) == EK_OK, "%s", ek_last_error());
    ck_assert(again->has_weights);
    ck_assert_uint_eq(again->n_modules, m->n_modules);
    for (size_t i = 0; i < m->n_modules; i++)
        for (size_t j = 0; j < m->modules[i].n_tensors; j++) {
            const struct ek_tensor *t = &m->modules[i].tensors[j];
            char *a = malloc(t->bytes), *b = malloc(t->bytes);
            ck_assert_int_eq(ek_model_read(m, t, 0, t->bytes, a), EK_OK);
            ck_assert_int_eq(ek_model_read(again, &again->modules[i].tensors[j], 0, t->bytes, b),
                             EK_OK);
            ck_assert_mem_eq(a, b, t->bytes);
            free(a);
            free(b);
        }
    ek_model_close(again);
    ek_model_close(m);
    free(text);
    free(folder);
}
END_TEST

/* The generator is part of the formats: a plan's bench on seeded weights must be repeatable. */
START_TEST(seeded_weights_never_change)
{
    static const struct {
        enum ek_dtype dtype;
        const char *hash;
    } known[] = {
        {EK_F32, "e7f52dc830404a6b07006f3c1acbc2c6"},
        {EK_BF16, "07e1c158445ff736e008dcb0ffff8b8f"},
        {EK_Q4_K, "afb958ddbfed82ea92f0b9fe4a05d7dc"},
        {EK_Q8_0, "3c31f30cccdd01ae28af5fee5a9ccf1c"},
    };
    char hash[33];

    for (size_t i = 0; i < EK_ARRAY_LEN(known); i++) {
        struct ek_tensor t = make_tensor(known[i].dtype, "a.weight", EK_ROLE_UP, 4, 512);
        char *raw = malloc(t.bytes);
        ck_assert_int_eq(ek_synthetic_read(1, false, &t, 0, t.bytes, raw), EK_OK);
        ek_hash_hex(raw, t.bytes, hash);
        ck_assert_str_eq(hash, known[i].hash);
        free(raw);
    }
}
END_TEST

START_TEST(seeded_weights_of_other_types_are_refused)
{
    struct ek_tensor t = make_tensor(EK_F8_E4M3, "a.weight", EK_ROLE_UP, 4, 512);
    char dst[4];

    ck_assert_int_eq(ek_synthetic_read(1, false, &t, 0, 4, dst), EK_EUNSUPPORTED);
    ck_assert_msg(strstr(ek_last_error(), "F8_E4M3"), "%s", ek_last_error());
}
END_TEST

int main(void)
{
    Suite *s = suite_create("weights");
    TCase *dirs = tcase_create("directories"), *gguf = tcase_create("gguf");
    TCase *seeded = tcase_create("seeded");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(dirs, temp_begin, temp_end);
    tcase_add_test(dirs, a_sharded_checkpoint_is_read_tensor_by_tensor);
    tcase_add_test(dirs, a_configuration_alone_is_the_same_model_without_weights);
    tcase_add_test(dirs, every_reference_fixture_opens_with_all_its_tensors);
    tcase_add_loop_test(dirs, tensors_are_held_against_the_configuration, 0,
                        EK_ARRAY_LEN(mismatches));
    tcase_add_test(dirs, paths_that_are_no_model_are_refused);
    tcase_add_loop_test(dirs, running_out_of_memory_is_an_error, 0, 60);
    tcase_add_checked_fixture(gguf, temp_begin, temp_end);
    tcase_add_loop_test(gguf, llama_ggufs_are_read_in_hugging_face_s_row_order, 0,
                        EK_ARRAY_LEN(types));
    tcase_add_test(gguf, qwen2_ggufs_are_not_permuted_and_have_biases);
    tcase_add_test(gguf, a_directory_of_one_gguf_opens_and_truncation_is_an_error);
    tcase_add_loop_test(gguf, hostile_metadata_is_refused_with_the_key, 0,
                        EK_ARRAY_LEN(hostile_keys));
    tcase_add_test(gguf, rope_factors_are_read_and_held_against_the_heads);
    tcase_add_test(gguf, other_architectures_of_gguf_are_refused_by_name);
    tcase_add_loop_test(seeded, seeded_matrices_keep_activations_of_order_one, 0,
                        EK_ARRAY_LEN(types));
    tcase_add_test(seeded, seeded_norms_are_near_one_and_biases_small);
    tcase_add_test(seeded, tokens_stand_out_of_what_layers_add_in_a_model_with_routers);
    tcase_add_loop_test(seeded, seeded_weights_are_the_same_whatever_the_pieces, 0,
                        EK_ARRAY_LEN(types));
    tcase_add_test(dirs, written_weights_are_the_models);
    tcase_add_test(seeded, seeded_weights_never_change);
    tcase_add_test(seeded, seeded_weights_of_other_types_are_refused);
    suite_add_tcase(s, dirs);
    suite_add_tcase(s, gguf);
    suite_add_tcase(s, seeded);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
