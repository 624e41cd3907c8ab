/* SPDX-License-Identifier: Apache-2.0
 *
 * GPUs as devices: what they say of themselves, memory with tags and budgets, copies, order, and
 * several devices declared on one GPU.
 */
#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>

#include <check.h>

static void need(enum ek_status st)
{
    ck_assert_msg(st == EK_OK, "%s", ek_last_error());
}

static size_t open_all(const char *text, struct ek_device **devs)
{
    struct ek_device_spec *specs;
    size_t n;

    need(ek_device_specs_parse(text, &specs, &n));
    for (size_t i = 0; i < n; i++)
        need(ek_device_open(&specs[i], EK_BF16, &devs[i]));
    free(specs);
    return n;
}

START_TEST(a_gpu_says_what_it_is)
{
    struct ek_device *d;

    open_all("cuda:0", &d);
    printf("%s, %s, %s, %s, sm_%u%u, %u units, L2 %.0f MiB, %.1f of %.1f GiB free, kernels %s\n",
           d->info.model, d->info.uuid, d->info.pci, d->info.driver, d->info.compute_major,
           d->info.compute_minor, d->info.n_units, (double)d->info.cache_bytes / EK_MIB,
           (double)d->info.memory_free / EK_GIB, (double)d->info.memory_total / EK_GIB,
           d->info.kernels);
    ck_assert(strncmp(d->info.uuid, "GPU-", 4) == 0 && strlen(d->info.uuid) == 40);
    ck_assert(d->info.memory_free <= d->info.memory_total && d->info.n_units > 0);
    ck_assert_uint_eq(strlen(d->info.kernels), 32);
    ck_assert(strncmp(d->info.driver, "unknown", 7) != 0); /* NVML is part of every driver */
    ek_device_close(d);
}
END_TEST

START_TEST(devices_that_are_not_there_are_refused)
{
    struct ek_device_spec *specs;
    struct ek_device *d = NULL;
    size_t n;

    need(ek_device_specs_parse("cuda:63", &specs, &n));
    ck_assert_int_eq(ek_device_open(&specs[0], EK_BF16, &d), EK_EENV);
    ck_assert(strstr(ek_last_error(), "no such GPU") != NULL);
    free(specs);
    need(ek_device_specs_parse("cuda:0", &specs, &n));
    ck_assert_int_eq(ek_device_open(&specs[0], EK_I8, &d), EK_EUNSUPPORTED);
    ck_assert_ptr_null(d);
    free(specs);
}
END_TEST

/* Never more than the GPU has; what is no capability is named. */
START_TEST(a_gpu_is_used_as_one_of_another_kind)
{
    struct ek_device_spec *specs;
    struct ek_device *d = NULL;
    size_t n;

    need(ek_device_specs_parse("cuda:0", &specs, &n));
    setenv("EK_CUDA_CAPABILITY", "7.5", 1);
    ck_assert_int_eq(ek_device_open(&specs[0], EK_BF16, &d), EK_EUNSUPPORTED);
    ck_assert_msg(strstr(ek_last_error(), "no BF16 (compute capability 7.5)") != NULL, "%s",
                  ek_last_error());
    need(ek_device_open(&specs[0], EK_F16, &d));
    ek_device_close(d);
    setenv("EK_CUDA_CAPABILITY", "8.7", 1);
    ck_assert_int_eq(ek_device_open(&specs[0], EK_F16, &d), EK_EUSAGE);
    ck_assert_msg(strstr(ek_last_error(), "EK_CUDA_CAPABILITY=8.7") != NULL, "%s", ek_last_error());
    unsetenv("EK_CUDA_CAPABILITY");
    free(specs);
}
END_TEST

/* What loading takes is there for the next loading, also behind an upload by several threads: in
 * the process's first device of a GPU, so this is the first test. */
START_TEST(pinned_memory_that_is_kept_is_not_taken_for_good)
{
    const size_t bytes = 32 * EK_MIB;
    struct ek_device *d;
    void *first, *second, *to, *from = calloc(1, bytes);

    open_all("cuda:0", &d);
    need(d->ops->host_alloc(d, bytes, &first));
    d->ops->host_free(d, first);
    need(d->ops->alloc(d, EK_TAG_WEIGHTS, bytes, &to));
    need(d->ops->upload(d, to, from, bytes));
    need(d->ops->host_alloc(d, bytes, &second));
    ck_assert_ptr_eq(first, second);
    d->ops->host_free(d, second);
    d->ops->release(d, to);
    ek_device_close(d);
    free(from);
}
END_TEST

