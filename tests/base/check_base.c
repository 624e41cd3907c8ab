/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct {
    const char *text;
    uint64_t total, bytes; /* bytes 0: refused */
} sizes[] = {
    {"15GB", 0, 15000000000u},
    {"15 GiB", 0, 15 * EK_GIB},
    {"512MiB", 0, 512 * EK_MIB},
    {"0.5", 1000, 500},
    {"50%", 1000, 500},
    {"12.5 %", 1000, 125},
    {"100%", 1000, 1000},
    {"101%", 1000, 0},
    {"0%", 1000, 0},
    {"50%", 0, 0},
    {"50%B", 1000, 0},
    {"1e9", 0, 1000000000u},
    {"2k", 0, 2000},
    {"0.9", 0, 0},
    {"15XB", 0, 0},
    {"-1GB", 0, 0},
    {"", 0, 0},
    {"12 34", 0, 0},
    {"1e30GB", 0, 0},
    {"nan", 0, 0},
    {"0", 10, 0},
};

START_TEST(sizes_are_read_with_units_or_refused)
{
    uint64_t got = 0;
    enum ek_status st = ek_parse_size(sizes[_i].text, sizes[_i].total, &got);

    ck_assert_int_eq(st, sizes[_i].bytes ? EK_OK : EK_EUSAGE);
    ck_assert_uint_eq(got, sizes[_i].bytes);
}
END_TEST

START_TEST(text_from_files_cannot_steer_a_terminal)
{
    char text[] = "a\033[2J\r\nb\177\302\233c\303\251";

    ek_plain_text(text);
    ck_assert_str_eq(text, "a?[2J??b???c\303\251");
    strcpy(text, "\351x\355\240\200\360\237\230\200\303");
    ek_plain_text(text);
    ck_assert_str_eq(text, "?x???\360\237\230\200?");
    ck_assert_int_eq(ek_error(EK_EFORMAT, "%s", "x\033]0;t\007\ny"), EK_EFORMAT);
    ck_assert_str_eq(ek_last_error(), "x?]0;t??y");
}
END_TEST

START_TEST(size_lists_take_every_form_that_users_type)
{
    static const char *const forms[] = {"15GB 15GB", "15GB,15GB", "\"15GB 15GB\"", "15GB, 15GB"};
    struct ek_size_item *items;
    size_t n;

    for (size_t i = 0; i < EK_ARRAY_LEN(forms); i++) {
        ck_assert_int_eq(ek_parse_size_list(forms[i], &items, &n), EK_OK);
        ck_assert_uint_eq(n, 2);
        ck_assert_uint_eq(items[1].bytes, 15000000000u);
        free(items);
    }
    ck_assert_int_eq(ek_parse_size_list("cuda:0=20GiB cpu=50%", &items, &n), EK_OK);
    ck_assert_str_eq(items[0].name, "cuda:0");
    ck_assert_uint_eq(items[0].bytes, 20 * EK_GIB);
    ck_assert_str_eq(items[1].name, "cpu");
    ck_assert_double_eq(items[1].fraction, 0.5);
    free(items);
    ck_assert_int_eq(ek_parse_size_list("15GB 15Q", &items, &n), EK_EUSAGE);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "position 8"));
    ck_assert_int_eq(ek_parse_size_list("  ", &items, &n), EK_EUSAGE);
}
END_TEST

START_TEST(half_floats_round_trip_and_round_to_even)
{
    for (uint32_t h = 0; h < 65536; h++) {
        float f = ek_f16_to_f32((uint16_t)h), b = ek_bf16_to_f32((uint16_t)h);
        if (!isnan(f))
            ck_assert_uint_eq(ek_f32_to_f16(f), h);
        if (!isnan(b))
            ck_assert_uint_eq(ek_f32_to_bf16(b), h);
    }
    ck_assert_uint_eq(ek_f32_to_f16(65520.0f), 0x7c00); /* rounds to infinity */
    ck_assert_uint_eq(ek_f32_to_f16(65519.0f), 0x7bff);
    ck_assert_uint_eq(ek_f32_to_f16(0x1p-25f), 0); /* tie to even */
    ck_assert_uint_eq(ek_f32_to_f16(0x1.8p-25f), 1);
    ck_assert_uint_eq(ek_f32_to_bf16(1.00390625f), 0x3f80); /* tie to even */
}
END_TEST

