/* SPDX-License-Identifier: Apache-2.0
 *
 * Device declarations, memory budgets, copies, events, and the thread pool under stress.
 */
#include "tests/kernels/support.h"

#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *text, *message; /* message NULL: accepted */
} specs_text[] = {
    {"cpu:0", NULL},
    {"cpu:0/threads=0-3,8,mem=512MiB cpu:1/mem=0.25", NULL},
    {"cuda:0 ; cuda:0.1/mem=20GiB", NULL},
    {"cpu", "must be cpu:N"},
    {"cpu:", "must be cpu:N"},
    {"cpu:x", "must be cpu:N"},
    {"cpu:12345", "must be cpu:N"},
    {"cuda:0.1.2", "must be cpu:N"},
    {":0", "must be cpu:N"},
    {"tpu:0", "unknown backend"},
    {"cpu:0 cpu:0", "declared twice"},
    {"cpu:0/cores=2", "unknown option"},
    {"cuda:0/threads=0", "unknown option"},
    {"cpu:0/mem=12XB", "position"},
    {"cpu:0/threads=a", "must be a list of cores"},
    {"cpu:0/mem=1GiB,3", "unknown option"},
    {"cpu:0000000000000000000000000000000000000000000000", "has at most"},
};

START_TEST(declarations_are_read_or_refused_with_a_reason)
{
    struct ek_device_spec *specs = NULL;
    size_t n = 0;
    enum ek_status st = ek_device_specs_parse(specs_text[_i].text, &specs, &n);

    if (!specs_text[_i].message) {
        ck_assert_int_eq(st, EK_OK);
        free(specs);
        return;
    }
    ck_assert_int_eq(st, EK_EUSAGE);
    ck_assert_msg(strstr(ek_last_error(), specs_text[_i].message), "%s", ek_last_error());
}
END_TEST

START_TEST(declarations_keep_cores_and_memory)
{
    struct ek_device_spec *s;
    size_t n;

    ck_assert_int_eq(ek_device_specs_parse(specs_text[1].text, &s, &n), EK_OK);
    ck_assert_uint_eq(n, 2);
    ck_assert_str_eq(s[0].name, "cpu:0");
    ck_assert_str_eq(s[0].backend, "cpu");
    ck_assert_str_eq(s[0].threads, "0-3,8");
    ck_assert_uint_eq(s[0].memory, 512 * EK_MIB);
    ck_assert_uint_eq(s[1].index, 1);
    ck_assert_double_eq(s[1].memory_fraction, 0.25);
    free(s);
    ck_assert_int_eq(ek_device_specs_parse("cuda:3.2/mem=1GB", &s, &n), EK_OK);
    ck_assert_uint_eq(s[0].index, 3);
    ck_assert_str_eq(s[0].name, "cuda:3.2");
    free(s);
}
END_TEST

START_TEST(without_a_declaration_the_machine_is_used)
{
    struct ek_device_spec *s;
    struct ek_device_info *infos;
    size_t n;

    ck_assert_int_eq(ek_device_specs_parse(" ", &s, &n), EK_OK);
    ck_assert_uint_ge(n, 1);
    free(s);
    ck_assert_int_eq(ek_devices_list(&s, &infos, &n), EK_OK);
    ck_assert_str_eq(s[n - 1].name, "cpu:0");
    ck_assert_uint_gt(infos[n - 1].memory_total, infos[n - 1].memory_free / 2);
    ck_assert_uint_eq(strlen(infos[n - 1].kernels), 32);
    free(s);
    free(infos);
}
END_TEST

static const struct {
    const char *threads, *message;
} bad_cores[] = {
    {"1000", "is not one of"}, {"0,0", "listed twice"}, {"3-1", "bad list"},
    {"0-", "bad list"},        {"-1", "bad list"},      {"0,,1", "bad list"},
};

