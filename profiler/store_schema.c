/* SPDX-License-Identifier: Apache-2.0
 *
 * The schema of a profile, and the check that a file has exactly it: a file is input, and a view,
 * trigger or default in somebody else's schema would run inside our queries.
 */
#include "profiler/store_internal.h"

#include <string.h>

const char *const ek_store_schema[] = {
    "CREATE TABLE host(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",

    "CREATE TABLE device(id INTEGER PRIMARY KEY,"
    " host_id INTEGER NOT NULL REFERENCES host(id),"
    " name TEXT NOT NULL, backend TEXT NOT NULL, model TEXT NOT NULL, uuid TEXT NOT NULL,"
    " driver TEXT NOT NULL, kernels TEXT NOT NULL, memory_group TEXT NOT NULL,"
    " threads TEXT NOT NULL, memory_total INTEGER NOT NULL, memory_free INTEGER NOT NULL,"
    " cache_bytes INTEGER NOT NULL, budget INTEGER NOT NULL, overhead INTEGER NOT NULL,"
    " read_bandwidth REAL NOT NULL, copy_bandwidth REAL NOT NULL, peak_f32 REAL NOT NULL,"
    " peak_bf16 REAL NOT NULL, peak_f16 REAL NOT NULL, seen INTEGER NOT NULL,"
    " UNIQUE(host_id, name, backend, uuid, driver, kernels, threads)) STRICT",

    "CREATE TABLE link(id INTEGER PRIMARY KEY,"
    " from_id INTEGER NOT NULL REFERENCES device(id), to_id INTEGER NOT NULL REFERENCES device(id),"
    " mechanism TEXT NOT NULL, alpha_s REAL NOT NULL CHECK(alpha_s >= 0),"
    " beta_bytes_s REAL NOT NULL CHECK(beta_bytes_s > 0), residual REAL NOT NULL,"
    " n INTEGER NOT NULL, UNIQUE(from_id, to_id, mechanism)) STRICT",

    "CREATE TABLE model(id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, name TEXT NOT NULL,"
    " json TEXT NOT NULL) STRICT",

    "CREATE TABLE signature(id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT",

    "CREATE TABLE measurement(id INTEGER PRIMARY KEY,"
    " device_id INTEGER NOT NULL REFERENCES device(id),"
    " signature_id INTEGER NOT NULL REFERENCES signature(id),"
    " phase INTEGER NOT NULL CHECK(phase IN (0, 1)), batch INTEGER NOT NULL CHECK(batch > 0),"
    " tokens INTEGER NOT NULL CHECK(tokens > 0), context INTEGER NOT NULL CHECK(context > 0),"
    " act TEXT NOT NULL, cache TEXT NOT NULL, launch TEXT NOT NULL, busy INTEGER NOT NULL,"
    " median_s REAL NOT NULL CHECK(median_s >= 0), mad_s REAL NOT NULL CHECK(mad_s >= 0),"
    " min_s REAL NOT NULL CHECK(min_s >= 0), n INTEGER NOT NULL CHECK(n > 0), stop TEXT NOT NULL,"
    " clock_mhz INTEGER NOT NULL, throttle INTEGER NOT NULL,"
    " UNIQUE(device_id, signature_id, phase, batch, tokens, context, act, cache, launch, busy))"
    " STRICT",

    "CREATE TABLE kernel(id INTEGER PRIMARY KEY,"
    " measurement_id INTEGER NOT NULL REFERENCES measurement(id), name TEXT NOT NULL,"
    " calls INTEGER NOT NULL CHECK(calls > 0), seconds REAL NOT NULL CHECK(seconds >= 0),"
    " UNIQUE(measurement_id, name)) STRICT",

    "CREATE TABLE memory(id INTEGER PRIMARY KEY,"
    " device_id INTEGER NOT NULL REFERENCES device(id),"
    " signature_id INTEGER NOT NULL REFERENCES signature(id), act TEXT NOT NULL,"
    " cache TEXT NOT NULL, batch INTEGER NOT NULL, tokens INTEGER NOT NULL,"
    " context INTEGER NOT NULL, weights INTEGER NOT NULL, kv INTEGER NOT NULL,"
    " activations INTEGER NOT NULL, workspace INTEGER NOT NULL, comm INTEGER NOT NULL,"
    " UNIQUE(device_id, signature_id, act, cache, batch, tokens, context)) STRICT",

    "CREATE TABLE run(id INTEGER PRIMARY KEY, plan_hash TEXT NOT NULL, model_hash TEXT NOT NULL,"
    " what TEXT NOT NULL, predicted REAL NOT NULL, measured REAL NOT NULL, batch INTEGER NOT NULL,"
    " tokens INTEGER NOT NULL, context INTEGER NOT NULL, device TEXT NOT NULL,"
    " quantity TEXT NOT NULL, mad REAL NOT NULL, n INTEGER NOT NULL, factor REAL NOT NULL) STRICT",

    "CREATE TABLE session(id INTEGER PRIMARY KEY, model_hash TEXT NOT NULL, pid INTEGER NOT NULL,"
    " pid_start INTEGER NOT NULL,"
    " state TEXT NOT NULL CHECK(state IN ('running', 'complete', 'interrupted', 'failed')))"
    " STRICT",
    NULL,
};

#define N_OBJECTS (EK_ARRAY_LEN(ek_store_schema) - 1)

static bool is_ours(const char *sql)
{
    for (size_t i = 0; ek_store_schema[i]; i++)
        if (strcmp(sql, ek_store_schema[i]) == 0)
            return true;
    return false;
}

static enum ek_status check_object(struct ek_store *s, sqlite3_stmt *st, size_t *ours)
{
    const char *type = (const char *)sqlite3_column_text(st, 0);
    const char *name = (const char *)sqlite3_column_text(st, 1);
    const char *sql = (const char *)sqlite3_column_text(st, 2);

    if (!sql && type && strcmp(type, "index") == 0)
        return EK_OK; /* an automatic index of a UNIQUE constraint */
    if (!sql || !is_ours(sql))
        return ek_error(EK_EFORMAT, "%s: holds a %.16s '%.64s' that no profile has", s->path,
                        type ? type : "?", name ? name : "?");
    *ours += 1;
    return EK_OK;
}

enum ek_status ek_store_check_schema(struct ek_store *s)
{
    sqlite3_stmt *st;
    enum ek_status status;
    size_t ours = 0;
    bool row = false;

    EK_TRY(ek_store_prepare(s, &st, "SELECT type, name, sql FROM sqlite_schema", ""));
    while ((status = ek_store_step(s, st, &row)) == EK_OK && row)
        EK_GOTO(check_object(s, st, &ours), status, out);
    if (status == EK_OK && ours != N_OBJECTS)
        status = ek_error(EK_EFORMAT, "%s: has %zu of the %zu tables of a profile", s->path, ours,
                          N_OBJECTS);
out:
    sqlite3_finalize(st);
    return status;
}
