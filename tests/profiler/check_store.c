/* SPDX-License-Identifier: Apache-2.0
 *
 * The profile database: what it keeps, and what lies between its points.
 */
#include "tests/profiler/store_support.h"

#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- What it keeps --------------------------------------------------------------------------- */
START_TEST(rows_come_back_as_they_were_put)
{
    struct ek_store *s = open_store(EK_STORE_WRITE);
    int64_t id = put_device(s, "cpu:0", "1"), other = put_device(s, "cpu:1", "1");
    struct ek_store_key k = key_at(id, EK_PHASE_DECODE, 1, 1, 64);
    struct ek_store_link l = {"cpu:0", "cpu:1", "memcpy", 1e-6, 1e10, 0.05, 30}, *links;
    struct ek_store_memory m = {id, "layer", "F32", "F32", 1, 64, 128, 1, 2, 3, 4, 5}, *memories;
    struct ek_store_run r = {"p", "m", "step", 1.5, 1.6, 1, 1, 64, "cpu:0", "decode", 0.1, 3, 1.25};
    struct ek_store_run *runs;
    struct ek_store_time_row *rows;
    struct ek_store_device *devices;
    size_t n;

    ck_assert_int_ne(id, other);
    ck_assert(!ek_store_has_time(s, &k));
    put_time(s, &k, 0.25);
    ck_assert(ek_store_has_time(s, &k));
    ck_assert(!ek_store_has_memory(s, &m));
    ck_assert_int_eq(ek_store_put_memory(s, &m), EK_OK);
    ck_assert(ek_store_has_memory(s, &m));
    ck_assert_int_eq(ek_store_put_link(s, &l), EK_OK);
    ck_assert_int_eq(ek_store_put_run(s, &r), EK_OK);
    ck_assert_int_eq(ek_store_put_model(s, "hash", "name", "{}"), EK_OK);
    ek_store_close(s);

    s = open_store(EK_STORE_READ);
    ck_assert_int_eq(ek_store_devices(s, &devices, &n), EK_OK);
    ck_assert_uint_eq(n, 2);
    ck_assert_str_eq(devices[1].name, "cpu:1");
    ck_assert_double_eq(devices[0].read_bandwidth, 1e10);
    ck_assert_int_eq(ek_store_times(s, id, "layer", &rows, &n), EK_OK);
    ck_assert_uint_eq(n, 1);
    ck_assert_int_eq(rows[0].key.device, k.device);
    ck_assert_str_eq(rows[0].key.signature, k.signature);
    ck_assert_int_eq(rows[0].key.phase, k.phase);
    ck_assert_uint_eq(rows[0].key.context, k.context);
    ck_assert_str_eq(rows[0].key.launch, k.launch);
    ck_assert_double_eq(rows[0].time.median_s, 0.25);
    ck_assert_uint_eq(rows[0].time.clock_mhz, 1980);
    ck_assert_uint_eq(rows[0].time.throttle, 4);
    ck_assert_int_eq(ek_store_links(s, &links, &n), EK_OK);
    ck_assert_uint_eq(n, 1);
    ck_assert_str_eq(links[0].to, l.to);
    ck_assert_str_eq(links[0].mechanism, l.mechanism);
    ck_assert_double_eq(links[0].beta_bytes_s, l.beta_bytes_s);
    ck_assert_uint_eq(links[0].n, l.n);
    ck_assert_int_eq(ek_store_memories(s, id, "layer", &memories, &n), EK_OK);
    ck_assert_uint_eq(n, 1);
    ck_assert_uint_eq(memories[0].tokens, m.tokens);
    ck_assert_uint_eq(memories[0].weights, m.weights);
    ck_assert_uint_eq(memories[0].kv, m.kv);
    ck_assert_uint_eq(memories[0].activations, m.activations);
    ck_assert_uint_eq(memories[0].workspace, m.workspace);
    ck_assert_uint_eq(memories[0].comm, m.comm);
    ck_assert_int_eq(ek_store_runs(s, &runs, &n), EK_OK);
    ck_assert_uint_eq(n, 1);
    ck_assert_double_eq(runs[0].measured, 1.6);
    ck_assert_str_eq(runs[0].device, "cpu:0");
    ck_assert_str_eq(runs[0].quantity, "decode");
    ck_assert_double_eq(runs[0].mad, 0.1);
    ck_assert_uint_eq(runs[0].n, 3);
    ck_assert_double_eq(runs[0].factor, 1.25);
    ck_assert_int_eq(ek_store_put_run(s, &r), EK_EUSAGE); /* opened for reading */
    free(devices);
    free(rows);
    free(links);
    free(memories);
    free(runs);
    ek_store_close(s);
}
END_TEST

