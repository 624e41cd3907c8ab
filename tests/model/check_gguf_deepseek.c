/* SPDX-License-Identifier: Apache-2.0
 *
 * DeepSeek-V2 in GGUF files (llama.cpp's deepseek2), written here from the fixtures' checkpoints:
 * the same configuration and the same weights come back, experts from one tensor, kv_b_proj from
 * one or from two.
 */
#define _GNU_SOURCE /* memmem */
#include "model/internal.h"
#include "tests/model/files.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct writer {
    const struct ek_model *m;
    struct bytes tensors, data;
    uint64_t n;
};

static const struct {
    enum ek_role role;
    const char *name;
} names[] = {
    {EK_ROLE_NORM, "attn_norm.weight"},
    {EK_ROLE_Q, "attn_q.weight"},
    {EK_ROLE_Q_A, "attn_q_a.weight"},
    {EK_ROLE_Q_A_NORM, "attn_q_a_norm.weight"},
    {EK_ROLE_Q_B, "attn_q_b.weight"},
    {EK_ROLE_KV_A, "attn_kv_a_mqa.weight"},
    {EK_ROLE_KV_A_NORM, "attn_kv_a_norm.weight"},
    {EK_ROLE_KV_B, "attn_kv_b.weight"},
    {EK_ROLE_O, "attn_output.weight"},
    {EK_ROLE_NORM2, "ffn_norm.weight"},
    {EK_ROLE_GATE, "ffn_gate.weight"},
    {EK_ROLE_UP, "ffn_up.weight"},
    {EK_ROLE_DOWN, "ffn_down.weight"},
    {EK_ROLE_ROUTER, "ffn_gate_inp.weight"},
    {EK_ROLE_EXPERT_GATE, "ffn_gate_exps.weight"},
    {EK_ROLE_EXPERT_UP, "ffn_up_exps.weight"},
    {EK_ROLE_EXPERT_DOWN, "ffn_down_exps.weight"},
    {EK_ROLE_SHARED_GATE, "ffn_gate_shexp.weight"},
    {EK_ROLE_SHARED_UP, "ffn_up_shexp.weight"},
    {EK_ROLE_SHARED_DOWN, "ffn_down_shexp.weight"},
};

static size_t n_values(const struct ek_tensor *t)
{
    return t->shape[0] * (t->n_dims == 2 ? t->shape[1] : 1);
}

static float *values_of(const struct ek_model *m, const struct ek_tensor *t)
{
    float *v = ek_calloc(n_values(t), sizeof(*v));
    char *raw = ek_calloc(t->bytes, 1);

    ck_assert(v && raw);
    ck_assert_msg(ek_model_read(m, t, 0, t->bytes, raw) == EK_OK, "%s", ek_last_error());
    ck_assert_int_eq(ek_dequantize(t->dtype, raw, v, n_values(t)), EK_OK);
    free(raw);
    return v;
}

/* dims fastest first */
static void begin_tensor(struct writer *w, const char *name, uint64_t a, uint64_t b, uint64_t c)
{
    const uint64_t dims[4] = {a, b, c};

    gguf_align(&w->data, 32);
    gguf_tensor(&w->tensors, name, dims, 0, w->data.n);
    w->n++;
}

static void put_values(struct writer *w, const struct ek_tensor *t)
{
    float *v = values_of(w->m, t);

    put(&w->data, v, n_values(t) * sizeof(*v));
    free(v);
}

static void add_whole(struct writer *w, const char *name, const struct ek_tensor *t)
{
    begin_tensor(w, name, t->shape[t->n_dims - 1], t->n_dims == 2 ? t->shape[0] : 0, 0);
    put_values(w, t);
}

/* All experts' matrices of the role as one. */
static void add_stacked(struct writer *w, const char *name, const struct ek_module *mod,
                        const struct ek_tensor *first)
{
    begin_tensor(w, name, first->shape[1], first->shape[0], w->m->config.n_experts);
    for (uint32_t e = 0; e < w->m->config.n_experts; e++)
        put_values(w, ek_module_tensor(mod, first->role, (int32_t)e));
}

/* k_b, each head transposed, and v_b. */
static void add_parts(struct writer *w, int32_t layer, const struct ek_tensor *t)
{
    const struct ek_config *c = &w->m->config;
    size_t head = (size_t)(c->qk_nope + c->v_head) * c->kv_lora;
    float *v = values_of(w->m, t);
    char name[64];

    snprintf(name, sizeof(name), "blk.%d.attn_k_b.weight", layer);
    begin_tensor(w, name, c->qk_nope, c->kv_lora, c->n_heads);
    for (size_t h = 0; h < c->n_heads; h++)
        for (size_t i = 0; i < c->kv_lora; i++)
            for (size_t d = 0; d < c->qk_nope; d++)
                put_f32(&w->data, v[h * head + d * c->kv_lora + i]);
    snprintf(name, sizeof(name), "blk.%d.attn_v_b.weight", layer);
    begin_tensor(w, name, c->kv_lora, c->v_head, c->n_heads);
    for (size_t h = 0; h < c->n_heads; h++)
        put(&w->data, v + h * head + (size_t)c->qk_nope * c->kv_lora,
            (size_t)c->v_head * c->kv_lora * sizeof(*v));
    free(v);
}

