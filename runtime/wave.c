/* SPDX-License-Identifier: Apache-2.0
 *
 * A wave: sequences that go through prefill and decode together, in groups whose steps overlap over
 * the stages; what streams of prompts join and leave. See wave.h.
 */
#include "runtime/wave.h"
#include "runtime/places.h"
#include "runtime/prompt.h"

#include <stdlib.h>
#include <string.h>

#define MAX_NEW ((size_t)1 << 28)

static bool cancelled(const struct wave *w)
{
    return w->opt->cancel != NULL && *w->opt->cancel;
}

static bool greedy(const struct wave_seq *s)
{
    return s->opt->sampling.temperature == 0;
}

/* ---- life */
static enum ek_status make_groups(struct wave *w)
{
    uint32_t want = ek_engine_plan(w->e)->micro_batches, size, n;

    want = want < w->n ? want : w->n;
    size = (w->n + want - 1) / want;
    n = (w->n + size - 1) / size;
    if ((w->groups = ek_calloc(n, sizeof(*w->groups))) == NULL)
        return EK_ENOMEM;
    w->n_groups = n;
    for (uint32_t g = 0; g < w->n_groups; g++) {
        struct wave_group *p = &w->groups[g];
        p->first = g * size;
        p->end = p->first + size < w->n ? p->first + size : w->n;
        for (int k = 0; k < WAVE_AHEAD; k++)
            if ((p->steps[k].members = ek_calloc(size, sizeof(*p->steps[k].members))) == NULL)
                return EK_ENOMEM;
    }
    return EK_OK;
}

/* A sequence of the engine for place i: the one that was kept for what its cache holds, or new. */
static enum ek_status take_slot(struct wave *w, uint32_t i)
{
    struct wave_seq *s = &w->seqs[i];

    if (w->past == NULL || !w->past[i].open)
        return ek_engine_seq_open(w->e, &s->slot);
    w->past[i].open = false;
    s->slot = w->past[i].slot;
    s->filled = s->held = ek_engine_seq_trim(w->e, s->slot, (uint32_t)s->filled);
    s->generation->kept = s->filled;
    return EK_OK;
}

/* Sequence i of the wave, whose prompt waits for its turn from now on. */
static enum ek_status open_sequence(struct wave *w, uint32_t i)
{
    struct wave_seq *s = &w->seqs[i];

    EK_TRY(take_slot(w, i));
    s->open = true;
    s->running = true;
    s->random = s->opt->sampling.seed + s->index;
    s->out->finish = EK_FINISH_LENGTH;
    w->order[w->n_queued++ % w->n] = i;
    return EK_OK;
}

static enum ek_status open_sequences(struct wave *w)
{
    for (uint32_t i = 0; i < w->n; i++) {
        w->seqs[i].opt = w->opt;
        EK_TRY(open_sequence(w, i));
    }
    return EK_OK;
}

/* Room for what prompts with pictures have besides tokens. */
static enum ek_status make_extras(struct wave *w, bool positions, bool rows)
{
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

/* A wave without sequences. */
static enum ek_status make_wave(struct wave *w, bool positions, bool rows)
{
    size_t chunk = ek_engine_plan(w->e)->prefill_chunk;
    uint32_t n = w->n;

    w->draws = ek_engine_draws(w->e);
    if ((w->slots = ek_calloc(n, sizeof(*w->slots))) == NULL ||
        (w->counts = ek_calloc(n, sizeof(*w->counts))) == NULL ||
        (w->drawn = ek_calloc(n, sizeof(*w->drawn))) == NULL ||
        (w->order = ek_calloc(n, sizeof(*w->order))) == NULL ||
        (w->tokens = ek_calloc(chunk > n ? chunk : n, sizeof(*w->tokens))) == NULL)
        return EK_ENOMEM;
    w->most = chunk > n ? chunk : n;
    EK_TRY(make_extras(w, positions, rows));
    return make_groups(w);
}

enum ek_status wave_open(struct wave *w, struct ek_engine *e, const struct ek_generate_options *opt,
                         struct wave_seq *seqs, uint32_t n)
{
    bool positions = false, rows = false;
    enum ek_status st;

