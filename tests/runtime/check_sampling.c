/* SPDX-License-Identifier: Apache-2.0
 *
 * Sampling against probabilities computed by hand.
 */
#include "tests/runtime/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 5, DRAWS = 10000 };
/* logarithms of 0.4, 0.3, 0.15, 0.1, 0.05, shuffled and shifted */
static const double probabilities[VOCAB] = {0.15, 0.4, 0.05, 0.3, 0.1};

static const struct {
    struct ek_sampling s;
    double want[VOCAB]; /* before normalisation; 0: never drawn */
} cases[] = {
    {{1, 0, 1, 0, 1}, {0.15, 0.4, 0.05, 0.3, 0.1}},
    {{0.5, 0, 1, 0, 2}, {0.0225, 0.16, 0.0025, 0.09, 0.01}},     /* squares */
    {{2, 0, 1, 0, 3}, {0.3873, 0.6325, 0.2236, 0.5477, 0.3162}}, /* roots */
    {{1, 1, 1, 0, 4}, {0, 1, 0, 0, 0}},
    {{1, 2, 1, 0, 5}, {0, 0.4, 0, 0.3, 0}},
    {{1, 100, 1, 0, 6}, {0.15, 0.4, 0.05, 0.3, 0.1}},
    {{1, 0, 0.01, 0, 7}, {0, 1, 0, 0, 0}},
    {{1, 0, 0.41, 0, 8}, {0, 0.4, 0, 0.3, 0}},
    {{1, 0, 0.69, 0, 9}, {0, 0.4, 0, 0.3, 0}},
    {{1, 0, 0.71, 0, 10}, {0.15, 0.4, 0, 0.3, 0}},
    {{1, 0, 1, 0.3, 11}, {0.15, 0.4, 0, 0.3, 0}}, /* at least 0.3 * 0.4 = 0.12 */
    {{1, 0, 1, 1, 12}, {0, 1, 0, 0, 0}},
    {{1, 3, 0.8, 0, 13}, {0, 0.4, 0, 0.3, 0}},      /* 0.7 of the 0.85 that top-k leaves */
    {{1, 4, 0.9, 0.3, 14}, {0.15, 0.4, 0, 0.3, 0}}, /* min-p last */
    {{0.5, 0, 0.8, 0, 15}, {0, 0.16, 0, 0.09, 0}},  /* temperature first: 0.25 of 0.285 */
};

static void logits_of(float out[VOCAB])
{
    for (int i = 0; i < VOCAB; i++)
        out[i] = (float)log(probabilities[i]) + 3;
}

START_TEST(draws_follow_the_distribution)
{
    uint64_t state = cases[_i].s.seed;
    float logits[VOCAB];
    int count[VOCAB] = {0};
    double sum = 0;

    logits_of(logits);
    for (int i = 0; i < DRAWS; i++) {
        int32_t id = -1;
        ck_ok(ek_sample(&cases[_i].s, logits, VOCAB, &state, &id));
        ck_assert(id >= 0 && id < VOCAB);
        count[id]++;
    }
    for (int i = 0; i < VOCAB; i++)
        sum += cases[_i].want[i];
    for (int i = 0; i < VOCAB; i++) {
        double p = cases[_i].want[i] / sum, sigma = sqrt(p * (1 - p) * DRAWS);
        if (p == 0)
            ck_assert_int_eq(count[i], 0);
        else
            ck_assert_double_le(fabs(count[i] - p * DRAWS), 4.5 * sigma + 2);
    }
}
END_TEST

START_TEST(a_seed_gives_the_same_tokens_and_another_seed_others)
{
    enum { N = 500, WIDE = 1000 };
    struct ek_sampling s = {1, 50, 0.95, 0.01, 0};
    uint64_t a = 42, b = 42, c = 43, random = 1;
    float logits[WIDE];
    int differ = 0;

    for (int i = 0; i < WIDE; i++)
        logits[i] = ek_random_normal(&random);
    for (int i = 0; i < N; i++) {
        int32_t x, y, z;
        ck_ok(ek_sample(&s, logits, WIDE, &a, &x));
        ck_ok(ek_sample(&s, logits, WIDE, &b, &y));
        ck_ok(ek_sample(&s, logits, WIDE, &c, &z));
        ck_assert_int_eq(x, y);
        differ += x != z;
    }
    ck_assert_int_gt(differ, N / 2);
}
END_TEST

