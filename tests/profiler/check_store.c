/* SPDX-License-Identifier: Apache-2.0
 *
 * The profile database: what it keeps, and which files it refuses.
 */
#include "profiler/store.h"

#include <check.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "/tmp/ek-store-XXXXXX", path[64];

static void make_dir(void)
{
    strcpy(dir, "/tmp/ek-store-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/p.db", dir);
}

static void remove_dir(void)
{
    static const char *const ends[] = {"", "-wal", "-shm", "-journal", ".copy", "-wal.copy"};
    char name[96];

    chmod(dir, 0700);
    for (size_t i = 0; i < EK_ARRAY_LEN(ends); i++) {
        snprintf(name, sizeof(name), "%s%s", path, ends[i]);
        unlink(name);
    }
    ck_assert_int_eq(rmdir(dir), 0);
}

static struct ek_store *open_store(enum ek_store_mode mode)
{
    struct ek_store *s = NULL;
    enum ek_status st = ek_store_open(path, mode, &s);

    ck_assert_msg(st == EK_OK, "%s", ek_last_error());
    return s;
}

static int64_t put_device(struct ek_store *s, const char *name, const char *driver)
{
    struct ek_store_device d = {.memory_total = 1 << 30,
                                .read_bandwidth = 1e10,
                                .peak_f32 = 1e11,
                                .backend = "cpu",
                                .host = "here",
                                .uuid = "u"};

    snprintf(d.name, sizeof(d.name), "%s", name);
    snprintf(d.driver, sizeof(d.driver), "%s", driver);
    ck_assert_msg(ek_store_put_device(s, &d) == EK_OK, "%s", ek_last_error());
    return d.id;
}

static struct ek_store_key key_at(int64_t device, enum ek_phase phase, uint32_t batch,
                                  uint32_t tokens, uint32_t context)
{
    return (struct ek_store_key){.device = device,
                                 .signature = "layer",
                                 .phase = phase,
                                 .batch = batch,
                                 .tokens = tokens,
                                 .context = context,
                                 .act = "F32",
                                 .cache = "F32",
                                 .launch = "eager"};
}

static void put_time(struct ek_store *s, const struct ek_store_key *k, double t)
{
    struct ek_store_time time = {
        .median_s = t, .mad_s = t / 100, .min_s = t, .n = 10, .clock_mhz = 1980, .throttle = 4};

    strcpy(time.stop, "converged");
    ck_assert_msg(ek_store_put_time(s, k, &time) == EK_OK, "%s", ek_last_error());
}

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
    struct ek_store_time t = {.median_s = 0, .n = 1, .stop = "converged"};
    struct ek_store_link l = {"cpu:0", "cpu:0", "memcpy", 1e-6, 0, 0, 1};
    struct ek_store_memory m = {.device = k.device, .signature = "layer", .kv = UINT64_MAX};

    ck_assert_int_eq(ek_store_put_time(s, &k, &t), EK_EUSAGE);
    t.median_s = -1;
    ck_assert_int_eq(ek_store_put_time(s, &k, &t), EK_EUSAGE);
    t.median_s = 1e300 * 1e300;
    ck_assert_int_eq(ek_store_put_time(s, &k, &t), EK_EUSAGE);
    ck_assert_int_eq(ek_store_put_link(s, &l), EK_EUSAGE);
    l.beta_bytes_s = 1e9;
    strcpy(l.to, "cpu:7");
    ck_assert_int_eq(ek_store_put_link(s, &l), EK_EUSAGE);
    ck_assert_int_eq(ek_store_put_memory(s, &m), EK_EUSAGE);
    k.device = 77; /* no such device */
    t.median_s = 1;
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

/* ---- What it refuses ------------------------------------------------------------------------- */
static void write_file(const void *data, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    ck_assert_int_eq(write(fd, data, n), (ssize_t)n);
    close(fd);
}

