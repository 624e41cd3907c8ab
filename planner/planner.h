/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * planner: workload + costs + budgets -> plan. Costs come from a file (docs/costs.md), a profile,
 * or an estimate; a problem is their evaluation for one workload, as numbers alone; an oracle
 * answers "cheapest plan under these limits" (the dynamic program and GLPK, which share no code);
 * solving is a sequence of such questions. Depends on base, model and the profiler's store.
 *
 * Units: bytes, seconds, tokens.
 */
#ifndef EK_PLANNER_H
#define EK_PLANNER_H

#include "base/base.h"
#include "model/model.h"
#include "profiler/store.h"

#define EK_PLAN_NAME        64
#define EK_PLAN_MAX_DEVICES 64
#define EK_PLAN_MAX_CLASSES 64
#define EK_PLAN_MAX_MODULES 1100
#define EK_PLAN_MAX_SIDES   6 /* groups of side modules placed as one */
#define EK_PLAN_MAX_TP      8
#define EK_PLAN_MAX_STAGES  256 /* of a placement that was handed in; ours: 2 a device */
#define EK_PLAN_MAX_MEMORY  ((uint64_t)1 << 50) /* sums over all modules stay under 2^64 */

/* ---- Costs: everything the planner needs (docs/costs.md) ----------------------------------------
 */
struct ek_cost_curve { /* times of one phase, interpolated by the store's ek_interpolate */
    struct ek_store_time_row *rows; /* key: phase, batch, tokens, context; time: median_s */
    size_t n;
    bool constant; /* one row: the time of the workload whatever its shape */
    /* Of a prefill step of several sequences, a token of their contexts over those of one sequence
     * that attends to as many: where half of the step or more is the end of a prompt, and where a
     * sixteenth or less is. */
    double context_s, short_context_s;
    double spread;    /* MAD over median, the median over the rows; 0: not measured */
    uint32_t samples; /* least behind a row; 0: not measured */
};
struct ek_cost_times { /* of one signature on one class at one tensor-parallel degree */
    uint32_t cls, sig, tp;
    struct ek_cost_curve prefill, decode;
};
struct ek_cost_space { /* bytes of one signature for steps of at most tokens and batch sequences */
    uint32_t batch, tokens, context;
    uint64_t activations, workspace, comm;
};
struct ek_cost_memory {
    uint32_t cls, sig, tp;
    uint64_t weights;  /* as the device holds them; 0: the module's own figure */
    uint64_t kv_block; /* bytes a sequence takes per page of cache; 0: the module's own figure */
    struct ek_cost_space *points;
    size_t n;
};
struct ek_cost_module {
    char name[128];
    enum ek_module_kind kind;
    uint32_t sig;      /* index into ek_costs.signatures */
    uint64_t weights;  /* bytes */
    uint64_t kv;       /* bytes a token adds to the cache */
    uint64_t boundary; /* bytes a token carries over the output boundary */
    bool side;
    int32_t tied_to; /* module whose weights this one shares on a common device, or -1 */
    int32_t layer;   /* number, or -1 */
};
struct ek_cost_device { /* one member of a class */
    char name[EK_PLAN_NAME];
    char uuid[48], threads[128];
    uint32_t index;
};
struct ek_calibration { /* measured over predicted of runs; n 0: none, and the factors mean nothing
                         */
    double prefill, decode;
    uint32_t n; /* stages that ran */
};
struct ek_cost_class { /* identical devices */
    char name[EK_PLAN_NAME];
    char backend[8];
    char model[96];
    char memory_group[48]; /* devices of one group share one memory; "" when it is their own */
    uint64_t memory;       /* what a process may take on one of them */
    uint64_t overhead;     /* context and libraries */
    uint64_t tp_reserve;   /* communication buffers of a device in a tensor-parallel group */
    double return_s;       /* between two decode steps: ids to the host, the next step queued */
    double slow_prefill, slow_decode; /* times are so much longer while all others work */
    double sustained, burst_s; /* prefill takes so much longer from so many seconds of it on, ... */
    double refill_s;           /* (of which so many of decoding give half again) */
    double looking;            /* ... and work on pictures so much */
    double behind, recovery_s; /* decode steps right behind it too; half is gone after recovery_s */
    bool budgeted;             /* memory was declared for this device, not merely found */
    bool estimate;             /* costs from a description, not measured */
    struct ek_calibration calibration; /* that the times have in them */
    struct ek_cost_device *devices;
    uint32_t count;
};
struct ek_cost_link { /* one device of `from` to another of `to`: alpha + bytes / beta */
    uint32_t from, to;
    double alpha, beta;
    char mechanism[24];
};
struct ek_cost_stage { /* a whole stage measured: takes the place of the sum over its modules */
    uint32_t cls, tp, first, last; /* chain positions */
    double prefill_s, decode_s;
};
struct ek_workload {
    uint32_t batch, prompt, generate, context;
    uint32_t micro_batches; /* 0: chosen */
    uint32_t prefill_chunk; /* most new tokens of a prefill step; 0: chosen */
    uint32_t images, image_tokens;
    char cache[12], act[12];
};
#define EK_WORKLOAD_INIT                                                                           \
    {                                                                                              \
        .batch = 1, .prompt = 512, .generate = 128, .cache = "F32", .act = "F32"                   \
    }
