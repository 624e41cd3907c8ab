/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * evenkeel-plan: decides which device holds which layer, and proves it. `evenkeel` runs it for its
 * subcommands plan, export, report, simulate, cluster and hardware.
 */
#include "planner/commands.h"

#include <config.h>

#include <getopt.h>
#include <signal.h>
#include <string.h>

static const struct ek_command *const commands[] = {
    &ek_command_plan,     &ek_command_export,   &ek_command_report,
    &ek_command_hardware, &ek_command_simulate, &ek_command_cluster,
};

atomic_bool ek_stopped;
_Static_assert(ATOMIC_BOOL_LOCK_FREE == 2, "a signal handler sets it");

static void on_interrupt(int sig)
{
    ek_stopped = true;
    signal(sig, SIG_DFL); /* the second one is meant */
}

enum ek_status ek_option_error(char **argv)
{
    const char *given = argv[optind - 1];

    if (optopt && strncmp(given, "--", 2) != 0)
        return ek_error(EK_EUSAGE, "%s: unknown or incomplete option -%c", argv[0], optopt);
    if (optopt) /* it is known */
        return ek_error(EK_EUSAGE, "%s: %s %s value", argv[0], given,
                        strchr(given, '=') ? "takes no" : "needs a");
    return ek_error(EK_EUSAGE, "%s: unknown option %s; see `%s --help`", argv[0], given, argv[0]);
}

static void usage(FILE *out)
{
    fputs("usage: evenkeel-plan COMMAND [ARGUMENT]...\n\n", out);
    for (size_t i = 0; i < EK_ARRAY_LEN(commands); i++)
        fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fputs("\nevenkeel-plan COMMAND --help says more.\n", out);
}

int main(int argc, char **argv)
{
    enum ek_status st;
    int code = 0;

    ek_stdio_init();
    if (argc < 2) {
        usage(stderr);
        return ek_exit_code(EK_EUSAGE);
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        usage(stdout);
        return ek_exit_code(ek_stdio_flush());
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("evenkeel-plan %s\n", PACKAGE_VERSION);
        return ek_exit_code(ek_stdio_flush());
    }
    for (size_t i = 0; i < EK_ARRAY_LEN(commands); i++) {
        if (strcmp(commands[i]->name, argv[1]) != 0)
            continue;
        signal(SIGINT, on_interrupt);
        signal(SIGTERM, on_interrupt);
        st = commands[i]->run(argc - 1, argv + 1, &code);
        if (st == EK_OK)
            st = ek_stdio_flush();
        if (st == EK_OK)
            return code;
        fprintf(stderr, "evenkeel: %s\n", ek_last_error());
        return ek_exit_code(st);
    }
    fprintf(stderr, "evenkeel: there is no command \"%s\"\n", argv[1]);
    usage(stderr);
    return ek_exit_code(EK_EUSAGE);
}