START_TEST(eight_bit_floats_are_the_nearest_there_is)
{
    static const struct {
        float x;
        uint8_t bits;
    } known[] = {{0, 0},          {-0.0f, 0x80},    {1, 0x38},      {1.0625f, 0x38}, /* a tie */
                 {1.1875f, 0x3a}, {448, 0x7e},      {464.0f, 0x7e}, {1e30f, 0x7e},
                 {-1e30f, 0xfe},  {INFINITY, 0x7e}, {0x1p-10f, 0},  {0x1.1p-10f, 1},
                 {0x1p-9f, 1},    {0x1.8p-9f, 2},   {0x1.ep-7f, 8}, {0x1p-6f, 8}};

    for (uint32_t h = 0; h < 256; h++) {
        float f = ek_e4m3_to_f32((uint8_t)h), next = ek_e4m3_to_f32((uint8_t)(h + 1));
        ck_assert_uint_eq(ek_f32_to_e4m3(f), h);
        if (isfinite(f) && isfinite(next) && (h + 1) % 128) {
            ck_assert_uint_eq(ek_f32_to_e4m3(f + (next - f) * 0.499f), h);
            ck_assert_uint_eq(ek_f32_to_e4m3(f + (next - f) * 0.501f), h + 1);
            ck_assert_uint_eq(ek_f32_to_e4m3(f + (next - f) * 0.5f), h + h % 2);
        }
    }
    for (size_t i = 0; i < EK_ARRAY_LEN(known); i++)
        ck_assert_uint_eq(ek_f32_to_e4m3(known[i].x), known[i].bits);
    ck_assert_uint_eq(ek_f32_to_e4m3(NAN) & 0x7f, 0x7f);
}
END_TEST

START_TEST(json_reads_name_file_and_field)
{
    struct ek_json_at at = {"config.json", "rope."};
    json_t *v;
    uint64_t u;

    ck_assert_int_eq(ek_json_parse("{\"a\":-1,\"b\":\"x\"}", 16, "config.json", &v), EK_OK);
    ck_assert_int_eq(ek_json_u64(v, at, "a", 0, 10, &u), EK_EFORMAT);
    ck_assert_str_eq(ek_last_error(), "config.json: rope.a must be from 0 to 10, got -1");
    ck_assert_int_eq(ek_json_u64(v, at, "b", 0, 10, &u), EK_EFORMAT);
    ck_assert_str_eq(ek_last_error(), "config.json: rope.b must be a whole number, got a string");
    ck_assert_int_eq(ek_json_opt_u64(v, at, "c", 0, 10, &u), EK_OK);
    json_decref(v);
    ck_assert_int_eq(ek_json_parse("{\"a\":1,\"a\":2}", 13, "f", &v), EK_EFORMAT);
    ck_assert_int_eq(ek_json_parse("[1,", 3, "f", &v), EK_EFORMAT);
}
END_TEST

START_TEST(deep_json_is_refused)
{
    char text[400];
    json_t *v;

    memset(text, '[', 200);
    memset(text + 200, ']', 200);
    ck_assert_int_eq(ek_json_parse(text, 400, "f", &v), EK_EFORMAT);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "deeper"));
}
END_TEST