struct ek_costs {
    char file[256]; /* where it came from, for messages */
    char name[128], source[256];
    char model_name[128], model_hash[33], architecture[64];
    char profile_identity[33];
    bool estimate;
    uint32_t page;               /* tokens a block of the cache */
    struct ek_workload workload; /* defaults of the file */
    struct ek_cost_class *classes;
    size_t n_classes;
    struct ek_cost_module *modules; /* execution order: sides first, then the chain */
    size_t n_modules, n_sides;
    char (*signatures)[EK_PLAN_NAME];
    size_t n_signatures;
    struct ek_cost_times *times;
    size_t n_times;
    struct ek_cost_memory *memory;
    size_t n_memory;
    struct ek_cost_stage *stages;
    size_t n_stages;
    struct ek_cost_link *links; /* one for each ordered pair of classes that can exchange data */
    size_t n_links;
};
/* Reads a costs file; every value is checked, *out is freed with ek_costs_free (NULL is fine). */
enum ek_status ek_costs_read(const char *path, struct ek_costs **out);
enum ek_status ek_costs_from_json(const json_t *root, const char *where, struct ek_costs **out);
json_t *ek_costs_json(const struct ek_costs *c); /* NULL: no memory */
json_t *ek_calibration_json(const struct ek_calibration *f);
void ek_costs_free(struct ek_costs *c);
/* Makes the index of a signature's name, adding it when new. */
enum ek_status ek_costs_signature(struct ek_costs *c, const char *name, uint32_t *out);
/* Signatures of no module come first: what a stage takes, where it has one before it, behind it,
 * and where it ends the chain without a layer. */
enum { EK_SIG_STAGE, EK_SIG_INCOMING, EK_SIG_OUTGOING, EK_SIG_ENDING, EK_N_STAGE_SIGS };
enum ek_status ek_costs_stage_signatures(struct ek_costs *c);
const struct ek_cost_times *ek_costs_times(const struct ek_costs *c, uint32_t cls, uint32_t sig,
                                           uint32_t tp);
uint32_t ek_costs_devices(const struct ek_costs *c); /* of all classes */
const struct ek_cost_link *ek_costs_link(const struct ek_costs *c, uint32_t from, uint32_t to);
/* Cross-checks: names unique, times for every module on some class, links known. */
enum ek_status ek_costs_check(const struct ek_costs *c);
/* Works on pictures: its times count image tokens, in prefill alone. */
static inline bool ek_cost_module_sees(const struct ek_cost_module *m)
{
    return m->side || m->kind >= EK_MODULE_VISION;
}
struct ek_profile_choice { /* NULL: all devices; the types of the first rows */
    const char *devices, *act, *cache;
};
/* Costs of a model from the rows of a profile. */
enum ek_status ek_costs_from_profile(const struct ek_model *m, struct ek_store *store,
                                     const struct ek_profile_choice *choice, struct ek_costs **out);
/* Multiplies the times of costs from a profile by what its runs of that model say of each device.
 * EK_EENV when it has none. */
enum ek_status ek_costs_calibrate(struct ek_costs *c, struct ek_store *store);
/* Modules, names, bytes and workload types of a model, into costs that have none. */
enum ek_status ek_costs_add_modules(struct ek_costs *c, const struct ek_model *m, enum ek_dtype act,
                                    enum ek_dtype cache);

