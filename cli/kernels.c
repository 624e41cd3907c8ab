/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/kernels.h"

#include <stdlib.h>
#include <string.h>

#define MOST_SHOWN 8 /* kernels of a point; the others are one line */

/* One measured point that was traced. */
typedef enum ek_status (*point_fn)(void *ctx, const struct ek_module *mod,
                                   const struct ek_store_time_row *row,
                                   const struct ek_store_kernel *kernels, size_t n);

static bool seen_before(const struct ek_model *m, size_t module)
{
    for (size_t i = 0; i < module; i++)
        if (strcmp(m->modules[i].signature, m->modules[module].signature) == 0)
            return true;
    return false;
}

static enum ek_status each_point(struct ek_store *s, const struct ek_module *mod, int64_t device,
                                 point_fn fn, void *ctx)
{
    struct ek_store_kernel *kernels;
    struct ek_store_time_row *rows;
    enum ek_status st = EK_OK;
    size_t n, k;

    EK_TRY(ek_store_times(s, device, mod->signature, &rows, &n));
    for (size_t i = 0; i < n && st == EK_OK; i++) {
        if ((st = ek_store_kernels(s, &rows[i].key, &kernels, &k)) != EK_OK)
            break;
        if (k > 0)
            st = fn(ctx, mod, &rows[i], kernels, k);
        free(kernels);
    }
    free(rows);
    return st;
}

static enum ek_status each_module(struct ek_store *s, const struct ek_model *m, int64_t device,
                                  point_fn fn, void *ctx)
{
    for (size_t i = 0; i < m->n_modules; i++)
        if (!seen_before(m, i))
            EK_TRY(each_point(s, &m->modules[i], device, fn, ctx));
    return EK_OK;
}

static double sum_of(const struct ek_store_kernel *k, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += k[i].seconds;
    return sum;
}

static void add_row(struct ek_table *t, const char *name, uint32_t calls, double seconds,
                    double whole)
{
    char text[EK_UNIT_LEN];

    ek_table_row(t, "%s|%u|%s|%.1f %%", name, calls, ek_format_seconds(text, seconds),
                 100 * seconds / whole);
}

static enum ek_status print_point(void *ctx, const struct ek_module *mod,
                                  const struct ek_store_time_row *row,
                                  const struct ek_store_kernel *kernels, size_t n)
{
    struct ek_table *t = ek_table_new("kernel|>calls|>time|>share");
    char traced[EK_UNIT_LEN], measured[EK_UNIT_LEN];
    double whole = sum_of(kernels, n);
    size_t shown = n > MOST_SHOWN + 1 ? MOST_SHOWN : n;

    if (!t)
        return EK_ENOMEM;
    for (size_t i = 0; i < shown; i++)
        add_row(t, kernels[i].name, kernels[i].calls, kernels[i].seconds, whole);
    if (shown < n)
        add_row(t, "others", (uint32_t)(n - shown), sum_of(kernels + shown, n - shown), whole);
    printf("\n%s, %s, %s %u x %u of %u: measured %s, traced %s", (const char *)ctx, mod->name,
           row->key.phase == EK_PHASE_DECODE ? "decode" : "prefill", row->key.batch,
           row->key.tokens, row->key.context, ek_format_seconds(measured, row->time.median_s),
           ek_format_seconds(traced, whole));
    if (mod->kind == EK_MODULE_LAYER)
        printf(" (%+.1f %%)\n", 100 * (whole / row->time.median_s - 1));
    else
        puts(", alone"); /* with what brings its rows and takes them away */
    ek_table_print(t, stdout);
    ek_table_free(t);
    return EK_OK;
}

enum ek_status ek_print_kernels(struct ek_store *s, const struct ek_model *m,
                                const struct ek_store_device *device)
{
    return each_module(s, m, device->id, print_point, (void *)(uintptr_t)device->name);
}

struct listing {
    const char *device;
    json_t *out;
};

static enum ek_status list_point(void *ctx, const struct ek_module *mod,
                                 const struct ek_store_time_row *row,
                                 const struct ek_store_kernel *kernels, size_t n)
{
    struct listing *l = ctx;
    json_t *list = json_array();

    for (size_t i = 0; i < n; i++)
        json_array_append_new(list,
                              json_pack("{ss si sf}", "name", kernels[i].name, "calls",
                                        (int)kernels[i].calls, "seconds", kernels[i].seconds));
    json_array_append_new(
        l->out,
        json_pack("{ss ss ss si si si sf so}", "device", l->device, "module", mod->name, "phase",
                  row->key.phase == EK_PHASE_DECODE ? "decode" : "prefill", "batch",
                  (int)row->key.batch, "tokens", (int)row->key.tokens, "context",
                  (int)row->key.context, "measured_s", row->time.median_s, "kernels", list));
    return EK_OK;
}

enum ek_status ek_kernels_json(struct ek_store *s, const struct ek_model *m,
                               const struct ek_store_device *device, json_t *out)
{
    struct listing l = {.device = device->name, .out = out};

    return each_module(s, m, device->id, list_point, &l);
}
