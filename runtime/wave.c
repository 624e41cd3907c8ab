/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/wave.h"
#include "runtime/prompt.h"

#include <stdlib.h>
#include <string.h>

#define MAX_NEW ((size_t)1 << 28)

static bool cancelled(const struct wave *w)
{
    return w->opt->cancel != NULL && *w->opt->cancel;
}

static bool greedy(const struct wave *w)
{
    return w->opt->sampling.temperature == 0;
}

/* ---- life */
static enum ek_status make_groups(struct wave *w)
{
    uint32_t want = ek_engine_plan(w->e)->micro_batches, size;

    want = want < w->n ? want : w->n;
    size = (w->n + want - 1) / want;
    w->n_groups = (w->n + size - 1) / size;
    if ((w->groups = ek_calloc(w->n_groups, sizeof(*w->groups))) == NULL)
        return EK_ENOMEM;
    for (uint32_t g = 0; g < w->n_groups; g++) {
        struct wave_group *p = &w->groups[g];
        p->first = g * size;
        p->end = p->first + size < w->n ? p->first + size : w->n;
        if ((p->members = ek_calloc(size, sizeof(*p->members))) == NULL)
            return EK_ENOMEM;
    }
    return EK_OK;
}

static enum ek_status open_sequences(struct wave *w)
{
    for (uint32_t i = 0; i < w->n; i++) {
        struct wave_seq *s = &w->seqs[i];
        EK_TRY(ek_engine_seq_open(w->e, &s->slot));
        s->open = true;
        s->running = true;
        s->random = w->opt->sampling.seed + s->index;
        s->out->finish = EK_FINISH_LENGTH;
    }
    return EK_OK;
}

/* Room for what prompts with pictures have besides tokens. */
static enum ek_status make_extras(struct wave *w)
{
    bool positions = false, rows = false;

    for (uint32_t i = 0; i < w->n; i++) {
        positions |= w->seqs[i].prompt->positions != NULL || w->seqs[i].prompt->delta != 0;
        rows |= w->seqs[i].prompt->embeds != NULL;
    }
    if ((positions && (w->positions = ek_calloc(3 * w->most, sizeof(*w->positions))) == NULL) ||
        (rows && (w->rows = ek_calloc(w->most, sizeof(*w->rows))) == NULL))
        return EK_ENOMEM;
    return EK_OK;
}

/* k tokens of a prompt (or behind it), as tokens at .. at + k of a step. */
static void put_extras(struct wave *w, const struct ek_prompt *p, size_t from, uint32_t k,
                       size_t at, struct ek_step *step)
{
    if (w->positions != NULL)
        prompt_positions(p, from, k, w->positions + at, w->most);
    if (w->rows != NULL)
        step->n_embeds += prompt_embeds(p, from, k, (uint32_t)at, w->rows + step->n_embeds);
}

/* The step of n tokens has them all: rows of positions brought together. */
static void end_extras(struct wave *w, size_t n, struct ek_step *step)
{
    for (size_t r = 1; w->positions && r < 3; r++)
        memmove(w->positions + r * n, w->positions + r * w->most, n * sizeof(*w->positions));
    step->positions = w->positions;
    step->embeds = w->rows;
}

enum ek_status wave_open(struct wave *w, struct ek_engine *e, const struct ek_generate_options *opt,
                         struct wave_seq *seqs, uint32_t n)
{
    size_t chunk = ek_engine_plan(e)->prefill_chunk;
    enum ek_status st = EK_ENOMEM;

    *w = (struct wave){.e = e, .opt = opt, .seqs = seqs, .n = n};
    if ((w->slots = ek_calloc(n, sizeof(*w->slots))) == NULL ||
        (w->counts = ek_calloc(n, sizeof(*w->counts))) == NULL ||
        (w->tokens = ek_calloc(chunk > n ? chunk : n, sizeof(*w->tokens))) == NULL)
        goto fail;
    w->most = chunk > n ? chunk : n;
    EK_GOTO(make_extras(w), st, fail);
    EK_GOTO(make_groups(w), st, fail);
    EK_GOTO(open_sequences(w), st, fail);
    return EK_OK;
fail:
    wave_close(w);
    return st;
}