/* ---- Request: what a user asks for
 * --------------------------------------------------------------- */
enum ek_objective {
    EK_OBJ_LATENCY,
    EK_OBJ_THROUGHPUT,
    EK_OBJ_BALANCE,      /* least of the largest used / budget */
    EK_OBJ_BALANCE_TIME, /* least work of the busiest stage */
    EK_OBJ_CONTEXT,      /* most tokens of context that fit */
    EK_OBJ_BATCH,        /* most sequences that fit */
    EK_N_OBJECTIVES
};
extern const char *const ek_objective_names[EK_N_OBJECTIVES];
enum ek_rule_kind { EK_RULE_PIN, EK_RULE_BAN, EK_RULE_TOGETHER };
struct ek_rule { /* module patterns are names or prefixes ending in '*' */
    enum ek_rule_kind kind;
    char module[128];
    char other[128]; /* device name, or the second module of EK_RULE_TOGETHER */
};
struct ek_budget { /* --max-memory: of a device, a class, or "" for the next device in order */
    char name[EK_PLAN_NAME];
    uint64_t bytes;
    double fraction;
};
struct ek_request {
    struct ek_workload workload;
    enum ek_objective objectives[EK_N_OBJECTIVES];
    size_t n_objectives;
    struct ek_budget *budgets;
    size_t n_budgets;
    struct ek_rule *rules;
    size_t n_rules;
    uint64_t margin;        /* bytes kept free on every device ... */
    double margin_fraction; /* ... or a fraction of its memory, whichever is more */
    bool fixed_order;       /* stages follow the order of the devices */
    bool use_all;           /* no device unused */
    uint32_t max_stages;    /* 0: as many as devices */
    uint32_t tp;            /* 0: free; else every stage has this degree */
    bool one_degree;        /* where tp is free: the same for all stages */
    bool split_sides;       /* side modules are placed one by one */
    bool whole_layers;      /* every stage holds a layer (engines that split between layers) */
    bool distinct_devices;  /* tell devices apart even where they are alike */
    bool sides_first;       /* side modules with the first stage (what vLLM and SGLang can do) */
    bool no_cpu;            /* GPUs alone */
    bool as_map;            /* what a device_map of Hugging Face's can say, but for degrees */
    uint64_t more_memory;   /* bytes that every device has beyond its budget: what they would buy */
    double time_limit;      /* seconds of solving */
    uint64_t deadline_ns;   /* of ek_now_ns, beside that; 0: none */
    bool no_certificate;    /* dynamic program alone */
    bool whole_program;     /* integer programs with every column, however large */
    bool early_needs;    /* what shared memories still hold is looked at however few the states */
    bool measured_chunk; /* no device whose times of layers end below the prefill chunk */
    const atomic_bool *stop;
};
#define EK_REQUEST_INIT                                                                            \
    {                                                                                              \
        .workload = EK_WORKLOAD_INIT, .objectives = {EK_OBJ_THROUGHPUT, EK_OBJ_BALANCE},           \
        .n_objectives = 2, .time_limit = 60                                                        \
    }
void ek_request_free(struct ek_request *r); /* its arrays */

/* ---- Problem: numbers alone
 * ---------------------------------------------------------------------- */