START_TEST(impossible_cores_are_refused)
{
    struct ek_device_spec spec = {.name = "cpu:0", .backend = "cpu"};
    struct ek_device *dev;

    strcpy(spec.threads, bad_cores[_i].threads);
    ck_assert_int_ne(ek_device_open(&spec, EK_F32, &dev), EK_OK);
    ck_assert_msg(strstr(ek_last_error(), bad_cores[_i].message), "%s", ek_last_error());
}
END_TEST

START_TEST(other_activations_backends_and_instruction_sets_are_refused)
{
    struct ek_device_spec spec = {.name = "cpu:0", .backend = "cpu"};
    struct ek_device *dev;

    ck_assert_int_eq(ek_device_open(&spec, EK_BF16, &dev), EK_EUNSUPPORTED);
    strcpy(spec.backend, "none");
    ck_assert_int_eq(ek_device_open(&spec, EK_F32, &dev), EK_EENV);
    strcpy(spec.backend, "cpu");
    setenv("EK_SIMD", "mmx", 1);
    ck_assert_int_eq(ek_device_open(&spec, EK_F32, &dev), EK_EENV);
}
END_TEST

START_TEST(memory_is_tracked_by_tag_and_held_to_the_budget)
{
    struct ek_device_spec spec = {.name = "cpu:0", .backend = "cpu", .memory = 10 * EK_MIB};
    struct ek_usage u[EK_N_TAGS];
    struct ek_device *dev;
    void *a, *b, *c;

    ck_assert_int_eq(ek_device_open(&spec, EK_F32, &dev), EK_OK);
    ck_assert_uint_le(dev->ops->memory_free(dev), 10 * EK_MIB);
    ck_assert_int_eq(dev->ops->alloc(dev, EK_TAG_WEIGHTS, 4 * EK_MIB, &a), EK_OK);
    ck_assert_int_eq(dev->ops->alloc(dev, EK_TAG_KV, 5 * EK_MIB, &b), EK_OK);
    ck_assert_uint_eq((uintptr_t)a % 64, 0);
    ck_assert_int_eq(dev->ops->alloc(dev, EK_TAG_KV, 2 * EK_MIB, &c), EK_ENOMEM);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "10.00 MiB"));
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "2.00 MiB"));
    dev->ops->release(dev, b);
    ck_assert_int_eq(dev->ops->alloc(dev, EK_TAG_KV, 2 * EK_MIB, &c), EK_OK);
    dev->ops->usage(dev, u);
    ck_assert_uint_ge(u[EK_TAG_WEIGHTS].now, 4 * EK_MIB);
    ck_assert_uint_lt(u[EK_TAG_WEIGHTS].now, 4 * EK_MIB + 4096);
    ck_assert_uint_lt(u[EK_TAG_KV].now, 3 * EK_MIB);
    ck_assert_uint_ge(u[EK_TAG_KV].peak, 5 * EK_MIB);
    ck_assert_uint_eq(ek_usage_total(u, false), u[EK_TAG_WEIGHTS].now + u[EK_TAG_KV].now);
    dev->ops->reset_peaks(dev);
    dev->ops->usage(dev, u);
    ck_assert_uint_eq(u[EK_TAG_KV].peak, u[EK_TAG_KV].now);
    ck_assert_int_eq(dev->ops->alloc(dev, EK_TAG_KV, SIZE_MAX - 8, &b), EK_ENOMEM);
    dev->ops->release(dev, NULL);
    ek_device_close(dev); /* a and c go with it */
}
END_TEST

