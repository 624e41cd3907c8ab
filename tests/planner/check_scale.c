/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A profile on other cards: what scaling by roofline must and must not change.
 */
#include "planner/hardware.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BANDWIDTH 1e12
#define PEAK      2e14

static struct ek_model *model;
static struct ek_store *store;
static char path[] = "scale-XXXXXX.db";
static double slack; /* measured: so many times the roofline, and the launches */

/* n: sequences or tokens. busy: with so many others at work, which make it twice as slow. */
static void put_time(int64_t device, const struct ek_module *mod, const char *act,
                     const struct ek_card *card, enum ek_phase phase, uint32_t n, uint32_t busy)
{
    struct ek_store_key k = {.device = device, .phase = phase, .busy = busy};
    struct ek_store_time t = {.n = 9, .stop = "converged"};
    struct ek_step_shape s = {.tp = 1};

    ek_dtype_from_name(act, &s.act);
    s.cache = s.act;
    k.batch = s.sequences = phase == EK_PHASE_DECODE ? n : 1;
    k.tokens = phase == EK_PHASE_DECODE ? 1 : n;
    k.context = s.context = 512;
    s.tokens = phase == EK_PHASE_DECODE ? 1 : ek_step_rows(mod, n);
    strcpy(k.signature, mod->signature);
    strcpy(k.act, act);
    strcpy(k.cache, act);
    strcpy(k.launch, "eager");
    t.median_s = slack * ek_step_floor(model, mod, card, &s) + EK_LAUNCH_SECONDS;
    t.min_s = t.median_s *= busy ? 2 : 1;
    ck_assert_msg(ek_store_put_time(store, &k, &t) == EK_OK, "%s", ek_last_error());
}

static void put_times(int64_t device, const struct ek_module *mod, const char *act,
                      const struct ek_card *card)
{
    for (int phase = EK_PHASE_PREFILL; phase <= EK_PHASE_DECODE; phase++)
        for (uint32_t n = 1; n <= 512; n *= 8)
            put_time(device, mod, act, card, (enum ek_phase)phase, n, 0);
}

static void remove_profile(void)
{
    static const char *const ends[] = {"", "-wal", "-shm"};

    for (size_t i = 0; i < EK_ARRAY_LEN(ends); i++) {
        char *file = ek_asprintf("%s%s", path, ends[i]);
        unlink(file);
        free(file);
    }
    strcpy(path, "scale-XXXXXX.db");
}

static void open_profile(const char *backend, const char *act)
{
    struct ek_store_device d = {.memory_total = 80 * EK_GIB, .memory_free = 80 * EK_GIB};
    struct ek_card card = {
        .bandwidth = BANDWIDTH, .peak_f32 = PEAK, .peak_f16 = PEAK, .peak_bf16 = PEAK};
    const char *dir = getenv("srcdir");
    struct ek_model_options o = EK_MODEL_OPTIONS_INIT;
    char *file = ek_asprintf("%s/tests/fixtures/configs/qwen2.5-0.5b", dir ? dir : ".");
    int fd = mkstemps(path, 3);

    ck_assert_int_ge(fd, 0);
    atexit(remove_profile); /* of a test that fails, too */
    close(fd);
    unlink(path);
    ck_assert_msg(ek_model_open(file, &o, &model) == EK_OK, "%s", ek_last_error());
    ck_assert_msg(ek_store_open(path, EK_STORE_WRITE, &store) == EK_OK, "%s", ek_last_error());
    free(file);
    snprintf(d.name, sizeof(d.name), "%s:0", backend);
    snprintf(d.backend, sizeof(d.backend), "%s", backend);
    strcpy(d.host, "h");
    d.read_bandwidth = BANDWIDTH;
    d.peak_f32 = d.peak_f16 = d.peak_bf16 = PEAK;
    ck_assert_msg(ek_store_put_device(store, &d) == EK_OK, "%s", ek_last_error());
    for (size_t i = 0; i < model->n_modules; i++)
        put_times(d.id, &model->modules[i], act, &card);
}

static void close_profile(void)
{
    ek_store_close(store);
    ek_model_close(model);
    remove_profile();
}

