/* SPDX-License-Identifier: Apache-2.0
 *
 * What does not answer: a stage whose device hangs, one that is only slow, a link whose message
 * never comes. The engine fails in time, names it, and closes. CPU devices stand for all.
 */
#include "tests/runtime/support.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const uint32_t cuts[] = {2, 4, 7};

static struct ek_engine *open_three(struct ek_model **m, struct ek_plan **p, double deadline)
{
    struct ek_engine_options options = {.deadline_s = deadline};
    struct ek_engine *e = NULL;
    struct plan_shape shape = {.n_devices = 3, .n_stages = 3, .cuts = cuts};

    *m = small_model(4);
    *p = make_plan(*m, &shape);
    ck_ok(ek_engine_open(*m, *p, &options, &e));
    return e;
}

static void close_three(struct ek_engine *e, struct ek_model *m, struct ek_plan *p)
{
    ck_assert(ek_engine_close(e));
    ek_plan_free(p);
    ek_model_close(m);
}

/* Status of a prompt of 40 tokens, three steps. */
static enum ek_status prefill(struct ek_engine *e)
{
    int32_t *ids = random_ids(ek_engine_model(e), 40, 1);
    uint32_t seq;
    enum ek_status st = ek_engine_seq_open(e, &seq);

    if (st == EK_OK)
        st = ek_engine_prefill(e, seq, ids, 40, EK_LOGITS_LAST, NULL, NULL);
    free(ids);
    return st;
}

static void assert_says(const char *what)
{
    ck_assert_msg(strstr(ek_last_error(), what) != NULL, "'%s' lacks '%s'", ek_last_error(), what);
}

/* The thread never comes back: nothing is freed, so each case is a process of its own. */
START_TEST(a_stage_that_never_answers_ends_in_its_name)
{
    struct ek_model *m;
    struct ek_plan *p;
    struct ek_engine *e;
    char stage[8], want[64];
    uint64_t begin;

    snprintf(stage, sizeof(stage), "%d", _i);
    setenv("EK_HANG_STAGE", stage, 1);
    e = open_three(&m, &p, 0.4);
    begin = ek_now_ns();
    ck_assert_int_eq(prefill(e), EK_EDEVICE);
    ck_assert_uint_lt(ek_now_ns() - begin, 5000000000u);
    snprintf(want, sizeof(want), "stage %d (cpu:%d, ", _i, _i);
    assert_says(want);
    assert_says("does not end: no answer for 0.4 s");
    ck_assert_int_eq(prefill(e), EK_EDEVICE);
    ck_assert(!ek_engine_close(e));
    ck_assert_uint_lt(ek_now_ns() - begin, 20000000000u);
}
END_TEST

/* ---- tables of operations that misbehave */
static struct ek_ops whole, bad;
static struct ek_device *victim;
static int naps; /* left */
static unsigned nap_us;

static enum ek_status slow_attention(struct ek_device *dev, const void *q, size_t ldq,
                                     const struct ek_batch *batch, const struct ek_kv *kv,
                                     uint32_t heads, float scale, void *out, size_t ldo)
{
    if (dev == victim && naps-- > 0)
        usleep(nap_us);
    return whole.attention(dev, q, ldq, batch, kv, heads, scale, out, ldo);
}

static void make_slow(struct ek_engine *e, size_t device, unsigned us, int times)
{
    victim = ek_engine_device(e, device);
    whole = bad = *victim->ops;
    bad.attention = slow_attention;
    nap_us = us;
    naps = times;
    for (size_t i = 0; i < ek_engine_n_devices(e); i++) /* of one backend: copy from each other */
        ek_engine_device(e, i)->ops = &bad;
}

START_TEST(a_stage_that_answers_too_late_is_told_and_the_engine_closes)
{
    struct ek_model *m;
    struct ek_plan *p;
    struct ek_engine *e = open_three(&m, &p, 0.3);

    make_slow(e, 1, 1200000, 1);
    ck_assert_int_eq(prefill(e), EK_EDEVICE);
    assert_says("stage 1 (cpu:1, model.layers.1 to model.layers.2): step 0 (16 tokens)");
    close_three(e, m, p);
}
END_TEST

