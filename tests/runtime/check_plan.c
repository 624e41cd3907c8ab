/* SPDX-License-Identifier: Apache-2.0
 *
 * Plans: what is read, every hostile form refused in one line, plans that do not fit.
 */
#include "tests/runtime/support.h"

#include <stdlib.h>
#include <string.h>

static const char good[] =
    "{\"format\": \"evenkeel-plan\", \"version\": 1,"
    " \"model\": {\"name\": \"tiny\", \"hash\": \"0123456789abcdef0123456789abcdef\"},"
    " \"workload\": {\"batch\": 4, \"prompt\": 96, \"generate\": 32, \"context\": 128,"
    "   \"cache\": \"F32\", \"act\": \"F32\", \"micro_batches\": 2, \"prefill_chunk\": 16,"
    "   \"images\": 0},"
    " \"devices\": [{\"name\": \"cpu:0\", \"backend\": \"cpu\", \"index\": 0, \"threads\": \"0\","
    "   \"uuid\": \"\", \"memory\": 1000000},"
    "   {\"name\": \"cpu:1\", \"backend\": \"cpu\", \"index\": 1, \"threads\": \"0\","
    "   \"memory\": 2000000}],"
    " \"stages\": [{\"device\": \"cpu:0\", \"modules\": [\"model.embed_tokens\", "
    "\"model.layers.0\"],"
    "   \"prefill_s\": 0.1, \"decode_s\": 0.002, \"handoff_s\": 0.00001},"
    "   {\"device\": \"cpu:1\", \"modules\": [\"model.norm\", \"lm_head\"], \"prefill_s\": 0.2,"
    "   \"decode_s\": 0.001}],"
    " \"memory\": [{\"device\": \"cpu:1\", \"weights\": 5, \"kv\": 1, \"activations\": 1,"
    "   \"workspace\": 1, \"comm\": 0, \"overhead\": 2, \"margin\": 5, \"total\": 10,"
    "   \"budget\": 15},"
    "   {\"device\": \"cpu:0\", \"weights\": 1, \"kv\": 0, \"activations\": 0, \"workspace\": 0,"
    "   \"comm\": 0, \"overhead\": 0, \"margin\": 0, \"total\": 1, \"budget\": 1000000}],"
    " \"links\": [{\"from\": \"cpu:1\", \"to\": \"cpu:0\", \"alpha_s\": 0.1, \"mechanism\": "
    "\"copy\"}],"
    " \"predicted\": {\"prefill_s\": 0.3, \"decode_s\": 0.003},"
    " \"profile\": {\"identity\": \"fedcba9876543210fedcba9876543210\"}}";

static enum ek_status parse(const char *text, struct ek_plan **out)
{
    return ek_plan_parse(text, strlen(text), "plan.json", out);
}

START_TEST(a_plan_is_read_whole)
{
    struct ek_plan *p = NULL;

    ck_ok(parse(good, &p));
    ck_assert_str_eq(p->model_hash, "0123456789abcdef0123456789abcdef");
    ck_assert_uint_eq(p->batch, 4);
    ck_assert_uint_eq(p->prompt, 96);
    ck_assert_uint_eq(p->generate, 32);
    ck_assert_uint_eq(p->context, 128);
    ck_assert_uint_eq(p->micro_batches, 2);
    ck_assert_uint_eq(p->prefill_chunk, 16);
    ck_assert_uint_eq(p->n_devices, 2);
    ck_assert_str_eq(p->devices[1].name, "cpu:1");
    ck_assert_str_eq(p->devices[1].threads, "0");
    ck_assert_uint_eq(p->devices[1].memory, 2000000);
    ck_assert_uint_eq(p->n_stages, 2);
    ck_assert_uint_eq(p->stages[1].device, 1);
    ck_assert_str_eq(p->stages[0].modules[1], "model.layers.0");
    ck_assert_double_eq(p->stages[0].decode_s, 0.002);
    ck_assert_uint_eq(p->memory[1].margin, 5);
    ck_assert_uint_eq(p->memory[0].budget, 1000000);
    ck_assert_double_eq(p->predicted_decode_s, 0.003);
    ck_assert_str_eq(ek_plan_mechanism(p, 1, 0), "copy");
    ck_assert_ptr_null(ek_plan_mechanism(p, 0, 1));
    ck_assert_str_eq(p->profile, "fedcba9876543210fedcba9876543210");
    ek_plan_free(p);
    ek_plan_free(NULL);
}
END_TEST

