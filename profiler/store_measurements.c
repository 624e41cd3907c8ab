/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of times and memory, the sessions that write them, and the identity of a profile.
 */
#include "profiler/store_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static enum ek_status put_signature(struct ek_store *s, const char *signature)
{
    return ek_store_run_sql(s, "INSERT INTO signature(text) VALUES(?) ON CONFLICT DO NOTHING", "t",
                            signature);
}

/* ---- Times ----------------------------------------------------------------------------------- */

bool ek_store_has_time(struct ek_store *s, const struct ek_store_key *k)
{
    int64_t one;

    return ek_store_get_i64(s, &one, "SELECT 1 FROM measurement WHERE " EK_STORE_BY_KEY,
                            EK_STORE_KEY_TYPES, EK_STORE_KEY_VALUES(k)) == EK_OK;
}

static bool seconds_are_sane(double v)
{
    return isfinite(v) && v >= 0 && v <= EK_MAX_SECONDS;
}

/* Only a stage's own time may be below what the clock resolves. */
static bool time_is_sane(const char *signature, const struct ek_store_time *t)
{
    return seconds_are_sane(t->median_s) && seconds_are_sane(t->mad_s) &&
           seconds_are_sane(t->min_s) && t->n > 0 &&
           (t->median_s > 0 || strcmp(signature, EK_STORE_STAGE) == 0 ||
            strcmp(signature, EK_STORE_ENDING) == 0);
}

static enum ek_status insert_time(struct ek_store *s, const struct ek_store_key *k,
                                  const struct ek_store_time *t)
{
    EK_TRY(put_signature(s, k->signature));
    return ek_store_run_sql(
        s,
        "INSERT INTO measurement(device_id, signature_id, phase, batch, tokens, context, act,"
        " cache, launch, busy, median_s, mad_s, min_s, n, stop, clock_mhz, throttle) VALUES(?,"
        " (SELECT id FROM signature WHERE text = ?), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT(device_id, signature_id, phase, batch, tokens, context, act, cache, launch,"
        " busy) DO NOTHING",
        EK_STORE_KEY_TYPES "dddutuu", EK_STORE_KEY_VALUES(k), t->median_s, t->mad_s, t->min_s,
        (uint64_t)t->n, t->stop, (uint64_t)t->clock_mhz, (uint64_t)t->throttle);
}

enum ek_status ek_store_put_time(struct ek_store *s, const struct ek_store_key *k,
                                 const struct ek_store_time *t)
{
    if (!time_is_sane(k->signature, t))
        return ek_error(EK_EUSAGE, "%s: a time of %g s (n %u) for %s cannot be true", s->path,
                        t->median_s, t->n, k->signature);
    EK_TRY(ek_store_begin(s));
    return ek_store_end(s, insert_time(s, k, t));
}

static void read_time(struct ek_columns *c, void *item)
{
    struct ek_store_time_row *r = item;
    int64_t phase = 0;
    int at;

    ek_column_i64(c, &r->key.device);
    ek_column_text(c, r->key.signature, sizeof(r->key.signature));
    at = c->next;
    ek_column_i64(c, &phase);
    if (c->status == EK_OK && phase != EK_PHASE_PREFILL && phase != EK_PHASE_DECODE)
        ek_column_refuse(c, at, "neither prefill nor decode");
    r->key.phase = (enum ek_phase)phase;
    at = c->next;
    ek_column_u32(c, &r->key.batch);
    ek_column_u32(c, &r->key.tokens);
    ek_column_u32(c, &r->key.context);
    if (c->status == EK_OK && (!r->key.batch || !r->key.tokens || !r->key.context))
        ek_column_refuse(c, at, "a point without batch, tokens or context");
    ek_column_text(c, r->key.act, sizeof(r->key.act));
    ek_column_text(c, r->key.cache, sizeof(r->key.cache));
    ek_column_text(c, r->key.launch, sizeof(r->key.launch));
    ek_column_u32(c, &r->key.busy);
    at = c->next;
    ek_column_real(c, EK_MAX_SECONDS, &r->time.median_s);
    ek_column_real(c, EK_MAX_SECONDS, &r->time.mad_s);
    ek_column_real(c, EK_MAX_SECONDS, &r->time.min_s);
    ek_column_u32(c, &r->time.n);
    ek_column_text(c, r->time.stop, sizeof(r->time.stop));
    ek_column_u32(c, &r->time.clock_mhz);
    ek_column_u32(c, &r->time.throttle);
    if (c->status == EK_OK && !time_is_sane(r->key.signature, &r->time))
        ek_column_refuse(c, at, "a time that cannot have been measured");
}

