/* SPDX-License-Identifier: Apache-2.0
 *
 * config.json: dialects, defaults, and what is refused.
 */
#include "model/internal.h"
#include "tests/model/files.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char llama[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"intermediate_size\":96,"
    "\"vocab_size\":256,\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,\"torch_dtype\":\"bfloat16\"}";

static const char deepseek[] =
    "{\"architectures\":[\"DeepseekV2ForCausalLM\"],\"hidden_size\":64,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"intermediate_size\":96,\"vocab_size\":256,\"q_lora_rank\":null,"
    "\"kv_lora_rank\":32,\"n_routed_experts\":8,\"num_experts_per_tok\":3,\"n_group\":4,"
    "\"topk_group\":2,\"topk_method\":\"group_limited_greedy\",\"moe_intermediate_size\":24}";

static const char vl[] =
    "{\"architectures\":[\"Qwen2_5_VLForConditionalGeneration\"],\"hidden_size\":64,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
    "\"intermediate_size\":96,\"vocab_size\":256,\"rope_scaling\":{\"type\":\"mrope\","
    "\"mrope_section\":[2,3,3]},\"vision_config\":{\"hidden_size\":32,\"depth\":4,"
    "\"num_heads\":2,\"intermediate_size\":48,\"out_hidden_size\":64,"
    "\"fullatt_block_indexes\":[1,3]}}";

/* The base with the patch's keys set; a key of value "-" is removed. */
static enum ek_status parse(const char *base, const char *patch, struct ek_config *c)
{
    const struct ek_family *family;
    json_t *root = json_loads(base, 0, NULL), *changes = NULL, *v;
    const char *key;
    void *next;
    enum ek_status st = ek_json_parse(patch, strlen(patch), "patch", &changes);

    if (st != EK_OK) { /* not even JSON */
        json_decref(root);
        return st;
    }
    if (!json_is_object(changes)) {
        json_decref(root);
        root = json_incref(changes);
    }
    json_object_update_recursive(root, changes);
    json_object_foreach_safe(changes, next, key, v)
    {
        if (json_is_string(v) && strcmp(json_string_value(v), "-") == 0)
            json_object_del(root, key);
    }
    st = ek_config_parse(root, "config.json", c, &family);
    json_decref(root);
    json_decref(changes);
    return st;
}

