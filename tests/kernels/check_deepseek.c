/* SPDX-License-Identifier: Apache-2.0
 *
 * Latent attention and mixtures of experts against plain loops in double precision.
 */
#include "tests/kernels/support.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Latent attention ------------------------------------------------------------------------ */
enum { TOKENS = 5, PAGE = 4, HEADS = 3, LORA = 32, NOPE = 12, ROPE = 8, V = 20 };
enum { KEY = LORA + ROPE, QUERY = NOPE + ROPE };

static const float inv_freq[ROPE / 2] = {1.0f, 0.5f, 0.1f, 0.01f};
static const int32_t positions[TOKENS] = {0, 1, 2, 3, 4};
static const int32_t slots[TOKENS] = {4, 5, 6, 7, 0}; /* blocks 1, then 0 */
static const int32_t seq_start[2] = {0, TOKENS}, kv_len[1] = {TOKENS}, blocks[2] = {1, 0};

static const struct ek_rope rope = {
    .inv_freq = inv_freq, .dim = ROPE, .interleaved = true, .amplitude = 1};
static const struct ek_latent shape = {HEADS, LORA, NOPE, ROPE, V};
static const struct ek_batch batch = {.n_tokens = TOKENS,
                                      .n_seqs = 1,
                                      .max_q = TOKENS,
                                      .max_kv = TOKENS,
                                      .max_blocks = 2,
                                      .positions = positions,
                                      .slots = slots,
                                      .seq_start = seq_start,
                                      .kv_len = kv_len,
                                      .block_table = blocks};

static void rotate_plainly(double *x, int position)
{
    for (int i = 0; i < ROPE / 2; i++) {
        double a = position * (double)inv_freq[i], re = x[2 * i], im = x[2 * i + 1];
        x[2 * i] = re * cos(a) - im * sin(a);
        x[2 * i + 1] = re * sin(a) + im * cos(a);
    }
}

/* The key of a token: normalised latent and rotated rest. */
static void key_plainly(const float *ckv, const float *weight, int position, double *key)
{
    double sum = 0;

    for (int i = 0; i < LORA; i++)
        sum += (double)ckv[i] * ckv[i];
    for (int i = 0; i < LORA; i++)
        key[i] = ckv[i] / sqrt(sum / LORA + 1e-6) * weight[i];
    for (int i = 0; i < ROPE; i++)
        key[LORA + i] = ckv[LORA + i];
    rotate_plainly(key + LORA, position);
}

/* Attention of one head in the decompressed form: keys and values made from the latents. */
static void head_plainly(double (*keys)[KEY], const float *q, const double *kv_b, int token,
                         double scale, double *out)
{
    double query[QUERY], p[TOKENS], sum = 0;

    for (int i = 0; i < QUERY; i++)
        query[i] = q[i];
    rotate_plainly(query + NOPE, token);
    for (int j = 0; j <= token; j++) {
        double s = 0;
        for (int d = 0; d < NOPE; d++)
            for (int i = 0; i < LORA; i++)
                s += query[d] * kv_b[d * LORA + i] * keys[j][i];
        for (int i = 0; i < ROPE; i++)
            s += query[NOPE + i] * keys[j][LORA + i];
        sum += p[j] = exp(s * scale);
    }
    for (int d = 0; d < V; d++) {
        out[d] = 0;
        for (int j = 0; j <= token; j++)
            for (int i = 0; i < LORA; i++)
                out[d] += p[j] / sum * kv_b[(NOPE + d) * LORA + i] * keys[j][i];
    }
}

