/* SPDX-License-Identifier: Apache-2.0
 *
 * --help and man pages, both from the tables of the subcommands. */
#include "cli/cli.h"

#include <string.h>

static void print_options(const struct ek_option *table, FILE *out)
{
    char left[64];

    for (const struct ek_option *o = table; o && o->name; o++) {
        snprintf(left, sizeof(left), "--%s%s%s", o->name, o->argument ? " " : "",
                 o->argument ? o->argument : "");
        fprintf(out, "  %-26s %s\n", left, o->help);
    }
}

void ek_help_print(const struct ek_command *c, FILE *out)
{
    fprintf(out, "usage: evenkeel %s %s%s[options]\n\n%s.\n", c->name, c->operands,
            c->operands[0] ? " " : "", c->summary);
    if (c->description)
        fprintf(out, "\n%s\n", c->description);
    fputs("\noptions:\n", out);
    print_options(c->options, out);
    print_options(ek_common_options, out);
    fputs("\nexit codes: 0 yes, 1 no, 2 usage, 3 environment, 4 bad file, 5 unproven, 6 device "
          "failed, "
          "130 interrupted\n",
          out);
}

static void roff(const char *text, FILE *out)
{
    bool line_start = true;

    for (; *text; text++) {
        if (line_start && (*text == '.' || *text == '\''))
            fputs("\\&", out);
        if (*text == '-')
            fputs("\\-", out);
        else if (*text == '\\')
            fputs("\\e", out);
        else
            fputc(*text, out);
        line_start = *text == '\n';
    }
}

static void roff_options(const struct ek_option *table, FILE *out)
{
    for (const struct ek_option *o = table; o && o->name; o++) {
        fputs(".TP\n\\fB\\-\\-", out);
        roff(o->name, out);
        fprintf(out, "\\fR%s\\fI%s\\fR\n", o->argument ? " " : "", o->argument ? o->argument : "");
        roff(o->help, out);
        fputc('\n', out);
    }
}

static void completion_options(const struct ek_option *table, FILE *out)
{
    for (const struct ek_option *o = table; o->name; o++)
        fprintf(out, "--%s ", o->name);
}

void ek_help_completion(const struct ek_command *const *commands, size_t n, FILE *out)
{
    fputs("# bash completion for evenkeel, made by: evenkeel help --completion\n"
          "_evenkeel() {\n"
          "    local word=${COMP_WORDS[COMP_CWORD]} options= commands='help",
          out);
    for (size_t i = 0; i < n; i++)
        fprintf(out, " %s", commands[i]->name);
    fputs("'\n    case ${COMP_WORDS[1]} in\n", out);
    for (size_t i = 0; i < n; i++) {
        fprintf(out, "    %s) options=", commands[i]->name);
        if (commands[i]->passthrough) {
            fputs("$(evenkeel ${COMP_WORDS[1]} --help 2>/dev/null | grep -oE -- '--[a-z-]+' | sort "
                  "-u)",
                  out);
        } else {
            fputc('\'', out);
            completion_options(commands[i]->options, out);
            completion_options(ek_common_options, out);
            fputc('\'', out);
        }
        fputs(" ;;\n", out);
    }
    fputs("    help) options=$commands ;;\n"
          "    esac\n"
          "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
          "        COMPREPLY=($(compgen -W \"$commands --help --version\" -- \"$word\"))\n"
          "    elif [[ $word == -* || ${COMP_WORDS[1]} == help ]]; then\n"
          "        COMPREPLY=($(compgen -W \"$options\" -- \"$word\"))\n"
          "    else\n"
          "        COMPREPLY=($(compgen -f -- \"$word\"))\n"
          "    fi\n"
          "}\n"
          "complete -o filenames -F _evenkeel evenkeel\n",
          out);
}

void ek_help_man(const struct ek_command *c, FILE *out)
{
    fprintf(out,
            ".TH EVENKEEL\\-%s 1 \"\" \"evenkeel\" \"User Commands\"\n.SH NAME\n"
            "evenkeel\\-%s \\- ",
            c->name, c->name);
    roff(c->summary, out);
    fprintf(out, "\n.SH SYNOPSIS\n.B evenkeel %s\n", c->name);
    if (c->operands[0])
        fprintf(out, ".I %s\n", c->operands);
    fputs("[options]\n.SH DESCRIPTION\n", out);
    roff(c->description ? c->description : c->summary, out);
    if (!c->passthrough) {
        fputs("\n.SH OPTIONS\n", out);
        roff_options(c->options, out);
        roff_options(ek_common_options, out);
    } else {
        fputc('\n', out);
    }
    fputs(".SH EXIT STATUS\n0 yes; 1 no (infeasible, logits differ); 2 usage; 3 the environment; "
          "4 a malformed or unsupported file; 5 stopped before the proof; 6 a device failed; "
          "130 interrupted.\n",
          out);
}
