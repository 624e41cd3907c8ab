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

/* ---- Plan (docs/formats.md: plan.json) ------------------------------------------------------- */
struct ek_plan_memory { /* bytes predicted on one device */
    uint64_t weights, kv, activations, workspace, comm, overhead, margin, total, budget;
};
struct ek_plan_stage {
    uint32_t device; /* index into devices */
    char **modules;  /* names, execution order */
    size_t n_modules;
    double prefill_s, decode_s; /* predicted: whole prompt of the workload, one decode step */
    double pictures_s;          /* of prefill_s: its part of all prompts' pictures */
};
struct ek_plan_link {
    uint32_t from, to; /* indices into devices */
    char mechanism[24];
};
struct ek_plan {
    char model_hash[33], model_name[128];
    uint32_t batch, prompt, generate, context; /* workload */
    uint32_t micro_batches;        /* decode groups in flight (sequences are split over them) */
    uint32_t prefill_chunk;        /* tokens of one prefill micro-batch */
    uint32_t images, image_tokens; /* pictures before each prompt, tokens of each */
    enum ek_dtype cache, act;
    struct ek_device_spec *devices;
    char (*uuids)[48];             /* one a device, "" when the plan does not say */
    struct ek_plan_memory *memory; /* one a device; all 0 when the plan does not predict it */
    struct ek_plan_factors {
        double prefill, decode;
    } * factors; /* one a device: what bench's own measurements made of its predictions, else 1 */
    size_t n_devices;
    struct ek_plan_stage *stages;
    size_t n_stages;
    struct ek_plan_link *links; /* the mechanisms that it was planned with */
    size_t n_links;
    double predicted_prefill_s, predicted_decode_s; /* workload's prompt; one token of all batch */
    char profile[33];                               /* identity of the profile, "" when not said */
};
enum ek_status ek_plan_read(const char *path, struct ek_plan **out);
/* The same from n bytes of text; where names it in messages. */
enum ek_status ek_plan_parse(const char *text, size_t n, const char *where, struct ek_plan **out);
void ek_plan_free(struct ek_plan *p); /* NULL is fine */
/* The mechanism of the link between two devices; NULL: the plan does not say. */
const char *ek_plan_mechanism(const struct ek_plan *p, uint32_t from, uint32_t to);
/* The plan of `run` without --plan: everything on one device, for the given workload. */
enum ek_status ek_plan_single(const struct ek_model *m, const struct ek_device_spec *device,
                              uint32_t batch, uint32_t context, struct ek_plan **out);
/* Cuts the model's tower (ek_model_cut_tower) where the plan places its parts: to be called before
 * anything else is done with the two. */
enum ek_status ek_plan_cut_tower(const struct ek_plan *p, struct ek_model *m);
/* Every module of the model exactly once, order kept, devices known, hash equal (EK_EFORMAT). */
enum ek_status ek_plan_check(const struct ek_plan *p, const struct ek_model *m);

/* ---- Stage: consecutive modules on one device, the unit that is profiled and run ------------- */
#define EK_PAGE 32 /* tokens a block of the cache */
/* Blocks of a cache for n_seqs sequences of up to context tokens each. */
static inline uint64_t ek_cache_blocks(uint64_t n_seqs, uint64_t context)
{
    return n_seqs * ((context + EK_PAGE - 1) / EK_PAGE);
}

