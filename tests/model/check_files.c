/* SPDX-License-Identifier: Apache-2.0
 *
 * safetensors and GGUF files, whole and hostile.
 */
#include "model/datafile.h"
#include "model/internal.h"
#include "tests/model/files.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- safetensors ------------------------------------------------------------------------------*/

#define U8(name, from, to, n)                                                                      \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" #n "],\"data_offsets\":[" #from "," #to "]}"

static const struct {
    const char *header;
    size_t data; /* bytes behind it */
    const char *message;
} hostile_safetensors[] = {
    {"[]", 0, "not with '{'"},
    {" {}", 0, "not with '{'"},
    {"{\"a\":}", 0, "not valid JSON"},
    {"{\"\xff\":1}", 0, "not valid JSON"},
    {"{" U8("a", 0, 1, 1) "," U8("a", 1, 2, 1) "}", 2, "duplicate"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[[1]],\"data_offsets\":[0,1]}}", 1,
     "nested deeper than 3"},
    {"{\"a\":{\"dtype\":\"U9\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "dtype 'U9'"},
    {"{\"a\":{\"dtype\":\"Q4_0\",\"shape\":[32],\"data_offsets\":[0,18]}}", 18, "dtype 'Q4_0'"},
    {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "no dtype"},
    {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "no shape"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", 1, "dimension"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1.5],\"data_offsets\":[0,1]}}", 1, "dimension"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[99999999999999999999],\"data_offsets\":[0,1]}}", 1,
     "not valid JSON"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1,
     "more than 5 dimensions"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,1]}}", 1,
     "number of elements overflows"},
    {"{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,1]}}", 1,
     "size in bytes overflows"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}}", 1, "data_offsets [1, 0]"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, "two whole numbers"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,-1]}}", 1, "two whole numbers"},
    {"{" U8("a", 0, 9, 9) "}", 8, "(truncated?)"},
    {"{" U8("a", 0, 4, 3) "}", 4, "4 bytes of data, its shape needs 3"},
    {"{" U8("a", 0, 2, 2) "," U8("b", 1, 3, 2) "}", 3, "overlapping"},
    {"{" U8("a", 0, 1, 1) "," U8("b", 2, 3, 1) "}", 3, "hole"},
    {"{" U8("a", 0, 1, 1) "}", 2, "1 bytes behind the last tensor"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "'a' is no string"},
    {"{\"__metadata__\":[]}", 0, "is no object"},
    {"{\"a\":1}", 0, "no object"},
    {"{" U8("", 0, 1, 1) "}", 1, "name of 0 bytes"},
    {"{" U8("a\\u0000b", 0, 1, 1) "}", 1, "not valid JSON"},
};

START_TEST(hostile_safetensors_are_refused_with_the_reason)
{
    const char *path = temp_safetensors("x.safetensors", hostile_safetensors[_i].header,
                                        hostile_safetensors[_i].data);
    struct ek_safetensors *s = NULL;
    enum ek_status st = ek_safetensors_open(path, &s);

    ck_assert_int_eq(ek_exit_code(st), 4);
    ck_assert_ptr_null(s);
    ck_assert_msg(strstr(ek_last_error(), hostile_safetensors[_i].message), "%s", ek_last_error());
    ck_assert_msg(strstr(ek_last_error(), "x.safetensors"), "%s", ek_last_error());
    ck_assert_ptr_null(strchr(ek_last_error(), '\n'));
}
END_TEST

START_TEST(headers_of_impossible_length_are_refused)
{
    static const struct {
        uint64_t n;
        size_t rest;
    } cases[] = {{0, 8}, {9, 8}, {100000001, 8}, {UINT64_MAX, 8}, {UINT64_MAX - 7, 8}};
    struct ek_safetensors *s = NULL;

    for (size_t i = 0; i < EK_ARRAY_LEN(cases); i++) {
        struct bytes b = {0};
        put_u64(&b, cases[i].n);
        put_zeros(&b, cases[i].rest);
        ck_assert_int_eq(ek_safetensors_open(temp_write("x", b.p, b.n), &s), EK_EFORMAT);
        ck_assert_msg(strstr(ek_last_error(), "header of"), "%s", ek_last_error());
        put_free(&b);
    }
    ck_assert_int_eq(ek_safetensors_open(temp_write("x", "1234567", 7), &s), EK_EFORMAT);
    ck_assert_msg(strstr(ek_last_error(), "7 bytes"), "%s", ek_last_error());
    ck_assert_int_eq(ek_safetensors_open(temp_path(""), &s), EK_EFORMAT);
    ck_assert_int_eq(ek_safetensors_open(temp_path("absent"), &s), EK_EENV);
}
END_TEST

