/* SPDX-License-Identifier: Apache-2.0
 *
 * Quantised checkpoints: packed here number by number, read back bit-equal to the formulas of
 * docs/models.md, and run with the logits of the same weights decoded beforehand.
 */
#include "kernels/kernels.h"
#include "tests/runtime/support.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_ENTRIES 96

struct layout {
    const char *config;          /* of quantization_config */
    char method;                 /* g: GPTQ, a: AWQ, f: FP8 */
    uint32_t bits, group, block; /* group 0: the row; FP8: block outputs by group inputs */
    int stored_less;             /* GPTQ v1: one less than the zero is stored */
    bool shuffled, bf16;
    const char *types[2]; /* of rows of 128 and 96 */
};

static const struct layout layouts[] = {
    {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"desc_act\":false}",
     'g',
     4,
     32,
     0,
     1,
     false,
     false,
     {"G4_32", "G4_32"}},
    {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128,\"checkpoint_format\":\"gptq_v2\"}",
     'g',
     4,
     128,
     0,
     0,
     false,
     false,
     {"G4_128", "G4_32"}},
    {"{\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":64,\"checkpoint_format\":\"gptq\"}",
     'g',
     8,
     64,
     0,
     1,
     false,
     true,
     {"G8_64", "G8_32"}},
    {"{\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":-1,\"checkpoint_format\":\"gptq_v2\"}",
     'g',
     8,
     0,
     0,
     0,
     false,
     false,
     {"G8_128", "G8_32"}},
    {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"desc_act\":true}",
     'g',
     4,
     32,
     0,
     1,
     true,
     false,
     {"G4_32", "G4_32"}},
    {"{\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":64,\"desc_act\":true}",
     'g',
     8,
     64,
     0,
     1,
     true,
     true,
     {"G8_64", "G8_32"}},
    {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":48,\"desc_act\":true}",
     'g',
     4,
     48,
     0,
     1,
     true,
     false,
     {"F16", "F16"}},
    {"{\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":24,\"desc_act\":false}",
     'g',
     8,
     24,
     0,
     1,
     false,
     true,
     {"BF16", "BF16"}},
    {"{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32,\"version\":\"gemm\"}",
     'a',
     4,
     32,
     0,
     0,
     false,
     false,
     {"G4_32", "G4_32"}},
    {"{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":128,\"zero_point\":true}",
     'a',
     4,
     128,
     0,
     0,
     false,
     false,
     {"G4_128", "G4_32"}},
    {"{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\",\"weight_block_size\":[128,128]}",
     'f',
     8,
     128,
     128,
     0,
     false,
     false,
     {"B8_128", "B8_32"}},
    {"{\"quant_method\":\"fp8\",\"weight_block_size\":[48,32]}",
     'f',
     8,
     32,
     48,
     0,
     false,
     false,
     {"B8_32", "B8_32"}},
    {"{\"quant_method\":\"fp8\",\"weight_block_size\":[20,20]}",
     'f',
     8,
     20,
     20,
     0,
     false,
     false,
     {"F32", "F32"}},
};

/* ---- Two checkpoints of the same weights ------------------------------------------------------*/

struct file {
    struct ek_safetensors_entry entries[MAX_ENTRIES];
    const void *data[MAX_ENTRIES];
    size_t n;
};

static void add(struct file *f, const char *name, enum ek_dtype dtype, uint64_t rows, uint64_t cols,
                const void *data)
{
    struct ek_safetensors_entry *e = &f->entries[f->n];
    size_t bytes;

    ck_assert_uint_lt(f->n, MAX_ENTRIES);
    *e = (struct ek_safetensors_entry){
        .name = ek_strdup(name), .dtype = dtype, .n_dims = cols ? 2 : 1, .shape = {rows, cols}};
    ck_ok(ek_dtype_bytes(dtype, rows * (cols ? cols : 1), &bytes));
    e->bytes = bytes;
    f->data[f->n++] = data;
}