/* The first occurrence of `from` in the good plan becomes `to`. */
static const struct {
    const char *from, *to;
    enum ek_status st;
    const char *message; /* part of the line */
} hostile[] = {
    {"{\"format\"", "[{\"format\"", EK_EFORMAT, "not valid JSON"},
    {"evenkeel-plan", "evenkeel-profile", EK_EFORMAT, "format must be"},
    {"\"version\": 1", "\"version\": 2", EK_EUNSUPPORTED, "version 2"},
    {"\"version\": 1", "\"version\": \"1\"", EK_EFORMAT, "version must be a whole number"},
    {"\"version\": 1,", "", EK_EFORMAT, "version must be"},
    {"0123456789abcdef01", "0123456789ABCDEF01", EK_EFORMAT, "model.hash must be 32 hex"},
    {"0123456789abcdef01", "0123", EK_EFORMAT, "model.hash must be 32 hex"},
    {"0123456789abcdef01", "0123456789abcdef0123456789abcdef", EK_EFORMAT, "too long"},
    {"\"name\": \"tiny\"", "\"name\": \"a\\nb\"", EK_EFORMAT, "control character"},
    {"\"name\": \"tiny\"", "\"name\": \"a\", \"name\": \"b\"", EK_EFORMAT, "duplicate"},
    {"\"batch\": 4", "\"batch\": 0", EK_EFORMAT, "workload.batch"},
    {"\"batch\": 4", "\"batch\": -4", EK_EFORMAT, "workload.batch"},
    {"\"batch\": 4", "\"batch\": 4.5", EK_EFORMAT, "workload.batch"},
    {"\"batch\": 4", "\"batch\": 1e30", EK_EFORMAT, "workload.batch"},
    {"\"batch\": 4", "\"batch\": 99999999999", EK_EFORMAT, "workload.batch"},
    {"\"batch\": 4", "\"batch\": NaN", EK_EFORMAT, "not valid JSON"},
    {"\"micro_batches\": 2", "\"micro_batches\": 0", EK_EFORMAT, "micro_batches"},
    {"\"micro_batches\": 2", "\"micro_batches\": 5", EK_EFORMAT, "micro_batches"},
    {"\"prefill_chunk\": 16", "\"prefill_chunk\": 0", EK_EFORMAT, "prefill_chunk"},
    {"\"context\": 128", "\"context\": 127", EK_EFORMAT, "127, less than prompt + generate"},
    {"\"cache\": \"F32\"", "\"cache\": \"Q4_1\"", EK_EFORMAT, "workload.cache must be F32"},
    {"\"act\": \"F32\"", "\"act\": \"F64\"", EK_EFORMAT, "workload.act must be F32"},
    {"\"devices\": [", "\"devices\": 7, \"x\": [", EK_EFORMAT, "devices must be an array"},
    {"\"name\": \"cpu:1\"", "\"name\": \"cpu:0\"", EK_EFORMAT, "declared twice"},
    {"\"name\": \"cpu:1\"", "\"name\": \"\"", EK_EFORMAT, "needs a name"},
    {"\"name\": \"cpu:1\"", "\"name\": \"cpu:1234567890123456789012345678901\"", EK_EFORMAT,
     "too long"},
    {"\"memory\": 1000000", "\"memory\": -1", EK_EFORMAT, "devices[0].memory"},
    {"\"to\": \"cpu:0\"", "\"to\": \"cpu:7\"", EK_EFORMAT, "links[0]: 'cpu:7' is not among"},
    {"\"mechanism\": \"copy\"", "\"mechanism\": \"a mechanism of many letters\"", EK_EFORMAT,
     "links[0].mechanism"},
    {"\"links\": [", "\"links\": [{}, {}, {}, {}, ", EK_EFORMAT, "5 links between 2 devices"},
    {"\"links\": [", "\"links\": [3, ", EK_EFORMAT, "links[0] must be an object"},
    {"\"links\": [", "\"links\": {}, \"x\": [", EK_EFORMAT, "links must be an array"},
    {"\"stages\": [", "\"stages\": [], \"x\": [", EK_EFORMAT, "stages must hold"},
    {"{\"device\": \"cpu:0\", \"modules\"", "{\"device\": \"cuda:3\", \"modules\"", EK_EFORMAT,
     "stages[0].device 'cuda:3' is not among devices"},
    {"[\"model.norm\", \"lm_head\"]", "[]", EK_EFORMAT, "stages[1].modules must hold"},
    {"[\"model.norm\", \"lm_head\"]", "[\"model.norm\", 3]", EK_EFORMAT, "must be a name"},
    {"[\"model.norm\", \"lm_head\"]", "[\"model.norm\", \"\"]", EK_EFORMAT, "must be a name"},
    {"[\"model.norm\", \"lm_head\"]", "[\"model.layers.0\", \"lm_head\"]", EK_EFORMAT,
     "'model.layers.0' is in stages[0] and in stages[1]"},
    {"\"prefill_s\": 0.1", "\"prefill_s\": -0.1", EK_EFORMAT, "stages[0].prefill_s"},
    {"\"prefill_s\": 0.1", "\"tensor_parallel\": [\"cpu:0\", \"cpu:1\"]", EK_EUNSUPPORTED,
     "tensor-parallel over 2"},
    {"\"name\": \"cpu:1\"", "\"name\": \"cpu:1\", \"calibration\": {\"prefill\": 0}", EK_EFORMAT,
     "calibration.prefill"},
    {"\"name\": \"cpu:1\"", "\"name\": \"cpu:1\", \"calibration\": 2", EK_EFORMAT,
     "calibration must be an object"},
    {"\"prefill_s\": 0.1", "\"prefill_s\": 1e999", EK_EFORMAT, "not valid JSON"},
    {"\"weights\": 5", "\"weights\": 6", EK_EFORMAT, "parts add up to 11"},
    {"\"budget\": 15}", "\"budget\": 14}", EK_EFORMAT, "above the budget 14"},
    {"\"budget\": 1000000", "\"budget\": 1000001", EK_EFORMAT, "above the device's 1000000"},
    {"{\"device\": \"cpu:1\", \"weights\"", "{\"device\": \"cpu:0\", \"weights\"", EK_EFORMAT,
     "twice"},
    {"{\"device\": \"cpu:1\", \"weights\"", "{\"device\": \"cpu:7\", \"weights\"", EK_EFORMAT,
     "not among devices"},
    {"\"memory\": [{\"device\"", "\"memory\": [], \"x\": [{\"device\"", EK_EFORMAT, "0 items"},
    {"\"predicted\": {", "\"predicted\": 3, \"x\": {", EK_EFORMAT, "predicted must be an object"},
    {"fedcba", "xxxxxx", EK_EFORMAT, "profile.identity must be 32 hex"},
};

