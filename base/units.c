/* SPDX-License-Identifier: Apache-2.0
 *
 * Sizes, times and rates as people write and read them.
 */
#include "base/base.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MAX_LIST_ITEMS 1024

static const struct {
    const char *name;
    double bytes;
} size_units[] = {
    {"b", 1},
    {"k", 1e3},
    {"kb", 1e3},
    {"m", 1e6},
    {"mb", 1e6},
    {"g", 1e9},
    {"gb", 1e9},
    {"t", 1e12},
    {"tb", 1e12},
    {"ki", 1024.0},
    {"kib", 1024.0},
    {"mi", 1048576.0},
    {"mib", 1048576.0},
    {"gi", 1073741824.0},
    {"gib", 1073741824.0},
    {"ti", 1099511627776.0},
    {"tib", 1099511627776.0},
};

static const char *skip_space(const char *p)
{
    while (isspace((unsigned char)*p))
        p++;
    return p;
}

/* One number with an optional unit at *p; advances *p behind it. whole is for messages. */
static enum ek_status parse_amount(const char *whole, const char **p, uint64_t *bytes,
                                   double *fraction)
{
    char unit[8] = "";
    char *end;
    double value, factor = 0;
    size_t n = 0;
    const char *q;

    if (!isdigit((unsigned char)**p) && **p != '.')
        return ek_error(EK_EUSAGE, "size \"%s\": expected a number at position %zu", whole,
                        (size_t)(*p - whole) + 1);
    value = strtod(*p, &end);
    for (q = skip_space(end); isalpha((unsigned char)q[n]) && n + 1 < sizeof(unit); n++)
        unit[n] = q[n];
    if (!isfinite(value) || isalnum((unsigned char)q[n]))
        return ek_error(EK_EUSAGE, "size \"%s\": bad number or unit at position %zu", whole,
                        (size_t)(q - whole) + 1);
    if (n == 0 && *q == '%') {
        *p = q + 1;
        *fraction = value <= 100 ? value / 100 : 0;
        *bytes = 0;
    } else if (n == 0) {
        *p = end;
        *fraction = value > 0 && value <= 1 ? value : 0;
        *bytes = *fraction > 0 ? 0 : (uint64_t)value;
    } else {
        for (size_t i = 0; i < EK_ARRAY_LEN(size_units); i++)
            if (strcasecmp(unit, size_units[i].name) == 0)
                factor = size_units[i].bytes;
        if (factor == 0)
            return ek_error(EK_EUSAGE, "size \"%s\": unknown unit \"%s\" at position %zu", whole,
                            unit, (size_t)(q - whole) + 1);
        *p = q + n;
        *fraction = 0;
        *bytes = value * factor < 1e18 ? (uint64_t)(value * factor) : 0;
    }
    if (*fraction == 0 && (*bytes == 0 || value * (factor ? factor : 1) >= 1e18))
        return ek_error(EK_EUSAGE, "size \"%s\": must be over 0 and under 1e18 bytes or 100 %%",
                        whole);
    return EK_OK;
}

enum ek_status ek_parse_size(const char *text, uint64_t total, uint64_t *out)
{
    const char *p = skip_space(text);
    uint64_t bytes;
    double fraction;

    EK_TRY(parse_amount(text, &p, &bytes, &fraction));
    p = skip_space(p);
    if (*p)
        return ek_error(EK_EUSAGE, "size \"%s\": unexpected \"%c\" at position %zu", text, *p,
                        (size_t)(p - text) + 1);
    if (fraction > 0 && total == 0)
        return ek_error(EK_EUSAGE, "size \"%s\": a unit is needed (B, MB, GiB, ...)", text);
    *out = fraction > 0 ? (uint64_t)(fraction * (double)total) : bytes;
    return EK_OK;
}

static enum ek_status parse_item_name(const char *whole, const char **p, char *name, size_t cap)
{
    size_t n = strcspn(*p, "=, \t\n\"'");