/* A card that would measure so many times the profile's ceilings. */
static struct ek_card other_card(double bandwidth, double peak)
{
    return (struct ek_card){.name = "other",
                            .memory = 80 * EK_GIB,
                            .bandwidth = bandwidth * BANDWIDTH / 0.84,
                            .peak_f32 = peak * PEAK / 0.8,
                            .peak_f16 = peak * PEAK / 0.8,
                            .peak_bf16 = peak * PEAK / 0.8,
                            .link_beta = 1e11};
}

static struct ek_costs *scaled_to_all(const struct ek_fleet *f, const char *act)
{
    struct ek_profile_choice choice = {0};
    struct ek_costs *c = NULL;

    ck_assert_msg(ek_costs_scale(model, store, &choice, f, act, NULL, 2, &c) == EK_OK, "%s",
                  ek_last_error());
    ck_assert(c->estimate && c->classes[0].estimate);
    return c;
}

static struct ek_costs *scaled_to(double bandwidth, double peak, const char *act)
{
    struct ek_card card = other_card(bandwidth, peak);
    struct ek_fleet f = {.cards = {&card}, .counts = {2}, .n = 1};

    return scaled_to_all(&f, act);
}

static const struct ek_cost_times *layer_times_of(const struct ek_costs *c, uint32_t cls,
                                                  uint32_t tp)
{
    for (size_t i = 0; i < c->n_modules; i++)
        if (c->modules[i].kind == EK_MODULE_LAYER)
            return ek_costs_times(c, cls, c->modules[i].sig, tp);
    ck_abort_msg("no layer");
    return NULL;
}

/* Seconds of a layer: prefill of n tokens, or a decode step of n sequences. */
static double seconds_of(const struct ek_costs *c, uint32_t cls, enum ek_phase phase, uint32_t n,
                         uint32_t tp)
{
    const struct ek_cost_times *t = layer_times_of(c, cls, tp);
    const struct ek_cost_curve *k = phase == EK_PHASE_DECODE ? &t->decode : &t->prefill;
    struct ek_point at = {phase, 1, n, 512};

    if (phase == EK_PHASE_DECODE)
        at = (struct ek_point){phase, n, 1, 512};
    return ek_interpolate(k->rows, k->n, &at, NULL);
}

static double layer_seconds(const struct ek_costs *c, enum ek_phase phase, uint32_t n, uint32_t tp)
{
    return seconds_of(c, 0, phase, n, tp);
}

static const struct {
    const char *backend;
    double bandwidth, peak; /* of the card, in the profile's */
    double decode, prefill; /* of a decode step of 1 and a prefill of 512, launches aside */
} cases[] = {
    {"cuda", 1, 1, 1, 1},     {"cuda", 2, 2, 0.5, 0.5}, {"cuda", 4, 1, 0.25, 1},
    {"cuda", 1, 4, 1, -1},    {"cuda", 0.5, 1, 2, -1},  {"cpu", 2, 2, 0.5, 0.5},
    {"cpu", 10, 50, 0.1, -1},
};

START_TEST(memory_goes_by_bandwidth_and_arithmetic_by_the_peak)
{
    bool gpu = strcmp(cases[_i].backend, "cuda") == 0;
    double launch = EK_LAUNCH_SECONDS, there, kept = gpu ? launch : 0;
    struct ek_costs *here, *c;

    slack = 1.3;
    open_profile(cases[_i].backend, "BF16");
    here = scaled_to(1, 1, "BF16");
    c = scaled_to(cases[_i].bandwidth, cases[_i].peak, "BF16");
    there = layer_seconds(here, EK_PHASE_DECODE, 1, 1) - launch;
    ck_assert_double_eq_tol(layer_seconds(c, EK_PHASE_DECODE, 1, 1) - launch,
                            there * cases[_i].decode, 1e-3 * there);
    there = layer_seconds(here, EK_PHASE_PREFILL, 512, 1) - launch;
    if (cases[_i].prefill > 0)
        ck_assert_double_eq_tol(layer_seconds(c, EK_PHASE_PREFILL, 512, 1) - launch,
                                there * cases[_i].prefill, 1e-3 * there);
    ck_assert_double_ge(layer_seconds(c, EK_PHASE_PREFILL, 512, 1), kept);
    ek_costs_free(here);
    ek_costs_free(c);
    close_profile();
}
END_TEST

