/* SPDX-License-Identifier: Apache-2.0
 *
 * Stages and links by themselves: fused and composed operations, graphs, hand-overs.
 */
#include "tests/runtime/recorder.h"
#include "tests/runtime/support.h"

#include <stdlib.h>
#include <string.h>

enum { PAGES = 20, MAX_SEQS = 10, CONTEXT = PAGES * EK_PAGE };

static struct ek_model *model;
static struct ek_device *device;
static int32_t blocks[MAX_SEQS][PAGES];
static const int32_t *block_rows[MAX_SEQS];

static struct ek_device *open_cpu(unsigned index)
{
    struct ek_device_spec spec = {.backend = "cpu", .threads = "0", .index = index};
    struct ek_device *dev = NULL;

    snprintf(spec.name, sizeof(spec.name), "cpu:%u", index);
    ck_ok(ek_device_open(&spec, EK_F32, &dev));
    return dev;
}

static void open_all(void)
{
    model = small_model(2);
    device = open_cpu(0);
    for (int s = 0; s < MAX_SEQS; s++) { /* blocks of the sequences interleaved */
        for (int i = 0; i < PAGES; i++)
            blocks[s][i] = i * MAX_SEQS + (s * 7 + i) % MAX_SEQS;
        block_rows[s] = blocks[s];
    }
}

static void close_all(void)
{
    ek_device_close(device);
    ek_model_close(model);
}

static enum ek_status make_stage(size_t first, size_t end, struct ek_stage **out)
{
    struct ek_stage_options o = {.page = EK_PAGE,
                                 .n_blocks = PAGES * MAX_SEQS,
                                 .max_tokens = 512,
                                 .max_seqs = MAX_SEQS,
                                 .max_context = CONTEXT,
                                 .max_logits = MAX_SEQS,
                                 .cache = EK_F32};
    size_t modules[16];

    for (size_t i = first; i < end; i++)
        modules[i - first] = i;
    return ek_stage_new(device, model, modules, end - first, &o, out);
}

static struct ek_stage *open_stage(size_t first, size_t end)
{
    struct ek_stage *s = NULL;

    ck_ok(make_stage(first, end, &s));
    return s;
}

static struct ek_batch_host one_token(uint32_t n_seqs, const int32_t *tokens, const uint32_t *ones,
                                      const uint32_t *past, const int32_t *rows)
{
    return (struct ek_batch_host){.n_tokens = n_seqs,
                                  .n_seqs = n_seqs,
                                  .n_logits = n_seqs,
                                  .tokens = tokens,
                                  .n_new = ones,
                                  .past = past,
                                  .blocks = block_rows,
                                  .logit_rows = rows};
}

/* Decodes `steps` tokens of n_seqs sequences from the position `from`; logits of the last. */
static float *decode(struct ek_stage *s, uint32_t n_seqs, uint32_t from, uint32_t steps)
{
    uint32_t vocab = model->config.vocab, ones[MAX_SEQS], past[MAX_SEQS];
    int32_t tokens[MAX_SEQS], all[MAX_SEQS];
    float *logits = ek_calloc(n_seqs * vocab, sizeof(*logits));

    for (uint32_t k = 0; k < steps; k++) {
        struct ek_batch batch;
        const int32_t *rows;
        uint32_t n_rows;
        for (uint32_t i = 0; i < n_seqs; i++) {
            ones[i] = 1;
            past[i] = from + k;
            tokens[i] = (int32_t)((from + 31 * k + 17 * i) % vocab);
            all[i] = (int32_t)i;
        }
        struct ek_batch_host h = one_token(n_seqs, tokens, ones, past, all);
        ck_ok(ek_stage_upload(s, &h, &batch, &rows, &n_rows));
        ck_assert_uint_ge(n_rows, n_seqs);
        ck_ok(ek_stage_run(s, &batch, ek_stage_hidden(s), ek_stage_logits(s), rows, n_rows));
    }
    ck_ok(device->ops->download(device, logits, ek_stage_logits(s),
                                n_seqs * vocab * sizeof(*logits)));
    return logits;
}

static void must_agree(const float *got, const float *want, size_t n)
{
    ck_assert_double_le(largest_difference(got, want, n), 1e-5 * largest(want, n));
}

