/* SPDX-License-Identifier: Apache-2.0
 *
 * Reference files: read, refused, recorded; and what a comparison says.
 */
#include "tests/runtime/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH "check-reference.safetensors"

enum { IDS = 3, VOCAB = 4 };

static const int64_t ids[IDS] = {1, 2, 0}, positions[2] = {0, 2};
static const float logits[IDS * VOCAB] = {0, 1, 2, 3, 3, 2, 1, 0, 5, 5.5, 5, 5};
static const int64_t top_ids[2 * 2] = {3, 2, 1, 0};
static const float top_logits[2 * 2] = {3, 2, 5.5, 5}, sums[2] = {3.44f, 6.6f};

static void remove_file(void)
{
    unlink(PATH);
}

static struct ek_safetensors_entry tensor(const char *name, enum ek_dtype t, uint64_t a, uint64_t b)
{
    struct ek_safetensors_entry e = {.name = name, .dtype = t, .n_dims = b ? 2 : 1};

    e.shape[0] = a;
    e.shape[1] = b;
    e.bytes = a * (b ? b : 1) * ek_dtype_block_bytes(t);
    return e;
}

static enum ek_status read_written(const struct ek_safetensors_entry *e, const void *const *data,
                                   size_t n, struct ek_reference **r)
{
    ck_ok(ek_safetensors_write(PATH, e, data, n, NULL, true));
    return ek_reference_read(PATH, r);
}

START_TEST(both_forms_are_read)
{
    const struct ek_safetensors_entry full[] = {tensor("input_ids", EK_I64, IDS, 0),
                                                tensor("logits", EK_F32, IDS, VOCAB)};
    const void *const full_data[] = {ids, logits};
    const struct ek_safetensors_entry top[] = {tensor("input_ids", EK_I64, IDS, 0),
                                               tensor("positions", EK_I64, 2, 0),
                                               tensor("topk_ids", EK_I64, 2, 2),
                                               tensor("topk_logits", EK_F32, 2, 2),
                                               tensor("logsumexp", EK_F32, 2, 0)};
    const void *const top_data[] = {ids, positions, top_ids, top_logits, sums};
    struct ek_reference *r = NULL;

    ck_ok(read_written(full, full_data, 2, &r));
    ck_assert_uint_eq(r->n_ids, IDS);
    ck_assert_uint_eq(r->n_rows, IDS);
    ck_assert_uint_eq(r->vocab, VOCAB);
    ck_assert_int_eq(r->ids[1], 2);
    ck_assert_int_eq(r->positions[2], 2);
    ck_assert_int_eq(memcmp(r->logits, logits, sizeof(logits)), 0);
    ek_reference_free(r);
    ck_ok(read_written(top, top_data, 5, &r));
    ck_assert_uint_eq(r->n_rows, 2);
    ck_assert_uint_eq(r->n_topk, 2);
    ck_assert_int_eq(r->topk_ids[3], 0);
    ck_assert_int_eq(r->positions[1], 2);
    ck_assert_ptr_null(r->logits);
    ek_reference_free(r);
}
END_TEST

static const int64_t minus[IDS] = {1, -2, 0}, big[IDS] = {1, INT64_MAX, 0}, back[2] = {2, 0},
                     beyond[2] = {0, 3}, same[4] = {3, 3, 1, 0};
static const float nans[IDS * VOCAB] = {0, NAN};

/* Each replaces one tensor of a good file: full form, or top-k from number 9 on. */
static const struct {
    const char *name; /* "" leaves it out */
    size_t which;
    enum ek_dtype dtype;
    uint64_t a, b;
    const void *data;
    const char *message;
} bad[] = {
    {"", 0, EK_I64, 0, 0, NULL, "input_ids is missing"},
    {"", 1, EK_F32, 0, 0, NULL, "logits (or topk_ids) is missing"},
    {"input_ids", 0, EK_I32, IDS, 0, ids, "input_ids must be I64"},
    {"input_ids", 0, EK_I64, 1, IDS, ids, "input_ids must be I64 with 1 dimensions"},
    {"input_ids", 0, EK_I64, IDS, 0, minus, "input_ids[1] is -2"},
    {"input_ids", 0, EK_I64, IDS, 0, big, "input_ids[1] is 9223372036854775807"},
    {"logits", 1, EK_F32, IDS - 1, VOCAB, logits, "dimension 0 of logits is 2, expected 3"},
    {"logits", 1, EK_F32, IDS, VOCAB, nans, "logits[1] is not finite"},
    {"image.0", 1, EK_U8, 1, 1, ids, "image.0 must be U8 [height, width, 3]"},
    {"positions", 1, EK_I64, 2, 0, back, "positions[1] is 0 after 2"},
    {"positions", 1, EK_I64, 2, 0, beyond, "positions[1] is 3"},
    {"positions", 1, EK_I64, 4, 0, same, "4 positions of 3 ids"},
    {"topk_ids", 2, EK_I64, 2, 2, same, "topk_ids[0] holds 3 twice"},
    {"topk_logits", 3, EK_F32, 1, 2, top_logits, "dimension 0 of topk_logits"},
    {"", 3, EK_F32, 0, 0, NULL, "topk_logits is missing"},
    {"", 4, EK_F32, 0, 0, NULL, "logsumexp is missing"},
};

