/* SPDX-License-Identifier: Apache-2.0
 *
 * The watch over an engine. It has no thread of its own: whoever waits for a step or a picture
 * looks now and then whether anything moves. When nothing has for the deadline, the engine fails
 * with the name of the stage or link that does not answer, and of what it was at.
 */
#include "runtime/engine.h"

#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define LOOK_NS       ((uint64_t)50000000)   /* between two looks */
#define AWAY_NS       ((uint64_t)1000000000) /* who looks so late was stopped himself, or idle */
#define SPIN_NS       ((uint64_t)1000000)    /* a wait that takes longer lets other threads run */
#define GRACE_S       2.0                    /* for what did not answer to come back after all */
#define LEAST_S       30.0                   /* deadline: at least; ... */
#define TIMES         20.0  /* ... so many times what a stage's prompt was predicted */
#define UNPREDICTED_S 600.0 /* of a plan that predicts nothing */

static double predicted_deadline(const struct ek_plan *p)
{
    double most = 0;

    for (size_t i = 0; i < p->n_stages; i++)
        most = fmax(most, fmax(p->stages[i].prefill_s, p->stages[i].decode_s));
    return most > 0 ? fmax(LEAST_S, TIMES * most) : UNPREDICTED_S;
}

enum ek_status engine_watch_open(struct ek_engine *e, double asked)
{
    const char *text = getenv("EVENKEEL_DEADLINE"), *hang = getenv("EK_HANG_STAGE");
    char *end;

    e->hang_stage = hang ? strtoul(hang, NULL, 10) : SIZE_MAX;
    e->deadline_s = asked > 0 ? asked : predicted_deadline(e->plan);
    if (asked > 0 || text == NULL)
        return EK_OK;
    e->deadline_s = strtod(text, &end);
    if (end == text || *end != '\0' || !(e->deadline_s > 0 && e->deadline_s < 1e9))
        return ek_error(EK_EUSAGE, "EVENKEEL_DEADLINE: '%.32s' is no number of seconds", text);
    return EK_OK;
}

void engine_moved(struct ek_engine *e)
{
    e->moved_ns = ek_now_ns();
}

static const struct ek_ops *ops_of(const struct ek_engine *e, size_t stage)
{
    return e->devices[e->stages[stage].device].dev->ops;
}

/* ---- what has moved */
/* Marks of a step at a stage that its device has passed. */
static unsigned passed(const struct ek_engine *e, const struct engine_step *step, size_t stage)
{
    const struct engine_pass *p = &step->pass[stage];
    unsigned n = atomic_load(&p->recorded), k = 0;

    while (k < n && k < MARK_SENT &&
           atomic_load(&p->when[k == MARK_RECEIVED ? p->received : k]) != 0)
        k++;
    if (k == MARK_SENT && n == N_MARKS && ops_of(e, stage)->event_passed(p->ended) != EK_NO)
        k++;
    return k;
}

static uint64_t progress(const struct ek_engine *e)
{
    uint64_t sum = 0;

    for (const struct engine_step *s = e->active; s != NULL; s = s->next)
        for (size_t i = 0; !s->done && i <= s->last_stage; i++)
            sum += passed(e, s, i) + (s->pass[i].order != 0);
    return sum;
}

/* A device that has failed, or a link that says so, ends the engine before any deadline does.
 * Events are asked, never a queue: to ask one that is being captured would spoil the capture. */
static enum ek_status check_all(const struct ek_engine *e)
{
    for (const struct engine_step *s = e->active; s != NULL; s = s->next)
        for (size_t i = 0; !s->done && i <= s->last_stage; i++) {
            bool queued = atomic_load(&s->pass[i].recorded) == N_MARKS;
            enum ek_status st = queued ? ops_of(e, i)->event_passed(s->pass[i].ended) : EK_NO;
            if (st != EK_OK && st != EK_NO)
                return st;
        }
    for (size_t i = 0; i < e->n_stages; i++)
        if (e->stages[i].out != NULL)
            EK_TRY(ek_link_check(e->stages[i].out));
    return EK_OK;
}

/* ---- who does not answer */
struct suspect {
    const struct engine_step *step;
    size_t stage;
    unsigned mark; /* that is not passed */
};

static const struct engine_step *oldest(const struct ek_engine *e)
{
    const struct engine_step *best = NULL;

    for (const struct engine_step *s = e->active; s != NULL; s = s->next)
        if (!s->done && (best == NULL || s->ticket < best->ticket))
            best = s;
    return best;
}

/* Of what was begun on the suspect's device, the first that has not ended. */
static void first_of_device(const struct ek_engine *e, struct suspect *at)
{
    uint32_t device = e->stages[at->stage].device;
    uint64_t first = UINT64_MAX;

    for (const struct engine_step *s = e->active; s != NULL; s = s->next)
        for (size_t i = 0; !s->done && i <= s->last_stage; i++) {
            uint64_t order = s->pass[i].order;
            unsigned mark = passed(e, s, i);
            if (e->stages[i].device != device || order == 0 || order >= first || mark == N_MARKS)
                continue;
            first = order;
            *at = (struct suspect){s, i, mark};
        }
}

/* From the oldest step's first stage that has not ended, back along the links to who is waited for.
 */
static bool find_suspect(const struct ek_engine *e, struct suspect *at)
{
    *at = (struct suspect){.step = oldest(e)};
    if (at->step == NULL)
        return false;
    while (at->stage < at->step->last_stage && passed(e, at->step, at->stage) == N_MARKS)
        at->stage++;
    at->mark = passed(e, at->step, at->stage);
    for (size_t hops = 0; hops <= e->plan->n_devices; hops++) {
        first_of_device(e, at);
        if (at->mark != MARK_BEGIN || at->stage == 0 ||
            passed(e, at->step, at->stage - 1) == N_MARKS)
            break;
        at->stage--;
        at->mark = passed(e, at->step, at->stage);
    }
    return true;
}