static void add_layer(struct writer *w, const struct ek_module *mod, bool parts)
{
    char name[64];

    for (size_t i = 0; i < EK_ARRAY_LEN(names); i++) {
        enum ek_role role = names[i].role;
        bool stacked = role >= EK_ROLE_EXPERT_GATE && role <= EK_ROLE_EXPERT_DOWN;
        const struct ek_tensor *t = ek_module_tensor(mod, role, stacked ? 0 : -1);
        snprintf(name, sizeof(name), "blk.%d.%s", mod->layer, names[i].name);
        if (t == NULL)
            continue;
        if (stacked)
            add_stacked(w, name, mod, t);
        else if (parts && role == EK_ROLE_KV_B)
            add_parts(w, mod->layer, t);
        else
            add_whole(w, name, t);
    }
}

struct number {
    const char *key;
    double value;
    bool real;
};

/* The absorbed form gives the sizes of the latent space, and those of heads apart. */
static uint64_t put_config(struct bytes *b, const struct ek_config *c, bool parts)
{
    uint32_t latent = c->kv_lora + c->qk_rope;
    const struct number numbers[] = {
        {"block_count", c->n_layers, false},
        {"context_length", c->max_position, false},
        {"embedding_length", c->hidden, false},
        {"feed_forward_length", c->intermediate, false},
        {"attention.head_count", c->n_heads, false},
        {"attention.head_count_kv", parts ? 1 : c->n_heads, false},
        {"attention.layer_norm_rms_epsilon", c->norm_eps, true},
        {"attention.kv_lora_rank", c->kv_lora, false},
        {"attention.key_length", parts ? latent : c->head_dim, false},
        {"attention.value_length", parts ? c->kv_lora : c->v_head, false},
        {"rope.dimension_count", c->qk_rope, false},
        {"rope.freq_base", c->rope_theta, true},
        {"rope.scaling.factor", c->rope_factor, true},
        {"rope.scaling.original_context_length", c->rope_original_position, false},
        {"rope.scaling.yarn_beta_fast", c->rope_beta_fast, true},
        {"rope.scaling.yarn_beta_slow", c->rope_beta_slow, true},
        {"rope.scaling.yarn_log_multiplier", 0.1 * c->rope_mscale_all_dim, true},
        {"leading_dense_block_count", c->first_dense, false},
        {"expert_count", c->n_experts, false},
        {"expert_used_count", c->top_k, false},
        {"expert_shared_count", c->n_shared, false},
        {"expert_feed_forward_length", c->moe_intermediate, false},
        {"expert_weights_scale", c->router_scale, true},
        {"expert_group_count", c->n_group, false},
        {"expert_group_used_count", c->topk_group, false},
        {"expert_gating_func", 1, false},
        /* these two where there is something to say */
        {"attention.key_length_mla", parts ? c->head_dim : 0, false},
        {"attention.value_length_mla", parts ? c->v_head : 0, false},
        {"attention.q_lora_rank", c->q_lora, false},
    };
    uint64_t n = 0;
    char key[96];

    for (size_t i = 0; i < EK_ARRAY_LEN(numbers); i++) {
        const struct number *k = &numbers[i];
        snprintf(key, sizeof(key), "deepseek2.%s", k->key);
        if (k->value == 0)
            continue;
        if (k->real)
            gguf_f32(b, key, (float)k->value);
        else
            gguf_u32(b, key, (uint32_t)k->value);
        n++;
    }
    return n;
}

static struct ek_model *open_checkpoint(const char *name)
{
    struct ek_model *m = NULL;
    char path[512];

    ck_assert_int_eq(ek_model_open(fixture(name, path), NULL, &m), EK_OK);
    return m;
}

/* A GGUF of m in the temporary directory. */
static const char *write_gguf(const struct ek_model *m, bool parts)
{
    struct writer w = {.m = m};
    struct bytes file = {0}, keys = {0};
    uint64_t n = put_config(&keys, &m->config, parts);
    const char *path;

    gguf_string(&keys, "general.architecture", "deepseek2");
    gguf_string(&keys, "deepseek2.rope.scaling.type", "yarn");
    for (size_t i = 0; i < m->n_modules; i++) {
        const struct ek_module *mod = &m->modules[i];
        if (mod->kind == EK_MODULE_LAYER)
            add_layer(&w, mod, parts);
        else
            add_whole(&w,
                      mod->kind == EK_MODULE_EMBED  ? "token_embd.weight"
                      : mod->kind == EK_MODULE_NORM ? "output_norm.weight"
                                                    : "output.weight",
                      &mod->tensors[0]);
    }
    gguf_header(&file, 3, w.n, n + 2);
    put(&file, keys.p, keys.n);
    put(&file, w.tensors.p, w.tensors.n);
    gguf_align(&file, 32);
    put(&file, w.data.p, w.data.n);
    path = temp_write("deepseek.gguf", file.p, file.n);
    put_free(&file);
    put_free(&keys);
    put_free(&w.tensors);
    put_free(&w.data);
    return path;
}