START_TEST(a_malformed_reference_is_refused_in_one_line)
{
    bool full = _i < 9;
    struct ek_safetensors_entry e[5] = {tensor("input_ids", EK_I64, IDS, 0)};
    const void *data[5] = {ids, logits};
    size_t n = full ? 2 : 5;
    struct ek_reference *r = NULL;
    enum ek_status st;

    e[1] = tensor("logits", EK_F32, IDS, VOCAB);
    if (!full) {
        e[1] = tensor("positions", EK_I64, 2, 0), data[1] = positions;
        e[2] = tensor("topk_ids", EK_I64, 2, 2), data[2] = top_ids;
        e[3] = tensor("topk_logits", EK_F32, 2, 2), data[3] = top_logits;
        e[4] = tensor("logsumexp", EK_F32, 2, 0), data[4] = sums;
    }
    if (bad[_i].name[0] == '\0') {
        n--;
        memmove(&e[bad[_i].which], &e[bad[_i].which + 1], (n - bad[_i].which) * sizeof(e[0]));
        memmove(&data[bad[_i].which], &data[bad[_i].which + 1],
                (n - bad[_i].which) * sizeof(data[0]));
    } else {
        e[bad[_i].which] = tensor(bad[_i].name, bad[_i].dtype, bad[_i].a, bad[_i].b);
        data[bad[_i].which] = bad[_i].data;
    }
    st = read_written(e, data, n, &r);
    ck_assert(st == EK_EFORMAT || st == EK_EUNSUPPORTED);
    ck_assert_ptr_null(r);
    ck_assert_msg(strstr(ek_last_error(), bad[_i].message) != NULL, "%s", ek_last_error());
    ck_assert_ptr_nonnull(strstr(ek_last_error(), PATH));
}
END_TEST

/* ---- recorded, then compared */
START_TEST(a_recorded_run_agrees_with_itself_and_not_with_another)
{
    struct ek_model *m = small_model(2);
    struct ek_plan *p = one_device_plan(m);
    struct ek_engine *e = open_engine(m, p);
    struct ek_tolerance exact = {1e-6, 1e-9};
    struct ek_reference *r = NULL;
    struct ek_comparison c;
    int32_t *tokens = random_ids(m, 50, 4);

    const struct ek_reference in = {.ids = tokens, .n_ids = 50};

    ck_ok(ek_reference_record(e, &in, PATH, true));
    ck_assert_int_eq(ek_reference_record(e, &in, PATH, false), EK_EUSAGE);
    ck_ok(ek_reference_read(PATH, &r));
    ck_assert_str_eq(r->dtype, "F32");
    ck_ok(ek_compare(e, r, &c));
    ck_assert_uint_eq(c.rows, 50);
    ck_assert_double_eq(c.max_abs, 0);
    ck_assert_double_eq(c.mean_kl, 0);
    ck_assert_uint_eq(c.top1_equal, 50);
    ck_assert_uint_eq(c.not_finite, 0);
    ck_ok(ek_comparison_judge(&c, &exact));
    r->logits[7 * m->config.vocab + 3] += 0.5f;
    ck_ok(ek_compare(e, r, &c));
    ck_assert_double_eq_tol(c.max_abs, 0.5, 1e-4);
    ck_assert_uint_eq(c.worst_row, 7);
    ck_assert_int_eq(ek_comparison_judge(&c, &exact), EK_NO);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "row 7"));
    r->vocab--;
    ck_assert_int_eq(ek_compare(e, r, &c), EK_EFORMAT);
    r->vocab++;
    r->ids[3] = (int32_t)m->config.vocab;
    ck_assert_int_eq(ek_compare(e, r, &c), EK_EFORMAT);
    ek_reference_free(r);
    free(tokens);
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

/* The full form cut down to its k best must give the same verdict. */
static struct ek_reference *cut_to_topk(const struct ek_reference *full, uint32_t k)
{
    struct ek_reference *r = ek_calloc(1, sizeof(*r));