    *w = (struct wave){.e = e, .opt = opt, .seqs = seqs, .n = n};
    for (uint32_t i = 0; i < n; i++) {
        positions |= seqs[i].prompt->positions != NULL || seqs[i].prompt->delta != 0;
        rows |= seqs[i].prompt->embeds != NULL;
    }
    EK_GOTO(make_wave(w, positions, rows), st, fail);
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
            free(w->seqs[i].seen);
            w->seqs[i].seen = NULL;
        }
    for (uint32_t i = 0; w->past && i < w->n; i++) {
        if (w->past[i].open)
            ek_engine_seq_close(w->e, w->past[i].slot);
        free(w->past[i].names);
    }
    free(w->past);
    w->past = NULL;
    for (uint32_t g = 0; g < w->n_groups; g++)
        for (int k = 0; k < WAVE_AHEAD; k++)
            free(w->groups[g].steps[k].members);
    free(w->groups);
    free(w->slots);
    free(w->counts);
    free(w->drawn);
    free(w->row);
    free(w->order);
    free(w->tokens);
    free(w->positions);
    free(w->rows);
    w->groups = NULL;
    w->n_groups = 0;
    w->slots = w->counts = w->order = NULL;
    w->drawn = NULL;
    w->row = NULL;
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
    if (s->seen != NULL)
        s->seen[id] += 2;
    if (is_stop(s->opt, id)) {
        s->running = false;
        s->out->finish = EK_FINISH_STOP;
    } else if (s->out->n >= s->opt->max_tokens ||
               s->prompt->n + s->out->n > ek_engine_max_context(w->e)) {
        s->running = false; /* a last token that the cache has no room for is still an answer */
    }
    if (s->opt->on_token != NULL && !s->opt->on_token(s->opt->user, s->index, id) && s->running) {
        s->running = false;
        s->out->finish = EK_FINISH_CALLBACK;
    }
    return EK_OK;
}

/* ---- how tokens are chosen: on the device of the head; or here, with penalties and where that
 * cannot draw */
static bool needs_logits(const struct wave *w, const struct wave_seq *s)
{
    return s->opt->penalties != NULL || (!greedy(s) && !w->draws);
}

static bool drawn_there(const struct wave *w, const struct wave_seq *s)
{
    return !greedy(s) && !needs_logits(w, s);
}

/* The step's wishes for row `row`, which belongs to a sequence. */
static enum ek_status wish(struct wave *w, const struct wave_seq *s, uint32_t row,
                           struct ek_step *step)
{
    uint64_t state = s->random; /* it moves on when the step is submitted */

    step->ids_only &= !needs_logits(w, s) && s->opt->on_logits == NULL;
    if (drawn_there(w, s))
        step->draws = w->drawn;
    return ek_sampling_draw(&s->opt->sampling, &state, &w->drawn[row]);
}

/* The step that draws the sequence's next token is submitted. */
static void wished(const struct wave *w, struct wave_seq *s)
{
    if (drawn_there(w, s))
        (void)ek_random_u64(&s->random);
    s->ahead++;
}

static enum ek_status wait_for(const struct wave *w, uint64_t ticket, bool ids_only,
                               const float **logits, const int32_t **ids)
{
    return ek_engine_wait(w->e, ticket, ids_only ? NULL : logits, ids, NULL);
}

/* Logits with the sequence's penalties. */
static enum ek_status penalize(struct wave *w, struct wave_seq *s, const float *logits,
                               uint32_t vocab)
{
    if (w->row == NULL && (w->row = ek_calloc(vocab, sizeof(*w->row))) == NULL)
        return EK_ENOMEM;
    if (s->seen == NULL) { /* this is its first token */
        if ((s->seen = ek_calloc(vocab, sizeof(*s->seen))) == NULL)
            return EK_ENOMEM;
        for (size_t i = 0; i < s->prompt->n; i++)
            s->seen[s->prompt->ids[i]] = 1;
    }
    memcpy(w->row, logits, vocab * sizeof(*logits));
    ek_penalize(s->opt->penalties, s->seen, vocab, w->row);
    return EK_OK;
}

static enum ek_status choose_here(struct wave *w, struct wave_seq *s, const float *logits,
                                  int32_t *id)
{
    uint32_t vocab = ek_engine_model(w->e)->config.vocab;

    if (s->opt->penalties != NULL) {
        EK_TRY(penalize(w, s, logits, vocab));
        logits = w->row;
    }
    return ek_sample(&s->opt->sampling, logits, vocab, &s->random, id);
}

/* Token of a row of a step's results. What was computed for a sequence that has ended meanwhile is
 * forgotten. */