struct ek_group { /* interchangeable devices: equal costs, budget and rules */
    uint32_t cls; /* class of the costs */
    uint32_t members[EK_PLAN_MAX_DEVICES]; /* indices into ek_problem.devices */
    uint32_t count;
    uint64_t cap; /* budget less margin */
    int32_t pool; /* shared memory that it draws from, or -1 */
};
struct ek_pdevice {
    uint32_t cls, member; /* which device of the costs */
    uint64_t memory, margin;
    bool budgeted;
    uint32_t group;
    uint8_t *banned; /* [costs->n_modules] */
};
struct ek_kind { /* what one stage runs on: tp devices of a group */
    uint32_t group, tp;
    double whole_s,
        others_s;   /* all prompts through the chain: on it, on one of the others (mean) */
    double round_s; /* a decode step of a group through the chain on it */
};
struct ek_memory_use {
    uint64_t weights, kv, activations, workspace, comm, overhead, total;
    uint64_t crossing; /* that a cut of the tower takes at either end; comm has it in the end */
    /* Of final norms and heads behind a layer, until the end; it is known whether there is one. */
    struct ek_cost_space ending;
    bool layers;
};
struct ek_column { /* one possible stage; first > last: side modules alone */
    uint32_t kind;
    int32_t first, last; /* chain positions */
    uint32_t sides;      /* bit a side group */
    double prefill;      /* all prompts of a micro-batch group, seconds */
    double decode;       /* one decode step of one group */
    double work;         /* prefill + generate * decode */
    double sum;          /* passing / chunks + generate * decode: its part of the latency */
    double ratio;        /* used / cap */
    uint64_t total;      /* bytes on each of its devices */
};
struct ek_side_group {
    uint32_t modules[16]; /* indices into ek_costs.modules */
    uint32_t n;
};
#define EK_PLAN_MAX_POOLS 4
struct ek_problem {
    const struct ek_costs *costs;               /* borrowed */
    struct ek_workload workload;                /* with every default filled in */
    uint32_t micro_batches, group_size, chunks; /* chunks of one group's prompts, at least 1 */
    uint32_t n_items, first_item; /* chain modules are costs->modules[first_item ...] */
    uint32_t n_seeing;            /* of them, at the beginning: parts of a cut tower */
    struct ek_side_group sides[EK_PLAN_MAX_SIDES];
    uint32_t n_sides;
    struct ek_pdevice devices[EK_PLAN_MAX_DEVICES];
    uint32_t n_devices;
    struct ek_group groups[EK_PLAN_MAX_DEVICES];
    uint32_t n_groups;
    struct ek_kind *kinds;
    uint32_t n_kinds;
    uint64_t pools[EK_PLAN_MAX_POOLS]; /* bytes of each shared memory */
    uint32_t n_pools;
    uint32_t exit_side;        /* the side group whose output goes to the embedding */
    struct ek_column *columns; /* ordered by first, kind, sides, last */
    size_t n_columns;
    size_t *start; /* [n_items + 2] first column of each position; side-only columns at n_items */
    /* a hop from kind a to kind b: alpha + bytes * inv_beta at [a * n_kinds + b]; alpha is infinite
     * where there is no link */
    double *hop_alpha, *hop_inv_beta;
    double *boundary;               /* [n_items] bytes a token carries behind item i */
    double side_steps, side_bytes;  /* that carry a group's images to the embedding's device */
    double sum_steps, sum_tokens;   /* of one group that are part of its latency */
    double work_steps, work_tokens; /* of one group that keep a link busy */
    double picture_steps, picture_tokens; /* of one group, over boundaries in the tower: both */
    struct ek_modcost *cost;              /* [class][degree][module], private to problem.c */
    struct ek_pair {                      /* modules that must share a stage */
        uint32_t a, b;
    } * together;
    size_t n_together;
    bool sides_first, whole_layers;
    bool uniform; /* hops do not depend on the kinds */
    bool use_all, fixed_order;
    uint32_t max_stages; /* 0: no limit */
    bool outside;        /* some cost lies outside of what was measured */
};
/* Evaluates costs for a request with m micro-batches. EK_NO when some module fits on no device; the
 * message says which and what is missing. Borrows c. */
enum ek_status ek_problem_new(const struct ek_costs *c, const struct ek_request *r, uint32_t m,
                              struct ek_problem **out);
void ek_problem_free(struct ek_problem *p);
/* Seconds that a hop over the boundary behind item i adds to a group's latency, or infinity; and
 * how long it keeps its link busy a group. */
double ek_problem_hop(const struct ek_problem *p, int32_t i, uint32_t from, uint32_t to);
double ek_problem_hop_work(const struct ek_problem *p, int32_t i, uint32_t from, uint32_t to);
/* Of the pictures of one group over a boundary inside or at the end of a cut tower; 0 behind it. */
double ek_problem_picture_hop(const struct ek_problem *p, int32_t i, uint32_t from, uint32_t to);
/* From the side modules' stage to the first stage (0 when they are one stage, or the tower is cut:
 * vectors do not move). */
