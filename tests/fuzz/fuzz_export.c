/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * plan.json as exports and reports read it: every export and the page of what is accepted.
 */
#include "planner/plan_file.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct ek_plan_file *f = NULL;
    json_t *root;

    if (ek_json_parse((const char *)data, n, "fuzz", &root) != EK_OK)
        return 0;
    if (ek_plan_file_from_json(root, "fuzz", &f) == EK_OK) {
        for (size_t i = 0; ek_export_targets[i]; i++) {
            char *text = NULL;
            if (ek_export(f, ek_export_targets[i], &text) == EK_OK)
                free(text);
        }
        free(ek_report_html(f, NULL, 0));
    }
    ek_plan_file_free(f);
    json_decref(root);
    return 0;
}
