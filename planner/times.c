/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Times of modules and stages for one workload.
 */
#include "planner/planner.h"
#include "planner/problem.h"

#include <math.h>

#define MAX_CHUNKS 256 /* more are sampled */
#define GOLDEN     0.6180339887498949
#define LN_2       0.6931471805599453

uint32_t ek_workload_prompt(const struct ek_workload *w)
{
    uint64_t n = w->prompt + (uint64_t)w->images * w->image_tokens;

    return n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}

uint32_t ek_chunk_of_group(const struct ek_workload *w, uint32_t chunk, uint32_t prompts)
{
    uint64_t all = (uint64_t)ek_workload_prompt(w) * prompts;

    return chunk < all ? chunk : (uint32_t)all;
}

uint64_t ek_prefill_chunks(const struct ek_workload *w, uint32_t prompts)
{
    uint64_t tokens = (uint64_t)ek_workload_prompt(w) * prompts;

    return w->prefill_chunk ? (tokens + w->prefill_chunk - 1) / w->prefill_chunk : tokens > 0;
}

/* A step of the prefill: prompts follow one another, so that a chunk may have the end of one, whole
 * ones, and the beginning of another. */
struct chunk {
    uint32_t tokens;
    double attended; /* cached tokens that they attend to, summed over them */
    double contexts; /* tokens of their sequences behind the step */
    double end;      /* of tokens: the end of a prompt that other steps began */
};

static struct chunk chunk_at(const struct ek_workload *w, uint64_t j)
{
    uint64_t prompt = ek_workload_prompt(w), all = prompt * w->batch;
    uint64_t at = j * w->prefill_chunk,
             end = at + w->prefill_chunk < all ? at + w->prefill_chunk : all;
    struct chunk c = {.tokens = (uint32_t)(end - at)};

    while (at < end) {
        uint64_t past = at % prompt, n = prompt - past < end - at ? prompt - past : end - at;
        c.attended += (double)n * ((double)past + (double)n / 2);
        c.contexts += (double)(past + n);
        c.end += past > 0 ? (double)n : 0;
        at += n;
    }
    return c;
}

#define SHORT_END (1 / 16.0)
#define LONG_END  0.5

static double context_seconds(const struct ek_cost_curve *c, const struct chunk *k)
{
    double end = k->end > 0 ? k->end / k->tokens : 1;
    double longer = fmin(fmax((end - SHORT_END) / (LONG_END - SHORT_END), 0), 1);

    return c->short_context_s + longer * (c->context_s - c->short_context_s);
}

/* As one sequence of so many tokens behind a cache that makes it attend to as many, and what
 * several contexts take beyond its own. */
static double chunk_seconds(const struct ek_cost_curve *c, const struct chunk *k, bool *outside)
{
    double context = k->attended / k->tokens + k->tokens / 2.0;
    struct ek_point at = {EK_PHASE_PREFILL, 1, k->tokens, (uint32_t)lround(fmax(context, 1))};
    bool out = false;
    double s = ek_interpolate(c->rows, c->n, &at, &out);

    *outside = *outside || out;
    return s + context_seconds(c, k) * fmax(k->contexts - context, 0);
}

/* All prompts. Of very many chunks some are looked at, spread without a period: chunks have one. */
static double every_chunk(const struct ek_cost_curve *c, const struct ek_workload *w, bool *outside)
{
    bool alike = ek_workload_prompt(w) % w->prefill_chunk == 0; /* one prompt's are all */
    uint32_t prompts = alike ? 1 : w->batch;
    uint64_t n = ek_prefill_chunks(w, prompts), shown = n < MAX_CHUNKS ? n : MAX_CHUNKS;
    double sum = 0;

    for (uint64_t i = 0; i < shown; i++) {
        double spread = n > shown ? fmod((double)i * GOLDEN, 1) : 0;
        struct chunk k = chunk_at(w, (uint64_t)(((double)i + spread) * (double)n / (double)shown));
        sum += chunk_seconds(c, &k, outside);
    }
    return sum * (double)n / (double)shown * w->batch / prompts;
}

