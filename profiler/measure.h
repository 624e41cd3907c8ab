/* SPDX-License-Identifier: Apache-2.0
 *
 * Inside of the profiler: when to stop sampling, which points to measure, what cannot be true, and
 * the rig that runs the runtime's own stages. Only profiler/ and its tests include this.
 */
#ifndef EK_PROFILER_MEASURE_H
#define EK_PROFILER_MEASURE_H

#include "profiler/profiler.h"

#include <stdatomic.h>

/* ---- timing.c: sampling until the median is known ---------------------------------------------
 */
struct timing_rule {
    uint32_t min_n, max_n; /* samples; min_n is not waited for beyond the timeout (but 3 are) */
    double noise;          /* standard error of the median to reach, relative */
    double timeout_s;
    bool mean; /* samples differ by what they do: their mean, without the outer tenths, is taken */
};
#define TIMING_RULE_INIT                                                                           \
    {                                                                                              \
        .min_n = 10, .max_n = 1000, .noise = 0.005, .timeout_s = 1                                 \
    }
enum { TIMING_VALUES = 2 };
/* One sample: the value that decides when to stop, then one that is kept beside it. */
typedef enum ek_status (*timing_sample_fn)(void *ctx, double values[TIMING_VALUES]);
/* The clock that the timeout counts by (ek_now_ns; tests bring their own). */
typedef uint64_t (*timing_clock_fn)(void *ctx);

enum ek_status timing_run(const struct timing_rule *rule, timing_sample_fn sample,
                          timing_clock_fn clock, void *ctx,
                          struct ek_store_time out[TIMING_VALUES]);
/* Median, and median absolute deviation, of n values. Reorders them. */
double timing_median(double *values, size_t n);
double timing_mad(const double *values, size_t n, double median, double *scratch);
/* Standard error of a median, relative to it. */
double timing_error(const struct ek_store_time *t);

/* Of at most 512 runs of equal work: how many times as long as a rested one the last third takes
 * (1: no more than clocks tell), and how long they went on before they did. */
void sustain_read(const double *seconds, size_t n, double rested, double *ratio, double *burst_s);
/* Of n that went on so many seconds after others did, whose ratio and burst are known: after how
 * many seconds half of the burst is there again. */
double refill_read(const double *seconds, size_t n, double rested, double ratio, double burst_s,
                   double between_s);
/* Of n runs right behind work that went on, how many times a rested one they take at first, and
 * after how many seconds half of that is gone. */
void recover_read(const double *seconds, size_t n, double rested, double *ratio, double *half_s);

/* ---- links.c */
/* alpha, beta and residual of n messages of so many bytes. */
void link_fit(const double *bytes, const double *seconds, size_t n, struct ek_store_link *out);
/* The time of a hand-over of ordinary size, and the row of two devices that has the least, as the
 * planner chooses it; NULL: there is none. */
double link_typical(const struct ek_store_link *l);
const struct ek_store_link *link_fastest(const struct ek_store_link *links, size_t n,
                                         const char *from, const char *to);

/* ---- gate.c: what cannot be true --------------------------------------------------------------
 */
struct gate_work {
    double bytes, flops;    /* that the measured time moved and computed */
    double bandwidth, peak; /* measured on the device in the same run; 0: not known */
};
/* EK_NO with a message when the time is shorter than bytes or flops allow (2 % of grace). */
enum ek_status gate_check(const struct gate_work *w, double seconds, const char *what);

/* ---- points.c: which points to measure --------------------------------------------------------
 */
struct point_space {
    enum ek_phase phase;
    uint32_t max_width; /* batch (decode) or tokens (prefill) */
    uint32_t max_context;
    uint32_t max_cached;  /* tokens of all sequences that fit into the cache together */
    bool deep;            /* the time depends on the context */
    double target;        /* relative error of interpolation that is good enough */
    uint32_t max_widths;  /* at most so many widths, however badly interpolation does */
    uint32_t first, step; /* widths between the ends are first + whole steps; step 0: any */
    bool picture;         /* its tokens: as nearly square ones have */
    bool sweep;  /* beside them many widths at the least depth: times go up and down with tiles */
    bool choosy; /* kernels are chosen by the depth, too: all looks between its ends are taken */
};
/* Measures a point, or finds it measured already. EK_NO: refused, go on without. */
typedef enum ek_status (*point_fn)(void *ctx, const struct ek_point *at, struct ek_store_time *out);
enum ek_status points_measure(const struct point_space *space, point_fn fn, void *ctx);
/* The first points, measured in any case. Returns their number (at most 4). */
size_t points_corners(const struct point_space *space, struct ek_point out[4]);
/* The one with the most sequences (decode) or tokens, of a context in the middle: measured where
 * the time depends on it. */
struct ek_point points_middle(const struct point_space *space);
/* Most points that points_measure will ask for. */
size_t points_most(const struct point_space *space);

/* ---- batch.c: the batch of a point --------------------------------------------------------------
 */
struct rig_batch;
enum ek_status rig_batch_new(const struct ek_model *m, uint32_t max_tokens, uint32_t max_seqs,
                             uint32_t max_context, struct rig_batch **out);
