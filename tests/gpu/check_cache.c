/* SPDX-License-Identifier: Apache-2.0
 *
 * A cache of E4M3 with scaled rows on the GPU: what is appended keeps the format's promise,
 * attention over it equals the CPU's over the same bytes, and differs from attention over exact
 * rows by no more than those promises allow.
 */
#include "tests/gpu/gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#define MAX_SEQS 5

static struct pair pr;
static uint64_t seed;
static const enum ek_dtype acts[] = {EK_F32, EK_BF16, EK_F16};

struct shape {
    uint32_t heads, kv_heads, dim, v_dim, page; /* v_dim < dim: latent, one cached head */
    uint32_t n_seqs, past[MAX_SEQS], n_new[MAX_SEQS];
};
static const struct shape shapes[] = {
    {16, 2, 128, 128, 32, 1, {511}, {1}},
    {28, 4, 128, 128, 32, 4, {0, 2700, 63, 100}, {1, 1, 1, 1}},
    {24, 2, 128, 128, 16, 2, {5000, 300}, {1, 1}},
    {14, 2, 64, 64, 32, 3, {0, 100, 700}, {1, 1, 1}},
    {16, 1, 64, 64, 16, 2, {90, 5}, {1, 1}},
    {14, 2, 64, 64, 32, 3, {0, 100, 7}, {130, 65, 1}},
    {16, 2, 128, 128, 32, 2, {0, 37}, {300, 128}},
    {6, 3, 80, 80, 16, 2, {10, 0}, {1, 33}},
    {4, 2, 72, 72, 16, 1, {10}, {5}},
    {16, 1, 576, 512, 32, 3, {0, 700, 63}, {1, 1, 1}},
    {16, 1, 576, 512, 16, 2, {0, 37}, {150, 65}},
    {4, 1, 40, 32, 16, 3, {0, 20, 3}, {9, 1, 5}},
};

static void need(enum ek_status st)
{
    ck_assert_msg(st == EK_OK, "%s", ek_last_error());
}

/* Keys, or values: exact rows in the host's memory, and scaled ones in both memories. */
struct rows {
    size_t n;
    uint32_t dim;
    float *exact;
    struct both bytes, scales;
};

struct setup {
    const struct shape *s;
    bool latent;
    struct paged batch;
    struct both x, inv_freq, weight, q, out;
    struct rows k, v;
};

static int32_t *integers(size_t n)
{
    int32_t *v = calloc(n, sizeof(*v));

    ck_assert(v != NULL);
    return v;
}

/* Random rows, some of them large, some small, and their scaled form. */
static struct rows rows_new(size_t n, uint32_t dim)
{
    struct rows r = {.n = n, .dim = dim, .exact = malloc(n * dim * sizeof(float))};
    int32_t *bytes = integers((n * dim + 3) / 4), *scales = integers(n);
    static const float sizes[] = {1, 1, 3, 0.01f};

    ck_assert(r.exact != NULL);
    for (size_t i = 0; i < n; i++) {
        float *row = r.exact + i * dim, largest = 0, scale;

        for (uint32_t d = 0; d < dim; d++) {
            row[d] = ek_random_normal(&seed) * sizes[i % 4];
            largest = fmaxf(largest, fabsf(row[d]));
        }
        scale = largest / 448;
        memcpy(scales + i, &scale, sizeof(scale));
        for (uint32_t d = 0; d < dim; d++)
            ((uint8_t *)bytes)[i * dim + d] = ek_f32_to_e4m3(row[d] / scale);
    }
    r.bytes = both_ints(&pr, bytes, (n * dim + 3) / 4);
    r.scales = both_ints(&pr, scales, n);
    free(bytes), free(scales);
    return r;
}

static void setup(struct setup *u, const struct shape *s)
{
    uint32_t rope = s->v_dim < s->dim ? s->dim - s->v_dim : s->dim, width;
    size_t slots;

    *u = (struct setup){.s = s, .latent = s->v_dim < s->dim};
    u->batch = paged_new(&pr, s->page, s->n_seqs, s->past, s->n_new, &seed);
    width = u->latent ? s->dim : (s->heads + 2 * s->kv_heads) * s->dim;
    slots = paged_slots(&u->batch);
    u->inv_freq = frequencies(&pr, rope);
    u->weight = both_floats(&pr, s->v_dim, 1, 0.1f, &seed);
    u->x = both_random(&pr, (size_t)u->batch.n * width, 1, &seed);
    u->q = both_random(&pr, (size_t)u->batch.n * s->heads * s->dim, 1, &seed);
    u->out = both_new(&pr, (size_t)u->batch.n * s->heads * s->v_dim);
    u->k = rows_new(slots * s->kv_heads, s->dim);
    if (!u->latent)
        u->v = rows_new(slots * s->kv_heads, s->v_dim);
}