START_TEST(slow_work_that_goes_on_meets_no_deadline)
{
    struct ek_model *m;
    struct ek_plan *p;
    struct ek_engine *e = open_three(&m, &p, 0.5);

    make_slow(e, 2, 200000, 6); /* 1.2 s in all */
    ck_ok(prefill(e));
    close_three(e, m, p);
}
END_TEST

static enum ek_status captured_idle(struct ek_device *dev)
{
    return ek_error(EK_EDEVICE, "%s: the queue is being captured", dev->spec.name);
}

START_TEST(the_watch_asks_no_queue_which_may_be_under_capture)
{
    struct ek_model *m;
    struct ek_plan *p;
    struct ek_engine *e = open_three(&m, &p, 5);

    make_slow(e, 2, 200000, 2);
    bad.idle = captured_idle;
    ck_ok(prefill(e));
    bad.idle = whole.idle;
    close_three(e, m, p);
}
END_TEST

static enum ek_status slow_wait(struct ek_device *dev, struct ek_event *event)
{
    if (dev == victim && naps-- > 0)
        usleep(nap_us);
    return whole.event_wait(dev, event);
}

START_TEST(a_message_that_does_not_come_is_told_with_its_link)
{
    struct ek_model *m;
    struct ek_plan *p;
    struct ek_engine *e = open_three(&m, &p, 0.3);

    make_slow(e, 2, 1200000, 1);
    bad.attention = whole.attention;
    bad.event_wait = slow_wait;
    ck_assert_int_eq(prefill(e), EK_EDEVICE);
    assert_says("link cpu:1 -> cpu:2 (copy): the message of step 0 does not arrive");
    close_three(e, m, p);
}
END_TEST

/* ---- pictures */
static enum ek_status slow_dense(struct ek_device *dev, const void *qkv, size_t ld, uint32_t n,
                                 const int32_t *offsets, uint32_t n_seqs, uint32_t max_rows,
                                 uint32_t heads, uint32_t dim, float scale, void *out, size_t ldo)
{
    if (naps-- > 0)
        usleep(nap_us);
    return whole.attention_dense(dev, qkv, ld, n, offsets, n_seqs, max_rows, heads, dim, scale, out,
                                 ldo);
}

/* Of pixels: nothing else of a picture is so large. */
static enum ek_status slow_upload(struct ek_device *dev, void *dst, const void *src, size_t n)
{
    if (n > 1 << 16 && naps-- > 0)
        usleep(nap_us);
    return whole.upload(dev, dst, src, n);
}

/* A model that sees, whose tower takes a nap in each of its first blocks. */
static struct ek_engine *open_drowsy(struct ek_model *m, const struct ek_plan *p, double deadline,
                                     unsigned us, int times)
{
    struct ek_engine_options options = {.deadline_s = deadline};
    struct ek_engine *e = NULL;

    ck_ok(ek_engine_open(m, p, &options, &e));
    make_slow(e, 0, us, times);
    bad.attention = whole.attention;
    bad.attention_dense = slow_dense;
    return e;
}

