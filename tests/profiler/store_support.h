/* SPDX-License-Identifier: Apache-2.0
 *
 * Helpers of the suites of the profile database.
 */
#ifndef EK_TESTS_STORE_SUPPORT_H
#define EK_TESTS_STORE_SUPPORT_H

#include "profiler/store.h"

/* A folder of each test's own and the path of a database in it; the fixture of every case. */
extern char dir[], path[64];
void make_dir(void);
void remove_dir(void);

/* Opens the database at path, which must succeed. */
struct ek_store *open_store(enum ek_store_mode mode);
/* Puts a CPU device of this name and driver; returns its id. */
int64_t put_device(struct ek_store *s, const char *name, const char *driver);
/* The key of a time of the signature "layer", in F32, not in a graph. */
struct ek_store_key key_at(int64_t device, enum ek_phase phase, uint32_t batch, uint32_t tokens,
                           uint32_t context);
/* Puts a time of t seconds there. */
void put_time(struct ek_store *s, const struct ek_store_key *k, double t);

#endif
