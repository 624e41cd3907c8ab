/* SPDX-License-Identifier: Apache-2.0
 *
 * quantization_config: how the linear layers of a checkpoint are packed. Which layers are is seen
 * from their tensors. Everything but the layouts of docs/models.md is refused by name.
 */
#include "model/internal.h"

#include <string.h>
#include <strings.h>

#define MAX_GROUP (1u << 24)

static enum ek_status unsupported(struct ek_json_at at, const char *key, const char *value)
{
    return ek_error(EK_EUNSUPPORTED, "%s: %s%s '%.64s' is not supported", at.file, at.prefix, key,
                    value);
}

static enum ek_status read_bits(const json_t *q, struct ek_json_at at, bool eight,
                                struct ek_config *c)
{
    uint64_t bits = 0;

    EK_TRY(ek_json_u64(q, at, "bits", 1, 64, &bits));
    if (bits != 4 && !(eight && bits == 8))
        return ek_error(EK_EUNSUPPORTED, "%s: %sbits %llu is not supported, %s", at.file, at.prefix,
                        (unsigned long long)bits, eight ? "4 and 8 are" : "4 is");
    c->quant_bits = (uint32_t)bits;
    return EK_OK;
}

/* -1: the whole row */
static enum ek_status read_group(const json_t *q, struct ek_json_at at, struct ek_config *c)
{
    const json_t *v = json_object_get(q, "group_size");
    uint64_t group = 0;

    c->quant_group = 0;
    if (json_is_integer(v) && json_integer_value(v) == -1)
        return EK_OK;
    EK_TRY(ek_json_u64(q, at, "group_size", 1, MAX_GROUP, &group));
    c->quant_group = (uint32_t)group;
    return EK_OK;
}

/* Keys that change the layout, with the one value that is read. */
static enum ek_status must_be(const json_t *q, struct ek_json_at at, const char *key,
                              const char *value)
{
    const char *got = value;

    EK_TRY(ek_json_opt_string(q, at, key, &got));
    return strcasecmp(got, value) == 0 ? EK_OK : unsupported(at, key, got);
}

static enum ek_status read_gptq(const json_t *q, struct ek_json_at at, struct ek_config *c)
{
    const char *format = "gptq";
    bool marlin = false;

    EK_TRY(read_bits(q, at, true, c));
    EK_TRY(read_group(q, at, c));
    EK_TRY(must_be(q, at, "pack_dtype", "int32"));
    EK_TRY(ek_json_opt_bool(q, at, "is_marlin_format", &marlin));
    EK_TRY(ek_json_opt_bool(q, at, "desc_act", &c->quant_act));
    if (marlin)
        return unsupported(at, "is_marlin_format", "true");
    if (json_object_size(json_object_get(q, "dynamic")))
        return ek_error(EK_EUNSUPPORTED,
                        "%s: %sdynamic: layers packed differently are not "
                        "supported",
                        at.file, at.prefix);
    EK_TRY(ek_json_opt_string(q, at, "format", &format));
    EK_TRY(ek_json_opt_string(q, at, "checkpoint_format", &format));
    if (strcmp(format, "gptq") != 0 && strcmp(format, "gptq_v2") != 0)
        return unsupported(at, "checkpoint_format", format);
    c->quant_v2 = format[4] != '\0';
    c->quant = EK_QUANT_GPTQ;
    return EK_OK;
}

static enum ek_status read_awq(const json_t *q, struct ek_json_at at, struct ek_config *c)
{
    bool zeros = true;

    EK_TRY(read_bits(q, at, false, c));
    EK_TRY(read_group(q, at, c));
    EK_TRY(must_be(q, at, "version", "gemm"));
    EK_TRY(ek_json_opt_bool(q, at, "zero_point", &zeros));
    if (!zeros)
        return unsupported(at, "zero_point", "false");
    c->quant_v2 = true;
    c->quant = EK_QUANT_AWQ;
    return EK_OK;
}

static enum ek_status read_fp8(const json_t *q, struct ek_json_at at, struct ek_config *c)
{
    const json_t *block = json_object_get(q, "weight_block_size");
    json_int_t size[2] = {0, 0};

    EK_TRY(must_be(q, at, "fmt", "e4m3"));
    if (!json_is_array(block) || json_array_size(block) != 2)
        return ek_error(EK_EUNSUPPORTED,
                        "%s: %sweight_block_size must be two numbers: only scales "
                        "of blocks are supported",
                        at.file, at.prefix);
    for (size_t i = 0; i < 2; i++) {
        size[i] = json_integer_value(json_array_get(block, i));
        if (size[i] < 1 || size[i] > (json_int_t)MAX_GROUP)
            return ek_error(EK_EFORMAT, "%s: %sweight_block_size must be two numbers from 1 to %u",
                            at.file, at.prefix, MAX_GROUP);
    }
    c->quant_block = (uint32_t)size[0];
    c->quant_group = (uint32_t)size[1];
    c->quant_bits = 8;
    c->quant = EK_QUANT_FP8;
    return EK_OK;
}

enum ek_status ek_config_quant(const json_t *q, struct ek_json_at at, const char *key,
                               const char *method, struct ek_config *c)
{
    struct ek_json_at inner = {at.file, method ? "" : "quantization_config."};

    if (!json_is_object(q))
        return ek_error(EK_EFORMAT, "%s: %s%s must be an object", at.file, at.prefix, key);
    EK_TRY(ek_json_opt_string(q, inner, "quant_method", &method));
    if (method && strcmp(method, "gptq") == 0)
        return read_gptq(q, inner, c);
    if (method && strcmp(method, "awq") == 0)
        return read_awq(q, inner, c);
    if (method && strcmp(method, "fp8") == 0)
        return read_fp8(q, inner, c);
    return unsupported(at, key, method ? method : "without quant_method");
}