static void refused(enum ek_store_mode mode, enum ek_status want, const char *message)
{
    struct ek_store *s = NULL;

    ck_assert_int_eq(ek_store_open(path, mode, &s), want);
    ck_assert_ptr_null(s);
    ck_assert_msg(strstr(ek_last_error(), message), "'%s' lacks '%s'", ek_last_error(), message);
    ck_assert_ptr_null(strchr(ek_last_error(), '\n'));
}

START_TEST(files_that_are_no_database_are_refused_and_left_alone)
{
    char text[8192], back[64];
    int fd;

    memset(text, 'x', sizeof(text));
    refused(EK_STORE_READ, EK_EENV, "cannot open");
    write_file("", 0);
    refused(EK_STORE_READ, EK_EFORMAT, "empty");
    for (size_t n = 1; n <= sizeof(text); n *= 2) {
        write_file(text, n);
        refused(EK_STORE_READ, EK_EFORMAT, "not an SQLite database");
        refused(EK_STORE_WRITE, EK_EFORMAT, "not an SQLite database");
    }
    fd = open(path, O_RDONLY);
    ck_assert_int_eq(read(fd, back, sizeof(back)), sizeof(back));
    ck_assert_mem_eq(back, text, sizeof(back));
    close(fd);
    unlink(path);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    refused(EK_STORE_READ, EK_EENV, "not a regular file");
    rmdir(path);
}
END_TEST

/* SQL run on a good profile by somebody else. */
static const struct {
    const char *sql;
    enum ek_status status;
    const char *message;
} tampered[] = {
    {"PRAGMA application_id = 1", EK_EFORMAT, "application_id"},
    {"PRAGMA user_version = 99", EK_EUNSUPPORTED, "newer"},
    {"PRAGMA user_version = 0", EK_EFORMAT, "user_version"},
    {"CREATE VIEW v AS SELECT 1", EK_EFORMAT, "view 'v'"},
    {"CREATE TABLE t(x)", EK_EFORMAT, "table 't'"},
    {"CREATE INDEX i ON run(what)", EK_EFORMAT, "index 'i'"},
    {"CREATE TRIGGER z AFTER INSERT ON run BEGIN DELETE FROM run; END", EK_EFORMAT, "trigger 'z'"},
    {"DROP TABLE kernel", EK_EFORMAT, "9 of the 10"},
    {"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CREATE TABLE kernel(x)'"
     " WHERE name = 'kernel'",
     EK_EFORMAT, "kernel"},
    {"PRAGMA ignore_check_constraints = ON; UPDATE measurement SET median_s = -1", EK_EFORMAT,
     "damaged"},
};

static void tamper(const char *sql)
{
    char *message = NULL;
    sqlite3 *db;

    ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
    sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 0, NULL);
    ck_assert_msg(sqlite3_exec(db, sql, NULL, NULL, &message) == SQLITE_OK, "%s", message);
    sqlite3_close(db);
}

static void good_profile(void)
{
    struct ek_store *s = open_store(EK_STORE_WRITE);
    struct ek_store_key k = key_at(put_device(s, "cpu:0", "1"), EK_PHASE_DECODE, 1, 1, 64);

    put_time(s, &k, 0.25);
    ek_store_close(s);
}

START_TEST(a_database_that_is_not_ours_is_refused)
{
    good_profile();
    tamper(tampered[_i].sql);
    refused(EK_STORE_READ, tampered[_i].status, tampered[_i].message);
    refused(EK_STORE_WRITE, tampered[_i].status, tampered[_i].message);
}
END_TEST

START_TEST(a_profile_of_version_1_keeps_its_measurements)
{
    struct ek_store_time_row *rows;
    struct ek_store *s;
    size_t n;

    good_profile();
    tamper("DROP TABLE run; CREATE TABLE run(id INTEGER PRIMARY KEY, plan_hash TEXT NOT NULL,"
           " measured REAL NOT NULL) STRICT; PRAGMA user_version = 1");
    refused(EK_STORE_READ, EK_EUNSUPPORTED, "older");
    ek_store_close(open_store(EK_STORE_WRITE));
    s = open_store(EK_STORE_READ);
    ck_assert_int_eq(ek_store_times(s, 1, "layer", &rows, &n), EK_OK);
    ck_assert_uint_eq(n, 1);
    free(rows);
    ek_store_close(s);
}
END_TEST

