/* SPDX-License-Identifier: Apache-2.0
 *
 * profiler: measures devices, links and the runtime's own modules into the profile database.
 * docs/measurement.md says how. Depends on runtime, kernels, model, base, and its store.
 */
#ifndef EK_PROFILER_H
#define EK_PROFILER_H

#include "profiler/store.h"
#include "runtime/runtime.h"

/* ---- Ceilings and links of devices ---------------------------------------------------------- */
struct ek_ceilings {
    double read_bandwidth, copy_bandwidth; /* bytes/s */
    double peak_f32, peak_bf16, peak_f16;  /* FLOP/s of a large product; 0: not supported */
    uint64_t overhead;                     /* bytes taken before our first allocation */
};
/* Takes seconds. The device should have some hundred MiB of memory free: less than a few times its
 * last-level cache would be measured out of that. */
enum ek_status ek_measure_ceilings(struct ek_device *dev, struct ek_ceilings *out);
/* One link by the mechanism that the runtime takes for the pair. Needs some 100 MiB. */
enum ek_status ek_measure_link(struct ek_device *from, struct ek_device *to,
                               struct ek_store_link *out);
/* The same by one mechanism of ek_link_mechanisms (NULL: as above). */
enum ek_status ek_measure_link_as(struct ek_device *from, struct ek_device *to,
                                  const char *mechanism, struct ek_store_link *out);

/* Pairs of devices at once, each a message after the other: out[i] is what pairs[i] has of its link
 * then (alpha: of a message in a stream). suffix ends the rows' mechanism: EK_STORE_BOTH, ... */
struct ek_traffic_pair {
    const struct ek_device_spec *from, *to;
};
enum ek_status ek_measure_traffic(const struct ek_traffic_pair *pairs, size_t n,
                                  const char *mechanism, enum ek_dtype act, const char *suffix,
                                  struct ek_store_link *out);

/* Between two decode steps of a device: its ids to the host, the next step queued. alpha_s of a row
 * from the device to itself, by EK_STORE_RETURN. */
enum ek_status ek_measure_return(const struct ek_device_spec *device, enum ek_dtype act,
                                 struct ek_store_link *out);

/* The row of an opened device, without ceilings. */
void ek_profile_device_row(const struct ek_device *dev, struct ek_store_device *out);
/* Rows, ceilings and the matrix of links of devices: what is in the store already stays, unless
 * again. Budgets of the specs go into the rows and do not limit these measurements. */
enum ek_status ek_profile_devices(struct ek_store *store, const struct ek_device_spec *specs,
                                  size_t n, enum ek_dtype act, bool again, const atomic_bool *stop);

/* ---- Profiling a model ---------------------------------------------------------------------- */
struct ek_profile_options {
    const struct ek_device_spec *devices;
    size_t n_devices;
    enum ek_dtype act, cache;
    uint32_t max_batch, max_prompt, max_context; /* bounds of the points */
    bool thorough, kernels;  /* kernels: trace where the time of a few points goes */
    double target_error;     /* of interpolation between points, e.g. 0.03 */
    const atomic_bool *stop; /* set by SIGINT: finish the row, commit, return EK_EINTR */
};
#define EK_PROFILE_OPTIONS_INIT                                                                    \
    {                                                                                              \
        .act = EK_F32, .cache = EK_F32, .max_batch = 8, .max_prompt = 512, .max_context = 2048,    \
        .target_error = 0.03                                                                       \
    }
/* Resumable: points whose key is committed are skipped. Devices are measured one after the other,
 * each within its budget, then each with the others at work. Weights are the model's (open it with
 * synthetic weights to profile without a checkpoint). Shows progress on stderr. */
enum ek_status ek_profile(const struct ek_model *m, struct ek_store *store,
                          const struct ek_profile_options *opt);
/* Most rows of times that ek_profile will write for these options: for a dry run. */
size_t ek_profile_most(const struct ek_model *m, const struct ek_profile_options *opt);

/* ---- Memory by three accounts ---------------------------------------------------------------- */
/* What this process holds of a GPU: by the tags of our own allocations, by the driver's allocations
 * as the backend's tracer saw them, and by what NVML says is gone since before it began. */
struct ek_account_row {
    char gpu[32];                /* "cuda:0" */
    uint64_t tags, traced, gone; /* gone has the context, code, and other processes' changes too */
};
struct ek_account;
/* Before any device is opened. EK_EUNSUPPORTED: no GPU, or no tracer of its backend. */
enum ek_status ek_account_begin(struct ek_account **out);
/* tags: bytes that each of n devices has now; several may be on one GPU. *rows: one a GPU that has
 * any, freed with free(). */
enum ek_status ek_account_read(const struct ek_account *a, const struct ek_device_spec *devices,
                               const uint64_t *tags, size_t n, struct ek_account_row **rows,
                               size_t *n_rows);
void ek_account_free(struct ek_account *a); /* NULL is fine */

#endif
