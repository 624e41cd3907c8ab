/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of hosts, devices, links, models and runs.
 */
#include "profiler/store_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Devices --------------------------------------------------------------------------------- */

#define DEVICE_KEY                                                                                 \
    "host_id = (SELECT id FROM host WHERE name = ?) AND name = ? AND backend = ? AND uuid = ?"     \
    " AND driver = ? AND kernels = ? AND threads = ?"

static enum ek_status insert_device(struct ek_store *s, const struct ek_store_device *d)
{
    EK_TRY(ek_store_run_sql(s, "INSERT INTO host(name) VALUES(?) ON CONFLICT DO NOTHING", "t",
                            d->host));
    return ek_store_run_sql(
        s,
        "INSERT INTO device(host_id, name, backend, uuid, driver, kernels, threads, model,"
        " memory_group, memory_total, memory_free, cache_bytes, budget, overhead, read_bandwidth,"
        " copy_bandwidth, peak_f32, peak_bf16, peak_f16, seen)"
        " VALUES((SELECT id FROM host WHERE name = ?), ?, ?, ?, ?, ?, ?, '', '', 0, 0, 0, 0, 0, 0,"
        " 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING",
        "ttttttt", d->host, d->name, d->backend, d->uuid, d->driver, d->kernels, d->threads);
}

static enum ek_status update_device(struct ek_store *s, int64_t id, const struct ek_store_device *d)
{
    EK_TRY(ek_store_run_sql(
        s,
        "UPDATE device SET model = ?, memory_group = ?, memory_total = ?, memory_free = ?,"
        " cache_bytes = ?, budget = ?, overhead = max(overhead, ?),"
        " seen = (SELECT max(seen) + 1 FROM device) WHERE id = ?",
        "ttuuuuui", d->model, d->memory_group, d->memory_total, d->memory_free, d->cache_bytes,
        d->budget, d->overhead, id));
    return ek_store_run_sql(
        s,
        "UPDATE device SET read_bandwidth = coalesce(nullif(?, 0.0), read_bandwidth),"
        " copy_bandwidth = coalesce(nullif(?, 0.0), copy_bandwidth),"
        " peak_f32 = coalesce(nullif(?, 0.0), peak_f32),"
        " peak_bf16 = coalesce(nullif(?, 0.0), peak_bf16),"
        " peak_f16 = coalesce(nullif(?, 0.0), peak_f16) WHERE id = ?",
        "dddddi", d->read_bandwidth, d->copy_bandwidth, d->peak_f32, d->peak_bf16, d->peak_f16, id);
}

static enum ek_status put_device(struct ek_store *s, const struct ek_store_device *d, int64_t *id)
{
    EK_TRY(insert_device(s, d));
    EK_TRY(ek_store_get_i64(s, id, "SELECT id FROM device WHERE " DEVICE_KEY, "ttttttt", d->host,
                            d->name, d->backend, d->uuid, d->driver, d->kernels, d->threads));
    return update_device(s, *id, d);
}

static bool rate_is_sane(double v)
{
    return isfinite(v) && v >= 0 && v <= EK_MAX_RATE;
}

enum ek_status ek_store_put_device(struct ek_store *s, struct ek_store_device *d)
{
    int64_t id = 0;

    if (!d->name[0] || !d->backend[0] || !rate_is_sane(d->read_bandwidth) ||
        !rate_is_sane(d->copy_bandwidth) || !rate_is_sane(d->peak_f32) ||
        !rate_is_sane(d->peak_bf16) || !rate_is_sane(d->peak_f16))
        return ek_error(EK_EUSAGE, "%s: device '%s' lacks a name or has an impossible ceiling",
                        s->path, d->name);
    EK_TRY(ek_store_begin(s));
    EK_TRY(ek_store_end(s, put_device(s, d, &id)));
    d->id = id;
    return EK_OK;
}