START_TEST(composed_operations_equal_fused_ones)
{
    static struct ek_ops plain; /* the device keeps it to its end */
    struct ek_stage *fused = open_stage(0, model->n_modules), *composed;
    float *want = decode(fused, 3, 0, 40), *got;

    ek_stage_free(fused);
    plain = *device->ops;
    plain.norm_linear = NULL;
    plain.norm_gate_up = NULL;
    device->ops = &plain;
    composed = open_stage(0, model->n_modules);
    got = decode(composed, 3, 0, 40);
    must_agree(got, want, 3 * model->config.vocab);
    ek_stage_free(composed);
    free(got);
    free(want);
}
END_TEST

START_TEST(replayed_graphs_equal_eager_steps)
{
    static const struct {
        uint32_t n_seqs, from, steps;
    } runs[] = {{3, 0, 20}, {1, 20, 5}, {9, 250, 12}, {10, 262, 3}, {3, 262, 4}};
    struct ek_stage *eager = open_stage(0, model->n_modules), *s;
    float *want[EK_ARRAY_LEN(runs)];

    for (size_t i = 0; i < EK_ARRAY_LEN(runs); i++)
        want[i] = decode(eager, runs[i].n_seqs, runs[i].from, runs[i].steps);
    ek_stage_free(eager);
    recorder_attach(device);
    s = open_stage(0, model->n_modules);
    for (size_t i = 0; i < EK_ARRAY_LEN(runs); i++) {
        float *got = decode(s, runs[i].n_seqs, runs[i].from, runs[i].steps);
        must_agree(got, want[i], runs[i].n_seqs * model->config.vocab);
        free(got);
        free(want[i]);
    }
    /* of 44 steps the first ones of every size and context are eager, all others are replayed */
    ck_assert_uint_le(recorder_captures(), 8);
    ck_assert_uint_ge(recorder_launches(), 24);
    ek_stage_free(s);
}
END_TEST

START_TEST(a_backend_that_cannot_capture_is_run_eagerly)
{
    struct ek_stage *s;
    float *logits;

    recorder_attach(device);
    recorder_refuse(EK_EUNSUPPORTED);
    s = open_stage(0, model->n_modules);
    logits = decode(s, 2, 0, 9);
    ck_assert_uint_eq(recorder_launches(), 0);
    free(logits);
    ek_stage_free(s);
}
END_TEST

START_TEST(stages_chain_through_buffers_of_the_caller)
{
    struct ek_stage *whole = open_stage(0, model->n_modules), *parts[6];
    size_t n = model->n_modules, hidden = model->config.hidden;
    int32_t tokens[] = {5, 9, 100, 7, 3}, last[] = {2, 4};
    uint32_t counts[] = {3, 2}, past[] = {0, 0}, n_rows;
    struct ek_batch_host h = {.n_tokens = 5,
                              .n_seqs = 2,
                              .n_logits = 2,
                              .tokens = tokens,
                              .n_new = counts,
                              .past = past,
                              .blocks = block_rows,
                              .logit_rows = last};
    struct ek_batch batch;
    const int32_t *rows;
    float *want = ek_calloc(2 * model->config.vocab, sizeof(float)),
          *got = ek_calloc(2 * model->config.vocab, sizeof(float)),
          *a = ek_calloc(5 * hidden, sizeof(float)), *b = ek_calloc(5 * hidden, sizeof(float));

    ck_ok(ek_stage_upload(whole, &h, &batch, &rows, &n_rows));
    ck_ok(ek_stage_run(whole, &batch, NULL, want, rows, n_rows));
    for (size_t i = 0; i < n; i++) { /* a CPU device reads the caller's memory */
        float *out = i + 1 == n ? got : i % 2 ? b : a;
        parts[i] = open_stage(i, i + 1);
        ck_assert_int_eq(ek_stage_has_head(parts[i]), i + 1 == n);
        ck_ok(ek_stage_upload(parts[i], &h, &batch, &rows, &n_rows));
        ck_ok(ek_stage_run(parts[i], &batch, i % 2 ? a : b, out, rows, n_rows));
    }
    ck_assert_int_eq(memcmp(got, want, 2 * model->config.vocab * sizeof(*got)), 0);
    for (size_t i = 0; i < n; i++)
        ek_stage_free(parts[i]);
    ek_stage_free(whole);
    free(want), free(got), free(a), free(b);
}
END_TEST

