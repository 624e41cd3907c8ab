/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine on a GPU, alone and beside a CPU device: official logits, replayed graphs, hand-overs
 * with a change of type, predicted memory. Run from the top of the source tree, or with srcdir.
 */
#include "tests/runtime/support.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const fixtures[] = {
    "llama-mha",  "llama-gqa-tied", "llama-linear-rope", "llama-llama3-rope", "llama-biases-f16",
    "qwen2-tied", "qwen2-bf16",     "deepseek-v2-lite",  "deepseek-v2",
};

/* Where the stages lie. */
static const struct {
    const char *devices[3]; /* one a stage */
    enum ek_dtype act;
} layouts[] = {
    {{"cuda:0"}, EK_F32},
    {{"cuda:0"}, EK_BF16},
    {{"cpu:0", "cuda:0"}, EK_F32},
    {{"cuda:0", "cpu:0", "cuda:0"}, EK_F32},
    {{"cuda:0", "cpu:0"}, EK_BF16},
    {{"cuda:0", "cuda:0.1", "cuda:0"}, EK_BF16},
    {{"cuda:0", "cuda:1"}, EK_BF16}, /* the last: only where there are two */
};

static uint32_t n_gpus;

static void set_device(struct ek_device_spec *spec, const char *name)
{
    *spec = (struct ek_device_spec){.index = (uint32_t)strtoul(strchr(name, ':') + 1, NULL, 10)};
    snprintf(spec->name, sizeof(spec->name), "%s", name);
    snprintf(spec->backend, sizeof(spec->backend), "%.*s", (int)strcspn(name, ":"), name);
}

/* Device i of those that are declared on as many GPUs as there are. */
static void declare_device(struct ek_device_spec *spec, uint32_t i)
{
    char name[EK_NAME_LEN];

    snprintf(name, sizeof(name), "cuda:%u.%u", i % n_gpus, i / n_gpus);
    set_device(spec, name);
}

static struct ek_plan *plan_for(const struct ek_model *m, int layout)
{
    uint32_t n = (uint32_t)m->n_modules, cuts[3] = {2, 3, n}, order[3], n_stages = 0, n_devices = 0;
    const char *names[3];
    struct plan_shape shape = {.cuts = cuts, .order = order, .context = 512, .chunk = 32};
    struct ek_plan *p;

    for (; n_stages < 3 && layouts[layout].devices[n_stages]; n_stages++) {
        uint32_t d = 0;
        while (d < n_devices && strcmp(names[d], layouts[layout].devices[n_stages]) != 0)
            d++;
        names[d] = layouts[layout].devices[n_stages];
        n_devices = d == n_devices ? d + 1 : n_devices;
        order[n_stages] = d;
    }
    cuts[n_stages - 1] = n;
    shape.n_stages = n_stages;
    shape.n_devices = n_devices;
    p = make_plan(m, &shape);
    p->act = p->cache = layouts[layout].act;
    for (uint32_t d = 0; d < n_devices; d++)
        set_device(&p->devices[d], names[d]);
    return p;
}

START_TEST(logits_equal_the_official_ones_wherever_the_stages_lie)
{
    for (size_t f = 0; f < EK_ARRAY_LEN(fixtures); f++) {
        struct ek_model *m = fixture_model(fixtures[f]);
        struct ek_plan *p = plan_for(m, _i);
        struct ek_engine *e = open_engine(m, p);
        struct ek_reference *r = NULL;
        struct ek_comparison c;
        struct ek_tolerance t;
        char path[256];
        snprintf(path, sizeof(path), "fixtures/reference/%s/reference.safetensors", fixtures[f]);
        ck_ok(ek_reference_read(source_path(path), &r));
        ck_ok(ek_compare(e, r, &c));
        printf("layout %d %-18s max|d| %.2e of %.2e, mean KL %.2e, top-1 %zu of %zu\n", _i,
               fixtures[f], c.max_abs, c.max_logit, c.mean_kl, c.top1_equal, c.rows);
        fflush(stdout);
        t = ek_tolerance_for(m, layouts[_i].act, r);
        ck_ok(ek_comparison_judge(&c, &t));
        ek_reference_free(r);
        ek_engine_close(e);
        ek_plan_free(p);
        ek_model_close(m);
    }
}
END_TEST

