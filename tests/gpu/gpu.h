/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared by the GPU suites: a GPU and the CPU backend side by side, with the same random data.
 */
#ifndef EK_TESTS_GPU_H
#define EK_TESTS_GPU_H

#include <check.h>

#include "kernels/kernels.h"

struct pair {
    struct ek_device *gpu, *cpu;
    enum ek_dtype act;
};
/* NULL message and both devices, or why there is no pair. */
const char *pair_open(struct pair *p, enum ek_dtype act);
void pair_close(struct pair *p);
/* What all tests so far have read from GPUs, as one number: it is the same from run to run. */
void pair_report(void);
/* Is there a pair? Says on standard output why not. */
bool pair_present(void);

/* A case without a time limit; CK_RUN_CASE=NAME runs it alone. */
TCase *add_case(Suite *s, const char *name);

/* The same numbers in both memories, each in its device's type. */
struct both {
    void *gpu, *cpu;
    size_t n;
};
struct both both_new(struct pair *p, size_t n); /* zeros */
struct both both_random(struct pair *p, size_t n, float scale, uint64_t *seed);
void both_free(struct pair *p, struct both *b);
/* Of a struct both, where `gpu` is a variable. */
#define SIDE(b) (gpu ? (b).gpu : (b).cpu)
/* Vectors of F32 and int32, whatever the activations are. */
struct both both_floats(struct pair *p, size_t n, float base, float scale, uint64_t *seed);
struct both both_ints(struct pair *p, const int32_t *v, size_t n);
/* What a rotation of dim dimensions takes: powers of 10 000. */
struct both frequencies(struct pair *p, uint32_t dim);

/* A batch over a paged cache whose blocks lie in a random order: of every sequence n_new tokens
 * behind past others. */
struct paged {
    uint32_t page, n_seqs, n, max_q, max_kv, max_blocks;
    struct both positions, slots, starts, lens, table; /* positions: 3 rows, for M-RoPE */
};
struct paged paged_new(struct pair *p, uint32_t page, uint32_t n_seqs, const uint32_t *past,
                       const uint32_t *n_new, uint64_t *seed);
void paged_free(struct pair *p, struct paged *b);
size_t paged_slots(const struct paged *b); /* of the whole cache */
struct ek_batch paged_batch(const struct paged *b, bool gpu);

/* Random weights, equal to the bit. */
void mats_random(struct pair *p, enum ek_dtype t, uint32_t rows, uint32_t cols, float scale,
                 uint64_t *seed, struct ek_mat *gpu, struct ek_mat *cpu);
void mats_free(struct pair *p, struct ek_mat *gpu, struct ek_mat *cpu);

/* Largest |gpu - cpu| over largest |cpu|; infinite when either is not finite. */
double both_error(struct pair *p, const struct both *b);
/* The same for F32 output in both. */
double float_error(struct pair *p, const struct both *b);
/* What the type of activations allows for one operation. */
double tolerance(enum ek_dtype act);
size_t element(enum ek_dtype t);
/* n numbers of type t as floats, and back. */
void widen(const void *x, enum ek_dtype t, float *out, size_t n);
void narrow(const float *x, enum ek_dtype t, void *out, size_t n);

#endif
