/* SPDX-License-Identifier: Apache-2.0
 *
 * The command: its subcommands, help, signals, exit codes.
 */
#include "cli/cli.h"
#include "cli/session.h"

#include "config.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct ek_command *const commands[] = {
    &ek_cmd_devices,  &ek_cmd_model,   &ek_cmd_profile,  &ek_cmd_plan,   &ek_cmd_run,
    &ek_cmd_serve,    &ek_cmd_check,   &ek_cmd_bench,    &ek_cmd_export, &ek_cmd_report,
    &ek_cmd_simulate, &ek_cmd_cluster, &ek_cmd_hardware,
};

atomic_bool ek_interrupted;
_Static_assert(ATOMIC_BOOL_LOCK_FREE == 2, "a signal handler sets it, threads read it");

static void on_interrupt(int number)
{
    (void)number;
    if (atomic_exchange(&ek_interrupted, true))
        _exit(130);
}

void ek_catch_interrupts(void)
{
    struct sigaction action = {.sa_handler = on_interrupt};

    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static void print_overview(FILE *out)
{
    fputs("usage: evenkeel COMMAND ...\n\n" EK_WHAT_IT_DOES ".\n\n", out);
    for (size_t i = 0; i < EK_ARRAY_LEN(commands); i++)
        fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fputs("\n  help COMMAND, --help, --version\n", out);
}

static const struct ek_command *find_command(const char *name)
{
    for (size_t i = 0; i < EK_ARRAY_LEN(commands); i++)
        if (strcmp(name, commands[i]->name) == 0)
            return commands[i];
    return NULL;
}

static enum ek_status unknown_command(const char *name)
{
    size_t best = SIZE_MAX;
    const char *nearest = "";

    for (size_t i = 0; i < EK_ARRAY_LEN(commands); i++) {
        size_t d = ek_distance(name, commands[i]->name);
        if (d < best) {
            best = d;
            nearest = commands[i]->name;
        }
    }
    if (ek_distance_small(best, strlen(name)))
        return ek_error(EK_EUSAGE, "unknown command %s, could be: %s", name, nearest);
    return ek_error(EK_EUSAGE, "unknown command %s (evenkeel --help lists them)", name);
}

/* help [--man] [COMMAND], or help --completion */
static enum ek_status help(int argc, char **argv)
{
    bool man = argc > 0 && strcmp(argv[0], "--man") == 0;
    const char *name = argc > man ? argv[man] : NULL;
    const struct ek_command *c = name ? find_command(name) : NULL;

    if (argc > 0 && strcmp(argv[0], "--completion") == 0) {
        ek_help_completion(commands, EK_ARRAY_LEN(commands), stdout);
        return EK_OK;
    }
    if (name == NULL && man)
        ek_help_man_all(commands, EK_ARRAY_LEN(commands), stdout);
    else if (name == NULL)
        print_overview(stdout);
    if (name == NULL)
        return EK_OK;
    if (c == NULL)
        return unknown_command(name);
    if (c->passthrough && !man) {
        char *arguments[] = {(char *)"--help"};
        struct ek_args args = {.command = c, .raw = arguments, .n_raw = 1};
        return c->run(&args);
    }
    (man ? ek_help_man : ek_help_print)(c, stdout);
    return EK_OK;
}

static enum ek_status run_command(const struct ek_command *c, int argc, char **argv)
{
    struct ek_args args = {.command = c, .raw = argv, .n_raw = (size_t)argc};

    if (c->passthrough)
        return c->run(&args);
    EK_TRY(ek_args_parse(c, argc, argv, &args));
    if (ek_arg_flag(&args, "help")) {
        ek_help_print(c, stdout);
        return EK_OK;
    }
    ek_set_quiet(ek_arg_flag(&args, "quiet"));
    return c->run(&args);
}

static enum ek_status dispatch(const char *name, int argc, char **argv)
{
    if (strcmp(name, "--version") == 0) {
        puts("evenkeel " PACKAGE_VERSION);
        return EK_OK;
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0)
        return help(argc, argv);
    if (find_command(name))
        return run_command(find_command(name), argc, argv);
    return unknown_command(name);
}

static int leave(enum ek_status st)
{
    if (ek_session_left_alone()) {
        fflush(NULL);
        _exit(ek_exit_code(st));
    }
    return ek_exit_code(st);
}

int main(int argc, char **argv)
{
    enum ek_status st;

    ek_stdio_init();
    if (argc < 2) {
        print_overview(stderr);
        return ek_exit_code(EK_EUSAGE);
    }
    st = dispatch(argv[1], argc - 2, argv + 2);
    if (st == EK_OK)
        st = ek_stdio_flush();
    if (st != EK_OK)
        fprintf(stderr, "evenkeel: %s\n", ek_last_error());
    return leave(st);
}
