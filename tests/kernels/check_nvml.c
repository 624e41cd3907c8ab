/* SPDX-License-Identifier: Apache-2.0
 *
 * What is made of NVML's answers, without NVML: those of a whole GPU and of a MIG instance on it.
 */
#include "kernels/cuda/nvml.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static const struct recorded { /* what a machine answered */
    const char *uuid;
    bool mig;
    unsigned long long total, free, reasons;
} machine[] = {
    {"GPU-6091723c-1489-8531-612c-d2c983e2ea71", false, 150754820096, 150109880320, 0x4},
    {"MIG-41ec2a46-4aa3-5a4e-9f3b-6b1e8b8bf3a0", true, 18790481920, 18778947584, 0},
    {"GPU-00000000-1489-8531-612c-d2c983e2ea71", false, 150754820096, 150109880320, 0},
};
static bool mute; /* no driver, no answers but handles */

static ek_nvml_device handle(const struct recorded *r)
{
    return (ek_nvml_device)(uintptr_t)r;
}

static int driver_version(char *text, unsigned n)
{
    snprintf(text, n, "580.159.04");
    return mute;
}

static int by_uuid(const char *uuid, ek_nvml_device *out)
{
    for (size_t i = 0; i < EK_ARRAY_LEN(machine); i++)
        if (strcmp(machine[i].uuid, uuid) == 0) {
            *out = handle(&machine[i]);
            return 0;
        }
    return 6; /* not found */
}

static int by_pci(const char *pci, ek_nvml_device *out)
{
    *out = handle(&machine[0]);
    return strcmp(pci, "00000000:06:00.0") != 0;
}

static int memory(ek_nvml_device d, struct ek_nvml_memory *out)
{
    const struct recorded *r = d;

    *out = (struct ek_nvml_memory){r->total, r->free, r->total - r->free};
    return mute;
}

static int parent(ek_nvml_device mig, ek_nvml_device *out)
{
    (void)mig;
    *out = handle(&machine[0]);
    return 0;
}

/* A MIG instance has no clocks of its own. */
static int clock_info(ek_nvml_device d, int which, unsigned *mhz)
{
    *mhz = which == 1 ? 1755 : 3201;
    return ((const struct recorded *)d)->mig || mute ? 3 : 0;
}

static int reasons(ek_nvml_device d, unsigned long long *mask)
{
    *mask = ((const struct recorded *)d)->reasons | 1; /* idle too */
    return mute;
}

static int nvlinks, level; /* P2P's status over NVLink, the common ancestor */

static int p2p(ek_nvml_device a, ek_nvml_device b, int what, int *status)
{
    ck_assert_ptr_ne(a, b);
    ck_assert_int_eq(what, 2);
    *status = nvlinks;
    return mute;
}

static int ancestor(ek_nvml_device a, ek_nvml_device b, int *out)
{
    ck_assert_ptr_ne(a, b);
    *out = level;
    return mute;
}

static void answer(void)
{
    struct ek_nvml_api api = {.driver_version = driver_version,
                              .by_uuid = by_uuid,
                              .by_pci = by_pci,
                              .memory = memory,
                              .parent = parent,
                              .clock = clock_info,
                              .reasons = reasons,
                              .p2p = p2p,
                              .ancestor = ancestor};

    mute = false;
    ek_nvml_use(&api);
}

START_TEST(a_whole_gpu_is_known_by_its_uuid)
{
    struct ek_nvml_facts f;

    ck_assert(ek_nvml_facts("6091723c-1489-8531-612c-d2c983e2ea71", "?", &f));
    ck_assert(!f.mig);
    ck_assert_uint_eq(f.total, machine[0].total);
    ck_assert_uint_eq(f.free, machine[0].free);
    ck_assert_str_eq(f.driver, "580.159.04");
}
END_TEST

START_TEST(a_mig_instance_has_its_own_memory)
{
    struct ek_nvml_facts f;

    ck_assert(ek_nvml_facts("41ec2a46-4aa3-5a4e-9f3b-6b1e8b8bf3a0", "00000000:06:00.0", &f));
    ck_assert(f.mig);
    ck_assert_uint_eq(f.total, machine[1].total);
}
END_TEST

START_TEST(an_unknown_uuid_is_looked_for_by_its_place)
{
    struct ek_nvml_facts f;

    ck_assert(ek_nvml_facts("other", "00000000:06:00.0", &f));
    ck_assert_uint_eq(f.total, machine[0].total);
    ck_assert(!ek_nvml_facts("other", "00000000:07:00.0", &f));
}
END_TEST

START_TEST(clocks_are_those_of_the_whole_gpu)
{
    const char *uuids[] = {machine[0].uuid + 4, machine[1].uuid + 4};
    struct ek_device_state s;
    char text[64];

    for (size_t i = 0; i < 2; i++) {
        ck_assert(ek_nvml_state(uuids[i], "?", &s));
        ck_assert_uint_eq(s.clock_mhz, 1755);
        ck_assert_uint_eq(s.memory_mhz, 3201);
        ck_assert_uint_eq(s.throttle, 4); /* idleness is none */
        ck_assert_uint_eq(s.memory_used, machine[i].total - machine[i].free);
        ck_assert_str_eq(ek_throttle_text(s.throttle, text), "power cap");
    }
    ck_assert_str_eq(ek_throttle_text(0x4 | 0x20, text), "power cap, thermal");
    ck_assert_str_eq(ek_throttle_text(0, text), "");
}
END_TEST

START_TEST(what_is_not_answered_is_not_known)
{
    struct ek_nvml_facts f;
    struct ek_device_state s;

    mute = true;
    ck_assert(!ek_nvml_facts(machine[0].uuid + 4, "?", &f));
    ck_assert(ek_nvml_state(machine[0].uuid + 4, "?", &s));
    ck_assert_uint_eq(s.clock_mhz, 0);
    ck_assert_uint_eq(s.throttle, 0);
    ck_assert_uint_eq(s.memory_used, 0);
}
END_TEST

START_TEST(what_lies_between_two_gpus_is_named)
{
    const char *apart[2] = {machine[0].uuid + 4, machine[2].uuid + 4}, *pci[2] = {"?", "?"};
    const char *instance[2] = {machine[0].uuid + 4, machine[1].uuid + 4};
    const char *unknown[2] = {machine[0].uuid + 4, "other"};

    nvlinks = 0;
    ck_assert_str_eq(ek_nvml_joined(apart, pci), "NVLink");
    nvlinks = 5; /* not supported */
    level = 30;
    ck_assert_str_eq(ek_nvml_joined(apart, pci), "host bridge");
    level = 35;
    ck_assert_str_eq(ek_nvml_joined(apart, pci), "");
    ck_assert_str_eq(ek_nvml_joined(instance, pci), "same GPU");
    ck_assert_str_eq(ek_nvml_joined(unknown, pci), "");
    mute = true;
    ck_assert_str_eq(ek_nvml_joined(apart, pci), "");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("nvml");
    TCase *tc = tcase_create("nvml");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tc, answer, NULL);
    tcase_add_test(tc, a_whole_gpu_is_known_by_its_uuid);
    tcase_add_test(tc, a_mig_instance_has_its_own_memory);
    tcase_add_test(tc, an_unknown_uuid_is_looked_for_by_its_place);
    tcase_add_test(tc, clocks_are_those_of_the_whole_gpu);
    tcase_add_test(tc, what_is_not_answered_is_not_known);
    tcase_add_test(tc, what_lies_between_two_gpus_is_named);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
