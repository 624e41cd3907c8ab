/* SPDX-License-Identifier: Apache-2.0
 *
 * The walk over the weights of a stage: counts their bytes (dry), or makes matrices and vectors and
 * lists what is to be loaded into them.
 */
#ifndef EK_RUNTIME_WEIGHTS_H
#define EK_RUNTIME_WEIGHTS_H

#include "runtime/stage.h"

/* One tensor on its way to the device: rows of a matrix from row0, or F32 at vec; or at vec the
 * tensor's order, where order is set. */
struct load {
    const struct ek_tensor *t;
    struct ek_mat *mat;
    uint32_t row0;
    uint32_t cols; /* of the checkpoint where the matrix has more, which are zeros; 0: as many */
    float *vec;
    bool order;
    uint32_t interleaved; /* k > 1: column c*k + i of the checkpoint becomes i*(cols/k) + c */
};

struct walk {
    struct ek_stage *s;
    bool dry;
    size_t vec_at; /* bytes of s->vectors given out */
    uint64_t mat_bytes;
    struct load *loads;
    size_t n_loads, cap_loads;
};

enum ek_status walk_load(struct walk *w, const struct ek_tensor *t, struct ek_mat *mat,
                         uint32_t row0, float *vec);
/* Room for n floats; NULL when dry. */
float *walk_vector(struct walk *w, size_t n);
enum ek_status walk_mat(struct walk *w, enum ek_dtype dtype, uint32_t rows, uint32_t cols,
                        struct ek_mat *out);

/* ---- load.c: tensors from the checkpoint to the device */
enum { LOAD_READ = 1, LOAD_SEND = 2 }; /* one of them alone: for measuring */
/* Sorts the loads. Returns when everything is on the device. */
enum ek_status load_all(const struct ek_model *m, struct ek_device *dev, struct load *loads,
                        size_t n, int what);
/* The same, reading and sending alone before. */
enum ek_status load_measured(const struct ek_model *m, struct ek_device *dev, struct load *loads,
                             size_t n, struct ek_load_times *out);

/* ---- weights_vision.c */
/* Weights of a tower, projector or vector module into s->vision. */
enum ek_status vision_add_weights(struct walk *w, const struct ek_module *mod);
/* Columns of a piece of an interleaved load, in place; bytes: whole rows. */
enum ek_status vision_part_columns(const struct load *l, char *piece, size_t bytes);

#endif
