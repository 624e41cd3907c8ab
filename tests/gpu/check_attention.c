/* SPDX-License-Identifier: Apache-2.0
 *
 * Rotation, the paged cache and attention of the CUDA backend against the CPU backend: ragged
 * prefill, decode, growing contexts under one captured graph, shuffled blocks.
 */
#include "tests/gpu/gpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#define MAX_SEQS 40 /* more than a warp has lanes */

static struct pair pr;
static uint64_t seed;
static const enum ek_dtype acts[] = {EK_F32, EK_BF16, EK_F16};

static void need(enum ek_status st)
{
    ck_assert_msg(st == EK_OK, "%s", ek_last_error());
}

struct shape {
    uint32_t heads, kv_heads, dim, page;
    uint32_t n_seqs;
    uint32_t past[MAX_SEQS], n_new[MAX_SEQS];
    bool interleaved;
    uint32_t rope_dim; /* 0: all of a head */
    uint32_t sections[3];
};
static const struct shape shapes[] = {
    {4, 2, 64, 16, 1, {0}, {5}, false, 0, {0}},
    {4, 4, 16, 32, 2, {3, 0}, {4, 9}, false, 0, {0}},
    {16, 2, 128, 32, 1, {511}, {1}, false, 0, {16, 24, 24}},
    {28, 4, 128, 32, 3, {0, 700, 63}, {1, 1, 1}, false, 0, {0}},
    {8, 8, 64, 16, 5, {0, 1, 15, 16, 4000}, {1, 1, 1, 1, 1}, false, 0, {0}},
    {14, 2, 64, 32, 3, {0, 100, 7}, {130, 65, 1}, false, 0, {0}},
    {16, 2, 128, 32, 2, {0, 37}, {300, 128}, false, 0, {16, 24, 24}},
    {20, 1, 128, 16, 2, {90, 5}, {1, 1}, true, 0, {0}},
    {6, 3, 80, 16, 2, {10, 0}, {1, 33}, false, 40, {0}},
    {4, 2, 128, 24, 2, {0, 1000}, {17, 1}, true, 64, {0}},
#define N_SHORT 10
    /* one new token each: lengths far apart, one that all multiprocessors share, groups of 12 and
     * of 1, many sequences, one or two steps of a cluster */
    {16, 2, 128, 32, 5, {9000, 20, 3000, 511, 100}, {1, 1, 1, 1, 1}, false, 0, {0}},
    {28, 4, 128, 32, 1, {20000}, {1}, false, 0, {0}},
    {24, 2, 128, 32, 2, {5000, 300}, {1, 1}, false, 0, {0}},
    {12, 1, 64, 32, 3, {2100, 2000, 1990}, {1, 1, 1}, false, 0, {0}},
    {5, 5, 128, 32, 3, {600, 0, 2047}, {1, 1, 1}, false, 0, {0}},
    {4,
     2,
     64,
     16,
     40,
     {[3] = 800, [17] = 90, [33] = 1500, [39] = 31},
     {[0 ... 39] = 1},
     false,
     0,
     {0}},
    {8, 1, 128, 32, 40, {[0 ... 38] = 500, [39] = 510}, {[0 ... 39] = 1}, false, 0, {0}},
    {16, 2, 128, 32, 1, {700}, {1}, false, 0, {0}},
    {14, 2, 64, 32, 1, {1022}, {1}, false, 0, {0}},
};

struct setup {
    const struct shape *s;
    struct paged batch;
    struct both qkv, inv_freq, k, v, out;
    struct ek_batch gpu_batch, cpu_batch;
    struct ek_kv gpu_kv, cpu_kv;
    struct ek_rope gpu_rope, cpu_rope;
    size_t ld;
};

static void setup_cache(struct setup *u)
{
    const struct shape *s = u->s;
    size_t n = paged_slots(&u->batch) * s->kv_heads * s->dim;

    u->k = both_random(&pr, n, 1, &seed);
    u->v = both_random(&pr, n, 1, &seed);
    u->gpu_kv = (struct ek_kv){.k = u->k.gpu,
                               .v = u->v.gpu,
                               .dtype = pr.act,
                               .kv_heads = s->kv_heads,
                               .head_dim = s->dim,
                               .v_dim = s->dim,
                               .page = s->page};
    u->cpu_kv = u->gpu_kv;
    u->cpu_kv.k = u->k.cpu;
    u->cpu_kv.v = u->v.cpu;
    u->cpu_kv.dtype = EK_F32;
}

