/* SPDX-License-Identifier: Apache-2.0
 *
 * The profile database (docs/formats.md: profile.db): SQLite, WAL, STRICT tables. One transaction a
 * measurement, unique keys. Read by the planner, written by the profiler. Depends on base, SQLite.
 */
#ifndef EK_PROFILER_STORE_H
#define EK_PROFILER_STORE_H

#include "base/base.h"

struct ek_store;
enum ek_store_mode { EK_STORE_READ, EK_STORE_WRITE };

/* Opens (WRITE: creates) a database. Refused with a reason: not SQLite, another application_id, a
 * newer user_version, a failed quick_check, foreign triggers or views, locked, read-only medium. */
enum ek_status ek_store_open(const char *path, enum ek_store_mode mode, struct ek_store **out);
void ek_store_close(struct ek_store *s);
/* Identity of the profile for plan.json: hash over host, devices, models and measurements. */
enum ek_status ek_store_identity(struct ek_store *s, char out[33]);

/* ---- Host, devices, links -----------------------------------------------------------------------
 */
struct ek_store_device {
    int64_t id;    /* 0 when writing */
    char name[32]; /* "cpu:0", "cuda:0" */
    char backend[8];
    char model[96], uuid[48], driver[64], kernels[33], memory_group[48], threads[128];
    char host[64];
    uint64_t memory_total, memory_free, cache_bytes;
    uint64_t budget;   /* declared, 0: none */
    uint64_t overhead; /* measured: context and libraries, before the first allocation of ours */
    double read_bandwidth, copy_bandwidth; /* bytes/s, measured ceilings; 0: not measured */
    double peak_f32, peak_bf16, peak_f16;  /* FLOP/s, measured; 0: not measured */
};
enum ek_status ek_store_put_device(struct ek_store *s, struct ek_store_device *d); /* sets id */
enum ek_status ek_store_devices(struct ek_store *s, struct ek_store_device **out, size_t *n);

struct ek_store_link {     /* t = alpha + bytes / beta */
    char from[32], to[32]; /* device names */
    char mechanism[24];    /* "memcpy", "peer-copy", "peer-store", "nccl", "host-staged" */
    double alpha_s, beta_bytes_s, residual;
    uint64_t n;
};
enum ek_status ek_store_put_link(struct ek_store *s, const struct ek_store_link *l);
enum ek_status ek_store_links(struct ek_store *s, struct ek_store_link **out, size_t *n);

/* ---- Measurements of modules
 * ----------------------------------------------------------------------- */
enum ek_phase { EK_PHASE_PREFILL, EK_PHASE_DECODE };

struct ek_store_key {   /* everything that changes a measurement */
    int64_t device;     /* row of ek_store_device: UUID, driver, libraries, kernels' hash */
    char signature[33]; /* of the module; "stage-overhead" rows use the signature "stage" */
    enum ek_phase phase;
    uint32_t batch;          /* sequences */
    uint32_t tokens;         /* new tokens a sequence (decode: 1) */
    uint32_t context;        /* tokens in the cache of each sequence after this step */
    char act[12], cache[12]; /* dtype names */
    char launch[12];         /* "eager", "graph" */
};
struct ek_store_time {
    double median_s, mad_s, min_s;
    uint32_t n;
    char stop[16]; /* "converged", "stable-noise", "timeout" */
};
bool ek_store_has_time(struct ek_store *s, const struct ek_store_key *k);
enum ek_status ek_store_put_time(struct ek_store *s, const struct ek_store_key *k,
                                 const struct ek_store_time *t);
struct ek_store_time_row {
    struct ek_store_key key;
    struct ek_store_time time;
};
/* All rows of a device and signature, ordered by phase, batch, tokens, context. */
enum ek_status ek_store_times(struct ek_store *s, int64_t device, const char *signature,
                              struct ek_store_time_row **out, size_t *n);

/* Memory of one module alone on a device, bytes by tag, at (batch, tokens, context capacity). */
struct ek_store_memory {
    int64_t device;
    char signature[33];
    char act[12], cache[12];
    uint32_t batch, tokens, context;
    uint64_t weights, kv, activations, workspace, comm;
};
enum ek_status ek_store_put_memory(struct ek_store *s, const struct ek_store_memory *m);
enum ek_status ek_store_memories(struct ek_store *s, int64_t device, const char *signature,
                                 struct ek_store_memory **out, size_t *n);

/* Models that were profiled: name, hash and the JSON of ek_model_json. */
enum ek_status ek_store_put_model(struct ek_store *s, const char *hash, const char *name,
                                  const char *json);

/* What a planned run really took (bench). */
struct ek_store_run {
    char plan_hash[33], model_hash[33], what[48]; /* "prefill stage 0", "decode", "memory cpu:0" */
    double predicted, measured;                   /* seconds or bytes */
    uint32_t batch, tokens, context;
};
enum ek_status ek_store_put_run(struct ek_store *s, const struct ek_store_run *r);
enum ek_status ek_store_runs(struct ek_store *s, struct ek_store_run **out, size_t *n);

#endif
