/* SPDX-License-Identifier: Apache-2.0
 *
 * Profiling a small synthetic model on two CPU devices: which rows there are, that they add up to
 * the memory of stages, and that no interruption, polite or not, loses or doubles one.
 */
#include "profiler/measure.h"
#include "profiler/profile.h"

#include <check.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Sanitizers slow a large product more than a small one, so that the gate rightly leaves out some
 * rows: then there need not be all of them. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#define SANITIZED __has_feature(address_sanitizer)
#else
#define SANITIZED 0
#endif

static const char config[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 128,"
    " \"intermediate_size\": 256, \"num_hidden_layers\": 6, \"num_attention_heads\": 4,"
    " \"num_key_value_heads\": 2, \"vocab_size\": 1024, \"max_position_embeddings\": 512,"
    " \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"tie_word_embeddings\": true,"
    " \"hidden_act\": \"silu\", \"torch_dtype\": \"float32\", \"bos_token_id\": 1,"
    " \"eos_token_id\": 2}";

static char dir[64], path[96], whole_path[96], model_path[96];
static struct ek_model *model;
static struct ek_device_spec *specs;
static size_t n_specs;

static void must_profile(void);

/* Once: a whole profile, which most tests begin with a copy of. */
static void set_up_all(void)
{
    struct ek_model_options o = EK_MODEL_OPTIONS_INIT;

    strcpy(dir, "/tmp/ek-profile-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/p.db", dir);
    snprintf(whole_path, sizeof(whole_path), "%s/whole.db", dir);
    snprintf(model_path, sizeof(model_path), "%s/config.json", dir);
    ck_assert_int_eq(ek_file_write(model_path, config, sizeof(config) - 1, true), EK_OK);
    ck_assert_msg(ek_model_open(model_path, &o, &model) == EK_OK, "%s", ek_last_error());
    ck_assert_int_eq(ek_device_specs_parse("cpu:0/threads=0,mem=64MiB cpu:1/threads=0,mem=64MiB",
                                           &specs, &n_specs),
                     EK_OK);
    ek_set_quiet(true);
    must_profile();
    ck_assert_int_eq(rename(path, whole_path), 0);
}

static void copy_whole(void)
{
    char *data;
    size_t n;

    ck_assert_int_eq(ek_file_read(whole_path, 1 << 26, &data, &n), EK_OK);
    ck_assert_int_eq(ek_file_write(path, data, n, true), EK_OK);
    free(data);
}

static void tear_down(void)
{
    static const char *const ends[] = {"p.db", "p.db-wal", "p.db-shm"};
    char name[128];

    for (size_t i = 0; i < EK_ARRAY_LEN(ends); i++) {
        snprintf(name, sizeof(name), "%s/%s", dir, ends[i]);
        unlink(name);
    }
}

static void tear_down_all(void)
{
    ek_model_close(model);
    free(specs);
    unlink(whole_path);
    unlink(model_path);
    rmdir(dir);
}

static struct ek_profile_options options(void)
{
    struct ek_profile_options o = EK_PROFILE_OPTIONS_INIT;

    o.devices = specs;
    o.n_devices = n_specs;
    o.max_batch = 2;
    o.max_prompt = 16;
    o.max_context = 96;
    return o;
}

static enum ek_status profile(const atomic_bool *stop)
{
    struct ek_profile_options o = options();
    struct ek_store *s;
    enum ek_status st;

    o.stop = stop;
    EK_TRY(ek_store_open(path, EK_STORE_WRITE, &s));
    st = ek_profile(model, s, &o);
    ek_store_close(s);
    return st;
}

static void must_profile(void)
{
    enum ek_status st = profile(NULL);

    ck_assert_msg(st == EK_OK, "%s", ek_last_error());
}

/* ---- Rows of a profile ------------------------------------------------------------------------
 */

struct rows {
    struct ek_store_time_row *at;
    size_t n;
};

static void append(struct rows *r, struct ek_store *s, int64_t device, const char *signature)
{
    struct ek_store_time_row *rows;
    size_t n;

    ck_assert_msg(ek_store_times(s, device, signature, &rows, &n) == EK_OK, "%s", ek_last_error());
    r->at = realloc(r->at, (r->n + n + 1) * sizeof(*rows));
    if (n)
        memcpy(r->at + r->n, rows, n * sizeof(*rows));
    r->n += n;
    free(rows);
}

static bool is_first(size_t module)
{
    for (size_t j = 0; j < module; j++)
        if (strcmp(model->modules[j].signature, model->modules[module].signature) == 0)
            return false;
    return true;
}

/* All rows of times, in a fixed order. Opening checks the file whole. */
static struct rows read_rows(void)
{
    struct rows r = {NULL, 0};
    struct ek_store_device *devices;
    struct ek_store *s;
    size_t n;

    ck_assert_msg(ek_store_open(path, EK_STORE_READ, &s) == EK_OK, "%s", ek_last_error());
    ck_assert_int_eq(ek_store_devices(s, &devices, &n), EK_OK);
    for (size_t d = 0; d < n; d++) {
        append(&r, s, devices[d].id, EK_STORE_STAGE);
        for (size_t i = 0; i < model->n_modules; i++)
            if (is_first(i))
                append(&r, s, devices[d].id, model->modules[i].signature);
    }
    free(devices);
    ek_store_close(s);
    return r;
}

static bool same_key(const struct ek_store_key *a, const struct ek_store_key *b)
{
    return a->device == b->device && strcmp(a->signature, b->signature) == 0 &&
           a->phase == b->phase && a->batch == b->batch && a->tokens == b->tokens &&
           a->context == b->context;
}

/* How many rows of r have that key; they must then be that very row. */
static size_t count(const struct rows *r, const struct ek_store_time_row *row)
{
    size_t n = 0;

    for (size_t i = 0; i < r->n; i++)
        if (same_key(&r->at[i].key, &row->key)) {
            ck_assert_mem_eq(&r->at[i].time, &row->time, sizeof(row->time));
            n++;
        }
    return n;
}

/* Every row of before is in after, as it was, and none is there twice. */
static void nothing_lost(const struct rows *before, const struct rows *after)
{
    for (size_t i = 0; i < before->n; i++)
        ck_assert_uint_eq(count(after, &before->at[i]), 1);
    for (size_t i = 0; i < after->n; i++)
        ck_assert_uint_eq(count(after, &after->at[i]), 1);
}

static size_t count_of(const struct rows *r, int64_t device, const char *signature,
                       enum ek_phase phase)
{
    size_t n = 0;

    for (size_t i = 0; i < r->n; i++)
        n += r->at[i].key.device == device && r->at[i].key.phase == phase &&
             strcmp(r->at[i].key.signature, signature) == 0;
    return n;
}

static void check_complete(const struct rows *r)
{
    for (int64_t d = 1; d <= (int64_t)n_specs; d++)
        for (size_t i = 0; i < model->n_modules; i++)
            for (int phase = 0; phase < 2; phase++) {
                const struct ek_module *m = &model->modules[i];
                size_t n = count_of(r, d, m->signature, (enum ek_phase)phase);
                size_t least = SANITIZED ? 0 : m->kind == EK_MODULE_LAYER ? 4 : 2;
                ck_assert_msg(n >= least, "%s on %d, phase %d: %zu rows", m->name, (int)d, phase,
                              n);
            }
}

START_TEST(every_module_has_rows_on_every_device)
{
    struct ek_profile_options o = options();
    struct ek_store_link *links;
    struct ek_store_device *devices;
    struct ek_store *s;
    struct rows r;
    uint32_t busy;
    double slow;
    size_t n;

    copy_whole();
    r = read_rows();
    check_complete(&r);
    ck_assert_uint_ge(count_of(&r, 1, EK_STORE_STAGE, EK_PHASE_DECODE), SANITIZED ? 0 : 4);
    ck_assert_uint_le(r.n, 2 * ek_profile_most(model, &o)); /* a stage's row beside a layer's */
    ck_assert_int_eq(ek_store_open(path, EK_STORE_READ, &s), EK_OK);
    ck_assert_int_eq(ek_store_links(s, &links, &n), EK_OK);
    ck_assert_uint_eq(n, 2);
    ck_assert_int_eq(ek_store_devices(s, &devices, &n), EK_OK);
    ck_assert_uint_eq(n, 2);
    for (size_t i = 0; i < n; i++) {
        ck_assert_double_gt(devices[i].read_bandwidth, 1e8);
        ck_assert_double_gt(devices[i].peak_f32, 1e8);
        ck_assert_uint_eq(devices[i].budget, 64 * EK_MIB);
    }
    ck_assert_int_eq(ek_store_slowdown(s, 1, EK_PHASE_PREFILL, &slow, &busy), EK_OK);
    ck_assert_double_ge(slow, 1);
    ck_assert_uint_eq(busy, 1);
    ek_store_close(s);
    free(links);
    free(devices);
    free(r.at);
}
END_TEST

/* ---- Links at once ------------------------------------------------------------------------------
 */
START_TEST(links_at_once_have_rows_of_their_own_that_are_kept)
{
    struct ek_traffic_pair pairs[2];
    struct ek_store_link rows[2], *kept;
    struct ek_device_spec *two;
    struct ek_store_device d;
    struct ek_device *dev;
    struct ek_store *s;
    char file[] = "check-profile-links.db";
    size_t n;

    ck_assert_int_eq(ek_device_specs_parse("cpu:0/threads=0 cpu:1/threads=0", &two, &n), EK_OK);
    for (int i = 0; i < 2; i++)
        pairs[i] = (struct ek_traffic_pair){&two[i], &two[!i]};
    ck_assert_msg(ek_measure_traffic(pairs, 2, "copy", EK_F32, EK_STORE_BOTH, rows) == EK_OK, "%s",
                  ek_last_error());
    unlink(file);
    ck_assert_int_eq(ek_store_open(file, EK_STORE_WRITE, &s), EK_OK);
    for (int i = 0; i < 2; i++) {
        ck_assert_str_eq(rows[i].from, two[i].name);
        ck_assert_str_eq(rows[i].to, two[!i].name);
        ck_assert_str_eq(rows[i].mechanism, "copy both");
        ck_assert(rows[i].beta_bytes_s > 1e6 && rows[i].alpha_s >= 0 && rows[i].residual >= 0);
        ck_assert_int_eq(ek_device_open(&two[i], EK_F32, &dev), EK_OK);
        ek_profile_device_row(dev, &d);
        ek_device_close(dev);
        ck_assert_int_eq(ek_store_put_device(s, &d), EK_OK);
    }
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(ek_store_put_link(s, &rows[i]), EK_OK);
    ck_assert_int_eq(ek_store_links(s, &kept, &n), EK_OK);
    ck_assert_uint_eq(n, 2);
    ck_assert_double_eq(kept[0].residual, rows[0].residual);
    ck_assert_int_eq(ek_measure_traffic(pairs, 2, "nccl", EK_F32, EK_STORE_ALL, rows),
                     EK_EUNSUPPORTED);
    free(kept);
    free(two);
    ek_store_close(s);
    unlink(file);
}
END_TEST

/* cuda:0 and cuda:0.1 are one GPU, cuda:1 is another. */
START_TEST(links_between_twins_are_measured_once)
{
    static const struct {
        const char *name, *uuid;
    } devices[] = {{"cuda:0", "a"}, {"cuda:0.1", "a"}, {"cuda:1", "b"}, {"cpu:0", ""}};
    static const struct {
        const char *from, *to;
        double alpha; /* 0: there is none to copy */
    } pairs[] = {{"cuda:0.1", "cuda:1", 1e-6}, {"cuda:0.1", "cuda:0", 2e-6},
                 {"cuda:1", "cuda:0", 0},      {"cuda:0.1", "cuda:0.1", 3e-6},
                 {"cuda:1", "cuda:1", 0},      {"cpu:0", "cpu:0", 0}};
    struct ek_store_link measured[] = {{"cuda:0", "cuda:1", "peer-store", 1e-6, 1e11, 0, 1},
                                       {"cuda:0", "cuda:1", "copy both", 9e-6, 1e11, 0, 1},
                                       {"cuda:0", "cuda:0.1", "peer-store", 2e-6, 1e11, 0, 1},
                                       {"cuda:0", "cuda:0", EK_STORE_RETURN, 3e-6, 1e11, 0, 1}};
    char file[] = "check-profile-twins.db";
    struct ek_store_link *rows;
    struct ek_store *s;
    size_t n, copied;

    unlink(file);
    ck_assert_int_eq(ek_store_open(file, EK_STORE_WRITE, &s), EK_OK);
    for (size_t i = 0; i < EK_ARRAY_LEN(devices); i++) {
        struct ek_store_device d = {.backend = "cuda", .host = "h", .memory_total = 1};
        strcpy(d.name, devices[i].name);
        strcpy(d.uuid, devices[i].uuid);
        ck_assert_msg(ek_store_put_device(s, &d) == EK_OK, "%s", ek_last_error());
    }
    for (size_t i = 0; i < EK_ARRAY_LEN(measured); i++)
        ck_assert_int_eq(ek_store_put_link(s, &measured[i]), EK_OK);
    for (size_t i = 0; i < EK_ARRAY_LEN(pairs); i++) {
        ck_assert_int_eq(twins_links(s, pairs[i].from, pairs[i].to, &copied), EK_OK);
        ck_assert_uint_eq(copied, pairs[i].alpha > 0);
        ck_assert_int_eq(ek_store_links(s, &rows, &n), EK_OK);
        while (n > 0 && (strcmp(rows[n - 1].from, pairs[i].from) != 0 ||
                         strcmp(rows[n - 1].to, pairs[i].to) != 0))
            n--;
        ck_assert_uint_eq(n > 0, copied);
        ck_assert_double_eq(n > 0 ? rows[n - 1].alpha_s : 0, pairs[i].alpha);
        free(rows);
    }
    ek_store_close(s);
    unlink(file);
}
END_TEST

/* ---- Memory: the rule of docs/measurement.md --------------------------------------------------
 */

struct stage_case {
    size_t first, last; /* modules */
    uint32_t batch, tokens, context;
};

static const struct stage_case stages[] = {
    {0, 8, 2, 16, 96}, {0, 3, 2, 16, 96}, {4, 8, 2, 16, 96}, {1, 1, 1, 16, 96}, {8, 8, 2, 16, 96},
    {7, 8, 2, 16, 96}, {2, 6, 1, 16, 64}, {4, 8, 1, 1, 96},  {0, 8, 2, 8, 32},  {6, 8, 2, 12, 64},
};

/* The smallest row that covers a workload. */
static struct ek_store_memory covering(struct ek_store *s, const char *signature,
                                       const struct stage_case *c)
{
    struct ek_store_memory *rows, best = {.tokens = UINT32_MAX};
    size_t n;

    ck_assert_int_eq(ek_store_memories(s, 1, signature, &rows, &n), EK_OK);
    for (size_t i = 0; i < n; i++)
        if (rows[i].batch >= c->batch && rows[i].tokens >= c->tokens &&
            rows[i].context >= c->context &&
            (rows[i].tokens < best.tokens ||
             (rows[i].tokens == best.tokens && rows[i].batch < best.batch)))
            best = rows[i];
    ck_assert_uint_ne(best.tokens, UINT32_MAX);
    free(rows);
    return best;
}

static bool has_layers(const struct stage_case *c)
{
    bool any = false;

    for (size_t i = c->first; i <= c->last; i++)
        any |= model->modules[i].kind == EK_MODULE_LAYER;
    return any;
}

static void predict(struct ek_store *s, const struct stage_case *c, uint64_t by_tag[EK_N_TAGS])
{
    bool apart = !has_layers(c) && c->last + 1 == model->n_modules;

    memset(by_tag, 0, EK_N_TAGS * sizeof(*by_tag));
    for (size_t i = c->first; i <= c->last; i++) {
        const struct ek_module *m = &model->modules[i];
        struct ek_store_memory row = covering(s, m->signature, c);
        bool tied = m->tied_to >= (int32_t)c->first && m->tied_to <= (int32_t)c->last;
        uint64_t blocks = ek_cache_blocks(row.batch, row.context);
        by_tag[EK_TAG_WEIGHTS] += tied ? 0 : row.weights;
        by_tag[EK_TAG_KV] += row.kv * ek_cache_blocks(c->batch, c->context) / blocks;
        if (apart)
            row = covering(s, EK_STORE_ENDING, c);
        if (row.activations > by_tag[EK_TAG_ACTIVATIONS])
            by_tag[EK_TAG_ACTIVATIONS] = row.activations;
        if (row.workspace > by_tag[EK_TAG_WORKSPACE])
            by_tag[EK_TAG_WORKSPACE] = row.workspace;
    }
    by_tag[EK_TAG_KV] = ek_round_up(by_tag[EK_TAG_KV], 4096);
}

/* A step of n sequences of as many new tokens each, as deep as the context goes. */
static void run_step(struct ek_device *dev, struct ek_stage *stage, const struct stage_case *c,
                     uint32_t n, uint32_t tokens)
{
    int32_t ids[64] = {0}, blocks[2][8], logit_rows[2];
    const int32_t *tables[2] = {blocks[0], blocks[1]}, *rows;
    uint32_t past[2] = {c->context - tokens, c->context - tokens}, new[2] = {tokens, tokens};
    uint32_t per = (uint32_t)ek_cache_blocks(1, c->context), n_rows;
    struct ek_batch_host h = {.n_tokens = n * tokens,
                              .n_seqs = n,
                              .n_logits = n,
                              .tokens = ids,
                              .n_new = new,
                              .past = past,
                              .blocks = tables,
                              .logit_rows = logit_rows};
    struct ek_batch b;

    for (uint32_t i = 0; i < n; i++) {
        logit_rows[i] = (int32_t)((i + 1) * tokens - 1);
        for (uint32_t j = 0; j < per; j++)
            blocks[i][j] = (int32_t)(i * per + j);
    }
    ck_assert_int_eq(ek_stage_upload(stage, &h, &b, &rows, &n_rows), EK_OK);
    ck_assert_int_eq(ek_stage_run(stage, &b, ek_stage_hidden(stage),
                                  ek_stage_has_head(stage) ? (void *)ek_stage_logits(stage)
                                                           : ek_stage_hidden(stage),
                                  rows, n_rows),
                     EK_OK);
    ck_assert_int_eq(dev->ops->sync(dev), EK_OK);
}

static void measure_stage(const struct stage_case *c, struct ek_usage usage[EK_N_TAGS])
{
    struct ek_stage_options o = {.page = EK_PAGE,
                                 .n_blocks = (uint32_t)ek_cache_blocks(c->batch, c->context),
                                 .max_tokens = c->tokens,
                                 .max_seqs = c->batch,
                                 .max_context = c->context,
                                 .max_logits = c->batch,
                                 .cache = EK_F32};
    struct ek_device *dev;
    struct ek_stage *stage;
    size_t modules[16];

    for (size_t i = c->first; i <= c->last; i++)
        modules[i - c->first] = i;
    ck_assert_int_eq(ek_device_open(&specs[0], EK_F32, &dev), EK_OK);
    ck_assert_msg(ek_stage_new(dev, model, modules, c->last - c->first + 1, &o, &stage) == EK_OK,
                  "%s", ek_last_error());
    run_step(dev, stage, c, 1, c->tokens);
    run_step(dev, stage, c, c->batch <= c->tokens ? c->batch : 1, 1);
    dev->ops->usage(dev, usage);
    ek_stage_free(stage);
    ek_device_close(dev);
}

START_TEST(rows_add_up_to_the_memory_of_stages_never_under)
{
    struct ek_store *s;

    copy_whole();
    ck_assert_int_eq(ek_store_open(path, EK_STORE_READ, &s), EK_OK);
    for (size_t i = 0; i < EK_ARRAY_LEN(stages); i++) {
        uint64_t predicted[EK_N_TAGS], sum = 0;
        struct ek_usage real[EK_N_TAGS];
        predict(s, &stages[i], predicted);
        measure_stage(&stages[i], real);
        for (int t = 0; t < EK_N_TAGS; t++) {
            ck_assert_msg(predicted[t] >= real[t].peak, "stage %zu, %s: %llu under %llu", i,
                          ek_tag_names[t], (unsigned long long)predicted[t],
                          (unsigned long long)real[t].peak);
            sum += predicted[t];
        }
        /* small shapes: what rounds up to a larger row weighs more than in any real model */
        ck_assert_msg(sum <= ek_usage_total(real, true) * 105 / 100 + 96 * EK_KIB,
                      "stage %zu: %llu for %llu", i, (unsigned long long)sum,
                      (unsigned long long)ek_usage_total(real, true));
    }
    ek_store_close(s);
}
END_TEST

/* ---- Interruptions ----------------------------------------------------------------------------
 */

static atomic_bool stop_flag;

static void set_stop(int sig)
{
    (void)sig;
    stop_flag = true;
}

START_TEST(an_interrupted_profile_keeps_its_rows_and_goes_on)
{
    struct rows before, after;
    struct itimerspec in = {.it_value.tv_nsec = 700 * 1000 * 1000};
    timer_t timer;
    struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    enum ek_status st;

    signal(SIGUSR1, set_stop);
    stop_flag = false;
    ck_assert_int_eq(timer_create(CLOCK_MONOTONIC, &ev, &timer), 0);
    ck_assert_int_eq(timer_settime(timer, 0, &in, NULL), 0);
    st = profile(&stop_flag);
    timer_delete(timer);
    if (st == EK_OK) /* a quick machine */
        return;
    ck_assert_int_eq(st, EK_EINTR);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "interrupted"));
    before = read_rows();
    must_profile();
    after = read_rows();
    nothing_lost(&before, &after);
    check_complete(&after);
    free(before.at);
    free(after.at);
}
END_TEST