static void setup_rope(struct setup *u)
{
    const struct shape *s = u->s;
    uint32_t dim = s->rope_dim ? s->rope_dim : s->dim;

    u->inv_freq = frequencies(&pr, dim);
    u->gpu_rope = (struct ek_rope){
        .inv_freq = u->inv_freq.gpu, .dim = dim, .interleaved = s->interleaved, .amplitude = 1.0f};
    memcpy(u->gpu_rope.sections, s->sections, sizeof(s->sections));
    u->cpu_rope = u->gpu_rope;
    u->cpu_rope.inv_freq = u->inv_freq.cpu;
}

static void setup(struct setup *u, const struct shape *s)
{
    *u = (struct setup){.s = s, .ld = (size_t)(s->heads + 2 * s->kv_heads) * s->dim};
    u->batch = paged_new(&pr, s->page, s->n_seqs, s->past, s->n_new, &seed);
    u->gpu_batch = paged_batch(&u->batch, true);
    u->cpu_batch = paged_batch(&u->batch, false);
    setup_cache(u);
    setup_rope(u);
    u->qkv = both_random(&pr, u->batch.n * u->ld, 1, &seed);
    u->out = both_new(&pr, (size_t)u->batch.n * s->heads * s->dim);
}

static void run_both(struct setup *u)
{
    const struct shape *s = u->s;
    float scale = (s->page == 16 ? 8.0f : 1.0f) / sqrtf((float)s->dim); /* some far apart */
    size_t ldo = (size_t)s->heads * s->dim;

    need(pr.gpu->ops->rope_append(pr.gpu, u->qkv.gpu, u->ld, &u->gpu_rope, &u->gpu_batch, s->heads,
                                  &u->gpu_kv));
    need(pr.cpu->ops->rope_append(pr.cpu, u->qkv.cpu, u->ld, &u->cpu_rope, &u->cpu_batch, s->heads,
                                  &u->cpu_kv));
    need(pr.gpu->ops->attention(pr.gpu, u->qkv.gpu, u->ld, &u->gpu_batch, &u->gpu_kv, s->heads,
                                scale, u->out.gpu, ldo));
    need(pr.cpu->ops->attention(pr.cpu, u->qkv.cpu, u->ld, &u->cpu_batch, &u->cpu_kv, s->heads,
                                scale, u->out.cpu, ldo));
}

static void need_close(const char *what, double error, double allowed)
{
    ck_assert_msg(error <= allowed, "%s (%s): error %.3g, allowed %.3g", what,
                  ek_dtype_name(pr.act), error, allowed);
}

START_TEST(rotation_cache_and_attention_agree_with_the_cpu)
{
    const struct shape *s = &shapes[(size_t)_i / 3];
    struct setup u;
    char what[64];

    seed = 77 + (uint64_t)_i;
    need(pair_open(&pr, acts[_i % 3]) ? EK_EENV : EK_OK);
    setup(&u, s);
    run_both(&u);
    snprintf(what, sizeof(what), "shape %d: rope", _i / 3);
    need_close(what, both_error(&pr, &u.qkv), tolerance(pr.act));
    snprintf(what, sizeof(what), "shape %d: cached k", _i / 3);
    need_close(what, both_error(&pr, &u.k), tolerance(pr.act));
    snprintf(what, sizeof(what), "shape %d: cached v", _i / 3);
    need_close(what, both_error(&pr, &u.v), tolerance(pr.act));
    snprintf(what, sizeof(what), "shape %d: attention", _i / 3);
    need_close(what, both_error(&pr, &u.out), 2 * tolerance(pr.act));
    pair_close(&pr);
}
END_TEST

