/* SPDX-License-Identifier: Apache-2.0
 *
 * model: what a model is. A directory (config.json, *.safetensors), a GGUF file, or config.json
 * alone becomes a list of modules in execution order, each with its tensors, bytes and FLOPs.
 * Formulas and shapes: docs/models.md. Depends on base.
 */
#ifndef EK_MODEL_H
#define EK_MODEL_H

#include "base/base.h"
#include "model/image.h"
#include "model/tokenizer.h"

#include <stdatomic.h>

enum ek_attention_kind { EK_ATTENTION_GQA, EK_ATTENTION_MLA };
enum ek_rope_layout {
    EK_ROPE_HALF,       /* pairs (i, i + d/2): Llama, Qwen */
    EK_ROPE_INTERLEAVED /* pairs (2i, 2i + 1): DeepSeek MLA */
};
enum ek_rope_scaling { EK_ROPE_PLAIN, EK_ROPE_LINEAR, EK_ROPE_LLAMA3, EK_ROPE_YARN };
enum ek_router_kind { EK_ROUTER_GREEDY, EK_ROUTER_GROUP_LIMITED, EK_ROUTER_NOAUX_TC };
enum ek_quant_method {
    EK_QUANT_NONE,
    EK_QUANT_GPTQ,
    EK_QUANT_AWQ,
    EK_QUANT_FP8,
    EK_QUANT_HEADS /* of a tensor alone: kv_b_proj in two parts of a GGUF, heads apart */
};
enum ek_vision_kind { EK_VISION_NONE, EK_VISION_QWEN25, EK_VISION_VL2 };

#define EK_MAX_EOS    8
#define EK_MAX_LAYERS 1024

/* Hyper-parameters of the language model (and tower) as the checkpoint states them. */
struct ek_config {
    const char *architecture; /* "LlamaForCausalLM", ...; static storage */
    uint32_t hidden, n_layers, n_heads, n_kv_heads, head_dim, intermediate, vocab;
    uint32_t max_position;
    double norm_eps;
    bool tied_head, qkv_bias, o_bias, mlp_bias;
    enum ek_dtype dtype; /* of the weights as stated (GGUF: of the largest tensor) */
    enum ek_attention_kind attention;
    /* rope */
    double rope_theta;
    enum ek_rope_layout rope_layout;
    enum ek_rope_scaling rope_scaling;
    double rope_factor, rope_low, rope_high, rope_beta_fast, rope_beta_slow; /* llama3, yarn */
    double rope_mscale, rope_mscale_all_dim;
    uint32_t rope_original_position;
    double rope_attention_factor; /* yarn: amplitude as stated; 0: from the factor */
    const float *rope_factors;    /* GGUF rope_freqs.weight: divide inv_freq; [dim/2] or NULL */
    uint32_t mrope_section[3];    /* all 0: ordinary positions */
    /* MLA (attention == EK_ATTENTION_MLA) */
    uint32_t q_lora, kv_lora, qk_nope, qk_rope, v_head;
    /* mixture of experts (n_experts == 0: dense) */
    uint32_t n_experts, n_shared, top_k, moe_intermediate, first_dense, moe_freq;
    uint32_t n_group, topk_group;
    enum ek_router_kind router;
    bool router_sigmoid, router_normalise;
    double router_scale;
    /* vision (vision != EK_VISION_NONE) */
    enum ek_vision_kind vision;
    uint32_t vision_layers, vision_hidden, vision_heads, vision_intermediate, vision_patch;
    uint32_t vision_merge, vision_window, vision_image, vision_temporal;
    uint64_t vision_full_attention; /* bit i: block i attends to the whole image (Qwen) */
    double vision_tokens_per_second;
    /* quantised checkpoints (quant != EK_QUANT_NONE) */
    enum ek_quant_method quant;
    uint32_t quant_bits, quant_group; /* inputs that share a scale; 0: the whole row */
    uint32_t quant_block;             /* FP8: outputs that share one, quant_group inputs wide */
    bool quant_v2;                    /* GPTQ: zeros as they are, not less one */
    bool quant_act;                   /* GPTQ: groups in the order of activations */
    /* text */
    int32_t bos, eos[EK_MAX_EOS]; /* -1: none */
    uint32_t n_eos;
};