void wave_close(struct wave *w)
{
    for (uint32_t i = 0; i < w->n; i++)
        if (w->seqs[i].open) {
            ek_engine_seq_close(w->e, w->seqs[i].slot);
            w->seqs[i].open = false;
        }
    for (uint32_t g = 0; w->groups && g < w->n_groups; g++)
        free(w->groups[g].members);
    free(w->groups);
    free(w->slots);
    free(w->counts);
    free(w->tokens);
    free(w->positions);
    free(w->rows);
    w->groups = NULL;
    w->slots = w->counts = NULL;
    w->tokens = NULL;
    w->positions = NULL;
    w->rows = NULL;
}

/* ---- a new token of a sequence */
static bool is_stop(const struct ek_generate_options *o, int32_t id)
{
    for (size_t i = 0; i < o->n_stop; i++)
        if (o->stop[i] == id)
            return true;
    return false;
}

static enum ek_status accept(struct wave *w, struct wave_seq *s, int32_t id)
{
    EK_TRY(ek_grow((void **)&s->out->ids, &s->cap, s->out->n + 1, sizeof(*s->out->ids), MAX_NEW));
    s->out->ids[s->out->n++] = id;
    s->last = id;
    if (is_stop(w->opt, id)) {
        s->running = false;
        s->out->finish = EK_FINISH_STOP;
    } else if (s->out->n >= w->opt->max_tokens ||
               s->prompt->n + s->out->n > ek_engine_max_context(w->e)) {
        s->running = false; /* a last token that the cache has no room for is still an answer */
    }
    if (w->opt->on_token != NULL && !w->opt->on_token(w->opt->user, s->index, id) && s->running) {
        s->running = false;
        s->out->finish = EK_FINISH_CALLBACK;
    }
    return EK_OK;
}

/* Token of row i of a step's results. */
static enum ek_status choose(struct wave *w, struct wave_seq *s, const float *logits,
                             const int32_t *argmax, uint32_t row)
{
    uint32_t vocab = ek_engine_model(w->e)->config.vocab;
    int32_t id = argmax[row];

    if (!greedy(w))
        EK_TRY(ek_sample(&w->opt->sampling, logits + (size_t)row * vocab, vocab, &s->random, &id));
    return accept(w, s, id);
}

/* ---- prefill: chunks filled with prompt after prompt */
#define WINDOW 8 /* chunks under way whose results were not looked at */

struct prefill {
    struct {
        uint64_t ticket;
        uint32_t first, n; /* sequences [first, first + n) are in the chunk */
        bool last_ends;    /* the last of them ends in it (the others do) */
        bool ends;         /* some prompt ends in it: there are logits */
    } ring[WINDOW];
    size_t put, got;
    uint32_t seq; /* next prompt */
    size_t at;    /* and its next token */
};

static enum ek_status take_chunk(struct wave *w, struct prefill *p)
{
    size_t i = p->got++ % WINDOW;
    const float *logits = NULL;
    const int32_t *argmax;
    enum ek_status st =
        ek_engine_wait(w->e, p->ring[i].ticket, greedy(w) ? NULL : &logits, &argmax, NULL);

    for (uint32_t k = 0; k < p->ring[i].n && st == EK_OK && p->ring[i].ends; k++)
        if (k + 1 < p->ring[i].n || p->ring[i].last_ends)
            st = choose(w, &w->seqs[p->ring[i].first + k], logits, argmax, k);
    ek_engine_release(w->e, p->ring[i].ticket);
    return st;
}

/* Fills and submits the next chunk. */
static enum ek_status put_chunk(struct wave *w, struct prefill *p)
{
    size_t room = ek_engine_plan(w->e)->prefill_chunk, i = p->put % WINDOW, n = 0;
    struct ek_step step = {
        .seqs = w->slots, .n_tokens = w->counts, .tokens = w->tokens, .argmax_only = greedy(w)};