struct ek_stage;
struct ek_load_times { /* of loading a stage's weights, for measuring */
    bool cold;         /* in: nothing of the checkpoint in the page cache; else all of it */
    uint64_t bytes;    /* out: of the checkpoint's tensors */
    double read_s, send_s, load_s; /* reading alone, sending alone, and both as stages do */
};
struct ek_stage_options {
    uint32_t page;        /* tokens a block of the cache */
    uint32_t n_blocks;    /* blocks of the cache, shared by all sequences */
    uint32_t max_tokens;  /* most new tokens in one batch */
    uint32_t max_seqs;    /* most sequences in one batch */
    uint32_t max_context; /* most tokens of a sequence */
    uint32_t max_logits;  /* rows of the device's logits buffer */
    uint32_t max_patches; /* rows of a vision tower in one run; 0: what max_context tokens take, up
                           * to 65536 (Qwen2.5-VL), 10 tiles (DeepSeek-VL2) */
    enum ek_dtype cache;
    /* For measuring: device memory, [layers][max_tokens][top_k], the experts that tokens of each of
     * the stage's layers go to whatever the router says (it runs all the same, its weights are
     * taken). NULL: it decides. */
    const int32_t *experts;
    struct ek_load_times *load; /* filled by ek_stage_new, which takes long then; NULL: not asked */
    bool eager;                 /* for measuring: no step is replayed from a graph */
    bool shared_embed;          /* a tied head uses the embedding of another stage of this device */
    const struct ek_stage *embed_of; /* that stage, for ek_stage_new; it outlives this one */
};
/* Bytes by tag that ek_stage_new will allocate, without allocating: what a plan is held against.
 * The backend's own scratch (workspace) is not in it. With T = max_tokens, S = max_seqs,
 * L = max_logits, B = blocks of max_context, a = bytes of an activation, and each term rounded up
 * to 256 bytes:
 *   kv          = layers * n_blocks * page * (bytes of K and V of a token)
 *   activations = T*hidden*a (hidden states) + T*hidden*a (normalised)
 *               + T*a * max(q+k+v rows + heads*v_dim, 3*intermediate, hidden with the final norm)
 *               (at least T*hidden*4 + T*4 with the embedding of a model that takes pictures)
 *               + L*hidden*a + L*vocab*4 with the head
 *               + 4*(4*T + 2*S + 1 + S*B) (the batch; 6*T with M-RoPE),
 * terms of layers only in stages with layers: affine in T, L and S*B, whatever the layers' number.
 * Visual modules use the same memory at other times, so the larger counts. With R = max_patches, H
 * the tower's width, F its feed-forward width (rounded up to 8), M = merge^2, P values of a patch,
 * C features of R:
 *   max(R*H, C*hidden)*a + R*H*a + a few integers a row
 *   + a * max(R*P*(1 + 4/a) with the patch embedding, R*max(4*H, 3*F or F) with blocks,
 *             C*max(hidden, M*H) with the merger, C*M*H + C*hidden with the projector).
 */
enum ek_status ek_stage_memory(const struct ek_device *dev, const struct ek_model *m,
                               const size_t *modules, size_t n, const struct ek_stage_options *opt,
                               uint64_t by_tag[EK_N_TAGS]);
/* Allocates weights, cache and activations and loads the weights. modules: indices into m->modules.
 * Borrows dev and m. */
enum ek_status ek_stage_new(struct ek_device *dev, const struct ek_model *m, const size_t *modules,
                            size_t n, const struct ek_stage_options *opt, struct ek_stage **out);
void ek_stage_free(struct ek_stage *s);
/* A batch as the host describes it. */
struct ek_batch_host {
    uint32_t n_tokens, n_seqs, n_logits;
    const int32_t *tokens;        /* [n_tokens] */
    const uint32_t *n_new;        /* [n_seqs] new tokens of each sequence */
    const uint32_t *past;         /* [n_seqs] tokens of each that the cache holds already */
    const int32_t *const *blocks; /* [n_seqs] its blocks, enough for past + new tokens */
    const int32_t *logit_rows;    /* [n_logits] rows of the batch, ascending */
    const int32_t *positions;     /* M-RoPE: [3][n_tokens]; NULL: past, past + 1, ... */
};
/* Uploads a batch into the stage's own fixed device memory and describes it in *out (valid until
 * the next upload of this stage) with *rows = device copy of logit_rows. Where the backend has
 * graphs, a decode batch is padded (copies of its first sequence) to one of few sizes and max_kv
 * is rounded up, so that ek_stage_run can replay: then out->n_seqs > n_seqs, and so many rows of
 * logits are computed; the first n_seqs are the batch's. */
enum ek_status ek_stage_upload(struct ek_stage *s, const struct ek_batch_host *h,
                               struct ek_batch *out, const int32_t **rows, uint32_t *n_rows);
/* The stage's own hidden states, [max_tokens][hidden]: as in and out of ek_stage_run it saves both
 * copies. */
