/* SPDX-License-Identifier: Apache-2.0
 *
 * Blocks of the paged cache: which sequence has which, and which are free.
 */
#include "runtime/cache.h"

#include <stdlib.h>
#include <string.h>

enum ek_status cache_open(struct cache *c, uint32_t n_blocks, uint32_t page, uint32_t max_seqs,
                          uint32_t max_context)
{
    *c = (struct cache){.n_seqs = max_seqs,
                        .n_free = n_blocks,
                        .n_blocks = n_blocks,
                        .page = page,
                        .max_context = max_context,
                        .max_blocks = (max_context - 1) / page + 1};
    if ((c->seqs = ek_calloc(max_seqs, sizeof(*c->seqs))) == NULL ||
        (c->free_blocks = ek_calloc(n_blocks, sizeof(*c->free_blocks))) == NULL ||
        (c->users = ek_calloc(n_blocks, sizeof(*c->users))) == NULL)
        return EK_ENOMEM;
    for (uint32_t i = 0; i < n_blocks; i++) /* the lowest number comes first */
        c->free_blocks[i] = (int32_t)(n_blocks - 1 - i);
    for (uint32_t i = 0; i < max_seqs; i++)
        if ((c->seqs[i].blocks = ek_calloc(c->max_blocks, sizeof(int32_t))) == NULL)
            return EK_ENOMEM;
    return EK_OK;
}

void cache_close(struct cache *c)
{
    for (uint32_t i = 0; c->seqs && i < c->n_seqs; i++)
        free(c->seqs[i].blocks);
    free(c->seqs);
    free(c->free_blocks);
    free(c->users);
    *c = (struct cache){0};
}

enum ek_status cache_seq_open(struct cache *c, uint32_t *seq)
{
    for (uint32_t i = 0; i < c->n_seqs; i++)
        if (!c->seqs[i].open) {
            c->seqs[i].open = true;
            *seq = i;
            return EK_OK;
        }
    return ek_error(EK_ENOMEM, "all %u sequence slots are in use", c->n_seqs);
}

static struct cache_seq *find_open(const struct cache *c, uint32_t seq)
{
    return seq < c->n_seqs && c->seqs[seq].open ? &c->seqs[seq] : NULL;
}

static void give_block(struct cache *c, int32_t block)
{
    if (--c->users[block] == 0)
        c->free_blocks[c->n_free++] = block;
}

uint32_t cache_trim(struct cache *c, uint32_t seq, uint32_t length)
{
    struct cache_seq *s = find_open(c, seq);
    uint32_t whole = length / c->page;

    if (s == NULL || length > s->length)
        return s ? s->length : 0;
    if (length % c->page != 0 && c->users[s->blocks[whole]] > 1)
        length = whole * c->page;
    s->length = length;
    while (s->n_blocks > (length + c->page - 1) / c->page)
        give_block(c, s->blocks[--s->n_blocks]);
    return length;
}

uint32_t cache_share(struct cache *c, uint32_t seq, uint32_t from, uint32_t length)
{
    struct cache_seq *s = find_open(c, seq), *f = find_open(c, from);

    if (s == NULL || f == NULL || s == f || length > f->length)
        return s ? s->length : 0;
    cache_trim(c, seq, 0);
    for (uint32_t n = length / c->page; s->n_blocks < n; s->n_blocks++) {
        s->blocks[s->n_blocks] = f->blocks[s->n_blocks];
        c->users[s->blocks[s->n_blocks]]++;
    }
    s->length = s->n_blocks * c->page;
    return s->length;
}

void cache_seq_close(struct cache *c, uint32_t seq)
{
    cache_trim(c, seq, 0);
    if (seq < c->n_seqs)
        c->seqs[seq].open = false;
}

static uint32_t more_blocks(const struct cache *c, const struct cache_seq *s, uint32_t n_new)
{
    uint32_t need = (s->length + n_new + c->page - 1) / c->page;

    return need > s->n_blocks ? need - s->n_blocks : 0;
}

static enum ek_status check(const struct cache *c, const uint32_t *seqs, const uint32_t *n_new,
                            uint32_t n, uint64_t *blocks)
{
    *blocks = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct cache_seq *s = seqs[i] < c->n_seqs ? &c->seqs[seqs[i]] : NULL;
        if (s == NULL || !s->open)
            return ek_error(EK_EUSAGE, "sequence %u is not open", seqs[i]);
        for (uint32_t k = 0; k < i; k++)
            if (seqs[k] == seqs[i])
                return ek_error(EK_EUSAGE, "sequence %u is twice in one step", seqs[i]);
        if (n_new[i] == 0)
            return ek_error(EK_EUSAGE, "sequence %u: no new token", seqs[i]);
        if ((uint64_t)s->length + n_new[i] > c->max_context)
            return ek_error(EK_EUSAGE, "sequence %u: %u + %u tokens are over the context of %u",
                            seqs[i], s->length, n_new[i], c->max_context);
        *blocks += more_blocks(c, s, n_new[i]);
    }
    return EK_OK;
}

enum ek_status cache_reserve(struct cache *c, const uint32_t *seqs, const uint32_t *n_new,
                             uint32_t n)
{
    uint64_t blocks;

    EK_TRY(check(c, seqs, n_new, n, &blocks));
    if (blocks > c->n_free)
        return ek_error(EK_ENOMEM,
                        "the cache is full: %llu blocks of %u tokens needed, %u of %u free",
                        (unsigned long long)blocks, c->page, c->n_free, c->n_blocks);
    for (uint32_t i = 0; i < n; i++) {
        struct cache_seq *s = &c->seqs[seqs[i]];
        for (uint32_t k = more_blocks(c, s, n_new[i]); k > 0; k--) {
            int32_t block = c->free_blocks[--c->n_free];
            c->users[block] = 1;
            s->blocks[s->n_blocks++] = block;
        }
    }
    return EK_OK;
}

void cache_advance(struct cache *c, const uint32_t *seqs, const uint32_t *n_new, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        c->seqs[seqs[i]].length += n_new[i];
}
