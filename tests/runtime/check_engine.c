/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine on CPU devices: official logits, every split, ragged batches, the cache, failures.
 */
#include "tests/runtime/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name, *file;
    double relative, mean_kl;
} fixtures[] = {
    {"llama-mha", "reference.safetensors", 1e-4, 1e-7},
    {"llama-gqa-tied", "reference.safetensors", 1e-4, 1e-7},
    {"llama-linear-rope", "reference.safetensors", 1e-4, 1e-7},
    {"llama-llama3-rope", "reference.safetensors", 1e-4, 1e-7},
    {"llama-biases-f16", "reference.safetensors", 1e-4, 1e-7},
    {"qwen2-tied", "reference.safetensors", 1e-4, 1e-7},
    {"qwen2-bf16", "reference.safetensors", 1e-4, 1e-7},
    {"deepseek-v2-lite", "reference.safetensors", 1e-4, 1e-7},
    {"deepseek-v2", "reference.safetensors", 1e-4, 1e-7},
};

static struct ek_plan *two_devices(const struct ek_model *m, uint32_t cut)
{
    uint32_t cuts[] = {cut, (uint32_t)m->n_modules};
    struct plan_shape shape = {.n_devices = 2, .n_stages = 2, .cuts = cuts, .context = 512};

    return make_plan(m, &shape);
}