/* The card with the profile's own ceilings, beside one of twice as much. */
START_TEST(each_card_has_the_measured_times_by_its_own_roofline)
{
    struct ek_card same = other_card(1, 1), twice = other_card(2, 2);
    struct ek_fleet f = {.cards = {&same, &twice}, .counts = {1, 1}, .n = 2};
    struct ek_card measured = {.bandwidth = BANDWIDTH, .peak_bf16 = PEAK};
    struct ek_step_shape s = {
        .tp = 1, .act = EK_BF16, .cache = EK_BF16, .context = 512, .sequences = 8, .tokens = 1};
    const struct ek_module *layer = NULL;
    struct ek_costs *c;
    double floor;

    slack = 1.3;
    strcpy(twice.name, "twice");
    open_profile("cuda", "BF16");
    c = scaled_to_all(&f, "BF16");
    for (size_t i = 0; i < model->n_modules && layer == NULL; i++)
        layer = model->modules[i].kind == EK_MODULE_LAYER ? &model->modules[i] : NULL;
    floor = ek_step_floor(model, layer, &measured, &s);
    ck_assert_double_eq_tol(seconds_of(c, 0, EK_PHASE_DECODE, 8, 1),
                            slack * floor + EK_LAUNCH_SECONDS, 1e-6 * floor);
    ck_assert_double_eq_tol(seconds_of(c, 1, EK_PHASE_DECODE, 8, 1),
                            slack * floor / 2 + EK_LAUNCH_SECONDS, 1e-6 * floor);
    ek_costs_free(c);
    close_profile();
}
END_TEST

START_TEST(nothing_is_faster_than_the_cards_roofline)
{
    struct ek_step_shape s = {.tp = 1, .act = EK_BF16, .cache = EK_BF16, .context = 512};
    struct ek_card card = {.bandwidth = 40 * BANDWIDTH,
                           .peak_bf16 = 3 * PEAK,
                           .peak_f16 = 3 * PEAK,
                           .peak_f32 = 3 * PEAK};
    struct ek_costs *c;
    const struct ek_module *layer = NULL;

    slack = 1;
    open_profile("cpu", "F32");
    c = scaled_to(40, 3, "BF16");
    for (size_t i = 0; i < model->n_modules && layer == NULL; i++)
        layer = model->modules[i].kind == EK_MODULE_LAYER ? &model->modules[i] : NULL;
    for (uint32_t n = 1; n <= 512; n *= 8) {
        s.sequences = 1;
        s.tokens = n;
        ck_assert_double_ge(layer_seconds(c, EK_PHASE_PREFILL, n, 1),
                            ek_step_floor(model, layer, &card, &s));
        s.sequences = n;
        s.tokens = 1;
        ck_assert_double_ge(layer_seconds(c, EK_PHASE_DECODE, n, 1),
                            ek_step_floor(model, layer, &card, &s));
    }
    ek_costs_free(c);
    close_profile();
}
END_TEST

START_TEST(degrees_share_the_work_and_pay_for_all_reduces)
{
    struct ek_costs *c;
    double one, two;

    slack = 1.2;
    open_profile("cuda", "BF16");
    c = scaled_to(1, 1, "BF16");
    one = layer_seconds(c, EK_PHASE_PREFILL, 512, 1);
    two = layer_seconds(c, EK_PHASE_PREFILL, 512, 2);
    ck_assert_double_lt(two, one);
    ck_assert_double_gt(two, one / 2);
    ek_costs_free(c);
    close_profile();
}
END_TEST

