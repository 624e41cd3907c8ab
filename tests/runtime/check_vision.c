/* SPDX-License-Identifier: Apache-2.0
 *
 * Models that see: from pixels to the official logits, whatever module is where; pictures in
 * generation; what is refused.
 */
#include "tests/runtime/support.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *model, *reference;
} cases[] = {
    {"qwen2.5-vl", "reference"},        {"qwen2.5-vl", "reference-video"},
    {"deepseek-vl2-tiny", "reference"}, {"deepseek-vl2-small", "reference"},
    {"deepseek-vl2", "reference"},
};

static struct ek_reference *read_reference(size_t i)
{
    struct ek_reference *r = NULL;
    char path[256];

    snprintf(path, sizeof(path), "fixtures/reference/%s/%s.safetensors", cases[i].model,
             cases[i].reference);
    ck_ok(ek_reference_read(source_path(path), &r));
    return r;
}

/* ---- Placements ---------------------------------------------------------------------------------
 */
enum placement { TOGETHER, TOWER, PROJECTOR, VECTOR, EMBED, NORM, HEAD, SIDES, EACH, N_PLACEMENTS };
static const char *const placement_names[] = {"together", "tower", "projector", "vector", "embed",
                                              "norm",     "head",  "sides",     "each"};

/* The device of a module; -1: stays where the one before is. */
static bool apart(enum placement how, const struct ek_module *mod)
{
    static const enum ek_module_kind kinds[] = {
        [TOWER] = EK_MODULE_VISION, [PROJECTOR] = EK_MODULE_PROJECTOR, [VECTOR] = EK_MODULE_VECTOR,
        [EMBED] = EK_MODULE_EMBED,  [NORM] = EK_MODULE_NORM,           [HEAD] = EK_MODULE_HEAD};

    if (how == EACH)
        return true;
    if (how == SIDES)
        return mod->side;
    return how != TOGETHER && mod->kind == kinds[how];
}

static bool applies(enum placement how, const struct ek_model *m)
{
    bool any = false, projector = ek_model_find(m, "projector") >= 0;

    for (size_t i = 0; i < m->n_modules; i++)
        any |= apart(how, &m->modules[i]);
    return how == TOGETHER || (any && (projector || how != PROJECTOR));
}

/* Modules that are apart on device 1 (of EACH: on devices 0 and 1 by turns), the rest on 0. */
static struct ek_plan *place(const struct ek_model *m, enum placement how, uint32_t chunk)
{
    struct plan_shape shape = {.n_devices = 2, .batch = 2, .context = 160, .chunk = chunk};
    uint32_t devices[64] = {0};

    for (uint32_t i = 0; i < m->n_modules; i++)
        devices[i] = how == EACH ? i % 2 : apart(how, &m->modules[i]);
    return plan_by_module(m, &shape, devices);
}

/* Parts of the tower before `first` on device 0, those before `second` on device 1, everything else
 * on device `rest`. */
static struct ek_plan *place_cut(const struct ek_model *m, size_t first, size_t second,
                                 uint32_t rest)
{
    struct plan_shape shape = {.n_devices = 3, .batch = 2, .context = 160, .chunk = 64};
    uint32_t devices[64] = {0};
    size_t part = 0;

    for (size_t i = 0; i < m->n_modules; i++) {
        const struct ek_module *mod = &m->modules[i];
        bool visual = ek_module_is_visual(mod) && mod->kind != EK_MODULE_VECTOR;

        devices[i] = !visual || part >= second ? rest : part >= first;
        part += visual;
    }
    return plan_by_module(m, &shape, devices);
}

static double relative_difference(const struct ek_model *m, const struct ek_plan *p,
                                  const struct ek_engine_options *opt, const struct ek_reference *r)
{
    static const struct ek_tolerance tolerance = {.relative = 1e-4};
    struct ek_comparison c;
    struct ek_engine *e = NULL;

    ck_ok(ek_engine_open(m, p, opt, &e));
    ck_ok(ek_compare(e, r, &c));
    ck_ok(ek_comparison_judge(&c, &tolerance));
    ck_assert_uint_eq(c.rows, r->n_rows);
    ek_engine_close(e);
    return c.max_abs / c.max_logit;
}

START_TEST(logits_are_the_official_ones_wherever_modules_are)
{
    struct ek_model *m = fixture_model(cases[_i].model);
    struct ek_reference *r = read_reference((size_t)_i);
    struct ek_engine_options none = {0};
    double worst = 0;

    ck_assert_uint_ge(r->n_items, 1);
    for (enum placement how = 0; how < N_PLACEMENTS; how++) {
        struct ek_plan *p;
        double d;
        if (!applies(how, m))
            continue;
        p = place(m, how, 64);
        d = relative_difference(m, p, &none, r);
        worst = d > worst ? d : worst;
        printf("%-18s %-16s %-9s %.2e\n", cases[_i].model, cases[_i].reference,
               placement_names[how], d);
        ek_plan_free(p);
    }
    ek_reference_free(r);
    ek_model_close(m);
}
END_TEST