START_TEST(kernels_belong_to_a_measurement)
{
    static const struct ek_store_kernel old[] = {{"old", 1, 0.1}};
    static const struct ek_store_kernel rows[] = {{EK_STORE_GAPS, 3, 0.05}, {"product", 2, 0.2}};
    struct ek_store *s = open_store(EK_STORE_WRITE);
    struct ek_store_key k = key_at(put_device(s, "cpu:0", "1"), EK_PHASE_DECODE, 1, 1, 64);
    struct ek_store_kernel *out;
    size_t n;

    ck_assert_int_eq(ek_store_put_kernels(s, &k, rows, 2), EK_EUSAGE); /* nothing measured */
    put_time(s, &k, 0.25);
    ck_assert_int_eq(ek_store_kernels(s, &k, &out, &n), EK_OK);
    ck_assert_uint_eq(n, 0);
    free(out);
    ck_assert_int_eq(ek_store_put_kernels(s, &k, old, 1), EK_OK);
    ck_assert_int_eq(ek_store_put_kernels(s, &k, rows, 2), EK_OK);
    ck_assert_int_eq(ek_store_kernels(s, &k, &out, &n), EK_OK);
    ck_assert_uint_eq(n, 2);
    ck_assert_str_eq(out[0].name, "product");
    ck_assert_uint_eq(out[0].calls, 2);
    ck_assert_double_eq(out[0].seconds, 0.2);
    ck_assert_str_eq(out[1].name, EK_STORE_GAPS);
    free(out);
    k.context = 65;
    ck_assert_int_eq(ek_store_kernels(s, &k, &out, &n), EK_OK);
    ck_assert_uint_eq(n, 0);
    free(out);
    ek_store_close(s);
}
END_TEST

START_TEST(a_key_that_is_there_stays_as_it_is)
{
    struct ek_store *s = open_store(EK_STORE_WRITE);
    struct ek_store_key k = key_at(put_device(s, "cpu:0", "1"), EK_PHASE_DECODE, 1, 1, 64);
    struct ek_store_time_row *rows;
    size_t n;

    put_time(s, &k, 0.25);
    put_time(s, &k, 0.5);
    ck_assert_int_eq(ek_store_times(s, k.device, "layer", &rows, &n), EK_OK);
    ck_assert_uint_eq(n, 1);
    ck_assert_double_eq(rows[0].time.median_s, 0.25);
    free(rows);
    ek_store_close(s);
}
END_TEST

START_TEST(a_new_driver_makes_a_new_device_and_hides_the_old_one)
{
    struct ek_store *s = open_store(EK_STORE_WRITE);
    int64_t first = put_device(s, "cpu:0", "1"), second = put_device(s, "cpu:0", "2");
    struct ek_store_device *devices;
    size_t n;

    ck_assert_int_ne(first, second);
    ck_assert_int_eq(put_device(s, "cpu:0", "2"), second);
    ck_assert_int_eq(ek_store_devices(s, &devices, &n), EK_OK);
    ck_assert_uint_eq(n, 1);
    ck_assert_int_eq(devices[0].id, second);
    free(devices);
    ck_assert_int_eq(put_device(s, "cpu:0", "1"), first); /* back to the old one: it is current */
    ck_assert_int_eq(ek_store_devices(s, &devices, &n), EK_OK);
    ck_assert_int_eq(devices[0].id, first);
    free(devices);
    ek_store_close(s);
}
END_TEST

