/* SPDX-License-Identifier: Apache-2.0
 *
 * Steps that take their tokens from the step before them, on the devices: the same tokens as one by
 * one, whatever the plan; sequences that leave; what was computed for nothing; refusals.
 */
#include "tests/runtime/support.h"

#include <stdlib.h>
#include <string.h>

enum { SEQS = 4, STEPS = 24 };

static const struct ek_sampling samplings[] = {
    EK_SAMPLING_GREEDY, {0.8, 30, 0.9, 0.02, 11}, {1.5, 0, 1, 0, 12}};

/* Devices, stages, their ends, and where they lie. */
static const struct {
    uint32_t devices, stages, cuts[5], order[5];
} plans[] = {
    {1, 1, {7}, {0}},
    {2, 2, {3, 7}, {0, 1}},
    {3, 3, {2, 4, 7}, {0, 1, 2}},
    {2, 3, {2, 4, 7}, {0, 1, 0}},
    {2, 5, {1, 2, 3, 6, 7}, {1, 0, 1, 0, 1}},
    {2, 5, {1, 2, 3, 6, 7}, {0, 0, 1, 0, 1}},
};

static struct ek_model *model;

static void make_model(void)
{
    model = small_model(4);
}

static void free_model(void)
{
    ek_model_close(model);
}

static struct ek_engine *open_plan(size_t i, struct ek_plan **p)
{
    struct plan_shape shape = {.n_devices = plans[i].devices,
                               .n_stages = plans[i].stages,
                               .cuts = plans[i].cuts,
                               .order = plans[i].order};

    *p = make_plan(model, &shape);
    return open_engine(model, *p);
}

static void close_plan(struct ek_engine *e, struct ek_plan *p)
{
    ek_engine_close(e);
    ek_plan_free(p);
}

START_TEST(steps_ahead_choose_what_they_do_one_by_one)
{
    struct ek_plan *p;
    struct ek_engine *e = open_plan((size_t)_i, &p);
    int32_t *first = random_ids(model, SEQS, 8);

    for (size_t k = 0; k < EK_ARRAY_LEN(samplings); k++) {
        int32_t *want = decode_ids(e, first, SEQS, STEPS, 1, &samplings[k]);
        for (uint32_t ahead = 2; ahead <= 5; ahead++) {
            int32_t *got = decode_ids(e, first, SEQS, STEPS, ahead, &samplings[k]);
            ck_assert_mem_eq(got, want, SEQS * STEPS * sizeof(*got));
            free(got);
        }
        free(want);
    }
    free(first);
    close_plan(e, p);
}
END_TEST

/* ---- one engine: three devices */
static struct ek_plan *plan;
static struct ek_engine *engine;

static void open_three(void)
{
    make_model();
    engine = open_plan(2, &plan);
}

static void close_three(void)
{
    close_plan(engine, plan);
    free_model();
}

static uint64_t submit(const uint32_t *seqs, uint32_t n, const int32_t *tokens, uint64_t from)
{
    static const uint32_t ones[SEQS] = {1, 1, 1, 1};
    struct ek_step step = {.n_seqs = n,
                           .seqs = seqs,
                           .n_tokens = ones,
                           .tokens = tokens,
                           .from = from,
                           .logits = EK_LOGITS_LAST,
                           .ids_only = true};
    uint64_t ticket;

    ck_ok(ek_engine_submit(engine, &step, &ticket));
    return ticket;
}

static void take(uint64_t ticket, int32_t *out, uint32_t n)
{
    const int32_t *ids;

    ck_ok(ek_engine_wait(engine, ticket, NULL, &ids, NULL));
    memcpy(out, ids, n * sizeof(*ids));
    ek_engine_release(engine, ticket);
}

/* Rows in another order, one left out, a known token among them. */
START_TEST(rows_of_the_step_before_may_be_any)
{
    uint32_t seqs[SEQS], picked[3];
    int32_t first[SEQS] = {5, 6, 7, 8}, mixed[3] = {EK_TOKEN_OF_ROW(3), 9, EK_TOKEN_OF_ROW(0)};
    int32_t a[SEQS], got[3], want[3];
    uint64_t one, two;

    for (int again = 0; again < 2; again++) {
        for (uint32_t i = 0; i < SEQS; i++)
            ck_ok(ek_engine_seq_open(engine, &seqs[i]));
        picked[0] = seqs[3], picked[1] = seqs[1], picked[2] = seqs[0];
        one = submit(seqs, SEQS, first, 0);
        if (again) { /* its tokens are known when the next one is submitted */
            ck_ok(ek_engine_wait(engine, one, NULL, NULL, NULL));
            two = submit(picked, 3, mixed, one);
            take(one, a, SEQS);
            take(two, got, 3);
            ck_assert_mem_eq(got, want, sizeof(got));
        } else {
            take(one, a, SEQS);
            two = submit(picked, 3, (int32_t[]){a[3], 9, a[0]}, 0);
            take(two, want, 3);
        }
        for (uint32_t i = 0; i < SEQS; i++)
            ek_engine_seq_close(engine, seqs[i]);
    }
}
END_TEST

