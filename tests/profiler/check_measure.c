/* SPDX-License-Identifier: Apache-2.0
 *
 * When sampling stops, which points are measured, what the gate refuses: on simulated clocks and
 * cost functions, so that the answers are exact.
 */
#include "profiler/measure.h"
#include "profiler/tracer.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Sampling ---------------------------------------------------------------------------------
 */

struct machine {
    uint64_t now_ns, seed;
    double mean, spread;  /* of normal noise, relative */
    uint32_t spike_every; /* that sample takes ten times as long; 0: none */
    double drift;         /* the spread grows by this a sample */
    uint32_t n;
    enum ek_status fail_at_5;
};

static enum ek_status sample(void *ctx, double v[TIMING_VALUES])
{
    struct machine *m = ctx;
    double t = m->mean * (1 + (m->spread + m->drift * m->n) * ek_random_normal(&m->seed));

    if (++m->n == 5 && m->fail_at_5 != EK_OK)
        return ek_error(m->fail_at_5, "failed");
    if (m->spike_every && m->n % m->spike_every == 0)
        t *= 10;
    m->now_ns += (uint64_t)(fabs(t) * 1e9);
    v[0] = t;
    v[1] = 2 * t;
    return EK_OK;
}

static uint64_t simulated(void *ctx)
{
    return ((struct machine *)ctx)->now_ns;
}

static const struct {
    struct machine machine;
    const char *stop;
    uint32_t least, most; /* samples */
} runs[] = {
    {{.mean = 1e-3, .spread = 1e-4}, "converged", 10, 10},
    {{.mean = 1e-3, .spread = 0.02}, "converged", 11, 100},
    {{.mean = 1e-3, .spread = 0.02, .spike_every = 7}, "converged", 11, 200},
    {{.mean = 1e-5, .spread = 0.20}, "stable-noise", 64, 999},
    {{.mean = 1e-6, .spread = 0.01, .drift = 0.05}, "timeout", 1000, 1000},
    {{.mean = 0.2, .spread = 0.20}, "timeout", 4, 6},
    {{.mean = 5, .spread = 1e-4}, "timeout", 3, 3},
};

START_TEST(sampling_stops_when_the_median_is_known_or_time_is_up)
{
    struct timing_rule rule = TIMING_RULE_INIT;
    struct machine m = runs[_i].machine;
    struct ek_store_time t[TIMING_VALUES];

    m.seed = 11;
    ck_assert_int_eq(timing_run(&rule, sample, simulated, &m, t), EK_OK);
    ck_assert_msg(strcmp(t[0].stop, runs[_i].stop) == 0, "%s after %u", t[0].stop, t[0].n);
    ck_assert_uint_ge(t[0].n, runs[_i].least);
    ck_assert_uint_le(t[0].n, runs[_i].most);
    ck_assert_double_ge(t[0].median_s, t[0].min_s);
    ck_assert_double_eq_tol(t[1].median_s, 2 * t[0].median_s, 1e-12);
    if (strcmp(t[0].stop, "converged") == 0) /* four standard errors */
        ck_assert_double_eq_tol(t[0].median_s, m.mean, m.mean * 0.02);
}
END_TEST

START_TEST(samples_that_differ_by_what_they_do_are_averaged)
{
    struct timing_rule rule = TIMING_RULE_INIT;
    struct machine m = {.mean = 1e-3, .spread = 0.06, .seed = 11};
    struct ek_store_time t[TIMING_VALUES];

    rule.mean = true;
    rule.min_n = 32;
    rule.noise = 0.01;
    ck_assert_int_eq(timing_run(&rule, sample, simulated, &m, t), EK_OK);
    ck_assert_str_eq(t[0].stop, "converged");
    ck_assert_uint_ge(t[0].n, 32);
    ck_assert_double_eq_tol(t[0].median_s, m.mean, m.mean * 0.03);
}
END_TEST

/* What a stage takes by itself is seen through the noise of large times, best where they are small.
 */
