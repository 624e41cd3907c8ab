/* SPDX-License-Identifier: Apache-2.0
 *
 * Steps from submission to release, and the sequences they extend.
 */
#include "runtime/engine.h"

#include <stdlib.h>
#include <string.h>

static void step_free(struct ek_engine *e, struct engine_step *s)
{
    struct ek_device *head = e->devices[e->stages[e->n_stages - 1].device].dev;

    for (size_t i = 0; s->pass && i < e->n_stages; i++)
        if (s->pass[i].ended != NULL)
            e->devices[e->stages[i].device].dev->ops->event_free(s->pass[i].ended);
    if (s->logits != NULL)
        head->ops->host_free(head, s->logits);
    if (s->image != NULL)
        e->pins->ops->host_free(e->pins, s->image);
    free(s->pass);
    free(s->embeds);
    free(s->places);
    free(s);
}

void engine_steps_free(struct ek_engine *e)
{
    struct engine_step *lists[] = {e->active, e->idle, e->ended};

    for (size_t i = 0; i < EK_ARRAY_LEN(lists); i++)
        for (struct engine_step *s = lists[i], *next; s != NULL; s = next) {
            next = s->next;
            step_free(e, s);
        }
    e->active = e->idle = e->ended = NULL;
}

/* One piece of memory that devices read and write: the batch, ids, draws, times. */
static enum ek_status step_pin(struct ek_engine *e, struct engine_step *s)
{
    size_t ids = ek_round_up(batch_words(&e->shape) * sizeof(*s->image), STAGE_ALIGN);
    size_t draws = ek_round_up(ids + e->opt.max_tokens * sizeof(*s->ids), STAGE_ALIGN);
    size_t times = ek_round_up(draws + e->opt.max_tokens * sizeof(*s->draws), STAGE_ALIGN);
    size_t bytes = times + e->n_stages * N_TIMES * sizeof(*s->pass->when);
    char *p;

    EK_TRY(e->pins->ops->host_alloc(e->pins, bytes, (void **)&p));
    s->image = (void *)p;
    s->ids = (void *)(p + ids);
    s->draws = (void *)(p + draws);
    for (size_t i = 0; i < e->n_stages; i++)
        s->pass[i].when = (_Atomic uint64_t *)(void *)(p + times) + i * N_TIMES;
    return EK_OK;
}

static enum ek_status step_new(struct ek_engine *e, struct engine_step **out)
{
    struct engine_step *s = ek_calloc(1, sizeof(*s));
    enum ek_status st = EK_ENOMEM;

    if (s == NULL)
        return st;
    if ((s->embeds = ek_calloc(e->opt.max_tokens, sizeof(*s->embeds))) == NULL ||
        (s->places = ek_calloc(e->opt.max_tokens, sizeof(*s->places))) == NULL ||
        (s->pass = ek_calloc(e->n_stages, sizeof(*s->pass))) == NULL)
        goto fail;
    EK_GOTO(step_pin(e, s), st, fail);
    for (size_t i = 0; i < e->n_stages; i++) {
        struct ek_device *dev = e->devices[e->stages[i].device].dev;
        EK_GOTO(dev->ops->event_order(dev, &s->pass[i].ended), st, fail);
    }
    *out = s;
    return EK_OK;
fail:
    step_free(e, s);
    return st;
}

/* An unused step; the lock is held. */
static enum ek_status step_take(struct ek_engine *e, struct engine_step **out)
{
    struct engine_step *s;

    if (e->idle == NULL && e->n_ended > e->max_in_flight)
        (void)engine_settle(e);
    s = e->idle;
    if (s == NULL) {
        EK_TRY(step_new(e, out));
        return EK_OK;
    }
    e->idle = s->next;
    *out = s;
    return EK_OK;
}

static void step_drop(struct ek_engine *e, struct engine_step *s)
{
    s->next = e->idle;
    e->idle = s;
}

/* ---- sequences */
enum ek_status ek_engine_seq_open(struct ek_engine *e, uint32_t *seq)
{
    enum ek_status st;

    pthread_mutex_lock(&e->lock);
    st = cache_seq_open(&e->cache, seq);
    pthread_mutex_unlock(&e->lock);
    return st;
}

void ek_engine_seq_close(struct ek_engine *e, uint32_t seq)
{
    pthread_mutex_lock(&e->lock);
    cache_seq_close(&e->cache, seq);
    pthread_mutex_unlock(&e->lock);
}