START_TEST(impossible_values_are_not_written)
{
    struct ek_store *s = open_store(EK_STORE_WRITE);
    struct ek_store_key k = key_at(put_device(s, "cpu:0", "1"), EK_PHASE_DECODE, 1, 1, 64);
    struct ek_store_time t = {.median_s = 1, .n = 1, .stop = "converged"};
    static const struct ek_store_time impossible[] = {{.median_s = 0, .n = 1},
                                                      {.median_s = -1, .n = 1},
                                                      {.median_s = INFINITY, .n = 1},
                                                      {.median_s = 1e9, .n = 1},
                                                      {.median_s = 1, .mad_s = NAN, .n = 1},
                                                      {.median_s = 1, .min_s = -1, .n = 1},
                                                      {.median_s = 1, .n = 0}};
    struct ek_store_link l = {"cpu:0", "cpu:0", "memcpy", 1e-6, 0, 0, 1};
    struct ek_store_memory m = {.device = k.device, .signature = "layer", .kv = UINT64_MAX};

    for (size_t i = 0; i < EK_ARRAY_LEN(impossible); i++)
        ck_assert_int_eq(ek_store_put_time(s, &k, &impossible[i]), EK_EUSAGE);
    ck_assert_int_eq(ek_store_put_link(s, &l), EK_EUSAGE);
    l.beta_bytes_s = 1e9;
    strcpy(l.to, "cpu:7");
    ck_assert_int_eq(ek_store_put_link(s, &l), EK_EUSAGE);
    ck_assert_int_eq(ek_store_put_memory(s, &m), EK_EUSAGE);
    k.device = 77; /* no such device */
    ck_assert_int_ne(ek_store_put_time(s, &k, &t), EK_OK);
    ek_store_close(s);
}
END_TEST

static void identity(struct ek_store *s, char out[33])
{
    ck_assert_msg(ek_store_identity(s, out) == EK_OK, "%s", ek_last_error());
}

START_TEST(identity_is_of_the_measurements_whatever_their_order)
{
    char id[3][33], first[64];
    struct ek_store *s;

    for (int order = 0; order < 2; order++) {
        s = open_store(EK_STORE_WRITE);
        int64_t d = put_device(s, "cpu:0", "1");
        struct ek_store_key a = key_at(d, EK_PHASE_DECODE, 1, 1, 64),
                            b = key_at(d, EK_PHASE_PREFILL, 1, 64, 64);
        put_time(s, order ? &b : &a, order ? 0.5 : 0.25);
        put_time(s, order ? &a : &b, order ? 0.25 : 0.5);
        identity(s, id[order]);
        ek_store_close(s);
        if (order == 0)
            unlink(path);
    }
    ck_assert_str_eq(id[0], id[1]);
    s = open_store(EK_STORE_WRITE);
    struct ek_store_key c = key_at(put_device(s, "cpu:0", "1"), EK_PHASE_DECODE, 2, 1, 64);
    struct ek_store_run r = {.what = "decode", .predicted = 1.5, .measured = 1.6, .factor = 1};
    ck_assert_int_eq(ek_store_put_run(s, &r), EK_OK);
    identity(s, id[2]);
    ck_assert_str_eq(id[0], id[2]); /* what a run took is not part of it */
    put_time(s, &c, 0.3);
    identity(s, first);
    ck_assert_str_ne(id[0], first);
    ek_store_close(s);
}
END_TEST