START_TEST(names_over_a_kilobyte_are_refused)
{
    char name[1026], header[1200];
    struct ek_safetensors *s = NULL;

    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    snprintf(header, sizeof(header),
             "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", name);
    ck_assert_int_eq(ek_safetensors_open(temp_safetensors("x", header, 1), &s), EK_EFORMAT);
    ck_assert_msg(strstr(ek_last_error(), "1025 bytes"), "%s", ek_last_error());
}
END_TEST

START_TEST(a_file_cut_after_opening_is_an_error_not_a_signal)
{
    const char *path = temp_safetensors("x", "{" U8("a", 0, 9, 9) "}", 9);
    struct ek_safetensors *s = NULL;
    char dst[9];

    ck_assert_int_eq(ek_safetensors_open(path, &s), EK_OK);
    ck_assert_int_eq(truncate(path, 16), 0);
    ck_assert_int_eq(ek_safetensors_read(s, ek_safetensors_at(s, 0), 0, 9, dst), EK_EFORMAT);
    ck_assert_msg(strstr(ek_last_error(), "truncated"), "%s", ek_last_error());
    ck_assert_int_eq(ek_safetensors_read(s, ek_safetensors_at(s, 0), 5, 5, dst), EK_EUSAGE);
    ck_assert_int_eq(ek_safetensors_read(s, ek_safetensors_at(s, 0), UINT64_MAX, 2, dst),
                     EK_EUSAGE);
    ek_safetensors_close(s);
}
END_TEST

/* Reads over a mebibyte go past the page cache where that has nothing: from any place, to any
 * place, whatever is in the cache. */
START_TEST(long_reads_are_the_same_from_storage_and_from_the_page_cache)
{
    enum { BYTES = (9 << 20) + 77 };
    static const uint64_t places[][2] = {{0, BYTES},
                                         {1, BYTES - 1},
                                         {4096, 4 << 20},
                                         {4095, (1 << 20) + 3},
                                         {BYTES - (2 << 20), 2 << 20}};
    char *data = malloc(BYTES), *out = malloc(BYTES + 8);
    struct ek_datafile f;
    const char *path;
    uint64_t seed = 1;

    for (size_t i = 0; i < BYTES; i++)
        data[i] = (char)ek_random_u64(&seed);
    path = temp_write("x", data, BYTES);
    ck_assert_int_eq(ek_datafile_open(&f, path), EK_OK);
    for (size_t i = 0; i < 2 * EK_ARRAY_LEN(places); i++) {
        const uint64_t *p = places[i / 2];
        ck_assert_int_eq(ek_datafile_cache(&f, i % 2), EK_OK);
        memset(out, 0, BYTES + 8);
        ck_assert_msg(ek_datafile_read(&f, p[0], p[1], out + 3) == EK_OK, "%s", ek_last_error());
        ck_assert_mem_eq(out + 3, data + p[0], p[1]);
        ck_assert_int_eq(out[3 + p[1]], 0); /* nothing behind it was written */
    }
    ck_assert_int_eq(truncate(path, 5 << 20), 0);
    ck_assert_int_eq(ek_datafile_read(&f, 0, BYTES, out), EK_EFORMAT);
    ck_assert_msg(strstr(ek_last_error(), "truncated"), "%s", ek_last_error());
    ck_assert_int_eq(ek_datafile_read(&f, 8 << 20, 1 << 20, out), EK_EFORMAT);
    ek_datafile_close(&f);
    free(data);
    free(out);
}
END_TEST