enum ek_module_kind {
    EK_MODULE_EMBED,
    EK_MODULE_LAYER,
    EK_MODULE_NORM,
    EK_MODULE_HEAD,
    EK_MODULE_VISION,    /* the tower whole (side module; Qwen: merger included) */
    EK_MODULE_PROJECTOR, /* side module */
    EK_MODULE_VECTOR,    /* image_newline, view_seperator: side modules */
    /* parts of a tower that was cut (ek_model_cut_tower), which begin the chain */
    EK_MODULE_PATCHES, /* TOWER.patch_embed: patches to rows, with what tells their places */
    EK_MODULE_BLOCK,   /* TOWER.blocks.N */
    EK_MODULE_MERGER,  /* TOWER.merger (Qwen), TOWER.norm (VL2): behind the last block */
    EK_N_MODULE_KINDS
};
extern const char *const ek_module_kind_names[EK_N_MODULE_KINDS]; /* as files have them */

/* What a tensor is for, whatever the checkpoint calls it. */
enum ek_role {
    EK_ROLE_EMBED,
    EK_ROLE_NORM,  /* input_layernorm, or the norm module's own weight */
    EK_ROLE_NORM2, /* post_attention_layernorm */
    EK_ROLE_Q,
    EK_ROLE_K,
    EK_ROLE_V,
    EK_ROLE_O,
    EK_ROLE_Q_BIAS,
    EK_ROLE_K_BIAS,
    EK_ROLE_V_BIAS,
    EK_ROLE_O_BIAS,
    EK_ROLE_GATE,
    EK_ROLE_UP,
    EK_ROLE_DOWN,
    EK_ROLE_GATE_BIAS,
    EK_ROLE_UP_BIAS,
    EK_ROLE_DOWN_BIAS,
    EK_ROLE_HEAD,
    EK_ROLE_Q_A, /* MLA */
    EK_ROLE_Q_A_NORM,
    EK_ROLE_Q_B,
    EK_ROLE_KV_A,
    EK_ROLE_KV_A_NORM,
    EK_ROLE_KV_B,
    EK_ROLE_ROUTER, /* mixture of experts; expert tensors carry their number in index */
    EK_ROLE_ROUTER_BIAS,
    EK_ROLE_EXPERT_GATE,
    EK_ROLE_EXPERT_UP,
    EK_ROLE_EXPERT_DOWN,
    EK_ROLE_SHARED_GATE,
    EK_ROLE_SHARED_UP,
    EK_ROLE_SHARED_DOWN,
    EK_ROLE_OTHER,  /* vision, projector, vectors: told apart by name */
    EK_ROLE_UNUSED, /* in the checkpoint, but never loaded (VL2's attn_pool) */
    EK_N_ROLES
};

struct ek_tensor {
    const char *name; /* as in the checkpoint (a GGUF's names are translated to Hugging Face's) */
    enum ek_role role;
    int32_t index; /* expert number, or -1 */
    enum ek_dtype dtype;
    uint32_t n_dims;
    uint64_t shape[5]; /* row-major, outermost first: a linear weight is [out, in] */
    uint64_t bytes;
    /* where it lies; internal to model/ */
    int32_t file; /* -1: synthetic */
    uint64_t offset;
    uint32_t
        unpermute_heads; /* GGUF llama q/k: heads whose rows are read back in HF order; 0: no */
    const struct ek_quant *quant; /* packed in several tensors, or quantised at load; else NULL */
    const int32_t *order; /* [shape[1]]: the input that each column multiplies, where groups were
                           * made in the order of activations; else NULL */
};