START_TEST(batches_over_the_bounds_are_refused)
{
    struct ek_stage *s = open_stage(0, model->n_modules);
    int32_t tokens[600] = {0}, rows[600] = {0};
    uint32_t much = 513, few = 1, none = 0, past = 0, far = CONTEXT, n_rows;
    struct ek_batch_host bad[] = {
        {.n_tokens = 513, .n_seqs = 1, .n_new = &much, .past = &past},
        {.n_tokens = 0, .n_seqs = 1, .n_new = &none, .past = &past},
        {.n_tokens = 1, .n_seqs = 0, .n_new = &few, .past = &past},
        {.n_tokens = 1, .n_seqs = 11, .n_new = &few, .past = &past},
        {.n_tokens = 2, .n_seqs = 1, .n_new = &few, .past = &past},
        {.n_tokens = 1, .n_seqs = 1, .n_new = &few, .past = &far},
        {.n_tokens = 1, .n_seqs = 1, .n_logits = 2, .n_new = &few, .past = &past},
    };
    struct ek_batch batch;
    const int32_t *where;

    for (size_t i = 0; i < EK_ARRAY_LEN(bad); i++) {
        bad[i].tokens = tokens;
        bad[i].blocks = block_rows;
        bad[i].logit_rows = rows;
        ck_assert_int_eq(ek_stage_upload(s, &bad[i], &batch, &where, &n_rows), EK_EUSAGE);
    }
    ek_stage_free(s);
}
END_TEST

/* ---- links */
enum { MESSAGE = 1000 };

/* Sends and receives more messages than there are slots, each checked. */
static void exercise(struct ek_device *from, struct ek_device *to, const char *mechanism,
                     const void *data, const float *want)
{
    struct ek_link *l = NULL;
    float *src[5], *dst;
    size_t bytes = MESSAGE * ek_dtype_block_bytes(from->act);

    ck_ok(ek_link_open(from, to, MESSAGE, NULL, &l));
    ck_assert_str_eq(ek_link_mechanism(l), mechanism);
    ck_ok(to->ops->alloc(to, EK_TAG_ACTIVATIONS, MESSAGE * sizeof(float), (void **)&dst));
    for (int i = 0; i < 5; i++) {
        ck_ok(from->ops->alloc(from, EK_TAG_ACTIVATIONS, bytes, (void **)&src[i]));
        ck_ok(from->ops->upload(from, src[i], data, bytes));
        ck_assert(ek_link_ready(l));
        ck_ok(ek_link_send(l, src[i], MESSAGE, NULL));
        if (i == 0) /* one message stays ahead */
            continue;
        ck_assert(!ek_link_ready(l));
        ck_assert_int_eq(ek_link_send(l, src[i], MESSAGE, NULL), EK_EUSAGE);
        ck_ok(ek_link_wait(l, NULL));
        ck_ok(to->ops->zero(to, dst, MESSAGE * sizeof(float)));
        ck_ok(ek_link_recv(l, dst, MESSAGE));
        ck_assert_int_eq(memcmp(dst, want, MESSAGE * sizeof(float)), 0);
    }
    ck_ok(ek_link_recv(l, dst, MESSAGE));
    ck_assert_int_eq(ek_link_recv(l, dst, MESSAGE), EK_EUSAGE);
    ck_assert_int_eq(ek_link_send(l, src[0], MESSAGE + 1, NULL), EK_EUSAGE);
    ek_link_close(l);
    for (int i = 0; i < 5; i++)
        from->ops->release(from, src[i]);
    to->ops->release(to, dst);
}

START_TEST(every_mechanism_hands_over_what_was_sent)
{
    struct ek_device *other = open_cpu(1);
    struct ek_ops apart = *other->ops;
    uint16_t half[MESSAGE];
    float wide[MESSAGE];
    uint64_t seed = 3;

    for (int i = 0; i < MESSAGE; i++) {
        half[i] = ek_f32_to_bf16(ek_random_normal(&seed));
        wide[i] = ek_bf16_to_f32(half[i]);
    }
    exercise(device, device, "same-device", wide, wide);
    exercise(device, other, "copy", wide, wide);
    apart.copy_from = NULL;
    other->ops = &apart;
    exercise(device, other, "host-staged", wide, wide);
    device->act = EK_BF16; /* only so many bytes, for a link */
    exercise(device, other, "host-staged", half, wide);
    device->act = EK_F32;
    ek_device_close(other);
}
END_TEST