START_TEST(one_captured_graph_serves_growing_contexts)
{
    static const struct shape s = {16, 2, 128, 32, 2, {700, 0}, {1, 1}, false, 0, {0}};
    size_t ldo = (size_t)s.heads * s.dim;
    struct ek_graph *graph;
    struct setup u;

    seed = 5;
    need(pair_open(&pr, EK_BF16) ? EK_EENV : EK_OK);
    setup(&u, &s);
    need(pr.gpu->ops->attention(pr.gpu, u.qkv.gpu, u.ld, &u.gpu_batch, &u.gpu_kv, s.heads, 0.1f,
                                u.out.gpu, ldo)); /* warms up: allocates */
    need(pr.gpu->ops->sync(pr.gpu));
    need(pr.gpu->ops->graph_begin(pr.gpu));
    need(pr.gpu->ops->attention(pr.gpu, u.qkv.gpu, u.ld, &u.gpu_batch, &u.gpu_kv, s.heads, 0.1f,
                                u.out.gpu, ldo));
    need(pr.gpu->ops->graph_end(pr.gpu, &graph));
    for (int32_t len = 1; len <= 701; len += 100) {
        int32_t lens[2] = {len, (len + 3) / 2};

        need(
            pr.gpu->ops->upload(pr.gpu, (void *)(uintptr_t)u.gpu_batch.kv_len, lens, sizeof(lens)));
        need(
            pr.cpu->ops->upload(pr.cpu, (void *)(uintptr_t)u.cpu_batch.kv_len, lens, sizeof(lens)));
        lens[0] = 9999; /* a small upload was taken at once */
        need(pr.gpu->ops->graph_launch(pr.gpu, graph));
        need(pr.cpu->ops->attention(pr.cpu, u.qkv.cpu, u.ld, &u.cpu_batch, &u.cpu_kv, s.heads, 0.1f,
                                    u.out.cpu, ldo));
        need_close("replayed attention", both_error(&pr, &u.out), 2 * tolerance(pr.act));
    }
    pr.gpu->ops->graph_free(graph);
    pair_close(&pr);
}
END_TEST

/* The norm of x begun, as the tail of a layer leaves it. */
static struct ek_norm_ahead norm_ahead(const struct both *x, const struct both *norm, uint32_t n,
                                       uint32_t cols)
{
    uint32_t pitch = n <= 8 ? 8 : n <= 16 ? 16 : n <= 32 ? 32 : 64;
    size_t bytes = (size_t)n * cols * element(pr.act), sums = (size_t)cols / 16 * pitch * 4;
    float *v = malloc((size_t)n * cols * sizeof(float)), *squares = calloc(1, sums);
    const float *weight = norm->cpu;
    void *raw = malloc(bytes), *rows, *to;

    need(pr.gpu->ops->download(pr.gpu, raw, x->gpu, bytes));
    widen(raw, pr.act, v, (size_t)n * cols);
    for (size_t i = 0; i < (size_t)n * cols; i++) {
        squares[i % cols / 16 * pitch + i / cols] += v[i] * v[i];
        v[i] *= weight[i % cols];
    }
    narrow(v, pr.act, raw, (size_t)n * cols);
    need(pr.gpu->ops->alloc(pr.gpu, EK_TAG_WORKSPACE, bytes, &rows));
    need(pr.gpu->ops->alloc(pr.gpu, EK_TAG_WORKSPACE, sums, &to));
    need(pr.gpu->ops->upload(pr.gpu, rows, raw, bytes));
    need(pr.gpu->ops->upload(pr.gpu, to, squares, sums));
    need(pr.gpu->ops->sync(pr.gpu));
    free(v);
    free(raw);
    free(squares);
    return (struct ek_norm_ahead){.weight = norm->gpu, .rows = rows, .squares = to};
}