struct ek_module {
    const char *name; /* exactly as in the checkpoint: "model.layers.7" */
    enum ek_module_kind kind;
    int32_t layer; /* number (of a tower's block too), or -1 */
    struct ek_tensor *tensors;
    size_t n_tensors;
    uint64_t weight_bytes; /* loaded tensors; a tied head counts the embedding's matrix */
    uint64_t n_params;     /* all tensors, the unused ones too */
    bool side;             /* not part of the chain [tower's parts ..] embed .. head */
    int32_t tied_to; /* module whose tensor this one shares (a tied head: the embedding), or -1 */
    char signature[33]; /* equal for modules of equal shapes, dtypes and hyper-parameters */
};

struct ek_model {
    char *path;
    char name[128]; /* last part of the path, for people */
    struct ek_config config;
    struct ek_module *modules; /* execution order: side modules first, then the chain */
    size_t n_modules;
    uint64_t n_params; /* a tied head not counted again */
    char hash[33];     /* configuration and (name, dtype, shape) of every tensor; never the bytes */
    bool has_weights;  /* false: config.json alone, weights are synthetic */
    bool gguf;
    struct ek_model_files *files; /* internal */
};

#define EK_QUANTIZE_ENDS 0x100u /* beside the bits: embedding and head as well */

struct ek_model_options {
    uint64_t seed;  /* of synthetic weights */
    bool synthetic; /* synthetic even where weights exist */
    /* 4 or 8: linear layers of the language model that the checkpoint has in F32, F16 or BF16 are
     * quantised as they are read, 0: no. Router, norms and vision are left; embedding and head too
     * unless EK_QUANTIZE_ENDS is set. */
    uint32_t quantize;
};
#define EK_MODEL_OPTIONS_INIT                                                                      \
    {                                                                                              \
        .seed = 1, .synthetic = false                                                              \
    }

/* The bits of "int8" and "int4", with "+ends" EK_QUANTIZE_ENDS; NULL: 0, not quantised. */
enum ek_status ek_quantize_parse(const char *text, uint32_t *bits);

/* Opens a directory, a .gguf file, or a config.json (path to either). Every size is checked against
 * the files before it returns; no weight is read. *out is freed with ek_model_close (NULL is fine).
 * EK_EFORMAT / EK_EUNSUPPORTED name file, field and both values. */
enum ek_status ek_model_open(const char *path, const struct ek_model_options *options,
                             struct ek_model **out);
void ek_model_close(struct ek_model *m);

/* Makes every block of a vision tower a module of its own, and tower and projector the beginning of
 * the chain; vectors stay side modules. The hash stays: it is the same model. EK_EUNSUPPORTED where
 * there is no tower; nothing to do where it was cut already. */
enum ek_status ek_model_cut_tower(struct ek_model *m);
/* Bytes of the tower's name that the name of one of its modules (whole or part) begins with. */
size_t ek_module_tower_length(const struct ek_module *mod);
/* Works on pictures, not on tokens: tower whole or in parts, projector, vectors. */
static inline bool ek_module_is_visual(const struct ek_module *mod)
{
    return mod->kind >= EK_MODULE_VISION;
}

/* Index of the module of that name, or -1. */
ptrdiff_t ek_model_find(const struct ek_model *m, const char *name);
/* The tensor of a role (and expert index, or -1) in a module, or NULL. */
const struct ek_tensor *ek_module_tensor(const struct ek_module *mod, enum ek_role role,
                                         int32_t index);

/* Reads n bytes of a tensor from byte offset at into dst, in the dtype and row order stated in t
 * (a GGUF's permuted rows come un-permuted, quantised ones repacked: then at and n must be whole
 * rows). Synthetic tensors
 * are made from the seed, the tensor's name and the offset: the same bytes whatever the pieces.
 * May be called from several threads. */
enum ek_status ek_model_read(const struct ek_model *m, const struct ek_tensor *t, uint64_t at,
                             uint64_t n, void *dst);

