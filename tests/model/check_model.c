/* SPDX-License-Identifier: Apache-2.0
 *
 * Models from their configuration alone: modules, parameters, bytes, operations. The numbers are
 * the published ones, or derived from the published shapes.
 */
#include "model/model.h"
#include "tests/model/files.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct ek_model *open_config(const char *name)
{
    struct ek_model *m = NULL;
    char path[512], below[128];
    enum ek_status st;

    snprintf(below, sizeof(below), "configs/%s", name);
    st = ek_model_open(fixture(below, path), NULL, &m);
    ck_assert_msg(st == EK_OK, "%s", ek_last_error());
    return m;
}

/* ---- Totals -----------------------------------------------------------------------------------*/

static const struct {
    const char *name;
    uint64_t params;
    size_t modules;
    size_t side;
    uint64_t kv; /* bytes a token, 16-bit cache, all layers */
} published[] = {
    {"deepseek-vl2-tiny", 3370501440, 19, 4, 61440},
    {"deepseek-vl2-small", 16148349504, 34, 4, 31104},
    {"deepseek-vl2", 27480134248, 37, 4, 34560},
    {"deepseek-v2-lite", 15706484224, 30, 0, 31104},
    {"deepseek-v2", 235741434880, 63, 0, 69120},
    {"qwen2.5-vl-3b", 3754622976, 40, 1, 36864},
    {"qwen2.5-vl-3b-nested", 3754622976, 40, 1, 36864},
    {"qwen2.5-vl-7b", 8292166656, 32, 1, 57344},
    {"qwen2.5-vl-72b", 73410777344, 84, 1, 327680},
    {"deepseek-llm-7b", 6910365696, 33, 0, 491520},
    {"deepseek-llm-67b", 67425001472, 98, 0, 389120},
    {"smollm2-135m", 134515008, 33, 0, 23040},
    {"qwen2.5-0.5b", 494032768, 27, 0, 12288},
    {"qwen2.5-1.5b", 1543714304, 31, 0, 28672},
    {"qwen2.5-3b", 3085938688, 39, 0, 36864},
    {"qwen2.5-7b", 7615616512, 31, 0, 57344},
    {"qwen2.5-14b", 14770033664, 51, 0, 196608},
    {"qwen2.5-32b", 32763876352, 67, 0, 262144},
    {"qwen2.5-72b", 72706203648, 83, 0, 327680},
    {"llama-3.1-8b", 8030261248, 35, 0, 131072},
    {"llama-3.1-70b", 70553706496, 83, 0, 327680},
    {"llama-3.2-1b", 1235814400, 19, 0, 32768},
    {"llama-3.2-3b", 3212749824, 31, 0, 114688},
};

START_TEST(published_models_have_their_exact_parameters_and_cache)
{
    struct ek_model *m = open_config(published[_i].name);
    uint64_t kv = 0, params = 0;
    size_t side = 0;

    ck_assert_uint_eq(m->n_params, published[_i].params);
    ck_assert_uint_eq(m->n_modules, published[_i].modules);
    for (size_t i = 0; i < m->n_modules; i++) {
        const struct ek_module *mod = &m->modules[i];
        kv += ek_module_kv_bytes(m, mod, EK_BF16);
        side += mod->side;
        ck_assert(mod->side == (i < published[_i].side)); /* side modules come first */
        params += mod->tied_to < 0 ? mod->n_params : 0;
        ck_assert_int_eq(ek_model_find(m, mod->name), (ptrdiff_t)i);
        ck_assert_uint_eq(ek_module_kv_bytes(m, mod, EK_F32),
                          2 * ek_module_kv_bytes(m, mod, EK_F16));
    }
    ck_assert_uint_eq(params, m->n_params);
    ck_assert_uint_eq(side, published[_i].side);
    ck_assert_uint_eq(kv, published[_i].kv);
    ck_assert(!m->has_weights);
    ek_model_close(m);
}
END_TEST