double ek_problem_side_hop(const struct ek_problem *p, uint32_t from, uint32_t first);
/* Tokens of one prompt, images included. */
uint32_t ek_workload_prompt(const struct ek_workload *w);
/* The most new tokens of a step of so many prompts, where a chunk is the most of any. */
uint32_t ek_chunk_of_group(const struct ek_workload *w, uint32_t chunk, uint32_t prompts);
/* Steps of their prefill: so many prompts one behind the other, cut into chunks. */
uint64_t ek_prefill_chunks(const struct ek_workload *w, uint32_t prompts);
/* Memory of a stage by kind on each of its devices. */
struct ek_memory_use ek_problem_memory(const struct ek_problem *p, uint32_t kind, int32_t first,
                                       int32_t last, uint32_t sides);
/* Times of a stage; false when the class has none for one of its modules at that degree. */
struct ek_stage_times {
    /* all prompts of a group, on a device that does not rest meanwhile; of it on pictures, which
     * come first */
    double prefill, looking;
    double passing; /* the same at the pace of the first chunk, which meets fewer neighbours */
    double decode;  /* a step of a group */
    /* had it rested so much that its clocks did not fall */
    double rested_prefill, rested_looking, rested_decode;
    double alone_prefill; /* so, with its neighbours idle, and without pictures */
};
bool ek_problem_times(const struct ek_problem *p, uint32_t kind, int32_t first, int32_t last,
                      uint32_t sides, struct ek_stage_times *out, bool *outside);

/* ---- Oracles: the cheapest plan under limits
 * ------------------------------------------------------ */
struct ek_second_sum {             /* plans are held to another sum as well: ek_ilp_solve alone */
    const double *columns;         /* [n_columns], NULL: there is none */
    const struct ek_problem *hops; /* whose hops count in it: of the same devices and modules */
    double most;                   /* over 0 */
};
struct ek_limits {  /* a column or hop above any of them is not allowed */
    double work;    /* of a stage */
    double hop;     /* that a hop keeps its link busy: links overlap with computing */
    double prefill; /* of a stage */
    double ratio;   /* used / cap */
    double sum;     /* answers whose sum + fill * longest prefill ... */
    double fill;    /* ... is above sum are of no interest */
    double enough;  /* one where it is at most this will do: it need not be the best */
    struct ek_second_sum second;
};
#define EK_LIMITS_NONE                                                                             \
    {                                                                                              \
        .work = INFINITY, .hop = INFINITY, .prefill = INFINITY, .ratio = INFINITY, .sum = INFINITY \
    }
enum ek_answer_kind {
    EK_ANSWER_NONE,
    EK_ANSWER_OPTIMAL, /* or good enough, where the limits say what is */
    EK_ANSWER_INFEASIBLE,
    EK_ANSWER_UNKNOWN
};
struct ek_answer {
    enum ek_answer_kind kind;              /* INFEASIBLE: no plan within the limits, sum included */
    double sum;                            /* of the columns and hops */
    double bound;                          /* proven lower bound when UNKNOWN */
    uint32_t columns[EK_PLAN_MAX_DEVICES]; /* chain order, then side-only columns */
    uint32_t n;
};
/* deny: columns not to use (one byte each), or NULL. */
typedef enum ek_status (*ek_oracle_fn)(const struct ek_problem *p, const struct ek_limits *l,
                                       const uint8_t *deny, struct ek_answer *out, void *state);
struct ek_effort {        /* state of both oracles: limits and counters */
    uint64_t deadline_ns; /* 0: none */
    const atomic_bool *stop;
    uint64_t solves, labels;
    double seconds;
    bool expired;
    bool whole_program;              /* the integer program leaves no column out, however large */
    bool early_needs;                /* as a request has it, or once a search was large */
    const struct ek_problem *priced; /* the problem that prices belong to: where the next begins */
    double prices[EK_PLAN_MAX_DEVICES + 1 + EK_PLAN_MAX_POOLS];
};
enum ek_status ek_dp_solve(const struct ek_problem *p, const struct ek_limits *l,
                           const uint8_t *deny, struct ek_answer *out, void *effort);
enum ek_status ek_ilp_solve(const struct ek_problem *p, const struct ek_limits *l,
                            const uint8_t *deny, struct ek_answer *out, void *effort);