/* Writes all tensors of a model whose weights are plain into one safetensors file: those of a
 * checkpoint, or synthetic ones. Needs no memory to speak of. stop, where not NULL and set by a
 * signal: no file, and EK_EINTR. */
enum ek_status ek_model_write(const struct ek_model *m, const char *path, bool force,
                              const atomic_bool *stop);

/* Brings the files of the weights into the page cache, or out of it: for measuring how fast they
 * are read. Nothing where there are none. */
enum ek_status ek_model_cache(const struct ek_model *m, bool in);

/* Bytes that one token adds to the cache of a module (0 for all but layers), for a cache of dtype.
 */
uint64_t ek_module_kv_bytes(const struct ek_model *m, const struct ek_module *mod,
                            enum ek_dtype cache);
/* Bytes of activations one token carries over the module's output boundary. */
uint64_t ek_module_boundary_bytes(const struct ek_model *m, const struct ek_module *mod,
                                  enum ek_dtype act);
/* Floating-point operations (2 per multiply-add) for `tokens` new tokens whose last attends to
 * `context` tokens; causal attention counted exactly. linear_only leaves attention out. */
double ek_module_flops(const struct ek_model *m, const struct ek_module *mod, uint64_t tokens,
                       uint64_t context, bool linear_only);
/* Bytes of weights that `tokens` tokens make the module read (mixture of experts: expected number
 * of distinct experts under uniform routing; embedding: rows touched). */
double ek_module_read_bytes(const struct ek_model *m, const struct ek_module *mod, uint64_t tokens);

/* inv_freq[0 .. dim/2): rotary frequencies with the configuration's scaling applied, computed as
 * the official code does (fp32). dim = qk_rope for MLA, else head_dim. *amplitude multiplies cos
 * and sin; *softmax_scale is the attention's scale (yarn's mscale^2 included). */
void ek_config_rope(const struct ek_config *c, float *inv_freq, float *amplitude,
                    float *softmax_scale);

/* One table row a module for people, or the JSON of `evenkeel model --json`. */
json_t *ek_model_json(const struct ek_model *m);

/* ---- Reference files (docs/formats.md): also safetensors, so read and written here ----------- */
/* A flat safetensors file, opened and checked whole. Freed with ek_safetensors_close. */
struct ek_safetensors;
struct ek_safetensors_entry {
    const char *name;
    enum ek_dtype dtype;
    uint32_t n_dims;
    uint64_t shape[5];
    uint64_t offset, bytes; /* absolute in the file */
};
enum ek_status ek_safetensors_open(const char *path, struct ek_safetensors **out);
void ek_safetensors_close(struct ek_safetensors *s);
size_t ek_safetensors_count(const struct ek_safetensors *s);
const struct ek_safetensors_entry *ek_safetensors_at(const struct ek_safetensors *s, size_t i);
const struct ek_safetensors_entry *ek_safetensors_find(const struct ek_safetensors *s,
                                                       const char *name);
/* Value of a key of __metadata__, or NULL. */
const char *ek_safetensors_meta(const struct ek_safetensors *s, const char *key);
/* Reads n bytes from byte `at` of the entry. */
enum ek_status ek_safetensors_read(const struct ek_safetensors *s,
                                   const struct ek_safetensors_entry *e, uint64_t at, uint64_t n,
                                   void *dst);
/* Writes entries (offset ignored) with their data, atomically. meta: object of strings, or NULL. */
enum ek_status ek_safetensors_write(const char *path, const struct ek_safetensors_entry *entries,
                                    const void *const *data, size_t n, const json_t *meta,
                                    bool force);
/* The same of data that `read` gives piece by piece. */
typedef enum ek_status (*ek_tensor_fn)(void *ctx, size_t entry, uint64_t at, uint64_t n, void *dst);
enum ek_status ek_safetensors_stream(const char *path, const struct ek_safetensors_entry *entries,
                                     size_t n, const json_t *meta, ek_tensor_fn read, void *ctx,
                                     bool force);

#endif