START_TEST(a_stages_own_time_is_the_median_of_its_shorter_rows)
{
    static const double us[] = {40, 0, 21, 20, 19, 90, 70, 0, 85, 17};
    struct ek_store_time_row rows[EK_ARRAY_LEN(us) + 1] = {{.time = {.median_s = 1}}};

    rows[EK_ARRAY_LEN(us)].key.phase = EK_PHASE_DECODE;
    rows[EK_ARRAY_LEN(us)].time.median_s = 9e-6;
    for (size_t i = 0; i < EK_ARRAY_LEN(us); i++) {
        rows[i].key.batch = 1;
        rows[i].key.tokens = i < 5 ? 1 : 512;
        rows[i].time.median_s = us[i] * 1e-6;
    }
    ck_assert_double_eq_tol(ek_typical(rows, EK_ARRAY_LEN(rows), EK_PHASE_PREFILL), 20e-6, 1e-12);
    ck_assert_double_eq_tol(ek_typical(rows, EK_ARRAY_LEN(rows), EK_PHASE_DECODE), 9e-6, 1e-12);
    ck_assert_double_eq(ek_typical(rows, 0, EK_PHASE_DECODE), 0);
}
END_TEST

START_TEST(a_failing_sample_is_passed_on)
{
    struct timing_rule rule = TIMING_RULE_INIT;
    struct machine m = {.mean = 1e-3, .fail_at_5 = EK_EDEVICE};
    struct ek_store_time t[TIMING_VALUES];

    ck_assert_int_eq(timing_run(&rule, sample, simulated, &m, t), EK_EDEVICE);
    m = (struct machine){.mean = NAN};
    ck_assert_int_eq(timing_run(&rule, sample, simulated, &m, t), EK_EDEVICE);
}
END_TEST

START_TEST(median_and_its_deviation)
{
    double v[] = {5, 1, 9, 3}, w[] = {2, 100, 1}, scratch[4];

    ck_assert_double_eq(timing_median(v, 4), 4);
    ck_assert_double_eq(timing_mad(v, 4, 4, scratch), 2);
    ck_assert_double_eq(timing_median(w, 3), 2);
    ck_assert_double_eq(timing_mad(w, 3, 2, scratch), 1);
    ck_assert_double_eq(timing_median(w, 1), 1);
}
END_TEST

/* ---- Gate -------------------------------------------------------------------------------------
 */

START_TEST(times_that_beat_the_ceilings_are_refused)
{
    struct gate_work w = {.bytes = 1e9, .flops = 1e10, .bandwidth = 1e10, .peak = 1e12};

    ck_assert_int_eq(gate_check(&w, 0.1, "layer"), EK_OK);
    ck_assert_int_eq(gate_check(&w, 0.0985, "layer"), EK_OK); /* within the grace */
    ck_assert_int_eq(gate_check(&w, 0.09, "layer"), EK_NO);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "layer: would read 11.11 GB/s"));
    w.flops = 2e11;
    ck_assert_int_eq(gate_check(&w, 0.15, "layer"), EK_NO);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "GFLOP/s"));
    w.peak = w.bandwidth = 0; /* not known: nothing to hold it against */
    ck_assert_int_eq(gate_check(&w, 1e-9, "layer"), EK_OK);
    ck_assert_int_eq(gate_check(&w, 0, "layer"), EK_NO);
    ck_assert_int_eq(gate_check(&w, -1e-6, "layer"), EK_NO);
}
END_TEST

/* ---- Routing ----------------------------------------------------------------------------------
 */

static const struct {
    uint32_t n_experts, top_k, tokens;
} routings[] = {{64, 6, 7}, {160, 6, 64}, {8, 2, 3}, {4, 4, 5}, {256, 8, 1}};

/* An assertion a pair would be slow. */
static bool all_different(const int32_t *ids, uint32_t n, uint32_t n_experts)
{
    bool good = true;

    for (uint32_t i = 0; i < n; i++) {
        good &= ids[i] >= 0 && ids[i] < (int32_t)n_experts;
        for (uint32_t j = 0; j < i; j++)
            good &= ids[i] != ids[j];
    }
    return good;
}

