/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/runtime/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_MODULES = 64 };

const char *source_path(const char *name)
{
    static char path[1024];
    const char *srcdir = getenv("srcdir");

    snprintf(path, sizeof(path), "%s/tests/%s", srcdir ? srcdir : ".", name);
    return path;
}

struct ek_model *fixture_model(const char *name)
{
    static const struct ek_model_options options = EK_MODEL_OPTIONS_INIT;
    struct ek_model *m = NULL;
    char path[256];

    snprintf(path, sizeof(path), "fixtures/reference/%s", name);
    ck_ok(ek_model_open(source_path(path), &options, &m));
    return m;
}

struct ek_model *synthetic_model(const char *config)
{
    static const struct ek_model_options options = {.seed = 7, .synthetic = true};
    char path[] = "check-runtime-XXXXXX.json";
    int fd = mkstemps(path, 5);
    struct ek_model *m = NULL;
    enum ek_status st;

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, config, strlen(config)), strlen(config));
    close(fd);
    st = ek_model_open(path, &options, &m);
    unlink(path);
    ck_ok(st);
    return m;
}

struct ek_model *small_model(uint32_t n_layers)
{
    char config[512];

    snprintf(config, sizeof(config),
             "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 64,"
             "\"num_hidden_layers\": %u, \"num_attention_heads\": 4,"
             "\"num_key_value_heads\": 2, \"intermediate_size\": 96,"
             "\"vocab_size\": 211, \"max_position_embeddings\": 4096,"
             "\"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0,"
             "\"tie_word_embeddings\": true, \"torch_dtype\": \"float32\"}\n",
             n_layers);
    return synthetic_model(config);
}

static uint32_t or_default(uint32_t v, uint32_t d)
{
    return v ? v : d;
}

struct ek_plan *make_plan(const struct ek_model *m, const struct plan_shape *shape)
{
    struct ek_plan *p = ek_calloc(1, sizeof(*p));
    uint32_t at = 0;

    memcpy(p->model_hash, m->hash, sizeof(p->model_hash));
    p->batch = or_default(shape->batch, 4);
    p->context = or_default(shape->context, 128);
    p->prompt = p->context / 2;
    p->generate = p->context - p->prompt;
    p->prefill_chunk = or_default(shape->chunk, 16);
    p->micro_batches = or_default(shape->micro_batches, 1);
    p->act = p->cache = EK_F32;
    p->n_devices = shape->n_devices;
    p->devices = ek_calloc(p->n_devices, sizeof(*p->devices));
    p->uuids = ek_calloc(p->n_devices, sizeof(*p->uuids));
    p->memory = ek_calloc(p->n_devices, sizeof(*p->memory));
    for (uint32_t i = 0; i < p->n_devices; i++) {
        snprintf(p->devices[i].name, EK_NAME_LEN, "cpu:%u", i);
        strcpy(p->devices[i].backend, "cpu");
        strcpy(p->devices[i].threads, "0");
        p->devices[i].index = i;
    }
    p->n_stages = shape->n_stages;
    p->stages = ek_calloc(p->n_stages, sizeof(*p->stages));
    for (uint32_t i = 0; i < p->n_stages; i++) {
        struct ek_plan_stage *s = &p->stages[i];
        s->device = shape->order ? shape->order[i] : i;
        s->modules = ek_calloc(shape->cuts[i] - at, sizeof(*s->modules));
        while (at < shape->cuts[i])
            s->modules[s->n_modules++] = ek_strdup(m->modules[at++].name);
    }
    return p;
}

struct ek_plan *plan_by_module(const struct ek_model *m, const struct plan_shape *shape,
                               const uint32_t *devices)
{
    uint32_t cuts[MAX_MODULES], order[MAX_MODULES];
    struct plan_shape s = *shape;

    ck_assert_uint_le(m->n_modules, MAX_MODULES);
    s.n_stages = 0;
    for (uint32_t i = 0; i < m->n_modules; i++) {
        s.n_stages += i == 0 || devices[i] != devices[i - 1];
        cuts[s.n_stages - 1] = i + 1;
        order[s.n_stages - 1] = devices[i];
    }
    s.cuts = cuts;
    s.order = order;
    return make_plan(m, &s);
}

struct ek_plan *one_device_plan(const struct ek_model *m)
{
    uint32_t cut = (uint32_t)m->n_modules;
    struct plan_shape shape = {.n_devices = 1, .n_stages = 1, .cuts = &cut};

    return make_plan(m, &shape);
}