/* What a CPU's engine gives with a cache of E4M3: *r, and how far that is from the official logits.
 */
static void scaled_on_the_cpu(const struct ek_model *m, const char *name, struct ek_reference **r,
                              struct ek_comparison *c)
{
    struct ek_plan *p = one_device_plan(m);
    struct ek_reference *official = NULL;
    struct ek_engine *e;
    char path[256], own[] = "scaled-XXXXXX";

    p->cache = EK_F8_E4M3;
    e = open_engine(m, p);
    snprintf(path, sizeof(path), "fixtures/reference/%s/reference.safetensors", name);
    ck_ok(ek_reference_read(source_path(path), &official));
    ck_ok(ek_compare(e, official, c));
    close(mkstemp(own));
    ck_ok(ek_reference_record(e, official, own, true));
    ck_ok(ek_reference_read(own, r));
    unlink(own);
    ek_reference_free(official);
    ek_engine_close(e);
    ek_plan_free(p);
}

/* A GPU with a cache of E4M3 is nearer to a CPU with one than that is to exact caches. */
START_TEST(a_scaled_cache_gives_what_it_does_on_a_cpu)
{
    static const char *const names[] = {"llama-gqa-tied", "qwen2-bf16", "deepseek-v2-lite"};

    for (size_t f = 0; f < EK_ARRAY_LEN(names); f++) {
        struct ek_model *m = fixture_model(names[f]);
        struct ek_plan *p = plan_for(m, _i);
        struct ek_reference *r = NULL;
        struct ek_comparison c, own;
        struct ek_engine *e;
        double share = layouts[_i].act == EK_F32 ? 1e-6 : 1;

        scaled_on_the_cpu(m, names[f], &r, &own);
        p->cache = EK_F8_E4M3;
        e = open_engine(m, p);
        ck_ok(ek_compare(e, r, &c));
        printf("layout %d %-18s scaled cache: mean KL %.2e to a CPU's, which loses %.2e; top-1 %zu "
               "and %zu of %zu\n",
               _i, names[f], c.mean_kl, own.mean_kl, c.top1_equal, own.top1_equal, c.rows);
        fflush(stdout);
        ck_assert_double_gt(own.mean_kl, 1e-6);
        ck_assert_double_lt(c.mean_kl, share * own.mean_kl);
        ck_assert_uint_eq(c.top1_decided_equal, c.top1_decided);
        ck_assert_uint_eq(c.not_finite, 0);
        ek_reference_free(r);
        ek_engine_close(e);
        ek_plan_free(p);
        ek_model_close(m);
    }
}
END_TEST

/* Logits of ids fed one by one behind the first `start`: eager, captured and replayed steps, over
 * several buckets. */
static float *decoded_logits(struct ek_engine *e, const int32_t *ids, size_t start, size_t n)
{
    uint32_t vocab = ek_engine_model(e)->config.vocab, seq, one = 1;
    float *out = malloc((n - start) * vocab * sizeof(*out));

    ck_assert_ptr_nonnull(out);
    ck_ok(ek_engine_seq_open(e, &seq));
    ck_ok(ek_engine_prefill(e, seq, ids, start, EK_LOGITS_NONE, NULL, NULL));
    for (size_t i = start; i < n; i++) {
        struct ek_step step = {.n_seqs = 1,
                               .seqs = &seq,
                               .n_tokens = &one,
                               .tokens = ids + i,
                               .logits = EK_LOGITS_LAST};
        const float *got;
        uint64_t ticket;
        ck_ok(ek_engine_submit(e, &step, &ticket));
        ck_ok(ek_engine_wait(e, ticket, &got, NULL, NULL));
        memcpy(out + (i - start) * vocab, got, vocab * sizeof(*out));
        ek_engine_release(e, ticket);
    }
    ek_engine_seq_close(e, seq);
    return out;
}

