/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening a profile: what kind of file it is, whether it is whole and ours, in which mode this
 * medium lets us read it. Every later query runs on a connection that was hardened here.
 */
#include "profiler/store_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUSY_MS 5000

/* ---- Who holds the lock ---------------------------------------------------------------------- */

/* Process that holds a lock on any byte of [at, at + n) of a file, 0 when none. */
static pid_t lock_holder(const char *path, off_t at, off_t n)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = n};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    pid_t pid = 0;

    if (fd < 0)
        return 0;
    if (fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK && lock.l_pid > 0)
        pid = lock.l_pid;
    close(fd);
    return pid;
}

/* " (comm)" of a process, or "". */
static void process_name(pid_t pid, char *out, size_t cap)
{
    char path[64], text[64] = "";
    ssize_t n = -1;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
    if ((fd = open(path, O_RDONLY | O_CLOEXEC)) >= 0) {
        n = read(fd, text, sizeof(text) - 1);
        close(fd);
    }
    if (n > 0)
        snprintf(out, cap, " (%.*s)", (int)strcspn(text, "\n"), text);
}

/* SQLite locks bytes 120..127 of the -shm file (WAL), else 510 bytes from 1 GiB of the database.
 * Called when our own connection is beyond use: closing a descriptor drops our own locks too. */
static enum ek_status locked(const char *path)
{
    char *shm = ek_asprintf("%s-shm", path), name[64] = "";
    pid_t pid = shm ? lock_holder(shm, 120, 8) : 0;

    if (!pid)
        pid = lock_holder(path, 0x40000000, 512);
    free(shm);
    if (!pid || pid == getpid())
        return ek_error(EK_EENV, "%s: locked for over %d s by another connection", path,
                        BUSY_MS / 1000);
    process_name(pid, name, sizeof(name));
    return ek_error(EK_EENV, "%s: locked for over %d s by process %d%s", path, BUSY_MS / 1000,
                    (int)pid, name);
}

enum ek_status ek_store_failed(struct ek_store *s, int rc, const char *doing)
{
    const char *text = s->db ? sqlite3_errmsg(s->db) : sqlite3_errstr(rc);

    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return locked(s->path);
    case SQLITE_NOMEM:
        return ek_error(EK_ENOMEM, "%s: %s: out of memory", s->path, doing);
    case SQLITE_FULL:
        return ek_error(EK_EENV, "%s: %s: the disk is full", s->path, doing);
    case SQLITE_READONLY:
        return ek_error(EK_EENV, "%s: %s: the file or its folder is read-only", s->path, doing);
    case SQLITE_NOTADB:
        return ek_error(EK_EFORMAT, "%s: not an SQLite database", s->path);
    case SQLITE_CORRUPT:
    case SQLITE_ERROR: /* our SQL is fixed: what it does not fit is the file */
    case SQLITE_TOOBIG:
    case SQLITE_CONSTRAINT:
        return ek_error(EK_EFORMAT, "%s: %s: %s", s->path, doing, text);
    default:
        return ek_error(EK_EENV, "%s: %s: %s", s->path, doing, text);
    }
}

/* ---- Opening --------------------------------------------------------------------------------- */

/* Whether there is a file to read. Never opened here: closing a descriptor would drop the locks of
 * another connection of this process. */
static enum ek_status look_at_file(const char *path, enum ek_store_mode mode)
{
    struct stat sb;

    if (stat(path, &sb) != 0) {
        if (errno == ENOENT && mode == EK_STORE_WRITE)
            return EK_OK;
        return ek_error(EK_EENV, "%s: cannot open the profile: %s%s", path, strerror(errno),
                        errno == ENOENT ? " (`evenkeel profile` makes one)" : "");
    }
    if (!S_ISREG(sb.st_mode))
        return ek_error(EK_EENV, "%s: not a regular file", path);
    if (sb.st_size == 0 && mode == EK_STORE_READ)
        return ek_error(EK_EFORMAT, "%s: empty, not a profile", path);
    if (sb.st_size > 0 && sb.st_size < 512) /* SQLite would take it for an empty database */
        return ek_error(EK_EFORMAT, "%s: not an SQLite database", path);
    return EK_OK;
}

static enum ek_status harden(struct ek_store *s)
{
    sqlite3 *db = s->db;

    sqlite3_extended_result_codes(db, 1);
    sqlite3_busy_timeout(db, BUSY_MS);
    sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_VIEW, 0, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0, NULL);
    sqlite3_limit(db, SQLITE_LIMIT_LENGTH, 64 << 20);
    sqlite3_limit(db, SQLITE_LIMIT_SQL_LENGTH, 1 << 16);
    sqlite3_limit(db, SQLITE_LIMIT_ATTACHED, 0);
    return ek_store_exec(s, "PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0;"
                            "PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY");
}