void *ek_stage_hidden(struct ek_stage *s);
/* F32 [max_logits][vocab] of a stage with the head, else NULL: may be out of ek_stage_run. */
float *ek_stage_logits(struct ek_stage *s);
/* Issues all modules for a batch. in: hidden states [n_tokens, hidden] on this device (unused when
 * the stage begins with the embedding; the normalised rows asked for, when it begins with the
 * head). out: hidden states [n_tokens, hidden]; normalised rows [n_logits, hidden] when it ends
 * with the norm; F32 logits [n_logits, vocab] when it ends with the head. logit_rows: device
 * memory; n_logits <= max_logits with a head. in == out is allowed. A decode batch (one token a
 * sequence) is captured when the same arguments come a second time, and replayed from then on,
 * where the backend has graphs. */
enum ek_status ek_stage_run(struct ek_stage *s, const struct ek_batch *batch, const void *in,
                            void *out, const int32_t *logit_rows, uint32_t n_logits);
/* Runs the stage's tower and projector, as far as it has them, over a picture of noise of about so
 * many tokens (never fewer patches than that), for measuring; returns when it is done. */
enum ek_status ek_stage_look(struct ek_stage *s, uint32_t tokens);
/* Elements of a message between parts of a cut tower: max_patches rows (0: as above). */
size_t ek_picture_message(const struct ek_model *m, const struct ek_stage_options *opt);
bool ek_stage_has_head(const struct ek_stage *s);

/* ---- Links: hidden states from one device to another ----------------------------------------- */
#define EK_LINK_SLOTS 2 /* messages under way; a message is at most max_elements activations */
struct ek_link;
#define EK_LINK_MECHANISMS 8
/* Names of those that work for the pair: "same-device"; "peer-store" (the sender's kernel writes
 * into the receiver's memory and raises a flag there); "copy" (the receiver's copy engine reads the
 * sender's memory); "host-staged"; "nccl" (send and receive of that library). The first is the
 * usual one. */
size_t ek_link_mechanisms(const struct ek_device *from, const struct ek_device *to,
                          const char *names[EK_LINK_MECHANISMS]);
/* The mechanism to open: the one that the environment variable EVENKEEL_LINK names, else `wanted`
 * (NULL: none), where it works; else the usual one. */
const char *ek_link_pick(const struct ek_device *from, const struct ek_device *to,
                         const char *wanted);
/* Opens ek_link_pick(from, to, wanted), with a note where that is not what was asked for. The types
 * of activations may differ. from == to is allowed. */
enum ek_status ek_link_open(struct ek_device *from, struct ek_device *to, size_t max_elements,
                            const char *wanted, struct ek_link **out);
/* The same by one mechanism (NULL: the usual one). EK_EUNSUPPORTED where it does not work. */
enum ek_status ek_link_open_as(struct ek_device *from, struct ek_device *to, size_t max_elements,
                               const char *mechanism, struct ek_link **out);
/* Ends every wait of the receiver's queue, after the sender failed. NULL is fine. */
void ek_link_abandon(struct ek_link *l);
/* Why the link has failed, where its mechanism can tell; EK_OK: it has not. */
enum ek_status ek_link_check(const struct ek_link *l);
void ek_link_close(struct ek_link *l); /* NULL is fine; both devices must be idle */
const char *ek_link_mechanism(const struct ek_link *l);
/* True when send and recv only queue: no host thread has to wake between the two devices. */
bool ek_link_queued(const struct ek_link *l);
struct ek_link_bytes {
    uint64_t at_from, at_to;     /* under EK_TAG_COMM, of each link */
    uint64_t once_from, once_to; /* that the first link of a process takes for good: a library's */
};
/* Bytes that ek_link_open_as takes on either device. What a library takes is tried out. */
enum ek_status ek_link_memory(struct ek_device *from, struct ek_device *to, const char *mechanism,
                              size_t max_elements, struct ek_link_bytes *out);
/* True when a slot is free: send may be called. */
bool ek_link_ready(const struct ek_link *l);
/* Called by the thread of `from`: queues n activations at src; src may change once its queue
 * passed. when (NULL: no matter), as in ek_link_wait: memory of host_alloc, where the queue notes
 * the time before the message goes (ops.stamp). */