static const struct {
    const char *base, *patch;
    enum ek_status st;
    const char *message;
} hostile[] = {
    {llama, "[]", EK_EFORMAT, "must be an object"},
    {llama, "{\"hidden_size\":\"-\"}", EK_EFORMAT, "hidden_size must be a whole number, got noth"},
    {llama, "{\"hidden_size\":null}", EK_EFORMAT, "hidden_size must be a whole number, got null"},
    {llama, "{\"hidden_size\":\"64\"}", EK_EFORMAT, "hidden_size must be a whole number"},
    {llama, "{\"hidden_size\":64.5}", EK_EFORMAT, "hidden_size must be a whole number"},
    {llama, "{\"hidden_size\":0}", EK_EFORMAT, "from 1 to 16777216, got 0"},
    {llama, "{\"hidden_size\":-64}", EK_EFORMAT, "got -64"},
    {llama, "{\"num_hidden_layers\":1025}", EK_EFORMAT, "from 1 to 1024, got 1025"},
    {llama, "{\"num_hidden_layers\":[]}", EK_EFORMAT, "an array"},
    {llama, "{\"num_attention_heads\":0}", EK_EFORMAT, "num_attention_heads must be"},
    {llama, "{\"num_key_value_heads\":3}", EK_EFORMAT, "4 attention heads are no multiple of 3"},
    {llama, "{\"num_attention_heads\":100,\"num_key_value_heads\":50}", EK_EFORMAT,
     "head_dim is 0"},
    {llama, "{\"head_dim\":0}", EK_EFORMAT, "head_dim must be"},
    {llama, "{\"head_dim\":8194}", EK_EFORMAT, "heads of 8194"},
    {llama, "{\"head_dim\":15}", EK_EFORMAT, "15 rotary dimensions"},
    {llama, "{\"vocab_size\":99999999999}", EK_EFORMAT, "vocab_size must be"},
    {llama, "{\"rms_norm_eps\":0}", EK_EFORMAT, "rms_norm_eps must be"},
    {llama, "{\"rms_norm_eps\":-1e-5}", EK_EFORMAT, "rms_norm_eps must be"},
    {llama, "{\"rms_norm_eps\":\"1e-5\"}", EK_EFORMAT, "rms_norm_eps must be a number"},
    {llama, "{\"rms_norm_eps\":NaN}", EK_EFORMAT, "not valid JSON"},
    {llama, "{\"rms_norm_eps\":1e999}", EK_EFORMAT, "not valid JSON"},
    {llama, "{\"rope_theta\":-10000.0}", EK_EFORMAT, "rope_theta must be"},
    {llama, "{\"rope_theta\":Infinity}", EK_EFORMAT, "not valid JSON"},
    {llama, "{\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":2}}", EK_EUNSUPPORTED,
     "rope_scaling.rope_type 'dynamic' is not supported"},
    {llama, "{\"rope_scaling\":{\"type\":\"linear\"}}", EK_EFORMAT, "rope_scaling.factor must be"},
    {llama, "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}", EK_EFORMAT, "factor must be"},
    {llama, "{\"rope_scaling\":\"linear\"}", EK_EFORMAT, "rope_scaling must be an object"},
    {llama, "{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}}", EK_EFORMAT,
     "low_freq_factor must be"},
    {llama,
     "{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
     "\"high_freq_factor\":4,\"original_max_position_embeddings\":64}}",
     EK_EFORMAT, "high_freq_factor 4 must be above low_freq_factor 4"},
    {llama, "{\"rope_parameters\":{\"rope_type\":\"longrope\"}}", EK_EUNSUPPORTED, "'longrope'"},
    {llama, "{\"partial_rotary_factor\":0.5}", EK_EUNSUPPORTED, "partial_rotary_factor"},
    {llama, "{\"architectures\":[\"MambaForCausalLM\"]}", EK_EUNSUPPORTED,
     "architectures 'MambaForCausalLM' is not supported"},
    {llama, "{\"architectures\":[],\"model_type\":\"bert\"}", EK_EUNSUPPORTED, "'bert'"},
    {llama, "{\"architectures\":\"-\"}", EK_EFORMAT, "model_type must be a string"},
    {llama, "{\"torch_dtype\":\"int8\"}", EK_EUNSUPPORTED, "torch_dtype 'int8'"},
    {llama, "{\"torch_dtype\":16}", EK_EFORMAT, "torch_dtype must be a string"},
    {llama, "{\"hidden_act\":\"gelu\"}", EK_EUNSUPPORTED, "hidden_act 'gelu'"},
    {llama, "{\"attention_bias\":1}", EK_EFORMAT, "attention_bias must be true or false"},
    {llama, "{\"quantization_config\":{\"quant_method\":\"hqq\",\"bits\":4}}", EK_EUNSUPPORTED,
     "quantization_config 'hqq' is not supported"},
    {llama, "{\"quantization_config\":{}}", EK_EUNSUPPORTED, "quantization_config"},
    {llama, "{\"eos_token_id\":\"2\"}", EK_EFORMAT, "eos_token_id must be token numbers"},
    {llama, "{\"eos_token_id\":[1,-2]}", EK_EFORMAT, "eos_token_id must be token numbers"},
    {llama, "{\"eos_token_id\":[1,2,3,4,5,6,7,8,9]}", EK_EFORMAT, "more than 8"},
    {llama, "{\"bos_token_id\":-5}", EK_EFORMAT, "bos_token_id must be"},
    {deepseek, "{\"num_experts_per_tok\":9}", EK_EFORMAT,
     "num_experts_per_tok 9 of n_routed_experts 8"},
    {deepseek, "{\"num_experts_per_tok\":null}", EK_EFORMAT, "num_experts_per_tok 0"},
    {deepseek, "{\"num_experts_per_tok\":5}", EK_EFORMAT, "5 from 2 groups of 2"},
    {deepseek, "{\"n_group\":3}", EK_EFORMAT, "no multiple of n_group 3"},
    {deepseek, "{\"topk_group\":5}", EK_EFORMAT, "topk_group 5 of n_group 4"},
    {deepseek, "{\"topk_method\":\"-\"}", EK_EUNSUPPORTED, "topk_method 'gready'"},
    {deepseek, "{\"scoring_func\":\"tanh\"}", EK_EUNSUPPORTED, "scoring_func 'tanh'"},
    {deepseek, "{\"kv_lora_rank\":null}", EK_EFORMAT, "kv_lora_rank 0"},
    {deepseek, "{\"qk_rope_head_dim\":0}", EK_EFORMAT, "0 rotary dimensions"},
    {deepseek, "{\"attention_bias\":true}", EK_EUNSUPPORTED, "attention_bias 'true'"},
    {deepseek,
     "{\"n_routed_experts\":4096,\"n_group\":1,\"topk_group\":1,"
     "\"num_hidden_layers\":1024}",
     EK_EFORMAT, "over 1048576 tensors"},
    {deepseek, "{\"moe_layer_freq\":0}", EK_EFORMAT, "moe_layer_freq must be"},
    {vl, "{\"vision_config\":\"-\"}", EK_EFORMAT, "vision_config must be an object"},
    {vl, "{\"vision_config\":{\"num_heads\":3}}", EK_EFORMAT, "width 32 is no multiple of 3"},
    {vl, "{\"vision_config\":{\"out_hidden_size\":65}}", EK_EFORMAT,
     "out_hidden_size 65, hidden_size 64"},
    {vl, "{\"vision_config\":{\"fullatt_block_indexes\":[4]}}", EK_EFORMAT, "no block of 4"},
    {vl, "{\"vision_config\":{\"depth\":65}}", EK_EUNSUPPORTED, "depth 65"},
    {vl, "{\"vision_config\":{\"window_size\":14}}", EK_EFORMAT, "window_size 14"},
    {vl, "{\"rope_scaling\":{\"mrope_section\":[2,3,4]}}", EK_EFORMAT, "adds up to 9"},
    {vl, "{\"rope_scaling\":{\"mrope_section\":[2,3]}}", EK_EFORMAT, "three whole numbers"},
    {vl, "{\"use_sliding_window\":true}", EK_EUNSUPPORTED, "use_sliding_window"},
};

