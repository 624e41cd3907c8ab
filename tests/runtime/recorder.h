/* SPDX-License-Identifier: Apache-2.0
 *
 * CPU operations with graphs: what is issued between begin and end is written down instead of done,
 * and a launch does it. Shows on any machine what only a GPU has else.
 */
#ifndef EK_TESTS_RUNTIME_RECORDER_H
#define EK_TESTS_RUNTIME_RECORDER_H

#include "kernels/kernels.h"

/* Gives the CPU device graphs. The table is valid for the life of the program. */
void recorder_attach(struct ek_device *dev);
/* Since the last attach. */
unsigned recorder_captures(void), recorder_launches(void);
/* The next capture ends with this status. */
void recorder_refuse(enum ek_status st);

#endif
