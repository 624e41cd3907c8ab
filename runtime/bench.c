/* SPDX-License-Identifier: Apache-2.0
 *
 * The benchmark: a workload of synthetic token ids, and pictures, through the same waves as
 * generation.
 */
#include "runtime/bench_pictures.h"
#include "runtime/wave.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_REPEATS 3u
#define MAX_REPEATS     1000u
#define WARM_TOKENS     4u /* generated before anything is timed: graphs captured, pages touched */

struct bench {
    struct ek_engine *e;
    uint32_t batch, prompt, generate, repeats;
    uint32_t total; /* tokens of a prompt with its pictures */
    bool sees;
    struct bench_pictures pictures;
    struct ek_generate_options opt;
    struct ek_prompt *prompts;
    int32_t *ids;
    struct wave_seq *seqs;
    struct ek_completion *out;
    double *seeing, *prefill, *rounds; /* samples */
    /* [n_stages][repeats] a stage's busy seconds: pictures, prefill with them, a step */
    double *looking, *filling, *stepping;
    size_t n_rounds;
    double decode_total;
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double median_of_sorted(const double *x, size_t n)
{
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

/* Sorts x, and overwrites it. */
static struct ek_spread spread_of(double *x, size_t n)
{
    struct ek_spread s = {.n = (uint32_t)n};

    if (n == 0)
        return s;
    qsort(x, n, sizeof(*x), by_value);
    s.min = x[0];
    s.max = x[n - 1];
    s.median = median_of_sorted(x, n);
    for (size_t i = 0; i < n; i++)
        s.mean += x[i] / (double)n;
    for (size_t i = 0; i < n; i++)
        x[i] = fabs(x[i] - s.median);
    qsort(x, n, sizeof(*x), by_value);
    s.mad = median_of_sorted(x, n);
    return s;
}

static enum ek_status check(const struct bench *b)
{
    if (b->batch > ek_engine_max_seqs(b->e))
        return ek_error(EK_EUSAGE, "bench: batch of %u, the engine was opened for %u", b->batch,
                        ek_engine_max_seqs(b->e));
    if ((uint64_t)b->total + b->generate > ek_engine_max_context(b->e) + (uint64_t)1)
        return ek_error(EK_EUSAGE, "bench: %u + %u tokens are over the context of %u", b->total,
                        b->generate, ek_engine_max_context(b->e));
    if (b->repeats > MAX_REPEATS)
        return ek_error(EK_EUSAGE, "bench: %u repeats, at most %u", b->repeats, MAX_REPEATS);
    return EK_OK;
}

/* Every prompt has the same pictures and tokens of its own. */
static void fill_prompt(struct bench *b, uint32_t i, uint64_t *seed)
{
    const struct ek_vl_prompt *vl = &b->pictures.vl;
    int32_t vocab = (int32_t)ek_engine_model(b->e)->config.vocab;
    int32_t *ids = b->ids + (size_t)i * b->total;

    for (uint32_t k = 0; k < b->total; k++)
        ids[k] = (int32_t)(ek_random_u64(seed) % (uint32_t)vocab);
    b->prompts[i] = (struct ek_prompt){.ids = ids, .n = b->total};
    if (!b->sees)
        return;
    memcpy(ids, vl->ids, (b->total - b->prompt) * sizeof(*ids));
    b->prompts[i].positions = vl->positions;
    b->prompts[i].delta = vl->delta;
    b->prompts[i].embeds = &b->pictures.embeds;
}

static enum ek_status make_prompts(struct bench *b, uint64_t seed)
{
    size_t n;

    if (!ek_mul_size(b->batch, b->total, &n))
        return ek_error(EK_EUSAGE, "bench: prompts overflow");
    if ((b->ids = ek_calloc(n, sizeof(*b->ids))) == NULL ||
        (b->prompts = ek_calloc(b->batch, sizeof(*b->prompts))) == NULL ||
        (b->seqs = ek_calloc(b->batch, sizeof(*b->seqs))) == NULL ||
        (b->out = ek_calloc(b->batch, sizeof(*b->out))) == NULL ||
        (b->seeing = ek_calloc(b->repeats, sizeof(*b->seeing))) == NULL ||
        (b->prefill = ek_calloc(b->repeats, sizeof(*b->prefill))) == NULL ||
        (b->rounds = ek_calloc((size_t)b->repeats * b->generate, sizeof(*b->rounds))) == NULL)
        return EK_ENOMEM;
    for (uint32_t i = 0; i < b->batch; i++)
        fill_prompt(b, i, &seed);
    return EK_OK;
}

static void forget(struct bench *b)
{
    for (uint32_t i = 0; b->out && i < b->batch; i++)
        free(b->out[i].ids);
    for (uint32_t i = 0; b->seqs && b->out && i < b->batch; i++) {
        b->out[i] = (struct ek_completion){0};
        b->seqs[i] = (struct wave_seq){.prompt = &b->prompts[i], .index = i, .out = &b->out[i]};
    }
}

static void bench_free(struct bench *b)
{
    forget(b);
    free(b->ids);
    free(b->prompts);
    free(b->seqs);
    free(b->out);
    free(b->seeing);
    free(b->prefill);
    free(b->rounds);
    free(b->looking);
    free(b->filling);
    free(b->stepping);
    bench_pictures_close(&b->pictures);
}

/* samples: [n][repeats], of all the steps or (pictures NULL) of one. */
static void add_timings(struct bench *b, struct ek_stage_timing *sum, size_t n,
                        struct ek_stage_timing *scratch, double *samples, double *pictures)
{
    struct ek_engine *e = b->e;

    ek_engine_timings(e, scratch, n);
    for (size_t i = 0; i < n; i++) {
        double steps = pictures == NULL && scratch[i].steps ? (double)scratch[i].steps : 1;
        samples[i * b->repeats] = (scratch[i].busy_s + scratch[i].pictures_s) / steps;
        if (pictures != NULL)
            pictures[i * b->repeats] = scratch[i].pictures_s;
        sum[i].device = scratch[i].device;
        sum[i].stage = scratch[i].stage;
        sum[i].pictures_s += scratch[i].pictures_s;
        sum[i].steps += scratch[i].steps;
        sum[i].tokens += scratch[i].tokens;
        sum[i].busy_s += scratch[i].busy_s;
        sum[i].wait_s += scratch[i].wait_s;
    }
    ek_engine_reset_timings(e);
}

/* One run. repeat < 0: nothing is kept. */
static enum ek_status run_once(struct bench *b, int64_t repeat, struct ek_bench_result *r,
                               struct ek_stage_timing *scratch)
{
    struct wave w;
    uint64_t start, seen, filled;
    enum ek_status st;

    forget(b);
    EK_TRY(wave_open(&w, b->e, &b->opt, b->seqs, b->batch));
    w.round_s = repeat < 0 ? NULL : b->rounds + b->n_rounds;
    w.max_rounds = b->generate;
    ek_engine_reset_timings(b->e);
    start = ek_now_ns();
    for (uint32_t i = 0; b->sees && i < b->batch; i++)
        EK_GOTO(bench_pictures_encode(b->e, &b->pictures), st, done);
    seen = ek_now_ns();
    EK_GOTO(wave_prefill(&w), st, done);
    filled = ek_now_ns();
    if (repeat >= 0)
        add_timings(b, r->prefill, r->n_stages, scratch, b->filling + repeat, b->looking + repeat);
    EK_GOTO(wave_decode(&w), st, done);
    if (repeat >= 0) {
        b->seeing[repeat] = (double)(seen - start) * 1e-9;
        b->prefill[repeat] = (double)(filled - start) * 1e-9;
        b->decode_total += (double)(ek_now_ns() - filled) * 1e-9;
        b->n_rounds += w.n_rounds;
        add_timings(b, r->decode, r->n_stages, scratch, b->stepping + repeat, NULL);
    }
done:
    wave_close(&w);
    return st;
}

static enum ek_status make_result(struct bench *b, struct ek_bench_result *r)
{
    *r = (struct ek_bench_result){.batch = b->batch, .prompt = b->prompt, .generate = b->generate};
    r->n_stages = (uint32_t)ek_engine_timings(b->e, NULL, 0);
    r->n_devices = (uint32_t)ek_engine_n_devices(b->e);
    if ((r->prefill = ek_calloc(r->n_stages, sizeof(*r->prefill))) == NULL ||
        (r->decode = ek_calloc(r->n_stages, sizeof(*r->decode))) == NULL ||
        (r->stage_prefill_s = ek_calloc(r->n_stages, sizeof(*r->stage_prefill_s))) == NULL ||
        (r->stage_pictures_s = ek_calloc(r->n_stages, sizeof(*r->stage_pictures_s))) == NULL ||
        (r->stage_decode_s = ek_calloc(r->n_stages, sizeof(*r->stage_decode_s))) == NULL ||
        (b->looking = ek_calloc((size_t)r->n_stages * b->repeats, sizeof(double))) == NULL ||
        (b->filling = ek_calloc((size_t)r->n_stages * b->repeats, sizeof(double))) == NULL ||
        (b->stepping = ek_calloc((size_t)r->n_stages * b->repeats, sizeof(double))) == NULL ||
        (r->usage = ek_calloc(r->n_devices, sizeof(*r->usage))) == NULL)
        return EK_ENOMEM;
    return EK_OK;
}

static enum ek_status run_all(struct bench *b, struct ek_bench_result *r)
{
    struct ek_stage_timing *scratch = ek_calloc(r->n_stages, sizeof(*scratch));
    enum ek_status st = EK_ENOMEM;

    if (scratch == NULL)
        return st;
    b->opt.max_tokens = b->generate < WARM_TOKENS ? b->generate : WARM_TOKENS;
    st = run_once(b, -1, r, scratch);
    b->opt.max_tokens = b->generate;
    for (int64_t i = 0; i < b->repeats && st == EK_OK; i++)
        st = run_once(b, i, r, scratch);
    free(scratch);
    return st;
}

static enum ek_status make_pictures(struct bench *b, const struct ek_bench_options *o)
{
    const struct ek_plan *p = ek_engine_plan(b->e);
    uint32_t n = o->images ? o->images : p->images;
    uint32_t tokens = o->image_tokens ? o->image_tokens : p->image_tokens;

    b->total = b->prompt;
    b->sees = n > 0;
    if (n == 0)
        return EK_OK;
    if (tokens == 0 && o->image_width == 0)
        return ek_error(EK_EUSAGE, "bench: %u pictures of no size", n);
    EK_TRY(bench_pictures_open(b->e, n, tokens, o->image_width, o->image_height, b->prompt, o->seed,
                               &b->pictures));
    b->total = (uint32_t)b->pictures.vl.n_ids; /* at most the context */
    return EK_OK;
}

/* What the result says of pictures. */
static void note_pictures(const struct bench *b, struct ek_bench_result *r)
{
    const struct ek_vl_prompt *vl = &b->pictures.vl;

    if (!b->sees)
        return;
    r->images = (uint32_t)vl->n_visuals;
    r->image_tokens = vl->visuals[0].n_tokens;
    r->image_patches = (uint32_t)vl->visuals[0].n_rows;
    r->image_width = b->pictures.image.width;
    r->image_height = b->pictures.image.height;
    r->prepare_s = b->pictures.prepare_s;
    r->pictures_s = spread_of(b->seeing, b->repeats);
}

enum ek_status ek_bench_run(struct ek_engine *e, const struct ek_bench_options *opt,
                            struct ek_bench_result *out)
{
    const struct ek_plan *p = ek_engine_plan(e);
    struct bench b = {.e = e,
                      .batch = opt->batch ? opt->batch : p->batch,
                      .prompt = opt->prompt ? opt->prompt : p->prompt,
                      .generate = opt->generate ? opt->generate : p->generate,
                      .repeats = opt->repeats ? opt->repeats : DEFAULT_REPEATS,
                      .opt = {.sampling = EK_SAMPLING_GREEDY, .cancel = opt->cancel}};
    struct ek_bench_result r = {0};
    enum ek_status st;

    b.generate = b.generate ? b.generate : 1; /* the prompt's own token */
    EK_GOTO(make_pictures(&b, opt), st, done);
    EK_GOTO(check(&b), st, done);
    EK_GOTO(make_prompts(&b, opt->seed), st, done);
    EK_GOTO(make_result(&b, &r), st, done);
    EK_GOTO(run_all(&b, &r), st, done);
    note_pictures(&b, &r);
    r.prefill_s = spread_of(b.prefill, b.repeats);
    r.decode_s = spread_of(b.rounds, b.n_rounds);
    r.decode_total_s = b.decode_total / b.repeats;
    for (uint32_t i = 0; i < r.n_stages; i++) {
        r.stage_pictures_s[i] = spread_of(b.looking + (size_t)i * b.repeats, b.repeats);
        r.stage_prefill_s[i] = spread_of(b.filling + (size_t)i * b.repeats, b.repeats);
        r.stage_decode_s[i] = spread_of(b.stepping + (size_t)i * b.repeats, b.repeats);
    }
    for (uint32_t i = 0; i < r.n_devices; i++)
        ek_engine_usage(e, i, r.usage[i]);
    *out = r;
    r = (struct ek_bench_result){0};
done:
    ek_bench_result_clear(&r);
    bench_free(&b);
    return st;
}

void ek_bench_result_clear(struct ek_bench_result *r)
{
    free(r->prefill);
    free(r->decode);
    free(r->stage_prefill_s);
    free(r->stage_pictures_s);
    free(r->stage_decode_s);
    free(r->usage);
    *r = (struct ek_bench_result){0};
}