START_TEST(towers_may_be_cut_anywhere)
{
    struct ek_model *m = fixture_model(cases[_i].model);
    struct ek_reference *r = read_reference((size_t)_i);
    /* few: several parts under way, the largest slice each */
    struct ek_engine_options none = {0},
                             few = {.max_patches = m->config.vision == EK_VISION_QWEN25 ? 120 : 25};
    double whole = 0;
    size_t parts;

    ck_ok(ek_model_cut_tower(m));
    parts = m->config.vision_layers + 2 + (ek_model_find(m, "projector") >= 0);
    for (size_t second = 0; second <= parts; second++)
        for (size_t first = 0; first <= second; first++) {
            struct ek_plan *p = place_cut(m, first, second, second % 3);
            double d = relative_difference(m, p, first == 1 ? &few : &none, r);
            if (second == 0)
                whole = d;
            ck_assert_msg(d == whole, "%s cut before parts %zu and %zu: %g, whole %g",
                          cases[_i].model, first, second, d, whole);
            ek_plan_free(p);
        }
    ek_reference_free(r);
    ek_model_close(m);
}
END_TEST

START_TEST(plans_say_whether_the_tower_is_cut)
{
    struct ek_model *m = fixture_model(cases[_i].model), *n = fixture_model(cases[_i].model);
    struct ek_plan *whole = place(m, EACH, 64), *cut;

    ck_ok(ek_plan_cut_tower(whole, n));
    ck_assert_uint_eq(n->n_modules, m->n_modules);
    ck_ok(ek_model_cut_tower(m));
    cut = place(m, EACH, 64);
    ck_assert_int_eq(ek_plan_check(cut, n), EK_EFORMAT);
    ck_ok(ek_plan_cut_tower(cut, n));
    ck_ok(ek_plan_check(cut, n));
    ck_assert_int_eq(ek_plan_check(whole, n), EK_EFORMAT);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "which the model"));
    ek_plan_free(whole), ek_plan_free(cut);
    ek_model_close(m), ek_model_close(n);
}
END_TEST

/* A recorded run is a reference of its own: the same ids, pictures, positions, and equal logits. */
START_TEST(runs_with_pictures_can_be_recorded)
{
    struct ek_model *m = fixture_model(cases[_i].model);
    struct ek_reference *r = read_reference((size_t)_i), *again = NULL;
    struct ek_plan *p = place(m, TOWER, 64);
    struct ek_engine *e = open_engine(m, p);
    struct ek_comparison c;
    char path[] = "check-vision-XXXXXX";
    int fd = mkstemp(path);

    ck_assert_int_ge(fd, 0);
    close(fd);
    ck_ok(ek_reference_record(e, r, path, true));
    ck_ok(ek_reference_read(path, &again));
    unlink(path);
    ck_assert_uint_eq(again->n_items, r->n_items);
    ck_assert_uint_eq(again->n_frames, r->n_frames);
    ck_assert_uint_eq(again->n_ids, r->n_ids);
    ck_assert_int_eq(memcmp(again->ids, r->ids, r->n_ids * sizeof(*r->ids)), 0);
    ck_assert_int_eq(again->position_ids != NULL, m->config.vision == EK_VISION_QWEN25);
    ck_ok(ek_compare(e, again, &c));
    ck_assert_uint_eq(c.rows, r->n_ids);
    ck_assert_double_eq(c.max_abs, 0);
    ek_engine_close(e);
    ek_plan_free(p);
    ek_reference_free(r), ek_reference_free(again);
    ek_model_close(m);
}
END_TEST

START_TEST(pictures_may_be_cut_by_chunks_and_encoded_in_parts)
{
    static const uint32_t chunks[] = {1, 7, 160};
    struct ek_model *m = fixture_model(cases[_i].model);
    struct ek_reference *r = read_reference((size_t)_i);
    /* the largest slice of the fixtures: 10 x 12 patches; tiles have 25 */
    struct ek_engine_options opt = {.max_patches = m->config.vision == EK_VISION_QWEN25 ? 120 : 50};

    for (size_t i = 0; i < EK_ARRAY_LEN(chunks); i++) {
        struct ek_plan *p = place(m, i == 1 ? PROJECTOR : TOWER, chunks[i]);
        relative_difference(m, p, &opt, r);
        ek_plan_free(p);
    }
    ek_reference_free(r);
    ek_model_close(m);
}
END_TEST

/* ---- Memory -------------------------------------------------------------------------------------
 */