START_TEST(memory_is_counted_by_tag_and_kept_within_the_budget)
{
    struct ek_usage by_tag[EK_N_TAGS];
    struct ek_device *d;
    void *a, *b, *c = NULL;

    open_all("cuda:0/mem=64MiB", &d);
    need(d->ops->alloc(d, EK_TAG_WEIGHTS, 40 * EK_MIB, &a));
    need(d->ops->alloc(d, EK_TAG_KV, 1000, &b));
    ck_assert_int_eq(d->ops->alloc(d, EK_TAG_KV, 24 * EK_MIB, &c), EK_ENOMEM);
    ck_assert_msg(strstr(ek_last_error(), "budget") != NULL, "%s", ek_last_error());
    ck_assert_ptr_null(c);
    d->ops->usage(d, by_tag);
    ck_assert_uint_eq(by_tag[EK_TAG_WEIGHTS].now, 40 * EK_MIB);
    ck_assert_uint_eq(by_tag[EK_TAG_KV].now, 1024);
    ck_assert_uint_le(d->ops->memory_free(d), 24 * EK_MIB);
    d->ops->release(d, a);
    need(d->ops->alloc(d, EK_TAG_KV, 24 * EK_MIB, &c));
    d->ops->usage(d, by_tag);
    ck_assert_uint_eq(by_tag[EK_TAG_WEIGHTS].now, 0);
    ck_assert_uint_eq(by_tag[EK_TAG_WEIGHTS].peak, 40 * EK_MIB);
    d->ops->reset_peaks(d);
    d->ops->usage(d, by_tag);
    ck_assert_uint_eq(by_tag[EK_TAG_WEIGHTS].peak, 0);
    ek_device_close(d);
}
END_TEST

START_TEST(out_of_memory_is_told_and_survived)
{
    struct ek_device *d;
    void *p = NULL;
    float v = 3, back = 0;

    open_all("cuda:0", &d);
    ck_assert_int_eq(d->ops->alloc(d, EK_TAG_KV, (size_t)1 << 42, &p), EK_ENOMEM);
    ck_assert_msg(strstr(ek_last_error(), "out of memory") != NULL, "%s", ek_last_error());
    ck_assert_int_eq(d->ops->alloc(d, EK_TAG_KV, SIZE_MAX, &p), EK_ENOMEM);
    ck_assert_ptr_null(p);
    need(d->ops->alloc(d, EK_TAG_KV, 4, &p));
    need(d->ops->upload(d, p, &v, 4));
    need(d->ops->download(d, &back, p, 4));
    ck_assert(back == 3);
    ek_device_close(d);
}
END_TEST

START_TEST(small_pieces_share_memory_and_reserved_memory_is_used)
{
    struct ek_device *d;
    uint64_t before;
    void *p[300];

    open_all("cuda:0", &d);
    need(d->ops->reserve(d, EK_TAG_WEIGHTS, 300 * 100 * EK_KIB));
    before = d->ops->memory_free(d);
    for (int i = 0; i < 300; i++)
        need(d->ops->alloc(d, EK_TAG_WEIGHTS, 100 * EK_KIB, &p[i]));
    ck_assert_uint_eq(d->ops->memory_free(d), before);
    for (int i = 0; i < 300; i += 2)
        d->ops->release(d, p[i]);
    for (int i = 0; i < 300; i += 2)
        need(d->ops->alloc(d, EK_TAG_WEIGHTS, 100 * EK_KIB, &p[i]));
    ck_assert_uint_eq(d->ops->memory_free(d), before);
    for (int i = 1; i < 300; i++)
        ck_assert(p[i] != p[i - 1] && (uintptr_t)p[i] % 256 == 0);
    ek_device_close(d);
}
END_TEST