enum ek_status ek_link_send(struct ek_link *l, const void *src, size_t n, uint64_t *when);
/* Looks whether the slot of the next message is empty by now: then the queue need not wait for that
 * between what it has to do before and the message. */
enum ek_status ek_link_reserve(struct ek_link *l);
/* Called by the thread of `to`, once a send: first wait (its queue waits for the message), then
 * recv (queues the copy to dst). */
enum ek_status ek_link_wait(struct ek_link *l, uint64_t *when);
/* After wait: the message where it lies in to's memory, which may be worked in until recv is called
 * with it as dst, which then copies nothing; NULL where it lies elsewhere. */
void *ek_link_slot(const struct ek_link *l);
enum ek_status ek_link_recv(struct ek_link *l, void *dst, size_t n);

/* Waits for an event of a device, so long at most: EK_NO when it has not passed then. */
enum ek_status ek_event_poll(const struct ek_device *dev, struct ek_event *event, double seconds);

/* ---- Engine ---------------------------------------------------------------------------------- */
struct ek_engine;
struct ek_engine_options {
    uint32_t max_seqs;     /* 0: the plan's batch */
    uint32_t max_context;  /* 0: the plan's context */
    uint32_t max_logits;   /* rows of logits a step may ask for; 0: max_seqs */
    uint64_t cache_tokens; /* of all sequences together; 0: max_seqs * max_context */
    uint32_t max_patches;  /* as in ek_stage_options */
    /* Seconds without any progress after which the engine fails, naming the stage or link that does
     * not answer. 0: the environment variable EVENKEEL_DEADLINE; else 20 times the longest
     * predicted time of a stage, at least 30 s, and 600 s for a plan without predictions. */
    double deadline_s;
    /* Every module a stage of its own, whose output goes here: rows of dim values, called by the
     * worker of its device. Blocks of a tower as MODULE.blocks.N, in the order of the processor's
     * patches. The head's are the logits anyway. NULL: none. */
    void (*trace)(void *user, const char *module, const float *rows, size_t n, uint32_t dim);
    void *trace_user;
};
/* What every stage of a plan is opened with. */
struct ek_stage_options ek_plan_stage_options(const struct ek_plan *p,
                                              const struct ek_engine_options *opt);
/* Holds the plan against the devices' budgets and free memory before the first weight byte is read
 * (EK_EENV with a table on stderr), opens the devices, loads, starts one worker a device. Borrows
 * model and plan. */
enum ek_status ek_engine_open(const struct ek_model *m, const struct ek_plan *p,
                              const struct ek_engine_options *opt, struct ek_engine **out);
/* NULL is fine. False when a device or a thread does not come back within seconds after a failure:
 * then nothing of the engine is freed, and what it borrowed must stay until the process ends. */
bool ek_engine_close(struct ek_engine *e);

/* A sequence slot; EK_ENOMEM when all are in use. */
enum ek_status ek_engine_seq_open(struct ek_engine *e, uint32_t *seq);
void ek_engine_seq_close(struct ek_engine *e, uint32_t seq); /* its blocks are free again */
uint32_t ek_engine_seq_length(const struct ek_engine *e, uint32_t seq);
/* Forgets the tokens from `length` on, those of steps under way too: what a step computed ahead of
 * an end that nobody knew of. Returns how many are left: fewer where the last block of the cache is
 * another sequence's too. */
uint32_t ek_engine_seq_trim(struct ek_engine *e, uint32_t seq, uint32_t length);
/* The sequence forgets what it has and begins as another does: it holds that one's first `length`
 * tokens, as far as they fill blocks of the cache, and both have these; they must be in steps that
 * were submitted. Returns how many tokens it holds. */
uint32_t ek_engine_seq_share(struct ek_engine *e, uint32_t seq, uint32_t from, uint32_t length);