START_TEST(tokens_reach_as_many_experts_as_independent_even_choices_do)
{
    enum { DRAWS = 200 };
    uint32_t n = routings[_i].n_experts, k = routings[_i].top_k, tokens = routings[_i].tokens;
    int32_t *ids = malloc(tokens * k * sizeof(*ids));
    uint64_t seed = 5;
    double sum = 0;

    for (int draw = 0; draw < DRAWS; draw++) {
        bool there[256] = {false};
        routing_draw(n, k, tokens, &seed, ids);
        for (uint32_t t = 0; t < tokens; t++)
            ck_assert(all_different(ids + (size_t)t * k, k, n));
        for (uint32_t i = 0; i < tokens * k; i++) {
            sum += !there[ids[i]];
            there[ids[i]] = true;
        }
    }
    ck_assert_double_eq_tol(sum / DRAWS, routing_reached(n, k, tokens), 0.01 * n);
    free(ids);
}
END_TEST

/* ---- Attribution ------------------------------------------------------------------------------
 */

/* Two steps of a stage of one module and of one of two: a copy a step, then kernels a and b, b
 * beginning before a ends, and 5 ns of nothing behind b. */
static void record_step(struct trace *t, int modules, uint64_t at)
{
    ck_assert_int_eq(trace_add(t, "copy", at, at + 7), EK_OK);
    for (int i = 0; i < modules; i++) {
        uint64_t from = at + 7 + (uint64_t)i * 105;
        ck_assert_int_eq(trace_add(t, "b", from + 60, from + 100), EK_OK);
        ck_assert_int_eq(trace_add(t, "a", from, from + 70), EK_OK);
    }
}

static double seconds_of(const struct ek_store_kernel *rows, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(rows[i].name, name) == 0)
            return rows[i].seconds;
    return 0;
}

START_TEST(attribution_adds_up_to_a_module)
{
    struct attribution a = {.entries = NULL};
    struct trace t = {.records = NULL};
    struct ek_store_kernel *rows;
    size_t n;

    for (int step = 0; step < 2; step++)
        for (int which = 0; which < 2; which++) {
            t.n = 0;
            record_step(&t, 1 + which, 1000);
            ck_assert_int_eq(attribution_add(&a, which, &t), EK_OK);
        }
    ck_assert_int_eq(attribution_rows(&a, false, 2, &rows, &n), EK_OK);
    ck_assert_uint_eq(n, 3); /* not the copy */
    ck_assert_str_eq(rows[0].name, "a");
    ck_assert_uint_eq(rows[0].calls, 1);
    ck_assert_double_eq_tol(seconds_of(rows, n, "a"), 70e-9, 1e-15);
    ck_assert_double_eq_tol(seconds_of(rows, n, "b"), 30e-9, 1e-15);
    ck_assert_double_eq_tol(seconds_of(rows, n, EK_STORE_GAPS), 5e-9, 1e-15);
    free(rows);
    ck_assert_int_eq(attribution_rows(&a, true, 2, &rows, &n), EK_OK);
    ck_assert_double_eq_tol(seconds_of(rows, n, "copy"), 7e-9, 1e-15);
    ck_assert_double_eq(seconds_of(rows, n, EK_STORE_GAPS), 0);
    free(rows);
    attribution_clear(&a);
    trace_clear(&t);
}
END_TEST

static const char *const kernel_names[][2] = {
    {"void (anonymous namespace)::one<__nv_bfloat16, (int)4, (bool)1>(float const*, int)",
     "one<__nv_bfloat16, (int)4, (bool)1>"},
    {"plain", "plain"},
    {"sm90::gemm<(anonymous namespace)::Tile<64> >(int)", "sm90::gemm<Tile<64> >"},
};

START_TEST(kernels_are_named_without_their_parameters)
{
    char name[EK_STORE_MAX_NAME], longest[2 * EK_STORE_MAX_NAME];

    attribution_name(kernel_names[_i][0], name);
    ck_assert_str_eq(name, kernel_names[_i][1]);
    memset(longest, 'x', sizeof(longest));
    longest[sizeof(longest) - 1] = '\0';
    attribution_name(longest, name);
    ck_assert_uint_eq(strlen(name), EK_STORE_MAX_NAME - 1);
}
END_TEST

/* ---- Work that goes on --------------------------------------------------------------------------
 */

/* Runs of 10 ms: so many at full clocks, then longer ones. */
static const struct {
    size_t n, quick;
    double longer, ratio, burst;
} going_on[] = {
    {60, 5, 1.08, 1.08, 0.05}, /* as an H200 with dense products */
    {60, 60, 1.08, 1, 0},      /* never */
    {60, 3, 1.005, 1, 0},      /* less than clocks tell */
    {5, 2, 1.2, 1, 0},         /* too few to tell */
};

