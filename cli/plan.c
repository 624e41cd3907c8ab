/* SPDX-License-Identifier: Apache-2.0
 *
 * plan, export, report and others: run by evenkeel-plan, a program of its own (GLPK is GPL). They
 * meet in files alone; the arguments go to it unchanged. */
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

/* A subcommand of evenkeel-plan: its own --help has the options. */
#define PLANNER_COMMAND(id, called, what, takes)                                                   \
    const struct ek_command ek_cmd_##id = {                                                        \
        .name = called,                                                                            \
        .summary = what,                                                                           \
        .operands = takes,                                                                         \
        .options = none,                                                                           \
        .description = "Run by evenkeel-plan; evenkeel " called " --help lists its options.",      \
        .run = run,                                                                                \
        .passthrough = true,                                                                       \
    }

PLANNER_COMMAND(plan, "plan", "find and prove the best placement of a profiled model",
                "MODEL --db FILE");
PLANNER_COMMAND(export, "export", "write a plan in another runtime's own form", "PLAN");
PLANNER_COMMAND(report, "report", "one self-contained HTML page about a plan", "PLAN");
PLANNER_COMMAND(simulate, "simulate", "what a plan does under a load of requests", "PLAN");
PLANNER_COMMAND(cluster, "cluster", "how many replicas of which plan over many nodes", "CLUSTER");
PLANNER_COMMAND(hardware, "hardware", "cards that plans can be estimated for", "");