static enum ek_status connect_as(struct ek_store *s, int flags, bool immutable)
{
    /* path may hold '?', '#' and '%', which a URI reads as its own */
    char *escaped = immutable ? ek_calloc(strlen(s->path) + 1, 3) : NULL, *uri = NULL;
    int rc;

    sqlite3_close(s->db);
    s->db = NULL;
    if (immutable) {
        if (!escaped)
            return EK_ENOMEM;
        for (const char *p = s->path; *p; p++)
            sprintf(escaped + strlen(escaped), strchr("?#%", *p) ? "%%%02x" : "%c", *p);
        uri = ek_asprintf("file:%s?immutable=1", escaped);
        free(escaped);
        if (!uri)
            return EK_ENOMEM;
        flags |= SQLITE_OPEN_URI;
    }
    rc = sqlite3_open_v2(uri ? uri : s->path, &s->db, flags | SQLITE_OPEN_NOMUTEX, NULL);
    free(uri);
    return rc == SQLITE_OK ? harden(s) : ek_store_failed(s, rc, "opening");
}

/* Whether the first page can be read in this mode: where WAL needs files that the medium does not
 * let us make, it cannot. */
static int probe(struct ek_store *s)
{
    return sqlite3_exec(s->db, "SELECT 1 FROM sqlite_schema LIMIT 1", NULL, NULL, NULL);
}

static bool has_journal(const char *path)
{
    char *wal = ek_asprintf("%s-wal", path);
    struct stat sb;
    bool yes = wal && stat(wal, &sb) == 0 && sb.st_size > 0;

    free(wal);
    return yes;
}

/* Reading: with write access where there is some, so that SQLite can clean up behind itself (we
 * forbid changes by query_only); read-only otherwise; and on a medium where WAL's helper files
 * cannot be made, as an immutable file, which is only right while no journal waits beside it. */
static enum ek_status connect_to_read(struct ek_store *s)
{
    bool writable = access(s->path, W_OK) == 0;
    int rc;

    EK_TRY(connect_as(s, writable ? SQLITE_OPEN_READWRITE : SQLITE_OPEN_READONLY, false));
    rc = probe(s) & 0xff;
    if (rc == SQLITE_CANTOPEN || rc == SQLITE_READONLY) {
        if (has_journal(s->path))
            return ek_error(EK_EENV,
                            "%s: its journal %s-wal cannot be replayed on a read-only medium: copy "
                            "both files to a writable folder",
                            s->path, s->path);
        EK_TRY(connect_as(s, SQLITE_OPEN_READONLY, true));
        rc = probe(s);
    }
    if (rc != SQLITE_OK)
        return ek_store_failed(s, rc, "reading");
    return ek_store_exec(s, "PRAGMA query_only = ON");
}

/* ---- Checks ---------------------------------------------------------------------------------- */

static enum ek_status pragma_i64(struct ek_store *s, const char *name, int64_t *out)
{
    char sql[64];

    snprintf(sql, sizeof(sql), "PRAGMA %s", name);
    return ek_store_get_i64(s, out, sql, "");
}

/* A file of ours before its first commit: nothing in it at all. */
static enum ek_status is_blank(struct ek_store *s, bool *blank)
{
    int64_t application, version, objects;

    EK_TRY(pragma_i64(s, "application_id", &application));
    EK_TRY(pragma_i64(s, "user_version", &version));
    EK_TRY(ek_store_get_i64(s, &objects, "SELECT count(*) FROM sqlite_schema", ""));
    *blank = application == 0 && version == 0 && objects == 0;
    return EK_OK;
}

/* Unless another process did so meanwhile. */
static enum ek_status create(struct ek_store *s)
{
    char sql[128];
    bool blank = false;
    enum ek_status st;

    EK_TRY(ek_store_begin(s));
    st = is_blank(s, &blank);
    for (size_t i = 0; st == EK_OK && blank && ek_store_schema[i]; i++)
        st = ek_store_exec(s, ek_store_schema[i]);
    snprintf(sql, sizeof(sql), "PRAGMA application_id = %d; PRAGMA user_version = %d",
             EK_STORE_APPLICATION_ID, EK_STORE_VERSION);
    if (st == EK_OK && blank)
        st = ek_store_exec(s, sql);
    return ek_store_end(s, st);
}

static enum ek_status check_ids(struct ek_store *s)
{
    int64_t application, version;

