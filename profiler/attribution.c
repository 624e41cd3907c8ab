/* SPDX-License-Identifier: Apache-2.0
 *
 * From records of steps to where a module's time goes.
 */
#include "profiler/tracer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_RECORDS ((size_t)1 << 22)
#define MAX_ENTRIES ((size_t)1 << 14)

void trace_clear(struct trace *t)
{
    free(t->records);
    *t = (struct trace){.records = NULL};
}

enum ek_status trace_add(struct trace *t, const char *name, uint64_t begin, uint64_t end)
{
    struct trace_record *r;

    EK_TRY(ek_grow((void **)&t->records, &t->cap, t->n + 1, sizeof(*t->records), MAX_RECORDS));
    r = &t->records[t->n++];
    snprintf(r->name, sizeof(r->name), "%s", name);
    r->begin = begin;
    r->end = end > begin ? end : begin;
    return EK_OK;
}

void attribution_clear(struct attribution *a)
{
    free(a->entries);
    *a = (struct attribution){.entries = NULL};
}

static enum ek_status count(struct attribution *a, int which, const char *name, uint64_t ns)
{
    struct attribution_entry *e = a->entries;
    size_t i = 0;

    while (i < a->n && strcmp(e[i].name, name) != 0)
        i++;
    if (i == a->n) {
        EK_TRY(ek_grow((void **)&a->entries, &a->cap, a->n + 1, sizeof(*e), MAX_ENTRIES));
        a->entries[i] = (struct attribution_entry){.name = ""};
        snprintf(a->entries[i].name, sizeof(e->name), "%s", name);
        a->n++;
    }
    a->entries[i].calls[which]++;
    a->entries[i].ns[which] += ns;
    return EK_OK;
}

static int by_begin(const void *a, const void *b)
{
    const struct trace_record *x = a, *y = b;

    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

enum ek_status attribution_add(struct attribution *a, int which, struct trace *t)
{
    uint64_t covered;

    a->overhead_ns += t->overhead_ns;
    if (t->n == 0)
        return EK_OK;
    qsort(t->records, t->n, sizeof(*t->records), by_begin);
    covered = t->records[0].begin;
    for (size_t i = 0; i < t->n; i++) {
        const struct trace_record *r = &t->records[i];
        uint64_t from = r->begin > covered ? r->begin : covered;

        if (r->begin > covered)
            EK_TRY(count(a, which, EK_STORE_GAPS, r->begin - covered));
        EK_TRY(count(a, which, r->name, r->end > from ? r->end - from : 0));
        covered = r->end > covered ? r->end : covered;
    }
    return EK_OK;
}

static int longest_first(const void *a, const void *b)
{
    const struct ek_store_kernel *x = a, *y = b;

    return x->seconds > y->seconds ? -1 : x->seconds < y->seconds;
}

enum ek_status attribution_rows(const struct attribution *a, bool alone, double per,
                                struct ek_store_kernel **out, size_t *n)
{
    struct ek_store_kernel *rows = ek_calloc(a->n ? a->n : 1, sizeof(*rows));
    size_t k = 0;

    if (!rows)
        return EK_ENOMEM;
    for (size_t i = 0; i < a->n; i++) {
        const struct attribution_entry *e = &a->entries[i];
        double calls = alone ? (double)e->calls[0] : (double)e->calls[1] - (double)e->calls[0];
        double ns = alone ? (double)e->ns[0] : (double)e->ns[1] - (double)e->ns[0];

        bool gaps = strcmp(e->name, EK_STORE_GAPS) == 0;

        if (ns <= 0 || (gaps ? alone : calls <= per / 2)) /* a step's own, not its modules' */
            continue;
        snprintf(rows[k].name, sizeof(rows[k].name), "%s", e->name);
        rows[k].calls = (uint32_t)fmax(1, round(calls / per));
        rows[k++].seconds = ns * 1e-9 / per;
    }
    qsort(rows, k, sizeof(*rows), longest_first);
    *out = rows;
    *n = k;
    return EK_OK;
}

void attribution_name(const char *demangled, char out[EK_STORE_MAX_NAME])
{
    static const char unnamed[] = "(anonymous namespace)::";
    const char *p = demangled;
    size_t n = 0;
    int depth = 0;

    if (strncmp(p, "void ", 5) == 0)
        p += 5;
    while (*p && n + 1 < EK_STORE_MAX_NAME) {
        if (strncmp(p, unnamed, strlen(unnamed)) == 0) {
            p += strlen(unnamed);
            continue;
        }
        if (*p == '(' && depth == 0)
            break;
        depth += (*p == '<') - (*p == '>');
        out[n++] = *p++;
    }
    out[n] = '\0';
}