/* Those that a prompt ends in: what else is in them does not matter to the rows that it asks for.
 */
static double last_chunks(const struct ek_cost_curve *c, const struct ek_workload *w, bool *outside)
{
    uint64_t prompt = ek_workload_prompt(w), last = UINT64_MAX, n = 0;
    struct chunk k = chunk_at(w, (prompt - 1) / w->prefill_chunk);

    for (uint64_t i = 1; i <= w->batch; i++) {
        uint64_t at = (i * prompt - 1) / w->prefill_chunk;
        n += at != last;
        last = at;
    }
    return (double)n * chunk_seconds(c, &k, outside);
}

double ek_prefill_seconds(const struct ek_problem *p, const struct ek_cost_curve *c,
                          enum ek_prefill_pass pass, bool *outside)
{
    const struct ek_workload *w = &p->workload;
    double sequences = (double)w->batch / p->micro_batches;
    bool out = false;

    if (pass == EK_PICTURES ? w->images == 0 : ek_workload_prompt(w) == 0)
        return 0;
    if (c->constant) /* of the whole batch, whatever its shape */
        return c->rows[0].time.median_s / p->micro_batches;
    if (pass == EK_PICTURES) {
        struct ek_point at = {EK_PHASE_PREFILL, 1, w->image_tokens, w->image_tokens};
        double s = ek_interpolate(c->rows, c->n, &at, &out);
        *outside = *outside || out;
        return sequences * w->images * s;
    }
    return (pass == EK_LAST_CHUNK ? last_chunks : every_chunk)(c, w, outside) / p->micro_batches;
}

double ek_decode_seconds(const struct ek_problem *p, const struct ek_cost_curve *c, bool *outside)
{
    const struct ek_workload *w = &p->workload;
    uint32_t context = ek_workload_prompt(w) + (w->generate + 1) / 2;
    struct ek_point at = {EK_PHASE_DECODE, p->group_size, 1, context};
    bool out = false;
    double s;

    if (w->generate == 0)
        return 0;
    s = c->constant ? c->rows[0].time.median_s : ek_interpolate(c->rows, c->n, &at, &out);
    *outside = *outside || out;
    return s;
}

static int compare_stage(const struct ek_cost_stage *s, uint32_t cls, uint32_t tp, uint32_t first,
                         uint32_t last)
{
    if (s->cls != cls)
        return s->cls < cls ? -1 : 1;
    if (s->tp != tp)
        return s->tp < tp ? -1 : 1;
    if (s->first != first)
        return s->first < first ? -1 : 1;
    return s->last < last ? -1 : s->last > last;
}

