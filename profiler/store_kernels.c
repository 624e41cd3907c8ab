/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of kernels: where the time of a measurement goes.
 */
#include "profiler/store_internal.h"

static enum ek_status put_kernels(struct ek_store *s, const struct ek_store_key *k,
                                  const struct ek_store_kernel *rows, size_t n)
{
    int64_t id;
    enum ek_status st =
        ek_store_get_i64(s, &id, "SELECT id FROM measurement WHERE " EK_STORE_BY_KEY,
                         EK_STORE_KEY_TYPES, EK_STORE_KEY_VALUES(k));

    if (st == EK_NO)
        return ek_error(EK_EUSAGE, "%s: kernels of a measurement of %s that is not there", s->path,
                        k->signature);
    EK_TRY(st);
    EK_TRY(ek_store_run_sql(s, "DELETE FROM kernel WHERE measurement_id = ?", "i", id));
    for (size_t i = 0; i < n; i++)
        EK_TRY(ek_store_run_sql(
            s, "INSERT INTO kernel(measurement_id, name, calls, seconds) VALUES(?, ?, ?, ?)",
            "itud", id, rows[i].name, (uint64_t)rows[i].calls, rows[i].seconds));
    return EK_OK;
}

enum ek_status ek_store_put_kernels(struct ek_store *s, const struct ek_store_key *k,
                                    const struct ek_store_kernel *rows, size_t n)
{
    EK_TRY(ek_store_begin(s));
    return ek_store_end(s, put_kernels(s, k, rows, n));
}

static void read_kernel(struct ek_columns *c, void *item)
{
    struct ek_store_kernel *k = item;

    ek_column_text(c, k->name, sizeof(k->name));
    ek_column_u32(c, &k->calls);
    ek_column_real(c, EK_MAX_SECONDS, &k->seconds);
}

enum ek_status ek_store_kernels(struct ek_store *s, const struct ek_store_key *k,
                                struct ek_store_kernel **out, size_t *n)
{
    sqlite3_stmt *st;

    EK_TRY(ek_store_prepare(s, &st,
                            "SELECT name, calls, seconds FROM kernel WHERE measurement_id ="
                            " (SELECT id FROM measurement WHERE " EK_STORE_BY_KEY ")"
                            " ORDER BY seconds DESC, name",
                            EK_STORE_KEY_TYPES, EK_STORE_KEY_VALUES(k)));
    return ek_store_collect(s, st, "kernel", sizeof(**out), read_kernel, (void **)out, n);
}
