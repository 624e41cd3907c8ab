/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the store share: the handle, statements with typed binding, checked columns.
 */
#ifndef EK_PROFILER_STORE_INTERNAL_H
#define EK_PROFILER_STORE_INTERNAL_H

#include "profiler/store.h"

#include <sqlite3.h>

#define EK_STORE_MAX_ROWS ((size_t)1 << 20) /* most rows of one answer */

struct ek_store {
    sqlite3 *db;
    char *path;
    bool write;
    int64_t session; /* row of the running session, 0: none */
};

/* The statements that make an empty file a profile, one object each, NULL behind the last. The file
 * must hold exactly these when it is opened again. */
extern const char *const ek_store_schema[];
/* Every table, index, view and trigger is one of ours, word by word (EK_EFORMAT otherwise). */
enum ek_status ek_store_check_schema(struct ek_store *s);

/* Message and status of the database's last error; rc: what SQLite returned; doing: "reading". */
enum ek_status ek_store_failed(struct ek_store *s, int rc, const char *doing);

/* A measurement by its key: ten parameters, EK_STORE_KEY_TYPES, of EK_STORE_KEY_VALUES(key). */
#define EK_STORE_BY_KEY                                                                            \
    "device_id = ? AND signature_id = (SELECT id FROM signature WHERE text = ?) AND phase = ?"     \
    " AND batch = ? AND tokens = ? AND context = ? AND act = ? AND cache = ? AND launch = ?"       \
    " AND busy = ?"
#define EK_STORE_KEY_TYPES "ituuuutttu"
#define EK_STORE_KEY_VALUES(k)                                                                     \
    (k)->device, (k)->signature, (uint64_t)(k)->phase, (uint64_t)(k)->batch,                       \
        (uint64_t)(k)->tokens, (uint64_t)(k)->context, (k)->act, (k)->cache, (k)->launch,          \
        (uint64_t)(k)->busy

/* Runs statements that return nothing. */
enum ek_status ek_store_exec(struct ek_store *s, const char *sql);
enum ek_status ek_store_begin(struct ek_store *s);  /* BEGIN IMMEDIATE */
enum ek_status ek_store_commit(struct ek_store *s); /* rolls back when it fails */
/* Commits when st is EK_OK, else rolls back and returns st, its message kept. */
enum ek_status ek_store_end(struct ek_store *s, enum ek_status st);

/* Prepares and binds: one letter of types a parameter: t text, i int64_t, u uint64_t, d double. */
enum ek_status ek_store_prepare(struct ek_store *s, sqlite3_stmt **out, const char *sql,
                                const char *types, ...);
/* prepare, run to the end, finalize. */
enum ek_status ek_store_run_sql(struct ek_store *s, const char *sql, const char *types, ...);
/* First column of the first row; EK_NO without a message when there is no row. */
enum ek_status ek_store_get_i64(struct ek_store *s, int64_t *out, const char *sql,
                                const char *types, ...);
/* *row: there is a row to read; false at the end. */
enum ek_status ek_store_step(struct ek_store *s, sqlite3_stmt *st, bool *row);

/* Reads the columns of a row one after the other. The first that cannot be true sets status and
 * message (EK_EFORMAT); the others are then skipped. */
struct ek_columns {
    struct ek_store *store;
    sqlite3_stmt *st;
    const char *table;
    int next;
    enum ek_status status;
};
void ek_column_refuse(struct ek_columns *c, int column, const char *what);
void ek_column_text(struct ek_columns *c, char *dst, size_t cap);
void ek_column_i64(struct ek_columns *c, int64_t *dst);
void ek_column_u64(struct ek_columns *c, uint64_t *dst);
void ek_column_u32(struct ek_columns *c, uint32_t *dst);
/* Finite, at least 0 and at most max. */
void ek_column_real(struct ek_columns *c, double max, double *dst);

/* All rows of a statement into *out (items of size bytes, at most EK_STORE_MAX_ROWS); finalizes st.
 * read fills one zeroed item. */
typedef void (*ek_row_fn)(struct ek_columns *c, void *item);
enum ek_status ek_store_collect(struct ek_store *s, sqlite3_stmt *st, const char *table,
                                size_t size, ek_row_fn read, void **out, size_t *n);

/* No measured value of ours is larger; a file that holds one is refused. */
#define EK_MAX_SECONDS 1e6
#define EK_MAX_RATE    1e19 /* bytes/s, FLOP/s */

#endif