START_TEST(slowdown_is_the_median_over_rows_with_busy_neighbours)
{
    struct ek_store *s = open_store(EK_STORE_WRITE);
    struct ek_store_key k = key_at(put_device(s, "cpu:0", "1"), EK_PHASE_DECODE, 1, 1, 64);
    struct ek_store_time_row *rows;
    uint32_t busy;
    double f;
    size_t n;

    put_time(s, &k, 1);
    ck_assert_int_eq(ek_store_slowdown(s, k.device, EK_PHASE_DECODE, &f, &busy), EK_OK);
    ck_assert_double_eq(f, 1);
    k.busy = 1;
    put_time(s, &k, 1.25);
    ck_assert_int_eq(ek_store_slowdown(s, k.device, EK_PHASE_DECODE, &f, &busy), EK_OK);
    ck_assert_double_eq(f, 1.25);
    ck_assert_uint_eq(busy, 1);
    k.busy = 3; /* the most at work count */
    k.tokens = 2;
    put_time(s, &k, 1.9);
    k.busy = 0;
    put_time(s, &k, 1);
    ck_assert_int_eq(ek_store_slowdown(s, k.device, EK_PHASE_DECODE, &f, &busy), EK_OK);
    ck_assert_double_eq_tol(f, 1.9, 1e-12);
    ck_assert_uint_eq(busy, 3);
    ck_assert_int_eq(ek_store_slowdown(s, k.device, EK_PHASE_PREFILL, &f, &busy), EK_OK);
    ck_assert_double_eq(f, 1);
    ck_assert_uint_eq(busy, 0);
    strcpy(k.launch, EK_STORE_SUSTAINED);
    put_time(s, &k, 1.125); /* of what goes on, the clocks take so much */
    ck_assert_int_eq(ek_store_slowdown(s, k.device, EK_PHASE_DECODE, &f, &busy), EK_OK);
    ck_assert_double_eq_tol(f, 1.9 / 1.125, 1e-12);
    ck_assert_int_eq(ek_store_times(s, k.device, "layer", &rows, &n), EK_OK);
    ck_assert_uint_eq(n, 3); /* the busy row is not among those measured alone */
    free(rows);
    ek_store_close(s);
}
END_TEST

static void *write_rows(void *store)
{
    for (struct ek_store_key k = key_at(1, EK_PHASE_DECODE, 1, 1, 64); k.tokens <= 64; k.tokens++)
        put_time(store, &k, 0.25);
    return NULL;
}

START_TEST(threads_write_by_connections_of_their_own)
{
    struct ek_store *s[3] = {open_store(EK_STORE_WRITE)};
    pthread_t threads[3];

    ck_assert_int_eq(put_device(s[0], "cpu:0", "1"), 1);
    for (int i = 1; i < 3; i++) {
        ck_assert_int_eq(ek_store_open_again(s[0], &s[i]), EK_OK);
        ck_assert_int_eq(pthread_create(&threads[i], NULL, write_rows, s[i]), 0);
    }
    for (int i = 1; i < 3; i++) {
        pthread_join(threads[i], NULL);
        ek_store_close(s[i]);
    }
    ek_store_close(s[0]);
}
END_TEST

START_TEST(two_processes_do_not_measure_into_one_profile)
{
    struct ek_store *s = open_store(EK_STORE_WRITE);
    int to_child[2], from_child[2], status;
    pid_t pid;
    char c = 0;

    ck_assert(pipe(to_child) == 0 && pipe(from_child) == 0);
    if ((pid = fork()) == 0) {
        struct ek_store *mine;
        bool ok = ek_store_open(path, EK_STORE_WRITE, &mine) == EK_OK &&
                  ek_store_session_begin(mine, "m") == EK_OK;
        if (write(from_child[1], &c, 1) != 1 || read(to_child[0], &c, 1) != 1)
            ok = false;
        _exit(ok ? 0 : 1); /* dies with its session running */
    }
    ck_assert_int_eq(read(from_child[0], &c, 1), 1);
    ck_assert_int_eq(ek_store_session_begin(s, "m"), EK_EENV);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "is measuring into it"));
    ck_assert_int_eq(write(to_child[1], &c, 1), 1);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
    ck_assert_int_eq(ek_store_session_begin(s, "m"), EK_OK); /* the dead one's is taken over */
    ck_assert_int_eq(ek_store_session_end(s, "complete"), EK_OK);
    ek_store_close(s);
}
END_TEST

/* ---- Between the points ---------------------------------------------------------------------- */
/* A layer: weights read once, products by width, attention by width and depth. */
static double model_time(enum ek_phase phase, double batch, double tokens, double context)
{
    double past = context - tokens;

    return phase == EK_PHASE_DECODE
               ? 1e-3 + 1e-4 * batch + 1e-7 * batch * context
               : 1e-3 + 1e-4 * batch * tokens + 1e-7 * batch * tokens * (past + tokens / 2);
}

