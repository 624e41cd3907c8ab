/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * GLPK ends the process when it runs out of memory or finds itself wrong: here it comes back with a
 * status instead.
 */
#include "planner/glpk_guard.h"

#include <glpk.h>
#include <setjmp.h>

static _Thread_local jmp_buf on_error;

static void failed(void *info)
{
    (void)info;
    longjmp(on_error, 1);
}

static int silent(void *info, const char *s)
{
    (void)info;
    (void)s;
    return 1;
}

enum ek_status ek_glpk_guarded(enum ek_status (*work)(void *data), void *data)
{
    enum ek_status st;

    if (setjmp(on_error)) {
        glp_error_hook(NULL, NULL);
        st = ek_error(EK_ENOMEM, "GLPK failed inside: out of memory or numerical trouble");
    } else {
        glp_term_hook(silent, NULL);
        glp_error_hook(failed, NULL);
        st = work(data);
    }
    glp_free_env();
    return st;
}