static void same_config(const struct ek_config *a, const struct ek_config *b)
{
    ck_assert_int_eq(a->attention, b->attention);
    ck_assert_int_eq(a->rope_layout, b->rope_layout);
    ck_assert_int_eq(a->router, b->router);
    ck_assert_uint_eq(a->head_dim, b->head_dim);
    ck_assert_uint_eq(a->q_lora, b->q_lora);
    ck_assert_uint_eq(a->qk_nope, b->qk_nope);
    ck_assert_uint_eq(a->v_head, b->v_head);
    ck_assert_uint_eq(a->n_kv_heads, b->n_kv_heads);
    ck_assert_uint_eq(a->top_k, b->top_k);
    ck_assert_uint_eq(a->topk_group, b->topk_group);
    ck_assert_uint_eq(a->first_dense, b->first_dense);
    ck_assert_double_eq_tol(a->router_scale, b->router_scale, 1e-6);
    ck_assert_double_eq_tol(a->rope_mscale_all_dim, b->rope_mscale_all_dim, 1e-6);
}

static void same_tensor(struct ek_model *const m[2], const struct ek_tensor *a,
                        const struct ek_tensor *b)
{
    float *x = values_of(m[0], a), *y = values_of(m[1], b);
    size_t row = b->bytes / b->shape[0], rows = b->shape[0] > 9 ? 7 : 1,
           cols = n_values(b) / b->shape[0];
    float *some = ek_calloc(rows, row);

    ck_assert_str_eq(a->name, b->name);
    ck_assert_msg(memcmp(x, y, n_values(a) * sizeof(*x)) == 0, "%s", a->name);
    ck_assert_int_eq(ek_model_read(m[1], b, row * (b->shape[0] - rows), row * rows, some), EK_OK);
    ck_assert_mem_eq(some, y + (b->shape[0] - rows) * cols, row * rows);
    free(x);
    free(y);
    free(some);
}

static const char *const fixtures[] = {"reference/deepseek-v2-lite", "reference/deepseek-v2"};

START_TEST(a_deepseek2_gguf_has_the_weights_of_its_checkpoint)
{
    struct ek_model *m[2] = {open_checkpoint(fixtures[_i / 2]), NULL};
    enum ek_status st = ek_model_open(write_gguf(m[0], _i % 2), NULL, &m[1]);

    ck_assert_msg(st == EK_OK, "%s", ek_last_error());
    same_config(&m[0]->config, &m[1]->config);
    ck_assert_uint_eq(m[0]->n_modules, m[1]->n_modules);
    for (size_t i = 0; i < m[0]->n_modules; i++) {
        ck_assert_uint_eq(m[0]->modules[i].n_tensors, m[1]->modules[i].n_tensors);
        for (size_t j = 0; j < m[0]->modules[i].n_tensors; j++)
            same_tensor(m, &m[0]->modules[i].tensors[j], &m[1]->modules[i].tensors[j]);
    }
    ek_model_close(m[0]);
    ek_model_close(m[1]);
}
END_TEST

/* One byte of the file changed: the number behind a key. */
static const struct {
    const char *key;
    uint32_t value;
    const char *message;
} broken[] = {
    {"deepseek2.attention.key_length", 12, "12 of them rotary"},
    {"deepseek2.expert_count", 7, "'model.layers.1.mlp.gate.weight' is [8, 64]"},
    {"deepseek2.expert_feed_forward_length", 40, "by the configuration"},
    {"deepseek2.attention.kv_lora_rank", 16, "by the configuration"},
    {"deepseek2.expert_gating_func", 3, "expert_gating_func"},
};

START_TEST(files_that_contradict_themselves_are_refused)
{
    struct ek_model *m = open_checkpoint(fixtures[0]), *none = NULL;
    const char *path = write_gguf(m, false);
    char *data, *at;
    size_t n;

    ck_assert_int_eq(ek_file_read(path, 1 << 24, &data, &n), EK_OK);
    at = memmem(data, n, broken[_i].key, strlen(broken[_i].key));
    ck_assert_ptr_nonnull(at);
    memcpy(at + strlen(broken[_i].key) + 4, &broken[_i].value, 4);
    ck_assert_int_ne(ek_model_open(temp_write("broken.gguf", data, n), NULL, &none), EK_OK);
    ck_assert_msg(strstr(ek_last_error(), broken[_i].message) != NULL, "%s", ek_last_error());
    free(data);
    ek_model_close(m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gguf-deepseek");
    TCase *t = tcase_create("gguf-deepseek");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(t, temp_begin, temp_end);
    tcase_add_loop_test(t, a_deepseek2_gguf_has_the_weights_of_its_checkpoint, 0, 4);
    tcase_add_loop_test(t, files_that_contradict_themselves_are_refused, 0,
                        (int)EK_ARRAY_LEN(broken));
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
