/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * GLPK ends the process when it runs out of memory or finds itself wrong: here it comes back with a
 * status instead.
 */
#include "planner/glpk_guard.h"

#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>

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

int ek_glpk_time_left(uint64_t deadline_ns)
{
    uint64_t now = ek_now_ns(), left = deadline_ns > now ? (deadline_ns - now) / 1000000 + 1 : 1;

    return deadline_ns && left < INT_MAX ? (int)left : INT_MAX;
}

void ek_glpk_offer_cutoff(glp_tree *tree, int variable)
{
    double *x = ek_calloc((size_t)glp_get_num_cols(glp_ios_get_prob(tree)) + 1, sizeof(double));

    if (x == NULL) /* slower, not wrong */
        return;
    x[variable] = 1;
    glp_ios_heur_sol(tree, x);
    free(x);
}

int ek_glpk_most_fractional(glp_tree *tree, int from, int n)
{
    glp_prob *lp = glp_ios_get_prob(tree);
    double most = 1e-5;
    int best = 0;

    for (int v = from; v < from + n; v++) {
        double x = glp_get_col_prim(lp, v), f = fmin(x - floor(x), ceil(x) - x);
        if (f > most && glp_ios_can_branch(tree, v)) {
            most = f;
            best = v;
        }
    }
    return best;
}