    p->ring[i].first = p->seq;
    p->ring[i].last_ends = p->ring[i].ends = false;
    while (n < room && p->seq < w->n) {
        const struct wave_seq *s = &w->seqs[p->seq];
        size_t k = s->prompt->n - p->at < room - n ? s->prompt->n - p->at : room - n;
        memcpy(w->tokens + n, s->prompt->ids + p->at, k * sizeof(*w->tokens));
        w->slots[step.n_seqs] = s->slot;
        w->counts[step.n_seqs++] = (uint32_t)k;
        put_extras(w, s->prompt, p->at, (uint32_t)k, n, &step);
        n += k;
        p->at += k;
        p->ring[i].last_ends = p->at == s->prompt->n;
        p->ring[i].ends |= p->ring[i].last_ends;
        if (p->ring[i].last_ends) {
            p->seq++;
            p->at = 0;
        }
    }
    end_extras(w, n, &step);
    p->ring[i].n = step.n_seqs;
    step.logits = p->ring[i].ends ? EK_LOGITS_LAST : EK_LOGITS_NONE;
    EK_TRY(ek_engine_submit(w->e, &step, &p->ring[i].ticket));
    p->put++;
    return EK_OK;
}

enum ek_status wave_prefill(struct wave *w)
{
    struct prefill p = {.put = 0};
    enum ek_status st = EK_OK;

    while (st == EK_OK && (p.seq < w->n || p.got < p.put)) {
        if (cancelled(w))
            st = ek_error(EK_EINTR, "interrupted");
        else if (p.seq < w->n && p.put - p.got < WINDOW)
            st = put_chunk(w, &p);
        else
            st = take_chunk(w, &p);
    }
    for (; p.got < p.put; p.got++)
        ek_engine_release(w->e, p.ring[p.got % WINDOW].ticket);
    return st;
}

/* ---- decode: every group has a step under way until its sequences are done */
static enum ek_status put_group(struct wave *w, struct wave_group *g)
{
    struct ek_step step = {.seqs = w->slots,
                           .n_tokens = w->counts,
                           .tokens = w->tokens,
                           .logits = EK_LOGITS_LAST,
                           .argmax_only = greedy(w)};

    g->n = 0;
    for (uint32_t i = g->first; i < g->end; i++) {
        if (!w->seqs[i].running)
            continue;
        g->members[g->n] = i;
        w->slots[g->n] = w->seqs[i].slot;
        w->counts[g->n] = 1;
        put_extras(w, w->seqs[i].prompt, w->seqs[i].prompt->n + w->seqs[i].out->n - 1, 1, g->n,
                   &step);
        w->tokens[g->n++] = w->seqs[i].last;
    }
    if (g->n == 0)
        return EK_OK;
    end_extras(w, g->n, &step);
    step.n_seqs = g->n;
    EK_TRY(ek_engine_submit(w->e, &step, &g->ticket));
    g->under_way = true;
    return EK_OK;
}

static enum ek_status take_group(struct wave *w, struct wave_group *g)
{
    const float *logits = NULL;
    const int32_t *argmax;
    enum ek_status st = ek_engine_wait(w->e, g->ticket, greedy(w) ? NULL : &logits, &argmax, NULL);

    for (uint32_t i = 0; i < g->n && st == EK_OK; i++)
        st = choose(w, &w->seqs[g->members[i]], logits, argmax, i);
    ek_engine_release(w->e, g->ticket);
    g->under_way = false;
    return st;
}

/* One result of every group under way, and its next step at once. *any: some group goes on. */
static enum ek_status round_of_groups(struct wave *w, bool *any)
{
    *any = false;
    for (uint32_t i = 0; i < w->n_groups; i++) {
        struct wave_group *g = &w->groups[i];
        if (!g->under_way)
            continue;
        EK_TRY(take_group(w, g));
        if (cancelled(w))
            return ek_error(EK_EINTR, "interrupted");
        EK_TRY(put_group(w, g));
        *any |= g->under_way;
    }
    return EK_OK;
}

enum ek_status wave_decode(struct wave *w)
{
    bool any = false;
    uint64_t from = ek_now_ns(), now;
    enum ek_status st = EK_OK;

    for (uint32_t i = 0; i < w->n_groups && st == EK_OK; i++) {
        st = put_group(w, &w->groups[i]);
        any |= w->groups[i].under_way;
    }
    for (w->n_rounds = 0; st == EK_OK && any; w->n_rounds++) {
        st = round_of_groups(w, &any);
        now = ek_now_ns();
        if (w->round_s != NULL && w->n_rounds < w->max_rounds)
            w->round_s[w->n_rounds] = (double)(now - from) * 1e-9;
        from = now;
    }
    for (uint32_t i = 0; i < w->n_groups; i++)
        if (w->groups[i].under_way)
            ek_engine_release(w->e, w->groups[i].ticket);
    return st;
}
