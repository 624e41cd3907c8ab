/* SPDX-License-Identifier: Apache-2.0
 *
 * runtime: plan + checkpoint + prompt -> logits. Plans (reading), stages (modules on a device with
 * their weights and cache), the engine (stages on devices, one worker thread a device), sampling,
 * references and their comparison. Depends on kernels, model, base; knows nothing of profiles.
 */
#ifndef EK_RUNTIME_H
#define EK_RUNTIME_H

#include "kernels/kernels.h"
#include "model/model.h"

/* ---- Plan (docs/formats.md: plan.json)
 * --------------------------------------------------------------- */
struct ek_plan_memory { /* bytes predicted on one device */
    uint64_t weights, kv, activations, workspace, comm, overhead, margin, total, budget;
};
struct ek_plan_stage {
    uint32_t device; /* index into devices */
    char **modules;  /* names, execution order */
    size_t n_modules;
    double prefill_s, decode_s; /* predicted: whole prompt of the workload, one decode step */
};
struct ek_plan {
    char model_hash[33], model_name[128];
    uint32_t batch, prompt, generate, context; /* workload */
    uint32_t micro_batches; /* decode groups in flight (sequences are split over them) */
    uint32_t prefill_chunk; /* tokens of one prefill micro-batch */
    enum ek_dtype cache, act;
    struct ek_device_spec *devices;
    struct ek_plan_memory *memory; /* one a device */
    size_t n_devices;
    struct ek_plan_stage *stages;
    size_t n_stages;
    double predicted_prefill_s, predicted_decode_s; /* workload's prompt; one token of all batch */
};
enum ek_status ek_plan_read(const char *path, struct ek_plan **out);
void ek_plan_free(struct ek_plan *p); /* NULL is fine */
/* The plan of `run` without --plan: everything on one device, for the given workload. */
enum ek_status ek_plan_single(const struct ek_model *m, const struct ek_device_spec *device,
                              uint32_t batch, uint32_t context, struct ek_plan **out);
/* Every module of the model exactly once, order kept, devices known, hash equal (EK_EFORMAT). */
enum ek_status ek_plan_check(const struct ek_plan *p, const struct ek_model *m);

/* ---- Stage: consecutive modules on one device, the unit that is profiled and run
 * ---------------------- */
struct ek_stage;
struct ek_stage_options {
    uint32_t page;        /* tokens a block of the cache */
    uint32_t n_blocks;    /* blocks of the cache, shared by all sequences */
    uint32_t max_tokens;  /* most new tokens in one batch */
    uint32_t max_seqs;    /* most sequences in one batch */
    uint32_t max_context; /* most tokens of a sequence */
    uint32_t max_logits;  /* most rows of logits asked for in one batch */
    enum ek_dtype cache;
};
/* Bytes by tag that ek_stage_new will allocate, without allocating: what a plan is held against. */
enum ek_status ek_stage_memory(const struct ek_device *dev, const struct ek_model *m,
                               const size_t *modules, size_t n, const struct ek_stage_options *opt,
                               uint64_t by_tag[EK_N_TAGS]);
/* Allocates weights, cache and activations and loads the weights. modules: indices into m->modules.
 * Borrows dev and m. */
enum ek_status ek_stage_new(struct ek_device *dev, const struct ek_model *m, const size_t *modules,
                            size_t n, const struct ek_stage_options *opt, struct ek_stage **out);
void ek_stage_free(struct ek_stage *s);
/* Issues all modules for a batch. in: hidden states [n_tokens, hidden] on this device (unused when
 * the stage begins with the embedding). out: hidden states, or F32 logits of the rows
 * logit_rows[0..n_logits) (device memory) when it ends with the head. in == out is allowed. */
enum ek_status ek_stage_run(struct ek_stage *s, const struct ek_batch *batch, const void *in,
                            void *out, const int32_t *logit_rows, uint32_t n_logits);
bool ek_stage_has_head(const struct ek_stage *s);
bool ek_stage_has_embed(const struct ek_stage *s);

/* ---- Engine
 * ---------------------------------------------------------------------------------------------- */
struct ek_engine;
struct ek_engine_options {
    uint32_t max_seqs;    /* 0: the plan's batch */
    uint32_t max_context; /* 0: the plan's context */
    uint32_t max_logits;  /* rows of logits a step may ask for; 0: max_seqs */
    bool synthetic;       /* weights from the model's seed */
};
/* Holds the plan against the devices' budgets and free memory before the first weight byte is read
 * (EK_EENV with a table on stderr), opens the devices, loads, starts one worker a device. Borrows
 * model and plan. */
enum ek_status ek_engine_open(const struct ek_model *m, const struct ek_plan *p,
                              const struct ek_engine_options *opt, struct ek_engine **out);
void ek_engine_close(struct ek_engine *e);