/* ---- pictures: rows that take the place of embeddings in a prompt */
struct ek_embeds {
    uint32_t *tokens;   /* [n] ascending */
    const float **rows; /* [n], [hidden] each, in the engine's memory ... */
    size_t n;
    struct engine_block *block; /* ... for copies, which goes back there */
};
/* Runs the tower and what projects its output, on their devices, over the pictures of p, and lays
 * their rows out. Others' steps go on meanwhile; those of several callers take turns. rules:
 * those that p was made with. Freed with ek_embeds_free, before the engine closes. EK_EUSAGE when a
 * picture is larger than max_patches. Where it fails, pixels that a device may still read are the
 * engine's, and p has them no more. */
enum ek_status ek_engine_encode(struct ek_engine *e, const struct ek_vl_rules *rules,
                                struct ek_vl_prompt *p, struct ek_embeds *out);
void ek_embeds_free(struct ek_embeds *x); /* zeroes it; a zeroed one is fine */

enum ek_logits { EK_LOGITS_NONE, EK_LOGITS_LAST, EK_LOGITS_ALL };
/* One micro-batch: n_tokens[i] new tokens of sequence seqs[i], concatenated in tokens. */
struct ek_embed_row {
    uint32_t token;      /* of the step, not of the prompt */
    const float *values; /* [hidden] */
};
/* A token that is not known yet: row r of the ids that step `from` will choose. */
#define EK_TOKEN_OF_ROW(r) (-1 - (int32_t)(r))
struct ek_step {
    uint32_t n_seqs;
    const uint32_t *seqs, *n_tokens;
    const int32_t *tokens; /* ids, or EK_TOKEN_OF_ROW: the step follows `from` on the devices */
    uint64_t from;         /* ticket of that step, not released; where a token is EK_TOKEN_OF_ROW */
    const int32_t *positions;          /* M-RoPE: [3][tokens]; NULL: as they follow one another */
    const struct ek_embed_row *embeds; /* [n_embeds]: these tokens are not looked up in the */
    uint32_t n_embeds;                 /* embedding. Values stay until the step has ended */
    enum ek_logits logits;             /* EK_LOGITS_LAST: of the last new token of each sequence */
    const struct ek_draw *draws;       /* [rows of logits], taken at once: how the id of each is
                                        * chosen (see ek_engine_draws). NULL: the largest logit */
    bool ids_only;                     /* logits stay on the device: wait gives ids alone */
};
/* The device of the head draws tokens: steps may have draws. */
bool ek_engine_draws(const struct ek_engine *e);
/* Queues a micro-batch and returns at once: stages overlap over the steps in flight. A sequence may
 * be in several steps in flight (prefill chunks); they keep their order. */
enum ek_status ek_engine_submit(struct ek_engine *e, const struct ek_step *step, uint64_t *ticket);
/* Waits for a step. *logits: F32 [rows][vocab], borrowed until ek_engine_release(ticket); ids:
 * [rows], -1 where logits were not finite (draws alone). Either may be NULL. EK_EDEVICE when a
 * device failed: the engine is then unusable. EK_ENOMEM when a device had no memory for this step,
 * or for one that it follows: its sequences are to be closed, the engine and other sequences go on.
 */
enum ek_status ek_engine_wait(struct ek_engine *e, uint64_t ticket, const float **logits,
                              const int32_t **ids, uint32_t *rows);
void ek_engine_release(struct ek_engine *e, uint64_t ticket);
/* Whole prompts through prefill chunks, then rows of logits as asked (convenience over submit). */
enum ek_status ek_engine_prefill(struct ek_engine *e, uint32_t seq, const int32_t *tokens, size_t n,
                                 enum ek_logits want, float *logits /* [rows][vocab] or NULL */,
                                 int32_t *argmax /* [rows] or NULL */);

