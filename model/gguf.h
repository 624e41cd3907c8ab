/* SPDX-License-Identifier: Apache-2.0
 *
 * Internal to model/: a GGUF (v2, v3) file's metadata and tensor directory, checked whole at open.
 */
#ifndef EK_MODEL_GGUF_H
#define EK_MODEL_GGUF_H

#include "base/base.h"

enum ek_gguf_type {
    EK_GGUF_U8,
    EK_GGUF_I8,
    EK_GGUF_U16,
    EK_GGUF_I16,
    EK_GGUF_U32,
    EK_GGUF_I32,
    EK_GGUF_F32,
    EK_GGUF_BOOL,
    EK_GGUF_STRING,
    EK_GGUF_ARRAY,
    EK_GGUF_U64,
    EK_GGUF_I64,
    EK_GGUF_F64
};

struct ek_gguf_tensor {
    char *name;
    enum ek_dtype dtype;
    uint32_t n_dims;
    uint64_t shape[4];      /* outermost first (the file stores fastest first) */
    uint64_t offset, bytes; /* absolute in the file */
};

struct ek_gguf;

enum ek_status ek_gguf_open(const char *path, struct ek_gguf **out);
void ek_gguf_close(struct ek_gguf *g);
const char *ek_gguf_path(const struct ek_gguf *g);
size_t ek_gguf_n_tensors(const struct ek_gguf *g);
const struct ek_gguf_tensor *ek_gguf_tensor_at(const struct ek_gguf *g, size_t i);
const struct ek_gguf_tensor *ek_gguf_tensor_find(const struct ek_gguf *g, const char *name);
bool ek_gguf_has(const struct ek_gguf *g, const char *key);
/* Scalars; any integer type is accepted where its value fits. Absent: EK_EFORMAT naming the key. */
enum ek_status ek_gguf_u64(const struct ek_gguf *g, const char *key, uint64_t min, uint64_t max,
                           uint64_t *out);
enum ek_status ek_gguf_real(const struct ek_gguf *g, const char *key, double *out);
enum ek_status ek_gguf_bool(const struct ek_gguf *g, const char *key, bool *out);
/* *s is borrowed from g, n bytes, NUL-terminated behind them. */
enum ek_status ek_gguf_string(const struct ek_gguf *g, const char *key, const char **s, size_t *n);
/* Number of items of an array and the type of its items. */
enum ek_status ek_gguf_array(const struct ek_gguf *g, const char *key, enum ek_gguf_type *type,
                             size_t *n);
enum ek_status ek_gguf_array_string(const struct ek_gguf *g, const char *key, size_t i,
                                    const char **s, size_t *n);
enum ek_status ek_gguf_array_i64(const struct ek_gguf *g, const char *key, size_t i, int64_t *out);
enum ek_status ek_gguf_cache(const struct ek_gguf *g, bool in); /* as ek_model_cache */
enum ek_status ek_gguf_read(const struct ek_gguf *g, uint64_t offset, uint64_t n, void *dst);

#endif