START_TEST(files_are_replaced_whole_or_not_at_all)
{
    char dir[] = "/tmp/ek-check-XXXXXX", *path, *text;
    struct ek_new_file f;
    size_t n;

    ck_assert_ptr_nonnull(mkdtemp(dir));
    path = ek_path_join(dir, "plan.json");
    ck_assert_int_eq(ek_file_write(path, "one", 3, false), EK_OK);
    ck_assert_int_eq(ek_file_write(path, "two", 3, false), EK_EUSAGE);
    ck_assert_int_eq(ek_file_read(path, 10, &text, &n), EK_OK);
    ck_assert_str_eq(text, "one");
    free(text);
    ck_assert_int_eq(ek_file_write(path, "three", 5, true), EK_OK);
    ck_assert_int_eq(ek_file_read(path, 4, &text, &n), EK_EFORMAT);
    ck_assert_int_eq(ek_file_read(dir, 10, &text, &n), EK_EFORMAT);
    ck_assert_int_eq(ek_file_read("/nonexistent", 10, &text, &n), EK_EENV);
    ck_assert_int_eq(ek_file_may_write(dir, true), EK_EENV); /* before any work */
    unlink(path);
    ck_assert_int_eq(mkfifo(path, 0600), 0); /* nobody writes to it: not waited for */
    ck_assert_int_eq(ek_file_read(path, 10, &text, &n), EK_EFORMAT);
    ck_assert_str_eq(strrchr(ek_last_error(), ':'), ": not a regular file");
    unlink(path);
    ck_assert_int_eq(ek_file_begin(path, false, &f), EK_OK);
    ck_assert_int_ge(fputs("half", f.stream), 0);
    ck_assert_int_eq(ek_file_end(&f, EK_EINTR), EK_EINTR);
    ck_assert(!ek_file_exists(path));
    ck_assert_int_eq(rmdir(dir), 0); /* no temp file was left behind */
    free(path);
}
END_TEST

START_TEST(sizes_and_hashes_hold_at_the_edges)
{
    size_t r = 7;
    char hex[33];

    ck_assert(!ek_mul_size(SIZE_MAX, 2, &r) && r == 7);
    ck_assert(!ek_add_size(SIZE_MAX, 1, &r) && r == 7);
    ck_assert(ek_mul_size(6, 7, &r) && r == 42);
    ck_assert_int_eq(ek_dtype_bytes(EK_Q4_1, 33, &r), EK_EFORMAT);
    ck_assert_int_eq(ek_dtype_bytes(EK_Q6_K, 512, &r), EK_OK);
    ck_assert_uint_eq(r, 420);
    ek_hash_hex("", 0, hex);
    ck_assert_str_eq(hex, "99aa06d3014798d86001c324468d497f"); /* XXH3-128 of nothing */
}
END_TEST

START_TEST(messages_stay_on_one_line)
{
    ck_assert_int_eq(ek_error(EK_EFORMAT, "a\nb\x1b[31m"), EK_EFORMAT);
    ck_assert_str_eq(ek_last_error(), "a?b?[31m");
    ck_assert_int_eq(ek_exit_code(EK_EFORMAT), 4);
    ck_assert_int_eq(ek_exit_code(EK_EINTR), 130);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("base");
    TCase *tc = tcase_create("base");
    SRunner *sr = srunner_create(s);
    int failed;

    suite_add_tcase(s, tc);
    tcase_add_loop_test(tc, sizes_are_read_with_units_or_refused, 0, EK_ARRAY_LEN(sizes));
    tcase_add_test(tc, size_lists_take_every_form_that_users_type);
    tcase_add_test(tc, half_floats_round_trip_and_round_to_even);
    tcase_add_test(tc, eight_bit_floats_are_the_nearest_there_is);
    tcase_add_test(tc, json_reads_name_file_and_field);
    tcase_add_test(tc, deep_json_is_refused);
    tcase_add_test(tc, files_are_replaced_whole_or_not_at_all);
    tcase_add_test(tc, sizes_and_hashes_hold_at_the_edges);
    tcase_add_test(tc, messages_stay_on_one_line);
    tcase_add_test(tc, text_from_files_cannot_steer_a_terminal);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
