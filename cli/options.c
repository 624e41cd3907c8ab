/* SPDX-License-Identifier: Apache-2.0
 *
 * Options of a command line, from the table of its command.
 */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

const struct ek_option ek_common_options[] = {
    {"json", NULL, "results as one JSON document on stdout"},
    {"quiet", NULL, "no notes and no progress on stderr"},
    {"help", NULL, "this text"},
    {NULL, NULL, NULL},
};

size_t ek_distance(const char *a, const char *b)
{
    size_t row[64], n = strlen(b), previous, above;

    if (strlen(a) >= EK_ARRAY_LEN(row) || n >= EK_ARRAY_LEN(row))
        return SIZE_MAX;
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 1; a[i - 1]; i++) {
        previous = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            above = row[j];
            row[j] = previous + (a[i - 1] != b[j - 1]);
            if (above + 1 < row[j])
                row[j] = above + 1;
            if (row[j - 1] + 1 < row[j])
                row[j] = row[j - 1] + 1;
            previous = above;
        }
    }
    return row[n];
}

/* Half of what was typed may be wrong, three letters at most. */
bool ek_distance_small(size_t distance, size_t n)
{
    return distance <= 3 && 2 * distance <= n;
}

struct search {
    const char *text;
    size_t n;
    const struct ek_option *exact, *prefix, *nearest;
    size_t n_prefix, distance;
};

static void search_table(struct search *s, const struct ek_option *table)
{
    char name[64];

    snprintf(name, sizeof(name), "%.*s", (int)s->n, s->text);
    for (const struct ek_option *o = table; o && o->name; o++) {
        size_t d = ek_distance(name, o->name);
        if (strcmp(name, o->name) == 0)
            s->exact = o;
        if (strncmp(name, o->name, s->n) == 0) {
            s->prefix = o;
            s->n_prefix++;
        }
        if (d < s->distance) {
            s->distance = d;
            s->nearest = o;
        }
    }
}

static enum ek_status find_option(const struct ek_command *c, const char *text, size_t n,
                                  const struct ek_option **out)
{
    struct search s = {.text = text, .n = n, .distance = SIZE_MAX};

    search_table(&s, c->options);
    search_table(&s, ek_common_options);
    if (s.exact || s.n_prefix == 1) {
        *out = s.exact ? s.exact : s.prefix;
        return EK_OK;
    }
    if (s.n_prefix > 1)
        return ek_error(EK_EUSAGE, "%s: option --%.*s is ambiguous", c->name, (int)n, text);
    if (s.nearest && ek_distance_small(s.distance, n))
        return ek_error(EK_EUSAGE, "%s: unknown option --%.*s (did you mean --%s?)", c->name,
                        (int)n, text, s.nearest->name);
    return ek_error(EK_EUSAGE, "%s: unknown option --%.*s", c->name, (int)n, text);
}

/* Takes the option at argv[*i]; advances *i over its value. */
static enum ek_status take_option(const struct ek_command *c, int argc, char **argv, int *i,
                                  struct ek_args *out)
{
    const char *text = argv[*i] + 2, *equals = strchr(text, '=');
    size_t n = equals ? (size_t)(equals - text) : strlen(text);
    const struct ek_option *o = NULL;
    const char *value = "";

    EK_TRY(find_option(c, text, n, &o));
    if (o->argument == NULL && equals)
        return ek_error(EK_EUSAGE, "%s: --%s takes no value", c->name, o->name);
    if (o->argument && equals) {
        value = equals + 1;
    } else if (o->argument) {
        if (*i + 1 >= argc)
            return ek_error(EK_EUSAGE, "%s: --%s needs %s", c->name, o->name, o->argument);
        value = argv[++*i];
    }
    if (out->n_values == EK_MAX_VALUES)
        return ek_error(EK_EUSAGE, "%s: more than %d options", c->name, EK_MAX_VALUES);
    out->values[out->n_values].option = o;
    out->values[out->n_values++].value = value;
    return EK_OK;
}

enum ek_status ek_args_parse(const struct ek_command *c, int argc, char **argv, struct ek_args *out)
{
    bool only_operands = false;

    memset(out, 0, sizeof(*out));
    out->command = c;
    for (int i = 0; i < argc; i++) {
        if (!only_operands && strcmp(argv[i], "--") == 0) {
            only_operands = true;
        } else if (!only_operands && strcmp(argv[i], "-h") == 0) {
            out->values[0].option = &ek_common_options[2];
            out->values[0].value = "";
            out->n_values = 1;
            return EK_OK;
        } else if (!only_operands && strncmp(argv[i], "--", 2) == 0) {
            EK_TRY(take_option(c, argc, argv, &i, out));
        } else if (!only_operands && argv[i][0] == '-' && argv[i][1]) {
            return ek_error(EK_EUSAGE, "%s: unknown option %s", c->name, argv[i]);
        } else if (out->n_operands < EK_MAX_VALUES) {
            out->operands[out->n_operands++] = argv[i];
        }
    }
    if (ek_arg_flag(out, "help"))
        return EK_OK;
    if (out->n_operands != c->n_operands)
        return ek_error(EK_EUSAGE, "%s takes %zu operand%s (%s), got %zu", c->name, c->n_operands,
                        c->n_operands == 1 ? "" : "s", c->operands[0] ? c->operands : "none",
                        out->n_operands);
    return EK_OK;
}

const char *ek_arg(const struct ek_args *a, const char *name)
{
    for (size_t i = a->n_values; i-- > 0;)
        if (strcmp(a->values[i].option->name, name) == 0)
            return a->values[i].value;
    return NULL;
}

bool ek_arg_flag(const struct ek_args *a, const char *name)
{
    return ek_arg(a, name) != NULL;
}

enum ek_status ek_arg_required(const struct ek_args *a, const char *name, const char **out)
{
    const char *value = ek_arg(a, name);

    if (value == NULL || *value == '\0')
        return ek_error(EK_EUSAGE, "%s: --%s is needed", a->command->name, name);
    *out = value;
    return EK_OK;
}

enum ek_status ek_arg_u64(const struct ek_args *a, const char *name, uint64_t min, uint64_t max,
                          uint64_t *io)
{
    const char *text = ek_arg(a, name);
    char what[80];

    snprintf(what, sizeof(what), "--%s", name);
    return text ? ek_parse_u64(text, what, min, max, io) : EK_OK;
}

enum ek_status ek_arg_u32(const struct ek_args *a, const char *name, uint32_t min, uint32_t max,
                          uint32_t *io)
{
    uint64_t v = *io;

    EK_TRY(ek_arg_u64(a, name, min, max, &v));
    *io = (uint32_t)v;
    return EK_OK;
}

enum ek_status ek_arg_double(const struct ek_args *a, const char *name, double min, double max,
                             double *io)
{
    const char *text = ek_arg(a, name);
    char what[80];

    snprintf(what, sizeof(what), "--%s", name);
    return text ? ek_parse_double(text, what, min, max, io) : EK_OK;
}

enum ek_status ek_arg_dtype(const struct ek_args *a, const char *name,
                            bool (*allowed)(enum ek_dtype), enum ek_dtype *io)
{
    const char *text = ek_arg(a, name);

    if (text && (!ek_dtype_from_name(text, io) || !allowed(*io)))
        return ek_error(EK_EUSAGE, "--%s \"%s\" must be F32, F16%s", name, text,
                        allowed(EK_F8_E4M3) ? ", BF16 or fp8" : " or BF16");
    return EK_OK;
}