START_TEST(absorbed_attention_equals_the_decompressed_form)
{
    struct ek_device *dev = open_cpu(simd_names[_i], 2);
    uint64_t seed = 7;
    float *ckv, *q, *weight, *values, *cache, mixed[TOKENS * HEADS * LORA];
    float query[TOKENS * HEADS * KEY], out[TOKENS * HEADS * V];
    double keys[TOKENS][KEY], want[TOKENS * HEADS * V], kv_b[HEADS * (NOPE + V) * LORA];
    struct ek_kv kv = {
        .dtype = EK_F32, .kv_heads = 1, .head_dim = KEY, .v_dim = LORA, .page = PAGE};
    struct ek_mat mat;

    if (dev == NULL)
        return;
    ckv = random_floats(&seed, TOKENS * KEY);
    q = random_floats(&seed, TOKENS * HEADS * QUERY);
    weight = random_floats(&seed, LORA);
    mat = random_mat(dev, EK_BF16, HEADS * (NOPE + V), LORA, &seed, &values);
    kv.k = cache = calloc(2 * PAGE * KEY, sizeof(float));
    for (int i = 0; i < HEADS * (NOPE + V) * LORA; i++)
        kv_b[i] = values[i];
    for (int t = 0; t < TOKENS; t++)
        key_plainly(ckv + t * KEY, weight, t, keys[t]);
    for (int t = 0; t < TOKENS; t++)
        for (int h = 0; h < HEADS; h++)
            head_plainly(keys, q + (t * HEADS + h) * QUERY, kv_b + h * (NOPE + V) * LORA, t, 0.2,
                         want + (t * HEADS + h) * V);
    ck_assert_int_eq(dev->ops->latent_append(dev, ckv, KEY, weight, 1e-6f, &rope, &batch, &kv),
                     EK_OK);
    ck_assert_int_eq(dev->ops->latent_query(dev, q, HEADS * QUERY, &rope, &batch, &shape, &mat,
                                            query, HEADS * KEY),
                     EK_OK);
    ck_assert_int_eq(dev->ops->attention(dev, query, HEADS * KEY, &batch, &kv, HEADS, 0.2f, mixed,
                                         HEADS * LORA),
                     EK_OK);
    ck_assert_int_eq(dev->ops->latent_value(dev, mixed, HEADS * LORA, TOKENS, &shape, &mat, out,
                                            HEADS * V),
                     EK_OK);
    ck_assert_double_lt(relative_error(out, want, TOKENS * HEADS * V), 1e-5);
    dev->ops->mat_free(dev, &mat);
    ek_device_close(dev);
    free(ckv), free(q), free(weight), free(values), free(cache);
}
END_TEST

START_TEST(latent_shapes_that_do_not_fit_are_refused)
{
    struct ek_device *dev = open_cpu("c", 1);
    struct ek_latent wrong = shape;
    uint64_t seed = 1;
    float *values, x[1];
    struct ek_mat mat = random_mat(dev, EK_F32, HEADS * (NOPE + V), LORA, &seed, &values);
    struct ek_kv kv = {.kv_heads = 1, .head_dim = KEY + 1, .v_dim = LORA};

    wrong.v++;
    ck_assert_int_eq(dev->ops->latent_value(dev, x, 1, 1, &wrong, &mat, x, 1), EK_EUSAGE);
    ck_assert_int_eq(dev->ops->latent_append(dev, x, 1, x, 0, &rope, &batch, &kv), EK_EUSAGE);
    dev->ops->mat_free(dev, &mat);
    ek_device_close(dev);
    free(values);
}
END_TEST

/* ---- Router
 * ---------------------------------------------------------------------------------------
 */
enum { EXPERTS = 8, HIDDEN = 32 };

/* Logits are made exact by an identity-like gate: x itself holds them in its first elements. */
static const struct {
    struct ek_router router;
    float logits[EXPERTS], bias[EXPERTS];
    bool biased;
    int32_t ids[3];
    double weights[3];
} routes[] = {
    {{EK_ROUTE_GREEDY, EXPERTS, 2, 1, 1, false, false, 1},
     {0, 1, 0, 2, 0, 0, 0, 0},
     {0},
     false,
     {3, 1},
     {7.3890561 / 16.1073379, 2.7182818 / 16.1073379}},
    {{EK_ROUTE_GREEDY, EXPERTS, 2, 1, 1, false, true, 2}, /* normalised, scaled */
     {0, 1, 0, 2, 0, 0, 0, 0},
     {0},
     false,
     {3, 1},
     {2 * 7.3890561 / 10.1073379, 2 * 2.7182818 / 10.1073379}},
    {{EK_ROUTE_GREEDY, EXPERTS, 3, 1, 1, true, false, 1}, /* ties: the lowest first */
     {0, 0, 0, 0, 0, 0, 0, 0},
     {0},
     false,
     {0, 1, 2},
     {0.5, 0.5, 0.5}},
    {{EK_ROUTE_GROUP_LIMITED, EXPERTS, 2, 4, 1, true, false, 1}, /* best group: 2, 3 */
     {1, 1, -1, 2, 1, 1, 1, 1},
     {0},
     false,
     {3, 2},
     {0.8807971, 0.2689414}},
    {{EK_ROUTE_NOAUX_TC, EXPERTS, 2, 1, 1, true, false, 2}, /* chosen by bias, weighed without */
     {0, 0, 0, 0, 2, 0, 0, 0},
     {0, 0, 0.9f, 0, 0, 0.8f, 0, 0},
     true,
     {2, 5},
     {1, 1}},
    {{EK_ROUTE_NOAUX_TC, EXPERTS, 2, 4, 1, true, false,
      1}, /* groups by the sum of their best two */
     {3, -9, 1, 1, 0, 0, 0, 0},
     {0},
     true,
     {2, 3},
     {0.7310586, 0.7310586}},
};