START_TEST(clocks_that_fall_are_seen_and_when)
{
    double took[64] = {0}, ratio, burst;

    for (size_t i = 0; i < going_on[_i].n; i++)
        took[i] = 0.01 * (i < going_on[_i].quick ? 1 : going_on[_i].longer);
    took[3] *= going_on[_i].n > 5 ? 1.5 : 1; /* one run that something else held up */
    sustain_read(took, going_on[_i].n, 0.01, &ratio, &burst);
    ck_assert_double_eq_tol(ratio, going_on[_i].ratio, 1e-9);
    ck_assert_double_eq_tol(burst, going_on[_i].burst, 0.0051);
}
END_TEST

/* Runs of 0.5 ms, longer at first, the more the sooner. */
static const struct {
    size_t n;
    double longer, half, ratio;
} coming_back[] = {
    {300, 0.08, 0.035, 1.08}, /* as an H200 behind dense products */
    {300, 0, 0.035, 1},       /* clocks had not fallen */
    {5, 0.08, 0.035, 1},      /* too few to tell */
};

START_TEST(clocks_that_come_back_are_seen_and_when)
{
    double took[300], ratio, half;
    size_t n = coming_back[_i].n;

    for (size_t i = 0; i < n; i++)
        took[i] = 0.0005 *
                  (1 + coming_back[_i].longer * exp2(-0.0005 * (double)i / coming_back[_i].half));
    recover_read(took, n, 0.0005, &ratio, &half);
    ck_assert_double_eq_tol(ratio, coming_back[_i].ratio, 0.01);
    ck_assert_double_eq_tol(half, ratio > 1 ? coming_back[_i].half : 0, 0.008);
    recover_read(took, n, 0, &ratio, &half);
    ck_assert_double_eq(ratio, 1);
}
END_TEST

/* Behind 0.15 s of something else, of 50 ms before clocks fall half are there again, a tenth, none.
 */
START_TEST(the_time_until_clocks_fall_comes_back)
{
    static const size_t quick[] = {25, 5, 0};
    static const double half[] = {0.15, 0.15 / 0.152003, 1000};
    double took[60];

    for (size_t i = 0; i < 60; i++)
        took[i] = 0.001 * (i < quick[_i] ? 1 : 1.08);
    ck_assert_double_eq_tol(refill_read(took, 60, 0.001, 1.08, 0.05, 0.15), half[_i],
                            1e-3 * half[_i]);
}
END_TEST

/* ---- Points -----------------------------------------------------------------------------------
 */

struct world {
    double (*cost)(const struct ek_point *);
    struct ek_store_time_row rows[128];
    size_t n;
    bool refuse_first;
};

/* Straight lines in both directions. */
static double straight(const struct ek_point *p)
{
    double width = p->phase == EK_PHASE_DECODE ? p->batch : p->tokens;

    return 1e-3 + 1e-4 * width + 1e-8 * width * p->context;
}

/* Bound by memory up to 40 tokens, by arithmetic beyond. */
static double roofline(const struct ek_point *p)
{
    double width = p->phase == EK_PHASE_DECODE ? p->batch : p->tokens;

    return fmax(1e-3, 2.5e-5 * width) + 1e-9 * width * p->context;
}

/* One sequence has a kernel of its own. */
static double step(const struct ek_point *p)
{
    return p->batch == 1 ? 4.9e-5 : 6e-5;
}

/* Up to 16 sequences a kernel of its own. */
static double late_step(const struct ek_point *p)
{
    return p->batch <= 16 ? 5e-5 + 1e-7 * p->batch : 6.4e-5 + 1e-7 * p->batch;
}

/* From 128 tokens on up and down by a tenth: quickest at multiples of 128. */
static double up_and_down(const struct ek_point *p)
{
    double at = p->tokens < 128 ? 0 : p->tokens % 128 / 64.0;

    return straight(p) + 1e-5 * p->tokens * (at < 1 ? at : 2 - at);
}

/* The cache of a long context is slower to read. */
static double cliff(const struct ek_point *p)
{
    return 1e-3 + (p->context > 1500 ? 3e-6 * p->context : 1e-6 * p->context);
}

