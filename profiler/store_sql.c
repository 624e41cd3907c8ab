/* SPDX-License-Identifier: Apache-2.0
 *
 * Statements with typed binding, and columns that are checked as they are read: a file's values are
 * no more to be trusted than its structure.
 */
#include "profiler/store_internal.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum ek_status ek_store_exec(struct ek_store *s, const char *sql)
{
    int rc = sqlite3_exec(s->db, sql, NULL, NULL, NULL);

    return rc == SQLITE_OK ? EK_OK : ek_store_failed(s, rc, s->write ? "writing" : "reading");
}

enum ek_status ek_store_begin(struct ek_store *s)
{
    if (!s->write)
        return ek_error(EK_EUSAGE, "%s: opened for reading", s->path);
    return ek_store_exec(s, "BEGIN IMMEDIATE");
}

static void rollback(struct ek_store *s)
{
    if (!sqlite3_get_autocommit(s->db))
        sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
}

enum ek_status ek_store_commit(struct ek_store *s)
{
    enum ek_status st = ek_store_exec(s, "COMMIT");

    if (st != EK_OK)
        rollback(s);
    return st;
}

enum ek_status ek_store_end(struct ek_store *s, enum ek_status st)
{
    if (st == EK_OK)
        return ek_store_commit(s);
    rollback(s);
    return st;
}

static enum ek_status bind(struct ek_store *s, sqlite3_stmt *st, const char *types, va_list ap)
{
    int rc = SQLITE_OK;

    for (int i = 1; *types && rc == SQLITE_OK; types++, i++) {
        uint64_t u;
        switch (*types) {
        case 't':
            rc = sqlite3_bind_text(st, i, va_arg(ap, const char *), -1, SQLITE_TRANSIENT);
            break;
        case 'i':
            rc = sqlite3_bind_int64(st, i, va_arg(ap, int64_t));
            break;
        case 'u':
            u = va_arg(ap, uint64_t);
            if (u > INT64_MAX)
                return ek_error(EK_EUSAGE, "%s: %llu is too large to be stored", s->path,
                                (unsigned long long)u);
            rc = sqlite3_bind_int64(st, i, (int64_t)u);
            break;
        default:
            rc = sqlite3_bind_double(st, i, va_arg(ap, double));
        }
    }
    return rc == SQLITE_OK ? EK_OK : ek_store_failed(s, rc, "binding");
}

static enum ek_status prepare_va(struct ek_store *s, sqlite3_stmt **out, const char *sql,
                                 const char *types, va_list ap)
{
    sqlite3_stmt *st = NULL;
    int rc = sqlite3_prepare_v2(s->db, sql, -1, &st, NULL);
    enum ek_status status;

    if (rc != SQLITE_OK)
        return ek_store_failed(s, rc, "reading");
    status = bind(s, st, types, ap);
    if (status != EK_OK)
        sqlite3_finalize(st);
    else
        *out = st;
    return status;
}

enum ek_status ek_store_prepare(struct ek_store *s, sqlite3_stmt **out, const char *sql,
                                const char *types, ...)
{
    enum ek_status status;
    va_list ap;

    va_start(ap, types);
    status = prepare_va(s, out, sql, types, ap);
    va_end(ap);
    return status;
}

enum ek_status ek_store_step(struct ek_store *s, sqlite3_stmt *st, bool *row)
{
    int rc = sqlite3_step(st);

    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        return ek_store_failed(s, rc, s->write ? "writing" : "reading");
    *row = rc == SQLITE_ROW;
    return EK_OK;
}

enum ek_status ek_store_run_sql(struct ek_store *s, const char *sql, const char *types, ...)
{
    enum ek_status status;
    sqlite3_stmt *st;
    bool row = false;
    va_list ap;

    va_start(ap, types);
    status = prepare_va(s, &st, sql, types, ap);
    va_end(ap);
    if (status != EK_OK)
        return status;
    while ((status = ek_store_step(s, st, &row)) == EK_OK && row)
        ;
    sqlite3_finalize(st);
    return status;
}