static const struct {
    const char *model, *module;
    double mib; /* of 16-bit weights, to the decimals given */
    double step;
} sizes[] = {
    {"deepseek-vl2-tiny", "language.model.layers.0", 62.7, 0.1},
    {"deepseek-vl2-tiny", "language.model.layers.11", 445.8, 0.1},
    {"deepseek-vl2-tiny", "language.model.embed_tokens", 315.6, 0.1},
    {"deepseek-vl2-tiny", "projector", 14.4, 0.1},
    {"deepseek-vl2-tiny", "vision", 787.7, 0.1}, /* what is loaded: without the pool */
    {"deepseek-vl2-small", "language.model.layers.26", 1115.5, 0.1},
    {"deepseek-vl2", "language.model.layers.0", 240.8, 0.1},
    {"deepseek-vl2", "language.model.layers.29", 1726.2, 0.1},
    {"deepseek-vl2", "language.lm_head", 631.2, 0.1},
    {"deepseek-vl2", "projector", 35.0, 0.1},
    {"deepseek-v2", "model.layers.0", 644.6, 0.1},
    {"deepseek-v2", "model.layers.59", 7576.2, 0.1},
    {"deepseek-v2-lite", "model.layers.0", 154.5, 0.1},
    {"qwen2.5-vl-3b", "visual", 1275.4, 0.1},
    {"qwen2.5-vl-7b", "visual", 1290.4, 0.1},
    {"qwen2.5-vl-72b", "visual", 1343.9, 0.1},
    {"qwen2.5-vl-3b", "model.layers.35", 147.0, 0.1},
    {"qwen2.5-vl-3b", "lm_head", 593.5, 0.1}, /* tied, and still a matrix of that size */
    {"deepseek-llm-67b", "model.layers.94", 1320.0, 0.1},
    {"smollm2-135m", "model.layers.0", 6.75, 0.01},
    {"qwen2.5-72b", "model.layers.3", 1674.1, 0.1},
    {"llama-3.1-70b", "model.layers.3", 1632.0, 0.1},
};

START_TEST(modules_have_their_published_bytes)
{
    struct ek_model *m = open_config(sizes[_i].model);
    ptrdiff_t i = ek_model_find(m, sizes[_i].module);

    ck_assert_int_ge(i, 0);
    ck_assert_double_eq_tol((double)m->modules[i].weight_bytes / (double)EK_MIB, sizes[_i].mib,
                            sizes[_i].step * 0.51);
    ek_model_close(m);
}
END_TEST

START_TEST(modules_are_named_as_in_the_checkpoint_and_in_order)
{
    static const char *const names[] = {"vision",
                                        "projector",
                                        "image_newline",
                                        "view_seperator",
                                        "language.model.embed_tokens",
                                        "language.model.layers.0"};
    struct ek_model *m = open_config("deepseek-vl2");

    for (size_t i = 0; i < EK_ARRAY_LEN(names); i++)
        ck_assert_str_eq(m->modules[i].name, names[i]);
    ck_assert_str_eq(m->modules[m->n_modules - 2].name, "language.model.norm");
    ck_assert_str_eq(m->modules[m->n_modules - 1].name, "language.lm_head");
    ck_assert_str_eq(m->modules[2].tensors[0].name, "image_newline");
    ck_assert_str_eq(ek_module_tensor(&m->modules[6], EK_ROLE_EXPERT_DOWN, 71)->name,
                     "language.model.layers.1.mlp.experts.71.down_proj.weight");
    ck_assert_ptr_nonnull(ek_module_tensor(&m->modules[6], EK_ROLE_ROUTER_BIAS, -1));
    ck_assert_ptr_null(ek_module_tensor(&m->modules[5], EK_ROLE_ROUTER, -1)); /* layer 0: dense */
    ck_assert_int_eq(ek_model_find(m, "model.layers.0"), -1);
    ek_model_close(m);
}
END_TEST

START_TEST(both_dialects_of_qwen_vl_are_one_model)
{
    struct ek_model *flat = open_config("qwen2.5-vl-3b"),
                    *nested = open_config("qwen2.5-vl-3b-nested");

    ck_assert_str_eq(flat->hash, nested->hash);
    ck_assert_str_ne(flat->name, nested->name);
    ck_assert_uint_eq(flat->config.mrope_section[1], 24);
    ck_assert_double_eq(nested->config.vision_tokens_per_second, 2);
    ek_model_close(flat);
    ek_model_close(nested);
}
END_TEST

