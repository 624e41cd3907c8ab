/* SPDX-License-Identifier: Apache-2.0
 *
 * Where prompts that come and go take their places, and what they find there of those before them.
 */
#include "runtime/places.h"

uint32_t place_count(const struct wave *w, const struct wave_group *g)
{
    uint32_t n = 0;

    for (uint32_t i = g->first; i < g->end; i++)
        n += w->seqs[i].open;
    return n;
}

/* A free place, and what speaks for it. */
struct choice {
    uint32_t place;
    size_t kept;        /* tokens of the prompt that its cache holds, and ... */
    size_t lost;        /* ... those behind them, which it would forget */
    uint32_t others;    /* open sequences of its group */
    uint64_t forgotten; /* when what its cache holds was used last */
};

/* What taking it saves, and nothing is lost: the prompt goes on from all that it holds, but for
 * less than a block of the cache. */
static size_t saved(const struct choice *c)
{
    return c->kept >= EK_PAGE && c->lost < EK_PAGE ? c->kept : 0;
}

/* What is forgotten there is another conversation, whose head may be had without taking its place;
 * and not just nothing, or the end of this one, as where an answer is asked for anew. */
static bool costs(const struct choice *c)
{
    return c->kept < c->lost;
}

static bool better(const struct choice *a, const struct choice *b)
{
    if (saved(a) != saved(b))
        return saved(a) > saved(b);
    if (a->others != b->others)
        return a->others < b->others;
    return costs(a) != costs(b) ? costs(b) : a->forgotten < b->forgotten;
}

uint32_t place_choose(const struct wave *w, const struct ek_prompt *p, size_t *kept)
{
    struct choice best = {.others = UINT32_MAX};

    for (uint32_t g = 0; g < w->n_groups; g++)
        for (uint32_t i = w->groups[g].first; i < w->groups[g].end; i++) {
            const struct history *past = &w->past[i];
            size_t common = history_common(past, p);
            struct choice one = {i, common, past->open ? past->n - common : 0,
                                 place_count(w, &w->groups[g]), past->ended};
            if (!w->seqs[i].open && better(&one, &best))
                best = one;
        }
    *kept = best.kept;
    return best.place;
}

void place_share(struct wave *w, struct wave_seq *s)
{
    size_t most = s->filled;
    uint32_t from = 0;

    for (uint32_t i = 0; i < w->n; i++) {
        const struct wave_seq *o = &w->seqs[i];
        size_t n = o == s    ? 0
                   : o->open ? prompt_common(o->prompt, o->held, s->prompt)
                             : history_common(&w->past[i], s->prompt);
        if (n / EK_PAGE * EK_PAGE > most) {
            most = n / EK_PAGE * EK_PAGE;
            from = o->open ? o->slot : w->past[i].slot;
        }
    }
    if (most > s->filled)
        s->filled = s->generation->kept = ek_engine_seq_share(w->e, s->slot, from, (uint32_t)most);
}

void place_keep(struct wave *w, uint32_t i)
{
    const struct wave_seq *s = &w->seqs[i];
    struct history *h = &w->past[i];

    h->slot = s->slot;
    h->ended = ++w->n_ended;
    h->open = ek_engine_has_room(w->e) && history_keep(h, s->prompt, s->out) == EK_OK;
    if (!h->open)
        ek_engine_seq_close(w->e, s->slot);
}
