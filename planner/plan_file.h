/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * plan.json as exports and reports read it: checked like any file that is handed in.
 */
#ifndef EK_PLANNER_PLAN_FILE_H
#define EK_PLANNER_PLAN_FILE_H

#include "base/base.h"
#include "profiler/store.h"

#define EK_FILE_MAX_STAGES  256
#define EK_FILE_MAX_DEVICES 64

struct ek_file_stage {
    uint32_t devices[8], n_devices; /* tensor-parallel when more than one */
    const char **modules;           /* borrowed from root */
    size_t n_modules;
    uint32_t first_layer, n_layers; /* decoder layers in it, consecutive */
    bool has_embed, has_head, has_side;
    double prefill_s, decode_s, handoff_s;
    double prefill_mad_s, decode_mad_s; /* of the samples they were predicted from */
    uint32_t samples;                   /* 0: not measured */
    const json_t *times;                /* [prefill, decode] of each module, or NULL; borrowed */
};
struct ek_file_device {
    const char *name, *backend; /* borrowed */
    uint32_t index;
    uint64_t memory;
};
struct ek_plan_file {
    json_t *root; /* owned */
    struct ek_file_device devices[EK_FILE_MAX_DEVICES];
    size_t n_devices;
    struct ek_file_stage stages[EK_FILE_MAX_STAGES];
    size_t n_stages;
    uint32_t n_layers, context, batch, micro_batches;
    const char *model, *cache;
    double return_s; /* between two decode steps of a group; 0 when the plan does not say */
};
enum ek_status ek_plan_file_read(const char *path, struct ek_plan_file **out);
enum ek_status ek_plan_file_from_json(json_t *root, const char *where, struct ek_plan_file **out);
void ek_plan_file_free(struct ek_plan_file *f); /* NULL is fine */

/* Number at the end of "model.layers.7", or -1 when it is no decoder layer. */
int32_t ek_layer_number(const char *module);

/* text: the export, freed by the caller. EK_NO: the target cannot express the plan (named why). */
enum ek_status ek_export(const struct ek_plan_file *f, const char *target, char **text);
extern const char *const ek_export_targets[]; /* NULL at the end */

/* One self-contained HTML page, freed by the caller. runs: what bench measured of this very plan,
 * or none. NULL: no memory. */
char *ek_report_html(const struct ek_plan_file *f, const struct ek_store_run *runs, size_t n_runs);

#endif