START_TEST(like_layers_share_a_signature_and_unlike_ones_do_not)
{
    struct ek_model *base = open_config("deepseek-vl2"), *small = open_config("deepseek-vl2-small");
    struct ek_model *lite = open_config("deepseek-v2-lite");
    const struct ek_module *layers = &base->modules[ek_model_find(base, "language.model.layers.0")];

    ck_assert_str_ne(layers[0].signature, layers[1].signature);
    ck_assert_str_eq(layers[1].signature, layers[29].signature);
    ck_assert_str_ne(layers[1].signature,
                     small->modules[ek_model_find(small, "language.model.layers.1")].signature);
    ck_assert_str_eq(lite->modules[ek_model_find(lite, "model.layers.1")].signature,
                     small->modules[ek_model_find(small, "language.model.layers.1")].signature);
    ck_assert_str_eq(lite->modules[ek_model_find(lite, "lm_head")].signature,
                     small->modules[ek_model_find(small, "language.lm_head")].signature);
    ck_assert_str_ne(lite->hash, small->hash);
    ek_model_close(base);
    ek_model_close(small);
    ek_model_close(lite);
}
END_TEST

START_TEST(a_tied_head_shares_the_embedding)
{
    struct ek_model *m = open_config("qwen2.5-vl-3b");
    const struct ek_module *head = &m->modules[m->n_modules - 1];
    const struct ek_module *embed = &m->modules[head->tied_to];

    ck_assert_int_eq(embed->kind, EK_MODULE_EMBED);
    ck_assert_str_eq(head->tensors[0].name, embed->tensors[0].name);
    ck_assert_int_eq(head->tensors[0].role, EK_ROLE_HEAD);
    ck_assert_uint_eq(head->weight_bytes, embed->weight_bytes);
    ek_model_close(m);
}
END_TEST

/* ---- Operations and traffic -------------------------------------------------------------------*/

/* Parameters that one token uses, head counted, embedding not: the papers' figures. */
START_TEST(activated_parameters_are_the_published_ones)
{
    static const struct {
        const char *name;
        double billions, tolerance;
    } cases[] = {{"deepseek-vl2-tiny", 0.574, 0.001},
                 {"deepseek-vl2-small", 2.451, 0.001},
                 {"deepseek-vl2", 4.124, 0.001},
                 {"llama-3.1-8b", 7.505, 0.001}};

    for (size_t i = 0; i < EK_ARRAY_LEN(cases); i++) {
        struct ek_model *m = open_config(cases[i].name);
        double flops = 0;
        for (size_t j = 0; j < m->n_modules; j++)
            if (!m->modules[j].side)
                flops += ek_module_flops(m, &m->modules[j], 1, 1, true);
        ck_assert_double_eq_tol(flops / 2e9, cases[i].billions, cases[i].tolerance);
        ek_model_close(m);
    }
}
END_TEST

START_TEST(causal_attention_is_counted_exactly)
{
    struct ek_model *m = open_config("llama-3.1-8b");
    const struct ek_module *layer = &m->modules[3];
    double linear = ek_module_flops(m, layer, 1, 1, true);
    /* 2 products of 4096 multiply-adds a pair */
    double pair = 2.0 * 2 * 4096;

    ck_assert_double_eq(linear, 2.0 * (4096.0 * (4096 + 1024 + 1024 + 4096) + 3 * 4096.0 * 14336));
    ck_assert_double_eq(ek_module_flops(m, layer, 1, 1, false), linear + pair);
    ck_assert_double_eq(ek_module_flops(m, layer, 1, 100, false), linear + 100 * pair);
    ck_assert_double_eq(ek_module_flops(m, layer, 3, 10, false), 3 * linear + (8 + 9 + 10) * pair);
    ck_assert_double_eq(ek_module_flops(m, &m->modules[0], 5, 5, false), 0);
    ek_model_close(m);
}
END_TEST

START_TEST(latent_attention_costs_the_cheaper_of_its_forms)
{
    struct ek_model *m = open_config("deepseek-v2-lite");
    const struct ek_module *layer = &m->modules[3];
    double linear = ek_module_flops(m, layer, 1, 1, true);
    double whole = 2.0 * 16 * (192 + 128), absorbed = 2.0 * 16 * (2 * 512 + 64);

    /* a prompt makes keys and values anyway; a step over a long cache stays in latent space */
    ck_assert_double_eq(ek_module_flops(m, layer, 100, 100, false), 100 * linear + 5050 * whole);
    ck_assert_double_eq(ek_module_flops(m, layer, 1, 4096, false), linear + 4096 * absorbed);
    ek_model_close(m);
}
END_TEST