void rig_batch_free(struct rig_batch *b); /* NULL is fine */
/* Makes it that of a point, which is within the bounds. */
void rig_batch_set(struct rig_batch *b, const struct ek_point *at);
/* Of the point set last; logits of the last token of each sequence. Borrowed. */
const struct ek_batch_host *rig_batch_host(const struct rig_batch *b);

/* ---- routing.c: which experts tokens go to ------------------------------------------------------
 */
/* ids: [tokens][top_k] different experts of n for each token. top_k <= n. */
void routing_draw(uint32_t n_experts, uint32_t top_k, uint32_t tokens, uint64_t *seed,
                  int32_t *ids);
/* How many different ones they are on average. */
double routing_reached(uint32_t n_experts, uint32_t top_k, uint64_t tokens);

/* ---- rig.c: the runtime's own stages under the clock ------------------------------------------
 */
/* Like modules [first, first + run) of a model. The rig runs n of them in one stage and 2 n in
 * another, and takes the slope; a module that is alone of its kind (run == 1) is run as a stage of
 * its own, and the stage's own time is taken off. */
struct rig_group {
    size_t first;
    uint32_t run;
    const struct ek_module *module; /* the first */
};
struct rig_options {
    struct ek_device *dev; /* borrowed, as the model is */
    const struct ek_model *m;
    enum ek_dtype cache;
    uint32_t max_batch, max_prompt, max_context;
    const struct ek_ceilings *ceilings;
    uint64_t memory; /* bytes that the rig may take */
    bool gpu, thorough;
    bool eager; /* decode steps are launched, not replayed */
};
struct rig;
enum ek_status rig_new(const struct rig_options *opt, const struct rig_group *group,
                       struct rig **out);
void rig_free(struct rig *r); /* NULL is fine */
/* Time of the module at a point and, beside it, of a stage without modules (of groups of one: what
 * its stage took beside it). EK_NO: the gate refuses it. overhead_s: a stage's own time, known
 * already (groups of one only). */
enum ek_status rig_measure(struct rig *r, const struct ek_point *at, double overhead_s,
                           struct ek_store_time *module, struct ek_store_time *stage);
/* What a stage takes once a step, from stages of one module and of two: with many, the differences
 * of their times are larger than it is. */
enum ek_status rig_measure_own(struct rig *r, const struct ek_point *at,
                               struct ek_store_time *stage);
struct tracer;
struct attribution;
/* Runs a point under a tracer that has begun: adds where the time goes to out, *per is what its
 * rows are to be divided by, *seconds the module's time by the device's clock meanwhile. */
enum ek_status rig_trace(struct rig *r, const struct ek_point *at, const struct tracer *t,
                         struct attribution *out, double *per, double *seconds);
/* Most tokens that caches of the rig can hold within its memory (without a device: all). */
uint32_t rig_max_cached(const struct rig_options *opt, const struct rig_group *group);
/* Makes the rig ready for steps of a point that go on; ... */
enum ek_status rig_begin(struct rig *r, const struct ek_point *at);
/* ... lets the device rest until its clocks have come back; ... */
enum ek_status rig_rest(struct rig *r);
/* ... and runs them, of so many modules, without a pause for so long: seconds of each, of the same
 * work, at most max. */
uint32_t rig_modules(const struct rig *r);
enum ek_status rig_go_on(struct rig *r, double seconds, double *out, size_t max, size_t *n);
/* Runs a point over and over until *stop: a neighbour at work, as *goes says from then on. */
enum ek_status rig_keep_busy(struct rig *r, const struct ek_point *at, const atomic_bool *stop,
                             atomic_bool *goes);

/* ---- memory.c: bytes by tag of a module alone -------------------------------------------------
 */
/* Rows of a signature (the group's, or EK_STORE_ENDING for a head's) over tokens and batches; those
 * that are there are left out. opt->dev has nothing allocated and has run nothing. */
enum ek_status memory_measure(const struct rig_options *opt, const struct rig_group *group,
                              const char *signature, struct ek_store *store, int64_t device);
/* Rows of EK_STORE_INCOMING and _OUTGOING: what hand-overs take on devices[i]. The others are where
 * it goes. */
enum ek_status memory_of_links(const struct rig_options *opt, struct ek_device *const *devices,
                               size_t n, size_t i, struct ek_store *store, int64_t device);
/* Into the rows of a part of a cut tower: what pictures take on devices[i] where the tower is cut
 * before or behind it. */
enum ek_status memory_of_cuts(const struct rig_options *opt, struct ek_device *const *devices,
                              size_t n, size_t i, const char *signature, struct ek_store *store,
                              int64_t device);

/* ---- ceilings.c */
/* Fills n bytes with normal numbers of a type (F32, BF16, F16): neither power nor caches shall have
 * it easier than with weights. */
enum ek_status rig_fill_random(struct ek_device *dev, void *p, size_t n, enum ek_dtype dtype);
/* Bytes a second at which the device reads a set of that many bytes over and over: from its caches
 * when they hold it. */
enum ek_status ceilings_read_rate(struct ek_device *dev, uint64_t bytes, double *rate);

#endif
