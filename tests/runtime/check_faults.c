/* SPDX-License-Identifier: Apache-2.0
 *
 * Every allocation of host memory fails in turn: no crash, no leak (under ASan), no hang, and a
 * status that says so. Each case is a process of its own.
 */
#include "tests/runtime/support.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST = 400, STRIDE = 3 };

static enum ek_status open_model(struct ek_model **out)
{
    static const struct ek_model_options options = EK_MODEL_OPTIONS_INIT;

    return ek_model_open(source_path("fixtures/reference/llama-gqa-tied"), &options, out);
}

static enum ek_status give(void *user, bool wait, struct ek_generation **out)
{
    struct ek_generation **one = user;

    (void)wait;
    *out = *one;
    *one = NULL;
    return EK_OK;
}

static void ended(void *user, struct ek_generation *g)
{
    (void)user;
    (void)g;
}

static enum ek_status stream(struct ek_engine *e, const struct ek_prompt *prompt,
                             const struct ek_generate_options *opt)
{
    struct ek_generation g = {.prompt = *prompt, .opt = *opt}, *one = &g;
    struct ek_generations from = {.next = give, .ended = ended, .user = &one};
    enum ek_status st = ek_generate_stream(e, &from);

    free(g.out.ids);
    return st;
}

static enum ek_status run(struct ek_model *m, struct ek_plan *p)
{
    int32_t ids[] = {1, 2, 3, 4, 5, 6, 7};
    struct ek_prompt prompts[] = {{.ids = ids, .n = 7}, {.ids = ids + 2, .n = 3}};
    struct ek_generate_options opt = {.sampling = {0.7, 20, 0.9, 0, 1}, .max_tokens = 3};
    struct ek_completion *c = NULL;
    struct ek_engine *e = NULL;
    enum ek_status st = ek_engine_open(m, p, NULL, &e);

    if (st != EK_OK)
        return st;
    st = ek_generate(e, prompts, 2, &opt, &c, NULL);
    if (st == EK_OK) {
        ek_completions_free(c, 2);
        st = stream(e, &prompts[0], &opt);
    }
    ek_engine_close(e);
    return st;
}

START_TEST(an_allocation_that_fails_is_survived)
{
    struct ek_device_spec spec = {.name = "cpu:0", .backend = "cpu", .threads = "0"};
    struct ek_model *m = NULL;
    struct ek_plan *p = NULL;
    char n[16];
    enum ek_status st;

    snprintf(n, sizeof(n), "%d", _i * STRIDE + 1);
    setenv("EK_FAIL_ALLOC", n, 1); /* read at the first allocation of this process */
    st = open_model(&m);
    if (st == EK_OK)
        st = ek_plan_single(m, &spec, 2, 64, &p);
    if (st == EK_OK)
        st = run(m, p);
    ck_assert_msg(st == EK_OK || st == EK_ENOMEM || st == EK_EDEVICE, "%s: %d: %s", n, st,
                  ek_last_error());
    if (st != EK_OK)
        ck_assert_msg(strstr(ek_last_error(), "out of") != NULL, "%s: %s", n, ek_last_error());
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("faults");
    TCase *tc = tcase_create("faults");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 30);
    tcase_add_loop_test(tc, an_allocation_that_fails_is_survived, 0, MOST / STRIDE);
    suite_add_tcase(s, tc);
    srunner_set_fork_status(sr, CK_FORK);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