/* Hidden states go round over four devices declared on one GPU, ordered by events alone. */
START_TEST(several_devices_of_one_gpu_hand_over_in_order)
{
    struct ek_device *d[4];
    struct ek_event *e[4];
    size_t n = open_all("cuda:0.0/mem=1GiB cuda:0.1/mem=1GiB cuda:0.2 cuda:0.3", d);
    size_t bytes = 16 * EK_MIB;
    char *src = malloc(bytes), *back = malloc(bytes);
    void *p[4];

    ck_assert_uint_eq(n, 4);
    ck_assert_str_eq(d[0]->info.memory_group, d[3]->info.memory_group);
    for (size_t i = 0; i < bytes; i++)
        src[i] = (char)(i * 7 + i / 997);
    for (int i = 0; i < 4; i++) {
        need(d[i]->ops->alloc(d[i], EK_TAG_COMM, bytes, &p[i]));
        need(d[i]->ops->event_new(d[i], &e[i]));
    }
    for (int round = 0; round < 5; round++) {
        src[round] ^= 1;
        need(d[0]->ops->upload(d[0], p[0], src, bytes));
        for (int i = 1; i < 4; i++) {
            need(d[i - 1]->ops->event_record(d[i - 1], e[i - 1]));
            need(d[i]->ops->event_wait(d[i], e[i - 1]));
            need(d[i]->ops->copy_from(d[i], p[i], d[i - 1], p[i - 1], bytes));
        }
        need(d[3]->ops->download(d[3], back, p[3], bytes));
        ck_assert_mem_eq(back, src, bytes);
    }
    for (int i = 0; i < 4; i++)
        d[i]->ops->event_free(e[i]);
    for (int i = 0; i < 4; i++)
        ek_device_close(d[i]);
    free(src);
    free(back);
}
END_TEST

START_TEST(uploads_of_many_small_pieces_keep_their_values)
{
    struct ek_device *d;
    int32_t v[64], back[100][64];
    void *p;

    open_all("cuda:0", &d);
    need(d->ops->alloc(d, EK_TAG_ACTIVATIONS, sizeof(back), &p));
    for (int i = 0; i < 100; i++) {
        for (int j = 0; j < 64; j++)
            v[j] = 1000 * i + j;
        need(d->ops->upload(d, (char *)p + (size_t)i * sizeof(v), v, sizeof(v)));
    }
    need(d->ops->download(d, back, p, sizeof(back)));
    for (int i = 0; i < 100; i++)
        for (int j = 0; j < 64; j++)
            ck_assert_int_eq(back[i][j], 1000 * i + j);
    need(d->ops->zero(d, p, sizeof(back)));
    need(d->ops->download(d, back, p, sizeof(back)));
    ck_assert_int_eq(back[99][63], 0);
    ek_device_close(d);
}
END_TEST

static bool present(void)
{
    struct ek_device_spec *specs;
    struct ek_device_info *infos;
    size_t n;
    bool gpu;

    if (ek_devices_list(&specs, &infos, &n) != EK_OK)
        return false;
    gpu = n && strcmp(specs[0].backend, "cuda") == 0;
    free(specs);
    free(infos);
    return gpu;
}

int main(void)
{
    Suite *s = suite_create("gpu devices");
    TCase *tc = tcase_create("devices");
    SRunner *sr;
    int failed;

    if (!present()) {
        printf("skipped: no GPU\n");
        return 77;
    }
    sr = srunner_create(s);
    suite_add_tcase(s, tc);
    tcase_set_timeout(tc, 0);
    tcase_add_test(tc, pinned_memory_that_is_kept_is_not_taken_for_good);
    tcase_add_test(tc, a_gpu_says_what_it_is);
    tcase_add_test(tc, devices_that_are_not_there_are_refused);
    tcase_add_test(tc, a_gpu_is_used_as_one_of_another_kind);
    tcase_add_test(tc, memory_is_counted_by_tag_and_kept_within_the_budget);
    tcase_add_test(tc, out_of_memory_is_told_and_survived);
    tcase_add_test(tc, small_pieces_share_memory_and_reserved_memory_is_used);
    tcase_add_test(tc, several_devices_of_one_gpu_hand_over_in_order);
    tcase_add_test(tc, uploads_of_many_small_pieces_keep_their_values);
    srunner_set_fork_status(sr, CK_NOFORK);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