static void teardown(struct setup *u)
{
    struct both *all[] = {&u->x,       &u->inv_freq, &u->weight,  &u->q,       &u->out,
                          &u->k.bytes, &u->k.scales, &u->v.bytes, &u->v.scales};

    paged_free(&pr, &u->batch);
    for (size_t i = 0; i < EK_ARRAY_LEN(all); i++)
        if (all[i]->gpu)
            both_free(&pr, all[i]);
    free(u->k.exact), free(u->v.exact);
}

static struct ek_kv kv_of(const struct setup *u, bool gpu, bool exact)
{
    const struct shape *s = u->s;

    return (struct ek_kv){.k = exact ? u->k.exact : SIDE(u->k.bytes),
                          .v = exact ? u->v.exact : SIDE(u->v.bytes),
                          .k_scale = SIDE(u->k.scales),
                          .v_scale = SIDE(u->v.scales),
                          .dtype = exact ? EK_F32 : EK_F8_E4M3,
                          .kv_heads = s->kv_heads,
                          .head_dim = s->dim,
                          .v_dim = s->v_dim,
                          .page = s->page};
}

static void append(struct setup *u, bool gpu)
{
    const struct shape *s = u->s;
    struct ek_device *dev = gpu ? pr.gpu : pr.cpu;
    struct ek_batch b = paged_batch(&u->batch, gpu);
    struct ek_kv kv = kv_of(u, gpu, !gpu);
    struct ek_rope rope = {.inv_freq = SIDE(u->inv_freq),
                           .dim = u->latent ? s->dim - s->v_dim : s->dim,
                           .amplitude = 1};

    if (u->latent)
        need(dev->ops->latent_append(dev, SIDE(u->x), s->dim, SIDE(u->weight), 1e-6f, &rope, &b,
                                     &kv));
    else
        need(dev->ops->rope_append(dev, SIDE(u->x), (s->heads + 2 * s->kv_heads) * s->dim, &rope,
                                   &b, s->heads, &kv));
}

/* The GPU's bytes and scales, to the host's memory. */
static void take_rows(struct rows *r)
{
    if (r->exact == NULL)
        return;
    need(pr.gpu->ops->download(pr.gpu, r->bytes.cpu, r->bytes.gpu, r->n * r->dim));
    need(pr.gpu->ops->download(pr.gpu, r->scales.cpu, r->scales.gpu, r->n * sizeof(float)));
}

static float decoded(const struct rows *r, size_t row, uint32_t d)
{
    return ek_e4m3_to_f32(((const uint8_t *)r->bytes.cpu)[row * r->dim + d]) *
           ((const float *)r->scales.cpu)[row];
}

static float largest_of(const struct rows *r, size_t row)
{
    float largest = 0;

    for (uint32_t d = 0; d < r->dim; d++)
        largest = fmaxf(largest, fabsf(r->exact[row * r->dim + d]));
    return largest;
}

/* What the format allows an element to be off by (struct ek_kv). */
static float allowed_of(float x, float largest)
{
    return fmaxf(fabsf(x) / 16, largest / 448 / 1024) * 1.0001f;
}

/* A row that was computed from activations of a type is off by its rounding as well. */
static void check_rows(const struct setup *u, const struct rows *r, int which)
{
    const int32_t *slots = u->batch.slots.cpu;
    uint32_t heads = u->s->kv_heads;

    for (uint32_t i = 0; r->exact && i < u->batch.n * heads; i++) {
        size_t row = (size_t)slots[i / heads] * heads + i % heads;
        float largest = largest_of(r, row);

        for (uint32_t d = 0; d < r->dim; d++) {
            float x = r->exact[row * r->dim + d], y = decoded(r, row, d);
            ck_assert_msg(fabsf(x - y) <=
                              allowed_of(x, largest) + 1.1f * (float)tolerance(pr.act) * largest,
                          "shape %d (%s), row %zu, element %u: %g is read as %g", which,
                          ek_dtype_name(pr.act), row, d, (double)x, (double)y);
        }
    }
}

static void attend(struct setup *u, bool gpu, bool exact, void *out)
{
    const struct shape *s = u->s;
    struct ek_device *dev = gpu ? pr.gpu : pr.cpu;
    struct ek_batch b = paged_batch(&u->batch, gpu);
    struct ek_kv kv = kv_of(u, gpu, exact);

    need(dev->ops->attention(dev, SIDE(u->q), (size_t)s->heads * s->dim, &b, &kv, s->heads,
                             1 / sqrtf((float)s->dim), out, (size_t)s->heads * s->v_dim));
}