    *r = *full;
    r->n_topk = k;
    r->logits = NULL;
    r->vocab = 0;
    r->topk_ids = ek_calloc(r->n_rows * k, sizeof(*r->topk_ids));
    r->topk_logits = ek_calloc(r->n_rows * k, sizeof(*r->topk_logits));
    r->logsumexp = ek_calloc(r->n_rows, sizeof(*r->logsumexp));
    for (size_t row = 0; row < r->n_rows; row++) {
        const float *x = full->logits + row * full->vocab;
        double sum = 0;
        for (uint32_t i = 0; i < full->vocab; i++) {
            uint32_t better = 0;
            for (uint32_t o = 0; o < full->vocab; o++)
                better += x[o] > x[i] || (x[o] == x[i] && o < i);
            if (better < k) {
                r->topk_ids[row * k + better] = (int32_t)i;
                r->topk_logits[row * k + better] = x[i];
            }
            sum += exp(x[i]);
        }
        r->logsumexp[row] = (float)log(sum);
    }
    return r;
}

static void free_topk(struct ek_reference *r)
{
    free(r->topk_ids);
    free(r->topk_logits);
    free(r->logsumexp);
    free(r);
}

START_TEST(the_topk_form_gives_the_same_verdict)
{
    struct ek_model *m = small_model(2);
    struct ek_plan *p = one_device_plan(m);
    struct ek_engine *e = open_engine(m, p);
    struct ek_reference *full = NULL, *top;
    struct ek_comparison c, whole;
    int32_t *tokens = random_ids(m, 20, 4);

    const struct ek_reference in = {.ids = tokens, .n_ids = 20};

    ck_ok(ek_reference_record(e, &in, PATH, true));
    ck_ok(ek_reference_read(PATH, &full));
    for (uint32_t i = 0; i < full->vocab; i++) /* a wrong row */
        full->logits[5 * full->vocab + i] *= 1.5f;
    top = cut_to_topk(full, 16);
    ck_ok(ek_compare(e, full, &whole));
    ck_ok(ek_compare(e, top, &c));
    ck_assert_uint_eq(c.rows, 20);
    ck_assert_uint_eq(c.worst_row, 5);
    ck_assert_uint_eq(c.top1_equal, whole.top1_equal);
    ck_assert_double_gt(c.max_kl, 1e-4);
    ck_assert_double_le(c.max_kl, whole.max_kl * 1.001); /* merging outcomes only loses */
    free_topk(top);
    ek_reference_free(full);
    free(tokens);
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

START_TEST(a_verdict_names_its_reason)
{
    struct ek_comparison good = {.rows = 9,
                                 .max_abs = 0.001,
                                 .max_logit = 20,
                                 .mean_kl = 1e-5,
                                 .top1_equal = 8,
                                 .top1_decided = 7,
                                 .top1_decided_equal = 7};
    struct ek_comparison c = good;
    struct ek_tolerance t = {1e-4, 1e-3}, none = {0, 0};

    ck_ok(ek_comparison_judge(&good, &t));
    c.max_abs = 0.003;
    ck_assert_int_eq(ek_comparison_judge(&c, &t), EK_NO);
    ck_ok(ek_comparison_judge(&c, &none));
    c = good, c.mean_kl = 0.01;
    ck_assert_int_eq(ek_comparison_judge(&c, &t), EK_NO);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "KL"));
    c = good, c.top1_decided_equal = 6;
    ck_assert_int_eq(ek_comparison_judge(&c, &none), EK_NO);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "1 of 7"));
    c = good, c.not_finite = 1;
    ck_assert_int_eq(ek_comparison_judge(&c, &none), EK_NO);
}
END_TEST

START_TEST(only_two_exact_runs_are_held_to_the_exact_tolerance)
{
    static const struct {
        enum ek_dtype act;
        const char *reference;
        bool exact;
    } runs[] = {{EK_F32, "float32", true},  {EK_F32, "", true},  {EK_F32, "bfloat16", false},
                {EK_F32, "float16", false}, {EK_F16, "", false}, {EK_BF16, "bfloat16", false}};
    const struct ek_model dense = {.config = {.n_experts = 0}};

    for (size_t i = 0; i < EK_ARRAY_LEN(runs); i++) {
        struct ek_reference r = {.bf16_mean_kl = 2e-3};
        struct ek_tolerance t;

        snprintf(r.dtype, sizeof(r.dtype), "%s", runs[i].reference);
        t = ek_tolerance_for(&dense, runs[i].act, &r);
        ck_assert_double_eq(t.relative, runs[i].exact ? 1e-4 : 0);
        ck_assert_double_eq(t.mean_kl, runs[i].exact ? 0 : 2e-3);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("reference");
    TCase *tc = tcase_create("reference");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, NULL, remove_file);
    tcase_add_test(tc, both_forms_are_read);
    tcase_add_loop_test(tc, a_malformed_reference_is_refused_in_one_line, 0, EK_ARRAY_LEN(bad));
    tcase_add_test(tc, a_recorded_run_agrees_with_itself_and_not_with_another);
    tcase_add_test(tc, the_topk_form_gives_the_same_verdict);
    tcase_add_test(tc, a_verdict_names_its_reason);
    tcase_add_test(tc, only_two_exact_runs_are_held_to_the_exact_tolerance);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