START_TEST(routers_choose_and_weigh_by_their_rules)
{
    struct ek_device *dev = open_cpu("c", 1);
    const struct ek_router *r = &routes[_i].router;
    float x[HIDDEN] = {0}, weights[3], *gate;
    int32_t ids[3];
    struct ek_mat mat;

    ck_assert_int_eq(dev->ops->mat_new(dev, EK_F32, EXPERTS, HIDDEN, &mat), EK_OK);
    gate = mat.data;
    memset(gate, 0, mat.bytes);
    for (int e = 0; e < EXPERTS; e++)
        gate[e * HIDDEN + e] = 1;
    memcpy(x, routes[_i].logits, sizeof(routes[_i].logits));
    ck_assert_int_eq(dev->ops->route(dev, x, HIDDEN, 1, &mat,
                                     routes[_i].biased ? routes[_i].bias : NULL, r, ids, weights),
                     EK_OK);
    for (uint32_t k = 0; k < r->top_k; k++) {
        ck_assert_int_eq(ids[k], routes[_i].ids[k]);
        ck_assert_double_eq_tol(weights[k], routes[_i].weights[k], 1e-6);
    }
    dev->ops->mat_free(dev, &mat);
    ek_device_close(dev);
}
END_TEST

/* ---- Experts
 * --------------------------------------------------------------------------------------
 */
enum { INNER = 32, BATCH = 6, BEST = 2 };

static void expert_plainly(const float *x, const float *gate_up, const float *down, double weight,
                           double *out)
{
    double h[INNER];

    for (int i = 0; i < INNER; i++) {
        double g = 0, u = 0;
        for (int c = 0; c < HIDDEN; c++) {
            g += (double)x[c] * gate_up[i * HIDDEN + c];
            u += (double)x[c] * gate_up[(INNER + i) * HIDDEN + c];
        }
        h[i] = g / (1 + exp(-g)) * u;
    }
    for (int c = 0; c < HIDDEN; c++)
        for (int i = 0; i < INNER; i++)
            out[c] += weight * h[i] * down[c * INNER + i];
}

START_TEST(experts_are_added_with_their_weights)
{
    static const int32_t ids[BATCH * BEST] = {0, 3, 3, 1, 7, 3, 0, 1, 2, 5, 3, 0};
    struct ek_device *dev = open_cpu(simd_names[_i], 2);
    uint64_t seed = 3;
    float *x, *weights, *gate_up, *down, *out, alone[HIDDEN];
    double want[BATCH * HIDDEN];
    struct ek_mat up_mat, down_mat;
    struct ek_experts e = {&up_mat, &down_mat, EXPERTS, INNER};

    if (dev == NULL)
        return;
    x = random_floats(&seed, BATCH * HIDDEN);
    weights = random_floats(&seed, BATCH * BEST);
    out = random_floats(&seed, BATCH * HIDDEN);
    up_mat = random_mat(dev, EK_F16, EXPERTS * 2 * INNER, HIDDEN, &seed, &gate_up);
    down_mat = random_mat(dev, EK_Q8_0, EXPERTS * HIDDEN, INNER, &seed, &down);
    for (int i = 0; i < BATCH * HIDDEN; i++)
        want[i] = out[i];
    for (int t = 0; t < BATCH; t++)
        for (int k = 0; k < BEST; k++)
            expert_plainly(x + t * HIDDEN, gate_up + ids[t * BEST + k] * 2 * INNER * HIDDEN,
                           down + ids[t * BEST + k] * HIDDEN * INNER, weights[t * BEST + k],
                           want + t * HIDDEN);
    memcpy(alone, out + 2 * HIDDEN, sizeof(alone));
    ck_assert_int_eq(dev->ops->experts(dev, x, HIDDEN, BATCH, ids, weights, BEST, &e, out, HIDDEN),
                     EK_OK);
    ck_assert_double_lt(relative_error(out, want, BATCH * HIDDEN), 1e-5);
    ck_assert_int_eq(dev->ops->experts(dev, x + 2 * HIDDEN, HIDDEN, 1, ids + 2 * BEST,
                                       weights + 2 * BEST, BEST, &e, alone, HIDDEN),
                     EK_OK);
    ck_assert_mem_eq(alone, out + 2 * HIDDEN, sizeof(alone)); /* whatever the batch */
    dev->ops->mat_free(dev, &up_mat);
    dev->ops->mat_free(dev, &down_mat);
    ek_device_close(dev);
    free(x), free(weights), free(gate_up), free(down), free(out);
}
END_TEST

