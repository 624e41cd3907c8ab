/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A discrete-event simulation of the pipelined runtime under requests that arrive at random: one
 * job at a time on each stage and link.
 */
#include "planner/simulate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_REQUESTS 1000000
#define MAX_EVENTS   ((size_t)1 << 26)

struct job {           /* a chunk of a request's prompt, or a decode step of a group */
    uint32_t owner;    /* request or group */
    bool decode, last; /* last chunk of its prompt */
};
struct event {
    double at;
    uint64_t order; /* equal times keep their order */
    struct job job;
    uint32_t stage;
    bool done; /* the stage has finished the job; else the job arrives at it */
};
struct request {
    double arrived, started, first, finished;
    uint32_t left, group; /* tokens to go */
    bool decoding;
};
struct server { /* a stage or a link: serves in order of arrival */
    double free_at, busy;
};
struct sim {
    const struct ek_plan_file *f;
    const struct ek_load *load;
    struct event *heap;
    size_t n, cap;
    uint64_t order;
    struct request *requests;
    uint32_t next, active, done; /* first not yet admitted; in slots; finished */
    struct server stages[EK_FILE_MAX_STAGES], links[EK_FILE_MAX_STAGES];
    double chunk_s[EK_FILE_MAX_STAGES], chunk_hop[EK_FILE_MAX_STAGES];
    uint32_t chunks;
    bool stepping[65536]; /* a group's decode step is in flight */
    uint32_t members[65536];
};

/* ---- Events -------------------------------------------------------------------------------------
 */
static bool before(const struct event *a, const struct event *b)
{
    return a->at < b->at || (a->at == b->at && a->order < b->order);
}

static enum ek_status push(struct sim *s, struct event e)
{
    size_t i = s->n;

    EK_TRY(ek_grow((void **)&s->heap, &s->cap, s->n + 1, sizeof(e), MAX_EVENTS));
    e.order = s->order++;
    s->n++;
    for (; i > 0 && before(&e, &s->heap[(i - 1) / 2]); i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = e;
    return EK_OK;
}

static struct event pop(struct sim *s)
{
    struct event top = s->heap[0], e = s->heap[--s->n];
    size_t i = 0;

    for (;;) {
        size_t k = 2 * i + 1;
        if (k >= s->n)
            break;
        if (k + 1 < s->n && before(&s->heap[k + 1], &s->heap[k]))
            k++;
        if (!before(&s->heap[k], &e))
            break;
        s->heap[i] = s->heap[k];
        i = k;
    }
    s->heap[i] = e;
    return top;
}

static double serve(struct server *v, double at, double seconds)
{
    double start = fmax(at, v->free_at);

    v->free_at = start + seconds;
    v->busy += seconds;
    return v->free_at;
}

/* ---- The runtime's rules ------------------------------------------------------------------------
 */
static enum ek_status arrive(struct sim *s, double at, struct job job, uint32_t stage)
{
    return push(s, (struct event){.at = at, .job = job, .stage = stage});
}

static enum ek_status admit(struct sim *s, double now)
{
    while (s->next < s->load->requests && s->active < s->f->batch &&
           s->requests[s->next].arrived <= now) {
        struct request *r = &s->requests[s->next];
        uint32_t best = 0;
        for (uint32_t g = 1; g < s->f->micro_batches; g++)
            best = s->members[g] < s->members[best] ? g : best;
        r->group = best;
        s->members[best]++;
        r->started = now;
        s->active++;
        for (uint32_t c = 0; c < s->chunks; c++)
            EK_TRY(arrive(s, now, (struct job){s->next, false, c + 1 == s->chunks}, 0));
        s->next++;
    }
    return EK_OK;
}

static enum ek_status step_group(struct sim *s, double now, uint32_t group)
{
    bool any = false;