static enum ek_status measure(void *ctx, const struct ek_point *at, struct ek_store_time *out)
{
    struct world *w = ctx;

    for (size_t i = 0; i < w->n; i++) {
        const struct ek_store_key *k = &w->rows[i].key;
        ck_assert_msg(k->batch != at->batch || k->tokens != at->tokens || k->context != at->context,
                      "asked twice: %u %u %u", at->batch, at->tokens, at->context);
    }
    ck_assert_uint_ge(at->context, at->tokens);
    w->rows[w->n].key = (struct ek_store_key){
        .phase = at->phase, .batch = at->batch, .tokens = at->tokens, .context = at->context};
    *out = (struct ek_store_time){.median_s = w->cost(at), .n = 10};
    w->rows[w->n++].time = *out;
    if (w->refuse_first && w->n == 1)
        return ek_error(EK_NO, "refused");
    return EK_OK;
}

/* Of attention: the second takes twice as long to begin, and half as long for a token. */
static double two_kernels(const struct ek_point *p)
{
    double cached = (double)p->batch * p->context, one = 8e-6 + 4e-9 * cached,
           two = 16e-6 + 2e-9 * cached;

    return 60e-6 + (one < two ? one : two);
}

static double worst_miss(const struct world *w, const struct point_space *s)
{
    double worst = 0;

    for (uint32_t width = 1; width <= s->max_width; width++)
        for (uint32_t c = 32; c <= s->max_context; c += 97) {
            bool decode = s->phase == EK_PHASE_DECODE;
            struct ek_point p = {s->phase, decode ? width : 1, decode ? 1 : width, c};
            if (p.context < p.tokens)
                continue;
            double want = w->cost(&p), got = ek_interpolate(w->rows, w->n, &p, NULL);
            worst = fmax(worst, fabs(got - want) / want);
        }
    return worst;
}

#define SPACE(phase, width, context, deep, widths, sweep)                                          \
    {                                                                                              \
        EK_PHASE_##phase, width, context, 1 << 20, deep, 0.03, widths, 0, 0, false, sweep, false   \
    }

static const struct {
    struct point_space space;
    double (*cost)(const struct ek_point *);
    size_t least, most; /* points */
    double miss;
} spaces[] = {
    {SPACE(DECODE, 8, 2048, true, 8, false), straight, 12, 12, 1e-6},
    {SPACE(PREFILL, 512, 2048, true, 8, false), straight, 7, 13, 0.02},
    {SPACE(PREFILL, 512, 2048, true, 16, false), roofline, 11, 35, 0.06},
    {SPACE(PREFILL, 512, 2048, true, 5, false), roofline, 11, 13, 1},
    {SPACE(DECODE, 1, 2048, true, 8, false), cliff, 5, 5, 1.2},
    {SPACE(DECODE, 8, 2048, false, 8, false), straight, 4, 4, 1},
    {SPACE(DECODE, 8, 2048, true, 8, false), step, 12, 12, 1e-6},
    {SPACE(DECODE, 64, 2048, true, 10, false), late_step, 24, 30, 0.005},
    {SPACE(DECODE, 16, 32768, true, 6, false), two_kernels, 15, 30, 0.08},
    {SPACE(DECODE, 1, 16, true, 8, false), straight, 1, 1, 1},
    {SPACE(PREFILL, 1024, 2048, true, 8, false), up_and_down, 7, 19, 0.1},
    {SPACE(PREFILL, 1024, 2048, true, 8, true), up_and_down, 30, 47, 0.02},
    {SPACE(PREFILL, 64, 64, true, 8, false), straight, 4, 8, 0.01},
};

START_TEST(points_are_added_where_interpolation_misses)
{
    const struct point_space *s = &spaces[_i].space;
    struct world w = {.cost = spaces[_i].cost};
    struct ek_point corners[4];

    ck_assert_int_eq(points_measure(s, measure, &w), EK_OK);
    ck_assert_msg(w.n >= spaces[_i].least && w.n <= spaces[_i].most, "%zu points", w.n);
    ck_assert_uint_le(w.n, points_most(s));
    ck_assert_uint_le(points_corners(s, corners), w.n);
    for (size_t i = 0; i < points_corners(s, corners); i++)
        ck_assert_uint_eq(corners[i].context, w.rows[i].key.context);
    if (s->deep)
        ck_assert_double_le(worst_miss(&w, s), spaces[_i].miss);
}
END_TEST