static size_t grid(struct ek_store_time_row *rows)
{
    static const uint32_t widths[] = {1, 2, 4, 8}, tokens[] = {16, 32, 64, 128};
    size_t n = 0;

    for (int phase = 0; phase < 2; phase++)
        for (int w = 0; w < 4; w++)
            for (int c = 0; c < 2; c++) {
                bool decode = phase == EK_PHASE_DECODE;
                uint32_t b = decode ? widths[w] : 1, t = decode ? 1 : tokens[w];
                rows[n].key = key_at(1, (enum ek_phase)phase, b, t, c ? 512 : decode ? 16 : t);
                rows[n].time.median_s = model_time((enum ek_phase)phase, b, t, rows[n].key.context);
                n++;
            }
    return n;
}

static const struct ek_point asked[] = {
    {EK_PHASE_DECODE, 1, 1, 16},   {EK_PHASE_DECODE, 3, 1, 100},  {EK_PHASE_DECODE, 8, 1, 512},
    {EK_PHASE_DECODE, 5, 1, 300},  {EK_PHASE_DECODE, 8, 1, 1024}, {EK_PHASE_DECODE, 16, 1, 64},
    {EK_PHASE_PREFILL, 1, 64, 64}, {EK_PHASE_PREFILL, 1, 48, 48}, {EK_PHASE_PREFILL, 1, 128, 300},
    {EK_PHASE_PREFILL, 4, 32, 32}, {EK_PHASE_PREFILL, 2, 16, 80}, {EK_PHASE_PREFILL, 1, 160, 160},
};

START_TEST(interpolation_is_exact_where_the_cost_is_linear)
{
    struct ek_store_time_row rows[16];
    const struct ek_point *p = &asked[_i];
    double want = model_time(p->phase, p->batch, p->tokens, p->context), got;

    got = ek_interpolate(rows, grid(rows), p, NULL);
    /* attention among the new tokens themselves is quadratic in their number */
    ck_assert_double_eq_tol(got, want, want * (p->phase == EK_PHASE_DECODE ? 1e-9 : 0.01));
}
END_TEST

START_TEST(extrapolation_is_said_and_nothing_comes_of_nothing)
{
    struct ek_store_time_row rows[16];
    struct ek_point at = {EK_PHASE_DECODE, 3, 1, 100};
    size_t n = grid(rows);
    bool outside;

    ck_assert_double_gt(ek_interpolate(rows, n, &at, &outside), 0);
    ck_assert(!outside);
    at.context = 4096;
    ck_assert_double_gt(ek_interpolate(rows, n, &at, &outside), 0);
    ck_assert(outside);
    at.context = 100;
    at.batch = 9;
    ck_assert_double_gt(ek_interpolate(rows, n, &at, &outside), 0);
    ck_assert(outside);
    ck_assert_double_lt(ek_interpolate(rows, 8, &at, NULL), 0); /* prefill rows alone */
    ck_assert_double_lt(ek_interpolate(NULL, 0, &at, NULL), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store");
    TCase *tc = tcase_create("store");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, make_dir, remove_dir);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, rows_come_back_as_they_were_put);
    tcase_add_test(tc, kernels_belong_to_a_measurement);
    tcase_add_test(tc, a_key_that_is_there_stays_as_it_is);
    tcase_add_test(tc, a_new_driver_makes_a_new_device_and_hides_the_old_one);
    tcase_add_test(tc, impossible_values_are_not_written);
    tcase_add_test(tc, identity_is_of_the_measurements_whatever_their_order);
    tcase_add_test(tc, slowdown_is_the_median_over_rows_with_busy_neighbours);
    tcase_add_test(tc, threads_write_by_connections_of_their_own);
    tcase_add_test(tc, two_processes_do_not_measure_into_one_profile);
    tcase_add_loop_test(tc, interpolation_is_exact_where_the_cost_is_linear, 0,
                        EK_ARRAY_LEN(asked));
    tcase_add_test(tc, extrapolation_is_said_and_nothing_comes_of_nothing);
    suite_add_tcase(suite, tc);
    sr = srunner_create(suite);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
