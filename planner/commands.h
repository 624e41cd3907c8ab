/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Private to the program evenkeel-plan: its subcommands and their options.
 */
#ifndef EK_PLANNER_COMMANDS_H
#define EK_PLANNER_COMMANDS_H

#include "planner/planner.h"

struct ek_command {
    const char *name, *summary;
    /* argv[0] is the subcommand's name. *code: the exit code when the status is EK_OK. */
    enum ek_status (*run)(int argc, char **argv, int *code);
};
/* What getopt_long, with opterr 0, has just not understood of a command's arguments; argv[0] is the
 * command's name. */
enum ek_status ek_option_error(char **argv);

extern const struct ek_command ek_command_plan, ek_command_export, ek_command_report,
    ek_command_hardware, ek_command_simulate, ek_command_cluster;

extern atomic_bool ek_stopped; /* set by SIGINT */

#endif