START_TEST(a_profile_without_ceilings_is_not_scaled)
{
    struct ek_fleet f;
    struct ek_profile_choice choice = {0};
    struct ek_store_device *d;
    struct ek_costs *c = NULL;
    size_t n;

    slack = 1;
    open_profile("cuda", "BF16");
    ck_assert_int_eq(ek_hardware_parse("2x a100-80", NULL, 0, &f), EK_OK);
    ck_assert_int_eq(ek_store_devices(store, &d, &n), EK_OK);
    d->read_bandwidth = d->peak_f32 = 0;
    strcpy(d->driver, "another");
    ck_assert_int_eq(ek_store_put_device(store, d), EK_OK);
    ck_assert_int_eq(ek_costs_scale(model, store, &choice, &f, NULL, NULL, 1, &c), EK_EENV);
    for (size_t i = 0; i < model->n_modules; i++)
        put_times(d->id, &model->modules[i], "BF16",
                  &(struct ek_card){.bandwidth = BANDWIDTH, .peak_f32 = PEAK});
    ck_assert_int_eq(ek_costs_scale(model, store, &choice, &f, NULL, NULL, 1, &c), EK_EENV);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "ceilings"));
    free(d);
    close_profile();
}
END_TEST

/* Another device of the profile, with times of its own. */
static void put_other(const char *name, const char *group, bool whole, const struct ek_card *card)
{
    struct ek_store_device d = {.memory_total = 80 * EK_GIB, .memory_free = 80 * EK_GIB};

    strcpy(d.name, name);
    strcpy(d.backend, "cuda");
    strcpy(d.host, "h");
    strcpy(d.memory_group, group);
    ck_assert_int_eq(ek_store_put_device(store, &d), EK_OK);
    for (size_t i = 0; i < model->n_modules; i++)
        if (whole || model->modules[i].kind != EK_MODULE_HEAD)
            put_times(d.id, &model->modules[i], "BF16", card);
        else /* the gate let nothing else through */
            put_time(d.id, &model->modules[i], "BF16", card, EK_PHASE_DECODE, 8, 0);
    put_time(d.id, &model->modules[1], "BF16", card, EK_PHASE_DECODE, 8, 3);
}

static const struct ek_card plain = {.bandwidth = BANDWIDTH, .peak_bf16 = PEAK};

static struct ek_costs *costs_of(const char *devices)
{
    struct ek_profile_choice choice = {.devices = devices};
    struct ek_costs *c = NULL;

    ck_assert_msg(ek_costs_from_profile(model, store, &choice, &c) == EK_OK, "%s", ek_last_error());
    return c;
}

START_TEST(a_module_without_times_of_a_phase_costs_not_nothing)
{
    struct ek_costs *c;
    uint32_t head = (uint32_t)-1;

    slack = 1;
    open_profile("cuda", "BF16");
    put_other("cuda:1", "", false, &plain);
    c = costs_of(NULL);
    for (size_t i = 0; i < c->n_modules; i++)
        head = c->modules[i].kind == EK_MODULE_HEAD ? c->modules[i].sig : head;
    ck_assert_ptr_nonnull(ek_costs_times(c, 0, head, 1));
    ck_assert_ptr_null(ek_costs_times(c, 1, head, 1));
    ck_assert_ptr_nonnull(ek_costs_times(c, 1, c->modules[1].sig, 1));
    ek_costs_free(c);
    close_profile();
}
END_TEST

static void put_row(const char *signature, const char *launch, enum ek_phase phase, uint32_t batch,
                    uint32_t tokens, uint32_t context, double seconds)
{
    struct ek_store_key k = {.device = 1, .phase = phase, .batch = batch, .tokens = tokens};
    struct ek_store_time t = {.median_s = seconds, .min_s = seconds, .n = 9, .stop = "converged"};

    k.context = context;
    strcpy(k.signature, signature);
    strcpy(k.launch, launch);
    strcpy(k.act, "BF16");
    strcpy(k.cache, "BF16");
    ck_assert_msg(ek_store_put_time(store, &k, &t) == EK_OK, "%s", ek_last_error());
}

/* The end of a prompt of 768, 256 tokens, and 256 that begin another attend to what 512 behind 128
 * do, and have 384 tokens of context more; 32 behind 736, and 480 that begin, 1248 - 528. */
