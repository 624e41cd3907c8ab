/* SPDX-License-Identifier: Apache-2.0
 *
 * --help and man pages, both from the tables of the subcommands. */
#include "cli/cli.h"

#include <ctype.h>
#include <string.h>

enum { LEFT = 29, WIDTH = 80 }; /* columns before an option's text, and of a line */

/* Words of a paragraph from column `left` on, where the first of them goes. */
static void print_wrapped(const char *text, size_t left, FILE *out)
{
    size_t column = left;

    while (*text) {
        size_t n = strcspn(text, " \n");
        if (column > left && column + 1 + n > WIDTH) {
            fprintf(out, "\n%*s", (int)left, "");
            column = left;
        } else if (column > left) {
            fputc(' ', out);
            column++;
        }
        fwrite(text, 1, n, out);
        column += n;
        text += n + (text[n] != '\0');
    }
    fputc('\n', out);
}

static void print_options(const struct ek_option *table, FILE *out)
{
    char left[64];

    for (const struct ek_option *o = table; o && o->name; o++) {
        snprintf(left, sizeof(left), "--%s%s%s", o->name, o->argument ? " " : "",
                 o->argument ? o->argument : "");
        fprintf(out, "  %-*s ", LEFT - 3, left);
        print_wrapped(o->help, LEFT, out);
    }
}

void ek_help_print(const struct ek_command *c, FILE *out)
{
    fprintf(out, "usage: evenkeel %s %s%s[options]\n\n%s.\n", c->name, c->operands,
            c->operands[0] ? " " : "", c->summary);
    if (c->description) {
        fputc('\n', out);
        print_wrapped(c->description, 0, out);
    }
    fputs("\noptions:\n", out);
    print_options(c->options, out);
    print_options(ek_common_options, out);
    fputs("\nexit codes: 0 yes, 1 no, 2 usage, 3 environment, 4 bad file, 5 unproven,\n"
          "            6 device failed, 130 interrupted\n",
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

/* .TH and the name; the title in capitals, as manuals have it. */
static void man_begin(const char *name, const char *summary, FILE *out)
{
    fputs(".TH EVENKEEL", out);
    for (const char *c = name; *c; c++)
        fputc(toupper((unsigned char)*c), out);
    fprintf(out, " 1 \"\" \"evenkeel\" \"User Commands\"\n.SH NAME\nevenkeel%s \\- ", name);
    roff(summary, out);
}

static void man_end(FILE *out)
{
    fputs(".SH EXIT STATUS\n0 yes; 1 no (infeasible, logits differ); 2 usage; 3 the environment; "
          "4 a malformed or unsupported file; 5 stopped before the proof; 6 a device failed; "
          "130 interrupted.\n",
          out);
}

void ek_help_man(const struct ek_command *c, FILE *out)
{
    char name[64];

    snprintf(name, sizeof(name), "-%s", c->name);
    man_begin(name, c->summary, out);
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
    man_end(out);
}

void ek_help_man_all(const struct ek_command *const *commands, size_t n, FILE *out)
{
    man_begin("", EK_WHAT_IT_DOES, out);
    fputs("\n.SH SYNOPSIS\n.B evenkeel\n.I COMMAND\n[options]\n.SH COMMANDS\n", out);
    for (size_t i = 0; i < n; i++) {
        fprintf(out, ".TP\n.BR evenkeel\\-%s (1)\n", commands[i]->name);
        roff(commands[i]->summary, out);
        fputc('\n', out);
    }
    man_end(out);
}
