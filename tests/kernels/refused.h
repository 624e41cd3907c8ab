/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls whose arguments do not fit each other, for any device: each is refused in one line that
 * names both values, before anything is read.
 */
#ifndef EK_TESTS_KERNELS_REFUSED_H
#define EK_TESTS_KERNELS_REFUSED_H

#include "kernels/kernels.h"

extern const int n_refused;
/* One of them, unless the device lacks the operation. */
void check_refused(struct ek_device *dev, int which);

#endif
