/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Exports under the rules by which their projects read them, over random plans.
 */
#include "planner/plan_file.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define MOST 16

struct split {
    uint32_t counts[MOST], n, layers;
    bool vl; /* Qwen2.5-VL, with a tower */
    struct ek_plan_file *f;
};

static void add_module(json_t *modules, json_t *map, const char *name, uint32_t device)
{
    json_array_append_new(modules, json_string(name));
    json_object_set_new(map, name, json_integer(device));
}

static struct split make_split(uint64_t seed)
{
    struct split s = {.n = 1 + (uint32_t)(ek_random_u64(&seed) % MOST), .vl = seed % 2};
    json_t *stages = json_array(), *devices = json_array(), *map = json_object(), *root;
    char name[64];

    for (uint32_t i = 0; i < s.n; i++) {
        json_t *modules = json_array();
        s.counts[i] = 1 + (uint32_t)(ek_random_u64(&seed) % 9);
        snprintf(name, sizeof(name), "cuda:%u", i);
        json_array_append_new(devices, json_pack("{s:s s:s s:i}", "name", name, "backend", "cuda",
                                                 "index", (int)i));
        if (i == 0 && s.vl)
            add_module(modules, map, "visual", i);
        if (i == 0)
            add_module(modules, map, "model.embed_tokens", i);
        for (uint32_t k = 0; k < s.counts[i]; k++) {
            snprintf(name, sizeof(name), "model.layers.%u", s.layers++);
            add_module(modules, map, name, i);
        }
        if (i + 1 == s.n) {
            add_module(modules, map, "model.norm", i);
            add_module(modules, map, "lm_head", i);
        }
        snprintf(name, sizeof(name), "cuda:%u", i);
        json_array_append_new(stages, json_pack("{s:s s:o}", "device", name, "modules", modules));
    }
    root = json_pack("{s:s s:i s:{s:s s:s} s:{s:i s:i s:i} s:o s:o s:o}", "format", "evenkeel-plan",
                     "version", 1, "model", "name", "m", "architecture",
                     s.vl ? "Qwen2_5_VLForConditionalGeneration" : "Qwen2ForCausalLM", "workload",
                     "batch", 4, "context", 512, "micro_batches", 2, "devices", devices, "stages",
                     stages, "device_map", map);
    ck_assert_msg(ek_plan_file_from_json(root, "plan", &s.f) == EK_OK, "%s", ek_last_error());
    json_decref(root);
    return s;
}

static char *exported(const struct split *s, const char *target)
{
    char *text;

    ck_assert_msg(ek_export(s->f, target, &text) == EK_OK, "%s", ek_last_error());
    return text;
}

/* Numbers behind the first `after` of a text; returns how many. */
static uint32_t numbers(const char *text, const char *after, uint32_t *out, uint32_t cap)
{
    const char *p = strstr(text, after);
    uint32_t n = 0;
    char *end;

    ck_assert_msg(p != NULL, "%s lacks %s", text, after);
    for (p += strlen(after); n < cap; p = end + (*end == ',') + (end[0] == ',' && end[1] == ' ')) {
        out[n] = (uint32_t)strtoul(p, &end, 10);
        if (end == p)
            break;
        n++;
        if (*end != ',')
            break;
    }
    return n;
}

/* vllm/distributed/utils.py, get_pp_indices; sglang's and TensorRT-LLM's: as many numbers as ranks,
 * and they sum up to the layers, else ValueError. */
static void check_ranks(const struct split *s, const char *target, const char *counts,
                        const char *ranks)
{
    char *text = exported(s, target);
    uint32_t got[MOST + 1], size, sum = 0, n = numbers(text, counts, got, MOST + 1);

    ck_assert_uint_eq(numbers(text, ranks, &size, 1), 1);
    ck_assert_uint_eq(n, size);
    ck_assert_uint_eq(n, s->n);
    for (uint32_t i = 0; i < n; i++) {
        ck_assert_uint_eq(got[i], s->counts[i]);
        sum += got[i];
    }
    ck_assert_uint_eq(sum, s->layers);
    free(text);
}

