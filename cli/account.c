/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory of GPUs by three accounts: what they agree on, and what each remainder is.
 */
#include "cli/account.h"

#include <stdlib.h>

enum ek_status ek_account_of(const struct ek_account *a, struct ek_engine *e,
                             struct ek_account_row **rows, size_t *n)
{
    size_t n_devices = ek_engine_n_devices(e);
    uint64_t *tags = ek_calloc(n_devices, sizeof(*tags));
    struct ek_usage usage[EK_N_TAGS];
    enum ek_status st;

    if (!tags)
        return EK_ENOMEM;
    for (size_t i = 0; i < n_devices; i++) {
        ek_engine_usage(e, i, usage);
        tags[i] = ek_usage_total(usage, false);
    }
    st = ek_account_read(a, ek_engine_plan(e)->devices, tags, n_devices, rows, n);
    free(tags);
    return st;
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

void ek_account_print(const struct ek_account_row *rows, size_t n)
{
    struct ek_table *t = ek_table_new("GPU|>our tags|>granules, libraries|>driver's allocations|"
                                      ">context, code|>gone by NVML");
    char b[5][EK_UNIT_LEN];

    for (size_t i = 0; t && i < n; i++) {
        const struct ek_account_row *r = &rows[i];
        ek_table_row(t, "%s|%s|%s|%s|%s|%s", r->gpu, ek_format_bytes(b[0], r->tags),
                     ek_format_bytes(b[1], less(r->traced, r->tags)),
                     ek_format_bytes(b[2], r->traced),
                     ek_format_bytes(b[3], less(r->gone, r->traced)),
                     ek_format_bytes(b[4], r->gone));
    }
    puts("");
    ek_table_print(t, stdout);
    ek_table_free(t);
}

json_t *ek_account_json(const struct ek_account_row *rows, size_t n)
{
    json_t *list = json_array();

    for (size_t i = 0; list && i < n; i++)
        json_array_append_new(list, json_pack("{ss sI sI sI}", "gpu", rows[i].gpu, "tags",
                                              (json_int_t)rows[i].tags, "traced",
                                              (json_int_t)rows[i].traced, "gone",
                                              (json_int_t)rows[i].gone));
    return list;
}
