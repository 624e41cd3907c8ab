/* SPDX-License-Identifier: Apache-2.0
 *
 * What does not fit is refused before it is computed with: by the CPU backend through its table,
 * and the checks of operations that it composes by themselves.
 */
#include "kernels/arguments.h"
#include "tests/kernels/refused.h"
#include "tests/kernels/support.h"

#include <check.h>

/* Checks alone in the places of the operations that a CPU lacks. */
static enum ek_status tail(struct ek_device *dev, const void *in, size_t ldi, uint32_t n,
                           const struct ek_mat *o, const float *norm, float eps,
                           const struct ek_mat gate_up[2], const struct ek_mat *down, void *x,
                           struct ek_norm_ahead *next, bool *taken)
{
    (void)dev, (void)in, (void)norm, (void)eps, (void)x, (void)next, (void)taken;
    return ek_args_layer_tail(n, ldi, o, gate_up, down);
}

static enum ek_status qkv(struct ek_device *dev, const void *x, const float *norm, float eps,
                          const struct ek_batch *batch, const struct ek_mat mats[3],
                          const float *const biases[3], const struct ek_rope *rope,
                          const struct ek_kv *kv, const struct ek_norm_ahead *ahead, void *out,
                          size_t ldo)
{
    (void)dev, (void)x, (void)norm, (void)eps, (void)biases, (void)ahead, (void)out;
    return ek_args_qkv_rope(mats, rope, batch, kv, ldo);
}

static enum ek_status mix(struct ek_device *dev, const struct ek_latent_mix *m)
{
    (void)dev;
    return ek_args_latent_mix(m);
}

static enum ek_status prefill(struct ek_device *dev, const struct ek_latent_mix *m, bool *taken)
{
    (void)dev, (void)taken;
    return ek_args_latent_mix(m);
}

static enum ek_status mixture(struct ek_device *dev, const struct ek_mixture *m, bool *taken)
{
    (void)dev, (void)taken;
    return ek_args_mixture(m);
}

START_TEST(arguments_that_do_not_fit_are_refused_by_their_values)
{
    struct ek_device *dev = open_cpu("c", 1);
    struct ek_ops ops = *dev->ops;
    const struct ek_ops *own = dev->ops;

    ops.layer_tail = tail;
    ops.norm_qkv_rope = qkv;
    ops.latent_mix = mix;
    ops.latent_prefill = prefill;
    ops.mixture = mixture;
    dev->ops = &ops;
    check_refused(dev, _i);
    dev->ops = own;
    ek_device_close(dev);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("arguments");
    TCase *tc = tcase_create("arguments");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_loop_test(tc, arguments_that_do_not_fit_are_refused_by_their_values, 0, n_refused);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