    name[0] = '\0';
    if ((*p)[n] != '=')
        return EK_OK;
    if (n == 0 || n >= cap)
        return ek_error(EK_EUSAGE, "size list \"%s\": bad name at position %zu", whole,
                        (size_t)(*p - whole) + 1);
    memcpy(name, *p, n);
    name[n] = '\0';
    *p += n + 1;
    return EK_OK;
}

enum ek_status ek_parse_size_list(const char *text, struct ek_size_item **out, size_t *n)
{
    struct ek_size_item *items = NULL;
    size_t count = 0, cap = 0;
    const char *p = text;
    enum ek_status st;

    for (;;) {
        p += strspn(p, " \t\n,;\"'");
        if (*p == '\0')
            break;
        EK_GOTO(ek_grow((void **)&items, &cap, count + 1, sizeof(*items), MAX_LIST_ITEMS), st,
                fail);
        EK_GOTO(parse_item_name(text, &p, items[count].name, sizeof(items[count].name)), st, fail);
        EK_GOTO(parse_amount(text, &p, &items[count].bytes, &items[count].fraction), st, fail);
        count++;
        if (*p && strchr(" \t\n,;\"'", *p) == NULL) {
            st = ek_error(EK_EUSAGE, "size list \"%s\": unexpected \"%c\" at position %zu", text,
                          *p, (size_t)(p - text) + 1);
            goto fail;
        }
    }
    if (count == 0) {
        st = ek_error(EK_EUSAGE, "size list \"%s\" is empty", text);
        goto fail;
    }
    *out = items;
    *n = count;
    return EK_OK;

fail:
    free(items);
    return st;
}

enum ek_status ek_parse_u64(const char *text, const char *what, uint64_t min, uint64_t max,
                            uint64_t *out)
{
    char *end;
    unsigned long long v;

    errno = 0;
    v = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end || errno || v < min || v > max)
        return ek_error(EK_EUSAGE, "%s must be a whole number from %llu to %llu, not \"%s\"", what,
                        (unsigned long long)min, (unsigned long long)max, text);
    *out = v;
    return EK_OK;
}

enum ek_status ek_parse_double(const char *text, const char *what, double min, double max,
                               double *out)
{
    char *end;
    double v = strtod(text, &end);

    if (*text == '\0' || *end || !isfinite(v) || v < min || v > max)
        return ek_error(EK_EUSAGE, "%s must be a number from %g to %g, not \"%s\"", what, min, max,
                        text);
    *out = v;
    return EK_OK;
}

const char *ek_format_bytes(char buf[EK_UNIT_LEN], uint64_t bytes)
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    size_t i = 0;

    while (v >= 1024 && i + 1 < EK_ARRAY_LEN(names)) {
        v /= 1024;
        i++;
    }
    snprintf(buf, EK_UNIT_LEN, i == 0 ? "%.0f %s" : "%.2f %s", v, names[i]);
    return buf;
}

const char *ek_format_rate(char buf[EK_UNIT_LEN], double bytes_per_s)
{
    static const char *const names[] = {"B/s", "kB/s", "MB/s", "GB/s", "TB/s"};
    size_t i = 0;

    while (bytes_per_s >= 1000 && i + 1 < EK_ARRAY_LEN(names)) {
        bytes_per_s /= 1000;
        i++;
    }
    snprintf(buf, EK_UNIT_LEN, "%.2f %s", bytes_per_s, names[i]);
    return buf;
}

const char *ek_format_seconds(char buf[EK_UNIT_LEN], double s)
{
    double a = fabs(s);

    if (a >= 120)
        snprintf(buf, EK_UNIT_LEN, "%.1f min", s / 60);
    else if (a >= 1)
        snprintf(buf, EK_UNIT_LEN, "%.3f s", s);
    else if (a >= 1e-3)
        snprintf(buf, EK_UNIT_LEN, "%.3f ms", s * 1e3);
    else
        snprintf(buf, EK_UNIT_LEN, "%.2f us", s * 1e6);
    return buf;
}
