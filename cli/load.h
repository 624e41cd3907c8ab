/* SPDX-License-Identifier: Apache-2.0 */
#ifndef EK_CLI_LOAD_H
#define EK_CLI_LOAD_H

#include "cli/cli.h"
#include "runtime/runtime.h"

/* `bench --load`. */
enum ek_status ek_bench_load(const struct ek_args *args);

#endif
