/* SPDX-License-Identifier: Apache-2.0
 *
 * Internal to model/: the table of families, and what the steps from a path to an ek_model share:
 * configuration -> modules and tensors -> where the tensors lie.
 */
#ifndef EK_MODEL_INTERNAL_H
#define EK_MODEL_INTERNAL_H

#include "model/gguf.h"
#include "model/model.h"

#include <string.h>

#define EK_MAX_TENSORS (1u << 20)

static inline bool ek_ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);

    return n >= k && strcmp(s + n - k, end) == 0;
}

/* ---- Memory that lives as long as its model ---------------------------------------------------*/
struct ek_arena {
    struct ek_arena_block *blocks;
};
/* Zeroed, aligned for any type; NULL with a message when there is none. */
void *ek_arena_alloc(struct ek_arena *a, size_t n, size_t size);
char *ek_arena_printf(struct ek_arena *a, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void ek_arena_free(struct ek_arena *a);

/* ---- Families (families.c) --------------------------------------------------------------------*/

/* A size of a tensor, as a symbol: ek_dim_value gives the number for a configuration. */
enum ek_dim {
    EK_DIM_END,
    EK_DIM_ONE,
    EK_DIM_RGB, /* 3 */
    EK_DIM_VOCAB,
    EK_DIM_HIDDEN,
    EK_DIM_Q,         /* heads * head_dim */
    EK_DIM_KV,        /* kv_heads * head_dim */
    EK_DIM_ATTENTION, /* heads * head_dim of the values */
    EK_DIM_FFN,
    EK_DIM_Q_LORA,
    EK_DIM_KV_LORA,
    EK_DIM_KV_A, /* kv_lora + qk_rope */
    EK_DIM_KV_B, /* heads * (qk_nope + v_head) */
    EK_DIM_EXPERTS,
    EK_DIM_MOE,
    EK_DIM_SHARED, /* shared experts, fused into one */
    EK_DIM_V_HIDDEN,
    EK_DIM_V_HIDDEN2, /* 2, 3 times the tower's width */
    EK_DIM_V_HIDDEN3,
    EK_DIM_V_FFN,
    EK_DIM_V_PATCH,
    EK_DIM_V_TEMPORAL,
    EK_DIM_V_GRID,   /* patches of a tile */
    EK_DIM_V_MERGED, /* the tower's width times the patches merged into one token */
};
uint64_t ek_dim_value(const struct ek_config *c, enum ek_dim dim);

/* What a layer has; a rule applies where the layer has all that it asks for. */
enum {
    EK_HAS_GQA = 1 << 0,
    EK_HAS_MLA = 1 << 1,
    EK_HAS_Q = 1 << 2, /* one query matrix: GQA, or MLA without a query LoRA */
    EK_HAS_Q_LORA = 1 << 3,
    EK_HAS_QKV_BIAS = 1 << 4,
    EK_HAS_O_BIAS = 1 << 5,
    EK_HAS_DENSE = 1 << 6,
    EK_HAS_MLP_BIAS = 1 << 7,
    EK_HAS_EXPERTS = 1 << 8,
    EK_HAS_ROUTER_BIAS = 1 << 9,
    EK_HAS_SHARED = 1 << 10,
};
unsigned ek_layer_features(const struct ek_config *c, uint32_t layer);

struct ek_tensor_rule {
    const char *name; /* behind the module's name and a dot; %u: expert or block of a tower */
    const char *gguf; /* behind "blk.N." */
    enum ek_role role;
    unsigned when;
    uint8_t dims[5]; /* enum ek_dim, outermost first */
};
/* Tables end with a NULL name. */
extern const struct ek_tensor_rule ek_layer_rules[];

struct ek_tower { /* names and shapes of a vision tower */
    const struct ek_tensor_rule *blocks, *once;
};
extern const struct ek_tower ek_towers[];                /* by enum ek_vision_kind */
extern const struct ek_tensor_rule ek_projector_rules[]; /* EK_VISION_VL2 */

#define EK_MAX_SPELLINGS 2

struct ek_spelling { /* prefixes that savers have used; the first is the hub's */
    const char *text, *head, *vision;
};

struct ek_family {
    const char *architecture, *model_type;
    const char *gguf;     /* general.architecture, NULL: not read from GGUF */
    bool gguf_permuted;   /* q and k rows in interleaved order */
    bool deepseek;        /* MLA and experts as in DeepSeek-V2's configuration */
    bool qkv_bias;        /* always; else where attention_bias says so */
    bool text_needed;     /* text_key must be there; else flat keys will do */
    const char *text_key; /* object of the language model's keys, NULL: flat */
    struct ek_spelling spellings[EK_MAX_SPELLINGS];
    const struct ek_config *defaults; /* for absent keys; 0: must be stated */
};
const struct ek_family *ek_family_of_architecture(const char *architecture);
const struct ek_family *ek_family_of_model_type(const char *model_type);
const struct ek_family *ek_family_of_gguf(const char *architecture);

/* ---- Configuration (config.c, config_gguf.c) --------------------------------------------------*/

/* From config.json (and generation_config.json beside it where dir is not NULL). */
enum ek_status ek_config_read(const char *path, const char *dir, struct ek_config *c,
                              const struct ek_family **family);
/* The same from text, for fuzzing; where names it in messages. */
enum ek_status ek_config_parse(const json_t *root, const char *where, struct ek_config *c,
                               const struct ek_family **family);
enum ek_status ek_config_from_gguf(const struct ek_gguf *g, struct ek_arena *arena,
                                   struct ek_config *c, const struct ek_family **family);
/* What must hold between values, whatever the file they came from. */
enum ek_status ek_config_check(const struct ek_config *c, const char *where);

/* ---- Modules (modules.c) and identity (identity.c) --------------------------------------------*/

/* Fills m->modules from m->config; every tensor synthetic, of the configuration's dtype. */
enum ek_status ek_modules_build(struct ek_model *m, const struct ek_spelling *spelling);
/* Bytes and parameters of modules and model from their tensors' final shapes and dtypes. */
enum ek_status ek_modules_sum(struct ek_model *m);
/* Signatures of the modules alone, and with them the model's hash. */
enum ek_status ek_modules_sign(struct ek_model *m);
enum ek_status ek_model_identify(struct ek_model *m);

/* ---- Checkpoint (checkpoint.c, index.c) -------------------------------------------------------*/

struct ek_model_files {
    struct ek_arena arena; /* names and tensors of the model */
    uint64_t seed;
    bool synthetic;
    struct ek_gguf *gguf;
    struct ek_safetensors **shards;
    char **shard_names;
    size_t n_shards;
    json_t *index; /* root of the index file, NULL: a single file */
};
/* The one .gguf of a directory, malloc'd; *out stays NULL when there is none, several are refused.
 */
enum ek_status ek_directory_gguf(const char *dir, char **out);
/* Opens the checkpoint's weight files in dir; none there: n_shards stays 0. */
enum ek_status ek_shards_open(struct ek_model_files *f, const char *dir);
/* Entry of a tensor and its shard, or NULL. */
const struct ek_safetensors_entry *ek_shards_find(const struct ek_model_files *f, const char *name,
                                                  int32_t *shard);
void ek_shards_close(struct ek_model_files *f);
/* n bytes from an absolute offset. */
enum ek_status ek_safetensors_cache(const struct ek_safetensors *s, bool in); /* ek_model_cache */
enum ek_status ek_safetensors_pread(const struct ek_safetensors *s, uint64_t offset, uint64_t n,
                                    void *dst);

/* Finds every tensor of m->modules in its file, held against its shape. */
enum ek_status ek_tensors_bind(struct ek_model *m, const struct ek_family *family);

/* ---- Quantised weights (config_quant.c, quant.c, quant_read.c) --------------------------------*/

enum ek_quant_part_kind { EK_PART_WEIGHTS, EK_PART_ZEROS, EK_PART_SCALES, EK_PART_GROUPS };
#define EK_QUANT_PARTS 4

struct ek_quant_part {
    const char *name; /* NULL: has none */
    int32_t file;
    uint64_t offset, cols; /* cols: elements a row of the file's matrix */
    enum ek_dtype dtype;
};

struct ek_quant {
    enum ek_quant_method method; /* NONE: source is quantised as it is read; HEADS: gguf_heads.c */
    uint32_t bits;
    uint64_t group, groups; /* inputs that share a scale, and how many such groups */
    uint32_t block;         /* FP8: outputs that share one */
    uint8_t zero_add;       /* to the zeros of the file */
    struct ek_quant_part parts[EK_QUANT_PARTS];
    const int32_t *group_of;        /* of an input, where not i / group; NULL: i / group */
    const struct ek_tensor *source; /* method NONE */
};

/* "quantization_config" (or quantize_config.json, whose method defaults to GPTQ) into c. */
enum ek_status ek_config_quant(const json_t *q, struct ek_json_at at, const char *key,
                               const char *method, struct ek_config *c);
/* Binds t to the parts of a quantised matrix; *bound is false where the files have none. */
enum ek_status ek_quant_bind(struct ek_model *m, struct ek_tensor *t, bool *bound);
/* Dtypes by the configuration, where there are no files. */
enum ek_status ek_quant_assign(struct ek_model *m);
/* Makes m's matrices ones that are quantised to so many bits as they are read. */
enum ek_status ek_quant_at_load(struct ek_model *m, uint32_t bits);
/* Bytes [at, at + n), whole rows, of a tensor with quant. */
enum ek_status ek_quant_read(const struct ek_model *m, const struct ek_tensor *t, uint64_t at,
                             uint64_t n, void *dst);

/* A GGUF's kv_b_proj of layer t, where it is kept in two parts (gguf_heads.c). */
enum ek_status ek_heads_bind(struct ek_model *m, int32_t layer, struct ek_tensor *t, bool *bound);
enum ek_status ek_heads_read(const struct ek_model *m, const struct ek_tensor *t, uint64_t row,
                             uint64_t rows, char *dst);

/* Bytes [at, at + n) of a synthetic tensor. routed: of a model with routers, whose choices are to
 * be even. */
enum ek_status ek_synthetic_read(uint64_t seed, bool routed, const struct ek_tensor *t, uint64_t at,
                                 uint64_t n, void *dst);

#endif