    EK_TRY(pragma_i64(s, "application_id", &application));
    if (application != EK_STORE_APPLICATION_ID)
        return ek_error(EK_EFORMAT,
                        "%s: an SQLite database, but not a profile: application_id is 0x%08x, not "
                        "0x%08x",
                        s->path, (unsigned)application, EK_STORE_APPLICATION_ID);
    EK_TRY(pragma_i64(s, "user_version", &version));
    if (version > EK_STORE_VERSION)
        return ek_error(EK_EUNSUPPORTED,
                        "%s: written by a newer evenkeel: version %lld, this one reads %d", s->path,
                        (long long)version, EK_STORE_VERSION);
    if (version < 1)
        return ek_error(EK_EFORMAT, "%s: user_version %lld is none of a profile", s->path,
                        (long long)version);
    if (version < EK_STORE_VERSION)
        return ek_error(EK_EUNSUPPORTED,
                        "%s: written by an older evenkeel: version %lld, this one reads %d; "
                        "`evenkeel profile ... --db` brings it up to date",
                        s->path, (long long)version, EK_STORE_VERSION);
    return EK_OK;
}

static enum ek_status quick_check(struct ek_store *s)
{
    sqlite3_stmt *st;
    enum ek_status status;
    bool row = false;

    EK_TRY(ek_store_prepare(s, &st, "PRAGMA quick_check(1)", ""));
    status = ek_store_step(s, st, &row);
    if (status == EK_OK) {
        const char *text = row ? (const char *)sqlite3_column_text(st, 0) : NULL;
        if (!text || strcmp(text, "ok") != 0)
            status =
                ek_error(EK_EFORMAT, "%s: damaged: %.*s", s->path,
                         (int)strcspn(text ? text : "no answer", "\n"), text ? text : "no answer");
    }
    sqlite3_finalize(st);
    return status;
}

/* The tables of these names, from the schema. */
static enum ek_status create_again(struct ek_store *s, const char *const *names, size_t n)
{
    char begin[48];

    for (size_t k = 0; k < n; k++) {
        snprintf(begin, sizeof(begin), "CREATE TABLE %s(", names[k]);
        for (size_t i = 0; ek_store_schema[i]; i++)
            if (strncmp(ek_store_schema[i], begin, strlen(begin)) == 0)
                EK_TRY(ek_store_exec(s, ek_store_schema[i]));
    }
    return EK_OK;
}

/* Version 1 knew less of runs, which are forgotten, no clocks, and had no kernels. */
static enum ek_status bring_up_to_date(struct ek_store *s)
{
    static const char *const names[] = {"run", "measurement", "kernel"};
    int64_t application, version;
    enum ek_status st;

    EK_TRY(pragma_i64(s, "application_id", &application));
    EK_TRY(pragma_i64(s, "user_version", &version));
    if (application != EK_STORE_APPLICATION_ID || version != 1)
        return EK_OK;
    EK_TRY(ek_store_begin(s));
    EK_GOTO(ek_store_exec(s, "DROP TABLE run; DROP TABLE kernel;"
                             " ALTER TABLE measurement RENAME TO old; PRAGMA user_version = 2"),
            st, end);
    EK_GOTO(create_again(s, names, EK_ARRAY_LEN(names)), st, end);
    st = ek_store_exec(
        s, "INSERT INTO measurement SELECT id, device_id, signature_id, phase, batch, tokens,"
           " context, act, cache, launch, busy, median_s, mad_s, min_s, n, stop, 0, 0 FROM old;"
           " DROP TABLE old");
end:
    return ek_store_end(s, st);
}

static enum ek_status open_checked(struct ek_store *s)
{
    bool blank = false;

    if (s->write) {
        EK_TRY(connect_as(s, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, false));
        if (sqlite3_db_readonly(s->db, "main") == 1)
            return ek_error(EK_EENV, "%s: read-only: cannot write measurements", s->path);
        EK_TRY(is_blank(s, &blank));
        if (!blank) {
            EK_TRY(bring_up_to_date(s));
            EK_TRY(check_ids(s));
        }
        EK_TRY(ek_store_exec(s, "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL"));
        if (blank)
            EK_TRY(create(s));
    } else {
        EK_TRY(connect_to_read(s));
    }
    EK_TRY(check_ids(s));
    EK_TRY(ek_store_check_schema(s));
    return quick_check(s);
}

enum ek_status ek_store_open(const char *path, enum ek_store_mode mode, struct ek_store **out)
{
    struct ek_store *s;
    enum ek_status st;

    EK_TRY(look_at_file(path, mode));
    if (!(s = ek_calloc(1, sizeof(*s))))
        return EK_ENOMEM;
    s->write = mode == EK_STORE_WRITE;
    if (!(s->path = ek_strdup(path)))
        EK_GOTO(EK_ENOMEM, st, fail);
    EK_GOTO(open_checked(s), st, fail);
    *out = s;
    return EK_OK;
fail:
    ek_store_close(s);
    return st;
}

enum ek_status ek_store_open_again(const struct ek_store *s, struct ek_store **out)
{
    return ek_store_open(s->path, s->write ? EK_STORE_WRITE : EK_STORE_READ, out);
}

void ek_store_close(struct ek_store *s)
{
    if (!s)
        return;
    sqlite3_close(s->db);
    free(s->path);
    free(s);
}
