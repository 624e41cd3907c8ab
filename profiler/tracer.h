/* SPDX-License-Identifier: Apache-2.0
 *
 * Tracers tell what devices really did: which kernels and copies, from when to when, and what
 * memory the driver gave to this process. Attribution makes a module's share of it. Only profiler/
 * and its tests include this.
 */
#ifndef EK_PROFILER_TRACER_H
#define EK_PROFILER_TRACER_H

#include "profiler/profiler.h"

struct trace_record { /* a kernel, copy or fill on a device */
    char name[EK_STORE_MAX_NAME];
    uint64_t begin, end; /* ns of one clock */
};
struct trace {
    struct trace_record *records;
    size_t n, cap;
    uint64_t overhead_ns; /* of the tracer itself, on the host */
};
void trace_clear(struct trace *t);
enum ek_status trace_add(struct trace *t, const char *name, uint64_t begin, uint64_t end);

struct tracer {
    const char *backend, *name;
    /* From here on kernels and copies are recorded; end() undoes it. Better called before a device
     * of the backend is opened. */
    enum ek_status (*begin)(void);
    void (*end)(void);
    /* What was recorded since the last call is added to out (NULL: forgotten); devices are idle. */
    enum ek_status (*collect)(struct trace *out);
    /* From here on the driver's allocations are counted. Before any device is opened. */
    enum ek_status (*memory_begin)(void);
    /* Bytes of device memory that this process holds on the device of that index. */
    enum ek_status (*memory_now)(uint32_t index, uint64_t *bytes);
};
/* tracers.c: the registry. NULL: no tracer was built for that backend. */
const struct tracer *tracer_of(const char *backend);

/* ---- attribution.c ------------------------------------------------------------------------------
 */
struct attribution_entry {
    char name[EK_STORE_MAX_NAME];
    uint64_t calls[2], ns[2]; /* in steps of the shorter stage, and of the longer */
};
struct attribution {
    struct attribution_entry *entries;
    size_t n, cap;
    uint64_t overhead_ns; /* of the tracer, over all steps */
};
void attribution_clear(struct attribution *a);
/* One step of stage `which`. Each record counts for what no earlier one covers, EK_STORE_GAPS for
 * what none does: they add up to the step from its first record to its last. Sorts the records. */
enum ek_status attribution_add(struct attribution *a, int which, struct trace *t);
/* Rows of one module, the longest first: the longer stage less the shorter, over `per` (modules
 * that it has more, times steps); with one stage alone all of it but the gaps, which are the host's
 * at work under the tracer. Freed with free(). */
enum ek_status attribution_rows(const struct attribution *a, bool alone, double per,
                                struct ek_store_kernel **out, size_t *n);
/* A demangled kernel's name without its return type, namespaces of no name, and parameters. */
void attribution_name(const char *demangled, char out[EK_STORE_MAX_NAME]);

#endif