START_TEST(what_is_written_reads_back)
{
    const float a[6] = {1, 2, 3, 4, 5, 6};
    const int64_t b = -7;
    const struct ek_safetensors_entry entries[] = {
        {.name = "z", .dtype = EK_F32, .n_dims = 2, .shape = {2, 3}, .bytes = sizeof(a)},
        {.name = "a", .dtype = EK_I64, .n_dims = 0, .bytes = sizeof(b)},
        {.name = "none", .dtype = EK_BF16, .n_dims = 2, .shape = {0, 4}, .bytes = 0},
    };
    const void *data[] = {a, &b, NULL};
    json_t *meta = json_pack("{s:s}", "model", "smol");
    struct ek_safetensors *s = NULL;
    const struct ek_safetensors_entry *e;
    float got[2];

    ck_assert_int_eq(ek_safetensors_write(temp_path("w"), entries, data, 3, meta, false), EK_OK);
    ck_assert_int_eq(ek_safetensors_write(temp_path("w"), entries, data, 3, meta, false),
                     EK_EUSAGE);
    json_decref(meta);
    ck_assert_int_eq(ek_safetensors_open(temp_path("w"), &s), EK_OK);
    ck_assert_uint_eq(ek_safetensors_count(s), 3);
    ck_assert_str_eq(ek_safetensors_meta(s, "model"), "smol");
    ck_assert_ptr_null(ek_safetensors_meta(s, "other"));
    ck_assert_ptr_null(ek_safetensors_find(s, "b"));
    e = ek_safetensors_find(s, "z");
    ck_assert_uint_eq(e->offset % 8, 0);
    ck_assert_int_eq(ek_safetensors_read(s, e, 16, 8, got), EK_OK);
    ck_assert_float_eq(got[0], 5);
    ck_assert_uint_eq(ek_safetensors_find(s, "none")->bytes, 0);
    ek_safetensors_close(s);
}
END_TEST

/* ---- Shards -----------------------------------------------------------------------------------*/

static const struct {
    const char *map, *message;
    enum ek_status st;
} hostile_indices[] = {
    {"[]", "weight_map must be", EK_EFORMAT},
    {"{\"weight_map\":[]}", "weight_map must be an object", EK_EFORMAT},
    {"{\"weight_map\":{\"a\":1}}", "weight_map of 'a' is no string", EK_EFORMAT},
    {"{\"weight_map\":{\"a\":\"../one\"}}", "not a plain file", EK_EFORMAT},
    {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "not a plain file", EK_EFORMAT},
    {"{\"weight_map\":{\"a\":\"..\"}}", "not a plain file", EK_EFORMAT},
    {"{\"weight_map\":{\"a\":\"\"}}", "not a plain file", EK_EFORMAT},
    {"{\"weight_map\":{\"a\":\"missing\"}}", "names 'missing', which is missing", EK_EFORMAT},
    {"{\"weight_map\":{\"a\":\"one\",\"b\":\"two\"}}", "tensor 'a' is in two, weight_map says one",
     EK_EFORMAT},
    {"{\"weight_map\":{\"b\":\"two\"}}", "tensor 'a' of two is not in weight_map", EK_EFORMAT},
};

START_TEST(hostile_indices_are_refused)
{
    struct ek_model_files f = {0};

    temp_safetensors("one", "{" U8("a", 0, 1, 1) "}", 1);
    temp_safetensors("two", "{" U8("a", 0, 1, 1) "," U8("b", 1, 2, 1) "}", 2);
    temp_text("model.safetensors.index.json", hostile_indices[_i].map);
    ck_assert_int_eq(ek_shards_open(&f, temp_path("")), hostile_indices[_i].st);
    ck_assert_msg(strstr(ek_last_error(), hostile_indices[_i].message), "%s", ek_last_error());
    ek_shards_close(&f);
}
END_TEST

/* ---- GGUF -------------------------------------------------------------------------------------*/

static const uint64_t row32[] = {32, 0}, rows[] = {32, 2, 0};