START_TEST(copies_zero_and_read_take_any_size)
{
    static const size_t sizes[] = {0, 1, 63, 300, 262143, 262144, 262145, 1000003};
    struct ek_device *dev = open_cpu("c", 2);
    uint64_t seed = 1;

    for (size_t k = 0; k < EK_ARRAY_LEN(sizes); k++) {
        size_t n = sizes[k];
        uint8_t *src = (uint8_t *)random_floats(&seed, n / 4 + 1), *back = ek_calloc(n + 1, 1);
        void *p, *q;
        ck_assert_int_eq(dev->ops->alloc(dev, EK_TAG_COMM, n, &p), EK_OK);
        ck_assert_int_eq(dev->ops->alloc(dev, EK_TAG_COMM, n, &q), EK_OK);
        ck_assert_int_eq(dev->ops->upload(dev, p, src, n), EK_OK);
        ck_assert_int_eq(dev->ops->copy_from(dev, q, dev, p, n), EK_OK);
        ck_assert_int_eq(dev->ops->zero(dev, p, n), EK_OK);
        ck_assert_int_eq(dev->ops->read_bytes(dev, p, n), EK_OK);
        ck_assert_int_eq(dev->ops->download(dev, back, q, n), EK_OK);
        ck_assert_mem_eq(back, src, n);
        ck_assert_int_eq(dev->ops->download(dev, back, p, n), EK_OK);
        for (size_t i = 0; i < n; i++)
            ck_assert_uint_eq(back[i], 0);
        free(src);
        free(back);
    }
    ek_device_close(dev);
}
END_TEST

START_TEST(events_tell_the_time_between_them)
{
    struct ek_device *dev = open_cpu("c", 1);
    struct ek_event *a, *b;

    ck_assert_int_eq(dev->ops->event_new(dev, &a), EK_OK);
    ck_assert_int_eq(dev->ops->event_new(dev, &b), EK_OK);
    ck_assert_int_eq(dev->ops->event_record(dev, a), EK_OK);
    ck_assert_int_eq(dev->ops->event_record(dev, b), EK_OK);
    ck_assert_int_eq(dev->ops->event_wait(dev, b), EK_OK);
    ck_assert_int_eq(dev->ops->event_sync(b), EK_OK);
    ck_assert_double_ge(dev->ops->event_seconds(a, b), 0);
    ck_assert_double_lt(dev->ops->event_seconds(a, b), 10);
    dev->ops->event_free(a);
    dev->ops->event_free(b);
    ek_device_close(dev);
}
END_TEST

/* Many small products from a thread of its own; both devices are given the same cores. */
static void *many_products(void *arg)
{
    struct ek_device *dev = arg;
    uint64_t seed = 3;
    float *values, *x = random_floats(&seed, 64), y[96], first[96];
    struct ek_mat m = random_mat(dev, EK_Q8_0, 96, 64, &seed, &values);

    for (int i = 0; i < 3000; i++) {
        dev->ops->linear(dev, x, 64, 1, &m, NULL, i ? y : first, 96, 0);
        if (i && memcmp(y, first, sizeof(y)) != 0)
            return dev;
    }
    dev->ops->mat_free(dev, &m);
    free(values);
    free(x);
    return NULL;
}

START_TEST(devices_that_share_cores_make_progress)
{
    struct ek_device *dev[2] = {open_cpu("c", 2), open_cpu("c", 2)};
    pthread_t threads[2];
    void *result;

    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, many_products, dev[i]), 0);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(pthread_join(threads[i], &result), 0);
        ck_assert_ptr_null(result);
        ek_device_close(dev[i]);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("devices");
    TCase *tc = tcase_create("devices");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_loop_test(tc, declarations_are_read_or_refused_with_a_reason, 0,
                        EK_ARRAY_LEN(specs_text));
    tcase_add_test(tc, declarations_keep_cores_and_memory);
    tcase_add_test(tc, without_a_declaration_the_machine_is_used);
    tcase_add_loop_test(tc, impossible_cores_are_refused, 0, EK_ARRAY_LEN(bad_cores));
    tcase_add_test(tc, other_activations_backends_and_instruction_sets_are_refused);
    tcase_add_test(tc, memory_is_tracked_by_tag_and_held_to_the_budget);
    tcase_add_test(tc, copies_zero_and_read_take_any_size);
    tcase_add_test(tc, events_tell_the_time_between_them);
    tcase_add_test(tc, devices_that_share_cores_make_progress);
    tcase_set_timeout(tc, 60);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