START_TEST(hostile_configurations_are_refused_with_the_field)
{
    struct ek_config c;
    enum ek_status st = parse(hostile[_i].base, hostile[_i].patch, &c);

    ck_assert_msg(strstr(ek_last_error(), hostile[_i].message), "%s", ek_last_error());
    ck_assert_int_eq(st, hostile[_i].st);
}
END_TEST

START_TEST(absent_keys_take_the_class_s_defaults)
{
    struct ek_config c;

    ck_assert_int_eq(parse(llama, "{\"num_key_value_heads\":\"-\",\"torch_dtype\":\"-\"}", &c),
                     EK_OK);
    ck_assert_uint_eq(c.n_kv_heads, 4);
    ck_assert_uint_eq(c.head_dim, 16);
    ck_assert_int_eq(c.dtype, EK_F32);
    ck_assert(!c.tied_head && !c.qkv_bias && !c.o_bias && !c.mlp_bias);
    ck_assert_int_eq(c.bos, 1);
    ck_assert_uint_eq(c.n_eos, 1);
    ck_assert_int_eq(c.eos[0], 2);
    ck_assert_int_eq(parse(deepseek, "{}", &c), EK_OK);
    ck_assert_int_eq(c.attention, EK_ATTENTION_MLA);
    ck_assert_int_eq(c.rope_layout, EK_ROPE_INTERLEAVED);
    ck_assert_uint_eq(c.q_lora, 0);
    ck_assert_uint_eq(c.head_dim, 192);
    ck_assert_int_eq(c.router, EK_ROUTER_GROUP_LIMITED);
    ck_assert_int_eq(parse(deepseek, "{\"q_lora_rank\":\"-\"}", &c), EK_OK);
    ck_assert_uint_eq(c.q_lora, 1536);
    ck_assert_int_eq(parse(deepseek, "{\"use_mla\":false,\"num_key_value_heads\":2}", &c), EK_OK);
    ck_assert_int_eq(c.attention, EK_ATTENTION_GQA);
    ck_assert_int_eq(c.rope_layout, EK_ROPE_HALF);
    ck_assert_int_eq(parse(vl, "{}", &c), EK_OK);
    ck_assert_uint_eq(c.vision_full_attention, 0xa);
    ck_assert(c.qkv_bias && !c.o_bias);
}
END_TEST