START_TEST(logits_equal_the_official_ones_for_every_family)
{
    struct ek_model *m = fixture_model(fixtures[_i].name);
    struct ek_plan *p = two_devices(m, 2);
    struct ek_engine *e = open_engine(m, p);
    struct ek_tolerance t = {fixtures[_i].relative, fixtures[_i].mean_kl};
    struct ek_reference *r = NULL;
    struct ek_comparison c;
    char path[256];

    snprintf(path, sizeof(path), "fixtures/reference/%s/%s", fixtures[_i].name, fixtures[_i].file);
    ck_ok(ek_reference_read(source_path(path), &r));
    ck_ok(ek_compare(e, r, &c));
    ck_assert_uint_eq(c.rows, r->n_rows);
    printf("%-20s rows %zu max|d| %.2e of %.2e, mean KL %.2e, top-1 %zu\n", fixtures[_i].name,
           c.rows, c.max_abs, c.max_logit, c.mean_kl, c.top1_equal);
    ck_ok(ek_comparison_judge(&c, &t));
    ek_reference_free(r);
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

/* Rows of E4M3 are 16 times coarser than of BF16: tiny models of random weights feel it. */
START_TEST(a_scaled_cache_is_small_and_keeps_logits_near)
{
    static const char *const names[] = {"llama-gqa-tied", "qwen2-tied", "deepseek-v2-lite"};
    struct ek_model *m = fixture_model(names[_i]);
    struct ek_plan *p = two_devices(m, 2);
    struct ek_usage exact[EK_N_TAGS], scaled[EK_N_TAGS];
    struct ek_engine *e = open_engine(m, p);
    struct ek_reference *r = NULL;
    struct ek_comparison c;
    char path[256];

    ek_engine_usage(e, 0, exact);
    ek_engine_close(e);
    p->cache = EK_F8_E4M3;
    e = open_engine(m, p);
    ek_engine_usage(e, 0, scaled);
    ck_assert_uint_gt(scaled[EK_TAG_KV].now, exact[EK_TAG_KV].now / 4);
    ck_assert_uint_lt(scaled[EK_TAG_KV].now, exact[EK_TAG_KV].now * 40 / 100); /* short rows */
    snprintf(path, sizeof(path), "fixtures/reference/%s/reference.safetensors", names[_i]);
    ck_ok(ek_reference_read(source_path(path), &r));
    ck_ok(ek_compare(e, r, &c));
    ck_assert_double_gt(c.mean_kl, 1e-6); /* it is not the exact one */
    ck_assert_double_lt(c.mean_kl, 0.1);
    ck_assert_uint_gt(c.top1_equal, c.rows * 3 / 4);
    ek_reference_free(r);
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

/* ---- splits */
static float *logits_of_plan(const struct ek_model *m, const struct plan_shape *shape,
                             const int32_t *ids, size_t n)
{
    struct ek_plan *p = make_plan(m, shape);
    struct ek_engine *e = open_engine(m, p);
    float *logits = all_logits(e, ids, n);

    ek_engine_close(e);
    ek_plan_free(p);
    return logits;
}

enum { SPLIT_TOKENS = 37, SPLIT_LAYERS = 3 };

static void must_be_bit_equal(const struct ek_model *m, const struct plan_shape *shape,
                              const int32_t *ids, const float *want)
{
    float *got = logits_of_plan(m, shape, ids, SPLIT_TOKENS);

    ck_assert_int_eq(memcmp(got, want, SPLIT_TOKENS * m->config.vocab * sizeof(*got)), 0);
    free(got);
}

START_TEST(every_split_over_two_and_three_devices_gives_the_same_bits)
{
    struct ek_model *m = small_model(SPLIT_LAYERS);
    uint32_t n = (uint32_t)m->n_modules, one[] = {n};
    struct plan_shape single = {.n_devices = 1, .n_stages = 1, .cuts = one};
    int32_t *ids = random_ids(m, SPLIT_TOKENS, 3);
    float *want = logits_of_plan(m, &single, ids, SPLIT_TOKENS);

    ck_assert_uint_eq(n, SPLIT_LAYERS + 3);
    for (uint32_t a = 1; a < n; a++) {
        uint32_t cuts[] = {a, n};
        struct plan_shape two = {.n_devices = 2, .n_stages = 2, .cuts = cuts};
        must_be_bit_equal(m, &two, ids, want);
        for (uint32_t b = a + 1; b < n; b++) {
            uint32_t cuts3[] = {a, b, n};
            struct plan_shape three = {.n_devices = 3, .n_stages = 3, .cuts = cuts3};
            must_be_bit_equal(m, &three, ids, want);
        }
    }
    free(want);
    free(ids);
    ek_model_close(m);
}
END_TEST

START_TEST(a_device_may_be_visited_again)
{
    struct ek_model *m = small_model(SPLIT_LAYERS);
    uint32_t n = (uint32_t)m->n_modules, one[] = {n}, cuts[] = {1, 2, 3, 4, n};
    uint32_t orders[][5] = {{0, 1, 0, 1, 0}, {0, 0, 1, 1, 0}, {1, 0, 1, 0, 0}};
    struct plan_shape single = {.n_devices = 1, .n_stages = 1, .cuts = one};
    int32_t *ids = random_ids(m, SPLIT_TOKENS, 3);
    float *want = logits_of_plan(m, &single, ids, SPLIT_TOKENS);

    for (size_t i = 0; i < EK_ARRAY_LEN(orders); i++) {
        struct plan_shape again = {.n_devices = 2, .n_stages = 5, .cuts = cuts, .order = orders[i]};
        must_be_bit_equal(m, &again, ids, want);
    }
    free(want);
    free(ids);
    ek_model_close(m);
}
END_TEST

/* ---- one engine for the tests below: two devices, small model */
static struct ek_model *model;
static struct ek_plan *plan;
static struct ek_engine *engine;

static void open_pair(void)
{
    model = small_model(4);
    plan = two_devices(model, 3);
    engine = open_engine(model, plan);
}

static void close_pair(void)
{
    ek_engine_close(engine);
    ek_plan_free(plan);
    ek_model_close(model);
}

/* Runs one step to its end; logits are copied when asked for. */
static uint32_t run_step(const struct ek_step *step, float *logits, int32_t *argmax)
{
    const float *l = NULL;
    const int32_t *best;
    uint64_t ticket;
    uint32_t rows;

    ck_ok(ek_engine_submit(engine, step, &ticket));
    ck_ok(ek_engine_wait(engine, ticket, logits ? &l : NULL, &best, &rows));
    if (logits && rows)
        memcpy(logits, l, (size_t)rows * model->config.vocab * sizeof(*l));
    if (argmax && rows)
        memcpy(argmax, best, rows * sizeof(*best));
    ek_engine_release(engine, ticket);
    return rows;
}

START_TEST(prefill_then_decode_equals_decode_alone)
{
    enum { N = 24 };
    uint32_t vocab = model->config.vocab, seq, one = 1;
    int32_t *ids = random_ids(model, N, 11), best[N];
    float *whole = all_logits(engine, ids, N), *row = ek_calloc(vocab, sizeof(*row));

    for (size_t start = 1; start < N; start += 7) {
        ck_ok(ek_engine_seq_open(engine, &seq));
        ck_ok(ek_engine_prefill(engine, seq, ids, start, EK_LOGITS_LAST, row, best));
        for (size_t i = start; i < N; i++) {
            struct ek_step step = {.n_seqs = 1,
                                   .seqs = &seq,
                                   .n_tokens = &one,
                                   .tokens = ids + i,
                                   .logits = EK_LOGITS_LAST};
            const float *want = whole + i * vocab;
            ck_assert_uint_eq(run_step(&step, row, best), 1);
            ck_assert_double_le(largest_difference(row, want, vocab), 1e-5 * largest(want, vocab));
            for (uint32_t k = 0; k < vocab; k++)
                ck_assert(want[k] <= want[best[0]]);
        }
        ck_assert_uint_eq(ek_engine_seq_length(engine, seq), N);
        ek_engine_seq_close(engine, seq);
    }
    free(row);
    free(whole);
    free(ids);
}
END_TEST

START_TEST(a_ragged_batch_equals_its_sequences_alone)
{
    enum { S = 4 };
    static const uint32_t lengths[S] = {3, 1, 7, 5};
    uint32_t vocab = model->config.vocab, seqs[S], at = 0;
    int32_t *ids = random_ids(model, 16, 5), best[S];
    float *got = ek_calloc(S * vocab, sizeof(*got));
    struct ek_step step = {
        .n_seqs = S, .seqs = seqs, .n_tokens = lengths, .tokens = ids, .logits = EK_LOGITS_LAST};

    for (int i = 0; i < S; i++)
        ck_ok(ek_engine_seq_open(engine, &seqs[i]));
    ck_assert_uint_eq(run_step(&step, got, best), S);
    for (int i = 0; i < S; i++)
        ek_engine_seq_close(engine, seqs[i]);
    for (int i = 0; i < S; i++) {
        float *alone = all_logits(engine, ids + at, lengths[i]);
        const float *want = alone + (lengths[i] - 1) * vocab;
        ck_assert_double_le(largest_difference(got + i * vocab, want, vocab),
                            1e-5 * largest(want, vocab));
        for (uint32_t k = 0; k < vocab; k++)
            ck_assert(want[k] <= want[best[i]]);
        at += lengths[i];
        free(alone);
    }
    free(got);
    free(ids);
}
END_TEST

START_TEST(prefill_and_decode_share_a_step)
{
    uint32_t vocab = model->config.vocab, seqs[2], counts[] = {1, 6};
    int32_t *ids = random_ids(model, 20, 8), both[7];
    float *got = ek_calloc(2 * vocab, sizeof(*got)), *first, *second;
    struct ek_step step = {
        .n_seqs = 2, .seqs = seqs, .n_tokens = counts, .tokens = both, .logits = EK_LOGITS_LAST};

    ck_ok(ek_engine_seq_open(engine, &seqs[0]));
    ck_ok(ek_engine_seq_open(engine, &seqs[1]));
    ck_ok(ek_engine_prefill(engine, seqs[0], ids, 9, EK_LOGITS_NONE, NULL, NULL));
    both[0] = ids[9];
    memcpy(both + 1, ids + 10, 6 * sizeof(*ids));
    ck_assert_uint_eq(run_step(&step, got, NULL), 2);
    ek_engine_seq_close(engine, seqs[0]);
    ek_engine_seq_close(engine, seqs[1]);
    first = all_logits(engine, ids, 10);
    second = all_logits(engine, ids + 10, 6);
    ck_assert_double_le(largest_difference(got, first + 9 * vocab, vocab),
                        1e-5 * largest(first, 10 * vocab));
    ck_assert_double_le(largest_difference(got + vocab, second + 5 * vocab, vocab),
                        1e-5 * largest(second, 6 * vocab));
    free(first);
    free(second);
    free(got);
    free(ids);
}
END_TEST

START_TEST(blocks_are_used_again_without_a_trace)
{
    int32_t *ids = random_ids(model, 100, 21);
    float *want = all_logits(engine, ids, 40);

    for (int i = 0; i < 6; i++) { /* other sequences soil the blocks in between */
        uint32_t seqs[2];
        float *got;
        ck_ok(ek_engine_seq_open(engine, &seqs[0]));
        ck_ok(ek_engine_seq_open(engine, &seqs[1]));
        ck_ok(ek_engine_prefill(engine, seqs[i % 2], ids + i, 90, EK_LOGITS_NONE, NULL, NULL));
        ek_engine_seq_close(engine, seqs[i % 2]);
        got = all_logits(engine, ids, 40);
        ck_assert_int_eq(memcmp(got, want, 40 * model->config.vocab * sizeof(*got)), 0);
        ek_engine_seq_close(engine, seqs[1 - i % 2]);
        free(got);
    }
    free(want);
    free(ids);
}
END_TEST

START_TEST(many_steps_in_flight_keep_their_order)
{
    enum { S = 4, N = 40 };
    uint32_t vocab = model->config.vocab, seqs[S], one = 1;
    uint64_t tickets[S][N];
    int32_t *ids[S];

    for (int i = 0; i < S; i++) {
        ids[i] = random_ids(model, N, 100 + (uint64_t)i);
        ck_ok(ek_engine_seq_open(engine, &seqs[i]));
    }
    for (int k = 0; k < N; k++)
        for (int i = 0; i < S; i++) {
            struct ek_step step = {.n_seqs = 1,
                                   .seqs = &seqs[i],
                                   .n_tokens = &one,
                                   .tokens = ids[i] + k,
                                   .logits = EK_LOGITS_LAST};
            ck_ok(ek_engine_submit(engine, &step, &tickets[i][k]));
        }
    for (int i = S - 1; i >= 0; i--) /* looked at in another order than they were made */
        ek_engine_seq_close(engine, seqs[i]);
    for (int i = 0; i < S; i++) {
        float *want = all_logits(engine, ids[i], N);
        for (int k = N - 1; k >= 0; k--) {
            const float *got;
            uint32_t rows;
            ck_ok(ek_engine_wait(engine, tickets[i][k], &got, NULL, &rows));
            ck_assert_double_le(largest_difference(got, want + (size_t)k * vocab, vocab),
                                1e-5 * largest(want, N * vocab));
            ek_engine_release(engine, tickets[i][k]);
        }
        free(want);
        free(ids[i]);
    }
}
END_TEST

START_TEST(misuse_is_refused_and_leaves_the_engine_whole)
{
    uint32_t seq, other = 99, one = 1, many = 1000, zero = 0, twice[2], ones[] = {1, 1};
    int32_t ok = 5, bad = 100000, negative = -1, pair[] = {1, 2};
    struct ek_step good = {.n_seqs = 1,
                           .seqs = &seq,
                           .n_tokens = &one,
                           .tokens = &ok,
                           .logits = EK_LOGITS_LAST,
                           .ids_only = true};
    struct ek_step steps[6];
    uint64_t ticket;
    const float *logits;

    ck_ok(ek_engine_seq_open(engine, &seq));
    twice[0] = twice[1] = seq;
    for (size_t i = 0; i < EK_ARRAY_LEN(steps); i++)
        steps[i] = good;
    steps[0].tokens = &bad;
    steps[1].tokens = &negative;
    steps[2].seqs = &other;
    steps[3].n_tokens = &many;
    steps[4].n_tokens = &zero;
    steps[5] = (struct ek_step){.n_seqs = 2, .seqs = twice, .n_tokens = ones, .tokens = pair};
    for (size_t i = 0; i < EK_ARRAY_LEN(steps); i++)
        ck_assert_int_eq(ek_engine_submit(engine, &steps[i], &ticket), EK_EUSAGE);
    ck_assert_uint_eq(ek_engine_seq_length(engine, seq), 0);
    ck_assert_int_eq(ek_engine_wait(engine, 12345, NULL, NULL, NULL), EK_EUSAGE);
    ck_ok(ek_engine_submit(engine, &good, &ticket));
    ck_assert_int_eq(ek_engine_wait(engine, ticket, &logits, NULL, NULL), EK_EUSAGE);
    ck_ok(ek_engine_wait(engine, ticket, NULL, NULL, NULL));
    ek_engine_release(engine, ticket);
    ek_engine_seq_close(engine, seq);
}
END_TEST

START_TEST(sequences_blocks_and_context_run_out_politely)
{
    struct ek_engine_options options = {.max_seqs = 3, .max_context = 100, .cache_tokens = 128};
    struct ek_engine *e;
    uint32_t seqs[3], extra;
    int32_t *ids = random_ids(model, 128, 2);

    ck_ok(ek_engine_open(model, plan, &options, &e));
    for (int i = 0; i < 3; i++)
        ck_ok(ek_engine_seq_open(e, &seqs[i]));
    ck_assert_int_eq(ek_engine_seq_open(e, &extra), EK_ENOMEM);
    ck_ok(ek_engine_prefill(e, seqs[0], ids, 100, EK_LOGITS_NONE, NULL, NULL));
    ck_assert_int_eq(ek_engine_prefill(e, seqs[0], ids, 1, EK_LOGITS_NONE, NULL, NULL), EK_EUSAGE);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "100"));
    ck_assert_int_eq(ek_engine_prefill(e, seqs[1], ids, 1, EK_LOGITS_NONE, NULL, NULL), EK_ENOMEM);
    ek_engine_seq_close(e, seqs[0]);
    ck_ok(ek_engine_prefill(e, seqs[1], ids, 100, EK_LOGITS_NONE, NULL, NULL));
    ek_engine_close(e);
    free(ids);
}
END_TEST