/* Fused q, k, v against the CPU's composition, in BF16 with a norm begun ahead. */
START_TEST(fused_qkv_rotates_and_appends)
{
    const struct shape *s =
        &shapes[2 + (size_t)_i / 3 % 2 * 7]; /* M-RoPE; interleaved and partial */
    struct shape one = *s;
    static const uint32_t tokens[] = {1, 5, 13, 53};
    static const enum ek_dtype types[] = {EK_F32 /* the activations' */, EK_Q4_0, EK_G4_64,
                                          EK_Q5_K};
    uint32_t n = tokens[_i / 6 % 4], cols = 512;
    uint32_t rows[3] = {s->heads * s->dim, s->kv_heads * s->dim, s->kv_heads * s->dim};
    struct both x, norm, bias[3];
    const float *gb[3], *cb[3];
    struct ek_norm_ahead ahead;
    struct ek_mat g[3], c[3];
    struct setup u;
    enum ek_dtype t;

    seed = 99 + (uint64_t)_i;
    need(pair_open(&pr, acts[_i % 3]) ? EK_EENV : EK_OK);
    one.n_seqs = 1;
    one.past[0] = 300;
    one.n_new[0] = n;
    t = _i / 24 ? types[_i / 24] : pr.act;
    setup(&u, &one);
    x = both_random(&pr, (size_t)n * cols, 2, &seed);
    norm = both_floats(&pr, cols, 1, 0.1f, &seed);
    for (int i = 0; i < 3; i++) {
        mats_random(&pr, t, rows[i], cols, 0.05f, &seed, &g[i], &c[i]);
        bias[i] = both_floats(&pr, rows[i], 0, 0.3f, &seed);
        gb[i] = bias[i].gpu;
        cb[i] = bias[i].cpu;
    }
    ahead = norm_ahead(&x, &norm, n, cols);
    need(pr.gpu->ops->norm_qkv_rope(pr.gpu, x.gpu, norm.gpu, 1e-6f, &u.gpu_batch, g, gb,
                                    &u.gpu_rope, &u.gpu_kv, _i % 3 == 1 ? &ahead : NULL, u.qkv.gpu,
                                    u.ld));
    need(pr.cpu->ops->norm_linear(pr.cpu, x.cpu, norm.cpu, 1e-6f, n, c, 3, cb, u.qkv.cpu, u.ld));
    need(pr.cpu->ops->rope_append(pr.cpu, u.qkv.cpu, u.ld, &u.cpu_rope, &u.cpu_batch, one.heads,
                                  &u.cpu_kv));
    u.qkv.n = rows[0]; /* of the last token: k and v may be left as they were */
    u.qkv.gpu = (char *)u.qkv.gpu + (n - 1) * u.ld * element(pr.act);
    u.qkv.cpu = (char *)u.qkv.cpu + (n - 1) * u.ld * sizeof(float);
    need_close("q", both_error(&pr, &u.qkv), 2 * tolerance(pr.act));
    need_close("k", both_error(&pr, &u.k), 2 * tolerance(pr.act));
    need_close("v", both_error(&pr, &u.v), 2 * tolerance(pr.act));
    pair_close(&pr);
}
END_TEST

START_TEST(the_same_input_gives_the_same_bits)
{
    static const struct shape s = {28, 4, 128, 32, 3, {1500, 700, 63}, {1, 1, 1}, false, 0, {0}};
    size_t bytes;
    struct setup u;
    char *first, *again;

    seed = 3;
    need(pair_open(&pr, EK_BF16) ? EK_EENV : EK_OK);
    setup(&u, &s);
    bytes = u.out.n * 2;
    first = malloc(bytes);
    again = malloc(bytes);
    for (int i = 0; i < 20; i++) {
        need(pr.gpu->ops->attention(pr.gpu, u.qkv.gpu, u.ld, &u.gpu_batch, &u.gpu_kv, s.heads, 0.1f,
                                    u.out.gpu, (size_t)s.heads * s.dim));
        need(pr.gpu->ops->download(pr.gpu, i ? again : first, u.out.gpu, bytes));
        if (i)
            ck_assert_mem_eq(first, again, bytes);
    }
    free(first);
    free(again);
    pair_close(&pr);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu attention");
    TCase *tc;
    SRunner *sr;
    int failed;

    if (!pair_present())
        return 77;
    sr = srunner_create(s);
    tc = add_case(s, "short");
    tcase_add_loop_test(tc, rotation_cache_and_attention_agree_with_the_cpu, 0, 3 * N_SHORT);
    tcase_add_test(tc, one_captured_graph_serves_growing_contexts);
    tcase_add_test(tc, the_same_input_gives_the_same_bits);
    tc = add_case(s, "long");
    tcase_add_loop_test(tc, rotation_cache_and_attention_agree_with_the_cpu, 3 * N_SHORT,
                        3 * EK_ARRAY_LEN(shapes));
    tc = add_case(s, "fused");
    tcase_add_loop_test(tc, fused_qkv_rotates_and_appends, 0, 96);
    srunner_set_fork_status(sr, CK_NOFORK);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    pair_report();
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
