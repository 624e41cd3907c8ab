/* SPDX-License-Identifier: Apache-2.0
 *
 * Inside of the profiler: when to stop sampling, which points to measure, what cannot be true, and
 * the rig that runs the runtime's own stages. Only profiler/ and its tests include this.
 */
#ifndef EK_PROFILER_MEASURE_H
#define EK_PROFILER_MEASURE_H

#include "profiler/profiler.h"

/* ---- timing.c: sampling until the median is known ---------------------------------------------
 */
struct timing_rule {
    uint32_t min_n, max_n; /* samples; min_n is not waited for beyond the timeout (but 3 are) */
    double noise;          /* standard error of the median to reach, relative */
    double timeout_s;
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
    bool deep;           /* the time depends on the context */
    double target;       /* relative error of interpolation that is good enough */
    uint32_t max_widths; /* at most so many widths, however badly interpolation does */
};
/* Measures a point, or finds it measured already. EK_NO: refused, go on without. */
typedef enum ek_status (*point_fn)(void *ctx, const struct ek_point *at, struct ek_store_time *out);
enum ek_status points_measure(const struct point_space *space, point_fn fn, void *ctx);
/* The first points, measured in any case. Returns their number (at most 4). */
size_t points_corners(const struct point_space *space, struct ek_point out[4]);
/* Most points that points_measure will ask for. */
size_t points_most(const struct point_space *space);

#endif