START_TEST(rows_of_work_that_goes_on_and_of_two_sequences_are_read)
{
    const char *layer;
    const struct ek_cost_class *k;
    const struct ek_cost_times *t;
    struct ek_costs *c;

    slack = 1;
    open_profile("cuda", "BF16");
    layer = model->modules[1].signature;
    c = costs_of(NULL);
    t = ek_costs_times(c, 0, c->modules[1].sig, 1);
    double prefill = t->prefill.rows[t->prefill.n - 1].time.median_s;
    double decode = t->decode.rows[0].time.median_s;
    ck_assert_double_eq(c->classes[0].sustained, 1);
    ck_assert_double_eq(c->classes[0].behind, 1);
    ek_costs_free(c);
    put_row(layer, EK_STORE_SUSTAINED, EK_PHASE_PREFILL, 1, 512, 512, 1.25 * prefill);
    put_row(layer, EK_STORE_SUSTAINED, EK_PHASE_DECODE, 1, 1, 512, 1.5 * decode);
    put_row(EK_STORE_STAGE, EK_STORE_SUSTAINED, EK_PHASE_PREFILL, 1, 512, 512, 0.05);
    put_row(EK_STORE_STAGE, EK_STORE_SUSTAINED, EK_PHASE_DECODE, 1, 1, 512, 0.03);
    put_row(EK_STORE_STAGE, EK_STORE_REFILLED, EK_PHASE_PREFILL, 1, 512, 512, 0.5);
    put_row(layer, "eager", EK_PHASE_PREFILL, 2, 256, 768, 2 * prefill);
    put_row(layer, "eager", EK_PHASE_PREFILL, 2, 32, 768, 2 * prefill);
    c = costs_of(NULL);
    k = &c->classes[0];
    ck_assert_double_eq_tol(k->sustained, 1.25, 1e-9);
    ck_assert_double_eq_tol(k->behind, 1.5, 1e-9);
    ck_assert_double_eq(k->burst_s, 0.05);
    ck_assert_double_eq(k->recovery_s, 0.03);
    ck_assert_double_eq(k->refill_s, 0.5);
    t = ek_costs_times(c, 0, c->modules[1].sig, 1);
    ck_assert_double_eq_tol(t->prefill.context_s, prefill / 384, 1e-9 * prefill);
    ck_assert_double_eq_tol(t->prefill.short_context_s, prefill / 720, 1e-9 * prefill);
    ck_assert_uint_eq(t->prefill.rows[t->prefill.n - 1].key.batch, 1);
    ek_costs_free(c);
    close_profile();
}
END_TEST

/* Measured with three others at work, of which one is on the same GPU; the database has one more.
 */
START_TEST(devices_that_share_a_memory_slow_each_other_and_no_others)
{
    static const struct {
        const char *devices;
        double slow;
    } plans[] = {{"cuda:1 cuda:1.1 cuda:2", 2}, {"cuda:1 cuda:1.1", 2}, {"cuda:1 cuda:2", 1}};

    slack = 1;
    open_profile("cpu", "BF16"); /* of no group */
    put_other("cuda:1", "GPU-1", true, &plain);
    put_other("cuda:1.1", "GPU-1", true, &plain);
    put_other("cuda:2", "GPU-2", true, &plain);
    put_other("cuda:3", "GPU-3", true, &plain);
    for (size_t i = 0; i < EK_ARRAY_LEN(plans); i++) {
        struct ek_costs *c = costs_of(plans[i].devices);
        ck_assert_double_eq_tol(c->classes[0].slow_decode, plans[i].slow, 1e-9);
        ck_assert_double_eq_tol(c->classes[0].slow_prefill, 1, 1e-9);
        ek_costs_free(c);
    }
    close_profile();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("scale");
    TCase *t = tcase_create("scale");
    SRunner *sr;
    int failed;

    tcase_add_loop_test(t, memory_goes_by_bandwidth_and_arithmetic_by_the_peak, 0,
                        EK_ARRAY_LEN(cases));
    tcase_add_test(t, each_card_has_the_measured_times_by_its_own_roofline);
    tcase_add_test(t, nothing_is_faster_than_the_cards_roofline);
    tcase_add_test(t, degrees_share_the_work_and_pay_for_all_reduces);
    tcase_add_test(t, a_profile_without_ceilings_is_not_scaled);
    tcase_add_test(t, a_module_without_times_of_a_phase_costs_not_nothing);
    tcase_add_test(t, devices_that_share_a_memory_slow_each_other_and_no_others);
    tcase_add_test(t, rows_of_work_that_goes_on_and_of_two_sequences_are_read);
    suite_add_tcase(s, t);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