struct ek_stage_timing { /* of the steps since the last reset */
    uint32_t device;
    size_t stage; /* of the plan */
    uint64_t steps, tokens;
    double busy_s;     /* the device worked on the stage's modules */
    double pictures_s; /* it worked on its part of pictures; packing them counts for the first */
    double wait_s;     /* the worker had nothing to issue before a step of this stage */
};
/* One for each stage of the plan (of the model when traced), in no order of the plan's. */
size_t ek_engine_timings(struct ek_engine *e, struct ek_stage_timing *out, size_t cap);
void ek_engine_reset_timings(struct ek_engine *e);
size_t ek_engine_n_devices(const struct ek_engine *e);
void ek_engine_usage(struct ek_engine *e, size_t device, struct ek_usage by_tag[EK_N_TAGS]);
/* Borrowed; for its spec and info. Only the engine's worker may issue to it. */
struct ek_device *ek_engine_device(const struct ek_engine *e, size_t device);
const struct ek_plan *ek_engine_plan(const struct ek_engine *e);
const struct ek_model *ek_engine_model(const struct ek_engine *e);
uint32_t ek_engine_max_seqs(const struct ek_engine *e);
uint32_t ek_engine_max_context(const struct ek_engine *e);
/* The cache has room for max_seqs sequences of max_context tokens. */
bool ek_engine_has_room(const struct ek_engine *e);

/* ---- Sampling -------------------------------------------------------------------------------- */
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
/* What a device is told to draw one id by; takes a number from state, the stream of random numbers,
 * unless greedy. EK_EUSAGE when a setting is out of its bounds. */
enum ek_status ek_sampling_draw(const struct ek_sampling *s, uint64_t *state, struct ek_draw *out);
/* EK_EDEVICE when a drawn id says that the logits were not finite. */
enum ek_status ek_drawn_check(int32_t id);
struct ek_penalties;
/* EK_EUSAGE when a setting or an id is out of its bounds. */
enum ek_status ek_penalties_check(const struct ek_penalties *p, uint32_t vocab);
/* seen: [vocab] twice the times that the answer has a token, and one where the prompt has it. */
void ek_penalize(const struct ek_penalties *p, const uint32_t *seen, uint32_t vocab, float *logits);
/* Draws one id from logits, here; state is the stream of random numbers (start it with the seed).
 * Order as Hugging Face: temperature, top-k, top-p, min-p. */
enum ek_status ek_sample(const struct ek_sampling *s, const float *logits, uint32_t vocab,
                         uint64_t *state, int32_t *id);

/* ---- Generation: prompts in, tokens out ------------------------------------------------------ */
enum ek_finish {
    EK_FINISH_LENGTH,  /* max_tokens, or the context is full */
    EK_FINISH_STOP,    /* a stop id (kept as the last of ids) */
    EK_FINISH_CALLBACK /* on_token said so */
};
struct ek_prompt { /* all borrowed */
    const int32_t *ids;
    size_t n;                       /* at least 1 */
    const int32_t *positions;       /* M-RoPE: [3][n]; NULL: 0, 1, ... */
    int32_t delta;                  /* the position of token i >= n is i + delta */
    const struct ek_embeds *embeds; /* pictures' rows; NULL: none */
    /* [n] what tells tokens apart for a cache: ids, but of pictures' rows what they hold and where.
     * NULL: nothing of pictures, and behind them, is the same as anything */
    const uint64_t *names;
};
/* A prompt with pictures, laid out and encoded: what ek_generate takes is .prompt. */
struct ek_vision_prompt {
    struct ek_vl_prompt vl; /* without pixels */
    struct ek_embeds embeds;
    uint64_t *names;
    struct ek_prompt prompt; /* points into the struct, which stays where it was opened */
};
/* ek_vl_prompt, then ek_engine_encode. items stay the caller's. */
enum ek_status ek_vision_prompt_open(struct ek_engine *e, const struct ek_vl_rules *rules,
                                     const int32_t *ids, size_t n_ids,
                                     const struct ek_vl_item *items, size_t n_items,
                                     struct ek_vision_prompt *out);
void ek_vision_prompt_close(struct ek_vision_prompt *v); /* zeroes it; a zeroed one is fine */

/* What is done to logits before a token is chosen from them, in this order: what is added to some;
 * those above 0 divided, others multiplied, of tokens that the prompt or the answer has; what is
 * taken off for each time that the answer has a token, and once where it does. */
struct ek_bias {
    int32_t id;
    float add;
};
struct ek_penalties {
    const struct ek_bias *biases; /* borrowed */
    size_t n_biases;
    float repetition;          /* above 0; 1: nothing */
    float frequency, presence; /* 0: nothing */
};
#define EK_PENALTIES_NONE                                                                          \
    {                                                                                              \
        .repetition = 1                                                                            \
    }