enum ek_status ek_store_times(struct ek_store *s, int64_t device, const char *signature,
                              struct ek_store_time_row **out, size_t *n)
{
    sqlite3_stmt *st;

    EK_TRY(ek_store_prepare(
        s, &st,
        "SELECT device_id, s.text, phase, batch, tokens, context, act, cache, launch, busy,"
        " median_s, mad_s, min_s, n, stop, clock_mhz, throttle FROM measurement m JOIN signature s"
        " ON s.id = signature_id WHERE device_id = ? AND s.text = ? AND busy = 0"
        " ORDER BY phase, batch, tokens, context, act, cache, launch",
        "it", device, signature));
    return ek_store_collect(s, st, "measurement", sizeof(**out), read_time, (void **)out, n);
}

struct slowed {
    double ratio;
    uint32_t busy;
};

static void read_slowed(struct ek_columns *c, void *item)
{
    struct slowed *s = item;

    ek_column_real(c, EK_MAX_RATE, &s->ratio);
    ek_column_u32(c, &s->busy);
}

enum ek_status ek_store_slowdown(struct ek_store *s, int64_t device, enum ek_phase phase,
                                 double *factor, uint32_t *busy)
{
    sqlite3_stmt *st;
    struct slowed *rows = NULL;
    size_t n;

    EK_TRY(ek_store_prepare(
        s, &st,
        "SELECT b.median_s / max(a.median_s, ifnull((SELECT max(c.median_s) FROM measurement c"
        " WHERE c.device_id = a.device_id AND c.signature_id = a.signature_id AND"
        " c.phase = a.phase AND c.batch = a.batch AND c.tokens = a.tokens AND"
        " c.context = a.context AND c.act = a.act AND c.cache = a.cache AND c.busy = 0 AND"
        " c.launch = '" EK_STORE_SUSTAINED "'), 0)) AS ratio, b.busy FROM measurement a"
        " JOIN measurement b"
        " USING(device_id, signature_id, phase, batch, tokens, context, act, cache, launch)"
        " WHERE device_id = ? AND phase = ? AND a.busy = 0 AND b.busy > 0 AND a.median_s > 0"
        " ORDER BY b.busy DESC, ratio",
        "iu", device, (uint64_t)phase));
    EK_TRY(ek_store_collect(s, st, "measurement", sizeof(*rows), read_slowed, (void **)&rows, &n));
    while (n > 0 && rows[n - 1].busy < rows[0].busy)
        n--;
    *busy = n ? rows[0].busy : 0;
    *factor = n ? fmax((rows[(n - 1) / 2].ratio + rows[n / 2].ratio) / 2, 1) : 1;
    free(rows);
    return EK_OK;
}

/* ---- Memory ---------------------------------------------------------------------------------- */

bool ek_store_has_memory(struct ek_store *s, const struct ek_store_memory *k)
{
    int64_t one;

    return ek_store_get_i64(s, &one,
                            "SELECT 1 FROM memory WHERE device_id = ? AND signature_id ="
                            " (SELECT id FROM signature WHERE text = ?) AND act = ? AND cache = ?"
                            " AND batch = ? AND tokens = ? AND context = ?",
                            "itttuuu", k->device, k->signature, k->act, k->cache,
                            (uint64_t)k->batch, (uint64_t)k->tokens, (uint64_t)k->context) == EK_OK;
}

