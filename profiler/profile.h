/* SPDX-License-Identifier: Apache-2.0
 *
 * What profiling a model shares between its files. Only profiler/ includes this.
 */
#ifndef EK_PROFILER_PROFILE_H
#define EK_PROFILER_PROFILE_H

#include "profiler/measure.h"

#include <pthread.h>

struct profile_pace { /* of all lanes together */
    pthread_mutex_t lock;
    struct ek_progress *bar;
    uint64_t done;
};
struct profile {
    const struct ek_model *m;
    struct ek_store *store;
    const struct ek_profile_options *opt;
    struct rig_group *groups; /* one a signature; the one with the longest run first */
    size_t n_groups;
    struct profile_pace *pace;
    uint64_t done;
    uint32_t left_out;                       /* points that the gate refused or that did not fit */
    size_t lane_of[EK_MAX_DEVICES], n_lanes; /* devices of different lanes are measured at once */
};
struct profile_device { /* opened, with its row */
    struct profile *p;
    struct ek_store_device row;
    struct ek_ceilings ceilings;
    struct rig_options rig; /* rig.dev: the device; rig.ceilings: the above */
};

enum ek_status profile_groups(const struct ek_model *m, struct rig_group **out, size_t *n);
struct rig_options profile_rig_options(const struct ek_model *m, const struct ek_profile_options *o,
                                       struct ek_device *dev);
struct point_space profile_space(const struct rig_options *rig, const struct rig_group *g,
                                 enum ek_phase phase, double target);
struct ek_store_key profile_key(const struct profile_device *d, const char *signature,
                                const struct ek_point *at, uint32_t busy);
enum ek_status profile_rows(const struct profile_device *d, const char *signature,
                            struct ek_store_time_row **out, size_t *n);
enum ek_status profile_open(struct profile *p, size_t i, struct profile_device *out);

/* ---- lanes.c: devices that have nothing in common are measured at the same time ---- */
typedef enum ek_status (*profile_device_fn)(struct profile *p, size_t i);
enum ek_status profile_assign_lanes(struct profile *p);
/* Calls fn for every device; p->store is then the lane's own. */
enum ek_status profile_each(struct profile *p, profile_device_fn fn);
/* What the lane of p has done so far, of all; detail: of this moment. */
void profile_say(struct profile *p, uint64_t done, const char *detail);

/* ---- twins.c: devices that are one piece of hardware share what was measured ---- */
enum ek_status twins_ceilings(struct ek_store *store, struct ek_store_device *d);
enum ek_status twins_memory(const struct profile_device *d);
enum ek_status twins_times(const struct profile_device *d);
/* Puts what was measured between twins of two devices, of which there may be nothing. */
enum ek_status twins_links(struct ek_store *store, const char *from, const char *to,
                           size_t *copied);

/* ---- busy.c: devices with the others at work ---- */
enum ek_status profile_busy(struct profile *p);

/* ---- sustain.c: a GPU when products go on ---- */
enum ek_status profile_sustained(const struct profile_device *d);

/* ---- kernels.c: where the time goes, by devices' tracers ---- */
enum ek_status profile_kernels(struct profile *p);

/* ---- devices.c ---- */
enum ek_status devices_find(struct ek_store *store, int64_t id, struct ek_store_device *out);
/* budget: with the memory that the spec declares, else with all there is. */
enum ek_status devices_open(const struct ek_device_spec *spec, enum ek_dtype act, bool budget,
                            struct ek_device **out);
enum ek_status devices_stopped(const atomic_bool *stop);

#endif