    for (uint32_t i = 0; !any && i < s->next; i++)
        any = s->requests[i].group == group && s->requests[i].decoding;
    if (!any || s->stepping[group])
        return EK_OK;
    s->stepping[group] = true;
    return arrive(s, now + s->f->return_s, (struct job){group, true, false}, 0);
}

static void finish(struct sim *s, struct request *r, double now)
{
    r->finished = now;
    r->decoding = false;
    s->members[r->group]--;
    s->active--;
    s->done++;
}

static enum ek_status prompt_done(struct sim *s, double now, uint32_t i)
{
    struct request *r = &s->requests[i];

    r->first = now;
    r->left = s->load->generate - 1;
    r->decoding = r->left > 0;
    if (r->left == 0)
        finish(s, r, now);
    EK_TRY(admit(s, now));
    return step_group(s, now, r->group);
}

static enum ek_status step_done(struct sim *s, double now, uint32_t group)
{
    s->stepping[group] = false;
    for (uint32_t i = 0; i < s->next; i++) {
        struct request *r = &s->requests[i];
        if (r->group == group && r->decoding && r->first < now && --r->left == 0)
            finish(s, r, now);
    }
    EK_TRY(admit(s, now));
    return step_group(s, now, group);
}

static enum ek_status leave(struct sim *s, const struct event *e)
{
    const struct ek_file_stage *st = &s->f->stages[e->stage];

    if (e->stage + 1 < s->f->n_stages) {
        double hop = e->job.decode ? st->handoff_s : s->chunk_hop[e->stage];
        return arrive(s, serve(&s->links[e->stage], e->at, hop), e->job, e->stage + 1);
    }
    if (e->job.decode)
        return step_done(s, e->at, e->job.owner);
    return e->job.last ? prompt_done(s, e->at, e->job.owner) : EK_OK;
}

static enum ek_status handle(struct sim *s, const struct event *e)
{
    struct event done = *e;

    if (e->done)
        return leave(s, e);
    if (e->stage == UINT32_MAX) /* a request arrives */
        return admit(s, e->at);
    done.done = true;
    done.at = serve(&s->stages[e->stage], e->at,
                    e->job.decode ? s->f->stages[e->stage].decode_s : s->chunk_s[e->stage]);
    return push(s, done);
}

/* ---- Set-up and figures -------------------------------------------------------------------------
 */
/* A hand-over of a chunk: as many bytes more as it has tokens more, by the link's own figures. */
static double chunk_hop(const struct ek_plan_file *f, size_t stage, double tokens)
{
    const json_t *links = json_object_get(f->root, "links");
    const char *from = f->devices[f->stages[stage].devices[0]].name;
    const char *to = f->devices[f->stages[stage + 1].devices[0]].name;
    double group = ceil((double)f->batch / f->micro_batches), alpha = 0;
    json_t *l;
    size_t i;

    json_array_foreach((json_t *)links, i, l)
    {
        const char *a = json_string_value(json_object_get(l, "from"));
        const char *b = json_string_value(json_object_get(l, "to"));
        if (a && b && strcmp(a, from) == 0 && strcmp(b, to) == 0)
            alpha = json_number_value(json_object_get(l, "alpha_s"));
    }
    alpha = isfinite(alpha) && alpha >= 0 ? fmin(alpha, f->stages[stage].handoff_s) : 0;
    return alpha + (f->stages[stage].handoff_s - alpha) * tokens / group;
}

static enum ek_status prepare(struct sim *s)
{
    const json_t *w = json_object_get(s->f->root, "workload");
    double planned = json_number_value(json_object_get(w, "prompt")) +
                     json_number_value(json_object_get(w, "images")) *
                         json_number_value(json_object_get(w, "image_tokens"));
    double chunk = json_number_value(json_object_get(w, "prefill_chunk")), sum = 0;