static enum ek_status choose(struct wave *w, struct wave_seq *s, const float *logits,
                             const int32_t *ids, uint32_t row)
{
    uint32_t vocab = ek_engine_model(w->e)->config.vocab;
    const float *of_row = logits ? logits + (size_t)row * vocab : NULL;
    int32_t id = ids[row];

    s->ahead--;
    if (!s->running) {
        ek_engine_seq_trim(w->e, s->slot, (uint32_t)(s->prompt->n + s->out->n - 1));
        return EK_OK;
    }
    if (needs_logits(w, s))
        EK_TRY(choose_here(w, s, of_row, &id));
    EK_TRY(ek_drawn_check(id));
    if (s->opt->on_logits != NULL)
        s->opt->on_logits(s->opt->user, s->index, id, of_row);
    return accept(w, s, id);
}

/* ---- prefill: chunks filled with prompt after prompt, in the order that they came in */
#define WINDOW 8 /* chunks under way whose results were not looked at */

struct prefill {
    struct {
        uint64_t ticket;
        uint64_t first; /* prompts [first, first + ends) of the order end in the chunk */
        uint32_t ends;
        bool ids_only;
    } ring[WINDOW];
    size_t put, got;
    uint64_t seq; /* next prompt of the order */
};

static struct wave_seq *in_order(const struct wave *w, uint64_t i)
{
    return &w->seqs[w->order[i % w->n]];
}

static enum ek_status take_chunk(struct wave *w, struct prefill *p)
{
    size_t i = p->got++ % WINDOW;
    const float *logits = NULL;
    const int32_t *ids = NULL;
    enum ek_status st = wait_for(w, p->ring[i].ticket, p->ring[i].ids_only, &logits, &ids);

    for (uint32_t k = 0; k < p->ring[i].ends && st == EK_OK; k++)
        st = choose(w, in_order(w, p->ring[i].first + k), logits, ids, k);
    ek_engine_release(w->e, p->ring[i].ticket);
    return st;
}

/* Fills and submits the next chunk. */
static enum ek_status put_chunk(struct wave *w, struct prefill *p)
{
    size_t room = ek_engine_plan(w->e)->prefill_chunk, i = p->put % WINDOW, n = 0;
    struct ek_step step = {
        .seqs = w->slots, .n_tokens = w->counts, .tokens = w->tokens, .ids_only = true};

    p->ring[i].first = p->seq;
    while (n < room && p->seq < w->n_queued) {
        struct wave_seq *s = in_order(w, p->seq);
        size_t left, k;
        if (w->past != NULL)
            place_share(w, s);
        left = s->prompt->n - s->filled;
        k = left < room - n ? left : room - n;
        memcpy(w->tokens + n, s->prompt->ids + s->filled, k * sizeof(*w->tokens));
        put_extras(w, s->prompt, s->filled, (uint32_t)k, n, &step);
        EK_TRY(wish(w, s, step.n_seqs, &step));
        w->slots[step.n_seqs] = s->slot;
        w->counts[step.n_seqs++] = (uint32_t)k;
        n += k;
        s->filled += k;
        p->seq += s->filled == s->prompt->n;
    }
    end_extras(w, n, &step);
    p->ring[i].ends = (uint32_t)(p->seq - p->ring[i].first);
    p->ring[i].ids_only = step.ids_only;
    step.logits = p->ring[i].ends ? EK_LOGITS_LAST : EK_LOGITS_NONE;
    EK_TRY(ek_engine_submit(w->e, &step, &p->ring[i].ticket));
    for (uint32_t k = 0; k < p->ring[i].ends; k++)
        wished(w, in_order(w, p->ring[i].first + k));
    for (uint32_t k = 0; k < w->n; k++)
        w->seqs[k].held = w->seqs[k].filled;
    p->put++;
    return EK_OK;
}

static void drop_chunks(struct wave *w, struct prefill *p)
{
    for (; p->got < p->put; p->got++)
        ek_engine_release(w->e, p->ring[p->got % WINDOW].ticket);
}

enum ek_status wave_prefill(struct wave *w)
{
    struct prefill p = {.put = 0};
    enum ek_status st = EK_OK;

    while (st == EK_OK && (p.seq < w->n_queued || p.got < p.put)) {
        if (cancelled(w))
            st = ek_error(EK_EINTR, "interrupted");
        else if (p.seq < w->n_queued && p.put - p.got < WINDOW)
            st = put_chunk(w, &p);
        else
            st = take_chunk(w, &p);
    }
    drop_chunks(w, &p);
    return st;
}

/* ---- decode: every group has steps under way until its sequences are done. A step that follows
 * another that is under way takes its tokens on the devices; the host reads them behind it. */
static bool under_way(const struct wave_group *g)
{
    return g->put > g->got;
}

/* Whether a token behind those that are known and under way is wanted, as accept() has it, and can
 * be asked for. */
