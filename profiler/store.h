/* SPDX-License-Identifier: Apache-2.0
 *
 * The profile database (docs/measurement.md, docs/formats.md): SQLite, WAL, STRICT tables. One
 * transaction a measurement, unique keys. Written by the profiler and `bench`, read by the planner.
 * Depends on base and SQLite alone. One thread uses a store at a time.
 */
#ifndef EK_PROFILER_STORE_H
#define EK_PROFILER_STORE_H

#include "base/base.h"

struct ek_store;
enum ek_store_mode { EK_STORE_READ, EK_STORE_WRITE };

#define EK_STORE_APPLICATION_ID 0x454b5052 /* "EKPR" */
#define EK_STORE_VERSION        2          /* user_version; any other is refused */
/* Signatures of rows that belong to no module: what a stage takes whatever its modules, and in
 * memory alone, where another stage stands before it and behind it, and where it has the final norm
 * or the head but no layer. */
#define EK_STORE_STAGE    "stage"
#define EK_STORE_INCOMING "incoming"
#define EK_STORE_OUTGOING "outgoing"
#define EK_STORE_ENDING   "ending"

/* Opens (WRITE: creates) a database. Refused with a reason: not SQLite, another application_id, a
 * newer user_version (or, for reading, an older one: opening for writing brings it up to date), a
 * failed quick_check, tables, triggers or views that are not ours (all EK_EFORMAT); locked, a
 * read-only medium, a journal that cannot be replayed there (EK_EENV). */
enum ek_status ek_store_open(const char *path, enum ek_store_mode mode, struct ek_store **out);
/* Another connection to the same file, for another thread. */
enum ek_status ek_store_open_again(const struct ek_store *s, struct ek_store **out);
void ek_store_close(struct ek_store *s); /* NULL is fine */
/* Identity of the profile for plan.json: hash over host, devices (ceilings too; not what is free or
 * declared), links, models, times and memory. The same rows give the same identity, in whatever
 * order they were written. */
enum ek_status ek_store_identity(struct ek_store *s, char out[33]);

/* ---- Host, devices, links ------------------------------------------------------------------- */
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
/* Sets id. A device is the same row while host, name, backend, UUID, driver, kernels and threads
 * are; what else changed is updated (a ceiling of 0 keeps the one measured before). */
enum ek_status ek_store_put_device(struct ek_store *s, struct ek_store_device *d);
/* The row last put of each name of each host, in the order of their first put; older rows of a name
 * (another driver, other kernels) stay in the file unseen. *out is freed with free(). */
enum ek_status ek_store_devices(struct ek_store *s, struct ek_store_device **out, size_t *n);

#define EK_STORE_RETURN "return" /* mechanism of what lies between two rounds of decoding */
#define EK_STORE_BOTH   " both"  /* behind a mechanism: with the other direction at work, too; */
#define EK_STORE_ALL    " all"   /* with every pair of the machine */
struct ek_store_link {           /* t = alpha + bytes / beta */
    char from[32], to[32];       /* device names */
    char mechanism[24];          /* "memcpy", "peer-copy", "peer-store", "nccl", "host-staged" */
    double alpha_s, beta_bytes_s;
    double residual; /* largest |fit - measured| / measured over the sizes */
    uint64_t n;      /* samples behind it */
};
/* Replaces the row of the same devices and mechanism. */
enum ek_status ek_store_put_link(struct ek_store *s, const struct ek_store_link *l);
/* Links between the devices of ek_store_devices. */
enum ek_status ek_store_links(struct ek_store *s, struct ek_store_link **out, size_t *n);

/* ---- Measurements of modules ---------------------------------------------------------------- */
enum ek_phase { EK_PHASE_PREFILL, EK_PHASE_DECODE };

/* The launch mode of two rows of a GPU: a layer's time where prefill goes on without rests, and (of
 * EK_STORE_STAGE) after how many seconds of it clocks are lower. */
#define EK_STORE_SUSTAINED "sustained"
#define EK_STORE_REFILLED  "refilled"

struct ek_store_key {   /* everything that changes a measurement */
    int64_t device;     /* row of ek_store_device: UUID, driver, libraries, kernels' hash */
    char signature[33]; /* of the module; a stage's own rows have the signature EK_STORE_STAGE */
    enum ek_phase phase;
    uint32_t batch;          /* sequences */
    uint32_t tokens;         /* new tokens a sequence (decode: 1) */
    uint32_t context;        /* tokens in the cache of each sequence after this step */
    char act[12], cache[12]; /* dtype names */
    char launch[12];         /* "eager", "graph", EK_STORE_SUSTAINED, _REFILLED */
    uint32_t busy;           /* other devices of the machine at work meanwhile; 0: alone */
};
struct ek_store_time {
    double median_s, mad_s, min_s; /* median 0: below what the clock resolves (a stage's own) */
    uint32_t n;
    char stop[16];      /* "converged", "stable-noise", "timeout" */
    uint32_t clock_mhz; /* of the device's processors behind the last sample; 0: not known */
    uint32_t throttle; /* NVML's reasons for lower clocks before and behind, 0: none or not known */
};
bool ek_store_has_time(struct ek_store *s, const struct ek_store_key *k);
/* A key that is there already stays as it is (EK_OK). */
enum ek_status ek_store_put_time(struct ek_store *s, const struct ek_store_key *k,
                                 const struct ek_store_time *t);
