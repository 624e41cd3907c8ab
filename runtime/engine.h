/* SPDX-License-Identifier: Apache-2.0
 *
 * Inside of the engine. Stages hang on devices; a step (micro-batch) goes from stage to stage, in
 * the order of submission at each. One worker a device takes, of the steps that wait at its
 * stages, the oldest whose outgoing link has a free slot. The last stage needs no slot, so some
 * step can always go on, also where a device is visited more than once (there, a step
 * waits at the host until its message has come, lest it hold up the device's other stages). A
 * worker only queues: it goes on to the next step while the device is at this one. The end of a
 * step is waited for by whoever needs it: a caller of wait or release, or one of submit when no
 * more steps fit.
 */
#ifndef EK_RUNTIME_ENGINE_H
#define EK_RUNTIME_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "runtime/cache.h"
#include "runtime/vision.h"

/* What a device passes at a stage. It notes the time of all but the last, behind which there is an
 * event. */
enum { MARK_BEGIN, MARK_RECEIVED, MARK_RAN, MARK_SENT, N_MARKS };
enum { N_TIMES = MARK_SENT };

/* A step at a stage. */
struct engine_pass {
    _Atomic uint64_t *when; /* [N_TIMES] host memory that every device writes; 0: not passed */
    struct ek_event *ended; /* the hidden states have gone on, or the ids are there */
    atomic_uint recorded;   /* marks that are queued */
    unsigned received;      /* the mark behind which the hidden states are there */
    uint64_t order;         /* when its worker took it, among all of the engine; 0: not yet */
};

struct engine_step {
    struct engine_step *next; /* in the list of active or of idle steps */
    uint64_t ticket;
    int32_t *image; /* the packed batch; host memory that every device reads */
    struct batch_counts counts;
    struct engine_step *from; /* whose ids some of its tokens are, until it is done; NULL: none */
    uint32_t followers;       /* steps under way that this one is `from` of */
    bool ids_only, drawn;     /* logits stay on the device; ids are chosen by draws */
    bool issued;              /* the last stage is queued: whoever needs it may finish it */
    bool finishing;           /* some thread waits for its end */
    bool done;                /* its results are there */
    struct ek_embed_row *embeds; /* the caller's rows for the first stage, ... */
    int32_t *places;             /* ... and the tokens they are for, both [max_tokens] */
    uint32_t n_embeds;
    enum ek_status status;    /* EK_ENOMEM: ended where there was no memory for it */
    char message[256];        /* ... */
    uint32_t last_stage;      /* where it ends: without logits, before the head */
    uint32_t rows;            /* of logits */
    float *logits;            /* host memory of the head's device, [rows][vocab]; */
    size_t logits_cap;        /* floats */
    int32_t *ids;             /* chosen, [max_tokens], and ... */
    struct ek_draw *draws;    /* ... how, [max_tokens]; host memory that every device reads */
    struct engine_pass *pass; /* [n_stages] */
};

struct engine_stage {
    struct ek_stage *stage;
    size_t *modules; /* indices into the model */
    size_t n_modules;
    uint32_t device;
    struct ek_link *in, *out;           /* NULL at the ends */
    struct engine_step **queue;         /* ring of steps that may run here */
    uint32_t head, n;                   /* of the ring */
    bool layers, embed, norm, head_mod; /* kinds of modules in it */
    bool normed_in;                     /* input: normalised rows asked for, not hidden states */
    struct ek_stage_timing timing;
};

/* Host memory that a device copies to and from at full speed. Allocating it takes longer than what
 * is copied, so that it is kept for the next pictures. */
struct engine_block {
    struct ek_engine *e;
    struct ek_device *dev; /* whose it is */
    struct engine_block *next;
    size_t bytes;
    void *data;
};

/* Part of a picture on its way through tower and projector. */
struct engine_encode {
    struct engine_encode *next;
    struct vision_pack pack;
    float *out;                 /* [features][hidden] */
    struct ek_visual *visual;   /* the caller's */
    struct engine_block *block; /* what out is part of, where the caller gave the job up, ... */
    float *pixels;              /* ... and what it reads: the visual's, taken over */
    size_t at;                  /* of the path: whose turn it is */
    double packing_s;
    bool running, done;
};

/* Where the visual modules are. */
struct engine_vision {
    struct engine_hop {
        struct engine_stage *stage;
        struct ek_link *in; /* NULL at the beginning */
        struct ek_event *began, *ended;
    } * path; /* [n_path] stages that a picture visits; none: the model is blind */
    size_t n_path;
    char tower[128];      /* its name */
    const char *features; /* the module that makes features: the tower or the projector */
    float *vectors[N_VISION_VECTORS]; /* [hidden], host; NULL: the model has none */
    struct engine_encode *jobs;       /* under way, oldest first; the engine's lock covers them */
    struct engine_block *blocks;      /* that nobody has; so are these */
};

struct engine_device {
    struct ek_engine *e;
    uint32_t index;
    struct ek_device *dev; /* NULL: no stage is on it */
    pthread_t thread;
    bool running;   /* the thread was started */
    bool ended;     /* and has come to its end */
    bool loaded;    /* its stages are there, or the engine has failed */
    bool spins;     /* its worker looks for work a while before it sleeps */
    bool revisited; /* more than one stage of the chain is on it */
    pthread_cond_t wake;
    atomic_uint signals; /* counts what wake was signalled for */
};

