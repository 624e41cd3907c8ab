/* SPDX-License-Identifier: Apache-2.0
 *
 * plan, export, report: run by evenkeel-plan, a program of its own (GLPK is GPL). They meet in
 * files alone; the arguments go to it unchanged. */
#include "cli/cli.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROGRAM "evenkeel-plan"

/* Beside this program first, then on PATH. Returns only when neither could be started. */
static enum ek_status start_planner(char **argv)
{
    char self[PATH_MAX], *beside;
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

    if (n > 0) {
        self[n] = '\0';
        if ((beside = ek_path_join(dirname(self), PROGRAM)) == NULL)
            return EK_ENOMEM;
        execv(beside, argv);
        free(beside);
    }
    execvp(PROGRAM, argv);
    return ek_error(EK_EENV, "%s cannot be started: %s", PROGRAM, strerror(errno));
}

static enum ek_status run(const struct ek_args *args)
{
    char **argv = ek_calloc(args->n_raw + 3, sizeof(*argv));
    enum ek_status st;

    if (argv == NULL)
        return EK_ENOMEM;
    fflush(stdout);
    argv[0] = (char *)(uintptr_t)PROGRAM;
    argv[1] = (char *)(uintptr_t)args->command->name;
    for (size_t i = 0; i < args->n_raw; i++)
        argv[2 + i] = args->raw[i];
    st = start_planner(argv);
    free(argv);
    return st;
}

static const struct ek_option none[] = {{NULL, NULL, NULL}};

const struct ek_command ek_cmd_plan = {
    .name = "plan",
    .summary = "find and prove the best placement of a profiled model",
    .operands = "MODEL --db FILE",
    .options = none,
    .description = "Run by evenkeel-plan; evenkeel plan --help lists its options.",
    .run = run,
    .passthrough = true,
};
const struct ek_command ek_cmd_export = {
    .name = "export",
    .summary = "write a plan in another runtime's own form",
    .operands = "PLAN",
    .options = none,
    .description = "Run by evenkeel-plan; evenkeel export --help lists its options.",
    .run = run,
    .passthrough = true,
};
const struct ek_command ek_cmd_report = {
    .name = "report",
    .summary = "one self-contained HTML page about a plan",
    .operands = "PLAN",
    .options = none,
    .description = "Run by evenkeel-plan; evenkeel report --help lists its options.",
    .run = run,
    .passthrough = true,
};