START_TEST(a_mechanism_is_picked_by_environment_then_plan_then_what_works)
{
    struct ek_device *other = open_cpu(1);

    ck_assert_str_eq(ek_link_pick(device, other, NULL), "copy");
    ck_assert_str_eq(ek_link_pick(device, other, "host-staged"), "host-staged");
    ck_assert_str_eq(ek_link_pick(device, other, "nccl"), "copy"); /* not between CPUs */
    ck_assert_str_eq(ek_link_pick(device, device, "copy"), "same-device");
    setenv("EVENKEEL_LINK", "host-staged", 1);
    ck_assert_str_eq(ek_link_pick(device, other, "copy"), "host-staged");
    setenv("EVENKEEL_LINK", "carrier-pigeon", 1);
    ck_assert_str_eq(ek_link_pick(device, other, NULL), "copy");
    unsetenv("EVENKEEL_LINK");
    ek_device_close(other);
}
END_TEST

START_TEST(links_allocate_what_they_say)
{
    struct ek_device *other = open_cpu(1);
    struct ek_usage at_from[EK_N_TAGS], at_to[EK_N_TAGS];
    struct ek_link *l = NULL;
    struct ek_link_bytes said;

    ck_ok(ek_link_memory(device, other, NULL, MESSAGE, &said));
    ck_ok(ek_link_open(device, other, MESSAGE, NULL, &l));
    device->ops->usage(device, at_from);
    other->ops->usage(other, at_to);
    ck_assert_uint_eq(at_from[EK_TAG_COMM].now, said.at_from);
    ck_assert_uint_eq(at_to[EK_TAG_COMM].now, said.at_to);
    ek_link_close(l);
    device->ops->usage(device, at_from);
    ck_assert_uint_eq(at_from[EK_TAG_COMM].now, 0);
    ck_assert_int_eq(ek_link_open(device, other, 0, NULL, &l), EK_EUSAGE);
    ek_device_close(other);
}
END_TEST

START_TEST(a_mechanism_that_is_not_there_is_refused_by_name_or_replaced)
{
    struct ek_device *other = open_cpu(1);
    struct ek_link *l = NULL;

    ck_assert_int_eq(ek_link_open_as(device, other, MESSAGE, "nccl", &l), EK_EUNSUPPORTED);
    ck_assert_ptr_null(l);
    ck_assert_str_eq(ek_last_error(), "link cpu:0 -> cpu:1: no hand-over by nccl");
    ck_ok(ek_link_open(device, other, MESSAGE, "nccl", &l));
    ck_assert_str_eq(ek_link_mechanism(l), "copy");
    ek_link_close(l);
    ck_ok(ek_link_open(device, other, MESSAGE, "estimate", &l)); /* of a plan without a profile */
    ek_link_close(l);
    ek_device_close(other);
}
END_TEST

/* ---- loading */
static enum ek_status bad_upload(struct ek_device *dev, void *dst, const void *src, size_t n)
{
    (void)dst;
    (void)src;
    return ek_error(EK_EDEVICE, "%s: no upload of %zu bytes, for a test", dev->spec.name, n);
}

static enum ek_status bad_sync(struct ek_device *dev)
{
    return ek_error(EK_EDEVICE, "%s: it has failed before", dev->spec.name);
}

START_TEST(what_loading_fails_with_first_is_told)
{
    const struct ek_ops *whole = device->ops;
    struct ek_ops bad = *whole;
    struct ek_stage *s = NULL;

    bad.host = false;
    bad.upload = bad_upload;
    bad.sync = bad_sync;
    device->ops = &bad;
    ck_assert_int_eq(make_stage(0, 2, &s), EK_EDEVICE);
    device->ops = whole;
    ck_assert_msg(strstr(ek_last_error(), "no upload") != NULL, "%s", ek_last_error());
}
END_TEST

int main(void)
{
    Suite *s = suite_create("stage");
    TCase *tc = tcase_create("stage");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, open_all, close_all);
    tcase_add_test(tc, composed_operations_equal_fused_ones);
    tcase_add_test(tc, replayed_graphs_equal_eager_steps);
    tcase_add_test(tc, a_backend_that_cannot_capture_is_run_eagerly);
    tcase_add_test(tc, stages_chain_through_buffers_of_the_caller);
    tcase_add_test(tc, batches_over_the_bounds_are_refused);
    tcase_add_test(tc, every_mechanism_hands_over_what_was_sent);
    tcase_add_test(tc, a_mechanism_is_picked_by_environment_then_plan_then_what_works);
    tcase_add_test(tc, links_allocate_what_they_say);
    tcase_add_test(tc, a_mechanism_that_is_not_there_is_refused_by_name_or_replaced);
    tcase_add_test(tc, what_loading_fails_with_first_is_told);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