START_TEST(both_spellings_of_rope_say_the_same)
{
    static const char *const same[] = {
        "{\"rope_theta\":5e5,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,"
        "\"original_max_position_embeddings\":64}}",
        "{\"rope_parameters\":{\"rope_theta\":5e5,\"rope_type\":\"yarn\",\"factor\":4,"
        "\"original_max_position_embeddings\":64},\"dtype\":\"bfloat16\"}",
    };
    struct ek_config c;

    for (size_t i = 0; i < EK_ARRAY_LEN(same); i++) {
        ck_assert_int_eq(parse(llama, same[i], &c), EK_OK);
        ck_assert_double_eq(c.rope_theta, 5e5);
        ck_assert_int_eq(c.rope_scaling, EK_ROPE_YARN);
        ck_assert_double_eq(c.rope_factor, 4);
        ck_assert_uint_eq(c.rope_original_position, 64);
        ck_assert_double_eq(c.rope_beta_fast, 32);
    }
    ck_assert_int_eq(parse(llama, "{\"rope_scaling\":null,\"eos_token_id\":[7,9,7]}", &c), EK_OK);
    ck_assert_int_eq(c.rope_scaling, EK_ROPE_PLAIN);
    ck_assert_uint_eq(c.n_eos, 2);
    ck_assert_int_eq(c.eos[1], 9);
}
END_TEST

START_TEST(generation_config_adds_its_ends)
{
    const struct ek_family *family;
    struct ek_config c;

    temp_text("config.json", llama);
    temp_text("generation_config.json", "{\"bos_token_id\":5,\"eos_token_id\":[2,8]}");
    ck_assert_int_eq(ek_config_read(temp_path("config.json"), temp_path(""), &c, &family), EK_OK);
    ck_assert_int_eq(c.bos, 5);
    ck_assert_uint_eq(c.n_eos, 2);
    ck_assert_int_eq(c.eos[1], 8);
    temp_text("generation_config.json", "[1]");
    ck_assert_int_eq(ek_config_read(temp_path("config.json"), temp_path(""), &c, &family),
                     EK_EFORMAT);
    ck_assert_msg(strstr(ek_last_error(), "generation_config.json"), "%s", ek_last_error());
}
END_TEST

/* ---- Rope: frequencies as transformers 5.23 computes them -------------------------------------*/

