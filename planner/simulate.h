/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What a plan does under load: a discrete-event simulation of the pipelined runtime. Requests
 * arrive, wait for a slot, are prefilled chunk by chunk and then decoded in their group; stages and
 * links serve one job at a time, in order of arrival.
 */
#ifndef EK_PLANNER_SIMULATE_H
#define EK_PLANNER_SIMULATE_H

#include "planner/plan_file.h"

struct ek_load {
    double rate;       /* requests a second, at random; 0: all at the start */
    uint32_t requests; /* how many in all */
    uint32_t prompt, generate;
    uint64_t seed;
};
struct ek_simulated {
    double seconds;        /* until the last request is done */
    double tokens_per_s;   /* generated */
    double first_token[3]; /* mean, median, 99th percentile: from arrival */
    double per_token[3];   /* between tokens, a request's mean */
    double end_to_end[3];
    double queued;                                                        /* mean wait for a slot */
    double stage_busy[EK_FILE_MAX_STAGES], link_busy[EK_FILE_MAX_STAGES]; /* fractions */
    double last_first_token; /* when every request had its first token */
};
/* EK_EUSAGE when the load has no tokens; EK_EUNSUPPORTED when the plan predicts no times. */
enum ek_status ek_simulate(const struct ek_plan_file *f, const struct ek_load *load,
                           struct ek_simulated *out);

#endif