static void file_free(struct file *f)
{
    for (size_t i = 0; i < f->n; i++) {
        free((char *)(uintptr_t)f->entries[i].name);
        free((void *)(uintptr_t)f->data[i]);
    }
    free(f);
}

static uint32_t draw(void)
{
    static uint64_t state = 88172645463325252u;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

/* Number i of a list of fields of `bits`, LSB first. */
static void set_field(uint32_t *words, uint64_t i, uint32_t bits, uint32_t v)
{
    words[i * bits / 32] |= v << (i * bits % 32);
}

static void add_part(struct file *f, const char *stem, const char *suffix, enum ek_dtype dtype,
                     uint64_t rows, uint64_t cols, const void *data)
{
    char name[160];

    snprintf(name, sizeof(name), "%s%s", stem, suffix);
    add(f, name, dtype, rows, cols, data);
}

static uint16_t half_of(const struct layout *l, float v)
{
    return l->bf16 ? ek_f32_to_bf16(v) : ek_f32_to_f16(v);
}

static float value_of(const struct layout *l, uint16_t v)
{
    return l->bf16 ? ek_bf16_to_f32(v) : ek_f16_to_f32(v);
}

static void add_integers(struct file *f, const char *stem, const struct layout *l, uint64_t out,
                         uint64_t in, float *w)
{
    static const unsigned order[8] = {0, 2, 4, 6, 1, 3, 5, 7}; /* AWQ: nibble -> column */
    uint64_t group = l->group ? l->group : in, groups = (in + group - 1) / group;
    uint32_t per = 32 / l->bits, most = (1u << l->bits) - 1;
    uint32_t *q = ek_calloc(in * out / per, 4), *z = ek_calloc(groups * out / per, 4);
    uint16_t *s = ek_calloc(groups * out, 2);
    int32_t *g_idx = ek_calloc(in, 4);
    uint8_t *zero = ek_calloc(groups, out);

    for (uint64_t i = 0; i < in; i++)
        g_idx[i] = (int32_t)((l->shuffled ? (i * 37 + 5) % in : i) / group);
    for (uint64_t g = 0; g < groups; g++)
        for (uint64_t c = 0; c < out; c++) {
            uint64_t at = l->method == 'a' ? c / 8 * 8 + order[c % 8] : c;
            uint64_t column = l->method == 'a' ? at : c;
            uint32_t v = draw() & most;
            zero[g * out + column] = (uint8_t)v;
            set_field(z, g * out + c, l->bits, (v - (uint32_t)l->stored_less) & most);
            s[g * out + column] =
                half_of(l, (0.5f + (float)(draw() % 1000) / 1000) * 0.3f / (float)most);
        }
    for (uint64_t i = 0; i < in; i++)
        for (uint64_t c = 0; c < out; c++) {
            uint64_t column = l->method == 'a' ? c / 8 * 8 + order[c % 8] : c;
            uint64_t at = (uint64_t)g_idx[i] * out + column;
            uint32_t v = draw() & most;
            if (l->method == 'a')
                set_field(q, i * out + c, 4, v);
            else
                q[i / per * out + c] |= v << (i % per * l->bits);
            w[column * in + i] =
                value_of(l, half_of(l, value_of(l, s[at]) * (float)((int)v - (int)zero[at])));
        }
    free(zero);
    add_part(f, stem, ".qweight", EK_I32, l->method == 'a' ? in : in / per,
             l->method == 'a' ? out / per : out, q);
    add_part(f, stem, ".qzeros", EK_I32, groups, out / per, z);
    add_part(f, stem, ".scales", l->bf16 ? EK_BF16 : EK_F16, groups, out, s);
    if (l->method == 'g')
        add_part(f, stem, ".g_idx", EK_I32, in, 0, g_idx);
    else
        free(g_idx);
}

static void add_fp8(struct file *f, const char *stem, const struct layout *l, uint64_t out,
                    uint64_t in, float *w)
{
    uint64_t rows = (out + l->block - 1) / l->block, cols = (in + l->group - 1) / l->group;
    uint8_t *q = ek_calloc(out, in);
    float *s = ek_calloc(rows * cols, 4);

    for (uint64_t i = 0; i < rows * cols; i++)
        s[i] = 1e-3f * (float)(1 + draw() % 1000) / 300;
    for (uint64_t i = 0; i < out * in; i++) {
        q[i] = (uint8_t)(draw() & 0xdf); /* below 2 * 1.875 ... no NaN */
        ck_ok(ek_dequantize(EK_F8_E4M3, &q[i], &w[i], 1));
        w[i] *= s[i / in / l->block * cols + i % in / l->group];
    }
    add_part(f, stem, ".weight", EK_F8_E4M3, out, in, q);
    add_part(f, stem, ".weight_scale_inv", EK_F32, rows, cols, s);
}

static bool is_linear(const char *name)
{
    return strstr(name, "_proj.weight") != NULL;
}

/* Tensors of a small Llama, packed into `packed` and as F32 into `plain`. */
static void make_files(const struct layout *l, const struct ek_model *m, struct file *packed,
                       struct file *plain)
{
    for (size_t i = 0; i < m->n_modules; i++)
        for (size_t j = 0; j < m->modules[i].n_tensors; j++) {
            const struct ek_tensor *t = &m->modules[i].tensors[j];
            uint64_t out = t->shape[0], in = t->n_dims == 2 ? t->shape[1] : 1;
            float *w = ek_calloc(out * in, 4), *copy;
            char stem[128];
            add(plain, t->name, EK_F32, out, t->n_dims == 2 ? in : 0, w);
            if (is_linear(t->name)) {
                snprintf(stem, sizeof(stem), "%.*s", (int)strlen(t->name) - 7, t->name);
                (l->method == 'f' ? add_fp8 : add_integers)(packed, stem, l, out, in, w);
                continue;
            }
            for (uint64_t k = 0; k < out * in; k++)
                w[k] = (float)(draw() % 2001) / 1000 - (t->n_dims == 2 ? 1.0f : 0.0f);
            copy = ek_calloc(out * in, 4);
            memcpy(copy, w, out * in * 4);
            add(packed, t->name, EK_F32, out, t->n_dims == 2 ? in : 0, copy);
        }
}

static char folder[2][32]; /* packed, plain */

static const char *in_folder(int i, const char *name)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/%s", folder[i], name);
    return path;
}