static void check_memory(const struct ek_model *m)
{
    static const struct ek_device_spec spec = {.name = "cpu:0", .backend = "cpu", .threads = "0"};
    struct ek_stage_options o = {.page = EK_PAGE,
                                 .n_blocks = 4,
                                 .max_tokens = 16,
                                 .max_seqs = 2,
                                 .max_context = 128,
                                 .cache = EK_F32};
    struct ek_device *dev = NULL;

    ck_ok(ek_device_open(&spec, EK_F32, &dev));
    for (size_t first = 0; first < m->n_modules; first++)
        for (size_t n = 1; first + n <= m->n_modules; n++) {
            uint64_t said[EK_N_TAGS];
            struct ek_usage used[EK_N_TAGS];
            size_t modules[64];
            struct ek_stage *s = NULL;
            for (size_t i = 0; i < n; i++)
                modules[i] = first + i;
            ck_ok(ek_stage_memory(dev, m, modules, n, &o, said));
            ck_ok(ek_stage_new(dev, m, modules, n, &o, &s));
            dev->ops->usage(dev, used);
            for (int t = 0; t < EK_TAG_WORKSPACE; t++)
                ck_assert_uint_eq(used[t].now, said[t]);
            ek_stage_free(s);
        }
    ek_device_close(dev);
}

START_TEST(memory_is_what_was_said)
{
    struct ek_model *m = fixture_model(cases[_i].model);

    check_memory(m);
    ck_ok(ek_model_cut_tower(m));
    check_memory(m);
    ek_model_close(m);
}
END_TEST

/* ---- Generation ---------------------------------------------------------------------------------
 */
enum { NEW = 6 };

static struct ek_completion *generate(struct ek_engine *e, const struct ek_prompt *prompts,
                                      size_t n, uint32_t max_tokens)
{
    struct ek_generate_options opt = {.sampling = EK_SAMPLING_GREEDY, .max_tokens = max_tokens};
    struct ek_completion *out = NULL;

    ck_ok(ek_generate(e, prompts, n, &opt, &out, NULL));
    return out;
}

/* What is said step by step is what a prefill of everything before it says: positions behind the
 * prompt are right. A prompt without pictures runs beside it. */
START_TEST(generation_goes_on_behind_pictures)
{
    struct ek_model *m = fixture_model(cases[_i].model);
    struct ek_reference *r = read_reference((size_t)_i);
    struct ek_plan *p = place(m, SIDES, 24);
    struct ek_engine *e = open_engine(m, p);
    struct ek_vl_rules rules;
    struct ek_vision_prompt v = {0};
    struct ek_completion *both, *alone;
    int32_t *ids = ek_calloc(r->n_ids + NEW, sizeof(*ids));

    memcpy(ids, r->ids, r->n_ids * sizeof(*ids));
    ck_ok(ek_vl_rules_open(m, &rules));
    ck_ok(ek_vision_prompt_open(e, &rules, ids, r->n_ids, r->items, r->n_items, &v));
    const struct ek_prompt prompts[] = {v.prompt, {.ids = ids, .n = 5}};
    both = generate(e, prompts, 2, NEW);
    ck_assert_uint_eq(both[0].n, NEW);
    alone = generate(e, prompts + 1, 1, NEW);
    ck_assert_int_eq(memcmp(both[1].ids, alone[0].ids, NEW * sizeof(*ids)), 0);
    ek_completions_free(alone, 1);
    ek_vision_prompt_close(&v);
    for (size_t i = 0; i < NEW; i++) {
        ck_ok(ek_vision_prompt_open(e, &rules, ids, r->n_ids + i, r->items, r->n_items, &v));
        alone = generate(e, &v.prompt, 1, 1);
        ck_assert_int_eq(alone[0].ids[0], both[0].ids[i]);
        ids[r->n_ids + i] = both[0].ids[i];
        ek_completions_free(alone, 1);
        ek_vision_prompt_close(&v);
        if (both[0].ids[i] == rules.image_id || both[0].ids[i] == rules.video_id)
            break; /* the next prompt would want another picture */
    }
    ek_completions_free(both, 2);
    free(ids);
    ek_engine_close(e);
    ek_plan_free(p);
    ek_reference_free(r);
    ek_model_close(m);
}
END_TEST

/* ---- Traces -------------------------------------------------------------------------------------
 */
