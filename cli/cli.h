/* SPDX-License-Identifier: Apache-2.0
 *
 * cli: the `evenkeel` command. One file a subcommand, a table of subcommands, a table of options
 * each, from which parsing, --help, man pages and completion are made.
 */
#ifndef EK_CLI_H
#define EK_CLI_H

#include "base/base.h"

struct ek_option {
    const char *name;     /* without "--" */
    const char *argument; /* what its value is called, NULL for a flag */
    const char *help;
};

#define EK_MAX_VALUES 1024 /* a video is many --frame */

/* A parsed command line; strings are borrowed from argv. */
struct ek_args {
    const struct ek_command *command;
    struct {
        const struct ek_option *option;
        const char *value; /* "" for a flag */
    } values[EK_MAX_VALUES];
    size_t n_values;
    const char *operands[EK_MAX_VALUES];
    size_t n_operands;
    char **raw; /* passthrough: everything behind the subcommand, as it came */
    size_t n_raw;
};

struct ek_command {
    const char *name;
    const char *summary;             /* one line */
    const char *operands;            /* "MODEL" or "" */
    size_t n_operands;               /* how many it takes (exactly) */
    const struct ek_option *options; /* ends with a NULL name */
    const char *description;         /* paragraphs for --help and the man page */
    enum ek_status (*run)(const struct ek_args *args);
    bool passthrough; /* arguments go unchanged to evenkeel-plan */
};

#define EK_WHAT_IT_DOES                                                                            \
    "decides which device holds which layer of a model, runs it that way, checks it"

extern const struct ek_command ek_cmd_devices, ek_cmd_model, ek_cmd_profile, ek_cmd_plan,
    ek_cmd_run, ek_cmd_serve, ek_cmd_check, ek_cmd_bench, ek_cmd_export, ek_cmd_report,
    ek_cmd_simulate, ek_cmd_cluster, ek_cmd_hardware;

/* Options that every subcommand has: --help, --json, --quiet. */
extern const struct ek_option ek_common_options[];

/* Parses argv[0..argc) (behind the subcommand). "--name value" and "--name=value", "--" ends
 * options, unique prefixes are accepted. EK_EUSAGE names the nearest option. */
enum ek_status ek_args_parse(const struct ek_command *c, int argc, char **argv,
                             struct ek_args *out);
/* The last value of an option, or NULL when it was not given. */
const char *ek_arg(const struct ek_args *a, const char *name);
bool ek_arg_flag(const struct ek_args *a, const char *name);
/* Numbers with a default and a range. */
enum ek_status ek_arg_u32(const struct ek_args *a, const char *name, uint32_t min, uint32_t max,
                          uint32_t *io);
enum ek_status ek_arg_u64(const struct ek_args *a, const char *name, uint64_t min, uint64_t max,
                          uint64_t *io);
enum ek_status ek_arg_double(const struct ek_args *a, const char *name, double min, double max,
                             double *io);
/* allowed: ek_dtype_is_cache or ek_dtype_is_act. */
enum ek_status ek_arg_dtype(const struct ek_args *a, const char *name,
                            bool (*allowed)(enum ek_dtype), enum ek_dtype *io);
/* The value of an option that must be given. */
enum ek_status ek_arg_required(const struct ek_args *a, const char *name, const char **out);

void ek_help_print(const struct ek_command *c, FILE *out);
/* Roff source of evenkeel-NAME(1), and of evenkeel(1). */
void ek_help_man(const struct ek_command *c, FILE *out);
void ek_help_man_all(const struct ek_command *const *commands, size_t n, FILE *out);
/* A bash script that completes subcommands, options and file names. */
void ek_help_completion(const struct ek_command *const *commands, size_t n, FILE *out);
/* Edit distance, for "did you mean"; whether a word so far from the n letters typed is worth
 * naming. */
size_t ek_distance(const char *a, const char *b);
bool ek_distance_small(size_t distance, size_t n);

/* Set by SIGINT and SIGTERM after ek_catch_interrupts; a second signal ends the process. */
extern atomic_bool ek_interrupted;
void ek_catch_interrupts(void);

#endif
