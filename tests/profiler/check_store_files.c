/* SPDX-License-Identifier: Apache-2.0
 *
 * The profile database: which files it refuses, and what it makes of locks and full disks.
 */
#include "tests/profiler/store_support.h"

#include <check.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

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

int main(void)
{
    Suite *suite = suite_create("store: files");
    TCase *tc = tcase_create("store");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, make_dir, remove_dir);
    tcase_set_timeout(tc, 60);
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
    suite_add_tcase(suite, tc);
    sr = srunner_create(suite);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