static void check_traces(const struct ek_model *m, const struct ek_plan *p, size_t which)
{
    struct ek_reference *r = read_reference(which);
    struct ek_trace_module *t = NULL;
    struct ek_comparison c;
    size_t n = 0, compared = 0;
    char path[256];

    snprintf(path, sizeof(path), "fixtures/reference/%s/%s.safetensors", cases[which].model,
             cases[which].reference);
    ck_ok(ek_trace(m, p, source_path(path), r, 1e-4, &t, &n, &c));
    for (size_t i = 0; i < n; i++) {
        ck_assert_msg(!t[i].departs, "%s: %g of %g", t[i].name, t[i].max_abs, t[i].largest);
        compared += t[i].rows > 0;
    }
    /* blocks, tower, projector, embedding, layers, norm */
    ck_assert_uint_eq(compared, m->config.vision_layers + 1 + (ek_model_find(m, "projector") >= 0) +
                                    1 + m->config.n_layers + 1);
    free(t);
    ck_ok(ek_trace(m, p, source_path(path), r, 0, &t, &n, &c)); /* nothing is that equal */
    ck_assert(t[0].departs);
    ck_assert_ptr_nonnull(strstr(t[0].name, ".blocks.0"));
    free(t);
    ek_reference_free(r);
}

START_TEST(traces_name_the_first_module_that_departs)
{
    struct ek_model *m = fixture_model(cases[_i].model);

    for (int cut = 0; cut < 2; cut++) {
        struct ek_plan *p = place(m, cut ? EACH : TOWER, 16);
        check_traces(m, p, (size_t)_i);
        ek_plan_free(p);
        ck_ok(ek_model_cut_tower(m));
    }
    ek_model_close(m);
}
END_TEST

/* ---- Refusals -----------------------------------------------------------------------------------
 */
START_TEST(what_does_not_suit_is_refused)
{
    struct ek_model *m = fixture_model("qwen2.5-vl"), *text = fixture_model("llama-mha");
    struct ek_reference *r = read_reference(0);
    struct ek_plan *p = place(m, TOGETHER, 64), *q = one_device_plan(text);
    struct ek_engine_options few = {.max_patches = 116};
    struct ek_engine *e = NULL, *blind = open_engine(text, q);
    struct ek_vl_prompt none = {0};
    struct ek_vl_rules rules = {0};
    struct ek_embeds rows = {0};
    struct ek_comparison c;

    ck_assert_int_eq(ek_engine_encode(blind, &rules, &none, &rows), EK_EUNSUPPORTED);
    ck_assert_int_ne(ek_compare(blind, r, &c), EK_OK);
    ck_ok(ek_engine_open(m, p, &few, &e));
    ck_assert_int_eq(ek_compare(e, r, &c), EK_EUSAGE);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "120 patches at once, at most 116"));
    ek_engine_close(e);
    e = open_engine(m, p);
    r->position_ids[r->n_ids + 20]++;
    ck_assert_int_eq(ek_compare(e, r, &c), EK_NO);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "position h of token 20"));
    ek_engine_close(e);
    ek_engine_close(blind);
    ek_plan_free(p), ek_plan_free(q);
    ek_reference_free(r);
    ek_model_close(m), ek_model_close(text);
}
END_TEST

START_TEST(rows_of_a_step_must_ascend_and_be_of_it)
{
    static const struct ek_embed_row bad[][2] = {{{1, NULL}, {1, NULL}}, {{0, NULL}, {3, NULL}}};
    struct ek_model *m = fixture_model("qwen2.5-vl");
    struct ek_plan *p = place(m, TOGETHER, 64);
    struct ek_engine *e = open_engine(m, p);
    const int32_t tokens[3] = {1, 2, 3};
    const uint32_t n = 3;
    uint32_t seq;
    uint64_t ticket;

    ck_ok(ek_engine_seq_open(e, &seq));
    for (size_t i = 0; i < EK_ARRAY_LEN(bad); i++) {
        struct ek_step step = {.n_seqs = 1,
                               .seqs = &seq,
                               .n_tokens = &n,
                               .tokens = tokens,
                               .embeds = bad[i],
                               .n_embeds = 2};
        ck_assert_int_eq(ek_engine_submit(e, &step, &ticket), EK_EUSAGE);
    }
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("vision");
    TCase *tc = tcase_create("vision");
    int n = (int)EK_ARRAY_LEN(cases), failed;
    SRunner *r;

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, logits_are_the_official_ones_wherever_modules_are, 0, n);
    tcase_add_loop_test(tc, towers_may_be_cut_anywhere, 0, n);
    tcase_add_loop_test(tc, plans_say_whether_the_tower_is_cut, 0, n);
    tcase_add_loop_test(tc, runs_with_pictures_can_be_recorded, 0, n);
    tcase_add_loop_test(tc, pictures_may_be_cut_by_chunks_and_encoded_in_parts, 0, n);
    tcase_add_loop_test(tc, memory_is_what_was_said, 0, n);
    tcase_add_loop_test(tc, generation_goes_on_behind_pictures, 0, n);
    tcase_add_loop_test(tc, traces_name_the_first_module_that_departs, 0, n);
    tcase_add_test(tc, what_does_not_suit_is_refused);
    tcase_add_test(tc, rows_of_a_step_must_ascend_and_be_of_it);
    suite_add_tcase(s, tc);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