static bool goes_on(const struct wave *w, const struct wave_seq *s)
{
    size_t n = s->out->n + s->ahead;

    return s->running && n < s->opt->max_tokens &&
           s->prompt->n + n <= ek_engine_max_context(w->e) &&
           (s->ahead == 0 || !needs_logits(w, s));
}

/* A sequence whose newest token is known, and no step under way has it. */
static bool joins(const struct wave *w, const struct wave_seq *s)
{
    return s->open && s->ahead == 0 && s->out->n > 0 && goes_on(w, s);
}

/* Member i of the step. row: of the step that it follows, where the token comes from there. */
static enum ek_status put_member(struct wave *w, struct wave_step *to, uint32_t i, uint32_t row,
                                 struct ek_step *step)
{
    const struct wave_seq *s = &w->seqs[i];
    uint32_t k = step->n_seqs++;

    to->members[k] = i;
    w->slots[k] = s->slot;
    w->counts[k] = 1;
    w->tokens[k] = s->ahead ? EK_TOKEN_OF_ROW(row) : s->last;
    put_extras(w, s->prompt, s->prompt->n + s->out->n + s->ahead - 1, 1, k, step);
    return wish(w, s, k, step);
}

/* Those of the step before that go on, then others of the group. */
static enum ek_status put_members(struct wave *w, const struct wave_group *g,
                                  const struct wave_step *before, struct wave_step *to,
                                  struct ek_step *step)
{
    for (uint32_t k = 0; before && k < before->n; k++)
        if (goes_on(w, &w->seqs[before->members[k]]))
            EK_TRY(put_member(w, to, before->members[k], k, step));
    for (uint32_t i = g->first; i < g->end; i++)
        if (joins(w, &w->seqs[i]))
            EK_TRY(put_member(w, to, i, 0, step));
    return EK_OK;
}

/* The group's next step, if any sequence goes on. */
static enum ek_status put_group(struct wave *w, struct wave_group *g)
{
    struct ek_step step = {.seqs = w->slots,
                           .n_tokens = w->counts,
                           .tokens = w->tokens,
                           .logits = EK_LOGITS_LAST,
                           .ids_only = true};
    struct wave_step *to = &g->steps[g->put % WAVE_AHEAD];
    const struct wave_step *before = NULL;
    enum ek_status st;

    if (under_way(g)) {
        before = &g->steps[(g->put - 1) % WAVE_AHEAD];
        step.from = before->ticket;
    }
    EK_TRY(put_members(w, g, before, to, &step));
    if (step.n_seqs == 0)
        return EK_OK;
    end_extras(w, step.n_seqs, &step);
    st = ek_engine_submit(w->e, &step, &to->ticket);
    if (st == EK_ENOMEM && before != NULL)
        return EK_OK; /* no block is free, yet: who is under way may end */
    EK_TRY(st);
    to->n = step.n_seqs;
    to->ids_only = step.ids_only;
    for (uint32_t k = 0; k < to->n; k++)
        wished(w, &w->seqs[to->members[k]]);
    g->put++;
    return EK_OK;
}

/* Steps of the group until so many are under way, or it has no more. */
static enum ek_status fill_group(struct wave *w, struct wave_group *g, uint32_t n)
{
    for (uint64_t before = g->put - 1; g->put != before && g->put - g->got < n;) {
        before = g->put;
        EK_TRY(put_group(w, g));
    }
    return EK_OK;
}

static enum ek_status take_group(struct wave *w, struct wave_group *g)
{
    struct wave_step *s = &g->steps[g->got++ % WAVE_AHEAD];
    const float *logits = NULL;
    const int32_t *ids = NULL;
    enum ek_status st = wait_for(w, s->ticket, s->ids_only, &logits, &ids);

    for (uint32_t i = 0; i < s->n && st == EK_OK; i++)
        st = choose(w, &w->seqs[s->members[i]], logits, ids, i);
    ek_engine_release(w->e, s->ticket);
    return st;
}

/* One result of every group under way, and its next step at once. *any: some group goes on. */
static enum ek_status round_of_groups(struct wave *w, bool *any)
{
    *any = false;
    for (uint32_t i = 0; i < w->n_groups; i++) {
        struct wave_group *g = &w->groups[i];
        if (!under_way(g))
            continue;
        EK_TRY(take_group(w, g));
        if (cancelled(w))
            return ek_error(EK_EINTR, "interrupted");
        EK_TRY(fill_group(w, g, WAVE_AHEAD));
        *any |= under_way(g);
    }
    return EK_OK;
}