const char *ek_ilp_version(void);
bool ek_effort_over(struct ek_effort *e);

/* ---- Solving
 * -------------------------------------------------------------------------------------- */
struct ek_score {      /* of one plan; seconds for the workload's batch in steady state */
    double latency;    /* one group: sum + fill of the prefill pipeline */
    double throughput; /* seconds a batch: max(m * busiest stage, latency) */
    double balance, balance_time;
};
#define EK_MAX_CHOICES   384
#define EK_DEFAULT_CHUNK 512 /* of the prefill, where there is nothing to choose by */
struct ek_choice {           /* what is decided beside the stages: each has a problem of its own */
    uint32_t micro_batches, chunk;
    bool measured; /* ek_request.measured_chunk */
    uint32_t tp;   /* ek_request.tp */
};
/* The choices of a request, those that win ties first; returns how many. */
size_t ek_choices(const struct ek_costs *c, const struct ek_request *r,
                  struct ek_choice out[EK_MAX_CHOICES]);
/* The request with its prefill chunk decided. */
struct ek_request ek_request_with(const struct ek_request *r, const struct ek_choice *choice);
struct ek_solution {
    struct ek_problem *problem; /* owned */
    struct ek_answer answer;
    struct ek_score score;
    double values[EK_N_OBJECTIVES], bounds[EK_N_OBJECTIVES]; /* in the order of the request */
    uint32_t context, batch; /* that were planned for (found by context and batch objectives) */
    /* Questions in order, the objectives and then the least latency of what is as good in all of
     * them: so many are answered for certain, so many by both methods. */
    size_t settled, confirmed;
    bool proven, interrupted; /* proven: all of them, as well as was asked for */
    const char *cross_check;  /* "equal", or why it was not made; static storage */
    struct ek_effort dp, ilp;
    struct ek_choice tried[EK_MAX_CHOICES]; /* considered */
    size_t n_tried;
    bool near; /* ek_stay_near: within a slack of the bound, on purpose; proven: none moves less */
    double moved_bytes;
};
/* EK_NO: infeasible, with the reason. EK_EUNPROVEN is never returned: see ->proven. */
enum ek_status ek_solve(const struct ek_costs *c, const struct ek_request *r,
                        struct ek_solution **out);
/* |value - bound| / |value| of the first objective; 0 when proven. */
double ek_solution_gap(const struct ek_solution *s);
void ek_solution_free(struct ek_solution *s);
struct ek_score ek_score_of(const struct ek_problem *p, const uint32_t *columns, uint32_t n);

/* ---- Plan: stages on named devices (docs/formats.md: plan.json)
 * ------------------------------------------------ */
struct ek_placed_stage {
    uint32_t column; /* index into ek_problem.columns; UINT32_MAX: it was handed in */
    uint32_t devices[EK_PLAN_MAX_TP]; /* indices into ek_problem.devices */
    uint32_t n_devices, kind;
    int32_t first, last; /* chain positions; first > last: side modules alone */
    double prefill_s, decode_s,
        handoff_s;                      /* all prompts of the batch; one step of a group; its hop */
    double prefill_mad_s, decode_mad_s; /* of the samples that they were predicted from */
    uint32_t samples;                   /* least behind any of its modules; 0: an estimate */
    struct ek_stage_times times;        /* of a group: what scores count */
    double pictures_s;                  /* of prefill_s: what works on pictures */
};
struct ek_placement { /* execution order: side modules' stages first */
    struct ek_placed_stage stages[EK_PLAN_MAX_STAGES];
    size_t n_stages;
    uint16_t side_stage[EK_PLAN_MAX_MODULES];         /* of each side module */
    struct ek_memory_use memory[EK_PLAN_MAX_DEVICES]; /* by device */
    bool used[EK_PLAN_MAX_DEVICES];
    double prefill_s, decode_s, tokens_per_s;
    double return_s; /* between two decode steps of a group: its ids to the host */
};
void ek_place(const struct ek_problem *p, const uint32_t *columns, uint32_t n,
              struct ek_placement *out);
const char *ek_pdevice_name(const struct ek_problem *p, uint32_t d);
/* "device: modules" of each stage; "device+: ..." of a group of devices. */
json_t *ek_placement_modules(const struct ek_problem *p, const struct ek_placement *pl);
/* ---- Other people's placements, and what they would cost
 * --------------------------------------------------- */
