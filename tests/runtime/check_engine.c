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

int main(void)
{
    Suite *s = suite_create("engine");
    TCase *tc = tcase_create("engine");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, logits_equal_the_official_ones_for_every_family, 0,
                        EK_ARRAY_LEN(fixtures));
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