static void read_device(struct ek_columns *c, void *item)
{
    struct ek_store_device *d = item;

    ek_column_i64(c, &d->id);
    ek_column_text(c, d->name, sizeof(d->name));
    ek_column_text(c, d->backend, sizeof(d->backend));
    ek_column_text(c, d->model, sizeof(d->model));
    ek_column_text(c, d->uuid, sizeof(d->uuid));
    ek_column_text(c, d->driver, sizeof(d->driver));
    ek_column_text(c, d->kernels, sizeof(d->kernels));
    ek_column_text(c, d->memory_group, sizeof(d->memory_group));
    ek_column_text(c, d->threads, sizeof(d->threads));
    ek_column_text(c, d->host, sizeof(d->host));
    ek_column_u64(c, &d->memory_total);
    ek_column_u64(c, &d->memory_free);
    ek_column_u64(c, &d->cache_bytes);
    ek_column_u64(c, &d->budget);
    ek_column_u64(c, &d->overhead);
    ek_column_real(c, EK_MAX_RATE, &d->read_bandwidth);
    ek_column_real(c, EK_MAX_RATE, &d->copy_bandwidth);
    ek_column_real(c, EK_MAX_RATE, &d->peak_f32);
    ek_column_real(c, EK_MAX_RATE, &d->peak_bf16);
    ek_column_real(c, EK_MAX_RATE, &d->peak_f16);
}

/* The row of each (host, name) that was put last. */
#define CURRENT                                                                                    \
    "seen = (SELECT max(e.seen) FROM device e WHERE e.host_id = d.host_id AND e.name = d.name)"

enum ek_status ek_store_devices(struct ek_store *s, struct ek_store_device **out, size_t *n)
{
    sqlite3_stmt *st;

    EK_TRY(ek_store_prepare(
        s, &st,
        "SELECT d.id, d.name, backend, model, uuid, driver, kernels, memory_group, threads, h.name,"
        " memory_total, memory_free, cache_bytes, budget, overhead, read_bandwidth, copy_bandwidth,"
        " peak_f32, peak_bf16, peak_f16 FROM device d JOIN host h ON h.id = d.host_id"
        " WHERE " CURRENT " ORDER BY d.id",
        ""));
    return ek_store_collect(s, st, "device", sizeof(**out), read_device, (void **)out, n);
}

/* ---- Links ----------------------------------------------------------------------------------- */

static enum ek_status put_link(struct ek_store *s, const struct ek_store_link *l)
{
    static const char *const by_name = "SELECT id FROM device WHERE name = ?"
                                       " ORDER BY seen DESC LIMIT 1";
    const char *ends[2] = {l->from, l->to};
    int64_t id[2];

    for (int i = 0; i < 2; i++) {
        enum ek_status st = ek_store_get_i64(s, &id[i], by_name, "t", ends[i]);
        if (st == EK_NO)
            return ek_error(EK_EUSAGE, "%s: link %s -> %s: no device '%s'", s->path, l->from, l->to,
                            ends[i]);
        EK_TRY(st);
    }
    return ek_store_run_sql(
        s,
        "INSERT INTO link(from_id, to_id, mechanism, alpha_s, beta_bytes_s, residual, n)"
        " VALUES(?, ?, ?, ?, ?, ?, ?) ON CONFLICT(from_id, to_id, mechanism) DO UPDATE SET"
        " alpha_s = excluded.alpha_s, beta_bytes_s = excluded.beta_bytes_s,"
        " residual = excluded.residual, n = excluded.n",
        "iitdddu", id[0], id[1], l->mechanism, l->alpha_s, l->beta_bytes_s, l->residual, l->n);
}

enum ek_status ek_store_put_link(struct ek_store *s, const struct ek_store_link *l)
{
    if (!(l->alpha_s >= 0 && l->alpha_s <= EK_MAX_SECONDS && l->beta_bytes_s > 0) ||
        !rate_is_sane(l->beta_bytes_s) || !rate_is_sane(l->residual))
        return ek_error(EK_EUSAGE, "%s: link %s -> %s: alpha %g s, beta %g bytes/s cannot be true",
                        s->path, l->from, l->to, l->alpha_s, l->beta_bytes_s);
    EK_TRY(ek_store_begin(s));
    return ek_store_end(s, put_link(s, l));
}

