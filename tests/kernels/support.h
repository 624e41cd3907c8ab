/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared by the suites of kernels/: devices of each instruction set, random data of every type.
 */
#ifndef EK_TESTS_KERNELS_SUPPORT_H
#define EK_TESTS_KERNELS_SUPPORT_H

#include "kernels/kernels.h"

extern const char *const simd_names[]; /* c, avx2, avx512 */
enum { N_SIMD = 3 };
extern const enum ek_dtype weight_types[];
extern const size_t n_weight_types;

/* A CPU device on the first n_threads cores; NULL where the processor lacks the instruction set. */
struct ek_device *open_cpu(const char *simd, int n_threads);
/* Cores that the process may use. */
int n_cores(void);

float *random_floats(uint64_t *seed, size_t n);
/* A matrix of random finite weights; *values: what they are, [rows][cols] (free). */
struct ek_mat random_mat(struct ek_device *dev, enum ek_dtype type, uint32_t rows, uint32_t cols,
                         uint64_t *seed, float **values);
void fill_random(enum ek_dtype type, void *data, size_t n, uint64_t *seed);
/* Largest |a - b|, NaN when there is one; and over the largest |b|. */
double largest_error(const float *a, const double *b, size_t n);
double relative_error(const float *a, const double *b, size_t n);

#endif
