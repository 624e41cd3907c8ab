/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared by the programs that time the CUDA backend's operations: one GPU with BF16 activations,
 * random data, medians, and the ceilings that speeds are held against. Programs of one run: what
 * fails ends them.
 */
#ifndef EK_TESTS_BENCH_H
#define EK_TESTS_BENCH_H

#include "kernels/kernels.h"

extern struct ek_device *dev;
extern const struct ek_ops *ops;
extern double read_rate, matrix_rate; /* bytes/s of a streaming kernel; FLOP/s of 8192^3 */

/* Opens cuda:0, measures and prints the ceilings; false, with a message: there is none. */
bool bench_open(void);
void need(enum ek_status st);
void *take(size_t bytes); /* of random BF16 */
void *take_copy(const void *v, size_t bytes);
void *take_ints(const int32_t *v, size_t n);
float *take_ones(size_t n);                                          /* about 1 */
struct ek_mat matrix(enum ek_dtype t, uint32_t rows, uint32_t cols); /* random bits */
double weight_bytes(enum ek_dtype type, double n);                   /* of n elements */
/* Median seconds of run(arg), as a graph when asked. */
double seconds(void (*run)(void *), void *arg, bool graph, int repeats);

#endif