/* A sequence slot; EK_ENOMEM when all are in use. */
enum ek_status ek_engine_seq_open(struct ek_engine *e, uint32_t *seq);
void ek_engine_seq_close(struct ek_engine *e, uint32_t seq); /* its blocks are free again */
uint32_t ek_engine_seq_length(const struct ek_engine *e, uint32_t seq);

enum ek_logits { EK_LOGITS_NONE, EK_LOGITS_LAST, EK_LOGITS_ALL };
/* One micro-batch: n_tokens[i] new tokens of sequence seqs[i], concatenated in tokens. */
struct ek_step {
    uint32_t n_seqs;
    const uint32_t *seqs, *n_tokens;
    const int32_t *tokens;
    enum ek_logits logits;
};
/* Queues a micro-batch and returns at once: stages overlap over the steps in flight. A sequence may
 * be in several steps in flight (prefill chunks); they keep their order. */
enum ek_status ek_engine_submit(struct ek_engine *e, const struct ek_step *step, uint64_t *ticket);
/* Waits for a step. *logits: F32 [rows][vocab], borrowed until ek_engine_release(ticket); argmax:
 * [rows]. Either may be NULL. EK_EDEVICE when a device failed: the engine is then unusable. */
enum ek_status ek_engine_wait(struct ek_engine *e, uint64_t ticket, const float **logits,
                              const int32_t **argmax, uint32_t *rows);
void ek_engine_release(struct ek_engine *e, uint64_t ticket);
/* Whole prompts through prefill chunks, then rows of logits as asked (convenience over submit). */
enum ek_status ek_engine_prefill(struct ek_engine *e, uint32_t seq, const int32_t *tokens, size_t n,
                                 enum ek_logits want, float *logits /* [rows][vocab] or NULL */,
                                 int32_t *argmax /* [rows] or NULL */);

struct ek_stage_timing { /* of the steps since the last reset */
    uint32_t device;
    uint64_t steps, tokens;
    double busy_s, wait_s, handoff_s;
};
size_t ek_engine_timings(struct ek_engine *e, struct ek_stage_timing *out, size_t cap);
void ek_engine_reset_timings(struct ek_engine *e);
size_t ek_engine_n_devices(const struct ek_engine *e);
void ek_engine_usage(struct ek_engine *e, size_t device, struct ek_usage by_tag[EK_N_TAGS]);

/* ---- Sampling
 * ---------------------------------------------------------------------------------------------- */
struct ek_sampling {
    double temperature; /* 0: greedy */
    uint32_t top_k;     /* 0: all */
    double top_p;       /* 1: all */
    double min_p;       /* 0: off */
    uint64_t seed;
};
#define EK_SAMPLING_GREEDY                                                                         \
    {                                                                                              \
        .temperature = 0, .top_k = 0, .top_p = 1, .min_p = 0, .seed = 1                            \
    }
/* Draws one id from logits; state is the stream of random numbers (start it with the seed). Order
 * as Hugging Face: temperature, top-k, top-p, min-p. */
enum ek_status ek_sample(const struct ek_sampling *s, const float *logits, uint32_t vocab,
                         uint64_t *state, int32_t *id);

/* ---- References
 * ---------------------------------------------------------------------------------------------- */
struct ek_reference {
    int32_t *ids; /* [n_ids] */
    size_t n_ids;
    int64_t *positions; /* [n_rows] rows of the input that the logits belong to */
    size_t n_rows;
    uint32_t vocab;    /* of logits */
    float *logits;     /* [n_rows][vocab], or NULL in the top-k form */
    int32_t *topk_ids; /* [n_rows][n_topk] */
    float *topk_logits, *logsumexp;
    uint32_t n_topk;
    char dtype[16]; /* that made it, "" when not said */
};
enum ek_status ek_reference_read(const char *path, struct ek_reference **out);
void ek_reference_free(struct ek_reference *r);

struct ek_comparison {
    size_t rows;
    double max_abs, max_logit; /* largest |difference| and largest |reference logit| */
    double mean_kl,
        max_kl;          /* KL(reference || ours), nats; top-k form: over the top k and the rest */
    size_t top1_equal;   /* rows whose best token agrees */
    size_t top1_decided; /* rows whose reference margin exceeds 2 * max_abs ... */
    size_t top1_decided_equal; /* ... and agree */
    size_t worst_row;
    size_t not_finite; /* logits of ours that are NaN or infinite */
};
struct ek_tolerance {
    double relative; /* max_abs <= relative * max_logit, 0: not asked */
    double mean_kl;  /* 0: not asked */
};
/* Runs the reference's ids through the engine (teacher-forced) and compares row by row. */
enum ek_status ek_compare(struct ek_engine *e, const struct ek_reference *r,
                          struct ek_comparison *out);
/* EK_OK, or EK_NO with the reason recorded. */
enum ek_status ek_comparison_judge(const struct ek_comparison *c, const struct ek_tolerance *t);
/* Records a trusted run of ours as a reference file. */
enum ek_status ek_reference_record(struct ek_engine *e, const struct ek_model *m,
                                   const int32_t *ids, size_t n, const char *path, bool force);

#endif