static void bad_magic(struct bytes *b)
{
    put(b, "GGML", 4);
    put_zeros(b, 60);
}
static void version_0(struct bytes *b)
{
    gguf_header(b, 0, 0, 0);
}
static void version_1(struct bytes *b)
{
    gguf_header(b, 1, 0, 0);
}
static void version_swapped(struct bytes *b)
{
    gguf_header(b, 0x03000000, 0, 0);
}
static void header_cut(struct bytes *b)
{
    put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u32(b, 1);
}
static void many_tensors(struct bytes *b)
{
    gguf_header(b, 3, UINT64_MAX, 0);
}
static void many_keys(struct bytes *b)
{
    gguf_header(b, 3, 0, UINT64_MAX / 2);
}
static void more_than_fit(struct bytes *b)
{
    gguf_header(b, 3, 1000000, 60000);
}
static void key_beyond_end(struct bytes *b)
{
    gguf_header(b, 3, 0, 1);
    put_u64(b, 1000);
    put_zeros(b, 40);
}
static void key_huge(struct bytes *b)
{
    gguf_header(b, 3, 0, 1);
    put_u64(b, UINT64_MAX);
    put_zeros(b, 40);
}
static void key_empty(struct bytes *b)
{
    gguf_header(b, 3, 0, 1);
    gguf_u32(b, "", 1);
    put_zeros(b, 16);
}
static void key_with_nul(struct bytes *b)
{
    gguf_header(b, 3, 0, 1);
    put_u64(b, 3);
    put(b, "a\0b", 3);
    put_u32(b, 4);
    put_u32(b, 1);
}
static void key_twice(struct bytes *b)
{
    gguf_header(b, 3, 0, 3);
    gguf_u32(b, "k", 1);
    gguf_u32(b, "j", 1);
    gguf_u32(b, "k", 2);
}
static void value_type(struct bytes *b)
{
    gguf_header(b, 3, 0, 1);
    put_text(b, "k");
    put_u32(b, 13);
    put_u64(b, 0);
}
static void string_beyond_end(struct bytes *b)
{
    gguf_header(b, 3, 0, 1);
    put_text(b, "k");
    put_u32(b, 8);
    put_u64(b, 100);
}
static void array(struct bytes *b, uint32_t type, uint64_t n)
{
    gguf_header(b, 3, 0, 1);
    put_text(b, "k");
    put_u32(b, 9);
    put_u32(b, type);
    put_u64(b, n);
    put_zeros(b, 16);
}
static void array_huge(struct bytes *b)
{
    array(b, 4, UINT64_MAX / 2);
}
static void array_of_strings_huge(struct bytes *b)
{
    array(b, 8, 1u << 30);
}
static void array_nested(struct bytes *b)
{
    array(b, 9, 1);
}
static void one_tensor(struct bytes *b, const uint64_t *dims, uint32_t type, uint64_t offset)
{
    gguf_header(b, 3, 1, 0);
    gguf_tensor(b, "t", dims, type, offset);
    gguf_align(b, 32);
    put_zeros(b, 36);
}
static void no_dims(struct bytes *b)
{
    one_tensor(b, (const uint64_t[]){0}, 0, 0);
}
static void five_dims(struct bytes *b)
{
    one_tensor(b, (const uint64_t[]){1, 1, 1, 1, 1, 0}, 0, 0);
}
static void zero_dim(struct bytes *b)
{
    gguf_header(b, 3, 1, 0);
    put_text(b, "t");
    put_u32(b, 1);
    put_u64(b, 0);
    put_zeros(b, 64);
}
static void negative_dim(struct bytes *b)
{
    one_tensor(b, (const uint64_t[]){UINT64_MAX, 0}, 0, 0);
}
static void overflowing(struct bytes *b)
{
    one_tensor(b, (const uint64_t[]){1ull << 40, 1ull << 40, 0}, 0, 0);
}
static void ragged_row(struct bytes *b)
{
    one_tensor(b, (const uint64_t[]){33, 0}, 2, 0);
}
static void tensor_type(struct bytes *b)
{
    one_tensor(b, row32, 77, 0);
}
static void old_type(struct bytes *b)
{
    one_tensor(b, row32, 4, 0);
}
static void unsupported_type(struct bytes *b)
{
    one_tensor(b, row32, 10, 0);
}
static void misaligned(struct bytes *b)
{
    one_tensor(b, row32, 2, 7);
}
static void beyond_end(struct bytes *b)
{
    one_tensor(b, (const uint64_t[]){32, 3, 0}, 2, 0);
}
static void two_tensors(struct bytes *b, const char *second, uint64_t offset)
{
    gguf_header(b, 3, 2, 0);
    gguf_tensor(b, "t", rows, 2, 0);
    gguf_tensor(b, second, rows, 2, offset);
    gguf_align(b, 32);
    put_zeros(b, 200);
}
static void overlapping(struct bytes *b)
{
    two_tensors(b, "u", 32);
}
static void hole(struct bytes *b)
{
    two_tensors(b, "u", 96);
}
static void name_twice(struct bytes *b)
{
    two_tensors(b, "t", 64);
}
static void alignment(struct bytes *b, uint32_t n)
{
    gguf_header(b, 3, 0, 1);
    gguf_u32(b, "general.alignment", n);
}
static void alignment_0(struct bytes *b)
{
    alignment(b, 0);
}
static void alignment_24(struct bytes *b)
{
    alignment(b, 24);
}