enum ek_status ek_store_get_i64(struct ek_store *s, int64_t *out, const char *sql,
                                const char *types, ...)
{
    enum ek_status status;
    sqlite3_stmt *st;
    bool row = false;
    va_list ap;

    va_start(ap, types);
    status = prepare_va(s, &st, sql, types, ap);
    va_end(ap);
    if (status != EK_OK)
        return status;
    status = ek_store_step(s, st, &row);
    if (status == EK_OK && row)
        *out = sqlite3_column_int64(st, 0);
    else if (status == EK_OK)
        status = EK_NO;
    sqlite3_finalize(st);
    return status;
}

/* ---- Columns --------------------------------------------------------------------------------- */

void ek_column_refuse(struct ek_columns *c, int i, const char *what)
{
    c->status = ek_error(EK_EFORMAT, "%s: table %s, column %s: %s", c->store->path, c->table,
                         sqlite3_column_name(c->st, i), what);
}

/* The next column, which must be of this type; -1 when the row is refused already. */
static int next_column(struct ek_columns *c, int type)
{
    int i = c->next++;

    if (c->status != EK_OK)
        return -1;
    if (sqlite3_column_type(c->st, i) != type) {
        ek_column_refuse(c, i, "a value of the wrong type");
        return -1;
    }
    return i;
}

void ek_column_text(struct ek_columns *c, char *dst, size_t cap)
{
    int i = next_column(c, SQLITE_TEXT);
    const char *text;
    size_t n;

    if (i < 0)
        return;
    text = (const char *)sqlite3_column_text(c->st, i);
    n = (size_t)sqlite3_column_bytes(c->st, i);
    if (!text || n >= cap || strlen(text) != n)
        ek_column_refuse(c, i, "a text that is too long or holds a NUL");
    else
        memcpy(dst, text, n + 1);
}

void ek_column_i64(struct ek_columns *c, int64_t *dst)
{
    int i = next_column(c, SQLITE_INTEGER);

    if (i >= 0)
        *dst = sqlite3_column_int64(c->st, i);
}

void ek_column_u64(struct ek_columns *c, uint64_t *dst)
{
    int i = next_column(c, SQLITE_INTEGER);

    if (i < 0)
        return;
    if (sqlite3_column_int64(c->st, i) < 0)
        ek_column_refuse(c, i, "a negative number");
    else
        *dst = (uint64_t)sqlite3_column_int64(c->st, i);
}

void ek_column_u32(struct ek_columns *c, uint32_t *dst)
{
    int i = c->next;
    uint64_t v = 0;

    ek_column_u64(c, &v);
    if (c->status == EK_OK && v > UINT32_MAX)
        ek_column_refuse(c, i, "a number over 2^32");
    else
        *dst = (uint32_t)v;
}

void ek_column_real(struct ek_columns *c, double max, double *dst)
{
    int i = next_column(c, SQLITE_FLOAT);
    double v;

    if (i < 0)
        return;
    v = sqlite3_column_double(c->st, i);
    if (!isfinite(v) || v < 0 || v > max)
        ek_column_refuse(c, i, "a number that cannot have been measured");
    else
        *dst = v;
}

enum ek_status ek_store_collect(struct ek_store *s, sqlite3_stmt *st, const char *table,
                                size_t size, ek_row_fn read, void **out, size_t *n)
{
    struct ek_columns c = {.store = s, .st = st, .table = table};
    enum ek_status status;
    char *items = NULL;
    size_t used = 0, cap = 0;
    bool row = false;

    while ((status = ek_store_step(s, st, &row)) == EK_OK && row) {
        EK_GOTO(ek_grow((void **)&items, &cap, used + 1, size, EK_STORE_MAX_ROWS), status, out);
        memset(items + used * size, 0, size);
        c.next = 0;
        read(&c, items + used * size);
        EK_GOTO(c.status, status, out);
        used++;
    }
out:
    sqlite3_finalize(st);
    if (status != EK_OK) {
        free(items);
        return status;
    }
    *out = items;
    *n = used;
    return EK_OK;
}
