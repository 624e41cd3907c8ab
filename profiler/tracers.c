/* SPDX-License-Identifier: Apache-2.0
 *
 * The registry of tracers: the only place of profiler/ that knows which were built.
 */
#include "config.h"

#include "profiler/tracer.h"

#include <string.h>

#ifdef HAVE_CUDA
extern const struct tracer tracer_cupti;
#endif

static const struct tracer *const tracers[] = {
#ifdef HAVE_CUDA
    &tracer_cupti,
#endif
    NULL,
};

const struct tracer *tracer_of(const char *backend)
{
    for (size_t i = 0; tracers[i]; i++)
        if (strcmp(tracers[i]->backend, backend) == 0)
            return tracers[i];
    return NULL;
}