static enum ek_status silent_link(const struct ek_engine *e, const struct suspect *at,
                                  const struct ek_link *l, size_t from, const char *what)
{
    return ek_error(EK_EDEVICE,
                    "link %s -> %s (%s): the message of step %llu %s: no answer for %.3g s",
                    e->devices[e->stages[from].device].dev->spec.name,
                    e->devices[e->stages[from + 1].device].dev->spec.name, ek_link_mechanism(l),
                    (unsigned long long)at->step->ticket, what, e->deadline_s);
}

static enum ek_status silent_stage(const struct ek_engine *e, const struct suspect *at)
{
    const struct engine_stage *s = &e->stages[at->stage];

    return ek_error(EK_EDEVICE,
                    "stage %zu (%s, %s to %s): step %llu (%u tokens) %s: no answer for "
                    "%.3g s",
                    at->stage, e->devices[s->device].dev->spec.name,
                    e->m->modules[s->modules[0]].name,
                    e->m->modules[s->modules[s->n_modules - 1]].name,
                    (unsigned long long)at->step->ticket, at->step->counts.n_tokens,
                    at->step->pass[at->stage].order ? "does not end" : "does not begin",
                    e->deadline_s);
}

static enum ek_status silent_picture(const struct ek_engine *e)
{
    const struct engine_encode *job = e->vision.jobs;
    const struct engine_stage *s = job ? e->vision.path[job->at].stage : &e->stages[0];

    return ek_error(EK_EDEVICE, "picture: %s on %s does not end: no answer for %.3g s",
                    e->m->modules[s->modules[0]].name, e->devices[s->device].dev->spec.name,
                    e->deadline_s);
}

static enum ek_status blame(const struct ek_engine *e)
{
    struct suspect at;

    if (!find_suspect(e, &at))
        return silent_picture(e);
    if (at.step->pass[at.stage].order == 0 || at.mark == MARK_RAN)
        return silent_stage(e, &at);
    if (at.mark == MARK_SENT)
        return at.stage == at.step->last_stage
                   ? silent_stage(e, &at)
                   : silent_link(e, &at, e->stages[at.stage].out, at.stage, "is not sent");
    if (at.stage == 0)
        return silent_stage(e, &at);
    return silent_link(e, &at, e->stages[at.stage].in, at.stage - 1,
                       at.mark == MARK_BEGIN ? "does not arrive" : "is not taken");
}

/* The lock is held. */
static void look(struct ek_engine *e)
{
    uint64_t now = ek_now_ns(), sum;
    enum ek_status st;

    if (e->failed != EK_OK || now - e->looked_ns < LOOK_NS)
        return;
    if (now - e->looked_ns > AWAY_NS)
        e->moved_ns = now;
    e->looked_ns = now;
    if ((st = check_all(e)) != EK_OK) {
        engine_fail(e, st);
        return;
    }
    if ((sum = progress(e)) != e->progress) {
        e->progress = sum;
        e->moved_ns = now;
    } else if ((double)(now - e->moved_ns) * 1e-9 > e->deadline_s) {
        e->silent = true;
        engine_fail(e, blame(e));
    }
}

/* ---- waiting */
void engine_sleep(struct ek_engine *e)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)LOOK_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&e->done, &e->lock, &until);
    look(e);
}

double engine_grace(const struct ek_engine *e)
{
    return e->silent ? GRACE_S : e->deadline_s;
}

bool engine_returns(struct ek_engine *e, const bool *flag, bool wanted)
{
    uint64_t until = ek_now_ns() + (uint64_t)(engine_grace(e) * 1e9);

    while (*flag != wanted && ek_now_ns() < until)
        engine_sleep(e);
    return *flag == wanted;
}

enum ek_status ek_event_poll(const struct ek_device *dev, struct ek_event *event, double seconds)
{
    uint64_t from = ek_now_ns(), spent = 0;
    enum ek_status st;

    while ((st = dev->ops->event_passed(event)) == EK_NO && (double)spent < seconds * 1e9) {
        if ((spent = ek_now_ns() - from) > SPIN_NS)
            sched_yield();
    }
    return st;
}

enum ek_status engine_await(struct ek_engine *e, const struct ek_device *dev,
                            struct ek_event *event)
{
    enum ek_status st = EK_NO;

    while (st == EK_NO && e->failed == EK_OK) {
        pthread_mutex_unlock(&e->lock);
        st = ek_event_poll(dev, event, LOOK_NS * 1e-9);
        pthread_mutex_lock(&e->lock);
        if (st == EK_NO)
            look(e);
    }
    return st;
}

bool engine_settles(struct ek_device *dev, double seconds)
{
    uint64_t from = ek_now_ns();

    while (dev->ops->idle(dev) == EK_NO)
        if ((double)(ek_now_ns() - from) * 1e-9 > seconds)
            return false;
        else
            sched_yield();
    return true;
}

/* ---- a stage that hangs, for tests of all this: EK_HANG_STAGE names it */
enum ek_status engine_hang(struct ek_engine *e, size_t stage)
{
    struct ek_device *dev = e->devices[e->stages[stage].device].dev;
    void *never;

    if (stage != e->hang_stage)
        return EK_OK;
    while (dev->ops->flag_wait == NULL) /* its thread does not come back */
        pause();
    e->hang_stage = SIZE_MAX; /* its queue does not */
    EK_TRY(dev->ops->alloc(dev, EK_TAG_COMM, sizeof(uint32_t), &never));
    EK_TRY(dev->ops->zero(dev, never, sizeof(uint32_t)));
    return dev->ops->flag_wait(dev, never, 1, NULL, NULL);
}