START_TEST(a_hostile_plan_is_refused_in_one_line)
{
    const char *at = strstr(good, hostile[_i].from);
    struct ek_plan *p = NULL;
    char *text;

    ck_assert_msg(at != NULL, "%s", hostile[_i].from);
    text = ek_asprintf("%.*s%s%s", (int)(at - good), good, hostile[_i].to,
                       at + strlen(hostile[_i].from));
    ck_assert_int_eq(parse(text, &p), hostile[_i].st);
    ck_assert_ptr_null(p);
    ck_assert_msg(strstr(ek_last_error(), hostile[_i].message) != NULL, "%s", ek_last_error());
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "plan.json"));
    free(text);
}
END_TEST

START_TEST(a_plan_cut_short_anywhere_is_refused)
{
    struct ek_plan *p = NULL;

    for (size_t n = 0; n < strlen(good); n++)
        ck_assert_int_eq(ek_plan_parse(good, n, "plan.json", &p), EK_EFORMAT);
    ck_assert_int_eq(ek_plan_read("no-such-plan.json", &p), EK_EENV);
}
END_TEST

/* ---- against a model */
START_TEST(a_plan_must_cover_its_model_exactly)
{
    struct ek_model *m = small_model(2);
    struct ek_plan *p = one_device_plan(m);
    char **names = p->stages[0].modules, *other = ek_strdup("model.layers.9"), *kept;

    ck_ok(ek_plan_check(p, m));
    p->stages[0].n_modules--; /* no head */
    ck_assert_int_eq(ek_plan_check(p, m), EK_EFORMAT);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "'lm_head' is on no device"));
    p->stages[0].n_modules++;
    kept = names[1], names[1] = names[2], names[2] = kept;
    ck_assert_int_eq(ek_plan_check(p, m), EK_EFORMAT);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "order broken"));
    kept = names[1], names[1] = names[2], names[2] = kept;
    kept = names[1], names[1] = other;
    ck_assert_int_eq(ek_plan_check(p, m), EK_EFORMAT);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "model.layers.9"));
    names[1] = names[2];
    ck_assert_int_eq(ek_plan_check(p, m), EK_EFORMAT);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "assigned twice"));
    names[1] = kept;
    p->model_hash[0] ^= 1;
    ck_assert_int_eq(ek_plan_check(p, m), EK_EFORMAT);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), m->hash));
    free(other);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

START_TEST(the_plan_of_one_device_covers_the_model)
{
    struct ek_model *m = small_model(2);
    struct ek_device_spec spec = {.name = "cpu:0", .backend = "cpu", .threads = "0"};
    struct ek_plan *p = NULL;

    ck_ok(ek_plan_single(m, &spec, 3, 1000, &p));
    ck_ok(ek_plan_check(p, m));
    ck_assert_uint_eq(p->batch, 3);
    ck_assert_uint_eq(p->context, 1000);
    ek_plan_free(p);
    ck_assert_int_eq(ek_plan_single(m, &spec, 0, 1000, &p), EK_EUSAGE);
    ek_model_close(m);
}
END_TEST