struct ek_assignment {
    uint32_t device[EK_PLAN_MAX_MODULES]; /* of each module of the costs: index into devices */
};
struct ek_assessment {
    bool runnable; /* times and links exist for it */
    struct ek_score score;
    double prefill_s, decode_s;
    struct ek_memory_use memory[EK_PLAN_MAX_DEVICES];
    uint32_t worst;     /* the fullest device ... */
    double worst_ratio; /* ... (used + margin) / budget: over 1 it does not fit, ... */
    uint64_t lacks;     /* ... by so many bytes */
    bool shared;        /* of the memory that it shares with others, not of a budget of its own */
    uint32_t stages;
    bool revisits; /* a device holds several parts of the chain, as no plan here does */
};
/* The stages of an assignment, devices revisited where it says so: runs of the chain on one device,
 * side modules with the chain's first stage or in stages of their own. False: no times or links for
 * it, or over EK_PLAN_MAX_STAGES; its memory is right even then. */
bool ek_place_assignment(const struct ek_problem *p, const struct ek_assignment *a,
                         struct ek_placement *out);
void ek_assess(const struct ek_problem *p, const struct ek_assignment *a,
               struct ek_assessment *out);
#define EK_MAX_RECIPES 12
struct ek_recipe {
    const char *name;
    char note[96];
    struct ek_assignment assignment;
};
/* The usual recipes for this problem's devices; returns how many. */
size_t ek_recipes(const struct ek_problem *p, struct ek_recipe out[EK_MAX_RECIPES]);
/* A recipe by the beginning of its name, or a hand-made split of the layers, "[13,14]", with all
 * else on the first device (clipped, with a note, when it has more layers than the model). */
enum ek_status ek_recipe_named(const struct ek_problem *p, const char *text,
                               struct ek_assignment *a);
/* JSON of the recipes' assessments beside the plan's, and of what binds. */
json_t *ek_explanation_json(const struct ek_solution *s);
void ek_explanation_print(const struct ek_solution *s, FILE *out);
/* The k next-best plans (of the first objective) and what more memory or devices would buy. */
enum ek_status ek_alternatives(const struct ek_request *r, const struct ek_solution *s, uint32_t k,
                               json_t **out);
/* What they are ordered by for a first objective: a size that is sought gives way to latency. */
enum ek_objective ek_alternatives_by(enum ek_objective o);
enum ek_status ek_sensitivity(const struct ek_costs *c, const struct ek_request *r,
                              const struct ek_solution *s, json_t **out);
/* The front of prefill bottleneck, decode bottleneck and fullest memory; whole: all of it. */
enum ek_status ek_pareto(const struct ek_solution *s, const struct ek_request *r, json_t **out,
                         bool *whole);
/* Replaces a solution by one within a slack of its first objective that moves the fewest bytes of
 * weights from where the plan or device_map in a file has them. EK_EUNSUPPORTED when its stages are
 * tensor-parallel. */
enum ek_status ek_stay_near(const struct ek_costs *c, const struct ek_request *r, const char *path,
                            double within, struct ek_solution *s);
/* What the model takes and what there is, in one sentence; false where that is not known. */
bool ek_shortfall(const struct ek_costs *c, const struct ek_request *r, char *out, size_t cap);
/* Why nothing fits: what to relax, by how much, one sentence an entry. */
enum ek_status ek_advice(const struct ek_costs *c, const struct ek_request *r, json_t **out);

/* The plan file's value; NULL when there is no memory. */
json_t *ek_plan_json(const struct ek_costs *c, const struct ek_request *r,
                     const struct ek_solution *s);
/* The same of a placement that was handed in: nothing is proven of it. from: what made it. */
json_t *ek_plan_json_given(const struct ek_costs *c, const struct ek_request *r,
                           const struct ek_problem *p, const struct ek_placement *pl,
                           const char *from);
/* For people. */
/* A value of an objective as people read it: a time, a share, a count. Returns buf. */
const char *ek_objective_text(enum ek_objective o, double v, char buf[EK_UNIT_LEN]);
void ek_plan_print(const struct ek_costs *c, const struct ek_solution *s,
                   const struct ek_request *r, FILE *out);

#endif