START_TEST(timings_count_every_stage)
{
    struct ek_stage_timing t[2];
    int32_t *ids = random_ids(model, 64, 2);
    float *logits;

    ek_engine_reset_timings(engine);
    logits = all_logits(engine, ids, 64);
    ck_assert_uint_eq(ek_engine_timings(engine, t, 2), 2);
    for (int i = 0; i < 2; i++) {
        ck_assert_uint_eq(t[i].tokens, 64);
        ck_assert_uint_eq(t[i].steps, 4);
        ck_assert_double_gt(t[i].busy_s, 0);
        ck_assert_uint_eq(t[i].device, (unsigned)i);
    }
    free(logits);
    free(ids);
}
END_TEST

/* ---- devices that fail */
START_TEST(a_failing_device_ends_every_wait_and_the_engine_closes)
{
    uint32_t seqs[4], one = 1;
    uint64_t tickets[4];
    int32_t id = 1;
    int n = 0, failed = 0;

    make_fail(engine, 2, (size_t)_i, 3);
    for (int i = 0; i < 4; i++)
        ck_ok(ek_engine_seq_open(engine, &seqs[i]));
    for (; n < 4; n++) {
        struct ek_step step = {.n_seqs = 1,
                               .seqs = &seqs[n],
                               .n_tokens = &one,
                               .tokens = &id,
                               .logits = EK_LOGITS_LAST};
        enum ek_status st = ek_engine_submit(engine, &step, &tickets[n]);
        if (st != EK_OK) {
            ck_assert_int_eq(st, EK_EDEVICE);
            break;
        }
    }
    for (int i = 0; i < n; i++) {
        enum ek_status st = ek_engine_wait(engine, tickets[i], NULL, NULL, NULL);
        ck_assert(st == EK_OK || st == EK_EDEVICE);
        if (st == EK_EDEVICE)
            ck_assert_ptr_nonnull(strstr(ek_last_error(), "made to fail"));
        failed += st == EK_EDEVICE;
        if (i % 2) /* some tickets are never released */
            ek_engine_release(engine, tickets[i]);
    }
    ck_assert_int_gt(failed, 0);
    ck_assert_int_eq(ek_engine_prefill(engine, seqs[0], &id, 1, EK_LOGITS_NONE, NULL, NULL),
                     EK_EDEVICE);
}
END_TEST

