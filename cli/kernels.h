/* SPDX-License-Identifier: Apache-2.0 */
#ifndef EK_CLI_KERNELS_H
#define EK_CLI_KERNELS_H

#include "model/model.h"
#include "profiler/store.h"

/* Where the time of a model's modules on a device goes, as far as it was traced: a table a measured
 * point. */
enum ek_status ek_print_kernels(struct ek_store *s, const struct ek_model *m,
                                const struct ek_store_device *device);
/* The same as an array of points, each with its kernels, appended to out. */
enum ek_status ek_kernels_json(struct ek_store *s, const struct ek_model *m,
                               const struct ek_store_device *device, json_t *out);

#endif