START_TEST(reads_count_the_rows_and_experts_that_tokens_touch)
{
    struct ek_model *m = open_config("deepseek-vl2");
    const struct ek_module *embed = &m->modules[4], *dense = &m->modules[5], *moe = &m->modules[6];
    double expert = 3.0 * 2560 * 1536 * 2, one, many;

    ck_assert_double_eq(ek_module_read_bytes(m, embed, 3), 3 * 2560 * 2);
    ck_assert_double_eq(ek_module_read_bytes(m, dense, 7), (double)dense->weight_bytes);
    one = ek_module_read_bytes(m, moe, 1);
    ck_assert_double_eq_tol(one, (double)moe->weight_bytes - (72 - 6) * expert, 16);
    many = ek_module_read_bytes(m, moe, 4096);
    ck_assert_double_eq_tol(many, (double)moe->weight_bytes, expert * 1e-3);
    ck_assert(ek_module_read_bytes(m, moe, 2) > one + 5 * expert);
    ck_assert(ek_module_read_bytes(m, moe, 2) < one + 6 * expert);
    ek_model_close(m);
}
END_TEST

START_TEST(boundaries_carry_hidden_states_and_the_head_logits)
{
    struct ek_model *m = open_config("deepseek-vl2");

    ck_assert_uint_eq(ek_module_boundary_bytes(m, &m->modules[5], EK_BF16), 5120);
    ck_assert_uint_eq(ek_module_boundary_bytes(m, &m->modules[5], EK_F32), 10240);
    ck_assert_uint_eq(ek_module_boundary_bytes(m, &m->modules[m->n_modules - 1], EK_BF16),
                      129280 * 4);
    /* 729 patches of 1152 become 196 tokens */
    ck_assert_uint_eq(ek_module_boundary_bytes(m, &m->modules[0], EK_BF16),
                      (uint64_t)ceil(1152 * 2 * 729.0 / 196));
    ck_assert_uint_eq(ek_module_kv_bytes(m, &m->modules[5], EK_Q8_0), 34 * (512 + 64) / 32);
    ck_assert_uint_eq(ek_module_kv_bytes(m, &m->modules[4], EK_F16), 0);
    ek_model_close(m);
}
END_TEST

START_TEST(towers_count_their_windows_and_whole_images)
{
    struct ek_model *m = open_config("qwen2.5-vl-3b");
    const struct ek_module *visual = &m->modules[0];
    double patches = 4096, width = 1280, linear = ek_module_flops(m, visual, 1024, 0, true);
    double attention = ek_module_flops(m, visual, 1024, 0, false) - linear;
    double merger = 5120.0 * 5120 + 2048.0 * 5120;
    double block = width * (3840 + 1280) + 3 * width * 3420;

    ck_assert_double_eq_tol(linear, 2 * (patches * (32 * block + 1176 * width) + 1024 * merger),
                            linear * 1e-12);
    ck_assert_double_eq_tol(attention, 4 * patches * width * (4 * patches + 28 * 64),
                            attention * 1e-12);
    ek_model_close(m);
}
END_TEST

static const struct {
    const char *name, *first, *last;
    size_t sides, signatures; /* signatures: of the blocks */
} cuts[] = {
    {"qwen2.5-vl-3b", "visual.patch_embed", "visual.merger", 0, 2},
    {"qwen2.5-vl-3b-nested", "visual.patch_embed", "visual.merger", 0, 2},
    {"deepseek-vl2-small", "vision.patch_embed", "projector", 2, 1},
};

static double visual_flops(const struct ek_model *m)
{
    double sum = 0;

    for (size_t i = 0; i < m->n_modules; i++)
        if (ek_module_is_visual(&m->modules[i]))
            sum += ek_module_flops(m, &m->modules[i], 1024, 0, false);
    return sum;
}

static uint64_t all_bytes(const struct ek_model *m)
{
    uint64_t n = 0;

    for (size_t i = 0; i < m->n_modules; i++)
        n += m->modules[i].weight_bytes;
    return n;
}