static const struct {
    void (*make)(struct bytes *b);
    const char *message;
} hostile_ggufs[] = {
    {bad_magic, "is not GGUF's"},
    {version_0, "version 0"},
    {version_1, "version 1"},
    {version_swapped, "big-endian"},
    {header_cut, "number of tensors needs 8 bytes, 4 remain"},
    {many_tensors, "tensors, at most"},
    {many_keys, "keys, at most"},
    {more_than_fit, "do not fit into 24 bytes"},
    {key_beyond_end, "key needs 1000 bytes, 40 remain"},
    {key_huge, "at most 1024"},
    {key_empty, "empty key"},
    {key_with_nul, "NUL inside a key"},
    {key_twice, "key 'k' twice"},
    {value_type, "key 'k': unknown value type 13"},
    {string_beyond_end, "string needs 100 bytes, 0 remain"},
    {array_huge, "key 'k': array of"},
    {array_of_strings_huge, "key 'k': array of"},
    {array_nested, "arrays inside arrays"},
    {no_dims, "0 dimensions"},
    {five_dims, "5 dimensions"},
    {zero_dim, "dimension 0 is 0"},
    {negative_dim, "dimension 0 is -1"},
    {overflowing, "overflows"},
    {ragged_row, "no multiple of Q4_0's 32"},
    {tensor_type, "unknown type 77"},
    {old_type, "unknown type 4"},
    {unsupported_type, "type Q2_K is not supported"},
    {misaligned, "misaligned"},
    {beyond_end, "truncated?"},
    {overlapping, "offset 32, expected 64"},
    {hole, "offset 96, expected 64"},
    {name_twice, "tensor 't' twice"},
    {alignment_0, "no power of two"},
    {alignment_24, "general.alignment 24 is no power of two"},
};

START_TEST(hostile_ggufs_are_refused_with_the_reason)
{
    struct bytes b = {0};
    struct ek_gguf *g = NULL;
    enum ek_status st;

    hostile_ggufs[_i].make(&b);
    st = ek_gguf_open(temp_write("x.gguf", b.p, b.n), &g);
    put_free(&b);
    ck_assert_int_eq(ek_exit_code(st), 4);
    ck_assert_ptr_null(g);
    ck_assert_msg(strstr(ek_last_error(), hostile_ggufs[_i].message), "%s", ek_last_error());
    ck_assert_msg(strstr(ek_last_error(), "x.gguf"), "%s", ek_last_error());
}
END_TEST

static struct ek_gguf *open_values(void)
{
    struct ek_gguf *g = NULL;
    char path[512];

    ck_assert_int_eq(ek_gguf_open(fixture("../fuzz/corpus/gguf/types", path), &g), EK_OK);
    return g;
}

START_TEST(values_of_every_type_are_read_where_they_fit)
{
    static const char *const wholes[] = {"u8", "u16", "u32", "u64"};
    struct ek_gguf *g = open_values();
    uint64_t u;
    double d;
    bool yes;

    for (size_t i = 0; i < EK_ARRAY_LEN(wholes); i++) {
        ck_assert_int_eq(ek_gguf_u64(g, wholes[i], 0, 10, &u), EK_OK);
        ck_assert_uint_eq(u, i + 1);
        ck_assert_int_eq(ek_gguf_real(g, wholes[i], &d), EK_OK);
        ck_assert_double_eq(d, (double)(i + 1));
    }
    ck_assert_int_eq(ek_gguf_u64(g, "i8", 0, 10, &u), EK_EFORMAT);
    ck_assert_msg(strstr(ek_last_error(), "from 0 to 10, got -1"), "%s", ek_last_error());
    ck_assert_int_eq(ek_gguf_real(g, "i64", &d), EK_OK);
    ck_assert_double_eq(d, -4);
    ck_assert_int_eq(ek_gguf_real(g, "f64", &d), EK_OK);
    ck_assert_double_eq(d, 2.5);
    ck_assert_int_eq(ek_gguf_u64(g, "f32", 0, 10, &u), EK_EFORMAT);
    ck_assert_int_eq(ek_gguf_bool(g, "b", &yes), EK_OK);
    ck_assert(yes);
    ck_assert_int_eq(ek_gguf_bool(g, "u8", &yes), EK_EFORMAT);
    ck_assert_int_eq(ek_gguf_u64(g, "absent", 0, 10, &u), EK_EFORMAT);
    ck_assert_msg(strstr(ek_last_error(), "key 'absent' is missing"), "%s", ek_last_error());
    ek_gguf_close(g);
}
END_TEST

