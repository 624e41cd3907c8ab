/* SPDX-License-Identifier: Apache-2.0
 *
 * The physics gate: a module cannot read its weights faster than a streaming kernel reads, nor
 * multiply faster than a large product does. A row that says so is a mistake of ours (the clock,
 * the work counted, a cache that the real stage will not have) and would make plans of it.
 */
#include "profiler/measure.h"

#define GRACE 1.02

enum ek_status gate_check(const struct gate_work *w, double seconds, const char *what)
{
    char rate[EK_UNIT_LEN], ceiling[EK_UNIT_LEN];

    if (seconds <= 0)
        return ek_error(EK_NO, "%s: took no time at all", what);
    if (w->bandwidth > 0 && w->bytes / seconds > w->bandwidth * GRACE)
        return ek_error(EK_NO, "%s: would read %s, but the device reads at most %s", what,
                        ek_format_rate(rate, w->bytes / seconds),
                        ek_format_rate(ceiling, w->bandwidth));
    if (w->peak > 0 && w->flops / seconds > w->peak * GRACE)
        return ek_error(EK_NO, "%s: would compute %.4g GFLOP/s, but the device's peak is %.4g",
                        what, w->flops / seconds * 1e-9, w->peak * 1e-9);
    return EK_OK;
}