static void begin(void)
{
    for (int i = 0; i < 2; i++) {
        strcpy(folder[i], "check-quant-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(folder[i]));
    }
}

static void end(void)
{
    static const char *const names[] = {"config.json", "model.safetensors", "quantize_config.json"};

    for (int i = 0; i < 2; i++) {
        for (size_t k = 0; k < EK_ARRAY_LEN(names); k++)
            unlink(in_folder(i, names[k]));
        rmdir(folder[i]);
    }
}

static void write_text(const char *path, const char *text)
{
    ck_ok(ek_file_write(path, text, strlen(text), true));
}

static void write_config(int i, const char *quantization)
{
    char *text = ek_asprintf(
        "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 128,"
        "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"
        "\"intermediate_size\": 96, \"vocab_size\": 61, \"max_position_embeddings\": 512,"
        "\"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"tie_word_embeddings\": false,"
        "\"torch_dtype\": \"float32\"%s%s}\n",
        quantization ? ", \"quantization_config\": " : "", quantization ? quantization : "");

    write_text(in_folder(i, "config.json"), text);
    free(text);
}

static struct ek_model *open_folder(int i, uint32_t quantize)
{
    struct ek_model_options o = EK_MODEL_OPTIONS_INIT;
    struct ek_model *m = NULL;

    o.quantize = quantize;
    ck_ok(ek_model_open(folder[i], &o, &m));
    return m;
}

/* Opens both; to be closed. */
static void make_models(const struct layout *l, struct ek_model *m[2])
{
    struct file *files[2];
    struct ek_model *empty;

    write_config(1, NULL);
    empty = open_folder(1, 0);
    for (int i = 0; i < 2; i++)
        files[i] = ek_calloc(1, sizeof(*files[i]));
    make_files(l, empty, files[0], files[1]);
    ek_model_close(empty);
    write_config(0, l->config);
    for (int i = 0; i < 2; i++) {
        ck_ok(ek_safetensors_write(in_folder(i, "model.safetensors"), files[i]->entries,
                                   files[i]->data, files[i]->n, NULL, true));
        file_free(files[i]);
        m[i] = open_folder(i, 0);
    }
}

/* ---- Weights ----------------------------------------------------------------------------------*/

/* Columns of rows of w to the places of their inputs. */
static void restore_order(const struct ek_tensor *t, float *w, uint64_t rows)
{
    uint64_t cols = t->shape[1];
    float *row = ek_calloc(cols, sizeof(*row));

    for (uint64_t r = 0; r < rows; r++, w += cols) {
        memcpy(row, w, cols * sizeof(*row));
        for (uint64_t c = 0; c < cols; c++)
            w[t->order[c]] = row[c];
    }
    free(row);
}

static float *read_rows(const struct ek_model *m, const struct ek_tensor *t, uint64_t row,
                        uint64_t rows)
{
    size_t row_bytes = t->bytes / t->shape[0], n = rows * (t->n_dims == 2 ? t->shape[1] : 1);
    char *raw = ek_calloc(rows, row_bytes);
    float *w = ek_calloc(n, sizeof(*w));

    ck_ok(ek_model_read(m, t, row * row_bytes, rows * row_bytes, raw));
    ck_ok(ek_dequantize(t->dtype, raw, w, n));
    free(raw);
    if (t->order != NULL)
        restore_order(t, w, rows);
    return w;
}

static void same_rows(struct ek_model *const m[2], const struct ek_tensor *a,
                      const struct ek_tensor *b, uint64_t row, uint64_t rows)
{
    float *x = read_rows(m[0], a, row, rows), *y = read_rows(m[1], b, row, rows);

    ck_assert_msg(memcmp(x, y, rows * (a->n_dims == 2 ? a->shape[1] : 1) * sizeof(*x)) == 0,
                  "%s as %s, rows %llu and %llu more", a->name, ek_dtype_name(a->dtype),
                  (unsigned long long)row, (unsigned long long)rows);
    free(x);
    free(y);
}

START_TEST(packed_weights_are_bit_equal_to_their_formula)
{
    const struct layout *l = &layouts[_i];
    struct ek_model *m[2];

    make_models(l, m);
    for (size_t i = 0; i < m[0]->n_modules; i++)
        for (size_t j = 0; j < m[0]->modules[i].n_tensors; j++) {
            const struct ek_tensor *a = &m[0]->modules[i].tensors[j],
                                   *b = &m[1]->modules[i].tensors[j];
            ck_assert_str_eq(a->name, b->name);
            same_rows(m, a, b, 0, a->shape[0]);
            if (!is_linear(a->name))
                continue;
            same_rows(m, a, b, 13, 1);
            same_rows(m, a, b, 5, 22);
            ck_assert_str_eq(ek_dtype_name(a->dtype), l->types[a->shape[1] == 96]);
            ck_assert(!a->order == !(l->shuffled && a->dtype >= EK_G4_32));
            ck_assert_int_eq(ek_model_read(m[0], a, 1, a->bytes / a->shape[0], NULL), EK_EUSAGE);
        }
    if (strcmp(l->types[0], "F32") != 0)
        ck_assert_str_ne(m[0]->hash, m[1]->hash);
    ek_model_close(m[0]);
    ek_model_close(m[1]);
}
END_TEST

/* ---- Logits -----------------------------------------------------------------------------------*/

static float *logits_of(const struct ek_model *m, const int32_t *ids, size_t n)
{
    struct ek_plan *p = one_device_plan(m);
    struct ek_engine *e = open_engine(m, p);
    float *logits = all_logits(e, ids, n);

    ek_engine_close(e);
    ek_plan_free(p);
    return logits;
}

enum { TOKENS = 21 };

START_TEST(a_packed_checkpoint_has_the_logits_of_its_decoded_weights)
{
    struct ek_model *m[2];
    float *got, *want;
    int32_t *ids;

    make_models(&layouts[_i], m);
    ids = random_ids(m[0], TOKENS, 3);
    got = logits_of(m[0], ids, TOKENS);
    want = logits_of(m[1], ids, TOKENS);
    ck_assert_double_gt(largest(want, TOKENS * 61), 0.1);
    ck_assert_double_le(largest_difference(got, want, TOKENS * 61),
                        1e-5 * largest(want, TOKENS * 61));
    free(ids);
    free(got);
    free(want);
    ek_model_close(m[0]);
    ek_model_close(m[1]);
}
END_TEST

/* ---- Quantised at load ------------------------------------------------------------------------*/

START_TEST(weights_quantised_at_load_are_near_and_small)
{
    uint32_t bits = _i & 1 ? 8 : 4, ends = _i & 2 ? EK_QUANTIZE_ENDS : 0;
    struct ek_model *m[2], *q, *none = NULL;
    float *got, *want;
    int32_t *ids;

    make_models(&layouts[3], m);
    q = open_folder(1, bits | ends);
    ck_assert_str_ne(q->hash, m[1]->hash);
    ck_assert_int_eq(ek_model_open(folder[0], &(struct ek_model_options){.quantize = bits}, &none),
                     EK_EUNSUPPORTED); /* it is already */
    ck_assert_int_eq(ek_model_open(folder[1], &(struct ek_model_options){.quantize = 3}, &none),
                     EK_EUSAGE);
    for (size_t i = 0; i < q->n_modules; i++)
        for (size_t j = 0; j < q->modules[i].n_tensors; j++) {
            const struct ek_tensor *t = &q->modules[i].tensors[j];
            const struct ek_tensor *s = &m[1]->modules[i].tensors[j];
            bool small = is_linear(t->name) ||
                         (ends && (t->role == EK_ROLE_EMBED || t->role == EK_ROLE_HEAD));
            ck_assert_int_eq(t->dtype >= EK_G4_32, small);
            got = read_rows(q, t, 3, 7);
            want = read_rows(m[1], s, 3, 7);
            ck_assert_double_le(
                largest_difference(got, want, 7 * (t->n_dims == 2 ? t->shape[1] : 1)),
                small ? largest(want, 7 * t->shape[1]) * (bits == 4 ? 0.08 : 0.005) : 0);
            free(got);
            free(want);
        }
    ids = random_ids(q, TOKENS, 3);
    got = logits_of(q, ids, TOKENS);
    want = logits_of(m[1], ids, TOKENS);
    ck_assert_double_le(largest_difference(got, want, TOKENS * 61),
                        (bits == 4 ? 0.5 : 0.1) * largest(want, TOKENS * 61));
    free(ids);
    free(got);
    free(want);
    ek_model_close(q);
    ek_model_close(m[0]);
    ek_model_close(m[1]);
}
END_TEST

START_TEST(a_configuration_alone_has_the_sizes_of_the_packed_weights)
{
    struct ek_model *m[2], *alone = NULL;
    struct ek_model_options o = {.seed = 5, .synthetic = true};

    make_models(&layouts[_i], m);
    ck_ok(ek_model_open(in_folder(0, "config.json"), NULL, &alone));
    if (m[0]->modules[1].tensors[1].dtype >= EK_G4_32)
        ck_assert_str_eq(alone->hash, m[0]->hash);
    ek_model_close(alone);
    ck_ok(ek_model_open(folder[0], &o, &alone));
    ck_assert_str_eq(alone->hash, m[0]->hash);
    free(read_rows(alone, &alone->modules[1].tensors[1], 2, 3));
    ek_model_close(alone);
    ek_model_close(m[0]);
    ek_model_close(m[1]);
}
END_TEST

/* ---- Refused ----------------------------------------------------------------------------------*/

static const struct {
    const char *config;
    enum ek_status st;
    const char *message;
} refused[] = {
    {"{}", EK_EUNSUPPORTED, "without quant_method"},
    {"[]", EK_EFORMAT, "must be an object"},
    {"{\"quant_method\":\"bitsandbytes\"}", EK_EUNSUPPORTED, "'bitsandbytes'"},
    {"{\"quant_method\":\"compressed-tensors\"}", EK_EUNSUPPORTED, "'compressed-tensors'"},
    {"{\"quant_method\":\"gptq\",\"bits\":3,\"group_size\":32}", EK_EUNSUPPORTED, "bits 3"},
    {"{\"quant_method\":\"gptq\",\"bits\":4}", EK_EFORMAT, "group_size"},
    {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":0}", EK_EFORMAT, "group_size"},
    {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"checkpoint_format\":\"gptq_p\"}",
     EK_EUNSUPPORTED, "checkpoint_format 'gptq_p'"},
    {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"checkpoint_format\":\"marlin\"}",
     EK_EUNSUPPORTED, "checkpoint_format 'marlin'"},
    {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"is_marlin_format\":true}",
     EK_EUNSUPPORTED, "is_marlin_format"},
    {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"dynamic\":{\"a\":{}}}",
     EK_EUNSUPPORTED, "dynamic"},
    {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":64}", EK_EFORMAT, ".qzeros"},
    {"{\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":32}", EK_EFORMAT, ".qweight"},
    {"{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32,\"version\":\"gemv_fast\"}",
     EK_EUNSUPPORTED, "version 'gemv_fast'"},
    {"{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32,\"zero_point\":false}",
     EK_EUNSUPPORTED, "zero_point"},
    {"{\"quant_method\":\"awq\",\"bits\":8,\"group_size\":32}", EK_EUNSUPPORTED, "bits 8"},
    {"{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32}", EK_EFORMAT, ".qweight"},
    {"{\"quant_method\":\"fp8\"}", EK_EUNSUPPORTED, "weight_block_size"},
    {"{\"quant_method\":\"fp8\",\"weight_block_size\":[0,1]}", EK_EFORMAT, "weight_block_size"},
    {"{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\",\"weight_block_size\":[1,1]}", EK_EUNSUPPORTED,
     "fmt 'e5m2'"},
    {"{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}", EK_EFORMAT, "is missing"},
};

START_TEST(other_layouts_are_refused_by_name)
{
    struct ek_model *m[2], *got = NULL;

    make_models(&layouts[0], m);
    ek_model_close(m[0]);
    ek_model_close(m[1]);
    for (size_t i = 0; i < EK_ARRAY_LEN(refused); i++) {
        write_config(0, refused[i].config);
        ck_assert_msg(ek_model_open(folder[0], NULL, &got) == refused[i].st, "%s: %s",
                      refused[i].config, ek_last_error());
        ck_assert_msg(strstr(ek_last_error(), refused[i].message) != NULL, "%s: %s",
                      refused[i].config, ek_last_error());
    }
    write_config(0, NULL);
    write_text(in_folder(0, "quantize_config.json"), "{\"bits\":4,\"group_size\":32}");
    ck_ok(ek_model_open(folder[0], NULL, &got)); /* as GPTQ's first savers wrote it */
    ek_model_close(got);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("quant");
    TCase *t = tcase_create("quant");
    int n = (int)EK_ARRAY_LEN(layouts), failed;
    SRunner *r;

    tcase_add_checked_fixture(t, begin, end);
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, packed_weights_are_bit_equal_to_their_formula, 0, n);
    tcase_add_loop_test(t, a_packed_checkpoint_has_the_logits_of_its_decoded_weights, 0, n);
    tcase_add_loop_test(t, weights_quantised_at_load_are_near_and_small, 0, 4);
    tcase_add_loop_test(t, a_configuration_alone_has_the_sizes_of_the_packed_weights, 0, n);
    tcase_add_test(t, other_layouts_are_refused_by_name);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