uint32_t ek_engine_seq_trim(struct ek_engine *e, uint32_t seq, uint32_t length)
{
    uint32_t left;

    pthread_mutex_lock(&e->lock);
    left = cache_trim(&e->cache, seq, length);
    pthread_mutex_unlock(&e->lock);
    return left;
}

uint32_t ek_engine_seq_share(struct ek_engine *e, uint32_t seq, uint32_t from, uint32_t length)
{
    uint32_t has;

    pthread_mutex_lock(&e->lock);
    has = cache_share(&e->cache, seq, from, length);
    pthread_mutex_unlock(&e->lock);
    return has;
}

uint32_t ek_engine_seq_length(const struct ek_engine *e, uint32_t seq)
{
    struct ek_engine *locked = (struct ek_engine *)(uintptr_t)e;
    uint32_t n;

    pthread_mutex_lock(&locked->lock);
    n = seq < e->cache.n_seqs && e->cache.seqs[seq].open ? e->cache.seqs[seq].length : 0;
    pthread_mutex_unlock(&locked->lock);
    return n;
}

/* ---- submission */
/* The host's form of a step; arrays are the caller's scratch. */
struct draft {
    struct ek_batch_host h;
    uint32_t *past;
    const int32_t **blocks;
    int32_t *rows;
};

static void draft_free(struct draft *d)
{
    free(d->past);
    free((void *)d->blocks);
    free(d->rows);
}

static enum ek_status check_step(const struct ek_engine *e, const struct ek_step *step,
                                 uint32_t *n_tokens)
{
    uint64_t n = 0;

    if (step->n_seqs == 0 || step->n_seqs > e->max_seqs)
        return ek_error(EK_EUSAGE, "step: %u sequences, from 1 to %u possible", step->n_seqs,
                        e->max_seqs);
    for (uint32_t i = 0; i < step->n_seqs; i++)
        n += step->n_tokens[i];
    if (n == 0 || n > e->opt.max_tokens)
        return ek_error(EK_EUSAGE, "step: %llu tokens, from 1 to %u possible",
                        (unsigned long long)n, e->opt.max_tokens);
    for (uint64_t i = 0; i < n; i++)
        if (step->tokens[i] >= 0 && (uint32_t)step->tokens[i] >= e->m->config.vocab)
            return ek_error(EK_EUSAGE, "step: token %d is not in the vocabulary of %u",
                            step->tokens[i], e->m->config.vocab);
    for (uint32_t i = 0; i < step->n_embeds; i++)
        if (step->embeds[i].token >= n || (i && step->embeds[i].token <= step->embeds[i - 1].token))
            return ek_error(EK_EUSAGE, "step: row %u is for token %u of %llu, must ascend", i,
                            step->embeds[i].token, (unsigned long long)n);
    *n_tokens = (uint32_t)n;
    return EK_OK;
}

static bool follows(const struct ek_embed_row *row, const float *values, size_t hidden)
{
    return values != NULL && row->values == values + hidden;
}

/* Where the rows of a step are: first those that lie one behind the other in memory, so that they
 * are copied in one piece (features of a picture, between which are newlines); the lock is held. */
static void note_embeds(const struct ek_engine *e, const struct ek_step *step,
                        struct engine_step *s)
{
    size_t hidden = e->m->config.hidden;
    const struct ek_embed_row *rows = step->embeds;

    s->n_embeds = 0;
    for (int others = 0; others < 2; others++) {
        const float *last = NULL;
        for (uint32_t i = 0; i < step->n_embeds; i++) {
            bool begins =
                !last && i + 1 < step->n_embeds && follows(&rows[i + 1], rows[i].values, hidden);
            bool in_row = begins || follows(&rows[i], last, hidden);
            last = in_row ? rows[i].values : last;
            if (in_row == !others) {
                s->places[s->n_embeds] = (int32_t)rows[i].token;
                s->embeds[s->n_embeds++] = rows[i];
            }
        }
    }
}

static void draft_rows(const struct ek_step *step, struct draft *d)
{
    int32_t end = 0;

    if (step->logits == EK_LOGITS_ALL)
        for (uint32_t i = 0; i < d->h.n_tokens; i++)
            d->rows[d->h.n_logits++] = (int32_t)i;
    else if (step->logits == EK_LOGITS_LAST)
        for (uint32_t i = 0; i < step->n_seqs; i++) {
            end += (int32_t)step->n_tokens[i];
            d->rows[d->h.n_logits++] = end - 1;
        }
}