START_TEST(decoding_with_graphs_equals_prefill)
{
    enum { N = 300, START = 200 };
    struct ek_model *m = fixture_model("llama-mha");
    struct ek_plan *p = plan_for(m, _i);
    struct ek_engine *e = open_engine(m, p);
    int32_t *ids = random_ids(m, N, 3);
    size_t vocab = m->config.vocab, n = (N - START) * vocab;
    float *want = all_logits(e, ids, N), *got = decoded_logits(e, ids, START, N);
    double allowed = layouts[_i].act == EK_F32 ? 2e-5 : 5e-2;

    ck_assert_double_le(largest_difference(got, want + START * vocab, n),
                        allowed * largest(want, N * vocab));
    free(want);
    free(got);
    free(ids);
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

/* Prompts and steps of every family, in two engines. */
START_TEST(the_same_tokens_give_the_same_bits_again)
{
    enum { N = 70, START = 50 };

    for (size_t f = 0; f < EK_ARRAY_LEN(fixtures); f++) {
        struct ek_model *m = fixture_model(fixtures[f]);
        size_t all = (size_t)N * m->config.vocab, steps = (size_t)(N - START) * m->config.vocab;
        int32_t *ids = random_ids(m, N, 11);
        float *prompt[2], *decoded[2];

        for (int i = 0; i < 2; i++) {
            struct ek_plan *p = plan_for(m, _i);
            struct ek_engine *e = open_engine(m, p);
            prompt[i] = all_logits(e, ids, N);
            decoded[i] = decoded_logits(e, ids, START, N);
            ek_engine_close(e);
            ek_plan_free(p);
        }
        ck_assert_int_eq(memcmp(prompt[0], prompt[1], all * sizeof(float)), 0);
        ck_assert_int_eq(memcmp(decoded[0], decoded[1], steps * sizeof(float)), 0);
        for (int i = 0; i < 2; i++)
            free(prompt[i]), free(decoded[i]);
        free(ids);
        ek_model_close(m);
    }
}
END_TEST

/* Modules in order over n devices. */
static struct ek_plan *spread_plan(const struct ek_model *m, uint32_t n, enum ek_dtype act)
{
    struct plan_shape shape = {.n_devices = n, .context = 512, .chunk = 32};
    uint32_t devices[64];
    struct ek_plan *p;

    for (uint32_t i = 0; i < m->n_modules; i++)
        devices[i] = (uint32_t)(i * n / m->n_modules);
    p = plan_by_module(m, &shape, devices);
    p->act = p->cache = act;
    for (uint32_t d = 0; d < n; d++)
        declare_device(&p->devices[d], d);
    return p;
}

enum { N_PROMPT = 70, N_STEPS = 10 };

/* Logits of a prompt, in chunks of 32 and less, and of its last steps one by one. */
static float *spread_logits(const struct ek_model *m, uint32_t n, enum ek_dtype act)
{
    size_t prompt = (size_t)N_PROMPT * m->config.vocab, steps = (size_t)N_STEPS * m->config.vocab;
    struct ek_plan *p = spread_plan(m, n, act);
    struct ek_engine *e = open_engine(m, p);
    int32_t *ids = random_ids(m, N_PROMPT, 11);
    float *out = all_logits(e, ids, N_PROMPT);
    float *behind = decoded_logits(e, ids, N_PROMPT - N_STEPS, N_PROMPT);

    out = realloc(out, (prompt + steps) * sizeof(*out));
    ck_assert_ptr_nonnull(out);
    memcpy(out + prompt, behind, steps * sizeof(*out));
    free(behind);
    free(ids);
    ek_engine_close(e);
    ek_plan_free(p);
    return out;
}

/* A model of the published width, weights from a seed. */
static struct ek_model *seeded_model(const char *name)
{
    static const struct ek_model_options options = {.seed = 7, .synthetic = true};
    struct ek_model *m = NULL;
    char path[256];

    snprintf(path, sizeof(path), "fixtures/configs/%s", name);
    ck_ok(ek_model_open(source_path(path), &options, &m));
    return m;
}

/* Every family with each module on a device of its own; 16 modules, and a model whose products are
 * those of real ones, over 2 to 16 devices. */
START_TEST(modules_over_up_to_16_devices_give_the_bits_of_one)
{
    static const enum ek_dtype acts[] = {EK_F32, EK_BF16};
    size_t f = (size_t)_i, n = EK_ARRAY_LEN(fixtures);
    struct ek_model *m = f < n    ? fixture_model(fixtures[f])
                         : f == n ? small_model(13)
                                  : seeded_model("qwen2.5-0.5b");
    uint32_t most = f < n ? (uint32_t)m->n_modules : 16;
    size_t bytes = (size_t)(N_PROMPT + N_STEPS) * m->config.vocab * sizeof(float);

    for (size_t a = 0; a < EK_ARRAY_LEN(acts); a++) {
        float *want = spread_logits(m, 1, acts[a]);
        for (uint32_t d = f < n ? most : 2; d <= most; d *= 2) {
            float *got = spread_logits(m, d, acts[a]);
            printf("%-18s %-4s over %2u devices: max|d| %.2e of %.2e\n", m->name,
                   ek_dtype_name(acts[a]), d, largest_difference(got, want, bytes / sizeof(float)),
                   largest(want, bytes / sizeof(float)));
            fflush(stdout);
            ck_assert_int_eq(memcmp(got, want, bytes), 0);
            free(got);
        }
        free(want);
    }
    ek_model_close(m);
}
END_TEST

START_TEST(many_prompts_generate_what_each_does_alone)
{
    enum { PROMPTS = 4, NEW = 24 };
    struct ek_model *m = fixture_model("qwen2-tied");
    struct ek_plan *p = plan_for(m, _i);
    struct ek_generate_options opt = {.sampling = EK_SAMPLING_GREEDY, .max_tokens = NEW};
    int32_t *ids = random_ids(m, 100, 9);
    struct ek_prompt prompts[PROMPTS] = {{.ids = ids, .n = 40},
                                         {.ids = ids + 40, .n = 3},
                                         {.ids = ids + 43, .n = 30},
                                         {.ids = ids + 73, .n = 20}};
    struct ek_completion *all = NULL, *alone = NULL;
    struct ek_engine *e;
    size_t equal = 0;

    p->micro_batches = 2;
    e = open_engine(m, p);
    ck_ok(ek_generate(e, prompts, PROMPTS, &opt, &all, NULL));
    for (int i = 0; i < PROMPTS; i++) {
        ck_ok(ek_generate(e, &prompts[i], 1, &opt, &alone, NULL));
        for (size_t k = 0; k < NEW && all[i].ids[k] == alone[0].ids[k]; k++)
            equal++;
        ek_completions_free(alone, 1);
    }
    /* in BF16 a tie may go the other way, and all that follows with it */
    ck_assert_uint_ge(equal, layouts[_i].act == EK_F32 ? PROMPTS * NEW : PROMPTS * NEW / 2);
    ek_completions_free(all, PROMPTS);
    free(ids);
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

/* A step's tokens come from the step before on the devices, over graphs and between devices. */
START_TEST(steps_that_follow_one_another_choose_what_they_do_one_by_one)
{
    enum { SEQS = 3, STEPS = 60 };
    static const struct ek_sampling samplings[] = {
        EK_SAMPLING_GREEDY, {0.9, 40, 0.95, 0.01, 5}, {1.3, 0, 1, 0, 6}};
    struct ek_model *m = fixture_model("qwen2-tied");
    struct ek_plan *p = plan_for(m, _i);
    struct ek_engine *e = open_engine(m, p);
    int32_t *first = random_ids(m, SEQS, 4);

    for (size_t k = 0; k < EK_ARRAY_LEN(samplings); k++) {
        int32_t *want = decode_ids(e, first, SEQS, STEPS, 1, &samplings[k]);
        for (uint32_t ahead = 2; ahead <= 3; ahead++) {
            int32_t *got = decode_ids(e, first, SEQS, STEPS, ahead, &samplings[k]);
            ck_assert_int_eq(memcmp(got, want, SEQS * STEPS * sizeof(*got)), 0);
            free(got);
        }
        free(want);
    }
    free(first);
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

/* ---- where stages begin -------------------------------------------------------------------------
 * Models whose products of 2 to 64 tokens are Hopper's own: dense, a mixture of experts behind a
 * dense layer, and such a mixture with latent attention.
 */
static const char *const cut_models[] = {
    "{\"architectures\":[\"Qwen2ForCausalLM\"],\"hidden_size\":256,\"num_hidden_layers\":4,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"intermediate_size\":448,"
    "\"vocab_size\":320,\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,"
    "\"max_position_embeddings\":4096,\"torch_dtype\":\"bfloat16\"}",
    "{\"architectures\":[\"DeepseekV2ForCausalLM\"],\"hidden_size\":256,\"num_hidden_layers\":4,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":4,\"use_mla\":false,"
    "\"kv_lora_rank\":null,\"q_lora_rank\":null,\"intermediate_size\":448,\"vocab_size\":320,"
    "\"n_routed_experts\":8,\"num_experts_per_tok\":3,\"n_shared_experts\":2,"
    "\"first_k_dense_replace\":2,\"moe_intermediate_size\":64,\"topk_method\":\"greedy\","
    "\"max_position_embeddings\":4096,\"torch_dtype\":\"bfloat16\"}",
    "{\"architectures\":[\"DeepseekV2ForCausalLM\"],\"hidden_size\":256,\"num_hidden_layers\":4,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":4,\"kv_lora_rank\":512,"
    "\"q_lora_rank\":null,\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,"
    "\"v_head_dim\":128,\"intermediate_size\":448,\"vocab_size\":320,\"n_routed_experts\":8,"
    "\"num_experts_per_tok\":3,\"n_shared_experts\":2,\"first_k_dense_replace\":2,"
    "\"moe_intermediate_size\":64,\"topk_method\":\"greedy\","
    "\"max_position_embeddings\":4096,\"torch_dtype\":\"bfloat16\"}",
};
static const enum ek_dtype cut_types[][2] = {
    /* activations, cache */
    {EK_BF16, EK_BF16},
    {EK_BF16, EK_F8_E4M3},
    {EK_F16, EK_F16},
};
static const uint32_t cut_tokens[] = {1, 2, 5, 8, 16, 17, 32, 33, 61, 64, 65, 130};

#define APART UINT32_MAX /* every module is a stage */

/* A stage from module `cut` on (0: there is one alone). */
static struct ek_plan *cut_plan(const struct ek_model *m, const enum ek_dtype types[2],
                                uint32_t cut)
{
    struct plan_shape shape = {.n_devices = 2, .batch = 64, .context = 160, .chunk = 130};
    uint32_t devices[64];
    struct ek_plan *p;

    for (uint32_t i = 0; i < m->n_modules; i++)
        devices[i] = cut == APART ? i % 2 : cut > 0 && i >= cut;
    p = plan_by_module(m, &shape, devices);
    p->act = types[0];
    p->cache = types[1];
    set_device(&p->devices[0], "cuda:0");
    set_device(&p->devices[1], "cuda:0.1");
    return p;
}

/* Logits of n sequences after a token each, twice: [2][n][vocab]. */
static void stepped_logits(struct ek_engine *e, const int32_t *ids, uint32_t n, float *out)
{
    size_t row = (size_t)n * ek_engine_model(e)->config.vocab;
    uint32_t seqs[64], ones[64];

    for (uint32_t i = 0; i < n; i++) {
        ck_ok(ek_engine_seq_open(e, &seqs[i]));
        ones[i] = 1;
    }
    for (int k = 0; k < 2; k++) {
        struct ek_step step = {.n_seqs = n,
                               .seqs = seqs,
                               .n_tokens = ones,
                               .tokens = ids + k,
                               .logits = EK_LOGITS_LAST};
        const float *got;
        uint64_t ticket;

        ck_ok(ek_engine_submit(e, &step, &ticket));
        ck_ok(ek_engine_wait(e, ticket, &got, NULL, NULL));
        memcpy(out + k * row, got, row * sizeof(*out));
        ek_engine_release(e, ticket);
    }
    for (uint32_t i = 0; i < n; i++)
        ek_engine_seq_close(e, seqs[i]);
}

/* Logits of a prompt of n tokens, and of n sequences' steps: [n][vocab] and, of up to 64,
 * [2][n][vocab]. */
static float *cut_logits(struct ek_engine *e, const int32_t *ids, uint32_t n)
{
    size_t row = (size_t)n * ek_engine_model(e)->config.vocab;
    float *out = ek_calloc(3 * row, sizeof(*out)), *prompt = all_logits(e, ids, n);

    memcpy(out, prompt, row * sizeof(*out));
    free(prompt);
    if (n <= 64)
        stepped_logits(e, ids, n, out + row);
    return out;
}

/* NULL in want: they are put there. Returns how many numbers of tokens gave others. */
static int differing(const struct ek_model *m, const enum ek_dtype types[2], uint32_t cut,
                     float **want)
{
    struct ek_plan *p = cut_plan(m, types, cut);
    struct ek_engine *e = open_engine(m, p);
    int32_t *ids = random_ids(m, 131, 5);
    int n = 0;

    for (size_t i = 0; i < EK_ARRAY_LEN(cut_tokens); i++) {
        size_t bytes = 3 * sizeof(float) * cut_tokens[i] * m->config.vocab;
        float *got = cut_logits(e, ids, cut_tokens[i]);

        if (want[i] == NULL) {
            want[i] = got;
            continue;
        }
        if (memcmp(got, want[i], bytes) != 0) {
            printf("cut at %d: other logits of %u tokens, by %g of %g\n", (int)cut, cut_tokens[i],
                   largest_difference(got, want[i], bytes / sizeof(float)),
                   largest(want[i], bytes / sizeof(float)));
            n++;
        }
        free(got);
    }
    free(ids);
    ek_engine_close(e);
    ek_plan_free(p);
    return n;
}

START_TEST(where_a_stage_begins_changes_no_bit)
{
    struct ek_model *m = synthetic_model(cut_models[_i % EK_ARRAY_LEN(cut_models)]);
    const enum ek_dtype *types = cut_types[_i / EK_ARRAY_LEN(cut_models)];
    float *want[EK_ARRAY_LEN(cut_tokens)] = {NULL};
    int wrong = 0;

    for (uint32_t cut = 0; cut < m->n_modules; cut++)
        wrong += differing(m, types, cut, want);
    wrong += differing(m, types, APART, want);
    ck_assert_int_eq(wrong, 0);
    for (size_t i = 0; i < EK_ARRAY_LEN(want); i++)
        free(want[i]);
    ek_model_close(m);
}
END_TEST

START_TEST(predicted_memory_is_what_is_allocated)
{
    struct ek_model *m = fixture_model("llama-mha");
    struct ek_plan *p = plan_for(m, 1);
    struct ek_engine *e;
    struct ek_stage_options o;
    struct ek_usage use[EK_N_TAGS];
    uint64_t want[EK_N_TAGS];
    size_t modules[64];

    p->cache = _i ? EK_F8_E4M3 : p->cache;
    e = open_engine(m, p);
    o = ek_plan_stage_options(p, NULL);
    for (size_t i = 0; i < m->n_modules; i++)
        modules[i] = i;
    ck_ok(ek_stage_memory(ek_engine_device(e, 0), m, modules, m->n_modules, &o, want));
    ek_engine_usage(e, 0, use);
    for (int t = 0; t < EK_N_TAGS; t++)
        if (t != EK_TAG_WORKSPACE)
            ck_assert_msg(use[t].peak == want[t], "%s: %llu, predicted %llu", ek_tag_names[t],
                          (unsigned long long)use[t].peak, (unsigned long long)want[t]);
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

/* ---- pictures -----------------------------------------------------------------------------------
 */
enum { NEW = 6, N_SEEING = 5 };
static const struct {
    const char *model, *reference;
} seeing[N_SEEING] = {
    {"qwen2.5-vl", "reference"},        {"qwen2.5-vl", "reference-video"},
    {"deepseek-vl2-tiny", "reference"}, {"deepseek-vl2-small", "reference"},
    {"deepseek-vl2", "reference"},
};

#define EVERY_OTHER -2 /* module is */
#define EVERY_PART  -3 /* the same with a tower cut into its blocks */
#define BY_EIGHT    -4 /* the same over 8 devices in turn */

/* The kind of module that is on the second device, the others on the first. -1: none. */
static const struct {
    const char *devices[2];
    int apart;
    enum ek_dtype act;
} views[] = {
    {{"cuda:0", "cuda:0.1"}, -1, EK_F32},
    {{"cuda:0", "cuda:0.1"}, EK_MODULE_VISION, EK_F32},
    {{"cuda:0", "cuda:0.1"}, EK_MODULE_HEAD, EK_F32},
    {{"cuda:0", "cuda:0.1"}, EVERY_OTHER, EK_F32},
    {{"cuda:0", "cpu:0"}, EK_MODULE_VISION, EK_F32},
    {{"cpu:0", "cuda:0"}, EK_MODULE_VISION, EK_F32},
    {{"cuda:0", "cpu:0"}, EVERY_PART, EK_F32},
    {{NULL}, BY_EIGHT, EK_F32},
    {{"cuda:0", "cuda:0.1"}, -1, EK_BF16},
    {{"cuda:0", "cuda:0.1"}, EK_MODULE_VISION, EK_BF16},
    {{"cuda:0", "cuda:0.1"}, EK_MODULE_HEAD, EK_BF16},
    {{"cuda:0", "cuda:0.1"}, EVERY_OTHER, EK_BF16},
    {{"cuda:0", "cuda:0.1"}, EVERY_PART, EK_BF16},
    {{NULL}, BY_EIGHT, EK_BF16},
    {{"cuda:0", "cuda:0.1"}, -1, EK_F16},
    {{"cuda:0", "cpu:0"}, EK_MODULE_VISION, EK_F16},
};

static struct ek_plan *view_plan(const struct ek_model *m, int view)
{
    struct plan_shape shape = {.n_devices = 2, .batch = 2, .context = 160, .chunk = 24};
    int apart = views[view].apart;
    uint32_t devices[64] = {0};
    struct ek_plan *p;

    if (apart == BY_EIGHT)
        shape.n_devices = 8;
    for (uint32_t i = 0; i < m->n_modules; i++)
        devices[i] = apart <= EVERY_OTHER ? i % shape.n_devices : (int)m->modules[i].kind == apart;
    p = plan_by_module(m, &shape, devices);
    p->act = p->cache = views[view].act;
    for (uint32_t d = 0; d < shape.n_devices; d++)
        if (apart == BY_EIGHT)
            declare_device(&p->devices[d], d);
        else
            set_device(&p->devices[d], views[view].devices[d]);
    return p;
}

/* Greedy tokens behind a reference's prompt. */
static void answer(struct ek_engine *e, const struct ek_reference *r, int32_t ids[NEW])
{
    struct ek_generate_options opt = {.sampling = EK_SAMPLING_GREEDY, .max_tokens = NEW};
    struct ek_completion *out = NULL;
    struct ek_vision_prompt v = {0};
    struct ek_vl_rules rules;

    ck_ok(ek_vl_rules_open(ek_engine_model(e), &rules));
    ck_ok(ek_vision_prompt_open(e, &rules, r->ids, r->n_ids, r->items, r->n_items, &v));
    ck_ok(ek_generate(e, &v.prompt, 1, &opt, &out, NULL));
    ck_assert_uint_eq(out[0].n, NEW);
    memcpy(ids, out[0].ids, NEW * sizeof(*ids));
    ek_completions_free(out, 1);
    ek_vision_prompt_close(&v);
}

static void look(size_t f, int view, int32_t ids[NEW])
{
    struct ek_model *m = fixture_model(seeing[f].model);
    struct ek_reference *r = NULL;
    struct ek_comparison c;
    struct ek_tolerance t;
    struct ek_engine *e;
    struct ek_plan *p;
    char path[256];

    if (views[view].apart <= EVERY_PART)
        ck_ok(ek_model_cut_tower(m));
    p = view_plan(m, view);
    e = open_engine(m, p);
    snprintf(path, sizeof(path), "fixtures/reference/%s/%s.safetensors", seeing[f].model,
             seeing[f].reference);
    ck_ok(ek_reference_read(source_path(path), &r));
    ck_ok(ek_compare(e, r, &c));
    printf("view %2d %-18s %-15s max|d| %.2e of %.2e, mean KL %.2e, top-1 %zu of %zu\n", view,
           seeing[f].model, seeing[f].reference, c.max_abs, c.max_logit, c.mean_kl, c.top1_equal,
           c.rows);
    fflush(stdout);
    t = ek_tolerance_for(m, views[view].act, r);
    ck_ok(ek_comparison_judge(&c, &t));
    answer(e, r, ids);
    ek_reference_free(r);
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
}

/* Tokens are those of the first view with the same types. */
START_TEST(pictures_give_the_official_logits_and_the_same_tokens_wherever_modules_lie)
{
    int first = 0;

    while (views[first].act != views[_i].act)
        first++;
    for (size_t f = 0; f < N_SEEING; f++) {
        int32_t got[NEW], want[NEW];

        look(f, _i, got);
        look(f, first, want);
        ck_assert_int_eq(memcmp(got, want, sizeof(want)), 0);
    }
}
END_TEST

static uint32_t count_gpus(void)
{
    struct ek_device_spec *specs = NULL;
    struct ek_device_info *infos = NULL;
    size_t n = 0;
    bool listed = ek_devices_list(&specs, &infos, &n) == EK_OK && n > 0;

    free(specs);
    free(infos);
    return listed ? (uint32_t)n - 1 : 0; /* the CPU is the last */
}

int main(void)
{
    Suite *s = suite_create("runtime on a GPU");
    TCase *tc = tcase_create("gpu"), *tokens = tcase_create("tokens");
    TCase *placements = tcase_create("placements");
    SRunner *sr = srunner_create(s);
    int failed, n;

    n_gpus = count_gpus();
    n = (int)EK_ARRAY_LEN(layouts) - (n_gpus < 2);
    if (n_gpus == 0) {
        puts("skipped: no GPU");
        srunner_free(sr);
        return 77;
    }
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, logits_equal_the_official_ones_wherever_the_stages_lie, 0, n);
    tcase_add_loop_test(tc, a_scaled_cache_gives_what_it_does_on_a_cpu, 0, n);
    tcase_add_loop_test(tc, decoding_with_graphs_equals_prefill, 0, n);
    tcase_add_loop_test(tc, the_same_tokens_give_the_same_bits_again, 0, 2); /* F32 and BF16 */
    tcase_set_timeout(tokens, 300);
    tcase_add_loop_test(tokens, steps_that_follow_one_another_choose_what_they_do_one_by_one, 0, n);
    tcase_add_loop_test(tokens, many_prompts_generate_what_each_does_alone, 0, n);
    tcase_set_timeout(placements, 300);
    tcase_add_loop_test(placements, modules_over_up_to_16_devices_give_the_bits_of_one, 0,
                        (int)EK_ARRAY_LEN(fixtures) + 2);
    tcase_add_loop_test(placements, where_a_stage_begins_changes_no_bit, 0,
                        (int)(EK_ARRAY_LEN(cut_models) * EK_ARRAY_LEN(cut_types)));
    tcase_add_loop_test(placements,
                        pictures_give_the_official_logits_and_the_same_tokens_wherever_modules_lie,
                        0, (int)EK_ARRAY_LEN(views));
    tcase_add_loop_test(tc, predicted_memory_is_what_is_allocated, 0, 2);
    suite_add_tcase(s, tc);
    suite_add_tcase(s, tokens);
    suite_add_tcase(s, placements);
    srunner_set_fork_status(sr, CK_NOFORK); /* a CUDA context does not survive a fork */
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