static uint64_t workspace_of(struct ek_device *dev)
{
    struct ek_usage u[EK_N_TAGS];

    dev->ops->usage(dev, u);
    return u[EK_TAG_WORKSPACE].peak;
}

enum { NARROW = 20, MANY = 40 }; /* rows that are padded in the workspace */

/* Workspace of a product and of experts, whichever are wanted; tokens all go to one expert or not.
 */
static uint64_t workspace_after(bool product, bool experts, bool crowded)
{
    struct ek_device *dev = open_cpu("c", 2);
    uint64_t seed = 4, peak;
    int32_t ids[MANY];
    float *x = random_floats(&seed, MANY * HIDDEN), *weights = random_floats(&seed, MANY);
    float *out = random_floats(&seed, MANY * HIDDEN), *gate_up, *down;
    struct ek_mat up_mat = random_mat(dev, EK_F16, EXPERTS * 2 * NARROW, HIDDEN, &seed, &gate_up);
    struct ek_mat down_mat = random_mat(dev, EK_F32, EXPERTS * HIDDEN, NARROW, &seed, &down);
    struct ek_experts e = {&up_mat, &down_mat, EXPERTS, NARROW};
    struct ek_mat narrow = down_mat;

    narrow.rows = HIDDEN;
    narrow.bytes = down_mat.bytes / EXPERTS;
    for (int i = 0; i < MANY; i++)
        ids[i] = crowded ? 0 : i % EXPERTS;
    if (product)
        ck_assert_int_eq(dev->ops->linear(dev, x, NARROW, MANY, &narrow, NULL, out, HIDDEN, 0),
                         EK_OK);
    if (experts)
        ck_assert_int_eq(dev->ops->experts(dev, x, HIDDEN, MANY, ids, weights, 1, &e, out, HIDDEN),
                         EK_OK);
    peak = workspace_of(dev);
    dev->ops->mat_free(dev, &up_mat);
    dev->ops->mat_free(dev, &down_mat);
    ek_device_close(dev);
    free(x), free(weights), free(gate_up), free(down), free(out);
    return peak;
}

/* Plans count on what a profile saw of each module alone, its tokens sent elsewhere. */
START_TEST(workspace_is_that_of_the_greediest_operation_wherever_tokens_go)
{
    uint64_t product = workspace_after(true, false, false);
    uint64_t experts = workspace_after(false, true, false);

    ck_assert_uint_gt(product, 0);
    ck_assert_uint_gt(experts, product);
    ck_assert_uint_eq(workspace_after(false, true, true), experts);
    ck_assert_uint_eq(workspace_after(true, true, true), experts);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("kernels: DeepSeek");
    TCase *tc = tcase_create("deepseek");
    SRunner *sr = srunner_create(s);
    int failed;

    suite_add_tcase(s, tc);
    tcase_add_loop_test(tc, absorbed_attention_equals_the_decompressed_form, 0, N_SIMD);
    tcase_add_test(tc, latent_shapes_that_do_not_fit_are_refused);
    tcase_add_loop_test(tc, routers_choose_and_weigh_by_their_rules, 0, EK_ARRAY_LEN(routes));
    tcase_add_loop_test(tc, experts_are_added_with_their_weights, 0, N_SIMD);
    tcase_add_test(tc, workspace_is_that_of_the_greediest_operation_wherever_tokens_go);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