START_TEST(a_step_may_be_released_before_the_one_that_follows_it_begins)
{
    uint32_t seq;
    int32_t first = 3, row = EK_TOKEN_OF_ROW(0), got[STEPS], *want;
    uint64_t tickets[STEPS];

    want = decode_ids(engine, &first, 1, STEPS, 1, &samplings[0]);
    ck_ok(ek_engine_seq_open(engine, &seq));
    tickets[0] = submit(&seq, 1, &first, 0);
    for (int i = 1; i < STEPS; i++) {
        tickets[i] = submit(&seq, 1, &row, tickets[i - 1]);
        take(tickets[i - 1], &got[i - 1], 1);
    }
    take(tickets[STEPS - 1], &got[STEPS - 1], 1);
    ck_assert_mem_eq(got, want, sizeof(got));
    ek_engine_seq_close(engine, seq);
    free(want);
}
END_TEST

/* An answer ended, the next step was under way: the next turn sees nothing of it. */
START_TEST(what_was_computed_ahead_of_an_end_is_forgotten)
{
    enum { TURN = 40 };
    int32_t *ids = random_ids(model, TURN, 5), first = 3, row = EK_TOKEN_OF_ROW(0), best[2], out;
    uint32_t seqs[2];
    uint64_t a, b;

    for (int k = 0; k < 2; k++) {
        ck_ok(ek_engine_seq_open(engine, &seqs[k]));
        ck_ok(ek_engine_prefill(engine, seqs[k], ids, 31, EK_LOGITS_NONE, NULL, NULL));
        a = submit(&seqs[k], 1, &first, 0);
        if (k == 0) {
            b = submit(&seqs[k], 1, &row, a); /* takes another block */
            ck_assert_uint_eq(ek_engine_seq_length(engine, seqs[k]), 33);
            ek_engine_seq_trim(engine, seqs[k], 32);
            take(b, &out, 1);
        }
        take(a, &out, 1);
        ck_assert_uint_eq(ek_engine_seq_length(engine, seqs[k]), 32);
        ck_ok(ek_engine_prefill(engine, seqs[k], ids, TURN, EK_LOGITS_LAST, NULL, &best[k]));
    }
    ck_assert_int_eq(best[0], best[1]);
    ek_engine_seq_trim(engine, seqs[0], 100); /* it is not so long: nothing is done */
    ck_assert_uint_eq(ek_engine_seq_length(engine, seqs[0]), 32 + TURN);
    free(ids);
}
END_TEST

START_TEST(tokens_of_steps_that_are_not_there_are_refused)
{
    uint32_t seq, one = 1;
    int32_t token = 3, row = EK_TOKEN_OF_ROW(0), beyond = EK_TOKEN_OF_ROW(1), least = INT32_MIN;
    const int32_t *bad[] = {&beyond, &least};
    struct ek_step step = {.n_seqs = 1, .seqs = &seq, .n_tokens = &one, .tokens = &row};
    uint64_t ticket, none;

    ck_ok(ek_engine_seq_open(engine, &seq));
    step.from = 777;
    ck_assert_int_eq(ek_engine_submit(engine, &step, &ticket), EK_EUSAGE);
    step.from = submit(&seq, 1, &token, 0);
    for (size_t i = 0; i < EK_ARRAY_LEN(bad); i++) {
        step.tokens = bad[i];
        ck_assert_int_eq(ek_engine_submit(engine, &step, &ticket), EK_EUSAGE);
    }
    step.tokens = &row;
    ck_ok(ek_engine_submit(engine, &step, &none)); /* a step without logits follows; ... */
    step.from = none;
    ck_assert_int_eq(ek_engine_submit(engine, &step, &ticket), EK_EUSAGE); /* ... none follows it */
    ck_assert_uint_eq(ek_engine_seq_length(engine, seq), 2);
}
END_TEST

START_TEST(a_device_that_fails_ends_all_that_follow_one_another)
{
    uint32_t seq;
    int32_t first = 3, row = EK_TOKEN_OF_ROW(0);
    uint32_t one = 1;
    uint64_t tickets[5];
    int failed = 0, n = 0;

    make_fail(engine, 3, (size_t)_i, 2);
    ck_ok(ek_engine_seq_open(engine, &seq));
    for (int i = 0; i < 5; i++) {
        struct ek_step step = {.n_seqs = 1,
                               .seqs = &seq,
                               .n_tokens = &one,
                               .tokens = i ? &row : &first,
                               .from = i ? tickets[i - 1] : 0,
                               .logits = EK_LOGITS_LAST};
        enum ek_status st = ek_engine_submit(engine, &step, &tickets[i]);
        if (st == EK_OK)
            n++;
        else
            break; /* so soon */
    }
    for (int i = 0; i < n; i++)
        failed += ek_engine_wait(engine, tickets[i], NULL, NULL, NULL) == EK_EDEVICE;
    ck_assert_int_ge(failed + 5 - n, 1);
    ck_assert_int_eq(ek_engine_prefill(engine, seq, &first, 1, EK_LOGITS_NONE, NULL, NULL),
                     EK_EDEVICE);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("chain");
    TCase *tc = tcase_create("plans"), *three = tcase_create("three");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, make_model, free_model);
    tcase_add_loop_test(tc, steps_ahead_choose_what_they_do_one_by_one, 0, EK_ARRAY_LEN(plans));
    tcase_set_timeout(three, 60);
    tcase_add_checked_fixture(three, open_three, close_three);
    tcase_add_test(three, rows_of_the_step_before_may_be_any);
    tcase_add_test(three, a_step_may_be_released_before_the_one_that_follows_it_begins);
    tcase_add_test(three, what_was_computed_ahead_of_an_end_is_forgotten);
    tcase_add_test(three, tokens_of_steps_that_are_not_there_are_refused);
    tcase_add_loop_test(three, a_device_that_fails_ends_all_that_follow_one_another, 0, 3);
    suite_add_tcase(s, tc);
    suite_add_tcase(s, three);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