struct ek_engine {
    const struct ek_model *m;
    const struct ek_plan *plan;
    struct ek_stage_options opt;
    uint32_t max_seqs, max_in_flight;
    struct engine_device *devices; /* [plan->n_devices] */
    struct ek_device *pins;        /* whose host memory every device reads */
    struct engine_stage *stages;   /* [n_all]: the language model's, then those that only see */
    size_t n_stages, n_all;
    struct engine_vision vision;
    void (*trace)(void *user, const char *module, const float *rows, size_t n, uint32_t dim);
    void *trace_user;
    struct batch_shape shape;
    bool mutex_made, done_made;

    pthread_mutex_t lock; /* everything below, and the stages' queues and timings */
    pthread_cond_t done;  /* a step ended, room for another, or the engine failed */
    struct cache cache;
    struct engine_step *active, *idle;
    struct engine_step *ended; /* released, their times not looked at yet */
    uint32_t n_ended;
    uint64_t next_ticket;
    uint32_t in_flight;
    uint64_t order; /* passes begun */
    bool closing;
    /* watch.c */
    double deadline_s;
    uint64_t moved_ns, looked_ns; /* when something moved, when somebody looked last */
    uint64_t progress;            /* as seen then */
    bool silent;                  /* the engine failed because nothing did */
    size_t hang_stage;            /* for tests: does not answer; SIZE_MAX: none */
    enum ek_status failed;        /* EK_OK: running */
    char message[1024];
};

/* ---- engine.c */
/* How messages go between two of the plan's devices. */
const char *engine_mechanism(const struct ek_engine *e, uint32_t from, uint32_t to);
enum ek_status engine_link_open(struct ek_engine *e, uint32_t from, uint32_t to,
                                size_t max_elements, struct ek_link **out);

/* ---- preflight.c: EK_EENV with a table on stderr when the plan does not fit */
enum ek_status engine_preflight(const struct ek_engine *e);
/* Options of stage i with what it shares with other stages of its device. */
struct ek_stage_options engine_stage_options(const struct ek_engine *e, size_t i);

/* ---- worker.c */
void *engine_worker(void *device);
/* Marks the engine failed with this thread's last message; the lock is held. */
void engine_fail(struct ek_engine *e, enum ek_status st);
/* The caller's status for a failed engine. */
enum ek_status engine_failed(const struct ek_engine *e);
/* Puts a step into a stage's queue and wakes its worker; the lock is held. */
void engine_push(struct ek_engine *e, size_t stage, struct engine_step *step);
/* Waits for the end of a step that is issued; the lock is held, but not while waiting. */
void engine_finish(struct ek_engine *e, struct engine_step *step);
/* Adds the times of one released step to its stages; false when there is none. The lock is held. */
bool engine_settle(struct ek_engine *e);
void engine_wake(struct engine_device *d);

/* ---- watch.c: the lock is held in all of these, but not while they wait */
/* asked: seconds, 0: EVENKEEL_DEADLINE, or by the plan's prediction. */
enum ek_status engine_watch_open(struct ek_engine *e, double asked);
void engine_moved(struct ek_engine *e);
/* Waits for e->done, or a while, and looks whether anything moves: if not, the engine fails. */
void engine_sleep(struct ek_engine *e);
/* Waits for an event; EK_NO when the engine has failed meanwhile. */
enum ek_status engine_await(struct ek_engine *e, const struct ek_device *dev,
                            struct ek_event *event);
/* Seconds that a failed engine waits for its threads and devices: few when one does not answer. */
double engine_grace(const struct ek_engine *e);
/* Waits so long for *flag to become what is wanted; false when it did not. */
bool engine_returns(struct ek_engine *e, const bool *flag, bool wanted);
/* Waits for all that is queued, so long at most; without the lock. */
bool engine_settles(struct ek_device *dev, double seconds);
/* Hangs where a test asks for it; without the lock. */
enum ek_status engine_hang(struct ek_engine *e, size_t stage);

/* ---- encode.c */
/* Finds the path of pictures through the stages; opens its links. */
enum ek_status engine_vision_find(struct ek_engine *e);
enum ek_status engine_vision_open(struct ek_engine *e);
void engine_vision_close(struct ek_engine *e);
/* By the worker that loaded it: the stage's vectors to the host. */
enum ek_status engine_vision_fetch(struct ek_engine *e, struct ek_stage *s);
/* The oldest job that the device can go on with, or NULL; the lock is held. */
struct engine_encode *engine_vision_ready(const struct ek_engine *e, uint32_t device);
/* Runs (without the lock) and passes on (lock held) a job that is marked as running. */
enum ek_status engine_vision_run(struct ek_engine *e, struct engine_encode *job);
void engine_vision_pass(struct ek_engine *e, struct engine_encode *job, enum ek_status st);

/* ---- blocks.c: without the lock */
/* A block of the device of at least so many bytes, not cleared. */
enum ek_status engine_block_take(struct ek_engine *e, struct ek_device *dev, size_t bytes,
                                 struct engine_block **out);
void engine_block_give(struct engine_block *b); /* NULL is fine */
void engine_blocks_free(struct ek_engine *e);

/* ---- steps.c */
void engine_steps_free(struct ek_engine *e);

#endif