static const struct ek_cost_stage *measured_stage(const struct ek_costs *c, uint32_t cls,
                                                  uint32_t tp, uint32_t first, uint32_t last)
{
    size_t low = 0, high = c->n_stages;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int d = compare_stage(&c->stages[mid], cls, tp, first, last);
        if (d == 0)
            return &c->stages[mid];
        if (d < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

struct sums { /* of the modules of a stage; seen: on pictures, which go through one stage at a time
               */
    double prefill, passing, decode, seen;
    double layers; /* of prefill: what neighbours slow */
    bool outside;
};

static bool add_module(const struct ek_problem *p, uint32_t cls, uint32_t tp, uint32_t module,
                       struct sums *out)
{
    const struct ek_modcost *c = ek_modcost_of(p, cls, tp, module);

    if (!c->known)
        return false;
    if (ek_cost_module_sees(&p->costs->modules[module]))
        out->seen += c->prefill;
    else
        out->prefill += c->prefill;
    if (p->costs->modules[module].kind == EK_MODULE_LAYER)
        out->layers += c->prefill;
    out->decode += c->decode;
    out->outside = out->outside || c->outside;
    return true;
}

double ek_stages_beside(uint32_t stages, double jobs)
{
    double k = fmin(stages, jobs), squares;

    if (k <= 1)
        return 0;
    squares = k * k * (fabs(stages - jobs) + 1) + (k - 1) * k * (2 * k - 1) / 3;
    return squares / (stages * jobs) - 1;
}

/* Slot by slot, of the neighbours of stages in all slots but those that the last n - 1 of the jobs
 * are done in at one stage: what the first job meets on its way, of each of the stages. */
double ek_stages_passed(uint32_t stages, double jobs)
{
    double k = fmin(stages, jobs), all;

    if (k <= 1)
        return 0;
    all = (k - 1) * (k - 2) + (k - 1) * (fabs(stages - jobs) + 1);
    return (all - (jobs - 1) * ek_stages_beside(stages, jobs)) / stages;
}

/* All prompts of a group, or (decode) a step, through the whole chain, were it on devices of a
 * class alone. */
static double whole_chain(const struct ek_problem *p, uint32_t cls, uint32_t tp, bool decode)
{
    double sum = 0;

    for (uint32_t i = p->n_seeing; i < p->n_items; i++) {
        const struct ek_modcost *c = ek_modcost_of(p, cls, tp, p->first_item + i);
        sum += decode ? c->decode : c->prefill;
    }
    return sum;
}

void ek_price_chain(struct ek_problem *p)
{
    double all = 0, own;

    for (uint32_t d = 0; d < p->n_devices; d++)
        all += whole_chain(p, p->devices[d].cls, 1, false);
    for (uint32_t i = 0; i < p->n_kinds; i++) {
        struct ek_kind *k = &p->kinds[i];
        uint32_t cls = p->groups[k->group].cls;
        k->whole_s = whole_chain(p, cls, k->tp, false);
        k->round_s = whole_chain(p, cls, k->tp, true);
        own = k->tp * whole_chain(p, cls, 1, false);
        k->others_s = p->n_devices > k->tp ? fmax(all - own, 0) / (p->n_devices - k->tp) : 0;
    }
}

/* The share of its time that a stage has a neighbour at work, were there no ends: of the rest of
 * the chain each of the others has as much as any. */
static double accompanied(const struct ek_kind *k, uint32_t stages, double seconds)
{
    double rest = fmax(1 - seconds / fmax(k->whole_s, seconds), 0) * k->others_s;

    return stages > 1 && seconds > 0 ? fmin(rest / (stages - 1) / seconds, 1) : 1;
}

/* Stages at work at the same time slow each other where they share a memory bus, for as long as
 * they are at work together: few chunks leave a pipeline empty at its ends, a stage that has less
 * to do leaves its neighbours alone, and of decoding as many stages work as there are groups. */
static void slow_down(const struct ek_problem *p, uint32_t kind, int32_t first, int32_t last,
                      struct sums *s)
{
    const struct ek_kind *of = &p->kinds[kind];
    const struct ek_cost_class *k = &p->costs->classes[p->groups[of->group].cls];
    uint32_t devices = ek_costs_devices(p->costs), stages = p->n_devices;
    double others = devices > 1 ? devices - 1 : 1, jobs = (double)p->chunks * p->micro_batches;
    double slow;

    s->passing = s->prefill;
    if (first == 0 && last == (int32_t)p->n_items - 1) /* alone */
        return;
    stages = stages < p->n_items ? stages : p->n_items;
    slow = (k->slow_prefill - 1) * accompanied(of, stages, s->prefill) / others;
    s->passing += s->layers * slow * ek_stages_passed(stages, jobs);
    s->prefill += s->layers * slow * ek_stages_beside(stages, jobs);
    s->decode *= 1 + (k->slow_decode - 1) * (fmin(stages, p->micro_batches) - 1) / others;
}

/* What a prefill finds of its burst behind so many seconds of decoding. */
static double burst_behind(const struct ek_cost_class *k, double seconds)
{
    return k->burst_s * (k->refill_s > 0 ? 1 - exp2(-seconds / k->refill_s) : 1);
}

/* The mean of what is left of lower clocks while so many seconds pass. */
static double left_during(const struct ek_cost_class *k, double seconds)
{
    double half_lives = k->recovery_s > 0 ? seconds / k->recovery_s : INFINITY;

    return half_lives > 0 ? (1 - exp2(-half_lives)) / (half_lives * LN_2) : 1;
}

/* How many times as long seconds take that go on, when so many went before them. */
static double longer(double sustained, double burst, double before, double seconds)
{
    double high = fmax(burst - before, 0);

    return seconds > 0 ? 1 + (sustained - 1) * fmax(1 - high / seconds, 0) : 1;
}

/* Seconds of prefill, pictures first, that go on lower a GPU's clocks at some point: sooner where
 * the decode steps of the batch before were too few for them to come back. They are still low
 * behind it. */
static void go_on(const struct ek_problem *p, uint32_t kind, struct sums *s)
{
    const struct ek_kind *of = &p->kinds[kind];
    const struct ek_cost_class *k = &p->costs->classes[p->groups[of->group].cls];
    double seen = s->seen * p->micro_batches, prefill = s->prefill * p->micro_batches;
    double decoding = p->workload.generate * of->round_s;
    double burst = burst_behind(k, decoding);
    double all = seen + prefill, low = all > 0 ? fmin(all / fmax(burst, all), 1) : 0;
    double text = longer(k->sustained, burst, seen, prefill);

    s->prefill *= text;
    s->passing *= text;
    s->seen *= longer(k->looking, burst, 0, seen);
    s->decode *= 1 + (k->behind - 1) * low * left_during(k, decoding);
}

/* The chain's items are a final norm, a head or both. */
static bool only_ends(const struct ek_problem *p, int32_t first, int32_t last)
{
    enum ek_module_kind kind;

    if (first > last)
        return false;
    kind = p->costs->modules[p->first_item + (uint32_t)first].kind;
    return kind == EK_MODULE_NORM || kind == EK_MODULE_HEAD;
}

/* What a stage takes once a step. */
static void begin(const struct ek_problem *p, uint32_t cls, uint32_t tp, int32_t first,
                  int32_t last, struct sums *t)
{
    const struct ek_modcost *own = only_ends(p, first, last) ? ek_ending_cost(p, cls, tp) : NULL;

    if (own == NULL)
        own = ek_stage_cost(p, cls, tp);
    t->prefill = own->prefill;
    t->decode = first <= last && last >= (int32_t)p->n_seeing ? own->decode : 0;
}

bool ek_problem_times(const struct ek_problem *p, uint32_t kind, int32_t first, int32_t last,
                      uint32_t sides, struct ek_stage_times *out, bool *outside)
{
    const struct ek_kind *k = &p->kinds[kind];
    uint32_t cls = p->groups[k->group].cls;
    const struct ek_cost_stage *stage = NULL;
    const struct ek_modcost *overhead = ek_stage_cost(p, cls, k->tp);
    struct sums t = {0};

    begin(p, cls, k->tp, first, last, &t);
    if (first <= last && p->costs->n_stages)
        stage = measured_stage(p->costs, cls, k->tp, (uint32_t)first, (uint32_t)last);
    if (stage) {
        t.prefill = t.layers = stage->prefill_s / p->micro_batches;
        t.decode = stage->decode_s;
    }
    if (ek_sides_apart(first, last, sides))
        t.prefill += overhead->prefill;
    for (int32_t i = first; !stage && i <= last; i++)
        if (!add_module(p, cls, k->tp, p->first_item + (uint32_t)i, &t))
            return false;
    for (uint32_t s = 0; s < p->n_sides; s++)
        for (uint32_t j = 0; (sides >> s & 1) && j < p->sides[s].n; j++)
            if (!add_module(p, cls, k->tp, p->sides[s].modules[j], &t))
                return false;
    out->alone_prefill = t.prefill;
    slow_down(p, kind, first, last, &t);
    out->rested_prefill = t.prefill + t.seen;
    out->rested_looking = t.seen;
    out->rested_decode = t.decode;
    go_on(p, kind, &t);
    out->prefill = t.prefill + t.seen;
    out->looking = t.seen;
    out->passing = t.passing + t.seen;
    out->decode = t.decode;
    *outside = *outside || t.outside;
    return true;
}