static enum ek_status draft_make(const struct ek_engine *e, const struct ek_step *step,
                                 struct draft *d)
{
    uint32_t n_tokens = 0;

    *d = (struct draft){0};
    EK_TRY(check_step(e, step, &n_tokens));
    if ((d->past = ek_calloc(step->n_seqs, sizeof(*d->past))) == NULL ||
        (d->blocks = ek_calloc(step->n_seqs, sizeof(*d->blocks))) == NULL ||
        (d->rows = ek_calloc(n_tokens, sizeof(*d->rows))) == NULL)
        return EK_ENOMEM;
    d->h = (struct ek_batch_host){.n_tokens = n_tokens,
                                  .n_seqs = step->n_seqs,
                                  .tokens = step->tokens,
                                  .positions = step->positions,
                                  .n_new = step->n_tokens,
                                  .past = d->past,
                                  .blocks = d->blocks,
                                  .logit_rows = d->rows};
    draft_rows(step, d);
    return EK_OK;
}

/* Where a step without logits ends: at the last stage that fills the cache. */
static uint32_t last_stage(const struct ek_engine *e, uint32_t rows)
{
    size_t i = e->n_stages - 1;

    while (rows == 0 && i > 0 && !e->stages[i].layers && !e->stages[i].embed)
        i--;
    return (uint32_t)i;
}

/* One turn of waiting for a step, or (NULL) for room for another: its end if it can be waited for,
 * else a change. The lock is held. */
static void advance(struct ek_engine *e, struct engine_step *s)
{
    if (s != NULL && s->issued && !s->finishing)
        engine_finish(e, s);
    else
        engine_sleep(e);
}

/* The oldest step that is issued and that nobody waits for; the lock is held. */
static struct engine_step *oldest(const struct ek_engine *e)
{
    struct engine_step *best = NULL;

    for (struct engine_step *s = e->active; s != NULL; s = s->next)
        if (s->issued && !s->finishing && (best == NULL || s->ticket < best->ticket))
            best = s;
    return best;
}

static struct engine_step *find(const struct ek_engine *e, uint64_t ticket)
{
    struct engine_step *s = e->active;

    while (s != NULL && s->ticket != ticket)
        s = s->next;
    return s;
}

/* The step whose ids are tokens of this one, or NULL; the lock is held. */
static enum ek_status find_from(const struct ek_engine *e, const struct ek_step *step, uint32_t n,
                                struct engine_step **from)
{
    int32_t least = 0;

    *from = NULL;
    for (uint32_t i = 0; i < n; i++)
        least = step->tokens[i] < least ? step->tokens[i] : least;
    if (least == 0)
        return EK_OK;
    if ((*from = find(e, step->from)) == NULL)
        return ek_error(EK_EUSAGE, "step: token %d, and no step has ticket %llu", least,
                        (unsigned long long)step->from);
    if (-1 - least >= (int32_t)(*from)->rows)
        return ek_error(EK_EUSAGE, "step: token %d, and step %llu has %u rows", least,
                        (unsigned long long)step->from, (*from)->rows);
    return EK_OK;
}

/* Ids that are there already take their places in the batch. */
static enum ek_status resolve(struct engine_step *s, const struct engine_step *from)
{
    uint32_t n = s->counts.n_tokens > s->counts.padded ? s->counts.n_tokens : s->counts.padded;

    if (from->status != EK_OK)
        return ek_error(from->status, "%s", from->message);
    for (uint32_t i = 0; i < n; i++)
        if (s->image[i] < 0)
            s->image[i] = from->ids[-1 - s->image[i]] > 0 ? from->ids[-1 - s->image[i]] : 0;
    return EK_OK;
}

/* What is asked of the head; the lock is held. */
static enum ek_status copy_wishes(const struct ek_engine *e, const struct ek_step *step,
                                  uint32_t rows, struct engine_step *s)
{
    s->rows = rows;
    s->ids_only = step->ids_only;
    s->drawn = step->draws != NULL;
    if (s->drawn && !ek_engine_draws(e))
        return ek_error(EK_EUNSUPPORTED, "step: draws, and the head's device has none");
    if (s->drawn)
        memcpy(s->draws, step->draws, rows * sizeof(*s->draws));
    return EK_OK;
}