START_TEST(a_complete_profile_is_not_measured_again)
{
    struct rows before, after;
    uint64_t begin;

    copy_whole();
    before = read_rows();
    begin = ek_now_ns();
    must_profile();
    ck_assert(SANITIZED || ek_now_ns() - begin < 60000000000u);
    after = read_rows();
    ck_assert_uint_ge(after.n, before.n);
    ck_assert(SANITIZED || after.n == before.n);
    nothing_lost(&before, &after);
    free(before.at);
    free(after.at);
}
END_TEST

static void sleep_s(double s)
{
    struct timespec t = {.tv_sec = (time_t)s, .tv_nsec = (long)((s - (double)(time_t)s) * 1e9)};

    nanosleep(&t, NULL);
}

static pid_t start_profile(void)
{
    pid_t pid = fork();

    if (pid == 0) {
        enum ek_status st = profile(NULL);
        if (st != EK_OK)
            fprintf(stderr, "%s\n", ek_last_error());
        _exit(st == EK_OK ? 0 : 1);
    }
    return pid;
}

/* EK_KILLS in the environment: how many (50 in the long test). */
static int kills(void)
{
    const char *text = getenv("EK_KILLS");

    return text ? atoi(text) : 8;
}

START_TEST(killed_at_any_instant_no_committed_row_is_lost_or_measured_twice)
{
    struct rows before = {NULL, 0}, after;
    uint64_t seed = ek_now_ns();
    int status = 0, killed = 0;

    for (int i = 0; i < kills(); i++) {
        pid_t pid = start_profile();
        /* from 1 ms, in the middle of opening, to 1 s, in the middle of a measurement */
        sleep_s(1e-3 * pow(1000, ek_random_unit(&seed)));
        kill(pid, SIGKILL);
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        killed += WIFSIGNALED(status);
        ck_assert(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
        if (!ek_file_exists(path))
            continue;
        struct ek_store *s; /* as the next run would: a file before its first commit is taken */
        ck_assert_msg(ek_store_open(path, EK_STORE_WRITE, &s) == EK_OK, "%s", ek_last_error());
        ek_store_close(s);
        after = read_rows();
        nothing_lost(&before, &after);
        free(before.at);
        before = after;
    }
    ck_assert_int_gt(killed, 0);
    must_profile();
    after = read_rows();
    nothing_lost(&before, &after);
    check_complete(&after);
    free(before.at);
    free(after.at);
}
END_TEST

/* ---- Refusals ---------------------------------------------------------------------------------
 */

/* Of 64 tokens. */
static const struct {
    struct ek_point at;
    uint32_t n_new[2], past[2];
} steps_of_two[] = {
    {{EK_PHASE_PREFILL, 2, 32, 96}, {32, 32}, {64, 0}}, /* the next prompt begins */
    {{EK_PHASE_PREFILL, 2, 4, 96}, {4, 60}, {92, 0}},
    {{EK_PHASE_DECODE, 2, 1, 96}, {1, 1}, {95, 95}},
};

START_TEST(a_prefill_step_of_two_is_an_end_and_a_beginning)
{
    const struct ek_batch_host *h;
    struct rig_batch *b;

    ck_assert_int_eq(rig_batch_new(model, 64, 2, 128, &b), EK_OK);
    rig_batch_set(b, &steps_of_two[_i].at);
    h = rig_batch_host(b);
    ck_assert_uint_eq(h->n_tokens, h->n_new[0] + h->n_new[1]);
    ck_assert_mem_eq(h->n_new, steps_of_two[_i].n_new, sizeof(steps_of_two[_i].n_new));
    ck_assert_mem_eq(h->past, steps_of_two[_i].past, sizeof(steps_of_two[_i].past));
    rig_batch_free(b);
}
END_TEST

START_TEST(options_out_of_bounds_are_refused)
{
    struct ek_profile_options good = options(), o;
    struct ek_store *s;

    ck_assert_int_eq(ek_store_open(path, EK_STORE_WRITE, &s), EK_OK);
    o = good;
    o.n_devices = 0;
    ck_assert_int_eq(ek_profile(model, s, &o), EK_EUSAGE);
    o = good;
    o.max_batch = 0;
    ck_assert_int_eq(ek_profile(model, s, &o), EK_EUSAGE);
    o = good;
    o.max_prompt = o.max_context + 1;
    ck_assert_int_eq(ek_profile(model, s, &o), EK_EUSAGE);
    o = good;
    o.target_error = 0;
    ck_assert_int_eq(ek_profile(model, s, &o), EK_EUSAGE);
    ek_store_close(s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("profile");
    TCase *tc = tcase_create("profile");
    SRunner *sr;
    int failed;

    tcase_add_unchecked_fixture(tc, set_up_all, tear_down_all);
    tcase_add_checked_fixture(tc, NULL, tear_down);
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, every_module_has_rows_on_every_device);
    tcase_add_test(tc, links_at_once_have_rows_of_their_own_that_are_kept);
    tcase_add_test(tc, links_between_twins_are_measured_once);
    tcase_add_test(tc, rows_add_up_to_the_memory_of_stages_never_under);
    tcase_add_test(tc, an_interrupted_profile_keeps_its_rows_and_goes_on);
    tcase_add_test(tc, a_complete_profile_is_not_measured_again);
    tcase_add_test(tc, killed_at_any_instant_no_committed_row_is_lost_or_measured_twice);
    tcase_add_loop_test(tc, a_prefill_step_of_two_is_an_end_and_a_beginning, 0,
                        EK_ARRAY_LEN(steps_of_two));
    tcase_add_test(tc, options_out_of_bounds_are_refused);
    suite_add_tcase(suite, tc);
    sr = srunner_create(suite);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