START_TEST(greedy_takes_the_largest_and_the_lowest_of_equals)
{
    struct ek_sampling s = EK_SAMPLING_GREEDY;
    float logits[] = {1, 7, -3, 7, NAN};
    uint64_t state = 1;
    int32_t id;

    ck_ok(ek_sample(&s, logits, 5, &state, &id));
    ck_assert_int_eq(id, 1);
    ck_assert_uint_eq(state, 1);
}
END_TEST

START_TEST(equals_of_the_kth_stay)
{
    struct ek_sampling s = {1, 2, 1, 0, 0};
    float logits[] = {1, 2, 1, 0};
    uint64_t state = 5;
    int count[4] = {0};

    for (int i = 0; i < 2000; i++) {
        int32_t id;
        ck_ok(ek_sample(&s, logits, 4, &state, &id));
        count[id]++;
    }
    ck_assert(count[0] > 0 && count[1] > 0 && count[2] > 0 && count[3] == 0);
}
END_TEST

/* ---- the rules by a sort, in doubles: the same ids are left */
struct sorted {
    float logit;
    double p;
    int32_t id;
};

static int best_first(const void *a, const void *b)
{
    const struct sorted *x = a, *y = b;

    return x->logit != y->logit ? (x->logit < y->logit ? 1 : -1) : x->id - y->id;
}

static size_t with_equals(const struct sorted *c, size_t n, size_t k)
{
    while (k < n && c[k].logit == c[k - 1].logit)
        k++;
    return k;
}

/* left[i]: id i may be drawn. Logits are far enough apart for rounding not to matter. */
static void sort_out(const struct ek_sampling *s, const float *logits, uint32_t n, bool *left)
{
    struct sorted *c = ek_calloc(n, sizeof(*c));
    double sum = 0, have = 0;
    size_t kept = n, k = 0;

    for (uint32_t i = 0; i < n; i++)
        c[i] = (struct sorted){logits[i], exp(logits[i] / s->temperature), (int32_t)i};
    qsort(c, n, sizeof(*c), best_first);
    if (s->top_k > 0 && s->top_k < n)
        kept = with_equals(c, n, s->top_k);
    for (size_t i = 0; i < kept; i++)
        sum += c[i].p;
    while (s->top_p < 1 && k < kept && have < s->top_p * sum)
        have += c[k++].p;
    kept = s->top_p < 1 ? with_equals(c, kept, k) : kept;
    while (c[kept - 1].p < s->min_p * c[0].p)
        kept--;
    memset(left, 0, n * sizeof(*left));
    for (size_t i = 0; i < kept; i++)
        left[c[i].id] = true;
    free(c);
}

START_TEST(what_is_left_is_what_a_sort_leaves)
{
    enum { WIDE = 300, TRIES = 40, EACH = 200 };
    uint64_t random = 7, state = 1;
    float logits[WIDE];
    bool left[WIDE];

    for (int k = 0; k < TRIES; k++) {
        struct ek_sampling s = {.temperature = 0.5 + ek_random_unit(&random),
                                .top_k = k % 3 ? (uint32_t)(ek_random_u64(&random) % WIDE) : 0,
                                .top_p = k % 2 ? 0.05 + 0.9 * ek_random_unit(&random) : 1,
                                .min_p = k % 5 == 4 ? 0.2 * ek_random_unit(&random) : 0};
        for (int i = 0; i < WIDE; i++)
            logits[i] = k % 4 ? 2 * ek_random_normal(&random) : (float)(i % 7);
        sort_out(&s, logits, WIDE, left);
        for (int i = 0; i < EACH; i++) {
            int32_t id;
            ck_ok(ek_sample(&s, logits, WIDE, &state, &id));
            ck_assert_msg(left[id], "try %d: %d was sorted out", k, id);
        }
    }
}
END_TEST

/* The first and the last of all random numbers draw the first and the last id that is left. */
START_TEST(the_ends_of_the_random_numbers_are_the_ends_of_what_is_left)
{
    float logits[] = {-1, 3, 2, NAN, 2.5f, -INFINITY, 0};
    struct ek_draw d = {.scale = 1.4427f, .top_k = 3, .top_p = 1, .random = 0};
    int32_t id;

    ck_ok(ek_draw_token(&d, logits, 7, &id));
    ck_assert_int_eq(id, 1);
    d.random = UINT64_MAX;
    ck_ok(ek_draw_token(&d, logits, 7, &id));
    ck_assert_int_eq(id, 4);
    d.top_k = 0;
    ck_ok(ek_draw_token(&d, logits, 7, &id));
    ck_assert_int_eq(id, 6);
    d.scale = 0x1p100f; /* as cold as can be */
    ck_ok(ek_draw_token(&d, logits, 7, &id));
    ck_assert_int_eq(id, 1);
}
END_TEST