    if (!(planned >= 1 && planned < 1e9 && chunk >= 1 && chunk < 1e9))
        return ek_error(EK_EUNSUPPORTED, "the plan's workload has no prompt to scale from");
    s->chunks = (uint32_t)fmin(ceil(s->load->prompt / chunk), 4096);
    s->chunks = s->chunks ? s->chunks : 1;
    for (size_t i = 0; i < s->f->n_stages; i++) {
        double token = s->f->stages[i].prefill_s / (s->f->batch * planned);
        s->chunk_s[i] = token * s->load->prompt / s->chunks;
        if (i + 1 < s->f->n_stages)
            s->chunk_hop[i] = chunk_hop(s->f, i, (double)s->load->prompt / s->chunks);
        sum += s->chunk_s[i] + s->f->stages[i].decode_s;
    }
    if (sum <= 0)
        return ek_error(EK_EUNSUPPORTED, "the plan predicts no times");
    return EK_OK;
}

static enum ek_status make_requests(struct sim *s)
{
    uint64_t seed = s->load->seed;
    double at = 0;

    s->requests = ek_calloc(s->load->requests, sizeof(*s->requests));
    if (s->requests == NULL)
        return EK_ENOMEM;
    for (uint32_t i = 0; i < s->load->requests; i++) {
        if (s->load->rate > 0)
            at += -log(1 - ek_random_unit(&seed)) / s->load->rate;
        s->requests[i].arrived = at;
        EK_TRY(push(s, (struct event){.at = at, .stage = UINT32_MAX}));
    }
    return EK_OK;
}

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static void spread(double *v, uint32_t n, double out[3])
{
    double sum = 0;

    qsort(v, n, sizeof(*v), compare_double);
    for (uint32_t i = 0; i < n; i++)
        sum += v[i];
    out[0] = sum / n;
    out[1] = v[n / 2];
    out[2] = v[(uint32_t)(0.99 * (n - 1))];
}

static enum ek_status sum_up(struct sim *s, struct ek_simulated *out)
{
    uint32_t n = s->load->requests;
    double *v = ek_calloc(3 * (size_t)n, sizeof(*v));

    if (v == NULL)
        return EK_ENOMEM;
    memset(out, 0, sizeof(*out));
    for (uint32_t i = 0; i < n; i++) {
        const struct request *r = &s->requests[i];
        v[i] = r->first - r->arrived;
        v[n + i] = s->load->generate > 1 ? (r->finished - r->first) / (s->load->generate - 1) : 0;
        v[2 * n + i] = r->finished - r->arrived;
        out->queued += (r->started - r->arrived) / n;
        out->seconds = fmax(out->seconds, r->finished);
        out->last_first_token = fmax(out->last_first_token, r->first);
    }
    spread(v, n, out->first_token);
    spread(v + n, n, out->per_token);
    spread(v + 2 * (size_t)n, n, out->end_to_end);
    free(v);
    out->tokens_per_s = (double)n * s->load->generate / out->seconds;
    for (size_t i = 0; i < s->f->n_stages; i++) {
        out->stage_busy[i] = s->stages[i].busy / out->seconds;
        out->link_busy[i] = s->links[i].busy / out->seconds;
    }
    return EK_OK;
}

enum ek_status ek_simulate(const struct ek_plan_file *f, const struct ek_load *load,
                           struct ek_simulated *out)
{
    struct sim *s;
    enum ek_status st;

    if (load->requests == 0 || load->requests > MAX_REQUESTS || load->prompt == 0 ||
        load->generate == 0)
        return ek_error(EK_EUSAGE, "a load needs 1 to %d requests with a prompt and an answer",
                        MAX_REQUESTS);
    s = ek_calloc(1, sizeof(*s));
    if (s == NULL)
        return EK_ENOMEM;
    s->f = f;
    s->load = load;
    EK_GOTO(prepare(s), st, end);
    EK_GOTO(make_requests(s), st, end);
    while (s->n > 0) {
        struct event e = pop(s);
        EK_GOTO(handle(s, &e), st, end);
    }
    st = sum_up(s, out);
end:
    free(s->heap);
    free(s->requests);
    free(s);
    return st;
}