/* The lock is held. */
static enum ek_status enqueue(struct ek_engine *e, const struct ek_step *step, struct draft *d,
                              uint64_t *ticket)
{
    struct engine_step *s = NULL, *from;
    enum ek_status st;

    while (e->failed == EK_OK && e->in_flight >= e->max_in_flight)
        advance(e, oldest(e));
    if (e->failed != EK_OK)
        return engine_failed(e);
    EK_TRY(find_from(e, step, d->h.n_tokens, &from));
    EK_TRY(step_take(e, &s));
    note_embeds(e, step, s);
    EK_GOTO(copy_wishes(e, step, d->h.n_logits, s), st, fail);
    EK_GOTO(cache_reserve(&e->cache, step->seqs, step->n_tokens, step->n_seqs), st, fail);
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        d->past[i] = e->cache.seqs[step->seqs[i]].length;
        d->blocks[i] = e->cache.seqs[step->seqs[i]].blocks;
    }
    EK_GOTO(batch_pack(&e->shape, &d->h, s->image, &s->counts), st, fail);
    if (from != NULL && from->done)
        EK_GOTO(resolve(s, from), st, fail);
    cache_advance(&e->cache, step->seqs, step->n_tokens, step->n_seqs);
    s->from = from && !from->done ? from : NULL;
    if (s->from != NULL)
        s->from->followers++;
    s->last_stage = last_stage(e, s->rows);
    s->issued = s->finishing = s->done = false;
    s->status = EK_OK;
    for (size_t i = 0; i < e->n_stages; i++) {
        s->pass[i].order = 0;
        atomic_store(&s->pass[i].recorded, 0);
        for (int k = 0; k < N_TIMES; k++)
            atomic_store(&s->pass[i].when[k], 0);
    }
    engine_moved(e);
    s->ticket = *ticket = e->next_ticket++;
    s->next = e->active;
    e->active = s;
    e->in_flight++;
    engine_push(e, 0, s);
    return EK_OK;
fail:
    step_drop(e, s);
    return st;
}

enum ek_status ek_engine_submit(struct ek_engine *e, const struct ek_step *step, uint64_t *ticket)
{
    struct draft d;
    enum ek_status st = draft_make(e, step, &d);

    if (st == EK_OK) {
        pthread_mutex_lock(&e->lock);
        st = enqueue(e, step, &d, ticket);
        pthread_mutex_unlock(&e->lock);
    }
    draft_free(&d);
    return st;
}

/* ---- results */
bool ek_engine_draws(const struct ek_engine *e)
{
    return e->devices[e->stages[e->n_stages - 1].device].dev->ops->sample != NULL;
}

enum ek_status ek_engine_wait(struct ek_engine *e, uint64_t ticket, const float **logits,
                              const int32_t **ids, uint32_t *rows)
{
    struct engine_step *s;
    enum ek_status st = EK_OK;

    pthread_mutex_lock(&e->lock);
    s = find(e, ticket);
    while (s != NULL && !s->done && e->failed == EK_OK)
        advance(e, s);
    if (s == NULL)
        st = ek_error(EK_EUSAGE, "no step has ticket %llu", (unsigned long long)ticket);
    else if (!s->done)
        st = engine_failed(e);
    else if (s->status != EK_OK)
        st = ek_error(s->status, "%s", s->message);
    else if (logits != NULL && s->ids_only)
        st = ek_error(EK_EUSAGE, "step %llu was submitted for its ids only",
                      (unsigned long long)ticket);
    if (st == EK_OK) {
        if (logits != NULL)
            *logits = s->rows ? s->logits : NULL;
        if (ids != NULL)
            *ids = s->ids;
        if (rows != NULL)
            *rows = s->rows;
    }
    pthread_mutex_unlock(&e->lock);
    return st;
}

void ek_engine_release(struct ek_engine *e, uint64_t ticket)
{
    struct engine_step **at, *s;

    pthread_mutex_lock(&e->lock);
    s = find(e, ticket);
    while (s != NULL && !s->done && e->failed == EK_OK)
        advance(e, s);
    for (at = &e->active; *at != NULL && *at != s;)
        at = &(*at)->next;
    if (s != NULL && s->done) { /* after a failure it may still be at a worker: freed at close */
        *at = s->next;
        s->next = e->ended;
        e->ended = s;
        e->n_ended++;
    }
    pthread_mutex_unlock(&e->lock);
}