START_TEST(an_engine_closes_with_steps_in_flight)
{
    uint32_t seq;
    int32_t *ids = random_ids(model, 128, 2);

    ck_ok(ek_engine_seq_open(engine, &seq));
    for (uint32_t at = 0, k = 16; at < 128; at += k) {
        struct ek_step step = {
            .n_seqs = 1, .seqs = &seq, .n_tokens = &k, .tokens = ids + at, .logits = EK_LOGITS_ALL};
        uint64_t ticket;
        ck_ok(ek_engine_submit(engine, &step, &ticket));
    }
    free(ids);
}
END_TEST

static TCase *pair_case(void)
{
    TCase *tc = tcase_create("pair");

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, open_pair, close_pair);
    tcase_add_test(tc, prefill_then_decode_equals_decode_alone);
    tcase_add_test(tc, a_ragged_batch_equals_its_sequences_alone);
    tcase_add_test(tc, prefill_and_decode_share_a_step);
    tcase_add_test(tc, blocks_are_used_again_without_a_trace);
    tcase_add_test(tc, many_steps_in_flight_keep_their_order);
    tcase_add_test(tc, misuse_is_refused_and_leaves_the_engine_whole);
    tcase_add_test(tc, sequences_blocks_and_context_run_out_politely);
    tcase_add_test(tc, timings_count_every_stage);
    tcase_add_loop_test(tc, a_failing_device_ends_every_wait_and_the_engine_closes, 0, 2);
    tcase_add_test(tc, an_engine_closes_with_steps_in_flight);
    return tc;
}

int main(void)
{
    Suite *s = suite_create("engine");
    TCase *tc = tcase_create("engine");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, logits_equal_the_official_ones_for_every_family, 0,
                        EK_ARRAY_LEN(fixtures));
    tcase_add_loop_test(tc, a_scaled_cache_is_small_and_keeps_logits_near, 0, 3);
    tcase_add_test(tc, every_split_over_two_and_three_devices_gives_the_same_bits);
    tcase_add_test(tc, a_device_may_be_visited_again);
    suite_add_tcase(s, tc);
    suite_add_tcase(s, pair_case());
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