static enum ek_status insert_memory(struct ek_store *s, const struct ek_store_memory *m)
{
    EK_TRY(put_signature(s, m->signature));
    return ek_store_run_sql(
        s,
        "INSERT INTO memory(device_id, signature_id, act, cache, batch, tokens, context, weights,"
        " kv, activations, workspace, comm) VALUES(?, (SELECT id FROM signature WHERE text = ?),"
        " ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET comm = max(comm, excluded.comm)",
        "itttuuuuuuuu", m->device, m->signature, m->act, m->cache, (uint64_t)m->batch,
        (uint64_t)m->tokens, (uint64_t)m->context, m->weights, m->kv, m->activations, m->workspace,
        m->comm);
}

enum ek_status ek_store_put_memory(struct ek_store *s, const struct ek_store_memory *m)
{
    EK_TRY(ek_store_begin(s));
    return ek_store_end(s, insert_memory(s, m));
}

static void read_memory(struct ek_columns *c, void *item)
{
    struct ek_store_memory *m = item;

    ek_column_i64(c, &m->device);
    ek_column_text(c, m->signature, sizeof(m->signature));
    ek_column_text(c, m->act, sizeof(m->act));
    ek_column_text(c, m->cache, sizeof(m->cache));
    ek_column_u32(c, &m->batch);
    ek_column_u32(c, &m->tokens);
    ek_column_u32(c, &m->context);
    ek_column_u64(c, &m->weights);
    ek_column_u64(c, &m->kv);
    ek_column_u64(c, &m->activations);
    ek_column_u64(c, &m->workspace);
    ek_column_u64(c, &m->comm);
}

enum ek_status ek_store_memories(struct ek_store *s, int64_t device, const char *signature,
                                 struct ek_store_memory **out, size_t *n)
{
    sqlite3_stmt *st;

    EK_TRY(ek_store_prepare(
        s, &st,
        "SELECT device_id, s.text, act, cache, batch, tokens, context, weights, kv, activations,"
        " workspace, comm FROM memory JOIN signature s ON s.id = signature_id"
        " WHERE device_id = ? AND s.text = ? ORDER BY act, cache, batch, tokens, context",
        "it", device, signature));
    return ek_store_collect(s, st, "memory", sizeof(**out), read_memory, (void **)out, n);
}

/* ---- Sessions -------------------------------------------------------------------------------- */

/* When a process started, in clock ticks since boot: tells it from a later one of the same number.
 * -1 when there is no such process. */
static int64_t process_start(int64_t pid)
{
    char path[64], text[1024];
    const char *p;
    ssize_t n;
    int fd;

    snprintf(path, sizeof(path), "/proc/%lld/stat", (long long)pid);
    if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
        return -1;
    n = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (n <= 0)
        return -1;
    text[n] = '\0';
    if (!(p = strrchr(text, ')'))) /* the name in parentheses may hold anything */
        return -1;
    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    return p ? strtoll(p, NULL, 10) : -1;
}

static enum ek_status begin_session(struct ek_store *s, const char *model_hash)
{
    int64_t pid = 0, start = 0;
    enum ek_status st =
        ek_store_get_i64(s, &pid, "SELECT pid FROM session WHERE state = 'running'", "");

    if (st == EK_OK) {
        EK_TRY(ek_store_get_i64(s, &start, "SELECT pid_start FROM session WHERE state = 'running'",
                                ""));
        if (pid != getpid() && process_start(pid) == start)
            return ek_error(EK_EENV, "%s: process %lld is measuring into it", s->path,
                            (long long)pid);
    } else if (st != EK_NO) {
        return st;
    }
    EK_TRY(ek_store_run_sql(s, "UPDATE session SET state = 'failed' WHERE state = 'running'", ""));
    EK_TRY(ek_store_run_sql(
        s, "INSERT INTO session(model_hash, pid, pid_start, state) VALUES(?, ?, ?, 'running')",
        "tii", model_hash, (int64_t)getpid(), process_start(getpid())));
    s->session = sqlite3_last_insert_rowid(s->db);
    return EK_OK;
}

