/* SPDX-License-Identifier: Apache-2.0
 *
 * What the suites of runtime/ share: fixture models, synthetic models, plans cut at will.
 */
#ifndef EK_TESTS_RUNTIME_SUPPORT_H
#define EK_TESTS_RUNTIME_SUPPORT_H

#include "runtime/runtime.h"

#include <check.h>

#define ck_ok(expr)                                                                                \
    do {                                                                                           \
        enum ek_status ck_ok_st_ = (expr);                                                         \
        ck_assert_msg(ck_ok_st_ == EK_OK, "%s: %d: %s", #expr, ck_ok_st_, ek_last_error());        \
    } while (0)

/* Path of a file under tests/ of the source tree, in a static buffer. */
const char *source_path(const char *name);
/* tests/fixtures/reference/NAME */
struct ek_model *fixture_model(const char *name);
/* Made-up weights for the text of a config.json. */
struct ek_model *synthetic_model(const char *config);
/* A small synthetic model (tied head, grouped heads) of n layers. */
struct ek_model *small_model(uint32_t n_layers);

/* A plan over n_devices CPU devices of one thread each: stage i holds chain modules
 * [cuts[i-1], cuts[i]) and lies on device order[i] (NULL: device i). cuts[n_stages - 1] is the
 * number of modules. */
struct plan_shape {
    uint32_t n_devices, n_stages;
    const uint32_t *cuts, *order;
    uint32_t batch, context, chunk, micro_batches; /* 0: 4, 128, 16, 1 */
};
struct ek_plan *make_plan(const struct ek_model *m, const struct plan_shape *shape);
/* Module i on device devices[i]; neighbours on one device are a stage. Cuts and order of the shape
 * are not looked at. */
struct ek_plan *plan_by_module(const struct ek_model *m, const struct plan_shape *shape,
                               const uint32_t *devices);
/* Everything on one device. */
struct ek_plan *one_device_plan(const struct ek_model *m);
struct ek_engine *open_engine(const struct ek_model *m, const struct ek_plan *p);
/* n ids from a seed, freed with free(). */
int32_t *random_ids(const struct ek_model *m, size_t n, uint64_t seed);
/* Logits of all n tokens of one sequence, chunk by chunk: [n][vocab], freed with free(). */
float *all_logits(struct ek_engine *e, const int32_t *ids, size_t n);
/* n_steps tokens of each of n_seqs new sequences that begin with first[i]: [n_steps][n_seqs], freed
 * with free(). `ahead` steps are under way, 1: none follows another on the devices. */
int32_t *decode_ids(struct ek_engine *e, const int32_t *first, uint32_t n_seqs, size_t n_steps,
                    uint32_t ahead, const struct ek_sampling *sampling);
/* Attention of device i fails from its call number `after` on (from 0); n devices in all. */
void make_fail(struct ek_engine *e, size_t n, size_t i, int after);
double largest_difference(const float *a, const float *b, size_t n);
double largest(const float *a, size_t n);

#endif