static const struct {
    const char *model;
    float amplitude, softmax_scale;
    struct {
        unsigned i;
        float value;
    } frequencies[4];
} ropes[] = {
    {"smollm2-135m",
     0x1p+0f,
     0x1p-3f,
     {{1, 0x1.654a0cp-1f}, {10, 0x1.c0a9a4p-6f}, {17, 0x1.213db6p-9f}, {31, 0x1.e0d6dap-17f}}},
    {"llama-3.1-8b",
     0x1p+0f,
     0x1.6a09e6p-4f,
     {{1, 0x1.a11582p-1f}, {21, 0x1.ba0dd8p-7f}, {33, 0x1.47e21p-12f}, {63, 0x1.4985fep-22f}}},
    {"llama-3.2-1b",
     0x1p+0f,
     0x1p-3f,
     {{1, 0x1.53c38cp-1f}, {10, 0x1.0f5386p-6f}, {17, 0x1.9731eep-14f}, {31, 0x1.94836p-24f}}},
    {"qwen2.5-7b",
     0x1p+0f,
     0x1.6a09e6p-4f,
     {{1, 0x1.9c975ap-1f}, {21, 0x1.6020a4p-7f}, {33, 0x1.a67e5p-11f}, {63, 0x1.4d1c98p-20f}}},
    {"qwen2.5-vl-3b",
     0x1p+0f,
     0x1.6a09e6p-4f,
     {{1, 0x1.9c975ap-1f}, {21, 0x1.6020a4p-7f}, {33, 0x1.a67e5p-11f}, {63, 0x1.4d1c98p-20f}}},
    {"qwen2.5-vl-3b-nested",
     0x1p+0f,
     0x1.6a09e6p-4f,
     {{1, 0x1.9c975ap-1f}, {21, 0x1.6020a4p-7f}, {33, 0x1.a67e5p-11f}, {63, 0x1.4d1c98p-20f}}},
    {"deepseek-v2-lite",
     0x1p+0f,
     0x1.d5e618p-4f,
     {{1, 0x1.7ff222p-1f}, {10, 0x1.ccab84p-5f}, {17, 0x1.d2e0ccp-9f}, {31, 0x1.bf749ep-19f}}},
    {"deepseek-v2",
     0x1p+0f,
     0x1.d5e618p-4f,
     {{1, 0x1.7ff222p-1f}, {10, 0x1.ccab84p-5f}, {17, 0x1.d2e0ccp-9f}, {31, 0x1.bf749ep-19f}}},
    {"deepseek-vl2-tiny",
     0x1p+0f,
     0x1.6a09e6p-4f,
     {{1, 0x1.bb5faep-1f}, {21, 0x1.8eec7ep-5f}, {33, 0x1.1bc25ap-7f}, {63, 0x1.e459c4p-14f}}},
    {"deepseek-vl2",
     0x1p+0f,
     0x1.279a74p-4f,
     {{1, 0x1.7ff222p-1f}, {10, 0x1.ccab84p-5f}, {17, 0x1.eb736p-8f}, {31, 0x1.17a8e4p-13f}}},
};

static int32_t ulps(float a, float b)
{
    int32_t x, y;

    memcpy(&x, &a, sizeof(x));
    memcpy(&y, &b, sizeof(y));
    return abs(x - y);
}

START_TEST(frequencies_are_the_official_ones)
{
    char path[512], name[128];
    struct ek_model *m = NULL;
    float f[512], amplitude, scale;

    snprintf(name, sizeof(name), "configs/%s", ropes[_i].model);
    ck_assert_int_eq(ek_model_open(fixture(name, path), NULL, &m), EK_OK);
    ek_config_rope(&m->config, f, &amplitude, &scale);
    ck_assert_int_le(ulps(amplitude, ropes[_i].amplitude), 1);
    ck_assert_int_le(ulps(scale, ropes[_i].softmax_scale), 1);
    for (size_t i = 0; i < 4; i++)
        ck_assert_int_le(ulps(f[ropes[_i].frequencies[i].i], ropes[_i].frequencies[i].value), 1);
    ek_model_close(m);
}
END_TEST

START_TEST(rope_factors_of_a_gguf_divide)
{
    static const float factors[] = {1, 2, 4, 8, 16, 32, 64, 128};
    struct ek_config c;
    float plain[8], divided[8], amplitude, scale;

    ck_assert_int_eq(parse(llama, "{}", &c), EK_OK);
    ek_config_rope(&c, plain, &amplitude, &scale);
    c.rope_factors = factors;
    ek_config_rope(&c, divided, &amplitude, &scale);
    for (int i = 0; i < 8; i++)
        ck_assert_float_eq(divided[i] * factors[i], plain[i]);
    ck_assert_float_eq(scale, 0.25f);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("config");
    TCase *tc = tcase_create("config");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, temp_begin, temp_end);
    tcase_add_loop_test(tc, hostile_configurations_are_refused_with_the_field, 0,
                        EK_ARRAY_LEN(hostile));
    tcase_add_test(tc, absent_keys_take_the_class_s_defaults);
    tcase_add_test(tc, both_spellings_of_rope_say_the_same);
    tcase_add_test(tc, generation_config_adds_its_ends);
    tcase_add_loop_test(tc, frequencies_are_the_official_ones, 0, EK_ARRAY_LEN(ropes));
    tcase_add_test(tc, rope_factors_of_a_gguf_divide);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