/* Values that pass the file's own checks but cannot have been measured. */
static const char *const impossible[] = {
    "UPDATE measurement SET median_s = 9e99",   "UPDATE measurement SET median_s = 0.0",
    "UPDATE measurement SET n = 99999999999",   "UPDATE measurement SET launch = 'much too long'",
    "UPDATE measurement SET batch = 1 << 40",   "UPDATE measurement SET min_s = 9e999",
    "UPDATE measurement SET stop = char(0,65)",
};

START_TEST(values_that_cannot_be_true_are_refused_when_read)
{
    struct ek_store_time_row *rows;
    struct ek_store *s;
    size_t n;

    good_profile();
    tamper(impossible[_i]);
    s = open_store(EK_STORE_READ);
    ck_assert_int_eq(ek_store_times(s, 1, "layer", &rows, &n), EK_EFORMAT);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "table measurement, column "));
    ek_store_close(s);
}
END_TEST

START_TEST(flipped_bytes_are_refused_or_read_never_worse)
{
    uint64_t seed = 7;
    char *good, *bad;
    size_t n, refusals = 0;

    good_profile();
    ck_assert_int_eq(ek_file_read(path, 1 << 24, &good, &n), EK_OK);
    bad = malloc(n);
    for (int i = 0; i < 200; i++) {
        struct ek_store_time_row *rows;
        struct ek_store *s;
        size_t k;

        memcpy(bad, good, n);
        for (int j = 0; j < 8; j++)
            bad[ek_random_u64(&seed) % (j < 4 ? 8192 : n)] = (char)ek_random_u64(&seed);
        write_file(bad, i % 10 ? n : ek_random_u64(&seed) % n);
        if (ek_store_open(path, EK_STORE_READ, &s) != EK_OK) {
            refusals++;
            continue;
        }
        if (ek_store_times(s, 1, "layer", &rows, &k) == EK_OK)
            free(rows);
        ek_store_close(s);
    }
    ck_assert_uint_gt(refusals, 50);
    free(good);
    free(bad);
}
END_TEST

START_TEST(a_locked_database_names_the_holder)
{
    int ready[2], status;
    struct ek_store *s;
    pid_t pid;
    char c;

    good_profile();
    ck_assert_int_eq(pipe(ready), 0);
    if ((pid = fork()) == 0) {
        sqlite3 *db;
        sqlite3_open(path, &db);
        sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
        if (write(ready[1], "x", 1) == 1)
            sleep(60);
        _exit(0);
    }
    ck_assert_int_eq(read(ready[0], &c, 1), 1);
    s = open_store(EK_STORE_WRITE); /* opening and reading go on beside a writer */
    struct ek_store_run r = {.what = "decode", .predicted = 1.5, .measured = 1.6, .factor = 1};
    char name[32];
    snprintf(name, sizeof(name), "by process %d (", (int)pid);
    ck_assert_int_eq(ek_store_put_run(s, &r), EK_EENV);
    ck_assert_msg(strstr(ek_last_error(), name), "%s", ek_last_error());
    ek_store_close(s);
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
}
END_TEST

/* In a child whose files cannot grow beyond what they are: a disk that is full. */
static void fill_disk(void)
{
    struct rlimit limit = {.rlim_cur = 200 * 1024, .rlim_max = RLIM_INFINITY};
    struct ek_store *s = NULL;
    enum ek_status st;

    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0 || ek_store_open(path, EK_STORE_WRITE, &s) != EK_OK)
        _exit(1);
    for (uint32_t i = 1; i < 100000; i++) {
        struct ek_store_key k = key_at(1, EK_PHASE_DECODE, i, 1, 64);
        struct ek_store_time t = {.median_s = 1, .n = 1, .stop = "converged"};
        if ((st = ek_store_put_time(s, &k, &t)) != EK_OK)
            _exit(st == EK_EENV ? 0 : 1);
    }
    _exit(1);
}