struct ek_engine *open_engine(const struct ek_model *m, const struct ek_plan *p)
{
    struct ek_engine_options options = {0};
    struct ek_engine *e = NULL;

    ck_ok(ek_engine_open(m, p, &options, &e));
    return e;
}

int32_t *random_ids(const struct ek_model *m, size_t n, uint64_t seed)
{
    int32_t *ids = ek_calloc(n, sizeof(*ids));

    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)(ek_random_u64(&seed) % m->config.vocab);
    return ids;
}

float *all_logits(struct ek_engine *e, const int32_t *ids, size_t n)
{
    float *logits = ek_calloc(n * ek_engine_model(e)->config.vocab, sizeof(*logits));
    uint32_t seq;

    ck_ok(ek_engine_seq_open(e, &seq));
    ck_ok(ek_engine_prefill(e, seq, ids, n, EK_LOGITS_ALL, logits, NULL));
    ek_engine_seq_close(e, seq);
    return logits;
}

static uint64_t put_decode(struct ek_engine *e, const uint32_t *seqs, uint32_t n,
                           const int32_t *tokens, uint64_t from, const struct ek_sampling *sampling,
                           uint64_t *states)
{
    uint32_t ones[64];
    struct ek_draw draws[64];
    struct ek_step step = {.n_seqs = n,
                           .seqs = seqs,
                           .n_tokens = ones,
                           .tokens = tokens,
                           .from = from,
                           .logits = EK_LOGITS_LAST,
                           .draws = draws,
                           .ids_only = true};
    uint64_t ticket;

    for (uint32_t i = 0; i < n; i++) {
        ones[i] = 1;
        ck_ok(ek_sampling_draw(sampling, &states[i], &draws[i]));
    }
    ck_ok(ek_engine_submit(e, &step, &ticket));
    return ticket;
}

int32_t *decode_ids(struct ek_engine *e, const int32_t *first, uint32_t n_seqs, size_t n_steps,
                    uint32_t ahead, const struct ek_sampling *sampling)
{
    int32_t *out = ek_calloc(n_steps * n_seqs, sizeof(*out)), rows[64];
    uint32_t seqs[64];
    uint64_t states[64], tickets[8];
    const int32_t *ids;

    for (uint32_t i = 0; i < n_seqs; i++) {
        ck_ok(ek_engine_seq_open(e, &seqs[i]));
        states[i] = sampling->seed + i;
        rows[i] = EK_TOKEN_OF_ROW(i);
    }
    for (size_t put = 0, got = 0; got < n_steps; got++) {
        for (; put < n_steps && put - got < ahead; put++) {
            const int32_t *known = put ? out + (put - 1) * n_seqs : first;
            tickets[put % 8] = put == got ? put_decode(e, seqs, n_seqs, known, 0, sampling, states)
                                          : put_decode(e, seqs, n_seqs, rows,
                                                       tickets[(put - 1) % 8], sampling, states);
        }
        ck_ok(ek_engine_wait(e, tickets[got % 8], NULL, &ids, NULL));
        memcpy(out + got * n_seqs, ids, n_seqs * sizeof(*ids));
        ek_engine_release(e, tickets[got % 8]);
    }
    for (uint32_t i = 0; i < n_seqs; i++)
        ek_engine_seq_close(e, seqs[i]);
    return out;
}

static struct ek_ops whole, broken;
static struct ek_device *victim;
static int left;

static enum ek_status failing_attention(struct ek_device *dev, const void *q, size_t ldq,
                                        const struct ek_batch *batch, const struct ek_kv *kv,
                                        uint32_t heads, float scale, void *out, size_t ldo)
{
    if (dev == victim && left-- <= 0)
        return ek_error(EK_EDEVICE, "made to fail");
    return whole.attention(dev, q, ldq, batch, kv, heads, scale, out, ldo);
}

void make_fail(struct ek_engine *e, size_t n, size_t i, int after)
{
    victim = ek_engine_device(e, i);
    whole = broken = *victim->ops;
    broken.attention = failing_attention;
    left = after;
    for (size_t k = 0; k < n; k++)
        ek_engine_device(e, k)->ops = &broken;
}

double largest_difference(const float *a, const float *b, size_t n)
{
    double d = 0;

    for (size_t i = 0; i < n; i++)
        d = fabs((double)a[i] - b[i]) <= d ? d : fabs((double)a[i] - b[i]);
    return d;
}

double largest(const float *a, size_t n)
{
    double d = 0;

    for (size_t i = 0; i < n; i++)
        d = fabs(a[i]) > d ? fabs(a[i]) : d;
    return d;
}