START_TEST(strings_and_arrays_are_read_item_by_item)
{
    struct ek_gguf *g = open_values();
    enum ek_gguf_type type;
    const char *s;
    size_t n;
    int64_t v;

    ck_assert_int_eq(ek_gguf_string(g, "s", &s, &n), EK_OK);
    ck_assert_str_eq(s, "text");
    ck_assert_uint_eq(n, 4);
    ck_assert_int_eq(ek_gguf_string(g, "tokenizer.ggml.tokens", &s, &n), EK_EFORMAT);
    ck_assert_int_eq(ek_gguf_array(g, "tokenizer.ggml.tokens", &type, &n), EK_OK);
    ck_assert_int_eq(type, EK_GGUF_STRING);
    ck_assert_uint_eq(n, 3);
    ck_assert_int_eq(ek_gguf_array_string(g, "tokenizer.ggml.tokens", 0, &s, &n), EK_OK);
    ck_assert_str_eq(s, "");
    ck_assert_int_eq(ek_gguf_array_string(g, "tokenizer.ggml.tokens", 2, &s, &n), EK_OK);
    ck_assert_str_eq(s, "yy");
    ck_assert_int_eq(ek_gguf_array_string(g, "tokenizer.ggml.tokens", 3, &s, &n), EK_EFORMAT);
    ck_assert_int_eq(ek_gguf_array_i64(g, "ints", 2, &v), EK_OK);
    ck_assert_int_eq(v, 3);
    ck_assert_int_eq(ek_gguf_array_i64(g, "tokenizer.ggml.tokens", 0, &v), EK_EFORMAT);
    ek_gguf_close(g);
}
END_TEST

START_TEST(every_truncation_of_a_gguf_is_refused)
{
    char path[512], *data;
    struct ek_gguf *g = NULL;
    size_t n;

    fixture("../fuzz/corpus/gguf/tiny_llama", path);
    ck_assert_int_eq(ek_file_read(path, 1 << 20, &data, &n), EK_OK);
    for (size_t cut = 0; cut + 64 < n; cut += 7) { /* the end is padding */
        ck_assert_int_ne(ek_gguf_open(temp_write("x", data, cut), &g), EK_OK);
        ck_assert_ptr_null(g);
    }
    free(data);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("files");
    TCase *safetensors = tcase_create("safetensors"), *gguf = tcase_create("gguf");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(safetensors, temp_begin, temp_end);
    tcase_add_loop_test(safetensors, hostile_safetensors_are_refused_with_the_reason, 0,
                        EK_ARRAY_LEN(hostile_safetensors));
    tcase_add_test(safetensors, headers_of_impossible_length_are_refused);
    tcase_add_test(safetensors, names_over_a_kilobyte_are_refused);
    tcase_add_test(safetensors, a_file_cut_after_opening_is_an_error_not_a_signal);
    tcase_add_test(safetensors, long_reads_are_the_same_from_storage_and_from_the_page_cache);
    tcase_add_test(safetensors, what_is_written_reads_back);
    tcase_add_loop_test(safetensors, hostile_indices_are_refused, 0, EK_ARRAY_LEN(hostile_indices));
    tcase_add_checked_fixture(gguf, temp_begin, temp_end);
    tcase_add_loop_test(gguf, hostile_ggufs_are_refused_with_the_reason, 0,
                        EK_ARRAY_LEN(hostile_ggufs));
    tcase_add_test(gguf, values_of_every_type_are_read_where_they_fit);
    tcase_add_test(gguf, strings_and_arrays_are_read_item_by_item);
    tcase_add_test(gguf, every_truncation_of_a_gguf_is_refused);
    suite_add_tcase(s, safetensors);
    suite_add_tcase(s, gguf);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