START_TEST(scaled_rows_and_attention_over_them_are_right)
{
    const struct shape *s = &shapes[(size_t)_i / 3];
    int which = _i / 3;
    struct setup u;

    seed = 31 + (uint64_t)_i;
    pr.act = acts[_i % 3];
    ck_assert(pair_open(&pr, acts[_i % 3]) == NULL);
    setup(&u, s);
    append(&u, true);
    append(&u, false);
    take_rows(&u.k);
    take_rows(&u.v);
    check_rows(&u, &u.k, which);
    check_rows(&u, &u.v, which);
    attend(&u, true, false, u.out.gpu);
    attend(&u, false, false, u.out.cpu);
    double error = both_error(&pr, &u.out);
    ck_assert_msg(error <= 2 * tolerance(pr.act), "shape %d (%s): error %.3g", which,
                  ek_dtype_name(pr.act), error);
    teardown(&u);
    pair_close(&pr);
}
END_TEST

/* Most that a score of a row, and an element of its values, are off by. */
static void row_bounds(const struct setup *u, const float *q, size_t row, double *score,
                       double *value, double *most)
{
    const struct rows *v = u->latent ? &u->k : &u->v;
    float k_largest = largest_of(&u->k, row), v_largest = largest_of(v, row);
    double sum = 0;

    for (uint32_t d = 0; d < u->s->dim; d++)
        sum += fabs((double)q[d]) * (double)allowed_of(u->k.exact[row * u->s->dim + d], k_largest);
    *score = fmax(*score, sum / sqrt((double)u->s->dim));
    *value = fmax(*value, (double)allowed_of(v_largest, v_largest));
    *most = fmax(*most, (double)v_largest);
}

/* With scores off by e at most, probabilities are off by a factor of exp(2 e) at most. */
static double bound_of(const struct setup *u, uint32_t seq, uint32_t token, uint32_t head)
{
    const struct shape *s = u->s;
    const int32_t *table = u->batch.table.cpu;
    const float *q = (const float *)u->q.cpu + ((size_t)token * s->heads + head) * s->dim;
    double score = 0, value = 0, most = 0;

    for (uint32_t j = 0; j < s->past[seq] + s->n_new[seq]; j++) {
        size_t slot =
            (size_t)table[seq * u->batch.max_blocks + j / s->page] * s->page + j % s->page;
        row_bounds(u, q, slot * s->kv_heads + head / (s->heads / s->kv_heads), &score, &value,
                   &most);
    }
    return (exp(2 * score) - 1) * most + exp(2 * score) * value;
}

START_TEST(attention_is_off_by_no_more_than_the_format_allows)
{
    const struct shape *s = &shapes[_i];
    struct setup u;
    double worst = 0, share = 0;
    float *exact;

    seed = 77 + (uint64_t)_i;
    ck_assert(pair_open(&pr, EK_F32) == NULL);
    setup(&u, s);
    exact = malloc(u.out.n * sizeof(float));
    attend(&u, false, true, exact);
    attend(&u, true, false, u.out.gpu);
    need(pr.gpu->ops->download(pr.gpu, u.out.cpu, u.out.gpu, u.out.n * sizeof(float)));
    for (uint32_t q = 0; q < s->n_seqs; q++)
        for (uint32_t t = 0; t < s->n_new[q]; t += 16)
            for (uint32_t h = 0; h < s->heads; h += 5) {
                uint32_t token = (uint32_t)((const int32_t *)u.batch.starts.cpu)[q] + t;
                double bound = bound_of(&u, q, token, h), off = 0;
                size_t at = ((size_t)token * s->heads + h) * s->v_dim;

                for (uint32_t d = 0; d < s->v_dim; d++)
                    off = fmax(off, fabs((double)exact[at + d] -
                                         (double)((const float *)u.out.cpu)[at + d]));
                ck_assert_msg(off <= bound, "shape %d, token %u, head %u: off by %g, allowed %g",
                              _i, token, h, off, bound);
                worst = fmax(worst, off);
                share = fmax(share, off / bound);
            }
    printf("shape %d: off by %.2g at most, %.2g of what is allowed\n", _i, worst, share);
    free(exact);
    teardown(&u);
    pair_close(&pr);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu cache");
    TCase *tc;
    SRunner *sr;
    int failed;

    if (!pair_present())
        return 77;
    sr = srunner_create(s);
    tc = add_case(s, "rows");
    tcase_add_loop_test(tc, scaled_rows_and_attention_over_them_are_right, 0,
                        3 * EK_ARRAY_LEN(shapes));
    tc = add_case(s, "bounds");
    tcase_add_loop_test(tc, attention_is_off_by_no_more_than_the_format_allows, 0,
                        EK_ARRAY_LEN(shapes));
    srunner_set_fork_status(sr, CK_NOFORK);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    pair_report();
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