/* root may write anywhere: the test then runs as nobody. */
static void in_child(void (*fn)(void), bool as_nobody)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        if (as_nobody && getuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))
            _exit(1);
        fn();
        _exit(0);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
}

static void read_the_row(void)
{
    struct ek_store_time_row *rows = NULL;
    struct ek_store *s = NULL;
    size_t n = 0;

    if (ek_store_open(path, EK_STORE_READ, &s) != EK_OK ||
        ek_store_times(s, 1, "layer", &rows, &n) != EK_OK || n != 1) {
        fprintf(stderr, "%s\n", ek_last_error());
        _exit(1);
    }
    free(rows);
    ek_store_close(s);
}

static void must_not_read(void)
{
    struct ek_store *s = NULL;

    if (ek_store_open(path, EK_STORE_READ, &s) != EK_EENV ||
        !strstr(ek_last_error(), "cannot be replayed"))
        _exit(1);
    if (ek_store_open(path, EK_STORE_WRITE, &s) != EK_EENV)
        _exit(1);
}

static void copy_file(const char *from, const char *to)
{
    char name[96], *data;
    size_t n;

    snprintf(name, sizeof(name), "%s%s", path, from);
    ck_assert_int_eq(ek_file_read(name, 1 << 24, &data, &n), EK_OK);
    snprintf(name, sizeof(name), "%s%s", path, to);
    ck_assert_int_eq(ek_file_write(name, data, n, true), EK_OK);
    free(data);
}

START_TEST(a_full_disk_is_said_and_leaves_the_profile_whole)
{
    struct ek_store_time_row *rows;
    struct ek_store *s;
    size_t n;

    good_profile();
    in_child(fill_disk, false);
    s = open_store(EK_STORE_WRITE); /* checks it */
    ck_assert_int_eq(ek_store_times(s, 1, "layer", &rows, &n), EK_OK);
    ck_assert_uint_gt(n, 1);
    free(rows);
    ek_store_close(s);
}
END_TEST

START_TEST(a_profile_on_a_read_only_medium_is_read)
{
    good_profile();
    chmod(path, 0444);
    chmod(dir, 0555);
    in_child(read_the_row, true);
}
END_TEST

START_TEST(a_journal_that_a_read_only_medium_cannot_replay_is_said)
{
    struct ek_store *s;

    good_profile();
    s = open_store(EK_STORE_WRITE);
    put_device(s, "cpu:1", "1");
    copy_file("", ".copy"); /* as a crash would leave them: closing would clear the journal */
    copy_file("-wal", "-wal.copy");
    ek_store_close(s);
    copy_file(".copy", "");
    copy_file("-wal.copy", "-wal");
    chmod(path, 0444);
    chmod(dir, 0555);
    in_child(must_not_read, true);
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
    tcase_add_test(tc, files_that_are_no_database_are_refused_and_left_alone);
    tcase_add_loop_test(tc, a_database_that_is_not_ours_is_refused, 0, EK_ARRAY_LEN(tampered));
    tcase_add_test(tc, a_profile_of_version_1_keeps_its_measurements);
    tcase_add_loop_test(tc, values_that_cannot_be_true_are_refused_when_read, 0,
                        EK_ARRAY_LEN(impossible));
    tcase_add_test(tc, flipped_bytes_are_refused_or_read_never_worse);
    tcase_add_test(tc, a_locked_database_names_the_holder);
    tcase_add_test(tc, a_full_disk_is_said_and_leaves_the_profile_whole);
    tcase_add_test(tc, a_profile_on_a_read_only_medium_is_read);
    tcase_add_test(tc, a_journal_that_a_read_only_medium_cannot_replay_is_said);
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