enum ek_status ek_store_session_begin(struct ek_store *s, const char *model_hash)
{
    EK_TRY(ek_store_begin(s));
    return ek_store_end(s, begin_session(s, model_hash));
}

enum ek_status ek_store_session_end(struct ek_store *s, const char *state)
{
    EK_TRY(ek_store_begin(s));
    return ek_store_end(s, ek_store_run_sql(s, "UPDATE session SET state = ? WHERE id = ?", "ti",
                                            state, s->session));
}

/* ---- Identity -------------------------------------------------------------------------------- */

static void hash_row(struct ek_hash *h, sqlite3_stmt *st)
{
    for (int i = 0; i < sqlite3_column_count(st); i++) {
        int64_t whole = sqlite3_column_int64(st, i);
        double real = sqlite3_column_double(st, i);

        if (sqlite3_column_type(st, i) == SQLITE_TEXT)
            ek_hash_add(h, sqlite3_column_text(st, i), (size_t)sqlite3_column_bytes(st, i) + 1);
        else if (sqlite3_column_type(st, i) == SQLITE_FLOAT)
            ek_hash_add(h, &real, sizeof(real));
        else
            ek_hash_add(h, &whole, sizeof(whole));
    }
}

static enum ek_status hash_query(struct ek_store *s, struct ek_hash *h, const char *sql)
{
    enum ek_status status;
    sqlite3_stmt *st;
    bool row = false;

    EK_TRY(ek_store_prepare(s, &st, sql, ""));
    while ((status = ek_store_step(s, st, &row)) == EK_OK && row)
        hash_row(h, st);
    sqlite3_finalize(st);
    ek_hash_add(h, sql, strlen(sql));
    return status;
}

#define DEVICE "h.name, d.name, d.backend, d.uuid, d.driver, d.kernels, d.threads"
#define OF_DEVICE                                                                                  \
    " JOIN device d ON d.id = device_id JOIN host h ON h.id = d.host_id"                           \
    " JOIN signature s ON s.id = signature_id ORDER BY " DEVICE ", s.text, "

enum ek_status ek_store_identity(struct ek_store *s, char out[33])
{
    static const char *const queries[] = {
        "SELECT " DEVICE ", d.model, d.memory_group, d.memory_total, d.cache_bytes, d.overhead,"
        " d.read_bandwidth, d.copy_bandwidth, d.peak_f32, d.peak_bf16, d.peak_f16 FROM device d"
        " JOIN host h ON h.id = d.host_id ORDER BY " DEVICE,
        "SELECT " DEVICE ", g.name, e.name, e.uuid, e.driver, e.kernels, e.threads, mechanism,"
        " alpha_s, beta_bytes_s, residual, n FROM link JOIN device d ON d.id = from_id"
        " JOIN device e ON e.id = to_id JOIN host h ON h.id = d.host_id"
        " JOIN host g ON g.id = e.host_id ORDER BY " DEVICE ", g.name, e.name, e.uuid, e.driver,"
        " e.kernels, e.threads, mechanism",
        "SELECT hash FROM model ORDER BY hash",
        "SELECT " DEVICE ", s.text, phase, batch, tokens, context, act, cache, launch, busy,"
        " median_s, mad_s, min_s, n, stop FROM measurement" OF_DEVICE
        "phase, batch, tokens, context, act, cache, launch, busy",
        "SELECT " DEVICE ", s.text, act, cache, batch, tokens, context, weights, kv, activations,"
        " workspace, comm FROM memory" OF_DEVICE "act, cache, batch, tokens, context",
    };
    struct ek_hash *h = ek_hash_new();
    enum ek_status st = h ? EK_OK : EK_ENOMEM;
    char hex[33];

    for (size_t i = 0; st == EK_OK && i < EK_ARRAY_LEN(queries); i++)
        st = hash_query(s, h, queries[i]);
    if (h)
        ek_hash_end(h, hex);
    if (st == EK_OK)
        memcpy(out, hex, sizeof(hex));
    return st;
}