/* The first steps of every group, then those that follow them. */
static enum ek_status put_first(struct wave *w, bool *any)
{
    for (uint32_t k = 1; k <= WAVE_AHEAD; k++)
        for (uint32_t i = 0; i < w->n_groups; i++) {
            EK_TRY(fill_group(w, &w->groups[i], k));
            *any |= under_way(&w->groups[i]);
        }
    return EK_OK;
}

static void drop_steps(struct wave *w)
{
    for (uint32_t i = 0; i < w->n_groups; i++)
        for (struct wave_group *g = &w->groups[i]; under_way(g); g->got++)
            ek_engine_release(w->e, g->steps[g->got % WAVE_AHEAD].ticket);
}

enum ek_status wave_decode(struct wave *w)
{
    bool any = false;
    uint64_t from = ek_now_ns(), now;
    enum ek_status st = put_first(w, &any);

    for (w->n_rounds = 0; st == EK_OK && any; w->n_rounds++) {
        st = round_of_groups(w, &any);
        now = ek_now_ns();
        if (w->round_s != NULL && w->n_rounds < w->max_rounds)
            w->round_s[w->n_rounds] = (double)(now - from) * 1e-9;
        from = now;
    }
    drop_steps(w);
    return st;
}

/* ---- a wave whose sequences come and go */
static uint32_t count_free(const struct wave *w)
{
    uint32_t n = w->n;

    for (uint32_t g = 0; g < w->n_groups; g++)
        n -= place_count(w, &w->groups[g]);
    return n;
}

/* Whoever waits and finds a place. *more: somebody is here. */
static enum ek_status admit(struct wave *w, const struct ek_generations *from, bool *more)
{
    struct ek_generation *g = NULL;
    size_t kept;
    uint32_t at;
    uint32_t n_free;

    while ((n_free = count_free(w)) > 0) {
        EK_TRY(from->next(from->user, n_free == w->n, &g));
        if (g == NULL)
            break;
        if (g->prompt.n == 0 || g->prompt.n > ek_engine_max_context(w->e))
            return ek_error(EK_EUSAGE,
                            "generate: a prompt of %zu tokens; the context holds 1 to %u",
                            g->prompt.n, ek_engine_max_context(w->e));
        g->out = (struct ek_completion){0};
        at = place_choose(w, &g->prompt, &kept);
        g->kept = 0;
        w->seqs[at] = (struct wave_seq){
            .prompt = &g->prompt, .opt = &g->opt, .out = &g->out, .generation = g, .filled = kept};
        EK_TRY(open_sequence(w, at));
    }
    *more = n_free < w->n;
    return EK_OK;
}

/* Sequences that have their last token, and no step under way. */
static void retire(struct wave *w, const struct ek_generations *to)
{
    for (uint32_t i = 0; i < w->n; i++) {
        struct wave_seq *s = &w->seqs[i];
        if (!s->open || s->running || s->ahead > 0)
            continue;
        place_keep(w, i);
        s->open = false;
        free(s->seen);
        s->seen = NULL;
        to->ended(to->user, s->generation);
    }
}

/* A chunk of prompts between two rounds of decoding, so that neither waits long for the other. */
static enum ek_status stream_round(struct wave *w, struct prefill *p)
{
    bool any = false;

    if (p->seq < w->n_queued)
        EK_TRY(put_chunk(w, p));
    EK_TRY(put_first(w, &any));
    EK_TRY(round_of_groups(w, &any));
    return p->got < p->put ? take_chunk(w, p) : EK_OK;
}

enum ek_status wave_stream(struct ek_engine *e, const struct ek_generations *from)
{
    const struct ek_generate_options none = {.max_tokens = 0};
    const struct ek_config *c = &ek_engine_model(e)->config;
    struct wave w = {.e = e, .opt = &none, .n = ek_engine_max_seqs(e)};
    struct prefill p = {.put = 0};
    bool more = true;
    enum ek_status st = EK_ENOMEM;

    if ((w.seqs = ek_calloc(w.n, sizeof(*w.seqs))) == NULL)
        return st;
    if ((w.past = ek_calloc(w.n, sizeof(*w.past))) == NULL)
        goto done;
    EK_GOTO(make_wave(&w, prompt_has_rows(ek_engine_model(e)), c->vision != EK_VISION_NONE), st,
            done);
    while ((st = admit(&w, from, &more)) == EK_OK && more) {
        EK_GOTO(stream_round(&w, &p), st, done);
        retire(&w, from);
    }
done:
    drop_chunks(&w, &p);
    drop_steps(&w);
    wave_close(&w);
    free(w.seqs);
    return st;
}