struct ek_store_time_row {
    struct ek_store_key key;
    struct ek_store_time time;
};
/* All rows of a device and signature measured alone (busy == 0), ordered by phase, batch, tokens,
 * context. *out is freed with free(). */
enum ek_status ek_store_times(struct ek_store *s, int64_t device, const char *signature,
                              struct ek_store_time_row **out, size_t *n);
/* By how much *busy other devices at work, the most that were tried, slow a device in a phase:
 * median over its rows with as many of their time over the row measured alone; at least 1, and 1
 * with none where nothing was measured. Neighbours never rest: where it is known what the device
 * takes itself when it goes on (EK_STORE_SUSTAINED), its clocks are no part of the factor. */
enum ek_status ek_store_slowdown(struct ek_store *s, int64_t device, enum ek_phase phase,
                                 double *factor, uint32_t *busy);

/* Where the time of a measurement goes, of one module: kernels and copies, and what lies between
 * them under EK_STORE_GAPS, each without what overlaps those before it, so that they add up. */
#define EK_STORE_GAPS     "(gaps)"
#define EK_STORE_MAX_NAME 160
struct ek_store_kernel {
    char name[EK_STORE_MAX_NAME];
    uint32_t calls;
    double seconds;
};
/* Rows of a measurement that is there; those that it has already are replaced. */
enum ek_status ek_store_put_kernels(struct ek_store *s, const struct ek_store_key *k,
                                    const struct ek_store_kernel *rows, size_t n);
/* The longest first; *n is 0 where none were recorded. *out is freed with free(). */
enum ek_status ek_store_kernels(struct ek_store *s, const struct ek_store_key *k,
                                struct ek_store_kernel **out, size_t *n);

/* Time at any point from rows of ek_store_times (of one act, cache and launch): piecewise linear in
 * the context, then in the tokens (prefill) or the batch (decode); docs/measurement.md has the
 * rule. Sequences of a prefill step are counted as one of equal work. *outside (may be NULL): the
 * point lies beyond the rows, so the answer is an extrapolation. Negative when there are no rows of
 * the phase. The profiler chooses its points by the error of this very function. */
struct ek_point {
    enum ek_phase phase;
    uint32_t batch, tokens, context; /* as in ek_store_key */
};
double ek_interpolate(const struct ek_store_time_row *rows, size_t n, const struct ek_point *at,
                      bool *outside);
/* What a stage takes by itself, from the rows of EK_STORE_STAGE: each is a small difference of
 * large times, and none depends on the point, so that it is the median of those with the fewest
 * tokens, the half of them. 0 when there are none. */
double ek_typical(const struct ek_store_time_row *rows, size_t n, enum ek_phase phase);

/* Memory of one module alone on a device, bytes by tag, at (batch, tokens, context capacity): most
 * sequences, most new tokens of one step, most tokens of a sequence. docs/measurement.md says how
 * the rows of a stage's modules and of EK_STORE_STAGE add up. */
struct ek_store_memory {
    int64_t device;
    char signature[33];
    char act[12], cache[12];
    uint32_t batch, tokens, context;
    uint64_t weights, kv, activations, workspace, comm;
};
bool ek_store_has_memory(struct ek_store *s, const struct ek_store_memory *key);
/* A row that is there keeps its figures, but comm: the more devices there are to exchange with, the
 * more hand-overs may take. */
enum ek_status ek_store_put_memory(struct ek_store *s, const struct ek_store_memory *m);
/* Ordered by act, cache, batch, tokens, context. *out is freed with free(). */
enum ek_status ek_store_memories(struct ek_store *s, int64_t device, const char *signature,
                                 struct ek_store_memory **out, size_t *n);

/* Models that were profiled: name, hash and the JSON of ek_model_json. */
enum ek_status ek_store_put_model(struct ek_store *s, const char *hash, const char *name,
                                  const char *json);

/* What a planned run really took (bench). */
struct ek_store_run {
    char plan_hash[33], model_hash[33], what[48]; /* "stage 0 (cpu:0) prefill", "decode", ... */
    double predicted, measured;                   /* seconds or bytes; predicted 0: it was not */
    uint32_t batch, tokens, context;
    char device[32];   /* of a stage or a memory, "" for the whole */
    char quantity[12]; /* "prefill", "decode", "memory" */
    double mad;        /* of the samples behind measured */
    uint32_t n;        /* how many they were */
    double factor;     /* that a calibrated plan's prediction has in it, else 1 */
};
enum ek_status ek_store_put_run(struct ek_store *s, const struct ek_store_run *r);
enum ek_status ek_store_runs(struct ek_store *s, struct ek_store_run **out, size_t *n);

/* ---- Sessions of profiling: one process at a time writes measurements ------------------------ */
/* EK_EENV names the process when another one that lives is at it; a session left "running" by a
 * process that is gone becomes "failed". */
enum ek_status ek_store_session_begin(struct ek_store *s, const char *model_hash);
/* state: "complete", "interrupted" or "failed". */
enum ek_status ek_store_session_end(struct ek_store *s, const char *state);

#endif
