/* SPDX-License-Identifier: Apache-2.0
 *
 * What the suites of model/ share: files made on the spot, whole or broken.
 */
#ifndef EK_TESTS_MODEL_FILES_H
#define EK_TESTS_MODEL_FILES_H

#include "base/base.h"

/* Path below tests/fixtures, in a static buffer of the caller's choice. */
const char *fixture(const char *name, char buf[512]);

/* A fresh directory, emptied and removed by temp_end. Each test has its own. */
void temp_begin(void);
void temp_end(void);
/* Path of a file in it; valid until the next call but seven. */
const char *temp_path(const char *name);
const char *temp_write(const char *name, const void *data, size_t n);
const char *temp_text(const char *name, const char *text);

/* Bytes put together. */
struct bytes {
    char *p;
    size_t n, cap;
};
void put(struct bytes *b, const void *data, size_t n);
void put_u32(struct bytes *b, uint32_t v);
void put_u64(struct bytes *b, uint64_t v);
void put_f32(struct bytes *b, float v);
void put_text(struct bytes *b, const char *s); /* GGUF: length and bytes */
void put_zeros(struct bytes *b, size_t n);
void put_free(struct bytes *b);

/* GGUF pieces. */
void gguf_header(struct bytes *b, uint32_t version, uint64_t n_tensors, uint64_t n_kvs);
void gguf_u32(struct bytes *b, const char *key, uint32_t v);
void gguf_f32(struct bytes *b, const char *key, float v);
void gguf_string(struct bytes *b, const char *key, const char *v);
/* dims fastest first, 0-terminated */
void gguf_tensor(struct bytes *b, const char *name, const uint64_t *dims, uint32_t type,
                 uint64_t offset);
void gguf_align(struct bytes *b, size_t alignment);

/* A safetensors file of a header's text (N = its length) and n bytes of data. */
const char *temp_safetensors(const char *name, const char *header, size_t n);

#endif
