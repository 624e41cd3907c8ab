/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ROWS    100000
#define MAX_COLUMNS 32

struct ek_table {
    char **rows; /* rows[0]: the headers; cells separated by '|' */
    size_t n, cap;
    bool right[MAX_COLUMNS];
    size_t width[MAX_COLUMNS];
};

/* Columns on a terminal: code points, not bytes. */
static size_t text_width(const char *s, size_t n)
{
    size_t w = 0;

    for (size_t i = 0; i < n; i++)
        w += ((unsigned char)s[i] & 0xc0) != 0x80;
    return w;
}

static void add_row(struct ek_table *t, char *row)
{
    const char *p = row;

    if (row == NULL ||
        ek_grow((void **)&t->rows, &t->cap, t->n + 1, sizeof(*t->rows), MAX_ROWS) != EK_OK) {
        free(row);
        return;
    }
    t->rows[t->n++] = row;
    for (size_t c = 0; c < MAX_COLUMNS; c++) {
        size_t n = strcspn(p, "|");
        size_t w = text_width(p, n);
        if (w > t->width[c])
            t->width[c] = w;
        if (p[n] == '\0')
            break;
        p += n + 1;
    }
}

struct ek_table *ek_table_new(const char *headers)
{
    struct ek_table *t = ek_calloc(1, sizeof(*t));
    char *row = ek_calloc(strlen(headers) + 1, 1);
    size_t n = 0, c = 0;

    if (t == NULL || row == NULL) {
        free(t);
        free(row);
        return NULL;
    }
    for (const char *p = headers; *p; p++) {
        if (*p == '>' && (p == headers || p[-1] == '|') && c < MAX_COLUMNS) {
            t->right[c] = true;
            continue;
        }
        c += *p == '|';
        row[n++] = *p;
    }
    add_row(t, row);
    return t;
}

void ek_table_row(struct ek_table *t, const char *fmt, ...)
{
    va_list ap;
    char *row;
    int n;

    if (t == NULL)
        return;
    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0 || (row = ek_calloc((size_t)n + 1, 1)) == NULL)
        return;
    va_start(ap, fmt);
    vsnprintf(row, (size_t)n + 1, fmt, ap);
    va_end(ap);
    ek_plain_text(row);
    add_row(t, row);
}

static void print_row(const struct ek_table *t, const char *p, FILE *out)
{
    for (size_t c = 0; c < MAX_COLUMNS; c++) {
        size_t n = strcspn(p, "|");
        int pad = (int)(t->width[c] - text_width(p, n));
        bool last = p[n] == '\0';
        if (t->right[c])
            fprintf(out, "%*s%.*s", pad, "", (int)n, p);
        else
            fprintf(out, "%.*s%*s", (int)n, p, last ? 0 : pad, "");
        fputs(last ? "\n" : "  ", out);
        if (last)
            break;
        p += n + 1;
    }
}

void ek_table_print(const struct ek_table *t, FILE *out)
{
    for (size_t r = 0; t && r < t->n; r++) {
        print_row(t, t->rows[r], out);
        if (r > 0)
            continue;
        for (size_t c = 0; c < MAX_COLUMNS && t->width[c]; c++) {
            for (size_t i = 0; i < t->width[c]; i++)
                fputc('-', out);
            fputs(c + 1 < MAX_COLUMNS && t->width[c + 1] ? "  " : "\n", out);
        }
    }
}

void ek_table_free(struct ek_table *t)
{
    for (size_t r = 0; t && r < t->n; r++)
        free(t->rows[r]);
    if (t)
        free(t->rows);
    free(t);
}
