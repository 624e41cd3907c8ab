/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Stages of devices that share a memory bus (two devices declared on one GPU, CPU devices) slow
 * each other while they work at the same time: how long each takes then, by letting jobs pass them.
 */
#ifndef EK_PLANNER_TURNS_H
#define EK_PLANNER_TURNS_H

#include "planner/planner.h"

struct ek_turn {      /* a stage */
    uint32_t device;  /* which does one job at a time, ... */
    uint32_t bus;     /* ... and meets those of the same bus */
    double seconds;   /* of a job, alone */
    double slow;      /* so many times as many more for each of those that works meanwhile */
    double handoff_s; /* until the next stage has the job */
};
struct ek_jobs {
    uint32_t n;
    uint32_t again; /* job k follows job k - again, return_s behind its end; 0: none follows */
    double return_s;
};
/* Of 1 to EK_PLAN_MAX_STAGES stages. busy: seconds of each at work, [n]; ended: when each job has
 * passed the last one, [jobs->n]. */
void ek_take_turns(const struct ek_turn *stages, size_t n, const struct ek_jobs *jobs, double *busy,
                   double *ended);

/* The lowest of the devices on a device's bus: its own number, where it shares none. */
uint32_t ek_bus_of(const struct ek_problem *p, uint32_t device);
/* Do stages of several devices meet on one bus? */
bool ek_buses_meet(const struct ek_problem *p, const struct ek_placement *pl);
/* Stages have prefill times of devices alone, and are given those of devices that meet. Returns
 * that of all prompts without their pictures. */
double ek_meet(const struct ek_problem *p, struct ek_placement *pl);

#endif