/* ---- memory */
static struct ek_plan *split_plan(const struct ek_model *m)
{
    uint32_t cuts[] = {2, (uint32_t)m->n_modules - 1, (uint32_t)m->n_modules}, order[] = {0, 1, 0};
    struct plan_shape shape = {.n_devices = 2, .n_stages = 3, .cuts = cuts, .order = order};

    return make_plan(m, &shape);
}

START_TEST(predicted_memory_is_what_is_allocated)
{
    struct ek_model *m = small_model(3);
    struct ek_plan *p = split_plan(m);
    struct ek_stage_options o = ek_plan_stage_options(p, NULL);
    struct ek_engine *e = open_engine(m, p);
    uint64_t want[2][EK_N_TAGS] = {{0}}, by_tag[EK_N_TAGS];
    struct ek_link_bytes link;
    size_t at = 0;

    for (size_t i = 0; i < p->n_stages; i++) {
        struct ek_device *dev = ek_engine_device(e, p->stages[i].device);
        size_t modules[8], n = p->stages[i].n_modules;
        for (size_t k = 0; k < n; k++)
            modules[k] = at++;
        o.shared_embed = i == 2; /* the tied head is on the embedding's device */
        ck_ok(ek_stage_memory(dev, m, modules, n, &o, by_tag));
        for (int t = 0; t < EK_N_TAGS; t++)
            want[p->stages[i].device][t] += by_tag[t];
        if (i + 1 == p->n_stages)
            break;
        ck_ok(ek_link_memory(dev, ek_engine_device(e, p->stages[i + 1].device), NULL,
                             (size_t)o.max_tokens * m->config.hidden, &link));
        want[p->stages[i].device][EK_TAG_COMM] += link.at_from;
        want[p->stages[i + 1].device][EK_TAG_COMM] += link.at_to;
    }
    for (size_t d = 0; d < 2; d++) {
        struct ek_usage use[EK_N_TAGS];
        ek_engine_usage(e, d, use);
        for (int t = 0; t < EK_N_TAGS; t++)
            if (t != EK_TAG_WORKSPACE)
                ck_assert_msg(use[t].peak == want[d][t], "device %zu, %s: %llu, predicted %llu", d,
                              ek_tag_names[t], (unsigned long long)use[t].peak,
                              (unsigned long long)want[d][t]);
    }
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

START_TEST(a_plan_that_does_not_fit_is_refused_with_the_context_that_would)
{
    struct ek_model *m = small_model(3);
    struct ek_plan *p = one_device_plan(m);
    struct ek_engine_options options = {.max_context = 4096};
    struct ek_engine *e = NULL;
    const char *hint;
    unsigned context = 0;

    p->devices[0].memory = 2000000;
    ck_assert_int_eq(ek_engine_open(m, p, &options, &e), EK_EENV);
    ck_assert_ptr_null(e);
    hint = strstr(ek_last_error(), "would fit is ");
    ck_assert_msg(hint != NULL, "%s", ek_last_error());
    ck_assert_int_eq(sscanf(hint, "would fit is %u", &context), 1);
    ck_assert_uint_gt(context, 0);
    options.max_context = context;
    ck_ok(ek_engine_open(m, p, &options, &e));
    ek_engine_close(e);
    options.max_context = context + EK_PAGE;
    ck_assert_int_eq(ek_engine_open(m, p, &options, &e), EK_EENV);
    p->devices[0].memory = 1000;
    ck_assert_int_eq(ek_engine_open(m, p, &options, &e), EK_EENV);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "whatever the context"));
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

START_TEST(a_plan_for_another_device_is_refused)
{
    struct ek_model *m = small_model(1);
    struct ek_plan *p = one_device_plan(m);
    struct ek_engine_options options = {0};
    struct ek_engine *e = NULL;

    strcpy(p->uuids[0], "another");
    ck_assert_int_eq(ek_engine_open(m, p, &options, &e), EK_EENV);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "another"));
    p->uuids[0][0] = '\0';
    strcpy(p->devices[0].backend, "tpu");
    ck_assert_int_ne(ek_engine_open(m, p, &options, &e), EK_OK);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("plan");
    TCase *tc = tcase_create("plan");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_plan_is_read_whole);
    tcase_add_loop_test(tc, a_hostile_plan_is_refused_in_one_line, 0, EK_ARRAY_LEN(hostile));
    tcase_add_test(tc, a_plan_cut_short_anywhere_is_refused);
    tcase_add_test(tc, a_plan_must_cover_its_model_exactly);
    tcase_add_test(tc, the_plan_of_one_device_covers_the_model);
    tcase_add_test(tc, predicted_memory_is_what_is_allocated);
    tcase_add_test(tc, a_plan_that_does_not_fit_is_refused_with_the_context_that_would);
    tcase_add_test(tc, a_plan_for_another_device_is_refused);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
