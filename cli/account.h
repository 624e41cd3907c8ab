/* SPDX-License-Identifier: Apache-2.0 */
#ifndef EK_CLI_ACCOUNT_H
#define EK_CLI_ACCOUNT_H

#include "profiler/profiler.h"

/* Rows of `bench --account`, of an engine that has run: a table, or JSON (an array; NULL: failed).
 */
enum ek_status ek_account_of(const struct ek_account *a, struct ek_engine *e,
                             struct ek_account_row **rows, size_t *n);
void ek_account_print(const struct ek_account_row *rows, size_t n);
json_t *ek_account_json(const struct ek_account_row *rows, size_t n);

#endif