START_TEST(a_tower_that_goes_on_meets_no_deadline_and_one_that_does_not_is_told)
{
    struct ek_model *m = fixture_model("qwen2.5-vl");
    struct ek_plan *p = one_device_plan(m);
    struct ek_reference *r = NULL;
    struct ek_engine *e = open_drowsy(m, p, 0.5, 200000, 4);
    struct ek_comparison c;

    ck_ok(
        ek_reference_read(source_path("fixtures/reference/qwen2.5-vl/reference.safetensors"), &r));
    ck_ok(ek_compare(e, r, &c));
    ck_assert_int_lt(naps, 1);
    ck_assert(ek_engine_close(e));

    e = open_drowsy(m, p, 0.2, 2600000, 1); /* longer than the deadline and the grace after it */
    if (_i == 1) {
        bad.attention_dense = whole.attention_dense;
        bad.upload = slow_upload;
    }
    ck_assert_int_eq(ek_compare(e, r, &c), EK_EDEVICE);
    assert_says("picture: visual");
    assert_says("on cpu:0 does not end: no answer for 0.2 s");
    usleep(1000000); /* and yet it comes back, to memory that is still there */
    ck_assert(ek_engine_close(e));
    ek_reference_free(r);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

/* ---- memory that is not there */
static enum ek_status poor_attention(struct ek_device *dev, const void *q, size_t ldq,
                                     const struct ek_batch *batch, const struct ek_kv *kv,
                                     uint32_t heads, float scale, void *out, size_t ldo)
{
    if (dev == victim && naps-- > 0)
        return ek_error(EK_ENOMEM, "%s: out of memory, for a test", dev->spec.name);
    return whole.attention(dev, q, ldq, batch, kv, heads, scale, out, ldo);
}

START_TEST(a_step_without_memory_ends_alone_and_others_go_on)
{
    struct ek_model *m;
    struct ek_plan *p;
    struct ek_engine *e = open_three(&m, &p, 10);
    int32_t *ids = random_ids(m, 40, 1);
    float *want = all_logits(e, ids, 40), *got;

    make_slow(e, (size_t)_i, 0, 1);
    bad.attention = poor_attention;
    ck_assert_int_eq(prefill(e), EK_ENOMEM);
    assert_says("out of memory, for a test");
    got = all_logits(e, ids, 40);
    ck_assert_mem_eq(got, want, 40 * m->config.vocab * sizeof(*got));
    free(got);
    free(want);
    free(ids);
    close_three(e, m, p);
}
END_TEST

/* A step whose tokens would have come from one that found no memory ends as that one did. */
START_TEST(what_follows_a_step_without_memory_ends_with_it)
{
    struct ek_model *m;
    struct ek_plan *p;
    struct ek_engine *e = open_three(&m, &p, 10);
    int32_t token = 3, row = EK_TOKEN_OF_ROW(0);
    uint32_t one = 1, seq;
    uint64_t tickets[3];
    float *want, *got;
    int32_t *ids = random_ids(m, 40, 1);

    want = all_logits(e, ids, 40);
    make_slow(e, (size_t)_i, 0, 1);
    bad.attention = poor_attention;
    ck_ok(ek_engine_seq_open(e, &seq));
    for (int k = 0; k < 3; k++) {
        struct ek_step step = {.n_seqs = 1,
                               .seqs = &seq,
                               .n_tokens = &one,
                               .tokens = k ? &row : &token,
                               .from = k ? tickets[k - 1] : 0,
                               .logits = EK_LOGITS_LAST};
        ck_ok(ek_engine_submit(e, &step, &tickets[k]));
    }
    for (int k = 0; k < 3; k++) {
        ck_assert_int_eq(ek_engine_wait(e, tickets[k], NULL, NULL, NULL), EK_ENOMEM);
        assert_says("out of memory, for a test");
        ek_engine_release(e, tickets[k]);
    }
    ek_engine_seq_close(e, seq);
    got = all_logits(e, ids, 40);
    ck_assert_mem_eq(got, want, 40 * m->config.vocab * sizeof(*got));
    free(got);
    free(want);
    free(ids);
    close_three(e, m, p);
}
END_TEST

START_TEST(the_deadline_of_the_environment_is_a_number)
{
    struct ek_model *m = small_model(2);
    struct ek_plan *p = one_device_plan(m);
    struct ek_engine *e = NULL;

    setenv("EVENKEEL_DEADLINE", _i ? "-1" : "soon", 1);
    ck_assert_int_eq(ek_engine_open(m, p, NULL, &e), EK_EUSAGE);
    assert_says("EVENKEEL_DEADLINE");
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

/* ---- a link between devices whose queues wait for flags */
static bool reaches(const struct ek_device *dev, const struct ek_device *to)
{
    return dev != to;
}

static enum ek_status store(struct ek_device *dev, void *dst, const void *src, size_t n,
                            uint32_t *flag, uint32_t value, uint64_t *when)
{
    (void)when;
    (void)dev;
    memcpy(dst, src, n);
    if (flag != NULL && value < 3) /* the third is lost */
        __atomic_store_n(flag, value, __ATOMIC_RELEASE);
    return EK_OK;
}

static enum ek_status flag_wait(struct ek_device *dev, const uint32_t *flag, uint32_t value,
                                const uint32_t *stop, uint64_t *when)
{
    (void)dev;
    (void)when;
    while ((int32_t)(__atomic_load_n(flag, __ATOMIC_ACQUIRE) - value) < 0 &&
           __atomic_load_n(stop, __ATOMIC_RELAXED) == 0)
        usleep(1000);
    return EK_OK;
}

static void *wait_for_message(void *link)
{
    return ek_link_wait(link, NULL) == EK_OK ? link : NULL;
}

START_TEST(a_wait_for_a_flag_that_is_never_raised_ends_when_the_link_is_abandoned)
{
    struct ek_device_spec specs[2] = {{.name = "cpu:0", .backend = "cpu", .threads = "0"},
                                      {.name = "cpu:1", .backend = "cpu", .threads = "0"}};
    struct ek_device *dev[2];
    struct ek_link *l = NULL;
    float data[8] = {1, 2, 3, 4, 5, 6, 7, 8}, back[8];
    pthread_t thread;
    void *ended = NULL;

    for (int i = 0; i < 2; i++)
        ck_ok(ek_device_open(&specs[i], EK_F32, &dev[i]));
    bad = *dev[0]->ops;
    bad.reaches = reaches;
    bad.store = store;
    bad.flag_wait = flag_wait;
    dev[0]->ops = dev[1]->ops = &bad;
    ck_ok(ek_link_open(dev[0], dev[1], 8, NULL, &l));
    ck_assert_str_eq(ek_link_mechanism(l), "peer-store");
    for (int i = 0; i < 3; i++) {
        ck_ok(ek_link_send(l, data, 8, NULL));
        if (i == 2)
            break;
        ck_ok(ek_link_wait(l, NULL));
        ck_ok(ek_link_recv(l, back, 8));
        ck_assert_mem_eq(back, data, sizeof(data));
    }
    ck_assert_int_eq(pthread_create(&thread, NULL, wait_for_message, l), 0);
    usleep(20000);
    ek_link_abandon(l);
    ck_assert_int_eq(pthread_join(thread, &ended), 0);
    ck_assert_ptr_eq(ended, l);
    ek_link_close(l);
    for (int i = 0; i < 2; i++)
        ek_device_close(dev[i]);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("watch");
    TCase *tc = tcase_create("watch");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, a_stage_that_never_answers_ends_in_its_name, 0, 3);
    tcase_add_test(tc, a_stage_that_answers_too_late_is_told_and_the_engine_closes);
    tcase_add_test(tc, slow_work_that_goes_on_meets_no_deadline);
    tcase_add_test(tc, the_watch_asks_no_queue_which_may_be_under_capture);
    tcase_add_test(tc, a_message_that_does_not_come_is_told_with_its_link);
    tcase_add_loop_test(tc, a_tower_that_goes_on_meets_no_deadline_and_one_that_does_not_is_told, 0,
                        2);
    tcase_add_loop_test(tc, a_step_without_memory_ends_alone_and_others_go_on, 0, 3);
    tcase_add_loop_test(tc, what_follows_a_step_without_memory_ends_with_it, 0, 3);
    tcase_add_loop_test(tc, the_deadline_of_the_environment_is_a_number, 0, 2);
    tcase_add_test(tc, a_wait_for_a_flag_that_is_never_raised_ends_when_the_link_is_abandoned);
    suite_add_tcase(s, tc);
    srunner_set_fork_status(sr, CK_FORK);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