START_TEST(a_cut_tower_is_the_same_model_in_more_modules)
{
    struct ek_model *m = open_config(cuts[_i].name);
    uint64_t bytes = all_bytes(m), params = m->n_params;
    size_t n = m->n_modules, first = cuts[_i].sides, parts = m->config.vision_layers + 2;
    size_t unlike = 0;
    double flops = visual_flops(m);
    char hash[33];

    memcpy(hash, m->hash, sizeof(hash));
    for (int again = 0; again < 2; again++)
        ck_assert_int_eq(ek_model_cut_tower(m), EK_OK);
    ck_assert_uint_eq(m->n_modules, n - 1 + parts);
    ck_assert_str_eq(m->hash, hash);
    ck_assert_uint_eq(m->n_params, params);
    ck_assert_uint_eq(all_bytes(m), bytes);
    ck_assert_double_eq_tol(visual_flops(m), flops, flops * 1e-12);
    ck_assert_str_eq(m->modules[first].name, cuts[_i].first);
    ck_assert_ptr_nonnull(strstr(m->modules[first + 1].name, ".blocks.0"));
    for (size_t i = 0; i < m->n_modules; i++) {
        const struct ek_module *mod = &m->modules[i];
        ck_assert_int_eq(mod->side, i < first);
        if (mod->kind == EK_MODULE_EMBED)
            ck_assert_str_eq(mod[-1].name, cuts[_i].last);
        if (mod->kind == EK_MODULE_BLOCK && mod->layer > 0)
            unlike += strcmp(mod->signature, mod[-1].signature) != 0;
        if (mod->tied_to >= 0)
            ck_assert_int_eq(m->modules[mod->tied_to].kind, EK_MODULE_EMBED);
    }
    /* Qwen2.5-VL: blocks 7, 15, 23 and 31 attend to the whole image */
    ck_assert_uint_eq(unlike, cuts[_i].signatures == 2 ? 7 : 0);
    ek_model_close(m);
}
END_TEST

START_TEST(only_towers_can_be_cut)
{
    struct ek_model *m = open_config("smollm2-135m");

    ck_assert_int_eq(ek_model_cut_tower(m), EK_EUNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "no vision tower"));
    ek_model_close(m);
}
END_TEST

START_TEST(the_json_lists_every_module)
{
    struct ek_model *m = open_config("deepseek-vl2-tiny");
    json_t *o = ek_model_json(m), *modules = json_object_get(o, "modules");
    char *text = ek_json_text(o), *again;
    json_t *same = ek_model_json(m);

    ck_assert_uint_eq(json_array_size(modules), m->n_modules);
    ck_assert_int_eq(json_integer_value(json_object_get(o, "params")), 3370501440);
    ck_assert_str_eq(json_string_value(json_object_get(json_array_get(modules, 0), "kind")),
                     "vision");
    again = ek_json_text(same);
    ck_assert_str_eq(text, again);
    free(text);
    free(again);
    json_decref(o);
    json_decref(same);
    ek_model_close(m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("model");
    TCase *tc = tcase_create("model");
    SRunner *sr;
    int failed;

    tcase_add_loop_test(tc, published_models_have_their_exact_parameters_and_cache, 0,
                        EK_ARRAY_LEN(published));
    tcase_add_loop_test(tc, modules_have_their_published_bytes, 0, EK_ARRAY_LEN(sizes));
    tcase_add_test(tc, modules_are_named_as_in_the_checkpoint_and_in_order);
    tcase_add_test(tc, both_dialects_of_qwen_vl_are_one_model);
    tcase_add_test(tc, like_layers_share_a_signature_and_unlike_ones_do_not);
    tcase_add_test(tc, a_tied_head_shares_the_embedding);
    tcase_add_test(tc, activated_parameters_are_the_published_ones);
    tcase_add_test(tc, causal_attention_is_counted_exactly);
    tcase_add_test(tc, latent_attention_costs_the_cheaper_of_its_forms);
    tcase_add_test(tc, reads_count_the_rows_and_experts_that_tokens_touch);
    tcase_add_test(tc, boundaries_carry_hidden_states_and_the_head_logits);
    tcase_add_test(tc, towers_count_their_windows_and_whole_images);
    tcase_add_loop_test(tc, a_cut_tower_is_the_same_model_in_more_modules, 0, EK_ARRAY_LEN(cuts));
    tcase_add_test(tc, only_towers_can_be_cut);
    tcase_add_test(tc, the_json_lists_every_module);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
