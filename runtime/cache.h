/* SPDX-License-Identifier: Apache-2.0
 *
 * Which blocks of the paged cache belong to which sequence: one, or several that begin alike, none
 * of which writes to it then. The same numbers hold on every device.
 * Not locked: the engine's lock covers it. Blocks of a closed sequence may be given out while steps
 * that read them are under way, for every stage runs its steps in the order of submission.
 */
#ifndef EK_RUNTIME_CACHE_H
#define EK_RUNTIME_CACHE_H

#include "base/base.h"

struct cache_seq {
    int32_t *blocks; /* [max_blocks], n_blocks of them in use */
    uint32_t n_blocks;
    uint32_t length; /* tokens */
    bool open;
};

struct cache {
    struct cache_seq *seqs;
    uint32_t n_seqs;
    int32_t *free_blocks; /* a stack */
    uint32_t *users;      /* [n_blocks] sequences that have it */
    uint32_t n_free, n_blocks;
    uint32_t page, max_context, max_blocks;
};

enum ek_status cache_open(struct cache *c, uint32_t n_blocks, uint32_t page, uint32_t max_seqs,
                          uint32_t max_context);
void cache_close(struct cache *c);
enum ek_status cache_seq_open(struct cache *c, uint32_t *seq);
void cache_seq_close(struct cache *c, uint32_t seq);
/* Forgets the tokens from `length` on, and those of a block that others have too and the next token
 * would be written to; blocks that nobody has are free again. Returns how many tokens are left. */
uint32_t cache_trim(struct cache *c, uint32_t seq, uint32_t length);
/* The sequence becomes the whole blocks of the first `length` tokens of another, which both have
 * from then on. Returns how many tokens these are. */
uint32_t cache_share(struct cache *c, uint32_t seq, uint32_t from, uint32_t length);
/* Blocks for n_new[i] more tokens of seqs[i], for all or, on failure, for none. EK_EUSAGE when a
 * sequence is not open, twice in the list or over max_context; EK_ENOMEM when blocks run out. */
enum ek_status cache_reserve(struct cache *c, const uint32_t *seqs, const uint32_t *n_new,
                             uint32_t n);
/* Counts the tokens that cache_reserve made room for. */
void cache_advance(struct cache *c, const uint32_t *seqs, const uint32_t *n_new, uint32_t n);

#endif