struct ek_generate_options {
    struct ek_sampling sampling; /* prompt i draws from the stream of seed + i */
    /* NULL: none. Else, once checked, logits come to the host, where tokens are chosen, a step
     * after the other. */
    const struct ek_penalties *penalties;
    uint32_t max_tokens; /* new tokens of each prompt */
    const int32_t *stop; /* ids that end a sequence: usually the model's eos */
    size_t n_stop;
    /* Called on the calling thread for every new token, in the order they are made; false ends that
     * sequence. May be NULL. */
    bool (*on_token)(void *user, size_t prompt, int32_t id);
    /* Called before on_token with the logits [vocab] that the token was chosen from, which come to
     * the host for it. NULL: not asked for. */
    void (*on_logits)(void *user, size_t prompt, int32_t id, const float *logits);
    void *user;
    const atomic_bool *cancel; /* set by SIGINT: returns EK_EINTR with what there is; may be NULL */
};
struct ek_completion {
    int32_t *ids; /* new tokens */
    size_t n;
    enum ek_finish finish;
};
struct ek_generate_timing {
    double prefill_s;     /* until the first token of every prompt is there */
    double decode_s;      /* all decode steps */
    double decode_step_s; /* one token of every running sequence: decode_s / rounds */
    uint64_t prompt_tokens, new_tokens;
};
/* Runs prompts (more than max_seqs: in waves), prefilled in chunks that sequences share, then
 * decoded in the plan's micro_batches groups, all in flight at once. *out: one a prompt, freed with
 * ek_completions_free, also set when EK_EINTR is returned. timing may be NULL. */
enum ek_status ek_generate(struct ek_engine *e, const struct ek_prompt *prompts, size_t n,
                           const struct ek_generate_options *opt, struct ek_completion **out,
                           struct ek_generate_timing *timing);
void ek_completions_free(struct ek_completion *c, size_t n); /* NULL is fine */

/* ---- Generation of prompts that come and go: serving ------------------------------------------
 */
struct ek_generation {              /* the caller's, who keeps it where it is until it has ended */
    struct ek_prompt prompt;        /* from 1 to the engine's max_context tokens */
    struct ek_generate_options opt; /* its own; cancel is not looked at */
    struct ek_completion out;       /* so far; ids are freed by the caller, with free() */
    size_t kept; /* tokens of the prompt that were in the cache, from one that begins alike */
};
struct ek_generations {
    /* The next one. *out NULL: there is none now; with wait (nothing runs) it is called to wait for
     * one, and NULL ends ek_generate_stream. */
    enum ek_status (*next)(void *user, bool wait, struct ek_generation **out);
    void (*ended)(void *user, struct ek_generation *g); /* all of its answer is there */
    void *user;
};
/* Runs them as they come: each joins those that run as soon as a sequence of the engine is free,
 * its prompt in chunks between their steps. Of a prompt that begins as another's that runs, or as
 * one that has ended with its answer, only what differs is computed, up to a block of the cache;
 * what has ended is remembered where the engine has room (ek_engine_has_room). Everything is called
 * on the calling thread. When it fails, those that did not end are the caller's again. */
enum ek_status ek_generate_stream(struct ek_engine *e, const struct ek_generations *from);

