/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "tests/model/files.h"

#include <check.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char temp[64];

const char *fixture(const char *name, char buf[512])
{
    const char *srcdir = getenv("srcdir");

    snprintf(buf, 512, "%s/tests/fixtures/%s", srcdir ? srcdir : ".", name);
    return buf;
}

void temp_begin(void)
{
    snprintf(temp, sizeof(temp), "check_model.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(temp));
}

void temp_end(void)
{
    DIR *d = opendir(temp);
    struct dirent *e;

    while (d && (e = readdir(d)) != NULL)
        if (e->d_name[0] != '.')
            unlink(temp_path(e->d_name));
    if (d)
        closedir(d);
    rmdir(temp);
}

const char *temp_path(const char *name)
{
    static char paths[8][512];
    static unsigned turn;
    char *path = paths[turn++ % 8];

    snprintf(path, sizeof(paths[0]), "%s%s%s", temp, *name ? "/" : "", name);
    return path;
}

const char *temp_write(const char *name, const void *data, size_t n)
{
    const char *path = temp_path(name);
    FILE *f = fopen(path, "wb");

    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(data, 1, n, f), n);
    fclose(f);
    return path;
}

const char *temp_text(const char *name, const char *text)
{
    return temp_write(name, text, strlen(text));
}

void put(struct bytes *b, const void *data, size_t n)
{
    if (b->n + n > b->cap) {
        b->cap = (b->n + n) * 2;
        b->p = realloc(b->p, b->cap);
        ck_assert_ptr_nonnull(b->p);
    }
    memcpy(b->p + b->n, data, n);
    b->n += n;
}

void put_u32(struct bytes *b, uint32_t v)
{
    put(b, &v, sizeof(v));
}

void put_u64(struct bytes *b, uint64_t v)
{
    put(b, &v, sizeof(v));
}

void put_f32(struct bytes *b, float v)
{
    put(b, &v, sizeof(v));
}

void put_text(struct bytes *b, const char *s)
{
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}

void put_zeros(struct bytes *b, size_t n)
{
    while (n-- > 0)
        put(b, "", 1);
}

void put_free(struct bytes *b)
{
    free(b->p);
    *b = (struct bytes){0};
}

void gguf_header(struct bytes *b, uint32_t version, uint64_t n_tensors, uint64_t n_kvs)
{
    put(b, "GGUF", 4);
    put_u32(b, version);
    put_u64(b, n_tensors);
    put_u64(b, n_kvs);
}

void gguf_u32(struct bytes *b, const char *key, uint32_t v)
{
    put_text(b, key);
    put_u32(b, 4);
    put_u32(b, v);
}

void gguf_f32(struct bytes *b, const char *key, float v)
{
    put_text(b, key);
    put_u32(b, 6);
    put_f32(b, v);
}

void gguf_string(struct bytes *b, const char *key, const char *v)
{
    put_text(b, key);
    put_u32(b, 8);
    put_text(b, v);
}

void gguf_tensor(struct bytes *b, const char *name, const uint64_t *dims, uint32_t type,
                 uint64_t offset)
{
    uint32_t n = 0;

    while (dims[n])
        n++;
    put_text(b, name);
    put_u32(b, n);
    put(b, dims, n * sizeof(*dims));
    put_u32(b, type);
    put_u64(b, offset);
}

void gguf_align(struct bytes *b, size_t alignment)
{
    while (b->n % alignment)
        put(b, "", 1);
}

const char *temp_safetensors(const char *name, const char *header, size_t n)
{
    struct bytes b = {0};
    const char *path;

    put_u64(&b, strlen(header));
    put(&b, header, strlen(header));
    put_zeros(&b, n);
    path = temp_write(name, b.p, b.n);
    put_free(&b);
    return path;
}