START_TEST(penalties_are_of_what_the_prompt_and_the_answer_have)
{
    static const struct ek_bias biases[] = {{0, 3}, {3, -1.5f}};
    static const uint32_t seen[] = {0, 1, 2, 7, 0}; /* prompt; once; prompt and three times */
    static const struct {
        struct ek_penalties p;
        float want[5];
    } ways[] = {
        {EK_PENALTIES_NONE, {1, 2, -2, 4, 0}},
        {{.repetition = 1, .presence = 0.5f}, {1, 2, -2.5f, 3.5f, 0}},
        {{.repetition = 1, .frequency = 0.25f}, {1, 2, -2.25f, 3.25f, 0}},
        {{.repetition = 2}, {1, 1, -4, 2, 0}},
        {{.repetition = 1, .biases = biases, .n_biases = 2}, {4, 2, -2, 2.5f, 0}},
        {{.repetition = 2, .biases = biases, .n_biases = 2, .frequency = 1, .presence = -1},
         {4, 1, -4, 1.25f - 2, 0}},
    };
    static const struct ek_penalties bad[] = {{.repetition = 0},
                                              {.repetition = NAN},
                                              {.repetition = 1, .presence = INFINITY},
                                              {.repetition = 1, .biases = biases, .n_biases = 2}};
    float logits[5];

    for (size_t i = 0; i < EK_ARRAY_LEN(ways); i++) {
        memcpy(logits, ways[0].want, sizeof(logits));
        ck_ok(ek_penalties_check(&ways[i].p, 5));
        ek_penalize(&ways[i].p, seen, 5, logits);
        for (int k = 0; k < 5; k++)
            ck_assert_msg(logits[k] == ways[i].want[k], "%zu, %d: %g", i, k, (double)logits[k]);
    }
    for (size_t i = 0; i < EK_ARRAY_LEN(bad); i++)
        ck_assert_int_eq(ek_penalties_check(&bad[i], 3), EK_EUSAGE);
}
END_TEST

START_TEST(bad_settings_and_logits_are_refused)
{
    static const struct ek_sampling bad[] = {{-1, 0, 1, 0, 0},  {NAN, 0, 1, 0, 0},
                                             {1, 0, 0, 0, 0},   {1, 0, 1.5, 0, 0},
                                             {1, 0, NAN, 0, 0}, {1, 0, 1, -0.1, 0},
                                             {1, 0, 1, 1.1, 0}, {INFINITY, 0, 1, 0, 0}};
    struct ek_sampling s = EK_SAMPLING_GREEDY;
    float logits[] = {NAN, NAN}, high[] = {1, INFINITY};
    uint64_t state = 1;
    int32_t id = 77;

    for (size_t i = 0; i < EK_ARRAY_LEN(bad); i++)
        ck_assert_int_eq(ek_sample(&bad[i], high, 1, &state, &id), EK_EUSAGE);
    ck_assert_int_eq(ek_sample(&s, high, 0, &state, &id), EK_EUSAGE);
    ck_assert_int_eq(ek_sample(&s, logits, 2, &state, &id), EK_EDEVICE);
    ck_assert_int_eq(ek_sample(&s, high, 2, &state, &id), EK_EDEVICE);
    ck_assert_int_eq(id, 77);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("sampling");
    TCase *tc = tcase_create("sampling");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, draws_follow_the_distribution, 0, EK_ARRAY_LEN(cases));
    tcase_add_test(tc, a_seed_gives_the_same_tokens_and_another_seed_others);
    tcase_add_test(tc, greedy_takes_the_largest_and_the_lowest_of_equals);
    tcase_add_test(tc, equals_of_the_kth_stay);
    tcase_add_test(tc, what_is_left_is_what_a_sort_leaves);
    tcase_add_test(tc, the_ends_of_the_random_numbers_are_the_ends_of_what_is_left);
    tcase_add_test(tc, penalties_are_of_what_the_prompt_and_the_answer_have);
    tcase_add_test(tc, bad_settings_and_logits_are_refused);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