/* ---- Benchmark: a workload of synthetic token ids, timed ------------------------------------- */
struct ek_bench_options {
    uint32_t batch, prompt, generate; /* 0: the plan's */
    uint32_t repeats;                 /* timed runs after one that warms up; 0: 3 */
    uint64_t seed;                    /* of the token ids and of pictures */
    /* pictures of random pixels before each prompt's tokens, of about so many tokens each, or of
     * exactly width x height pixels. 0: the plan's */
    uint32_t images, image_tokens, image_width, image_height;
    const atomic_bool *cancel;
};
struct ek_spread {
    double median, mean, min, max, mad; /* median absolute deviation */
    uint32_t n;
};
struct ek_bench_result {
    uint32_t batch, prompt, generate, n_stages, n_devices;
    uint32_t images, image_tokens, image_width, image_height; /* 0 images: none */
    uint32_t image_patches;      /* rows that the tower works on for one */
    double prepare_s;            /* one picture's pixels on the host: resized, cut into patches */
    struct ek_spread pictures_s; /* tower and projector over all prompts' pictures, a repeat each */
    struct ek_spread prefill_s;  /* all prompts with their pictures, a sample a repeat */
    struct ek_spread decode_s;   /* one token of the whole batch, a sample a round */
    double decode_total_s;       /* mean over repeats of all generate - 1 rounds */
    struct ek_stage_timing *prefill, *decode; /* [n_stages], sums over the repeats */
    /* [n_stages], a sample a repeat: busy with all prompts and pictures; with pictures alone; with
     * one decode step */
    struct ek_spread *stage_prefill_s, *stage_pictures_s, *stage_decode_s;
    struct ek_usage (*usage)[EK_N_TAGS]; /* [n_devices] */
};
/* The size of pictures of about so many tokens, n of them in a prompt, unless size says one; tokens
 * of one such picture. */
enum ek_status ek_bench_picture_size(const struct ek_model *m, uint32_t n, uint32_t tokens,
                                     uint32_t size[2], uint32_t *image_tokens);
/* The way of ek_generate (same chunks, same groups), without sampling: greedy on the device. */
enum ek_status ek_bench_run(struct ek_engine *e, const struct ek_bench_options *opt,
                            struct ek_bench_result *out);
void ek_bench_result_clear(struct ek_bench_result *r); /* frees what it holds */

/* ---- References ------------------------------------------------------------------------------ */
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
    char dtype[16];           /* that made it, "" when not said */
    double bf16_mean_kl;      /* of the official BF16 run against this reference, 0: not said */
    struct ek_vl_item *items; /* pictures, then videos, of the prompt; into frames */
    size_t n_items;
    struct ek_image *frames;
    size_t n_frames;
    int32_t *position_ids; /* [3][n_ids], which ours must equal; NULL: not said */
};
enum ek_status ek_reference_read(const char *path, struct ek_reference **out);
void ek_reference_free(struct ek_reference *r);
/* trace.MODULE of a reference file, rows of dim values, freed with free(); *rows NULL: not there.
 */
enum ek_status ek_reference_trace(const char *path, const char *module, float **rows, size_t *n,
                                  uint32_t *dim);

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
/* Runs the reference's pictures and ids through the engine (teacher-forced) and compares row by
 * row. EK_NO when the positions that its pictures give are not the reference's. */
enum ek_status ek_compare(struct ek_engine *e, const struct ek_reference *r,
                          struct ek_comparison *out);
/* What a run of m with activations of a type is asked for. F32: a relative 1e-4. BF16 and F16, or a
 * reference that was computed in one of them: a mean KL of 1e-3, or what the official BF16 run
 * itself loses on this reference where that is more; twice that for mixtures of experts, whose
 * router's near ties fall differently in any two such runs. */
struct ek_tolerance ek_tolerance_for(const struct ek_model *m, enum ek_dtype act,
                                     const struct ek_reference *r);
/* EK_OK, or EK_NO with the reason recorded. */
enum ek_status ek_comparison_judge(const struct ek_comparison *c, const struct ek_tolerance *t);
/* The output of a module against trace.MODULE of a reference file. */
struct ek_trace_module {
    char name[128];
    size_t rows;             /* compared; 0: the reference has no trace of it */
    double max_abs, largest; /* largest |difference|, and |value| of the reference */
    bool departs;            /* max_abs > tolerance * largest, or not finite */
};
/* Runs the reference with every module a stage of its own, on the plan's devices, in an engine of
 * its own. *out: modules in the order of execution, freed with free(). */
enum ek_status ek_trace(const struct ek_model *m, const struct ek_plan *p, const char *path,
                        const struct ek_reference *r, double tolerance,
                        struct ek_trace_module **out, size_t *n, struct ek_comparison *logits);
/* Records a trusted run of ours as a reference file: the ids (pictures' places expanded) and items
 * of `in`, which needs no more, with all logits. */
enum ek_status ek_reference_record(struct ek_engine *e, const struct ek_reference *in,
                                   const char *path, bool force);

#endif