/* 2.5 ms and 1.5 ms a tile, of 211 tokens and then 203. */
static double tiles(const struct ek_point *p)
{
    return 2.5e-3 + 1.5e-3 * (p->tokens <= 211 ? 0 : round((p->tokens - 211) / 203.0));
}

START_TEST(pictures_of_tiles_are_measured_at_whole_ones)
{
    struct world w = {.cost = tiles};
    struct point_space s = {
        EK_PHASE_PREFILL, 2038, 2048, 1 << 20, false, 0.03, 6, 211, 203, false, false, false};
    struct ek_point at = {EK_PHASE_PREFILL, 1, 1023, 1023};

    ck_assert_int_eq(points_measure(&s, measure, &w), EK_OK);
    for (size_t i = 0; i < w.n; i++)
        ck_assert_uint_eq(w.rows[i].key.tokens == 1 ? 0 : (w.rows[i].key.tokens - 211) % 203, 0);
    ck_assert_double_eq_tol(ek_interpolate(w.rows, w.n, &at, NULL), 8.5e-3, 0.02 * 8.5e-3);
}
END_TEST

START_TEST(a_refused_point_leaves_the_others)
{
    struct world w = {.cost = straight, .refuse_first = true};
    struct point_space s = {EK_PHASE_DECODE, 8,     2048, 1 << 20, true, 0.03, 8, 0, 0,
                            false,           false, false};

    ck_assert_int_eq(points_measure(&s, measure, &w), EK_OK);
    ck_assert_uint_ge(w.n, 7);
}
END_TEST

static double noisy(const struct ek_point *p)
{
    uint64_t seed = p->batch * 977 + p->tokens * 131 + p->context;

    return straight(p) * (1 + 0.02 * ek_random_normal(&seed));
}

START_TEST(the_same_measurements_lead_to_the_same_points)
{
    struct world a = {.cost = noisy}, b = {.cost = noisy};
    struct point_space s = {
        EK_PHASE_PREFILL, 512, 2048, 1 << 20, true, 0.03, 12, 0, 0, false, false, false};

    ck_assert_int_eq(points_measure(&s, measure, &a), EK_OK);
    ck_assert_int_eq(points_measure(&s, measure, &b), EK_OK);
    ck_assert_uint_eq(a.n, b.n);
    ck_assert_mem_eq(a.rows, b.rows, a.n * sizeof(a.rows[0]));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("measure");
    TCase *tc = tcase_create("measure");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, sampling_stops_when_the_median_is_known_or_time_is_up, 0,
                        EK_ARRAY_LEN(runs));
    tcase_add_test(tc, a_failing_sample_is_passed_on);
    tcase_add_test(tc, median_and_its_deviation);
    tcase_add_test(tc, times_that_beat_the_ceilings_are_refused);
    tcase_add_loop_test(tc, tokens_reach_as_many_experts_as_independent_even_choices_do, 0,
                        EK_ARRAY_LEN(routings));
    tcase_add_test(tc, attribution_adds_up_to_a_module);
    tcase_add_loop_test(tc, kernels_are_named_without_their_parameters, 0,
                        EK_ARRAY_LEN(kernel_names));
    tcase_add_test(tc, samples_that_differ_by_what_they_do_are_averaged);
    tcase_add_test(tc, a_stages_own_time_is_the_median_of_its_shorter_rows);
    tcase_add_loop_test(tc, the_time_until_clocks_fall_comes_back, 0, 3);
    tcase_add_loop_test(tc, clocks_that_come_back_are_seen_and_when, 0, EK_ARRAY_LEN(coming_back));
    tcase_add_loop_test(tc, clocks_that_fall_are_seen_and_when, 0, EK_ARRAY_LEN(going_on));
    tcase_add_loop_test(tc, points_are_added_where_interpolation_misses, 0, EK_ARRAY_LEN(spaces));
    tcase_add_test(tc, pictures_of_tiles_are_measured_at_whole_ones);
    tcase_add_test(tc, a_refused_point_leaves_the_others);
    tcase_add_test(tc, the_same_measurements_lead_to_the_same_points);
    suite_add_tcase(suite, tc);
    sr = srunner_create(suite);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