static void read_link(struct ek_columns *c, void *item)
{
    struct ek_store_link *l = item;
    int beta;

    ek_column_text(c, l->from, sizeof(l->from));
    ek_column_text(c, l->to, sizeof(l->to));
    ek_column_text(c, l->mechanism, sizeof(l->mechanism));
    ek_column_real(c, EK_MAX_SECONDS, &l->alpha_s);
    beta = c->next;
    ek_column_real(c, EK_MAX_RATE, &l->beta_bytes_s);
    if (c->status == EK_OK && l->beta_bytes_s == 0)
        ek_column_refuse(c, beta, "a link without bandwidth");
    ek_column_real(c, EK_MAX_RATE, &l->residual);
    ek_column_u64(c, &l->n);
}

enum ek_status ek_store_links(struct ek_store *s, struct ek_store_link **out, size_t *n)
{
    sqlite3_stmt *st;

    EK_TRY(ek_store_prepare(
        s, &st,
        "WITH now AS (SELECT id, name FROM device d WHERE " CURRENT ")"
        " SELECT f.name, t.name, mechanism, alpha_s, beta_bytes_s, residual, n FROM link"
        " JOIN now f ON f.id = from_id JOIN now t ON t.id = to_id"
        " ORDER BY from_id, to_id, mechanism",
        ""));
    return ek_store_collect(s, st, "link", sizeof(**out), read_link, (void **)out, n);
}

/* ---- Models and runs ------------------------------------------------------------------------- */

enum ek_status ek_store_put_model(struct ek_store *s, const char *hash, const char *name,
                                  const char *json)
{
    EK_TRY(ek_store_begin(s));
    return ek_store_end(
        s, ek_store_run_sql(
               s, "INSERT INTO model(hash, name, json) VALUES(?, ?, ?) ON CONFLICT DO NOTHING",
               "ttt", hash, name, json));
}

enum ek_status ek_store_put_run(struct ek_store *s, const struct ek_store_run *r)
{
    if (!rate_is_sane(r->predicted) || !rate_is_sane(r->measured) || !rate_is_sane(r->mad) ||
        !rate_is_sane(r->factor))
        return ek_error(EK_EUSAGE, "%s: run '%s': predicted %g, measured %g cannot be true",
                        s->path, r->what, r->predicted, r->measured);
    EK_TRY(ek_store_begin(s));
    return ek_store_end(
        s,
        ek_store_run_sql(s,
                         "INSERT INTO run(plan_hash, model_hash, what, predicted, measured,"
                         " batch, tokens, context, device, quantity, mad, n, factor)"
                         " VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                         "tttdduuuttdud", r->plan_hash, r->model_hash, r->what, r->predicted,
                         r->measured, (uint64_t)r->batch, (uint64_t)r->tokens, (uint64_t)r->context,
                         r->device, r->quantity, r->mad, (uint64_t)r->n, r->factor));
}

static void read_run(struct ek_columns *c, void *item)
{
    struct ek_store_run *r = item;

    ek_column_text(c, r->plan_hash, sizeof(r->plan_hash));
    ek_column_text(c, r->model_hash, sizeof(r->model_hash));
    ek_column_text(c, r->what, sizeof(r->what));
    ek_column_real(c, EK_MAX_RATE, &r->predicted);
    ek_column_real(c, EK_MAX_RATE, &r->measured);
    ek_column_u32(c, &r->batch);
    ek_column_u32(c, &r->tokens);
    ek_column_u32(c, &r->context);
    ek_column_text(c, r->device, sizeof(r->device));
    ek_column_text(c, r->quantity, sizeof(r->quantity));
    ek_column_real(c, EK_MAX_RATE, &r->mad);
    ek_column_u32(c, &r->n);
    ek_column_real(c, EK_MAX_RATE, &r->factor);
}

enum ek_status ek_store_runs(struct ek_store *s, struct ek_store_run **out, size_t *n)
{
    sqlite3_stmt *st;

    EK_TRY(ek_store_prepare(s, &st,
                            "SELECT plan_hash, model_hash, what, predicted, measured, batch,"
                            " tokens, context, device, quantity, mad, n, factor FROM run"
                            " ORDER BY id",
                            ""));
    return ek_store_collect(s, st, "run", sizeof(**out), read_run, (void **)out, n);
}