/* llama.cpp, load_tensors: splits are cumulative shares, a layer goes to the first share above il /
 * act_gpu_layers; the output layer is layer n_layer. All in float, as there. */
static void check_llama(const struct split *s)
{
    char *text = exported(s, "llama.cpp");
    uint32_t ts[MOST + 1], n = numbers(text, "-ts ", ts, MOST + 1), act = s->layers + 1, layer = 0;
    float splits[MOST], sum = 0;

    ck_assert_uint_eq(n, s->n);
    for (uint32_t i = 0; i < n; i++)
        splits[i] = sum += (float)ts[i];
    for (uint32_t i = 0; i < n; i++)
        splits[i] /= sum;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < s->counts[i] + (i + 1 == n); k++, layer++) {
            uint32_t device = 0;
            while (device < n && splits[device] <= (float)layer / (float)act)
                device++;
            ck_assert_msg(device == i, "layer %u on %u, not %u", layer, device, i);
        }
    ck_assert_uint_eq(layer, act);
    free(text);
}

/* DeepSpeed, PipelineModule._partition_layers: parts has stages + 1 entries, from 0 to the number
 * of layers, ascending. */
static void check_deepspeed(const struct split *s)
{
    char *text = exported(s, "deepspeed");
    uint32_t parts[MOST + 2], n = numbers(text, "parts = [", parts, MOST + 2);

    ck_assert_uint_eq(n, s->n + 1);
    ck_assert_uint_eq(parts[0], 0);
    for (uint32_t i = 1; i < n; i++)
        ck_assert_uint_eq(parts[i] - parts[i - 1], s->counts[i - 1]);
    ck_assert_uint_eq(parts[n - 1], s->layers);
    free(text);
}

/* accelerate, check_device_map: every parameter is named by a key or lies below one. */
static bool covered(const json_t *map, const char *parameter)
{
    const char *key;
    json_t *v;

    json_object_foreach((json_t *)map, key, v)
    {
        size_t n = strlen(key);
        if (strncmp(key, parameter, n) == 0 && (parameter[n] == '.' || parameter[n] == '\0'))
            return true;
    }
    return false;
}

static void check_accelerate(const struct split *s)
{
    static const char *const plain[] = {"model.embed_tokens.weight", "model.norm.weight",
                                        "lm_head.weight", NULL};
    static const char *const vl[] = {"visual.blocks.0.norm1.weight",
                                     "model.visual.blocks.0.norm1.weight",
                                     "model.language_model.embed_tokens.weight",
                                     "model.language_model.norm.weight",
                                     "model.language_model.layers.0.mlp.up_proj.weight",
                                     NULL};
    char *text = exported(s, "accelerate"), name[80];
    json_t *map = NULL;

    ck_assert_int_eq(ek_json_parse(text, strlen(text), "map", &map), EK_OK);
    for (size_t i = 0; plain[i]; i++)
        ck_assert(covered(map, plain[i]));
    for (size_t i = 0; s->vl && vl[i]; i++)
        ck_assert_msg(covered(map, vl[i]), "%s", vl[i]);
    for (uint32_t i = 0; i < s->layers; i++) {
        snprintf(name, sizeof(name), "model.layers.%u.self_attn.q_proj.weight", i);
        ck_assert(covered(map, name));
    }
    ck_assert(!covered(map, "model.layers.9999.mlp.up_proj.weight"));
    json_decref(map);
    free(text);
}

START_TEST(every_export_passes_its_projects_own_rule)
{
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct split s = make_split(seed);
        check_ranks(&s, "vllm", "VLLM_PP_LAYER_PARTITION=", "--pipeline-parallel-size ");
        check_ranks(&s, "sglang", "SGLANG_PP_LAYER_PARTITION=", "--pp-size ");
        check_ranks(&s, "tensorrt-llm", "\"pp_partition\": [", "\"pipeline_parallel_size\": ");
        check_llama(&s);
        check_deepspeed(&s);
        check_accelerate(&s);
        ek_plan_file_free(s.f);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("export");
    TCase *t = tcase_create("export");
    SRunner *sr;
    int failed;

    tcase_add_test(t, every_export_passes_its_projects_own_rule);
    suite_add_tcase(s, t);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
